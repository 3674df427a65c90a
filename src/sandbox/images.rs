//! What all tasks share of images.

use std::sync::{Arc, OnceLock};

use super::book::Book;
use super::pulls::Pulls;
use super::registries::Registries;
use crate::docker::Platform;

/// See the module.
pub struct Images {
    /// Of the engine, once it has told.
    pub(super) platform: OnceLock<Platform>,
    /// Those under way.
    pub(super) pulls: Pulls,
    /// Whose credentials tasks' images are pulled with.
    pub(super) registries: Registries,
    /// What was pulled.
    pub(super) book: Arc<Book>,
}

impl Images {
    /// With these credentials and this record.
    pub fn new(registries: Registries, book: Arc<Book>) -> Self {
        Self { platform: OnceLock::new(), pulls: Pulls::default(), registries, book }
    }
}

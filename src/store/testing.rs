//! Helpers of the unit tests: folders of their own, and tasks.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::node::id::{AttemptKey, Id};
use crate::node::offer::Offer;
use crate::node::spec::{SpecDefaults, TaskSpec};

/// A folder that goes with the value.
pub(super) struct Folder(PathBuf);

impl Folder {
    pub(super) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("hm-store-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap_or_default();
    }
}

pub(super) fn key(task: &str, attempt: u32) -> AttemptKey {
    AttemptKey { task: Id::parse(task).unwrap(), attempt }
}

pub(super) fn spec(task: &str, attempt: u32) -> TaskSpec {
    let offer = Offer { task: task.to_owned(), attempt: i64::from(attempt), digest: [7; 32], ..Offer::default() };
    TaskSpec::check(&offer, &SpecDefaults::default()).unwrap()
}

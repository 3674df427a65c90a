//! What a collection found that belongs to no attempt any more: words between who collects and who shows it.

use serde::{Deserialize, Serialize};

/// A thing of this node that is of no use any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOver {
    /// container, volume, network, image, disk or bundle.
    pub kind: String,
    /// As the engine names it; of a bundle, its attempt.
    pub name: String,
    /// Why it is of no use.
    pub reason: String,
    /// Why it could not be removed.
    #[serde(default)]
    pub trouble: Option<String>,
}

/// Whether a collection removes what it finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Collecting {
    /// It does.
    Removes,
    /// It only tells.
    Looks,
}

//! What the node has in stock for tasks: files of earlier ones.

use std::path::Path;

use crate::store::Kept;

/// The owner's choices.
#[derive(Clone, Debug)]
pub struct StockSettings {
    /// Kept files, all together; 0: none are kept.
    pub kept_bytes: u64,
}

impl Default for StockSettings {
    fn default() -> Self {
        Self { kept_bytes: 1 << 30 }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Stock {
    /// Files that tasks have put out.
    pub kept: Kept,
}

impl Stock {
    /// That of a state folder, which this process has locked.
    pub fn open(state: &Path, settings: StockSettings) -> Self {
        Self { kept: Kept::open(state, settings.kept_bytes) }
    }
}

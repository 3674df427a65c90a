//! Stands where the node's own start will be.

use crate::config::Config;

/// What the process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A node of a master elsewhere.
    Node,
    /// A node and a small master.
    Standalone,
}

/// Runs until a signal ends it.
///
/// # Errors
/// Always, for now.
pub fn run(_config: Config, mode: Mode) -> Result<(), String> {
    Err(format!("this build has no {mode:?} mode yet"))
}

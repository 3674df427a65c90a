//! `run` and `standalone`: what comes before the node itself.

use crate::config::{Config, EXIT_CONFIG};
use crate::sys::private;

use super::daemon_stub as daemon;
use super::{Failure, logging};

/// `run`.
pub(super) fn run(config: Config) -> Result<u8, Failure> {
    if config.master_url.is_none() {
        return Err(Failure::with_code(
            EXIT_CONFIG,
            "no master is set, so there is nobody to take tasks from.\n\
             Set one:          hivemind-worker --master-url https://HOST[:PORT]   (or MASTER_NODE_URL in environment or file)\n\
             Try it out alone: hivemind-worker standalone",
        ));
    }
    start(config, daemon::Mode::Node)
}

/// `standalone`.
pub(super) fn standalone(config: Config) -> Result<u8, Failure> {
    start(config, daemon::Mode::Standalone)
}

fn start(config: Config, mode: daemon::Mode) -> Result<u8, Failure> {
    private::restrict_umask();
    logging::init(&config)?;
    for warning in &config.warnings {
        log::warn!("{warning}");
    }
    daemon::run(config, mode).map(|()| 0).map_err(Failure::new)
}

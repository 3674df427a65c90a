//! `run` and `standalone`: what comes before the node itself.

use crate::config::{Config, EXIT_CONFIG, Loaded};
use crate::daemon;
use crate::sys::private;

use super::{Failure, folder, logging};

/// `run`.
pub(super) fn run(config: Config) -> Result<u8, Failure> {
    if config.master_url.is_none() && config.master_grpc_url.is_none() {
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
    if let Err(error @ private::PrivateError::Owner { .. }) = private::check_private_dir(&config.state_dir) {
        return Err(Failure::with_code(EXIT_CONFIG, folder::trouble(&error)));
    }
    logging::init(&config)?;
    for warning in &config.warnings {
        log::warn!("{warning}");
    }
    let reload = || reload().map_err(|failure| failure.message);
    daemon::run(config, mode, &reload, &logging::set_log_level).map(|()| 0).map_err(|fault| match fault {
        daemon::Fault::Setup(message) => Failure::with_code(EXIT_CONFIG, message),
        daemon::Fault::Other(message) => Failure::new(message),
    })
}

/// Reads the configuration as at the start, from this process's own command line.
fn reload() -> Result<Config, Failure> {
    match super::load(std::env::args_os().skip(1)) {
        Ok(Loaded::Run(config) | Loaded::Standalone(config)) => Ok(*config),
        Ok(_) => Err(Failure::new("this command line runs no node")),
        Err(error) => Err(Failure::new(error.to_string())),
    }
}

//! The log: one line a message, to standard error or a file.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;

use log::LevelFilter;
use simplelog::{ConfigBuilder, LevelPadding, ThreadLogMode, WriteLogger};

use crate::config::{Config, EXIT_CONFIG};

use super::Failure;

/// Starts the log. Only messages of this crate are let through: those of libraries may hold headers and tokens.
pub(super) fn init(config: &Config) -> Result<(), Failure> {
    let output: Box<dyn Write + Send> = match &config.log_file {
        None => Box::new(io::stderr()),
        Some(path) => {
            let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path);
            Box::new(file.map_err(|error| {
                Failure::with_code(EXIT_CONFIG, format!("failed to open the log file {}: {error}", path.display()))
            })?)
        }
    };
    let format = ConfigBuilder::new()
        .set_time_format_rfc3339()
        .set_target_level(LevelFilter::Debug)
        .set_location_level(LevelFilter::Off)
        .set_thread_level(LevelFilter::Info)
        .set_thread_mode(ThreadLogMode::Names)
        .set_level_padding(LevelPadding::Right)
        .add_filter_allow_str("hivemind_worker")
        .build();
    WriteLogger::init(LevelFilter::Trace, format, output)
        .map_err(|error| Failure::new(format!("failed to start the log: {error}")))?;
    set_log_level(config.log_level);
    Ok(())
}

/// Changes the level from now on; messages below it cost nothing.
pub fn set_log_level(level: LevelFilter) {
    log::set_max_level(level);
}

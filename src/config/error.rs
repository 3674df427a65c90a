//! What is wrong with a configuration or a command line, and where.

use std::fmt;
use std::path::PathBuf;

/// Exit code of a bad command line, as shells have it.
pub const EXIT_USAGE: u8 = 2;
/// Exit code of a bad configuration: EX_CONFIG of sysexits.h, which service managers know as "don't restart".
pub const EXIT_CONFIG: u8 = 78;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A flag, with its dashes.
    Flag(String),
    /// A variable of the environment.
    Env(String),
    /// A line of a file.
    File {
        /// The file.
        path: PathBuf,
        /// From 1; 0 when the file as a whole is meant.
        line: usize,
    },
    /// The command line as a whole.
    CommandLine,
    /// No layer has it: the default.
    Default,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) => write!(f, "flag {flag}"),
            Self::Env(name) => write!(f, "environment variable {name}"),
            Self::File { path, line: 0 } => write!(f, "{}", path.display()),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::CommandLine => f.write_str("command line"),
            Self::Default => f.write_str("default"),
        }
    }
}

/// The operator's mistake: where it is and what would be right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// Where.
    pub place: Place,
    /// What is wrong and what would be right; never holds a secret.
    pub message: String,
}

impl ConfigError {
    pub(crate) fn new(place: Place, message: impl Into<String>) -> Self {
        Self { place, message: message.into() }
    }

    /// What the process ends with: 2 for a bad command line, 78 for a bad configuration.
    pub fn exit_code(&self) -> u8 {
        match self.place {
            Place::Flag(_) | Place::CommandLine => EXIT_USAGE,
            Place::Env(_) | Place::File { .. } | Place::Default => EXIT_CONFIG,
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

impl std::error::Error for ConfigError {}

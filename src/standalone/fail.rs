//! How the small master says no to a call.

use std::fmt;
use std::io;

use crate::grpc::{Code, Status};

/// A refused call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fail {
    /// What kind of refusal.
    pub code: Code,
    /// For people; names the field where one was wrong.
    pub message: String,
}

impl Fail {
    /// A refusal with this code.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// A required field that is not there.
    pub fn missing(field: &str) -> Self {
        Self::new(Code::InvalidArgument, format!("{field} is missing"))
    }

    /// A field that is there and wrong.
    pub fn wrong(field: &str, reason: impl fmt::Display) -> Self {
        Self::new(Code::InvalidArgument, format!("{field} {reason}"))
    }
}

impl fmt::Display for Fail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Fail {}

/// Nothing that could not be written was promised: the node tries again.
impl From<io::Error> for Fail {
    fn from(error: io::Error) -> Self {
        Self::new(Code::Unavailable, format!("the master's disk refused: {error}"))
    }
}

impl From<Fail> for Status {
    fn from(fail: Fail) -> Self {
        Self::new(fail.code, fail.message)
    }
}

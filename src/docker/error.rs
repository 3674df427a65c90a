//! What can go wrong in a call to the engine, in the terms that a caller acts on.

use std::fmt;
use std::io;
use std::path::PathBuf;

use super::version::ApiVersion;

/// A failed call. The first words of its text are the operation with the name of the container, image, volume or network.
#[derive(Debug)]
pub enum Error {
    /// Nobody answers at the socket. Says nothing about containers: they may well be running.
    Unreachable {
        /// What was to be done.
        operation: String,
        /// The socket.
        path: PathBuf,
        /// Why the connection failed or ended before an answer.
        source: io::Error,
    },
    /// The engine answered and said no.
    Refused {
        /// What was to be done.
        operation: String,
        /// The HTTP status; 200 where the engine reports a failure inside a stream that had begun well.
        status: u16,
        /// The engine's own words, without control characters.
        message: String,
    },
    /// The answer is not what an engine says: HTML, broken JSON, a body that was cut, too many bytes.
    Protocol {
        /// What was to be done.
        operation: String,
        /// What is wrong with the answer.
        what: String,
    },
    /// The engine took longer than the call may take. Whether it still does the work is unknown.
    Timeout {
        /// What was to be done.
        operation: String,
    },
    /// The engine's API is older than what the worker needs.
    TooOld {
        /// What the engine offers.
        engine: ApiVersion,
    },
    /// Our side gave something that is never sent: a name that would change the address, or an archive that can't be read.
    Input {
        /// What was to be done.
        operation: String,
        /// What is wrong with it.
        source: io::Error,
    },
    /// The call's `Stop` was triggered. Whether the engine still does the work is unknown.
    Stopped,
}

impl Error {
    /// The engine doesn't have the container, image, volume or network.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Error::Refused { status: 404, .. })
    }

    /// The name is taken, or the state doesn't allow the call.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Error::Refused { status: 409, .. })
    }

    /// The engine says that it is so already.
    pub fn is_not_modified(&self) -> bool {
        matches!(self, Error::Refused { status: 304, .. })
    }

    /// The engine can't be reached or does not answer in time: the same call may go through later.
    pub fn is_away(&self) -> bool {
        self.is_unreachable() || matches!(self, Error::Timeout { .. })
    }

    /// Nobody is at the socket: the engine is away or was never there.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Error::Unreachable { .. })
    }

    /// The call's `Stop` was triggered.
    pub fn is_stopped(&self) -> bool {
        matches!(self, Error::Stopped)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Unreachable { operation, path, source } => {
                let path = path.display();
                match source.kind() {
                    io::ErrorKind::NotFound => write!(
                        f,
                        "{operation}: there is no engine socket at {path}; install and start Docker, or set DOCKER_HOST"
                    ),
                    io::ErrorKind::PermissionDenied => write!(
                        f,
                        "{operation}: permission denied at {path}; add the worker's user to the group that owns the socket \
                         (usually docker)"
                    ),
                    io::ErrorKind::ConnectionRefused => write!(
                        f,
                        "{operation}: nobody listens at {path}; start the engine, as with systemctl start docker"
                    ),
                    io::ErrorKind::TimedOut => {
                        write!(f, "{operation}: the engine at {path} takes no connection; it hangs or is overloaded")
                    }
                    _ => write!(f, "{operation}: the engine at {path} is not reachable: {source}"),
                }
            }
            Error::Refused { operation, status, message } => {
                write!(f, "{operation}: the engine refused with {status}: {message}")
            }
            Error::Protocol { operation, what } => write!(f, "{operation}: not an answer of an engine: {what}"),
            Error::Timeout { operation } => write!(f, "{operation}: no answer from the engine in time"),
            Error::TooOld { engine } => write!(
                f,
                "the engine's API {engine} is too old: {} (Engine 20.10) or later is needed",
                ApiVersion::OLDEST
            ),
            Error::Input { operation, source } => write!(f, "{operation}: not sent: {source}"),
            Error::Stopped => write!(f, "stopped before the engine's answer"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Unreachable { source, .. } | Error::Input { source, .. } => Some(source),
            _ => None,
        }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> io::Error {
        let kind = match &error {
            Error::Timeout { .. } => io::ErrorKind::TimedOut,
            Error::Stopped => io::ErrorKind::ConnectionAborted,
            Error::Protocol { .. } => io::ErrorKind::InvalidData,
            _ => io::ErrorKind::Other,
        };
        io::Error::new(kind, error)
    }
}

/// A text from outside for a message: cut to `max` characters, control and direction characters replaced.
pub(super) fn printable(text: &str, max: usize) -> String {
    let mut out: String =
        text.chars().take(max).map(|c| if c.is_control() || is_invisible(c) { '?' } else { c }).collect();
    if text.chars().nth(max).is_some() {
        out.push_str("...");
    }
    out
}

fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_the_ways_of_not_reaching_the_engine_apart() {
        let text = |kind: io::ErrorKind| {
            let path = PathBuf::from("/run/d.sock");
            Error::Unreachable { operation: "ping".into(), path, source: kind.into() }.to_string()
        };
        assert!(text(io::ErrorKind::NotFound).contains("no engine socket at /run/d.sock"));
        assert!(text(io::ErrorKind::PermissionDenied).contains("group that owns the socket"));
        assert!(text(io::ErrorKind::ConnectionRefused).contains("start the engine"));
    }

    #[test]
    fn foreign_text_is_made_harmless() {
        assert_eq!(printable("a\u{1b}[31mb\r\n\u{202e}c", 100), "a?[31mb???c");
        assert_eq!(printable("abcdef", 3), "abc...");
    }
}

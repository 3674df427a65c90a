//! Where the engine listens, as the owner wrote it.
//!
//! Left out on purpose: TCP. A task author's way to the host is the engine's API, so it stays on a local socket.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The longest socket path that Linux takes (`sun_path` without its closing zero).
const MAX_SOCKET_PATH: usize = 107;

/// The engine's address: a Unix socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DockerHost {
    path: PathBuf,
}

/// Why a text is not an address that the worker uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostError {
    /// The text as it was given, with control characters replaced.
    pub given: String,
    /// What is wrong with it and what to write in its place.
    pub reason: &'static str,
}

impl DockerHost {
    /// Reads the form of `DOCKER_HOST`: `unix:///var/run/docker.sock`.
    pub fn parse(text: &str) -> Result<DockerHost, HostError> {
        let refuse = |reason| Err(HostError { given: super::error::printable(text, 200), reason });
        let Some((scheme, rest)) = text.split_once("://") else {
            return refuse("an engine's address starts with unix://, as in unix:///var/run/docker.sock");
        };
        match scheme {
            "unix" => {}
            "npipe" => return refuse("a named pipe exists only on Windows; here it is unix:///path/to/docker.sock"),
            "tcp" | "http" | "https" | "ssh" | "fd" => {
                return refuse(
                    "only a local socket is used: whoever reaches the engine over the network owns this machine",
                );
            }
            _ => return refuse("unknown scheme; here it is unix:///path/to/docker.sock"),
        }
        if !rest.starts_with('/') {
            return refuse("the path of the socket must be absolute, as in unix:///var/run/docker.sock");
        }
        if rest.len() > MAX_SOCKET_PATH || rest.contains('\0') {
            return refuse("the path of a socket has at most 107 bytes and no zero byte");
        }
        Ok(DockerHost { path: PathBuf::from(rest) })
    }

    /// The socket's path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Default for DockerHost {
    fn default() -> DockerHost {
        DockerHost { path: PathBuf::from("/var/run/docker.sock") }
    }
}

impl FromStr for DockerHost {
    type Err = HostError;

    fn from_str(text: &str) -> Result<DockerHost, HostError> {
        DockerHost::parse(text)
    }
}

impl fmt::Display for DockerHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unix://{}", self.path.display())
    }
}

impl fmt::Display for HostError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "engine address \"{}\": {}", self.given, self.reason)
    }
}

impl std::error::Error for HostError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_unix_sockets_and_writes_them_back() {
        let host = DockerHost::parse("unix:///run/user/1000/docker.sock").unwrap();
        assert_eq!(host.path(), Path::new("/run/user/1000/docker.sock"));
        assert_eq!(host.to_string(), "unix:///run/user/1000/docker.sock");
        assert_eq!(DockerHost::default().to_string(), "unix:///var/run/docker.sock");
    }

    #[test]
    fn refuses_the_rest_with_a_reason() {
        for (text, word) in [
            ("tcp://127.0.0.1:2375", "local socket"),
            ("ssh://me@there", "local socket"),
            ("npipe:////./pipe/docker_engine", "Windows"),
            ("/var/run/docker.sock", "starts with unix://"),
            ("unix://docker.sock", "absolute"),
            ("gopher:///x", "unknown scheme"),
            ("", "starts with unix://"),
        ] {
            let error = DockerHost::parse(text).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        assert!(DockerHost::parse(&format!("unix:///{}", "x".repeat(200))).is_err());
    }
}

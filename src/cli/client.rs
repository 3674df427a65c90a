//! Calls to a running worker over its control socket.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fmt, io};

use serde::de::DeserializeOwned;
use ureq::http::{Response, StatusCode};
use ureq::{Agent, Body};

use crate::config::{CONTROL_SOCKET, ClientOptions, SERVICE_SOCKET};
use crate::monitor::TaskView;
use crate::node::id::{AttemptKey, Id};
use crate::node::leftover::LeftOver;
use crate::node::snapshot::{HistoryRow, Snapshot};

use super::socket::{NoResolver, SocketConnector};
use super::view::{CollectAnswer, HistoryAnswer, ListAnswer, LogPart, StreamName, SubmissionView};
use super::{EXIT_FAILURE, Failure, folder};

/// A snapshot of 64 tasks with 4 KiB of output each, and a thousand rows of history, is far below.
const MAX_JSON_BYTES: u64 = 16 << 20;
/// More than the server puts into one piece.
const MAX_LOG_BYTES: u64 = 16 << 20;
/// Longest silence of a worker that is well; above its longest poll.
const PATIENCE: Duration = Duration::from_secs(60);

/// A client of one worker. Clones are the same one.
#[derive(Clone)]
pub(super) struct Client {
    agent: Agent,
    socket: PathBuf,
}

/// Why a call gave nothing.
#[derive(Debug)]
pub(super) enum ClientError {
    /// Nobody answers at the socket.
    NoWorker { socket: PathBuf, source: io::Error },
    /// The worker says no, in its own words.
    Refused { status: u16, message: String },
    /// The answer can't be read.
    Answer { source: Box<dyn std::error::Error> },
}

impl ClientError {
    /// Whether the worker knows no such thing.
    pub(super) fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status: 404, .. })
    }

    /// Whether the worker is gone, or went while it answered: it may be back soon.
    pub(super) fn is_connection_lost(&self) -> bool {
        matches!(self, Self::NoWorker { .. } | Self::Answer { .. } | Self::Refused { status: 502..=503, .. })
    }
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoWorker { socket: path, source } => {
                let socket = path.display();
                match source.kind() {
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => write!(
                        f,
                        "no worker answers at {socket}: start one with `hivemind-worker standalone` or `run`, or name its state folder with --state"
                    ),
                    io::ErrorKind::PermissionDenied if path == Path::new(SERVICE_SOCKET) => write!(
                        f,
                        "no permission for {socket}: use the worker's own user, or join its group (usermod -aG hivemind USER)"
                    ),
                    io::ErrorKind::PermissionDenied => {
                        write!(f, "no permission for {socket}: {}", folder::no_entry(path))
                    }
                    _ => write!(f, "can't connect to {socket}: {source}"),
                }
            }
            Self::Refused { message, .. } => f.write_str(message),
            Self::Answer { source } => write!(f, "the worker's answer can't be read: {source}"),
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::with_code(EXIT_FAILURE, error.to_string())
    }
}

impl Client {
    /// A client of the worker with this state folder, or of the service when no folder is named and one answers.
    pub(super) fn new(options: &ClientOptions) -> Self {
        let socket = find_socket(options, Path::new(SERVICE_SOCKET));
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .max_redirects(0)
            .max_idle_connections(0)
            .timeout_per_read(Some(PATIENCE))
            .timeout_per_write(Some(PATIENCE))
            .build();
        Self { agent: Agent::with_parts(config, SocketConnector(socket.clone()), NoResolver), socket }
    }

    /// `/api/v1/status` as it comes.
    pub(super) fn status_text(&self) -> Result<String, ClientError> {
        text(self.get("/api/v1/status")?)
    }

    /// `/api/v1/status`.
    pub(super) fn status(&self) -> Result<Snapshot, ClientError> {
        json(self.get("/api/v1/status")?)
    }

    /// `/api/v1/history`, newest first.
    pub(super) fn history(&self, limit: u32) -> Result<Vec<HistoryRow>, ClientError> {
        json::<HistoryAnswer>(self.get(&format!("/api/v1/history?limit={limit}"))?).map(HistoryAnswer::rows)
    }

    /// Submissions that wait at the small master or were ended there, waiting ones first, as they come. None where the
    /// node is not standalone.
    pub(super) fn at_master(&self, limit: u32) -> Result<Vec<serde_json::Value>, ClientError> {
        match self.get(&format!("/api/v1/submissions?at=master&limit={limit}")) {
            Ok(response) => json::<ListAnswer>(response).map(ListAnswer::rows),
            Err(ClientError::Refused { status: 409, .. }) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// All about one attempt, the latest when none is named.
    pub(super) fn task(&self, task: &Id, attempt: Option<u32>) -> Result<TaskView, ClientError> {
        let attempt = attempt.map_or(String::new(), |attempt| format!("/{attempt}"));
        json(self.get(&format!("/api/v1/tasks/{}{attempt}", encoded(task.as_str())))?)
    }

    /// The bundle of an attempt that failed, and its size.
    pub(super) fn bundle(&self, key: &AttemptKey) -> Result<(impl Read, Option<u64>), ClientError> {
        let path = format!("/api/v1/tasks/{}/{}/bundle", encoded(key.task.as_str()), key.attempt);
        let body = self.get(&path)?.into_body();
        let size = body.content_length();
        Ok((body.into_reader(), size))
    }

    /// Has what is left over collected, or only told.
    pub(super) fn collect(&self, is_dry: bool) -> Result<Vec<LeftOver>, ClientError> {
        let response = self.agent.post(url(&format!("/api/v1/gc?dry_run={}", u8::from(is_dry)))).send_empty();
        json::<CollectAnswer>(self.checked(response)?).map(CollectAnswer::rows)
    }

    /// Something to do, without content.
    pub(super) fn post(&self, path: &str) -> Result<(), ClientError> {
        let response = self.agent.post(url(path)).send_empty();
        self.checked(response).map(|_| ())
    }

    /// Gives an archive to the small master.
    pub(super) fn submit(&self, archive: &[u8]) -> Result<AttemptKey, ClientError> {
        let request = self.agent.post(url("/api/v1/submissions")).content_type("application/x-tar");
        json(self.checked(request.send(archive))?)
    }

    /// A submission as it stands, or its next change within `wait`.
    pub(super) fn submission(
        &self,
        task: &str,
        seen: Option<u64>,
        wait: Duration,
    ) -> Result<SubmissionView, ClientError> {
        let mut path = format!("/api/v1/submissions/{}", encoded(task));
        if let Some(seen) = seen {
            path.push_str(&format!("?seen={seen}&wait_ms={}", wait.as_millis()));
        }
        json(self.get(&path)?)
    }

    /// Output that arrived at the small master.
    pub(super) fn submission_log(&self, task: &str, stream: StreamName, offset: u64) -> Result<LogPart, ClientError> {
        self.log(&format!("/api/v1/submissions/{}", encoded(task)), stream, offset)
    }

    /// Output of an attempt that the node holds.
    pub(super) fn attempt_log(
        &self,
        key: &AttemptKey,
        stream: StreamName,
        offset: u64,
    ) -> Result<LogPart, ClientError> {
        self.log(&format!("/api/v1/tasks/{}/{}", encoded(key.task.as_str()), key.attempt), stream, offset)
    }

    /// The content of an output file.
    pub(super) fn output(&self, task: &str, path: &str) -> Result<impl Read, ClientError> {
        let path: Vec<String> = path.split('/').map(encoded).collect();
        let target = format!("/api/v1/submissions/{}/outputs/{}", encoded(task), path.join("/"));
        Ok(self.get(&target)?.into_body().into_reader())
    }

    fn log(&self, base: &str, stream: StreamName, offset: u64) -> Result<LogPart, ClientError> {
        let response = self.get(&format!("{base}/logs?stream={stream}&offset={offset}&raw=1"))?;
        let number = |name: &str| response.headers().get(name)?.to_str().ok()?.parse::<u64>().ok();
        let (first, is_closed) = (number("X-Offset"), response.headers().get("X-Closed"));
        let is_closed = is_closed.is_some_and(|value| value.as_bytes() == b"true");
        let bytes = bytes(response, MAX_LOG_BYTES)?;
        Ok(LogPart { offset: first.unwrap_or(offset), bytes, is_closed })
    }

    fn get(&self, path: &str) -> Result<Response<Body>, ClientError> {
        self.checked(self.agent.get(url(path)).call())
    }

    fn checked(&self, response: Result<Response<Body>, ureq::Error>) -> Result<Response<Body>, ClientError> {
        let response = match response {
            Ok(response) => response,
            Err(ureq::Error::Io(source)) if is_no_connection(&source) => {
                let socket = self.socket.clone();
                return Err(ClientError::NoWorker { socket, source });
            }
            Err(error) => return Err(answer(error)),
        };
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body = text(response).unwrap_or_default();
        Err(ClientError::Refused { status: status.as_u16(), message: refusal(status, &body) })
    }
}

/// Where the worker is. A socket that a service left behind doesn't hide a worker that somebody started by hand.
fn find_socket(options: &ClientOptions, service: &Path) -> PathBuf {
    let own = options.state_dir.join(CONTROL_SOCKET);
    if options.is_state_dir_given {
        return own;
    }
    match UnixStream::connect(service) {
        Ok(_) => service.to_owned(),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && !own.exists() => service.to_owned(),
        Err(_) => own,
    }
}

/// The server's own words, or what its status means.
fn refusal(status: StatusCode, body: &str) -> String {
    let value: Option<serde_json::Value> = serde_json::from_str(body).ok();
    match value.as_ref().and_then(|value| value.get("error")?.as_str()) {
        Some(message) => message.to_owned(),
        None => format!("the worker answered {status}"),
    }
}

fn is_no_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::PermissionDenied
            | io::ErrorKind::InvalidInput
            | io::ErrorKind::NotADirectory
    )
}

fn answer(error: impl Into<Box<dyn std::error::Error>>) -> ClientError {
    ClientError::Answer { source: error.into() }
}

fn bytes(response: Response<Body>, limit: u64) -> Result<Vec<u8>, ClientError> {
    response.into_body().with_config().limit(limit).read_to_vec().map_err(answer)
}

fn text(response: Response<Body>) -> Result<String, ClientError> {
    String::from_utf8(bytes(response, MAX_JSON_BYTES)?).map_err(answer)
}

fn json<T: DeserializeOwned>(response: Response<Body>) -> Result<T, ClientError> {
    serde_json::from_slice(&bytes(response, MAX_JSON_BYTES)?).map_err(answer)
}

fn url(path: &str) -> String {
    format!("http://localhost{path}")
}

/// A path segment that can't be read as anything else.
pub(super) fn encoded(segment: &str) -> String {
    let mut out = String::with_capacity(segment.len());
    for byte in segment.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn finds_the_service_only_where_one_answers() {
        let dir = std::env::temp_dir().join(format!("hivemind-find-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        let service = dir.join("service.sock");
        let own = dir.join(CONTROL_SOCKET);
        let mut options = ClientOptions {
            state_dir: dir.clone(),
            is_state_dir_given: false,
            monitor: std::net::SocketAddr::from(([127, 0, 0, 1], 5001)),
        };
        assert_eq!(find_socket(&options, &service), own);
        let listener = UnixListener::bind(&service).unwrap();
        assert_eq!(find_socket(&options, &service), service);
        options.is_state_dir_given = true;
        assert_eq!(find_socket(&options, &service), own);
        options.is_state_dir_given = false;
        drop(listener);
        assert_eq!(find_socket(&options, &service), own, "left behind");
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn encodes_what_would_change_a_target() {
        assert_eq!(encoded("a b?#%/ä"), "a%20b%3F%23%25%2F%C3%A4");
    }
}

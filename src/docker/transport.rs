//! One HTTP exchange with the engine through ureq. The only file that knows ureq, because its transport seam may change
//! between minor versions.
//!
//! Each exchange has its own agent and connection. A local connect costs some microseconds, and a pool would hand out
//! connections that a restarted engine has closed.

use std::fmt;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ureq::config::Config;
use ureq::http::{HeaderValue, Request, Response, Uri, header};
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport};
use ureq::{Agent, Body, SendBody};

use super::pipe::Pipe;
use super::raw::{Behind, HeadReader, RawReader};
use super::stop::{Stop, StopGuard};

/// The largest head of an answer; the engine's have less than 1 KiB, an archive's stat header some more.
const MAX_HEAD: usize = 32 << 10;
/// Holds the largest head; also the piece in which bodies are read. Not less than 10 KiB, or ureq grows it.
const INPUT_BUFFER: usize = 64 << 10;
/// The piece in which bodies are written.
const OUTPUT_BUFFER: usize = 32 << 10;

/// Reads the body of an answer; owns the connection.
pub(super) enum BodyReader {
    /// As its head says: with a length, in chunks, or to the connection's end.
    Http(ureq::BodyReader<'static>),
    /// To the connection's end, past ureq, which keeps the connection.
    Raw(RawReader<ureq::BodyReader<'static>>),
}

impl Read for BodyReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Http(reader) => reader.read(buffer),
            Self::Raw(reader) => reader.read(buffer).map_err(|error| {
                let is_late = error.kind() == io::ErrorKind::TimedOut;
                if is_late { ureq::Error::Timeout(ureq::Timeout::PerCall).into_io() } else { error }
            }),
        }
    }
}

/// What the answer's body is read as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// By HTTP's rules.
    Http,
    /// A stream that only ends with its connection, where the answer's head has no other word.
    Raw,
}

/// How to get to the engine, and who may end the exchange.
#[derive(Clone, Debug)]
pub(super) struct Route {
    pub(super) path: PathBuf,
    pub(super) connect_timeout: Duration,
    pub(super) stop: Option<Stop>,
}

/// How long an exchange may take.
#[derive(Clone, Copy, Debug)]
pub(super) enum Patience {
    /// The whole of it, body included; `None`: until it is stopped.
    Within(Option<Duration>),
    /// The head within the first; after that no gap longer than the second (`None`: until it is stopped). The gap holds
    /// for each piece of a request's body too.
    Idle(Duration, Option<Duration>),
}

/// A request's body.
pub(super) enum Payload<'a> {
    None,
    Json(Vec<u8>),
    /// Of unknown length, sent in chunks.
    Archive(&'a mut dyn Read),
}

/// A request, with its path and query encoded.
pub(super) struct Outgoing<'a> {
    pub(super) method: &'static str,
    pub(super) path: String,
    pub(super) registry_auth: Option<String>,
    pub(super) payload: Payload<'a>,
    pub(super) patience: Patience,
    pub(super) form: Form,
}

/// The answer, its body still to be read.
pub(super) struct Incoming {
    pub(super) status: u16,
    pub(super) content_type: String,
    pub(super) api_version: Option<String>,
    pub(super) body: BodyReader,
}

/// Why there is no answer, or no more of it.
#[derive(Debug)]
pub(super) enum Failure {
    /// No connection.
    Connect(io::Error),
    /// The connection ended.
    Closed(io::Error),
    /// It took too long.
    Timeout,
    /// The request's own body could not be read.
    Source(io::Error),
    /// What came is not HTTP as it should be.
    Garbage(String),
}

/// Sends the request and returns as soon as the head of the answer has arrived.
pub(super) fn exchange(route: &Route, outgoing: Outgoing<'_>) -> Result<Incoming, Failure> {
    let link = Arc::new(AtomicBool::new(false));
    let behind = (outgoing.form == Form::Raw).then(Behind::default);
    let connector = PipeConnector { route: route.clone(), refused_body: Arc::clone(&link), behind: behind.clone() };
    let gap = match outgoing.patience {
        Patience::Idle(_, gap) => gap,
        Patience::Within(limit) => limit,
    };
    let agent = Agent::with_parts(config(outgoing.patience), connector, NoResolver);

    let mut request = Request::builder().method(outgoing.method).uri(format!("http://localhost{}", outgoing.path));
    if let Some(auth) = outgoing.registry_auth {
        let mut value = HeaderValue::from_str(&auth).map_err(|error| Failure::Garbage(error.to_string()))?;
        value.set_sensitive(true);
        request = request.header("X-Registry-Auth", value);
    }
    let broken_request = |error: ureq::http::Error| Failure::Garbage(error.to_string());
    let response = match outgoing.payload {
        Payload::None if outgoing.method == "POST" => {
            agent.run(request.body(Vec::new()).map_err(broken_request)?).map_err(Failure::from)
        }
        Payload::None => agent.run(request.body(()).map_err(broken_request)?).map_err(Failure::from),
        Payload::Json(bytes) => {
            let request = request.header(header::CONTENT_TYPE, "application/json");
            agent.run(request.body(bytes).map_err(broken_request)?).map_err(Failure::from)
        }
        Payload::Archive(reader) => {
            let mut source = Source { reader, refused: link, error: None };
            let request = request.header(header::CONTENT_TYPE, "application/x-tar");
            let request = request.body(SendBody::from_reader(&mut source)).map_err(broken_request)?;
            let result = agent.run(request).map_err(Failure::from);
            match (result, source.error) {
                (Err(_), Some(error)) => Err(Failure::Source(error)),
                (result, _) => result,
            }
        }
    }?;
    Ok(Incoming::new(response, behind, gap))
}

impl Incoming {
    fn new(response: Response<Body>, behind: Option<Behind>, gap: Option<Duration>) -> Incoming {
        let text = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let (status, content_type) = (response.status(), text("content-type").unwrap_or_default());
        let api_version = text("api-version");
        let is_framed = [header::CONTENT_LENGTH, header::TRANSFER_ENCODING]
            .iter()
            .any(|name| response.headers().contains_key(name));
        let reader = response.into_body().into_reader();
        let body = match behind {
            Some(behind) if status.is_success() && !is_framed => {
                behind.into_reader(gap, reader).map_or_else(BodyReader::Http, BodyReader::Raw)
            }
            _ => BodyReader::Http(reader),
        };
        Incoming { status: status.as_u16(), content_type, api_version, body }
    }
}

fn config(patience: Patience) -> Config {
    let config = Agent::config_builder()
        // Or the environment's HTTP_PROXY would get the calls.
        .proxy(None)
        .http_status_as_error(false)
        .max_redirects(0)
        .user_agent(concat!("hivemind-worker/", env!("CARGO_PKG_VERSION")))
        .max_response_header_size(MAX_HEAD)
        .max_idle_connections(0);
    match patience {
        Patience::Within(limit) => config.timeout_global(limit).build(),
        Patience::Idle(head, gap) => {
            config.timeout_recv_response(Some(head)).timeout_per_read(gap).timeout_per_write(gap.or(Some(head))).build()
        }
    }
}

impl From<ureq::Error> for Failure {
    fn from(error: ureq::Error) -> Failure {
        match error {
            ureq::Error::Timeout(_) => Failure::Timeout,
            ureq::Error::Io(error) => Failure::Closed(error),
            ureq::Error::Other(error) => match error.downcast::<ConnectFailed>() {
                Ok(failed) => Failure::Connect(failed.0),
                Err(error) => Failure::Garbage(error.to_string()),
            },
            error => Failure::Garbage(error.to_string()),
        }
    }
}

impl From<io::Error> for Failure {
    /// For an error of reading a body, which has one of ureq's inside.
    fn from(error: io::Error) -> Failure {
        Failure::from(ureq::Error::from(error))
    }
}

/// Carries a failed connect through ureq, so that it can be told from a failed read.
#[derive(Debug)]
struct ConnectFailed(io::Error);

impl fmt::Display for ConnectFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for ConnectFailed {}

/// A request's body: remembers its own failure, and ends when the engine no longer takes it.
struct Source<'a> {
    reader: &'a mut dyn Read,
    refused: Arc<AtomicBool>,
    error: Option<io::Error>,
}

impl Read for Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.refused.load(Ordering::Relaxed) {
                return Ok(0);
            }
            match self.reader.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let kind = error.kind();
                    self.error = Some(error);
                    return Err(kind.into());
                }
                count => return count,
            }
        }
    }
}

#[derive(Debug)]
struct PipeConnector {
    route: Route,
    refused_body: Arc<AtomicBool>,
    behind: Option<Behind>,
}

impl Connector<()> for PipeConnector {
    type Out = PipeTransport;

    fn connect(&self, details: &ConnectionDetails<'_>, _: Option<()>) -> Result<Option<PipeTransport>, ureq::Error> {
        let failed = |error| ureq::Error::Other(Box::new(ConnectFailed(error)));
        let patience =
            duration(details.timeout).map_or(self.route.connect_timeout, |d| d.min(self.route.connect_timeout));
        let stop = self.route.stop.as_ref();
        let must_stop = || stop.is_some_and(Stop::is_stopped);
        let pipe = Arc::new(Pipe::connect(&self.route.path, patience, &must_stop).map_err(failed)?);
        let guard = match stop.map(|stop| stop.attach(&pipe)) {
            None => None,
            Some(Some(guard)) => Some(guard),
            Some(None) => return Err(failed(io::ErrorKind::ConnectionAborted.into())),
        };
        Ok(Some(PipeTransport {
            head: self.behind.as_ref().map(|behind| behind.head_of(&pipe)),
            pipe,
            buffers: LazyBuffers::new(INPUT_BUFFER, OUTPUT_BUFFER),
            refused_body: Arc::clone(&self.refused_body),
            _guard: guard,
        }))
    }
}

#[derive(Debug)]
struct PipeTransport {
    pipe: Arc<Pipe>,
    /// Of an answer that is a raw stream.
    head: Option<HeadReader>,
    buffers: LazyBuffers,
    /// The engine closed its end while we wrote.
    refused_body: Arc<AtomicBool>,
    _guard: Option<StopGuard>,
}

impl Transport for PipeTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    /// An engine that refuses a body answers and closes before it has read all. The answer is still to be read, so the
    /// failed write isn't the end: the rest of the body is dropped, and a read tells what happened.
    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        if self.refused_body.load(Ordering::Relaxed) {
            return Ok(());
        }
        let timeout = timeout.for_write();
        match self.pipe.write_all(&self.buffers.output()[..amount], duration(timeout)) {
            Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                self.refused_body.store(true, Ordering::Relaxed);
                Ok(())
            }
            result => result.map_err(|error| named(error, timeout)),
        }
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        let timeout = timeout.for_read();
        let (buffer, patience) = (self.buffers.input_append_buf(), duration(timeout));
        let count = match &mut self.head {
            Some(head) => head.read(&self.pipe, buffer, patience),
            None => self.pipe.read(buffer, patience),
        };
        let count = count.map_err(|error| named(error, timeout))?;
        self.buffers.input_appended(count);
        Ok(count > 0)
    }

    fn is_open(&mut self) -> bool {
        false
    }
}

fn duration(timeout: NextTimeout) -> Option<Duration> {
    (!timeout.after.is_not_happening()).then_some(*timeout.after)
}

fn named(error: io::Error, timeout: NextTimeout) -> ureq::Error {
    if error.kind() == io::ErrorKind::TimedOut { ureq::Error::Timeout(timeout.reason) } else { ureq::Error::Io(error) }
}

/// The address is the socket's path; there is no name to resolve.
#[derive(Debug)]
struct NoResolver;

impl Resolver for NoResolver {
    fn resolve(&self, _: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        Ok(self.empty())
    }
}

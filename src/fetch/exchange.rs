//! One GET through ureq, on a connection that is made and checked already: ureq resolves nothing, connects nowhere, knows
//! no proxy and follows no redirect. The only file here that knows it, because its transport seam may change between
//! minor versions.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ureq::Agent;
use ureq::config::Config;
use ureq::http::{Request, Uri, header};
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport};

use super::dial::dial;
use super::line::Line;
use super::{FetchError, Fetcher, Stop};
use crate::node::url::Url;

/// The largest head of an answer.
const MAX_HEAD: usize = 32 << 10;
/// Holds the largest head; also the piece in which bodies are read.
const INPUT_BUFFER: usize = 64 << 10;
/// A request without a body.
const OUTPUT_BUFFER: usize = 16 << 10;
/// Until the head of the answer is there.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Without a byte of it.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// One try, however well it goes: after this the next one goes on where it ended.
const WHOLE_TIMEOUT: Duration = Duration::from_secs(3_600);

/// What is left of a file that is there in part.
#[derive(Clone, Debug)]
pub(super) struct Rest {
    pub(super) from: u64,
    /// The validator with which the server can tell that it is still the same file.
    pub(super) validator: String,
}

/// The head of an answer, its body still to be read.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) location: Option<String>,
    pub(super) length: Option<u64>,
    /// `Content-Range`.
    pub(super) range: Option<String>,
    /// A strong validator.
    pub(super) validator: Option<String>,
    pub(super) body: ureq::BodyReader<'static>,
}

/// Sends the request and returns as soon as the head of the answer has arrived.
pub(super) fn get(fetcher: &Fetcher, url: &Url, rest: Option<&Rest>, stop: &Stop) -> Result<Answer, FetchError> {
    let stream = dial(fetcher, url, stop)?;
    if !stop.attach(&stream) {
        return Err(if stop.is_stopped() {
            FetchError::Stopped
        } else {
            FetchError::Node("no descriptor is left".to_owned())
        });
    }
    // Small packets only at the beginning, and nothing depends on it.
    let _ = stream.set_nodelay(true);
    let line = if url.is_https() { Line::tls(stream, fetcher.tls()?, url, stop)? } else { Line::plain(stream) };
    let agent = Agent::with_parts(
        config(),
        Made { line: Mutex::new(Some(line)), idle_timeout: fetcher.idle_timeout },
        NoResolver,
    );
    let mut request = Request::get(url.exposed()).header(header::ACCEPT_ENCODING, "identity");
    if let Some(rest) = rest {
        request = request.header(header::RANGE, format!("bytes={}-", rest.from));
        request = request.header(header::IF_RANGE, &rest.validator);
    }
    let request =
        request.body(()).map_err(|error| FetchError::Refused(format!("{url}: can't be asked for: {error}")))?;
    let response = agent.run(request).map_err(|error| match error {
        _ if stop.is_stopped() => FetchError::Stopped,
        ureq::Error::Timeout(_) => FetchError::Passing(format!("{url}: no answer within {} s", HEAD_TIMEOUT.as_secs())),
        error => FetchError::Passing(format!("{url}: {error}")),
    })?;
    let text = |name: header::HeaderName| response.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
    let strong = text(header::ETAG).filter(|etag| etag.starts_with('"'));
    Ok(Answer {
        status: response.status().as_u16(),
        location: text(header::LOCATION),
        length: text(header::CONTENT_LENGTH).and_then(|length| length.parse().ok()),
        range: text(header::CONTENT_RANGE),
        validator: strong.or_else(|| text(header::LAST_MODIFIED)),
        body: response.into_body().into_reader(),
    })
}

fn config() -> Config {
    Agent::config_builder()
        // Or the environment's HTTPS_PROXY would resolve the name anew.
        .proxy(None)
        .http_status_as_error(false)
        .max_redirects(0)
        .user_agent(concat!("hivemind-worker/", env!("CARGO_PKG_VERSION")))
        .max_response_header_size(MAX_HEAD)
        .max_idle_connections(0)
        .timeout_global(Some(WHOLE_TIMEOUT))
        .timeout_recv_response(Some(HEAD_TIMEOUT))
        .build()
}

/// Hands out the one connection.
struct Made {
    line: Mutex<Option<Line>>,
    idle_timeout: Duration,
}

impl fmt::Debug for Made {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Made")
    }
}

impl Connector<()> for Made {
    type Out = LineTransport;

    fn connect(&self, _: &ConnectionDetails<'_>, _: Option<()>) -> Result<Option<LineTransport>, ureq::Error> {
        let line = self.line.lock().unwrap_or_else(PoisonError::into_inner).take();
        let line = line.ok_or(ureq::Error::ConnectionFailed)?;
        Ok(Some(LineTransport {
            line,
            idle_timeout: self.idle_timeout,
            buffers: LazyBuffers::new(INPUT_BUFFER, OUTPUT_BUFFER),
        }))
    }
}

#[derive(Debug)]
struct LineTransport {
    line: Line,
    idle_timeout: Duration,
    buffers: LazyBuffers,
}

impl Transport for LineTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        let patience = self.patience(timeout);
        self.line.write_all(&self.buffers.output()[..amount], patience).map_err(ureq::Error::Io)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        let patience = self.patience(timeout);
        let count = self.line.read(self.buffers.input_append_buf(), patience).map_err(ureq::Error::Io)?;
        self.buffers.input_appended(count);
        Ok(count > 0)
    }

    fn is_open(&mut self) -> bool {
        false
    }

    fn is_tls(&self) -> bool {
        true
    }
}

impl LineTransport {
    fn patience(&self, timeout: NextTimeout) -> Duration {
        if timeout.after.is_not_happening() { self.idle_timeout } else { self.idle_timeout.min(*timeout.after) }
    }
}

/// The connection is there already.
#[derive(Debug)]
struct NoResolver;

impl Resolver for NoResolver {
    fn resolve(&self, _: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        Ok(self.empty())
    }
}

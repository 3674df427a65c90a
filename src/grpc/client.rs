//! The calling end: unary calls over one HTTP/2 connection.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use super::message::{self, Assembler};
use super::metadata::{Metadata, percent_decode};
use super::status::{Code, Status};
use super::timeout;
use crate::h2::fields::find;
use crate::h2::ids::IdMap;
use crate::h2::{
    Config, Connection, ConnectionError, ErrorCode, Event, Field, Header, Indexing, Instant, KeepAlive, OpenError,
    ResetCause, StreamId,
};

/// Names a call. The caller chooses it and keeps it unique.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId(pub u64);

/// A call to make.
#[derive(Clone)]
pub struct Request {
    /// `/package.Service/Method`.
    pub path: String,
    /// Beside the message.
    pub metadata: Metadata,
    /// The message.
    pub body: Vec<u8>,
    /// How long the whole call may take, from now to its answer. [`Duration::MAX`]: for ever, and the server is told
    /// nothing.
    pub timeout: Duration,
    /// Largest message that is taken as an answer.
    pub max_response: usize,
}

impl fmt::Debug for Request {
    /// Without the message, which may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Request({}, {} bytes, within {:?})", self.path, self.body.len(), self.timeout)
    }
}

/// A good answer.
#[derive(Clone, PartialEq, Eq)]
pub struct Response {
    /// From the head.
    pub metadata: Metadata,
    /// From the end.
    pub trailers: Metadata,
    /// The message.
    pub body: Vec<u8>,
}

impl fmt::Debug for Response {
    /// Without the message, which may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Response({} bytes)", self.body.len())
    }
}

/// Whether the server can have acted on a call that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Processed {
    /// It may have, wholly or in part.
    Maybe,
    /// Certainly not: the call never left, or the server said so (RFC 9113 section 8.7).
    No,
}

/// A call that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallError {
    /// Why.
    pub status: Status,
    /// Whether another try can do it twice.
    pub processed: Processed,
    /// From the head, where there was one.
    pub metadata: Metadata,
    /// What the server said beside it, such as grpc-retry-pushback-ms.
    pub trailers: Metadata,
    /// The answer was longer than this side takes, and was thrown away unread.
    pub is_answer_too_large: bool,
}

impl CallError {
    /// A failure without words from the server.
    pub fn new(code: Code, message: impl Into<String>, processed: Processed) -> CallError {
        let (metadata, trailers) = (Metadata::default(), Metadata::default());
        CallError { status: Status::new(code, message), processed, metadata, trailers, is_answer_too_large: false }
    }

    /// The deadline has passed.
    pub fn deadline_exceeded(processed: Processed) -> CallError {
        CallError::new(Code::DeadlineExceeded, "no answer before the deadline", processed)
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientEvent {
    /// The peer does speak HTTP/2.
    Ready,
    /// A call has ended. Each call that is not cancelled ends exactly once.
    Answer {
        /// This call.
        id: CallId,
        /// How.
        result: Result<Response, CallError>,
    },
    /// The server takes no new calls on this connection; those under way go on.
    GoAway,
    /// The connection has ended. Nothing follows.
    Closed {
        /// Why.
        error: ConnectionError,
    },
}

/// What all calls of a connection share.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// `http` or `https`.
    pub scheme: &'static str,
    /// `host` or `host:port`.
    pub authority: String,
    /// Who we are.
    pub user_agent: String,
    /// PINGs while calls run.
    pub keepalive: Option<KeepAlive>,
}

#[derive(Debug)]
struct Call {
    id: CallId,
    deadline: Instant,
    max_response: usize,
    /// 0 until the head has come.
    http_status: u16,
    metadata: Metadata,
    message: Assembler,
    /// Bytes of a body that is no message, such as a proxy's page.
    skipped: usize,
    /// To make it again, if it turns out that nobody began it.
    again: Option<WaitingCall>,
}

/// A call that has not left.
#[derive(Debug)]
pub struct WaitingCall {
    /// This call.
    pub id: CallId,
    /// What it asks.
    pub request: Request,
    /// When its caller gives up.
    pub deadline: Instant,
    /// A server has refused it once, unprocessed.
    pub is_second_try: bool,
}

/// Unary calls over one connection. Calls beyond the server's limit of streams wait here. When the connection closes
/// they still do, until their deadline or until [`Client::take_waiting`].
#[derive(Debug)]
pub struct Client {
    config: ClientConfig,
    connection: Connection,
    waiting: VecDeque<WaitingCall>,
    calls: IdMap<Call>,
    events: VecDeque<ClientEvent>,
    retries_unprocessed: bool,
}

impl Client {
    /// A client on a new transport.
    pub fn new(config: ClientConfig, now: Instant) -> Client {
        let h2 = Config { keepalive: config.keepalive, ..Config::default() };
        Client {
            config,
            connection: Connection::client(h2, now),
            waiting: VecDeque::new(),
            calls: IdMap::default(),
            events: VecDeque::new(),
            retries_unprocessed: false,
        }
    }

    /// Keeps small calls that may be made again: once where the server says that it did not begin them, and without limit
    /// where they never left (RFC 9113 section 8.7, gRFC A6). They wait for [`Client::take_waiting`], as they belong on
    /// another connection; a refused call closes this one, which ends with the calls under way. A large message is not
    /// kept: its call fails, as [`Processed::No`].
    pub fn retry_unprocessed(&mut self) {
        self.retries_unprocessed = true;
    }

    /// Starts a call.
    pub fn call(&mut self, id: CallId, request: Request, now: Instant) {
        let deadline = now.saturating_add(request.timeout);
        self.resume(WaitingCall { id, request, deadline, is_second_try: false }, now);
    }

    /// Goes on with a call from [`Client::take_waiting`].
    pub fn resume(&mut self, call: WaitingCall, now: Instant) {
        self.waiting.push_back(call);
        self.open_waiting(now);
    }

    /// Gives a call up; it has no answer then.
    pub fn cancel(&mut self, id: CallId, now: Instant) {
        self.waiting.retain(|call| call.id != id);
        let stream = self.calls.iter().find(|(_, c)| c.id == id).map(|(s, _)| s);
        if let Some(stream) = stream {
            self.calls.remove(stream);
            self.connection.reset(stream, ErrorCode::CANCEL);
            self.handle_events(now);
        }
    }

    /// Takes back the calls that wait for a stream, to make them elsewhere.
    pub fn take_waiting(&mut self) -> Vec<WaitingCall> {
        self.waiting.drain(..).collect()
    }

    /// Calls that are not answered.
    pub fn open_calls(&self) -> usize {
        self.waiting.len() + self.calls.len()
    }

    /// Takes bytes from the transport.
    pub fn handle_bytes(&mut self, bytes: &[u8], now: Instant) {
        self.connection.handle_bytes(bytes, now);
        self.handle_events(now);
    }

    /// The transport has ended.
    pub fn handle_eof(&mut self, now: Instant) {
        self.connection.handle_eof();
        self.handle_events(now);
    }

    /// Ends what is overdue.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.connection.handle_timeout(now);
        let late: Vec<StreamId> = self.calls.iter().filter(|(_, c)| c.deadline <= now).map(|(s, _)| s).collect();
        for stream in late {
            let processed = self.processed(stream);
            self.fail(stream, CallError::deadline_exceeded(processed));
        }
        self.open_waiting(now);
        self.handle_events(now);
    }

    /// When [`Client::handle_timeout`] must be called, at the latest.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let waiting = self.waiting.iter().map(|call| call.deadline);
        let running = self.calls.values().map(|c| c.deadline);
        waiting.chain(running).chain(self.connection.poll_timeout()).min()
    }

    /// Appends bytes to write to the transport.
    pub fn poll_transmit(&mut self, out: &mut Vec<u8>) {
        self.connection.poll_transmit(out);
    }

    /// What happened next.
    pub fn poll_event(&mut self) -> Option<ClientEvent> {
        self.events.pop_front()
    }

    /// Takes no new calls; the connection ends with those under way.
    pub fn close(&mut self, now: Instant) {
        self.connection.go_away(ErrorCode::NO_ERROR);
        self.handle_events(now);
    }

    /// No new call can be made on this connection.
    pub fn is_closing(&self) -> bool {
        self.connection.is_closing()
    }

    fn open_waiting(&mut self, now: Instant) {
        while let Some(waiting) = self.waiting.pop_front() {
            let WaitingCall { id, deadline, .. } = waiting;
            if deadline <= now {
                self.answer(id, Err(CallError::deadline_exceeded(Processed::No)));
                continue;
            }
            let Some(prefix) = message::prefix(waiting.request.body.len()) else {
                let error = CallError::new(Code::ResourceExhausted, "message longer than 4 GiB", Processed::No);
                self.answer(id, Err(error));
                continue;
            };
            match self.open(&waiting.request, deadline - now) {
                Ok(stream) => self.start(stream, waiting, prefix),
                Err(OpenError::TooManyStreams | OpenError::Closing) => {
                    self.waiting.push_front(waiting);
                    return self.expire_waiting(now);
                }
            }
        }
    }

    fn expire_waiting(&mut self, now: Instant) {
        let (late, waiting): (VecDeque<_>, _) = self.waiting.drain(..).partition(|call| call.deadline <= now);
        self.waiting = waiting;
        for call in late {
            self.answer(call.id, Err(CallError::deadline_exceeded(Processed::No)));
        }
    }

    fn start(&mut self, stream: StreamId, waiting: WaitingCall, prefix: [u8; message::PREFIX_LEN]) {
        let WaitingCall { id, request, deadline, is_second_try } = waiting;
        let mut call = Call::new(id, deadline, request.max_response);
        let kept = message::send(&mut self.connection, stream, prefix, request.body, true);
        call.again = kept.filter(|_| self.retries_unprocessed).map(|body| WaitingCall {
            id,
            request: Request { body, ..request },
            deadline,
            is_second_try,
        });
        self.calls.insert(stream, call);
    }

    /// Sends the head of a request (PROTOCOL-HTTP2.md, Requests).
    fn open(&mut self, request: &Request, left: Duration) -> Result<StreamId, OpenError> {
        let timeout = timeout::encode(left);
        // A call that did not wait has the timeout that the next one of its kind will have too.
        let indexing = if left == request.timeout { Indexing::Repeated } else { Indexing::Once };
        let timeout = Field { name: b"grpc-timeout", value: timeout.as_bytes(), indexing };
        let timeout = (request.timeout != Duration::MAX).then_some(timeout);
        let head = [
            Field::new(":method", "POST"),
            Field::new(":scheme", self.config.scheme),
            Field::new(":path", &request.path),
            Field::new(":authority", &self.config.authority),
        ];
        let rest = [
            Field::new("te", "trailers"),
            Field::new("content-type", "application/grpc"),
            Field::new("user-agent", &self.config.user_agent),
        ];
        let fields = head.into_iter().chain(timeout).chain(rest).chain(request.metadata.fields());
        self.connection.open(fields, false)
    }

    fn handle_events(&mut self, now: Instant) {
        while let Some(event) = self.connection.poll_event() {
            match event {
                Event::Settings => self.events.push_back(ClientEvent::Ready),
                Event::Headers { stream, headers, end_stream } => self.handle_head(stream, headers, end_stream),
                Event::Data { stream, data, end_stream } => {
                    self.handle_data(stream, &data, end_stream);
                    self.connection.recycle(data);
                }
                Event::Trailers { stream, headers } => self.finish(stream, &headers),
                Event::Reset { stream, code, cause } => self.handle_reset(stream, code, cause, now),
                Event::GoAway { .. } => self.events.push_back(ClientEvent::GoAway),
                Event::Closed { error } => self.handle_closed(error),
            }
        }
        self.open_waiting(now);
    }

    fn handle_head(&mut self, stream: StreamId, headers: Vec<Header>, end_stream: bool) {
        let Some(call) = self.calls.get_mut(stream) else { return };
        let status = find(&headers, ":status").and_then(|v| std::str::from_utf8(v).ok()?.parse().ok());
        call.http_status = status.unwrap_or(0);
        if end_stream {
            // Trailers-Only: the one block is head and end.
            return self.finish(stream, &headers);
        }
        let content_type = find(&headers, "content-type").unwrap_or_default();
        if call.http_status == 200 && !content_type.starts_with(b"application/grpc") {
            let shown = String::from_utf8_lossy(content_type);
            let words = format!("server answered with content type {shown:?}, which is not gRPC");
            return self.fail(stream, CallError::new(Code::Unknown, words, Processed::Maybe));
        }
        match Metadata::from_headers(&headers) {
            Ok(metadata) => call.metadata = metadata,
            Err(error) => self.fail(stream, CallError::new(Code::Internal, error.to_string(), Processed::Maybe)),
        }
    }

    fn handle_data(&mut self, stream: StreamId, data: &[u8], end_stream: bool) {
        // The message's limit bounds what is kept, so windows open as bytes come.
        self.connection.release(stream, data.len());
        let Some(call) = self.calls.get_mut(stream) else { return };
        let taken = match call.http_status {
            200 => call.message.push(data),
            status => call.skip(data.len(), status),
        };
        self.connection.reserve_window(stream, call.message.missing());
        match taken {
            Err(status) => {
                // Only a message's length gives this code before the server's own status.
                let is_answer_too_large = status.code == Code::ResourceExhausted;
                let error = CallError::new(status.code, status.message, Processed::Maybe);
                self.fail(stream, CallError { is_answer_too_large, ..error })
            }
            Ok(()) if end_stream => self.finish(stream, &[]),
            Ok(()) => {}
        }
    }

    /// The server has ended its part: what it says counts, also if it did not read all of ours.
    fn finish(&mut self, stream: StreamId, end: &[Header]) {
        let Some(call) = self.calls.remove(stream) else { return };
        self.connection.reset(stream, ErrorCode::NO_ERROR);
        let id = call.id;
        let result = call.finish(end);
        self.answer(id, result);
    }

    fn fail(&mut self, stream: StreamId, error: CallError) {
        let Some(call) = self.calls.remove(stream) else { return };
        self.connection.reset(stream, ErrorCode::CANCEL);
        self.answer(call.id, Err(error));
    }

    fn handle_reset(&mut self, stream: StreamId, code: ErrorCode, cause: ResetCause, now: Instant) {
        let Some(mut call) = self.calls.remove(stream) else { return };
        let is_refused = cause == ResetCause::Peer && code == ErrorCode::REFUSED_STREAM;
        if (is_refused || cause == ResetCause::NotProcessed)
            && let Some(again) = call.again.take().filter(|again| !again.is_second_try)
        {
            self.waiting.push_back(WaitingCall { is_second_try: true, ..again });
            // A server refuses while it has too much or is about to end: the second try belongs on a new connection.
            return self.connection.go_away(ErrorCode::NO_ERROR);
        }
        let error = match cause {
            ResetCause::NotProcessed => CallError::new(
                Code::Unavailable,
                "server closes the connection and did not begin the call",
                Processed::No,
            ),
            ResetCause::Violation(reason) => {
                CallError::new(Code::Internal, format!("server broke HTTP/2: {reason}"), Processed::Maybe)
            }
            ResetCause::Peer if is_refused => {
                CallError::new(Code::Unavailable, "server refused the call before it began", Processed::No)
            }
            ResetCause::Peer if code == ErrorCode::CANCEL && call.deadline <= now => {
                CallError::deadline_exceeded(Processed::Maybe)
            }
            ResetCause::Peer => {
                CallError::new(Code::from_reset(code), format!("server reset the call with {code}"), Processed::Maybe)
            }
        };
        self.answer(call.id, Err(error));
    }

    fn handle_closed(&mut self, error: ConnectionError) {
        let code = match &error {
            ConnectionError::Peer { code: ErrorCode::ENHANCE_YOUR_CALM, .. } => Code::ResourceExhausted,
            ConnectionError::Peer { .. } => Code::Internal,
            _ => Code::Unavailable,
        };
        for (stream, mut call) in std::mem::take(&mut self.calls) {
            let processed = self.processed(stream);
            match call.again.take() {
                Some(again) if processed == Processed::No => self.waiting.push_back(again),
                _ => self.answer(call.id, Err(CallError::new(code, error.to_string(), processed))),
            }
        }
        self.events.push_back(ClientEvent::Closed { error });
    }

    fn processed(&self, stream: StreamId) -> Processed {
        match self.connection.was_transmitted(stream) {
            true => Processed::Maybe,
            false => Processed::No,
        }
    }

    fn answer(&mut self, id: CallId, result: Result<Response, CallError>) {
        self.events.push_back(ClientEvent::Answer { id, result });
    }
}

impl Call {
    fn new(id: CallId, deadline: Instant, max_response: usize) -> Call {
        Call {
            id,
            deadline,
            max_response,
            http_status: 0,
            metadata: Metadata::default(),
            message: Assembler::new(max_response),
            skipped: 0,
            again: None,
        }
    }

    /// Reads over a body that is no message; its trailers may still hold a status.
    fn skip(&mut self, n: usize, http_status: u16) -> Result<(), Status> {
        self.skipped = self.skipped.saturating_add(n);
        match self.skipped > self.max_response {
            true => Err(http_error(http_status)),
            false => Ok(()),
        }
    }

    /// A grpc-status counts whatever the HTTP status; without one the HTTP status is mapped.
    fn finish(self, end: &[Header]) -> Result<Response, CallError> {
        let internal = |words: String| CallError::new(Code::Internal, words, Processed::Maybe);
        let trailers = Metadata::from_headers(end).map_err(|error| internal(error.to_string()))?;
        let outcome = match find(end, "grpc-status").map(Code::parse) {
            None => Err(http_error(self.http_status)),
            Some(Code::Ok) => self.message.finish().and_then(|body| {
                body.ok_or_else(|| Status::new(Code::Unimplemented, "server answered OK without a message"))
            }),
            Some(code) => Err(Status::new(code, percent_decode(find(end, "grpc-message").unwrap_or_default()))),
        };
        match outcome {
            Ok(body) => Ok(Response { metadata: self.metadata, trailers, body }),
            Err(status) => {
                let error = CallError::new(status.code, status.message, Processed::Maybe);
                Err(CallError { metadata: self.metadata, trailers, ..error })
            }
        }
    }
}

fn http_error(status: u16) -> Status {
    Status::new(Code::from_http(status), format!("server answered HTTP {status} without grpc-status"))
}

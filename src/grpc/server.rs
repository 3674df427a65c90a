//! The serving end: unary requests from one HTTP/2 connection, each answered when the application can.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use super::message::{self, Assembler};
use super::metadata::{Metadata, percent_encode};
use super::status::{Code, Status};
use super::timeout;
use crate::h2::fields::find;
use crate::h2::ids::IdMap;
use crate::h2::{
    Config, Connection, ConnectionError, ErrorCode, Event, Field, Header, Indexing, Instant, KeepAlive, StreamId,
};

/// How long a request may take to arrive: a peer that dribbles must not hold memory longer.
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long an answer may take to leave: a peer that opens no window must not hold memory longer.
const SEND_TIMEOUT: Duration = Duration::from_secs(60);
/// Requests of the largest size that are assembled at once on one connection.
const MAX_ASSEMBLED: usize = 4;

/// How each answer begins (PROTOCOL-HTTP2.md, Responses).
const OK_HEAD: [Field<'static>; 2] = [
    Field { name: b":status", value: b"200", indexing: Indexing::Repeated },
    Field { name: b"content-type", value: b"application/grpc", indexing: Indexing::Repeated },
];

/// What an application chooses for a server's connection.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Largest message that is taken.
    pub max_request: usize,
    /// PINGs while calls run.
    pub keepalive: Option<KeepAlive>,
}

impl Default for ServerConfig {
    fn default() -> Self {
        ServerConfig { max_request: 4 * 1024 * 1024, keepalive: None }
    }
}

/// A whole request.
#[derive(Clone, PartialEq, Eq)]
pub struct IncomingRequest {
    /// To answer with.
    pub id: StreamId,
    /// `/package.Service/Method`.
    pub path: String,
    /// Beside the message.
    pub metadata: Metadata,
    /// The message.
    pub body: Vec<u8>,
    /// When the caller gives up, if it said so.
    pub deadline: Option<Instant>,
}

impl fmt::Debug for IncomingRequest {
    /// Without the message, which may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IncomingRequest({}, {}, {} bytes)", self.id, self.path, self.body.len())
    }
}

/// What a request is answered with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// For the head.
    pub metadata: Metadata,
    /// The message, or why there is none.
    pub result: Result<Vec<u8>, Status>,
    /// For the end.
    pub trailers: Metadata,
}

impl From<Result<Vec<u8>, Status>> for Reply {
    /// An answer without metadata.
    fn from(result: Result<Vec<u8>, Status>) -> Reply {
        Reply { metadata: Metadata::default(), result, trailers: Metadata::default() }
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerEvent {
    /// A request to answer with [`Server::respond`], now or much later.
    Request(IncomingRequest),
    /// A request that was handed out needs no answer any more: cancelled by its caller, or past its deadline.
    Cancelled {
        /// This one.
        id: StreamId,
    },
    /// The connection has ended, and each of its requests with it. Nothing follows.
    Closed {
        /// Why.
        error: ConnectionError,
    },
}

#[derive(Debug)]
enum Call {
    Receiving {
        path: String,
        metadata: Metadata,
        message: Assembler,
        deadline: Option<Instant>,
        give_up: Instant,
    },
    /// With the application.
    Waiting {
        deadline: Option<Instant>,
    },
    /// The answer leaves as windows allow.
    Sending {
        give_up: Instant,
    },
}

/// Unary requests of one connection.
#[derive(Debug)]
pub struct Server {
    config: ServerConfig,
    connection: Connection,
    calls: IdMap<Call>,
    events: VecDeque<ServerEvent>,
}

impl Server {
    /// A server on an accepted transport.
    pub fn new(config: ServerConfig, now: Instant) -> Server {
        let h2 = Config { keepalive: config.keepalive, ..Config::default() };
        Server { config, connection: Connection::server(h2, now), calls: IdMap::default(), events: VecDeque::new() }
    }

    /// Answers a request. An answer to one that is cancelled is dropped.
    pub fn respond(&mut self, id: StreamId, reply: impl Into<Reply>, now: Instant) {
        if !matches!(self.calls.get(id), Some(Call::Waiting { .. })) {
            return;
        }
        let Reply { metadata, result, trailers } = reply.into();
        match result.map(|body| (message::prefix(body.len()), body)) {
            Ok((Some(prefix), body)) => {
                self.connection.send_headers(id, OK_HEAD.into_iter().chain(metadata.fields()), false);
                message::send(&mut self.connection, id, prefix, body, false);
                let end = [Header::new("grpc-status", "0")].into_iter();
                self.connection.send_trailers(id, end.chain(trailers.fields().map(Header::from)).collect());
                self.calls.insert(id, Call::Sending { give_up: now + SEND_TIMEOUT });
            }
            Ok((None, _)) => self.refuse(id, &Status::new(Code::Internal, "answer longer than 4 GiB")),
            Err(status) => self.refuse_with(id, &status, &metadata, &trailers),
        }
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
        let late: Vec<StreamId> =
            self.calls.iter().filter(|(_, c)| c.due().is_some_and(|at| at <= now)).map(|(s, _)| s).collect();
        for id in late {
            match self.calls.get(id) {
                Some(Call::Sending { .. }) => {
                    self.calls.remove(id);
                    self.connection.reset(id, ErrorCode::CANCEL);
                }
                Some(Call::Waiting { .. }) => {
                    self.refuse(id, &Status::new(Code::DeadlineExceeded, "no answer before the deadline"));
                    self.events.push_back(ServerEvent::Cancelled { id });
                }
                _ => self.refuse(id, &Status::new(Code::DeadlineExceeded, "request did not arrive in time")),
            }
        }
        self.handle_events(now);
    }

    /// When [`Server::handle_timeout`] must be called, at the latest.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.calls.values().filter_map(Call::due).chain(self.connection.poll_timeout()).min()
    }

    /// Appends bytes to write to the transport.
    pub fn poll_transmit(&mut self, out: &mut Vec<u8>) {
        self.connection.poll_transmit(out);
        let connection = &self.connection;
        self.calls.retain(|id, call| !matches!(call, Call::Sending { .. }) || connection.is_open(id));
    }

    /// What happened next.
    pub fn poll_event(&mut self) -> Option<ServerEvent> {
        self.events.pop_front()
    }

    /// Takes no new requests; the connection ends with those under way.
    pub fn close(&mut self, now: Instant) {
        self.connection.go_away(ErrorCode::NO_ERROR);
        self.handle_events(now);
    }

    /// Requests under way.
    pub fn open_calls(&self) -> usize {
        self.calls.len()
    }

    fn handle_events(&mut self, now: Instant) {
        while let Some(event) = self.connection.poll_event() {
            match event {
                Event::Settings | Event::GoAway { .. } => {}
                Event::Headers { stream, headers, end_stream } => {
                    self.handle_head(stream, &headers, now);
                    if end_stream {
                        self.handle_end(stream);
                    }
                }
                Event::Data { stream, data, end_stream } => {
                    self.connection.release(stream, data.len());
                    self.handle_data(stream, &data);
                    self.connection.recycle(data);
                    if end_stream {
                        self.handle_end(stream);
                    }
                }
                Event::Trailers { stream, .. } => self.handle_end(stream),
                Event::Reset { stream, .. } => self.handle_reset(stream),
                Event::Closed { error } => {
                    let calls = std::mem::take(&mut self.calls);
                    for (id, _) in calls.into_iter().filter(|(_, c)| matches!(c, Call::Waiting { .. })) {
                        self.events.push_back(ServerEvent::Cancelled { id });
                    }
                    self.events.push_back(ServerEvent::Closed { error });
                }
            }
        }
    }

    fn handle_head(&mut self, id: StreamId, headers: &[Header], now: Instant) {
        let value = |name| find(headers, name);
        if value(":method") != Some(b"POST") {
            return self.refuse_http(id, "405");
        }
        if !value("content-type").is_some_and(|v| v.starts_with(b"application/grpc")) {
            return self.refuse_http(id, "415");
        }
        if value("grpc-encoding").is_some_and(|v| v != b"identity") {
            return self.refuse(id, &Status::new(Code::Unimplemented, "no message encoding is supported"));
        }
        let timeout = value("grpc-timeout").map(timeout::parse);
        if timeout == Some(None) {
            return self.refuse(id, &Status::new(Code::Internal, "grpc-timeout is malformed"));
        }
        let metadata = match Metadata::from_headers(headers) {
            Ok(metadata) => metadata,
            Err(error) => return self.refuse(id, &Status::new(Code::Internal, error.to_string())),
        };
        let deadline = timeout.flatten().map(|t| now.saturating_add(t));
        let give_up = now + RECEIVE_TIMEOUT;
        let path = String::from_utf8_lossy(value(":path").unwrap_or_default()).into_owned();
        let message = Assembler::new(self.config.max_request);
        self.calls.insert(id, Call::Receiving { path, metadata, message, deadline, give_up });
    }

    fn handle_data(&mut self, id: StreamId, data: &[u8]) {
        let held: usize = self.calls.values().map(Call::held).sum();
        let Some(Call::Receiving { message, .. }) = self.calls.get_mut(id) else { return };
        if held + data.len() > self.config.max_request.saturating_mul(MAX_ASSEMBLED) {
            let words = "too many large requests at once on this connection";
            return self.refuse(id, &Status::new(Code::ResourceExhausted, words));
        }
        match message.push(data) {
            Ok(()) => self.connection.reserve_window(id, message.missing()),
            Err(status) => self.refuse(id, &status),
        }
    }

    fn handle_end(&mut self, id: StreamId) {
        let Some(Call::Receiving { path, metadata, message, deadline, .. }) = self.calls.remove(id) else { return };
        match message.finish() {
            Ok(Some(body)) => {
                self.calls.insert(id, Call::Waiting { deadline });
                let request = IncomingRequest { id, path, metadata, body, deadline };
                self.events.push_back(ServerEvent::Request(request));
            }
            Ok(None) => self.refuse(id, &Status::new(Code::Unimplemented, "unary call without a message")),
            Err(status) => self.refuse(id, &status),
        }
    }

    fn handle_reset(&mut self, id: StreamId) {
        if let Some(Call::Waiting { .. }) = self.calls.remove(id) {
            self.events.push_back(ServerEvent::Cancelled { id });
        }
    }

    fn refuse(&mut self, id: StreamId, status: &Status) {
        self.refuse_with(id, status, &Metadata::default(), &Metadata::default());
    }

    /// Trailers-Only: one block that is head and end.
    fn refuse_with(&mut self, id: StreamId, status: &Status, metadata: &Metadata, trailers: &Metadata) {
        self.calls.remove(id);
        let number = status.code.number().to_string();
        let message = shortened(&status.message);
        let words = Field { name: b"grpc-message", value: message.as_bytes(), indexing: Indexing::Once };
        let words = (!message.is_empty()).then_some(words);
        let status = Field::new("grpc-status", &number);
        let fields = OK_HEAD.into_iter().chain([status]).chain(words);
        self.connection.send_headers(id, fields.chain(metadata.fields()).chain(trailers.fields()), true);
    }

    fn refuse_http(&mut self, id: StreamId, status: &str) {
        self.connection.send_headers(id, &[Header::new(":status", status)], true);
    }
}

/// A field list of more than 8 KiB is refused by common clients, so words are cut before that. Only between characters:
/// tonic takes a message that is no UTF-8 for the status UNKNOWN.
fn shortened(message: &str) -> String {
    const MAX_MESSAGE: usize = 4096;
    let encoded = percent_encode(message);
    if encoded.len() <= MAX_MESSAGE {
        return encoded;
    }
    let cost = |c: char| if matches!(c, ' '..='~') && c != '%' { 1 } else { 3 * c.len_utf8() };
    let ends = message.char_indices().scan(0, |length, (at, c)| {
        *length += cost(c);
        Some((at, *length))
    });
    let cut = ends.take_while(|(_, length)| *length <= MAX_MESSAGE).last().map_or(0, |(at, _)| at);
    percent_encode(message[..cut].trim_end())
}

impl Call {
    fn due(&self) -> Option<Instant> {
        match self {
            Call::Receiving { deadline, give_up, .. } => Some(deadline.map_or(*give_up, |d| d.min(*give_up))),
            Call::Waiting { deadline } => *deadline,
            Call::Sending { give_up } => Some(*give_up),
        }
    }

    fn held(&self) -> usize {
        match self {
            Call::Receiving { message, .. } => message.len(),
            _ => 0,
        }
    }
}

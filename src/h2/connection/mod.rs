//! One HTTP/2 connection, either end (RFC 9113): what an application calls and asks.
//!
//! Four kinds of method: `handle_*` takes bytes, time and ends; `poll_transmit` yields bytes to write; `poll_event`
//! yields what happened; `poll_timeout` says when `handle_timeout` must be called. Reading is in `receive`, writing in
//! `transmit`.

mod keepalive;
mod receive;
mod transmit;

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

pub use keepalive::KeepAlive;

use std::collections::VecDeque;
use std::time::Duration;

use super::Instant;
use super::error::{ConnectionError, ErrorCode, Fault};
use super::flow::{DEFAULT_WINDOW, RecvWindow, SendWindow};
use super::hpack::{Decoder, Encoder, Field, Header};
use super::ids::IdMap;
use super::settings::{self, PeerSettings};
use super::stream::{Expect, SendEnd, SendQueue, State, Step, Stream};
use super::{fields, frame};

/// Our HPACK decoding table: the protocol's default, so that no update is ever owed (RFC 7541 section 4.2).
const HEADER_TABLE_SIZE: usize = 4096;
/// Most a field list may take, decoded: gRPC heads are below 1 KiB, and a grpc-message or token fits many times.
pub const MAX_HEADER_LIST_SIZE: usize = 16 * 1024;
/// Window of each stream: a 4 MiB message takes four round trips at most.
const STREAM_WINDOW: u32 = 1024 * 1024;
/// Window of the connection: four streams at full speed.
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
/// No window grows beyond this: the largest message that is taken anywhere, and its framing.
const MAX_GROWN_WINDOW: u32 = 96 * 1024 * 1024;
/// Streams that a client may have open on a server of ours. A worker needs about eight.
const MAX_CONCURRENT_STREAMS: u32 = 32;
/// How long the peer's first SETTINGS may take, since it is the first thing that a peer sends.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(20);
/// Largest buffer that is kept for the next [`Event::Data`]: what a few reads bring.
const MAX_SPARE: usize = 64 * 1024;
/// Stream errors that one connection may cause: an honest peer causes none.
const MAX_STREAM_ERRORS: u32 = 8;
/// Identifiers have 31 bits (RFC 9113 section 5.1.1).
const MAX_STREAM_ID: StreamId = 0x7fff_ffff;

/// The identifier of a stream (RFC 9113 section 5.1.1).
pub type StreamId = u32;

/// What an application chooses for a connection.
#[derive(Debug, Clone)]
pub struct Config {
    /// `None`: no PINGs of ours.
    pub keepalive: Option<KeepAlive>,
    /// Limit of a decoded field list.
    pub max_header_list_size: usize,
    /// Receive window of each stream, at least the protocol's 65,535: a peer may use those before it reads our
    /// settings.
    pub stream_window: u32,
    /// Receive window of the connection, at least the protocol's 65,535.
    pub connection_window: u32,
    /// Streams that the peer may open on a server.
    pub max_concurrent_streams: u32,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            keepalive: None,
            max_header_list_size: MAX_HEADER_LIST_SIZE,
            stream_window: STREAM_WINDOW,
            connection_window: CONNECTION_WINDOW,
            max_concurrent_streams: MAX_CONCURRENT_STREAMS,
        }
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The peer's first SETTINGS came: it does speak HTTP/2.
    Settings,
    /// The head of a request, or of a final response.
    Headers {
        /// On this stream.
        stream: StreamId,
        /// Checked against RFC 9113 section 8.
        headers: Vec<Header>,
        /// No body and no trailers follow.
        end_stream: bool,
    },
    /// Part of a body. The application gives its length back with [`Connection::release`].
    Data {
        /// On this stream.
        stream: StreamId,
        /// Without padding.
        data: Vec<u8>,
        /// Nothing follows.
        end_stream: bool,
    },
    /// The trailer section, which ends the peer's part.
    Trailers {
        /// On this stream.
        stream: StreamId,
        /// Checked against RFC 9113 section 8.1.
        headers: Vec<Header>,
    },
    /// The stream has ended by RST_STREAM, from either end, or by GOAWAY.
    Reset {
        /// This stream.
        stream: StreamId,
        /// The code that was received or sent.
        code: ErrorCode,
        /// Why.
        cause: ResetCause,
    },
    /// The peer takes no new streams (RFC 9113 section 6.8). Those that it will not process are reset.
    GoAway {
        /// The highest stream that the peer may process.
        last_stream: StreamId,
        /// Why.
        code: ErrorCode,
    },
    /// The connection has ended, and all its streams with it. Nothing follows.
    Closed {
        /// Why.
        error: ConnectionError,
    },
}

/// Who ended a stream, and what that says about the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetCause {
    /// The peer, with RST_STREAM.
    Peer,
    /// We, since the peer broke the protocol on it.
    Violation(&'static str),
    /// The peer's GOAWAY: it was not processed (RFC 9113 section 8.7).
    NotProcessed,
}

/// Why a call on a connection could not be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenError {
    /// The peer's SETTINGS_MAX_CONCURRENT_STREAMS is reached; try again when a stream ends.
    TooManyStreams,
    /// The connection takes no new streams: it ends, or its identifiers are used up.
    Closing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Client,
    Server,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
enum Phase {
    /// A server waits for the client's preface (RFC 9113 section 3.4).
    Preface,
    /// The peer's first frame must be SETTINGS.
    Settings,
    Open,
    Closed,
}

/// A field block that is not complete; only its CONTINUATION frames may follow (RFC 9113 section 6.10).
#[derive(Debug)]
struct Block {
    stream: StreamId,
    end_stream: bool,
    fragment: Vec<u8>,
    continuations: u32,
}

/// One connection.
#[derive(Debug)]
pub struct Connection {
    role: Role,
    config: Config,
    phase: Phase,
    /// Bytes of an incomplete preface or frame: at most one of 16 KiB.
    input: Vec<u8>,
    block: Option<Block>,
    decoder: Decoder,
    encoder: Encoder,
    /// For the field block that is being encoded.
    scratch: Vec<u8>,
    peer: PeerSettings,
    streams: IdMap<Stream>,
    /// The next stream that a client opens.
    next_stream: StreamId,
    /// The highest stream that the peer opened on a server.
    last_peer_stream: StreamId,
    /// The highest stream whose HEADERS were handed out by `poll_transmit`.
    transmitted: StreamId,
    send_window: SendWindow,
    recv_window: RecvWindow,
    control: transmit::Control,
    /// Where the fair round over the streams goes on.
    cursor: StreamId,
    events: VecDeque<Event>,
    /// A buffer of [`Event::Data`] that came back.
    spare: Vec<u8>,
    go_away_sent: Option<ErrorCode>,
    /// The last stream that a GOAWAY of ours named: it must never rise (RFC 9113 section 6.8).
    last_told: StreamId,
    go_away_received: Option<(StreamId, ErrorCode, String)>,
    recent_resets: VecDeque<StreamId>,
    /// The highest stream that `recent_resets` had to forget: late frames up to it can't be told from wrong ones.
    forgotten_reset: StreamId,
    counts: receive::Counts,
    handshake_deadline: Option<Instant>,
    pinger: keepalive::Pinger,
}

impl Connection {
    /// The client's end. The preface and our SETTINGS wait to be transmitted.
    pub fn client(config: Config, now: Instant) -> Connection {
        let mut connection = Connection::new(Role::Client, Phase::Settings, config, now);
        connection.control.push(|out| out.extend_from_slice(frame::PREFACE));
        connection.start();
        connection
    }

    /// The server's end. Our SETTINGS wait to be transmitted.
    pub fn server(config: Config, now: Instant) -> Connection {
        let mut connection = Connection::new(Role::Server, Phase::Preface, config, now);
        connection.start();
        connection
    }

    fn new(role: Role, phase: Phase, config: Config, now: Instant) -> Connection {
        Connection {
            role,
            phase,
            input: Vec::new(),
            block: None,
            decoder: Decoder::new(HEADER_TABLE_SIZE, config.max_header_list_size),
            encoder: Encoder::default(),
            scratch: Vec::new(),
            peer: PeerSettings::default(),
            streams: IdMap::default(),
            next_stream: 1,
            last_peer_stream: 0,
            transmitted: 0,
            send_window: SendWindow::new(DEFAULT_WINDOW),
            recv_window: RecvWindow::new(config.connection_window.max(DEFAULT_WINDOW)),
            control: transmit::Control::default(),
            cursor: 0,
            events: VecDeque::new(),
            spare: Vec::new(),
            go_away_sent: None,
            last_told: MAX_STREAM_ID,
            go_away_received: None,
            recent_resets: VecDeque::new(),
            forgotten_reset: 0,
            counts: receive::Counts::default(),
            handshake_deadline: Some(now + HANDSHAKE_TIMEOUT),
            pinger: keepalive::Pinger::new(config.keepalive, now),
            config,
        }
    }

    fn start(&mut self) {
        let list_size = u32::try_from(self.config.max_header_list_size).unwrap_or(u32::MAX);
        let mut entries = vec![
            (settings::INITIAL_WINDOW_SIZE, self.config.stream_window.max(DEFAULT_WINDOW)),
            (settings::MAX_HEADER_LIST_SIZE, list_size),
        ];
        match self.role {
            Role::Client => entries.push((settings::ENABLE_PUSH, 0)),
            Role::Server => entries.push((settings::MAX_CONCURRENT_STREAMS, self.config.max_concurrent_streams)),
        }
        self.control.push(|out| frame::put_settings(out, &entries));
        let extra = self.config.connection_window.saturating_sub(DEFAULT_WINDOW);
        if extra > 0 {
            self.control.push(|out| frame::put_window_update(out, 0, extra));
        }
    }

    /// What happened next, if anything did.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When [`Connection::handle_timeout`] must be called, at the latest.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.phase == Phase::Closed {
            return None;
        }
        self.handshake_deadline.or_else(|| self.pinger.due(!self.streams.is_empty()))
    }

    /// Does what is due: ends a handshake or PING that took too long, sends a PING.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.poll_timeout().is_none_or(|at| now < at) {
            return;
        }
        if self.handshake_deadline.is_some() {
            let reason = "peer sent no HTTP/2 settings in time";
            return self.fail(ErrorCode::SETTINGS_TIMEOUT, ConnectionError::TimedOut { reason });
        }
        match self.pinger.ping(now) {
            Some(payload) => self.control.push(|out| frame::put_ping(out, false, payload)),
            None => {
                let reason = "peer did not answer a keepalive PING in time";
                self.fail(ErrorCode::NO_ERROR, ConnectionError::TimedOut { reason });
            }
        }
    }

    /// The transport has ended.
    pub fn handle_eof(&mut self) {
        let error = match self.go_away_received.take() {
            Some((_, code, debug)) => ConnectionError::GoneAway { code, debug },
            None => ConnectionError::Eof,
        };
        self.close(error);
    }

    /// Opens a stream as a client (RFC 9113 section 8.1).
    pub fn open<'a, F: Into<Field<'a>>>(
        &mut self,
        headers: impl IntoIterator<Item = F>,
        end: bool,
    ) -> Result<StreamId, OpenError> {
        if self.is_closing() || self.role == Role::Server {
            return Err(OpenError::Closing);
        }
        if u32::try_from(self.streams.len()).is_ok_and(|n| n >= self.peer.max_concurrent_streams) {
            return Err(OpenError::TooManyStreams);
        }
        let id = self.next_stream;
        self.next_stream += 2;
        let mut stream = self.new_stream(Expect::Head { interim: 0 });
        if end {
            stream.state = State::HalfClosedLocal;
        }
        self.streams.insert(id, stream);
        self.put_headers(id, headers, end);
        Ok(id)
    }

    /// Sends the head of a response. False if the stream cannot be sent on.
    pub fn send_headers<'a, F: Into<Field<'a>>>(
        &mut self,
        id: StreamId,
        headers: impl IntoIterator<Item = F>,
        end: bool,
    ) -> bool {
        let Some(stream) = self.sendable(id) else { return false };
        debug_assert!(stream.queue.is_empty(), "a head comes before the body");
        self.put_headers(id, headers, end);
        if end {
            self.step(id, Step::SendEnd);
            self.stop_peer(id);
        }
        true
    }

    /// Queues part of a body; it is sent as the windows allow. False if the stream cannot be sent on.
    pub fn send_data(&mut self, id: StreamId, data: Vec<u8>, end: bool) -> bool {
        let Some(stream) = self.sendable(id) else { return false };
        stream.queue.push(data);
        if end {
            stream.queue.end = SendEnd::Data;
        }
        true
    }

    /// Queues the trailer section, which ends our part after what is queued already.
    pub fn send_trailers(&mut self, id: StreamId, headers: Vec<Header>) -> bool {
        let Some(stream) = self.sendable(id) else { return false };
        stream.queue.end = SendEnd::Trailers(headers);
        true
    }

    /// Ends a stream at once. Late frames of the peer on it are ignored.
    pub fn reset(&mut self, id: StreamId, code: ErrorCode) {
        if self.streams.remove(id).is_some() {
            self.put_reset(id, code);
            self.close_when_drained();
        }
    }

    /// Says that `n` bytes of [`Event::Data`] were taken, so that the peer may send as many more.
    pub fn release(&mut self, id: StreamId, n: usize) {
        if self.phase == Phase::Closed {
            return;
        }
        if let Some(increment) = self.recv_window.release(n) {
            self.control.push(|out| frame::put_window_update(out, 0, increment));
        }
        let Some(stream) = self.streams.get_mut(id).filter(|s| s.state.can_receive()) else {
            return;
        };
        if let Some(increment) = stream.recv_window.release(n) {
            self.control.push(|out| frame::put_window_update(out, id, increment));
        }
    }

    /// Says that this many bytes are to come on a stream and will be taken as they come: the windows grow so that the peer
    /// need not wait for updates, however long the path is.
    pub fn reserve_window(&mut self, id: StreamId, bytes: usize) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).min(MAX_GROWN_WINDOW);
        let Some(stream) = self.streams.get_mut(id).filter(|s| s.state.can_receive()) else { return };
        let Some(increment) = stream.recv_window.grow_to(bytes) else { return };
        self.control.push(|out| frame::put_window_update(out, id, increment));
        let shared = self.recv_window.size().saturating_add(increment).min(MAX_GROWN_WINDOW);
        if let Some(increment) = self.recv_window.grow_to(shared) {
            self.control.push(|out| frame::put_window_update(out, 0, increment));
        }
    }

    /// Gives the buffer of an [`Event::Data`] back, so that the next one needs no allocation.
    pub fn recycle(&mut self, data: Vec<u8>) {
        if data.capacity() > self.spare.capacity() && data.capacity() <= MAX_SPARE {
            self.spare = data;
        }
    }

    /// Takes no new streams; the connection ends when the present ones have (RFC 9113 section 6.8).
    pub fn go_away(&mut self, code: ErrorCode) {
        if self.phase == Phase::Closed || self.go_away_sent.is_some() {
            return;
        }
        self.go_away_sent = Some(code);
        self.put_go_away(code, "");
        self.close_when_drained();
    }

    /// Whether HEADERS of this stream were handed out by `poll_transmit`: only then can the peer have seen them.
    pub fn was_transmitted(&self, id: StreamId) -> bool {
        id <= self.transmitted
    }

    /// Whether a stream has not ended yet.
    pub fn is_open(&self, id: StreamId) -> bool {
        self.streams.contains(id)
    }

    /// Streams that are open.
    pub fn open_streams(&self) -> usize {
        self.streams.len()
    }

    /// Whether a call of [`Connection::open`] can succeed at all, now or later.
    pub fn is_closing(&self) -> bool {
        let is_ending = self.go_away_received.is_some() || self.go_away_sent.is_some();
        self.phase == Phase::Closed || is_ending || self.next_stream > MAX_STREAM_ID
    }

    /// Whether the connection has ended; what `poll_transmit` still yields is a last word.
    pub fn is_closed(&self) -> bool {
        self.phase == Phase::Closed
    }

    fn new_stream(&self, expect: Expect) -> Stream {
        Stream {
            state: State::Open,
            expect,
            send_window: SendWindow::new(self.peer.initial_window_size),
            recv_window: RecvWindow::new(self.config.stream_window.max(DEFAULT_WINDOW)),
            queue: SendQueue::default(),
            content_length: None,
            received: 0,
        }
    }

    fn sendable(&mut self, id: StreamId) -> Option<&mut Stream> {
        let stream = self.streams.get_mut(id)?;
        (stream.state.can_send() && matches!(stream.queue.end, SendEnd::Open)).then_some(stream)
    }

    fn put_headers<'a, F: Into<Field<'a>>>(&mut self, id: StreamId, headers: impl IntoIterator<Item = F>, end: bool) {
        let (encoder, block) = (&mut self.encoder, &mut self.scratch);
        block.clear();
        encoder.encode(headers, block);
        self.control.push(|out| frame::put_headers(out, id, block, end, frame::MAX_FRAME_SIZE));
    }

    /// A server that has answered wants no more of the request (RFC 9113 section 8.1).
    fn stop_peer(&mut self, id: StreamId) {
        if self.role == Role::Server && self.streams.contains(id) {
            self.reset(id, ErrorCode::NO_ERROR);
        }
    }

    /// Moves a stream on and forgets it when both sides have ended.
    fn step(&mut self, id: StreamId, step: Step) {
        let Some(stream) = self.streams.get_mut(id) else {
            return;
        };
        let Some(state) = stream.state.after(step) else { return };
        stream.state = state;
        if state == State::Closed {
            self.streams.remove(id);
            self.counts.stream_done();
            self.close_when_drained();
        }
    }

    /// After GOAWAY the connection ends with its last stream.
    fn close_when_drained(&mut self) {
        if !self.streams.is_empty() || self.phase == Phase::Closed {
            return;
        }
        if let Some((_, code, debug)) = self.go_away_received.take() {
            self.close(ConnectionError::GoneAway { code, debug });
        } else if let Some(code) = self.go_away_sent {
            self.close(ConnectionError::Local { code });
        }
    }

    fn handle_fault(&mut self, fault: Fault) {
        match fault {
            Fault::Connection { code, reason } => self.fail(code, ConnectionError::Peer { code, reason }),
            // RST_STREAM must not be sent on an idle stream (RFC 9113 section 6.4).
            Fault::Stream { id, code, reason } if self.is_idle(id) => {
                self.fail(code, ConnectionError::Peer { code, reason });
            }
            Fault::Stream { id, code, reason } => {
                self.counts.stream_errors += 1;
                if self.counts.stream_errors > MAX_STREAM_ERRORS {
                    let (code, reason) = (ErrorCode::ENHANCE_YOUR_CALM, "too many stream errors");
                    return self.fail(code, ConnectionError::Peer { code, reason });
                }
                let known = self.streams.remove(id).is_some();
                // At most one reset a stream (RFC 9113 section 5.4.2).
                if !self.was_reset(id) {
                    self.put_reset(id, code);
                }
                if known {
                    self.events.push_back(Event::Reset { stream: id, code, cause: ResetCause::Violation(reason) });
                }
                self.close_when_drained();
            }
        }
    }

    /// Says GOAWAY and closes.
    fn fail(&mut self, code: ErrorCode, error: ConnectionError) {
        if self.phase == Phase::Closed {
            return;
        }
        let debug = match &error {
            ConnectionError::Peer { reason, .. } => *reason,
            _ => "",
        };
        self.put_go_away(code, debug);
        self.close(error);
    }

    /// Streams that came after our first GOAWAY were refused, so that it still says the truth about them.
    fn put_go_away(&mut self, code: ErrorCode, debug: &str) {
        self.last_told = self.last_told.min(self.last_peer_stream);
        let last = self.last_told;
        self.control.push(|out| frame::put_go_away(out, last, code, debug.as_bytes()));
    }

    fn close(&mut self, error: ConnectionError) {
        if self.phase == Phase::Closed {
            return;
        }
        self.phase = Phase::Closed;
        self.streams.clear();
        self.input = Vec::new();
        self.block = None;
        self.events.push_back(Event::Closed { error });
    }

    /// Whether a stream was never opened (RFC 9113 section 5.1).
    fn is_idle(&self, id: StreamId) -> bool {
        match self.role {
            Role::Client => id.is_multiple_of(2) || id >= self.next_stream,
            Role::Server => id.is_multiple_of(2) || id > self.last_peer_stream,
        }
    }

    fn check_fields(&self, headers: &[Header]) -> Result<fields::Head, fields::Malformed> {
        match self.role {
            Role::Client => fields::check_response(headers),
            Role::Server => fields::check_request(headers),
        }
    }
}

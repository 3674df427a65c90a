//! What the attacks share: bytes written by hand, a counting allocator, and a client and a server of ours that take them.
//!
//! Memory is counted for each thread by itself, since tests run side by side. Hostile bytes are made before the count
//! begins.
#![allow(dead_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::Duration;

use hivemind_worker::grpc::{
    CallError, CallId, Client, ClientConfig, ClientEvent, Code, Metadata, Request, Response, Server, ServerConfig,
    ServerEvent,
};
use hivemind_worker::h2::{ConnectionError, Instant};

/// Where time begins.
pub const NOW: Instant = Duration::from_secs(1000);
/// How much memory an attack may cost.
pub const MAX_GROWTH: usize = 2 * 1024 * 1024;
/// How many hostile bytes a flood has at least.
pub const FLOOD: usize = 16 * 1024 * 1024;
/// What our transports read at once.
const CHUNK: usize = 16 * 1024;
/// Pieces in which the second run is fed, to tell how many bytes were read before the refusal.
const PIECE: usize = 64;

// Memory.

struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
    static TOTAL: Cell<usize> = const { Cell::new(0) };
}

fn count(by: isize) {
    let held = HELD.get() + by;
    HELD.set(held);
    PEAK.set(PEAK.get().max(held));
    TOTAL.set(TOTAL.get() + by.max(0).unsigned_abs());
}

// SAFETY: each call is passed on to the system's allocator as it came; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size().cast_signed());
        // SAFETY: the caller keeps to the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-layout.size().cast_signed());
        // SAFETY: the pointer came from `alloc` with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both are held for a moment where the block moves.
        count(size.cast_signed());
        count(-layout.size().cast_signed());
        // SAFETY: the pointer came from `alloc` with this layout.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What this does, by how many bytes this thread held more at its peak than before, and how many it asked for in all.
pub fn measured<T>(work: impl FnOnce() -> T) -> (T, usize, usize) {
    let (before, total) = (HELD.get(), TOTAL.get());
    PEAK.set(before);
    let result = work();
    let growth = usize::try_from(PEAK.get() - before).unwrap();
    (result, growth, TOTAL.get() - total)
}

// Bytes.

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&[a, b, c, kind, flags][..], &stream.to_be_bytes(), payload].concat()
}

/// Fields without index and without Huffman code (RFC 7541 section 6.2.2).
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let length = |text: &str| match text.len() {
        n @ 0..127 => vec![u8::try_from(n).unwrap()],
        n => vec![127, u8::try_from((n - 127) % 128).unwrap() | 0x80, u8::try_from((n - 127) / 128).unwrap()],
    };
    let fields = fields.iter().map(|(n, v)| [&[0][..], &length(n), n.as_bytes(), &length(v), v.as_bytes()].concat());
    fields.collect::<Vec<_>>().concat()
}

pub fn head(stream: u32, fields: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, 4, stream, &block(fields))
}

/// A head or trailers with END_STREAM.
pub fn end(stream: u32, fields: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, 5, stream, &block(fields))
}

pub const OK: [(&str, &str); 2] = [(":status", "200"), ("content-type", "application/grpc")];

pub fn ok_head(stream: u32) -> Vec<u8> {
    head(stream, &OK)
}

/// A message of one byte.
pub const MESSAGE: [u8; 6] = [0, 0, 0, 0, 1, b'!'];

/// A whole good answer.
pub fn good(stream: u32) -> Vec<u8> {
    [ok_head(stream), frame(DATA, 0, stream, &MESSAGE), end(stream, &[("grpc-status", "0")])].concat()
}

/// An answer with this body and these trailers.
pub fn answer(body: &[u8], trailers: &[(&str, &str)]) -> Vec<u8> {
    [ok_head(1), frame(DATA, 0, 1, body), end(1, trailers)].concat()
}

pub fn settings() -> Vec<u8> {
    frame(SETTINGS, 0, 0, &[])
}

/// As often as a flood needs.
pub fn flood(unit: &[u8]) -> Vec<u8> {
    unit.repeat(FLOOD.div_ceil(unit.len()))
}

/// A frame that one of ours sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

pub fn parse(mut bytes: &[u8]) -> Vec<Sent> {
    bytes = bytes.strip_prefix(PREFACE).unwrap_or(bytes);
    let mut sent = Vec::new();
    while let [a, b, c, kind, flags, s, t, u, v, rest @ ..] = bytes {
        let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
        let stream = u32::from_be_bytes([*s, *t, *u, *v]);
        sent.push(Sent { kind: *kind, flags: *flags, stream, payload: rest[..length].to_vec() });
        bytes = &rest[length..];
    }
    assert!(bytes.is_empty());
    sent
}

fn code_in(payload: &[u8]) -> u32 {
    u32::from_be_bytes(payload.try_into().unwrap())
}

// Our client.

/// A client with one call, `CallId(1)` on stream 1, whose request is written.
pub fn client() -> Client {
    client_with(request(b"x"))
}

pub fn client_with(request: Request) -> Client {
    let mut client = new_client();
    client.call(CallId(1), request, NOW);
    client.poll_transmit(&mut Vec::new());
    client
}

/// A client on a new connection.
pub fn new_client() -> Client {
    let config = ClientConfig { scheme: "http", authority: "h".into(), user_agent: "test".into(), keepalive: None };
    Client::new(config, NOW)
}

pub fn request(body: &[u8]) -> Request {
    Request {
        path: "/a.B/C".into(),
        metadata: Metadata::default(),
        body: body.to_vec(),
        timeout: Duration::from_secs(10),
        max_response: 4 * 1024 * 1024,
    }
}

pub fn transmit(client: &mut Client) -> Vec<Sent> {
    let mut out = Vec::new();
    client.poll_transmit(&mut out);
    parse(&out)
}

/// Whether the peer reads what we send.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    Reads,
    Deaf,
}

/// How an attack on our client went.
#[derive(Debug)]
pub struct Outcome {
    /// Of the call, if it has ended.
    pub result: Option<Result<Response, CallError>>,
    /// Why the connection ended, if it did.
    pub closed: Option<ConnectionError>,
    /// Hostile bytes that were fed until the call ended, to within a piece.
    pub consumed: usize,
    /// Memory at the peak.
    pub growth: usize,
    /// The code in GOAWAY, if one was sent.
    pub go_away: Option<u32>,
    /// Streams that were reset, with the code.
    pub resets: Vec<(u32, u32)>,
    /// Replies to PING and SETTINGS.
    pub replies: usize,
}

impl Outcome {
    pub fn code(&self) -> Code {
        match self.result.as_ref().expect("the call has not ended") {
            Ok(_) => Code::Ok,
            Err(error) => error.status.code,
        }
    }

    pub fn error(&self) -> &CallError {
        self.result.as_ref().expect("the call has not ended").as_ref().expect_err("the call went well")
    }

    fn note(&mut self, sent: &[Sent]) {
        for sent in sent {
            match sent.kind {
                GOAWAY => self.go_away = Some(code_in(&sent.payload[4..8])),
                RST_STREAM => self.resets.push((sent.stream, code_in(&sent.payload))),
                PING | SETTINGS if sent.flags == 1 => self.replies += 1,
                _ => {}
            }
        }
    }

    /// Asserts what each attack that ends the connection must come to.
    pub fn ends_connection(&self, code: Code, http2_code: u32, within: usize) {
        assert_eq!((self.code(), self.go_away), (code, Some(http2_code)), "{self:?}");
        assert!(matches!(&self.closed, Some(ConnectionError::Peer { code, .. }) if code.0 == http2_code), "{self:?}");
        self.is_cheap(within);
    }

    /// Asserts what each attack that ends only the call must come to.
    pub fn ends_call(&self, code: Code, http2_code: u32, within: usize) {
        assert_eq!((self.code(), self.go_away), (code, None), "{self:?}");
        assert_eq!(self.resets, [(1, http2_code)], "{self:?}");
        assert!(self.closed.is_none());
        self.is_cheap(within);
    }

    pub fn is_cheap(&self, within: usize) {
        assert!(self.consumed <= within, "{} bytes were read before the refusal", self.consumed);
        assert!(self.growth <= MAX_GROWTH, "memory grew by {}", self.growth);
    }
}

fn run(client: &mut Client, bytes: &[u8], piece: usize, peer: Peer) -> Outcome {
    let mut outcome =
        Outcome { result: None, closed: None, consumed: 0, growth: 0, go_away: None, resets: Vec::new(), replies: 0 };
    let ((), growth, _) = measured(|| {
        let mut out = Vec::new();
        for piece in bytes.chunks(piece) {
            if outcome.result.is_none() {
                outcome.consumed += piece.len();
            }
            client.handle_bytes(piece, NOW);
            while let Some(event) = client.poll_event() {
                match event {
                    ClientEvent::Answer { id: CallId(1), result } => {
                        assert!(outcome.result.replace(result).is_none(), "the call ended twice");
                    }
                    ClientEvent::Answer { .. } | ClientEvent::Ready | ClientEvent::GoAway => {}
                    ClientEvent::Closed { error } => assert!(outcome.closed.replace(error).is_none()),
                }
            }
            if peer == Peer::Reads {
                out.clear();
                client.poll_transmit(&mut out);
                outcome.note(&parse(&out));
            }
        }
    });
    outcome.note(&transmit(client));
    outcome.growth = growth;
    outcome
}

/// Feeds SETTINGS and then these bytes to our client with one call, as a peer that reads what we send.
pub fn attack(bytes: &[u8]) -> Outcome {
    attack_as(Peer::Reads, bytes, client)
}

/// Feeds a client of one's own. All is done twice: in chunks as our transports read them, for the memory, and in small
/// pieces, to count the bytes. Both must come to the same.
pub fn attack_as(peer: Peer, bytes: &[u8], make: impl Fn() -> Client) -> Outcome {
    let ready = || {
        let mut client = make();
        client.handle_bytes(&settings(), NOW);
        client.poll_event();
        client.poll_transmit(&mut Vec::new());
        client
    };
    let mut outcome = run(&mut ready(), bytes, CHUNK, peer);
    let fine = run(&mut ready(), bytes, PIECE, peer);
    assert_eq!((&outcome.result, &outcome.closed, outcome.go_away), (&fine.result, &fine.closed, fine.go_away));
    assert_eq!(outcome.resets, fine.resets);
    outcome.consumed = fine.consumed;
    outcome.growth = outcome.growth.max(fine.growth);
    outcome
}

// Our server.

pub const REQUEST: [(&str, &str); 4] =
    [(":method", "POST"), (":scheme", "http"), (":path", "/a.B/C"), ("content-type", "application/grpc")];

pub fn request_head(stream: u32) -> Vec<u8> {
    head(stream, &REQUEST)
}

/// A whole good request.
pub fn good_request(stream: u32) -> Vec<u8> {
    [request_head(stream), frame(DATA, 1, stream, &MESSAGE)].concat()
}

/// How an attack on our server went.
#[derive(Debug, Default)]
pub struct ServerOutcome {
    pub closed: Option<ConnectionError>,
    /// Hostile bytes that were fed until the connection ended, or all.
    pub consumed: usize,
    pub growth: usize,
    pub go_away: Option<u32>,
    pub resets: Vec<(u32, u32)>,
    pub requests: usize,
    pub cancelled: usize,
    pub heads: usize,
}

impl ServerOutcome {
    fn note(&mut self, sent: &[Sent]) {
        for sent in sent {
            match sent.kind {
                GOAWAY => self.go_away = Some(code_in(&sent.payload[4..8])),
                RST_STREAM => self.resets.push((sent.stream, code_in(&sent.payload))),
                HEADERS => self.heads += 1,
                _ => {}
            }
        }
    }

    pub fn ends_connection(&self, http2_code: u32, within: usize) {
        assert_eq!(self.go_away, Some(http2_code), "{self:?}");
        assert!(matches!(&self.closed, Some(ConnectionError::Peer { code, .. }) if code.0 == http2_code), "{self:?}");
        assert!(self.consumed <= within, "{} bytes were read before the refusal", self.consumed);
        assert!(self.growth <= MAX_GROWTH, "memory grew by {}", self.growth);
    }
}

/// What the application on our server does with requests.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum App {
    Echoes,
    NeverAnswers,
}

/// Feeds the preface, SETTINGS and then these bytes to a server of ours.
pub fn attack_server(peer: Peer, app: App, bytes: &[u8]) -> ServerOutcome {
    let mut server = server();
    let mut outcome = ServerOutcome::default();
    let ((), growth, _) = measured(|| {
        let mut out = Vec::new();
        for piece in bytes.chunks(CHUNK / 16) {
            if outcome.closed.is_none() {
                outcome.consumed += piece.len();
            }
            server.handle_bytes(piece, NOW);
            while let Some(event) = server.poll_event() {
                match event {
                    ServerEvent::Request(request) => {
                        outcome.requests += 1;
                        if app == App::Echoes {
                            server.respond(request.id, Ok(request.body), NOW);
                        }
                    }
                    ServerEvent::Cancelled { .. } => outcome.cancelled += 1,
                    ServerEvent::Closed { error } => assert!(outcome.closed.replace(error).is_none()),
                }
            }
            if peer == Peer::Reads {
                out.clear();
                server.poll_transmit(&mut out);
                outcome.note(&parse(&out));
            }
        }
    });
    let mut out = Vec::new();
    server.poll_transmit(&mut out);
    outcome.note(&parse(&out));
    outcome.growth = growth;
    outcome
}

/// A server that has had its client's preface and SETTINGS.
pub fn server() -> Server {
    let mut server = Server::new(ServerConfig::default(), NOW);
    server.handle_bytes(&[PREFACE, &settings()].concat(), NOW);
    server.poll_transmit(&mut Vec::new());
    server
}

//! What the targets share: reading operations out of an input, writing frames, and a second opinion on what a connection
//! sends: frames that can be parsed, windows that hold, streams that end once.
#![allow(dead_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hivemind_worker::h2::hpack::Encoder;
use hivemind_worker::h2::{Connection, Event, Header};

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
pub const START: Duration = Duration::from_secs(1000);
const MAX_WINDOW: i64 = 0x7fff_ffff;
const MAX_FRAME: usize = 16_384;

/// The rest of an input, read as operations and their arguments. Behind its end all is zero.
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    pub fn number(&mut self) -> u32 {
        u32::from_be_bytes([self.byte(), self.byte(), self.byte(), self.byte()])
    }

    pub fn bytes(&mut self, n: usize) -> &'a [u8] {
        let (part, rest) = self.0.split_at(n.min(self.0.len()));
        self.0 = rest;
        part
    }

    /// An identifier near those that are in use.
    pub fn stream(&mut self) -> u32 {
        u32::from(self.byte() % 16)
    }
}

pub fn put_frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let [_, a, b, c] = u32::try_from(payload.len()).unwrap().to_be_bytes();
    out.extend_from_slice(&[a, b, c, kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

/// HEADERS with fields that leave the tables alone, so that they can be read whatever came before.
pub fn put_fields(out: &mut Vec<u8>, stream: u32, fields: &[(&str, &str)], end: bool) {
    let fields: Vec<Header> = fields.iter().map(|(n, v)| Header::once(*n, *v)).collect();
    let mut block = Vec::new();
    Encoder::default().encode(&fields, &mut block);
    put_frame(out, 1, 4 | u8::from(end), stream, &block);
}

/// Bytes as they are.
pub fn put_bytes(input: &mut Input<'_>, out: &mut Vec<u8>) {
    let length = usize::from(input.byte());
    out.extend_from_slice(input.bytes(length));
}

/// SETTINGS with one small value for the setting `id`.
pub fn put_setting(input: &mut Input<'_>, id: u8, out: &mut Vec<u8>) {
    put_frame(out, 4, 0, 0, &[0, id % 8, 0, input.byte() & 1, input.byte(), input.byte()]);
}

/// SETTINGS or WINDOW_UPDATE with any value.
pub fn put_window(input: &mut Input<'_>, is_update: bool, out: &mut Vec<u8>) {
    match is_update {
        true => put_frame(out, 8, 0, input.stream(), &input.number().to_be_bytes()),
        false => put_frame(out, 4, 0, 0, &[&[0, input.byte() % 8][..], &input.number().to_be_bytes()].concat()),
    }
}

/// A frame of any kind, well formed or nearly so.
pub fn put_any_frame(input: &mut Input<'_>, out: &mut Vec<u8>) {
    let (kind, flags, stream, length) = (input.byte() % 11, input.byte(), input.stream(), usize::from(input.byte()));
    let length = match kind {
        3 | 8 => 4,
        6 => 8,
        7 => 8 + length % 16,
        4 => length / 6 * 6,
        _ => length,
    };
    let stream = if matches!(kind, 4 | 6 | 7) { 0 } else { stream };
    let mut payload = input.bytes(length).to_vec();
    payload.resize(length, 0);
    put_frame(out, kind, flags, stream, &payload);
}

/// Keeps the books on one connection beside it.
#[derive(Default)]
pub struct Books {
    is_server: bool,
    input: Vec<u8>,
    preface_left: usize,
    /// What may be sent, by the frames that were fed.
    window: i64,
    initial: i64,
    streams: BTreeMap<u32, i64>,
    highest: u32,
    /// What the peer may send, by the frames that this end sent: it must never be beyond the limit either.
    peer_window: i64,
    peer_initial: i64,
    peer_streams: BTreeMap<u32, i64>,
    /// Streams that this end has ended or reset.
    ended: BTreeSet<u32>,
    reset: BTreeSet<u32>,
    in_block: bool,
    preface_seen: bool,
    /// Frames and calls since the last transmission: they bound what it yields.
    work: usize,
    /// What events said of each stream.
    heads: BTreeSet<u32>,
    done: BTreeSet<u32>,
    closed: bool,
}

impl Books {
    pub fn new(is_server: bool) -> Books {
        let preface_left = if is_server { PREFACE.len() } else { 0 };
        let (window, initial, peer_window, peer_initial) = (65_535, 65_535, 65_535, 65_535);
        let books = Books { window, initial, peer_window, peer_initial, ..Books::default() };
        Books { is_server, preface_left, work: 8, ..books }
    }

    pub fn called(&mut self) {
        self.work += 1;
    }

    /// Feeds bytes and checks that no window is beyond its limit afterwards.
    pub fn feed(&mut self, connection: &mut Connection, bytes: &[u8], now: Duration) {
        let was_closed = connection.is_closed();
        connection.handle_bytes(bytes, now);
        self.observe(bytes);
        if was_closed || connection.is_closed() {
            return;
        }
        assert!(self.window <= MAX_WINDOW, "the connection's window is too large");
        for (stream, window) in &self.streams {
            assert!(*window <= MAX_WINDOW || !connection.is_open(*stream), "the window of {stream} is too large");
        }
    }

    /// Reads what was fed as the standard says.
    pub fn observe(&mut self, bytes: &[u8]) {
        let skipped = self.preface_left.min(bytes.len());
        self.preface_left -= skipped;
        self.input.extend_from_slice(&bytes[skipped..]);
        while self.input.len() >= 9 {
            let length =
                usize::from(self.input[0]) << 16 | usize::from(self.input[1]) << 8 | usize::from(self.input[2]);
            if length > MAX_FRAME || self.input.len() < 9 + length {
                return;
            }
            let frame: Vec<u8> = self.input.drain(..9 + length).collect();
            self.work += 1;
            let stream = u32::from_be_bytes(frame[5..9].try_into().unwrap()) & 0x7fff_ffff;
            self.observe_frame(frame[3], frame[4], stream, &frame[9..]);
        }
    }

    fn observe_frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        match kind {
            0 => {
                let n = i64::try_from(payload.len()).unwrap();
                self.peer_window -= n;
                *self.peer_streams.entry(stream).or_insert(self.peer_initial) -= n;
            }
            1 if self.is_server && stream > self.highest => {
                self.highest = stream;
                self.streams.insert(stream, self.initial);
            }
            4 if flags & 1 == 0 => {
                for entry in payload.chunks_exact(6).filter(|e| e[..2] == [0, 4]) {
                    let value = i64::from(u32::from_be_bytes(entry[2..].try_into().unwrap()));
                    self.streams.values_mut().for_each(|window| *window += value - self.initial);
                    self.initial = value;
                }
            }
            8 if payload.len() == 4 => {
                let by = i64::from(u32::from_be_bytes(payload.try_into().unwrap()) & 0x7fff_ffff);
                match stream {
                    0 => self.window += by,
                    _ => *self.streams.entry(stream).or_insert(self.initial) += by,
                }
            }
            _ => {}
        }
    }

    /// Transmits once and checks each frame.
    pub fn transmit(&mut self, connection: &mut Connection) {
        let (mut out, expects) = (Vec::new(), connection.has_transmit());
        connection.poll_transmit(&mut out);
        assert_eq!(expects, !out.is_empty(), "has_transmit tells what poll_transmit does");
        self.check_output(&out);
    }

    /// Checks what was sent.
    pub fn check_output(&mut self, out: &[u8]) {
        assert!(out.len() <= 64 * 1024 + MAX_FRAME + 9 + self.work * 1024, "{} bytes at once", out.len());
        self.work = 0;
        let mut rest = out;
        if !self.is_server && !self.preface_seen && !rest.is_empty() {
            rest = rest.strip_prefix(PREFACE).expect("a client begins with the preface");
            self.preface_seen = true;
        }
        while !rest.is_empty() {
            assert!(rest.len() >= 9, "half a frame");
            let length = usize::from(rest[0]) << 16 | usize::from(rest[1]) << 8 | usize::from(rest[2]);
            assert!(length <= MAX_FRAME && rest.len() >= 9 + length, "half a frame");
            let stream = u32::from_be_bytes(rest[5..9].try_into().unwrap());
            self.check_frame(rest[3], rest[4], stream, &rest[9..9 + length]);
            rest = &rest[9 + length..];
        }
        assert!(!self.in_block, "a field block is sent whole");
    }

    fn check_frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        assert!(stream <= 0x7fff_ffff);
        assert_eq!(self.in_block, kind == 9, "nothing but CONTINUATION inside a field block");
        match kind {
            0 | 1 => {
                assert!(stream % 2 == 1 && flags & !0x5 == 0);
                assert!(
                    !self.ended.contains(&stream) && !self.reset.contains(&stream),
                    "{kind} on {stream}: it has ended"
                );
                if flags & 1 != 0 {
                    self.ended.insert(stream);
                }
                self.in_block = kind == 1 && flags & 4 == 0;
                self.streams.entry(stream).or_insert(self.initial);
            }
            2 | 5 => panic!("PRIORITY and PUSH_PROMISE are never sent"),
            3 => {
                assert!(payload.len() == 4 && stream % 2 == 1);
                assert!(self.reset.insert(stream), "two resets on {stream}");
            }
            4 => assert!(stream == 0 && payload.len() % 6 == 0 && (flags == 0 || payload.is_empty())),
            6 => assert!(stream == 0 && payload.len() == 8),
            7 => assert!(stream == 0 && payload.len() >= 8),
            8 => assert!(payload.len() == 4 && u32::from_be_bytes(payload.try_into().unwrap()) > 0),
            9 => self.in_block = flags & 4 == 0,
            _ => panic!("frame of kind {kind}"),
        }
        if kind == 4 && flags == 0 {
            for entry in payload.chunks_exact(6).filter(|e| e[..2] == [0, 4]) {
                let value = i64::from(u32::from_be_bytes(entry[2..].try_into().unwrap()));
                self.peer_streams.values_mut().for_each(|window| *window += value - self.peer_initial);
                self.peer_initial = value;
            }
        }
        if kind == 8 {
            let by = i64::from(u32::from_be_bytes(payload.try_into().unwrap()));
            let window = match stream {
                0 => &mut self.peer_window,
                _ => self.peer_streams.entry(stream).or_insert(self.peer_initial),
            };
            *window += by;
            assert!(*window <= MAX_WINDOW, "the peer is given a window that is too large");
        }
        if kind == 0 && !payload.is_empty() {
            let n = i64::try_from(payload.len()).unwrap();
            self.window -= n;
            let window = self.streams.get_mut(&stream).expect("DATA on a stream that was opened");
            *window -= n;
            assert!(self.window >= 0 && *window >= 0, "more DATA than the windows of {stream} allow");
        }
    }

    /// Takes all events and checks their order. Returns the streams that have a new head.
    pub fn events(&mut self, connection: &mut Connection) -> Vec<u32> {
        let mut heads = Vec::new();
        while let Some(event) = connection.poll_event() {
            assert!(!self.closed, "{event:?} after the end");
            match event {
                Event::Settings | Event::GoAway { .. } => {}
                Event::Headers { stream, end_stream, .. } => {
                    assert!(self.heads.insert(stream), "two heads on {stream}");
                    heads.push(stream);
                    self.end(stream, end_stream);
                }
                Event::Data { stream, end_stream, .. } => {
                    assert!(self.heads.contains(&stream), "DATA before the head of {stream}");
                    self.end(stream, end_stream);
                }
                Event::Trailers { stream, .. } => {
                    assert!(self.heads.contains(&stream), "trailers before the head of {stream}");
                    self.end(stream, true);
                }
                Event::Reset { stream, .. } => {
                    // Ours may go on after the peer's part has ended.
                    assert!(self.done.insert(stream | 1 << 31), "two ends of {stream}");
                }
                Event::Closed { .. } => {
                    assert!(connection.is_closed() && connection.open_streams() == 0);
                    self.closed = true;
                }
            }
        }
        heads
    }

    fn end(&mut self, stream: u32, is_end: bool) {
        assert!(
            !self.done.contains(&stream) && !self.done.contains(&(stream | 1 << 31)),
            "{stream} goes on after its end"
        );
        if is_end {
            self.done.insert(stream);
        }
    }

    /// Ends the connection and checks that it stays so.
    pub fn finish(mut self, mut connection: Connection) {
        for _ in 0..64 {
            self.transmit(&mut connection);
        }
        connection.handle_eof();
        self.events(&mut connection);
        assert!(self.closed && connection.is_closed(), "the end is told");
        connection.handle_bytes(SETTINGS, START);
        connection.handle_timeout(Duration::MAX);
        assert!(connection.poll_event().is_none() && connection.poll_timeout().is_none());
        self.transmit(&mut connection);
        assert!(!connection.has_transmit());
    }
}

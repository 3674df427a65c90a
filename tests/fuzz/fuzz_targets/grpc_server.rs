//! A gRPC server against requests, answers and time in any order: each request is told once and cancelled at most once,
//! and none is left at the end.
#![no_main]

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use hivemind_worker::grpc::{Code, Server, ServerConfig, ServerEvent, Status};
use libfuzzer_sys::fuzz_target;
use support::{Books, Input, PREFACE, SETTINGS, START, put_any_frame, put_bytes, put_fields, put_frame, put_setting};

const MAX_REQUEST: usize = 3000;
const HEAD: [(&str, &str); 4] =
    [(":method", "POST"), (":scheme", "http"), (":path", "/a.B/C"), ("content-type", "application/grpc")];
const EXTRAS: [(&str, &str); 6] = [
    ("grpc-timeout", "100m"),
    ("grpc-timeout", "1x"),
    ("grpc-encoding", "gzip"),
    ("a-bin", "!"),
    ("content-length", "6"),
    ("te", "trailers"),
];

#[derive(Default)]
struct Requests {
    open: BTreeSet<u32>,
    seen: BTreeSet<u32>,
    is_closed: bool,
}

impl Requests {
    fn take(&mut self, server: &mut Server) {
        while let Some(event) = server.poll_event() {
            assert!(!self.is_closed, "{event:?} after the end");
            match event {
                ServerEvent::Request(request) => {
                    assert!(self.seen.insert(request.id), "request {} twice", request.id);
                    assert!(request.body.len() <= MAX_REQUEST);
                    self.open.insert(request.id);
                }
                // An answer and a cancellation may cross.
                ServerEvent::Cancelled { id } => assert!(self.open.remove(&id), "{id} was not open"),
                ServerEvent::Closed { .. } => self.is_closed = true,
            }
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let config = ServerConfig { max_request: MAX_REQUEST, keepalive: None };
    let (mut server, mut books, mut now) = (Server::new(config, START), Books::new(true), START);
    let mut requests = Requests::default();
    let mut start = [PREFACE, SETTINGS].concat();
    if input.byte() & 1 == 1 {
        start.truncate(usize::from(input.byte()));
    }
    server.handle_bytes(&start, now);
    books.observe(&start);
    while !input.is_empty() {
        let mut bytes = Vec::new();
        match input.byte() % 16 {
            0 => put_bytes(&mut input, &mut bytes),
            1 => put_any_frame(&mut input, &mut bytes),
            2..=4 => {
                let (stream, extra) = (u32::from(input.byte()), usize::from(input.byte()));
                let extra = EXTRAS.get(extra).into_iter().copied();
                let fields: Vec<_> = HEAD.into_iter().chain(extra).collect();
                put_fields(&mut bytes, stream, &fields, input.byte() & 0xf == 1);
            }
            5..=8 => {
                let (stream, flag, n) = (u32::from(input.byte()), input.byte(), input.byte());
                let prefix = [flag >> 7, 0, 0, flag & 0xf, n];
                let length =
                    if flag & 0x20 == 0 { usize::from(flag & 0xf) * 256 + usize::from(n) } else { input.byte().into() };
                put_frame(&mut bytes, 0, flag >> 6 & 1, stream, &[&prefix, &vec![1; length][..]].concat());
            }
            9 => put_fields(&mut bytes, input.stream(), &[("a", "b")], true),
            10 | 11 => {
                let (at, is_good, n) = (usize::from(input.byte()), input.byte() & 1 == 1, input.number() % 100_000);
                let id = requests.open.iter().nth(at % requests.open.len().max(1)).copied();
                if let Some(id) = id {
                    requests.open.remove(&id);
                    let failed = Err(Status::new(Code::Aborted, "no\u{e9} %\n".repeat((n % 2000) as usize)));
                    server.respond(id, if is_good { Ok(vec![7; n as usize]) } else { failed }, now);
                }
            }
            12 | 13 => {
                let mut out = Vec::new();
                server.poll_transmit(&mut out);
                // Bodies and words are bounded by what was answered.
                for _ in 0..64 {
                    books.called();
                }
                books.check_output(&out);
            }
            14 => {
                now += Duration::from_millis(u64::from(input.byte()) * 500);
                server.handle_timeout(now);
            }
            _ => match input.byte() {
                0 => server.close(now),
                1 => server.handle_eof(now),
                2..=40 => put_frame(&mut bytes, 3, 0, input.stream(), &[0, 0, 0, 8]),
                n => put_setting(&mut input, n, &mut bytes),
            },
        }
        books.called();
        server.handle_bytes(&bytes, now);
        books.observe(&bytes);
        requests.take(&mut server);
    }
    server.handle_eof(now);
    requests.take(&mut server);
    assert!(requests.open.is_empty() && requests.is_closed && server.open_calls() == 0);
});

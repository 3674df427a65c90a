//! A gRPC client against calls, answers and time in any order: each call ends exactly once, by an answer, by being
//! cancelled, or by being taken back.
#![no_main]

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use hivemind_worker::grpc::{CallId, Client, ClientConfig, ClientEvent, Metadata, Request, WaitingCall};
use libfuzzer_sys::fuzz_target;
use support::{Books, Input, SETTINGS, START, put_any_frame, put_bytes, put_fields, put_frame, put_setting};

const MAX_RESPONSE: usize = 3000;
const OK: [(&str, &str); 2] = [(":status", "200"), ("content-type", "application/grpc")];
const ENDS: [&[(&str, &str)]; 6] = [
    &[("grpc-status", "0")],
    &[("grpc-status", "5"), ("grpc-message", "%41%")],
    &[("grpc-status", "x")],
    &[("grpc-status", "0"), ("a-bin", "AP8,Zg==")],
    &[("grpc-status", "0"), ("a-bin", "!")],
    &[("no", "status")],
];

struct Calls {
    open: BTreeSet<CallId>,
    is_closed: bool,
}

impl Calls {
    fn take(&mut self, client: &mut Client) {
        while let Some(event) = client.poll_event() {
            assert!(!matches!(event, ClientEvent::Ready | ClientEvent::GoAway) || !self.is_closed);
            match event {
                ClientEvent::Answer { id, result } => {
                    assert!(self.open.remove(&id), "{id:?} was answered twice");
                    assert!(!result.is_ok_and(|r| r.body.len() > MAX_RESPONSE));
                }
                ClientEvent::Closed { .. } => {
                    assert!(!self.is_closed, "closed twice");
                    self.is_closed = true;
                }
                _ => {}
            }
        }
        assert_eq!(client.open_calls(), self.open.len());
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let config = ClientConfig { scheme: "http", authority: "h".into(), user_agent: "fuzz".into(), keepalive: None };
    let (mut client, mut books, mut now) = (Client::new(config, START), Books::new(false), START);
    let (mut calls, mut next) = (Calls { open: BTreeSet::new(), is_closed: false }, 0);
    let kind = input.byte();
    if kind & 1 == 0 {
        client.handle_bytes(SETTINGS, now);
        books.observe(SETTINGS);
    }
    if kind & 2 == 2 {
        client.retry_unprocessed();
    }
    while !input.is_empty() {
        let mut bytes = Vec::new();
        match input.byte() % 16 {
            0 => put_bytes(&mut input, &mut bytes),
            1 => put_any_frame(&mut input, &mut bytes),
            2 | 3 => {
                next += 1;
                let (timeout, body) = (input.byte(), vec![7; (input.number() % 100_000) as usize]);
                let request = Request {
                    path: "/a.B/C".into(),
                    metadata: Metadata::default(),
                    body,
                    timeout: Duration::from_millis(u64::from(timeout) * 100),
                    max_response: MAX_RESPONSE,
                };
                calls.open.insert(CallId(next));
                books.called();
                client.call(CallId(next), request, now);
            }
            4 => {
                let id = CallId(u64::from(input.byte()) % (next + 1));
                calls.take(&mut client);
                client.cancel(id, now);
                calls.open.remove(&id);
            }
            5 => {
                now += Duration::from_millis(u64::from(input.byte()) * 50);
                client.handle_timeout(now);
            }
            6 | 7 => {
                let mut out = Vec::new();
                client.poll_transmit(&mut out);
                books.check_output(&out);
            }
            8 => put_fields(&mut bytes, input.stream(), &OK, false),
            9 => put_fields(&mut bytes, input.stream(), ENDS[usize::from(input.byte()) % ENDS.len()], true),
            10 => {
                let end = ENDS[usize::from(input.byte()) % ENDS.len()];
                put_fields(&mut bytes, input.stream(), &[&OK, end].concat(), true);
            }
            11 | 12 => {
                let (stream, flag, n) = (input.stream(), input.byte(), input.byte());
                let prefix = [flag & 0x80 >> 7, 0, 0, flag & 0xf, n];
                let length = usize::from(input.byte());
                put_frame(&mut bytes, 0, flag >> 6 & 1, stream, &[&prefix, &vec![1; length][..]].concat());
            }
            13 => {
                let status = ["404", "503", "103", "200"][usize::from(input.byte() & 3)];
                put_fields(&mut bytes, input.stream(), &[(":status", status)], input.byte() & 1 == 1);
            }
            14 => {
                for WaitingCall { id, .. } in client.take_waiting() {
                    assert!(calls.open.remove(&id), "{id:?} was taken and answered");
                }
            }
            _ => match input.byte() {
                0 => client.close(now),
                1 => client.handle_eof(now),
                n => put_setting(&mut input, n, &mut bytes),
            },
        }
        books.called();
        client.handle_bytes(&bytes, now);
        books.observe(&bytes);
        calls.take(&mut client);
    }
    client.handle_eof(now);
    client.handle_timeout(now + Duration::from_secs(100));
    calls.take(&mut client);
    assert!(calls.open.is_empty() && calls.is_closed, "calls without an end: {:?}", calls.open);
});

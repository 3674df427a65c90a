//! A server's connection against calls, bytes and time in any order.
#![no_main]

mod support;

use std::time::Duration;

use hivemind_worker::h2::{Config, Connection, ErrorCode, Header};
use libfuzzer_sys::fuzz_target;
use support::{Books, Input, PREFACE, SETTINGS, START, put_any_frame, put_bytes, put_fields, put_frame, put_window};

const REQUEST: [(&str, &str); 3] = [(":method", "POST"), (":scheme", "http"), (":path", "/x")];

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let config =
        Config { max_concurrent_streams: 3, stream_window: 70_000, connection_window: 100_000, ..Config::default() };
    let (mut server, mut books, mut now) = (Connection::server(config, START), Books::new(true), START);
    if input.byte() & 1 == 0 {
        books.feed(&mut server, &[PREFACE, SETTINGS].concat(), now);
    }
    // A head comes before the body; the application keeps to it.
    let mut unanswered: Vec<u32> = Vec::new();
    while !input.is_empty() {
        let mut bytes = Vec::new();
        match input.byte() % 16 {
            0 => put_bytes(&mut input, &mut bytes),
            1 | 2 => put_any_frame(&mut input, &mut bytes),
            3 | 4 => put_fields(&mut bytes, input.stream(), &REQUEST, input.byte() & 1 == 1),
            5 => {
                let (at, end) = (usize::from(input.byte()), input.byte() & 1 == 1);
                if !unanswered.is_empty() {
                    let stream = unanswered.swap_remove(at % unanswered.len());
                    server.send_headers(stream, &[Header::new(":status", "200")], end);
                }
            }
            6 => {
                let (stream, n, end) = (input.stream(), input.number() % 200_000, input.byte() & 1 == 1);
                if !unanswered.contains(&stream) {
                    server.send_data(stream, vec![7; n as usize], end);
                }
            }
            7 => {
                let stream = input.stream();
                if !unanswered.contains(&stream) {
                    server.send_trailers(stream, vec![Header::new("grpc-status", "0")]);
                }
            }
            8 | 9 => books.transmit(&mut server),
            10 => server.reset(input.stream(), ErrorCode::CANCEL),
            11 => {
                let n = input.number() as usize;
                match input.stream() {
                    stream @ 0..8 => server.release(stream, n),
                    stream => server.reserve_window(stream - 7, n),
                }
                server.recycle(vec![7; n % 5_000]);
            }
            op @ (12 | 13) => put_window(&mut input, op == 12, &mut bytes),
            14 => {
                now += Duration::from_millis(u64::from(input.byte()) * 200);
                server.handle_timeout(now);
            }
            _ => match input.byte() {
                0 => server.go_away(ErrorCode::NO_ERROR),
                1 => server.handle_eof(),
                n => put_frame(&mut bytes, 0, n & 1, input.stream(), &vec![n; usize::from(n) * 40]),
            },
        }
        books.called();
        books.feed(&mut server, &bytes, now);
        unanswered.extend(books.events(&mut server));
    }
    books.finish(server);
});

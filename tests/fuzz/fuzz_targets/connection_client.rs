//! A client's connection against calls, bytes and time in any order.
#![no_main]

mod support;

use std::time::Duration;

use hivemind_worker::h2::{Config, Connection, ErrorCode, Header, KeepAlive};
use libfuzzer_sys::fuzz_target;
use support::{Books, Input, SETTINGS, START, put_any_frame, put_bytes, put_fields, put_frame, put_window};

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let keepalive = Some(KeepAlive { idle: Duration::from_secs(20), timeout: Duration::from_secs(10) });
    let config = Config { keepalive, stream_window: 70_000, connection_window: 100_000, ..Config::default() };
    let (mut client, mut books, mut now) = (Connection::client(config, START), Books::new(false), START);
    if input.byte() & 1 == 0 {
        books.feed(&mut client, SETTINGS, now);
    }
    let head = [Header::new(":method", "POST"), Header::new(":scheme", "http"), Header::new(":path", "/x")];
    while !input.is_empty() {
        let mut bytes = Vec::new();
        match input.byte() % 16 {
            0 => put_bytes(&mut input, &mut bytes),
            1 | 2 => put_any_frame(&mut input, &mut bytes),
            3 => {
                // Refused where the connection ends or the peer allows no more.
                let _ = client.open(&head, input.byte() & 1 == 1);
            }
            4 => {
                let (stream, n, end) = (input.stream(), input.number() % 200_000, input.byte() & 1 == 1);
                client.send_data(stream, vec![7; n as usize], end);
            }
            5 => {
                books.called();
                client.reset(input.stream(), ErrorCode::CANCEL);
            }
            6 => {
                books.called();
                let n = input.number() as usize;
                match input.stream() {
                    stream @ 0..8 => client.release(stream, n),
                    stream => client.reserve_window(stream - 7, n),
                }
                client.recycle(vec![7; n % 5_000]);
            }
            7 => {
                now += Duration::from_millis(u64::from(input.byte()) * 200);
                books.called();
                client.handle_timeout(now);
            }
            8 | 9 => books.transmit(&mut client),
            10 => put_fields(&mut bytes, input.stream(), &[(":status", "200")], input.byte() & 1 == 1),
            11 => put_fields(&mut bytes, input.stream(), &[("grpc-status", "0")], true),
            op @ (12 | 13) => put_window(&mut input, op == 12, &mut bytes),
            14 => {
                books.called();
                client.send_trailers(input.stream(), vec![Header::new("a", "b")]);
            }
            _ => match input.byte() {
                0 => client.go_away(ErrorCode::NO_ERROR),
                1 => client.handle_eof(),
                n => put_frame(&mut bytes, 0, n & 1, input.stream(), &vec![n; usize::from(n) * 40]),
            },
        }
        books.called();
        books.feed(&mut client, &bytes, now);
        books.events(&mut client);
    }
    books.finish(client);
});

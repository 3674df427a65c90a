//! Frames: however a conversation is cut into pieces, both ends must see the same and say the same.
#![no_main]

mod support;

use hivemind_worker::h2::{Config, Connection, Event, Header};
use libfuzzer_sys::fuzz_target;
use support::{Input, PREFACE, SETTINGS, START, put_any_frame};

fn client() -> Connection {
    let mut client = Connection::client(Config::default(), START);
    let head = [Header::new(":method", "POST"), Header::new(":scheme", "http"), Header::new(":path", "/x")];
    for end in [true, false, true] {
        client.open(&head, end).unwrap();
    }
    client
}

fn outcome(mut connection: Connection, bytes: &[u8], piece: usize) -> (Vec<Event>, Vec<u8>) {
    for piece in bytes.chunks(piece.max(1)) {
        connection.handle_bytes(piece, START);
    }
    let mut out = Vec::new();
    connection.poll_transmit(&mut out);
    (std::iter::from_fn(|| connection.poll_event()).collect(), out)
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let (is_server, is_raw, piece) = (input.byte() & 1 == 1, input.byte() & 1 == 1, usize::from(input.byte()));
    let mut bytes = Vec::new();
    if is_server {
        bytes.extend_from_slice(PREFACE);
    }
    if is_raw {
        bytes.extend_from_slice(SETTINGS);
        bytes.extend_from_slice(input.0);
    } else {
        bytes.extend_from_slice(SETTINGS);
        while !input.is_empty() {
            put_any_frame(&mut input, &mut bytes);
        }
    }
    let make = || if is_server { Connection::server(Config::default(), START) } else { client() };
    let whole = outcome(make(), &bytes, bytes.len());
    assert_eq!(whole, outcome(make(), &bytes, piece));
    assert_eq!(whole, outcome(make(), &bytes, 1));
});

//! What a hostile server can do to our client below the level of calls: rows 1 to 18 of the table of attacks. Each test
//! is named after its row, attacks with bytes written by hand, and checks the call's status, the code on the wire, how
//! many bytes were read before the refusal, and the memory that it cost.
#![allow(clippy::unwrap_used, unsafe_code)]

mod attack_support;

use std::collections::BTreeSet;
use std::time::Duration;

use attack_support::*;
use hivemind_worker::grpc::{CallId, ClientEvent, Code, Metadata, Processed, Request};
use hivemind_worker::h2::hpack::Decoder;
use hivemind_worker::h2::{Config, Connection, Header, OpenError};

/// Error codes of RFC 9113 section 7.
const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const FRAME_SIZE_ERROR: u32 = 6;
const COMPRESSION_ERROR: u32 = 9;
const ENHANCE_YOUR_CALM: u32 = 11;
/// A frame of the largest size and its header.
const ONE_FRAME: usize = 16_384 + 9;

/// HEADERS with this block, as the end of the field block.
fn headers(block: &[u8]) -> Vec<u8> {
    frame(HEADERS, 4, 1, block)
}

#[test]
fn each_row_of_the_table_has_its_test() {
    let files = ["client", "calls", "server", "sockets"];
    let read = |name| std::fs::read_to_string(format!("{}/tests/http2_attacks_{name}.rs", env!("CARGO_MANIFEST_DIR")));
    let text: String = files.into_iter().map(|name| read(name).unwrap()).collect();
    let tests = text.split("#[test]\nfn row_").skip(1).map(|rest| rest[..2].parse().unwrap());
    let rows: BTreeSet<u32> = tests.collect();
    assert_eq!(rows, (1..=37).collect());
    assert!(text.matches("#[test]\nfn retry_").count() >= 6);
}

#[test]
fn row_01_continuation_flood() {
    for size in [1, 1_000, 16_384] {
        let outcome =
            attack(&[frame(HEADERS, 0, 1, &[0x88]), flood(&frame(CONTINUATION, 0, 1, &vec![0x88; size]))].concat());
        outcome.ends_connection(Code::ResourceExhausted, ENHANCE_YOUR_CALM, 2 * ONE_FRAME);
        assert_eq!(outcome.error().processed, Processed::Maybe);
    }
}

#[test]
fn row_02_empty_frames() {
    for (start, unit) in [
        (ok_head(1), frame(DATA, 0, 1, &[])),
        (ok_head(1), frame(DATA, 8, 1, &[9, 0, 0, 0, 0, 0, 0, 0, 0, 0])),
        (frame(HEADERS, 0, 1, &[]), frame(CONTINUATION, 0, 1, &[])),
    ] {
        let outcome = attack(&[start, flood(&unit)].concat());
        outcome.ends_connection(Code::ResourceExhausted, ENHANCE_YOUR_CALM, 2_000);
    }
}

#[test]
fn row_03_hpack_bomb() {
    // One entry of 4,000 bytes, then one byte for each time it is named.
    let entry = [&[0x40, 1, b'a', 0x7f, 0xa1, 0x1e][..], &[b'v'; 4_000]].concat();
    let bomb = [entry, vec![0xbe; 12_000]].concat();
    let outcome = attack(&headers(&bomb).repeat(FLOOD / bomb.len() + 1));
    outcome.ends_connection(Code::ResourceExhausted, ENHANCE_YOUR_CALM, ONE_FRAME + 64);
    assert!(outcome.growth < 200_000, "it stops at the limit, not at the end of the block: {}", outcome.growth);
}

#[test]
fn row_04_sizes_are_checked_before_anything_is_read() {
    for block in [
        // A name of 2^28 - 1 bytes in a block of eight.
        &[0x40, 0x7f, 0x80, 0xff, 0xff, 0x7f, b'a', b'a'][..],
        // The same with Huffman code, where space is set aside.
        &[0x40, 0xff, 0x80, 0xff, 0xff, 0x7f, 0x1f, 0x1f],
        // More than 2^28, then more than 64 bits.
        &[0x40, 0x7f, 0xff, 0xff, 0xff, 0xff, 0x0f],
        &[0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],
        // Zero with endless padding.
        &[0x7f, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x00],
    ] {
        let outcome = attack(&headers(block));
        outcome.ends_connection(Code::Internal, COMPRESSION_ERROR, 64);
        assert!(outcome.growth < 50_000);
    }
    let padding = [&[0x7f][..], &[0x80; 16_000]].concat();
    attack(&headers(&padding)).ends_connection(Code::Internal, COMPRESSION_ERROR, ONE_FRAME);
    // The limit holds for a block, not for each of its frames.
    let part = block(&[("a", &"v".repeat(6_000))]);
    let parts = [frame(HEADERS, 0, 1, &part), frame(CONTINUATION, 0, 1, &part), frame(CONTINUATION, 4, 1, &part)];
    attack(&parts.concat()).ends_connection(Code::ResourceExhausted, ENHANCE_YOUR_CALM, 20_000);
}

#[test]
fn row_05_no_connection_is_kept_with_a_block_half_read() {
    // Its fields are too many, and its last one would go into the table.
    let too_many = [block(&[("a", "b")]).repeat(600), vec![0x40, 1, b'k', 1, b'v']].concat();
    let outcome = attack(&[headers(&too_many), good(1)].concat());
    outcome.ends_connection(Code::ResourceExhausted, ENHANCE_YOUR_CALM, ONE_FRAME);
    let mut client = client();
    client.handle_bytes(&[settings(), headers(&too_many)].concat(), NOW);
    assert!(client.is_closing());
    client.call(CallId(2), request(b"y"), NOW);
    assert!(transmit(&mut client).iter().all(|sent| sent.kind != HEADERS), "nothing is opened on it");
}

#[test]
fn row_06_empty_names() {
    let outcome = attack(&headers(&[&block(&OK)[..], &[0, 0, 0]].concat()));
    outcome.ends_call(Code::Internal, PROTOCOL_ERROR, 128);
    // They count 32 bytes each: 600 of them are 1,800 bytes here and 19,200 there.
    let outcome = attack(&flood(&headers(&[0, 0, 0].repeat(600))));
    outcome.ends_connection(Code::ResourceExhausted, ENHANCE_YOUR_CALM, 2_000);
}

#[test]
fn row_07_decoding_takes_one_pass() {
    // Nine thousand bytes of the shortest code: 14,400 letters, just below the limit.
    let string = [&[0x00, 1, b'a', 0xff, 0xa9, 0x45][..], &[0x18, 0xc6, 0x31, 0x8c, 0x63].repeat(1_800)].concat();
    let (mut decoder, blocks) = (Decoder::new(4096, 16 * 1024), 1_000);
    assert_eq!(decoder.decode(&string).unwrap()[0].value.len(), 14_400);
    let started = std::time::Instant::now();
    let ((), growth, total) = measured(|| (0..blocks).for_each(|_| drop(decoder.decode(&string).unwrap())));
    assert!(growth < 100_000 && total / blocks < 64 * 1024, "{growth} at once, {} a block", total / blocks);
    // Nine megabytes: what is quadratic takes hours.
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
}

#[test]
fn row_08_broken_huffman_code() {
    for string in [
        // 'a' and three zeros, 'a' and eleven ones, a byte of ones, EOS, EOS inside.
        &[0x18][..],
        &[0x1f, 0xff],
        &[0xff],
        &[0xff, 0xff, 0xff, 0xff],
        &[0x1f, 0xff, 0xff, 0xff, 0xff, 0x1f],
    ] {
        let length = 0x80 | u8::try_from(string.len()).unwrap();
        let outcome = attack(&headers(&[&[0x00, 1, b'a', length], string].concat()));
        outcome.ends_connection(Code::Internal, COMPRESSION_ERROR, 64);
    }
}

#[test]
fn row_09_indexes_and_table_sizes() {
    for block in [
        &[0x80][..],               // Index 0.
        &[0xbe],                   // Index 62 of an empty table.
        &[0xff, 0xff, 0x7f],       // Far beyond.
        &[0x7e, 1, b'v'],          // A name of index 62.
        &[0x3f],                   // A size update that ends at once: others panic.
        &[0x3f, 0xe2, 0x1f, 0x88], // To 4,097.
        &[0x88, 0x20],             // After a field.
        &[0x88, 0x3f, 0xe1, 0x1f], // The same to 4,096.
    ] {
        attack(&headers(block)).ends_connection(Code::Internal, COMPRESSION_ERROR, 64);
    }
    // We never lower the table, so that no update is ever owed.
    let mut fresh = new_client();
    let sent = transmit(&mut fresh);
    assert_eq!(sent[0].kind, SETTINGS);
    assert!(sent[0].payload.chunks(6).all(|entry| entry[..2] != [0, 1]));
}

#[test]
fn row_10_our_encoder_keeps_a_small_table() {
    let mut client = client();
    client.handle_bytes(&frame(SETTINGS, 0, 0, &[0, 1, 0xff, 0xff, 0xff, 0xff]), NOW);
    client.handle_bytes(&frame(WINDOW_UPDATE, 0, 0, &[0, 0x7f, 0xff, 0xff]), NOW);
    let mut requests: Vec<Request> = Vec::new();
    for i in 0..FLOOD / 1_000 {
        let mut metadata = Metadata::default();
        metadata.add("key", format!("{i:01000}")).unwrap();
        requests.push(Request { metadata, ..request(b"") });
    }
    let mut out = Vec::new();
    let ((), growth, _) = measured(|| {
        for (id, request) in (2..).zip(requests.drain(..)) {
            client.call(CallId(id), request, NOW);
            out.clear();
            client.poll_transmit(&mut out);
            client.cancel(CallId(id), NOW);
        }
    });
    assert!(growth <= MAX_GROWTH, "{growth}");
    // A reader with a table of 4,096 follows all of it from the start.
    let mut client = new_client();
    client.handle_bytes(&frame(SETTINGS, 0, 0, &[0, 1, 0xff, 0xff, 0xff, 0xff]), NOW);
    let mut reader = Decoder::new(4096, 64 * 1024);
    for i in 0..200u64 {
        let mut metadata = Metadata::default();
        metadata.add("key", format!("{:01000}", i % 7)).unwrap();
        client.call(CallId(i), Request { metadata, ..request(b"") }, NOW);
        for sent in transmit(&mut client).into_iter().filter(|sent| sent.kind == HEADERS) {
            let fields = reader.decode(&sent.payload).unwrap();
            assert_eq!(fields.last().unwrap().value, format!("{:01000}", i % 7).as_bytes());
        }
        client.cancel(CallId(i), NOW);
    }
}

#[test]
fn row_11_questions_of_a_peer_that_does_not_read() {
    let ping = frame(PING, 0, 0, &[7; 8]);
    for unit in [&ping, &settings(), &frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 9])] {
        let outcome = attack_as(Peer::Deaf, &flood(unit), client);
        outcome.ends_connection(Code::ResourceExhausted, ENHANCE_YOUR_CALM, 40 * unit.len() + 64);
        assert!(outcome.replies <= 33, "{} answers wait", outcome.replies);
    }
    // One that reads them gets them all, and the call goes on.
    let outcome = attack_as(Peer::Reads, &ping.repeat(10), client);
    assert_eq!((outcome.replies, outcome.go_away), (10, None));
    let answered = attack(&[ping.repeat(10), good(1)].concat());
    assert_eq!(answered.code(), Code::Ok);
}

#[test]
fn row_12_settings_with_thousands_of_entries() {
    let outcome = attack(&flood(&frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 9].repeat(2_730))));
    outcome.ends_connection(Code::ResourceExhausted, ENHANCE_YOUR_CALM, ONE_FRAME + 64);
    let outcome = attack(&frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 9].repeat(65)));
    outcome.ends_connection(Code::ResourceExhausted, ENHANCE_YOUR_CALM, 512);
    for length in [1, 5, 7, 383] {
        let outcome = attack(&frame(SETTINGS, 0, 0, &vec![0; length]));
        outcome.ends_connection(Code::Internal, FRAME_SIZE_ERROR, 512);
    }
    let outcome = attack(&[frame(SETTINGS, 0, 0, &[0, 0x99, 0, 0, 0, 9].repeat(64)), good(1)].concat());
    assert_eq!(outcome.code(), Code::Ok, "64 are read");
}

#[test]
fn row_13_resets_and_stream_errors() {
    // A reset is never answered by one, however often it comes.
    let outcome = attack(&flood(&frame(RST_STREAM, 0, 1, &[0, 0, 0, 2])));
    assert_eq!((outcome.code(), outcome.resets.len()), (Code::Internal, 0));
    outcome.is_cheap(64);
    // Whatever comes on a stream that we have reset is not answered either.
    let broken = [head(1, &[("no", "status")]), ok_head(1), frame(PRIORITY, 0, 1, &[0; 4]), frame(DATA, 0, 1, b"x")];
    attack(&[broken[0].clone(), flood(&broken[1..].concat())[..1 << 16].to_vec()].concat())
        .resets
        .iter()
        .for_each(|reset| assert_eq!(*reset, (1, PROTOCOL_ERROR)));
    // A peer that goes on breaking streams loses the connection at the ninth.
    let make = || {
        let mut client = client();
        (2..=20).for_each(|id| client.call(CallId(id), request(b"x"), NOW));
        client
    };
    let all: Vec<u8> = (0..20).flat_map(|i| head(i * 2 + 1, &[("no", "status")])).collect();
    let outcome = attack_as(Peer::Reads, &all, make);
    assert_eq!((outcome.resets.len(), outcome.go_away), (8, Some(ENHANCE_YOUR_CALM)));
    outcome.is_cheap(64);
}

#[test]
fn row_14_windows_that_overflow() {
    let most = 0x7fff_ffffu32.to_be_bytes();
    let outcome = attack(&frame(WINDOW_UPDATE, 0, 1, &most));
    outcome.ends_call(Code::Internal, FLOW_CONTROL_ERROR, 64);
    let outcome = attack(&frame(WINDOW_UPDATE, 0, 0, &most));
    outcome.ends_connection(Code::Internal, FLOW_CONTROL_ERROR, 64);
    let outcome = attack(&frame(SETTINGS, 0, 0, &[0, 4, 0x80, 0, 0, 0]));
    outcome.ends_connection(Code::Internal, FLOW_CONTROL_ERROR, 64);
    let grown = frame(WINDOW_UPDATE, 0, 1, &(0x7fff_ffffu32 - 65_535).to_be_bytes());
    // The request took six bytes of it, so that six more are the most and seven too many.
    let outcome = attack(&[&grown[..], &frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 5]), &good(1)].concat());
    assert_eq!(outcome.code(), Code::Ok);
    let outcome = attack(&[grown, frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 6])].concat());
    outcome.ends_connection(Code::Internal, FLOW_CONTROL_ERROR, 64);
}

#[test]
fn row_15_increments_of_zero() {
    let zero = |stream| frame(WINDOW_UPDATE, 0, stream, &[0; 4]);
    attack(&zero(1)).ends_call(Code::Internal, PROTOCOL_ERROR, 64);
    attack(&zero(0)).ends_connection(Code::Internal, PROTOCOL_ERROR, 64);
}

#[test]
fn row_16_windows_that_become_negative() {
    let mut client = client_with(request(&vec![7; 200_000]));
    let mut sent = |bytes: &[u8]| -> usize {
        client.handle_bytes(bytes, NOW);
        let mut out = Vec::new();
        (0..8).for_each(|_| client.poll_transmit(&mut out));
        parse(&out).iter().filter(|sent| sent.kind == DATA).map(|sent| sent.payload.len()).sum()
    };
    let update = |stream, by: u32| frame(WINDOW_UPDATE, 0, stream, &by.to_be_bytes());
    assert_eq!(sent(&[settings(), update(0, 1_000_000)].concat()), 0, "65,535 are sent already");
    assert_eq!(sent(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])), 0);
    assert_eq!(sent(&update(1, 65_534)), 0, "one is missing to zero");
    assert_eq!(sent(&update(1, 1)), 0, "zero");
    assert_eq!(sent(&update(1, 10)), 10);
    assert_eq!(sent(&frame(SETTINGS, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff])), 200_005 - 65_535 - 10);
}

#[test]
fn row_17_frames_that_are_too_large() {
    for length in [16_385u32, 0x00ff_ffff] {
        let [_, a, b, c] = length.to_be_bytes();
        for (kind, stream) in [(DATA, 1), (HEADERS, 1), (SETTINGS, 0), (GOAWAY, 0), (0x99, 1), (0x99, 0)] {
            // Only the nine bytes: it is decided before the payload comes.
            let outcome = attack(&[a, b, c, kind, 0, 0, 0, 0, stream]);
            outcome.ends_connection(Code::Internal, FRAME_SIZE_ERROR, 9);
            assert!(outcome.growth < 50_000);
        }
    }
}

#[test]
fn row_18_a_message_in_frames_of_one_byte() {
    // 16 MiB in frames of a byte each: 21 answers of 80 KiB one after another.
    const SIZE: u32 = 80 * 1024;
    let answers: Vec<Vec<u8>> = (0..21u32)
        .map(|i| {
            let stream = i * 2 + 1;
            let mut bytes = ok_head(stream);
            for byte in [&[0][..], &SIZE.to_be_bytes(), &vec![b'z'; SIZE as usize]].concat() {
                bytes.extend(frame(DATA, 0, stream, &[byte]));
            }
            bytes.extend(end(stream, &[("grpc-status", "0")]));
            bytes
        })
        .collect();
    assert!(answers.iter().map(Vec::len).sum::<usize>() > FLOOD);
    let mut client = client();
    client.handle_bytes(&settings(), NOW);
    let (bodies, growth, _) = measured(|| {
        let (mut bodies, mut out) = (0, Vec::new());
        for (i, answer) in answers.iter().enumerate() {
            if i > 0 {
                client.call(CallId(u64::try_from(i).unwrap() + 1), request(b"x"), NOW);
            }
            out.clear();
            client.poll_transmit(&mut out);
            for piece in answer.chunks(16 * 1024) {
                client.handle_bytes(piece, NOW);
                while let Some(event) = client.poll_event() {
                    if let ClientEvent::Answer { result, .. } = event {
                        bodies += result.unwrap().body.len();
                    }
                }
            }
        }
        bodies
    });
    assert_eq!(bodies, 21 * SIZE as usize);
    assert!(growth <= MAX_GROWTH, "{growth}");
}

#[test]
fn row_18_frames_of_one_byte_on_two_streams_in_turn() {
    // They cannot be joined as they come.
    let unit = [frame(DATA, 0, 1, &[1]), frame(DATA, 0, 3, &[1])].concat();
    let start = [ok_head(1), ok_head(3), frame(DATA, 0, 1, &[0, 0, 8, 0, 0]), frame(DATA, 0, 3, &[0, 0, 8, 0, 0])];
    let make = || {
        let mut client = client();
        client.call(CallId(2), request(b"x"), NOW);
        client
    };
    let outcome = attack_as(Peer::Reads, &[start.concat(), unit.repeat(200_000)].concat(), make);
    assert!(outcome.result.is_none() && outcome.growth <= MAX_GROWTH, "{}", outcome.growth);
}

#[test]
fn the_connection_itself_keeps_to_the_limits_too() {
    // Without gRPC above: the application takes no event at all, and still no more than the windows is held.
    let mut client = Connection::client(Config { stream_window: 65_535, ..Config::default() }, NOW);
    let fields = [Header::new(":method", "POST"), Header::new(":scheme", "http"), Header::new(":path", "/x")];
    client.open(&fields, true).unwrap();
    let bytes = [settings(), ok_head(1), flood(&frame(DATA, 0, 1, &[7; 16_000]))].concat();
    let ((), growth, _) = measured(|| bytes.chunks(16 * 1024).for_each(|piece| client.handle_bytes(piece, NOW)));
    assert!(growth < 300_000, "{growth}");
    assert!(!client.is_open(1));
    client.handle_bytes(&frame(GOAWAY, 0, 0, &[0; 8]), NOW);
    assert_eq!(client.open(&fields, true), Err(OpenError::Closing));
}

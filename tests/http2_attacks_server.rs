//! What a hostile client can do to our server: the rows of the table of attacks that have a server's side, with the same
//! care. Each test is named after its row.
#![allow(clippy::unwrap_used, unsafe_code)]

mod attack_support;

use std::time::Duration;

use attack_support::*;
use hivemind_worker::grpc::{Server, ServerConfig, ServerEvent};

/// Error codes of RFC 9113 section 7.
const NO_ERROR: u32 = 0;
const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const STREAM_CLOSED: u32 = 5;
const FRAME_SIZE_ERROR: u32 = 6;
const REFUSED_STREAM: u32 = 7;
const CANCEL: u32 = 8;
const COMPRESSION_ERROR: u32 = 9;
const ENHANCE_YOUR_CALM: u32 = 11;
/// Fed at once here; refusals are counted to within it.
const PIECE: usize = 1_024;

/// A frame or more for each stream, numbered by a client.
fn streams(count: u32, bytes: impl Fn(u32) -> Vec<u8>) -> Vec<u8> {
    (0..count).flat_map(|i| bytes(i * 2 + 1)).collect()
}

fn transmit(server: &mut Server) -> Vec<Sent> {
    let mut out = Vec::new();
    server.poll_transmit(&mut out);
    parse(&out)
}

#[test]
fn row_01_continuation_flood_on_our_server() {
    for size in [1, 1_000, 16_384] {
        let bytes = [frame(HEADERS, 0, 1, &[0x83]), flood(&frame(CONTINUATION, 0, 1, &vec![0x83; size]))].concat();
        attack_server(Peer::Reads, App::Echoes, &bytes).ends_connection(ENHANCE_YOUR_CALM, 2 * (16_384 + 9) + PIECE);
    }
}

#[test]
fn row_02_empty_frames_on_our_server() {
    for bytes in [
        [request_head(1), flood(&frame(DATA, 0, 1, &[]))].concat(),
        [frame(HEADERS, 0, 1, &[]), flood(&frame(CONTINUATION, 0, 1, &[]))].concat(),
    ] {
        attack_server(Peer::Reads, App::Echoes, &bytes).ends_connection(ENHANCE_YOUR_CALM, 2_000);
    }
}

#[test]
fn row_03_hpack_bomb_on_our_server() {
    let entry = [&[0x40, 1, b'a', 0x7f, 0xa1, 0x1e][..], &[b'v'; 4_000]].concat();
    let bomb = frame(HEADERS, 5, 1, &[entry, vec![0xbe; 12_000]].concat());
    attack_server(Peer::Reads, App::Echoes, &flood(&bomb)).ends_connection(ENHANCE_YOUR_CALM, 16_384 + 9 + PIECE);
}

#[test]
fn row_09_broken_field_blocks_on_our_server() {
    for block in [&[0x80][..], &[0xbe], &[0x3f], &[0x3f, 0xe2, 0x1f], &[0x83, 0x20], &[0x00, 1, b'a', 0x81, 0xff]] {
        let outcome = attack_server(Peer::Reads, App::Echoes, &frame(HEADERS, 5, 1, block));
        outcome.ends_connection(COMPRESSION_ERROR, PIECE);
    }
}

#[test]
fn row_11_questions_of_a_client_that_does_not_read() {
    for unit in [frame(PING, 0, 0, &[7; 8]), settings()] {
        let outcome = attack_server(Peer::Deaf, App::Echoes, &flood(&unit));
        outcome.ends_connection(ENHANCE_YOUR_CALM, PIECE);
    }
}

#[test]
fn row_11_refused_requests_of_a_client_that_does_not_read() {
    // Each is answered and gone at once, so that the limit of open streams does not hold; the answers wait.
    let get = [(":method", "GET"), (":scheme", "http"), (":path", "/")];
    let no_message = |stream| end(stream, &REQUEST);
    for bytes in [streams(500_000, |stream| end(stream, &get)), streams(220_000, no_message)] {
        assert!(bytes.len() > FLOOD);
        let outcome = attack_server(Peer::Deaf, App::Echoes, &bytes);
        outcome.ends_connection(ENHANCE_YOUR_CALM, 2 * 1024 * 1024);
        assert!(outcome.growth < 1024 * 1024, "{}", outcome.growth);
    }
    // One that reads them is served to the end.
    let outcome = attack_server(Peer::Reads, App::Echoes, &streams(100_000, |stream| end(stream, &get)));
    assert_eq!((outcome.heads, outcome.go_away), (100_000, None));
    assert!(outcome.growth < 1024 * 1024, "{}", outcome.growth);
}

#[test]
fn row_12_settings_with_thousands_of_entries_on_our_server() {
    let bytes = flood(&frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 9].repeat(2_730)));
    attack_server(Peer::Reads, App::Echoes, &bytes).ends_connection(ENHANCE_YOUR_CALM, 16_384 + 9 + PIECE);
}

#[test]
fn row_13_rapid_reset() {
    let reset = |stream| frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes());
    let unit = |stream| [good_request(stream), reset(stream)].concat();
    let bytes = streams(160_000, unit);
    assert!(bytes.len() > FLOOD);
    let outcome = attack_server(Peer::Reads, App::NeverAnswers, &bytes);
    outcome.ends_connection(ENHANCE_YOUR_CALM, 102 * unit(1).len() + PIECE);
    assert!(outcome.requests <= 101 && outcome.requests == outcome.cancelled);
    // Before the request is whole.
    let outcome =
        attack_server(Peer::Reads, App::NeverAnswers, &streams(1_000, |s| [request_head(s), reset(s)].concat()));
    outcome.ends_connection(ENHANCE_YOUR_CALM, 102 * unit(1).len() + PIECE);
    // A client that cancels now and then is not cut off.
    let honest = streams(5_000, |stream| if stream % 8 == 1 { unit(stream) } else { good_request(stream) });
    let outcome = attack_server(Peer::Reads, App::Echoes, &honest);
    assert_eq!((outcome.go_away, outcome.requests), (None, 5_000));
}

#[test]
fn row_13_resets_that_we_are_made_to_send() {
    // Each stream breaks a rule, so that we reset it while its request may go on.
    for broken in [
        |stream| [good_request(stream), frame(DATA, 0, stream, b"x")].concat(),
        |stream| [request_head(stream), frame(WINDOW_UPDATE, 0, stream, &[0; 4])].concat(),
        |stream| [request_head(stream), frame(WINDOW_UPDATE, 0, stream, &[0x7f, 0xff, 0xff, 0xff])].concat(),
        |stream| [request_head(stream), frame(PRIORITY, 0, stream, &[0; 4])].concat(),
        |stream| end(stream, &[(":method", "POST")]),
    ] {
        let outcome = attack_server(Peer::Reads, App::NeverAnswers, &streams(1_000, broken));
        outcome.ends_connection(ENHANCE_YOUR_CALM, 4 * PIECE);
        let known = [PROTOCOL_ERROR, FLOW_CONTROL_ERROR, STREAM_CLOSED, FRAME_SIZE_ERROR];
        assert!(outcome.resets.len() == 8 && outcome.resets.iter().all(|(_, code)| known.contains(code)));
    }
}

#[test]
fn row_13_more_streams_than_we_allow() {
    let outcome = attack_server(Peer::Reads, App::NeverAnswers, &streams(150_000, good_request));
    outcome.ends_connection(ENHANCE_YOUR_CALM, 134 * good_request(1).len() + PIECE);
    assert_eq!((outcome.requests, outcome.cancelled), (32, 32));
    assert!(outcome.resets.len() == 100 && outcome.resets.iter().all(|(_, code)| *code == REFUSED_STREAM));
    // A few too many are refused, and the others served.
    let outcome = attack_server(Peer::Reads, App::NeverAnswers, &streams(40, good_request));
    assert_eq!((outcome.requests, outcome.resets.len(), outcome.go_away), (32, 8, None));
}

#[test]
fn row_14_windows_that_overflow_on_our_server() {
    let most = [0x7f, 0xff, 0xff, 0xff];
    for (bytes, code) in [
        (frame(WINDOW_UPDATE, 0, 0, &most), FLOW_CONTROL_ERROR),
        (frame(SETTINGS, 0, 0, &[0, 4, 0x80, 0, 0, 0]), FLOW_CONTROL_ERROR),
        (frame(WINDOW_UPDATE, 0, 0, &[0; 4]), PROTOCOL_ERROR),
        (frame(WINDOW_UPDATE, 0, 1, &most), PROTOCOL_ERROR),
    ] {
        attack_server(Peer::Reads, App::Echoes, &bytes).ends_connection(code, PIECE);
    }
}

#[test]
fn row_17_frames_that_are_too_large_for_our_server() {
    for kind in [DATA, HEADERS, SETTINGS, 0x99] {
        let stream = u8::from(kind != SETTINGS);
        let outcome = attack_server(Peer::Reads, App::Echoes, &[0, 0x40, 1, kind, 0, 0, 0, 0, stream]);
        outcome.ends_connection(FRAME_SIZE_ERROR, 9);
    }
}

#[test]
fn row_19_requests_that_are_too_long() {
    let prefix = [0, 0xff, 0xff, 0xff, 0xff];
    let start = [request_head(1), frame(DATA, 0, 1, &prefix)].concat();
    let outcome = attack_server(Peer::Reads, App::Echoes, &[start, flood(&frame(DATA, 0, 1, &[7; 16_000]))].concat());
    assert_eq!((outcome.heads, outcome.go_away), (1, None));
    assert_eq!(outcome.resets, [(1, NO_ERROR)], "refused with a status, and the rest is not wanted");
    assert!(outcome.growth < 200_000, "{}", outcome.growth);
}

#[test]
fn row_25_push_promise_to_our_server() {
    let promise = frame(PUSH_PROMISE, 4, 1, &[&[0, 0, 0, 2][..], &block(&REQUEST)].concat());
    attack_server(Peer::Reads, App::Echoes, &[request_head(1), promise].concat())
        .ends_connection(PROTOCOL_ERROR, PIECE);
}

#[test]
fn row_27_clients_that_dribble_or_do_not_read_meet_a_deadline() {
    // A request that never ends.
    let mut slow = server();
    slow.handle_bytes(&[request_head(1), frame(DATA, 0, 1, &MESSAGE[..3])].concat(), NOW);
    let due = slow.poll_timeout().unwrap();
    assert!(due <= NOW + Duration::from_secs(60));
    slow.handle_bytes(&frame(DATA, 0, 1, &MESSAGE[3..4]), due - Duration::from_millis(1));
    slow.handle_timeout(due);
    let sent = transmit(&mut slow);
    assert!(sent.iter().any(|s| s.kind == HEADERS && s.flags == 5), "a status");
    assert!(sent.iter().any(|s| s.kind == RST_STREAM && s.payload == NO_ERROR.to_be_bytes()));
    assert_eq!(slow.open_calls(), 0);
    // An answer for which no window is opened.
    let mut deaf = Server::new(ServerConfig::default(), NOW);
    let no_window = frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
    deaf.handle_bytes(&[PREFACE, &no_window, &good_request(1)].concat(), NOW);
    let Some(ServerEvent::Request(request)) = deaf.poll_event() else { panic!("no request") };
    deaf.respond(request.id, Ok(vec![7; 1_000_000]), NOW);
    assert!(transmit(&mut deaf).iter().all(|s| s.kind != DATA));
    let due = deaf.poll_timeout().unwrap();
    assert!(due <= NOW + Duration::from_secs(60));
    deaf.handle_timeout(due);
    let sent = transmit(&mut deaf);
    assert!(sent.iter().any(|s| s.kind == RST_STREAM && s.payload == CANCEL.to_be_bytes()), "{sent:?}");
    assert_eq!(deaf.open_calls(), 0);
    // One that says nothing, and one that never ends its preface.
    for start in [&b""[..], &PREFACE[..20], PREFACE] {
        let mut silent = Server::new(ServerConfig::default(), NOW);
        silent.handle_bytes(start, NOW);
        let due = silent.poll_timeout().unwrap();
        assert!(due <= NOW + Duration::from_secs(20));
        silent.handle_timeout(due);
        assert!(matches!(silent.poll_event(), Some(ServerEvent::Closed { .. })));
    }
}

#[test]
fn row_27_answers_to_a_client_with_tiny_windows() {
    // One byte at a time, for as long as the deadline lets it: no frame and no memory beside.
    let mut server = Server::new(ServerConfig::default(), NOW);
    let one_byte = frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 1]);
    server.handle_bytes(&[PREFACE, &one_byte, &good_request(1)].concat(), NOW);
    let Some(ServerEvent::Request(request)) = server.poll_event() else { panic!("no request") };
    let update = frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]);
    server.respond(request.id, Ok(vec![7; 100_000]), NOW);
    let (sent, growth, _) = measured(|| {
        let (mut out, mut sent) = (Vec::new(), 0);
        for _ in 0..60_000 {
            out.clear();
            server.poll_transmit(&mut out);
            sent += parse(&out).iter().filter(|s| s.kind == DATA).map(|s| s.payload.len()).sum::<usize>();
            server.handle_bytes(&update, NOW);
        }
        sent
    });
    assert_eq!(sent, 60_000);
    assert!(growth < 200_000, "{growth}");
}

#[test]
fn row_28_unknown_frames_on_our_server() {
    let unknown = frame(0x42, 0xff, 0, &[7; 100]);
    let outcome = attack_server(Peer::Reads, App::Echoes, &[flood(&unknown), good_request(1)].concat());
    assert_eq!((outcome.requests, outcome.go_away), (1, None));
    assert!(outcome.growth < 200_000);
    let inside = [frame(HEADERS, 0, 1, &block(&REQUEST)), unknown].concat();
    attack_server(Peer::Reads, App::Echoes, &inside).ends_connection(PROTOCOL_ERROR, PIECE);
}

#[test]
fn row_29_broken_metadata_on_our_server() {
    let broken = head(1, &[&REQUEST[..], &[("a-bin", "!")]].concat());
    let outcome = attack_server(Peer::Reads, App::Echoes, &[broken, good_request(3)].concat());
    assert_eq!((outcome.requests, outcome.go_away), (1, None), "only the request is lost");
}

#[test]
fn row_33_broken_timeouts_on_our_server() {
    for odd in ["", "S", "1", "123456789S", "-1S", "1.5S", "1s", "1 S"] {
        let head = head(1, &[&REQUEST[..], &[("grpc-timeout", odd)]].concat());
        let outcome = attack_server(Peer::Reads, App::Echoes, &[head, good_request(3)].concat());
        assert_eq!((outcome.requests, outcome.go_away), (1, None), "{odd:?}");
    }
}

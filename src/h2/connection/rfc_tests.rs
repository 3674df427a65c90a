//! Rules of RFC 9113, named by section; `h2/musts.rs` says which rule is tested where.

use super::*;
use crate::h2::frame::kind::*;

const REFUSED: [u8; 4] = ErrorCode::REFUSED_STREAM.0.to_be_bytes();

fn server() -> Connection {
    let mut server = Connection::server(Config::default(), NOW);
    feed(&mut server, Wire::client());
    transmit(&mut server);
    server
}

/// Without preface and SETTINGS.
fn wire() -> Wire {
    Wire::default()
}

fn sent(connection: &mut Connection) -> Vec<(u8, u8, u32, Vec<u8>)> {
    frames(&transmit(connection))
}

/// With a field that takes this many bytes, since its code would be longer.
fn large_request(n: usize) -> Vec<Header> {
    [request(), vec![Header::once("a", "\u{7f}".repeat(n))]].concat()
}

fn is_reset(sent: &[(u8, u8, u32, Vec<u8>)], stream: u32, code: ErrorCode) -> bool {
    sent.contains(&(RST_STREAM, 0, stream, code.0.to_be_bytes().to_vec()))
}

#[test]
fn s3_4_server_begins_with_settings() {
    let mut server = Connection::server(Config::default(), NOW);
    let out = sent(&mut server);
    assert_eq!((out[0].0, out[0].1, out[0].2), (SETTINGS, 0, 0), "before it has read anything");
    assert!(out[0].3.chunks(6).all(|e| e[..2] != [0, 2]), "a server says nothing of push");
}

#[test]
fn s3_4_settings_are_acknowledged_after_our_preface() {
    let mut server = Connection::server(Config::default(), NOW);
    feed(&mut server, Wire::client());
    let kinds: Vec<_> = sent(&mut server).iter().map(|f| (f.0, f.1)).collect();
    assert_eq!(kinds, [(SETTINGS, 0), (WINDOW_UPDATE, 0), (SETTINGS, 1)]);
    let mut client = Connection::client(Config::default(), NOW);
    feed(&mut client, Wire::server());
    let kinds: Vec<_> = sent(&mut client).iter().map(|f| (f.0, f.1)).collect();
    assert_eq!(kinds, [(SETTINGS, 0), (WINDOW_UPDATE, 0), (SETTINGS, 1)]);
}

#[test]
fn s4_1_no_frame_is_larger_than_the_least_limit() {
    let mut client = Connection::client(Config::default(), NOW);
    let id = client.open(&large_request(40_000), false).unwrap();
    client.send_data(id, vec![0; 60_000], true);
    // Though the peer would take more.
    feed(&mut client, wire().raw(SETTINGS, 0, 0, &[0, 5, 0, 0xff, 0xff, 0xff]));
    let out = sent(&mut client);
    assert!(out.iter().all(|f| f.3.len() <= 16_384));
    assert_eq!(out.iter().filter(|f| f.0 == CONTINUATION).count(), 2);
}

#[test]
fn s4_1_unknown_types_and_flags_are_ignored() {
    let mut client = client_with_call();
    let wire = Wire::server()
        .raw(0x0a, 0xff, 0, &[1, 2, 3])
        .raw(0xff, 0xff, 1, &[])
        .raw(SETTINGS, 0xfe, 0, &[])
        .raw(PING, 0xfe, 0, &[1; 8])
        .raw(WINDOW_UPDATE, 0xff, 0, &[0, 0, 0, 1])
        .raw(HEADERS, 0x4 | 0xd2, 1, &[0x88])
        .raw(DATA, 0xf6, 1, b"x")
        .raw(RST_STREAM, 0xff, 1, &[0, 0, 0, 8]);
    let seen = feed(&mut client, wire);
    assert!(matches!(
        &seen[..],
        [
            Event::Settings,
            Event::Headers { end_stream: false, .. },
            Event::Data { end_stream: false, .. },
            Event::Reset { code: ErrorCode::CANCEL, .. }
        ]
    ));
}

#[test]
fn s4_2_frames_of_the_full_size_are_taken() {
    let seen = feed(&mut client_with_call(), Wire::server().ok(1).data(1, &[7; 16_384], true));
    assert!(matches!(&seen[2..], [Event::Data { data, end_stream: true, .. }] if data.len() == 16_384));
}

#[test]
fn s4_3_blocks_are_sent_in_one_piece() {
    let mut client = Connection::client(Config::default(), NOW);
    for _ in 0..3 {
        client.open(&large_request(20_000), false).unwrap();
    }
    feed(&mut client, Wire::server().raw(PING, 0, 0, &[0; 8]));
    let out = sent(&mut client);
    for (i, frame) in out.iter().enumerate().filter(|(_, f)| f.0 == HEADERS && f.1 & 4 == 0) {
        let rest: Vec<_> = out[i + 1..].iter().take_while(|f| f.0 == CONTINUATION && f.2 == frame.2).collect();
        assert_eq!(rest.last().unwrap().1, 4, "END_HEADERS comes before anything else");
    }
}

#[test]
fn s4_3_field_blocks_of_ended_streams_keep_the_table_in_step() {
    let mut client = client_with_call();
    client.open(&request(), true).unwrap();
    client.reset(1, ErrorCode::CANCEL);
    // The second block names by index what the first has put into the table, on a stream that is gone.
    let fields = [(":status", "200"), ("key", "value")];
    let seen = feed(&mut client, Wire::server().headers(1, &fields, false).headers(3, &fields, true));
    let Some(Event::Headers { stream: 3, headers, .. }) = seen.last() else { panic!("{seen:?}") };
    assert_eq!(headers[1], Header::new("key", "value"));
}

#[test]
fn s4_3_1_a_smaller_table_is_told_in_the_next_block() {
    let mut client = Connection::client(Config::default(), NOW);
    client.open(&request(), true).unwrap();
    transmit(&mut client);
    feed(&mut client, wire().raw(SETTINGS, 0, 0, &[0, 1, 0, 0, 0, 0]));
    client.open(&request(), true).unwrap();
    let out = sent(&mut client);
    let head = out.iter().position(|f| f.0 == HEADERS).unwrap();
    assert!(out[..head].iter().any(|f| (f.0, f.1) == (SETTINGS, 1)), "acknowledged before");
    assert_eq!(out[head].3[0], 0x20, "a size update to zero comes first");
}

#[test]
fn s5_1_idle_streams_take_only_headers_and_priority() {
    for (kind, payload) in [(DATA, &[7][..]), (RST_STREAM, &[0; 4]), (WINDOW_UPDATE, &[0, 0, 0, 1])] {
        let seen = feed(&mut client_with_call(), Wire::server().raw(kind, 0, 3, payload));
        assert_eq!(closed_with(&seen), Some(ErrorCode::PROTOCOL_ERROR), "{kind}");
        let seen = feed(&mut server(), wire().raw(kind, 0, 1, payload));
        assert_eq!(closed_with(&seen), Some(ErrorCode::PROTOCOL_ERROR), "{kind}");
    }
    for stream in [3, 2] {
        let seen = feed(&mut client_with_call(), Wire::server().ok(stream));
        assert_eq!(closed_with(&seen), Some(ErrorCode::PROTOCOL_ERROR), "no server opens a stream");
    }
    let seen = feed(&mut server(), wire().raw(PRIORITY, 0, 1, &[0; 5]).raw(PRIORITY, 0, 2, &[0; 5]).request(1, true));
    assert_eq!(seen.len(), 1);
}

#[test]
fn s5_1_half_closed_remote_takes_no_data_or_headers() {
    for late in [wire().data(1, b"x", false), wire().headers(1, &[("a", "b")], true)] {
        let mut server = server();
        feed(&mut server, wire().request(1, true));
        let seen = feed(&mut server, late);
        assert_eq!(reset_with(&seen), Some(ErrorCode::STREAM_CLOSED));
        assert!(is_reset(&sent(&mut server), 1, ErrorCode::STREAM_CLOSED));
    }
    let mut server = server();
    let late = wire().request(1, true).raw(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]).raw(PRIORITY, 0, 1, &[0; 5]);
    assert_eq!(feed(&mut server, late).len(), 1);
    assert!(server.is_open(1));
}

#[test]
fn s5_1_nothing_is_sent_on_a_closed_stream() {
    let mut client = Connection::client(Config::default(), NOW);
    let id = client.open(&request(), false).unwrap();
    client.send_data(id, vec![0; 100_000], true);
    transmit(&mut client);
    client.reset(id, ErrorCode::CANCEL);
    feed(&mut client, Wire::server().raw(WINDOW_UPDATE, 0, 0, &[0, 1, 0, 0]));
    let out: Vec<_> = sent(&mut client).into_iter().filter(|f| f.2 == id).collect();
    assert_eq!(out, [(RST_STREAM, 0, id, ErrorCode::CANCEL.0.to_be_bytes().to_vec())]);
    assert!(!client.send_data(id, vec![1], true) && !client.send_trailers(id, Vec::new()));
    client.reset(id, ErrorCode::CANCEL);
    client.release(id, 1);
    assert!(!client.has_transmit());
}

#[test]
fn s5_1_1_identifiers_only_grow() {
    let mut client = Connection::client(Config::default(), NOW);
    assert_eq!((0..3).map(|_| client.open(&request(), true).unwrap()).collect::<Vec<_>>(), [1, 3, 5]);
    client.next_stream = 0x7fff_ffff;
    assert!(!client.is_closing());
    assert_eq!(client.open(&request(), true), Ok(0x7fff_ffff));
    assert_eq!(client.open(&request(), true), Err(OpenError::Closing), "they are used up and never used again");
    assert!(client.is_closing(), "so that calls go elsewhere");
}

#[test]
fn s5_1_1_a_lower_or_even_identifier_ends_the_connection() {
    let closed = wire().request(1, true).raw(RST_STREAM, 0, 1, &[0; 4]).request(1, true);
    let skipped = wire().request(5, true).request(3, true);
    for bytes in [closed, skipped, wire().request(2, true)] {
        assert_eq!(closed_with(&feed(&mut server(), bytes)), Some(ErrorCode::PROTOCOL_ERROR));
    }
}

#[test]
fn s5_4_2_a_reset_is_never_answered_by_one() {
    let mut client = client_with_call();
    let reset = || wire().raw(RST_STREAM, 0, 1, &[0, 0, 0, 2]);
    feed(&mut client, Wire::server());
    transmit(&mut client);
    feed(&mut client, reset());
    feed(&mut client, reset());
    assert!(!client.has_transmit());
}

#[test]
fn s5_4_2_one_reset_is_sent_for_each_stream() {
    let mut client = client_with_call();
    let broken = || wire().raw(PRIORITY, 0, 1, &[0; 4]).data(1, b"x", false).headers(1, &[("a", "b")], true);
    feed(&mut client, Wire::server());
    feed(&mut client, broken());
    feed(&mut client, broken());
    assert_eq!(sent(&mut client).iter().filter(|f| f.0 == RST_STREAM).count(), 1);
}

#[test]
fn s5_4_2_late_frames_of_hundreds_of_reset_streams_are_no_errors() {
    // Found by fuzzing: more calls met their deadline at once than are remembered, and the server's answers to the first
    // of them counted as stream errors, nine of which end the connection.
    let mut client = Connection::client(Config::default(), NOW);
    let calls: Vec<_> = (0..300).map(|_| client.open(&request(), true).unwrap()).collect();
    calls.iter().for_each(|id| client.reset(*id, ErrorCode::CANCEL));
    feed(&mut client, Wire::server());
    transmit(&mut client);
    let late = calls.iter().fold(wire(), |wire, id| wire.ok(*id).data(*id, b"x", false));
    assert!(feed(&mut client, late).is_empty());
    assert!(!client.has_transmit() && client.open(&request(), true).is_ok());
}

#[test]
fn s6_1_data_on_a_closed_stream_is_a_stream_error() {
    let mut client = client_with_call();
    feed(&mut client, Wire::server().headers(1, &[(":status", "200")], true));
    transmit(&mut client);
    feed(&mut client, wire().data(1, &[7; 1000], false));
    assert!(is_reset(&sent(&mut client), 1, ErrorCode::STREAM_CLOSED));
    assert!(!client.is_closed());
}

#[test]
fn s6_4_nothing_is_sent_after_the_peer_reset_a_stream() {
    let mut client = Connection::client(Config::default(), NOW);
    let id = client.open(&request(), false).unwrap();
    client.send_data(id, vec![0; 100_000], true);
    transmit(&mut client);
    let grown = wire().raw(WINDOW_UPDATE, 0, 0, &[0, 1, 0, 0]).raw(WINDOW_UPDATE, 0, 1, &[0, 1, 0, 0]);
    feed(&mut client, Wire::server().raw(RST_STREAM, 0, id, &REFUSED));
    feed(&mut client, grown);
    assert!(sent(&mut client).iter().all(|f| f.2 != id));
}

#[test]
fn s6_4_no_reset_on_an_idle_stream() {
    let mut server = server();
    let seen = feed(&mut server, wire().raw(PRIORITY, 0, 9, &[0; 4]));
    assert_eq!(closed_with(&seen), Some(ErrorCode::FRAME_SIZE_ERROR), "the connection ends instead");
    assert!(sent(&mut server).iter().all(|f| f.0 != RST_STREAM));
}

#[test]
fn s6_5_3_each_settings_frame_is_applied_and_acknowledged_in_order() {
    let mut client = Connection::client(Config::default(), NOW);
    let id = client.open(&request(), false).unwrap();
    client.send_data(id, vec![0; 100], true);
    let wire = wire().raw(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 50, 0, 4, 0, 0, 0, 10]).raw(PING, 0, 0, &[1; 8]).raw(
        SETTINGS,
        0,
        0,
        &[0, 4, 0, 0, 0, 7, 0x7e, 1, 0, 0, 0, 0],
    );
    feed(&mut client, wire);
    let out = sent(&mut client);
    let order: Vec<_> = out.iter().filter(|f| f.1 == 1 && f.2 == 0).map(|f| f.0).collect();
    assert_eq!(order, [SETTINGS, PING, SETTINGS]);
    let data: usize = out.iter().filter(|f| f.0 == DATA).map(|f| f.3.len()).sum();
    assert_eq!(data, 7, "the last value holds");
}

#[test]
fn s6_5_3_an_acknowledgement_is_not_answered() {
    let mut client = client_with_call();
    feed(&mut client, Wire::server());
    transmit(&mut client);
    feed(&mut client, wire().raw(SETTINGS, 1, 0, &[]));
    assert!(!client.has_transmit());
}

#[test]
fn s6_7_ping_is_answered_with_its_payload_and_an_answer_is_not() {
    let mut client = client_with_call();
    feed(&mut client, Wire::server());
    transmit(&mut client);
    feed(&mut client, wire().raw(PING, 0, 0, b"\x00\xffabcdef"));
    assert_eq!(sent(&mut client), [(PING, 1, 0, b"\x00\xffabcdef".to_vec())]);
    feed(&mut client, wire().raw(PING, 1, 0, b"whatever"));
    assert!(!client.has_transmit());
}

#[test]
fn s6_7_ping_goes_before_data() {
    let mut client = Connection::client(Config::default(), NOW);
    let id = client.open(&request(), false).unwrap();
    transmit(&mut client);
    client.send_data(id, vec![0; 60_000], true);
    feed(&mut client, Wire::server().raw(PING, 0, 0, &[1; 8]));
    let out = sent(&mut client);
    assert!(out.iter().position(|f| f.0 == PING) < out.iter().position(|f| f.0 == DATA));
}

#[test]
fn s6_8_our_last_stream_never_rises() {
    let mut server = server();
    feed(&mut server, wire().request(1, false));
    server.go_away(ErrorCode::NO_ERROR);
    // Opened before our word came there, then a violation.
    feed(&mut server, wire().request(3, true).raw(WINDOW_UPDATE, 0, 0, &[0; 4]));
    let told: Vec<_> = sent(&mut server).into_iter().filter(|f| f.0 == GOAWAY).map(|f| f.3[..8].to_vec()).collect();
    assert_eq!(told, [vec![0, 0, 0, 1, 0, 0, 0, 0], vec![0, 0, 0, 1, 0, 0, 0, 1]]);
}

#[test]
fn s6_8_streams_after_our_goaway_are_refused_and_counted() {
    let mut server = server();
    feed(&mut server, wire().request(1, false));
    server.go_away(ErrorCode::NO_ERROR);
    let mut peer =
        wire().headers(3, &[(":method", "POST"), (":scheme", "http"), (":path", "/x"), ("key", "value")], false);
    for _ in 0..200 {
        peer = peer.data(3, &[7; 16_000], false);
    }
    // The table is in step, and 3.2 MB went back to the connection's window.
    let peer = peer.headers(1, &[("key", "value")], true);
    let seen = feed(&mut server, peer);
    assert_eq!(seen, [Event::Trailers { stream: 1, headers: vec![Header::new("key", "value")] }]);
    let out = sent(&mut server);
    assert!(is_reset(&out, 3, ErrorCode::REFUSED_STREAM));
    assert!(out.iter().any(|f| f.0 == WINDOW_UPDATE && f.2 == 0));
}

#[test]
fn s6_8_debug_data_is_cut_and_made_printable() {
    let mut client = client_with_call();
    let words = [&[0; 8][..], b"a\x1b[31mb\r\n\0", &[b'x'; 10_000]].concat();
    let seen = feed(&mut client, Wire::server().raw(GOAWAY, 0, 0, &words));
    let Some(Event::Closed { error: ConnectionError::GoneAway { debug, .. } }) = seen.last() else {
        panic!("{seen:?}");
    };
    assert!(debug.starts_with("a[31mbxxx") && debug.len() <= 256);
}

#[test]
fn s6_9_control_frames_need_no_window() {
    let mut client = Connection::client(Config::default(), NOW);
    let id = client.open(&request(), false).unwrap();
    client.send_data(id, vec![0; 100_000], true);
    transmit(&mut client);
    feed(&mut client, Wire::server().raw(PING, 0, 0, &[1; 8]));
    client.open(&request(), true).unwrap();
    client.reset(id, ErrorCode::CANCEL);
    let kinds: Vec<_> = sent(&mut client).iter().map(|f| f.0).collect();
    assert_eq!(kinds, [SETTINGS, PING, HEADERS, RST_STREAM]);
}

#[test]
fn s6_9_updates_on_ended_streams_are_no_error() {
    let mut client = client_with_call();
    let update = || wire().raw(WINDOW_UPDATE, 0, 1, &[0x7f, 0xff, 0, 0]);
    feed(&mut client, Wire::server().headers(1, &[(":status", "200")], true));
    transmit(&mut client);
    assert!(feed(&mut client, update()).is_empty() && feed(&mut client, update()).is_empty());
    assert!(!client.has_transmit());
}

#[test]
fn s6_9_frames_in_error_count_against_the_connection() {
    let config = Config { connection_window: 70_000, stream_window: 70_000, ..Config::default() };
    let mut client = Connection::client(config, NOW);
    client.open(&request(), true).unwrap();
    transmit(&mut client);
    // Each of them is an error or comes too late, and all of them are given back: 1.6 MB pass a window of 70,000.
    let wire = (0..100).fold(Wire::server(), |wire, _| wire.data(1, &[7; 16_000], false));
    let seen = feed(&mut client, wire);
    assert_eq!(reset_with(&seen), Some(ErrorCode::PROTOCOL_ERROR), "the stream alone: DATA before its head");
    let back: u32 = sent(&mut client)
        .iter()
        .filter(|f| f.0 == WINDOW_UPDATE && f.2 == 0)
        .map(|f| u32::from_be_bytes(f.3[..].try_into().unwrap()))
        .sum();
    assert!(back > 1_500_000, "{back}");
}

#[test]
fn s6_9_1_an_empty_end_needs_no_window() {
    let mut client = Connection::client(Config::default(), NOW);
    let id = client.open(&request(), false).unwrap();
    client.send_data(id, vec![0; 65_535], false);
    transmit(&mut client);
    client.send_data(id, Vec::new(), true);
    assert_eq!(sent(&mut client), [(DATA, 1, id, Vec::new())]);
}

#[test]
fn s6_9_2_settings_leave_the_connection_window_alone() {
    let mut client = Connection::client(Config::default(), NOW);
    let id = client.open(&request(), false).unwrap();
    client.send_data(id, vec![0; 200_000], true);
    feed(&mut client, wire().raw(SETTINGS, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]));
    let mut out = transmit(&mut client);
    (0..10).for_each(|_| client.poll_transmit(&mut out));
    let data: usize = frames(&out).iter().filter(|f| f.0 == DATA).map(|f| f.3.len()).sum();
    assert_eq!(data, 65_535);
}

#[test]
fn s8_1_a_second_head_is_malformed() {
    let mut server = server();
    let seen = feed(&mut server, wire().request(1, false).headers(1, &[("a", "b")], false));
    assert_eq!(reset_with(&seen), Some(ErrorCode::PROTOCOL_ERROR));
    let seen = feed(&mut client_with_call(), Wire::server().ok(1).headers(1, &[("a", "b")], false));
    assert_eq!(reset_with(&seen), Some(ErrorCode::PROTOCOL_ERROR));
}

#[test]
fn s8_1_an_answer_before_a_reset_counts() {
    let mut client = Connection::client(Config::default(), NOW);
    let id = client.open(&request(), false).unwrap();
    let seen = feed(&mut client, Wire::server().ok(id).data(id, b"x", true).raw(RST_STREAM, 0, id, &[0; 4]));
    assert!(matches!(
        &seen[1..],
        [Event::Headers { .. }, Event::Data { end_stream: true, .. }, Event::Reset { code: ErrorCode::NO_ERROR, .. }]
    ));
}

#[test]
fn s8_1_1_answers_without_content_may_name_a_length() {
    for status in ["204", "304"] {
        let fields = [(":status", status), ("content-length", "1000")];
        let seen = feed(&mut client_with_call(), Wire::server().headers(1, &fields, true));
        assert!(matches!(&seen[1..], [Event::Headers { end_stream: true, .. }]), "{status}");
    }
    let seen =
        feed(&mut client_with_call(), Wire::server().headers(1, &[(":status", "200"), ("content-length", "1")], true));
    assert_eq!(reset_with(&seen), Some(ErrorCode::PROTOCOL_ERROR));
}

#[test]
fn s8_7_refused_streams_were_never_told_to_the_application() {
    let mut server = Connection::server(Config { max_concurrent_streams: 1, ..Config::default() }, NOW);
    let seen = feed(&mut server, Wire::client().request(1, false).request(3, false).data(3, b"x", true));
    assert!(seen.iter().all(|e| !matches!(e, Event::Headers { stream: 3, .. } | Event::Data { stream: 3, .. })));
    let out = sent(&mut server);
    assert!(is_reset(&out, 3, ErrorCode::REFUSED_STREAM) && !is_reset(&out, 1, ErrorCode::REFUSED_STREAM));
}

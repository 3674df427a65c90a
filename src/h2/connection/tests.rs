//! Expected bytes and violations of RFC 9113's rules, connection against scripted peer and against each other.

use super::*;
use crate::h2::flow::MAX_WINDOW;

#[path = "rfc_tests.rs"]
mod rfc;

const NOW: Instant = Duration::from_secs(1000);

/// Writes what a scripted peer sends.
#[derive(Default)]
struct Wire {
    out: Vec<u8>,
    encoder: Encoder,
}

impl Wire {
    fn server() -> Wire {
        let mut wire = Wire::default();
        frame::put_settings(&mut wire.out, &[]);
        wire
    }

    fn client() -> Wire {
        let mut wire = Wire { out: frame::PREFACE.to_vec(), encoder: Encoder::default() };
        frame::put_settings(&mut wire.out, &[]);
        wire
    }

    fn raw(mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Wire {
        frame::put_header(&mut self.out, payload.len(), kind, flags, stream);
        self.out.extend_from_slice(payload);
        self
    }

    fn headers(mut self, stream: u32, fields: &[(&str, &str)], end: bool) -> Wire {
        let fields: Vec<Header> = fields.iter().map(|(n, v)| Header::new(*n, *v)).collect();
        let mut block = Vec::new();
        self.encoder.encode(&fields, &mut block);
        frame::put_headers(&mut self.out, stream, &block, end, frame::MAX_FRAME_SIZE);
        self
    }

    fn data(self, stream: u32, data: &[u8], end: bool) -> Wire {
        self.raw(frame::kind::DATA, u8::from(end), stream, data)
    }

    fn request(self, stream: u32, end: bool) -> Wire {
        self.headers(stream, &[(":method", "POST"), (":scheme", "http"), (":path", "/x")], end)
    }

    fn ok(self, stream: u32) -> Wire {
        self.headers(stream, &[(":status", "200")], false)
    }
}

fn request() -> Vec<Header> {
    vec![Header::new(":method", "POST"), Header::new(":scheme", "http"), Header::new(":path", "/x")]
}

fn transmit(connection: &mut Connection) -> Vec<u8> {
    let mut out = Vec::new();
    connection.poll_transmit(&mut out);
    out
}

fn events(connection: &mut Connection) -> Vec<Event> {
    std::iter::from_fn(|| connection.poll_event()).collect()
}

/// The frames in what was written, as (kind, flags, stream, payload).
fn frames(mut bytes: &[u8]) -> Vec<(u8, u8, u32, Vec<u8>)> {
    bytes = bytes.strip_prefix(frame::PREFACE).unwrap_or(bytes);
    let mut found = Vec::new();
    while let Some(head) = bytes.first_chunk() {
        let header = frame::FrameHeader::parse(head);
        let end = frame::HEADER_LEN + header.length;
        found.push((header.kind, header.flags, header.stream, bytes[frame::HEADER_LEN..end].to_vec()));
        bytes = &bytes[end..];
    }
    found
}

/// A client with one stream open whose request has ended, and everything written.
fn client_with_call() -> Connection {
    let mut client = Connection::client(Config::default(), NOW);
    assert_eq!(client.open(&request(), true), Ok(1));
    transmit(&mut client);
    client
}

fn feed(connection: &mut Connection, wire: Wire) -> Vec<Event> {
    connection.handle_bytes(&wire.out, NOW);
    events(connection)
}

fn closed_with(events: &[Event]) -> Option<ErrorCode> {
    match events.last() {
        Some(Event::Closed { error: ConnectionError::Peer { code, .. } }) => Some(*code),
        _ => None,
    }
}

fn reset_with(events: &[Event]) -> Option<ErrorCode> {
    match events.last() {
        Some(Event::Reset { code, cause: ResetCause::Violation(_), .. }) => Some(*code),
        _ => None,
    }
}

#[test]
fn client_opens_with_preface_settings_and_window() {
    let mut client = Connection::client(Config::default(), NOW);
    let out = transmit(&mut client);
    assert!(out.starts_with(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"));
    let frames = frames(&out);
    assert_eq!(frames[0].0, frame::kind::SETTINGS);
    assert!(frames[0].3.chunks(6).any(|e| e == [0, 2, 0, 0, 0, 0]), "push is off");
    assert_eq!(frames[1], (frame::kind::WINDOW_UPDATE, 0, 0, (4 * 1024 * 1024 - 65_535u32).to_be_bytes().to_vec()));
    assert!(!client.has_transmit());
}

#[test]
fn both_ends_exchange_a_message() {
    let mut client = Connection::client(Config::default(), NOW);
    let mut server = Connection::server(Config::default(), NOW);
    let id = client.open(&request(), false).unwrap();
    let body: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
    assert!(client.send_data(id, body.clone(), true));
    let (mut got, mut answer) = (Vec::new(), Vec::new());
    let mut ended = false;
    for _ in 0..1000 {
        let out = transmit(&mut client);
        assert!(out.len() <= 64 * 1024 + 17_000);
        server.handle_bytes(&out, NOW);
        for event in events(&mut server) {
            if let Event::Data { stream, data, end_stream } = event {
                server.release(stream, data.len());
                got.extend(data);
                if end_stream {
                    assert!(server.send_headers(stream, &[Header::new(":status", "200")], false));
                    assert!(server.send_data(stream, got.clone(), false));
                    assert!(server.send_trailers(stream, vec![Header::new("grpc-status", "0")]));
                }
            }
        }
        client.handle_bytes(&transmit(&mut server), NOW);
        for event in events(&mut client) {
            match event {
                Event::Data { stream, data, .. } => {
                    client.release(stream, data.len());
                    answer.extend(data);
                }
                Event::Trailers { .. } => ended = true,
                _ => {}
            }
        }
    }
    assert!(got == body && answer == body && ended);
    assert_eq!((client.open_streams(), server.open_streams()), (0, 0));
}

#[test]
fn works_byte_by_byte() {
    let mut client = client_with_call();
    let wire = Wire::server().ok(1).data(1, b"abc", false).headers(1, &[("grpc-status", "0")], true);
    let mut seen = Vec::new();
    for byte in &wire.out {
        client.handle_bytes(std::slice::from_ref(byte), NOW);
        seen.extend(events(&mut client));
    }
    assert!(matches!(
        &seen[..],
        [Event::Settings, Event::Headers { .. }, Event::Data { data, .. }, Event::Trailers { .. }] if data == b"abc"
    ));
}

#[test]
fn truncation_at_every_byte_never_completes_the_call() {
    let wire = Wire::server().ok(1).data(1, b"abc", false).headers(1, &[("grpc-status", "0")], true);
    for n in 0..wire.out.len() {
        let mut client = client_with_call();
        client.handle_bytes(&wire.out[..n], NOW);
        client.handle_eof();
        let seen = events(&mut client);
        assert!(!seen.iter().any(|e| matches!(e, Event::Trailers { .. })));
        assert!(matches!(seen.last(), Some(Event::Closed { error: ConnectionError::Eof })));
    }
}

#[test]
fn connection_violations_end_the_connection() {
    use frame::kind::*;
    let s = Wire::server;
    let cases: Vec<(&str, Wire, ErrorCode)> = vec![
        ("first frame", Wire::default().raw(PING, 0, 0, &[0; 8]), ErrorCode::PROTOCOL_ERROR),
        ("first is ack", Wire::default().raw(SETTINGS, 1, 0, &[]), ErrorCode::PROTOCOL_ERROR),
        ("push promise", s().raw(PUSH_PROMISE, 4, 1, &[0, 0, 0, 2]), ErrorCode::PROTOCOL_ERROR),
        ("push enabled", s().raw(SETTINGS, 0, 0, &[0, 2, 0, 0, 0, 1]), ErrorCode::PROTOCOL_ERROR),
        ("stray continuation", s().raw(CONTINUATION, 4, 1, &[]), ErrorCode::PROTOCOL_ERROR),
        ("ping in block", s().raw(HEADERS, 0, 1, &[0x88]).raw(PING, 0, 0, &[0; 8]), ErrorCode::PROTOCOL_ERROR),
        ("unknown in block", s().raw(HEADERS, 0, 1, &[0x88]).raw(0xee, 0, 0, &[]), ErrorCode::PROTOCOL_ERROR),
        ("other's continuation", s().raw(HEADERS, 0, 1, &[]).raw(CONTINUATION, 4, 3, &[]), ErrorCode::PROTOCOL_ERROR),
        ("idle data", s().data(3, b"x", false), ErrorCode::PROTOCOL_ERROR),
        ("idle headers", s().ok(3), ErrorCode::PROTOCOL_ERROR),
        ("even headers", s().ok(2), ErrorCode::PROTOCOL_ERROR),
        ("idle reset", s().raw(RST_STREAM, 0, 3, &[0; 4]), ErrorCode::PROTOCOL_ERROR),
        ("idle window", s().raw(WINDOW_UPDATE, 0, 3, &[0, 0, 0, 1]), ErrorCode::PROTOCOL_ERROR),
        ("zero window", s().raw(WINDOW_UPDATE, 0, 0, &[0; 4]), ErrorCode::PROTOCOL_ERROR),
        ("overflow", s().raw(WINDOW_UPDATE, 0, 0, &MAX_WINDOW.to_be_bytes()), ErrorCode::FLOW_CONTROL_ERROR),
        ("big window", s().raw(SETTINGS, 0, 0, &[0, 4, 0x80, 0, 0, 0]), ErrorCode::FLOW_CONTROL_ERROR),
        ("bad hpack", s().raw(HEADERS, 4, 1, &[0x80]), ErrorCode::COMPRESSION_ERROR),
        ("size update 3f", s().raw(HEADERS, 4, 1, &[0x3f]), ErrorCode::COMPRESSION_ERROR),
        ("short goaway", s().raw(GOAWAY, 0, 0, &[0; 7]), ErrorCode::FRAME_SIZE_ERROR),
        ("large frame", s().data(1, &[0; 16_385], false), ErrorCode::FRAME_SIZE_ERROR),
        ("odd settings", s().raw(SETTINGS, 0, 0, &[0; 7]), ErrorCode::FRAME_SIZE_ERROR),
    ];
    for (what, wire, code) in cases {
        let mut client = client_with_call();
        let seen = feed(&mut client, wire);
        assert_eq!(closed_with(&seen), Some(code), "{what}: {seen:?}");
        let last = frames(&transmit(&mut client)).pop().unwrap();
        assert_eq!(last.0, GOAWAY, "{what}");
        assert_eq!(last.3[4..8], code.0.to_be_bytes(), "{what}");
        assert_eq!(client.poll_timeout(), None);
    }
}

#[test]
fn a_change_of_the_initial_window_that_overflows_ends_the_connection() {
    let mut client = client_with_call();
    let wire = Wire::server().raw(frame::kind::WINDOW_UPDATE, 0, 1, &(MAX_WINDOW - 65_535).to_be_bytes()).raw(
        frame::kind::SETTINGS,
        0,
        0,
        &[0, 4, 0, 1, 0, 0],
    );
    assert_eq!(closed_with(&feed(&mut client, wire)), Some(ErrorCode::FLOW_CONTROL_ERROR));
}

#[test]
fn stream_violations_end_only_the_stream() {
    let s = Wire::server;
    let cases: Vec<(&str, Wire, ErrorCode)> = vec![
        ("data first", s().data(1, b"x", false), ErrorCode::PROTOCOL_ERROR),
        ("zero window", s().raw(frame::kind::WINDOW_UPDATE, 0, 1, &[0; 4]), ErrorCode::PROTOCOL_ERROR),
        (
            "overflow",
            s().raw(frame::kind::WINDOW_UPDATE, 0, 1, &MAX_WINDOW.to_be_bytes()),
            ErrorCode::FLOW_CONTROL_ERROR,
        ),
        ("priority", s().raw(frame::kind::PRIORITY, 0, 1, &[0; 4]), ErrorCode::FRAME_SIZE_ERROR),
        ("no status", s().headers(1, &[("a", "b")], false), ErrorCode::PROTOCOL_ERROR),
        ("upper case", s().headers(1, &[(":status", "200"), ("A", "b")], false), ErrorCode::PROTOCOL_ERROR),
        ("late pseudo", s().headers(1, &[("a", "b"), (":status", "200")], false), ErrorCode::PROTOCOL_ERROR),
        ("1xx ends", s().headers(1, &[(":status", "103")], true), ErrorCode::PROTOCOL_ERROR),
        ("two heads", s().ok(1).ok(1), ErrorCode::PROTOCOL_ERROR),
        ("pseudo trailer", s().ok(1).headers(1, &[(":status", "200")], true), ErrorCode::PROTOCOL_ERROR),
        (
            "short body",
            s().headers(1, &[(":status", "200"), ("content-length", "2")], false).data(1, b"x", true),
            ErrorCode::PROTOCOL_ERROR,
        ),
        (
            "long body",
            s().headers(1, &[(":status", "200"), ("content-length", "0")], false).data(1, b"x", false),
            ErrorCode::PROTOCOL_ERROR,
        ),
    ];
    for (what, wire, code) in cases {
        let mut client = client_with_call();
        let seen = feed(&mut client, wire);
        assert_eq!(reset_with(&seen), Some(code), "{what}: {seen:?}");
        let out = frames(&transmit(&mut client));
        assert!(out.contains(&(frame::kind::RST_STREAM, 0, 1, code.0.to_be_bytes().to_vec())), "{what}");
        assert_eq!(client.open(&request(), true), Ok(3));
    }
}

#[test]
fn interim_responses_are_skipped_up_to_a_limit() {
    let mut wire = Wire::server();
    for _ in 0..16 {
        wire = wire.headers(1, &[(":status", "103")], false);
    }
    let mut client = client_with_call();
    assert!(matches!(&feed(&mut client, wire)[..], [Event::Settings]));
    let seen = feed(&mut client, Wire::default().headers(1, &[(":status", "100")], false));
    assert_eq!(reset_with(&seen), Some(ErrorCode::PROTOCOL_ERROR));
}

#[test]
fn floods_are_cut_off() {
    use frame::kind::*;
    let repeat = |n: usize, kind, flags, stream, payload: &[u8]| {
        (0..n).fold(Wire::server().ok(1), |wire, _| wire.raw(kind, flags, stream, payload))
    };
    let mut list = Wire::server().raw(HEADERS, 0, 1, &[]);
    for _ in 0..9 {
        list = list.raw(CONTINUATION, 0, 1, &[0x88]);
    }
    let cases = vec![
        ("pings", repeat(33, PING, 0, 0, &[0; 8])),
        ("settings", repeat(33, SETTINGS, 0, 0, &[])),
        ("empty data", repeat(65, DATA, 0, 1, &[])),
        ("many continuations", list),
        ("large block", Wire::server().raw(HEADERS, 0, 1, &[0; 16_000]).raw(CONTINUATION, 0, 1, &[0; 1000])),
        ("many settings", repeat(1, SETTINGS, 0, 0, &[0; 65 * 6])),
    ];
    for (what, wire) in cases {
        let seen = feed(&mut client_with_call(), wire);
        assert_eq!(closed_with(&seen), Some(ErrorCode::ENHANCE_YOUR_CALM), "{what}");
    }
}

#[test]
fn too_many_stream_errors_end_the_connection() {
    let mut client = Connection::client(Config::default(), NOW);
    let mut wire = Wire::server();
    for i in 0..9 {
        assert_eq!(client.open(&request(), true), Ok(i * 2 + 1));
        wire = wire.headers(i * 2 + 1, &[("no", "status")], false);
    }
    assert_eq!(closed_with(&feed(&mut client, wire)), Some(ErrorCode::ENHANCE_YOUR_CALM));
}

#[test]
fn late_frames_after_our_reset_are_ignored_and_their_bytes_given_back() {
    let mut client = client_with_call();
    client.reset(1, ErrorCode::CANCEL);
    let mut wire = Wire::server().ok(1);
    for _ in 0..300 {
        wire = wire.data(1, &[7; 16_000], false);
    }
    wire = wire.headers(1, &[("grpc-status", "0")], true);
    let seen = feed(&mut client, wire);
    assert_eq!(seen, [Event::Settings], "4.8 MB go through a window of 4 MiB");
}

#[test]
fn overrun_of_the_stream_window_ends_the_stream() {
    let config = Config { stream_window: 65_535, ..Config::default() };
    let mut client = Connection::client(config, NOW);
    client.open(&request(), true).unwrap();
    let wire = (0..5).fold(Wire::server().ok(1), |wire, _| wire.data(1, &[0; 14_000], false));
    assert_eq!(reset_with(&feed(&mut client, wire)), Some(ErrorCode::FLOW_CONTROL_ERROR));
}

#[test]
fn small_data_frames_become_one_piece_and_padding_is_given_back() {
    let mut wire = Wire::server().ok(1);
    for _ in 0..100 {
        wire = wire.data(1, b"x", false);
    }
    for _ in 0..5000 {
        wire = wire.raw(frame::kind::DATA, 0x8, 1, &[&[254, b'y'][..], &[0; 254]].concat());
    }
    let seen = feed(&mut client_with_call(), wire);
    assert!(matches!(&seen[2..], [Event::Data { data, .. }] if data.len() == 5100));
}

#[test]
fn sending_follows_both_windows_and_changes_of_settings() {
    let mut client = Connection::client(Config::default(), NOW);
    let id = client.open(&request(), false).unwrap();
    client.send_data(id, vec![1; 200_000], true);
    let sent = |client: &mut Connection| -> usize {
        let mut out = Vec::new();
        for _ in 0..10 {
            client.poll_transmit(&mut out);
        }
        frames(&out).iter().filter(|f| f.0 == frame::kind::DATA).map(|f| f.3.len()).sum()
    };
    assert_eq!(sent(&mut client), 65_535);
    feed(&mut client, Wire::server().raw(frame::kind::WINDOW_UPDATE, 0, 0, &1_000_000u32.to_be_bytes()));
    assert_eq!(sent(&mut client), 0, "the stream's window is empty");
    feed(&mut client, Wire::default().raw(frame::kind::SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]));
    feed(&mut client, Wire::default().raw(frame::kind::WINDOW_UPDATE, 0, 1, &65_535u32.to_be_bytes()));
    assert_eq!(sent(&mut client), 0, "the window was negative");
    feed(&mut client, Wire::default().raw(frame::kind::WINDOW_UPDATE, 0, 1, &1u32.to_be_bytes()));
    assert_eq!(sent(&mut client), 1);
    feed(&mut client, Wire::default().raw(frame::kind::SETTINGS, 0, 0, &[0, 4, 0, 4, 0, 0]));
    assert_eq!(sent(&mut client), 200_000 - 65_536);
    assert_eq!(client.streams.get(1).unwrap().state, State::HalfClosedLocal);
}

#[test]
fn streams_take_turns() {
    let mut client = Connection::client(Config::default(), NOW);
    for id in [1, 3, 5] {
        client.open(&request(), false).unwrap();
        client.send_data(id, vec![0; 16_384 * 2], true);
    }
    feed(&mut client, Wire::server().raw(frame::kind::WINDOW_UPDATE, 0, 0, &1_000_000u32.to_be_bytes()));
    let mut out = Vec::new();
    client.poll_transmit(&mut out);
    client.poll_transmit(&mut out);
    let order: Vec<u32> = frames(&out).iter().filter(|f| f.0 == frame::kind::DATA).map(|f| f.2).collect();
    assert_eq!(order, [1, 3, 5, 1, 3, 5]);
}

#[test]
fn go_away_tells_what_was_not_processed() {
    let mut client = Connection::client(Config::default(), NOW);
    for _ in 0..3 {
        client.open(&request(), true).unwrap();
    }
    let seen =
        feed(&mut client, Wire::server().raw(frame::kind::GOAWAY, 0, 0, &[0, 0, 0, 3, 0, 0, 0, 0, b'b', b'y', b'e']));
    assert_eq!(seen[1], Event::GoAway { last_stream: 3, code: ErrorCode::NO_ERROR });
    assert!(matches!(seen[2], Event::Reset { stream: 5, cause: ResetCause::NotProcessed, .. }));
    assert_eq!(client.open(&request(), true), Err(OpenError::Closing));
    let seen = feed(&mut client, Wire::default().headers(1, &[(":status", "200")], true));
    assert_eq!(seen.len(), 1, "what is left goes on");
    let seen = feed(&mut client, Wire::default().headers(3, &[(":status", "200")], true));
    let end = ConnectionError::GoneAway { code: ErrorCode::NO_ERROR, debug: "bye".into() };
    assert_eq!(seen.last(), Some(&Event::Closed { error: end }));
    let raise = |last: u8| Wire::default().raw(frame::kind::GOAWAY, 0, 0, &[0, 0, 0, last, 0, 0, 0, 0]);
    let mut client = client_with_call();
    feed(&mut client, Wire::server());
    feed(&mut client, raise(1));
    assert_eq!(closed_with(&feed(&mut client, raise(3))), Some(ErrorCode::PROTOCOL_ERROR));
}

#[test]
fn keepalive_pings_only_while_a_stream_is_open() {
    let keepalive = Some(KeepAlive { idle: Duration::from_secs(20), timeout: Duration::from_secs(10) });
    let mut client = Connection::client(Config { keepalive, ..Config::default() }, NOW);
    feed(&mut client, Wire::server());
    assert_eq!(client.poll_timeout(), None);
    client.open(&request(), true).unwrap();
    transmit(&mut client);
    let due = NOW + Duration::from_secs(20);
    assert_eq!(client.poll_timeout(), Some(due));
    client.handle_timeout(due);
    let ping = frames(&transmit(&mut client)).pop().unwrap();
    assert_eq!((ping.0, ping.1), (frame::kind::PING, 0));
    let answered = Wire::default().raw(frame::kind::PING, 1, 0, &ping.3);
    client.handle_bytes(&answered.out, due);
    assert_eq!(client.poll_timeout(), Some(due + Duration::from_secs(40)), "patience grows");
    client.handle_timeout(due + Duration::from_secs(40));
    client.handle_timeout(due + Duration::from_secs(50));
    assert!(matches!(&events(&mut client)[..], [Event::Closed { error: ConnectionError::TimedOut { .. } }]));
}

#[test]
fn handshake_has_a_deadline() {
    let mut client = Connection::client(Config::default(), NOW);
    client.handle_timeout(NOW + Duration::from_secs(20));
    assert!(matches!(&events(&mut client)[..], [Event::Closed { error: ConnectionError::TimedOut { .. } }]));
}

#[test]
fn peer_limits_open_streams() {
    let mut client = Connection::client(Config::default(), NOW);
    feed(&mut client, Wire::default().raw(frame::kind::SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 1]));
    assert_eq!(client.open(&request(), true), Ok(1));
    assert_eq!(client.open(&request(), true), Err(OpenError::TooManyStreams));
    feed(&mut client, Wire::default().headers(1, &[(":status", "200")], true));
    assert_eq!(client.open(&request(), true), Ok(3));
}

#[test]
fn server_refuses_what_clients_must_not_do() {
    let c = Wire::client;
    let cases = vec![
        ("even", c().request(2, true), ErrorCode::PROTOCOL_ERROR),
        ("closed", c().request(3, true).request(1, true), ErrorCode::PROTOCOL_ERROR),
        ("preface", Wire { out: b"GET / HTTP/1.1\r\n\r\n".to_vec(), ..Wire::default() }, ErrorCode::PROTOCOL_ERROR),
    ];
    for (what, wire, code) in cases {
        let mut server = Connection::server(Config::default(), NOW);
        assert_eq!(closed_with(&feed(&mut server, wire)), Some(code), "{what}");
    }
    let mut server = Connection::server(Config::default(), NOW);
    let seen = feed(&mut server, c().request(1, true).data(1, b"x", false));
    assert_eq!(reset_with(&seen), Some(ErrorCode::STREAM_CLOSED));
}

#[test]
fn server_refuses_streams_beyond_its_limit_and_survives() {
    let mut server = Connection::server(Config { max_concurrent_streams: 1, ..Config::default() }, NOW);
    let seen = feed(&mut server, Wire::client().request(1, true).request(3, true));
    assert_eq!(seen.len(), 2);
    let out = frames(&transmit(&mut server));
    assert!(out.contains(&(frame::kind::RST_STREAM, 0, 3, vec![0, 0, 0, 7])));
}

#[test]
fn rapid_reset_is_cut_off() {
    let mut server = Connection::server(Config::default(), NOW);
    let mut wire = Wire::client();
    for i in 0..101 {
        wire = wire.request(i * 2 + 1, true).raw(frame::kind::RST_STREAM, 0, i * 2 + 1, &[0, 0, 0, 8]);
    }
    assert_eq!(closed_with(&feed(&mut server, wire)), Some(ErrorCode::ENHANCE_YOUR_CALM));
}

#[test]
fn server_that_answers_early_stops_the_request() {
    let mut server = Connection::server(Config::default(), NOW);
    feed(&mut server, Wire::client().request(1, false));
    transmit(&mut server);
    assert!(server.send_headers(1, &[Header::new(":status", "200")], true));
    let out = frames(&transmit(&mut server));
    assert!(
        matches!(&out[..], [(frame::kind::HEADERS, 5, 1, _), (frame::kind::RST_STREAM, 0, 1, code)] if code == &[0; 4])
    );
    assert_eq!(server.open_streams(), 0);
}

#[test]
fn mutated_conversations_never_panic() {
    let server_side = Wire::server().ok(1).data(1, b"abc", false).headers(1, &[("grpc-status", "0")], true);
    let client_side = Wire::client().request(1, false).data(1, b"abc", true).request(3, true);
    let mut seed = 0x2545_f491_4f6c_dd1du64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed >> 16) as usize
    };
    for i in 0..20_000 {
        let is_client = i % 2 == 0;
        let mut bytes = if is_client { server_side.out.clone() } else { client_side.out.clone() };
        for _ in 0..=random() % 4 {
            let at = random() % bytes.len();
            bytes[at] = random() as u8;
        }
        let mut connection = if is_client { client_with_call() } else { Connection::server(Config::default(), NOW) };
        let cut = random() % bytes.len();
        connection.handle_bytes(&bytes[..cut], NOW);
        transmit(&mut connection);
        connection.handle_bytes(&bytes[cut..], NOW);
        transmit(&mut connection);
        let seen = events(&mut connection);
        assert!(seen.len() < 64 && connection.input.len() < frame::HEADER_LEN + frame::MAX_FRAME_SIZE);
    }
}

//! What a hostile or broken server can do to a call: rows 19 to 26 and 28 to 35 of the table of attacks, and the table of
//! what may be tried again. Each test is named after its row.
#![allow(clippy::unwrap_used, unsafe_code)]

mod attack_support;

use std::time::Duration;

use attack_support::*;
use hivemind_worker::grpc::{CallError, CallId, Client, ClientEvent, Code, Processed, Request};
use hivemind_worker::h2::ConnectionError;
use hivemind_worker::h2::hpack::Decoder;

/// Error codes of RFC 9113 section 7.
const NO_ERROR: u32 = 0;
const PROTOCOL_ERROR: u32 = 1;
const ENHANCE_YOUR_CALM: u32 = 11;
const CANCEL: u32 = 8;

const STATUS_OK: [(&str, &str); 1] = [("grpc-status", "0")];

fn answers(client: &mut Client) -> Vec<(u64, CallError)> {
    let events = std::iter::from_fn(|| client.poll_event());
    events
        .filter_map(|event| match event {
            ClientEvent::Answer { id, result } => Some((id.0, result.unwrap_err())),
            _ => None,
        })
        .collect()
}

/// The fields of the first call's request.
fn request_fields(client: &mut Client) -> Vec<(String, String)> {
    let sent = transmit(client).into_iter().find(|sent| sent.kind == HEADERS).unwrap();
    let fields = Decoder::new(4096, 16 * 1024).decode(&sent.payload).unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    fields.into_iter().map(|f| (text(f.name.to_vec()), text(f.value.to_vec()))).collect()
}

#[test]
fn row_19_messages_that_are_too_long() {
    let limit = 4 * 1024 * 1024u32;
    for length in [u32::MAX, limit + 1] {
        let prefix = [&[0][..], &length.to_be_bytes()].concat();
        let start = [ok_head(1), frame(DATA, 0, 1, &prefix)].concat();
        // What comes after the refusal is not kept, and the windows go back.
        let outcome = attack(&[start, flood(&frame(DATA, 0, 1, &[7; 16_000]))].concat());
        outcome.ends_call(Code::ResourceExhausted, CANCEL, 128);
        assert_eq!(outcome.error().processed, Processed::Maybe);
    }
    // A length that is allowed costs nothing until bytes come.
    let prefix = [&[0][..], &limit.to_be_bytes()].concat();
    let outcome = attack(&[ok_head(1), frame(DATA, 0, 1, &prefix)].concat());
    assert!(outcome.result.is_none() && outcome.growth < 50_000);
}

/// 16 MiB of zeros that gzip packed would be this small; here only its head, since nobody may unpack it.
fn packed(encoding: &str, flag: u8) -> Vec<u8> {
    let head = head(1, &[OK[0], OK[1], ("grpc-encoding", encoding)]);
    let gzip = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];
    [head, frame(DATA, 0, 1, &[&[flag, 0, 0, 0x40, 0][..], &gzip].concat())].concat()
}

#[test]
fn row_20_gzip_bomb() {
    let offered = request_fields(&mut {
        let mut client = new_client();
        client.call(CallId(1), request(b"x"), NOW);
        client
    });
    assert!(offered.iter().all(|(name, _)| name != "grpc-accept-encoding" && name != "accept-encoding"));
    let outcome = attack(&[packed("gzip", 1), flood(&frame(DATA, 0, 1, &[0; 16_000]))].concat());
    outcome.ends_call(Code::Internal, CANCEL, 192);
    assert!(outcome.error().status.message.contains("compressed"));
}

#[test]
fn row_21_compressed_without_an_encoding() {
    let outcome = attack(&[ok_head(1), frame(DATA, 0, 1, &[1, 0, 0, 0, 1, 7])].concat());
    outcome.ends_call(Code::Internal, CANCEL, 192);
    assert_eq!(attack(&answer(&[1, 0, 0, 0, 1, 7], &STATUS_OK)).code(), Code::Internal);
    for (encoding, flag) in [("identity", 1), ("zz-unknown", 1), ("gzip", 2)] {
        attack(&packed(encoding, flag)).ends_call(Code::Internal, CANCEL, 192);
    }
    // A message that says it is not packed is read, whatever encoding the head names.
    let head = head(1, &[OK[0], OK[1], ("grpc-encoding", "gzip")]);
    let plain = attack(&[head, frame(DATA, 0, 1, &MESSAGE), end(1, &STATUS_OK)].concat());
    assert_eq!(plain.code(), Code::Ok);
}

#[test]
fn row_22_two_messages_or_none() {
    let two = attack(&answer(&[MESSAGE, MESSAGE].concat(), &STATUS_OK));
    assert_eq!((two.code(), two.go_away), (Code::Unimplemented, None));
    let none = attack(&answer(&[], &STATUS_OK));
    assert_eq!((none.code(), none.resets.len()), (Code::Unimplemented, 0));
    let only_trailers = attack(&end(1, &[OK[0], OK[1], STATUS_OK[0]]));
    assert_eq!(only_trailers.code(), Code::Unimplemented);
    // No end of messages.
    let outcome = attack(&[ok_head(1), flood(&frame(DATA, 0, 1, &MESSAGE))].concat());
    outcome.ends_call(Code::Unimplemented, CANCEL, 192);
}

#[test]
fn row_23_bytes_left_over_and_truncated_messages() {
    for body in [
        [&MESSAGE[..], &[0]].concat(),
        [&MESSAGE[..], &[0, 0, 0, 0, 2, 7]].concat(),
        MESSAGE[..5].to_vec(),
        MESSAGE[..3].to_vec(),
        vec![0, 0, 0, 0, 9, 7],
    ] {
        let outcome = attack(&answer(&body, &STATUS_OK));
        assert_eq!((outcome.code(), outcome.go_away), (Code::Internal, None), "{body:?}");
        outcome.is_cheap(192);
    }
    // A body that ends without trailers, in the middle.
    let cut = attack(&[ok_head(1), frame(DATA, 1, 1, &MESSAGE[..5])].concat());
    assert_eq!(cut.code(), Code::Unknown, "no status at all");
}

#[test]
fn row_24_endless_interim_responses() {
    let interim = |status| head(1, &[(":status", status)]);
    let outcome = attack(&flood(&interim("103")));
    outcome.ends_call(Code::Internal, PROTOCOL_ERROR, 17 * interim("103").len() + 64);
    attack(&end(1, &[(":status", "100")])).ends_call(Code::Internal, PROTOCOL_ERROR, 64);
    attack(&interim("101")).ends_call(Code::Internal, PROTOCOL_ERROR, 64);
    let outcome = attack(&[interim("100"), interim("103").repeat(15), good(1)].concat());
    assert_eq!(outcome.code(), Code::Ok, "sixteen are passed over");
}

#[test]
fn row_25_push_promise() {
    let ack = frame(SETTINGS, 1, 0, &[]);
    let promise = frame(PUSH_PROMISE, 4, 1, &[&[0, 0, 0, 2][..], &block(&REQUEST)].concat());
    let outcome = attack(&[ack, promise.clone()].concat());
    outcome.ends_connection(Code::Internal, PROTOCOL_ERROR, 192);
    attack(&promise).ends_connection(Code::Internal, PROTOCOL_ERROR, 192);
}

#[test]
fn row_26_malformed_messages() {
    let with = |extra: &[(&str, &str)]| head(1, &[&OK, extra].concat());
    let after_head = |bytes: Vec<u8>| [ok_head(1), bytes].concat();
    let cases = [
        with(&[(":status", "200")]),
        head(1, &[("a", "b"), (":status", "200")]),
        head(1, &[("content-type", "application/grpc")]),
        head(1, &[(":status", "2OO")]),
        head(1, &[(":status", "200"), (":path", "/")]),
        with(&[("Upper", "x")]),
        with(&[("a b", "x")]),
        with(&[("a", "x\0")]),
        with(&[("a", "x\r")]),
        with(&[("a", "x\ny")]),
        with(&[("a", " x")]),
        with(&[("connection", "close")]),
        with(&[("transfer-encoding", "chunked")]),
        with(&[("upgrade", "h2c")]),
        with(&[("content-length", "x")]),
        with(&[("content-length", "1"), ("content-length", "2")]),
        [with(&[("content-length", "9")]), frame(DATA, 0, 1, &MESSAGE), end(1, &STATUS_OK)].concat(),
        [with(&[("content-length", "5")]), frame(DATA, 0, 1, &MESSAGE)].concat(),
        after_head(end(1, &[(":status", "200"), ("grpc-status", "0")])),
        after_head(head(1, &STATUS_OK)),
        frame(DATA, 0, 1, &MESSAGE),
    ];
    for bytes in cases {
        attack(&bytes).ends_call(Code::Internal, PROTOCOL_ERROR, 192);
    }
    // Only the call is lost.
    let make = || {
        let mut client = client();
        client.call(CallId(2), request(b"x"), NOW);
        client
    };
    let outcome = attack_as(Peer::Reads, &[with(&[("Upper", "x")]), good(3)].concat(), make);
    assert_eq!((outcome.code(), outcome.closed), (Code::Internal, None));
}

#[test]
fn row_28_padding_priority_and_what_is_unknown() {
    let (fields, unknown) = (block(&OK), frame(0x42, 0xff, 0, &[7; 100]));
    let padded = [&[3, 0x80, 0, 0, 1, 16][..], &fields, &[0, 0, 0]].concat();
    let bytes = [
        unknown.clone(),
        frame(SETTINGS, 0, 0, &[0x7f, 0x7f, 1, 2, 3, 4]),
        frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1]),
        frame(PRIORITY, 0, 99, &[0, 0, 0, 3, 1]),
        frame(HEADERS, 0x4 | 0x8 | 0x20, 1, &padded),
        frame(0x42, 0xff, 1, &[]),
        frame(DATA, 0x8, 1, &[&[250][..], &MESSAGE, &[0; 250]].concat()),
        frame(0x42, 0xff, 1, &[1]),
        end(1, &STATUS_OK),
    ];
    assert_eq!(attack(&bytes.concat()).code(), Code::Ok);
    // 16 MiB of it leave the call alone and cost nothing.
    let outcome = attack(&[flood(&unknown), flood(&frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1])), good(1)].concat());
    assert_eq!(outcome.code(), Code::Ok);
    assert!(outcome.growth < 200_000);
    // Inside a field block they end the connection.
    let outcome = attack(&[frame(HEADERS, 0, 1, &fields), unknown, frame(CONTINUATION, 4, 1, &[])].concat());
    outcome.ends_connection(Code::Internal, PROTOCOL_ERROR, 192);
    // Padding that is as long as the frame does so too.
    let outcome = attack(&[ok_head(1), frame(DATA, 0x8, 1, &[2, 0])].concat());
    outcome.ends_connection(Code::Internal, PROTOCOL_ERROR, 128);
}

#[test]
fn row_29_binary_metadata() {
    let body = frame(DATA, 0, 1, &MESSAGE);
    let metadata = [("a-bin", "AP8"), ("b-bin", "AP8="), ("c-bin", "Zg==,Zm8,")];
    let outcome = attack(&[head(1, &[&OK[..], &metadata].concat()), body.clone(), end(1, &STATUS_OK)].concat());
    let response = outcome.result.unwrap().unwrap();
    let all: Vec<(&str, &[u8])> = response.metadata.iter().collect();
    assert_eq!(all[..2], [("a-bin", &[0, 255][..]), ("b-bin", &[0, 255])]);
    assert_eq!(all[2..], [("c-bin", &b"f"[..]), ("c-bin", b"fo"), ("c-bin", b"")]);
    for broken in ["!", "A", "AP8==", "A=P8"] {
        let outcome = attack(&head(1, &[&OK[..], &[("a-bin", broken)]].concat()));
        outcome.ends_call(Code::Internal, CANCEL, 192);
        let outcome = attack(&answer(&MESSAGE, &[("grpc-status", "0"), ("a-bin", broken)]));
        assert_eq!((outcome.code(), outcome.go_away), (Code::Internal, None));
    }
    // A value as long as a field list can be.
    let long = "A".repeat(15_000);
    let outcome = attack(&head(1, &[&OK[..], &[("a-bin", &long)]].concat()));
    assert!(outcome.result.is_none() && outcome.growth <= MAX_GROWTH);
}

#[test]
fn row_30_odd_and_absent_status() {
    for (status, want) in [("x", 2), ("", 2), ("-1", 2), ("17", 2), ("99999999999999999999", 2), ("5", 5), ("16", 16)] {
        let outcome = attack(&answer(&MESSAGE, &[("grpc-status", status)]));
        assert_eq!(outcome.code().number(), want, "{status}");
        assert_eq!(outcome.error().processed, Processed::Maybe);
    }
    let codes = [(400, 13), (401, 16), (403, 7), (404, 12), (429, 14), (502, 14), (503, 14), (504, 14), (431, 13)];
    for (status, want) in codes.into_iter().chain([(200, 2), (418, 2), (500, 2), (302, 2)]) {
        let status = status.to_string();
        let absent = attack(&end(1, &[(":status", &status)]));
        assert_eq!(absent.code().number(), want, "{status}");
        let page = [head(1, &[(":status", &status), OK[1]]), frame(DATA, 0, 1, &[0; 5]), end(1, &[("a", "b")])];
        assert_eq!(attack(&page.concat()).code().number(), want, "{status}");
        // One that is there counts whatever HTTP says.
        let present = attack(&end(1, &[(":status", &status), ("grpc-status", "9")]));
        assert_eq!(present.code(), Code::FailedPrecondition, "{status}");
    }
    // A page without end is read over up to the limit of the answer.
    let page = [head(1, &[(":status", "503")]), flood(&frame(DATA, 0, 1, &[b'<'; 16_000]))].concat();
    let outcome = attack(&page);
    outcome.ends_call(Code::Unavailable, CANCEL, 4 * 1024 * 1024 + 32 * 1024);
    // A page where a message should be is refused at its head.
    let page = [head(1, &[OK[0], ("content-type", "text/html")]), flood(&frame(DATA, 0, 1, &[b'<'; 16_000]))].concat();
    attack(&page).ends_call(Code::Unknown, CANCEL, 128);
}

#[test]
fn row_31_status_in_the_head_of_a_longer_answer() {
    let early = |status| head(1, &[OK[0], OK[1], ("grpc-status", status)]);
    let body = frame(DATA, 0, 1, &MESSAGE);
    let outcome = attack(&[early("5"), body.clone(), end(1, &STATUS_OK)].concat());
    assert_eq!(outcome.code(), Code::Ok);
    let outcome = attack(&[early("0"), end(1, &[("grpc-status", "7")])].concat());
    assert_eq!(outcome.code(), Code::PermissionDenied);
    let outcome = attack(&[early("0"), frame(DATA, 1, 1, &MESSAGE)].concat());
    assert_eq!(outcome.code(), Code::Unknown, "a body without trailers has no status");
    let outcome = attack(&end(1, &[OK[0], OK[1], ("grpc-status", "5")]));
    assert_eq!(outcome.code(), Code::NotFound, "with END_STREAM it counts");
}

#[test]
fn row_32_odd_messages() {
    for (sent, want) in [
        ("plain", "plain"),
        ("%C3%BC", "ü"),
        ("100%", "100%"),
        ("%zz %4", "%zz %4"),
        ("%FF", "\u{fffd}"),
        ("%00%0A", "\0\n"),
        ("%25%41", "%A"),
    ] {
        let outcome = attack(&answer(&MESSAGE, &[("grpc-status", "9"), ("grpc-message", sent)]));
        let status = &outcome.error().status;
        assert_eq!((status.code, status.message.as_str()), (Code::FailedPrecondition, want));
        assert!(status.to_string().is_ascii() || want == "ü" || want == "\u{fffd}", "shown without control characters");
    }
    let long = "%41".repeat(5_000);
    let outcome = attack(&answer(&MESSAGE, &[("grpc-status", "9"), ("grpc-message", &long)]));
    assert_eq!(outcome.error().status.message.len(), 5_000);
}

#[test]
fn row_33_timeouts_on_the_wire() {
    for (timeout, want) in [
        (Duration::from_nanos(1), "1n"),
        (Duration::from_millis(1_500), "1500000u"),
        (Duration::from_nanos(100_000_000_001), "100001m"),
        (Duration::from_secs(400_000_000_000), "6666666667M"),
        // Counted in 64 bits of nanoseconds: more than 584 years are 584 years.
        (Duration::MAX - Duration::from_secs(1), "5124096H"),
    ] {
        let mut client = new_client();
        client.call(CallId(1), Request { timeout, ..request(b"x") }, NOW);
        let fields = request_fields(&mut client);
        let value = &fields.iter().find(|(name, _)| name == "grpc-timeout").unwrap().1;
        let digits = &value[..value.len() - 1];
        assert!(digits.len() <= 8 && digits.parse::<u32>().unwrap() > 0, "{value}");
        assert!(value == want || want.len() > 9, "{value}");
    }
    // For ever is not told.
    let mut endless = new_client();
    endless.call(CallId(1), Request { timeout: Duration::MAX, ..request(b"x") }, NOW);
    assert!(request_fields(&mut endless).iter().all(|(name, _)| name != "grpc-timeout"));
    // One that has passed already sends nothing.
    let mut client = client();
    client.call(CallId(2), Request { timeout: Duration::ZERO, ..request(b"x") }, NOW);
    assert!(transmit(&mut client).is_empty());
    let got = answers(&mut client);
    assert_eq!((got[0].0, got[0].1.status.code, got[0].1.processed), (2, Code::DeadlineExceeded, Processed::No));
}

#[test]
fn row_34_codes_of_resets() {
    let codes = [(0, 13), (1, 13), (2, 13), (3, 13), (4, 13), (6, 13), (9, 13), (10, 13), (7, 14), (8, 1), (11, 8)];
    for (reset, want) in codes.into_iter().chain([(12, 7), (5, 2), (13, 2), (0x1234_5678, 2)]) {
        let outcome = attack(&frame(RST_STREAM, 0, 1, &u32::to_be_bytes(reset)));
        assert_eq!(outcome.code().number(), want, "{reset}");
        let processed = if reset == 7 { Processed::No } else { Processed::Maybe };
        assert_eq!((outcome.error().processed, outcome.resets.len()), (processed, 0));
    }
    // CANCEL after our deadline is the deadline.
    let mut client = client();
    client.handle_bytes(&[settings(), frame(RST_STREAM, 0, 1, &[0, 0, 0, 8])].concat(), NOW + Duration::from_secs(10));
    assert_eq!(answers(&mut client)[0].1.status.code, Code::DeadlineExceeded);
}

#[test]
fn row_35_answer_before_the_request_has_ended() {
    let make = || client_with(request(&vec![7; 1_000_000]));
    for (bytes, want) in [
        (good(1), Code::Ok),
        (end(1, &[OK[0], OK[1], ("grpc-status", "8")]), Code::ResourceExhausted),
        ([good(1), frame(RST_STREAM, 0, 1, &[0; 4])].concat(), Code::Ok),
    ] {
        let outcome = attack_as(Peer::Reads, &bytes, make);
        assert_eq!((outcome.code(), outcome.go_away), (want, None));
        let mut client = make();
        client.handle_bytes(&[settings(), bytes.clone()].concat(), NOW);
        // The window is opened wide, and still no more of the body is sent.
        client.handle_bytes(&frame(WINDOW_UPDATE, 0, 0, &[0x0f, 0, 0, 0]), NOW);
        let sent = transmit(&mut client);
        assert!(sent.iter().all(|sent| sent.kind != DATA), "the rest is not sent");
        let resets: Vec<_> = sent.iter().filter(|sent| sent.kind == RST_STREAM).collect();
        let is_reset_by_peer = bytes.len() > good(1).len();
        assert_eq!(resets.len(), usize::from(!is_reset_by_peer));
        assert!(resets.iter().all(|sent| sent.stream == 1 && sent.payload == NO_ERROR.to_be_bytes()));
    }
}

// What may be tried again.

#[test]
fn retry_when_the_head_was_never_written() {
    // The connection ends before anything was taken from us.
    let mut client = new_client();
    client.call(CallId(1), request(b"x"), NOW);
    client.handle_eof(NOW);
    let got = answers(&mut client);
    assert_eq!((got[0].1.status.code, got[0].1.processed), (Code::Unavailable, Processed::No));
    // A call that waits for a stream is handed back whole, with its deadline.
    let mut client = attack_support::client();
    client.handle_bytes(&frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 1]), NOW);
    client.call(CallId(2), request(b"y"), NOW);
    client.handle_eof(NOW);
    let waiting = client.take_waiting();
    assert_eq!((waiting[0].id, &waiting[0].request.body[..]), (CallId(2), &b"y"[..]));
    assert_eq!(waiting[0].deadline, NOW + Duration::from_secs(10));
}

#[test]
fn retry_when_the_stream_was_refused() {
    let outcome = attack(&frame(RST_STREAM, 0, 1, &[0, 0, 0, 7]));
    assert_eq!((outcome.code(), outcome.error().processed), (Code::Unavailable, Processed::No));
    assert!(outcome.closed.is_none(), "the connection can be used");
}

fn go_away(last: u32, code: u32) -> Vec<u8> {
    frame(GOAWAY, 0, 0, &[last.to_be_bytes(), code.to_be_bytes()].concat())
}

#[test]
fn retry_when_the_server_goes_away_below_our_stream() {
    for code in [NO_ERROR, ENHANCE_YOUR_CALM] {
        let outcome = attack(&go_away(0, code));
        assert_eq!((outcome.code(), outcome.error().processed), (Code::Unavailable, Processed::No));
        assert!(matches!(&outcome.closed, Some(ConnectionError::GoneAway { code: c, .. }) if c.0 == code));
    }
}

#[test]
fn retry_not_when_the_server_goes_away_at_or_above_our_stream() {
    let mut client = client();
    client.call(CallId(2), request(b"x"), NOW);
    // A notice, then the true number: it may only fall.
    client.handle_bytes(&[settings(), go_away(0x7fff_ffff, 0)].concat(), NOW);
    assert!(client.is_closing() && answers(&mut client).is_empty());
    client.call(CallId(3), request(b"z"), NOW);
    assert!(transmit(&mut client).iter().all(|sent| sent.kind != HEADERS || sent.stream <= 3), "nothing new");
    client.handle_bytes(&go_away(1, 0), NOW);
    let got = answers(&mut client);
    assert_eq!((got[0].0, got[0].1.processed), (2, Processed::No));
    assert_eq!(client.take_waiting()[0].id, CallId(3));
    client.handle_bytes(&good(1), NOW);
    let answered = std::iter::from_fn(|| client.poll_event());
    let finished = answered.filter(|e| matches!(e, ClientEvent::Answer { id: CallId(1), result: Ok(_) })).count();
    assert_eq!(finished, 1, "what the server took on goes on");
    // One that rises.
    let outcome = attack(&[go_away(1, 0), go_away(3, 0)].concat());
    outcome.ends_connection(Code::Internal, PROTOCOL_ERROR, 64);
    // One that comes again and again.
    let outcome = attack(&[flood(&go_away(0x7fff_ffff, 0)), good(1)].concat());
    assert_eq!(outcome.code(), Code::Ok);
    assert!(outcome.growth <= MAX_GROWTH, "{}", outcome.growth);
}

#[test]
fn retry_only_idempotent_calls_when_the_connection_is_lost() {
    let mut client = client();
    client.handle_bytes(&[settings(), ok_head(1)].concat(), NOW);
    client.handle_eof(NOW);
    let got = answers(&mut client);
    assert_eq!((got[0].1.status.code, got[0].1.processed), (Code::Unavailable, Processed::Maybe));
}

#[test]
fn retry_only_idempotent_calls_after_deadline_and_other_resets() {
    let mut client = client();
    client.handle_bytes(&settings(), NOW);
    client.handle_timeout(NOW + Duration::from_secs(10));
    let got = answers(&mut client);
    assert_eq!((got[0].1.status.code, got[0].1.processed), (Code::DeadlineExceeded, Processed::Maybe));
    let resets: Vec<_> = transmit(&mut client).into_iter().filter(|sent| sent.kind == RST_STREAM).collect();
    assert_eq!((resets.len(), resets[0].stream, &resets[0].payload[..]), (1, 1, &CANCEL.to_be_bytes()[..]));
    for code in [0, 1, 2, 8, 11] {
        let outcome = attack(&frame(RST_STREAM, 0, 1, &[0, 0, 0, code]));
        assert_eq!(outcome.error().processed, Processed::Maybe, "{code}");
    }
}

#[test]
fn retry_by_the_code_of_a_real_status() {
    for code in [Code::Unavailable, Code::ResourceExhausted, Code::Unauthenticated, Code::PermissionDenied] {
        let status = code.number().to_string();
        let outcome = attack(&answer(&[], &[("grpc-status", &status), ("grpc-retry-pushback-ms", "1500"), ("a", "b")]));
        let error = outcome.error();
        assert_eq!((error.status.code, error.processed), (code, Processed::Maybe));
        assert_eq!(error.trailers.find("grpc-retry-pushback-ms"), Some(b"1500".as_slice()), "it wins");
    }
}

//! Client and server against each other, and the client against a scripted HTTP/2 server.

use std::time::Duration;

use super::*;
use crate::h2::{Config, Connection, ConnectionError, ErrorCode, Event, Header, Instant, StreamId};

const NOW: Instant = Duration::from_secs(50);
const OK_HEAD: [(&str, &str); 2] = [(":status", "200"), ("content-type", "application/grpc")];
const MESSAGE: [u8; 6] = [0, 0, 0, 0, 1, 7];

fn client() -> Client {
    let config = ClientConfig { scheme: "http", authority: "h".into(), user_agent: "test".into(), keepalive: None };
    Client::new(config, NOW)
}

fn request(body: &[u8]) -> Request {
    Request {
        path: "/a.B/C".into(),
        metadata: Metadata::default(),
        body: body.to_vec(),
        timeout: Duration::from_secs(10),
        max_response: 1000,
    }
}

fn headers(fields: &[(&str, &str)]) -> Vec<Header> {
    fields.iter().map(|(n, v)| Header::new(*n, *v)).collect()
}

/// Moves bytes both ways until both ends rest.
fn settle(client: &mut Client, peer: &mut Connection) -> Vec<Event> {
    let mut seen = Vec::new();
    for _ in 0..10 {
        let mut out = Vec::new();
        client.poll_transmit(&mut out);
        peer.handle_bytes(&out, NOW);
        seen.extend(std::iter::from_fn(|| peer.poll_event()));
        let mut back = Vec::new();
        peer.poll_transmit(&mut back);
        client.handle_bytes(&back, NOW);
    }
    seen
}

fn answers(client: &mut Client) -> Vec<(CallId, Result<Response, CallError>)> {
    let events = std::iter::from_fn(|| client.poll_event());
    events
        .filter_map(|e| match e {
            ClientEvent::Answer { id, result } => Some((id, result)),
            _ => None,
        })
        .collect()
}

/// One call that a scripted server answers.
fn scripted(script: impl FnOnce(&mut Connection, StreamId)) -> Result<Response, CallError> {
    let (mut client, mut peer) = (client(), Connection::server(Config::default(), NOW));
    client.call(CallId(1), request(b"x"), NOW);
    settle(&mut client, &mut peer);
    script(&mut peer, 1);
    settle(&mut client, &mut peer);
    let mut answers = answers(&mut client);
    assert_eq!(answers.len(), 1);
    assert_eq!(client.open_calls(), 0);
    answers.pop().unwrap().1
}

fn code(result: Result<Response, CallError>) -> Code {
    result.map_or_else(|e| e.status.code, |_| Code::Ok)
}

/// An OK head, this body, these trailers.
fn answered(body: &[u8], trailers: &[(&str, &str)]) -> Result<Response, CallError> {
    scripted(|peer, id| {
        peer.send_headers(id, &headers(&OK_HEAD), false);
        peer.send_data(id, body.to_vec(), false);
        peer.send_trailers(id, headers(trailers));
    })
}

#[test]
fn request_head_is_what_grpc_asks_for() {
    let (mut client, mut peer) = (client(), Connection::server(Config::default(), NOW));
    client.call(CallId(1), request(b"x"), NOW);
    let seen = settle(&mut client, &mut peer);
    let want = headers(&[
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/a.B/C"),
        (":authority", "h"),
        ("grpc-timeout", "10000000u"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        ("user-agent", "test"),
    ]);
    let Some(Event::Headers { headers: got, .. }) = seen.iter().find(|e| matches!(e, Event::Headers { .. })) else {
        panic!("no request: {seen:?}");
    };
    let plain = |list: &[Header]| list.iter().map(|h| (h.name.clone(), h.value.clone())).collect::<Vec<_>>();
    assert_eq!(plain(got), plain(&want));
    assert!(seen.iter().any(|e| matches!(e, Event::Data { data, end_stream: true, .. } if data == b"\0\0\0\0\x01x")));
}

#[test]
fn good_answer_has_metadata_message_and_trailers() {
    let answer = scripted(|peer, id| {
        peer.send_headers(id, &headers(&[OK_HEAD.as_slice(), &[("a-bin", "AP8=")]].concat()), false);
        peer.send_data(id, MESSAGE.to_vec(), false);
        peer.send_trailers(id, headers(&[("grpc-status", "0"), ("b", "c")]));
    });
    let answer = answer.unwrap();
    assert_eq!(answer.body, [7]);
    assert_eq!(answer.metadata.find("a-bin"), Some([0, 255].as_slice()));
    assert_eq!(answer.trailers.find("b"), Some(b"c".as_slice()));
}

#[test]
fn wrong_bodies_are_told_apart() {
    let ok = [("grpc-status", "0")];
    assert_eq!(code(answered(&[], &ok)), Code::Unimplemented);
    assert_eq!(code(answered(&[MESSAGE, MESSAGE].concat(), &ok)), Code::Unimplemented);
    assert_eq!(code(answered(&MESSAGE[..5], &ok)), Code::Internal);
    assert_eq!(code(answered(&[MESSAGE.as_slice(), &[0]].concat(), &ok)), Code::Internal);
    assert_eq!(code(answered(&[1, 0, 0, 0, 1, 7], &ok)), Code::Internal);
    assert_eq!(code(answered(&[0, 0xff, 0xff, 0xff, 0xff], &ok)), Code::ResourceExhausted);
}

#[test]
fn status_comes_from_the_end_whatever_the_head_says() {
    for (value, want) in [("5", Code::NotFound), ("x", Code::Unknown), ("17", Code::Unknown)] {
        assert_eq!(code(answered(&MESSAGE, &[("grpc-status", value)])), want);
    }
    assert_eq!(code(answered(&MESSAGE, &[("no", "status")])), Code::Unknown);
    let ignored = scripted(|peer, id| {
        peer.send_headers(id, &headers(&[OK_HEAD.as_slice(), &[("grpc-status", "5")]].concat()), false);
        peer.send_data(id, MESSAGE.to_vec(), false);
        peer.send_trailers(id, headers(&[("grpc-status", "0")]));
    });
    assert_eq!(code(ignored), Code::Ok);
    let only = scripted(|peer, id| {
        let head = [OK_HEAD.as_slice(), &[("grpc-status", "9"), ("grpc-message", "no%21")]].concat();
        peer.send_headers(id, &headers(&head), true);
    });
    assert_eq!(only.unwrap_err().status, Status::new(Code::FailedPrecondition, "no!"));
}

#[test]
fn http_status_counts_only_without_a_grpc_status() {
    let http = |status: &'static str, trailers: &'static [(&str, &str)]| {
        scripted(move |peer, id| {
            peer.send_headers(id, &headers(&[(":status", status), ("content-type", "text/html")]), false);
            peer.send_data(id, b"<p>sorry</p>".to_vec(), false);
            peer.send_trailers(id, headers(trailers));
        })
    };
    assert_eq!(code(http("503", &[])), Code::Unavailable);
    assert_eq!(code(http("404", &[])), Code::Unimplemented);
    assert_eq!(code(http("503", &[("grpc-status", "7")])), Code::PermissionDenied);
    assert_eq!(code(http("200", &[])), Code::Unknown);
    let plain_end = scripted(|peer, id| {
        peer.send_headers(id, &headers(&[(":status", "401")]), false);
        peer.send_data(id, b"x".to_vec(), true);
    });
    assert_eq!(code(plain_end), Code::Unauthenticated);
}

#[test]
fn bad_base64_fails_the_call_alone() {
    let answer = answered(&MESSAGE, &[("grpc-status", "0"), ("x-bin", "!")]);
    assert_eq!(code(answer), Code::Internal);
}

#[test]
fn resets_say_whether_the_call_was_processed() {
    let reset = |code| scripted(move |peer, id| peer.reset(id, code)).unwrap_err();
    let refused = reset(ErrorCode::REFUSED_STREAM);
    assert_eq!((refused.status.code, refused.processed), (Code::Unavailable, Processed::No));
    let cancelled = reset(ErrorCode::CANCEL);
    assert_eq!((cancelled.status.code, cancelled.processed), (Code::Cancelled, Processed::Maybe));
    assert_eq!(reset(ErrorCode::ENHANCE_YOUR_CALM).status.code, Code::ResourceExhausted);
}

#[test]
fn lost_connection_leaves_it_open_whether_the_call_was_processed() {
    let mut client = client();
    client.call(CallId(1), request(b"x"), NOW);
    client.poll_transmit(&mut Vec::new());
    client.call(CallId(2), request(b"x"), NOW);
    client.handle_eof(NOW);
    let got: Vec<_> = answers(&mut client).into_iter().map(|(id, r)| (id.0, r.unwrap_err().processed)).collect();
    assert_eq!(got, [(1, Processed::Maybe), (2, Processed::No)]);
}

#[test]
fn answer_before_the_request_has_ended_counts() {
    let (mut client, mut peer) =
        (client(), Connection::server(Config { stream_window: 65_535, ..Config::default() }, NOW));
    client.call(CallId(1), request(&[1; 100_000]), NOW);
    settle(&mut client, &mut peer);
    peer.send_headers(1, &headers(&OK_HEAD), false);
    peer.send_data(1, MESSAGE.to_vec(), false);
    peer.send_trailers(1, headers(&[("grpc-status", "0")]));
    settle(&mut client, &mut peer);
    assert_eq!(answers(&mut client).pop().unwrap().1.unwrap().body, [7]);
}

#[test]
fn deadline_ends_calls_that_run_and_calls_that_wait() {
    let (mut client, mut peer) =
        (client(), Connection::server(Config { max_concurrent_streams: 1, ..Config::default() }, NOW));
    settle(&mut client, &mut peer);
    client.call(CallId(1), request(b"x"), NOW);
    client.call(CallId(2), request(b"x"), NOW);
    client.call(CallId(3), Request { timeout: Duration::ZERO, ..request(b"x") }, NOW);
    settle(&mut client, &mut peer);
    assert_eq!(answers(&mut client).pop().map(|(id, r)| (id, code(r))), Some((CallId(3), Code::DeadlineExceeded)));
    let due = client.poll_timeout().unwrap();
    assert_eq!(due, NOW + Duration::from_secs(10));
    client.handle_timeout(due);
    let got: Vec<_> = answers(&mut client).into_iter().map(|(id, r)| (id.0, r.unwrap_err())).collect();
    assert!(got.iter().all(|(_, e)| e.status.code == Code::DeadlineExceeded));
    assert_eq!(
        got.iter().map(|(id, e)| (*id, e.processed)).collect::<Vec<_>>(),
        [(1, Processed::Maybe), (2, Processed::No)]
    );
    let seen = settle(&mut client, &mut peer);
    assert!(seen.iter().any(|e| matches!(e, Event::Reset { code: ErrorCode::CANCEL, .. })));
}

/// Moves bytes between our two ends.
fn exchange(client: &mut Client, server: &mut Server, now: Instant) -> Vec<ServerEvent> {
    let mut seen = Vec::new();
    for _ in 0..200 {
        let mut out = Vec::new();
        client.poll_transmit(&mut out);
        server.handle_bytes(&out, now);
        seen.extend(std::iter::from_fn(|| server.poll_event()));
        let mut back = Vec::new();
        server.poll_transmit(&mut back);
        client.handle_bytes(&back, now);
    }
    seen
}

fn requests(seen: Vec<ServerEvent>) -> Vec<IncomingRequest> {
    seen.into_iter().filter_map(|e| if let ServerEvent::Request(r) = e { Some(r) } else { None }).collect()
}

#[test]
fn both_ends_carry_requests_and_answers() {
    let (mut client, mut server) = (client(), Server::new(ServerConfig::default(), NOW));
    let mut metadata = Metadata::default();
    metadata.add("authorization", "Bearer x").unwrap();
    metadata.add("key-bin", vec![0, 1, 255]).unwrap();
    client.call(CallId(1), Request { metadata: metadata.clone(), ..request(&[9; 900]) }, NOW);
    client.call(CallId(2), request(b""), NOW);
    let got = requests(exchange(&mut client, &mut server, NOW));
    assert_eq!((got[0].path.as_str(), got[0].body.len(), got[1].body.len()), ("/a.B/C", 900, 0));
    assert_eq!(got[0].metadata.find("key-bin"), Some([0, 1, 255].as_slice()));
    assert_eq!(got[0].deadline, Some(NOW + Duration::from_secs(10)));
    server.respond(got[1].id, Err(Status::new(Code::Aborted, "nö\n")), NOW);
    server.respond(got[0].id, Ok(got[0].body.clone()), NOW);
    exchange(&mut client, &mut server, NOW);
    let mut got = answers(&mut client);
    got.sort_by_key(|(id, _)| *id);
    assert_eq!(got[0].1.as_ref().unwrap().body, [9; 900]);
    assert_eq!(got[1].1.as_ref().unwrap_err().status, Status::new(Code::Aborted, "nö\n"));
    assert_eq!(server.open_calls(), 0);
}

#[test]
fn server_is_told_of_cancelled_and_late_requests() {
    let (mut client, mut server) = (client(), Server::new(ServerConfig::default(), NOW));
    client.call(CallId(1), request(b"x"), NOW);
    client.call(CallId(2), request(b"x"), NOW);
    let got = requests(exchange(&mut client, &mut server, NOW));
    client.cancel(CallId(1), NOW);
    assert_eq!(exchange(&mut client, &mut server, NOW), [ServerEvent::Cancelled { id: got[0].id }]);
    let due = server.poll_timeout().unwrap();
    server.handle_timeout(due);
    assert_eq!(server.poll_event(), Some(ServerEvent::Cancelled { id: got[1].id }));
    server.respond(got[1].id, Ok(vec![]), due);
    exchange(&mut client, &mut server, NOW);
    assert_eq!(code(answers(&mut client).pop().unwrap().1), Code::DeadlineExceeded);
    client.call(CallId(3), request(b"x"), NOW);
    let got = requests(exchange(&mut client, &mut server, NOW));
    server.handle_eof(NOW);
    assert_eq!(server.poll_event(), Some(ServerEvent::Cancelled { id: got[0].id }));
    assert_eq!(server.poll_event(), Some(ServerEvent::Closed { error: ConnectionError::Eof }));
}

#[test]
fn server_refuses_large_requests_at_their_prefix() {
    let config = ServerConfig { max_request: 100, ..ServerConfig::default() };
    let (mut client, mut server) = (client(), Server::new(config, NOW));
    client.call(CallId(1), request(&[0; 3_000_000]), NOW);
    assert_eq!(requests(exchange(&mut client, &mut server, NOW)), []);
    assert_eq!(code(answers(&mut client).pop().unwrap().1), Code::ResourceExhausted);
}

#[test]
fn server_answers_what_is_not_grpc_with_http() {
    let mut server = Server::new(ServerConfig::default(), NOW);
    let mut peer = Connection::client(Config::default(), NOW);
    let head = |method, content_type| {
        headers(&[(":method", method), (":scheme", "http"), (":path", "/"), ("content-type", content_type)])
    };
    peer.open(&head("GET", "application/grpc"), true).unwrap();
    peer.open(&head("POST", "text/plain"), true).unwrap();
    peer.open(&head("POST", "application/grpc+proto"), true).unwrap();
    let (mut out, mut back) = (Vec::new(), Vec::new());
    peer.poll_transmit(&mut out);
    server.handle_bytes(&out, NOW);
    server.poll_transmit(&mut back);
    peer.handle_bytes(&back, NOW);
    let heads: Vec<Vec<Header>> = std::iter::from_fn(|| peer.poll_event())
        .filter_map(|e| if let Event::Headers { headers, .. } = e { Some(headers) } else { None })
        .collect();
    let find = |i: usize, name| crate::h2::fields::find(&heads[i], name);
    assert_eq!(find(0, ":status"), Some(b"405".as_slice()));
    assert_eq!(find(1, ":status"), Some(b"415".as_slice()));
    assert_eq!(find(2, "grpc-status"), Some(b"12".as_slice()), "no message");
}

/// Changes a few bytes.
fn mutate(bytes: &mut [u8], seed: &mut u64) -> usize {
    let mut random = || {
        *seed ^= *seed << 13;
        *seed ^= *seed >> 7;
        *seed ^= *seed << 17;
        usize::try_from(*seed >> 20).unwrap()
    };
    for _ in 0..=random() % 3 {
        let at = random() % bytes.len();
        bytes[at] = (random() & 0xff) as u8;
    }
    random() % bytes.len()
}

#[test]
fn each_call_ends_exactly_once_whatever_the_server_sends() {
    let mut script = Connection::server(Config::default(), NOW);
    let mut caller = client();
    for id in 1..=3 {
        caller.call(CallId(id), request(b"x"), NOW);
    }
    let (mut out, mut good) = (Vec::new(), Vec::new());
    caller.poll_transmit(&mut out);
    script.handle_bytes(&out, NOW);
    script.send_headers(1, &headers(&OK_HEAD), false);
    script.send_data(1, MESSAGE.to_vec(), false);
    script.send_trailers(1, headers(&[("grpc-status", "0"), ("a-bin", "AP8")]));
    script.send_headers(
        3,
        &headers(&[OK_HEAD.as_slice(), &[("grpc-status", "5"), ("grpc-message", "%41")]].concat()),
        true,
    );
    script.reset(5, ErrorCode::REFUSED_STREAM);
    script.poll_transmit(&mut good);
    let mut seed = 0x853c_49e6_748f_ea9b;
    for _ in 0..5_000 {
        let mut bytes = good.clone();
        let cut = mutate(&mut bytes, &mut seed);
        let mut client = client();
        for id in 1..=3 {
            client.call(CallId(id), request(b"x"), NOW);
        }
        client.poll_transmit(&mut Vec::new());
        client.handle_bytes(&bytes[..cut], NOW);
        client.handle_bytes(&bytes[cut..], NOW);
        client.handle_timeout(NOW + Duration::from_secs(10));
        client.handle_eof(NOW);
        let mut ids: Vec<u64> = answers(&mut client).into_iter().map(|(id, _)| id.0).collect();
        ids.sort_unstable();
        assert_eq!(ids, [1, 2, 3], "{bytes:x?}");
    }
}

#[test]
fn each_request_is_told_and_cancelled_at_most_once_whatever_the_client_sends() {
    let mut caller = client();
    for id in 1..=3 {
        caller.call(CallId(id), request(b"some message"), NOW);
    }
    caller.cancel(CallId(3), NOW);
    let mut good = Vec::new();
    caller.poll_transmit(&mut good);
    let mut seed = 0x853c_49e6_748f_ea9b;
    for _ in 0..5_000 {
        let mut bytes = good.clone();
        let cut = mutate(&mut bytes, &mut seed);
        let mut server = Server::new(ServerConfig::default(), NOW);
        server.handle_bytes(&bytes[..cut], NOW);
        server.handle_bytes(&bytes[cut..], NOW);
        server.handle_timeout(NOW + Duration::from_secs(100));
        server.handle_eof(NOW);
        let mut open = Vec::new();
        while let Some(event) = server.poll_event() {
            match event {
                ServerEvent::Request(request) => open.push(request.id),
                ServerEvent::Cancelled { id } => {
                    let at = open.iter().position(|o| *o == id).unwrap();
                    open.remove(at);
                }
                ServerEvent::Closed { .. } => {}
            }
        }
        assert!(open.is_empty() && server.open_calls() == 0);
    }
}

/// A client that makes calls again, and a server; one call of this size is under way.
fn retrying(size: usize) -> (Client, Connection) {
    let (mut client, mut peer) = (client(), Connection::server(Config::default(), NOW));
    client.retry_unprocessed();
    client.call(CallId(1), request(&vec![1; size]), NOW);
    settle(&mut client, &mut peer);
    (client, peer)
}

#[test]
fn a_refused_call_waits_for_another_connection_once() {
    let (mut client, mut peer) = retrying(3);
    client.call(CallId(2), request(b"x"), NOW);
    settle(&mut client, &mut peer);
    peer.reset(1, ErrorCode::REFUSED_STREAM);
    settle(&mut client, &mut peer);
    assert!(client.is_closing(), "nothing new here");
    let mut waiting = client.take_waiting();
    assert_eq!((waiting.len(), waiting[0].id, waiting[0].is_second_try), (1, CallId(1), true));
    assert_eq!((client.open_calls(), answers(&mut client).len()), (1, 0), "the other call goes on");

    let (mut client, mut peer) = retrying(3);
    peer.reset(1, ErrorCode::CANCEL);
    settle(&mut client, &mut peer);
    client.resume(waiting.remove(0), NOW);
    settle(&mut client, &mut peer);
    peer.reset(3, ErrorCode::REFUSED_STREAM);
    settle(&mut client, &mut peer);
    let got = answers(&mut client);
    assert_eq!(got.len(), 2);
    assert_eq!(got[1].1.as_ref().unwrap_err().processed, Processed::No);
    assert!(!client.is_closing() && client.take_waiting().is_empty());
}

#[test]
fn a_call_that_a_closing_server_did_not_begin_waits_for_the_next_connection() {
    let (mut client, _) = retrying(3);
    // GOAWAY, last stream 0.
    client.handle_bytes(&[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], NOW);
    assert!(answers(&mut client).is_empty());
    let waiting = client.take_waiting();
    assert_eq!((waiting.len(), waiting[0].id, waiting[0].is_second_try), (1, CallId(1), true));
    assert_eq!((waiting[0].deadline, waiting[0].request.body.as_slice()), (NOW + Duration::from_secs(10), &[1; 3][..]));
}

#[test]
fn a_call_that_never_left_is_no_second_try_later_and_a_large_one_is_not_kept() {
    let (mut client, _) = retrying(3);
    client.call(CallId(2), request(b"x"), NOW);
    client.handle_eof(NOW);
    let got = answers(&mut client);
    assert_eq!((got.len(), got[0].0), (1, CallId(1)), "the first may have been begun");
    let waiting = client.take_waiting();
    assert_eq!((waiting.len(), waiting[0].id, waiting[0].is_second_try), (1, CallId(2), false));

    let (mut client, mut peer) = retrying(5_000);
    peer.reset(1, ErrorCode::REFUSED_STREAM);
    settle(&mut client, &mut peer);
    assert_eq!(answers(&mut client).len(), 1);
}

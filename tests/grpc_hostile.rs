//! Peers that break the protocol, stop reading, dribble or vanish, over real sockets, against both of our ends.
#![allow(clippy::unwrap_used)]

mod grpc_support;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::Duration;

use grpc_support::script::{echo_while, read_to_end, server, tls_server};
use grpc_support::{PATIENCE, call, disconnected, lane_to, lane_with, next_answer, request};
use hivemind_worker::grpc::{Code, Processed, Request};
use hivemind_worker::rpc::lane::LaneEvent;
use hivemind_worker::rpc::server::Server;
use hivemind_worker::sys::clock::boottime;

/// Empty SETTINGS.
const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
/// PING with a payload of zeros.
const PING: [u8; 17] = [0, 0, 8, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// HEADERS with `:status: 200`, content-type application/grpc, without compression.
fn ok_head() -> Vec<u8> {
    let block = [&[0x88, 0x0f, 0x10, 16][..], b"application/grpc"].concat();
    [&[0, 0, u8::try_from(block.len()).unwrap(), 1, 4, 0, 0, 0, 1], block.as_slice()].concat()
}

/// DATA with a message of one byte, then trailers with grpc-status 0.
fn ok_rest() -> Vec<u8> {
    let trailers = [&[0x00, 11][..], b"grpc-status", &[1, b'0']].concat();
    let data = [0, 0, 6, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, b'!'];
    [&data[..], &[0, 0, u8::try_from(trailers.len()).unwrap(), 1, 5, 0, 0, 0, 1], &trailers].concat()
}

/// Reads until these bytes have come.
fn read_until(socket: &mut TcpStream, wanted: &[u8]) {
    let (mut seen, mut chunk) = (Vec::new(), [0; 4096]);
    while !seen.windows(wanted.len()).any(|w| w == wanted) {
        let n = socket.read(&mut chunk).unwrap();
        assert!(n > 0, "the peer has gone");
        seen.extend_from_slice(&chunk[..n]);
    }
}

#[test]
fn server_that_speaks_http1_is_named_so() {
    let (url, thread) = server(|mut socket| {
        socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
        read_to_end(socket);
    });
    let reason = disconnected(&mut lane_to(&url));
    assert!(reason.contains("HTTP/1.1"), "{reason}");
    thread.join().unwrap();
}

#[test]
fn silent_server_leaves_calls_to_their_deadline() {
    let (url, thread) = server(read_to_end);
    let mut lane = lane_to(&url);
    let error = call(&mut lane, Request { timeout: Duration::from_millis(200), ..request("X", "x") }).unwrap_err();
    assert_eq!((error.status.code, error.processed), (Code::DeadlineExceeded, Processed::No));
    drop(lane);
    thread.join().unwrap();
}

#[test]
fn answer_that_comes_byte_by_byte_is_taken() {
    let (url, thread) = server(|mut socket| {
        socket.set_nodelay(true).unwrap();
        socket.write_all(&SETTINGS).unwrap();
        read_until(&mut socket, b"\0\0\0\0\x01x");
        for byte in [ok_head(), ok_rest()].concat() {
            socket.write_all(&[byte]).unwrap();
        }
        read_to_end(socket);
    });
    let mut lane = lane_to(&url);
    assert_eq!(call(&mut lane, request("X", "x")).unwrap().body, b"!");
    drop(lane);
    thread.join().unwrap();
}

#[test]
fn connection_that_breaks_inside_an_answer_fails_the_call() {
    let whole = [ok_head(), ok_rest()].concat();
    for cut in [0, 10, ok_head().len(), ok_head().len() + 14, whole.len() - 1] {
        let part = whole[..cut].to_vec();
        let (url, thread) = server(move |mut socket| {
            socket.write_all(&SETTINGS).unwrap();
            read_until(&mut socket, b"\0\0\0\0\x01x");
            socket.write_all(&part).unwrap();
            socket.shutdown(Shutdown::Write).unwrap();
            read_to_end(socket);
        });
        let mut lane = lane_to(&url);
        let error = call(&mut lane, request("X", "x")).unwrap_err();
        assert_eq!((error.status.code, error.processed), (Code::Unavailable, Processed::Maybe), "cut at {cut}");
        thread.join().unwrap();
    }
}

#[test]
fn a_call_that_was_not_processed_is_made_once_more_on_the_next_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let thread = std::thread::spawn(move || {
        // The first two calls: GOAWAY with last stream 0, then an answer. The third: GOAWAY twice.
        for is_good in [false, true, false, false] {
            let (mut socket, _) = listener.accept().unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket.write_all(&SETTINGS).unwrap();
            read_until(&mut socket, b"\0\0\0\0\x01x");
            if is_good {
                socket.write_all(&[ok_head(), ok_rest()].concat()).unwrap();
                read_until(&mut socket, b"\0\0\0\0\x01y");
            }
            socket.write_all(&[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, u8::from(is_good), 0, 0, 0, 0]).unwrap();
            if !is_good {
                read_to_end(socket);
            }
        }
    });
    let mut lane = lane_to(&url);
    assert_eq!(call(&mut lane, request("X", "x")).unwrap().body, b"!");
    // What is too large to be kept is not made again by itself.
    let error = call(&mut lane, request("X", [b"\0\0\0\0\x01y".as_slice(), &[7; 5_000]].concat())).unwrap_err();
    assert_eq!((error.status.code, error.processed), (Code::Unavailable, Processed::No));
    let error = call(&mut lane, request("X", "x")).unwrap_err();
    assert_eq!((error.status.code, error.processed), (Code::Unavailable, Processed::No));
    drop(lane);
    thread.join().unwrap();
}

#[test]
fn a_refused_call_is_made_once_more_on_a_new_connection_beside_the_old_one() {
    let refusal = [0, 0, 4, 3, 0, 0, 0, 0, 3, 0, 0, 0, 7];
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let thread = std::thread::spawn(move || {
        let accept = || {
            let (mut socket, _) = listener.accept().unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket.write_all(&SETTINGS).unwrap();
            socket
        };
        let mut first = accept();
        read_until(&mut first, b"\0\0\0\0\x01y");
        first.write_all(&refusal).unwrap();
        let mut second = accept();
        read_until(&mut second, b"\0\0\0\0\x01y");
        // The first connection still serves its other call.
        for socket in [&mut second, &mut first] {
            socket.write_all(&[ok_head(), ok_rest()].concat()).unwrap();
        }
        read_to_end(first);
        read_to_end(second);
    });
    let mut lane = lane_to(&url);
    let slow = lane.call(request("X", "x"));
    let refused = lane.call(request("X", "y"));
    let (mut done, mut connections) = (Vec::new(), 0);
    while done.len() < 2 {
        match lane.next(boottime() + PATIENCE) {
            LaneEvent::Answer { id, result } => done.push((id, result.unwrap().body)),
            LaneEvent::Connected { .. } => connections += 1,
            LaneEvent::Disconnected { .. } => {}
            event => panic!("{event:?}"),
        }
    }
    done.sort_by_key(|(id, _)| id.0);
    assert_eq!((done, connections), (vec![(slow, b"!".to_vec()), (refused, b"!".to_vec())], 2));
    drop(lane);
    thread.join().unwrap();
}

#[test]
fn call_that_waits_for_a_stream_moves_to_the_next_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut lane = lane_to(&format!("http://{}", listener.local_addr().unwrap()));
    let (answered, go_on) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        let (mut first, _) = listener.accept().unwrap();
        // MAX_CONCURRENT_STREAMS 1.
        first.write_all(&[&[0, 0, 6, 4, 0, 0, 0, 0, 0][..], &[0, 3, 0, 0, 0, 1]].concat()).unwrap();
        read_until(&mut first, b"\0\0\0\0\x01x");
        first.write_all(&[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]).unwrap();
        let (mut second, _) = listener.accept().unwrap();
        second.write_all(&SETTINGS).unwrap();
        read_until(&mut second, b"\0\0\0\0\x01y");
        for socket in [&mut second, &mut first] {
            socket.write_all(&[ok_head(), ok_rest()].concat()).unwrap();
            // The test has its answer.
            go_on.recv().unwrap();
        }
    });
    let (first, second) = (lane.call(request("X", "x")), lane.call(request("X", "y")));
    for wanted in [second, first] {
        let (id, result) = next_answer(&mut lane);
        assert_eq!((id, result.unwrap().body.as_slice()), (wanted, b"!".as_slice()));
        answered.send(()).unwrap();
    }
    thread.join().unwrap();
}

#[test]
fn server_that_asks_and_does_not_read_is_cut_off() {
    let (url, thread) = server(|mut socket| {
        socket.write_all(&SETTINGS).unwrap();
        // Our answers fill the socket, then our queue; at the latest then we hang up and writing fails.
        while socket.write_all(&PING.repeat(1000)).is_ok() {}
    });
    let reason = disconnected(&mut lane_to(&url));
    assert!(reason.contains("does not read"), "{reason}");
    thread.join().unwrap();
}

#[test]
fn server_that_opens_no_window_leaves_other_calls_alone() {
    let (url, thread) = server(|mut socket| {
        socket.write_all(&SETTINGS).unwrap();
        // The second call is small and its last byte is a mark; the first can only send a part.
        read_until(&mut socket, b"\0\0\0\0\x01x");
        let answer: Vec<u8> = [ok_head(), ok_rest()].concat();
        // On stream 3 instead of 1.
        let mut answer = answer;
        let (head, rest) = (ok_head().len(), 15);
        for at in [8, head + 8, head + rest + 8] {
            answer[at] = 3;
        }
        socket.write_all(&answer).unwrap();
        read_to_end(socket);
    });
    let mut lane = lane_to(&url);
    let large = lane.call(Request { timeout: Duration::from_secs(2), ..request("X", vec![7; 100_000]) });
    let small = lane.call(request("X", "x"));
    let (id, result) = next_answer(&mut lane);
    assert_eq!((id, result.unwrap().body.as_slice()), (small, b"!".as_slice()));
    let (id, result) = next_answer(&mut lane);
    assert_eq!((id, result.unwrap_err().status.code), (large, Code::DeadlineExceeded));
    drop(lane);
    thread.join().unwrap();
}

#[test]
fn server_without_alpn_is_refused() {
    let (url, config, thread) = tls_server(&[], rustls::ALL_VERSIONS, |mut stream| {
        let _ = stream.read(&mut [0; 16]);
    });
    let reason = disconnected(&mut lane_with(&url, Some(config)));
    assert!(reason.contains("ALPN"), "{reason}");
    thread.join().unwrap();
}

#[test]
fn tls_that_is_cut_is_told_from_an_orderly_end() {
    for is_orderly in [true, false] {
        let (url, config, thread) = tls_server(&[b"h2"], rustls::ALL_VERSIONS, move |mut stream| {
            stream.write_all(&SETTINGS).unwrap();
            let mut seen = Vec::new();
            while !seen.ends_with(b"\0\0\0\0\x01x") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                seen.push(byte[0]);
            }
            stream.write_all(&ok_head()).unwrap();
            if is_orderly {
                stream.conn.send_close_notify();
            }
            stream.flush().unwrap();
            stream.sock.shutdown(Shutdown::Write).unwrap();
            read_to_end(stream.sock);
        });
        let mut lane = lane_with(&url, Some(config));
        assert_eq!(call(&mut lane, request("X", "x")).unwrap_err().status.code, Code::Unavailable);
        let reason = disconnected(&mut lane);
        assert_eq!(reason.contains("cut"), !is_orderly, "{reason}");
        thread.join().unwrap();
    }
}

fn serve_while(client: impl FnOnce(std::net::SocketAddr) + Send + 'static) {
    echo_while(Server::bind("127.0.0.1:0".parse().unwrap()).unwrap(), client);
}

#[test]
fn our_server_hangs_up_on_what_is_not_http2() {
    serve_while(|address| {
        for garbage in [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], b"\x16\x03\x01", b"PRI * HTTP/2.0\r\n\r\nXX"] {
            let mut socket = TcpStream::connect(address).unwrap();
            socket.write_all(garbage).unwrap();
            read_to_end(socket);
        }
        let mut lane = lane_to(&format!("http://{address}"));
        assert_eq!(call(&mut lane, request("X", "x")).unwrap().body, b"x");
    });
}

#[test]
fn our_server_serves_others_beside_clients_that_dribble_or_do_not_read() {
    serve_while(|address| {
        let mut deaf = TcpStream::connect(address).unwrap();
        deaf.write_all(&[PREFACE, &SETTINGS].concat()).unwrap();
        let mut half = TcpStream::connect(address).unwrap();
        half.write_all(&PREFACE[..10]).unwrap();
        let mut lane = lane_to(&format!("http://{address}"));
        for i in 0..10 {
            let _ = deaf.write_all(&PING.repeat(30));
            half.write_all(&PREFACE[10 + i..=10 + i]).unwrap();
            let body = vec![1; 500_000];
            assert!(call(&mut lane, request("X", body.clone())).unwrap().body == body);
        }
    });
}

#[test]
fn our_server_takes_a_new_connection_when_one_of_many_ends() {
    serve_while(|address| {
        let mut silent: Vec<_> = (0..64).map(|_| TcpStream::connect(address).unwrap()).collect();
        let mut lane = lane_to(&format!("http://{address}"));
        let waiting = lane.call(request("X", "x"));
        assert!(
            matches!(lane.next(boottime() + Duration::from_millis(300)), LaneEvent::TimedOut),
            "all slots are taken"
        );
        drop(silent.pop());
        let (id, result) = next_answer(&mut lane);
        assert_eq!((id, result.unwrap().body.as_slice()), (waiting, b"x".as_slice()));
    });
}

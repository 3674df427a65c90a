//! Fetching for a task from a TLS server on loopback that the test makes: what arrives whole, what is refused before a
//! byte is asked for, what is tried again, and how fast a fetch lets go.
#![allow(clippy::unwrap_used)]

mod fetch_util;

use std::io::{Read, Seek, SeekFrom, Write};
use std::net::{IpAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fetch_util::namespace::in_namespace;
use fetch_util::{Request, Scratch, Server, fetcher, sha256};
use hivemind_worker::fetch::{Download, FetchError, Fetcher, Resolver, Stop, Wanted};
use hivemind_worker::node::guard::{Allowed, Guard};

/// A stop must act well within this.
const AT_ONCE: Duration = Duration::from_secs(2);

fn wanted(url: &str, content: &[u8]) -> Wanted {
    Wanted { url: fetch_util::url(url), sha256: sha256(content), max_bytes: 1 << 20 }
}

fn attempt(download: &mut Download, fetcher: &Fetcher) -> Result<(), FetchError> {
    download.attempt(fetcher, &Stop::new(), &mut |_| {})
}

fn once(fetcher: &Fetcher, wanted: Wanted) -> (Result<(), FetchError>, Vec<u8>) {
    let scratch = Scratch::new();
    let mut download = Download::new(wanted, scratch.file(), &Stop::new()).unwrap();
    let result = attempt(&mut download, fetcher);
    (result, scratch.content())
}

fn refusal(fetcher: &Fetcher, wanted: Wanted) -> String {
    match once(fetcher, wanted).0 {
        Err(FetchError::Refused(reason)) => reason,
        other => panic!("{other:?}"),
    }
}

fn passing(fetcher: &Fetcher, wanted: Wanted) -> String {
    match once(fetcher, wanted).0 {
        Err(FetchError::Passing(reason)) => reason,
        other => panic!("{other:?}"),
    }
}

fn content(len: usize) -> Vec<u8> {
    (0..len).map(|i| u8::try_from(i * 7 % 251).unwrap()).collect()
}

#[test]
fn a_file_of_authorities_that_is_none_or_too_large_is_refused() {
    let pem = Scratch::new();
    let refused = |content: &[u8]| {
        std::fs::write(pem.path(), content).unwrap();
        Fetcher::new(Guard::default(), Some(pem.path())).err().expect("refused")
    };
    assert!(refused(b"no certificate").contains("has no certificate in PEM form"));
    assert!(refused(&vec![b'\n'; (4 << 20) + 1]).contains("more than 4194304 bytes"));
}

#[test]
fn a_file_arrives_whole_over_tls_and_redirects() {
    let bytes = content(300_000);
    let served = bytes.clone();
    let server = Server::start(move |request, out| match request.path.as_str() {
        "/a/file.zip?sig=%2F" => request.answer(out, "200 OK", "", &served),
        "/1" => request.answer(out, "302 Found", "Location: 2\r\n", b"moved"),
        "/2" => request.answer(out, "301 Moved", "Location: /3\r\n", b""),
        "/3" => request.answer(out, "307 Moved", "Location: //data.test:{port}/4\r\n", b""),
        "/4" => request.answer(out, "303 Moved", "Location: https://data.test:{port}/5\r\n", b""),
        "/5" => request.answer(out, "308 Moved", "Location: /a/file.zip?sig=%2F\r\n", b""),
        "/0" => request.answer(out, "302 Found", "Location: /1\r\n", b""),
        _ => request.answer(out, "404 Not Found", "", b""),
    });
    let fetcher = server.fetcher("data.test");
    let (result, got) = once(&fetcher, wanted(&server.url("/a/file.zip?sig=%2F"), &bytes));
    result.unwrap();
    assert!(got == bytes);
    let head = server.seen().pop().unwrap().head.to_lowercase();
    assert!(head.contains(&format!("host: data.test:{}\r\n", server.port)), "{head}");
    assert!(!head.contains("authorization") && !head.contains("cookie") && !head.contains("range:"), "{head}");
    once(&fetcher, wanted(&server.url("/1"), &bytes)).0.unwrap();
    let told = refusal(&fetcher, wanted(&server.url("/0"), &bytes));
    assert!(told.contains("redirects more than 5 times"), "{told}");
    let told = refusal(&fetcher, wanted(&server.url("/none"), &bytes));
    assert!(told.contains("HTTP status 404"), "{told}");
}

#[test]
fn private_addresses_are_refused_before_anything_is_sent() {
    let server = Server::start(|request, out| request.answer(out, "200 OK", "", b"x"));
    let open = server.trusting(Guard::default());
    for (text, reason) in [
        ("https://data.test/x", "leads to 127.0.0.1, which is this machine"),
        ("https://127.0.0.1/x", "leads to 127.0.0.1, which is this machine"),
        ("https://[::1]/x", "leads to ::1, which is this machine"),
        ("https://[::ffff:127.0.0.1]/x", "which is this machine"),
        ("https://169.254.169.254/latest/meta-data", "link-local, or a cloud's metadata"),
        ("https://192.168.1.1/", "which is private"),
        ("http://data.test/x", "only https:// is fetched"),
    ] {
        let told = refusal(&open, wanted(text, b"x"));
        assert!(told.contains(reason), "{text}: {told}");
    }
    let told = refusal(&open, wanted(&server.url("/x"), b"x"));
    assert!(told.contains("only port 443 is fetched from"), "{told}");
    assert_eq!(server.connections(), 0);
    // The same server with the owner's word.
    once(&server.fetcher("data.test"), wanted(&server.url("/x"), b"x")).0.unwrap();
    assert_eq!(server.connections(), 1);
}

#[test]
fn redirects_lead_nowhere_that_a_task_may_not_go_itself() {
    let server = Server::start(|request, out| {
        let target = request.path.trim_start_matches("/?").to_owned();
        request.answer(out, "302 Found", &format!("Location: {target}\r\n"), b"");
    });
    let fetcher = server.fetcher("data.test");
    let inner = TcpListener::bind("127.0.0.1:0").unwrap();
    inner.set_nonblocking(true).unwrap();
    let port = inner.local_addr().unwrap().port();
    for (target, reason) in [
        ("https://10.0.0.1/", "leads to 10.0.0.1, which is private"),
        ("https://meta.test/", "link-local, or a cloud's metadata"),
        ("https://127.0.0.1/", "which is this machine"),
        (&format!("http://127.0.0.1:{port}/"), "only https:// is fetched"),
        (&format!("https://127.0.0.1:{port}/"), "only port 443"),
        ("https://2130706433/", "a host that is a number"),
        ("https://user@data.test/", "must not hold a user or password"),
        ("file:///etc/passwd", "must begin with https://"),
    ] {
        let told = refusal(&fetcher, wanted(&server.url(&format!("/?{target}")), b"x"));
        assert!(told.contains(reason), "{target}: {told}");
    }
    assert_eq!(inner.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}

#[test]
fn of_mixed_answers_only_what_the_guard_leaves_is_connected_to() {
    let server = Server::start(|request, out| request.answer(out, "200 OK", "", b"x"));
    // In the place of the tunnel, which no key opens, with somebody who would answer there.
    let tunnel = TcpListener::bind(("127.0.0.2", server.port)).unwrap();
    tunnel.set_nonblocking(true).unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    let resolver: Resolver = Arc::new(move |_| {
        counter.fetch_add(1, Ordering::Relaxed);
        Ok(["127.0.0.2", "127.0.0.1"].map(|text| text.parse::<IpAddr>().unwrap()).to_vec())
    });
    let guard = Guard::new(Allowed::parse("data.test").unwrap(), vec!["127.0.0.2".parse().unwrap()]);
    let mixed = server.trusting(guard).with_resolver(Arc::clone(&resolver));
    once(&mixed, wanted(&server.url("/x"), b"x")).0.unwrap();
    // The checked address is the one connected to: no second look-up could have another answer.
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    assert_eq!(tunnel.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    // Without the tunnel's network it is the first in line.
    let open = server.fetcher("data.test").with_resolver(resolver).with_idle_timeout(Duration::from_millis(200));
    let held = std::thread::spawn({
        let url = server.url("/x");
        move || once(&open, wanted(&url, b"x")).0
    });
    let until = Instant::now() + Duration::from_secs(30);
    while let Err(error) = tunnel.accept() {
        assert!(error.kind() == std::io::ErrorKind::WouldBlock && Instant::now() < until, "{error}");
        std::thread::yield_now();
    }
    assert!(held.join().unwrap().is_err());
}

#[test]
fn another_address_is_tried_where_one_does_not_answer() {
    let server = Server::start(|request, out| request.answer(out, "200 OK", "", b"x"));
    let both: Resolver = Arc::new(|_| Ok(["127.0.0.3", "127.0.0.1"].map(|text| text.parse().unwrap()).to_vec()));
    once(&server.fetcher("data.test").with_resolver(both), wanted(&server.url("/x"), b"x")).0.unwrap();
    let none: Resolver = Arc::new(|_| Ok(vec!["127.0.0.3".parse().unwrap()]));
    let told = passing(&server.fetcher("data.test").with_resolver(none), wanted(&server.url("/x"), b"x"));
    assert!(told.contains("can't connect to 127.0.0.3"), "{told}");
    let unknown: Resolver = Arc::new(|_| Err(std::io::Error::other("no such host")));
    let told = passing(&server.fetcher("data.test").with_resolver(unknown), wanted(&server.url("/x"), b"x"));
    assert!(told.contains("can't resolve data.test: no such host"), "{told}");
}

#[test]
fn a_certificate_for_another_name_or_from_a_stranger_ends_before_the_request() {
    let server = Server::start(|request, out| request.answer(out, "200 OK", "", b"x"));
    let other = server.fetcher("other.test");
    let told = passing(&other, wanted(&server.url("/x").replace("data.test", "other.test"), b"x"));
    assert!(told.contains("TLS failed"), "{told}");
    let stranger = Server::start(|request, out| request.answer(out, "200 OK", "", b"x"));
    let told = passing(&stranger.fetcher("data.test"), wanted(&server.url("/x"), b"x"));
    assert!(told.contains("TLS failed"), "{told}");
    assert_eq!(server.seen().len(), 0);
}

#[test]
fn what_is_not_as_told_is_refused() {
    let server = Server::start(|request, out| match request.path.as_str() {
        "/long" => request.answer(out, "200 OK", "", &vec![0; (1 << 20) + 1]),
        "/endless" => {
            out.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
            let piece = [b"10000\r\n".to_vec(), vec![0; 1 << 16], b"\r\n".to_vec()].concat();
            // Until nobody takes it any more.
            while out.write_all(&piece).is_ok() {}
        }
        "/busy" => request.answer(out, "503 Busy", "", b""),
        "/many" => request.answer(out, "429 Too Many Requests", "", b""),
        "/forbidden" => request.answer(out, "403 Forbidden", "", b""),
        "/garbage" => out.write_all(b"SSH-2.0-OpenSSH\r\n\r\n").unwrap(),
        "/head" => {
            out.write_all(b"HTTP/1.1 200 OK\r\n").unwrap();
            while out.write_all(b"X-Filler: xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\r\n").is_ok() {}
        }
        _ => request.answer(out, "200 OK", "", b"content"),
    });
    let fetcher = server.fetcher("data.test");
    // printf content | sha256sum; printf other | sha256sum
    let told = refusal(&fetcher, wanted(&server.url("/other"), b"other"));
    assert!(told.contains("has the SHA-256 ed7002b439e9ac84..., and the task says d9298a10d1b07358..."), "{told}");
    let told = refusal(&fetcher, wanted(&server.url("/long"), b"?"));
    assert!(told.contains("is larger than the 1048576 bytes"), "{told}");
    let (result, got) = once(&fetcher, wanted(&server.url("/endless"), b"?"));
    assert!(matches!(result, Err(FetchError::Refused(_))), "{result:?}");
    assert!(got.len() <= 1 << 20, "{} bytes", got.len());
    assert!(refusal(&fetcher, wanted(&server.url("/forbidden"), b"?")).contains("HTTP status 403"));
    assert!(passing(&fetcher, wanted(&server.url("/busy"), b"?")).contains("HTTP status 503"));
    assert!(passing(&fetcher, wanted(&server.url("/many"), b"?")).contains("HTTP status 429"));
    passing(&fetcher, wanted(&server.url("/garbage"), b"?"));
    passing(&fetcher, wanted(&server.url("/head"), b"?"));
}

/// Serves the first half, then breaks off; what comes behind is by `second`.
fn broken_off(bytes: &[u8], second: impl Fn(&Request, &mut dyn Write) + Send + Sync + 'static) -> Server {
    let bytes = bytes.to_vec();
    Server::start(move |request, out| {
        if request.number > 0 {
            return second(request, out);
        }
        let head = format!("HTTP/1.1 200 OK\r\nETag: \"v1\"\r\nContent-Length: {}\r\n\r\n", bytes.len());
        out.write_all(head.as_bytes()).unwrap();
        out.write_all(&bytes[..bytes.len() / 2]).unwrap();
    })
}

fn twice(server: &Server, bytes: &[u8]) -> (Result<(), FetchError>, Vec<u8>) {
    let scratch = Scratch::new();
    let fetcher = server.fetcher("data.test");
    let mut download = Download::new(wanted(&server.url("/x"), bytes), scratch.file(), &Stop::new()).unwrap();
    let first = attempt(&mut download, &fetcher);
    assert!(matches!(&first, Err(FetchError::Passing(reason)) if reason.contains("broke off after")), "{first:?}");
    assert!(!download.is_whole());
    (attempt(&mut download, &fetcher), scratch.content())
}

#[test]
fn a_fetch_goes_on_where_it_broke_off() {
    let bytes = content(200_000);
    let rest = bytes.clone();
    let server = broken_off(&bytes, move |request, out| {
        let from: usize = request.header("range").unwrap()["bytes=".len()..].trim_end_matches('-').parse().unwrap();
        assert_eq!(request.header("if-range").as_deref(), Some("\"v1\""));
        let range = format!("Content-Range: bytes {from}-{}/{}\r\n", rest.len() - 1, rest.len());
        request.answer(out, "206 Partial Content", &range, &rest[from..]);
    });
    let (result, got) = twice(&server, &bytes);
    result.unwrap();
    assert!(got == bytes);
    assert_eq!(server.seen()[1].header("range").unwrap(), "bytes=100000-");
}

#[test]
fn a_server_without_ranges_sends_all_again() {
    let bytes = content(200_000);
    let whole = bytes.clone();
    let server = broken_off(&bytes, move |request, out| request.answer(out, "200 OK", "", &whole));
    let (result, got) = twice(&server, &bytes);
    result.unwrap();
    assert!(got == bytes);
}

#[test]
fn a_rest_that_is_none_is_fetched_anew() {
    let bytes = content(200_000);
    for (status, range, len) in [
        ("206 Partial Content", "Content-Range: bytes 0-199999/200000\r\n", 200_000),
        ("416 Range Not Satisfiable", "Content-Range: bytes */7\r\n", 0),
        // Of another file, as the sum shows: not the author's fault before it is fetched in one piece.
        ("206 Partial Content", "Content-Range: bytes 100000-199999/200000\r\n", 100_000),
    ] {
        let whole = bytes.clone();
        let server = broken_off(&bytes, move |request, out| match request.number {
            1 => request.answer(out, status, range, &vec![b'?'; len]),
            _ => {
                assert_eq!(request.header("range"), None);
                request.answer(out, "200 OK", "", &whole);
            }
        });
        let scratch = Scratch::new();
        let fetcher = server.fetcher("data.test");
        let mut download = Download::new(wanted(&server.url("/x"), &bytes), scratch.file(), &Stop::new()).unwrap();
        for _ in 0..2 {
            assert!(matches!(attempt(&mut download, &fetcher), Err(FetchError::Passing(_))), "{status} {range}");
        }
        attempt(&mut download, &fetcher).unwrap();
        assert!(download.is_whole() && scratch.content() == bytes);
    }
}

#[test]
fn what_is_whole_from_before_a_crash_is_not_fetched_again() {
    let server = Server::start(|request, out| request.answer(out, "200 OK", "", b"content"));
    let fetcher = server.fetcher("data.test");
    let scratch = Scratch::new();
    let open = |content: &[u8]| {
        let mut file = scratch.file();
        file.set_len(0).unwrap();
        file.write_all(content).unwrap();
        file.seek(SeekFrom::End(0)).unwrap();
        Download::new(wanted(&server.url("/x"), b"content"), file, &Stop::new()).unwrap()
    };
    let mut whole = open(b"content");
    assert!(whole.is_whole());
    attempt(&mut whole, &fetcher).unwrap();
    assert_eq!(server.connections(), 0);
    for damaged in [&b"conten"[..], b"contenT", b"content and more", b""] {
        let mut download = open(damaged);
        assert!(!download.is_whole());
        attempt(&mut download, &fetcher).unwrap();
        assert_eq!(scratch.content(), b"content");
    }
    assert_eq!(server.connections(), 4);
}

#[test]
fn a_server_that_stalls_has_its_time() {
    let (release, held) = crossbeam_channel::bounded::<()>(0);
    let server = Server::start(move |request, out| {
        if request.path == "/body" {
            out.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfive.").unwrap();
        }
        let _ = held.recv();
    });
    let fetcher = server.fetcher("data.test").with_idle_timeout(Duration::from_millis(300));
    for path in ["/head", "/body"] {
        let begin = Instant::now();
        passing(&fetcher, wanted(&server.url(path), b"?"));
        assert!((Duration::from_millis(300)..Duration::from_secs(5)).contains(&begin.elapsed()), "{path}");
    }
    drop(release);
}

#[test]
fn a_stop_acts_at_once_wherever_the_fetch_is() {
    let (release, held) = crossbeam_channel::bounded::<()>(0);
    let in_handler = held.clone();
    let server = Server::start(move |request, out| {
        if request.path == "/body" {
            out.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfive.").unwrap();
        }
        let _ = in_handler.recv();
    });
    // Takes connections and never shakes hands.
    let deaf = TcpListener::bind("127.0.0.1:0").unwrap();
    let deaf_url = format!("https://data.test:{}/x", deaf.local_addr().unwrap().port());
    let hanging: Resolver = Arc::new(move |_| {
        let _ = held.recv();
        Ok(Vec::new())
    });
    let plain = server.fetcher("data.test");
    for (what, fetcher, url) in [
        ("resolving", plain.clone().with_resolver(hanging), server.url("/x")),
        ("in the handshake", plain.clone(), deaf_url),
        ("waiting for the head", plain.clone(), server.url("/head")),
        ("in the body", plain.clone(), server.url("/body")),
    ] {
        let stop = Stop::new();
        let own = stop.clone();
        let (begun, is_begun) = crossbeam_channel::bounded(1);
        let fetch = std::thread::spawn(move || {
            let scratch = Scratch::new();
            let mut download = Download::new(wanted(&url, b"?"), scratch.file(), &Stop::new()).unwrap();
            begun.send(()).unwrap();
            download.attempt(&fetcher, &own, &mut |_| {})
        });
        is_begun.recv().unwrap();
        // Whether it is there yet or not, the stop must hold.
        let late = Instant::now() + Duration::from_millis(300);
        while Instant::now() < late && !fetch.is_finished() {
            std::thread::yield_now();
        }
        assert!(!fetch.is_finished(), "{what}");
        let begin = Instant::now();
        stop.stop();
        let result = fetch.join().unwrap();
        assert!(matches!(result, Err(FetchError::Stopped)), "{what}: {result:?}");
        assert!(begin.elapsed() < AT_ONCE, "{what}: {:?}", begin.elapsed());
    }
    drop(release);
}

#[test]
fn a_stop_from_before_lets_nothing_begin() {
    let server = Server::start(|request, out| request.answer(out, "200 OK", "", b"x"));
    let stop = Stop::new();
    stop.stop();
    let scratch = Scratch::new();
    let mut download = Download::new(wanted(&server.url("/x"), b"x"), scratch.file(), &Stop::new()).unwrap();
    let result = download.attempt(&server.fetcher("data.test"), &stop, &mut |_| {});
    assert!(matches!(result, Err(FetchError::Stopped)), "{result:?}");
    assert_eq!(server.seen().len(), 0);
}

#[test]
fn plain_http_is_fetched_where_the_owner_allows_the_host() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let serve = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = [0; 2_048];
        let count = stream.read(&mut head).unwrap();
        assert!(head[..count].starts_with(b"GET /x HTTP/1.1\r\n"));
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx").unwrap();
    });
    let plain = fetcher(Guard::new(Allowed::parse("127.0.0.0/8").unwrap(), Vec::new()), None);
    once(&plain, wanted(&format!("http://127.0.0.1:{port}/x"), b"x")).0.unwrap();
    serve.join().unwrap();
}

#[test]
fn a_file_of_authorities_that_has_none_is_told() {
    let scratch = Scratch::new();
    scratch.file().write_all(b"nothing").unwrap();
    let told = Fetcher::new(Guard::default(), Some(scratch.path())).err().unwrap();
    assert!(told.contains("has no certificate"), "{told}");
    let told = Fetcher::new(Guard::default(), Some("/nonexistent/ca.pem".into())).err().unwrap();
    assert!(told.contains("/nonexistent/ca.pem can't be read"), "{told}");
}

/// The public address of this machine leads to services that a firewall may keep from everybody else.
#[test]
fn this_machines_own_public_address_is_refused() {
    const TEST: &str = "this_machines_own_public_address_is_refused";
    if !in_namespace(TEST) {
        return;
    }
    for words in ["link set lo up", "address add 9.9.9.9/32 dev lo"] {
        assert!(std::process::Command::new("ip").args(words.split(' ')).status().unwrap().success(), "{words}");
    }
    let listener = TcpListener::bind("9.9.9.9:443").unwrap();
    let own: Resolver = Arc::new(|_| Ok(vec!["9.9.9.9".parse().unwrap()]));
    let closed = fetcher(Guard::default(), None).with_resolver(Arc::clone(&own));
    let told = refusal(&closed, wanted("https://data.test/x", b"x"));
    assert!(told.contains("leads to 9.9.9.9, which is this machine"), "{told}");
    let (mut stream, _) = listener.accept().unwrap();
    assert_eq!(stream.read(&mut [0; 16]).unwrap(), 0, "something was sent before it was refused");
}

//! Input archives on the real engine: tar.gz and zip inline, and from a URL on loopback that the owner allows. The same
//! program runs from each; what is wrong with a URL ends the attempt before anything is made at the engine.
#![allow(clippy::unwrap_used)]

mod fetch_util;

use std::io::{Cursor, Write};
use std::time::{Duration, Instant};

use fetch_util::node::{Node, PATIENCE};
use fetch_util::{Server, sha256};
use hivemind_worker::node::account::EndedBy;
use hivemind_worker::node::offer::Offer;
use hivemind_worker::node::order::{Desired, StopOrder, TaskNews};
use hivemind_worker::node::record::Outcome;

const PROGRAM: &[u8] = b"import pathlib\nprint('from', pathlib.Path('data/where').read_text())\n";

fn tar_gz(place: &str) -> Vec<u8> {
    let packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    let mut builder = tar::Builder::new(packed);
    for (path, content) in [("main.py", PROGRAM), ("data/where", place.as_bytes())] {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, path, content).unwrap();
    }
    builder.into_inner().unwrap().finish().unwrap()
}

fn zip(place: &str) -> Vec<u8> {
    let mut out = Cursor::new(Vec::new());
    let mut archive = rawzip::ZipArchiveWriter::new(&mut out);
    for (path, content) in [("main.py", PROGRAM), ("data/where", place.as_bytes())] {
        let (mut entry, config) =
            archive.new_file(path).compression_method(rawzip::CompressionMethod::DEFLATE).start().unwrap();
        let packed = flate2::write::DeflateEncoder::new(&mut entry, flate2::Compression::default());
        let mut writer = config.wrap(packed);
        writer.write_all(content).unwrap();
        let (packed, sums) = writer.finish().unwrap();
        packed.finish().unwrap();
        entry.finish(sums).unwrap();
    }
    archive.finish().unwrap();
    out.into_inner()
}

fn offer(task: &str) -> Offer {
    Offer { task: task.to_owned(), attempt: 1, ..Offer::default() }
}

fn at_url(task: &str, url: &str, content: &[u8]) -> Offer {
    Offer { inputs_url: url.to_owned(), inputs_sha256: sha256(content).to_vec(), ..offer(task) }
}

#[test]
fn each_kind_of_archive_starts_its_program() {
    let served = zip("a URL");
    let archive = served.clone();
    let server = Server::start(move |request, out| match request.number {
        // Breaks off once, as connections do.
        0 => {
            let head = format!("HTTP/1.1 200 OK\r\nETag: \"1\"\r\nContent-Length: {}\r\n\r\n", served.len());
            out.write_all(head.as_bytes()).and_then(|()| out.write_all(&served[..50])).unwrap();
        }
        _ => {
            assert_eq!(request.header("range").as_deref(), Some("bytes=50-"));
            let range = format!("Content-Range: bytes 50-{}/{}\r\n", served.len() - 1, served.len());
            request.answer(out, "206 Partial Content", &range, &served[50..]);
        }
    });
    let node = Node::new("kinds", server.fetcher("data.test"));
    for (offer, said) in [
        (Offer { inputs: tar_gz("tar.gz"), ..offer("tar-gz") }, "from tar.gz\n"),
        (Offer { inputs: zip("zip"), ..offer("zip") }, "from zip\n"),
        (at_url("url", &server.url("/task.zip"), &archive), "from a URL\n"),
    ] {
        let report = node.run(&offer);
        assert_eq!((report.outcome, report.exit_code), (Outcome::Succeeded, Some(0)), "{}: {report:?}", offer.task);
        assert_eq!(String::from_utf8_lossy(&report.tail), said);
    }
    assert_eq!(server.connections(), 2);
    assert_eq!((node.left_overs(), node.fetched()), (0, 0));
}

#[test]
fn what_is_wrong_with_a_url_is_told_apart_from_what_may_pass() {
    let server = Server::start(|request, out| match request.path.as_str() {
        "/none" => request.answer(out, "404 Not Found", "", b""),
        "/busy" => request.answer(out, "503 Busy", "", b""),
        "/inside" => request.answer(out, "302 Found", "Location: https://meta.test/latest\r\n", b""),
        _ => request.answer(out, "200 OK", "", b"no archive"),
    });
    let node = Node::new("wrong", server.fetcher("data.test"));
    let small = Offer { inputs_url_bytes: 5, ..at_url("large", &server.url("/x"), b"x") };
    for (offer, outcome, reason) in [
        (at_url("none", &server.url("/none"), b"x"), Outcome::Rejected, "HTTP status 404"),
        (at_url("sum", &server.url("/x"), b"x"), Outcome::Rejected, "has the SHA-256"),
        (at_url("kind", &server.url("/x"), b"no archive"), Outcome::Rejected, "not a tar archive"),
        (small, Outcome::Rejected, "is larger than the 5 bytes"),
        (at_url("inside", &server.url("/inside"), b"x"), Outcome::Rejected, "link-local, or a cloud's metadata"),
        (at_url("private", "https://private.test/x", b"x"), Outcome::Rejected, "which is this machine"),
        (at_url("busy", &server.url("/busy"), b"x"), Outcome::NodeFault, "HTTP status 503, at the last of 3 tries"),
    ] {
        let report = node.run(&offer);
        assert_eq!(report.outcome, outcome, "{}: {report:?}", offer.task);
        assert!(report.reason.contains(reason), "{}: {:?}", offer.task, report.reason);
    }
    assert_eq!(server.seen().iter().filter(|request| request.path == "/busy").count(), 3);
    assert_eq!((node.left_overs(), node.fetched()), (0, 0));
}

#[test]
fn a_cancel_ends_a_fetch_at_once() {
    let (release, held) = crossbeam_channel::bounded::<()>(0);
    let (reached, is_reached) = crossbeam_channel::bounded(1);
    let server = Server::start(move |_, out| {
        out.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfive.").unwrap();
        out.flush().unwrap();
        reached.send(()).unwrap();
        let _ = held.recv();
    });
    let node = Node::new("cancel", server.fetcher("data.test"));
    let task = node.start(&at_url("cancel", &server.url("/x"), b"x"));
    task.wait_for(|news| matches!(news, TaskNews::Detail(text) if text.starts_with("fetches https://data.test")));
    is_reached.recv_timeout(PATIENCE).unwrap();
    let begin = Instant::now();
    let order =
        StopOrder { outcome: Outcome::Cancelled, reason: "told to".to_owned(), max_grace: None, by: EndedBy::Master };
    task.handle.set_desired(Desired { stop: Some(order), ..Desired::default() });
    let report = task.finish();
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    assert_eq!((report.outcome, report.reason.as_str()), (Outcome::Cancelled, "told to"));
    assert_eq!((node.left_overs(), node.fetched()), (0, 0));
    drop(release);
}

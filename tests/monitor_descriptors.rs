//! The monitor when the process has no file descriptors left. A process of its own, because the limit is the process's.

#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use hivemind_worker::monitor::{LogPart, Logs, Monitor, MonitorConfig};
use hivemind_worker::node::id::AttemptKey;
use hivemind_worker::node::snapshot::Snapshot;
use hivemind_worker::sys::watch::Watch;
use rustix::process::{Resource, getrlimit, setrlimit};

const PATIENCE: Duration = Duration::from_secs(20);

struct NoLogs;

impl Logs for NoLogs {
    fn read(&self, _: &AttemptKey, _: u32, _: u64, _: usize) -> Option<LogPart> {
        None
    }
}

/// Sends a request on a stream that is open already, so that only the monitor's side needs descriptors.
fn send(mut stream: &TcpStream, address: SocketAddr) -> io::Result<()> {
    write!(stream, "GET /healthz HTTP/1.1\r\nHost: {address}\r\n\r\n")
}

/// What has come within `patience`.
fn receive(mut stream: &TcpStream, patience: Duration) -> io::Result<String> {
    stream.set_read_timeout(Some(patience))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

fn fill() -> Vec<File> {
    std::iter::from_fn(|| File::open("/dev/null").ok()).collect()
}

#[test]
fn goes_on_after_the_descriptors_ran_out() {
    // A panic in any thread ends the process in the shipped profile.
    let panics = Arc::new(AtomicUsize::new(0));
    let (counter, report) = (Arc::clone(&panics), std::panic::take_hook());
    std::panic::set_hook(Box::new(move |info| {
        counter.fetch_add(1, Ordering::SeqCst);
        report(info);
    }));
    let folder = std::env::temp_dir().join(format!("hm-descriptors-{}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir(&folder).unwrap();
    let mut config = MonitorConfig::new(&folder);
    config.addresses = vec!["127.0.0.1:0".parse().unwrap()];
    let (sender, _actions) = bounded(1);
    let monitor = Monitor::start(config, Watch::new(Snapshot::default()), sender, None, Arc::new(NoLogs)).unwrap();
    let address = monitor.local_addresses()[0];
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = Some(128);
    setrlimit(Resource::Nofile, limit).unwrap();

    // The connection waits in the kernel: accepting it fails. Then, with ever more room, it is accepted, refused for
    // want of descriptors behind the gate, and at last served.
    for spare in 0..24 {
        let early = TcpStream::connect(address).unwrap();
        let mut held = fill();
        held.truncate(held.len().saturating_sub(spare));
        send(&early, address).unwrap();
        let answer = receive(&early, Duration::from_millis(300));
        drop(held);
        // A connection that nobody could accept is accepted now.
        let answer = answer.or_else(|_| receive(&early, PATIENCE));
        if let Ok(text) = answer {
            let is_whole = text.starts_with("HTTP/1.1 200") || text.starts_with("HTTP/1.1 503");
            assert!(text.is_empty() || is_whole, "{spare}: {text}");
        }
    }
    let start = Instant::now();
    loop {
        let stream = TcpStream::connect(address).unwrap();
        let answer = send(&stream, address).and_then(|()| receive(&stream, PATIENCE));
        if answer.is_ok_and(|text| text.starts_with("HTTP/1.1 200")) {
            break;
        }
        assert!(start.elapsed() < PATIENCE);
    }
    monitor.stop();
    assert_eq!(panics.load(Ordering::SeqCst), 0);
    fs::remove_dir_all(folder).unwrap();
}

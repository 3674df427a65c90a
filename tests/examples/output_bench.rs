//! What the output of a container costs to read: this crate's client, a floor below it, and the engine that both read from.
//! scripts/bench.sh output runs it beside bollard-peer, whose line of JSON is the same.
//!
//! ```text
//! output_bench engine SOCKET       a scripted engine: prints "READY", serves until it is killed
//! output_bench ours SOCKET PLAN    attaches and takes the frames apart
//! output_bench bare SOCKET PLAN    attaches and throws away what comes
//! ```
//!
//! PLAN is `WAY-LINE-COUNT` and the name of the container, too: so many frames of one line each, of so many bytes. `single`
//! is a task that prints now and then: each frame is written alone, and the next one when there was time to read it.
//! `batch` is one that floods: as many frames as go into [`BATCH`] are written at once, as fast as they are taken.
#![allow(clippy::unwrap_used)] // A bench that fails has nothing better to say.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use hivemind_worker::docker::{Docker, DockerHost, NodeTimeouts};
use rustix::time::{ClockId, clock_gettime};

/// What the engine writes at once when it has much.
const BATCH: usize = 32 << 10;
/// Between two frames that are written singly: longer than any reader takes for one.
const PAUSE: Duration = Duration::from_micros(100);
/// As large as the client's own (docker/output.rs).
const BUFFER: usize = 64 << 10;

#[derive(Clone, Copy)]
struct Plan {
    is_single: bool,
    line: usize,
    count: usize,
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["engine", socket] => engine(socket),
        ["ours", socket, plan] => ours(socket, plan),
        ["bare", socket, plan] => bare(socket, plan),
        _ => panic!("engine, ours or bare: see the head of output_bench.rs"),
    }
}

fn parse(text: &str) -> Plan {
    let mut words = text.split('-');
    let way = words.next().unwrap();
    assert!(matches!(way, "single" | "batch"), "{text}");
    let mut number = || words.next().unwrap().parse().unwrap();
    Plan { is_single: way == "single", line: number(), count: number() }
}

/// Reads all payload by `read`, which gives the bytes of its next piece, 0 at the end, and prints what it took.
fn measure(plan: &str, mut read: impl FnMut() -> usize) {
    let plan = parse(plan);
    let expected = plan.line * plan.count;
    let (start_rss, cpu, begin) = (status_kib("VmRSS:"), cpu_time(), Instant::now());
    let mut got = 0;
    loop {
        match read() {
            0 => break,
            bytes => got += bytes,
        }
    }
    let (cpu, wall) = (cpu_time() - cpu, begin.elapsed());
    assert_eq!(got, expected, "bytes of payload");
    let figures = serde_json::json!({
        "frames": plan.count,
        "bytes": expected,
        "wall_s": wall.as_secs_f64(),
        "cpu_s": cpu.as_secs_f64(),
        "start_rss_kib": start_rss,
        "peak_rss_kib": status_kib("VmHWM:"),
    });
    println!("{figures}");
}

fn ours(socket: &str, plan: &str) {
    let host = DockerHost::parse(&format!("unix://{socket}")).unwrap();
    let mut output = Docker::new(host, NodeTimeouts::default()).attach(plan).unwrap();
    measure(plan, || output.next_piece().unwrap().map_or(0, |(_, piece)| piece.len()));
}

/// The least that reads it: no HTTP beyond the head, no frames. Their heads are counted away at the end.
fn bare(socket: &str, plan: &str) {
    let mut stream = UnixStream::connect(socket).unwrap();
    write!(stream, "POST /v1.41/containers/{plan}/attach?stream=1&stdout=1 HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    read_head(&mut stream);
    let (mut buffer, mut heads) = (vec![0; BUFFER], parse(plan).count * 8);
    measure(plan, || {
        loop {
            let read = stream.read(&mut buffer).unwrap();
            let of_heads = heads.min(read);
            heads -= of_heads;
            if read == 0 || read > of_heads {
                return read - of_heads;
            }
        }
    });
}

/// One connection after the other, as each reader has its turn.
fn engine(socket: &str) {
    let _ = std::fs::remove_file(socket);
    let listener = UnixListener::bind(socket).unwrap();
    println!("READY");
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        let head = read_head(&mut stream);
        let path = head.split(' ').nth(1).unwrap();
        if path.ends_with("/_ping") {
            stream.write_all(b"HTTP/1.1 200 OK\r\nApi-Version: 1.41\r\nContent-Length: 2\r\n\r\nOK").unwrap();
            continue;
        }
        // As a real one: with an upgrade where it is asked for.
        let answer = if head.to_ascii_lowercase().contains("upgrade: tcp") {
            "HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
        } else {
            "HTTP/1.1 200 OK\r\n"
        };
        write!(stream, "{answer}Content-Type: application/vnd.docker.raw-stream\r\n\r\n").unwrap();
        let plan = path.split('/').skip_while(|part| *part != "containers").nth(1).unwrap();
        play(&mut stream, parse(plan));
    }
}

fn play(stream: &mut UnixStream, plan: Plan) {
    let length = u32::try_from(plan.line).unwrap().to_be_bytes();
    let mut frame = [&[1, 0, 0, 0], &length[..], &vec![b'x'; plan.line]].concat();
    *frame.last_mut().unwrap() = b'\n';
    let at_once = if plan.is_single { 1 } else { (BATCH / frame.len()).max(1) };
    let batch = frame.repeat(at_once);
    let mut left = plan.count;
    while left > 0 {
        let now = left.min(at_once);
        stream.write_all(&batch[..now * frame.len()]).unwrap();
        left -= now;
        if plan.is_single {
            std::thread::sleep(PAUSE);
        }
    }
}

fn read_head(stream: &mut UnixStream) -> String {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

/// User and system time of this process, all threads.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap(), u32::try_from(time.tv_nsec).unwrap())
}

fn status_kib(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

//! What a call costs: this crate's client, and two floors below it. scripts/bench.sh grpc runs it beside the peers' own
//! benches, whose line of JSON is the same.
//!
//! ```text
//! grpc_bench ours URL --calls N (--body BYTES | --upload BYTES) [--interval-ms MS] [--ca FILE]
//! grpc_bench bare URL --calls N --body BYTES      a blocking client without checks, limits, deadlines or reconnection
//! grpc_bench raw ADDRESS --calls N --body BYTES   as many bytes to and fro, without any protocol
//! grpc_bench echo BYTES                           the other end of raw: prints "PORT N", serves one connection at a time
//! ```
#![allow(clippy::unwrap_used)] // A bench that fails has nothing better to say.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use hivemind_worker::grpc::{Metadata, Request};
use hivemind_worker::rpc::client::{Client, Options};
use hivemind_worker::rpc::tls::Roots;
use rustix::time::{ClockId, clock_gettime};

/// Calls that are made before the measured ones.
const WARM_UP: usize = 100;
/// What frames and heads add to a small call, each way: measured with strace.
const FRAMING: usize = 48;

struct Plan {
    place: String,
    calls: usize,
    body: usize,
    upload: Option<usize>,
    interval: Duration,
    ca: Option<PathBuf>,
}

fn main() {
    let mut words = std::env::args().skip(1);
    let mode = words.next().unwrap_or_default();
    if mode == "echo" {
        return echo(words.next().unwrap().parse().unwrap());
    }
    let plan = parse(words);
    match mode.as_str() {
        "ours" => ours(&plan),
        "bare" => {
            let mut client = Bare::connect(plan.place.trim_start_matches("http://"));
            measure(&plan, || (), |()| client.call(plan.body));
        }
        "raw" => raw(&plan),
        _ => panic!("ours, bare, raw or echo: see the head of grpc_bench.rs"),
    }
}

fn parse(mut words: impl Iterator<Item = String>) -> Plan {
    let place = words.next().expect("where to");
    let (calls, body, interval) = (0, 0, Duration::ZERO);
    let mut plan = Plan { place, calls, body, upload: None, interval, ca: None };
    while let Some(word) = words.next() {
        let value = words.next().expect("a value");
        match word.as_str() {
            "--calls" => plan.calls = value.parse().unwrap(),
            "--body" => plan.body = value.parse().unwrap(),
            "--upload" => plan.upload = Some(value.parse().unwrap()),
            "--interval-ms" => plan.interval = Duration::from_millis(value.parse().unwrap()),
            "--ca" => plan.ca = Some(value.into()),
            _ => panic!("{word}: no such option"),
        }
    }
    assert!(plan.calls > 0, "--calls is missing");
    plan
}

/// Makes the calls and prints the figures. What `prepare` does is not measured, as a peer's payload costs it nothing
/// either.
fn measure<T>(plan: &Plan, prepare: impl Fn() -> T, mut call: impl FnMut(T)) {
    let warm_up = if plan.upload.is_some() || !plan.interval.is_zero() { 1 } else { WARM_UP };
    for _ in 0..warm_up {
        call(prepare());
    }
    let mut taken = Vec::with_capacity(plan.calls);
    let (start_rss, mut cpu, begin) = (status_kib("VmRSS:"), Duration::ZERO, Instant::now());
    let is_large = plan.upload.is_some();
    let mut before = cpu_time();
    for n in 0..plan.calls {
        if n > 0 && !plan.interval.is_zero() {
            std::thread::sleep(plan.interval);
        }
        let prepared = prepare();
        if is_large {
            before = cpu_time();
        }
        let start = Instant::now();
        call(prepared);
        taken.push(start.elapsed().as_nanos() as u64);
        if is_large {
            cpu += cpu_time() - before;
        }
    }
    if !is_large {
        cpu = cpu_time() - before;
    }
    let wall = begin.elapsed().as_secs_f64();
    taken.sort_unstable();
    let figures = serde_json::json!({
        "calls": plan.calls,
        "body": plan.upload.unwrap_or(plan.body),
        "median_ns": taken[plan.calls / 2],
        "p99_ns": taken[plan.calls * 99 / 100],
        "wall_s": wall,
        "cpu_s": cpu.as_secs_f64(),
        "start_rss_kib": start_rss,
        "peak_rss_kib": status_kib("VmHWM:"),
    });
    println!("{figures}");
}

fn ours(plan: &Plan) {
    let mut options = Options::default();
    if let Some(ca) = &plan.ca {
        options.roots = Roots::File(ca.clone());
    }
    let mut client = Client::connect(&plan.place, &options).unwrap();
    let (method, size) = match plan.upload {
        Some(size) => ("/test.Peer/Length", size),
        None => ("/test.Peer/Echo", plan.body),
    };
    let payload = || vec![0x5a; size];
    let expected = if plan.upload.is_some() { size.to_string().into_bytes() } else { payload() };
    measure(plan, payload, |body| {
        // The peers' clients have no deadline either, unless they are given one.
        let timeout = Duration::MAX;
        let metadata = Metadata::default();
        let answer =
            client.unary(Request { path: method.into(), metadata, body, timeout, max_response: 4 << 20 }).unwrap();
        assert!(answer.body == expected, "another answer than expected");
    });
}

/// The least that is a gRPC client: one call at a time, frames told apart, nothing checked.
struct Bare {
    socket: TcpStream,
    stream: u32,
    input: Vec<u8>,
    /// Bytes of DATA that the server was not told about.
    unacknowledged: u32,
    /// The head of each request: its fields without indexing.
    block: Vec<u8>,
}

impl Bare {
    fn connect(address: &str) -> Bare {
        let mut socket = TcpStream::connect(address).unwrap();
        socket.set_nodelay(true).unwrap();
        socket.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
        // POST, http; then literals.
        let mut block = vec![0x83, 0x86];
        for (name, value) in [
            (":path", "/test.Peer/Echo"),
            (":authority", address),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("user-agent", "bare"),
        ] {
            block.extend_from_slice(&[0, u8::try_from(name.len()).unwrap()]);
            block.extend_from_slice(name.as_bytes());
            block.push(u8::try_from(value.len()).unwrap());
            block.extend_from_slice(value.as_bytes());
        }
        Bare { socket, stream: 1, input: Vec::new(), unacknowledged: 0, block }
    }

    fn call(&mut self, size: usize) {
        let mut out = Vec::with_capacity(size + 256);
        frame(&mut out, self.block.len(), 1, 4, self.stream);
        out.extend_from_slice(&self.block);
        frame(&mut out, size + 5, 0, 1, self.stream);
        out.push(0);
        out.extend_from_slice(&u32::try_from(size).unwrap().to_be_bytes());
        out.resize(out.len() + size, 0x5a);
        if self.unacknowledged > 30_000 {
            frame(&mut out, 4, 8, 0, 0);
            out.extend_from_slice(&std::mem::take(&mut self.unacknowledged).to_be_bytes());
        }
        self.socket.write_all(&out).unwrap();
        self.stream += 2;
        while !self.read_frames() {}
    }

    /// True when the end of a stream has come.
    fn read_frames(&mut self) -> bool {
        let mut chunk = [0; 4096];
        let n = self.socket.read(&mut chunk).unwrap();
        assert!(n > 0, "the server has gone");
        self.input.extend_from_slice(&chunk[..n]);
        let (mut used, mut is_end) = (0, false);
        while let Some(head) = self.input[used..].first_chunk::<9>() {
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let whole = 9 + usize::try_from(length).unwrap();
            let (kind, flags) = (head[3], head[4]);
            if self.input.len() < used + whole {
                break;
            }
            match kind {
                0 => self.unacknowledged += length,
                4 if flags == 0 => self.socket.write_all(b"\0\0\0\x04\x01\0\0\0\0").unwrap(),
                _ => {}
            }
            is_end |= kind == 1 && flags & 1 == 1;
            used += whole;
        }
        self.input.drain(..used);
        is_end
    }
}

fn frame(out: &mut Vec<u8>, length: usize, kind: u8, flags: u8, stream: u32) {
    let [_, a, b, c] = u32::try_from(length).unwrap().to_be_bytes();
    out.extend_from_slice(&[a, b, c, kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
}

fn raw(plan: &Plan) {
    let mut socket = TcpStream::connect(&plan.place).unwrap();
    socket.set_nodelay(true).unwrap();
    let mut bytes = vec![0x5a; plan.body + FRAMING];
    measure(
        plan,
        || (),
        |()| {
            socket.write_all(&bytes).unwrap();
            socket.read_exact(&mut bytes).unwrap();
        },
    );
}

fn echo(body: usize) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    println!("PORT {}", listener.local_addr().unwrap().port());
    let mut bytes = vec![0; body + FRAMING];
    for socket in listener.incoming() {
        let mut socket = socket.unwrap();
        socket.set_nodelay(true).unwrap();
        while socket.read_exact(&mut bytes).is_ok() && socket.write_all(&bytes).is_ok() {}
    }
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

//! The bench: sequential calls on one connection, and what they cost. The line of JSON is that of grpcio_peer.py.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::uri::PathAndQuery;
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;
use tonic::Request;

use crate::client::{endpoint, unary};
use crate::{Failure, Words};

/// Calls that are made before the measured ones.
const WARM_UP: usize = 100;

/// Makes the calls and prints the figures.
pub async fn run(mut words: Words) -> Result<(), Failure> {
    let url = words.value("bench")?;
    let (mut calls, mut body, mut upload, mut interval, mut ca) = (0usize, 0usize, None, 0, None);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--calls" => calls = words.number("--calls")?,
            "--body" => body = words.number("--body")?,
            "--upload" => upload = Some(words.number("--upload")?),
            "--interval-ms" => interval = words.number("--interval-ms")?,
            "--ca" => ca = Some(words.file("--ca")?),
            _ => return Err(format!("{word}: not an option of bench").into()),
        }
    }
    if calls == 0 {
        return Err("--calls is missing".into());
    }
    let interval = Duration::from_millis(interval);
    let channel = endpoint(url, ca, None)?.connect().await?;
    let (method, size) = match upload {
        Some(size) => ("/test.Peer/Length", size),
        None => ("/test.Peer/Echo", body),
    };
    let (path, payload) = (PathAndQuery::from_static(method), Bytes::from(vec![0x5a; size]));
    let expected = if upload.is_some() { Bytes::from(size.to_string()) } else { payload.clone() };
    let call = || async {
        let answer = unary(channel.clone(), path.clone(), Request::new(payload.clone())).await?;
        if *answer.get_ref() != expected {
            return Err(Failure::from("another answer than expected"));
        }
        Ok(())
    };
    let warm_up = if upload.is_some() || !interval.is_zero() { 1 } else { WARM_UP };
    for _ in 0..warm_up {
        call().await?;
    }
    let mut taken = Vec::with_capacity(calls);
    let (start_rss, cpu, begin) = (status_kib("VmRSS:"), cpu_time(), Instant::now());
    for n in 0..calls {
        if n > 0 && !interval.is_zero() {
            tokio::time::sleep(interval).await;
        }
        let start = Instant::now();
        call().await?;
        taken.push(start.elapsed().as_nanos() as u64);
    }
    let (wall, cpu) = (begin.elapsed(), cpu_time() - cpu);
    taken.sort_unstable();
    let figures = json!({
        "calls": calls,
        "body": size,
        "median_ns": taken[calls / 2],
        "p99_ns": taken[calls * 99 / 100],
        "wall_s": wall.as_secs_f64(),
        "cpu_s": cpu.as_secs_f64(),
        "start_rss_kib": start_rss,
        "peak_rss_kib": status_kib("VmHWM:"),
    });
    println!("{figures}");
    Ok(())
}

/// User and system time of this process, all threads.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.try_into().unwrap_or(0))
}

fn status_kib(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

//! The peer of tests/examples/output_bench.rs: attaches to a container by bollard, on one thread, and counts what comes.
//!
//! ```text
//! bollard-peer SOCKET PLAN    PLAN, the container's name, is WAY-LINE-COUNT; prints one line of JSON
//! ```

use std::time::{Duration, Instant};

use bollard::query_parameters::AttachContainerOptionsBuilder;
use bollard::{API_DEFAULT_VERSION, Docker};
use futures_util::StreamExt;
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;

/// What went wrong, for people.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// In seconds, as bollard's own default.
const TIMEOUT: u64 = 120;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [socket, plan] = words.as_slice() else { return Err("usage: bollard-peer SOCKET PLAN".into()) };
    let numbers: Vec<usize> = plan.split('-').skip(1).map(str::parse).collect::<Result<_, _>>()?;
    let &[line, count] = numbers.as_slice() else { return Err(format!("{plan} is no plan").into()) };
    let docker = Docker::connect_with_unix(socket, TIMEOUT, API_DEFAULT_VERSION)?;
    let options = AttachContainerOptionsBuilder::default().stream(true).stdout(true).stderr(true).build();
    let mut output = docker.attach_container(plan, Some(options)).await?.output;
    let (start_rss, cpu, begin) = (status_kib("VmRSS:")?, cpu_time(), Instant::now());
    let mut got = 0;
    while let Some(piece) = output.next().await {
        got += piece?.as_ref().len();
    }
    let (cpu, wall) = (cpu_time() - cpu, begin.elapsed());
    if got != line * count {
        return Err(format!("{got} bytes of payload came, not {}", line * count).into());
    }
    let figures = json!({
        "frames": count,
        "bytes": got,
        "wall_s": wall.as_secs_f64(),
        "cpu_s": cpu.as_secs_f64(),
        "start_rss_kib": start_rss,
        "peak_rss_kib": status_kib("VmHWM:")?,
    });
    println!("{figures}");
    Ok(())
}

/// User and system time of this process, all threads.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

fn status_kib(name: &str) -> Result<u64, Failure> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let value = status.lines().find_map(|line| line.strip_prefix(name)).and_then(|rest| rest.split_whitespace().next());
    Ok(value.ok_or("no such line in /proc/self/status")?.parse()?)
}

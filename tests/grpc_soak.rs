//! Many calls on a lane through nginx, which says GOAWAY after every 20, to a server of which 1 % of the calls meet a
//! fault, while nginx is reloaded and its worker killed now and then: each call is answered once, none is done twice
//! without cause, and memory and files stay flat.
//!
//! `HM_SOAK_CALLS` says how many calls (5,000 by default; `scripts/test.sh --full soak` makes a million).
#![allow(clippy::unwrap_used)]

mod grpc_support;

use std::time::Instant;

use grpc_support::ledger::Ledger;
use grpc_support::{NGINX, Served, next_answer, request};
use hivemind_worker::rpc::lane::Lane;

const CALLS_A_CONNECTION: u32 = 20;
const FAULTS_PERMILLE: &str = "10";
const AT_ONCE: usize = 32;
/// What may be between two looks at a process whose memory is flat: the allocator keeps a page here and there.
const SLACK_KIB: u64 = 1024;
/// Connections that were not closed yet when files were counted.
const SLACK_FILES: usize = 8;

#[derive(Debug, Clone, Copy)]
struct Size {
    rss_kib: u64,
    files: usize,
}

fn size() -> Size {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let rss_kib = rss.split_whitespace().next().unwrap().parse().unwrap();
    Size { rss_kib, files: std::fs::read_dir("/proc/self/fd").unwrap().count() }
}

#[test]
fn each_call_is_answered_once_and_memory_and_files_stay_flat() {
    let calls: usize = std::env::var("HM_SOAK_CALLS").map_or(5000, |n| n.parse().expect("HM_SOAK_CALLS: no number"));
    assert!(calls >= 1000, "fewer calls show nothing");
    let mut served = Served::start_with(NGINX, CALLS_A_CONNECTION, &["--faults", FAULTS_PERMILLE, "--seed", "7"]);
    let mut lane = served.lane();
    let mut nginx = served.nginx.take().unwrap();
    let (mut ledger, mut early, begin) = (Ledger::new(calls), None, Instant::now());
    ledger.run(&mut lane, AT_ONCE, |answered| {
        if answered == calls / 10 {
            early = Some(size());
        }
        if answered % (calls / 10) == 0 {
            eprintln!("{answered} calls, {:.0} s, {:?}", begin.elapsed().as_secs_f64(), size());
        }
        // Nine times each, not at the same moments.
        match answered % (calls / 10) {
            at if at == calls / 40 => nginx.reload(),
            at if at == calls / 20 => nginx.kill_worker(),
            _ => {}
        }
    });
    let (early, late, seconds) = (early.unwrap(), size(), begin.elapsed().as_secs_f64());
    let done = ledger.check(&mut lane);
    eprintln!(
        "{calls} calls in {seconds:.1} s, {:.0} a second; at 10 %: {early:?}, at 100 %: {late:?}; {done:?}; failed attempts \
         by (code, may be done): {:?}",
        calls as f64 / seconds,
        ledger.failures
    );
    // The faults were there, those among them too that leave a call done but not answered.
    assert!(done.doubled > 0 && done.maybe > calls / 200, "{done:?}");
    assert!(late.rss_kib <= early.rss_kib + SLACK_KIB, "memory grows: {early:?}, {late:?}");
    assert!(late.files <= early.files + SLACK_FILES, "files grow: {early:?}, {late:?}");
    goes_on(&mut lane);
}

/// The lane is as good as at the start.
fn goes_on(lane: &mut Lane) {
    let id = lane.call(request("Echo", "end"));
    let (answered, result) = next_answer(lane);
    assert_eq!((answered, result.unwrap().body), (id, b"end".to_vec()));
}

//! The calls to a master: their paths, deadlines and limits, why each may be made again, and what they have cost so far.
//!
//! | call | made again after a failure, since the master knows it by |
//! | --- | --- |
//! | RegisterNode | node id and nonce: a node registers as often as it likes |
//! | Heartbeat, ReportNodeStatus | the sequence: the last one counts |
//! | AssignTask | the poll's id; offers that were neither taken nor refused come again |
//! | SubmitTaskResult | task, attempt, and event number or (stream, epoch, offset): doubles are dropped |
//! | CancelTask | task and attempt: it tells a state |

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::node::snapshot::CallCounts;

/// Calls that only tell something small.
const QUICK: Duration = Duration::from_secs(20);
/// A piece over a slow uplink.
const SUBMIT_TIMEOUT: Duration = Duration::from_secs(60);
/// What a poll gets beyond the time for which the master holds it.
const POLL_SLACK: Duration = Duration::from_secs(15);
/// Limit of every answer but AssignTask's (design section 2).
const MAX_ANSWER: usize = 4 << 20;
/// Limit of AssignTask's answer.
const MAX_ASSIGNMENTS_ANSWER: usize = 32 << 20;

/// A call of the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// NodeService/RegisterNode.
    Register,
    /// NodeService/Heartbeat.
    Heartbeat,
    /// NodeService/ReportNodeStatus.
    Report,
    /// TaskService/AssignTask.
    Assign,
    /// TaskService/SubmitTaskResult.
    Submit,
    /// TaskService/CancelTask.
    Cancel,
}

impl Method {
    /// All of them.
    pub const ALL: [Method; 6] =
        [Method::Register, Method::Heartbeat, Method::Report, Method::Assign, Method::Submit, Method::Cancel];

    /// As the request names it.
    pub fn path(self) -> &'static str {
        match self {
            Method::Register => "/hivemind.v1.NodeService/RegisterNode",
            Method::Heartbeat => "/hivemind.v1.NodeService/Heartbeat",
            Method::Report => "/hivemind.v1.NodeService/ReportNodeStatus",
            Method::Assign => "/hivemind.v1.TaskService/AssignTask",
            Method::Submit => "/hivemind.v1.TaskService/SubmitTaskResult",
            Method::Cancel => "/hivemind.v1.TaskService/CancelTask",
        }
    }

    /// Without package and service, for people.
    pub fn name(self) -> &'static str {
        self.path().rsplit('/').next().unwrap_or_default()
    }

    /// How long a call may take that the master holds for `hold` on purpose.
    pub fn timeout(self, hold: Duration) -> Duration {
        match self {
            Method::Assign => hold + POLL_SLACK,
            Method::Submit => SUBMIT_TIMEOUT,
            Method::Register | Method::Heartbeat | Method::Report | Method::Cancel => QUICK,
        }
    }

    /// Largest answer that is taken, in bytes.
    pub fn max_response(self) -> usize {
        match self {
            Method::Assign => MAX_ASSIGNMENTS_ANSWER,
            _ => MAX_ANSWER,
        }
    }
}

/// Counts the calls of both lanes since the start.
#[derive(Debug, Default)]
pub struct Tally([Counters; Method::ALL.len()]);

#[derive(Debug, Default)]
struct Counters {
    calls: AtomicU64,
    failed: AtomicU64,
    sent_bytes: AtomicU64,
    received_bytes: AtomicU64,
}

impl Tally {
    /// A call with a message of this many bytes.
    pub fn began(&self, method: Method, bytes: usize) {
        let counters = self.of(method);
        counters.calls.fetch_add(1, Ordering::Relaxed);
        counters.sent_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Its answer came, with a message of this many bytes, and was of use or not.
    pub fn ended(&self, method: Method, bytes: usize, is_good: bool) {
        let counters = self.of(method);
        counters.received_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        counters.failed.fetch_add(u64::from(!is_good), Ordering::Relaxed);
    }

    /// All counts. Those of one call may be a moment apart.
    pub fn read(&self) -> Vec<CallCounts> {
        let read = |(method, counters): (Method, &Counters)| CallCounts {
            method: method.name().to_owned(),
            calls: counters.calls.load(Ordering::Relaxed),
            failed: counters.failed.load(Ordering::Relaxed),
            sent_bytes: counters.sent_bytes.load(Ordering::Relaxed),
            received_bytes: counters.received_bytes.load(Ordering::Relaxed),
        };
        Method::ALL.into_iter().zip(&self.0).map(read).collect()
    }

    fn of(&self, method: Method) -> &Counters {
        let [register, heartbeat, report, assign, submit, cancel] = &self.0;
        match method {
            Method::Register => register,
            Method::Heartbeat => heartbeat,
            Method::Report => report,
            Method::Assign => assign,
            Method::Submit => submit,
            Method::Cancel => cancel,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_go_to_the_method_that_they_are_of() {
        let tally = Tally::default();
        for (i, method) in Method::ALL.into_iter().enumerate() {
            for _ in 0..=i {
                tally.began(method, 10);
            }
            tally.ended(method, 3, i % 2 == 0);
        }
        for (i, counts) in tally.read().into_iter().enumerate() {
            assert_eq!(counts.method, Method::ALL[i].name());
            let calls = i as u64 + 1;
            let want = (calls, u64::from(i % 2 == 1), calls * 10, 3);
            assert_eq!((counts.calls, counts.failed, counts.sent_bytes, counts.received_bytes), want);
        }
        assert_eq!(Method::Report.name(), "ReportNodeStatus");
    }
}

//! What a final report says beyond the outcome: times of the phases, limits as applied, peaks and averages, and what the
//! outcome was decided by. Whatever is not known is absent, never zero.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::record::Phase;

/// How long an attempt was in a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseTime {
    /// Which.
    pub phase: Phase,
    /// All visits together, as far as this worker saw them.
    pub duration_ms: u64,
}

/// Adds a visit to a phase; the order is that of the first visits.
pub fn add_visit(times: &mut Vec<PhaseTime>, phase: Phase, duration: Duration) {
    let ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    match times.iter_mut().find(|time| time.phase == phase) {
        Some(time) => time.duration_ms = time.duration_ms.saturating_add(ms),
        None => times.push(PhaseTime { phase, duration_ms: ms }),
    }
}

/// Limits of a container that ran: the first four and the runtime as the engine said them back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AppliedLimits {
    /// Memory, without swap.
    pub memory_bytes: Option<u64>,
    /// Thousandths of a CPU.
    pub cpu_millis: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// The engine's word for the network.
    pub network: String,
    /// Work folder and outputs.
    pub disk_bytes: u64,
    /// Running time.
    pub timeout_ms: u64,
    /// From SIGTERM to SIGKILL.
    pub grace_ms: u64,
    /// The engine's word for the runtime; empty in a report of an older worker.
    pub runtime: String,
}

/// Peaks and averages beside [`super::record::Usage`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UsageFigures {
    /// Thousandths of a CPU, over the running time.
    pub average_cpu_millis: Option<u64>,
    /// Thousandths of a CPU, over a second at least.
    pub peak_cpu_millis: Option<u64>,
    /// Over the time that was measured.
    pub average_memory_bytes: Option<u64>,
    /// Over the time that was measured.
    pub average_pids: Option<u64>,
    /// Most processes and threads that were seen.
    pub peak_pids: Option<u64>,
    /// Most bytes of the work folder that were seen.
    pub peak_disk_bytes: Option<u64>,
    /// Over all interfaces but loopback.
    pub network_received_bytes: Option<u64>,
    /// Over all interfaces but loopback.
    pub network_sent_bytes: Option<u64>,
}

/// Who ended the first process of a container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndedBy {
    /// By itself, whatever its exit code.
    Task,
    /// For memory.
    Kernel,
    /// The node, for a limit: time or disk.
    Limit,
    /// The node for its own sake.
    Node,
    /// By a cancellation, or since it was replaced.
    Master,
    /// The node's owner.
    Owner,
    /// At its restart.
    Engine,
    /// Somebody who removed the container.
    Outsider,
    /// It does not end, though it was killed.
    Nobody,
    /// Not known, such as a signal that nobody here sent.
    #[default]
    #[serde(other)]
    Unknown,
}

impl EndedBy {
    /// All but [`EndedBy::Unknown`], in the order of the contract's numbers, from 1.
    pub const KNOWN: [Self; 9] = [
        Self::Task,
        Self::Kernel,
        Self::Limit,
        Self::Node,
        Self::Master,
        Self::Owner,
        Self::Engine,
        Self::Outsider,
        Self::Nobody,
    ];

    /// The words that are shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Task => "itself",
            Self::Kernel => "the kernel, for memory",
            Self::Limit => "the node, for a limit",
            Self::Node => "the node, for its own sake",
            Self::Master => "the master",
            Self::Owner => "the node's owner",
            Self::Engine => "the engine, at its restart",
            Self::Outsider => "somebody who removed the container",
            Self::Nobody => "nobody: it does not end",
        }
    }
}

/// What an outcome was decided by.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Evidence {
    /// Who ended it.
    pub ended_by: EndedBy,
    /// The engine's flag.
    pub oom_killed: Option<bool>,
    /// Signal that ended the first process, as far as its exit code tells.
    pub signal: Option<u32>,
    /// Signals that the node sent and the engine took, each once.
    pub signals_sent: Vec<String>,
    /// The engine's own word on an error.
    pub engine_error: String,
    /// The engine's own time, RFC 3339.
    pub started_at: String,
    /// The engine's own time, RFC 3339.
    pub finished_at: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn visits_of_a_phase_add_up_in_the_order_of_the_first() {
        let mut times = Vec::new();
        for (phase, ms) in [(Phase::Queued, 5), (Phase::Running, 100), (Phase::Paused, 7), (Phase::Running, 11)] {
            add_visit(&mut times, phase, Duration::from_millis(ms));
        }
        let time = |phase, duration_ms| PhaseTime { phase, duration_ms };
        assert_eq!(times, [time(Phase::Queued, 5), time(Phase::Running, 111), time(Phase::Paused, 7)]);
    }

    #[test]
    fn a_word_of_a_later_version_is_read_as_unknown() {
        assert_eq!(serde_json::from_str::<EndedBy>("\"kernel\"").unwrap(), EndedBy::Kernel);
        assert_eq!(serde_json::from_str::<EndedBy>("\"aliens\"").unwrap(), EndedBy::Unknown);
    }
}

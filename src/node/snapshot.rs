//! What the node looks like from outside at one moment: read by the monitor, the control socket and the reports.

use serde::{Deserialize, Serialize};

use super::id::{AttemptKey, Id};
use super::record::{Outcome, Phase, Usage};
use super::resources::Resources;

/// What the machine does. A field that the machine doesn't tell is absent, never zero.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HostSample {
    /// Busy share of all CPUs since the sample before, 0 to 100.
    pub cpu_percent: Option<f64>,
    /// Load average over one minute.
    pub load_1m: Option<f64>,
    /// CPUs online.
    pub cpus: u32,
    /// Bytes of memory that the kernel manages.
    pub memory_total_bytes: Option<u64>,
    /// Bytes that a new process could have without swapping.
    pub memory_available_bytes: Option<u64>,
    /// Bytes of swap.
    pub swap_total_bytes: Option<u64>,
    /// Bytes of swap unused.
    pub swap_free_bytes: Option<u64>,
    /// Bytes of the file system that holds the state folder.
    pub disk_total_bytes: Option<u64>,
    /// Bytes of it that a normal user could still write.
    pub disk_free_bytes: Option<u64>,
    /// Bytes received by all interfaces but loopback since boot.
    pub network_received_bytes: Option<u64>,
    /// Bytes sent by all interfaces but loopback since boot.
    pub network_sent_bytes: Option<u64>,
    /// Seconds since boot.
    pub uptime_s: Option<u64>,
}

/// What the machine is, which does not change while the worker runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineFacts {
    /// Host name.
    pub hostname: String,
    /// `linux`.
    pub os: String,
    /// As in Rust's target names, such as `x86_64`.
    pub arch: String,
    /// Kernel release.
    pub kernel: String,
    /// Model name of the first CPU, when known.
    pub cpu_model: String,
    /// CPUs online.
    pub cpus: u32,
    /// Bytes of memory.
    pub memory_bytes: u64,
}

/// Whether the master can be heard.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MasterView {
    /// Where it is; without user or token.
    pub url: String,
    /// A connection is up and the node is registered.
    pub is_connected: bool,
    /// Why not, or since when.
    pub detail: String,
    /// Calls that failed since the start.
    pub failed_calls: u64,
    /// The calls since the start, by method.
    pub calls: Vec<CallCounts>,
}

/// What the calls of one method have cost since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallCounts {
    /// Its name.
    pub method: String,
    /// Calls that were begun.
    pub calls: u64,
    /// Those of them that were not answered, or not well.
    pub failed: u64,
    /// Bytes of the messages that went out, without framing.
    pub sent_bytes: u64,
    /// Bytes of the messages that came back, without framing.
    pub received_bytes: u64,
}

/// Whether the engine answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineView {
    /// Calls succeed and the engine can hold what the sandbox asks for.
    pub is_usable: bool,
    /// Version, API and such when usable, else what is missing and how to mend it.
    pub detail: String,
    /// Version of the engine.
    pub version: String,
    /// Version of the API that was agreed on.
    pub api_version: String,
    /// 1 or 2; 0 while not known.
    pub cgroup_version: u32,
    /// The engine runs without root.
    pub is_rootless: bool,
    /// Names of its runtimes.
    #[serde(default)]
    pub runtimes: Vec<String>,
}

/// What the node as a whole is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// Takes tasks.
    #[default]
    Ready,
    /// Runs tasks and has no room for more.
    Busy,
    /// The owner paused it.
    Paused,
    /// Takes nothing new.
    Draining,
    /// Something that it needs is missing.
    Degraded,
}

impl NodeState {
    /// The word that is shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Busy => "busy",
            Self::Paused => "paused",
            Self::Draining => "draining",
            Self::Degraded => "degraded",
        }
    }
}

/// An attempt that the node holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttemptView {
    /// Task and attempt.
    #[serde(flatten)]
    pub key: AttemptKey,
    /// Whose.
    pub owner: Id,
    /// Image as asked for.
    pub image: String,
    /// Where it stands.
    pub phase: Phase,
    /// Since when, milliseconds since 1970.
    pub phase_since_ms: u64,
    /// What it is doing, or why it waits.
    pub detail: String,
    /// Its limits.
    pub limits: Resources,
    /// 0 to 100.
    pub priority: u8,
    /// Use at the last look.
    pub usage: Usage,
    /// CPU over the last interval, in percent of one CPU.
    pub cpu_percent: Option<f64>,
    /// Running time so far.
    pub running_ms: u64,
    /// Longest running time.
    pub timeout_ms: u64,
    /// Last output, text as it came, at most 4 KiB.
    pub tail: String,
}

/// An attempt that is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryRow {
    /// Task and attempt.
    #[serde(flatten)]
    pub key: AttemptKey,
    /// Whose.
    pub owner: Id,
    /// Image as asked for.
    pub image: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Exit code, if there was one.
    pub exit_code: Option<i64>,
    /// Why, in words.
    pub reason: String,
    /// What it used.
    pub usage: Usage,
    /// Running time.
    pub duration_ms: u64,
    /// When it ended, milliseconds since 1970.
    pub finished_ms: u64,
    /// Files and bytes of output.
    pub output_files: u64,
    /// See `output_files`.
    pub output_bytes: u64,
}

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Version of the worker.
    pub version: String,
    /// This node.
    pub node_id: String,
    /// State and, when it is not plain, the reason.
    pub state: NodeState,
    /// See `state`.
    pub state_reason: String,
    /// When the worker started, milliseconds since 1970.
    pub started_ms: u64,
    /// Address of the monitor page.
    pub monitor: String,
    /// Whether a small master runs in this process.
    pub is_standalone: bool,
    /// The machine.
    pub machine: MachineFacts,
    /// Its use.
    pub host: HostSample,
    /// The master.
    pub master: MasterView,
    /// The engine.
    pub engine: EngineView,
    /// What the owner lends.
    pub lent: Resources,
    /// What of it is promised to tasks.
    pub promised: Resources,
    /// What the master may still assign: all zero while the node takes nothing.
    pub free: Resources,
    /// Reward estimate of now.
    pub reward_estimate: u64,
    /// Attempts that the node holds, in the order of arrival.
    pub attempts: Vec<AttemptView>,
    /// The last attempts that ended, newest first; more are in the store.
    pub history: Vec<HistoryRow>,
    /// What the owner should know, newest first.
    pub alerts: Vec<String>,
    /// What of this machine is over its threshold now.
    #[serde(default)]
    pub over_threshold: Vec<String>,
}

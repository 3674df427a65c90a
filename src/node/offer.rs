//! An assignment as it came from a master: nothing in it is checked yet. [`super::spec::TaskSpec::check`] checks it.

/// The field of an assignment's envelope without which it is not the master's: a refusal for it is told to the owner.
pub const SIGNATURE: &str = "signature";

/// Raw fields of an assignment. Numbers are signed and wide, so that a negative or huge one arrives as what it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offer {
    /// Task id.
    pub task: String,
    /// Attempt, from 1.
    pub attempt: i64,
    /// Id of the task's owner.
    pub owner: String,
    /// Image reference; empty means the base image.
    pub image: String,
    /// `if-missing`, `always`, `never`, or empty for the node's default.
    pub pull: String,
    /// Argument vector; empty means that `run_task.sh` picks a program.
    pub command: Vec<String>,
    /// Environment of the task.
    pub env: Vec<(String, String)>,
    /// Thousandths of a CPU; 0 means the default.
    pub cpu_millis: i64,
    /// Bytes; 0 means the default.
    pub memory_bytes: i64,
    /// Bytes of work folder and outputs; 0 means the default.
    pub disk_bytes: i64,
    /// GPUs wanted.
    pub gpus: i64,
    /// Running time in milliseconds; 0 means the node's default.
    pub timeout_ms: i64,
    /// Between SIGTERM and SIGKILL in milliseconds; absent means the default.
    pub grace_ms: Option<i64>,
    /// 0 to 100; absent means 50.
    pub priority: Option<i64>,
    /// `none`, `egress`, or empty for `none`.
    pub network: String,
    /// The only destinations with `egress`; empty means every public one.
    pub network_allow: Vec<String>,
    /// Name of the engine's runtime; empty for the engine's default.
    pub runtime: String,
    /// `finish`, `stop`, or empty for `finish`.
    pub at_lease_end: String,
    /// Patterns of files to collect, below the work folder; empty means `output/**`.
    pub outputs: Vec<String>,
    /// Bytes of all collected files; 0 means the default.
    pub max_output_bytes: i64,
    /// Archive of the work folder's first content; may be empty.
    pub inputs: Vec<u8>,
    /// SHA-256 of `inputs`, or of what is at the URL, or empty.
    pub inputs_sha256: Vec<u8>,
    /// Where the archive is, in place of `inputs`; may be empty.
    pub inputs_url: String,
    /// The most bytes that may come from there; 0 means the node's maximum.
    pub inputs_url_bytes: i64,
    /// SHA-256 of the assignment's exact bytes: two offers of one attempt must agree in it.
    pub digest: [u8; 32],
}

//! What the machine is and does: capacity and use of CPU, memory, disk and network.
//!
//! What the machine doesn't tell is absent, never zero. GPUs are not looked at yet.

mod cgroup;
mod linux;
mod parse;
mod sampler;

pub use self::linux::{disk_space, disk_space_above, machine_facts};
pub use self::sampler::Sampler;

/// Bytes of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskSpace {
    /// In all.
    pub total_bytes: u64,
    /// That a normal user could still write.
    pub free_bytes: u64,
}

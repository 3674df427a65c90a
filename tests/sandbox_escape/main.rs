//! Tries to get out of the sandbox, as tasks of a real worker on the real engine. Each try must fail in the expected way,
//! the same try must succeed where the right is granted, so that the check can fail, and worker and machine must be
//! unharmed.
//!
//! | module | tries |
//! | --- | --- |
//! | `calls` | the machine's files, mounts, devices, other processes, rights, the kernel's doors |
//! | `amounts` | processes, memory, disk, files |
//! | `output` | floods, lines without end, terminal codes, links to the machine's files |
//! | `network` | the machine, its neighbours, the metadata address, other tasks, sockets |
//! | `images` | what an image declares |
//! | `engines` | an engine that lies, and one that maps users |
//! | `mixed` | many tasks of every kind: nothing is left of them |
//!
//! Tried elsewhere: a container that ignores SIGTERM, a disk that is filled by many files, what is seen from inside and
//! rotation of the engine's log in `sandbox_engine`, archives in `sandbox::inputs` and `sandbox::collect`, the engine's
//! own walls in `docker_engine`.
#![allow(clippy::unwrap_used)]

#[path = "../node_util/mod.rs"]
mod node_util;

mod amounts;
mod calls;
mod engines;
mod images;
mod mixed;
mod network;
mod output;
mod yard;

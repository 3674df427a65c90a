//! Client of the Docker Engine API over the engine's local socket; synchronous, one connection a call.
//!
//! [`Docker`] is a cheap handle without I/O of its own. Every call has a deadline from [`NodeTimeouts`] or an argument,
//! and can be ended from another thread by the [`Stop`] that the handle is bound to. Answers are bounded, and unknown
//! fields in them are ignored. Whatever comes from outside is percent-encoded in one place (`target.rs`).
//!
//! | file | has |
//! | --- | --- |
//! | `host`, `version`, `error`, `stop` | address, API versions, errors, release of blocked calls |
//! | `pipe`, `raw`, `transport`, `target`, `call` | socket, streams past the ureq seam, that seam, encoding, the way of one call |
//! | `containers`, `archive`, `output`, `images`, `volumes_networks`, `system`, `events`, `stats` | the calls by topic |
//! | `create`, `model` | bodies that are sent, answers that are read |
//! | `frames`, `lines` | sans-I/O parsers of output frames and JSON lines |
//!
//! Left out on purpose: TCP and TLS (see `host`), exec, build, swarm, and names of containers, which are the sandbox's.

mod archive;
mod call;
mod containers;
mod create;
mod error;
mod events;
mod frames;
mod host;
mod images;
mod lines;
mod model;
mod output;
mod pipe;
mod raw;
mod stats;
mod stop;
mod system;
mod target;
mod transport;
mod version;
mod volumes_networks;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

pub use archive::ArchiveReader;
pub use containers::{Change, LogOptions, WaitCondition};
pub use create::{
    CreateBody, DeviceRequest, Healthcheck, HostConfig, IpamConfig, IpamCreate, LogConfig, Mount, MountType,
    NetworkCreate, RestartPolicy, Ulimit, UpdateBody, VolumeCreate, VolumeOptions,
};
pub use error::Error;
pub use events::{Event, EventAction, EventFilter, EventStream};
pub use frames::{Demultiplexer, FrameError, OutputKind, Piece};
pub use host::{DockerHost, HostError};
pub use images::{PullDetail, PullProgress, RegistryAuth};
pub use model::{
    ContainerConfig, ContainerInspect, ContainerState, ContainerSummary, Created, DiskUsage, ExitStatus,
    HostConfigReadBack, ImageConfig, ImageInspect, MountPoint, Network, Volume, VolumeUsage,
};
pub use output::OutputStream;
pub use stats::Stats;
pub use stop::Stop;
pub use system::{EngineFacts, Platform};
pub use version::ApiVersion;

use transport::Route;

/// How long calls may take. The defaults suit a small board under load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeTimeouts {
    /// Connecting to the socket.
    pub connect: Duration,
    /// Calls that only read or change a record, body included.
    pub quick: Duration,
    /// Calls that make the engine work: create, start, remove, kill, disk usage.
    pub slow: Duration,
}

impl NodeTimeouts {
    /// A local socket answers at once unless the engine hangs.
    pub const CONNECT: Duration = Duration::from_secs(5);
    /// An inspect takes milliseconds; an engine that swaps takes seconds.
    pub const QUICK: Duration = Duration::from_secs(30);
    /// Removing a large layer or walking all volumes on an SD card.
    pub const SLOW: Duration = Duration::from_secs(180);
}

impl Default for NodeTimeouts {
    fn default() -> NodeTimeouts {
        NodeTimeouts { connect: NodeTimeouts::CONNECT, quick: NodeTimeouts::QUICK, slow: NodeTimeouts::SLOW }
    }
}

/// A handle to the engine. Clones share the negotiated version.
#[derive(Clone, Debug)]
pub struct Docker {
    shared: Arc<Shared>,
    stop: Option<Stop>,
}

#[derive(Debug)]
struct Shared {
    host: DockerHost,
    timeouts: NodeTimeouts,
    /// Major and minor in one word; zero before the first ping.
    api: AtomicU32,
}

impl Docker {
    /// A handle; does no I/O. The API version is negotiated by the first call, and again by each `ping`.
    pub fn new(host: DockerHost, timeouts: NodeTimeouts) -> Docker {
        Docker { shared: Arc::new(Shared { host, timeouts, api: AtomicU32::new(0) }), stop: None }
    }

    /// The same engine, all calls bound to `stop` in place of the handle that they were bound to.
    pub fn with_stop(&self, stop: &Stop) -> Docker {
        Docker { shared: Arc::clone(&self.shared), stop: Some(stop.clone()) }
    }

    /// The engine's address.
    pub fn host(&self) -> &DockerHost {
        &self.shared.host
    }

    fn timeouts(&self) -> &NodeTimeouts {
        &self.shared.timeouts
    }

    fn route(&self) -> Route {
        Route {
            path: self.shared.host.path().to_owned(),
            connect_timeout: self.shared.timeouts.connect,
            stop: self.stop.clone(),
        }
    }

    /// The version to speak, negotiated if it wasn't yet.
    fn api(&self) -> Result<ApiVersion, Error> {
        match self.shared.api.load(Ordering::Relaxed) {
            0 => self.ping(),
            word => {
                let [a, b, c, d] = word.to_be_bytes();
                Ok(ApiVersion { major: u16::from_be_bytes([a, b]), minor: u16::from_be_bytes([c, d]) })
            }
        }
    }

    fn remember_api(&self, version: ApiVersion) {
        let word = u32::from(version.major) << 16 | u32::from(version.minor);
        self.shared.api.store(word, Ordering::Relaxed);
    }
}

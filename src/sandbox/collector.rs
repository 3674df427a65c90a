//! The thread that collects what is left over: each hour, and when the owner asks. At the engine that is what belongs to no
//! attempt, and where its disk runs low images that were pulled for tasks; on the disk, bundles over their limits. The start's own collection is the engine watch's, which looks whenever
//! it has found the engine again.
//!
//! The thread is released by [`Collector::release`].

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, never, select, tick};
use log::{info, warn};

use super::book::Book;
use super::naming::Identity;
use super::stock::Stock;
use super::sweep;
use super::volume::Volumes;
use crate::docker::{Docker, Stop};
use crate::node::id::AttemptKey;
use crate::node::leftover::{Collecting, LeftOver};
use crate::store::{Bundles, OldSet};

/// Between two collections that nobody asked for.
const EVERY: Duration = Duration::from_secs(3_600);
/// Owners who wait; further ones are sent away.
const MAX_ASKS: usize = 4;
/// A collection holds a few lists.
const STACK_BYTES: usize = 512 << 10;

/// What a collection did, or why it could not.
pub type Answer = Result<Vec<LeftOver>, String>;

/// An owner's wish for a collection.
pub struct Ask {
    /// Whether to remove what is found.
    pub how: Collecting,
    /// Where the answer goes; it has room for one.
    pub reply: Sender<Answer>,
}

/// A way to ask, and the end that a collector takes.
pub fn asks() -> (Sender<Ask>, Receiver<Ask>) {
    bounded(MAX_ASKS)
}

/// What a collector works on.
pub struct Parts {
    /// The engine.
    pub docker: Docker,
    /// Whose things are ours.
    pub identity: Identity,
    /// Bundles on the disk.
    pub bundles: Arc<Bundles>,
    /// Images that were pulled.
    pub images: Arc<Book>,
    /// Work folders that are bounded by their size.
    pub volumes: Arc<Volumes>,
    /// Whether the node still has use for what an attempt has at the engine.
    pub is_held: Box<dyn Fn(&AttemptKey) -> bool + Send>,
    /// Kept files and packages, which have limits too.
    pub stock: Arc<Stock>,
}

/// The running thread.
pub struct Collector {
    stop: Stop,
    ended: Sender<()>,
    thread: JoinHandle<()>,
}

impl Collector {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub fn start(parts: Parts, asks: Receiver<Ask>) -> io::Result<Self> {
        let stop = Stop::new();
        let (ended, end) = bounded(0);
        let parts = Parts { docker: parts.docker.with_stop(&stop), ..parts };
        let thread = thread::Builder::new()
            .name("collector".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || parts.run(&asks, &end))?;
        Ok(Self { stop, ended, thread })
    }

    /// Ends the thread and waits for it.
    pub fn release(self) {
        self.stop.stop();
        drop(self.ended);
        if self.thread.join().is_err() {
            warn!("the collector ended by a panic");
        }
    }
}

impl Parts {
    fn run(&self, asks: &Receiver<Ask>, end: &Receiver<()>) {
        let due = tick(EVERY);
        let mut asks = asks.clone();
        loop {
            select! {
                recv(end) -> _ => return,
                recv(due) -> _ => self.collect_unasked(),
                recv(asks) -> ask => match ask {
                    // Who asked may have stopped waiting.
                    Ok(ask) => ask.reply.try_send(self.collect(ask.how)).unwrap_or_default(),
                    Err(_) => asks = never(),
                },
            }
        }
    }

    fn collect_unasked(&self) {
        if let Err(error) = self.collect(Collecting::Removes) {
            info!("nothing is collected at the engine now: {error}");
        }
    }

    /// Bundles first: they need no engine.
    fn collect(&self, how: Collecting) -> Answer {
        if how == Collecting::Removes {
            self.stock.kept.tidy();
        }
        let bundles = match how {
            Collecting::Removes => self.bundles.tidy(),
            Collecting::Looks => self.bundles.untidy(),
        };
        let mut found: Vec<LeftOver> = bundles
            .into_iter()
            .map(|(bundle, reason)| LeftOver {
                kind: "bundle".to_owned(),
                name: bundle.key.to_string(),
                reason,
                trouble: None,
            })
            .collect();
        found.extend(self.old_packages(how));
        let at_engine = sweep::look(&self.docker, &self.identity, &self.is_held, &self.stock.packages)
            .map_err(|error| error.to_string())?;
        for orphan in at_engine.orphans {
            let trouble = match how {
                Collecting::Looks => None,
                Collecting::Removes => orphan.remove(&self.docker).err().map(|error| error.to_string()),
            };
            let kind = orphan.kind.as_str().to_owned();
            found.push(LeftOver { kind, name: orphan.name, reason: orphan.reason, trouble });
        }
        found.extend(self.images.tidy(&self.docker, how).map_err(|error| error.to_string())?);
        found.extend(self.volumes.reap(&self.is_held, how));
        if how == Collecting::Removes {
            found.iter().for_each(log_one);
        }
        Ok(found)
    }

    /// Sets of packages over their limits. One that a container still has is in its way, and goes another time.
    fn old_packages(&self, how: Collecting) -> Vec<LeftOver> {
        let packages = &self.stock.packages;
        let remove = |set: &OldSet| -> Result<(), String> {
            packages.forget(&set.key).map_err(|error| error.to_string())?;
            self.docker.remove_volume(&set.volume).map(drop).map_err(|error| error.to_string())
        };
        let left_over = |set: OldSet| {
            let trouble = if how == Collecting::Removes { remove(&set).err() } else { None };
            LeftOver { kind: "volume".to_owned(), name: set.volume, reason: set.reason, trouble }
        };
        packages.over().into_iter().map(left_over).collect()
    }
}

/// Tells the log what was done.
pub fn log_one(thing: &LeftOver) {
    let LeftOver { kind, name, reason, trouble } = thing;
    match trouble {
        None => info!("removed the left-over {kind} {name}: {reason}"),
        Some(trouble) => warn!("can't remove the left-over {kind} {name}: {trouble}"),
    }
}

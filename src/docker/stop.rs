//! A handle that releases whoever is blocked in a call to the engine.
//!
//! It acts on the socket, not on a flag that somebody must look at: the kernel wakes the blocked read or write.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::pipe::Pipe;

/// Ends the calls that are bound to it, those under way and those yet to come. Clones are the same handle.
#[derive(Clone, Default)]
pub struct Stop {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    stopped: AtomicBool,
    attached: Mutex<Attached>,
}

#[derive(Default)]
struct Attached {
    next: u64,
    pipes: HashMap<u64, Weak<Pipe>>,
}

impl Stop {
    /// A handle that has not been triggered.
    pub fn new() -> Stop {
        Stop::default()
    }

    /// Ends all calls that are bound to this handle, now and for ever. They return `Error::Stopped`.
    pub fn stop(&self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        let pipes = {
            let mut attached = self.shared.attached.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut attached.pipes)
        };
        for pipe in pipes.values().filter_map(Weak::upgrade) {
            pipe.shutdown();
        }
    }

    /// Whether `stop` was called.
    pub fn is_stopped(&self) -> bool {
        self.shared.stopped.load(Ordering::SeqCst)
    }

    /// Puts a pipe under this handle; `None` if it was triggered already.
    pub(super) fn attach(&self, pipe: &Arc<Pipe>) -> Option<StopGuard> {
        let mut attached = self.shared.attached.lock().unwrap_or_else(PoisonError::into_inner);
        // Looked at under the lock: a `stop` after this line finds the pipe in the map.
        if self.is_stopped() {
            return None;
        }
        let key = attached.next;
        attached.next += 1;
        attached.pipes.insert(key, Arc::downgrade(pipe));
        Some(StopGuard { shared: Arc::clone(&self.shared), key })
    }
}

impl fmt::Debug for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stop").field("stopped", &self.is_stopped()).finish()
    }
}

/// Takes the pipe out of its handle when the call is over.
pub(super) struct StopGuard {
    shared: Arc<Shared>,
    key: u64,
}

impl Drop for StopGuard {
    fn drop(&mut self) {
        let mut attached = self.shared.attached.lock().unwrap_or_else(PoisonError::into_inner);
        attached.pipes.remove(&self.key);
    }
}

impl fmt::Debug for StopGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StopGuard").field("key", &self.key).finish()
    }
}

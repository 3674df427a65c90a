//! A handle that releases whoever fetches: it shuts the socket, so that a blocked read wakes up, and ends the waits.

use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam_channel::{Receiver, Sender, bounded};

/// Ends what is bound to it, now and for ever. Clones are the same handle.
#[derive(Clone)]
pub struct Stop {
    shared: Arc<Mutex<Shared>>,
    /// Never has a message; its other end goes at the stop.
    stopped: Receiver<()>,
}

struct Shared {
    sender: Option<Sender<()>>,
    stream: Option<TcpStream>,
}

impl Default for Stop {
    fn default() -> Self {
        Self::new()
    }
}

impl Stop {
    /// A handle that has not been triggered.
    pub fn new() -> Self {
        let (sender, stopped) = bounded(0);
        Self { shared: Arc::new(Mutex::new(Shared { sender: Some(sender), stream: None })), stopped }
    }

    /// Releases.
    pub fn stop(&self) {
        let mut shared = self.lock();
        shared.sender = None;
        if let Some(stream) = shared.stream.take() {
            // The only failure is a socket that is shut already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Whether `stop` was called.
    pub fn is_stopped(&self) -> bool {
        self.lock().sender.is_none()
    }

    /// To wait for a stop in a `select!`: is disconnected by it.
    pub(super) fn stopped(&self) -> &Receiver<()> {
        &self.stopped
    }

    /// Puts a connection under this handle, in place of the last one; tells whether it may be used.
    pub(super) fn attach(&self, stream: &TcpStream) -> bool {
        let mut shared = self.lock();
        shared.stream = stream.try_clone().ok();
        shared.sender.is_some() && shared.stream.is_some()
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! Ctrl-C acts at once, whatever a command is waiting for.

use std::convert::Infallible;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded, select};

use crate::sys::signal::SignalSource;

use super::Failure;

/// What shells say for a command that Ctrl-C ended.
pub(super) const EXIT_INTERRUPTED: u8 = 130;

const STACK_BYTES: usize = 1 << 20;

/// Tells the work that nobody waits for it any more.
pub(super) struct Stop(Receiver<Infallible>);

impl Stop {
    /// Waits; whether to go on.
    pub(super) fn pause(&self, time: Duration) -> bool {
        matches!(self.0.recv_timeout(time), Err(RecvTimeoutError::Timeout))
    }
}

/// Runs `work` on a thread `command` until it is done, or until a signal: then there is no result, and the thread, which
/// may be blocked in a call to the worker, ends with the process that is about to end.
pub(super) fn until_interrupted(
    work: impl FnOnce(&Stop) -> Result<u8, Failure> + Send + 'static,
) -> Result<Option<u8>, Failure> {
    let failed = |error: std::io::Error| Failure::new(format!("failed to start: {error}"));
    let signals = SignalSource::start().map_err(failed)?;
    let (running, stop) = bounded::<Infallible>(0);
    let (done, result) = bounded(1);
    thread::Builder::new()
        .name("command".to_owned())
        .stack_size(STACK_BYTES)
        .spawn(move || {
            // The receiver is gone only after a signal, when nobody wants the result.
            let _ = done.send(work(&Stop(stop)));
        })
        .map_err(failed)?;
    let outcome = select! {
        recv(signals.receiver()) -> _ => Ok(None),
        recv(result) -> result => match result {
            Ok(result) => result.map(Some),
            Err(_) => Err(Failure::new("the command ended without a result")),
        },
    };
    drop(running);
    outcome
}

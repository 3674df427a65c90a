//! Signals as values on a channel. A handler of ours never runs: signal-hook wakes a thread, and that thread sends.

use std::io;
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, TrySendError, bounded};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};

/// Signals that nobody has looked at yet. The signal thread drops further ones: who doesn't look at eight won't at nine.
const MAX_WAITING: usize = 8;
const STACK_BYTES: usize = 128 << 10;

/// What the process was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM.
    Terminate,
    /// SIGINT, as from Ctrl-C.
    Interrupt,
    /// SIGHUP.
    Hangup,
}

/// The thread `signals`. Released by dropping this.
pub struct SignalSource {
    receiver: Receiver<Signal>,
    handle: Handle,
    thread: Option<JoinHandle<()>>,
}

impl SignalSource {
    /// Catches the three signals from now on; until this is dropped they don't end the process.
    ///
    /// # Errors
    /// When the system refuses a handler or a thread.
    pub fn start() -> io::Result<Self> {
        let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
        let handle = signals.handle();
        let (sender, receiver) = bounded(MAX_WAITING);
        let thread = thread::Builder::new().name("signals".to_owned()).stack_size(STACK_BYTES).spawn(move || {
            for number in signals.forever() {
                let signal = match number {
                    SIGTERM => Signal::Terminate,
                    SIGINT => Signal::Interrupt,
                    _ => Signal::Hangup,
                };
                if let Err(TrySendError::Disconnected(_)) = sender.try_send(signal) {
                    return;
                }
            }
        })?;
        Ok(Self { receiver, handle, thread: Some(thread) })
    }

    /// Where the signals arrive.
    pub fn receiver(&self) -> &Receiver<Signal> {
        &self.receiver
    }
}

impl Drop for SignalSource {
    fn drop(&mut self) {
        self.handle.close();
        if let Some(thread) = self.thread.take() {
            // It has no panic of its own, and there is nobody left to tell.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn delivers_signals_and_lets_go() {
        let source = SignalSource::start().unwrap();
        signal_hook::low_level::raise(SIGHUP).unwrap();
        assert_eq!(source.receiver().recv_timeout(Duration::from_secs(5)), Ok(Signal::Hangup));
        drop(source);
    }
}

//! How a task's thread talks to the engine: long calls on a helper thread that can be released, so that a wish of the
//! coordinator always acts at once.

use std::thread;
use std::time::Duration;

use crossbeam_channel::{after, bounded, select};

use super::task::Task;
use crate::docker::{Docker, Error, Stop};
use crate::node::order::TaskNews;
use crate::node::record::Outcome;

/// Longest pause between two tries at an engine that does not answer.
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// First pause.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Tries at an answer that makes no sense, such as one that was cut off by the engine's end.
const MAX_GARBLED: u32 = 3;
/// A call holds one HTTP exchange and, for archives, a small buffer.
const STACK_BYTES: usize = 512 << 10;

/// Why a task does not go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Break {
    /// It ends, with this outcome and reason.
    End(Outcome, String),
    /// The worker lets go of it.
    Leave,
}

/// A step of a task's life, or why there is no next one.
pub type Step<T> = Result<T, Break>;

/// An error of the engine where it ends the attempt: what it refuses by its own words is the task's fault, the rest the
/// node's.
pub fn fault(error: &Error) -> Break {
    match error {
        Error::Refused { status: 400..500, .. } => Break::End(Outcome::Rejected, error.to_string()),
        error => Break::End(Outcome::NodeFault, error.to_string()),
    }
}

impl Task {
    /// What the coordinator wants that ends the present step.
    pub fn interruption(&self) -> Option<Break> {
        let desired = self.desired.latest();
        if desired.must_leave {
            return Some(Break::Leave);
        }
        desired.stop.as_ref().map(|order| Break::End(order.outcome, order.reason.clone()))
    }

    /// The order to let go, which interrupts also what a stop order must not.
    pub fn leave_order(&self) -> Option<Break> {
        self.desired.latest().must_leave.then_some(Break::Leave)
    }

    /// One job on a helper thread, ended early by what `interruption` finds.
    pub fn call_unless<T: Send + 'static>(
        &self,
        interruption: &dyn Fn() -> Option<Break>,
        stop: &Stop,
        job: impl FnOnce(&Docker) -> T + Send + 'static,
    ) -> Step<T> {
        let docker = self.context.docker.with_stop(stop);
        self.help_unless(interruption, &|| stop.stop(), move || job(&docker))
    }

    /// Any job on a helper thread, ended early by what `interruption` finds: then `release` makes the job come back.
    pub fn help_unless<T: Send + 'static>(
        &self,
        interruption: &dyn Fn() -> Option<Break>,
        release: &dyn Fn(),
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Step<T> {
        if let Some(interruption) = interruption() {
            return Err(interruption);
        }
        let (sender, result) = bounded(1);
        let name = format!("call-{}", self.number);
        let helper = thread::Builder::new().name(name).stack_size(STACK_BYTES).spawn(move || {
            // The task's thread waits for this, always.
            let _ = sender.send(job());
        });
        if let Err(error) = helper {
            return Err(Break::End(Outcome::NodeFault, format!("can't start a thread: {error}")));
        }
        loop {
            select! {
                recv(result) -> result => {
                    return result.map_err(|_| Break::End(Outcome::NodeFault, "a helper thread broke off".to_owned()));
                }
                recv(self.wake) -> _ => {
                    if let Some(interruption) = interruption() {
                        release();
                        // Released: it comes back at once, and nothing of it may run on behind the next step's back.
                        let _ = result.recv();
                        return Err(interruption);
                    }
                }
            }
        }
    }

    /// A call that can be made again, until the engine answers.
    pub fn engine<T: Send + 'static>(
        &self,
        job: impl Fn(&Docker) -> Result<T, Error> + Clone + Send + 'static,
    ) -> Step<Result<T, Error>> {
        self.engine_unless(&|| self.interruption(), &|| self.interruption(), job)
    }

    /// As [`Self::engine`], for a call that makes something: a stop order waits for its answer, since what the engine
    /// makes after it was asked to remove it would stay.
    pub fn engine_whole<T: Send + 'static>(
        &self,
        job: impl Fn(&Docker) -> Result<T, Error> + Clone + Send + 'static,
    ) -> Step<Result<T, Error>> {
        self.engine_unless(&|| self.leave_order(), &|| self.interruption(), job)
    }

    /// As [`Self::engine`], where a stop order must not keep the thread from what is at the engine.
    pub fn engine_patiently<T: Send + 'static>(
        &self,
        job: impl Fn(&Docker) -> Result<T, Error> + Clone + Send + 'static,
    ) -> Step<Result<T, Error>> {
        self.engine_unless(&|| self.leave_order(), &|| self.leave_order(), job)
    }

    fn engine_unless<T: Send + 'static>(
        &self,
        interrupts_call: &dyn Fn() -> Option<Break>,
        interrupts_wait: &dyn Fn() -> Option<Break>,
        job: impl Fn(&Docker) -> Result<T, Error> + Clone + Send + 'static,
    ) -> Step<Result<T, Error>> {
        let mut pause = FIRST_PAUSE;
        let mut garbled = 0;
        loop {
            let error = match self.call_unless(interrupts_call, &Stop::new(), job.clone())? {
                Err(error) if error.is_away() => error,
                Err(error @ Error::Protocol { .. }) if garbled < MAX_GARBLED => {
                    garbled += 1;
                    error
                }
                result => return Ok(result),
            };
            self.tell(TaskNews::Detail(format!("waits for the engine: {error}")));
            self.wait_unless(interrupts_wait, pause)?;
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }

    /// Waits, unless the coordinator wants something.
    pub fn wait(&self, pause: Duration) -> Step<()> {
        self.wait_unless(&|| self.interruption(), pause)
    }

    /// Waits, unless `interruption` finds something.
    pub fn wait_unless(&self, interruption: &dyn Fn() -> Option<Break>, pause: Duration) -> Step<()> {
        let end = after(pause);
        loop {
            if let Some(interruption) = interruption() {
                return Err(interruption);
            }
            select! {
                recv(end) -> _ => return Ok(()),
                recv(self.wake) -> _ => {}
            }
        }
    }
}

//! The thread of one attempt, as `sandbox::task` has it, cut into steps: between each two the process may die.
//!
//! ```text
//! Adopt -> Prepare -> Create -> Created -> Start -> Started -> Run -> Collect -> Report -> AwaitRecord -> Clean
//!   |  (nothing had run)                                        ^        an order to stop, or a fault, before Run:
//!   +--------------------- (it runs, or ran) -------------------+        at once to Report
//! ```

use std::time::Duration;

use hivemind_worker::node::order::{Desired, Look, Marks, TaskNews};
use hivemind_worker::node::record::{FinalReport, Outcome, Phase};
use hivemind_worker::node::spec::TaskSpec;

use super::dice::Dice;
use super::engine::{Away, Container, Engine};
use super::ledger::Ledger;
use super::store::Disk;

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Adopt,
    Prepare,
    Create,
    Created,
    Start,
    Started,
    Run { kill_at: Option<Duration> },
    Collect { exit_code: i64 },
    Report(Box<FinalReport>),
    AwaitRecord,
    Clean,
    Ended,
}

/// Why a step was not done.
enum Break {
    /// The engine is away: the same again later.
    Wait,
    /// A wish of the coordinator, or a fault.
    End(Outcome, String),
}

impl From<Away> for Break {
    fn from(_: Away) -> Self {
        Self::Wait
    }
}

pub struct Task {
    pub spec: TaskSpec,
    marks: Marks,
    /// The cell that the coordinator writes to.
    pub desired: Desired,
    step: Step,
    is_frozen: bool,
}

/// What a step sees and changes.
pub struct Around<'a> {
    pub dice: &'a mut Dice,
    pub engine: &'a mut Engine,
    pub ledger: &'a mut Ledger,
    pub disk: &'a Disk,
    pub now: Duration,
    pub boot_id: String,
    pub news: Vec<TaskNews>,
}

impl Around<'_> {
    fn tell_phase(&mut self, phase: Phase) {
        self.news.push(TaskNews::Phase(phase, String::new()));
    }
}

impl Task {
    pub fn new(spec: TaskSpec, marks: Marks, is_adoption: bool) -> Self {
        let step = if is_adoption { Step::Adopt } else { Step::Prepare };
        Self { spec, marks, desired: Desired::default(), step, is_frozen: false }
    }

    pub fn is_ended(&self) -> bool {
        self.step == Step::Ended
    }

    /// One step, or a wait.
    pub fn turn(&mut self, around: &mut Around<'_>) {
        let has_last_word = matches!(self.step, Step::Report(_) | Step::Clean | Step::Ended);
        if self.desired.must_leave && !has_last_word && !(self.step == Step::AwaitRecord && self.desired.may_clean) {
            self.step = Step::Ended;
            return around.news.push(TaskNews::Left);
        }
        match self.advance(around) {
            Ok(next) => self.step = next,
            Err(Break::End(outcome, reason)) => {
                self.step = Step::Report(Box::new(FinalReport::without_run(outcome, reason)));
            }
            Err(Break::Wait) => around.news.push(TaskNews::Detail("waits for the engine".to_owned())),
        }
    }

    fn advance(&mut self, around: &mut Around<'_>) -> Result<Step, Break> {
        let key = self.spec.key.clone();
        match self.step.clone() {
            Step::Adopt => self.adopt(around),
            Step::Prepare => {
                self.heed_stop()?;
                around.engine.inspect(&key)?;
                if around.dice.one_in(20) {
                    return Err(Break::End(Outcome::Rejected, "no such image".to_owned()));
                }
                self.mark(around, |marks| marks.image_digest = Some("sha256:1".to_owned()));
                Ok(Step::Create)
            }
            Step::Create => match around.engine.create(&key) {
                Ok(()) => Ok(Step::Created),
                Err(Away) => self.heed_stop().and(Err(Break::Wait)),
            },
            Step::Created => {
                self.mark(around, |marks| marks.container_id = Some("id".to_owned()));
                around.tell_phase(Phase::Starting);
                Ok(Step::Start)
            }
            Step::Start => {
                self.heed_stop()?;
                match around.engine.start(&key, around.ledger, around.disk)? {
                    true => Ok(Step::Started),
                    false => Err(Break::End(Outcome::NodeFault, "no such container".to_owned())),
                }
            }
            Step::Started => {
                let (boot_id, now) = (around.boot_id.clone(), around.now);
                self.mark(around, |marks| {
                    marks.boot_id = Some(boot_id);
                    marks.started_boot_ms = u64::try_from(now.as_millis()).ok();
                });
                around.tell_phase(Phase::Running);
                Ok(Step::Run { kill_at: None })
            }
            Step::Run { kill_at } => self.follow(kill_at, around),
            Step::Collect { exit_code } => {
                around.tell_phase(Phase::Collecting);
                around.engine.inspect(&key)?;
                Ok(Step::Report(Box::new(self.judge(exit_code))))
            }
            Step::Report(report) => {
                around.news.push(TaskNews::Finished(report));
                Ok(Step::AwaitRecord)
            }
            Step::AwaitRecord if self.desired.may_clean => Ok(Step::Clean),
            Step::Clean => {
                let trouble = match around.engine.remove(&key, around.disk) {
                    Ok(()) => None,
                    Err(Away) if self.desired.must_leave => Some("the worker ended before".to_owned()),
                    Err(Away) => return Err(Break::Wait),
                };
                around.news.push(TaskNews::Cleaned(trouble));
                Ok(Step::Ended)
            }
            step @ (Step::AwaitRecord | Step::Ended) => Ok(step),
        }
    }

    fn adopt(&mut self, around: &mut Around<'_>) -> Result<Step, Break> {
        let kill_at = self.marks.ending.is_some().then_some(around.now);
        match around.engine.inspect(&self.spec.key)? {
            None if self.marks.started_boot_ms.is_some() => {
                Err(Break::End(Outcome::NodeFault, "the container was gone when the worker came back".to_owned()))
            }
            None | Some(Container::Created) => Ok(Step::Prepare),
            Some(Container::Exited(_)) => Ok(Step::Run { kill_at }),
            Some(Container::Running | Container::Paused) => {
                around.engine.set_paused(&self.spec.key, false)?;
                around.tell_phase(Phase::Running);
                around.news.push(TaskNews::Note("the worker was restarted".to_owned()));
                Ok(Step::Run { kill_at })
            }
        }
    }

    /// One round of the running container: what is wanted, what is due, what is seen.
    fn follow(&mut self, kill_at: Option<Duration>, around: &mut Around<'_>) -> Result<Step, Break> {
        let started = self.marks.started_boot_ms.map_or(around.now, Duration::from_millis);
        let timeout_at = started + self.spec.timeout + Duration::from_millis(self.marks.paused_ms);
        let key = self.spec.key.clone();
        if let Some(kill_at) = kill_at {
            // SIGTERM is heeded by some, at some time; SIGKILL by all.
            if around.now >= kill_at || around.dice.one_in(3) {
                around.engine.kill(&key)?;
            }
        } else if let Some(order) = self.desired.stop.clone() {
            return Ok(self.begin_stop(around, order.outcome, order.reason));
        } else if around.now >= timeout_at && self.marks.boot_id.as_ref() == Some(&around.boot_id) {
            return Ok(self.begin_stop(around, Outcome::TimedOut, "ran too long".to_owned()));
        } else if self.is_frozen != self.desired.is_paused {
            around.engine.set_paused(&key, self.desired.is_paused)?;
            self.is_frozen = self.desired.is_paused;
            if !self.is_frozen {
                self.mark(around, |marks| marks.paused_ms += 1_000);
            }
            around.tell_phase(if self.is_frozen { Phase::Paused } else { Phase::Running });
        }
        match around.engine.inspect(&key)? {
            Some(Container::Exited(exit_code)) => Ok(Step::Collect { exit_code }),
            Some(_) => {
                around.news.push(TaskNews::Usage(Look::default()));
                Ok(Step::Run { kill_at })
            }
            None => Err(Break::End(Outcome::Cancelled, "the container was removed from outside".to_owned())),
        }
    }

    fn begin_stop(&mut self, around: &mut Around<'_>, outcome: Outcome, reason: String) -> Step {
        self.mark(around, |marks| marks.ending = Some((outcome, reason)));
        around.tell_phase(Phase::Stopping);
        Step::Run { kill_at: Some(around.now + self.spec.grace) }
    }

    fn judge(&self, exit_code: i64) -> FinalReport {
        let (outcome, reason) = match (&self.marks.ending, exit_code) {
            (Some((outcome, reason)), _) => (*outcome, reason.clone()),
            (None, 0) => (Outcome::Succeeded, String::new()),
            (None, _) => (Outcome::Failed, String::new()),
        };
        FinalReport { exit_code: Some(exit_code), ..FinalReport::without_run(outcome, reason) }
    }

    fn heed_stop(&self) -> Result<(), Break> {
        self.desired.stop.clone().map_or(Ok(()), |order| Err(Break::End(order.outcome, order.reason)))
    }

    /// Facts are told at once, and durable some time later.
    fn mark(&mut self, around: &mut Around<'_>, change: impl FnOnce(&mut Marks)) {
        change(&mut self.marks);
        around.news.push(TaskNews::Marks(self.marks.clone()));
    }
}

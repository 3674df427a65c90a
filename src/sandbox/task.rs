//! The thread of one attempt: the order of its steps. The steps themselves are in `prepare`, `run` and `finish`.

use std::cell::{Cell, RefCell};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::bundle::Told;
use super::capture::Tail;
use super::guard::Egress;
use super::images::Images;
use super::naming::{Identity, LABEL_KEY};
use super::run::Run;
use super::step::{Break, Step};
use super::stock::Stock;
use super::volume::Volumes;
use crate::docker::Docker;
use crate::fetch::Fetcher;
use crate::node::account::{AppliedLimits, Evidence, UsageFigures};
use crate::node::order::{Desired, Marks, TaskNews};
use crate::node::record::{FinalReport, Outcome, Phase, Usage};
use crate::node::spec::TaskSpec;
use crate::store::{Bundles, Store};
use crate::sys::watch::Watch;

/// A task's thread holds its spec and a few small answers of the engine.
const STACK_BYTES: usize = 512 << 10;

/// What all tasks share.
pub struct Context {
    /// For calls that may take long.
    pub docker: Docker,
    /// The same engine with short deadlines, for calls between two looks.
    pub quick_docker: Docker,
    /// For input archives that are elsewhere.
    pub fetcher: Fetcher,
    /// Where output goes.
    pub store: Store,
    /// Whose things are ours.
    pub identity: Identity,
    /// Keeps the rules for tasks with egress.
    pub egress: Egress,
    /// The clock that counts suspend.
    pub clock: fn() -> Duration,
    /// Tells this boot from others.
    pub boot_id: String,
    /// Where bundles of failed attempts are kept.
    pub bundles: Arc<Bundles>,
    /// Files of earlier tasks, and packages.
    pub stock: Arc<Stock>,
    /// Time in which a pull must come forward.
    pub pull_limit: Duration,
    /// What they share of images.
    pub images: Images,
    /// Work folders that are bounded by their size.
    pub volumes: Arc<Volumes>,
}

/// Where a task's thread tells its news. It may wait, and never drops.
pub type Teller = Arc<dyn Fn(TaskNews) + Send + Sync>;

/// The coordinator's end of a task's thread.
pub struct TaskHandle {
    desired: Watch<Desired>,
    wake: Sender<()>,
    thread: JoinHandle<()>,
}

impl TaskHandle {
    /// Replaces what is wanted, and wakes the thread.
    pub fn set_desired(&self, desired: Desired) {
        self.desired.set(desired);
        // A wake that is already there is enough: the thread reads the latest.
        let _ = self.wake.try_send(());
    }

    /// Waits for the thread's end, which it has announced by `Cleaned` or `Left`.
    pub fn join(self) {
        if self.thread.join().is_err() {
            log::error!("a task's thread ended by a panic");
        }
    }
}

/// Numbers threads for their names, which have 15 bytes at the most.
static NEXT_NUMBER: AtomicU64 = AtomicU64::new(1);

/// Whether something of the attempt may be at the engine already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beginning {
    /// The first start of this attempt.
    Fresh,
    /// After a restart of the worker.
    Adoption,
}

/// Starts the thread `task-N`.
///
/// # Errors
/// The system has no thread to give.
pub fn start(
    context: Arc<Context>,
    spec: TaskSpec,
    marks: Marks,
    beginning: Beginning,
    teller: Teller,
) -> io::Result<TaskHandle> {
    let number = NEXT_NUMBER.fetch_add(1, Ordering::Relaxed);
    let desired = Watch::new(Desired::default());
    let (wake, woken) = bounded(1);
    let name = context.identity.name(&spec.key);
    let desired_here = desired.clone();
    let task = Task {
        context,
        spec,
        marks,
        desired: desired_here,
        wake: woken,
        teller,
        number,
        name,
        is_undying: false,
        tail: Tail::default(),
        told: RefCell::default(),
        code: Cell::new(""),
    };
    let thread = thread::Builder::new()
        .name(format!("task-{number}"))
        .stack_size(STACK_BYTES)
        .spawn(move || task.live(beginning))?;
    Ok(TaskHandle { desired, wake, thread })
}

/// One attempt, on its thread.
pub struct Task {
    pub(super) context: Arc<Context>,
    pub(super) spec: TaskSpec,
    pub(super) marks: Marks,
    pub(super) desired: Watch<Desired>,
    pub(super) wake: Receiver<()>,
    pub(super) number: u64,
    /// Of container and volume.
    pub(super) name: String,
    /// The container was given up, since it does not end.
    pub(super) is_undying: bool,
    /// The last output of its run.
    pub(super) tail: Tail,
    /// What it told for the record.
    pub(super) told: RefCell<Told>,
    /// The contract's word for why it does not run.
    pub(super) code: Cell<&'static str>,
    teller: Teller,
}

impl Task {
    /// Tells the coordinator.
    pub fn tell(&self, news: TaskNews) {
        self.told.borrow_mut().note(&news);
        (self.teller)(news);
    }

    /// For a helper thread that tells progress.
    pub fn teller(&self) -> Teller {
        Arc::clone(&self.teller)
    }

    /// Changes the marks and has them kept.
    pub fn mark(&mut self, change: impl FnOnce(&mut Marks)) {
        change(&mut self.marks);
        self.tell(TaskNews::Marks(self.marks.clone()));
    }

    /// Whether these labels are this attempt's.
    pub fn is_ours(&self, labels: &std::collections::BTreeMap<String, String>) -> bool {
        labels.get(LABEL_KEY) == Some(&self.context.identity.key)
            && super::naming::attempt_of(labels).as_ref() == Some(&self.spec.key)
    }

    fn live(mut self, beginning: Beginning) {
        let report = match self.perform(beginning) {
            Ok(report) => report,
            Err(Break::End(outcome, reason)) => {
                self.forget_fetched();
                let mut report = FinalReport::without_run(outcome, reason);
                report.code = self.code.take().to_owned();
                report.image_digest = self.marks.image_digest.clone().unwrap_or_default();
                report.streams = self.context.store.outbox().stream_ends(&self.spec.key);
                report
            }
            Err(Break::Leave) => return self.tell(TaskNews::Left),
        };
        let failed = self.wants_bundle(report.outcome).then(|| report.clone());
        self.tell(TaskNews::Finished(Box::new(report)));
        if self.wait_until_recorded() {
            if let Some(report) = failed {
                self.keep_bundle(report);
            }
            let trouble = self.clean();
            self.context.images.book.release(&self.spec.key);
            self.tell(TaskNews::Cleaned(trouble));
        } else {
            self.tell(TaskNews::Left);
        }
    }

    /// From the beginning to the final report.
    fn perform(&mut self, beginning: Beginning) -> Step<FinalReport> {
        let run = match beginning {
            Beginning::Fresh => self.begin()?,
            Beginning::Adoption => match self.adopt()? {
                Some(run) => run,
                None => self.begin()?,
            },
        };
        self.follow(run)
    }

    fn begin(&mut self) -> Step<Run> {
        let body = self.prepare()?;
        self.tell(TaskNews::Phase(Phase::Starting, String::new()));
        self.launch(&body)
    }

    /// The container must stay until the report is durable: it is the only other place that knows the result.
    fn wait_until_recorded(&self) -> bool {
        loop {
            let desired = self.desired.latest();
            if desired.may_clean {
                return true;
            }
            if desired.must_leave || self.wake.recv().is_err() {
                return false;
            }
        }
    }
}

/// What a run has gathered when the container has ended.
pub struct Ended {
    pub(super) outcome: Outcome,
    pub(super) reason: String,
    pub(super) exit_code: Option<i64>,
    pub(super) usage: Usage,
    pub(super) duration: Duration,
    pub(super) tail: Tail,
    /// Whether there is a container to collect from.
    pub(super) has_container: bool,
    pub(super) figures: UsageFigures,
    pub(super) evidence: Evidence,
    pub(super) limits: Option<AppliedLimits>,
}

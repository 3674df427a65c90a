//! The running container: started, looked at, stopped, and its end noticed.

use std::time::Duration;

use crossbeam_channel::{after, never, select};

use super::body::applied_limits;
use super::capture::{Capture, CaptureEnd, Tail, Writers};
use super::disk::{self, DiskWatch};
use super::gauge::Gauge;
use super::oom;
use super::readback::check_read_back;
use super::settle::Settling;
use super::shim::ShimWatch;
use super::step::{Break, Step, fault};
use super::stop::Stopping;
use super::task::{Ended, Task};
use super::verdict::{Circumstances, KILLED, Shim, evidence, judge, parse_time, ran_for};
use crate::docker::{ContainerInspect, CreateBody, Docker, OutputKind, OutputStream, Stop};
use crate::node::account::{AppliedLimits, EndedBy, Evidence, UsageFigures};
use crate::node::order::{Look, TaskNews};
use crate::node::record::{FinalReport, Outcome, Phase, STDERR, STDOUT, Usage};
use crate::sys::failpoint::{self, FailPoint};

/// Between two looks at a container's state. Its end is told by the engine's events and by the end of the output.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Longest pause between two tries to attach again.
const MAX_ATTACH_PAUSE: Duration = Duration::from_secs(60);
/// Before a start is tried again that found no engine.
const START_PAUSE: Duration = Duration::from_secs(1);
/// Output may still be in the pipes when the container has ended. It is waited for while it flows.
const DRAIN_IDLE: Duration = Duration::from_secs(5);
/// Looks at a container that was killed by somebody, to tell whether it is being removed ...
const REMOVAL_LOOKS: u32 = 5;
/// ... and the pause between them.
const REMOVAL_PAUSE: Duration = Duration::from_millis(100);

/// See `settle`.
const LINE_GAP: &str = "the worker was restarted: the beginning of a line of output may be missing";

/// A container that runs, and all that its thread knows of it.
pub struct Run {
    capture: Option<Capture>,
    idle_writers: Option<Writers>,
    /// Of a capture that ended: what it still held back.
    settling: Option<Settling>,
    tail: Tail,
    pub(super) started: Duration,
    /// Frozen since.
    pub(super) paused_at: Option<Duration>,
    pub(super) circumstances: Circumstances,
    pub(super) stopping: Option<Stopping>,
    next_look: Duration,
    /// The last look found no engine.
    is_engine_away: bool,
    seen_engine_news: u64,
    next_attach: Duration,
    attach_pause: Duration,
    pub(super) disk: Option<DiskWatch>,
    pub(super) next_disk_look: Duration,
    gauge: Option<Gauge>,
    shim: Option<ShimWatch>,
    /// As the engine said them back.
    limits: Option<AppliedLimits>,
    /// What the engine took, each once.
    pub(super) signals: Vec<String>,
    /// Of the rules that guard its network.
    pub(super) seen_repairs: Option<u64>,
}

impl Run {
    /// Of a container that runs, or ran, since `started`.
    pub fn new(started: Duration, now: Duration) -> Self {
        Self {
            capture: None,
            idle_writers: None,
            settling: None,
            tail: Tail::default(),
            started,
            paused_at: None,
            circumstances: Circumstances::default(),
            stopping: None,
            next_look: now + LOOK_EVERY,
            is_engine_away: false,
            seen_engine_news: 0,
            next_attach: now,
            attach_pause: LOOK_EVERY,
            disk: None,
            next_disk_look: now + disk::LOOK_EVERY,
            gauge: None,
            shim: None,
            limits: None,
            signals: Vec::new(),
            seen_repairs: None,
        }
    }

    /// Of a container that is taken over: looked at as soon as possible.
    pub fn adopted(started: Duration, now: Duration, found: &ContainerInspect, tail: Tail) -> Self {
        let mut run = Self { next_look: now, tail, ..Self::new(started, now) };
        if found.state.running {
            run.observe(found, now);
        }
        run
    }

    /// Begins to look at the container's processes.
    fn observe(&mut self, found: &ContainerInspect, now: Duration) {
        self.gauge = Some(Gauge::new(found.state.pid, &found.id, self.started, now));
        self.shim = ShimWatch::open(found.state.pid, &found.id);
    }

    /// The output thread has ended.
    fn take_end(&mut self, end: Option<CaptureEnd>) {
        let end = end.map(|end| (end.writers, end.settling));
        (self.idle_writers, self.settling) = end.map_or((None, None), |(writers, settling)| (Some(writers), settling));
        self.capture = None;
    }

    /// With what holds for its container.
    pub fn with_limits(mut self, limits: AppliedLimits) -> Self {
        self.limits = Some(limits);
        self
    }

    /// The container has ended: its output is complete.
    pub fn keep_writers(&mut self, writers: Writers) {
        self.idle_writers = Some(writers);
    }
}

/// Whether the container still runs.
pub enum Sight {
    Runs,
    Ended(Box<ContainerInspect>),
    Gone,
    /// It was killed, and does not end.
    Undying(String),
}

impl Task {
    /// Attaches, then starts: not a byte of output is before the attachment.
    pub fn launch(&mut self, body: &CreateBody) -> Step<Run> {
        let now = (self.context.clock)();
        let mut run = Run::new(now, now);
        run.idle_writers = Some(self.writers()?);
        match self.start_attached(&mut run, body) {
            Ok(found) => {
                let now = (self.context.clock)();
                run.started = now;
                run.limits = Some(applied_limits(&self.spec, &found.host_config));
                run.observe(&found, now);
                self.mark_start(now);
                self.tell(TaskNews::Phase(Phase::Running, String::new()));
                Ok(run)
            }
            Err(reason) => {
                self.end_capture(&mut run, Duration::ZERO);
                Err(reason)
            }
        }
    }

    /// An engine that goes away between the two steps takes the attachment along: both are done again. A stop order waits
    /// for the answer to the start: a task that runs has its grace, however young it is.
    fn start_attached(&self, run: &mut Run, body: &CreateBody) -> Step<ContainerInspect> {
        loop {
            if let Some(writers) = run.idle_writers.take() {
                let output = match self.open_output() {
                    Ok(output) => output,
                    Err(reason) => {
                        run.idle_writers = Some(writers);
                        return Err(reason);
                    }
                };
                self.capture(run, output, None, writers)?;
            }
            if let Some(interruption) = self.interruption() {
                return Err(interruption);
            }
            let name = self.name.clone();
            let leave = || self.leave_order();
            failpoint::pass(FailPoint::Created);
            match self.call_unless(&leave, &Stop::new(), move |docker| docker.start_container(&name))? {
                Ok(_) => {
                    failpoint::pass(FailPoint::Started);
                    return self.read_back(body);
                }
                Err(error) if error.is_away() => {
                    self.tell(TaskNews::Detail(format!("waits for the engine: {error}")));
                    self.release_capture(run);
                    self.wait(START_PAUSE)?;
                }
                Err(error) => return Err(fault(&error)),
            }
        }
    }

    fn mark_start(&mut self, started: Duration) {
        let boot_id = self.context.boot_id.clone();
        self.mark(|marks| {
            marks.boot_id = Some(boot_id);
            marks.started_boot_ms = u64::try_from(started.as_millis()).ok();
        });
    }

    /// New writers of both streams.
    pub fn writers(&self) -> Step<Writers> {
        let open = |stream| {
            self.context
                .store
                .writer(&self.spec.key, stream)
                .map_err(|error| Break::End(Outcome::NodeFault, format!("can't write the output: {error}")))
        };
        Ok(Writers { stdout: open(STDOUT)?, stderr: open(STDERR)? })
    }

    /// Attaches and lets the output thread run. Where there is nothing to attach to, the writers stay with the run.
    fn attach(&self, run: &mut Run, writers: Writers) -> Step<()> {
        match self.open_output() {
            Ok(output) => self.capture(run, output, None, writers),
            Err(reason) => {
                run.idle_writers = Some(writers);
                Err(reason)
            }
        }
    }

    /// The container's output from now on, and what releases it. Waits for an engine that is away.
    pub fn open_output(&self) -> Step<(OutputStream, Stop)> {
        let name = self.name.clone();
        let attach = move |docker: &Docker| {
            let stop = Stop::new();
            docker.with_stop(&stop).attach(&name).map(|stream| (stream, stop))
        };
        self.engine_patiently(attach)?.map_err(|error| fault(&error))
    }

    /// Starts the output thread.
    pub fn capture(
        &self,
        run: &mut Run,
        output: (OutputStream, Stop),
        settling: Option<Settling>,
        writers: Writers,
    ) -> Step<()> {
        let thread = format!("output-{}", self.number);
        let capture = Capture::start(thread, output, settling, writers, run.tail.clone())
            .map_err(|error| Break::End(Outcome::NodeFault, format!("can't start a thread: {error}")))?;
        run.capture = Some(capture);
        Ok(())
    }

    fn read_back(&self, body: &CreateBody) -> Step<ContainerInspect> {
        let name = self.name.clone();
        let found = self.engine_patiently(move |docker| docker.inspect_container(&name))?;
        let found = found.map_err(|error| fault(&error))?;
        match check_read_back(body, &found).and_then(|()| self.look_inside(&found, body)) {
            Ok(()) => Ok(found),
            Err(what) => {
                // At once: until it is removed, its report has to be stored.
                let _ = self.context.quick_docker.kill_container(&self.name, "SIGKILL");
                Err(Break::End(Outcome::NodeFault, what))
            }
        }
    }

    /// Until the container has ended, then its result.
    pub fn follow(&mut self, mut run: Run) -> Step<FinalReport> {
        self.tail = run.tail.clone();
        let end = loop {
            if let Some(end) = self.turn(&mut run)? {
                break end;
            }
        };
        let ended = self.conclude(run, end);
        self.collect(ended)
    }

    /// One round: what is wanted, what is due, what is seen; then a wait. The end, if there is one.
    fn turn(&mut self, run: &mut Run) -> Step<Option<Sight>> {
        let desired = self.desired.latest();
        if desired.must_leave {
            self.end_capture(run, Duration::ZERO);
            return Err(Break::Leave);
        }
        let now = (self.context.clock)();
        if let Some(order) = &desired.stop {
            let grace = order.max_grace.map_or(self.spec.grace, |max| max.min(self.spec.grace));
            self.begin_stop(run, order.outcome, &order.reason, grace);
        } else if now >= self.timeout_at(run, now) {
            let reason = format!("ran longer than {} s", self.spec.timeout.as_secs_f64());
            self.begin_stop(run, Outcome::TimedOut, &reason, self.spec.grace);
        } else if run.stopping.is_none() {
            self.freeze(run, desired.is_paused, now);
            self.look_at_disk(run, now);
            self.look_at_network(run, now);
        }
        self.press(run, now);
        let has_news = desired.engine_news != run.seen_engine_news;
        run.seen_engine_news = desired.engine_news;
        if has_news || now >= run.next_look {
            match self.look(run, now) {
                Sight::Runs => {}
                end => return Ok(Some(end)),
            }
        }
        if let Some(end) = self.look_for_undying(run, now) {
            return Ok(Some(end));
        }
        self.measure(run, now);
        self.rest(run, now);
        self.note_gap(run);
        Ok(None)
    }

    fn timeout_at(&self, run: &Run, now: Duration) -> Duration {
        let frozen = run.paused_at.map_or(Duration::ZERO, |since| now.saturating_sub(since));
        run.started + self.spec.timeout + Duration::from_millis(self.marks.paused_ms) + frozen
    }

    fn look(&mut self, run: &mut Run, now: Duration) -> Sight {
        run.next_look = now + LOOK_EVERY;
        match self.context.quick_docker.inspect_container(&self.name) {
            Ok(found) if !found.state.running => {
                failpoint::pass(FailPoint::Exited);
                return Sight::Ended(Box::new(found));
            }
            Ok(_) => {
                failpoint::pass(FailPoint::Running);
                // It has lived through whatever there was: how it ends is its own doing again.
                run.circumstances.was_engine_away = false;
                if std::mem::take(&mut run.is_engine_away) {
                    self.tell(TaskNews::Detail(String::new()));
                }
            }
            Err(error) if error.is_not_found() => return Sight::Gone,
            Err(error) => {
                run.is_engine_away = true;
                run.circumstances.was_engine_away |= error.is_unreachable();
                self.tell(TaskNews::Detail(format!("waits for the engine: {error}")));
                return Sight::Runs;
            }
        }
        if run.capture.is_none() && run.paused_at.is_none() && now >= run.next_attach {
            self.attach_again(run, now);
        }
        Sight::Runs
    }

    /// The output has ended and the container has not: the engine was away, or the task has closed its output. The two
    /// look the same, so it is tried again and again, ever more seldom.
    fn attach_again(&mut self, run: &mut Run, now: Duration) {
        self.mark(|marks| marks.has_output_gap = true);
        self.let_go(run, Settling::give_up);
        let Some(writers) = run.idle_writers.take() else { return };
        run.next_attach = now + run.attach_pause;
        if run.attach_pause == LOOK_EVERY {
            let note = "the output ended before the task: what came until it was attached to again is missing";
            self.tell(TaskNews::Note(note.to_owned()));
        }
        run.attach_pause = (run.attach_pause * 2).min(MAX_ATTACH_PAUSE);
        if let Err(Break::End(_, reason)) = self.attach(run, writers) {
            self.tell(TaskNews::Detail(reason));
        }
    }

    fn measure(&self, run: &mut Run, now: Duration) {
        let Some(gauge) = &mut run.gauge else { return };
        let Some(told) = gauge.read(&self.context.quick_docker, &self.name, now) else { return };
        let usage = gauge.usage;
        let frozen = Duration::from_millis(self.marks.paused_ms);
        self.tell(TaskNews::Usage(Look {
            usage,
            cpu_percent: told.cpu_percent,
            running_ms: millis(now.saturating_sub(run.started).saturating_sub(frozen)),
            tail: run.tail.text(),
        }));
    }

    /// Waits for a wish, the end of the output, or the next thing that is due.
    fn rest(&self, run: &mut Run, now: Duration) {
        let timeout = match run.stopping {
            None if run.paused_at.is_none() => self.timeout_at(run, now),
            _ => Duration::MAX,
        };
        let (disk_look, signal) = match &run.stopping {
            None => (run.next_disk_look, Duration::MAX),
            Some(stopping) => (Duration::MAX, stopping.next_signal()),
        };
        let reading = run.gauge.as_ref().map_or(Duration::MAX, Gauge::next);
        let due = [run.next_look, signal, disk_look, reading, timeout];
        let due = due.into_iter().min().unwrap_or(now);
        let silent = never();
        let ended = run.capture.as_ref().map_or(&silent, |capture| &capture.ended);
        let end = select! {
            recv(self.wake) -> _ => None,
            recv(ended) -> end => end.ok(),
            recv(after(due.saturating_sub(now))) -> _ => None,
        };
        if let Some(CaptureEnd { writers, settling, error }) = end {
            run.capture = None;
            run.idle_writers = Some(writers);
            run.settling = settling;
            if let Some(error) = error {
                run.circumstances.was_engine_away = true;
                self.tell(TaskNews::Detail(format!("the output broke off: {error}")));
            }
            // The end of the output is most often the container's own.
            run.next_look = now;
        }
    }

    /// Lets the capture come to its end for as long as output flows, then closes the streams.
    fn end_capture(&self, run: &mut Run, patience: Duration) {
        if let Some(capture) = &run.capture {
            let mut total = run.tail.total();
            while !patience.is_zero() {
                select! {
                    recv(capture.ended) -> end => {
                        run.take_end(end.ok());
                        break;
                    }
                    default(patience) => {
                        if run.tail.total() == total {
                            break;
                        }
                        total = run.tail.total();
                    }
                }
            }
        }
        self.release_capture(run);
        // What a leaving worker holds back, the next one finds in the engine's log.
        if !patience.is_zero() {
            self.let_go(run, Settling::end);
        }
        if let Some(Writers { stdout, stderr }) = run.idle_writers.take() {
            let dropped = stdout.dropped() + stderr.dropped();
            if dropped > 0 {
                self.tell(TaskNews::Note(format!("{dropped} bytes of output were dropped: over the log budget")));
            }
            stdout.close();
            stderr.close();
        }
    }

    /// Writes what is still held back of the output, as `end` gives it.
    fn let_go(&self, run: &mut Run, end: fn(&mut Settling, OutputKind) -> Vec<u8>) {
        let (Some(mut settling), Some(writers)) = (run.settling.take(), &mut run.idle_writers) else { return };
        for (kind, writer) in [(OutputKind::Stdout, &mut writers.stdout), (OutputKind::Stderr, &mut writers.stderr)] {
            let bytes = end(&mut settling, kind);
            run.tail.push(kind, &bytes);
            if let Err(error) = writer.append(&bytes) {
                self.tell(TaskNews::Note(format!("can't write the output: {error}")));
            }
        }
        if settling.gap().take() {
            self.tell(TaskNews::Note(LINE_GAP.to_owned()));
        }
    }

    fn note_gap(&mut self, run: &Run) {
        if run.capture.as_ref().is_some_and(Capture::take_gap) {
            self.mark(|marks| marks.has_output_gap = true);
            self.tell(TaskNews::Note(LINE_GAP.to_owned()));
        }
    }

    /// Ends the output thread at once; the writers come back.
    fn release_capture(&self, run: &mut Run) {
        if let Some(capture) = run.capture.take() {
            capture.release();
            run.take_end(capture.ended.recv().ok());
        }
    }

    fn conclude(&self, mut run: Run, end: Sight) -> Ended {
        self.end_capture(&mut run, DRAIN_IDLE);
        let now = (self.context.clock)();
        let frozen = Duration::from_millis(self.marks.paused_ms);
        let measured = now.saturating_sub(run.started).saturating_sub(frozen);
        let peak_disk_bytes = self.peak_disk(&mut run);
        let figures = |run: &Run, duration| UsageFigures {
            peak_disk_bytes,
            ..run.gauge.as_ref().map_or_else(UsageFigures::default, |gauge| gauge.figures(duration))
        };
        let ended = Ended {
            outcome: Outcome::Cancelled,
            reason: "the container was removed from outside the worker".to_owned(),
            exit_code: None,
            usage: run.gauge.as_ref().map_or_else(Usage::default, |gauge| gauge.usage),
            duration: measured,
            tail: run.tail.clone(),
            has_container: false,
            figures: figures(&run, measured),
            evidence: Evidence {
                ended_by: EndedBy::Outsider,
                signals_sent: run.signals.clone(),
                ..Evidence::default()
            },
            limits: run.limits.clone(),
        };
        if !matches!(end, Sight::Undying(_)) {
            self.end_undying(&run);
        }
        let mut found = match end {
            Sight::Ended(found) => found,
            Sight::Undying(reason) => {
                let evidence = Evidence { ended_by: EndedBy::Nobody, ..ended.evidence };
                return Ended { outcome: Outcome::NodeFault, reason, evidence, ..ended };
            }
            Sight::Gone | Sight::Runs => return ended,
        };
        if self.is_being_removed(&run.circumstances, &found) {
            return ended;
        }
        let code = found.state.exit_code;
        found.state.oom_killed |= run.gauge.as_mut().is_some_and(|gauge| gauge.has_run_out_of_memory(code));
        let may_have_lacked = found.state.exit_code != 0 || ended.usage.peak_memory_bytes > self.spec.memory_bytes / 2;
        if !found.state.oom_killed && may_have_lacked {
            found.state.oom_killed = oom::is_in_kernel_log(&found.id);
        }
        run.circumstances.shim = run.shim.as_ref().map_or_else(Shim::default, ShimWatch::verdict);
        let (outcome, reason) = judge(&found.state, &run.circumstances);
        let told = parse_time(&found.state.finished_at).zip(parse_time(&found.state.started_at));
        let told = told.and_then(|(finished, started)| finished.checked_sub(started)).map(Duration::from_nanos);
        let duration = ran_for(told, measured + frozen).saturating_sub(frozen);
        let ordered_by = self.desired.latest().stop.as_ref().map(|order| order.by);
        let evidence = evidence(&found.state, &run.circumstances, ordered_by);
        let evidence = Evidence { signals_sent: ended.evidence.signals_sent, ..evidence };
        let figures = figures(&run, duration);
        let exit_code = Some(found.state.exit_code);
        Ended { outcome, reason, exit_code, duration, has_container: true, evidence, figures, ..ended }
    }

    /// A task that was too short for a look is measured now.
    fn peak_disk(&self, run: &mut Run) -> Option<u64> {
        let new = || DiskWatch::new(&self.context.quick_docker, &self.name, self.spec.disk_bytes);
        run.disk.take().or_else(new).and_then(DiskWatch::largest)
    }
}

impl Task {
    /// `docker rm -f` kills first and removes then: between the two it looks like a task that was killed.
    fn is_being_removed(&self, circumstances: &Circumstances, found: &ContainerInspect) -> bool {
        if circumstances.stopping.is_some() || found.state.oom_killed || found.state.exit_code != KILLED {
            return false;
        }
        for _ in 0..REMOVAL_LOOKS {
            match self.context.quick_docker.inspect_container(&self.name) {
                Err(error) if error.is_not_found() => return true,
                Ok(later) if later.state.status == "removing" => return true,
                _ => {}
            }
            // Any wish can wait for this long.
            let _ = self.wake.recv_timeout(REMOVAL_PAUSE);
        }
        false
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

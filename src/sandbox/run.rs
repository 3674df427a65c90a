//! The running container: started, looked at, stopped, and its end noticed.

use std::time::Duration;

use crossbeam_channel::{after, never, select};

use super::body::check_read_back;
use super::capture::{Capture, CaptureEnd, Tail, Writers};
use super::disk::{self, DiskWatch, Finding};
use super::gauge::Gauge;
use super::step::{Break, Step, fault};
use super::task::{Ended, Task};
use super::verdict::{Circumstances, KILLED, judge, parse_time};
use crate::docker::{ContainerInspect, CreateBody, Error, OutputStream, Stop};
use crate::node::order::{Look, TaskNews};
use crate::node::record::{FinalReport, Outcome, Phase, STDERR, STDOUT, Usage};

/// Between two looks at a container's state. Its end is told by the engine's events and by the end of the output.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Longest pause between two tries to attach again.
const MAX_ATTACH_PAUSE: Duration = Duration::from_secs(60);
/// Output may still be in the pipes when the container has ended. It is waited for while it flows.
const DRAIN_IDLE: Duration = Duration::from_secs(5);
/// Looks at a container that was killed by somebody, to tell whether it is being removed ...
const REMOVAL_LOOKS: u32 = 5;
/// ... and the pause between them.
const REMOVAL_PAUSE: Duration = Duration::from_millis(100);
/// Share of the memory limit over which the owner is told.
const MEMORY_ALERT_PERCENT: u64 = 90;

/// A container that runs, and all that its thread knows of it.
pub struct Run {
    capture: Option<Capture>,
    idle_writers: Option<Writers>,
    tail: Tail,
    started: Duration,
    /// Frozen since.
    paused_at: Option<Duration>,
    circumstances: Circumstances,
    /// When SIGKILL is due; absent before SIGTERM and after SIGKILL.
    kill_at: Option<Duration>,
    next_look: Duration,
    /// The last look found no engine.
    is_engine_away: bool,
    seen_engine_news: u64,
    next_attach: Duration,
    attach_pause: Duration,
    disk: Option<DiskWatch>,
    next_disk_look: Duration,
    gauge: Option<Gauge>,
    has_memory_alert: bool,
}

impl Run {
    /// Of a container that runs, or ran, since `started`.
    pub fn new(started: Duration, now: Duration) -> Self {
        Self {
            capture: None,
            idle_writers: None,
            tail: Tail::default(),
            started,
            paused_at: None,
            circumstances: Circumstances::default(),
            kill_at: None,
            next_look: now + LOOK_EVERY,
            is_engine_away: false,
            seen_engine_news: 0,
            next_attach: now,
            attach_pause: LOOK_EVERY,
            disk: None,
            next_disk_look: now + disk::LOOK_EVERY,
            gauge: None,
            has_memory_alert: false,
        }
    }

    /// Of a container that is taken over: looked at as soon as possible.
    pub fn adopted(started: Duration, now: Duration, found: &ContainerInspect, tail: Tail) -> Self {
        let gauge = found.state.running.then(|| Gauge::new(found.state.pid, &found.id, started, now));
        Self { next_look: now, gauge, tail, ..Self::new(started, now) }
    }

    /// The container has ended: its output is complete.
    pub fn keep_writers(&mut self, writers: Writers) {
        self.idle_writers = Some(writers);
    }
}

/// Whether the container still runs.
enum Sight {
    Runs,
    Ended(Box<ContainerInspect>),
    Gone,
}

impl Task {
    /// Attaches, then starts: not a byte of output is before the attachment.
    pub fn launch(&mut self, body: &CreateBody) -> Step<Run> {
        let writers = self.writers()?;
        let mut run = Run::new((self.context.clock)(), (self.context.clock)());
        self.attach(&mut run, writers)?;
        let name = self.name.clone();
        let started = self.call(&Stop::new(), move |docker| docker.start_container(&name));
        let result = match started {
            Ok(Ok(_)) => self.read_back(body),
            Ok(Err(error)) => Err(fault(&error)),
            Err(interruption) => Err(interruption),
        };
        let found = match result {
            Ok(found) => found,
            Err(reason) => {
                self.end_capture(&mut run, Duration::ZERO);
                return Err(reason);
            }
        };
        let now = (self.context.clock)();
        run.started = now;
        run.gauge = Some(Gauge::new(found.state.pid, &found.id, now, now));
        self.mark_start(now);
        self.tell(TaskNews::Phase(Phase::Running, String::new()));
        Ok(run)
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
            Ok((stream, stop)) => self.capture(run, stream, stop, writers),
            Err(reason) => {
                run.idle_writers = Some(writers);
                Err(reason)
            }
        }
    }

    /// The container's output from now on, and what releases it.
    pub fn open_output(&self) -> Step<(OutputStream, Stop)> {
        let (name, stop) = (self.name.clone(), Stop::new());
        let stream = self.call(&stop, move |docker| docker.attach(&name))?.map_err(|error| fault(&error))?;
        Ok((stream, stop))
    }

    /// Starts the output thread.
    pub fn capture(&self, run: &mut Run, stream: OutputStream, stop: Stop, writers: Writers) -> Step<()> {
        let thread = format!("output-{}", self.number);
        let capture = Capture::start(thread, stream, stop, writers, run.tail.clone())
            .map_err(|error| Break::End(Outcome::NodeFault, format!("can't start a thread: {error}")))?;
        run.capture = Some(capture);
        Ok(())
    }

    fn read_back(&self, body: &CreateBody) -> Step<ContainerInspect> {
        let name = self.name.clone();
        let found = self.engine(move |docker| docker.inspect_container(&name))?.map_err(|error| fault(&error))?;
        match check_read_back(&body.host_config, &found.host_config) {
            Ok(()) => Ok(found),
            Err(what) => Err(Break::End(Outcome::NodeFault, what)),
        }
    }

    /// Until the container has ended, then its result.
    pub fn follow(&mut self, mut run: Run) -> Step<FinalReport> {
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
        } else {
            self.freeze(run, desired.is_paused, now);
        }
        if run.kill_at.is_some_and(|at| now >= at) {
            run.kill_at = None;
            self.signal("SIGKILL");
        }
        if now >= run.next_disk_look && run.circumstances.stopping.is_none() {
            self.look_at_disk(run, now);
        }
        let has_news = desired.engine_news != run.seen_engine_news;
        run.seen_engine_news = desired.engine_news;
        if has_news || now >= run.next_look {
            match self.look(run, now) {
                Sight::Runs => {}
                end => return Ok(Some(end)),
            }
        }
        self.measure(run, now);
        self.rest(run, now);
        Ok(None)
    }

    /// A task that fills the disk is frozen before anything else, and gets no grace in which it could go on.
    fn look_at_disk(&self, run: &mut Run, now: Duration) {
        run.next_disk_look = now + disk::LOOK_EVERY;
        let docker = &self.context.quick_docker;
        let limit = self.spec.disk_bytes;
        let watch = run.disk.get_or_insert_with(|| DiskWatch::new(docker, &self.name, limit));
        let (outcome, reason) = match watch.look(docker) {
            Finding::Fine => return,
            Finding::OverLimit(reason) => (Outcome::DiskLimit, reason),
            Finding::Reserve(reason) => (Outcome::NodeFault, reason),
        };
        if run.paused_at.is_none() && docker.pause_container(&self.name).is_ok() {
            run.paused_at = Some(now);
        }
        self.tell(TaskNews::Phase(Phase::Stopping, reason.clone()));
        run.circumstances.stopping = Some((outcome, reason));
        self.signal("SIGKILL");
        self.thaw(run);
    }

    /// A frozen process sees no signal.
    fn thaw(&self, run: &mut Run) {
        if run.paused_at.take().is_some() {
            match self.context.quick_docker.unpause_container(&self.name) {
                Err(error) if error.is_not_found() || error.is_conflict() => {}
                result => self.tell_failure("unpause", result),
            }
        }
    }

    fn timeout_at(&self, run: &Run, now: Duration) -> Duration {
        let frozen = run.paused_at.map_or(Duration::ZERO, |since| now.saturating_sub(since));
        run.started + self.spec.timeout + Duration::from_millis(self.marks.paused_ms) + frozen
    }

    fn begin_stop(&self, run: &mut Run, outcome: Outcome, reason: &str, grace: Duration) {
        if run.circumstances.stopping.is_some() {
            return;
        }
        self.tell(TaskNews::Phase(Phase::Stopping, reason.to_owned()));
        run.circumstances.stopping = Some((outcome, reason.to_owned()));
        run.kill_at = Some((self.context.clock)() + grace);
        self.signal("SIGTERM");
        self.thaw(run);
    }

    fn signal(&self, signal: &str) {
        match self.context.quick_docker.kill_container(&self.name, signal) {
            Err(error) if error.is_not_found() || error.is_conflict() => {}
            result => self.tell_failure(signal, result),
        }
    }

    fn tell_failure(&self, what: &str, result: Result<(), Error>) {
        if let Err(error) = result {
            self.tell(TaskNews::Alert(format!("{what} failed: {error}")));
        }
    }

    fn freeze(&mut self, run: &mut Run, is_wanted: bool, now: Duration) {
        let docker = &self.context.quick_docker;
        match (run.paused_at, is_wanted) {
            (None, true) if docker.pause_container(&self.name).is_ok() => {
                run.paused_at = Some(now);
                self.tell(TaskNews::Phase(Phase::Paused, "paused by the node".to_owned()));
            }
            (Some(since), false) if docker.unpause_container(&self.name).is_ok() => {
                run.paused_at = None;
                let frozen = millis(now.saturating_sub(since));
                self.mark(|marks| marks.paused_ms = marks.paused_ms.saturating_add(frozen));
                self.tell(TaskNews::Phase(Phase::Running, String::new()));
            }
            _ => {}
        }
    }

    fn look(&mut self, run: &mut Run, now: Duration) -> Sight {
        run.next_look = now + LOOK_EVERY;
        match self.context.quick_docker.inspect_container(&self.name) {
            Ok(found) if !found.state.running => return Sight::Ended(Box::new(found)),
            Ok(_) => {
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
        if run.capture.is_none() && now >= run.next_attach {
            self.attach_again(run, now);
        }
        Sight::Runs
    }

    /// The output has ended and the container has not: the engine was away, or the task has closed its output. The two
    /// look the same, so it is tried again and again, ever more seldom.
    fn attach_again(&self, run: &mut Run, now: Duration) {
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
        let limit = self.spec.memory_bytes.saturating_mul(MEMORY_ALERT_PERCENT);
        let is_high = usage.memory_bytes.saturating_mul(100) >= limit;
        if is_high && !run.has_memory_alert {
            self.tell(TaskNews::Alert(format!("uses {MEMORY_ALERT_PERCENT} % of its memory limit")));
        }
        run.has_memory_alert = is_high;
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
        let timeout = match run.circumstances.stopping {
            None if run.paused_at.is_none() => self.timeout_at(run, now),
            _ => Duration::MAX,
        };
        let disk_look = match run.circumstances.stopping {
            None => run.next_disk_look,
            Some(_) => Duration::MAX,
        };
        let reading = run.gauge.as_ref().map_or(Duration::MAX, Gauge::next);
        let due = [run.next_look, run.kill_at.unwrap_or(Duration::MAX), disk_look, reading, timeout];
        let due = due.into_iter().min().unwrap_or(now);
        let silent = never();
        let ended = run.capture.as_ref().map_or(&silent, |capture| &capture.ended);
        let end = select! {
            recv(self.wake) -> _ => None,
            recv(ended) -> end => end.ok(),
            recv(after(due.saturating_sub(now))) -> _ => None,
        };
        if let Some(CaptureEnd { writers, error }) = end {
            run.capture = None;
            run.idle_writers = Some(writers);
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
        if let Some(capture) = run.capture.take() {
            let mut total = run.tail.total();
            let end = loop {
                if let Ok(end) = capture.ended.recv_timeout(patience) {
                    break Some(end);
                }
                if patience.is_zero() || run.tail.total() == total {
                    capture.release();
                    break capture.ended.recv().ok();
                }
                total = run.tail.total();
            };
            run.idle_writers = end.map(|end| end.writers);
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

    fn conclude(&self, mut run: Run, end: Sight) -> Ended {
        self.end_capture(&mut run, DRAIN_IDLE);
        let now = (self.context.clock)();
        let frozen = Duration::from_millis(self.marks.paused_ms);
        let measured = now.saturating_sub(run.started).saturating_sub(frozen);
        let ended = Ended {
            outcome: Outcome::Cancelled,
            reason: "the container was removed from outside the worker".to_owned(),
            exit_code: None,
            usage: run.gauge.as_ref().map_or_else(Usage::default, |gauge| gauge.usage),
            duration: measured,
            tail: run.tail.clone(),
            has_container: false,
        };
        let Sight::Ended(found) = end else { return ended };
        if self.is_being_removed(&run.circumstances, &found) {
            return ended;
        }
        let (outcome, reason) = judge(&found.state, &run.circumstances);
        let told = parse_time(&found.state.finished_at).zip(parse_time(&found.state.started_at));
        let duration = told.and_then(|(finished, started)| finished.checked_sub(started));
        let duration = duration.map_or(measured, |nanos| Duration::from_nanos(nanos).saturating_sub(frozen));
        Ended { outcome, reason, exit_code: Some(found.state.exit_code), duration, has_container: true, ..ended }
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
                Ok(found) if found.state.status == "removing" => return true,
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

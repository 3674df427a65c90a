//! After a restart of the worker: takes over what the attempt has at the engine.

use std::fs;
use std::time::Duration;

use super::capture::{Tail, Writers};
use super::gap::{Log, Recorded};
use super::run::Run;
use super::settle::Settling;
use super::step::{Break, Step, fault};
use super::task::Task;
use super::verdict::parse_time;
use crate::docker::{ContainerInspect, OutputKind, OutputStream, Stop};
use crate::node::order::TaskNews;
use crate::node::record::{Outcome, Phase};
use crate::sys::time::unix_ms;

/// Tries to attach between two equal readings of the log. A task that prints all the time never gives them.
const MAX_QUIET_TRIES: u32 = 5;

impl Task {
    /// The container as it is now. `None`: nothing had begun to run, so the attempt begins anew.
    pub fn adopt(&mut self) -> Step<Option<Run>> {
        let Some(found) = self.find_container()? else { return Ok(None) };
        if parse_time(&found.state.started_at).is_none() {
            return Ok(None);
        }
        self.attach_volume_again();
        let now = (self.context.clock)();
        let is_same_boot = self.marks.boot_id.as_ref() == Some(&self.context.boot_id);
        let noted = self.marks.started_boot_ms.filter(|_| is_same_boot).map(Duration::from_millis);
        let started = noted.unwrap_or_else(|| started_at(&found, now));
        // What the spool has must be asked before there are new writers.
        let recorded = Recorded::from_ends(&self.context.store.stream_ends(&self.spec.key));
        let mut writers = self.writers()?;
        let tail = Tail::default();
        let limits = self.limits(&found);
        let mut run = Run::adopted(started, now, &found, tail.clone()).with_limits(limits);
        self.resume_stop(&mut run);
        if found.state.running {
            self.thaw_found(&found)?;
            let (output, settling) = self.attach_after_gap(&mut writers, &tail, recorded)?;
            self.capture(&mut run, output, settling, writers)?;
            self.tell(TaskNews::Phase(Phase::Running, "adopted after a restart of the worker".to_owned()));
        } else {
            let is_filled = self.read_log()?.is_some_and(|log| self.fill(&log, &mut writers, &tail, recorded));
            self.tell_gap(is_filled);
            run.keep_writers(writers);
        }
        Ok(Some(run))
    }

    fn find_container(&self) -> Step<Option<ContainerInspect>> {
        let name = self.name.clone();
        match self.engine_patiently(move |docker| docker.inspect_container(&name))? {
            Ok(found) => Ok(self.is_ours(&found.config.labels).then_some(found)),
            Err(error) if error.is_not_found() && self.marks.started_boot_ms.is_none() => Ok(None),
            Err(error) if error.is_not_found() => {
                let reason = "the container was gone when the worker came back".to_owned();
                Err(Break::End(Outcome::NodeFault, reason))
            }
            Err(error) => Err(fault(&error)),
        }
    }

    /// The engine attaches to no frozen container. One that is to stay so is frozen again at once.
    fn thaw_found(&self, found: &ContainerInspect) -> Step<()> {
        if !found.state.paused {
            return Ok(());
        }
        let name = self.name.clone();
        match self.engine_patiently(move |docker| docker.unpause_container(&name))? {
            Err(error) if !(error.is_not_found() || error.is_conflict()) => Err(fault(&error)),
            _ => Ok(()),
        }
    }

    fn attach_after_gap(
        &mut self,
        writers: &mut Writers,
        tail: &Tail,
        recorded: Recorded,
    ) -> Step<((OutputStream, Stop), Option<Settling>)> {
        for _ in 0..MAX_QUIET_TRIES {
            let before = self.read_log()?;
            let output = self.open_output()?;
            match self.read_log()? {
                Some(log) if before.as_ref() == Some(&log) => {
                    let is_filled = self.fill(&log, writers, tail, recorded);
                    self.tell_gap(is_filled);
                    let docker = self.context.quick_docker.clone();
                    let settling = is_filled.then(|| Settling::new(docker, self.name.clone(), &log));
                    return Ok((output, settling));
                }
                None => {
                    self.tell_gap(false);
                    return Ok((output, None));
                }
                Some(_) => {}
            }
        }
        let output = self.open_output()?;
        self.tell_gap(false);
        Ok((output, None))
    }

    /// `None` also where the log can't be read: then there is only a gap.
    fn read_log(&self) -> Step<Option<Log>> {
        let name = self.name.clone();
        Ok(self.engine_patiently(move |docker| Log::read(docker, &name))?.unwrap_or(None))
    }

    fn tell_gap(&mut self, is_filled: bool) {
        if !is_filled {
            self.mark(|marks| marks.has_output_gap = true);
        }
        let note = if is_filled {
            "the worker was restarted: output of the time between is from the engine's log"
        } else {
            "the worker was restarted: output of the time between is missing"
        };
        self.tell(TaskNews::Note(note.to_owned()));
    }

    /// Writes what the log has beyond the spool; whether it could be told where that begins.
    fn fill(&self, log: &Log, writers: &mut Writers, tail: &Tail, recorded: Recorded) -> bool {
        let Some((stdout, stderr)) = log.rest(recorded).filter(|_| !self.marks.has_output_gap) else { return false };
        tail.push(OutputKind::Stdout, stdout);
        tail.push(OutputKind::Stderr, stderr);
        // A disk that fails here fails the next piece too, which tells it.
        writers.stdout.append(stdout).is_ok() && writers.stderr.append(stderr).is_ok()
    }
}

/// When it was started, where the worker ended before it could note that. What the kernel says of its first process runs on
/// our clock. The engine's time is of the wall clock, which may have jumped since: it counts unless it is from before this
/// boot or from the future.
fn started_at(found: &ContainerInspect, now: Duration) -> Duration {
    let id = format!("/proc/{}", found.state.pid);
    let is_it = fs::read_to_string(format!("{id}/cgroup")).is_ok_and(|cgroups| cgroups.contains(&found.id));
    let by_kernel = is_it.then(|| fs::read_to_string(format!("{id}/stat")).ok()).flatten();
    by_kernel.and_then(|stat| start_in_stat(&stat)).filter(|started| *started <= now).unwrap_or_else(|| {
        let started = parse_time(&found.state.started_at).map(Duration::from_nanos);
        let age = started.and_then(|started| Duration::from_millis(unix_ms()).checked_sub(started));
        age.and_then(|age| now.checked_sub(age)).unwrap_or(now)
    })
}

/// The 22nd field of `/proc/PID/stat` (proc(5)), in ticks of 10 ms since the boot. The second one is a name in parentheses,
/// which may have anything in it.
fn start_in_stat(stat: &str) -> Option<Duration> {
    let ticks: u64 = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
    Some(Duration::from_millis(ticks.checked_mul(10)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_start_of_a_process() {
        // As proc(5) has it, with a name that looks like fields.
        let stat = "7 (a) R 1 (b) S 1 7 7 0 -1 4194560 8 0 0 0 1 2 0 0 20 0 1 0 12345 1000 10";
        assert_eq!(start_in_stat(stat), Some(Duration::from_millis(123_450)));
        assert_eq!(start_in_stat("7 (a) S 1"), None);
        assert_eq!(start_in_stat(""), None);
        let own = start_in_stat(&fs::read_to_string("/proc/self/stat").unwrap()).unwrap();
        let now = crate::sys::clock::boottime();
        assert!(own <= now && now - own < Duration::from_secs(3_600), "{own:?} {now:?}");
    }
}

//! From what the engine says about an ended container to an outcome: pure.

use std::time::Duration;

use crate::docker::ContainerState;
use crate::node::account::{EndedBy, Evidence};
use crate::node::record::Outcome;

/// Exit code after SIGKILL: 128 and the signal's number.
pub const KILLED: i64 = 137;
/// As [`KILLED`], after SIGTERM.
const TERMINATED: i64 = 143;

/// Between the engine's start of a container and our own note of it, and what two clocks may drift apart in a long run.
const TOLERANCE: Duration = Duration::from_secs(60);

/// What the worker itself had done or seen by the time the container ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Circumstances {
    /// It was being stopped, for this outcome and reason.
    pub stopping: Option<(Outcome, String)>,
    /// The engine could not be reached for a while, and the container was not seen running since.
    pub was_engine_away: bool,
    /// How the engine's process for the container ended.
    pub shim: Shim,
    /// Whether there was no room in its bounded volume when it had ended.
    pub is_disk_full: Option<bool>,
}

/// The order in which a container and its shim ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shim {
    /// After the container, not at all, or not known.
    #[default]
    Fine,
    /// While the container's first process lived.
    EndedFirst,
}

/// Outcome and reason of a container that ended.
pub fn judge(state: &ContainerState, circumstances: &Circumstances) -> (Outcome, String) {
    if let Some((outcome, reason)) = &circumstances.stopping {
        return (*outcome, reason.clone());
    }
    if state.oom_killed {
        let code = state.exit_code;
        return (Outcome::OutOfMemory, format!("the kernel killed a process of it for memory; exit code {code}"));
    }
    // An engine that is stopped sends its containers SIGTERM first; one that finds them at its start, SIGKILL.
    if matches!(state.exit_code, KILLED | TERMINATED) && circumstances.was_engine_away {
        return (Outcome::NodeFault, "lost to the engine's restart".to_owned());
    }
    if state.exit_code == KILLED && circumstances.shim == Shim::EndedFirst {
        let reason = "the engine's own process for the container (its shim) ended, and the engine killed the container";
        return (Outcome::NodeFault, reason.to_owned());
    }
    match state.exit_code {
        0 if state.error.is_empty() => (Outcome::Succeeded, String::new()),
        0 => (Outcome::NodeFault, state.error.clone()),
        // Nobody kills for a full disk: such an end has another reason.
        code if circumstances.is_disk_full == Some(true) && !matches!(code, KILLED | TERMINATED) => {
            (Outcome::DiskLimit, format!("exit code {code}, with no room left in its work folder"))
        }
        code @ 129..=192 => (Outcome::Failed, format!("ended by signal {}", code - 128)),
        code => (Outcome::Failed, format!("exit code {code}")),
    }
}

/// What speaks for the outcome of a container that ended. `ordered_by` is whose order to stop there was, if there was one.
pub fn evidence(state: &ContainerState, circumstances: &Circumstances, ordered_by: Option<EndedBy>) -> Evidence {
    let signal = u32::try_from(state.exit_code - 128).ok().filter(|signal| (1..=64).contains(signal));
    let ended_by = match &circumstances.stopping {
        Some((Outcome::TimedOut | Outcome::DiskLimit, _)) => EndedBy::Limit,
        Some((Outcome::Superseded, _)) => EndedBy::Master,
        Some((Outcome::Cancelled, _)) => ordered_by.unwrap_or_default(),
        Some(_) => EndedBy::Node,
        None if state.oom_killed => EndedBy::Kernel,
        None if matches!(state.exit_code, KILLED | TERMINATED) && circumstances.was_engine_away => EndedBy::Engine,
        // A program may end with such a code by itself, and a signal may come from anywhere.
        None if signal.is_some() => EndedBy::Unknown,
        None => EndedBy::Task,
    };
    Evidence {
        ended_by,
        oom_killed: Some(state.oom_killed),
        signal,
        signals_sent: Vec::new(),
        disk_full: circumstances.is_disk_full,
        engine_error: state.error.clone(),
        started_at: state.started_at.clone(),
        finished_at: state.finished_at.clone(),
    }
}

/// How long the container ran. The engine's own times are exact, also where its end was seen late, but of the wall clock:
/// what they say counts unless that clock has jumped, so that it would have run for longer than it was followed.
pub fn ran_for(told: Option<Duration>, measured: Duration) -> Duration {
    told.filter(|told| *told <= measured + TOLERANCE).unwrap_or(measured)
}

/// Nanoseconds since 1970 of an RFC 3339 time in UTC, as the engine writes it; `None` for its zero time and for
/// anything else.
pub fn parse_time(text: &str) -> Option<u64> {
    let digits = |range: std::ops::Range<usize>| text.get(range)?.parse::<i64>().ok();
    let (year, month, day) = (digits(0..4)?, digits(5..7)?, digits(8..10)?);
    let (hour, minute, second) = (digits(11..13)?, digits(14..16)?, digits(17..19)?);
    let rest = text.get(19..)?.strip_suffix('Z')?;
    let nanos = match rest.strip_prefix('.') {
        Some(fraction) if (1..=9).contains(&fraction.len()) => format!("{fraction:0<9}").parse().ok()?,
        Some(_) => return None,
        None if rest.is_empty() => 0,
        None => return None,
    };
    if year < 1970 || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // Days from the civil calendar, with years that begin in March, so that the leap day is the last.
    let shifted_year = if month <= 2 { year - 1 } else { year };
    let shifted_month = (month + 9) % 12;
    let era_days = 365 * shifted_year + shifted_year / 4 - shifted_year / 100 + shifted_year / 400;
    let days = era_days + (153 * shifted_month + 2) / 5 + day - 1 - 719_468;
    let seconds = ((days * 24 + hour) * 60 + minute) * 60 + second;
    u64::try_from(seconds).ok()?.checked_mul(1_000_000_000)?.checked_add(nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(exit_code: i64, oom_killed: bool) -> ContainerState {
        ContainerState { exit_code, oom_killed, ..ContainerState::default() }
    }

    #[test]
    fn tells_the_tasks_fault_from_the_nodes() {
        let alone = Circumstances::default();
        let cancelled = Circumstances { stopping: Some((Outcome::Cancelled, "c".to_owned())), ..alone.clone() };
        let away = Circumstances { was_engine_away: true, ..alone.clone() };
        let full = Circumstances { is_disk_full: Some(true), ..alone.clone() };
        let shimless = Circumstances { shim: Shim::EndedFirst, ..alone.clone() };
        let shimless_cancelled = Circumstances { shim: Shim::EndedFirst, ..cancelled.clone() };
        let cases = [
            (ended(0, false), &alone, Outcome::Succeeded),
            (ended(3, false), &alone, Outcome::Failed),
            (ended(0, true), &alone, Outcome::OutOfMemory),
            // As with memory: one that gets along without is not told that it failed.
            (ended(0, false), &full, Outcome::Succeeded),
            (ended(1, false), &full, Outcome::DiskLimit),
            (ended(135, false), &full, Outcome::DiskLimit),
            (ended(137, false), &full, Outcome::Failed),
            (ended(1, true), &full, Outcome::OutOfMemory),
            (ended(137, true), &alone, Outcome::OutOfMemory),
            (ended(137, false), &alone, Outcome::Failed),
            (ended(137, false), &away, Outcome::NodeFault),
            (ended(143, false), &away, Outcome::NodeFault),
            (ended(143, false), &alone, Outcome::Failed),
            (ended(7, false), &away, Outcome::Failed),
            (ended(137, false), &cancelled, Outcome::Cancelled),
            (ended(0, false), &cancelled, Outcome::Cancelled),
            (ended(137, false), &shimless, Outcome::NodeFault),
            (ended(137, true), &shimless, Outcome::OutOfMemory),
            (ended(143, false), &shimless, Outcome::Failed),
            (ended(7, false), &shimless, Outcome::Failed),
            (ended(0, false), &shimless, Outcome::Succeeded),
            (ended(137, false), &shimless_cancelled, Outcome::Cancelled),
        ];
        for (state, circumstances, outcome) in cases {
            assert_eq!(judge(&state, circumstances).0, outcome, "{state:?} {circumstances:?}");
        }
        assert_eq!(judge(&ended(139, false), &alone).1, "ended by signal 11");
    }

    #[test]
    fn says_who_ended_it() {
        let alone = Circumstances::default();
        let stopped = |outcome| Circumstances { stopping: Some((outcome, "c".to_owned())), ..alone.clone() };
        let away = Circumstances { was_engine_away: true, ..alone.clone() };
        let cases = [
            (ended(0, false), alone.clone(), None, EndedBy::Task, None),
            (ended(3, false), alone.clone(), None, EndedBy::Task, None),
            (ended(0, true), alone.clone(), None, EndedBy::Kernel, None),
            (ended(139, false), alone.clone(), None, EndedBy::Unknown, Some(11)),
            (ended(137, false), away, None, EndedBy::Engine, Some(9)),
            (ended(137, false), stopped(Outcome::TimedOut), None, EndedBy::Limit, Some(9)),
            (ended(137, false), stopped(Outcome::DiskLimit), None, EndedBy::Limit, Some(9)),
            (ended(143, false), stopped(Outcome::Cancelled), Some(EndedBy::Owner), EndedBy::Owner, Some(15)),
            (ended(143, false), stopped(Outcome::Cancelled), Some(EndedBy::Master), EndedBy::Master, Some(15)),
            (ended(143, false), stopped(Outcome::Superseded), Some(EndedBy::Master), EndedBy::Master, Some(15)),
            (ended(143, false), stopped(Outcome::Preempted), Some(EndedBy::Node), EndedBy::Node, Some(15)),
        ];
        for (state, circumstances, order, ended_by, signal) in cases {
            let evidence = evidence(&state, &circumstances, order);
            assert_eq!((evidence.ended_by, evidence.signal), (ended_by, signal), "{state:?} {circumstances:?}");
            assert_eq!(evidence.oom_killed, Some(state.oom_killed));
        }
    }

    #[test]
    fn a_wall_clock_that_jumps_makes_no_long_run() {
        let seconds = Duration::from_secs;
        assert_eq!(ran_for(Some(seconds(5)), seconds(9)), seconds(5), "its end was seen late");
        assert_eq!(ran_for(Some(seconds(6)), seconds(5)), seconds(6), "it was started before we knew");
        assert_eq!(ran_for(Some(seconds(315_360_000)), seconds(5)), seconds(5), "ten years ahead");
        assert_eq!(ran_for(None, seconds(5)), seconds(5), "back");
    }

    #[test]
    fn reads_the_engines_times() {
        // By date -d ... +%s.
        assert_eq!(parse_time("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(parse_time("2026-11-24T04:02:23.432335524Z"), Some(1_795_492_943_432_335_524));
        assert_eq!(parse_time("2024-02-29T23:59:59.5Z"), Some(1_709_251_199_500_000_000));
        for text in ["", "0001-01-01T00:00:00Z", "2026-11-24", "2026-13-24T04:02:23Z", "2026-11-24T04:02:23+01:00"] {
            assert_eq!(parse_time(text), None, "{text}");
        }
    }
}

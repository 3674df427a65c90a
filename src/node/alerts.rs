//! Alerts by thresholds: what is too much for a while, until it is well below for as long. Values that nobody knows change
//! nothing.

use std::time::Duration;

use super::record::Usage;
use super::snapshot::HostSample;

/// How far below its threshold a value has to be for the end of an alert: one that moves around it raises one alert.
const MARGIN_PERCENT: f64 = 5.0;

/// From how much of what there is, in percent, an alert is raised; without one, never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    /// All CPUs of the machine.
    pub cpu: Option<u8>,
    /// Memory of the machine that is not available.
    pub memory: Option<u8>,
    /// The disk of the state folder.
    pub disk: Option<u8>,
    /// A task's memory, of its limit.
    pub task_memory: Option<u8>,
    /// How long it is so first. A task's memory is told at once: out of memory comes fast. Each ends after as long.
    pub after: Duration,
}

impl Default for Thresholds {
    fn default() -> Self {
        let percent = Some(90);
        Self { cpu: percent, memory: percent, disk: percent, task_memory: percent, after: Duration::from_secs(60) }
    }
}

/// One value beside its threshold.
#[derive(Clone, Copy, Debug, Default)]
pub struct Watch {
    is_raised: bool,
    /// Since when it is on the other side, where it is.
    since: Option<Duration>,
}

/// What a look at a value changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It is too much.
    Raised,
    /// It is well below again.
    Ended,
}

impl Watch {
    /// Whether there is an alert.
    pub fn is_raised(&self) -> bool {
        self.is_raised
    }

    /// Looks at a value in percent. `raise_after` is how long it has to be too much, `end_after` how long well below.
    pub fn look(
        &mut self,
        percent: Option<f64>,
        threshold: Option<u8>,
        (raise_after, end_after): (Duration, Duration),
        now: Duration,
    ) -> Option<Turn> {
        let Some(threshold) = threshold.map(f64::from) else {
            // The owner has taken the threshold away.
            return std::mem::take(self).is_raised.then_some(Turn::Ended);
        };
        let percent = percent?;
        let (is_across, hold) = match self.is_raised {
            false => (percent >= threshold, raise_after),
            true => (percent < threshold - MARGIN_PERCENT, end_after),
        };
        let since = *self.since.get_or_insert(now);
        if !is_across {
            self.since = None;
            return None;
        }
        if now.saturating_sub(since) < hold {
            return None;
        }
        *self = Self { is_raised: !self.is_raised, since: None };
        Some(if self.is_raised { Turn::Raised } else { Turn::Ended })
    }
}

/// The machine's values.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostWatch {
    watches: [Watch; 3],
}

impl HostWatch {
    /// Looks at a sample; each change in words.
    pub fn look(&mut self, sample: &HostSample, thresholds: &Thresholds, now: Duration) -> Vec<String> {
        let values = values(sample, thresholds);
        let holds = (thresholds.after, thresholds.after);
        let looks = self.watches.iter_mut().zip(values).filter_map(|(watch, (what, percent, threshold))| {
            let turn = watch.look(percent, threshold, holds, now)?;
            Some(words(&format!("{what} of this machine is at {}", shown(percent)), threshold, turn))
        });
        looks.collect()
    }

    /// What is too much now, in words.
    pub fn raised(&self, sample: &HostSample, thresholds: &Thresholds) -> Vec<String> {
        let values = self.watches.iter().zip(values(sample, thresholds)).filter(|(watch, _)| watch.is_raised());
        values.map(|(_, (what, percent, _))| format!("{what} {}", shown(percent))).collect()
    }
}

fn values(sample: &HostSample, thresholds: &Thresholds) -> [(&'static str, Option<f64>, Option<u8>); 3] {
    [
        ("CPU", sample.cpu_percent, thresholds.cpu),
        ("memory", used_percent(sample.memory_total_bytes, sample.memory_available_bytes), thresholds.memory),
        ("disk", used_percent(sample.disk_total_bytes, sample.disk_free_bytes), thresholds.disk),
    ]
}

fn used_percent(total: Option<u64>, free: Option<u64>) -> Option<f64> {
    let total = total.filter(|total| *total > 0)?;
    Some(100.0 * total.saturating_sub(free?) as f64 / total as f64)
}

/// Looks at a task's memory; a change in words.
pub fn look_at_task(
    watch: &mut Watch,
    usage: &Usage,
    limit_bytes: u64,
    thresholds: &Thresholds,
    now: Duration,
) -> Option<String> {
    let percent = Some(100.0 * usage.memory_bytes as f64 / limit_bytes.max(1) as f64);
    let turn = watch.look(percent, thresholds.task_memory, (Duration::ZERO, thresholds.after), now)?;
    Some(words(&format!("uses {} of its memory limit", shown(percent)), thresholds.task_memory, turn))
}

fn words(is: &str, threshold: Option<u8>, turn: Turn) -> String {
    match (turn, threshold) {
        (Turn::Raised, Some(threshold)) => format!("{is}: the threshold is {threshold} %"),
        (_, Some(threshold)) => format!("{is} again, well below {threshold} %"),
        (_, None) => format!("{is}, which has no threshold any more"),
    }
}

fn shown(percent: Option<f64>) -> String {
    // A value that is no longer known has been, since the alert was raised.
    percent.map_or_else(|| "an unknown part".to_owned(), |percent| format!("{percent:.0} %"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn at(second: u64) -> Duration {
        Duration::from_secs(second)
    }

    fn turns(values: &[(u64, f64)]) -> Vec<(u64, Turn)> {
        let mut watch = Watch::default();
        let look = |(second, percent): &(u64, f64)| {
            Some((*second, watch.look(Some(*percent), Some(90), (MINUTE, MINUTE), at(*second))?))
        };
        values.iter().filter_map(look).collect()
    }

    #[test]
    fn an_alert_begins_after_a_minute_and_ends_after_a_minute_well_below() {
        let values = [(0, 90.0), (59, 99.0), (60, 90.0), (61, 84.9), (120, 80.0), (121, 10.0)];
        assert_eq!(turns(&values), [(60, Turn::Raised), (121, Turn::Ended)]);
    }

    #[test]
    fn what_moves_around_the_threshold_raises_one_alert() {
        // Below for a moment: the minute begins anew.
        assert_eq!(turns(&[(0, 95.0), (30, 89.9), (31, 95.0), (90, 95.0), (91, 95.0)]), [(91, Turn::Raised)]);
        // In between the two it stays as it is.
        let around: Vec<(u64, f64)> =
            (0..600).map(|second| (second, if second % 2 == 0 { 95.0 } else { 86.0 })).collect();
        assert_eq!(turns(&around), []);
        let raised =
            [(0, 95.0), (60, 95.0)].into_iter().chain(around.iter().map(|(second, value)| (second + 61, *value)));
        assert_eq!(turns(&raised.collect::<Vec<_>>()), [(60, Turn::Raised)]);
    }

    #[test]
    fn what_nobody_knows_changes_nothing_and_a_threshold_that_goes_ends_the_alert() {
        let mut watch = Watch::default();
        let holds = (Duration::ZERO, MINUTE);
        assert_eq!(watch.look(None, Some(90), holds, at(0)), None);
        assert_eq!(watch.look(Some(90.0), Some(90), holds, at(1)), Some(Turn::Raised));
        assert_eq!(watch.look(None, Some(90), holds, at(500)), None);
        assert!(watch.is_raised());
        assert_eq!(watch.look(Some(99.0), None, holds, at(501)), Some(Turn::Ended));
        assert_eq!(watch.look(Some(99.0), None, holds, at(502)), None);
    }

    #[test]
    fn the_machine_is_told_in_words() {
        let thresholds = Thresholds { cpu: None, ..Thresholds::default() };
        let sample = HostSample {
            cpu_percent: Some(100.0),
            memory_total_bytes: Some(1_000),
            memory_available_bytes: Some(80),
            disk_total_bytes: Some(0),
            disk_free_bytes: Some(0),
            ..HostSample::default()
        };
        let mut watch = HostWatch::default();
        assert!(watch.look(&sample, &thresholds, at(0)).is_empty());
        assert!(watch.raised(&sample, &thresholds).is_empty());
        assert_eq!(
            watch.look(&sample, &thresholds, at(60)),
            ["memory of this machine is at 92 %: the threshold is 90 %"]
        );
        assert_eq!(watch.raised(&sample, &thresholds), ["memory 92 %"]);
        let well = HostSample { memory_available_bytes: Some(400), ..sample };
        assert!(watch.look(&well, &thresholds, at(61)).is_empty());
        assert_eq!(
            watch.look(&well, &thresholds, at(121)),
            ["memory of this machine is at 60 % again, well below 90 %"]
        );
        let usage = Usage { memory_bytes: 95, ..Usage::default() };
        let told = look_at_task(&mut Watch::default(), &usage, 100, &thresholds, at(0));
        assert_eq!(told.unwrap(), "uses 95 % of its memory limit: the threshold is 90 %");
    }
}

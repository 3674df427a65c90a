//! What the store remembers of an attempt, and how a record grows: pure, so that the thread that writes it and the
//! recovery that replays it can't disagree.

use serde::{Deserialize, Serialize};

use crate::node::id::{AttemptKey, Id};
use crate::node::order::Marks;
use crate::node::record::{Event, EventKind, FinalReport, Phase};
use crate::node::snapshot::HistoryRow;
use crate::node::spec::TaskSpec;

/// The changing part of a duty.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct State {
    pub(super) phase: Phase,
    pub(super) marks: Marks,
    /// Number of the last event.
    pub(super) last_event: u64,
    /// Up to here the master has the events.
    pub(super) acked_event: u64,
    /// Set by the one final event.
    pub(super) end: Option<End>,
}

/// See [`State::end`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct End {
    /// Number of the final event.
    pub(super) number: u64,
    /// What stays of the attempt once the master has all of it.
    pub(super) row: HistoryRow,
}

/// A duty without the bulk of its task.
#[derive(Clone, Debug)]
pub(super) struct Duty {
    /// Of its row.
    pub(super) id: i64,
    pub(super) key: AttemptKey,
    pub(super) owner: Id,
    pub(super) image: String,
    /// Of the assignment.
    pub(super) digest: [u8; 32],
    pub(super) priority: u8,
    pub(super) state: State,
}

impl Duty {
    /// A duty just taken.
    pub(super) fn new(id: i64, spec: &TaskSpec) -> Self {
        Self {
            id,
            key: spec.key.clone(),
            owner: spec.owner.clone(),
            image: spec.image.to_string(),
            digest: spec.digest,
            priority: spec.priority,
            state: State { phase: Phase::Received, marks: Marks::default(), last_event: 0, acked_event: 0, end: None },
        }
    }

    /// Adds an event to the record and gives it its number. A second final report is declined.
    pub(super) fn record(&mut self, time_ms: u64, kind: EventKind) -> Option<Event> {
        if matches!(kind, EventKind::Final(_)) && self.state.end.is_some() {
            return None;
        }
        let event = Event { number: self.state.last_event.saturating_add(1), time_ms, kind };
        self.replay(&event);
        Some(event)
    }

    /// Takes an event that has its number already.
    pub(super) fn replay(&mut self, event: &Event) {
        self.state.last_event = self.state.last_event.max(event.number);
        match &event.kind {
            // The final report has the last word on the phase.
            EventKind::Phase(phase, _) if self.state.end.is_none() => self.state.phase = *phase,
            EventKind::Final(report) if self.state.end.is_none() => {
                self.state.phase = Phase::Reporting;
                self.state.end = Some(End { number: event.number, row: self.row(event.time_ms, report) });
            }
            EventKind::Phase(..) | EventKind::Final(_) | EventKind::Note(_) | EventKind::Alert(_) => {}
        }
    }

    /// Whether the master has the final report and each other event.
    pub(super) fn is_told(&self) -> bool {
        self.state.end.is_some() && self.state.acked_event >= self.state.last_event
    }

    fn row(&self, finished_ms: u64, report: &FinalReport) -> HistoryRow {
        HistoryRow {
            key: self.key.clone(),
            owner: self.owner.clone(),
            image: self.image.clone(),
            outcome: report.outcome,
            exit_code: report.exit_code,
            reason: report.reason.clone(),
            usage: report.usage,
            duration_ms: report.duration_ms,
            finished_ms,
            output_files: u64::try_from(report.outputs.len()).unwrap_or(u64::MAX),
            output_bytes: report.outputs.iter().fold(0, |sum, file| sum.saturating_add(file.size)),
        }
    }
}

/// The final report as far as a history row keeps it: what is left when the report itself was damaged.
fn report_of(row: &HistoryRow) -> FinalReport {
    FinalReport {
        exit_code: row.exit_code,
        usage: row.usage,
        duration_ms: row.duration_ms,
        cut: vec!["the full report was damaged on the node's disk".to_owned()],
        ..FinalReport::without_run(row.outcome, row.reason.clone())
    }
}

/// What stands in for an event that was damaged on disk: the record goes on without a hole.
pub(super) fn substitute(number: u64, end: Option<&End>) -> Event {
    match end {
        Some(end) if end.number == number => {
            Event { number, time_ms: end.row.finished_ms, kind: EventKind::Final(Box::new(report_of(&end.row))) }
        }
        _ => Event {
            number,
            time_ms: 0,
            kind: EventKind::Note("this event was damaged on the node's disk and is lost".to_owned()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::spec;
    use super::*;
    use crate::node::record::Outcome;

    fn end(outcome: Outcome) -> EventKind {
        EventKind::Final(Box::new(FinalReport::without_run(outcome, "")))
    }

    #[test]
    fn numbers_without_holes_and_takes_one_final_report() {
        let mut duty = Duty::new(1, &spec("sum", 1));
        let first = duty.record(5, EventKind::Phase(Phase::Running, String::new())).unwrap();
        assert_eq!((first.number, duty.state.phase), (1, Phase::Running));
        assert_eq!(duty.record(6, end(Outcome::Cancelled)).unwrap().number, 2);
        assert_eq!(duty.record(7, end(Outcome::Succeeded)), None);
        assert_eq!(duty.record(8, EventKind::Note(String::new())).unwrap().number, 3);
        duty.record(9, EventKind::Phase(Phase::Running, String::new()));
        assert_eq!(duty.state.phase, Phase::Reporting);
        let row = duty.state.end.clone().unwrap().row;
        assert_eq!((row.outcome, row.finished_ms), (Outcome::Cancelled, 6));
        duty.state.acked_event = 3;
        assert!(!duty.is_told());
        duty.state.acked_event = 4;
        assert!(duty.is_told());
    }
}

//! The node as it looks from outside: pure reading.

use std::collections::BTreeSet;

use super::Coordinator;
use crate::node::id::AttemptKey;
use crate::node::record::FinalReport;
use crate::node::resources::Resources;
use crate::node::reward;
use crate::node::roster::Attempt;
use crate::node::snapshot::{AttemptView, HistoryRow, NodeState, Snapshot};
use crate::node::spec::TaskSpec;

impl Coordinator {
    /// State and, where it is not plain, the reason.
    pub(super) fn state(&self) -> (NodeState, String) {
        if let Some(reason) = &self.past.safe_because {
            return (NodeState::Degraded, format!("safe state: {reason}"));
        }
        if let Some(trouble) = &self.store_trouble {
            return (NodeState::Degraded, format!("disk: {trouble}"));
        }
        if !self.view.engine.is_usable {
            return (NodeState::Degraded, self.view.engine.detail.clone());
        }
        if let Some(what) = self.roster.iter().find_map(|attempt| Some((&attempt.spec.key, attempt.undying.as_ref()?)))
        {
            return (NodeState::Degraded, format!("{}: {}", what.0, what.1));
        }
        if self.shutdown.is_some() {
            return (NodeState::Draining, "the worker is shutting down".to_owned());
        }
        if self.is_paused {
            return (NodeState::Paused, "paused by its owner".to_owned());
        }
        if self.is_draining {
            return (NodeState::Draining, "takes nothing new until it is resumed".to_owned());
        }
        let free = self.usable().less(&self.roster.wanted());
        let least = Resources { cpu_millis: 1, memory_bytes: 1, disk_bytes: 1, slots: 1 };
        if let Some(short) = least.shortage(&free) {
            return (NodeState::Busy, format!("no {short} left of what is lent"));
        }
        (NodeState::Ready, String::new())
    }

    /// Attempts of which something may be at the engine, or soon will be. Until its end is recorded, only the container
    /// knows the result; of one that was given up nobody wants to know it.
    pub fn held(&self) -> BTreeSet<AttemptKey> {
        let is_unrecorded = |key: &AttemptKey| self.waiting().any(|what| what.is_record_of(key));
        let held = self.roster.iter().filter(|attempt| {
            let is_wanted = !self.past.gives_up(&attempt.marks) && is_unrecorded(&attempt.spec.key);
            attempt.is_open() || attempt.has_thread || is_wanted
        });
        held.map(|attempt| attempt.spec.key.clone()).collect()
    }

    /// The node as it looks from outside.
    pub fn snapshot(&self) -> Snapshot {
        let (state, state_reason) = self.state();
        let takes_work = matches!(state, NodeState::Ready | NodeState::Busy);
        let free = self.usable().less(&self.roster.wanted());
        let mut attempts: Vec<&Attempt> = self.roster.iter().filter(|attempt| !attempt.is_delivered).collect();
        attempts.sort_by_key(|attempt| attempt.arrival);
        Snapshot {
            state,
            state_reason,
            lent: self.settings.lent,
            promised: self.roster.promised(),
            free: if takes_work { free } else { Resources::default() },
            reward_estimate: reward::estimate(&self.view.host),
            attempts: attempts.into_iter().map(attempt_view).collect(),
            ..self.view.clone()
        }
    }
}

pub(super) fn explain_shortage(short: &str, spec: &TaskSpec, usable: &Resources) -> String {
    match short {
        "cpu" => format!("{} thousandths of a CPU asked for, {} lent", spec.cpu_millis, usable.cpu_millis),
        "memory" => format!("{} bytes asked for, {} lent", spec.memory_bytes, usable.memory_bytes),
        "disk" => format!("{} bytes asked for, {} lent", spec.disk_bytes, usable.disk_bytes),
        _ => "none lent".to_owned(),
    }
}

fn attempt_view(attempt: &Attempt) -> AttemptView {
    AttemptView {
        key: attempt.spec.key.clone(),
        owner: attempt.spec.owner.clone(),
        image: attempt.spec.image.to_string(),
        phase: attempt.phase,
        phase_since_ms: attempt.phase_since_ms,
        detail: attempt.detail.clone(),
        limits: attempt.spec.needs(),
        priority: attempt.spec.priority,
        usage: attempt.look.usage,
        cpu_percent: attempt.look.cpu_percent,
        running_ms: attempt.look.running_ms,
        timeout_ms: u64::try_from(attempt.spec.timeout.as_millis()).unwrap_or(u64::MAX),
        tail: attempt.look.tail.clone(),
    }
}

pub(super) fn history_row(spec: &TaskSpec, report: &FinalReport, now_ms: u64) -> HistoryRow {
    HistoryRow {
        key: spec.key.clone(),
        owner: spec.owner.clone(),
        image: spec.image.to_string(),
        outcome: report.outcome,
        exit_code: report.exit_code,
        reason: report.reason.clone(),
        usage: report.usage,
        duration_ms: report.duration_ms,
        finished_ms: now_ms,
        output_files: report.outputs.len() as u64,
        output_bytes: report.outputs.iter().map(|file| file.size).sum(),
    }
}

//! Between the contract's messages and the node's words, in the direction that a master needs.
//!
//! Unknown enum values break nothing: they become the nearest thing that a person can read.

use crate::node::account::{AppliedLimits, EndedBy, Evidence, PhaseTime, UsageFigures};
use crate::node::id::{AttemptKey, Id};
use crate::node::offer::Offer;
use crate::node::record::{Event, EventKind, FinalReport, Outcome, OutputFile, Phase, StreamEnd, Usage};
use crate::node::resources::Resources;
use crate::rpc::schema;

pub use crate::rpc::convert::{key_message, offer};

use super::fail::Fail;

/// Signals that are kept of a report: a node knows two.
const MAX_SIGNALS: usize = 8;

/// Longest text of a note, alert or detail that is kept; nobody reads more, and a node must not fill the disk with it.
pub const MAX_TEXT_BYTES: usize = 8 << 10;

/// The attempt that a message names.
///
/// # Errors
/// Names what is missing or wrong.
pub fn key(key: Option<&schema::AttemptKey>) -> Result<AttemptKey, Fail> {
    let key = key.ok_or_else(|| Fail::missing("key"))?;
    if key.task_id.is_empty() {
        return Err(Fail::missing("key.task_id"));
    }
    if key.attempt == 0 {
        return Err(Fail::missing("key.attempt"));
    }
    Ok(AttemptKey {
        task: Id::parse(&key.task_id).map_err(|error| Fail::wrong("key.task_id", error))?,
        attempt: key.attempt,
    })
}

/// Amounts; absent means nothing.
pub fn resources(amounts: Option<&schema::Resources>) -> Resources {
    amounts.map_or_else(Resources::default, |amounts| Resources {
        cpu_millis: amounts.cpu_millis,
        memory_bytes: amounts.memory_bytes,
        disk_bytes: amounts.disk_bytes,
        slots: amounts.slots,
    })
}

/// An offer as the assignment that carries it.
pub fn assignment(offer: Offer) -> schema::Assignment {
    schema::Assignment {
        key: Some(schema::AttemptKey { task_id: offer.task, attempt: u32::try_from(offer.attempt).unwrap_or(0) }),
        owner_id: offer.owner,
        image: offer.image,
        pull: offer.pull,
        command: offer.command,
        env: offer.env.into_iter().collect(),
        cpu_millis: offer.cpu_millis,
        memory_bytes: offer.memory_bytes,
        disk_bytes: offer.disk_bytes,
        gpus: offer.gpus,
        timeout_ms: offer.timeout_ms,
        grace_ms: offer.grace_ms,
        priority: offer.priority,
        network: offer.network,
        at_lease_end: offer.at_lease_end,
        outputs: offer.outputs,
        max_output_bytes: offer.max_output_bytes,
        inputs: offer.inputs,
        inputs_sha256: offer.inputs_sha256,
        inputs_url: offer.inputs_url,
        inputs_url_bytes: offer.inputs_url_bytes,
        network_allow: offer.network_allow,
        runtime: offer.runtime,
    }
}

/// An event of a record.
///
/// # Errors
/// Names what is missing.
pub fn event(event: schema::Event) -> Result<Event, Fail> {
    use schema::event::Kind;
    if event.number == 0 {
        return Err(Fail::missing("event.number"));
    }
    let kind = match event.kind {
        Some(Kind::Phase(change)) => match phase(change.phase) {
            Some(phase) => EventKind::Phase(phase, cut(change.detail)),
            None if change.phase == 0 => return Err(Fail::missing("event.phase.phase")),
            None => EventKind::Note(cut(format!("phase {}: {}", change.phase, change.detail))),
        },
        Some(Kind::Note(text)) => EventKind::Note(cut(text)),
        Some(Kind::Alert(text)) => EventKind::Alert(cut(text)),
        Some(Kind::FinalReport(report)) => EventKind::Final(Box::new(final_report(report)?)),
        // A newer node's kind of event looks like none. It must not stop the events behind it.
        None => EventKind::Note("an event of a kind that this master does not know".to_owned()),
    };
    Ok(Event { number: event.number, time_ms: event.time_ms, kind })
}

/// The node's word for a phase, when there is one.
pub fn phase(number: i32) -> Option<Phase> {
    let index = usize::try_from(number.checked_sub(1)?).ok()?;
    Phase::ALL.get(index).copied()
}

/// Without the tail: this master keeps the streams.
fn final_report(report: schema::FinalReport) -> Result<FinalReport, Fail> {
    let known = usize::try_from(i64::from(report.outcome) - 1).ok().and_then(|index| Outcome::ALL.get(index).copied());
    let (outcome, reason) = match known {
        Some(outcome) => (outcome, report.reason),
        None if report.outcome == 0 => return Err(Fail::missing("event.final_report.outcome")),
        // An unknown end must not look like a good one.
        None => (Outcome::Failed, format!("outcome {}: {}", report.outcome, report.reason)),
    };
    Ok(FinalReport {
        outcome,
        exit_code: report.exit_code,
        reason: cut(reason),
        usage: report.usage.map_or_else(Usage::default, |usage| Usage {
            cpu_ms: usage.cpu_ms,
            peak_memory_bytes: usage.peak_memory_bytes,
            memory_bytes: usage.memory_bytes,
            pids: usage.pids,
            disk_read_bytes: usage.disk_read_bytes,
            disk_written_bytes: usage.disk_written_bytes,
        }),
        duration_ms: report.duration_ms,
        image_digest: cut(report.image_digest),
        outputs: report.outputs.into_iter().map(output_file).collect(),
        cut: report.cut.into_iter().map(cut).collect(),
        streams: report.streams.into_iter().map(stream_end).collect(),
        tail: Vec::new(),
        phases: report.phases.into_iter().take(Phase::ALL.len()).filter_map(phase_time).collect(),
        limits: report.limits.map(limits),
        figures: report.figures.map(figures),
        evidence: report.evidence.map(evidence),
    })
}

/// A phase of a later version has no place among ours.
fn phase_time(time: schema::PhaseTime) -> Option<PhaseTime> {
    Some(PhaseTime { phase: phase(time.phase)?, duration_ms: time.duration_ms })
}

fn limits(limits: schema::AppliedLimits) -> AppliedLimits {
    AppliedLimits {
        memory_bytes: limits.memory_bytes,
        cpu_millis: limits.cpu_millis,
        pids: limits.pids,
        network: cut(limits.network),
        disk_bytes: limits.disk_bytes,
        timeout_ms: limits.timeout_ms,
        grace_ms: limits.grace_ms,
        runtime: cut(limits.runtime),
    }
}

fn figures(figures: schema::UsageFigures) -> UsageFigures {
    UsageFigures {
        average_cpu_millis: figures.average_cpu_millis,
        peak_cpu_millis: figures.peak_cpu_millis,
        average_memory_bytes: figures.average_memory_bytes,
        average_pids: figures.average_pids,
        peak_pids: figures.peak_pids,
        peak_disk_bytes: figures.peak_disk_bytes,
        network_received_bytes: figures.network_received_bytes,
        network_sent_bytes: figures.network_sent_bytes,
    }
}

fn evidence(evidence: schema::Evidence) -> Evidence {
    let known = usize::try_from(i64::from(evidence.ended_by) - 1).ok();
    Evidence {
        ended_by: known.and_then(|index| EndedBy::KNOWN.get(index).copied()).unwrap_or_default(),
        oom_killed: evidence.oom_killed,
        signal: evidence.signal,
        signals_sent: evidence.signals_sent.into_iter().take(MAX_SIGNALS).map(cut).collect(),
        engine_error: cut(evidence.engine_error),
        started_at: cut(evidence.started_at),
        finished_at: cut(evidence.finished_at),
    }
}

fn output_file(file: schema::OutputFile) -> OutputFile {
    OutputFile { stream: file.stream, path: file.path, size: file.size, mode: file.mode & 0o777, sha256: file.sha256 }
}

fn stream_end(end: schema::StreamEnd) -> StreamEnd {
    StreamEnd { stream: end.stream, epoch: end.epoch, bytes: end.bytes }
}

fn cut(mut text: String) -> String {
    if text.len() > MAX_TEXT_BYTES {
        text.truncate(text.floor_char_boundary(MAX_TEXT_BYTES));
        text.push_str(" (cut)");
    }
    text
}

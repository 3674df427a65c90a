//! Between the node's words and the contract's messages. Outside `rpc` and `standalone` nothing knows the messages.

use prost::Message;
use ring::digest::{SHA256, digest};

use super::{schema, wire};
use crate::node::account::{AppliedLimits, EndedBy, Evidence, PhaseTime, UsageFigures};
use crate::node::id::{AttemptKey, Id};
use crate::node::offer::Offer;
use crate::node::record::{Event, EventKind, FinalReport, Outcome, Phase, Piece, PieceContent, Usage};
use crate::node::resources::Resources;
use crate::node::snapshot::{HostSample, NodeState, Snapshot};
use crate::node::spec::FieldError;

/// Fields of an assignment, counted before anything is made of them: words, variables and patterns have limits of their
/// own, below this together.
const MAX_ASSIGNMENT_FIELDS: usize = 4_096;

/// The contract's form of a key.
pub fn key_message(key: &AttemptKey) -> schema::AttemptKey {
    schema::AttemptKey { task_id: key.task.to_string(), attempt: key.attempt }
}

/// A key from a master; `None` where it is missing or can't be one.
pub fn key_from(key: Option<schema::AttemptKey>) -> Option<AttemptKey> {
    let key = key?;
    Some(AttemptKey { task: Id::parse(&key.task_id).ok()?, attempt: key.attempt })
}

/// What an assignment asks for, unchecked and without the digest of its bytes.
pub fn offer(assignment: schema::Assignment) -> Offer {
    let key = assignment.key.unwrap_or_default();
    Offer {
        task: key.task_id,
        attempt: i64::from(key.attempt),
        owner: assignment.owner_id,
        image: assignment.image,
        pull: assignment.pull,
        command: assignment.command,
        env: assignment.env.into_iter().collect(),
        cpu_millis: assignment.cpu_millis,
        memory_bytes: assignment.memory_bytes,
        disk_bytes: assignment.disk_bytes,
        gpus: assignment.gpus,
        timeout_ms: assignment.timeout_ms,
        grace_ms: assignment.grace_ms,
        priority: assignment.priority,
        network: assignment.network,
        at_lease_end: assignment.at_lease_end,
        outputs: assignment.outputs,
        max_output_bytes: assignment.max_output_bytes,
        inputs: assignment.inputs,
        inputs_sha256: assignment.inputs_sha256,
        inputs_url: assignment.inputs_url,
        inputs_url_bytes: assignment.inputs_url_bytes,
        network_allow: assignment.network_allow,
        runtime: assignment.runtime,
        digest: [0; 32],
    }
}

/// Reads an assignment's bytes. Its limits are checked later, by `TaskSpec::check`.
///
/// # Errors
/// The bytes are no assignment (the text names the field where decoding failed), or the inputs are not what their digest
/// says.
pub fn decode_offer(bytes: &[u8]) -> Result<Offer, FieldError> {
    let refuse = |field: &str, reason: String| FieldError { field: field.to_owned(), reason };
    if !wire::has_at_most(bytes, MAX_ASSIGNMENT_FIELDS) {
        let reason = format!("has more than {MAX_ASSIGNMENT_FIELDS} fields, words of command, env and outputs counted");
        return Err(refuse("assignment", reason));
    }
    let assignment =
        schema::Assignment::decode(bytes).map_err(|error| refuse("assignment", format!("can't be read: {error}")))?;
    if assignment.key.is_none() {
        return Err(refuse("key", "is missing".to_owned()));
    }
    let mut offer = offer(assignment);
    // With a URL it is the digest of what is there.
    let is_inline = offer.inputs_url.is_empty() || !offer.inputs.is_empty();
    if is_inline && offer.inputs_sha256.len() == 32 && digest(&SHA256, &offer.inputs).as_ref() != offer.inputs_sha256 {
        return Err(refuse("inputs_sha256", "is not the digest of the inputs that came".to_owned()));
    }
    if let Ok(sum) = digest(&SHA256, bytes).as_ref().try_into() {
        offer.digest = sum;
    }
    Ok(offer)
}

/// Amounts in the contract's form.
pub fn resources(amounts: &Resources) -> schema::Resources {
    schema::Resources {
        cpu_millis: amounts.cpu_millis,
        memory_bytes: amounts.memory_bytes,
        disk_bytes: amounts.disk_bytes,
        slots: amounts.slots,
    }
}

/// Position in a list whose numbers begin at 1.
fn number_of<T: PartialEq>(all: &[T], value: &T) -> i32 {
    let position = all.iter().position(|one| one == value).and_then(|index| i32::try_from(index).ok());
    position.map_or(0, |index| index + 1)
}

fn phase_number(phase: Phase) -> i32 {
    number_of(&Phase::ALL, &phase)
}

/// The attempts that the node holds. The master takes each as confirmed, so one that is not on disk yet is none of them.
pub fn held(snapshot: &Snapshot) -> Vec<schema::HeldAttempt> {
    let attempts = snapshot.attempts.iter().filter(|view| view.phase > Phase::Received);
    let held = |view: &crate::node::snapshot::AttemptView| schema::HeldAttempt {
        key: Some(key_message(&view.key)),
        phase: phase_number(view.phase),
    };
    attempts.map(held).collect()
}

/// The node's state.
pub fn state_number(state: NodeState) -> i32 {
    let all = [NodeState::Ready, NodeState::Busy, NodeState::Paused, NodeState::Draining, NodeState::Degraded];
    number_of(&all, &state)
}

/// What the master may have of a trust level that it names; one that is not known here gets the least.
pub fn trust_percent(level: i32) -> u32 {
    match level {
        0 | 1 => 100,
        2 => 80,
        3 => 50,
        _ => 30,
    }
}

/// What a task uses.
pub fn usage(key: &AttemptKey, usage: &Usage) -> schema::TaskUsage {
    schema::TaskUsage {
        key: Some(key_message(key)),
        cpu_ms: usage.cpu_ms,
        memory_bytes: usage.memory_bytes,
        peak_memory_bytes: usage.peak_memory_bytes,
        pids: usage.pids,
        disk_read_bytes: usage.disk_read_bytes,
        disk_written_bytes: usage.disk_written_bytes,
    }
}

/// What the machine does.
pub fn host(sample: &HostSample) -> schema::HostUsage {
    schema::HostUsage {
        cpu_percent: sample.cpu_percent,
        load_1m: sample.load_1m,
        memory_total_bytes: sample.memory_total_bytes,
        memory_available_bytes: sample.memory_available_bytes,
        disk_total_bytes: sample.disk_total_bytes,
        disk_free_bytes: sample.disk_free_bytes,
        network_received_bytes: sample.network_received_bytes,
        network_sent_bytes: sample.network_sent_bytes,
        uptime_s: sample.uptime_s,
        cpus: sample.cpus,
    }
}

/// A piece of a record.
pub fn piece(node_id: &str, piece: &Piece) -> schema::TaskResultRequest {
    let content = match &piece.content {
        PieceContent::Event(content) => schema::task_result_request::Piece::Event(event(&piece.key, content)),
        PieceContent::Chunk { stream, epoch, offset, bytes, is_last, is_after_gap } => {
            schema::task_result_request::Piece::Chunk(schema::Chunk {
                stream: *stream,
                epoch: *epoch,
                offset: *offset,
                data: bytes.clone(),
                last: *is_last,
                after_gap: *is_after_gap,
            })
        }
    };
    schema::TaskResultRequest { node_id: node_id.to_owned(), key: Some(key_message(&piece.key)), piece: Some(content) }
}

fn event(key: &AttemptKey, event: &Event) -> schema::Event {
    use schema::event::Kind;
    let kind = match &event.kind {
        EventKind::Phase(phase, detail) => {
            Kind::Phase(schema::PhaseChange { phase: phase_number(*phase), detail: detail.clone() })
        }
        EventKind::Note(text) => Kind::Note(text.clone()),
        EventKind::Alert(text) => Kind::Alert(text.clone()),
        EventKind::Final(report) => Kind::FinalReport(final_report(key, report)),
    };
    schema::Event { number: event.number, time_ms: event.time_ms, kind: Some(kind) }
}

fn final_report(key: &AttemptKey, report: &FinalReport) -> schema::FinalReport {
    let outputs = report.outputs.iter().map(|file| schema::OutputFile {
        stream: file.stream,
        path: file.path.clone(),
        size: file.size,
        mode: file.mode,
        sha256: file.sha256.clone(),
    });
    let streams = report.streams.iter();
    let streams =
        streams.map(|end| schema::StreamEnd { stream: end.stream, epoch: end.epoch, bytes: end.bytes }).collect();
    schema::FinalReport {
        outcome: number_of(&Outcome::ALL, &report.outcome),
        exit_code: report.exit_code,
        reason: report.reason.clone(),
        usage: Some(usage(key, &report.usage)),
        duration_ms: report.duration_ms,
        image_digest: report.image_digest.clone(),
        outputs: outputs.collect(),
        cut: report.cut.clone(),
        streams,
        tail: report.tail.clone(),
        phases: report.phases.iter().map(phase_time).collect(),
        limits: report.limits.as_ref().map(limits),
        figures: report.figures.as_ref().map(figures),
        evidence: report.evidence.as_ref().map(evidence),
    }
}

fn phase_time(time: &PhaseTime) -> schema::PhaseTime {
    schema::PhaseTime { phase: phase_number(time.phase), duration_ms: time.duration_ms }
}

fn limits(limits: &AppliedLimits) -> schema::AppliedLimits {
    schema::AppliedLimits {
        memory_bytes: limits.memory_bytes,
        cpu_millis: limits.cpu_millis,
        pids: limits.pids,
        network: limits.network.clone(),
        disk_bytes: limits.disk_bytes,
        timeout_ms: limits.timeout_ms,
        grace_ms: limits.grace_ms,
        runtime: limits.runtime.clone(),
    }
}

fn figures(figures: &UsageFigures) -> schema::UsageFigures {
    schema::UsageFigures {
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

fn evidence(evidence: &Evidence) -> schema::Evidence {
    schema::Evidence {
        ended_by: number_of(&EndedBy::KNOWN, &evidence.ended_by),
        oom_killed: evidence.oom_killed,
        signal: evidence.signal,
        signals_sent: evidence.signals_sent.clone(),
        engine_error: evidence.engine_error.clone(),
        started_at: evidence.started_at.clone(),
        finished_at: evidence.finished_at.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::snapshot::AttemptView;

    #[test]
    fn an_attempt_that_is_not_on_disk_is_not_held() {
        let view = |phase| AttemptView {
            key: AttemptKey { task: Id::parse("t").unwrap(), attempt: 1 },
            owner: Id::parse("o").unwrap(),
            image: String::new(),
            phase,
            phase_since_ms: 0,
            detail: String::new(),
            limits: Resources::default(),
            priority: 50,
            usage: Usage::default(),
            cpu_percent: None,
            running_ms: 0,
            timeout_ms: 0,
            tail: String::new(),
        };
        let attempts = vec![view(Phase::Received), view(Phase::Queued), view(Phase::Reporting)];
        let held = held(&Snapshot { attempts, ..Snapshot::default() });
        assert_eq!(held.iter().map(|held| held.phase).collect::<Vec<_>>(), [2, 9]);
    }
}

//! Why an attempt waits, or can never run, in words for its author. Pure.

use super::core::NodeRow;
use crate::config::amount;
use crate::node::id::Id;
use crate::node::resources::Resources;
use crate::rpc::schema::{HeartbeatRequest, NodeState};

/// Nodes that are named; a standalone master has one.
const MAX_NODES: usize = 3;

/// Why nobody takes it now; `None` when a node has room for it.
pub fn waits<'a>(needs: &Resources, nodes: impl Iterator<Item = (&'a Id, &'a NodeRow)>) -> Option<String> {
    let mut reasons = Vec::new();
    for (node, row) in nodes {
        reasons.push(reason_of(needs, node, row)?);
    }
    if reasons.is_empty() {
        return Some("no node has registered yet".to_owned());
    }
    reasons.truncate(MAX_NODES);
    Some(reasons.join("; "))
}

/// What is asked for beside what there is, of the first resource of which there is too little.
pub fn impossible(needs: &Resources, capacity: &Resources) -> Option<String> {
    let (wanted, has) = figures(needs, capacity)?;
    let is_one = has == "1" || matches!(needs.shortage(capacity)?, "memory" | "disk");
    Some(format!("it asks for {wanted}, {has} {} lent", if is_one { "is" } else { "are" }))
}

fn reason_of(needs: &Resources, node: &Id, row: &NodeRow) -> Option<String> {
    // A node that takes nothing has no room at all. Its polls follow at once, its heartbeat says why only later.
    let has_room = row.free.is_some_and(|free| free != Resources::default());
    let state = row.heartbeat.as_ref().map_or(NodeState::Unspecified, HeartbeatRequest::state);
    let reason = row.heartbeat.as_ref().map_or("", |heartbeat| heartbeat.reason.as_str());
    let word = match state {
        _ if has_room => return no_room(needs, node, row, state),
        NodeState::Degraded => "degraded",
        NodeState::Paused => "paused",
        NodeState::Draining => "draining",
        NodeState::Unspecified | NodeState::Ready | NodeState::Busy => return no_room(needs, node, row, state),
    };
    Some(match reason {
        "" => format!("node {node} is {word}"),
        reason if reason.starts_with(word) => format!("node {node} is {reason}"),
        reason => format!("node {node} is {word}: {reason}"),
    })
}

fn no_room(needs: &Resources, node: &Id, row: &NodeRow, state: NodeState) -> Option<String> {
    let Some(free) = row.free else {
        return Some(format!("node {node} has not asked for work yet"));
    };
    let is_nothing = free == Resources::default();
    match needs.shortage(&free)? {
        // Its next heartbeat says why.
        _ if is_nothing && state != NodeState::Busy => Some(format!("node {node} takes nothing at the moment")),
        "slots" => Some(format!("all slots of node {node} are in use")),
        _ => {
            let (wanted, has) = figures(needs, &free)?;
            Some(format!("it needs {wanted}, node {node} has {has} free"))
        }
    }
}

fn figures(needs: &Resources, room: &Resources) -> Option<(String, String)> {
    let bytes = |what: &str, wanted: u64, has: u64| {
        let (wanted, has) = amount::bytes_pair(wanted, has);
        (format!("{wanted} of {what}"), has)
    };
    Some(match needs.shortage(room)? {
        "memory" => bytes("memory", needs.memory_bytes, room.memory_bytes),
        "disk" => bytes("disk", needs.disk_bytes, room.disk_bytes),
        "cpu" => (amount::cpus(needs.cpu_millis), amount::thousandths(room.cpu_millis)),
        _ => (format!("{} slots", needs.slots), room.slots.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEEDS: Resources = Resources { cpu_millis: 2_000, memory_bytes: 1 << 30, disk_bytes: 1 << 30, slots: 1 };

    fn row(state: NodeState, reason: &str, free: Resources) -> NodeRow {
        let heartbeat =
            HeartbeatRequest { state: state.into(), reason: reason.to_owned(), ..HeartbeatRequest::default() };
        NodeRow { heartbeat: Some(heartbeat), free: Some(free), ..NodeRow::default() }
    }

    #[test]
    fn says_why_a_task_waits() {
        let nothing = Resources::default();
        let free = Resources { slots: 4, cpu_millis: 4_000, memory_bytes: 4 << 30, disk_bytes: 4 << 30 };
        let full = Resources { slots: 0, ..free };
        let node = Id::parse("vm").unwrap();
        for (row, expected) in [
            (row(NodeState::Degraded, "no engine", nothing), Some("node vm is degraded: no engine")),
            (row(NodeState::Paused, "paused by its owner", nothing), Some("node vm is paused by its owner")),
            (row(NodeState::Draining, "", nothing), Some("node vm is draining")),
            (row(NodeState::Degraded, "not looked at yet", full), Some("all slots of node vm are in use")),
            (row(NodeState::Paused, "", free), None),
            (row(NodeState::Busy, "x", full), Some("all slots of node vm are in use")),
            (row(NodeState::Ready, "", full), Some("all slots of node vm are in use")),
            (row(NodeState::Busy, "x", nothing), Some("all slots of node vm are in use")),
            (row(NodeState::Ready, "", nothing), Some("node vm takes nothing at the moment")),
            (
                row(NodeState::Ready, "", Resources { cpu_millis: 500, ..free }),
                Some("it needs 2 CPUs, node vm has 0.5 free"),
            ),
            (
                row(NodeState::Ready, "", Resources { memory_bytes: 512 << 20, ..free }),
                Some("it needs 1 GiB of memory, node vm has 512 MiB free"),
            ),
            (row(NodeState::Ready, "", free), None),
            (NodeRow::default(), Some("node vm has not asked for work yet")),
        ] {
            assert_eq!(waits(&NEEDS, [(&node, &row)].into_iter()).as_deref(), expected);
        }
        assert_eq!(waits(&NEEDS, std::iter::empty()).as_deref(), Some("no node has registered yet"));
    }

    #[test]
    fn says_both_figures_of_what_can_never_be() {
        let lent = Resources { slots: 4, cpu_millis: 2_000, memory_bytes: 15 << 30, disk_bytes: 9 << 30 };
        let much = Resources { cpu_millis: 512_000, ..NEEDS };
        assert_eq!(impossible(&much, &lent).as_deref(), Some("it asks for 512 CPUs, 2 are lent"));
        let much = Resources { memory_bytes: 64 << 30, ..NEEDS };
        assert_eq!(impossible(&much, &lent).as_deref(), Some("it asks for 64 GiB of memory, 15 GiB is lent"));
        assert_eq!(impossible(&NEEDS, &lent), None);
    }
}

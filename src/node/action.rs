//! What the owner can tell the node to do, from the monitor, the control socket or a signal.

use super::id::AttemptKey;

/// An owner's wish. Carried out by the coordinator in the order of arrival.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Take no new tasks and freeze the running ones until `Resume`.
    Pause,
    /// Take tasks again after `Pause` or `Drain`.
    Resume,
    /// Take no new tasks; running ones go on.
    Drain,
    /// Stop one attempt; its outcome is Cancelled by the owner.
    StopTask(AttemptKey),
}

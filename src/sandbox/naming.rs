//! Names and labels of what an attempt has at the engine. A name follows from node, task and attempt alone, so that
//! creating twice finds the first.

use std::collections::BTreeMap;

use ring::digest::{SHA256, digest};

use crate::node::id::{AttemptKey, Id};
use crate::sys::text::hex;

/// Id of the node; for people.
pub const LABEL_NODE: &str = "hivemind.node";
/// Digest of the node's public key: tells this node's containers from those of another state folder on the machine.
pub const LABEL_KEY: &str = "hivemind.key";
/// Task id.
pub const LABEL_TASK: &str = "hivemind.task";
/// Attempt.
pub const LABEL_ATTEMPT: &str = "hivemind.attempt";
/// `task`, `owner` for a helper that something is put into a volume through, `prepare` for what installs packages, or `probe` for what tries the tasks' network.
pub const LABEL_ROLE: &str = "hivemind.role";
/// Digest of the create body.
pub const LABEL_SPEC: &str = "hivemind.spec";

/// Whose things at the engine are ours.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The node's id.
    pub node: String,
    /// Hex digest of the node's public key, 16 digits.
    pub key: String,
}

impl Identity {
    /// The node `node` with this Ed25519 public key.
    pub fn new(node: &str, public_key: &[u8]) -> Self {
        Self { node: node.to_owned(), key: hex(&digest(&SHA256, public_key).as_ref()[..8]) }
    }

    /// `name=value` of the label that all our things have.
    pub fn filter(&self) -> String {
        format!("{LABEL_KEY}={}", self.key)
    }

    /// Name of the attempt's container, volume and network.
    pub fn name(&self, key: &AttemptKey) -> String {
        let text = format!("{}\0{}\0{}", self.key, key.task, key.attempt);
        format!("hivemind-{}", hex(&digest(&SHA256, text.as_bytes()).as_ref()[..12]))
    }

    /// Labels of a thing of the attempt in this role.
    pub fn labels(&self, key: &AttemptKey, role: &str) -> BTreeMap<String, String> {
        let mut labels = self.node_labels(role);
        labels.insert(LABEL_TASK.to_owned(), key.task.to_string());
        labels.insert(LABEL_ATTEMPT.to_owned(), key.attempt.to_string());
        labels
    }

    /// Labels of a thing of the node itself.
    pub fn node_labels(&self, role: &str) -> BTreeMap<String, String> {
        let labels = [(LABEL_NODE, &*self.node), (LABEL_KEY, &*self.key), (LABEL_ROLE, role)];
        labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
    }
}

/// The attempt that these labels name.
pub fn attempt_of(labels: &BTreeMap<String, String>) -> Option<AttemptKey> {
    let task = Id::parse(labels.get(LABEL_TASK)?).ok()?;
    let attempt = labels.get(LABEL_ATTEMPT)?.parse().ok()?;
    Some(AttemptKey { task, attempt })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_lead_back_to_the_attempt_and_names_differ() {
        let key = |task: &str, attempt| AttemptKey { task: Id::parse(task).unwrap(), attempt };
        let identity = Identity::new("n", b"public key");
        assert_eq!(attempt_of(&identity.labels(&key("t", 3), "task")), Some(key("t", 3)));
        assert_eq!(attempt_of(&BTreeMap::new()), None);
        let names = [
            identity.name(&key("t", 1)),
            identity.name(&key("t", 11)),
            identity.name(&key("t1", 1)),
            Identity::new("n", b"other").name(&key("t", 1)),
        ];
        let distinct: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(distinct.len(), names.len(), "{names:?}");
    }
}

//! What this node has at the engine that belongs to no attempt: found by label, and removed. Things of another node, and
//! things without our label, are never touched: the engine is asked for ours alone, and its answer is checked again.

use std::collections::BTreeMap;

use super::naming::{Identity, LABEL_KEY, LABEL_ROLE, attempt_of};
use crate::docker::{Docker, Error};
use crate::node::id::AttemptKey;
use crate::store::Packages;

/// Whether the node still has use for what an attempt has at the engine.
pub type IsHeld<'a> = &'a dyn Fn(&AttemptKey) -> bool;

/// A kind of thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// With its anonymous volumes.
    Container,
    /// Named.
    Volume,
    /// Of one attempt, or of the node.
    Network,
}

impl Kind {
    /// The word that is shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Volume => "volume",
            Self::Network => "network",
        }
    }
}

/// A thing that belongs to no attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Orphan {
    /// What it is.
    pub kind: Kind,
    /// For the engine.
    pub id: String,
    /// For people.
    pub name: String,
    /// Of which attempt it was.
    pub reason: String,
}

impl Orphan {
    fn new(kind: Kind, id: &str, name: &str, labels: &BTreeMap<String, String>) -> Self {
        let reason = match attempt_of(labels) {
            Some(key) => format!("{key} is not held any more"),
            None => "it belongs to no attempt".to_owned(),
        };
        Self { kind, id: id.to_owned(), name: name.to_owned(), reason }
    }

    /// Removes it; what is gone already is as good.
    ///
    /// # Errors
    /// The engine's.
    pub fn remove(&self, docker: &Docker) -> Result<(), Error> {
        match self.kind {
            Kind::Container => docker.remove_container(&self.id),
            Kind::Volume => docker.remove_volume(&self.id),
            Kind::Network => docker.remove_network(&self.id),
        }
        .map(|_| ())
    }
}

/// What a look at the engine finds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Attempts that are held and have their container.
    pub running: Vec<AttemptKey>,
    /// What belongs to no attempt; containers first, since they keep the others in use.
    pub orphans: Vec<Orphan>,
}

/// Looks at all that has this node's label; of volumes, whole sets of packages are nobody's and stay. The list comes before the question who is held: what an attempt makes after
/// the list is not in it, and an attempt is held before it makes anything.
///
/// # Errors
/// The engine's.
pub fn look(docker: &Docker, identity: &Identity, is_held: IsHeld<'_>, packages: &Packages) -> Result<Found, Error> {
    let filter = identity.filter();
    let mut found = Found::default();
    for container in docker.list_containers(&[&filter])? {
        let name = container.names.first().map_or(container.id.as_str(), |name| name.trim_start_matches('/'));
        match owner(identity, &container.labels, is_held) {
            Owner::Held(key) if is_task(&container.labels) => found.running.push(key),
            Owner::Nobody => found.orphans.push(Orphan::new(Kind::Container, &container.id, name, &container.labels)),
            Owner::Held(_) | Owner::Other => {}
        }
    }
    for volume in docker.list_volumes(&[&filter])? {
        if owner(identity, &volume.labels, is_held) == Owner::Nobody && !packages.has_volume(&volume.name) {
            found.orphans.push(Orphan::new(Kind::Volume, &volume.name, &volume.name, &volume.labels));
        }
    }
    for network in docker.list_networks(&[&filter])? {
        if owner(identity, &network.labels, is_held) == Owner::Nobody {
            found.orphans.push(Orphan::new(Kind::Network, &network.id, &network.name, &network.labels));
        }
    }
    Ok(found)
}

#[derive(Debug, PartialEq, Eq)]
enum Owner {
    Held(AttemptKey),
    /// It is ours, and of no use.
    Nobody,
    /// It is not ours, whatever the engine's filter says.
    Other,
}

fn owner(identity: &Identity, labels: &BTreeMap<String, String>, is_held: IsHeld<'_>) -> Owner {
    if labels.get(LABEL_KEY) != Some(&identity.key) {
        return Owner::Other;
    }
    attempt_of(labels).filter(is_held).map_or(Owner::Nobody, Owner::Held)
}

fn is_task(labels: &BTreeMap<String, String>) -> bool {
    labels.get(LABEL_ROLE).is_some_and(|role| role == "task")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::id::Id;

    #[test]
    fn only_what_has_our_label_and_no_attempt_is_nobodys() {
        let key = |task: &str| AttemptKey { task: Id::parse(task).unwrap(), attempt: 1 };
        let (ours, other) = (Identity::new("n", b"ours"), Identity::new("n", b"other"));
        let is_held = |asked: &AttemptKey| *asked == key("held");
        let owner = |labels: &BTreeMap<String, String>| owner(&ours, labels, &is_held);
        assert_eq!(owner(&ours.labels(&key("held"), "task")), Owner::Held(key("held")));
        assert_eq!(owner(&ours.labels(&key("gone"), "task")), Owner::Nobody);
        let mut of_the_node = ours.labels(&key("gone"), "probe");
        of_the_node.remove(super::super::naming::LABEL_TASK);
        assert_eq!(owner(&of_the_node), Owner::Nobody);
        assert_eq!(owner(&other.labels(&key("gone"), "task")), Owner::Other);
        assert_eq!(owner(&BTreeMap::new()), Owner::Other);
    }
}

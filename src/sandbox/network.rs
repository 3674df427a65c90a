//! The network of a task with egress: a bridge and a subnet of its own, so that tasks meet each other only where the
//! firewall's rules are, and a task's own list counts for its own bridge.

use std::collections::BTreeMap;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, select};

use super::firewall::Access;
use super::guard::{CHECK_EVERY, Denial, read_routes};
use super::naming::Identity;
use super::run::Run;
use super::step::{Break, Step, fault};
use super::subnet::{Routes, free_subnets};
use super::task::Task;
use crate::docker::{Docker, Error, Network, NetworkCreate};
use crate::node::net::Net;
use crate::node::order::TaskNews;
use crate::node::record::Outcome;
use crate::node::spec::{self, TaskSpec};

/// Subnets that are tried where the engine says that it has them in use: more networks than a node has tasks.
const MAX_SUBNETS: usize = 128;
/// Before an engine that is away is asked again.
const AWAY_PAUSE: Duration = Duration::from_secs(1);
/// The guard may be trying the network for another task.
const CLOSE_PATIENCE: Duration = Duration::from_secs(180);
/// Option of a network: what its interface is called.
const BRIDGE_NAME: &str = "com.docker.network.bridge.name";
/// Linux has 15 bytes for an interface's name.
const MAX_INTERFACE: usize = 14;

/// What the guard needs to know of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its bridge.
    pub bridge: String,
    /// Its container.
    pub container: String,
    /// Where it may go.
    pub access: Access,
}

impl Member {
    /// Of this task.
    pub fn of(spec: &TaskSpec, identity: &Identity) -> Self {
        Self::named(&identity.name(&spec.key), Access::of(&spec.network_allow))
    }

    /// Of the container of this name.
    pub fn named(container: &str, access: Access) -> Self {
        Self { bridge: bridge_of(container), container: container.to_owned(), access }
    }
}

/// Of what installs a task's packages.
const PREPARE: &str = "-prepare";

/// Name of the container and network that prepare the container of this name.
pub fn prepare_name(container: &str) -> String {
    format!("{container}{PREPARE}")
}

/// The interface of the network of this name: its hash, as far as there is room.
fn bridge_of(name: &str) -> String {
    let (kind, name) = name.strip_suffix(PREPARE).map_or(("hm", name), |name| ("hi", name));
    let hash = name.rsplit('-').next().unwrap_or(name);
    format!("{kind}{hash}").chars().take(MAX_INTERFACE).collect()
}

/// Why there is no network.
#[derive(Debug)]
pub enum Failure {
    /// The engine's words.
    Engine(Error),
    /// Everything in the pool is taken.
    NoSubnet(String),
}

/// Makes a network with a subnet that overlaps with nothing on this machine.
///
/// # Errors
/// The engine does not make it, or no subnet is free.
pub fn make_network(
    docker: &Docker,
    name: &str,
    bridge: &str,
    labels: BTreeMap<String, String>,
    routes: &Routes,
) -> Result<Net, Failure> {
    // Any number will do that is another for each task.
    let start = bridge.bytes().fold(0usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(byte)));
    for subnet in free_subnets(routes, start).take(MAX_SUBNETS) {
        let mut network = NetworkCreate::bridge(name, &subnet.to_string());
        network.labels.clone_from(&labels);
        network.options = [
            (BRIDGE_NAME, bridge),
            // The task is alone on its bridge; whoever is put there by hand is not to meet it.
            ("com.docker.network.bridge.enable_icc", "false"),
        ]
        .map(|(option, value)| (option.to_owned(), value.to_owned()))
        .into();
        match docker.create_network(&network) {
            Ok(_) => return Ok(subnet),
            // Of a network that has no route yet or no more, or that another task made just now.
            Err(error) if is_overlap(&error) => {}
            Err(error) => return Err(Failure::Engine(error)),
        }
    }
    let words = "no subnet is free for a task's network: routes of this machine take 10.231.224.0/21, 172.31.248.0/21 and \
                 192.168.248.0/21";
    Err(Failure::NoSubnet(words.to_owned()))
}

fn is_overlap(error: &Error) -> bool {
    matches!(error, Error::Refused { message, .. } if message.to_lowercase().contains("overlap"))
}

impl Task {
    /// Rules first, then the network: there is no moment at which it is there without them.
    pub fn open_network(&self) -> Step<()> {
        if self.spec.network == spec::Network::None {
            return Ok(());
        }
        self.open_network_of(Member::of(&self.spec, &self.context.identity), &self.name)?;
        if self.spec.network_allow.iter().any(|entry| !entry.net.is_v4()) {
            let note = "network_allow has IPv6 destinations, which tasks on this node don't reach: they have IPv4 only";
            self.tell(TaskNews::Note(note.to_owned()));
        }
        Ok(())
    }

    /// The same for any container of the attempt.
    pub fn open_network_of(&self, member: Member, name: &str) -> Step<()> {
        self.tell(TaskNews::Detail("has the rules of its network tried".to_owned()));
        while let Err(denial) = self.ask_guard(&member)? {
            match denial {
                Denial::Owner(reason) => return Err(Break::End(Outcome::Rejected, reason)),
                Denial::Node(reason) => {
                    // It is so for each further task, too, until the owner mends it.
                    self.tell(TaskNews::Alert(format!("no egress on this node: {reason}")));
                    return Err(Break::End(Outcome::NodeFault, reason));
                }
                Denial::Away(problem) => {
                    self.tell(TaskNews::Detail(format!("waits for the engine: {problem}")));
                    self.wait(AWAY_PAUSE)?;
                }
            }
        }
        self.network(name)
    }

    fn ask_guard(&self, member: &Member) -> Step<Result<(), Denial>> {
        let answer = self.context.egress.open(member.clone());
        loop {
            select! {
                recv(answer) -> answer => {
                    return answer.map_err(|_| Break::End(Outcome::NodeFault, "nobody guards the network".to_owned()));
                }
                // What the guard makes of it then is undone when the task is cleaned up.
                recv(self.wake) -> _ => if let Some(interruption) = self.interruption() {
                    return Err(interruption);
                }
            }
        }
    }

    fn network(&self, name: &str) -> Step<()> {
        let (name, identity) = (name.to_owned(), self.context.identity.clone());
        let labels = identity.labels(&self.spec.key, "task");
        let bridge = bridge_of(&name);
        let made = self.engine_whole(move |docker| {
            let ours = docker.list_networks(&[&identity.filter()])?;
            // Of an earlier try, whose container may be there already.
            let is_it = |network: &Network| network.options.get(BRIDGE_NAME).is_some_and(|name| *name == bridge);
            match ours.iter().find(|network| network.name == name) {
                Some(network) if is_it(network) => return Ok(Ok(())),
                Some(other) => drop(docker.remove_network(&other.id)?),
                None => {}
            }
            let routes = match read_routes() {
                Ok(routes) => routes,
                Err(problem) => return Ok(Err(problem)),
            };
            match make_network(docker, &name, &bridge, labels.clone(), &routes) {
                Ok(_) => Ok(Ok(())),
                Err(Failure::Engine(error)) => Err(error),
                Err(Failure::NoSubnet(problem)) => Ok(Err(problem)),
            }
        })?;
        match made {
            Ok(Ok(())) => Ok(()),
            Ok(Err(problem)) => Err(Break::End(Outcome::NodeFault, problem)),
            Err(error @ Error::Refused { .. }) => Err(Break::End(Outcome::NodeFault, error.to_string())),
            Err(error) => Err(fault(&error)),
        }
    }

    /// Rules that can't be kept end the task, which the guard has frozen already.
    pub fn look_at_network(&mut self, run: &mut Run, now: Duration) {
        if self.spec.network == spec::Network::None {
            return;
        }
        let state = self.context.egress.state();
        if let Some(reason) = state.troubles.get(&bridge_of(&self.name)) {
            let _ = self.context.quick_docker.pause_container(&self.name);
            run.paused_at.get_or_insert(now);
            self.begin_stop(run, Outcome::NodeFault, reason, Duration::ZERO);
            return;
        }
        if run.seen_repairs.is_some_and(|seen| seen < state.repairs) {
            self.tell(TaskNews::Alert(format!(
                "the rules that guard its network were changed from outside the worker and are written again: for up to \
                 {} s it could reach more than it may",
                CHECK_EVERY.as_secs()
            )));
        }
        run.seen_repairs = Some(state.repairs);
    }

    /// The bridge is gone: its rules may go.
    pub fn close_network_of(&self, name: &str) -> Result<(), String> {
        match self.context.egress.close(&bridge_of(name)).recv_timeout(CLOSE_PATIENCE) {
            Ok(result) => result.map_err(|problem| format!("the firewall's rules: {problem}")),
            Err(RecvTimeoutError::Timeout) => Err("the firewall's rules: the guard is busy".to_owned()),
            // The worker is about to end, and its next start looks.
            Err(RecvTimeoutError::Disconnected) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::id::{AttemptKey, Id};

    #[test]
    fn a_bridge_has_a_name_of_its_own_that_an_interface_can_have() {
        let name = |key: &[u8], attempt| {
            bridge_of(&Identity::new("n", key).name(&AttemptKey { task: Id::parse("t").unwrap(), attempt }))
        };
        let names = [name(b"a", 1), name(b"a", 2), name(b"b", 1)];
        assert!(
            names.iter().all(|name| name.len() == 14 && name.bytes().all(|b| b.is_ascii_alphanumeric())),
            "{names:?}"
        );
        assert!(names[0] != names[1] && names[0] != names[2], "{names:?}");
    }
}

//! Keeps the firewall's rules for tasks with egress: written before a task's network exists, looked at before each start and
//! every two seconds while one is there, gone with the last one.
//!
//! One thread, `egress`, owns the rules; tasks ask it through [`Egress`]. It is released by [`EgressGuard::release`].
//!
//! Rules that somebody removed, as a restart of the machine's firewall does, are written again at the next look; until then,
//! [`CHECK_EVERY`] at the longest, a task reaches more than it may. Where they can't be written again, the containers of
//! these tasks are frozen at once, and their threads end them. While the worker does not run, nobody looks: a container
//! that it left running keeps the rules that are there.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, after, bounded, never, select};
use log::{debug, error, info, warn};
use serde_json::Value;

use super::firewall::{self, Access, Rules, table_name};
use super::naming::Identity;
use super::network::Member;
use super::nft::{self, Nft};
use super::probe::{Probe, Unusable};
use super::subnet::Routes;
use crate::docker::{Docker, EngineFacts, Stop};
use crate::node::net::{Net, NetworkPolicy};
use crate::node::spec::{Network, TaskSpec};
use crate::sys::watch::Watch;

/// Between two looks at the rules while a task relies on them.
pub const CHECK_EVERY: Duration = Duration::from_secs(2);
/// Tries to write the rules before they count as not to be kept.
const WRITES: u32 = 3;
/// Tasks that ask at the same time; more wait to ask.
const MAX_ORDERS: usize = 64;
const NO_NFT: &str = "nft is not installed: egress needs it (the package nftables)";
/// A listing with all lists of all tasks, and the engine's answers.
const STACK_BYTES: usize = 1 << 20;

/// What the guard needs to know of the node.
#[derive(Clone, Debug)]
pub struct EgressSettings {
    /// The owner's word.
    pub policy: NetworkPolicy,
    /// Name servers of tasks.
    pub dns: Vec<Ipv4Addr>,
    /// Networks of the tunnel to the master, which are closed wherever the kernel's routes lead.
    pub tunnel: Vec<Net>,
    /// The program nft; `None`: not installed.
    pub nft: Option<PathBuf>,
}

impl EgressSettings {
    /// With the nft of this machine.
    pub fn new(policy: NetworkPolicy, dns: Vec<Ipv4Addr>) -> Self {
        Self { policy, dns, tunnel: Vec::new(), nft: nft::find() }
    }
}

/// Why a task gets no network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denial {
    /// The owner does not allow it.
    Owner(String),
    /// This machine can't do it.
    Node(String),
    /// The engine is away: the same may go through later.
    Away(String),
}

/// What tasks that run have to know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EgressState {
    /// How often rules were missing and have been written again.
    pub repairs: u64,
    /// By bridge: why its rules don't hold, so that its task must end.
    pub troubles: BTreeMap<String, String>,
}

enum Order {
    Open(Member, Sender<Result<(), Denial>>),
    Close(String, Sender<Result<(), String>>),
    EngineIsNew,
    End,
}

/// How a task asks the guard.
#[derive(Clone)]
pub struct Egress {
    inbox: Sender<Order>,
    state: Watch<EgressState>,
    /// Name servers of tasks.
    pub dns: Arc<[Ipv4Addr]>,
}

impl Egress {
    /// Rules for this task's bridge, and that they hold. The answer comes when that is known: the first time in an engine's
    /// life takes seconds.
    pub fn open(&self, member: Member) -> Receiver<Result<(), Denial>> {
        let (reply, answer) = bounded(1);
        // A guard that has ended drops the reply, which the asker sees.
        let _ = self.inbox.send(Order::Open(member, reply));
        answer
    }

    /// The bridge is gone, and its rules may go.
    pub fn close(&self, bridge: &str) -> Receiver<Result<(), String>> {
        let (reply, answer) = bounded(1);
        let _ = self.inbox.send(Order::Close(bridge.to_owned(), reply));
        answer
    }

    /// The engine was started anew, or another one is there: what was tried is to be tried again.
    pub fn engine_is_new(&self) {
        let _ = self.inbox.send(Order::EngineIsNew);
    }

    /// How it stands.
    pub fn state(&self) -> Arc<EgressState> {
        self.state.latest()
    }
}

/// The running guard.
pub struct EgressGuard {
    egress: Egress,
    stop: Stop,
    thread: JoinHandle<()>,
}

impl EgressGuard {
    /// Starts the thread. Rules for what `held` has at the engine from an earlier life stay or are written first of all. Of
    /// the two ways to the engine the second one has short deadlines.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub fn start(
        (docker, quick_docker): (&Docker, &Docker),
        identity: Identity,
        settings: EgressSettings,
        held: &[TaskSpec],
    ) -> io::Result<Self> {
        let stop = Stop::new();
        let (inbox, orders) = bounded(MAX_ORDERS);
        let state = Watch::new(EgressState::default());
        let egress = Egress { inbox, state: state.clone(), dns: settings.dns.clone().into() };
        let held = held.iter().filter(|spec| spec.network == Network::Egress);
        let held = held.map(|spec| Member::of(spec, &identity)).collect();
        let guard = Guard {
            rules: Rules {
                table: table_name(&identity.key),
                dns: settings.dns,
                policy: settings.policy,
                ..Rules::default()
            },
            tunnel: settings.tunnel,
            nft: settings.nft.map(Nft),
            docker: docker.with_stop(&stop),
            quick_docker: quick_docker.with_stop(&stop),
            identity,
            containers: BTreeMap::new(),
            left_over: Vec::new(),
            written: None,
            has_passed_probe: false,
            state,
        };
        let thread = thread::Builder::new()
            .name("egress".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || guard.run(&orders, held))?;
        Ok(Self { egress, stop, thread })
    }

    /// For tasks.
    pub fn egress(&self) -> Egress {
        self.egress.clone()
    }

    /// Ends the thread and waits for it. The rules of tasks that are left running stay.
    pub fn release(self) {
        self.stop.stop();
        let _ = self.egress.inbox.send(Order::End);
        if self.thread.join().is_err() {
            warn!("the guard of the tasks' networks ended by a panic");
        }
    }
}

struct Guard {
    /// As they are to be.
    rules: Rules,
    tunnel: Vec<Net>,
    nft: Option<Nft>,
    docker: Docker,
    quick_docker: Docker,
    identity: Identity,
    /// By bridge.
    containers: BTreeMap<String, String>,
    /// Bridges that an earlier life's table has and nobody holds: closed until they are gone.
    left_over: Vec<String>,
    /// The rules as they were written last, and how the kernel listed them then.
    written: Option<(Rules, Vec<Value>)>,
    has_passed_probe: bool,
    state: Watch<EgressState>,
}

impl Guard {
    fn run(mut self, orders: &Receiver<Order>, held: Vec<Member>) {
        self.begin(held);
        loop {
            let tick = if self.rules.bridges.is_empty() { never() } else { after(CHECK_EVERY) };
            select! {
                recv(orders) -> order => match order {
                    // An asker who has gone does not wait for the answer.
                    Ok(Order::Open(member, reply)) => { let _ = reply.send(self.open(member)); }
                    Ok(Order::Close(bridge, reply)) => { let _ = reply.send(self.close(&bridge)); }
                    Ok(Order::EngineIsNew) => self.engine_is_new(),
                    Ok(Order::End) | Err(_) => return self.end(),
                },
                recv(tick) -> _ => self.look(),
            }
        }
    }

    /// Takes over what an earlier life of the worker has left.
    fn begin(&mut self, held: Vec<Member>) {
        let is_allowed = self.rules.policy.is_egress_allowed;
        let listing = self.nft.as_ref().and_then(|nft| nft.list(&self.rules.table).ok().flatten());
        let had_table = listing.is_some();
        for bridge in firewall::bridges(&listing.unwrap_or_default()) {
            if is_there(&bridge) && !held.iter().any(|member| member.bridge == bridge) {
                self.rules.bridges.insert(bridge.clone(), Access::Only(Vec::new()));
                self.left_over.push(bridge);
            }
        }
        for member in held {
            self.containers.insert(member.bridge.clone(), member.container);
            // A word that the owner took back: the task's thread ends it.
            self.rules.bridges.insert(member.bridge, if is_allowed { member.access } else { Access::Only(Vec::new()) });
        }
        if !self.containers.is_empty() && !is_allowed {
            self.trouble("the owner does not allow egress any more: HIVEMIND_TASK_NETWORK");
        }
        if had_table || !self.rules.bridges.is_empty() {
            self.look();
        }
    }

    fn open(&mut self, member: Member) -> Result<(), Denial> {
        if !self.rules.policy.is_egress_allowed {
            let word = "the owner of this node does not allow egress: HIVEMIND_TASK_NETWORK=egress would";
            return Err(Denial::Owner(word.to_owned()));
        }
        let facts = self.docker.facts().map_err(|error| {
            let problem = error.to_string();
            if error.is_away() { Denial::Away(problem) } else { Denial::Node(problem) }
        })?;
        can_guard(&facts).map_err(Denial::Node)?;
        let before = self.rules.bridges.get(&member.bridge).cloned();
        self.rules.bridges.insert(member.bridge.clone(), member.access);
        self.containers.insert(member.bridge.clone(), member.container);
        let result = self.ensure().map_err(Denial::Node).and_then(|()| self.probe());
        if result.is_err() && before.is_none() {
            // A bridge that is not there needs no rules. What is wrong with them is said already.
            let _ = self.close(&member.bridge);
        }
        result
    }

    fn close(&mut self, bridge: &str) -> Result<(), String> {
        self.containers.remove(bridge);
        let mut state = (*self.state.latest()).clone();
        if state.troubles.remove(bridge).is_some() {
            self.state.set(state);
        }
        if self.rules.bridges.remove(bridge).is_none() {
            return Ok(());
        }
        self.ensure()
    }

    fn engine_is_new(&mut self) {
        self.has_passed_probe = false;
        // The engine's events begin behind the sweep, so that a bridge that nobody holds is gone by now.
        let (there, gone): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.left_over).into_iter().partition(|name| is_there(name));
        self.left_over = there;
        for bridge in &gone {
            self.rules.bridges.remove(bridge);
        }
        if !(gone.is_empty() && self.rules.bridges.is_empty()) {
            self.look();
        }
    }

    fn end(mut self) {
        if !self.rules.bridges.is_empty() {
            return info!("left the firewall's rules for {} networks of tasks", self.rules.bridges.len());
        }
        if self.written.is_some()
            && let Err(problem) = self.ensure()
        {
            warn!("can't remove the table {}: {problem}", self.rules.table);
        }
    }

    /// A look between the tasks' orders: what can't be mended freezes them.
    fn look(&mut self) {
        for left in (0..WRITES).rev() {
            match self.ensure() {
                Ok(()) => return,
                // Somebody may change them again at the very moment at which they are written.
                Err(problem) if left > 0 => {
                    warn!(
                        "the firewall's table {} was changed or removed by somebody else: {problem}",
                        self.rules.table
                    );
                }
                Err(problem) => self.give_up(&problem),
            }
        }
    }

    fn give_up(&self, problem: &str) {
        error!("the firewall's rules for tasks don't hold, so these are ended: {problem}");
        self.trouble(&format!("the rules that guard its network can't be kept: {problem}"));
        for container in self.containers.values() {
            // One that does not run needs no freezing, and its thread sees the trouble before it starts it.
            let _ = self.quick_docker.pause_container(container);
        }
    }

    /// All that have a container are told to end.
    fn trouble(&self, why: &str) {
        let mut state = (*self.state.latest()).clone();
        for bridge in self.containers.keys() {
            state.troubles.entry(bridge.clone()).or_insert_with(|| why.to_owned());
        }
        self.state.set(state);
    }

    /// Makes what the kernel has what it should have.
    fn ensure(&mut self) -> Result<(), String> {
        let nft = self.nft.clone().ok_or(NO_NFT)?;
        if self.rules.bridges.is_empty() {
            nft.remove(&self.rules.table)?;
            self.written = None;
            return Ok(());
        }
        let routes = read_routes()?;
        self.rules.connected = routes.connected.into_iter().chain(self.tunnel.iter().copied()).collect();
        if let Some((rules, fingerprint)) = &self.written {
            // Looked at also where other rules are due: what somebody did in the meantime must not be covered up by them.
            let listing = nft.list(&self.rules.table)?;
            let is_intact = listing.and_then(|text| firewall::fingerprint(&text).ok()).as_ref() == Some(fingerprint);
            if is_intact && *rules == self.rules {
                return Ok(());
            }
            if !is_intact {
                warn!(
                    "the firewall's table {} was changed or removed by somebody else: written again",
                    self.rules.table
                );
                self.has_passed_probe = false;
                let mut state = (*self.state.latest()).clone();
                state.repairs += 1;
                self.state.set(state);
            }
        }
        self.written = None;
        nft.apply(self.rules.text())?;
        let listing = nft.list(&self.rules.table)?.ok_or("the table is gone as soon as it is written")?;
        self.rules.check(&listing)?;
        self.written = Some((self.rules.clone(), firewall::fingerprint(&listing)?));
        debug!("the firewall has the table {} as it is to be", self.rules.table);
        Ok(())
    }

    /// The first use in a life of the engine is tried by a container of our own.
    fn probe(&mut self) -> Result<(), Denial> {
        if self.has_passed_probe {
            return Ok(());
        }
        let probe = Probe::new(&self.identity);
        let mut result = self.probe_once(&probe);
        if matches!(result, Err(Unusable::Disturbed(_))) {
            // Such as by the sweep, which takes it for a left-over.
            result = self.probe_once(&probe);
        }
        self.rules.bridges.remove(&probe.bridge);
        self.ensure().map_err(Denial::Node)?;
        result.map_err(|unusable| match unusable {
            Unusable::Away(problem) => Denial::Away(problem),
            unusable => Denial::Node(unusable.words()),
        })?;
        info!("the tasks' network was tried: a container reaches neither this machine nor the metadata address");
        self.has_passed_probe = true;
        Ok(())
    }

    fn probe_once(&mut self, probe: &Probe) -> Result<(), Unusable> {
        self.rules.bridges.insert(probe.bridge.clone(), Access::Public);
        // Anew, so that the counters begin at zero.
        self.written = None;
        self.ensure().map_err(Unusable::Rules)?;
        let routes = read_routes().map_err(Unusable::Rules)?;
        let nft = self.nft.clone();
        let table = &self.rules.table;
        let dropped = || {
            let listing = nft.as_ref().map_or(Ok(None), |nft| nft.list(table));
            listing.map(|listing| firewall::dropped(&listing.unwrap_or_default()))
        };
        probe.run(&self.docker, &routes, &dropped)
    }
}

/// Whether tasks could have egress here, as far as can be told without trying it: for `doctor`, which changes nothing.
///
/// # Errors
/// What is in the way.
pub fn could_guard(facts: &EngineFacts) -> Result<(), String> {
    can_guard(facts)?;
    let nft = nft::find().map(Nft).ok_or(NO_NFT)?;
    // Of a table that nobody has: who may not ask for it may not write one either.
    nft.list("hivemind_doctor")?;
    read_routes().map(drop)
}

/// Whether an engine's bridges are this machine's, so that its firewall guards them.
fn can_guard(facts: &EngineFacts) -> Result<(), String> {
    let refuse = |why: &str| Err(format!("no egress with this engine: {why}"));
    if facts.rootless {
        return refuse("it runs without root, so that its networks are not behind this machine's firewall");
    }
    if facts.podman {
        return refuse("the rules are not known to hold for networks that Podman makes");
    }
    if facts.operating_system.contains("Docker Desktop") {
        return refuse("it runs in a virtual machine, whose firewall is not this machine's");
    }
    Ok(())
}

/// Whether this machine has an interface of that name; also where that can't be told.
pub fn is_there(interface: &str) -> bool {
    // Not /sys/class/net, which may show another network name space than the worker's own.
    let names =
        |text: String| text.lines().any(|line| line.split(':').next().is_some_and(|name| name.trim() == interface));
    fs::read_to_string("/proc/net/dev").map_or(true, names)
}

/// The kernel's routes, of all tables.
pub fn read_routes() -> Result<Routes, String> {
    let path = "/proc/net/fib_trie";
    let text = fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
    let routes = Routes::parse(&text);
    // It has 127.0.0.1 at the very least, where it can be read at all.
    if routes.own.is_empty() { Err(format!("{path} has no address of this machine")) } else { Ok(routes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_whose_bridges_are_elsewhere_are_refused_with_the_reason() {
        let good =
            EngineFacts { operating_system: "Debian GNU/Linux 12 (bookworm)".to_owned(), ..EngineFacts::default() };
        assert_eq!(can_guard(&good), Ok(()));
        for (facts, word) in [
            (EngineFacts { rootless: true, ..good.clone() }, "without root"),
            (EngineFacts { podman: true, ..good.clone() }, "Podman"),
            (EngineFacts { operating_system: "Docker Desktop".to_owned(), ..good }, "virtual machine"),
        ] {
            assert!(can_guard(&facts).unwrap_err().contains(word));
        }
    }
}

//! Tries the network of tasks with a container of our own before the first task gets one: whether it reaches this machine.
//!
//! It connects to listeners of the worker's own at this machine's addresses, the bridge's among them, and to the metadata
//! address of clouds. Nothing of that leaves the machine where the rules hold, and they were read back before. That nothing
//! was reached proves little alone: the rules' counters must have seen each try.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

use super::body::probe_body;
use super::guard::is_there;
use super::naming::Identity;
use super::network::{Failure, make_network};
use super::subnet::{Routes, gateway};
use crate::docker::{Docker, Error, LogOptions, WaitCondition};
use crate::node::net::Net;
use crate::node::spec::BASE_IMAGE;

/// Addresses of this machine that are tried: more is a router, where the first ones tell as much.
const MAX_ADDRESSES: usize = 16;
/// Clouds answer there with the machine's own credentials.
const METADATA: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)), 80);
/// The program waits 1.5 s for answers; the rest is the engine's, on a small board under load.
const PATIENCE: Duration = Duration::from_secs(60);
/// Of what the program says so much is repeated.
const MAX_SAID: usize = 500;

/// Connects to each `ADDRESS:PORT` of its arguments at the same time. Ends with 0 when nobody has answered: a refusal is an
/// answer, too.
pub const PROGRAM: &str = "\
import errno, select, socket, sys, time
waiting, reached = {}, []
for word in sys.argv[1:]:
    address, port = word.rsplit(':', 1)
    one = socket.socket()
    one.setblocking(False)
    code = one.connect_ex((address, int(port)))
    if code == errno.EINPROGRESS:
        waiting[one] = word
    elif code in (0, errno.ECONNREFUSED):
        reached.append(word)
end = time.monotonic() + 1.5
while waiting and time.monotonic() < end:
    for one in select.select([], waiting, [], end - time.monotonic())[1]:
        word = waiting.pop(one)
        if one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) in (0, errno.ECONNREFUSED):
            reached.append(word)
print(*reached)
sys.exit(3 if reached else 0)
";

/// The names of a node's probe.
pub struct Probe {
    identity: Identity,
    name: String,
    /// The interface of its network.
    pub bridge: String,
}

/// Why tasks get no network.
#[derive(Debug)]
pub enum Unusable {
    /// The rules can't be written.
    Rules(String),
    /// The probe itself could not be made or was taken away.
    Disturbed(String),
    /// The engine is away.
    Away(String),
    /// It found what must not be.
    Open(String),
}

impl Unusable {
    /// For the report of the task that needed the network.
    pub fn words(self) -> String {
        match self {
            Self::Rules(problem) | Self::Away(problem) => problem,
            Self::Disturbed(problem) => format!("the tasks' network could not be tried: {problem}"),
            Self::Open(problem) => format!("the tasks' network is not as it must be: {problem}"),
        }
    }
}

impl Probe {
    /// One probe a node.
    pub fn new(identity: &Identity) -> Self {
        let key = identity.key.get(..11).unwrap_or(&identity.key);
        Self {
            identity: identity.clone(),
            name: format!("hivemind-probe-{}", identity.key),
            bridge: format!("hmp{key}"),
        }
    }

    /// Tries it, and takes everything away again. `dropped` counts the packets that the rules have dropped.
    pub fn run(
        &self,
        docker: &Docker,
        routes: &Routes,
        dropped: &dyn Fn() -> Result<u64, String>,
    ) -> Result<(), Unusable> {
        self.remove(docker).map_err(disturbed)?;
        let result = self.try_network(docker, routes, dropped);
        let removed = self.remove(docker).map_err(disturbed);
        result.and(removed)
    }

    fn remove(&self, docker: &Docker) -> Result<(), Error> {
        docker.remove_container(&self.name)?;
        docker.remove_network(&self.name).map(drop)
    }

    fn try_network(
        &self,
        docker: &Docker,
        routes: &Routes,
        dropped: &dyn Fn() -> Result<u64, String>,
    ) -> Result<(), Unusable> {
        let image = docker.inspect_image(BASE_IMAGE).map_err(|error| {
            Unusable::Disturbed(format!("{error}; scripts/build-image.sh makes the base image on this machine"))
        })?;
        let labels = self.identity.node_labels("probe");
        let subnet =
            make_network(docker, &self.name, &self.bridge, labels.clone(), routes).map_err(
                |failure| match failure {
                    Failure::Engine(error) => disturbed(error),
                    Failure::NoSubnet(problem) => Unusable::Rules(problem),
                },
            )?;
        if !is_there(&self.bridge) {
            let problem = "the engine's networks are not on this machine, so that its firewall can't guard them";
            return Err(Unusable::Open(problem.to_owned()));
        }
        let listeners = listen(&subnet, routes).map_err(|error| Unusable::Disturbed(error.to_string()))?;
        let mut targets: Vec<SocketAddr> = listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect();
        targets.push(METADATA);
        let words: Vec<String> = targets.iter().map(SocketAddr::to_string).collect();
        let body = probe_body(&image.id, &self.name, labels, words);
        docker.create_container(&self.name, &body).map_err(disturbed)?;
        docker.start_container(&self.name).map_err(disturbed)?;
        let ended = docker.wait_container(&self.name, WaitCondition::NotRunning, Some(PATIENCE)).map_err(disturbed)?;
        let said = self.said(docker).map_err(disturbed)?;
        match ended.code {
            0 => {}
            3 => return Err(Unusable::Open(format!("a container reaches {said}"))),
            code => return Err(Unusable::Disturbed(format!("the probe ended with {code}: {said}"))),
        }
        if let Some(heard) = listeners.iter().find(|listener| has_heard(listener, &subnet)) {
            return Err(Unusable::Open(format!("a container reaches {:?}", heard.local_addr())));
        }
        let seen = dropped().map_err(Unusable::Rules)?;
        if seen < targets.len() as u64 {
            let problem = format!("the rules have seen {seen} of the probe's {} packets", targets.len());
            return Err(Unusable::Open(problem));
        }
        Ok(())
    }

    fn said(&self, docker: &Docker) -> Result<String, Error> {
        let options = LogOptions { stdout: true, stderr: true, ..LogOptions::default() };
        let mut output = docker.logs(&self.name, &options, PATIENCE)?;
        let mut said = Vec::new();
        while let Some((_, bytes)) = output.next_piece()? {
            said.extend(bytes.iter().take(MAX_SAID - said.len().min(MAX_SAID)));
        }
        Ok(String::from_utf8_lossy(&said).split_whitespace().collect::<Vec<_>>().join(" "))
    }
}

fn disturbed(error: Error) -> Unusable {
    if error.is_away() { Unusable::Away(error.to_string()) } else { Unusable::Disturbed(error.to_string()) }
}

/// At the bridge's own address, which must be there, and at the machine's others.
fn listen(subnet: &Net, routes: &Routes) -> io::Result<Vec<TcpListener>> {
    let gateway = gateway(subnet).ok_or_else(|| io::Error::other("no IPv4 subnet"))?;
    let others = routes.own.iter().filter(|address| !address.is_loopback() && **address != gateway);
    let mut listeners = vec![TcpListener::bind((gateway, 0))?];
    // An address may have gone since the routes were read.
    listeners.extend(others.take(MAX_ADDRESSES).filter_map(|address| TcpListener::bind((*address, 0)).ok()));
    listeners.iter().try_for_each(|listener| listener.set_nonblocking(true))?;
    Ok(listeners)
}

/// Whether somebody of the subnet has connected; others may have found the port, too.
fn has_heard(listener: &TcpListener, subnet: &Net) -> bool {
    let mut peers = std::iter::from_fn(|| listener.accept().ok()).map(|(_, peer)| Net::host(peer.ip()));
    peers.any(|peer| subnet.contains(&peer))
}

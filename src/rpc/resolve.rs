//! Addresses of a name. The system's resolver blocks, so a thread of its own asks it; the thread ends by itself when the
//! resolver does, and its answer is dropped if nobody waits any more.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};

use super::poll::Interest;
use super::wake::Wake;

/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 8;
/// The resolver of glibc needs about 100 KiB.
const RESOLVER_STACK: usize = 256 * 1024;

/// A name that is being resolved.
#[derive(Debug)]
pub(super) struct Resolve {
    host: String,
    state: State,
}

#[derive(Debug)]
enum State {
    /// With what is woken by the answer.
    Asking(Receiver<io::Result<Vec<SocketAddr>>>, Wake),
    Known(SocketAddr),
    Failed(io::Error),
}

impl Resolve {
    /// Begins. An address needs no answer.
    pub(super) fn new(host: &str, port: u16) -> Resolve {
        let state = match host.parse::<IpAddr>() {
            Ok(address) => State::Known(SocketAddr::new(address, port)),
            Err(_) => ask(host.to_owned(), port).unwrap_or_else(State::Failed),
        };
        Resolve { host: host.to_owned(), state }
    }

    /// What to wait for.
    pub(super) fn interest(&self) -> Option<Interest<'_>> {
        match &self.state {
            State::Asking(_, wake) => Some(Interest::read(wake.as_fd())),
            State::Known(_) | State::Failed(_) => None,
        }
    }

    /// The addresses in the system's order, at least one; nothing while they are not known.
    pub(super) fn poll(&mut self) -> Option<Result<Vec<SocketAddr>, String>> {
        let found = match &self.state {
            State::Known(address) => return Some(Ok(vec![*address])),
            State::Failed(error) => {
                return Some(Err(format!("failed to begin to resolve {}: {error}", self.host)));
            }
            State::Asking(receiver, _) => receiver.try_recv(),
        };
        match found {
            Ok(Ok(found)) if found.is_empty() => Some(Err(format!("{} has no address", self.host))),
            Ok(Ok(found)) => Some(Ok(found)),
            Ok(Err(error)) => Some(Err(format!("failed to resolve {}: {error}", self.host))),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(Err(format!("failed to resolve {}", self.host))),
        }
    }
}

fn ask(host: String, port: u16) -> io::Result<State> {
    let wake = Wake::new()?;
    let waker = wake.waker();
    let (sender, receiver) = sync_channel(1);
    let resolve = move || {
        let found = (host, port).to_socket_addrs().map(|found| found.take(MAX_ADDRESSES).collect());
        if sender.send(found).is_ok() {
            waker.wake();
        }
    };
    std::thread::Builder::new().name("resolve".into()).stack_size(RESOLVER_STACK).spawn(resolve)?;
    Ok(State::Asking(receiver, wake))
}

//! Addresses of a name. The system's resolver blocks, so a thread of its own asks it; the thread ends by itself when the
//! resolver does, and its answer is dropped if nobody waits any more.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};

use super::wake::Waker;

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
    Asking(Receiver<io::Result<Vec<SocketAddr>>>),
    Known(SocketAddr),
    Failed(io::Error),
}

impl Resolve {
    /// Begins. `waker` is woken when there is an answer; an address needs none.
    pub(super) fn new(host: &str, port: u16, waker: Waker) -> Resolve {
        let state = match host.parse::<IpAddr>() {
            Ok(address) => State::Known(SocketAddr::new(address, port)),
            Err(_) => ask(host.to_owned(), port, waker),
        };
        Resolve { host: host.to_owned(), state }
    }

    /// The addresses in the system's order, at least one; nothing while they are not known.
    pub(super) fn poll(&mut self) -> Option<Result<Vec<SocketAddr>, String>> {
        let found = match &self.state {
            State::Known(address) => return Some(Ok(vec![*address])),
            State::Failed(error) => {
                return Some(Err(format!("failed to start a thread that resolves {}: {error}", self.host)));
            }
            State::Asking(receiver) => receiver.try_recv(),
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

fn ask(host: String, port: u16, waker: Waker) -> State {
    let (sender, receiver) = sync_channel(1);
    let resolve = move || {
        let found = (host, port).to_socket_addrs().map(|found| found.take(MAX_ADDRESSES).collect());
        if sender.send(found).is_ok() {
            waker.wake();
        }
    };
    match std::thread::Builder::new().name("resolve".into()).stack_size(RESOLVER_STACK).spawn(resolve) {
        Ok(_) => State::Asking(receiver),
        Err(error) => State::Failed(error),
    }
}

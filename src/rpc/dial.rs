//! From a URL to a connected socket: parsing, name resolution, addresses tried in turn.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, ipproto, socket_with, sockopt};

use super::wake::Waker;

/// How long it may take to be connected, over all addresses.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// The least time that an address gets: two lost SYN packets.
const LEAST_BUDGET: Duration = Duration::from_secs(4);
/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 8;
/// Unacknowledged data ends the connection after this long (gRFC A18). The kernel finds a dead path while data is under
/// way; PINGs find it while we only wait.
const USER_TIMEOUT: Duration = Duration::from_secs(30);
/// The resolver of glibc needs about 100 KiB.
const RESOLVER_STACK: usize = 256 * 1024;

/// With or without TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// `http`: plain.
    Http,
    /// `https`: TLS.
    Https,
}

impl Scheme {
    /// As in a URL.
    pub fn as_str(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
        }
    }

    fn default_port(self) -> u16 {
        match self {
            Scheme::Http => 80,
            Scheme::Https => 443,
        }
    }
}

/// Where a lane goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// With or without TLS.
    pub scheme: Scheme,
    /// A name in lower case, or an address without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

/// A URL that is no target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetError {
    /// As it was given.
    pub url: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl fmt::Display for TargetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not a URL like https://host[:port]: {}", self.url, self.reason)
    }
}

impl std::error::Error for TargetError {}

impl Target {
    /// Parses `http(s)://host[:port]`, with nothing after it but `/`.
    pub fn parse(url: &str) -> Result<Target, TargetError> {
        parse_url(url).map_err(|reason| TargetError { url: url.to_owned(), reason })
    }

    /// `host` or `host:port`, as HTTP names it.
    pub fn authority(&self) -> String {
        let host = match self.host.contains(':') {
            true => format!("[{}]", self.host),
            false => self.host.clone(),
        };
        match self.port == self.scheme.default_port() {
            true => host,
            false => format!("{host}:{}", self.port),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme.as_str(), self.authority())
    }
}

fn parse_url(url: &str) -> Result<Target, &'static str> {
    let (scheme, rest) = url.trim().split_once("://").ok_or("there is no http:// or https:// in front")?;
    let scheme = match scheme.to_ascii_lowercase().as_str() {
        "http" => Scheme::Http,
        "https" => Scheme::Https,
        _ => return Err("only http and https are known"),
    };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.contains(['/', '?', '#']) {
        return Err("nothing may follow the port");
    }
    if rest.contains('@') {
        return Err("user and password are not taken from a URL");
    }
    let (host, port) = match rest.strip_prefix('[') {
        Some(rest) => {
            let (address, after) = rest.split_once(']').ok_or("a bracket is not closed")?;
            let address: Ipv6Addr = address.parse().map_err(|_| "the address in brackets is not IPv6")?;
            (address.to_string(), after)
        }
        None => {
            let end = rest.find(':').unwrap_or(rest.len());
            let (host, after) = rest.split_at(end);
            (check_host(host)?, after)
        }
    };
    let port = match port.strip_prefix(':') {
        Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => digits.parse().ok().filter(|p| *p > 0),
        None if port.is_empty() => Some(scheme.default_port()),
        _ => None,
    };
    Ok(Target { scheme, host, port: port.ok_or("the port is not a number from 1 to 65535")? })
}

fn check_host(host: &str) -> Result<String, &'static str> {
    let is_host_char = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    match host.len() {
        0 => Err("the host is missing"),
        1..=253 if host.bytes().all(is_host_char) => Ok(host.to_ascii_lowercase()),
        _ => Err("the host has characters that no host has, or is too long"),
    }
}

/// How far a dial is.
#[derive(Debug)]
pub enum Progress {
    /// Not done; wait for [`Dial::fd`] to be writable, for the waker, or for [`Dial::poll_timeout`].
    Pending,
    /// Done.
    Connected(TcpStream, SocketAddr),
    /// No address worked; why not, for the last one.
    Failed(String),
}

/// One attempt to be connected. A name is resolved by a thread of its own, since the system's resolver blocks; it ends by
/// itself when the resolver does, and its answer is dropped if nobody waits any more.
#[derive(Debug)]
pub struct Dial {
    host: String,
    give_up: Duration,
    addresses: VecDeque<SocketAddr>,
    state: State,
    last_error: String,
}

#[derive(Debug)]
enum State {
    Resolving(Receiver<io::Result<Vec<SocketAddr>>>),
    Connecting { socket: OwnedFd, address: SocketAddr, give_up: Duration },
    Next,
}

impl Dial {
    /// Begins. `waker` is woken when a name is resolved.
    pub fn new(target: &Target, waker: Waker, now: Duration) -> Dial {
        let mut dial = Dial {
            host: target.host.clone(),
            give_up: now + CONNECT_TIMEOUT,
            addresses: VecDeque::new(),
            state: State::Next,
            last_error: format!("no address for {}", target.host),
        };
        if let Ok(address) = target.host.parse::<IpAddr>() {
            dial.addresses.push_back(SocketAddr::new(address, target.port));
            return dial;
        }
        let (sender, receiver) = sync_channel(1);
        let name = (target.host.clone(), target.port);
        let resolve = move || {
            let found = name.to_socket_addrs().map(|found| found.take(MAX_ADDRESSES).collect());
            if sender.send(found).is_ok() {
                waker.wake();
            }
        };
        match std::thread::Builder::new().name("resolve".into()).stack_size(RESOLVER_STACK).spawn(resolve) {
            Ok(_) => dial.state = State::Resolving(receiver),
            Err(error) => dial.last_error = format!("failed to start a thread that resolves {}: {error}", dial.host),
        }
        dial
    }

    /// The socket that is being connected.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.state {
            State::Connecting { socket, .. } => Some(socket.as_fd()),
            _ => None,
        }
    }

    /// When to call [`Dial::advance`] at the latest.
    pub fn poll_timeout(&self) -> Duration {
        match &self.state {
            State::Connecting { give_up, .. } => *give_up,
            _ => self.give_up,
        }
    }

    /// Goes on as far as it can without waiting.
    pub fn advance(&mut self, now: Duration) -> Progress {
        loop {
            match std::mem::replace(&mut self.state, State::Next) {
                State::Resolving(receiver) => match receiver.try_recv() {
                    Ok(Ok(found)) => self.addresses.extend(found),
                    Ok(Err(error)) => return Progress::Failed(format!("failed to resolve {}: {error}", self.host)),
                    Err(TryRecvError::Empty) if now < self.give_up => {
                        self.state = State::Resolving(receiver);
                        return Progress::Pending;
                    }
                    Err(_) => return Progress::Failed(format!("failed to resolve {} in time", self.host)),
                },
                State::Connecting { socket, address, give_up } => match is_connected(&socket) {
                    Ok(true) => return finish(socket, address),
                    Ok(false) if now < give_up => {
                        self.state = State::Connecting { socket, address, give_up };
                        return Progress::Pending;
                    }
                    Ok(false) => self.last_error = format!("{address} did not answer in time"),
                    Err(error) => self.last_error = format!("failed to connect to {address}: {error}"),
                },
                State::Next => {
                    let Some(address) = self.addresses.pop_front().filter(|_| now < self.give_up) else {
                        return Progress::Failed(std::mem::take(&mut self.last_error));
                    };
                    match start(address) {
                        Ok(socket) => {
                            let give_up = now + self.budget(now);
                            self.state = State::Connecting { socket, address, give_up };
                        }
                        Err(error) => self.last_error = format!("failed to connect to {address}: {error}"),
                    }
                }
            }
        }
    }

    /// The present address's share of the time that is left.
    fn budget(&self, now: Duration) -> Duration {
        let left = self.give_up.saturating_sub(now);
        let shares = u32::try_from(self.addresses.len() + 1).unwrap_or(u32::MAX);
        (left / shares).max(LEAST_BUDGET).min(left)
    }
}

fn start(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?;
    match connect(&socket, &address) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error.into()),
    }
}

/// Whether the handshake is done: the kernel names the peer only then.
fn is_connected(socket: &OwnedFd) -> io::Result<bool> {
    sockopt::socket_error(socket)??;
    match rustix::net::getpeername(socket) {
        Ok(peer) => Ok(peer.is_some()),
        Err(rustix::io::Errno::NOTCONN) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn finish(socket: OwnedFd, address: SocketAddr) -> Progress {
    let milliseconds = u32::try_from(USER_TIMEOUT.as_millis()).unwrap_or(u32::MAX);
    // Without these two the connection is slower to send or to notice a dead path, but works.
    let _ = sockopt::set_tcp_nodelay(&socket, true);
    let _ = sockopt::set_tcp_user_timeout(&socket, milliseconds);
    Progress::Connected(TcpStream::from(socket), address)
}

#[cfg(test)]
mod tests {
    use super::super::wake::Wake;
    use super::*;

    #[test]
    fn urls_become_targets() {
        for (url, host, port, authority) in [
            ("https://Master.Example", "master.example", 443, "master.example"),
            ("http://10.8.0.1:50051/", "10.8.0.1", 50051, "10.8.0.1:50051"),
            ("HTTPS://[::1]:8443", "::1", 8443, "[::1]:8443"),
            ("http://[2001:DB8::0]", "2001:db8::", 80, "[2001:db8::]"),
            ("https://h:443", "h", 443, "h"),
        ] {
            let target = Target::parse(url).unwrap();
            assert_eq!((target.host.as_str(), target.port, target.authority().as_str()), (host, port, authority));
            assert_eq!(Target::parse(&target.to_string()), Ok(target));
        }
    }

    #[test]
    fn odd_urls_are_refused() {
        for url in [
            "",
            "master",
            "ftp://h",
            "https://",
            "https://:1",
            "https://h:",
            "https://h:0",
            "https://h:65536",
            "https://h:+1",
            "https://h/path",
            "https://h?x",
            "https://u:p@h",
            "https://[::1",
            "https://[h]",
            "https://[::1]x",
            "https://a b",
            "https://h\r\nx",
            "https://ü",
        ] {
            assert!(Target::parse(url).is_err(), "{url}");
        }
    }

    fn run(mut dial: Dial, wake: &Wake) -> Progress {
        loop {
            match dial.advance(crate::sys::clock::boottime()) {
                Progress::Pending => {
                    let wake_on = super::super::poll::Interest::read(wake.as_fd());
                    let connect_on = dial.fd().map(|fd| super::super::poll::Interest { fd, read: false, write: true });
                    let all: Vec<_> = [Some(wake_on), connect_on].into_iter().flatten().collect();
                    super::super::poll::wait(&all, Duration::from_secs(5));
                }
                done => return done,
            }
        }
    }

    #[test]
    fn connects_by_name_and_says_why_it_cannot() {
        let wake = Wake::new().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let now = crate::sys::clock::boottime();
        let target = Target { scheme: Scheme::Http, host: "localhost".into(), port };
        assert!(matches!(run(Dial::new(&target, wake.waker(), now), &wake), Progress::Connected(..)));
        drop(listener);
        let target = Target { host: "127.0.0.1".into(), ..target };
        let Progress::Failed(reason) = run(Dial::new(&target, wake.waker(), now), &wake) else { panic!("connected") };
        assert!(reason.contains(&format!("127.0.0.1:{port}")), "{reason}");
    }
}

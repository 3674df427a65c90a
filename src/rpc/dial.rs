//! From a target to a connected socket: name resolution, addresses raced, and the way through a proxy.
//!
//! ```text
//! resolving --> racing --> connected
//!                  '-- a proxy is set --> tunneling --> connected
//! ```
//!
//! All of it has one time limit; each failure says why.

use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::sockopt;

use super::poll::Interest;
use super::proxy::Proxy;
use super::race::{Race, Standing};
use super::resolve::Resolve;
use super::tunnel::Tunnel;

pub use super::target::{Scheme, Target, TargetError};

/// How long it may take to be connected: names, addresses and the proxy together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// Unacknowledged data ends the connection after this long (gRFC A18). The kernel finds a dead path while data is under
/// way; PINGs find it while we only wait.
const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// How far a dial is.
#[derive(Debug)]
pub enum Progress {
    /// Not done; wait for what the dial waits for, or for [`Dial::poll_timeout`].
    Pending,
    /// Done. The address is the proxy's when there is one.
    Connected(TcpStream, SocketAddr),
    /// No way worked; why not.
    Failed(String),
}

/// One attempt to be connected.
#[derive(Debug)]
pub struct Dial {
    target: Target,
    proxy: Option<Proxy>,
    give_up: Duration,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Resolving(Resolve),
    Racing(Race),
    Tunneling(Tunnel, SocketAddr),
    Over,
}

impl Dial {
    /// Begins.
    pub fn new(target: &Target, proxy: Option<&Proxy>, now: Duration) -> Dial {
        let (host, port) = proxy.map_or((target.host.as_str(), target.port), |proxy| (proxy.host(), proxy.port()));
        Dial {
            target: target.clone(),
            proxy: proxy.cloned(),
            give_up: now + CONNECT_TIMEOUT,
            stage: Stage::Resolving(Resolve::new(host, port)),
        }
    }

    /// What to wait for.
    pub(super) fn interests(&self) -> Vec<Interest<'_>> {
        match &self.stage {
            Stage::Resolving(resolve) => resolve.interest().into_iter().collect(),
            Stage::Over => Vec::new(),
            Stage::Racing(race) => race.interests().collect(),
            Stage::Tunneling(tunnel, _) => vec![tunnel.interest()],
        }
    }

    /// When to call [`Dial::advance`] at the latest.
    pub fn poll_timeout(&self) -> Duration {
        match &self.stage {
            Stage::Racing(race) => race.poll_timeout(),
            _ => self.give_up,
        }
    }

    /// Goes on as far as it can without waiting.
    pub fn advance(&mut self, now: Duration) -> Progress {
        loop {
            let is_late = now >= self.give_up;
            match std::mem::replace(&mut self.stage, Stage::Over) {
                Stage::Resolving(mut resolve) => match resolve.poll() {
                    Some(Ok(found)) => self.stage = Stage::Racing(Race::new(found, self.give_up, now)),
                    Some(Err(reason)) => return self.failed(&reason),
                    None if is_late => return self.failed("failed to resolve the name in time"),
                    None => return self.pending(Stage::Resolving(resolve)),
                },
                Stage::Racing(mut race) => match race.advance(now) {
                    Standing::Running => return self.pending(Stage::Racing(race)),
                    Standing::Lost(reason) => return self.failed(&reason),
                    Standing::Won(socket, address) => {
                        let socket = finish(socket);
                        let Some(proxy) = &self.proxy else { return Progress::Connected(socket, address) };
                        self.stage = Stage::Tunneling(Tunnel::new(socket, proxy, &self.target), address);
                    }
                },
                Stage::Tunneling(mut tunnel, address) => match tunnel.advance() {
                    Ok(true) => return Progress::Connected(tunnel.into_socket(), address),
                    Ok(false) if is_late => return self.failed("the proxy did not answer in time"),
                    Ok(false) => return self.pending(Stage::Tunneling(tunnel, address)),
                    Err(reason) => return self.failed(&reason),
                },
                Stage::Over => return self.failed("this attempt is over"),
            }
        }
    }

    fn pending(&mut self, stage: Stage) -> Progress {
        self.stage = stage;
        Progress::Pending
    }

    fn failed(&self, reason: &str) -> Progress {
        Progress::Failed(match &self.proxy {
            Some(proxy) => format!("proxy {proxy}: {reason}"),
            None => reason.to_owned(),
        })
    }
}

fn finish(socket: OwnedFd) -> TcpStream {
    let milliseconds = u32::try_from(USER_TIMEOUT.as_millis()).unwrap_or(u32::MAX);
    // Without these two the connection is slower to send or to notice a dead path, but works.
    let _ = sockopt::set_tcp_nodelay(&socket, true);
    let _ = sockopt::set_tcp_user_timeout(&socket, milliseconds);
    TcpStream::from(socket)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::super::poll;
    use super::*;
    use crate::sys::clock::boottime;

    fn run(mut dial: Dial) -> Progress {
        loop {
            match dial.advance(boottime()) {
                Progress::Pending => {
                    poll::wait(&dial.interests(), dial.poll_timeout().saturating_sub(boottime()));
                }
                done => return done,
            }
        }
    }

    #[test]
    fn connects_by_name_and_says_why_it_cannot() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let now = boottime();
        let target = Target { scheme: Scheme::Http, host: "localhost".into(), port };
        assert!(matches!(run(Dial::new(&target, None, now)), Progress::Connected(..)));
        drop(listener);
        let target = Target { host: "127.0.0.1".into(), ..target };
        let failed = run(Dial::new(&target, None, now));
        let Progress::Failed(reason) = failed else { panic!("connected") };
        assert!(reason.starts_with(&format!("failed to connect to 127.0.0.1:{port}: ")), "{reason}");
    }

    #[test]
    fn listener_of_one_family_is_found() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let address = listener.local_addr().unwrap();
            let target = Target { scheme: Scheme::Http, host: address.ip().to_string(), port: address.port() };
            match run(Dial::new(&target, None, boottime())) {
                Progress::Connected(_, peer) => assert_eq!(peer, address),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn silent_proxy_has_its_time() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let proxy = Proxy::parse(&format!("http://u:secret@{address}")).unwrap();
        let target = Target::parse("https://master.example").unwrap();
        let begin = boottime();
        let mut dial = Dial::new(&target, Some(&proxy), begin);
        while !matches!(dial.stage, Stage::Tunneling(..)) {
            assert!(matches!(dial.advance(begin), Progress::Pending));
        }
        assert!(!format!("{dial:?}").contains("secret"));
        assert_eq!(dial.poll_timeout(), begin + CONNECT_TIMEOUT);
        assert!(matches!(dial.advance(begin + CONNECT_TIMEOUT - Duration::from_millis(1)), Progress::Pending));
        let Progress::Failed(reason) = dial.advance(begin + CONNECT_TIMEOUT) else { panic!("not over") };
        assert_eq!(reason, format!("proxy {address}: the proxy did not answer in time"));
    }
}

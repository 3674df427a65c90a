//! Several addresses of one host, raced (RFC 8305, "Happy Eyeballs"): a family that leads nowhere costs a quarter of a
//! second, not a time-out.
//!
//! [`Schedule`] decides which address is tried when, without a socket or a clock; [`Race`] has the sockets.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, ipproto, socket_with, sockopt};

use super::poll::Interest;
use crate::h2::Instant;

/// Between the starts of two attempts (RFC 8305 section 8, Connection Attempt Delay).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// What one address gets: SYN packets lost at 0, 1 and 3 s, and time for the answer to the one at 7 s.
const ADDRESS_BUDGET: Duration = Duration::from_secs(10);

/// Which address is tried when.
#[derive(Debug)]
struct Schedule {
    waiting: VecDeque<SocketAddr>,
    last_started: Option<SocketAddr>,
    next_start: Instant,
}

impl Schedule {
    /// `found` in the system's order of preference (RFC 6724).
    fn new(found: Vec<SocketAddr>, now: Instant) -> Schedule {
        Schedule { waiting: interleaved(found), last_started: None, next_start: now }
    }

    /// An address whose turn it is, and when to give it up.
    fn poll_start(&mut self, now: Instant) -> Option<(SocketAddr, Instant)> {
        if now < self.next_start {
            return None;
        }
        let address = self.waiting.pop_front()?;
        self.last_started = Some(address);
        self.next_start = now + ATTEMPT_DELAY;
        Some((address, now + ADDRESS_BUDGET))
    }

    /// An attempt has failed. Behind the one that was started last nobody has to wait any more.
    fn handle_failure(&mut self, address: SocketAddr, now: Instant) {
        if self.last_started == Some(address) {
            self.next_start = now;
        }
    }

    /// When the next address has its turn, if there is one.
    fn poll_timeout(&self) -> Option<Instant> {
        (!self.waiting.is_empty()).then_some(self.next_start)
    }
}

/// The families in turn, beginning with that of the first address (RFC 8305 section 4); the order within a family stays.
fn interleaved(found: Vec<SocketAddr>) -> VecDeque<SocketAddr> {
    let first_is_ipv4 = found.first().is_some_and(SocketAddr::is_ipv4);
    let (first, second): (Vec<_>, Vec<_>) = found.into_iter().partition(|address| address.is_ipv4() == first_is_ipv4);
    let mut all = VecDeque::with_capacity(first.len() + second.len());
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    loop {
        let pair = [first.next(), second.next()];
        if pair == [None, None] {
            return all;
        }
        all.extend(pair.into_iter().flatten());
    }
}

#[derive(Debug)]
struct Attempt {
    socket: OwnedFd,
    address: SocketAddr,
    give_up: Instant,
}

/// How a race stands.
#[derive(Debug)]
pub(super) enum Standing {
    Running,
    /// The first socket that is connected. The others are closed with the race.
    Won(OwnedFd, SocketAddr),
    /// No address works; why not, for each.
    Lost(String),
}

/// Attempts to be connected to one of several addresses.
#[derive(Debug)]
pub(super) struct Race {
    schedule: Schedule,
    attempts: Vec<Attempt>,
    failures: Vec<String>,
    give_up: Instant,
}

impl Race {
    /// Begins with [`Race::advance`], and ends at the latest at `give_up`.
    pub(super) fn new(found: Vec<SocketAddr>, give_up: Instant, now: Instant) -> Race {
        Race { schedule: Schedule::new(found, now), attempts: Vec::new(), failures: Vec::new(), give_up }
    }

    /// What to wait for.
    pub(super) fn interests(&self) -> impl Iterator<Item = Interest<'_>> {
        self.attempts.iter().map(|attempt| Interest { fd: attempt.socket.as_fd(), read: false, write: true })
    }

    /// When to call [`Race::advance`] at the latest.
    pub(super) fn poll_timeout(&self) -> Instant {
        let attempts = self.attempts.iter().map(|attempt| attempt.give_up);
        attempts.chain(self.schedule.poll_timeout()).chain([self.give_up]).min().unwrap_or(self.give_up)
    }

    /// Goes on as far as it can without waiting.
    pub(super) fn advance(&mut self, now: Instant) -> Standing {
        loop {
            if let Some((socket, address)) = self.take_winner(now) {
                return Standing::Won(socket, address);
            }
            if now >= self.give_up {
                self.attempts.iter().for_each(|attempt| self.failures.push(late(attempt.address)));
                return self.lost();
            }
            let Some((address, give_up)) = self.schedule.poll_start(now) else { break };
            match start(address) {
                Ok(socket) => self.attempts.push(Attempt { socket, address, give_up }),
                Err(error) => self.handle_failure(address, failed(address, &error), now),
            }
        }
        match self.attempts.is_empty() {
            true => self.lost(),
            false => Standing::Running,
        }
    }

    /// Drops the attempts that have failed; the first that is connected wins.
    fn take_winner(&mut self, now: Instant) -> Option<(OwnedFd, SocketAddr)> {
        let mut at = 0;
        while let Some(Attempt { socket, address, give_up }) = self.attempts.get(at) {
            let address = *address;
            let failure = match is_connected(socket) {
                Ok(true) => return Some((self.attempts.swap_remove(at).socket, address)),
                Ok(false) if now < *give_up => {
                    at += 1;
                    continue;
                }
                Ok(false) => late(address),
                Err(error) => failed(address, &error),
            };
            self.attempts.remove(at);
            self.handle_failure(address, failure, now);
        }
        None
    }

    fn handle_failure(&mut self, address: SocketAddr, words: String, now: Instant) {
        self.schedule.handle_failure(address, now);
        self.failures.push(words);
    }

    fn lost(&mut self) -> Standing {
        Standing::Lost(format!("failed to connect to {}", std::mem::take(&mut self.failures).join("; to ")))
    }
}

fn late(address: SocketAddr) -> String {
    format!("{address}: no answer in time")
}

fn failed(address: SocketAddr, error: &io::Error) -> String {
    format!("{address}: {error}")
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

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn addresses(text: &str) -> Vec<SocketAddr> {
        text.split(' ').map(|address| address.parse().unwrap()).collect()
    }

    fn ms(ms: u64) -> Instant {
        Duration::from_millis(ms)
    }

    #[test]
    fn families_take_turns_beginning_with_the_first() {
        for (found, order) in [
            ("[::1]:1 [::2]:1 [::3]:1 1.1.1.1:1 2.2.2.2:1", "[::1]:1 1.1.1.1:1 [::2]:1 2.2.2.2:1 [::3]:1"),
            ("1.1.1.1:1 2.2.2.2:1 [::1]:1", "1.1.1.1:1 [::1]:1 2.2.2.2:1"),
            ("1.1.1.1:1 2.2.2.2:1", "1.1.1.1:1 2.2.2.2:1"),
        ] {
            assert_eq!(Vec::from(interleaved(addresses(found))), addresses(order));
        }
        assert!(interleaved(Vec::new()).is_empty());
    }

    #[test]
    fn next_address_starts_after_the_delay_or_a_failure() {
        let all = addresses("[::1]:1 1.1.1.1:1 [::2]:1 2.2.2.2:1");
        let mut schedule = Schedule::new(vec![all[0], all[2], all[1], all[3]], ms(1_000));
        assert_eq!(schedule.poll_start(ms(1_000)), Some((all[0], ms(11_000))));
        assert_eq!((schedule.poll_start(ms(1_249)), schedule.poll_timeout()), (None, Some(ms(1_250))));
        assert_eq!(schedule.poll_start(ms(1_250)), Some((all[1], ms(11_250))));
        schedule.handle_failure(all[0], ms(1_300));
        assert_eq!((schedule.poll_start(ms(1_300)), schedule.poll_timeout()), (None, Some(ms(1_500))), "not the last");
        schedule.handle_failure(all[1], ms(1_310));
        assert_eq!(schedule.poll_start(ms(1_310)), Some((all[2], ms(11_310))));
        assert_eq!(schedule.poll_start(ms(2_000)), Some((all[3], ms(12_000))), "late is no reason to hurry");
        assert_eq!((schedule.poll_start(ms(9_000)), schedule.poll_timeout()), (None, None));
    }

    /// A port of loopback that answers no SYN: its backlog is full. Kept alive by what is returned.
    fn black_hole() -> (SocketAddr, OwnedFd, Vec<OwnedFd>) {
        let flags = SocketFlags::CLOEXEC;
        let listener = socket_with(AddressFamily::INET, SocketType::STREAM, flags, Some(ipproto::TCP)).unwrap();
        rustix::net::bind(&listener, &"127.0.0.1:0".parse::<SocketAddr>().unwrap()).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let address = SocketAddr::try_from(rustix::net::getsockname(&listener).unwrap()).unwrap();
        let mut fill = Vec::new();
        loop {
            fill.push(start(address).unwrap());
            let last = fill.last().unwrap();
            let interest = Interest { fd: last.as_fd(), read: false, write: true };
            super::super::poll::wait(&[interest], ms(100));
            if !is_connected(last).unwrap() {
                return (address, listener, fill);
            }
            assert!(fill.len() < 100, "the backlog has no end");
        }
    }

    /// Runs a race with the machine's clock; how it ends and after what time.
    fn run(found: Vec<SocketAddr>) -> (Standing, Duration) {
        let begin = crate::sys::clock::boottime();
        let mut race = Race::new(found, begin + Duration::from_secs(20), begin);
        loop {
            let now = crate::sys::clock::boottime();
            match race.advance(now) {
                Standing::Running => {
                    let interests: Vec<_> = race.interests().collect();
                    super::super::poll::wait(&interests, race.poll_timeout().saturating_sub(now));
                }
                end => return (end, now - begin),
            }
        }
    }

    #[test]
    fn address_that_refuses_costs_nothing() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let good = listener.local_addr().unwrap();
        // Nobody listens on the other family's port of the same number, as with a server that binds one family only.
        let bad = SocketAddr::new("::1".parse().unwrap(), good.port());
        let (Standing::Won(_, address), time) = run(vec![bad, good]) else { panic!("not connected") };
        assert_eq!(address, good);
        assert!(time < ATTEMPT_DELAY, "{time:?}");
    }

    #[test]
    fn address_that_swallows_everything_costs_a_quarter_of_a_second() {
        let (silent, _listener, _fill) = black_hole();
        let listener = TcpListener::bind("[::1]:0").unwrap();
        let good = listener.local_addr().unwrap();
        let (Standing::Won(socket, address), time) = run(vec![silent, good]) else { panic!("not connected") };
        assert_eq!(address, good);
        assert!(time >= ATTEMPT_DELAY && time < ATTEMPT_DELAY * 8, "{time:?}");
        assert_eq!(TcpStream::from(socket).peer_addr().unwrap(), good);
        let (Standing::Won(_, address), time) = run(vec![good, silent]) else { panic!("not connected") };
        assert!(address == good && time < ATTEMPT_DELAY, "{time:?}");
    }

    #[test]
    fn each_address_has_its_time_and_its_reason() {
        let (silent, _listener, _fill) = black_hole();
        let refused = {
            let listener = TcpListener::bind("[::1]:0").unwrap();
            listener.local_addr().unwrap()
        };
        let mut race = Race::new(vec![silent, refused], ms(20_000), ms(0));
        assert!(matches!(race.advance(ms(0)), Standing::Running));
        assert_eq!((race.interests().count(), race.poll_timeout()), (1, ms(250)));
        assert!(matches!(race.advance(ms(250)), Standing::Running));
        assert!(matches!(race.advance(ms(9_999)), Standing::Running));
        assert_eq!(race.poll_timeout(), ms(10_000));
        let Standing::Lost(reason) = race.advance(ms(10_000)) else { panic!("not over") };
        let words = format!(
            "failed to connect to {refused}: Connection refused (os error 111); to {silent}: no answer in time"
        );
        assert_eq!(reason, words);
        let mut short = Race::new(vec![silent], ms(5_000), ms(0));
        assert!(matches!(short.advance(ms(4_999)), Standing::Running));
        assert!(matches!(short.advance(ms(5_000)), Standing::Lost(_)), "all together have their time too");
    }
}

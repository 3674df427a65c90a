//! When to send a PING so that a dead path is found, and when its answer is overdue (RFC 9113 section 6.7).

use std::time::Duration;

use crate::h2::Instant;

/// gRPC's servers allow one PING in this time while they send no message, and end the connection at the third that comes
/// earlier (gRFC A8 and keepalive.md).
const TOLERATED_INTERVAL: Duration = Duration::from_secs(300);
/// PINGs in one silence that come earlier than that: the first is free, two more are strikes.
const EARLY_PINGS: u32 = 3;

/// PINGs while streams are open, so that a dead path is found (RFC 9113 section 6.7).
#[derive(Debug, Clone, Copy)]
pub struct KeepAlive {
    /// Silence after which a PING is sent. Silence without streams counts too, so that the first call after a long
    /// rest finds a dead path soon. While nothing but answers to PINGs comes, the distance grows.
    pub idle: Duration,
    /// How long its answer may take.
    pub timeout: Duration,
}

/// The state of one connection's PINGs.
#[derive(Debug)]
pub(super) struct Pinger {
    config: Option<KeepAlive>,
    last_received: Instant,
    outstanding: Option<(Instant, [u8; 8])>,
    sent: u64,
    /// PINGs since the last HEADERS or DATA of the peer.
    unrewarded: u32,
}

impl Pinger {
    pub(super) fn new(config: Option<KeepAlive>, now: Instant) -> Pinger {
        Pinger { config, last_received: now, outstanding: None, sent: 0, unrewarded: 0 }
    }

    /// Bytes came.
    pub(super) fn received(&mut self, now: Instant) {
        self.last_received = now;
    }

    /// HEADERS or DATA came.
    pub(super) fn rewarded(&mut self) {
        self.unrewarded = 0;
    }

    /// An answer came; one to no question of ours means nothing.
    pub(super) fn answered(&mut self, payload: [u8; 8]) {
        self.outstanding = self.outstanding.filter(|(_, sent)| *sent != payload);
    }

    /// When the next PING is to be sent, or the answer to the last one is overdue.
    pub(super) fn due(&self, has_streams: bool) -> Option<Instant> {
        let config = self.config?;
        match self.outstanding {
            Some((at, _)) => Some(at + config.timeout),
            None if !has_streams => None,
            None if self.unrewarded < EARLY_PINGS => Some(self.last_received + config.idle * (1 << self.unrewarded)),
            None => Some(self.last_received + config.idle.max(TOLERATED_INTERVAL)),
        }
    }

    /// What is due is done: the payload of a PING to send, or `None` if the answer is overdue.
    pub(super) fn ping(&mut self, now: Instant) -> Option<[u8; 8]> {
        if self.outstanding.is_some() {
            return None;
        }
        self.sent += 1;
        self.unrewarded = self.unrewarded.saturating_add(1);
        let payload = self.sent.to_be_bytes();
        self.outstanding = Some((now, payload));
        Some(payload)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_grows_while_the_peer_sends_no_message() {
        let seconds = Duration::from_secs;
        let mut pinger = Pinger::new(Some(KeepAlive { idle: seconds(20), timeout: seconds(10) }), seconds(0));
        for want in [20, 60, 140, 440, 740] {
            let due = pinger.due(true).unwrap();
            assert_eq!(due, seconds(want));
            let payload = pinger.ping(due).unwrap();
            assert_eq!(pinger.due(true), Some(due + seconds(10)));
            pinger.received(due);
            pinger.answered([0xff; 8]);
            assert_eq!(pinger.due(true), Some(due + seconds(10)), "an answer to nothing");
            pinger.answered(payload);
        }
        pinger.rewarded();
        pinger.received(seconds(800));
        assert_eq!((pinger.due(true), pinger.due(false)), (Some(seconds(820)), None));
    }
}

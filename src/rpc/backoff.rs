//! How long to wait before the next try: exponential with full jitter. Pure; the caller says when and gives the seed.

use std::time::Duration;

const BASE: Duration = Duration::from_secs(1);
const FACTOR: f64 = 1.6;
/// Beyond this a node would seem lost to its owner after the master came back.
const CAP: Duration = Duration::from_secs(120);
/// Results are worth more load on the master than an idle node is.
const CAP_URGENT: Duration = Duration::from_secs(30);
/// A connection that lived this long says that the trouble is over.
const STABLE: Duration = Duration::from_secs(60);

/// Whether something waits for the next try.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Urgency {
    /// Nothing is lost by waiting: at most 120 s.
    #[default]
    Normal,
    /// Results wait: at most 30 s.
    ResultsWait,
}

/// The state between tries.
#[derive(Debug)]
pub struct Backoff {
    random: u64,
    failures: i32,
    up_since: Option<Duration>,
    /// Since the last failure a call was answered.
    has_served: bool,
}

impl Backoff {
    /// Each node needs a seed of its own, so that many do not come back at the same moment.
    pub fn new(seed: u64) -> Backoff {
        Backoff { random: seed, failures: 0, up_since: None, has_served: false }
    }

    /// A connection works since `now`.
    pub fn connected(&mut self, now: Duration) {
        self.up_since = Some(now);
    }

    /// The present connection was of use.
    pub fn served(&mut self) {
        self.has_served = true;
    }

    /// After the orderly end of a connection: whether the next one may be tried without a wait. A server that ends
    /// each connection before it serves is waited for.
    pub fn may_go_on(&mut self) -> bool {
        let may = std::mem::take(&mut self.has_served);
        if may {
            self.failures = 0;
            self.up_since = None;
        }
        may
    }

    /// A try failed or a connection ended: how long to wait. After a stable period the count begins anew.
    pub fn failed(&mut self, now: Duration, urgency: Urgency) -> Duration {
        if self.up_since.take().is_some_and(|since| now.saturating_sub(since) >= STABLE) {
            self.failures = 0;
        }
        let cap = match urgency {
            Urgency::Normal => CAP,
            Urgency::ResultsWait => CAP_URGENT,
        };
        self.has_served = false;
        let ceiling = (BASE.as_secs_f64() * FACTOR.powi(self.failures)).min(cap.as_secs_f64());
        // At 32 failures the ceiling is far above each cap, and a power of it still finite.
        self.failures = (self.failures + 1).min(32);
        Duration::from_secs_f64(ceiling * self.fraction())
    }

    /// A number from 0 to 1 (splitmix64, which mixes seeds that differ little).
    fn fraction(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        (mixed >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn longest(n: usize, urgency: Urgency) -> f64 {
        let waits = (0..400).map(|seed| {
            let mut backoff = Backoff::new(seed);
            (0..n).map(|_| backoff.failed(Duration::ZERO, urgency)).last().unwrap()
        });
        waits.max().unwrap().as_secs_f64()
    }

    #[test]
    fn grows_to_its_cap_with_full_jitter() {
        for (n, ceiling) in [(1, 1.0), (2, 1.6), (3, 2.56), (30, 120.0), (100, 120.0)] {
            let longest = longest(n, Urgency::Normal);
            assert!(longest <= ceiling && longest > ceiling * 0.9, "{n}: {longest}");
        }
        assert!(longest(30, Urgency::ResultsWait) <= 30.0);
    }

    #[test]
    fn a_connection_that_served_is_followed_at_once_and_one_that_did_not_is_not() {
        let mut backoff = Backoff::new(7);
        for _ in 0..20 {
            backoff.failed(Duration::ZERO, Urgency::Normal);
        }
        backoff.connected(Duration::ZERO);
        assert!(!backoff.may_go_on());
        backoff.served();
        assert!(backoff.may_go_on() && !backoff.may_go_on());
        assert!(backoff.failed(Duration::ZERO, Urgency::Normal) <= BASE);
        backoff.served();
        backoff.failed(Duration::ZERO, Urgency::Normal);
        assert!(!backoff.may_go_on(), "what was served before a failure does not count");
    }

    #[test]
    fn only_a_stable_connection_resets_it() {
        let mut backoff = Backoff::new(7);
        for _ in 0..20 {
            backoff.failed(Duration::ZERO, Urgency::Normal);
        }
        backoff.connected(Duration::from_secs(100));
        backoff.failed(Duration::from_secs(159), Urgency::Normal);
        assert!(backoff.failures > 20);
        backoff.connected(Duration::from_secs(200));
        assert!(backoff.failed(Duration::from_secs(260), Urgency::Normal) <= BASE);
    }
}

//! The time that certificates are checked at: the latest of system clock, build time and the master's last authenticated
//! time, so that a board without a real-time clock can connect.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;

use crate::sys::clock::boottime;
use crate::sys::time::unix_ms;

/// 2026-11-24, the day on which this was last raised; a packager's SOURCE_DATE_EPOCH counts when it is later. Neither
/// makes two builds of the same sources differ.
const RELEASED_S: u64 = 1_795_478_400;
/// When this program was built, at the earliest. A clock that says less is wrong.
const BUILT: Duration = Duration::from_secs(built_s(option_env!("SOURCE_DATE_EPOCH")));

/// Seconds since 1970. What is no number of at most eleven digits counts for nothing.
const fn built_s(source_date_epoch: Option<&str>) -> u64 {
    let Some(text) = source_date_epoch else { return RELEASED_S };
    let bytes = text.as_bytes();
    if bytes.len() > 11 {
        return RELEASED_S;
    }
    let (mut rest, mut seconds) = (bytes, 0);
    while let [digit, tail @ ..] = rest {
        if !digit.is_ascii_digit() {
            return RELEASED_S;
        }
        seconds = seconds * 10 + (*digit - b'0') as u64;
        rest = tail;
    }
    if seconds > RELEASED_S { seconds } else { RELEASED_S }
}

/// The clocks that certificates are checked with. Shared by the lanes to one master.
pub struct TrustedTime {
    /// Since 1970, by the system.
    system: fn() -> Duration,
    /// Since the machine was started.
    boot: fn() -> Duration,
    heard: Mutex<Option<Heard>>,
}

/// What the master said, and when that was.
#[derive(Clone, Copy)]
struct Heard {
    unix: Duration,
    at: Duration,
}

impl fmt::Debug for TrustedTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TrustedTime({:?})", self.now())
    }
}

impl Default for TrustedTime {
    fn default() -> TrustedTime {
        TrustedTime::new(|| Duration::from_millis(unix_ms()), boottime)
    }
}

impl TrustedTime {
    /// With these clocks: since 1970, and since the machine was started.
    pub fn new(system: fn() -> Duration, boot: fn() -> Duration) -> TrustedTime {
        TrustedTime { system, boot, heard: Mutex::new(None) }
    }

    /// The master's time since 1970. Only what came over TLS may be told.
    pub fn learn(&self, unix: Duration) {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Some(Heard { unix, at: (self.boot)() });
    }

    /// What the master's clock says now, if it was ever heard.
    pub(super) fn of_master(&self) -> Option<Duration> {
        let heard = *self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.map(|heard| heard.unix.saturating_add((self.boot)().saturating_sub(heard.at)))
    }

    /// Since 1970.
    pub fn now(&self) -> Duration {
        (self.system)().max(BUILT).max(self.of_master().unwrap_or_default())
    }
}

impl TimeProvider for TrustedTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(self.now()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn build_time_is_the_later_of_release_and_packaging() {
        assert_eq!(built_s(None), RELEASED_S);
        assert_eq!(built_s(Some("1795478401")), 1_795_478_401);
        for text in ["", "0", "1795478399", "x", "-1", "1795478401 ", "99999999999999999999"] {
            assert_eq!(built_s(Some(text)), RELEASED_S, "{text:?}");
        }
    }

    #[test]
    fn latest_of_the_three_counts() {
        let boot = || Duration::from_secs(50);
        let dead = TrustedTime::new(|| Duration::from_secs(7), boot);
        assert_eq!(dead.now(), BUILT);
        dead.learn(BUILT + Duration::from_secs(9));
        assert_eq!(dead.now(), BUILT + Duration::from_secs(9));
        dead.learn(Duration::from_secs(1));
        assert_eq!(dead.now(), BUILT, "the last word of the master counts, not its latest");
        let ahead = TrustedTime::new(|| Duration::from_secs(4_000_000_000), boot);
        ahead.learn(BUILT);
        assert_eq!(ahead.now(), Duration::from_secs(4_000_000_000));
    }

    #[test]
    fn master_time_runs_on() {
        use std::sync::atomic::{AtomicU64, Ordering};
        static BOOT: AtomicU64 = AtomicU64::new(100);
        let time = TrustedTime::new(|| Duration::ZERO, || Duration::from_secs(BOOT.load(Ordering::Relaxed)));
        assert_eq!(time.of_master(), None);
        time.learn(BUILT * 2);
        BOOT.store(160, Ordering::Relaxed);
        assert_eq!(time.now(), BUILT * 2 + Duration::from_secs(60));
    }
}

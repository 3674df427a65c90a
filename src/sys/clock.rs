//! The clock that leases, timeouts and back-off run on.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use super::failpoint::{self, Clock};

/// Time since the machine was started, suspend included (CLOCK_BOOTTIME).
pub fn boottime() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    // The kernel counts up from zero, so neither part is negative.
    let now = Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0));
    failpoint::shift(now, Clock::Boot)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_goes_back() {
        let first = boottime();
        assert!(boottime() >= first && first > Duration::ZERO);
    }
}

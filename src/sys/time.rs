//! Wall clock and boot, for people and for what outlives the process. Deadlines never run on these.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970; 0 when the clock stands before that.
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// A text that another boot of this machine doesn't have, when the kernel tells it.
pub fn boot_id() -> Option<String> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_id_stays_and_the_clock_runs() {
        assert_eq!(boot_id(), boot_id());
        assert!(unix_ms() > 1_600_000_000_000);
    }
}

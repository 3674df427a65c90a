//! Wall clock and boot, for people and for what outlives the process. Deadlines never run on these.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use super::failpoint::{self, Clock};

/// Milliseconds since 1970; 0 when the clock stands before that.
pub fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(failpoint::shift(since, Clock::Wall).as_millis()).unwrap_or(u64::MAX)
}

/// Year, month and day of UTC, this many days after 1970-01-01.
pub fn calendar(mut days: u64) -> (u64, u64, u64) {
    let mut year = 1970u64;
    // At most a few hundred rounds for any clock that could be meant; a mad one gets a mad year, not a long loop.
    while days >= days_of(year) && year < 9_999 {
        days -= days_of(year);
        year += 1;
    }
    let mut month = 1;
    for length in [31, if days_of(year) == 366 { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    (year, month, days.min(30) + 1)
}

fn days_of(year: u64) -> u64 {
    let is_leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    if is_leap { 366 } else { 365 }
}

/// A moment for people, to the minute: `2026-01-31 12:00 UTC`.
pub fn utc(unix_s: u64) -> String {
    let (year, month, day) = calendar(unix_s / 86_400);
    let minutes = unix_s % 86_400 / 60;
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02} UTC", minutes / 60, minutes % 60)
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
    fn knows_the_calendar() {
        // Seconds as `date -u -d DAY +%s` gives them.
        let table = [
            (0, "1970-01-01 00:00 UTC"),
            (951_782_400, "2000-02-29 00:00 UTC"),
            (951_868_800, "2000-03-01 00:00 UTC"),
            (1_709_164_800, "2024-02-29 00:00 UTC"),
            (1_735_603_200, "2024-12-31 00:00 UTC"),
            (1_735_689_600, "2025-01-01 00:00 UTC"),
            (4_107_542_400, "2100-03-01 00:00 UTC"),
            (4_107_542_399, "2100-02-28 23:59 UTC"),
        ];
        for (seconds, words) in table {
            assert_eq!(utc(seconds), words);
        }
        assert_eq!(utc(u64::MAX).len(), 20);
    }

    #[test]
    fn boot_id_stays_and_the_clock_runs() {
        assert_eq!(boot_id(), boot_id());
        assert!(unix_ms() > 1_600_000_000_000);
    }
}

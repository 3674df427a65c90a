//! The day of a moment, for the name of a task.

const DAY_MS: u64 = 86_400_000;

/// The UTC day as `YYYYMMDD`.
pub fn date(unix_ms: u64) -> String {
    let mut days = unix_ms / DAY_MS;
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
    format!("{year:04}{month:02}{:02}", days.min(30) + 1)
}

fn days_of(year: u64) -> u64 {
    let is_leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    if is_leap { 366 } else { 365 }
}

#[cfg(test)]
mod tests {
    use super::date;

    #[test]
    fn knows_the_calendar() {
        // Seconds as `date -u -d DAY +%s` gives them.
        let table = [
            (0, "19700101"),
            (951_782_400, "20000229"),
            (951_868_800, "20000301"),
            (1_709_164_800, "20240229"),
            (1_735_603_200, "20241231"),
            (1_735_689_600, "20250101"),
            (4_107_542_400, "21000301"),
            (4_107_542_399, "21000228"),
        ];
        for (seconds, day) in table {
            assert_eq!(date(seconds * 1_000), day);
        }
        assert_eq!(date(u64::MAX).len(), 8);
    }
}

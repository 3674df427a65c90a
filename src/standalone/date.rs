//! The day of a moment, for the name of a task.

use crate::sys::time::calendar;

/// The UTC day as `YYYYMMDD`.
pub fn date(unix_ms: u64) -> String {
    let (year, month, day) = calendar(unix_ms / 86_400_000);
    format!("{year:04}{month:02}{day:02}")
}

#[cfg(test)]
mod tests {
    use super::date;

    #[test]
    fn knows_the_day() {
        assert_eq!(date(0), "19700101");
        assert_eq!(date(951_782_400_000 + 86_399_999), "20000229");
        assert_eq!(date(u64::MAX).len(), 8);
    }
}

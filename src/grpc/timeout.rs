//! The grpc-timeout field: at most eight digits and a unit (PROTOCOL-HTTP2.md, Timeout).

use std::time::Duration;

const MAX_DIGITS: usize = 8;
const MAX_VALUE: u64 = 99_999_999;
/// Nanoseconds of each unit, from the finest.
const UNITS: [(u8, u64); 6] = [
    (b'n', 1),
    (b'u', 1_000),
    (b'm', 1_000_000),
    (b'S', 1_000_000_000),
    (b'M', 60_000_000_000),
    (b'H', 3_600_000_000_000),
];

/// The field's value.
pub(super) struct Encoded {
    /// Right-aligned.
    bytes: [u8; MAX_DIGITS + 1],
    start: usize,
}

impl Encoded {
    fn new(mut value: u64, unit: u8) -> Encoded {
        let mut encoded = Encoded { bytes: [unit; MAX_DIGITS + 1], start: MAX_DIGITS };
        for digit in encoded.bytes.iter_mut().take(MAX_DIGITS).rev() {
            *digit = b'0' + (value % 10) as u8;
            encoded.start -= 1;
            value /= 10;
            if value == 0 {
                break;
            }
        }
        encoded
    }

    /// Digits and unit.
    pub(super) fn as_bytes(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }
}

/// In the finest unit that fits, rounded up. A server that gives up later than we do is harmless.
pub(super) fn encode(timeout: Duration) -> Encoded {
    // More than 500 years are as good as for ever.
    let total = u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX);
    let fits = UNITS.iter().map(|(unit, nanos)| (total.div_ceil(*nanos), *unit)).find(|(value, _)| *value <= MAX_VALUE);
    let (value, unit) = fits.unwrap_or((MAX_VALUE, b'H'));
    Encoded::new(value, unit)
}

/// `None` for what is not a timeout.
pub(super) fn parse(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > MAX_DIGITS || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let value: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    let (_, nanos) = UNITS.iter().find(|(name, _)| name == unit)?;
    let total = u128::from(value) * u128::from(*nanos);
    Some(Duration::new(u64::try_from(total / 1_000_000_000).ok()?, u32::try_from(total % 1_000_000_000).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodes_in_the_finest_unit_that_fits() {
        for (timeout, want) in [
            (Duration::from_nanos(1), "1n"),
            (Duration::from_millis(99), "99000000n"),
            (Duration::from_millis(100), "100000u"),
            (Duration::from_secs(25), "25000000u"),
            (Duration::from_nanos(100_000_000_001), "100001m"),
            (Duration::from_secs(1_000_000), "1000000S"),
            (Duration::ZERO, "0n"),
            (Duration::MAX, "5124096H"),
        ] {
            assert_eq!(encode(timeout).as_bytes(), want.as_bytes());
        }
    }

    #[test]
    fn parses_each_unit_and_nothing_else() {
        for (text, want) in [("1n", 1), ("2u", 2_000), ("3m", 3_000_000), ("4S", 4_000_000_000), ("1M", 60_000_000_000)]
        {
            assert_eq!(parse(text.as_bytes()), Some(Duration::from_nanos(want)));
        }
        assert_eq!(parse(b"99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for odd in ["", "S", "1", "123456789S", "-1S", "1.5S", "1s", "1 S", " 1S"] {
            assert_eq!(parse(odd.as_bytes()), None, "{odd}");
        }
    }
}

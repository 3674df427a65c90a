//! Amounts as people write them, for messages: the way back from [`super::value`].

const UNITS: [(&str, u32); 5] = [("PiB", 50), ("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];

/// A size that can be compared with a limit beside it: a whole number of a unit, or else of bytes.
pub(crate) fn bytes(bytes: u64) -> String {
    match UNITS.iter().find(|(_, shift)| bytes > 0 && bytes.trailing_zeros() >= *shift) {
        Some((unit, shift)) => format!("{} {unit}", bytes >> shift),
        None => format!("{bytes} bytes"),
    }
}

/// A wanted size and the smaller one that there is, short, and never the same text.
pub(crate) fn bytes_pair(wanted: u64, has: u64) -> (String, String) {
    let pair = (short(wanted), short(has));
    if pair.0 == pair.1 { (format!("{wanted} bytes"), format!("{has} bytes")) } else { pair }
}

/// One digit behind the point, cut.
fn short(bytes: u64) -> String {
    let Some((unit, shift)) = UNITS.iter().find(|(_, shift)| bytes >> shift > 0) else {
        return format!("{bytes} bytes");
    };
    let tenths = (bytes >> (shift - 10)).saturating_mul(10) >> 10;
    match tenths % 10 {
        0 => format!("{} {unit}", tenths / 10),
        digit => format!("{}.{digit} {unit}", tenths / 10),
    }
}

/// Thousandths as a decimal number: CPUs, or seconds from milliseconds.
pub(crate) fn thousandths(number: u64) -> String {
    let text = format!("{}.{:03}", number / 1_000, number % 1_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// CPUs from thousandths.
pub(crate) fn cpus(millis: u64) -> String {
    format!("{} {}", thousandths(millis), if millis == 1_000 { "CPU" } else { "CPUs" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_amounts_as_people_write_them() {
        for (number, text) in [
            (0, "0 bytes"),
            (1, "1 bytes"),
            (1_000, "1000 bytes"),
            (1 << 20, "1 MiB"),
            (1 << 50, "1 PiB"),
            (1536, "1536 bytes"),
        ] {
            assert_eq!(bytes(number), text);
        }
        assert_eq!(bytes_pair(64 << 30, (15 << 30) + (700 << 20)), ("64 GiB".to_owned(), "15.6 GiB".to_owned()));
        assert_eq!(bytes_pair((1 << 30) + 1, 1 << 30), ("1073741825 bytes".to_owned(), "1073741824 bytes".to_owned()));
        assert_eq!((cpus(512_000), cpus(1_000), cpus(750)), ("512 CPUs".into(), "1 CPU".into(), "0.75 CPUs".into()));
        assert_eq!(thousandths(100), "0.1");
    }
}

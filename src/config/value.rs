//! Texts to values: sizes, durations, numbers, words. Each error says what would be right and never repeats a secret.

use std::time::Duration;

use log::LevelFilter;

/// A text that a message may repeat; a longer one is cut there.
const MAX_SHOWN: usize = 60;

/// `text` as a message may repeat it: short and without control characters.
pub(crate) fn shown(text: &str) -> String {
    let mut short: String = text.escape_debug().take(MAX_SHOWN).collect();
    if text.escape_debug().count() > MAX_SHOWN {
        short.push_str("...");
    }
    format!("\"{short}\"")
}

/// A number of bytes: plain, or with a unit. A bare letter (512M) counts in 1024s, as Docker and systemd do.
pub fn size(text: &str) -> Result<u64, String> {
    let wrong = || format!("{} is no size: write 512MiB, 2GiB, 1.5GB or a number of bytes", shown(text));
    let (number, unit) = split_unit(text).ok_or_else(wrong)?;
    let factor: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return Err(wrong()),
    };
    scaled(number, factor).ok_or_else(wrong)
}

/// A duration: `90s`, `5m`, `1h`, `1d`, `500ms`, or a number of seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{} is no duration: write 90s, 5m, 1h, 1d or a number of seconds", shown(text));
    let (number, unit) = split_unit(text).ok_or_else(wrong)?;
    let millis: u64 = match unit.to_ascii_lowercase().as_str() {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(wrong()),
    };
    scaled(number, millis).map(Duration::from_millis).ok_or_else(wrong)
}

/// A number of CPUs, in thousandths.
pub fn cpu_millis(text: &str) -> Result<u64, String> {
    let wrong = || format!("{} is no number of CPUs: write 2 or 1.5, from 0.01 to 1024", shown(text));
    let millis = scaled(text.trim(), 1_000).ok_or_else(wrong)?;
    if (10..=1_024_000).contains(&millis) { Ok(millis) } else { Err(wrong()) }
}

/// A whole number in a range.
pub fn whole(text: &str, range: std::ops::RangeInclusive<u64>) -> Result<u64, String> {
    match text.trim().parse::<u64>() {
        Ok(number) if range.contains(&number) => Ok(number),
        _ => {
            Err(format!("{} is not right: write a whole number from {} to {}", shown(text), range.start(), range.end()))
        }
    }
}

/// Yes or no.
pub fn switch(text: &str) -> Result<bool, String> {
    match text.trim().to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Ok(true),
        "0" | "false" | "no" | "off" => Ok(false),
        _ => Err(format!("{} is neither yes nor no: write true or false", shown(text))),
    }
}

/// A log level by Rust's name or Python's, in any case.
pub fn log_level(text: &str) -> Result<LevelFilter, String> {
    match text.trim().to_ascii_lowercase().as_str() {
        "off" | "none" => Ok(LevelFilter::Off),
        "critical" | "fatal" | "error" => Ok(LevelFilter::Error),
        "warn" | "warning" => Ok(LevelFilter::Warn),
        "info" | "notset" => Ok(LevelFilter::Info),
        "debug" => Ok(LevelFilter::Debug),
        "trace" => Ok(LevelFilter::Trace),
        _ => Err(format!("{} is no log level: write off, error, warn, info, debug or trace", shown(text))),
    }
}

fn split_unit(text: &str) -> Option<(&str, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    (!number.is_empty()).then_some((number, unit.trim_start()))
}

/// `number * factor`, exact to the last whole unit: decimal digits, so that no float rounds a size.
fn scaled(number: &str, factor: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    // Nine digits behind the point are finer than any unit here can show.
    let is_digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !is_digits(whole) || !is_digits(fraction) || fraction.len() > 9 {
        return None;
    }
    let whole: u128 = whole.parse().ok()?;
    let scale = 10u128.pow(u32::try_from(fraction.len()).ok()?);
    let fraction: u128 = fraction.parse().ok()?;
    let digits = whole.checked_mul(scale)?.checked_add(fraction)?;
    let product = digits.checked_mul(u128::from(factor))?;
    u64::try_from(product / scale).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("1048576", 1 << 20),
            ("512MiB", 512 << 20),
            ("2GiB", 2 << 30),
            ("2 gib", 2 << 30),
            ("512m", 512 << 20),
            ("1.5GB", 1_500_000_000),
            ("0.5k", 512),
            ("10kB", 10_000),
            ("7B", 7),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in [
            "",
            "GiB",
            "-1",
            "1e9",
            "1.2.3GB",
            ".5G",
            "5.",
            "2 XB",
            "99999999999999999999",
            "16777216TiB",
            "1,5GB",
            "٣",
        ] {
            assert!(size(text).unwrap_err().contains("512MiB"), "{text}");
        }
    }

    #[test]
    fn reads_durations() {
        for (text, millis) in [
            ("90s", 90_000),
            ("5m", 300_000),
            ("1h", 3_600_000),
            ("1d", 86_400_000),
            ("45", 45_000),
            ("1.5h", 5_400_000),
            ("500ms", 500),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "h", "1y", "-5s", "1h30m", "s5"] {
            assert!(duration(text).unwrap_err().contains("90s"), "{text}");
        }
    }

    #[test]
    fn reads_cpus_levels_and_switches() {
        assert_eq!(cpu_millis("1.5"), Ok(1_500));
        assert_eq!(cpu_millis("0.01"), Ok(10));
        for text in ["0", "0.001", "-1", "all", "2000", "1 000"] {
            assert!(cpu_millis(text).is_err(), "{text}");
        }
        for (text, level) in [
            ("CRITICAL", LevelFilter::Error),
            ("Fatal", LevelFilter::Error),
            ("WARNING", LevelFilter::Warn),
            ("warn", LevelFilter::Warn),
            ("Info", LevelFilter::Info),
            ("DEBUG", LevelFilter::Debug),
            ("trace", LevelFilter::Trace),
            ("off", LevelFilter::Off),
        ] {
            assert_eq!(log_level(text), Ok(level), "{text}");
        }
        assert!(log_level("loud").is_err());
        assert_eq!(switch("Yes"), Ok(true));
        assert_eq!(switch("off"), Ok(false));
        assert!(switch("perhaps").is_err());
    }

    #[test]
    fn repeats_wrong_texts_short_and_harmless() {
        assert_eq!(shown("a\x1b[31m"), "\"a\\u{1b}[31m\"");
        assert!(shown(&"x".repeat(1_000)).len() < 80);
    }
}

//! The thresholds of alerts: `cpu=90,memory=80,disk=off,task-memory=90,after=60s`.

use std::time::Duration;

use crate::node::alerts::Thresholds;

use super::value::{self, shown};

const NAMES: &str = "cpu, memory, disk, task-memory or after";
const LONGEST: Duration = Duration::from_secs(86_400);

/// Reads them; what is not named has its default.
pub(super) fn thresholds(text: &str) -> Result<Thresholds, String> {
    let mut thresholds = Thresholds::default();
    let mut seen: Vec<&str> = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (name, value) = part
            .split_once('=')
            .map(|(name, value)| (name.trim(), value.trim()))
            .ok_or_else(|| format!("{} has no '=': write cpu=90,memory=off,after=60s", shown(part)))?;
        if seen.contains(&name) {
            return Err(format!("{} repeats {name}", shown(part)));
        }
        seen.push(name);
        let in_part = |problem: String| format!("{name}: {problem}");
        match name {
            "cpu" => thresholds.cpu = percent(value).map_err(in_part)?,
            "memory" => thresholds.memory = percent(value).map_err(in_part)?,
            "disk" => thresholds.disk = percent(value).map_err(in_part)?,
            "task-memory" => thresholds.task_memory = percent(value).map_err(in_part)?,
            "after" => {
                let after = value::duration(value).map_err(in_part)?;
                if after > LONGEST {
                    return Err(format!("after: {} is longer than 1d", shown(value)));
                }
                thresholds.after = after;
            }
            _ => return Err(format!("{} is no threshold: write {NAMES}", shown(name))),
        }
    }
    Ok(thresholds)
}

fn percent(text: &str) -> Result<Option<u8>, String> {
    if text.eq_ignore_ascii_case("off") {
        return Ok(None);
    }
    let number = text.strip_suffix('%').unwrap_or(text).trim();
    let wrong = || format!("{} is not right: write 1 to 100, or off", shown(text));
    number.parse().ok().filter(|percent| (1..=100).contains(percent)).map(Some).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_is_named_and_leaves_the_rest() {
        let read = thresholds("cpu=80, memory = off,after=2m, task-memory=99%").unwrap();
        let expected = Thresholds {
            cpu: Some(80),
            memory: None,
            disk: Some(90),
            task_memory: Some(99),
            after: Duration::from_secs(120),
        };
        assert_eq!(read, expected);
        assert_eq!(thresholds("").unwrap(), Thresholds::default());
    }

    #[test]
    fn says_what_is_wrong_and_what_would_be_right() {
        for (text, words) in [
            ("cpu", "has no '='"),
            ("cpu=0", "cpu: \"0\" is not right: write 1 to 100, or off"),
            ("cpu=101", "write 1 to 100"),
            ("gpu=50", "\"gpu\" is no threshold: write cpu, memory"),
            ("cpu=1,cpu=2", "repeats cpu"),
            ("after=2d", "longer than 1d"),
            ("after=soon", "after: \"soon\" is no duration"),
        ] {
            let problem = thresholds(text).unwrap_err();
            assert!(problem.contains(words), "{text}: {problem}");
        }
    }
}

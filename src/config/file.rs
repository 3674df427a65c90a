//! The configuration file: `KEY=value` lines with the names of the environment, so that systemd can read the same
//! file as an `EnvironmentFile`. A `wg0.conf` is told by its content.
//!
//! Left out on purpose: values over several lines and expansion of variables.

use std::path::Path;

use super::error::{ConfigError, Place};
use super::keys;
use super::value::shown;

/// Largest file that is read; a configuration of all keys has a few KiB.
pub const MAX_FILE_BYTES: usize = 256 << 10;

/// What a file turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub enum FileContent {
    /// Settings.
    Settings(Vec<FileEntry>),
    /// A WireGuard configuration: it has an `[Interface]` section.
    WireGuard,
}

/// A line with a value.
#[derive(Debug, PartialEq, Eq)]
pub struct FileEntry {
    /// A name from the table of keys.
    pub key: &'static str,
    /// The value without quotes.
    pub value: String,
    /// From 1.
    pub line: usize,
}

/// Reads the text of a configuration file.
///
/// # Errors
/// Names the line, and the nearest key for an unknown one.
pub fn parse(path: &Path, text: &str) -> Result<FileContent, ConfigError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if is_wireguard(text) {
        return Ok(FileContent::WireGuard);
    }
    let mut entries: Vec<FileEntry> = Vec::new();
    for (index, raw) in text.lines().enumerate() {
        let number = index + 1;
        let refuse = |message: String| ConfigError::new(Place::File { path: path.to_owned(), line: number }, message);
        let line = raw.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        let (name, value) = line.split_once('=').ok_or_else(|| refuse("has no '=': write KEY=value".to_owned()))?;
        let name = name.trim();
        let name = name.strip_prefix("export ").map_or(name, str::trim);
        let key = keys::find(name).ok_or_else(|| refuse(unknown_key(name)))?;
        if let Some(earlier) = entries.iter().find(|entry| entry.key == key.name) {
            return Err(refuse(format!("sets {name} again: line {} sets it too", earlier.line)));
        }
        let value = unquote(value.trim()).map_err(|problem| refuse(format!("{name} {problem}")))?;
        entries.push(FileEntry { key: key.name, value, line: number });
    }
    Ok(FileContent::Settings(entries))
}

/// Says that a name is no key, with the one that was probably meant.
pub(crate) fn unknown_key(name: &str) -> String {
    match keys::nearest(name) {
        Some(near) => format!("unknown key {}: the nearest is {near}", shown(name)),
        None => format!("unknown key {}: `hivemind-worker help keys` lists them", shown(name)),
    }
}

fn is_wireguard(text: &str) -> bool {
    text.lines()
        .map(str::trim)
        .find(|line| !line.is_empty() && !line.starts_with(['#', ';']))
        .is_some_and(|line| line.eq_ignore_ascii_case("[interface]") || line.eq_ignore_ascii_case("[peer]"))
}

/// Takes quotes off as an `EnvironmentFile` has them: single quotes keep all, double quotes know `\"`, `\\`, `\$`, `` \` ``.
/// A `#` inside a value belongs to it, as it does there.
fn unquote(value: &str) -> Result<String, &'static str> {
    if let Some(inner) = value.strip_prefix('\'') {
        return match inner.strip_suffix('\'') {
            Some(inner) if !inner.contains('\'') => Ok(inner.to_owned()),
            _ => Err("has a quote that doesn't end at the end of the line"),
        };
    }
    let Some(inner) = value.strip_prefix('"') else {
        return if value.ends_with('\\') {
            Err("goes on in the next line, which is not supported: write it in one line")
        } else {
            Ok(value.to_owned())
        };
    };
    let mut out = String::with_capacity(inner.len());
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' if chars.as_str().is_empty() => return Ok(out),
            '"' => return Err("has text behind the closing quote"),
            '\\' => match chars.next() {
                Some(escaped @ ('"' | '\\' | '$' | '`')) => out.push(escaped),
                Some(other) => out.extend(['\\', other]),
                None => break,
            },
            c => out.push(c),
        }
    }
    Err("has a quote that doesn't end at the end of the line")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(text: &str) -> Vec<(&'static str, String)> {
        match parse(Path::new("w.conf"), text).unwrap() {
            FileContent::Settings(entries) => entries.into_iter().map(|entry| (entry.key, entry.value)).collect(),
            FileContent::WireGuard => panic!("taken for WireGuard"),
        }
    }

    #[test]
    fn reads_comments_quotes_and_spaces() {
        let text = "\u{feff}# a comment\n; another\n\n NODE_ID = n1 \nLOG_LEVEL='debug'\r\nNODE_LABELS=\"a=\\\"b\\\\\"\n\
                    LOG_FILE=/tmp/a b#c\nexport MONITOR_PORT=7";
        assert_eq!(
            settings(text),
            [
                ("NODE_ID", "n1".to_owned()),
                ("LOG_LEVEL", "debug".to_owned()),
                ("NODE_LABELS", "a=\"b\\".to_owned()),
                ("LOG_FILE", "/tmp/a b#c".to_owned()),
                ("MONITOR_PORT", "7".to_owned()),
            ]
        );
    }

    #[test]
    fn names_file_line_and_nearest_key() {
        for (text, message) in [
            ("\nNODE_IDD=x", "w.conf:2: unknown key \"NODE_IDD\": the nearest is NODE_ID"),
            ("hello", "w.conf:1: has no '=': write KEY=value"),
            ("NODE_ID=a\nNODE_ID=b", "w.conf:2: sets NODE_ID again: line 1 sets it too"),
            ("NODE_ID='a", "w.conf:1: NODE_ID has a quote that doesn't end at the end of the line"),
            ("NODE_ID=\"a\" b", "w.conf:1: NODE_ID has text behind the closing quote"),
            ("NODE_ID=\"a\\\"", "w.conf:1: NODE_ID has a quote that doesn't end at the end of the line"),
            ("NODE_ID=a\\", "w.conf:1: NODE_ID goes on in the next line, which is not supported: write it in one line"),
            ("ZZZ=1", "w.conf:1: unknown key \"ZZZ\": `hivemind-worker help keys` lists them"),
        ] {
            assert_eq!(parse(Path::new("w.conf"), text).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn tells_a_wireguard_file_by_its_content() {
        let text = "# made by hand\n\n[Interface]\nAddress = 10.8.0.2/32\n";
        assert_eq!(parse(Path::new("w.conf"), text), Ok(FileContent::WireGuard));
    }

    #[test]
    fn never_panics_on_truncation() {
        let text = "# c\nNODE_LABELS=\"a=\\\"b\\\\ä\"\nLOG_LEVEL='x'\n";
        for end in (0..text.len()).filter(|end| text.is_char_boundary(*end)) {
            let _ = parse(Path::new("w.conf"), &text[..end]);
        }
    }
}

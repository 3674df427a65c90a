//! A `requirements.txt` of a task: named requirements and nothing else. Pure: what is in it is read by pip, so that what this
//! lets through must have one meaning there, and no way to a file, a URL or an option.
//!
//! Left out on purpose: the grammars of versions and markers, which pip checks; here their characters are enough.

/// All of it.
pub const MAX_BYTES: usize = 64 << 10;
/// Of one, with its hashes.
const MAX_LINE_BYTES: usize = 8 << 10;
/// A list that a person keeps.
pub const MAX_REQUIREMENTS: usize = 256;
/// Of a wrong text, so many characters are shown.
const SHOWN: usize = 40;
/// Endings of files: pip takes a name with one of these for a file, if there is one.
const ARCHIVES: [&str; 10] =
    [".whl", ".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz", ".tar.xz", ".txz", ".tar.lzma"];
/// What compares a version, the longer ones first.
const OPERATORS: [&str; 8] = ["===", "==", "!=", "<=", ">=", "~=", "<", ">"];

/// The requirements one a line, without comments and continued lines; empty if there are none.
///
/// # Errors
/// The number of the line, and what is wrong with it.
pub fn check(text: &str) -> Result<String, String> {
    if text.len() > MAX_BYTES {
        return Err(format!("has {} bytes, at most {MAX_BYTES} are allowed", text.len()));
    }
    let mut plain = String::new();
    let mut count = 0;
    for (number, line) in joined(text) {
        let Some(requirement) = requirement(&line).map_err(|why| format!("line {number}: {why}"))? else { continue };
        count += 1;
        if count > MAX_REQUIREMENTS {
            return Err(format!("line {number}: has more than {MAX_REQUIREMENTS} requirements"));
        }
        plain.push_str(&requirement);
        plain.push('\n');
    }
    Ok(plain)
}

/// How many there are in what [`check`] has given.
pub fn count(plain: &str) -> usize {
    plain.lines().count()
}

/// The lines with what continues them, each with the number of its first. A comment ends before lines are joined only where
/// it is the whole line, as for pip.
fn joined(text: &str) -> Vec<(usize, String)> {
    let mut lines: Vec<(usize, String)> = Vec::new();
    let mut is_open = false;
    for (index, line) in text.lines().enumerate() {
        let is_comment = line.trim_start().starts_with('#');
        let (part, continues) = match line.strip_suffix('\\') {
            Some(part) if !is_comment => (part, true),
            _ => (line, false),
        };
        match lines.last_mut() {
            Some((_, before)) if is_open => before.push_str(if is_comment { "" } else { part }),
            _ => lines.push((index + 1, if is_comment { String::new() } else { part.to_owned() })),
        }
        is_open = continues;
    }
    lines
}

fn shown(text: &str) -> String {
    let start: String = text.chars().take(SHOWN).flat_map(char::escape_debug).collect();
    format!("\"{start}\"")
}

fn requirement(line: &str) -> Result<Option<String>, String> {
    // pip's own rule: a comment begins at the line's start or behind a space.
    let comment = line.char_indices().find(|(at, c)| *c == '#' && line[..*at].ends_with([' ', '\t']));
    let line = comment.map_or(line, |(at, _)| &line[..at]).trim();
    if line.is_empty() {
        return Ok(None);
    }
    if line.len() > MAX_LINE_BYTES {
        return Err(format!("has {} bytes, at most {MAX_LINE_BYTES} are allowed", line.len()));
    }
    if let Some(odd) = line.chars().find(|c| !(c.is_ascii_graphic() || matches!(c, ' ' | '\t'))) {
        return Err(format!("has the character {odd:?}, which no requirement has"));
    }
    if line.starts_with('-') {
        return Err(format!("{} is an option: only named requirements are taken, as name==1.2", shown(line)));
    }
    if line.contains("://") || line.contains('@') {
        return Err(format!("{} names a URL: only named requirements are taken, as name==1.2", shown(line)));
    }
    if line.contains(['/', '\\']) || line.starts_with('.') {
        return Err(format!("{} names a path: only named requirements are taken, as name==1.2", shown(line)));
    }
    let (line, hashes) = match line.find(" --") {
        Some(at) => (line[..at].trim_end(), hashes(&line[at..])?),
        None => (line, String::new()),
    };
    let (named, marker) = match line.split_once(';') {
        Some((named, marker)) => (named.trim_end(), marker_of(marker)?),
        None => (line, String::new()),
    };
    let (name, rest) = named.split_at(named.find(|c: char| !is_name(c)).unwrap_or(named.len()));
    check_name(name)?;
    let (extras, rest) = extras(rest.trim_start())?;
    let versions = versions(rest)?;
    Ok(Some(format!("{name}{extras}{versions}{marker}{hashes}")))
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_')
}

fn check_name(name: &str) -> Result<(), String> {
    let ends = [name.chars().next(), name.chars().next_back()];
    if !ends.iter().all(|end| end.is_some_and(|c| c.is_ascii_alphanumeric())) {
        return Err(format!("begins with {}, which is no name of a package", shown(name)));
    }
    let lower = name.to_ascii_lowercase();
    if ARCHIVES.iter().any(|ending| lower.ends_with(ending)) {
        return Err(format!("{} names a file: only named requirements are taken, as name==1.2", shown(name)));
    }
    Ok(())
}

/// `[one,two]`, and what is behind it.
fn extras(text: &str) -> Result<(String, &str), String> {
    let Some(inside) = text.strip_prefix('[') else { return Ok((String::new(), text)) };
    let (names, rest) = inside.split_once(']').ok_or("has a [ without its ]")?;
    let names: Vec<&str> = names.split(',').map(str::trim).collect();
    if let Some(wrong) = names.iter().find(|name| name.is_empty() || !name.chars().all(is_name)) {
        return Err(format!("has the extra {}, which is no name", shown(wrong)));
    }
    Ok((format!("[{}]", names.join(",")), rest))
}

fn versions(text: &str) -> Result<String, String> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(String::new());
    }
    let mut parts = Vec::new();
    for part in text.split(',').map(str::trim) {
        let operator = OPERATORS.iter().find(|operator| part.starts_with(**operator));
        let operator = operator.ok_or_else(|| format!("has {} where a version as ==1.2 should be", shown(part)))?;
        let version = part[operator.len()..].trim();
        let is_version = |c: char| is_name(c) || matches!(c, '*' | '+' | '!');
        if version.is_empty() || !version.chars().all(is_version) {
            return Err(format!("has {}, which is no version", shown(part)));
        }
        parts.push(format!("{operator}{version}"));
    }
    Ok(parts.join(","))
}

fn marker_of(text: &str) -> Result<String, String> {
    let marker = text.trim();
    let is_fine = |c: char| is_name(c) || matches!(c, ' ' | '\'' | '"' | '<' | '>' | '=' | '!' | '~' | '(' | ')' | '*');
    if marker.is_empty() || !marker.chars().all(is_fine) {
        return Err(format!("has {}, which is no marker", shown(marker)));
    }
    Ok(format!(" ; {marker}"))
}

fn hashes(text: &str) -> Result<String, String> {
    let mut hashes = String::new();
    for word in text.split_whitespace() {
        let digits = word
            .strip_prefix("--hash=sha256:")
            .ok_or_else(|| format!("has the option {}: only --hash=sha256:... is taken", shown(word)))?;
        if digits.len() != 64 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err("has a hash that is not 64 hex digits".to_owned());
        }
        hashes.push_str(&format!(" --hash=sha256:{}", digits.to_ascii_lowercase()));
    }
    Ok(hashes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_named_requirements_in_their_plain_form() {
        let hash = "0F".repeat(32);
        for (text, plain) in [
            ("", ""),
            ("# only a comment\n\n   \n", ""),
            ("numpy", "numpy\n"),
            ("  numpy == 1.26.4  # pinned", "numpy==1.26.4\n"),
            ("a>=1,<2 , !=1.5.*\r\nb~=2.0", "a>=1,<2,!=1.5.*\nb~=2.0\n"),
            ("requests[socks, security]>=2", "requests[socks,security]>=2\n"),
            ("a===1.0+local.1", "a===1.0+local.1\n"),
            (
                "a; python_version < '3.13' and sys_platform == \"linux\"",
                "a ; python_version < '3.13' and sys_platform == \"linux\"\n",
            ),
            ("a==1 \\\n  # why\n  \n", "a==1\n"),
            ("zope.interface_x-y==1!2", "zope.interface_x-y==1!2\n"),
        ] {
            assert_eq!(check(text).as_deref(), Ok(plain), "{text:?}");
        }
        let hashed = format!("a==1 \\\n    --hash=sha256:{hash} \\\n    --hash=sha256:{hash}\nb");
        let lower = hash.to_lowercase();
        assert_eq!(check(&hashed).unwrap(), format!("a==1 --hash=sha256:{lower} --hash=sha256:{lower}\nb\n"));
        assert_eq!(count(&check("a\n\n#x\nb").unwrap()), 2);
    }

    #[test]
    fn whatever_leads_elsewhere_is_refused_with_its_line() {
        for line in [
            "-r other.txt",
            "-e .",
            "-e ./pkg",
            "--index-url https://evil.example/",
            "-i x",
            "--extra-index-url x",
            "--find-links /",
            "--no-binary :all:",
            "--trusted-host x",
            "./pkg",
            ".",
            "..",
            "/etc/passwd",
            "a/b",
            "a\\b",
            "C:\\x",
            "https://evil.example/a.whl",
            "git+https://evil.example/a",
            "file:///etc/passwd",
            "a @ https://evil.example/a.whl",
            "a@file",
            "a @ b",
            "a.whl",
            "a-1.0-py3-none-any.whl",
            "a.tar.gz",
            "a.ZIP",
            "a==1 --no-binary=:all:",
            "a==1 --install-option=x",
            "a==1 --global-option=x",
            "a==1 --config-settings=x=y",
            "a==1 --hash=md5:00",
            "a==1 --hash=sha256:00",
            "a==$VERSION",
            "a==${VERSION}",
            "a b",
            "a 1.0",
            "a=1",
            "a==",
            "a==1,,2",
            "a==1,",
            "a[",
            "a[]",
            "a[x y]",
            "a[x]]",
            "a;",
            "a; x`y`",
            "a; python_version == '3' -r x/y",
            "_a",
            "a-",
            "==1",
            "a\u{0}",
            "a\u{1b}[2J",
            "\u{430}",
            "a\u{a0}==1",
            "a==1\u{2028}-r x",
            "a==1\u{c}-r x",
            "a==1\u{b}b",
        ] {
            let error = check(&format!("good==1\n\n{line}\nalso")).expect_err(line);
            assert!(error.starts_with("line 3: "), "{line:?}: {error}");
            assert!(error.len() < 400, "{error}");
        }
        // A continued line is one: what hides behind the end of the first is found.
        assert!(check("a==1 \\\n-r other").unwrap_err().starts_with("line 1: "));
        assert!(check(&"a\n".repeat(257)).unwrap_err().contains("line 257"));
        assert!(check(&"a".repeat(MAX_BYTES + 1)).unwrap_err().contains("bytes"));
        assert!(check(&format!("a=={}", "1".repeat(9_000))).unwrap_err().contains("bytes"));
    }

    #[test]
    fn a_plain_form_is_its_own_plain_form() {
        let plain = check("a [x] >= 1 ; os_name == 'nt'\nb").unwrap();
        assert_eq!(check(&plain).unwrap(), plain);
    }
}

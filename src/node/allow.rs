//! Which images tasks may name: the owner's list of patterns.
//!
//! ```text
//! list      = entry *( "," entry )
//! entry     = [ "!" ] ( "**" / pattern )            "!" forbids, and wins; "**" alone is every image
//! pattern   = name [ ":" tag / "@sha256:" 64 hex ]  without either: any tag, any digest
//! name      = [ host "/" ] word *( "/" word ) [ "/**" ]
//! ```
//!
//! Names are completed as the engine does it, in patterns and in references: `python` is `docker.io/library/python`. In the
//! host, a word and the tag, `*` stands for any characters but `/`, also none; `**` at the end for one or more words. `:*` is
//! the same as no tag.
//!
//! A digest says which content is meant, whatever tag stands beside it. So a pattern that allows a tag allows no reference
//! with a digest, and one that forbids a tag forbids these too: nobody knows which tags they had.
//!
//! A list that only forbids allows the rest. The base image is allowed unless an entry forbids it.

use super::image::{DEFAULT_REGISTRY, ImageRef, hub_name, is_host, parse_digest};
use super::spec::BASE_IMAGE;

/// The key that has the list.
const KEY: &str = "HIVEMIND_TASK_IMAGES";
/// A list that a person writes.
const MAX_ENTRIES: usize = 64;
/// As long as a reference can be.
const MAX_ENTRY_BYTES: usize = 456;
/// Of an entry that is wrong, so many characters are shown.
const MAX_SHOWN: usize = 60;
/// Matching costs up to the name's length for each.
const MAX_STARS: usize = 8;

/// The list, and where it was written. The default allows everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImagePolicy {
    allowed: Vec<Pattern>,
    forbidden: Vec<Pattern>,
    source: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Pattern {
    text: String,
    words: Vec<String>,
    /// `**` stands behind them.
    is_open: bool,
    version: Version,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Version {
    Any,
    Tag(String),
    Digest(String),
}

/// What a pattern is there for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    Allows,
    Forbids,
}

impl ImagePolicy {
    /// Reads a list; `source` says where it stands.
    ///
    /// # Errors
    /// Which entry is wrong, and what would be right.
    pub fn parse(text: &str, source: &str) -> Result<Self, String> {
        let mut policy = Self { source: source.to_owned(), ..Self::default() };
        for entry in text.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
            let shown: String = entry.escape_debug().take(MAX_SHOWN).collect();
            let refuse = |problem: String| format!("\"{shown}\" {problem}");
            match entry.strip_prefix('!') {
                Some(pattern) => policy.forbidden.push(Pattern::parse(pattern.trim()).map_err(refuse)?),
                None => policy.allowed.push(Pattern::parse(entry).map_err(refuse)?),
            }
        }
        match policy.allowed.len() + policy.forbidden.len() {
            0 => Err("has no entry: write ** for every image".to_owned()),
            1..=MAX_ENTRIES => Ok(policy),
            count => Err(format!("has {count} entries, at most {MAX_ENTRIES} are allowed")),
        }
    }

    /// Whether the two say the same, wherever they stand.
    pub fn is_same(&self, other: &Self) -> bool {
        (&self.allowed, &self.forbidden) == (&other.allowed, &other.forbidden)
    }

    /// Whether a task may name this image.
    ///
    /// # Errors
    /// A sentence fragment that names the key and where the list stands.
    pub fn judge(&self, image: &ImageRef) -> Result<(), String> {
        let name = image.full_name();
        if let Some(pattern) = self.forbidden.iter().find(|pattern| pattern.matches(&name, image, Use::Forbids)) {
            return Err(format!("is {image}, which !{} in {KEY} of this node ({}) forbids", pattern.text, self.source));
        }
        let is_base = ImageRef::parse(BASE_IMAGE).is_ok_and(|base| base.full_name() == name);
        let is_allowed = || self.allowed.iter().any(|pattern| pattern.matches(&name, image, Use::Allows));
        if is_base || self.allowed.is_empty() || is_allowed() {
            Ok(())
        } else {
            Err(format!("is {image}, which no pattern in {KEY} of this node ({}) allows", self.source))
        }
    }
}

impl Pattern {
    fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() || text.len() > MAX_ENTRY_BYTES {
            return Err(format!("must have 1 to {MAX_ENTRY_BYTES} bytes"));
        }
        if text.matches('*').count() > MAX_STARS {
            return Err(format!("has more than {MAX_STARS} '*'"));
        }
        let text_here = text.to_owned();
        if text == "**" {
            return Ok(Self { text: text_here, words: Vec::new(), is_open: true, version: Version::Any });
        }
        if text == "*" {
            return Err("stands for nothing: write ** for every image, docker.io/library/* for those".to_owned());
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(parse_digest(digest).map_err(|error| error.to_string())?)),
            None => (text, None),
        };
        let last = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match rest[last..].split_once(':') {
            Some((word, tag)) => (&rest[..last + word.len()], Some(tag)),
            None => (rest, None),
        };
        let version = match (tag, digest) {
            (Some(_), Some(_)) => return Err("has a tag and a digest: write one of them".to_owned()),
            (None, Some(digest)) => Version::Digest(digest),
            (None, None) | (Some("*"), None) => Version::Any,
            (Some(tag), None) if is_of(tag, "_.-") => Version::Tag(tag.to_owned()),
            (Some(_), None) => return Err("has a tag of other characters than letters, digits, _ . - and *".to_owned()),
        };
        let (name, is_open) = name.strip_suffix("/**").map_or((name, false), |name| (name, true));
        let words: Vec<String> = completed(name, is_open).split('/').map(str::to_owned).collect();
        let is_word = |(index, word): (usize, &String)| {
            let more = if index == 0 { ".:-" } else { "._-" };
            let is_lower = index == 0 || !word.bytes().any(|byte| byte.is_ascii_uppercase());
            let port = if index == 0 { word.split_once(':').map_or("1", |(_, port)| port) } else { "1" };
            let is_port = port.bytes().all(|byte| byte.is_ascii_digit() || byte == b'*');
            is_of(word, more) && is_of(port, "") && is_port && is_lower && !word.contains("**")
        };
        if !words.iter().enumerate().all(is_word) {
            return Err(
                "has a name that is not lower-case words between '/', with '*' in a word or ** as the last".to_owned()
            );
        }
        Ok(Self { text: text_here, words, is_open, version })
    }

    fn matches(&self, name: &str, image: &ImageRef, use_: Use) -> bool {
        let words: Vec<&str> = name.split('/').collect();
        let is_long = if self.is_open { words.len() > self.words.len() } else { words.len() == self.words.len() };
        let is_name = is_long && self.words.iter().zip(&words).all(|(pattern, word)| is_like(pattern, word));
        is_name
            && match &self.version {
                Version::Any => true,
                Version::Digest(digest) => image.digest() == Some(digest),
                Version::Tag(_) if image.digest().is_some() => use_ == Use::Forbids,
                Version::Tag(pattern) => image.tag().is_some_and(|tag| is_like(pattern, tag)),
            }
    }
}

/// As `ImageRef::full_name`, for a pattern. One that is open names a folder or a host, not an image.
fn completed(name: &str, is_open: bool) -> String {
    let on_hub = |path: &str| if is_open { format!("{DEFAULT_REGISTRY}/{path}") } else { hub_name(path) };
    let (first, path) = name.split_once('/').map_or((name, None), |(first, path)| (first, Some(path)));
    if !is_host(first) || (path.is_none() && !is_open) {
        return on_hub(name);
    }
    let host = match first.to_ascii_lowercase().as_str() {
        "index.docker.io" => DEFAULT_REGISTRY.to_owned(),
        host => host.to_owned(),
    };
    match path {
        None => host,
        Some(path) if host == DEFAULT_REGISTRY => on_hub(path),
        Some(path) => format!("{host}/{path}"),
    }
}

fn is_of(text: &str, more: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '*' || more.contains(c))
}

/// `*` stands for any characters. Each star but the last takes as little as it can, which finds a match if there is one.
fn is_like(pattern: &str, text: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        match text.find(part) {
            Some(at) => text = &text[at + part.len()..],
            None => return false,
        }
    }
    text.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(list: &str, image: &str) -> bool {
        ImagePolicy::parse(list, "test").unwrap().judge(&ImageRef::parse(image).unwrap()).is_ok()
    }

    fn pin(name: &str) -> String {
        format!("{name}@sha256:{}", "0f".repeat(32))
    }

    /// By the definition: a star stands for any beginning of the rest.
    fn is_like_by_definition(pattern: &str, text: &str) -> bool {
        match pattern.split_at_checked(1) {
            None => text.is_empty(),
            Some(("*", rest)) => (0..=text.len()).any(|at| is_like_by_definition(rest, &text[at..])),
            Some((letter, rest)) => text.strip_prefix(letter).is_some_and(|text| is_like_by_definition(rest, text)),
        }
    }

    /// All words of up to this length.
    fn words(letters: &[char], length: usize) -> Vec<String> {
        let mut all = vec![String::new()];
        let mut begin = 0;
        for _ in 0..length {
            let longer: Vec<String> = all[begin..]
                .iter()
                .flat_map(|word| letters.iter().map(move |letter| format!("{word}{letter}")))
                .collect();
            begin = all.len();
            all.extend(longer);
        }
        all
    }

    #[test]
    fn stars_match_as_they_are_defined() {
        let texts = words(&['a', 'b'], 6);
        let mut matched = 0;
        for pattern in words(&['a', 'b', '*'], 5) {
            for text in &texts {
                let expected = is_like_by_definition(&pattern, text);
                assert_eq!(is_like(&pattern, text), expected, "{pattern} {text}");
                matched += u32::from(expected);
            }
        }
        assert!(matched > 1_000, "{matched}");
    }

    #[test]
    fn a_pattern_is_over_the_whole_of_a_completed_name() {
        let cases: [(&str, &[&str], &[&str]); 11] = [
            ("**", &["python", "ghcr.io/a/b:1", "h:5000/x"], &[]),
            ("index.docker.io/**", &["python", "acme/a"], &["ghcr.io/a"]),
            ("docker.io/python", &["python:3"], &["acme/python"]),
            (
                "docker.io/library/python:*",
                &["python", "python:3.12", "docker.io/python", "index.docker.io/library/python:3"],
                &["pythonx", "evil/python", "ghcr.io/library/python", "library/python/x"],
            ),
            ("python", &["python:3", "docker.io/library/python"], &["acme/python"]),
            (
                "ghcr.io/acme/**",
                &["ghcr.io/acme/a", "ghcr.io/acme/a/b/c:1", "GHCR.io/acme/a"],
                &["ghcr.io/acme", "ghcr.io/acmex/a", "ghcr.io.evil.org/acme/a", "ghcr.io:443/acme/a", "acme/a"],
            ),
            ("ghcr.io/acme/*", &["ghcr.io/acme/a"], &["ghcr.io/acme/a/b", "ghcr.io/acme"]),
            ("acme/**", &["acme/a", "docker.io/acme/a/b"], &["acme.org/acme/a", "acme"]),
            ("*.example.org:5000/**", &["r.example.org:5000/a/b"], &["r.example.org/a", "example.org:5000/a"]),
            ("a/team-*-x:v*", &["a/team-1-x:v2", "a/team--x:v"], &["a/team-x:v1", "a/team-1-x:latest", "a/team-1-x"]),
            ("localhost:5000/**", &["localhost:5000/a"], &["localhost:50001/a", "localhost/a"]),
        ];
        for (list, good, bad) in cases {
            good.iter().for_each(|image| assert!(allows(list, image), "{list} {image}"));
            bad.iter().for_each(|image| assert!(!allows(list, image), "{list} {image}"));
        }
    }

    #[test]
    fn a_digest_has_no_tag_that_could_be_trusted() {
        let other = format!("python@sha256:{}", "1e".repeat(32));
        assert!(allows("python", &pin("python")) && allows("python:*", &pin("python:3.12")));
        assert!(!allows("python:3.*", &pin("python:3.12")), "any content can stand beside an allowed tag");
        assert!(!allows("**,!python:2.*", &pin("python:3.12")), "it may be that of a forbidden tag");
        assert!(allows(&pin("python"), &pin("python")) && !allows(&pin("python"), &other));
        assert!(!allows(&pin("python"), "python:3"));
    }

    #[test]
    fn what_is_forbidden_is_so_whatever_allows_it() {
        assert!(!allows("ghcr.io/acme/**,!ghcr.io/acme/secret", "ghcr.io/acme/secret:1"));
        assert!(allows("ghcr.io/acme/**, !ghcr.io/acme/secret", "ghcr.io/acme/secret/part"));
        assert!(allows("!docker.io/**", "ghcr.io/a") && !allows("!docker.io/**", "python"));
    }

    #[test]
    fn the_base_image_is_allowed_unless_it_is_forbidden_by_name() {
        assert!(allows("ghcr.io/acme/**", BASE_IMAGE) && allows("ghcr.io/acme/**", "justin308/hivemind-worker:0.1"));
        assert!(!allows("ghcr.io/acme/**", "evil.org/justin308/hivemind-worker"));
        assert!(!allows("ghcr.io/acme/**,!justin308/hivemind-worker", BASE_IMAGE));
    }

    #[test]
    fn a_refusal_names_key_source_and_image() {
        let judge = |list: &str| {
            let policy = ImagePolicy::parse(list, "/etc/hivemind.conf:7").unwrap();
            policy.judge(&ImageRef::parse("python:3").unwrap()).unwrap_err()
        };
        let source = "HIVEMIND_TASK_IMAGES of this node (/etc/hivemind.conf:7)";
        assert_eq!(judge("a/b"), format!("is python:3, which no pattern in {source} allows"));
        assert_eq!(judge("!pyth*"), format!("is python:3, which !pyth* in {source} forbids"));
    }

    #[test]
    fn entries_that_could_be_meant_otherwise_are_refused() {
        let long = "a".repeat(457);
        for list in [
            "",
            " , ",
            "!",
            "*",
            "a//b",
            "/a",
            "a/",
            "**/a",
            "a/**/b",
            "a/x**",
            "a b",
            "a:",
            "a:b:c",
            "a:x/y",
            "A/b",
            "a@sha256:00",
            "a:1@sha256:00",
            "https://ghcr.io/a",
            "é",
            "a*a*a*a*a*a*a*a*a*",
            long.as_str(),
        ] {
            assert!(ImagePolicy::parse(list, "").is_err(), "{list:?}");
        }
        assert!(ImagePolicy::parse(&"a,".repeat(64), "").is_ok());
        assert!(ImagePolicy::parse(&"a,".repeat(65), "").unwrap_err().contains("at most 64"));
        assert!(allows(&pin("a/b"), &pin("a/b")));
    }
}

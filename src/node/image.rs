//! Image references by a grammar of our own, stricter than the engine's, so that nothing in one can be
//! read as an option, a query or a path.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Longest reference in bytes: 255 for the name as the distribution spec has it, 128 for the tag, 71 for the digest.
const MAX_REFERENCE_LEN: usize = 255 + 1 + 128 + 1 + 71;
const MAX_NAME_LEN: usize = 255;
const MAX_TAG_LEN: usize = 128;

/// `[host[:port]/]path[:tag][@sha256:hex]`, normalised to have a tag when there is no digest.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageRef {
    name: String,
    tag: Option<String>,
    digest: Option<String>,
}

impl ImageRef {
    /// Checks `text` against the grammar.
    ///
    /// # Errors
    /// One sentence fragment that says what is wrong.
    pub fn parse(text: &str) -> Result<Self, ImageError> {
        if text.is_empty() {
            return Err(ImageError("is empty"));
        }
        if text.len() > MAX_REFERENCE_LEN {
            return Err(ImageError("is longer than 456 bytes"));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(parse_digest(digest)?)),
            None => (text, None),
        };
        let last_component = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match rest[last_component..].split_once(':') {
            Some((last, tag)) => (&rest[..last_component + last.len()], Some(parse_tag(tag)?)),
            None => (rest, None),
        };
        check_name(name)?;
        let tag = tag.or_else(|| digest.is_none().then(|| "latest".to_owned()));
        Ok(Self { name: name.to_owned(), tag, digest })
    }

    /// Host and path, without tag and digest.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The tag, when one was written or implied.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// `sha256:` and 64 hex digits, when the reference is pinned.
    pub fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }

    /// Host and path as the engine completes them: `docker.io/library/python` for `python`. The host is in lower case,
    /// since names of hosts are the same in any.
    pub fn full_name(&self) -> String {
        match self.name.split_once('/') {
            Some((first, path)) if is_host(first) => match first.to_ascii_lowercase().as_str() {
                // The second is the engine's older name for it.
                DEFAULT_REGISTRY | "index.docker.io" => hub_name(path),
                host => format!("{host}/{path}"),
            },
            _ => hub_name(&self.name),
        }
    }

    /// The same text for all spellings of a reference.
    pub fn full_text(&self) -> String {
        let name = self.full_name();
        match (&self.digest, &self.tag) {
            (Some(digest), _) => format!("{name}@{digest}"),
            (None, tag) => format!("{name}:{}", tag.as_deref().unwrap_or("latest")),
        }
    }

    /// The registry: `docker.io`, or another host in lower case.
    pub fn registry(&self) -> String {
        let name = self.full_name();
        name.split('/').next().unwrap_or(DEFAULT_REGISTRY).to_owned()
    }

    /// This content of the same name, whatever the tag means by now.
    pub fn pinned_to(&self, digest: &str) -> Result<Self, ImageError> {
        Ok(Self { name: self.name.clone(), tag: None, digest: Some(parse_digest(digest)?) })
    }
}

/// Checks the name of a registry, and gives it as [`ImageRef::registry`] does.
///
/// # Errors
/// One sentence fragment that says what is wrong.
pub fn parse_registry(text: &str) -> Result<String, ImageError> {
    let image = ImageRef::parse(&format!("{text}/x"))?;
    if is_host(text) && !text.contains('/') {
        Ok(image.registry())
    } else {
        Err(ImageError("is no host with a dot, a port or the name localhost"))
    }
}

/// Where an image is from whose name has no host.
pub const DEFAULT_REGISTRY: &str = "docker.io";

pub(super) fn hub_name(path: &str) -> String {
    let folder = if path.contains('/') { "" } else { "library/" };
    format!("{DEFAULT_REGISTRY}/{folder}{path}")
}

pub(super) fn parse_digest(text: &str) -> Result<String, ImageError> {
    let is_hex = |hex: &str| hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    match text.strip_prefix("sha256:") {
        Some(hex) if is_hex(hex) => Ok(text.to_owned()),
        _ => Err(ImageError("has a digest that is not sha256: and 64 lower-case hex digits")),
    }
}

fn parse_tag(text: &str) -> Result<String, ImageError> {
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let bytes = text.as_bytes();
    let is_tag = bytes.len() <= MAX_TAG_LEN
        && bytes.first().is_some_and(|b| is_word(*b))
        && bytes.iter().all(|b| is_word(*b) || matches!(b, b'.' | b'-'));
    if is_tag {
        Ok(text.to_owned())
    } else {
        Err(ImageError("has a tag that is not [A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"))
    }
}

fn check_name(name: &str) -> Result<(), ImageError> {
    if name.len() > MAX_NAME_LEN {
        return Err(ImageError("has a name longer than 255 bytes"));
    }
    // `sha256:0f0f` would be read by the engine as the id of any image that the machine has.
    if name == "sha256" {
        return Err(ImageError("has the name sha256, which stands for an image id"));
    }
    let path = match name.split_once('/') {
        Some((first, path)) if is_host(first) => {
            check_host(first)?;
            path
        }
        _ => name,
    };
    if path.split('/').all(is_path_component) {
        Ok(())
    } else {
        Err(ImageError("has a name that is not lower-case letters and digits, joined by '.', '_', '-' and '/'"))
    }
}

/// The engine's own rule: the part before the first slash is a host when it has a dot or a port, or is localhost.
pub(super) fn is_host(first: &str) -> bool {
    first.contains(['.', ':']) || first == "localhost"
}

fn check_host(host: &str) -> Result<(), ImageError> {
    let (name, port) = match host.split_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (host, None),
    };
    let is_label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    // The digits are looked at too, since `parse` takes a leading plus sign.
    let is_port = |port: &str| {
        port.len() <= 5 && port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0)
    };
    if name.split('.').all(is_label) && port.is_none_or(is_port) {
        Ok(())
    } else {
        Err(ImageError("has a registry that is not host or host:port"))
    }
}

/// Runs of lower-case letters and digits, joined by one dot, one or two underscores, or hyphens.
fn is_path_component(component: &str) -> bool {
    let is_alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let has_edges =
        bytes.first().is_some_and(|b| is_alphanumeric(*b)) && bytes.last().is_some_and(|b| is_alphanumeric(*b));
    let is_joint = |joint: &[u8]| matches!(joint, b"" | b"." | b"_" | b"__") || joint.iter().all(|b| *b == b'-');
    has_edges && bytes.split(|b| is_alphanumeric(*b)).all(is_joint)
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl TryFrom<String> for ImageRef {
    type Error = ImageError;

    fn try_from(text: String) -> Result<Self, ImageError> {
        Self::parse(&text)
    }
}

impl From<ImageRef> for String {
    fn from(image: ImageRef) -> Self {
        image.to_string()
    }
}

/// Why a text is no image reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageError(&'static str);

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for ImageError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_forms_people_write() {
        let digest = format!("sha256:{}", "0f".repeat(32));
        let cases = [
            ("python", "python", Some("latest"), None),
            ("python:3.12-slim", "python", Some("3.12-slim"), None),
            ("justin308/hivemind-worker:latest", "justin308/hivemind-worker", Some("latest"), None),
            ("localhost:5000/a/b", "localhost:5000/a/b", Some("latest"), None),
            ("registry.example.org/x__y:T_1", "registry.example.org/x__y", Some("T_1"), None),
        ];
        for (text, name, tag, pinned) in cases {
            let image = ImageRef::parse(text).unwrap();
            assert_eq!((image.name(), image.tag(), image.digest()), (name, tag, pinned), "{text}");
        }
        let pinned = ImageRef::parse(&format!("a/b@{digest}")).unwrap();
        assert_eq!((pinned.tag(), pinned.digest()), (None, Some(digest.as_str())));
    }

    #[test]
    fn completes_names_as_the_engine_does() {
        for (text, full) in [
            ("python", "docker.io/library/python"),
            ("acme/tool:1", "docker.io/acme/tool"),
            ("docker.io/python", "docker.io/library/python"),
            ("index.docker.io/acme/tool", "docker.io/acme/tool"),
            ("Registry.Example.org:5000/a/b:1", "registry.example.org:5000/a/b"),
            ("localhost/a", "localhost/a"),
        ] {
            assert_eq!(ImageRef::parse(text).unwrap().full_name(), full, "{text}");
        }
        for (text, registry) in
            [("docker.io", "docker.io"), ("index.docker.io", "docker.io"), ("H.org:5000", "h.org:5000")]
        {
            assert_eq!(parse_registry(text).unwrap(), registry);
        }
        for text in ["", "h", "h.org/team", "https://h.org", "h.org:x", "h.org:5000:1", "h.org "] {
            assert!(parse_registry(text).is_err(), "{text}");
        }
        let digest = format!("sha256:{}", "0f".repeat(32));
        let pinned = ImageRef::parse("h:5000/a:1").unwrap().pinned_to(&digest).unwrap();
        assert_eq!(pinned.to_string(), format!("h:5000/a@{digest}"));
        assert!(pinned.pinned_to("sha256:0f").is_err());
    }

    #[test]
    fn refuses_what_could_be_an_option_a_query_or_a_path() {
        let hostile = [
            "",
            "-v",
            "--privileged",
            "../../etc/passwd",
            "bb:1 --privileged",
            "http://x/y",
            "a?fromSrc=x",
            "a&b",
            "a#b",
            "a//b",
            "/a",
            "a/",
            "a:",
            "a:tag:tag",
            "A/B",
            "a@sha256:00",
            "a@md5:00",
            "a..b",
            "a._b",
            "a___b",
            "sha256:0f0f",
            "a\0b",
            "a\nb",
            "a%2fb",
            "host:0/a",
            "host:99999/a",
            "host:+80/a",
            "-h.org/a",
            "a:-x",
            "a/.hidden",
            "é",
        ];
        for text in hostile {
            assert!(ImageRef::parse(text).is_err(), "{text:?}");
        }
        assert!(ImageRef::parse(&"a".repeat(1 << 20)).is_err());
    }
}

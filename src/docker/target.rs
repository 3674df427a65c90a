//! Builds the path and query of a call. Whatever comes from outside is percent-encoded here, and nowhere put in raw.

use std::io;

/// The longest name or reference that is sent; the engine's own limits are far below.
const MAX_SEGMENT: usize = 1024;

/// Path and query of a call, without the API version.
#[derive(Debug)]
pub(super) struct Target {
    text: String,
    has_query: bool,
    error: Option<&'static str>,
}

impl Target {
    /// A target that begins with a word of the API.
    pub(super) fn new(word: &'static str) -> Target {
        Target { text: format!("/{word}"), has_query: false, error: None }
    }

    /// Adds a word of the API.
    pub(super) fn word(mut self, word: &'static str) -> Target {
        self.text.push('/');
        self.text.push_str(word);
        self
    }

    /// Adds the name or id of a container, volume or network.
    pub(super) fn name(self, name: &str) -> Target {
        if name.contains('/') {
            return self.refuse("the name contains a slash");
        }
        self.reference(name)
    }

    /// Adds an image reference, whose slashes are part of the path.
    ///
    /// The engine resolves `.`, `..` and empty parts even when they are encoded, which would make it another call.
    pub(super) fn reference(mut self, reference: &str) -> Target {
        if reference.len() > MAX_SEGMENT {
            return self.refuse("the name has more than 1024 bytes");
        }
        if reference.chars().any(char::is_control) {
            return self.refuse("the name contains control characters");
        }
        for part in reference.split('/') {
            if matches!(part, "" | "." | "..") {
                return self.refuse("the name is empty or has an empty, . or .. part");
            }
            self.text.push('/');
            encode(part, &mut self.text);
        }
        self
    }

    /// Adds a query parameter.
    pub(super) fn query(mut self, key: &'static str, value: &str) -> Target {
        self.text.push(if self.has_query { '&' } else { '?' });
        self.has_query = true;
        self.text.push_str(key);
        self.text.push('=');
        encode(value, &mut self.text);
        self
    }

    fn refuse(mut self, why: &'static str) -> Target {
        self.error.get_or_insert(why);
        self
    }

    /// The finished text, or why it can't be sent.
    pub(super) fn finish(self) -> io::Result<String> {
        match self.error {
            Some(why) => Err(io::Error::new(io::ErrorKind::InvalidInput, why)),
            None => Ok(self.text),
        }
    }
}

fn encode(text: &str, out: &mut String) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.push(char::from(HEX[usize::from(byte >> 4)]));
            out.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodes_what_would_change_the_call() {
        let target = Target::new("containers").name("a?force=1&v#%\u{e9}").word("start").query("t", "1&x=2 +");
        assert_eq!(target.finish().unwrap(), "/containers/a%3Fforce%3D1%26v%23%25%C3%A9/start?t=1%26x%3D2%20%2B");
        let target = Target::new("images").reference("host:5000/a/b:1@sha256:0").word("json");
        assert_eq!(target.finish().unwrap(), "/images/host%3A5000/a/b%3A1%40sha256%3A0/json");
    }

    #[test]
    fn refuses_names_that_the_engine_would_resolve_to_another_path() {
        for name in ["", ".", "..", "a/b", "../x", "a\nb"] {
            assert!(Target::new("containers").name(name).finish().is_err(), "{name:?}");
        }
        for reference in ["", "..", "a/../b", "a//b", "/a", "a/", "a/./b"] {
            assert!(Target::new("images").reference(reference).finish().is_err(), "{reference:?}");
        }
        assert!(Target::new("images").reference(&"x".repeat(1025)).finish().is_err());
    }
}

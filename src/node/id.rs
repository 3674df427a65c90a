//! Names of nodes, tasks and owners, and the attempt: the unit of everything (design section 2).

use std::fmt;

use serde::{Deserialize, Serialize};

/// Longest id in bytes, as the contract says.
pub const MAX_ID_LEN: usize = 63;

/// A node, task or owner id: `[A-Za-z0-9][A-Za-z0-9_.-]{0,62}`. Safe in a path, a label and a URL.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Id(String);

impl Id {
    /// Checks `text` against the grammar.
    ///
    /// # Errors
    /// Says what is wrong, without the name of the field, which the caller knows.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        let bytes = text.as_bytes();
        match bytes.first() {
            None => return Err(IdError::Empty),
            Some(first) if !first.is_ascii_alphanumeric() => return Err(IdError::First),
            Some(_) => {}
        }
        if bytes.len() > MAX_ID_LEN {
            return Err(IdError::TooLong(bytes.len()));
        }
        let is_allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"_.-".contains(byte);
        match bytes.iter().position(|byte| !is_allowed(byte)) {
            Some(position) => Err(IdError::Character(position)),
            None => Ok(Self(text.to_owned())),
        }
    }

    /// The id's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Id {
    type Error = IdError;

    fn try_from(text: String) -> Result<Self, IdError> {
        Self::parse(&text)
    }
}

impl From<Id> for String {
    fn from(id: Id) -> Self {
        id.0
    }
}

/// Why a text is no id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IdError {
    /// Nothing there.
    Empty,
    /// The first character is not a letter or digit.
    First,
    /// More bytes than [`MAX_ID_LEN`].
    TooLong(usize),
    /// A character outside the grammar, at this byte.
    Character(usize),
}

impl fmt::Display for IdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("is empty"),
            Self::First => f.write_str("must begin with a letter or digit"),
            Self::TooLong(len) => write!(f, "has {len} bytes, at most {MAX_ID_LEN} are allowed"),
            Self::Character(at) => {
                write!(f, "has a character at byte {at} that is not a letter, digit, '_', '.' or '-'")
            }
        }
    }
}

impl std::error::Error for IdError {}

/// A try at a task: another try is another attempt, and the master's decision.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AttemptKey {
    /// The task.
    pub task: Id,
    /// Counted by the master from 1.
    pub attempt: u32,
}

impl fmt::Display for AttemptKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.task, self.attempt)
    }
}

impl fmt::Debug for AttemptKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_what_the_grammar_allows() {
        for text in ["a", "7", "word-count_2.b", &"x".repeat(63)] {
            assert_eq!(Id::parse(text).unwrap().as_str(), text);
        }
    }

    #[test]
    fn refuses_what_could_leave_a_path_label_or_url() {
        for text in ["", ".", "..", "../x", "-v", "_a", "a/b", "a b", "a\0", "a\n", "ä", "a?b", "a#b", "a%2f"] {
            assert!(Id::parse(text).is_err(), "{text:?}");
        }
        assert_eq!(Id::parse(&"x".repeat(64)), Err(IdError::TooLong(64)));
    }
}

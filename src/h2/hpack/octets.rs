//! The octets of a field's name or value. Those of the tables are shared, so that a field that is named by its index costs
//! no copy.

use std::ops::Deref;
use std::sync::Arc;

/// Octets that can be cloned without a copy, unless they were never shared.
#[derive(Clone)]
pub enum Octets {
    /// Of the static table.
    Static(&'static [u8]),
    /// Of the dynamic table, and of each field that came from there.
    Shared(Arc<[u8]>),
    /// Of a field that is in no table.
    Owned(Vec<u8>),
}

impl Octets {
    /// The same octets, so that clones are cheap.
    pub fn into_shared(self) -> Octets {
        match self {
            Octets::Owned(bytes) => Octets::Shared(bytes.into()),
            shared => shared,
        }
    }
}

impl Deref for Octets {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Octets::Static(bytes) => bytes,
            Octets::Shared(bytes) => bytes,
            Octets::Owned(bytes) => bytes,
        }
    }
}

impl std::fmt::Debug for Octets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        String::from_utf8_lossy(self).fmt(f)
    }
}

impl Eq for Octets {}

impl PartialEq for Octets {
    fn eq(&self, other: &Octets) -> bool {
        **self == **other
    }
}

impl PartialEq<[u8]> for Octets {
    fn eq(&self, other: &[u8]) -> bool {
        **self == *other
    }
}

impl PartialEq<&[u8]> for Octets {
    fn eq(&self, other: &&[u8]) -> bool {
        **self == **other
    }
}

impl<const N: usize> PartialEq<&[u8; N]> for Octets {
    fn eq(&self, other: &&[u8; N]) -> bool {
        **self == other[..]
    }
}

impl From<Vec<u8>> for Octets {
    fn from(bytes: Vec<u8>) -> Octets {
        Octets::Owned(bytes)
    }
}

impl From<&[u8]> for Octets {
    fn from(bytes: &[u8]) -> Octets {
        Octets::Owned(bytes.to_vec())
    }
}

impl<const N: usize> From<&[u8; N]> for Octets {
    fn from(bytes: &[u8; N]) -> Octets {
        Octets::Owned(bytes.to_vec())
    }
}

impl From<String> for Octets {
    fn from(text: String) -> Octets {
        Octets::Owned(text.into_bytes())
    }
}

impl From<&str> for Octets {
    fn from(text: &str) -> Octets {
        Octets::Owned(text.as_bytes().to_vec())
    }
}

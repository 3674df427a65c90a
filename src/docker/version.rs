//! API versions and the choice among them.

use std::fmt;

/// A version of the engine's API, such as 1.41.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ApiVersion {
    /// The part before the dot; 1 so far.
    pub major: u16,
    /// The part after the dot.
    pub minor: u16,
}

impl ApiVersion {
    /// The oldest API that is used: Engine 20.10, and Podman's compatible API.
    pub const OLDEST: ApiVersion = ApiVersion { major: 1, minor: 41 };
    /// The newest API that this client was written for.
    pub const NEWEST: ApiVersion = ApiVersion { major: 1, minor: 47 };

    /// Reads `1.41`.
    pub fn parse(text: &str) -> Option<ApiVersion> {
        let (major, minor) = text.trim().split_once('.')?;
        Some(ApiVersion { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }

    /// The version to speak with an engine that offers `self`; `None` if it is too old.
    pub fn negotiate(self) -> Option<ApiVersion> {
        (self >= ApiVersion::OLDEST).then(|| self.min(ApiVersion::NEWEST))
    }
}

impl fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speaks_the_lower_of_both_and_refuses_what_is_too_old() {
        let negotiated = |text| ApiVersion::parse(text).unwrap().negotiate().map(|v| v.to_string());
        assert_eq!(negotiated("1.41").as_deref(), Some("1.41"));
        assert_eq!(negotiated("1.45").as_deref(), Some("1.45"));
        assert_eq!(negotiated("1.52").as_deref(), Some("1.47"));
        assert_eq!(negotiated("2.0").as_deref(), Some("1.47"));
        assert_eq!(negotiated("1.40"), None);
        for text in ["", "1", "1.x", "1.-1", "one.two", "1.41.3"] {
            assert_eq!(ApiVersion::parse(text), None, "{text}");
        }
    }
}

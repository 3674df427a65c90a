//! The address of something that is fetched for a task. By a grammar of our own, so that every part of the worker sees
//! the same host in it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

/// Longest address; signed ones of object stores have less than 2,000 bytes.
const MAX_URL_BYTES: usize = 4_096;
/// Longest name of a host, as DNS has it.
const MAX_HOST_BYTES: usize = 253;

/// `https://host[:port]/path[?query]`, or the same with `http`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Url {
    is_https: bool,
    host: String,
    port: u16,
    /// Path and query, from the `/` on.
    path: String,
}

impl Url {
    /// Checks `text` against the grammar.
    ///
    /// # Errors
    /// One sentence fragment that says what would be right. It never repeats the text, which may have a secret in its
    /// query.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > MAX_URL_BYTES {
            return Err(format!("has {} bytes, at most {MAX_URL_BYTES} are allowed", text.len()));
        }
        let (is_https, rest) = match text.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (true, rest),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (false, rest),
            _ => return Err("must begin with https://".to_owned()),
        };
        // What is behind '#' is for browsers and never sent.
        let rest = rest.split('#').next().unwrap_or(rest);
        if let Some(bad) = rest.chars().find(|c| !c.is_ascii_graphic() || matches!(c, '\\' | '"' | '<' | '>')) {
            let bad = bad.escape_unicode();
            return Err(format!("has the character {bad}, which must be written as %XX (or as xn-- in a host)"));
        }
        let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        if authority.contains('@') {
            return Err("must not hold a user or password".to_owned());
        }
        let (host, port) = split_port(authority)?;
        let default = if is_https { 443 } else { 80 };
        let port = match port {
            None => default,
            Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => {
                let port = digits.parse::<u16>().ok().filter(|port| *port > 0);
                port.ok_or("has a port that is not a number from 1 to 65535")?
            }
            Some(_) => return Err("has a port that is not a number from 1 to 65535".to_owned()),
        };
        let slash = if path.starts_with('/') { "" } else { "/" };
        Ok(Self { is_https, host: checked_host(host)?, port, path: format!("{slash}{path}") })
    }

    /// Where a redirect from here leads (RFC 3986 section 5.2, without `..`, which servers resolve themselves).
    ///
    /// # Errors
    /// As for [`Self::parse`].
    pub fn join(&self, location: &str) -> Result<Self, String> {
        let scheme = if self.is_https { "https" } else { "http" };
        // A colon before any '/' makes a scheme of what is before it.
        let has_scheme = location.split(['/', '?', '#']).next().is_some_and(|first| first.contains(':'));
        if has_scheme {
            return Self::parse(location);
        }
        if location.starts_with("//") {
            return Self::parse(&format!("{scheme}:{location}"));
        }
        let path = self.path.split('?').next().unwrap_or("/");
        let base = match location.chars().next() {
            Some('/') => "",
            Some('?') | None => path,
            _ => &path[..path.rfind('/').map_or(0, |slash| slash + 1)],
        };
        Self::parse(&format!("{scheme}://{}{base}{location}", self.authority()))
    }

    /// Whether the connection is encrypted.
    pub fn is_https(&self) -> bool {
        self.is_https
    }

    /// Name in lower case, or address; an IPv6 address without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The host, when it is an address.
    pub fn address(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }

    /// From 1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// All of it, which may have a secret in the query: for the request and the disk.
    pub fn exposed(&self) -> String {
        format!("{}://{}{}", if self.is_https { "https" } else { "http" }, self.authority(), self.path)
    }

    fn authority(&self) -> String {
        let port = match (self.is_https, self.port) {
            (true, 443) | (false, 80) => String::new(),
            (_, port) => format!(":{port}"),
        };
        if self.host.contains(':') { format!("[{}]{port}", self.host) } else { format!("{}{port}", self.host) }
    }
}

/// Without the query: object stores put signatures into it.
impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let full = self.exposed();
        match full.split_once('?') {
            Some((shown, _)) => write!(f, "{shown}?..."),
            None => f.write_str(&full),
        }
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Url({self})")
    }
}

impl TryFrom<String> for Url {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text)
    }
}

impl From<Url> for String {
    fn from(url: Url) -> String {
        url.exposed()
    }
}

fn split_port(authority: &str) -> Result<(&str, Option<&str>), String> {
    let (host, behind) = match authority.find(']') {
        Some(bracket) => authority.split_at(bracket + 1),
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    match behind.strip_prefix(':') {
        Some(port) => Ok((host, Some(port))),
        None if behind.is_empty() => Ok((host, None)),
        None => Err("has something between host and port".to_owned()),
    }
}

/// A host by one spelling only: what a resolver would read as an address must be written as one.
fn checked_host(host: &str) -> Result<String, String> {
    if let Some(rest) = host.strip_prefix('[') {
        let address = rest.strip_suffix(']').unwrap_or(rest).parse::<Ipv6Addr>();
        let wrong = |_| "has brackets that hold no IPv6 address (one without a zone)".to_owned();
        return address.map(|address| address.to_string()).map_err(wrong);
    }
    let is_host_char = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    if host.is_empty() || host.len() > MAX_HOST_BYTES || !host.bytes().all(is_host_char) {
        return Err("has a host that no host can have: write a name or an address".to_owned());
    }
    if host.split('.').any(str::is_empty) {
        return Err("has a host with an empty part".to_owned());
    }
    let last = host.rsplit('.').next().unwrap_or(host).to_ascii_lowercase();
    let is_hex = |digits: &str| digits.bytes().all(|b| b.is_ascii_hexdigit());
    let is_number = last.bytes().all(|b| b.is_ascii_digit()) || last.strip_prefix("0x").is_some_and(is_hex);
    match host.parse::<Ipv4Addr>() {
        Ok(address) => Ok(address.to_string()),
        Err(_) if is_number => Err("has a host that is a number: write an address as 192.0.2.1".to_owned()),
        Err(_) => Ok(host.to_ascii_lowercase()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_found_and_put_together_again() {
        for (text, host, port, exposed) in [
            ("https://Data.Example/a/b.zip?x=1", "data.example", 443, "https://data.example/a/b.zip?x=1"),
            ("HTTPS://h", "h", 443, "https://h/"),
            ("https://h:443/#part", "h", 443, "https://h/"),
            ("https://h:8443?q", "h", 8443, "https://h:8443/?q"),
            ("http://10.0.0.1:80/x", "10.0.0.1", 80, "http://10.0.0.1/x"),
            ("https://[2001:DB8::0]:444/", "2001:db8::", 444, "https://[2001:db8::]:444/"),
            (
                "https://xn--bcher-kva.example/%C3%BC",
                "xn--bcher-kva.example",
                443,
                "https://xn--bcher-kva.example/%C3%BC",
            ),
        ] {
            let url = Url::parse(text).unwrap();
            assert_eq!((url.host(), url.port(), url.exposed().as_str()), (host, port, exposed));
            assert_eq!(Url::parse(&url.exposed()), Ok(url));
        }
    }

    #[test]
    fn what_hides_a_host_or_a_password_is_refused() {
        for text in [
            "",
            "h/x",
            "ftp://h/x",
            "file:///etc/passwd",
            "https:/h",
            "https://",
            "https:///x",
            "https://?x",
            "https://user@h/",
            "https://user:secret@h/",
            "https://h@127.0.0.1/",
            "https://h:0/",
            "https://h:65536/",
            "https://h:x/",
            "https://h:+1/",
            "https://h:/x:y",
            "https://h:1:2/",
            "https://a b/",
            "https://h/a b",
            "https://h\\@127.0.0.1/",
            "https://h/\u{e9}",
            "https://b\u{fc}cher.example/",
            "https://h/\r\nX: y",
            "https://h/\0",
            "https://2130706433/",
            "https://0x7f000001/",
            "https://0x7f.1/",
            "https://127.1/",
            "https://0177.0.0.1/",
            "https://127.0.0.1./",
            "https://127.0.0.01/",
            "https://1.2.3.4.5/",
            "https://h./",
            "https://.h/",
            "https://a..b/",
            "https://[::1/",
            "https://::1/",
            "https://[fe80::1%25eth0]/",
            "https://[fe80::1%eth0]/",
            "https://[127.0.0.1]/",
            "https://[::1]x/",
            "https://h%2f/",
            "https://h%00/",
        ] {
            let error = Url::parse(text).expect_err(text);
            assert!(!error.contains("secret"), "{error}");
        }
        assert!(Url::parse(&format!("https://h/{}", "x".repeat(4_096))).is_err());
    }

    #[test]
    fn redirects_are_resolved() {
        let base = Url::parse("https://h:8443/a/b?secret").unwrap();
        for (location, url) in [
            ("https://other/x", "https://other/x"),
            ("http://other/x", "http://other/x"),
            ("//other/x", "https://other/x"),
            ("/x?y", "https://h:8443/x?y"),
            ("x", "https://h:8443/a/x"),
            ("?y", "https://h:8443/a/b?y"),
            ("", "https://h:8443/a/b"),
            ("x/y:z", "https://h:8443/a/x/y:z"),
        ] {
            assert_eq!(base.join(location).unwrap().exposed(), url, "{location}");
        }
        for location in ["file:///etc/passwd", "javascript:x", "https://user@h/", "//", "\\\\h", "x y"] {
            assert!(base.join(location).is_err(), "{location}");
        }
    }

    #[test]
    fn a_query_is_not_shown() {
        let url = Url::parse("https://h/a?X-Signature=secret").unwrap();
        assert_eq!(format!("{url} {url:?}"), "https://h/a?... Url(https://h/a?...)");
        assert_eq!(serde_json::to_string(&url).unwrap(), "\"https://h/a?X-Signature=secret\"");
        assert!(serde_json::from_str::<Url>("\"https://user@h/\"").is_err());
    }
}

//! Where a lane goes: the URL of a server.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

/// With or without TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// `http`: plain.
    Http,
    /// `https`: TLS.
    Https,
}

impl Scheme {
    /// As in a URL.
    pub fn as_str(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
        }
    }

    fn default_port(self) -> u16 {
        match self {
            Scheme::Http => 80,
            Scheme::Https => 443,
        }
    }
}

/// Where a lane goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// With or without TLS.
    pub scheme: Scheme,
    /// A name in lower case, or an address without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

/// A URL that is no target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetError {
    /// As it was given.
    pub url: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl fmt::Display for TargetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not a URL like https://host[:port]: {}", self.url, self.reason)
    }
}

impl std::error::Error for TargetError {}

impl Target {
    /// Parses `http(s)://host[:port]`, with nothing after it but `/`.
    pub fn parse(url: &str) -> Result<Target, TargetError> {
        parse_url(url).map_err(|reason| TargetError { url: url.to_owned(), reason })
    }

    /// `host` or `host:port`, as HTTP names it.
    pub fn authority(&self) -> String {
        let host = match self.host.contains(':') {
            true => format!("[{}]", self.host),
            false => self.host.clone(),
        };
        match self.port == self.scheme.default_port() {
            true => host,
            false => format!("{host}:{}", self.port),
        }
    }

    /// Whether a connection to it cannot leave this machine. A name counts only when it is `localhost`.
    pub fn is_loopback(&self) -> bool {
        match self.host.parse::<IpAddr>() {
            Ok(address) => address.to_canonical().is_loopback(),
            Err(_) => self.host == "localhost",
        }
    }

    /// `host:port`, with brackets around an IPv6 address.
    pub fn host_and_port(&self) -> String {
        host_and_port(&self.host, self.port)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme.as_str(), self.authority())
    }
}

/// `host:port`, with brackets around an IPv6 address.
pub(super) fn host_and_port(host: &str, port: u16) -> String {
    match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    }
}

fn parse_url(url: &str) -> Result<Target, &'static str> {
    let (scheme, rest) = url.trim().split_once("://").ok_or("there is no http:// or https:// in front")?;
    let scheme = match scheme.to_ascii_lowercase().as_str() {
        "http" => Scheme::Http,
        "https" => Scheme::Https,
        _ => return Err("only http and https are known"),
    };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.contains(['/', '?', '#']) {
        return Err("nothing may follow the port");
    }
    if rest.contains('@') {
        return Err("user and password are not taken from a URL");
    }
    let (host, port) = parse_host(rest)?;
    Ok(Target { scheme, host, port: port.unwrap_or(scheme.default_port()) })
}

/// `host` or `host:port`, an IPv6 address in brackets.
pub(super) fn parse_host(text: &str) -> Result<(String, Option<u16>), &'static str> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, after) = rest.split_once(']').ok_or("a bracket is not closed")?;
            let address: Ipv6Addr = address.parse().map_err(|_| "the address in brackets is not IPv6")?;
            (address.to_string(), after)
        }
        None => {
            let end = text.find(':').unwrap_or(text.len());
            let (host, after) = text.split_at(end);
            (check_host(host)?, after)
        }
    };
    let no_port = "the port is not a number from 1 to 65535";
    let port = match port.strip_prefix(':') {
        Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => {
            Some(digits.parse().ok().filter(|port| *port > 0).ok_or(no_port)?)
        }
        None if port.is_empty() => None,
        _ => return Err(no_port),
    };
    Ok((host, port))
}

fn check_host(host: &str) -> Result<String, &'static str> {
    let is_host_char = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    match host.len() {
        0 => Err("the host is missing"),
        1..=253 if host.bytes().all(is_host_char) => Ok(host.to_ascii_lowercase()),
        _ => Err("the host has characters that no host has, or is too long"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_become_targets() {
        for (url, host, port, authority) in [
            ("https://Master.Example", "master.example", 443, "master.example"),
            ("http://10.8.0.1:50051/", "10.8.0.1", 50051, "10.8.0.1:50051"),
            ("HTTPS://[::1]:8443", "::1", 8443, "[::1]:8443"),
            ("http://[2001:DB8::0]", "2001:db8::", 80, "[2001:db8::]"),
            ("https://h:443", "h", 443, "h"),
        ] {
            let target = Target::parse(url).unwrap();
            assert_eq!((target.host.as_str(), target.port, target.authority().as_str()), (host, port, authority));
            assert_eq!(Target::parse(&target.to_string()), Ok(target));
        }
    }

    #[test]
    fn odd_urls_are_refused() {
        for url in [
            "",
            "master",
            "ftp://h",
            "https://",
            "https://:1",
            "https://h:",
            "https://h:0",
            "https://h:65536",
            "https://h:+1",
            "https://h/path",
            "https://h?x",
            "https://u:p@h",
            "https://[::1",
            "https://[h]",
            "https://[::1]x",
            "https://a b",
            "https://h\r\nx",
            "https://ü",
        ] {
            assert!(Target::parse(url).is_err(), "{url}");
        }
    }

    #[test]
    fn loopback_is_known_by_address_and_one_name() {
        for (url, is_loopback) in [
            ("http://localhost:1", true),
            ("http://127.9.9.9", true),
            ("http://[::1]", true),
            ("http://[::ffff:127.0.0.1]", true),
            ("http://localhost.example", false),
            ("http://10.0.0.1", false),
        ] {
            assert_eq!(Target::parse(url).unwrap().is_loopback(), is_loopback, "{url}");
        }
        assert_eq!(Target::parse("https://[::1]").unwrap().host_and_port(), "[::1]:443");
    }
}

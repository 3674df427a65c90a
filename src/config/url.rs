//! The address of a master: scheme, host and port, and nothing else.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

/// Longest name of a host, as DNS has it.
const MAX_HOST: usize = 253;

/// `https://host[:port]` or `http://host[:port]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MasterUrl {
    /// Whether the connection is encrypted.
    pub is_https: bool,
    /// Name or address; an IPv6 address without brackets.
    pub host: String,
    /// Port; 443 or 80 when the text names none.
    pub port: u16,
}

impl MasterUrl {
    /// Reads an address.
    ///
    /// # Errors
    /// Says what would be right. Never repeats the text, which could hold a password.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let (is_https, rest) = match text.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (true, rest),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (false, rest),
            _ => return Err("must begin with https:// (or http:// on loopback): write https://host[:port]".to_owned()),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains('@') {
            return Err("must not hold a user or password: the token has a key of its own, HIVEMIND_TOKEN".to_owned());
        }
        if rest.contains(['/', '?', '#']) {
            return Err("must not have a path or query: write https://host[:port]".to_owned());
        }
        let (host, port) = split_port(rest)?;
        let port = match port {
            None => {
                if is_https {
                    443
                } else {
                    80
                }
            }
            Some(port) => match port.parse::<u16>() {
                Ok(port) if port > 0 => port,
                _ => return Err("has a port that is not a number from 1 to 65535".to_owned()),
            },
        };
        Ok(Self { is_https, host: checked_host(host)?, port })
    }

    /// Whether a connection to it can't leave this machine. A name counts only when it is `localhost`.
    pub fn is_loopback(&self) -> bool {
        match self.host.parse::<IpAddr>() {
            Ok(address) => address.is_loopback(),
            Err(_) => self.host == "localhost",
        }
    }

    /// Host and port as in an HTTP header, with brackets around an IPv6 address.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for MasterUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_https { "https" } else { "http" };
        write!(f, "{scheme}://{}", self.authority())
    }
}

fn split_port(rest: &str) -> Result<(&str, Option<&str>), String> {
    if let Some(inner) = rest.strip_prefix('[') {
        let (host, after) = inner.split_once(']').ok_or("has a '[' without ']'")?;
        host.parse::<Ipv6Addr>().map_err(|_| "has something else than an IPv6 address in brackets")?;
        return match after.strip_prefix(':') {
            Some(port) => Ok((host, Some(port))),
            None if after.is_empty() => Ok((host, None)),
            None => Err("has text behind ']' that is no port".to_owned()),
        };
    }
    match rest.split_once(':') {
        Some((_, port)) if port.contains(':') => Err("has an IPv6 address without brackets: write [::1]".to_owned()),
        Some((host, port)) => Ok((host, Some(port))),
        None => Ok((rest, None)),
    }
}

fn checked_host(host: &str) -> Result<String, String> {
    let is_address = host.parse::<IpAddr>().is_ok();
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    let name = host.strip_suffix('.').unwrap_or(host);
    if is_address || (name.len() <= MAX_HOST && name.split('.').all(is_label)) {
        Ok(host.to_ascii_lowercase())
    } else {
        Err("has no valid host: write https://host[:port] (a name with other letters in its xn-- form)".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_addresses() {
        for (text, shown, is_loopback) in [
            ("https://master.example", "https://master.example:443", false),
            ("HTTPS://Master.Example:8443/", "https://master.example:8443", false),
            ("http://localhost:50051", "http://localhost:50051", true),
            ("http://127.0.0.1", "http://127.0.0.1:80", true),
            ("http://[::1]:5", "http://[::1]:5", true),
            ("https://10.8.0.1:443", "https://10.8.0.1:443", false),
            ("https://localhost.example", "https://localhost.example:443", false),
        ] {
            let url = MasterUrl::parse(text).unwrap();
            assert_eq!((url.to_string().as_str(), url.is_loopback()), (shown, is_loopback));
        }
    }

    #[test]
    fn refuses_what_is_no_plain_address() {
        for text in [
            "",
            "master.example",
            "ftp://a",
            "https://",
            "https://:443",
            "https://a:0",
            "https://a:65536",
            "https://a:x",
            "https://user:secret@a",
            "https://a/path",
            "https://a?x",
            "https://a#x",
            "https://a b",
            "https://-a",
            "https://::1",
            "https://[::1",
            "https://[x]",
            "https://[::1]x",
            "https://a..b",
            "https://ä",
            "https://a\nb",
        ] {
            let error = MasterUrl::parse(text).unwrap_err();
            assert!(!error.contains("secret"), "{text}");
        }
    }
}

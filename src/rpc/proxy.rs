//! Which HTTP proxy a lane goes through, by the rules of `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY`.
//!
//! Both kinds of target go by CONNECT (gRPC needs a connection of its own), an `https` one through the proxy of
//! `HTTPS_PROXY`, an `http` one through that of `HTTP_PROXY`. Loopback is never asked of a proxy. The way to the proxy
//! itself is plain HTTP: `https://` and `socks5://` proxies are refused by name.

use std::fmt;
use std::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::target::{Scheme, Target, host_and_port, parse_host};
use crate::node::net::Net;

/// What a URL without a port means.
const DEFAULT_PORT: u16 = 80;
/// Entries of a `NO_PROXY` that are read; a list that a person wrote is shorter.
const MAX_EXCEPTIONS: usize = 1_000;

/// An HTTP proxy. It is shown without its password.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    host: String,
    port: u16,
    /// `user:password` as RFC 7617 encodes them.
    credentials: Option<String>,
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&host_and_port(&self.host, self.port))
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({self})")
    }
}

impl Proxy {
    /// Reads `[http://][user:password@]host[:port]`.
    ///
    /// # Errors
    /// Says what would be right. Never repeats the text, which could hold a password.
    pub fn parse(text: &str) -> Result<Proxy, String> {
        let text = text.trim();
        let rest = match text.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => rest,
            Some(_) => return Err("must begin with http://: only HTTP proxies are known".to_owned()),
            None => text,
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (credentials, host) = match rest.rsplit_once('@') {
            Some((credentials, host)) => (Some(credentials), host),
            None => (None, rest),
        };
        let (host, port) =
            parse_host(host).map_err(|problem| format!("is not like http://[user:password@]host[:port]: {problem}"))?;
        let credentials = credentials.map(encoded).transpose()?;
        Ok(Proxy { host, port: port.unwrap_or(DEFAULT_PORT), credentials })
    }

    /// Its name or address.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether it is told a user and password.
    pub(super) fn has_credentials(&self) -> bool {
        self.credentials.is_some()
    }

    /// The head of a CONNECT request (RFC 9110 section 9.3.6). Holds the password.
    pub(super) fn connect_request(&self, target: &Target) -> Vec<u8> {
        let authority = target.host_and_port();
        let authorization = match &self.credentials {
            Some(credentials) => format!("Proxy-Authorization: Basic {credentials}\r\n"),
            None => String::new(),
        };
        format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{authorization}\r\n").into_bytes()
    }
}

fn encoded(userinfo: &str) -> Result<String, String> {
    let (user, password) = userinfo.split_once(':').unwrap_or((userinfo, ""));
    let decode = |text| {
        percent_decoded(text).ok_or_else(|| "has a % in user or password that stands for nothing: write %25".to_owned())
    };
    let (user, password) = (decode(user)?, decode(password)?);
    if user.contains(&b':') {
        return Err("has a user with a colon, which Basic authentication cannot carry".to_owned());
    }
    Ok(STANDARD.encode([user, password].join(&b':')))
}

fn percent_decoded(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let hex = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        out.push(match byte {
            b'%' => hex(bytes.next()?)? << 4 | hex(bytes.next()?)?,
            byte => byte,
        });
    }
    Some(out)
}

/// The owner's words, as they were given. They are looked into only for a target that they are about: what is meant for
/// other programs must not stop this one.
#[derive(Clone, Copy, Default)]
pub struct ProxyRules<'a> {
    /// For `https` targets.
    pub https_proxy: Option<&'a str>,
    /// For `http` targets.
    pub http_proxy: Option<&'a str>,
    /// Who is reached without.
    pub no_proxy: Option<&'a str>,
}

/// The proxy to this target by the variables of an environment; those in lower case win.
///
/// # Errors
/// As [`ProxyRules::pick`].
pub fn pick_from(
    env: &dyn Fn(&str) -> Option<String>,
    target: &Target,
) -> Result<Option<Proxy>, (&'static str, String)> {
    let [https_proxy, http_proxy, no_proxy] = ["HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY"].map(|name| {
        let text = |name: &str| env(name).filter(|text| !text.is_empty());
        text(&name.to_ascii_lowercase()).or_else(|| text(name))
    });
    let rules = ProxyRules {
        https_proxy: https_proxy.as_deref(),
        http_proxy: http_proxy.as_deref(),
        no_proxy: no_proxy.as_deref(),
    };
    rules.pick(target)
}

impl ProxyRules<'_> {
    /// The proxy to this target.
    ///
    /// # Errors
    /// Names the variable, and what is wrong with it.
    pub fn pick(&self, target: &Target) -> Result<Option<Proxy>, (&'static str, String)> {
        let (name, text) = match target.scheme {
            Scheme::Https => ("HTTPS_PROXY", self.https_proxy),
            Scheme::Http => ("HTTP_PROXY", self.http_proxy),
        };
        let is_exception = || self.no_proxy.is_some_and(|list| Exceptions::parse(list).has(target));
        match text {
            Some(text) if !target.is_loopback() && !is_exception() => {
                Proxy::parse(text).map(Some).map_err(|problem| (name, problem))
            }
            _ => Ok(None),
        }
    }
}

/// A `NO_PROXY` list.
struct Exceptions(Vec<Exception>);

enum Exception {
    All,
    /// This name and all below it, on one port if one is given.
    Domain(String, Option<u16>),
    Address(IpAddr, Option<u16>),
    Network(Net),
}

impl Exceptions {
    /// Reads entries that commas or spaces separate: `*`, a name (which counts for all below it too, with or without a dot
    /// in front), an address, either with a port, or a network such as `10.0.0.0/8`. What is none of these matches nobody.
    fn parse(text: &str) -> Exceptions {
        let entries = text.split([',', ' ', '\t']).filter(|entry| !entry.is_empty());
        Exceptions(entries.take(MAX_EXCEPTIONS).filter_map(exception).collect())
    }

    fn has(&self, target: &Target) -> bool {
        let address = target.host.parse::<IpAddr>().ok().map(|address| address.to_canonical());
        let name = target.host.strip_suffix('.').unwrap_or(&target.host);
        let is_port = |port: &Option<u16>| port.is_none_or(|port| port == target.port);
        self.0.iter().any(|exception| match exception {
            Exception::All => true,
            Exception::Domain(domain, port) => address.is_none() && is_port(port) && is_within(name, domain),
            Exception::Address(other, port) => address == Some(*other) && is_port(port),
            Exception::Network(network) => address.is_some_and(|address| network.has(address)),
        })
    }
}

fn exception(entry: &str) -> Option<Exception> {
    if entry == "*" {
        return Some(Exception::All);
    }
    if let Some((network, length)) = entry.split_once('/') {
        return Net::around(network.parse().ok()?, length.parse().ok()?).map(Exception::Network);
    }
    if let Ok(address) = entry.parse::<IpAddr>() {
        return Some(Exception::Address(address.to_canonical(), None));
    }
    let entry = entry.strip_prefix('*').unwrap_or(entry);
    let (host, port) = parse_host(entry.strip_prefix('.').unwrap_or(entry)).ok()?;
    Some(match host.parse::<IpAddr>() {
        Ok(address) => Exception::Address(address.to_canonical(), port),
        Err(_) => Exception::Domain(host.strip_suffix('.').unwrap_or(&host).to_owned(), port),
    })
}

fn is_within(name: &str, domain: &str) -> bool {
    let above = name.strip_suffix(domain);
    above.is_some_and(|above| above.is_empty() || above.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(url: &str) -> Target {
        Target::parse(url).unwrap()
    }

    #[test]
    fn proxies_are_read_and_shown_without_password() {
        for (text, shown, credentials) in [
            ("http://proxy.example:3128", "proxy.example:3128", None),
            ("HTTP://Proxy.Example/", "proxy.example:80", None),
            ("10.0.0.1:8080", "10.0.0.1:8080", None),
            ("http://[::1]:3128", "[::1]:3128", None),
            // base64 of "Aladdin:open sesame", from RFC 7617 section 2.
            ("http://Aladdin:open%20sesame@p:1", "p:1", Some("QWxhZGRpbjpvcGVuIHNlc2FtZQ==")),
            ("http://user@p:1", "p:1", Some("dXNlcjo=")),
            ("http://u:p%40%3a@p:1", "p:1", Some("dTpwQDo=")),
            ("http://u:p@ss@p:1", "p:1", Some("dTpwQHNz")),
        ] {
            let proxy = Proxy::parse(text).unwrap();
            assert_eq!((proxy.to_string().as_str(), proxy.credentials.as_deref()), (shown, credentials), "{text}");
            assert_eq!(format!("{proxy:?}"), format!("Proxy({shown})"));
        }
    }

    #[test]
    fn what_is_no_proxy_is_refused_without_being_repeated() {
        for text in [
            "",
            "https://u:secret@p",
            "socks5://u:secret@p",
            "http://u:secret@",
            "http://u:secret@p:0",
            "http://u:secret@p:x",
            "http://u:secret@p/path",
            "http://u:secret%@p",
            "http://u:secret%zz@p",
            "http://u%3a:secret@p",
            "http://u:secret@p\r\nX: y",
        ] {
            let error = Proxy::parse(text).unwrap_err();
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn request_names_host_and_port_and_can_carry_no_line_of_its_own() {
        let plain = Proxy::parse("p").unwrap();
        let request = plain.connect_request(&target("https://master.example"));
        assert_eq!(request, b"CONNECT master.example:443 HTTP/1.1\r\nHost: master.example:443\r\n\r\n");
        let secret = Proxy::parse("http://u:a%0d%0aX:y@p").unwrap();
        let request = String::from_utf8(secret.connect_request(&target("https://[::2]:8443"))).unwrap();
        // base64 of "u:a\r\nX:y".
        let words =
            "CONNECT [::2]:8443 HTTP/1.1\r\nHost: [::2]:8443\r\nProxy-Authorization: Basic dTphDQpYOnk=\r\n\r\n";
        assert_eq!(request, words);
    }

    #[test]
    fn target_decides_on_the_proxy() {
        let rules = ProxyRules {
            https_proxy: Some("secure"),
            http_proxy: Some("open"),
            no_proxy: Some("10.0.0.0/8, out.example"),
        };
        let picked = |url| rules.pick(&target(url)).unwrap().map(|proxy| proxy.host);
        assert_eq!(picked("https://master.example").as_deref(), Some("secure"));
        assert_eq!(picked("http://master.example").as_deref(), Some("open"));
        for url in ["https://localhost", "https://127.0.0.1:5", "http://127.3.2.1", "https://[::1]", "http://10.1.1.1"]
        {
            assert_eq!(picked(url), None, "{url}");
        }
        assert_eq!(ProxyRules::default().pick(&target("https://master.example")), Ok(None));
    }

    #[test]
    fn environment_is_read_in_lower_case_first() {
        let picked = |variables: &[(&str, &str)]| {
            let env =
                |name: &str| variables.iter().find(|(other, _)| *other == name).map(|(_, text)| (*text).to_owned());
            pick_from(&env, &target("https://master.example")).unwrap().map(|proxy| proxy.host)
        };
        assert_eq!(picked(&[("HTTPS_PROXY", "upper"), ("HTTP_PROXY", "x")]).as_deref(), Some("upper"));
        assert_eq!(picked(&[("HTTPS_PROXY", "upper"), ("https_proxy", "lower")]).as_deref(), Some("lower"));
        assert_eq!(picked(&[("HTTPS_PROXY", "upper"), ("https_proxy", "")]).as_deref(), Some("upper"));
        assert_eq!(picked(&[("HTTPS_PROXY", "upper"), ("no_proxy", "example")]), None);
        assert_eq!(picked(&[("HTTP_PROXY", "upper")]), None);
    }

    #[test]
    fn proxy_that_is_not_used_may_be_wrong() {
        let rules =
            ProxyRules { https_proxy: Some("socks5://u:secret@p"), http_proxy: None, no_proxy: Some("in.example") };
        for url in ["https://in.example", "https://localhost", "http://out.example"] {
            assert_eq!(rules.pick(&target(url)), Ok(None), "{url}");
        }
        let (name, problem) = rules.pick(&target("https://out.example")).unwrap_err();
        assert_eq!((name, problem.contains("secret")), ("HTTPS_PROXY", false));
    }

    #[test]
    fn exceptions_match_names_addresses_networks_and_ports() {
        for (list, url, is_exception) in [
            ("*", "https://a.example", true),
            ("example", "https://example", true),
            ("a.example", "https://a.example", true),
            ("A.Example.", "https://b.a.example.", true),
            (".a.example", "https://a.example", true),
            ("*.a.example", "https://b.a.example", true),
            ("a.example", "https://ba.example", false),
            ("a.example", "https://a.example.org", false),
            ("b.example, c.example a.example", "https://a.example", true),
            ("a.example:443", "https://a.example", true),
            ("a.example:444", "https://a.example", false),
            ("10.1.2.3", "https://10.1.2.3", true),
            ("10.1.2.3", "https://10.1.2.30", false),
            ("2.3", "https://10.1.2.3", false),
            ("10.1.2.3:5", "https://10.1.2.3", false),
            ("10.0.0.0/8", "https://10.200.1.1", true),
            ("10.0.0.0/8", "https://11.0.0.1", false),
            ("10.1.2.3/32", "https://10.1.2.3", true),
            ("0.0.0.0/0", "https://1.2.3.4", true),
            ("0.0.0.0/0", "https://[2001:db8::1]", false),
            ("2001:db8::/33", "https://[2001:db8:7fff::1]", true),
            ("2001:db8::/33", "https://[2001:db8:8000::1]", false),
            ("::/0", "https://[2001:db8::1]", true),
            ("[2001:db8::1]", "https://[2001:db8:0::1]", true),
            ("2001:db8::1", "https://[2001:db8::1]", true),
            ("::ffff:10.1.2.3", "https://10.1.2.3", true),
            ("10.0.0.0/33", "https://10.1.2.3", false),
            ("10.0.0.0/x,/,a b/8,", "https://10.1.2.3", false),
            ("", "https://a.example", false),
        ] {
            assert_eq!(Exceptions::parse(list).has(&target(url)), is_exception, "{list} {url}");
        }
    }
}

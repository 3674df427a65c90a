//! Who may ask for what: decided on the head alone, before a byte of the body is read or tiny_http is told.
//!
//! A page of another site in the owner's browser is kept out by `Host` (a name that was rebound to this address),
//! `Origin` and `Sec-Fetch-Site`; a local program of another user by the token, which only the owner can read.

use std::net::SocketAddr;

use super::head::{Head, Method, Refusal};
use super::token::Token;

/// Largest archive of a submission: the contract's 32 MiB and its tar overhead.
pub const MAX_SUBMISSION: u64 = 33 * 1024 * 1024;
/// Largest body of everything else, which needs none.
const MAX_BODY: u64 = 4096;

/// How a connection came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// The control socket: the file's mode has decided who may.
    Control,
    /// TCP, at this address of ours.
    Tcp {
        /// Our end.
        local: SocketAddr,
        /// Whether the listener is bound beyond loopback.
        is_open: bool,
    },
}

/// Who answers an admitted request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// The gate itself, as an endless stream.
    Events,
    /// tiny_http.
    Forward,
}

/// Decides on `head`.
///
/// # Errors
/// Refuses with the status that says why.
pub fn admit(head: &Head, door: Door, token: &Token) -> Result<Service, Refusal> {
    if let Door::Tcp { local, is_open } = door {
        check_browser(head, local)?;
        if head.path() == "/api/v1/submissions" && head.method == Method::Post {
            return Err(Refusal::new(403, "tasks are submitted over the control socket only"));
        }
        if head.method == Method::Post || (is_open && !is_page(head.path())) {
            check_token(head, token)?;
        }
    }
    if head.method == Method::Other {
        return Err(Refusal::new(405, "only GET, HEAD and POST are served"));
    }
    let most = match (door, head.method, head.path()) {
        (Door::Control, Method::Post, "/api/v1/submissions") => MAX_SUBMISSION,
        _ => MAX_BODY,
    };
    if head.content_length > most {
        return Err(Refusal::new(413, "the body is too large"));
    }
    match (head.method, head.path()) {
        (Method::Get | Method::Head, "/api/v1/events") => Ok(Service::Events),
        _ => Ok(Service::Forward),
    }
}

/// The page's own files hold no secret, and a browser has no way to send the token with them.
fn is_page(path: &str) -> bool {
    matches!(path, "/" | "/monitor" | "/monitor.html" | "/monitor.js" | "/monitor.css")
}

fn check_browser(head: &Head, local: SocketAddr) -> Result<(), Refusal> {
    if !head.host.as_deref().is_some_and(|host| is_our_name(host, local)) {
        return Err(Refusal::new(421, "this name is not served; use localhost or the node's address"));
    }
    if let Some(origin) = head.origin.as_deref() {
        let is_ours = origin.strip_prefix("http://").is_some_and(|name| is_our_name(name, local));
        if !is_ours {
            return Err(Refusal::new(403, "other sites are not served"));
        }
    }
    // A link on another site may lead here, but nothing of here may be built into that site.
    let is_foreign = head.fetch_site.as_deref().is_some_and(|site| !matches!(site, "same-origin" | "none"));
    if is_foreign && (head.fetch_mode.as_deref() != Some("navigate") || head.method == Method::Post) {
        return Err(Refusal::new(403, "other sites are not served"));
    }
    Ok(())
}

/// Whether `name`, with its port, can only mean this listener.
fn is_our_name(name: &str, local: SocketAddr) -> bool {
    let port = local.port();
    let (host, named_port) = match name.rsplit_once(':') {
        Some((host, digits)) if !digits.ends_with(']') => (host, digits.parse::<u16>().ok()),
        _ => (name, Some(80)),
    };
    let own = match local {
        SocketAddr::V4(address) => address.ip().to_string(),
        SocketAddr::V6(address) => format!("[{}]", address.ip()),
    };
    let is_ours = host.eq_ignore_ascii_case("localhost") || host == "127.0.0.1" || host == "[::1]" || host == own;
    is_ours && named_port == Some(port)
}

fn check_token(head: &Head, token: &Token) -> Result<(), Refusal> {
    match head.token.as_deref() {
        None => Err(Refusal::new(401, "the token is missing; `hivemind-worker monitor` opens the page with it")),
        Some(given) if token.is_equal(given) => Ok(()),
        Some(_) => Err(Refusal::new(403, "the token is wrong; `hivemind-worker monitor` opens the page with it")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::head::parse;

    const LOCAL: &str = "127.0.0.1:5001";

    fn token() -> Token {
        Token::from_text("00112233445566778899aabbccddeeff").unwrap()
    }

    fn door(is_open: bool) -> Door {
        Door::Tcp { local: LOCAL.parse().unwrap(), is_open }
    }

    fn ask(door: Door, method: &str, target: &str, fields: &str) -> Result<Service, u16> {
        let text = format!("{method} {target} HTTP/1.1\r\n{fields}\r\n");
        let head = parse(text.as_bytes()).unwrap().unwrap();
        admit(&head, door, &token()).map_err(|refusal| refusal.status)
    }

    #[test]
    fn only_our_own_names_are_served() {
        for host in ["127.0.0.1:5001", "localhost:5001", "LOCALHOST:5001", "[::1]:5001"] {
            assert_eq!(ask(door(false), "GET", "/", &format!("Host: {host}\r\n")), Ok(Service::Forward), "{host}");
        }
        for host in [
            "evil.example:5001",
            "127.0.0.1",
            "localhost:80",
            "localhost.:5001",
            "127.0.0.1:5001:5001",
            "[::1]",
            "",
            ":5001",
        ] {
            assert_eq!(ask(door(false), "GET", "/", &format!("Host: {host}\r\n")), Err(421), "{host}");
        }
    }

    #[test]
    fn other_origins_are_refused() {
        for (want, fields) in [
            (Ok(Service::Events), "Origin: http://localhost:5001\r\n"),
            (Err(403), "Origin: http://evil.example\r\n"),
            (Err(403), "Origin: null\r\n"),
            (Err(403), "Origin: https://localhost:5001\r\n"),
            (Err(403), "Origin: http://localhost:8080\r\n"),
            (Err(403), "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: no-cors\r\n"),
            (Err(403), "Sec-Fetch-Site: same-site\r\n"),
            (Ok(Service::Events), "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\n"),
            (Ok(Service::Events), "Sec-Fetch-Site: same-origin\r\nSec-Fetch-Mode: cors\r\n"),
        ] {
            let fields = format!("Host: {LOCAL}\r\n{fields}");
            assert_eq!(ask(door(false), "GET", "/api/v1/events", &fields), want, "{fields}");
        }
    }

    #[test]
    fn a_change_needs_the_token_even_on_loopback() {
        let host = format!("Host: {LOCAL}\r\n");
        let right = format!("{host}X-HiveMind-Token: 00112233445566778899aabbccddeeff\r\n");
        let wrong = format!("{host}X-HiveMind-Token: 00112233445566778899aabbccddeefe\r\n");
        assert_eq!(ask(door(false), "POST", "/api/v1/pause", &host), Err(401));
        assert_eq!(ask(door(false), "POST", "/api/v1/pause", &wrong), Err(403));
        assert_eq!(ask(door(false), "POST", "/api/v1/pause", &right), Ok(Service::Forward));
        assert_eq!(ask(door(false), "POST", "/api/v1/submissions", &right), Err(403));
        assert_eq!(ask(Door::Control, "POST", "/api/v1/pause", "Host: x\r\n"), Ok(Service::Forward));
    }

    #[test]
    fn beyond_loopback_only_the_page_itself_is_free() {
        let host = format!("Host: {LOCAL}\r\n");
        assert_eq!(ask(door(true), "GET", "/monitor.html", &host), Ok(Service::Forward));
        for path in ["/api/v1/status", "/api/v1/events", "/metrics", "/healthz", "/monitor.html/x"] {
            assert_eq!(ask(door(true), "GET", path, &host), Err(401), "{path}");
        }
    }

    #[test]
    fn bodies_are_capped_before_they_are_read() {
        let length = |bytes: u64| format!("Host: x\r\nContent-Length: {bytes}\r\n");
        assert_eq!(ask(Door::Control, "POST", "/api/v1/submissions", &length(MAX_SUBMISSION)), Ok(Service::Forward));
        assert_eq!(ask(Door::Control, "POST", "/api/v1/submissions", &length(MAX_SUBMISSION + 1)), Err(413));
        assert_eq!(ask(Door::Control, "POST", "/api/v1/pause", &length(MAX_BODY + 1)), Err(413));
        assert_eq!(ask(Door::Control, "PUT", "/api/v1/pause", "Host: x\r\n"), Err(405));
    }
}

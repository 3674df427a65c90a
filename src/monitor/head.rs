//! The head of a request: bytes in, the few fields that matter out. Everything else that a client sends is dropped here,
//! so that tiny_http sees only heads that we wrote.

/// Longest head in bytes: browsers send below 2 KiB, and cookies of other services on the same host come on top.
pub const MAX_HEAD: usize = 16 * 1024;
/// Most header fields.
const MAX_FIELDS: usize = 64;
/// Longest request target.
const MAX_TARGET: usize = 2048;

/// What a request wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Read.
    Get,
    /// Read without the content.
    Head,
    /// Change.
    Post,
    /// Anything else, which nothing here has a use for.
    Other,
}

impl Method {
    /// As on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Other => "OTHER",
        }
    }
}

/// A request that is not served, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status.
    pub status: u16,
    /// For people.
    pub message: &'static str,
}

impl Refusal {
    /// Refuses with `status`.
    pub fn new(status: u16, message: &'static str) -> Self {
        Self { status, message }
    }
}

/// A parsed head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// What to do.
    pub method: Method,
    /// Path and query: visible ASCII that begins with `/`.
    pub target: String,
    /// Whether the client speaks HTTP/1.0.
    pub is_http10: bool,
    /// Bytes of body that follow.
    pub content_length: u64,
    /// Whether the client waits for leave to send the body.
    pub expects_continue: bool,
    /// `Host`.
    pub host: Option<String>,
    /// `Origin`.
    pub origin: Option<String>,
    /// `X-HiveMind-Token`.
    pub token: Option<String>,
    /// `Sec-Fetch-Site`.
    pub fetch_site: Option<String>,
    /// `Sec-Fetch-Mode`.
    pub fetch_mode: Option<String>,
    /// Bytes of the head itself.
    pub len: usize,
}

impl Head {
    /// The target without its query.
    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }
}

/// Whether an end of a head can be in `bytes[from..]`: parsing before would be wasted on a slow sender.
pub fn may_end(bytes: &[u8], from: usize) -> bool {
    let tail = &bytes[from.saturating_sub(3)..];
    tail.windows(2).any(|pair| pair == b"\n\n") || tail.windows(3).any(|three| three == b"\n\r\n")
}

/// Parses the head at the start of `bytes`; `None` when it isn't complete.
///
/// # Errors
/// Refuses what no honest client sends.
pub fn parse(bytes: &[u8]) -> Result<Option<Head>, Refusal> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    let len = match request.parse(bytes) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(Refusal::new(431, "too many header fields")),
        Err(_) => return Err(Refusal::new(400, "this is no HTTP/1 request")),
    };
    let target = request.path.unwrap_or_default();
    if target.len() > MAX_TARGET {
        return Err(Refusal::new(414, "the request target is too long"));
    }
    if !target.starts_with('/') || !target.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Refusal::new(400, "the request target must be a path"));
    }
    let mut head = Head {
        method: match request.method {
            Some("GET") => Method::Get,
            Some("HEAD") => Method::Head,
            Some("POST") => Method::Post,
            _ => Method::Other,
        },
        target: target.to_owned(),
        is_http10: request.version == Some(0),
        content_length: 0,
        expects_continue: false,
        host: None,
        origin: None,
        token: None,
        fetch_site: None,
        fetch_mode: None,
        len,
    };
    let mut length = None;
    for field in request.headers.iter() {
        take_field(&mut head, &mut length, field.name, field.value)?;
    }
    head.content_length = match length {
        None => 0,
        Some(text) => parse_length(&text)?,
    };
    if head.host.is_none() && !head.is_http10 {
        return Err(Refusal::new(400, "the Host field is missing"));
    }
    Ok(Some(head))
}

/// Keeps a field that matters. A field that decides something may come once only.
fn take_field(head: &mut Head, length: &mut Option<String>, name: &str, value: &[u8]) -> Result<(), Refusal> {
    let slot = match name.to_ascii_lowercase().as_str() {
        "host" => &mut head.host,
        "origin" => &mut head.origin,
        "x-hivemind-token" => &mut head.token,
        "sec-fetch-site" => &mut head.fetch_site,
        "sec-fetch-mode" => &mut head.fetch_mode,
        "content-length" => length,
        "transfer-encoding" => return Err(Refusal::new(411, "send the body with a Content-Length")),
        "expect" => {
            if !value.eq_ignore_ascii_case(b"100-continue") {
                return Err(Refusal::new(417, "only 100-continue can be expected"));
            }
            head.expects_continue = true;
            return Ok(());
        }
        _ => return Ok(()),
    };
    let Ok(text) = std::str::from_utf8(value) else {
        return Err(Refusal::new(400, "a header field is not UTF-8"));
    };
    if slot.replace(text.to_owned()).is_some() {
        return Err(Refusal::new(400, "a header field that decides something came twice"));
    }
    Ok(())
}

/// Digits only; more than fit are too many bytes, not a malformed number.
fn parse_length(text: &str) -> Result<u64, Refusal> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Refusal::new(400, "the Content-Length is no number"));
    }
    Ok(text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status_of(text: &str) -> u16 {
        parse(text.as_bytes()).unwrap_err().status
    }

    #[test]
    fn keeps_what_matters() {
        let text = "POST /api/v1/pause?x=1 HTTP/1.1\r\nHost: localhost:5001\r\nX-HiveMind-Token: ab\r\n\
                    Content-Length: 3\r\nCookie: a=b\r\n\r\nabc";
        let head = parse(text.as_bytes()).unwrap().unwrap();
        assert_eq!((head.method, head.path(), head.content_length), (Method::Post, "/api/v1/pause", 3));
        assert_eq!(head.token.as_deref(), Some("ab"));
        assert_eq!(&text[head.len..], "abc");
    }

    #[test]
    fn each_truncation_waits_for_more() {
        let text = b"GET / HTTP/1.1\r\nHost: localhost:5001\r\n\r\n";
        for len in 0..text.len() {
            assert_eq!(parse(&text[..len]), Ok(None), "{len}");
        }
        assert!(may_end(text, text.len() - 1));
        assert!(!may_end(&text[..text.len() - 2], 0));
    }

    #[test]
    fn refuses_what_no_honest_client_sends() {
        for (status, text) in [
            (400, "GET / HTTP/1.1\r\n\r\n"),
            (400, "GET http://evil/ HTTP/1.1\r\nHost: a\r\n\r\n"),
            (400, "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
            (400, "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n"),
            (400, "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"),
            (400, "\u{1}\u{2}\u{3}\r\n\r\n"),
            (411, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"),
            (417, "POST / HTTP/1.1\r\nHost: a\r\nExpect: tea\r\n\r\n"),
        ] {
            assert_eq!(status_of(text), status, "{text}");
        }
        let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "a: b\r\n".repeat(MAX_FIELDS));
        assert_eq!(status_of(&many), 431);
        assert_eq!(status_of(&format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(MAX_TARGET))), 414);
    }

    #[test]
    fn a_length_beyond_all_numbers_is_only_large() {
        let text = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", "9".repeat(40));
        assert_eq!(parse(text.as_bytes()).unwrap().unwrap().content_length, u64::MAX);
    }
}

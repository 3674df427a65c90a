//! What makes a field list a well-formed request, response or trailer section (RFC 9113 sections 8.1 to 8.3).

use super::hpack::Header;

/// Why a field list is malformed; always a stream error of type PROTOCOL_ERROR (RFC 9113 section 8.1.1).
pub type Malformed = &'static str;

/// What a checked head says about the message that follows.
#[derive(Debug, PartialEq, Eq)]
pub struct Head {
    /// The response's status; 0 in a request.
    pub status: u16,
    /// The body's length, where the head names one.
    pub content_length: Option<u64>,
}

/// Checks the head of a request (RFC 9113 section 8.3.1).
pub fn check_request(fields: &[Header]) -> Result<Head, Malformed> {
    let pseudo = check_lines(fields, &[b":method", b":scheme", b":path", b":authority"])?;
    let [method, scheme, path, authority] = pseudo;
    let method = method.ok_or("request without :method")?;
    if method == b"CONNECT" {
        if scheme.is_some() || path.is_some() || authority.is_none() {
            return Err("CONNECT with the wrong pseudo-fields");
        }
    } else if scheme.is_none_or(<[u8]>::is_empty) || path.is_none_or(<[u8]>::is_empty) {
        return Err("request without :scheme or :path");
    }
    Ok(Head { status: 0, content_length: content_length(fields)? })
}

/// Checks the head of a response (RFC 9113 section 8.3.2).
pub fn check_response(fields: &[Header]) -> Result<Head, Malformed> {
    let [status, ..] = check_lines(fields, &[b":status"])?;
    let status = match status {
        Some([a @ b'1'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9']) => {
            u16::from(a - b'0') * 100 + u16::from(b - b'0') * 10 + u16::from(c - b'0')
        }
        Some(_) => return Err(":status that is no three-digit number"),
        None => return Err("response without :status"),
    };
    Ok(Head { status, content_length: content_length(fields)? })
}

/// Checks a trailer section, which has no pseudo-fields (RFC 9113 section 8.1).
pub fn check_trailers(fields: &[Header]) -> Result<(), Malformed> {
    check_lines(fields, &[]).map(|_| ())
}

/// The value of a field's first line.
pub fn find<'a>(fields: &'a [Header], name: &str) -> Option<&'a [u8]> {
    fields.iter().find(|f| f.name == name.as_bytes()).map(|f| &*f.value)
}

/// Checks each line; returns the values of the allowed pseudo-fields in their order.
fn check_lines<'a>(fields: &'a [Header], allowed: &[&[u8]]) -> Result<[Option<&'a [u8]>; 4], Malformed> {
    let mut pseudo = [None; 4];
    let mut regular_seen = false;
    for field in fields {
        check_value(&field.name, &field.value)?;
        if field.name.first() != Some(&b':') {
            regular_seen = true;
            check_name(&field.name, &field.value)?;
            continue;
        }
        if regular_seen {
            return Err("pseudo-field after a regular field");
        }
        let slot = allowed.iter().position(|name| field.name == *name).and_then(|i| pseudo.get_mut(i));
        let slot = slot.ok_or("pseudo-field that is not allowed here")?;
        if slot.replace(&*field.value).is_some() {
            return Err("pseudo-field twice");
        }
    }
    Ok(pseudo)
}

/// RFC 9113 sections 8.2.1 and 8.2.2.
fn check_name(name: &[u8], value: &[u8]) -> Result<(), Malformed> {
    if name.is_empty() {
        return Err("empty field name");
    }
    if name.iter().any(|b| matches!(b, 0..=0x20 | b'A'..=b'Z' | b':' | 0x7f..)) {
        return Err("field name with a forbidden character");
    }
    match name {
        b"connection" | b"proxy-connection" | b"keep-alive" | b"transfer-encoding" | b"upgrade" => {
            Err("connection-specific field")
        }
        b"te" if value != b"trailers" => Err("te field other than trailers"),
        _ => Ok(()),
    }
}

/// RFC 9113 section 8.2.1, with one exception: gRPC's C core writes the spaces around a status message as they are, and
/// they must not hide the status.
fn check_value(name: &[u8], value: &[u8]) -> Result<(), Malformed> {
    if value.iter().any(|b| matches!(b, 0 | b'\r' | b'\n')) {
        return Err("field value with a forbidden character");
    }
    let is_blank = |b: Option<&u8>| matches!(b, Some(b' ' | b'\t'));
    if (is_blank(value.first()) || is_blank(value.last())) && name != b"grpc-message" {
        return Err("field value with space around it");
    }
    Ok(())
}

/// All lines must say the same number (RFC 9110 section 8.6).
fn content_length(fields: &[Header]) -> Result<Option<u64>, Malformed> {
    let mut length = None;
    for field in fields.iter().filter(|f| f.name == b"content-length") {
        let text = std::str::from_utf8(&field.value).ok().filter(|t| t.bytes().all(|b| b.is_ascii_digit()));
        let value = text.and_then(|t| t.parse().ok()).ok_or("content-length that is no number")?;
        if length.replace(value).is_some_and(|before: u64| before != value) {
            return Err("two content-lengths that differ");
        }
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(fields: &[(&str, &str)]) -> Vec<Header> {
        fields.iter().map(|(n, v)| Header::new(*n, *v)).collect()
    }

    const GOOD: [(&str, &str); 3] = [(":method", "POST"), (":scheme", "http"), (":path", "/a")];

    fn request_with(extra: &[(&str, &str)]) -> Result<Head, Malformed> {
        check_request(&list(&[GOOD.as_slice(), extra].concat()))
    }

    #[test]
    fn accepts_a_request() {
        let head =
            request_with(&[(":authority", "h"), ("te", "trailers"), ("content-length", "7"), ("content-length", "7")]);
        assert_eq!(head, Ok(Head { status: 0, content_length: Some(7) }));
        assert!(check_request(&list(&[(":method", "CONNECT"), (":authority", "h:1")])).is_ok());
    }

    #[test]
    fn refuses_malformed_requests() {
        for extra in [
            &[(":method", "POST")][..],
            &[(":status", "200")],
            &[("a", "b"), (":authority", "h")],
            &[("Upper", "x")],
            &[("", "x")],
            &[("a b", "x")],
            &[("a:b", "x")],
            &[("a\u{e9}", "x")],
            &[("a", "x\0")],
            &[("a", "x\r\ny")],
            &[("a", " x")],
            &[("a", "x\t")],
            &[("connection", "close")],
            &[("transfer-encoding", "chunked")],
            &[("te", "gzip")],
            &[("content-length", "x")],
            &[("content-length", "+1")],
            &[("content-length", "1"), ("content-length", "2")],
        ] {
            assert!(request_with(extra).is_err(), "{extra:?}");
        }
        for missing in 0..3 {
            let mut fields = list(&GOOD);
            fields.remove(missing);
            assert!(check_request(&fields).is_err());
        }
        assert!(check_request(&list(&[(":method", "GET"), (":scheme", "http"), (":path", "")])).is_err());
        assert!(check_request(&list(&[(":method", "CONNECT"), (":path", "/"), (":authority", "h:1")])).is_err());
    }

    #[test]
    fn refuses_malformed_responses_and_trailers() {
        assert_eq!(check_response(&list(&[(":status", "204")])).unwrap().status, 204);
        for status in ["", "20", "2000", "0x1", "099", "-10"] {
            assert!(check_response(&list(&[(":status", status)])).is_err(), "{status}");
        }
        assert!(check_response(&list(&[("a", "b")])).is_err());
        assert!(check_response(&list(&[(":status", "200"), (":status", "200")])).is_err());
        assert!(check_trailers(&list(&[(":status", "200")])).is_err());
        assert!(check_trailers(&list(&[("grpc-status", "0")])).is_ok());
        assert!(check_trailers(&list(&[("grpc-status", " 0")])).is_err());
        assert!(check_trailers(&list(&[("grpc-status", "0"), ("grpc-message", " a ")])).is_ok());
    }
}

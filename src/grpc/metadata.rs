//! Custom metadata, base64 of `-bin` values and percent-encoding of grpc-message (PROTOCOL-HTTP2.md).

use std::fmt;

use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use base64::{Engine, alphabet};

use crate::h2::{Field, Header, Indexing};

/// A name or value that must not be sent.
#[derive(Debug, PartialEq, Eq)]
pub struct InvalidMetadata {
    /// The name; the value may be a secret.
    pub name: String,
}

impl fmt::Display for InvalidMetadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "invalid gRPC metadata {:?}", self.name)
    }
}

impl std::error::Error for InvalidMetadata {}

/// Fields beside the message. Values of names that end in `-bin` are bytes, others printable ASCII.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Metadata {
    entries: Vec<Entry>,
}

#[derive(Clone, PartialEq, Eq)]
struct Entry {
    name: String,
    value: Vec<u8>,
    /// The value in base64, where the name says that it is binary.
    coded: Option<String>,
    is_secret: bool,
}

impl Entry {
    fn new(name: String, value: Vec<u8>, is_secret: bool) -> Entry {
        let coded = name.ends_with("-bin").then(|| BASE64.encode(&value));
        Entry { name, value, coded, is_secret }
    }
}

impl Metadata {
    /// Adds a value. Names are lower case letters, digits, `_`, `-` and `.`; those of gRPC and HTTP/2 are refused.
    pub fn add(&mut self, name: &str, value: impl Into<Vec<u8>>) -> Result<(), InvalidMetadata> {
        self.add_entry(name, value.into(), name == "authorization")
    }

    /// Adds a value that is never put into a compression table nor shown.
    pub fn add_secret(&mut self, name: &str, value: impl Into<Vec<u8>>) -> Result<(), InvalidMetadata> {
        self.add_entry(name, value.into(), true)
    }

    fn add_entry(&mut self, name: &str, value: Vec<u8>, is_secret: bool) -> Result<(), InvalidMetadata> {
        let is_name_char = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'.');
        let is_name = !name.is_empty() && name.bytes().all(is_name_char);
        let is_text = value.iter().all(|b| (0x20..0x7f).contains(b)) && value.trim_ascii().len() == value.len();
        if !is_name || is_reserved(name) || name.starts_with("grpc-") || !(is_text || name.ends_with("-bin")) {
            return Err(InvalidMetadata { name: name.to_owned() });
        }
        self.entries.push(Entry::new(name.to_owned(), value, is_secret));
        Ok(())
    }

    /// The first value of a name.
    pub fn find(&self, name: &str) -> Option<&[u8]> {
        self.iter().find(|(n, _)| *n == name).map(|(_, v)| v)
    }

    /// All values, in their order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.entries.iter().map(|e| (e.name.as_str(), e.value.as_slice()))
    }

    /// As header fields.
    pub(super) fn fields(&self) -> impl Iterator<Item = Field<'_>> {
        self.entries.iter().map(|entry| Field {
            name: entry.name.as_bytes(),
            value: entry.coded.as_ref().map_or(entry.value.as_slice(), String::as_bytes),
            indexing: if entry.is_secret { Indexing::Never } else { Indexing::Repeated },
        })
    }

    /// From received header fields, without those that gRPC and HTTP/2 use themselves. `Err` names a broken `-bin`.
    pub(super) fn from_headers(headers: &[Header]) -> Result<Metadata, InvalidMetadata> {
        let mut entries = Vec::new();
        for header in headers {
            // Names were checked to be ASCII.
            let name = str::from_utf8(&header.name).unwrap_or_default();
            if name.starts_with(':') || is_reserved(name) {
                continue;
            }
            let name = name.to_owned();
            let is_secret = name == "authorization" || header.indexing == Indexing::Never;
            if !name.ends_with("-bin") {
                entries.push(Entry::new(name, header.value.to_vec(), is_secret));
                continue;
            }
            for part in header.value.split(|b| *b == b',') {
                let value = BASE64.decode(part.trim_ascii()).map_err(|_| InvalidMetadata { name: name.clone() })?;
                entries.push(Entry::new(name.clone(), value, is_secret));
            }
        }
        Ok(Metadata { entries })
    }
}

impl fmt::Debug for Metadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.entries.iter().map(|e| match e.is_secret {
            true => (&e.name, "(secret)".into()),
            false => (&e.name, String::from_utf8_lossy(&e.value)),
        });
        f.debug_map().entries(shown).finish()
    }
}

/// Fields that are not custom metadata. Others of gRPC, such as grpc-retry-pushback-ms, are shown to the caller.
fn is_reserved(name: &str) -> bool {
    matches!(
        name,
        "content-type"
            | "te"
            | "content-length"
            | "host"
            | "connection"
            | "proxy-connection"
            | "keep-alive"
            | "transfer-encoding"
            | "upgrade"
            | "grpc-status"
            | "grpc-message"
            | "grpc-timeout"
            | "grpc-encoding"
            | "grpc-accept-encoding"
    )
}

/// Written without padding, as gRPC prefers; read with or without.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// Encodes a status message: what is not printable ASCII, `%`, and space at the ends, which HTTP/2 forbids there.
pub(super) fn percent_encode(message: &str) -> String {
    let mut out = String::with_capacity(message.len());
    let last = message.len().saturating_sub(1);
    for (i, byte) in message.bytes().enumerate() {
        let is_edge_space = byte == b' ' && (i == 0 || i == last);
        if (0x20..0x7f).contains(&byte) && byte != b'%' && !is_edge_space {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// Decodes a status message. What is broken stays as it is: an odd message must not hide the status.
pub(super) fn percent_decode(value: &[u8]) -> String {
    let mut out = Vec::with_capacity(value.len());
    let mut rest = value;
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail.get(..2).filter(|d| d.iter().all(u8::is_ascii_hexdigit));
        let digits = digits.and_then(|d| std::str::from_utf8(d).ok());
        match digits.and_then(|d| u8::from_str_radix(d, 16).ok()) {
            Some(byte) if *first == b'%' => {
                out.push(byte);
                rest = tail.get(2..).unwrap_or_default();
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_follows_rfc_4648() {
        for (plain, coded, padded) in [
            ("", "", ""),
            ("f", "Zg", "Zg=="),
            ("fo", "Zm8", "Zm8="),
            ("foo", "Zm9v", "Zm9v"),
            ("foob", "Zm9vYg", "Zm9vYg=="),
            ("fooba", "Zm9vYmE", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy", "Zm9vYmFy"),
        ] {
            assert_eq!(BASE64.encode(plain.as_bytes()), coded);
            assert_eq!(BASE64.decode(coded.as_bytes()).unwrap(), plain.as_bytes());
            assert_eq!(BASE64.decode(padded.as_bytes()).unwrap(), plain.as_bytes());
        }
        for odd in ["Z", "Zg===", "Z===", "====", "Zm9v=", "Z!==", "Zm=v", "Zm9vY"] {
            assert!(BASE64.decode(odd.as_bytes()).is_err(), "{odd}");
        }
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(BASE64.decode(BASE64.encode(&all).as_bytes()).unwrap(), all);
    }

    #[test]
    fn messages_survive_percent_encoding() {
        assert_eq!(percent_encode("50% of ü\n"), "50%25 of %C3%BC%0A");
        assert_eq!(percent_encode(" a b "), "%20a b%20");
        for message in ["", " ", "plain", "üñí 🚀 %20 \t\r\n\0", "a  b"] {
            assert_eq!(percent_decode(percent_encode(message).as_bytes()), message);
        }
        for (odd, want) in
            [("%", "%"), ("%4", "%4"), ("%zz", "%zz"), ("a%%41", "a%A"), ("%ff", "\u{fffd}"), ("%+1", "%+1")]
        {
            assert_eq!(percent_decode(odd.as_bytes()), want);
        }
    }

    #[test]
    fn binary_values_are_split_at_commas() {
        let headers = [Header::new("x-bin", "Zg==,Zm8"), Header::new("y", "a,b"), Header::new(":status", "200")];
        let got = Metadata::from_headers(&headers).unwrap();
        let got: Vec<_> = got.iter().map(|(n, v)| (n, v.to_vec())).collect();
        assert_eq!(got, [("x-bin", b"f".to_vec()), ("x-bin", b"fo".to_vec()), ("y", b"a,b".to_vec())]);
        assert!(Metadata::from_headers(&[Header::new("x-bin", "!")]).is_err());
    }

    #[test]
    fn refuses_what_must_not_be_sent() {
        let mut metadata = Metadata::default();
        for (name, value) in
            [("Upper", "x"), ("", "x"), (":path", "x"), ("te", "x"), ("grpc-x", "x"), ("a", "\n"), ("a", " x")]
        {
            assert!(metadata.add(name, value).is_err(), "{name}");
        }
        metadata.add("authorization", "Bearer abc").unwrap();
        metadata.add("raw-bin", vec![0, 255]).unwrap();
        assert!(!format!("{metadata:?}").contains("abc"));
        let fields: Vec<Field<'_>> = metadata.fields().collect();
        assert_eq!(fields[0].indexing, Indexing::Never);
        assert_eq!(fields[1].value, b"AP8");
    }
}

//! Field compression (RFC 7541).

pub mod decoder;
pub mod encoder;
pub mod huffman;
pub mod octets;
pub mod table;

#[cfg(test)]
mod rfc_tests;

pub use decoder::{DecodeError, Decoder};
pub use encoder::Encoder;
pub use octets::Octets;

/// What the encoder may do with a field (RFC 7541 section 6.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Indexing {
    /// Goes into the dynamic table: the field will come again.
    #[default]
    Repeated,
    /// Stays out of the table: the value is new each time.
    Once,
    /// Stays out of each table on the way: the value is a secret (RFC 7541 section 7.1.3).
    Never,
}

/// One field line, or pseudo-header field. Names are lower case (RFC 9113 section 8.2).
#[derive(Clone, PartialEq, Eq)]
pub struct Header {
    /// The field's name.
    pub name: Octets,
    /// The field's value.
    pub value: Octets,
    /// For the encoder; the decoder sets `Never` where the peer did.
    pub indexing: Indexing,
}

impl Header {
    /// A field that will come again.
    pub fn new(name: impl Into<Octets>, value: impl Into<Octets>) -> Header {
        Header { name: name.into(), value: value.into(), indexing: Indexing::Repeated }
    }

    /// A field whose value is new each time.
    pub fn once(name: impl Into<Octets>, value: impl Into<Octets>) -> Header {
        Header { indexing: Indexing::Once, ..Header::new(name, value) }
    }

    /// A field whose value is a secret.
    pub fn sensitive(name: impl Into<Octets>, value: impl Into<Octets>) -> Header {
        Header { indexing: Indexing::Never, ..Header::new(name, value) }
    }

    /// The size as the standard counts it (RFC 7541 section 4.1).
    pub fn size(&self) -> usize {
        table::entry_size(&self.name, &self.value)
    }
}

/// A field line that is lent to the encoder.
#[derive(Clone, Copy)]
pub struct Field<'a> {
    /// The field's name.
    pub name: &'a [u8],
    /// The field's value.
    pub value: &'a [u8],
    /// What the encoder may do with it.
    pub indexing: Indexing,
}

impl<'a> Field<'a> {
    /// A field that will come again.
    pub fn new(name: &'a str, value: &'a str) -> Field<'a> {
        Field { name: name.as_bytes(), value: value.as_bytes(), indexing: Indexing::Repeated }
    }
}

impl From<Field<'_>> for Header {
    fn from(field: Field<'_>) -> Header {
        Header { name: field.name.into(), value: field.value.into(), indexing: field.indexing }
    }
}

impl<'a> From<&'a Header> for Field<'a> {
    fn from(header: &'a Header) -> Field<'a> {
        Field { name: &header.name, value: &header.value, indexing: header.indexing }
    }
}

impl std::fmt::Debug for Header {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let value = match self.indexing {
            Indexing::Never => "(secret)".into(),
            _ => String::from_utf8_lossy(&self.value),
        };
        write!(f, "{}: {value}", String::from_utf8_lossy(&self.name))
    }
}

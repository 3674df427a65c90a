//! The encoder (RFC 7541 section 6).

use super::huffman;
use super::table::{Match, Table};
use super::{Field, Indexing};

/// Our table is never larger, whatever the peer allows: it is our memory.
const MAX_TABLE_SIZE: usize = 4096;

/// Encodes the field blocks of one connection in their order.
#[derive(Debug)]
pub struct Encoder {
    table: Table,
    /// The smallest bound since the last block, if the bound changed: both must be told (RFC 7541 section 4.2).
    smallest: Option<usize>,
}

impl Default for Encoder {
    fn default() -> Self {
        Encoder { table: Table::new(MAX_TABLE_SIZE), smallest: None }
    }
}

impl Encoder {
    /// Takes the peer's SETTINGS_HEADER_TABLE_SIZE.
    pub fn set_peer_table_size(&mut self, size: u32) {
        let size = usize::try_from(size).unwrap_or(MAX_TABLE_SIZE).min(MAX_TABLE_SIZE);
        if size == self.table.max_size() {
            return;
        }
        self.smallest = Some(self.smallest.unwrap_or(size).min(size));
        self.table.set_max_size(size);
    }

    /// Encodes one whole block.
    pub fn encode<'a, F: Into<Field<'a>>>(&mut self, fields: impl IntoIterator<Item = F>, out: &mut Vec<u8>) {
        if let Some(smallest) = self.smallest.take() {
            if smallest < self.table.max_size() {
                put_integer(out, 0x20, 5, smallest);
            }
            put_integer(out, 0x20, 5, self.table.max_size());
        }
        for field in fields {
            self.encode_field(field.into(), out);
        }
    }

    fn encode_field(&mut self, field: Field<'_>, out: &mut Vec<u8>) {
        let found = self.table.find(field.name, field.value);
        let (pattern, prefix) = match (field.indexing, found) {
            (Indexing::Repeated | Indexing::Once, Some(Match::Field(index))) => {
                return put_integer(out, 0x80, 7, index);
            }
            (Indexing::Repeated, _) => (0x40, 6),
            (Indexing::Once, _) => (0x00, 4),
            (Indexing::Never, _) => (0x10, 4),
        };
        match found {
            Some(Match::Field(index) | Match::Name(index)) => put_integer(out, pattern, prefix, index),
            None => {
                put_integer(out, pattern, prefix, 0);
                put_string(out, field.name);
            }
        }
        put_string(out, field.value);
        if field.indexing == Indexing::Repeated {
            self.table.insert(field.name.into(), field.value.into());
        }
    }
}

/// Appends an integer after a pattern in the first byte's high bits (RFC 7541 section 5.1).
fn put_integer(out: &mut Vec<u8>, pattern: u8, prefix: u32, value: usize) {
    let mask = (1usize << prefix) - 1;
    if value < mask {
        return out.push(pattern | (value & 0xff) as u8);
    }
    out.push(pattern | (mask & 0xff) as u8);
    let mut rest = value - mask;
    while rest >= 0x80 {
        out.push((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    out.push((rest & 0x7f) as u8);
}

fn put_string(out: &mut Vec<u8>, bytes: &[u8]) {
    let short = huffman::encoded_len(bytes);
    if short < bytes.len() {
        put_integer(out, 0x80, 7, short);
        huffman::encode(bytes, out);
    } else {
        put_integer(out, 0x00, 7, bytes.len());
        out.extend_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Decoder, Header};
    use super::*;

    fn encoded(encoder: &mut Encoder, fields: &[Header]) -> Vec<u8> {
        let mut out = Vec::new();
        encoder.encode(fields, &mut out);
        out
    }

    #[test]
    fn appendix_c4_requests() {
        let mut encoder = Encoder::default();
        let base = vec![
            Header::new(":method", "GET"),
            Header::new(":scheme", "http"),
            Header::new(":path", "/"),
            Header::new(":authority", "www.example.com"),
        ];
        let first =
            [0x82, 0x86, 0x84, 0x41, 0x8c, 0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff];
        assert_eq!(encoded(&mut encoder, &base), first);
        let second = [base, vec![Header::new("cache-control", "no-cache")]].concat();
        assert_eq!(
            encoded(&mut encoder, &second),
            [0x82, 0x86, 0x84, 0xbe, 0x58, 0x86, 0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf]
        );
    }

    #[test]
    fn secrets_and_single_values_stay_out_of_the_table() {
        let mut encoder = Encoder::default();
        let fields = [Header::sensitive("authorization", "x"), Header::once("grpc-timeout", "1S")];
        let first = encoded(&mut encoder, &fields);
        assert_eq!(first[..2], [0x1f, 0x08], "never indexed, name 23");
        assert_eq!(encoded(&mut encoder, &fields), first);
    }

    #[test]
    fn tells_a_changed_table_size_at_the_start_of_the_next_block() {
        let mut encoder = Encoder::default();
        encoder.set_peer_table_size(u32::MAX);
        assert!(encoded(&mut encoder, &[]).is_empty());
        encoder.set_peer_table_size(0);
        encoder.set_peer_table_size(100);
        assert_eq!(encoded(&mut encoder, &[]), [0x20, 0x3f, 0x45]);
        encoder.set_peer_table_size(0);
        assert_eq!(encoded(&mut encoder, &[Header::new("a", "b")])[0], 0x20);
    }

    #[test]
    fn decoder_follows_through_many_blocks() {
        let (mut encoder, mut decoder) = (Encoder::default(), Decoder::new(4096, 16_384));
        for i in 0..500u32 {
            let fields: Vec<Header> = (0..i % 7)
                .map(|n| Header::new(format!("name-{n}"), format!("value {}", i * n % 37).repeat(n as usize)))
                .collect();
            if i % 50 == 0 {
                encoder.set_peer_table_size(i % 4096);
            }
            let block = encoded(&mut encoder, &fields);
            assert_eq!(decoder.decode(&block).unwrap(), fields);
        }
    }
}

//! The decoder (RFC 7541 section 6), with a limit for each thing that a peer chooses.

use super::huffman;
use super::table::{Table, entry_size};
use super::{Header, Indexing, Octets};

/// Bytes of an integer after its prefix: 4 carry 28 bits, and a fifth would only be padding (RFC 7541 section 5.1).
const MAX_INTEGER_BYTES: u32 = 5;
/// No length or index of an honest block comes near this.
const MAX_INTEGER: usize = 1 << 28;

/// Why a block could not be decoded. Both end the connection, since the table is out of step afterwards.
#[derive(Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// The block breaks RFC 7541.
    Compression(&'static str),
    /// The decoded fields exceed the limit.
    TooLarge,
}

/// Decodes the field blocks of one connection in their order.
#[derive(Debug)]
pub struct Decoder {
    table: Table,
    /// What our SETTINGS_HEADER_TABLE_SIZE allows.
    allowed_size: usize,
    max_list_size: usize,
}

impl Decoder {
    /// A decoder whose dynamic table is at most `table_size` and whose field lists are at most `max_list_size`.
    pub fn new(table_size: usize, max_list_size: usize) -> Decoder {
        Decoder { table: Table::new(table_size), allowed_size: table_size, max_list_size }
    }

    /// Decodes one whole block. The size is counted as fields are emitted, so that one byte which names a large entry
    /// costs what it expands to.
    pub fn decode(&mut self, block: &[u8]) -> Result<Vec<Header>, DecodeError> {
        let mut input = Input { rest: block };
        let mut fields = Vec::new();
        let mut size = 0;
        while let Some(first) = input.peek() {
            if first & 0xe0 == 0x20 {
                self.resize(&mut input, fields.is_empty())?;
                continue;
            }
            let field = self.field(first, &mut input, self.max_list_size - size)?;
            size += field.size();
            if size > self.max_list_size {
                return Err(DecodeError::TooLarge);
            }
            fields.push(field);
        }
        Ok(fields)
    }

    /// Dynamic table size update (RFC 7541 section 6.3), which may only start a block (section 4.2).
    fn resize(&mut self, input: &mut Input<'_>, at_start: bool) -> Result<(), DecodeError> {
        let size = input.integer(5)?;
        if !at_start {
            return Err(DecodeError::Compression("table size update after a field"));
        }
        if size > self.allowed_size {
            return Err(DecodeError::Compression("table size update above the limit"));
        }
        self.table.set_max_size(size);
        Ok(())
    }

    fn field(&mut self, first: u8, input: &mut Input<'_>, room: usize) -> Result<Header, DecodeError> {
        if first & 0x80 != 0 {
            let (name, value) = self.entry(input.integer(7)?)?;
            if entry_size(&name, &value) > room {
                return Err(DecodeError::TooLarge);
            }
            return Ok(Header { name, value, indexing: Indexing::Repeated });
        }
        let (prefix, indexing) = match first {
            0x40.. => (6, Indexing::Repeated),
            0x10..0x20 => (4, Indexing::Never),
            _ => (4, Indexing::Once),
        };
        let name = match input.integer(prefix)? {
            0 => Octets::Owned(input.string(room)?),
            index => self.entry(index)?.0,
        };
        let value = Octets::Owned(input.string(room)?);
        if indexing != Indexing::Repeated {
            return Ok(Header { name, value, indexing });
        }
        let (name, value) = (name.into_shared(), value.into_shared());
        self.table.insert(name.clone(), value.clone());
        Ok(Header { name, value, indexing })
    }

    fn entry(&self, index: usize) -> Result<(Octets, Octets), DecodeError> {
        self.table.entry(index).ok_or(DecodeError::Compression("index outside the tables"))
    }
}

struct Input<'a> {
    rest: &'a [u8],
}

impl<'a> Input<'a> {
    fn peek(&self) -> Option<u8> {
        self.rest.first().copied()
    }

    fn byte(&mut self) -> Result<u8, DecodeError> {
        let (first, rest) = self.rest.split_first().ok_or(DecodeError::Compression("block ends inside a field"))?;
        self.rest = rest;
        Ok(*first)
    }

    /// An integer with a prefix of this many bits (RFC 7541 section 5.1).
    fn integer(&mut self, prefix: u32) -> Result<usize, DecodeError> {
        let mask = (1usize << prefix) - 1;
        let mut value = usize::from(self.byte()?) & mask;
        if value < mask {
            return Ok(value);
        }
        for i in 0..MAX_INTEGER_BYTES {
            let byte = self.byte()?;
            let part = u64::from(byte & 0x7f) << (7 * i);
            value = usize::try_from(part).ok().and_then(|p| value.checked_add(p)).unwrap_or(usize::MAX);
            if value > MAX_INTEGER {
                break;
            }
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(DecodeError::Compression("integer too large or too long"))
    }

    /// A string literal (RFC 7541 section 5.2). Its length is checked against the block before anything is stored.
    fn string(&mut self, room: usize) -> Result<Vec<u8>, DecodeError> {
        let is_huffman = self.peek().is_some_and(|b| b & 0x80 != 0);
        let length = self.integer(7)?;
        let Some((bytes, rest)) = self.rest.split_at_checked(length) else {
            return Err(DecodeError::Compression("string longer than its block"));
        };
        self.rest = rest;
        if !is_huffman {
            return if length > room { Err(DecodeError::TooLarge) } else { Ok(bytes.to_vec()) };
        }
        let mut out = Vec::with_capacity(length * 3 / 2);
        huffman::decode(bytes, &mut out).map_err(|_| DecodeError::Compression("broken Huffman code"))?;
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 16 * 1024;

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
        digits.chunks(2).map(|d| u8::from_str_radix(std::str::from_utf8(d).unwrap(), 16).unwrap()).collect()
    }

    fn check(decoder: &mut Decoder, block: &str, want: &[(&str, &str)]) {
        let got = decoder.decode(&hex(block)).unwrap();
        let got: Vec<(String, String)> = got
            .into_iter()
            .map(|h| (String::from_utf8(h.name.to_vec()).unwrap(), String::from_utf8(h.value.to_vec()).unwrap()))
            .collect();
        let want: Vec<(String, String)> = want.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect();
        assert_eq!(got, want);
    }

    fn fails(block: &[u8]) -> DecodeError {
        Decoder::new(4096, LIMIT).decode(block).unwrap_err()
    }

    #[test]
    fn appendix_c1_integers() {
        let integer = |bytes: &[u8], prefix| Input { rest: bytes }.integer(prefix);
        assert_eq!(integer(&[0b1110_1010], 5), Ok(10));
        assert_eq!(integer(&[0b1111_1111, 0b1001_1010, 0b0000_1010], 5), Ok(1337));
        assert_eq!(integer(&[42], 8), Ok(42));
    }

    #[test]
    fn appendix_c2_representations() {
        let mut d = Decoder::new(4096, LIMIT);
        check(
            &mut d,
            "400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572",
            &[("custom-key", "custom-header")],
        );
        check(&mut d, "040c 2f73 616d 706c 652f 7061 7468", &[(":path", "/sample/path")]);
        check(&mut d, "1008 7061 7373 776f 7264 0673 6563 7265 74", &[("password", "secret")]);
        check(&mut d, "82", &[(":method", "GET")]);
        let secret = d.decode(&hex("1008 7061 7373 776f 7264 0673 6563 7265 74")).unwrap();
        assert_eq!(secret[0].indexing, Indexing::Never);
        assert!(!format!("{secret:?}").contains("secret\""));
    }

    const REQUESTS: [&[(&str, &str)]; 3] = [
        &[(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "www.example.com")],
        &[
            (":method", "GET"),
            (":scheme", "http"),
            (":path", "/"),
            (":authority", "www.example.com"),
            ("cache-control", "no-cache"),
        ],
        &[
            (":method", "GET"),
            (":scheme", "https"),
            (":path", "/index.html"),
            (":authority", "www.example.com"),
            ("custom-key", "custom-value"),
        ],
    ];

    #[test]
    fn appendix_c3_requests_without_huffman() {
        let mut d = Decoder::new(4096, LIMIT);
        check(&mut d, "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d", REQUESTS[0]);
        check(&mut d, "8286 84be 5808 6e6f 2d63 6163 6865", REQUESTS[1]);
        check(&mut d, "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65", REQUESTS[2]);
    }

    #[test]
    fn appendix_c4_requests_with_huffman() {
        let mut d = Decoder::new(4096, LIMIT);
        check(&mut d, "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff", REQUESTS[0]);
        check(&mut d, "8286 84be 5886 a8eb 1064 9cbf", REQUESTS[1]);
        check(&mut d, "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf", REQUESTS[2]);
    }

    const DATE1: &str = "Mon, 21 Oct 2013 20:13:21 GMT";
    const DATE2: &str = "Mon, 21 Oct 2013 20:13:22 GMT";
    const PLACE: &str = "https://www.example.com";
    const COOKIE: &str = "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1";
    const RESPONSES: [&[(&str, &str)]; 3] = [
        &[(":status", "302"), ("cache-control", "private"), ("date", DATE1), ("location", PLACE)],
        &[(":status", "307"), ("cache-control", "private"), ("date", DATE1), ("location", PLACE)],
        &[
            (":status", "200"),
            ("cache-control", "private"),
            ("date", DATE2),
            ("location", PLACE),
            ("content-encoding", "gzip"),
            ("set-cookie", COOKIE),
        ],
    ];

    #[test]
    fn appendix_c5_responses_with_eviction() {
        let mut d = Decoder::new(256, LIMIT);
        let first = "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 \
                     3120 474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d";
        check(&mut d, first, RESPONSES[0]);
        check(&mut d, "4803 3330 37c1 c0bf", RESPONSES[1]);
        let third = "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d 54c0 5a04 677a 6970 \
                     7738 666f 6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049 5541 5851 5745 4f49 553b 206d 6178 \
                     2d61 6765 3d33 3630 303b 2076 6572 7369 6f6e 3d31";
        check(&mut d, third, RESPONSES[2]);
    }

    #[test]
    fn appendix_c6_responses_with_huffman() {
        let mut d = Decoder::new(256, LIMIT);
        let first = "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d 29ad \
                     1718 63c7 8f0b 97c8 e9ae 82ae 43d3";
        check(&mut d, first, RESPONSES[0]);
        check(&mut d, "4883 640e ffc1 c0bf", RESPONSES[1]);
        let third = "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 821d d7f2 \
                     e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed 4ee5 b106 3d50 07";
        check(&mut d, third, RESPONSES[2]);
    }

    #[test]
    fn refuses_what_the_standard_forbids() {
        for block in [
            &[0x80][..],                                 // index 0
            &[0xbe],                                     // index 62 of an empty table
            &[0x3f],                                     // a size update that ends in its prefix
            &[0x3f, 0xe2, 0x1f],                         // a size update to 4097
            &[0x82, 0x20],                               // a size update after a field
            &[0x00, 0x05, b'a'],                         // a string longer than the block
            &[0x7f, 0x80, 0x80, 0x80, 0x80, 0x80, 0x00], // an integer with endless padding
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0x0f],       // an integer of 2^32
            &[0x00, 0x81, 0xff, 0x00],                   // a whole byte of Huffman padding
        ] {
            assert!(matches!(fails(block), DecodeError::Compression(_)), "{block:x?}");
        }
    }

    #[test]
    fn one_byte_references_to_a_large_entry_stop_at_the_limit() {
        let mut block = vec![0x40, 1, b'a', 0x7f, 0xd1, 0x1e];
        block.extend(vec![b'v'; 4048]);
        block.extend(vec![0xbe; 4000]);
        assert_eq!(fails(&block), DecodeError::TooLarge);
    }

    #[test]
    fn empty_fields_count_their_overhead() {
        let block = [0x00, 0x00, 0x00].repeat(LIMIT / 32 + 1);
        assert_eq!(fails(&block), DecodeError::TooLarge);
    }

    #[test]
    fn truncation_and_mutation_never_panic() {
        let block = hex(
            "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf 1008 7061 7373 776f 7264 0673 6563 7265 74",
        );
        for n in 0..block.len() {
            let _ = Decoder::new(4096, LIMIT).decode(&block[..n]);
        }
        let mut seed = 0x9e37_79b9_7f4a_7c15u64;
        for _ in 0..20_000 {
            let mut mutated = block.clone();
            for _ in 0..3 {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                let at = (seed >> 32) as usize % mutated.len();
                mutated[at] = seed as u8;
            }
            let _ = Decoder::new(4096, 512).decode(&mutated);
        }
    }
}

//! Bounds on what a message decodes to, checked on its bytes: a field of two bytes can become a value of a hundred in
//! memory, so a limit on bytes alone is none.

/// Protobuf's wire types that are in use.
const VARINT: u64 = 0;
const I64: u64 = 1;
const LEN: u64 = 2;
const I32: u64 = 5;

/// Whether the message has at most `max` fields, those inside of its fields not counted. Bytes that are no message pass:
/// the decoder says better what is wrong with them.
pub fn has_at_most(mut bytes: &[u8], max: usize) -> bool {
    for _ in 0..max {
        if bytes.is_empty() {
            return true;
        }
        match skip_field(bytes) {
            Some(rest) => bytes = rest,
            None => return true,
        }
    }
    bytes.is_empty()
}

fn skip_field(bytes: &[u8]) -> Option<&[u8]> {
    let (tag, rest) = varint(bytes)?;
    match tag & 7 {
        VARINT => varint(rest).map(|(_, rest)| rest),
        I64 => rest.get(8..),
        I32 => rest.get(4..),
        LEN => {
            let (len, rest) = varint(rest)?;
            rest.get(usize::try_from(len).ok()?..)
        }
        _ => None,
    }
}

/// At most ten bytes of seven bits each, least significant first.
fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let len = bytes.iter().take(10).position(|byte| byte & 0x80 == 0)? + 1;
    let (number, rest) = bytes.split_at(len);
    let value = number.iter().rev().fold(0u64, |value, byte| value << 7 | u64::from(byte & 0x7f));
    Some((value, rest))
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::rpc::schema;

    #[test]
    fn counts_the_fields_of_the_message_itself() {
        let word = |count: usize| schema::Assignment { command: vec![String::new(); count], ..Default::default() };
        let bytes = word(1_000).encode_to_vec();
        assert!(has_at_most(&bytes, 1_000));
        assert!(!has_at_most(&bytes, 999));
        let outer = schema::Offer { offer_id: 300, assignment: bytes, signature: vec![1; 64] }.encode_to_vec();
        assert!(has_at_most(&outer, 3) && !has_at_most(&outer, 2));
        assert!(has_at_most(b"", 0));
    }

    #[test]
    fn ends_on_any_bytes() {
        let bytes =
            schema::Assignment { owner_id: "x".repeat(300), cpu_millis: -1, ..Default::default() }.encode_to_vec();
        for len in 0..bytes.len() {
            has_at_most(&bytes[..len], 10);
        }
        has_at_most(&[0xff; 64], 10);
        has_at_most(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f], 10);
    }
}

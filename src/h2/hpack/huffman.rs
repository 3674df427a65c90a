//! The Huffman code of string literals (RFC 7541 section 5.2 and appendix B).
//!
//! The code is canonical: symbols of equal length have consecutive codes in the order of the symbols. So the lengths
//! are all that must be written down, and a decoder needs only the first code of each length.

/// A string that breaks the code: padding longer than 7 bits, padding that is not all ones, or EOS inside.
#[derive(Debug, PartialEq, Eq)]
pub struct BadHuffman;

const SYMBOLS: usize = 257;
const LONGEST: usize = 30;

/// Length in bits of each symbol's code (RFC 7541 appendix B); the last one is EOS.
#[rustfmt::skip]
const LENGTHS: [u8; SYMBOLS] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28,
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5,
    6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23,
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25,
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];

struct Code {
    /// The code of each symbol, in its low bits.
    of_symbol: [u32; SYMBOLS],
    /// The first code of each length.
    first: [u32; LONGEST + 1],
    /// How many codes each length has.
    count: [u32; LONGEST + 1],
    /// Where the symbols of each length begin in `symbols`.
    start: [usize; LONGEST + 1],
    /// All symbols by length, then by value.
    symbols: [u16; SYMBOLS],
}

static CODE: Code = build();

const fn build() -> Code {
    let mut code = Code {
        of_symbol: [0; SYMBOLS],
        first: [0; LONGEST + 1],
        count: [0; LONGEST + 1],
        start: [0; LONGEST + 1],
        symbols: [0; SYMBOLS],
    };
    let (mut next, mut filled, mut length) = (0u32, 0, 1);
    while length <= LONGEST {
        next <<= 1;
        code.first[length] = next;
        code.start[length] = filled;
        let mut symbol = 0;
        while symbol < SYMBOLS {
            if LENGTHS[symbol] as usize == length {
                code.of_symbol[symbol] = next;
                code.symbols[filled] = symbol as u16;
                code.count[length] += 1;
                next += 1;
                filled += 1;
            }
            symbol += 1;
        }
        length += 1;
    }
    code
}

/// Decodes a whole string in one pass. The output is at most 8/5 of the input, since the shortest code has 5 bits.
pub fn decode(input: &[u8], out: &mut Vec<u8>) -> Result<(), BadHuffman> {
    let (mut code, mut length) = (0u32, 0usize);
    for byte in input {
        for shift in (0..8).rev() {
            code = code << 1 | u32::from(byte >> shift & 1);
            length += 1;
            if length > LONGEST {
                return Err(BadHuffman);
            }
            let offset = code.wrapping_sub(CODE.first[length]);
            if offset < CODE.count[length] {
                let symbol = CODE.symbols[CODE.start[length] + offset as usize];
                out.push(u8::try_from(symbol).map_err(|_| BadHuffman)?);
                (code, length) = (0, 0);
            }
        }
    }
    // What is left must be a prefix of EOS, which is all ones, and shorter than a byte.
    if length > 7 || code != (1 << length) - 1 {
        return Err(BadHuffman);
    }
    Ok(())
}

/// Bytes that the encoded string takes.
pub fn encoded_len(input: &[u8]) -> usize {
    let bits: usize = input.iter().map(|b| usize::from(LENGTHS[usize::from(*b)])).sum();
    bits.div_ceil(8)
}

/// Appends the encoded string, padded with ones.
pub fn encode(input: &[u8], out: &mut Vec<u8>) {
    let (mut bits, mut held) = (0u64, 0u32);
    for byte in input {
        let symbol = usize::from(*byte);
        let length = u32::from(LENGTHS[symbol]);
        bits = bits << length | u64::from(CODE.of_symbol[symbol]);
        held += length;
        while held >= 8 {
            held -= 8;
            out.push((bits >> held & 0xff) as u8);
        }
    }
    if held > 0 {
        let padded = bits << (8 - held) | ((1 << (8 - held)) - 1);
        out.push((padded & 0xff) as u8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(input: &[u8]) -> Result<Vec<u8>, BadHuffman> {
        let mut out = Vec::new();
        decode(input, &mut out).map(|()| out)
    }

    #[test]
    fn codes_are_those_of_appendix_b() {
        for (symbol, code) in
            [(usize::from(b'0'), 0x0), (usize::from(b'a'), 0x3), (usize::from(b'z'), 0x7b), (0, 0x1ff8)]
        {
            assert_eq!(CODE.of_symbol[symbol], code);
        }
        assert_eq!(CODE.of_symbol[256], 0x3fff_ffff);
        assert_eq!(CODE.of_symbol[255], 0x3ff_ffee);
        assert_eq!(CODE.of_symbol[249], 0xfff_fffe);
    }

    #[test]
    fn decodes_and_encodes_the_example_of_appendix_c() {
        let bytes = [0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff];
        assert_eq!(decoded(&bytes).unwrap(), b"www.example.com");
        let mut out = Vec::new();
        encode(b"www.example.com", &mut out);
        assert_eq!(out, bytes);
        assert_eq!(encoded_len(b"www.example.com"), 12);
    }

    #[test]
    fn each_byte_survives() {
        let all: Vec<u8> = (0..=255).collect();
        let mut out = Vec::new();
        encode(&all, &mut out);
        assert_eq!(out.len(), encoded_len(&all));
        assert_eq!(decoded(&out).unwrap(), all);
    }

    #[test]
    fn refuses_bad_padding_and_eos() {
        assert_eq!(decoded(&[0x1f]).unwrap(), b"a");
        assert_eq!(decoded(&[0x18]), Err(BadHuffman), "padding of zeros");
        assert_eq!(decoded(&[0x1f, 0xff]), Err(BadHuffman), "padding of more than 7 bits");
        assert_eq!(decoded(&[0xff]), Err(BadHuffman), "a whole byte of padding");
        assert_eq!(decoded(&[0xff, 0xff, 0xff, 0xfc]), Err(BadHuffman), "EOS");
        assert_eq!(decoded(&[0xff; 6]), Err(BadHuffman), "EOS and more");
        assert_eq!(decoded(&[]).unwrap(), b"");
    }
}

//! Text from strangers, made fit for a log line or a terminal.

/// Longest text from outside in one log line, in characters.
const MAX_CHARS: usize = 1_000;

/// `text` with control, bidirectional and line-breaking characters escaped, and cut to a bounded length, so that it
/// can neither move a terminal's cursor nor forge a line (the class of CVE-2009-4487).
pub fn printable(text: &str) -> String {
    let mut out = String::new();
    for (count, character) in text.chars().enumerate() {
        if count == MAX_CHARS {
            out.push_str("...");
            break;
        }
        if is_harmless(character) {
            out.push(character);
        } else {
            out.extend(character.escape_unicode());
        }
    }
    out
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes that hex of either case stands for; `None` where the text is not hex of just so many bytes.
pub fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    if pairs.len() != N {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(bytes)
}

/// Whether a terminal shows the character and does nothing else.
pub fn is_harmless(character: char) -> bool {
    let is_bidi = matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let is_separator = matches!(character, '\u{2028}' | '\u{2029}');
    !(character.is_control() || is_bidi || is_separator)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_goes_both_ways_and_only_hex_does() {
        assert_eq!(hex(&[0x00, 0x0f, 0xa5]), "000fa5");
        assert_eq!(from_hex("000Fa5"), Some([0x00, 0x0f, 0xa5]));
        for bad in ["", "000fa", "000fa5a", "000fa5a5", "0x0fa5", "+10fa5", "00 fa5", "000fé"] {
            assert_eq!(from_hex::<3>(bad), None, "{bad}");
        }
    }

    #[test]
    fn escapes_what_a_terminal_would_obey() {
        assert_eq!(printable("a\x1b[2Jb\n\u{9b}\u{202e}"), "a\\u{1b}[2Jb\\u{a}\\u{9b}\\u{202e}");
        assert_eq!(printable("grün 🐝"), "grün 🐝");
        assert!(printable(&"x".repeat(1 << 20)).len() < 1_100);
    }
}

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
    fn escapes_what_a_terminal_would_obey() {
        assert_eq!(printable("a\x1b[2Jb\n\u{9b}\u{202e}"), "a\\u{1b}[2Jb\\u{a}\\u{9b}\\u{202e}");
        assert_eq!(printable("grün 🐝"), "grün 🐝");
        assert!(printable(&"x".repeat(1 << 20)).len() < 1_100);
    }
}

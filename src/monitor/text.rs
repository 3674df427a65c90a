//! Text that others wrote, made harmless to look at; and the small decoders of a URL.

use std::borrow::Cow;

/// Makes control characters visible: C0 but line feed and tab, C1, and what turns or hides text (bidirectional controls,
/// zero-width characters). So a terminal does nothing with them, and a reader sees what is there.
pub fn escape_controls(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_hidden) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\r' if characters.peek() == Some(&'\n') => {}
            '\r' => escaped.push_str("\\r"),
            hidden if is_hidden(hidden) && u32::from(hidden) < 0x100 => {
                escaped.push_str(&format!("\\x{:02x}", u32::from(hidden)));
            }
            hidden if is_hidden(hidden) => escaped.push_str(&format!("\\u{{{:x}}}", u32::from(hidden))),
            plain => escaped.push(plain),
        }
    }
    Cow::Owned(escaped)
}

fn is_hidden(character: char) -> bool {
    let is_turning = matches!(character,
        '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    is_turning || (character.is_control() && !matches!(character, '\n' | '\t'))
}

/// How many of `bytes` to show when more may follow: a character that is cut at the end waits for its rest.
pub fn whole_characters(bytes: &[u8]) -> usize {
    match std::str::from_utf8(bytes) {
        Ok(_) => bytes.len(),
        Err(_) => {
            // The last chunk tells whether the end is merely cut: then its error has no length.
            let mut at = 0;
            loop {
                match std::str::from_utf8(&bytes[at..]) {
                    Ok(_) => return bytes.len(),
                    Err(error) => match error.error_len() {
                        Some(len) => at += error.valid_up_to() + len,
                        None => return at + error.valid_up_to(),
                    },
                }
            }
        }
    }
}

/// Decodes `%XX`; `None` for a broken escape or what is no UTF-8.
pub fn decode_percent(text: &str) -> Option<String> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let high = char::from(bytes.next()?).to_digit(16)?;
            let low = char::from(bytes.next()?).to_digit(16)?;
            decoded.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            decoded.push(byte);
        }
    }
    String::from_utf8(decoded).ok()
}

/// The decoded segments of a path; `None` when one is broken or could lead elsewhere than its place in the path says.
pub fn segments(path: &str) -> Option<Vec<String>> {
    let segments = path.strip_prefix('/')?.split('/').map(|segment| {
        let segment = decode_percent(segment)?;
        let is_safe = !matches!(segment.as_str(), "." | "..") && !segment.contains(['/', '\\', '\0']);
        is_safe.then_some(segment)
    });
    segments.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_reaches_the_terminal_but_text() {
        assert_eq!(escape_controls("plain\ttext\n"), "plain\ttext\n");
        assert_eq!(escape_controls("a\x1b[31mred\u{9b}x\r\n\0\rb"), "a\\x1b[31mred\\x9bx\n\\x00\\rb");
        assert_eq!(escape_controls("a\u{202e}b\u{200b}"), "a\\u{202e}b\\u{200b}");
        assert_eq!(escape_controls("grüße 你好"), "grüße 你好");
    }

    #[test]
    fn a_cut_character_waits_for_its_rest() {
        let text = "aé你😀".as_bytes();
        let ends: Vec<usize> = (0..=text.len()).map(|len| whole_characters(&text[..len])).collect();
        assert_eq!(ends, [0, 1, 1, 3, 3, 3, 6, 6, 6, 6, 10]);
        assert_eq!(whole_characters(b"a\xffb"), 3);
        assert_eq!(whole_characters(b"a\xff\xe4\xbd"), 2);
    }

    #[test]
    fn no_path_leads_elsewhere() {
        assert_eq!(segments("/a/b%20c/d").unwrap(), ["a", "b c", "d"]);
        assert_eq!(segments("/").unwrap(), [""]);
        for path in
            ["a", "/..", "/a/%2e%2e/b", "/a/.%2E", "/a%2fb", "/a%5cb", "/a%00", "/%", "/%f", "/%zz", "/%ff", "/./a"]
        {
            assert_eq!(segments(path), None, "{path}");
        }
    }
}

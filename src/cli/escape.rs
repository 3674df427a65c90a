//! Makes text of others harmless for a terminal: what would move the cursor, change colours or reorder a line is shown
//! as an escape instead.

use std::fmt::Write;

use crate::sys::text::is_harmless;

/// Whether a terminal would act on it. A tab and a line end are wanted; so is what people write. Two that hide or
/// reorder text come on top of what a log line must not have.
fn is_harmful(c: char) -> bool {
    !matches!(c, '\n' | '\t') && (!is_harmless(c) || matches!(c, '\u{61c}' | '\u{feff}'))
}

fn push(out: &mut String, c: char) {
    if !is_harmful(c) {
        out.push(c);
    } else if c.is_ascii() {
        // Writing to a string can't fail.
        let _ = write!(out, "\\x{:02x}", u32::from(c));
    } else {
        let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
    }
}

/// A text that is whole.
pub(super) fn line(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        push(&mut out, c);
    }
    out
}

/// As [`line`], and on one line: for a cell of a table.
pub(super) fn cell(text: &str) -> String {
    line(text).replace(['\n', '\t'], " ")
}

/// A byte stream that arrives in pieces, cut anywhere.
#[derive(Default)]
pub(super) struct Escaper {
    /// Begin of a character whose other bytes are still to come: at most three bytes.
    rest: Vec<u8>,
    /// A carriage return that is harmless if a line end follows.
    is_return_pending: bool,
}

impl Escaper {
    /// Text for the terminal from the bytes so far.
    pub(super) fn push(&mut self, bytes: &[u8]) -> String {
        let mut all = std::mem::take(&mut self.rest);
        all.extend_from_slice(bytes);
        let mut out = String::with_capacity(all.len());
        let mut left = all.as_slice();
        while !left.is_empty() {
            let (valid, invalid) = match std::str::from_utf8(left) {
                Ok(text) => (text, None),
                Err(error) => {
                    let (valid, after) = left.split_at(error.valid_up_to());
                    // `valid_up_to` ends a valid text, so nothing is replaced here.
                    (std::str::from_utf8(valid).unwrap_or_default(), Some((error.error_len(), after)))
                }
            };
            self.take_text(valid, &mut out);
            left = match invalid {
                None => &[],
                Some((None, after)) => {
                    self.rest = after.to_vec();
                    &[]
                }
                Some((Some(len), after)) => {
                    self.flush_return(&mut out);
                    raw(&after[..len], &mut out);
                    &after[len..]
                }
            };
        }
        out
    }

    /// What was kept back, when no more will come.
    pub(super) fn finish(&mut self) -> String {
        let mut out = String::new();
        self.flush_return(&mut out);
        raw(&std::mem::take(&mut self.rest), &mut out);
        out
    }

    fn take_text(&mut self, text: &str, out: &mut String) {
        for c in text.chars() {
            if c == '\n' {
                self.is_return_pending = false;
            }
            self.flush_return(out);
            if c == '\r' {
                self.is_return_pending = true;
            } else {
                push(out, c);
            }
        }
    }

    fn flush_return(&mut self, out: &mut String) {
        if std::mem::take(&mut self.is_return_pending) {
            out.push_str("\\x0d");
        }
    }
}

fn raw(bytes: &[u8], out: &mut String) {
    for byte in bytes {
        let _ = write!(out, "\\x{byte:02x}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_what_a_terminal_would_act_on() {
        assert_eq!(line("a\x1b[31mb\tc\nd\x07\u{9b}ä\u{202e}x"), "a\\x1b[31mb\tc\nd\\x07\\u{9b}ä\\u{202e}x");
        assert_eq!(cell("a\nb\tc"), "a b c");
    }

    #[test]
    fn result_does_not_depend_on_where_the_stream_is_cut() {
        let bytes = "1\r\n2\r3 \u{1f41d} ä\x1b]0;x\x07\n".bytes().chain([0xff, b'a', 0xc3]).collect::<Vec<u8>>();
        let expected = "1\n2\\x0d3 \u{1f41d} ä\\x1b]0;x\\x07\n\\xffa\\xc3";
        for cut in 0..=bytes.len() {
            let mut escaper = Escaper::default();
            let text = escaper.push(&bytes[..cut]) + &escaper.push(&bytes[cut..]) + &escaper.finish();
            assert_eq!(text, expected, "cut at {cut}");
        }
        let mut escaper = Escaper::default();
        let text: String = bytes.iter().map(|byte| escaper.push(&[*byte])).collect();
        assert_eq!(text + &escaper.finish(), expected);
    }
}

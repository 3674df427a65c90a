//! Cuts a stream of JSON values, one a line, into lines; no I/O.

/// The longest line that is taken: an event carries all labels of its container.
pub(super) const MAX_LINE: usize = 1 << 20;

/// The bytes of lines that are not complete yet.
#[derive(Debug, Default)]
pub(super) struct Lines {
    buffer: Vec<u8>,
    /// Where the next line begins in `buffer`.
    start: usize,
    /// How far the line that begins at `start` was searched for its end.
    searched: usize,
}

/// A line is longer than `MAX_LINE`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LineTooLong;

impl Lines {
    /// Adds what was read.
    pub(super) fn handle_input(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.searched -= self.start;
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next complete line without its end; empty lines are left out.
    pub(super) fn poll_line(&mut self) -> Result<Option<&[u8]>, LineTooLong> {
        loop {
            let Some(end) = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n') else {
                self.searched = self.buffer.len();
                return if self.buffer.len() - self.start > MAX_LINE { Err(LineTooLong) } else { Ok(None) };
            };
            let (start, end) = (self.start, self.searched + end);
            self.start = end + 1;
            self.searched = self.start;
            if end - start > MAX_LINE {
                return Err(LineTooLong);
            }
            if !self.buffer[start..end].trim_ascii().is_empty() {
                return Ok(Some(&self.buffer[start..end]));
            }
        }
    }

    /// What is left when the stream has ended: a last line without an end, as some engines write it.
    pub(super) fn handle_end(&mut self) -> Option<Vec<u8>> {
        let rest = self.buffer[self.start..].trim_ascii().to_vec();
        *self = Lines::default();
        (!rest.is_empty()).then_some(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(parts: &[&[u8]]) -> Vec<String> {
        let mut lines = Lines::default();
        let mut out = Vec::new();
        for part in parts {
            lines.handle_input(part);
            while let Some(line) = lines.poll_line().unwrap() {
                out.push(String::from_utf8(line.to_vec()).unwrap());
            }
        }
        out.extend(lines.handle_end().map(|rest| String::from_utf8(rest).unwrap()));
        out
    }

    #[test]
    fn gives_the_same_for_every_split() {
        let text = b"{\"a\":1}\r\n\n{\"b\":2}\n{}\n\r\nlast";
        let whole = run(&[text]);
        assert_eq!(whole, ["{\"a\":1}\r", "{\"b\":2}", "{}", "last"]);
        for a in 0..=text.len() {
            for b in a..=text.len() {
                assert_eq!(run(&[&text[..a], &text[a..b], &text[b..]]), whole);
            }
        }
    }

    #[test]
    fn refuses_a_line_without_end() {
        let mut lines = Lines::default();
        let mut refused = false;
        for _ in 0..=MAX_LINE / 1000 {
            lines.handle_input(&[b'x'; 1000]);
            refused |= lines.poll_line() == Err(LineTooLong);
        }
        assert!(refused);
    }
}

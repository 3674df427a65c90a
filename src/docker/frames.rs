//! Takes apart the stream of attach and logs: bytes in, pieces of stdout and stderr out; no I/O.
//!
//! Each frame is an eight-byte head and its payload:
//!
//! ```text
//! | stream (0 stdin, 1 stdout, 2 stderr, 3 the engine) | 0 | 0 | 0 | length, 32 bits, big endian | payload ...
//! ```
//!
//! Payload is passed on as it comes, so nothing is ever allocated by an announced length.

use std::fmt;

/// Size of a frame's head.
const HEAD: usize = 8;

/// The engine writes frames of at most 32 KiB for attach, and one message of a log driver for logs. What announces more
/// than this is not a frame.
const MAX_FRAME: u32 = 64 << 20;

/// How much of a message of the engine itself is kept.
const MAX_ENGINE_MESSAGE: usize = 1024;

/// Which output of the container a piece belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OutputKind {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A piece of output.
pub type Piece<'a> = (OutputKind, &'a [u8]);

/// Why a stream can't be taken apart any further.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// The bytes are not a frame's head.
    NotAFrame([u8; HEAD]),
    /// A frame announced more bytes than any engine sends.
    TooLong(u32),
    /// The engine reported a failure of its own in the stream.
    Engine(String),
    /// The stream ended inside a frame.
    Cut,
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FrameError::NotAFrame(head) => write!(f, "{head:02x?} is not the head of an output frame"),
            FrameError::TooLong(length) => write!(f, "an output frame announces {length} bytes"),
            FrameError::Engine(message) => write!(f, "the engine ended the output: {message}"),
            FrameError::Cut => write!(f, "the output ended inside a frame"),
        }
    }
}

impl std::error::Error for FrameError {}

/// The state between two inputs.
#[derive(Debug, Default)]
pub struct Demultiplexer {
    head: [u8; HEAD],
    head_filled: usize,
    /// What the current frame is, and how many bytes of its payload are to come.
    current: Option<(Source, u32)>,
    engine_message: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
enum Source {
    Container(OutputKind),
    Engine,
}

impl Demultiplexer {
    /// At the start of a stream.
    pub fn new() -> Demultiplexer {
        Demultiplexer::default()
    }

    /// Takes bytes off the front of `input` until a piece of output is complete or the input is used up. Returns how
    /// many bytes were taken, and the piece, which lies within them. Call again with the rest until all is taken.
    pub fn handle_input<'a>(&mut self, input: &'a [u8]) -> Result<(usize, Option<Piece<'a>>), FrameError> {
        if let Some((taken, piece)) = self.whole_frame(input) {
            return Ok((taken, Some(piece)));
        }
        let mut at = 0;
        while at < input.len() {
            let Some((source, left)) = self.current else {
                at += self.fill_head(&input[at..])?;
                continue;
            };
            let available = u32::try_from(input.len() - at).unwrap_or(u32::MAX);
            let take = left.min(available);
            let piece = &input[at..at + take as usize];
            at += piece.len();
            self.current = (take < left).then_some((source, left - take));
            match source {
                Source::Container(kind) if !piece.is_empty() => return Ok((at, Some((kind, piece)))),
                Source::Container(_) => {}
                Source::Engine => self.handle_engine_message(piece)?,
            }
        }
        Ok((at, None))
    }

    /// The usual case, which keeps nothing: a frame of the container's that lies whole at the front of the input.
    fn whole_frame<'a>(&self, input: &'a [u8]) -> Option<(usize, Piece<'a>)> {
        if self.current.is_some() || self.head_filled > 0 {
            return None;
        }
        let (&[stream @ (1 | 2), 0, 0, 0, a, b, c, d], rest) = input.split_first_chunk()? else { return None };
        let piece = rest.get(..usize::try_from(u32::from_be_bytes([a, b, c, d])).ok()?)?;
        let kind = if stream == 1 { OutputKind::Stdout } else { OutputKind::Stderr };
        (!piece.is_empty()).then_some((HEAD + piece.len(), (kind, piece)))
    }

    /// The input has ended.
    pub fn handle_end(&self) -> Result<(), FrameError> {
        if !self.engine_message.is_empty() {
            return Err(self.engine_error());
        }
        if self.head_filled > 0 || self.current.is_some() { Err(FrameError::Cut) } else { Ok(()) }
    }

    fn fill_head(&mut self, input: &[u8]) -> Result<usize, FrameError> {
        let take = input.len().min(HEAD - self.head_filled);
        self.head[self.head_filled..self.head_filled + take].copy_from_slice(&input[..take]);
        self.head_filled += take;
        if self.head_filled == HEAD {
            self.current = parse_head(self.head)?;
            self.head_filled = 0;
        }
        Ok(take)
    }

    fn handle_engine_message(&mut self, piece: &[u8]) -> Result<(), FrameError> {
        let room = MAX_ENGINE_MESSAGE - self.engine_message.len();
        self.engine_message.extend_from_slice(&piece[..piece.len().min(room)]);
        if self.current.is_none() || self.engine_message.len() == MAX_ENGINE_MESSAGE {
            return Err(self.engine_error());
        }
        Ok(())
    }

    fn engine_error(&self) -> FrameError {
        let text = String::from_utf8_lossy(&self.engine_message);
        FrameError::Engine(super::error::printable(text.trim(), MAX_ENGINE_MESSAGE))
    }
}

/// What the head announces; `None` for an empty frame.
fn parse_head(head: [u8; HEAD]) -> Result<Option<(Source, u32)>, FrameError> {
    let [stream, 0, 0, 0, a, b, c, d] = head else {
        return Err(FrameError::NotAFrame(head));
    };
    let source = match stream {
        // The engine copies stdin to stdout, if at all.
        0 | 1 => Source::Container(OutputKind::Stdout),
        2 => Source::Container(OutputKind::Stderr),
        3 => Source::Engine,
        _ => return Err(FrameError::NotAFrame(head)),
    };
    match u32::from_be_bytes([a, b, c, d]) {
        0 => Ok(None),
        length if length > MAX_FRAME => Err(FrameError::TooLong(length)),
        length => Ok(Some((source, length))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(stream: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&[stream, 0, 0, 0], &length[..], payload].concat()
    }

    /// What came out, with neighbouring pieces of one kind joined, and how it ended.
    type Outcome = (Vec<(OutputKind, Vec<u8>)>, Result<(), FrameError>);

    fn run(parts: &[&[u8]]) -> Outcome {
        let mut demultiplexer = Demultiplexer::new();
        let mut out: Vec<(OutputKind, Vec<u8>)> = Vec::new();
        for part in parts {
            let mut rest = *part;
            while !rest.is_empty() {
                match demultiplexer.handle_input(rest) {
                    Ok((taken, piece)) => {
                        assert!(taken > 0);
                        rest = &rest[taken..];
                        match (piece, out.last_mut()) {
                            (Some((kind, piece)), Some(last)) if last.0 == kind => last.1.extend_from_slice(piece),
                            (Some((kind, piece)), _) => out.push((kind, piece.to_vec())),
                            (None, _) => {}
                        }
                    }
                    Err(error) => return (out, Err(error)),
                }
            }
        }
        (out, demultiplexer.handle_end())
    }

    #[test]
    fn gives_the_same_for_every_split() {
        let stream = [
            frame(1, b"one\n"),
            frame(2, b"two"),
            frame(1, b""),
            frame(0, b"three"),
            frame(2, &[0xff; 40]),
            frame(1, &[1, 0, 0, 0, 0, 0, 0, 2]),
        ]
        .concat();
        let whole = run(&[&stream]);
        assert_eq!(whole.1, Ok(()));
        assert_eq!(whole.0.len(), 5);
        for a in 0..=stream.len() {
            for b in a..=stream.len() {
                assert_eq!(run(&[&stream[..a], &stream[a..b], &stream[b..]]), whole, "split at {a} and {b}");
            }
        }
        let bytes: Vec<&[u8]> = stream.chunks(1).collect();
        assert_eq!(run(&bytes), whole);
    }

    #[test]
    fn says_when_it_was_cut() {
        let stream = frame(1, b"payload");
        for end in 1..stream.len() {
            assert_eq!(run(&[&stream[..end]]).1, Err(FrameError::Cut), "cut at {end}");
        }
        assert_eq!(run(&[]), (vec![], Ok(())));
    }

    #[test]
    fn refuses_what_is_no_frame() {
        assert_eq!(run(&[b"HTTP/1.1"]).1, Err(FrameError::NotAFrame(*b"HTTP/1.1")));
        assert_eq!(run(&[&[1, 0, 0, 1, 0, 0, 0, 1]]).1, Err(FrameError::NotAFrame([1, 0, 0, 1, 0, 0, 0, 1])));
        assert_eq!(run(&[&[9, 0, 0, 0, 0, 0, 0, 1]]).1, Err(FrameError::NotAFrame([9, 0, 0, 0, 0, 0, 0, 1])));
        assert_eq!(run(&[&[1, 0, 0, 0, 255, 255, 255, 255]]).1, Err(FrameError::TooLong(u32::MAX)));
    }

    #[test]
    fn passes_on_what_the_engine_itself_says() {
        let stream = [frame(1, b"x"), frame(3, b"log driver\n failed")].concat();
        for split in 0..=stream.len() {
            let (out, end) = run(&[&stream[..split], &stream[split..]]);
            assert_eq!(out, vec![(OutputKind::Stdout, b"x".to_vec())]);
            assert_eq!(end, Err(FrameError::Engine("log driver? failed".into())));
        }
        assert!(matches!(run(&[&frame(3, &[b'y'; 5000])]).1, Err(FrameError::Engine(text)) if text.len() == 1024));
    }

    #[test]
    fn withstands_mutations() {
        let stream = [frame(1, b"some text\n"), frame(2, b"more"), frame(1, b"end")].concat();
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..20_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let mut bytes = stream.clone();
            let at = usize::try_from(seed >> 33).unwrap() % bytes.len();
            bytes[at] ^= (seed >> 20) as u8;
            let cut = usize::try_from(seed >> 40).unwrap() % bytes.len();
            assert_eq!(run(&[&bytes]), run(&[&bytes[..cut], &bytes[cut..]]));
        }
    }
}

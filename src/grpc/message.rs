//! The one message of a unary call: five bytes of prefix, then the message (PROTOCOL-HTTP2.md, Length-Prefixed-Message).

use super::status::{Code, Status};
use crate::h2::{Connection, StreamId};

/// Length of the prefix: a compressed flag and a length of 32 bits.
pub(super) const PREFIX_LEN: usize = 5;

/// The prefix of an uncompressed message; `None` when its length does not fit.
pub(super) fn prefix(length: usize) -> Option<[u8; PREFIX_LEN]> {
    let [a, b, c, d] = u32::try_from(length).ok()?.to_be_bytes();
    Some([0, a, b, c, d])
}

/// Bytes up to which a message is copied behind its prefix rather than sent as a piece of its own.
const SMALL: usize = 4096;

/// Queues a message behind its prefix. One that is small is copied and given back.
pub(super) fn send(
    connection: &mut Connection,
    stream: StreamId,
    prefix: [u8; PREFIX_LEN],
    message: Vec<u8>,
    end: bool,
) -> Option<Vec<u8>> {
    if message.len() <= SMALL {
        connection.send_data(stream, [&prefix, message.as_slice()].concat(), end);
        return Some(message);
    }
    connection.send_data(stream, prefix.to_vec(), false);
    connection.send_data(stream, message, end);
    None
}

/// Takes a body in pieces and keeps its one message. Memory grows as bytes come, not by what the prefix claims.
#[derive(Debug)]
pub(super) struct Assembler {
    limit: usize,
    prefix: [u8; PREFIX_LEN],
    /// Bytes of the prefix that have come.
    have: usize,
    /// Bytes of the message that must come, once its prefix is whole.
    left: Option<usize>,
    /// Messages that are whole.
    done: u32,
    body: Vec<u8>,
}

impl Assembler {
    /// Takes a message of at most `limit` bytes.
    pub(super) fn new(limit: usize) -> Assembler {
        Assembler { limit, prefix: [0; PREFIX_LEN], have: 0, left: None, done: 0, body: Vec::new() }
    }

    /// Bytes that are kept.
    pub(super) fn len(&self) -> usize {
        self.body.len()
    }

    /// Bytes of the message that must still come, once that is known.
    pub(super) fn missing(&self) -> usize {
        self.left.unwrap_or(0)
    }

    /// Takes the next piece of the body.
    pub(super) fn push(&mut self, mut data: &[u8]) -> Result<(), Status> {
        while !data.is_empty() {
            let left = match self.left {
                Some(left) => left,
                None => {
                    data = self.push_prefix(data);
                    if self.have < PREFIX_LEN {
                        return Ok(());
                    }
                    self.check_prefix()?
                }
            };
            let (part, rest) = data.split_at(data.len().min(left));
            if self.done == 0 {
                self.body.extend_from_slice(part);
            }
            data = rest;
            self.left = Some(left - part.len());
            if left == part.len() {
                self.end_message()?;
            }
        }
        Ok(())
    }

    fn push_prefix<'a>(&mut self, data: &'a [u8]) -> &'a [u8] {
        let mut rest = data;
        for slot in self.prefix.iter_mut().skip(self.have) {
            let Some((first, tail)) = rest.split_first() else { break };
            *slot = *first;
            rest = tail;
            self.have += 1;
        }
        rest
    }

    fn check_prefix(&self) -> Result<usize, Status> {
        let [flag, a, b, c, d] = self.prefix;
        let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        match flag {
            0 if length > self.limit && self.done == 0 => {
                let words = format!("message of {length} bytes is larger than the limit of {}", self.limit);
                Err(Status::new(Code::ResourceExhausted, words))
            }
            0 if length > self.limit => Err(left_over()),
            0 => Ok(length),
            1 => Err(Status::new(Code::Internal, "message is compressed although no encoding was agreed on")),
            _ if self.done > 0 => Err(left_over()),
            _ => Err(Status::new(Code::Internal, "message with an invalid compressed flag")),
        }
    }

    fn end_message(&mut self) -> Result<(), Status> {
        self.done += 1;
        self.have = 0;
        self.left = None;
        match self.done {
            1 => Ok(()),
            _ => Err(Status::new(Code::Unimplemented, "more than one message in a unary call")),
        }
    }

    /// The body has ended: its message, or none.
    pub(super) fn finish(self) -> Result<Option<Vec<u8>>, Status> {
        let is_partial = self.have > 0 || self.left.is_some();
        match self.done {
            0 if is_partial => Err(Status::new(Code::Internal, "message is truncated")),
            0 => Ok(None),
            _ if is_partial => Err(left_over()),
            _ => Ok(Some(self.body)),
        }
    }
}

fn left_over() -> Status {
    Status::new(Code::Internal, "bytes are left over after the message")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All at once and byte by byte must agree.
    fn assemble(body: &[u8], limit: usize) -> Result<Option<Vec<u8>>, Code> {
        let run = |pieces: Vec<&[u8]>| {
            let mut assembler = Assembler::new(limit);
            pieces.into_iter().try_for_each(|p| assembler.push(p))?;
            assembler.finish()
        };
        let whole = run(vec![body]);
        assert_eq!(whole, run(body.chunks(1).collect()));
        whole.map_err(|s| s.code)
    }

    #[test]
    fn takes_exactly_one_message() {
        assert_eq!(assemble(&[0, 0, 0, 0, 0], 0), Ok(Some(vec![])));
        assert_eq!(assemble(&[0, 0, 0, 0, 2, 7, 8], 2), Ok(Some(vec![7, 8])));
        assert_eq!(assemble(&[], 9), Ok(None));
        assert_eq!(prefix(258), Some([0, 0, 0, 1, 2]));
    }

    #[test]
    fn refuses_everything_else() {
        for (body, code) in [
            (&[0, 0, 0, 0, 3, 7, 8][..], Code::Internal),
            (&[0, 0, 0], Code::Internal),
            (&[0, 0, 0, 0, 1, 7, 9], Code::Internal),
            (&[0, 0, 0, 0, 1, 7, 0, 0, 0, 0], Code::Internal),
            (&[0, 0, 0, 0, 1, 7, 9, 9, 9, 9, 9, 9], Code::Internal),
            (&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0], Code::Unimplemented),
            (&[0, 0, 0, 0, 1, 7, 0, 0, 0, 0, 1, 8], Code::Unimplemented),
            (&[1, 0, 0, 0, 1, 7], Code::Internal),
            (&[2, 0, 0, 0, 1, 7], Code::Internal),
            (&[0, 0xff, 0xff, 0xff, 0xff], Code::ResourceExhausted),
            (&[0, 0, 0, 0, 5, 7], Code::ResourceExhausted),
        ] {
            assert_eq!(assemble(body, 4), Err(code), "{body:?}");
        }
    }
}

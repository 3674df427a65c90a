//! One stream: its state and what waits to be sent on it (RFC 9113 section 5.1).

use std::collections::VecDeque;

use super::flow::{RecvWindow, SendWindow};
use super::hpack::Header;

/// The states that a stream of ours can be in. Idle and closed streams are not stored, and without push there is no
/// reserved one.
///
/// ```text
///                      +--------+
///                      |  idle  |
///                      +--------+
///                          | send or receive HEADERS
///                          v
///  receive END_STREAM  +--------+  send END_STREAM
///       .--------------|  open  |--------------.
///       v              +--------+              v
///  +----------+            |             +----------+
///  |   half   |            | RST_STREAM  |   half   |
///  |  closed  |            | either way  |  closed  |
///  | (remote) |            v             | (local)  |
///  +----------+        +--------+        +----------+
///       '------------->| closed |<-------------'
///   send END_STREAM    +--------+    receive END_STREAM
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Both sides may send.
    Open,
    /// We have ended; the peer may send.
    HalfClosedLocal,
    /// The peer has ended; we may send.
    HalfClosedRemote,
    /// Both have ended.
    Closed,
}

/// What moves a stream from state to state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// We sent END_STREAM.
    SendEnd,
    /// The peer sent END_STREAM.
    ReceiveEnd,
}

impl State {
    /// All transitions; `None` where the step is not allowed.
    pub fn after(self, step: Step) -> Option<State> {
        match (self, step) {
            (State::Open, Step::SendEnd) => Some(State::HalfClosedLocal),
            (State::Open, Step::ReceiveEnd) => Some(State::HalfClosedRemote),
            (State::HalfClosedRemote, Step::SendEnd) | (State::HalfClosedLocal, Step::ReceiveEnd) => {
                Some(State::Closed)
            }
            _ => None,
        }
    }

    /// The peer may still send DATA and HEADERS.
    pub fn can_receive(self) -> bool {
        matches!(self, State::Open | State::HalfClosedLocal)
    }

    /// We may still send DATA and HEADERS.
    pub fn can_send(self) -> bool {
        matches!(self, State::Open | State::HalfClosedRemote)
    }
}

/// How the part that we send ends.
#[derive(Debug, Default)]
pub enum SendEnd {
    /// More may follow.
    #[default]
    Open,
    /// With END_STREAM on the last DATA.
    Data,
    /// With a trailer section.
    Trailers(Vec<Header>),
}

/// What waits to be sent on one stream. The caller bounds it: what it hands over is kept until windows allow it.
#[derive(Debug, Default)]
pub struct SendQueue {
    /// The chunk that is being sent; the others wait behind it. Most bodies are one chunk.
    first: Vec<u8>,
    chunks: VecDeque<Vec<u8>>,
    /// Bytes of it that are sent.
    offset: usize,
    len: usize,
    /// How it ends.
    pub end: SendEnd,
}

impl SendQueue {
    /// Bytes that wait.
    pub fn len(&self) -> usize {
        self.len
    }

    /// No bytes wait; the end may.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds bytes at the end.
    pub fn push(&mut self, chunk: Vec<u8>) {
        let is_idle = self.is_empty();
        self.len += chunk.len();
        match is_idle {
            true => (self.first, self.offset) = (chunk, 0),
            false if chunk.is_empty() => {}
            false => self.chunks.push_back(chunk),
        }
    }

    /// Moves `n` bytes, of at least as many that wait, to `out`.
    pub fn take(&mut self, mut n: usize, out: &mut Vec<u8>) {
        while n > 0 {
            let rest = self.first.get(self.offset..).unwrap_or_default();
            if rest.is_empty() {
                let Some(next) = self.chunks.pop_front() else { return };
                (self.first, self.offset) = (next, 0);
                continue;
            }
            let part = rest.get(..n).unwrap_or(rest);
            out.extend_from_slice(part);
            let part = part.len();
            n -= part;
            self.len -= part;
            self.offset += part;
        }
        if self.is_empty() {
            self.first = Vec::new();
        }
    }
}

/// What the peer may send next on a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// The final response; the number of interim ones so far.
    Head { interim: u32 },
    /// DATA, or the trailer section.
    Body,
}

/// One stream that is not closed.
#[derive(Debug)]
pub struct Stream {
    /// Where it stands.
    pub state: State,
    /// What the peer sends next.
    pub expect: Expect,
    /// What we may send.
    pub send_window: SendWindow,
    /// What the peer may send.
    pub recv_window: RecvWindow,
    /// What we want to send.
    pub queue: SendQueue,
    /// Bytes of body that the peer's head promised.
    pub content_length: Option<u64>,
    /// Bytes of body so far.
    pub received: u64,
}

impl Stream {
    /// Whether DATA or the end can be sent now, given the connection's window.
    pub fn can_transmit(&self, connection_window: usize) -> bool {
        if !self.state.can_send() {
            return false;
        }
        if self.queue.is_empty() {
            return !matches!(self.queue.end, SendEnd::Open);
        }
        connection_window > 0 && self.send_window.available() > 0
    }

    /// Counts body bytes; false when they contradict the content-length (RFC 9113 section 8.1.1).
    pub fn count_body(&mut self, n: usize, is_last: bool) -> bool {
        self.received = self.received.saturating_add(u64::try_from(n).unwrap_or(u64::MAX));
        match self.content_length {
            None => true,
            Some(length) if is_last => self.received == length,
            Some(length) => self.received <= length,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queue_keeps_order_over_chunk_borders() {
        let mut queue = SendQueue::default();
        queue.push(b"abc".to_vec());
        queue.push(Vec::new());
        queue.push(b"defg".to_vec());
        let mut out = Vec::new();
        queue.take(2, &mut out);
        queue.take(3, &mut out);
        assert_eq!((out.as_slice(), queue.len()), (b"abcde".as_slice(), 2));
        queue.take(2, &mut out);
        assert!(queue.is_empty());
        assert_eq!(out, b"abcdefg");
    }

    #[test]
    fn each_end_happens_once() {
        let half = State::Open.after(Step::SendEnd).unwrap();
        assert_eq!(half, State::HalfClosedLocal);
        assert_eq!(half.after(Step::SendEnd), None);
        assert_eq!(half.after(Step::ReceiveEnd), Some(State::Closed));
        assert_eq!(State::Closed.after(Step::ReceiveEnd), None);
    }
}

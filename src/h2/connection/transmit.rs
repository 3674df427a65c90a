//! What a connection writes: control frames first, then DATA in turn over the streams.

use super::{Connection, Phase, Role, StreamId};
use crate::h2::error::ErrorCode;
use crate::h2::frame::{self, flag, kind};
use crate::h2::stream::{SendEnd, Step};

/// Bytes after which one `poll_transmit` stops. It bounds how much lies in a socket's or TLS buffer before control
/// frames, and so how late a PING's answer or a reset can be.
const TRANSMIT_TARGET: usize = 64 * 1024;
/// Streams that we reset and on which late frames are expected: more than can be under way.
const MAX_REMEMBERED_RESETS: usize = 256;
/// PING and SETTINGS acknowledgements that wait. More wait only if the peer asks and does not read.
const MAX_PENDING_REPLIES: u32 = 32;
/// Bytes of heads and resets that a server holds for a client that does not read: thousands of them. Without it each
/// request that is refused at once would leave its answer here, since refused streams do not count as open.
const MAX_PENDING_CONTROL: usize = 256 * 1024;

/// Frames that wait in the order in which they must be sent. HEADERS are among them: HPACK ties them to their order.
#[derive(Debug, Default)]
pub(super) struct Control {
    bytes: Vec<u8>,
    replies: u32,
}

impl Control {
    /// Adds a frame that we want to send.
    pub(super) fn push(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        write(&mut self.bytes);
    }

    /// More waits than a client that reads could have caused.
    pub(super) fn is_overfull(&self) -> bool {
        self.bytes.len() > MAX_PENDING_CONTROL
    }

    /// Adds a frame that the peer asked for; false when too many wait.
    pub(super) fn try_push_reply(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> bool {
        self.replies += 1;
        if self.replies > MAX_PENDING_REPLIES {
            return false;
        }
        write(&mut self.bytes);
        true
    }
}

impl Connection {
    /// Appends bytes to write to the transport: about 64 KiB at most. Nothing is appended when nothing can be sent.
    pub fn poll_transmit(&mut self, out: &mut Vec<u8>) {
        self.flush_control(out);
        if self.phase == Phase::Closed {
            return;
        }
        let limit = out.len() + TRANSMIT_TARGET;
        while out.len() < limit {
            let Some(id) = self.next_to_transmit() else { return };
            self.cursor = id;
            self.transmit_stream(id, out);
            self.flush_control(out);
        }
    }

    /// Whether `poll_transmit` would append anything.
    pub fn has_transmit(&self) -> bool {
        !self.control.bytes.is_empty() || self.phase != Phase::Closed && self.next_to_transmit().is_some()
    }

    /// Bytes of a stream that wait for windows or for `poll_transmit`.
    pub fn unsent(&self, id: StreamId) -> usize {
        self.streams.get(id).map_or(0, |s| s.queue.len())
    }

    fn flush_control(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.control.bytes);
        self.control.replies = 0;
        if self.role == Role::Client {
            self.transmitted = self.next_stream.saturating_sub(2);
        }
    }

    /// The next stream after the last one that can send something.
    fn next_to_transmit(&self) -> Option<StreamId> {
        let window = self.send_window.available();
        self.streams.round(self.cursor).find(|(_, s)| s.can_transmit(window)).map(|(id, _)| id)
    }

    /// Sends at most one frame of DATA, or what ends the stream.
    fn transmit_stream(&mut self, id: StreamId, out: &mut Vec<u8>) {
        let Some(stream) = self.streams.get_mut(id) else {
            return;
        };
        let waiting = stream.queue.len();
        let room = self.send_window.available().min(stream.send_window.available());
        let n = waiting.min(room).min(frame::MAX_FRAME_SIZE);
        let is_last = n == waiting;
        if is_last
            && let SendEnd::Trailers(_) = stream.queue.end
            && n == 0
        {
            let SendEnd::Trailers(headers) = std::mem::take(&mut stream.queue.end) else {
                return;
            };
            self.put_headers(id, &headers, true);
            self.flush_control(out);
            return self.end_sending(id);
        }
        let end = is_last && matches!(stream.queue.end, SendEnd::Data);
        frame::put_header(out, n, kind::DATA, if end { flag::END_STREAM } else { 0 }, id);
        stream.queue.take(n, out);
        stream.send_window.consume(n);
        self.send_window.consume(n);
        if end {
            stream.queue.end = SendEnd::Open;
            self.end_sending(id);
        }
    }

    fn end_sending(&mut self, id: StreamId) {
        self.step(id, Step::SendEnd);
        self.stop_peer(id);
    }

    /// Resets a stream and remembers it.
    pub(super) fn put_reset(&mut self, id: StreamId, code: ErrorCode) {
        if self.recent_resets.len() == MAX_REMEMBERED_RESETS {
            let forgotten = self.recent_resets.pop_front().unwrap_or_default();
            self.forgotten_reset = self.forgotten_reset.max(forgotten);
        }
        self.recent_resets.push_back(id);
        self.control.push(|out| frame::put_rst_stream(out, id, code));
    }

    /// Whether we have reset a stream, as far as that is known; then it is not reset again.
    pub(super) fn was_reset(&self, id: StreamId) -> bool {
        id <= self.forgotten_reset && !self.streams.contains(id) || self.recent_resets.contains(&id)
    }

    pub(super) fn reply_overflow() -> super::Fault {
        super::Fault::connection(ErrorCode::ENHANCE_YOUR_CALM, "peer asks for answers and does not read them")
    }
}

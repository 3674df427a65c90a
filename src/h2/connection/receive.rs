//! What a connection reads: frames out of bytes, and what each frame means in the present state.

use super::{Connection, Event, Phase, ResetCause, Role, StreamId};
use crate::h2::Instant;
use crate::h2::error::{ErrorCode, Fault};
use crate::h2::fields;
use crate::h2::frame::{self, Frame, FrameHeader, HEADER_LEN, PREFACE};
use crate::h2::hpack::{DecodeError, Header};
use crate::h2::settings::PeerSettings;
use crate::h2::stream::{Expect, State, Step};

/// Bytes of a field block while it is assembled. Compression only makes lists smaller, so an honest block that is
/// larger than the list limit does not exist.
const MAX_BLOCK_SIZE: usize = super::MAX_HEADER_LIST_SIZE;
/// CONTINUATION frames of one block: at 16 KiB a block none is needed; some peers split early.
const MAX_CONTINUATIONS: u32 = 8;
/// Frames without content and without an end, over the life of a connection; each DATA or HEADERS with content pays
/// one back.
const MAX_EMPTY_FRAMES: u32 = 64;
/// Interim responses before the final one (RFC 9113 section 8.1).
const MAX_INTERIM: u32 = 16;
/// Streams that a client opens and resets before we answered, or that we refused, less those that ended well.
const MAX_ABANDONED: u32 = 100;
/// What is kept of the peer's words in GOAWAY.
const MAX_DEBUG: usize = 256;

/// What a peer may do only so often.
#[derive(Debug, Default)]
pub(super) struct Counts {
    empty_frames: u32,
    abandoned: u32,
    pub(super) stream_errors: u32,
}

impl Counts {
    pub(super) fn stream_done(&mut self) {
        self.abandoned = self.abandoned.saturating_sub(1);
    }

    fn abandon(&mut self) -> Result<(), Fault> {
        self.abandoned += 1;
        if self.abandoned > MAX_ABANDONED {
            return Err(calm("too many streams opened and abandoned"));
        }
        Ok(())
    }

    fn frame(&mut self, is_empty: bool) -> Result<(), Fault> {
        if !is_empty {
            self.empty_frames = self.empty_frames.saturating_sub(1);
            return Ok(());
        }
        self.empty_frames += 1;
        if self.empty_frames > MAX_EMPTY_FRAMES {
            return Err(calm("too many empty frames"));
        }
        Ok(())
    }
}

impl Connection {
    /// Takes bytes from the transport. Keeps at most one incomplete frame.
    pub fn handle_bytes(&mut self, bytes: &[u8], now: Instant) {
        if self.phase == Phase::Closed || bytes.is_empty() {
            return;
        }
        self.pinger.received(now);
        // A frame that comes in many pieces is not copied for each of them, and the buffer serves the next one.
        let mut input = std::mem::take(&mut self.input);
        if input.is_empty() {
            let used = self.consume(bytes);
            input.extend_from_slice(bytes.get(used..).unwrap_or_default());
        } else {
            input.extend_from_slice(bytes);
            let used = self.consume(&input);
            input.drain(..used);
        }
        if self.phase != Phase::Closed {
            self.input = input;
        }
    }

    /// Handles all complete frames; returns how many bytes they took.
    fn consume(&mut self, input: &[u8]) -> usize {
        let mut used = 0;
        while self.phase != Phase::Closed {
            let rest = input.get(used..).unwrap_or_default();
            match self.consume_one(rest) {
                Ok(0) => break,
                Ok(n) => used += n,
                Err((fault, n)) => {
                    used += n;
                    self.handle_fault(fault);
                }
            }
        }
        used
    }

    /// Handles one frame; an error says how many bytes to skip when it ends only a stream.
    fn consume_one(&mut self, input: &[u8]) -> Result<usize, (Fault, usize)> {
        if self.phase == Phase::Preface {
            let common = PREFACE.len().min(input.len());
            if input.get(..common) != PREFACE.get(..common) {
                return Err((protocol("client sent no HTTP/2 preface"), 0));
            }
            if common < PREFACE.len() {
                return Ok(0);
            }
            self.phase = Phase::Settings;
            return Ok(PREFACE.len());
        }
        let Some(head) = input.first_chunk::<HEADER_LEN>() else {
            return Ok(0);
        };
        let header = FrameHeader::parse(head);
        if self.phase == Phase::Settings
            && (header.kind != frame::kind::SETTINGS || header.flags & frame::flag::ACK != 0)
        {
            let is_http1 = input.starts_with(b"HTTP/1.");
            let reason = if is_http1 { "peer speaks HTTP/1.1" } else { "first frame is not SETTINGS" };
            return Err((protocol(reason), 0));
        }
        header.check().map_err(|fault| (fault, 0))?;
        self.check_block(&header).map_err(|fault| (fault, 0))?;
        let length = HEADER_LEN + header.length;
        let Some(payload) = input.get(HEADER_LEN..length) else {
            return Ok(0);
        };
        let frame = frame::parse(&header, payload).map_err(|fault| (fault, length))?;
        self.handle_frame(frame).map_err(|fault| (fault, length))?;
        Ok(length)
    }

    /// Inside a field block only its own CONTINUATION may come, outside none (RFC 9113 section 6.10).
    fn check_block(&self, header: &FrameHeader) -> Result<(), Fault> {
        let is_continuation = header.kind == frame::kind::CONTINUATION;
        match &self.block {
            Some(block) if !is_continuation || block.stream != header.stream => {
                Err(protocol("frame inside a field block of another"))
            }
            None if is_continuation => Err(protocol("CONTINUATION without HEADERS")),
            _ => Ok(()),
        }
    }

    fn handle_frame(&mut self, frame: Frame<'_>) -> Result<(), Fault> {
        if self.role == Role::Server && self.control.is_overfull() {
            return Err(Connection::reply_overflow());
        }
        if matches!(frame, Frame::Data { .. } | Frame::Headers { .. }) {
            self.pinger.rewarded();
        }
        match frame {
            Frame::Data { stream, data, flow_len, end_stream } => self.handle_data(stream, data, flow_len, end_stream),
            Frame::Headers { stream, fragment, end_stream, end_headers } => {
                self.handle_headers(stream, fragment, end_stream, end_headers)
            }
            Frame::Continuation { fragment, end_headers, .. } => self.handle_continuation(fragment, end_headers),
            Frame::RstStream { stream, code } => self.handle_reset(stream, code),
            Frame::Settings { ack: true, .. } => Ok(()),
            Frame::Settings { entries, .. } => self.handle_settings(entries),
            Frame::PushPromise => Err(protocol("PUSH_PROMISE although push is off")),
            Frame::Ping { ack, payload } => self.handle_ping(ack, payload),
            Frame::GoAway { last_stream, code, debug } => self.handle_go_away(last_stream, code, debug),
            Frame::WindowUpdate { stream, increment } => self.handle_window_update(stream, increment),
            Frame::Priority | Frame::Unknown => Ok(()),
        }
    }

    fn handle_data(&mut self, id: StreamId, data: &[u8], flow_len: usize, end_stream: bool) -> Result<(), Fault> {
        if self.is_idle(id) {
            return Err(protocol("DATA on an idle stream"));
        }
        self.counts.frame(data.is_empty() && !end_stream)?;
        let overrun = "more DATA than the window allows";
        self.recv_window.receive(flow_len).map_err(|_| Fault::connection(ErrorCode::FLOW_CONTROL_ERROR, overrun))?;
        let Some(stream) = self.streams.get_mut(id) else {
            self.release(id, flow_len);
            return self.stray(id);
        };
        if !stream.state.can_receive() {
            self.release(id, flow_len);
            return Err(Fault::stream(id, ErrorCode::STREAM_CLOSED, "DATA after END_STREAM"));
        }
        let received = stream.recv_window.receive(flow_len);
        let fits = stream.count_body(data.len(), end_stream);
        let early = !matches!(stream.expect, Expect::Body);
        // Padding, and what a failed stream does not hand to the application, goes back at once.
        let fault = match () {
            () if received.is_err() => Some((ErrorCode::FLOW_CONTROL_ERROR, overrun)),
            () if early => Some((ErrorCode::PROTOCOL_ERROR, "DATA before the head")),
            () if !fits => Some((ErrorCode::PROTOCOL_ERROR, "body contradicts its content-length")),
            () => None,
        };
        if let Some((code, reason)) = fault {
            self.release(id, flow_len);
            return Err(Fault::stream(id, code, reason));
        }
        self.release(id, flow_len - data.len());
        self.push_data(id, data, end_stream);
        if end_stream {
            self.step(id, Step::ReceiveEnd);
        }
        Ok(())
    }

    /// Small frames that come together are handed over as one piece.
    fn push_data(&mut self, id: StreamId, more: &[u8], end: bool) {
        if let Some(Event::Data { stream, data, end_stream }) = self.events.back_mut()
            && *stream == id
        {
            data.extend_from_slice(more);
            *end_stream = end;
        } else if !more.is_empty() || end {
            let mut data = std::mem::take(&mut self.spare);
            data.clear();
            data.extend_from_slice(more);
            self.events.push_back(Event::Data { stream: id, data, end_stream: end });
        }
    }

    fn handle_headers(
        &mut self,
        id: StreamId,
        fragment: &[u8],
        end_stream: bool,
        end_headers: bool,
    ) -> Result<(), Fault> {
        self.counts.frame(fragment.is_empty() && !end_stream && !end_headers)?;
        if self.role == Role::Client && self.is_idle(id) {
            return Err(protocol("HEADERS on an idle stream"));
        }
        if self.role == Role::Server && id.is_multiple_of(2) {
            return Err(protocol("client opened a stream with an even identifier"));
        }
        if end_headers {
            return self.handle_block(id, fragment, end_stream);
        }
        self.block = Some(super::Block { stream: id, end_stream, fragment: fragment.to_vec(), continuations: 0 });
        Ok(())
    }

    fn handle_continuation(&mut self, fragment: &[u8], end_headers: bool) -> Result<(), Fault> {
        self.counts.frame(fragment.is_empty() && !end_headers)?;
        let Some(block) = &mut self.block else {
            return Err(protocol("CONTINUATION without HEADERS"));
        };
        block.continuations += 1;
        if block.continuations > MAX_CONTINUATIONS || block.fragment.len() + fragment.len() > MAX_BLOCK_SIZE {
            return Err(calm("field block too large"));
        }
        block.fragment.extend_from_slice(fragment);
        if !end_headers {
            return Ok(());
        }
        let Some(block) = self.block.take() else { return Ok(()) };
        self.handle_block(block.stream, &block.fragment, block.end_stream)
    }

    /// A whole field block. It is decoded in each case, since the table must follow (RFC 9113 section 4.3).
    fn handle_block(&mut self, id: StreamId, block: &[u8], end_stream: bool) -> Result<(), Fault> {
        let headers = self.decoder.decode(block).map_err(|error| match error {
            DecodeError::Compression(reason) => Fault::connection(ErrorCode::COMPRESSION_ERROR, reason),
            DecodeError::TooLarge => calm("field list too large"),
        })?;
        if self.role == Role::Server && id > self.last_peer_stream {
            return self.handle_new_stream(id, headers, end_stream);
        }
        let Some(stream) = self.streams.get_mut(id) else {
            // Late trailers of a stream that we reset are expected; a client that opens an old one is not.
            return match self.role {
                Role::Client => self.stray(id),
                Role::Server if self.recent_resets.contains(&id) => Ok(()),
                // Used before or skipped: neither may be opened again (RFC 9113 section 5.1.1).
                Role::Server => Err(protocol("client opened a stream that is not above all before")),
            };
        };
        if !stream.state.can_receive() {
            return Err(Fault::stream(id, ErrorCode::STREAM_CLOSED, "HEADERS after END_STREAM"));
        }
        match stream.expect {
            Expect::Body => self.handle_trailers(id, headers, end_stream),
            Expect::Head { interim } => self.handle_response(id, headers, end_stream, interim),
        }
    }

    fn handle_new_stream(&mut self, id: StreamId, headers: Vec<Header>, end_stream: bool) -> Result<(), Fault> {
        self.last_peer_stream = id;
        let is_full = u32::try_from(self.streams.len()).is_ok_and(|n| n >= self.config.max_concurrent_streams);
        // After our GOAWAY the client may have opened more before it read that.
        if is_full || self.go_away_sent.is_some() {
            self.counts.abandon()?;
            self.put_reset(id, ErrorCode::REFUSED_STREAM);
            return Ok(());
        }
        let head = self.check_fields(&headers).map_err(|reason| malformed(id, reason))?;
        let mut stream = self.new_stream(Expect::Body);
        stream.content_length = head.content_length;
        if end_stream {
            if !stream.count_body(0, true) {
                return Err(malformed(id, "content-length without a body"));
            }
            stream.state = State::HalfClosedRemote;
        }
        self.streams.insert(id, stream);
        self.events.push_back(Event::Headers { stream: id, headers, end_stream });
        Ok(())
    }

    fn handle_response(
        &mut self,
        id: StreamId,
        headers: Vec<Header>,
        end_stream: bool,
        interim: u32,
    ) -> Result<(), Fault> {
        let head = self.check_fields(&headers).map_err(|reason| malformed(id, reason))?;
        let Some(stream) = self.streams.get_mut(id) else {
            return Ok(());
        };
        if head.status < 200 {
            if end_stream || head.status == 101 {
                return Err(malformed(id, "interim response that ends the stream or switches protocols"));
            }
            if interim == MAX_INTERIM {
                return Err(malformed(id, "too many interim responses"));
            }
            stream.expect = Expect::Head { interim: interim + 1 };
            return Ok(());
        }
        stream.expect = Expect::Body;
        // Both have no content, and may name the length that another answer would have (RFC 9113 section 8.1.1).
        stream.content_length = head.content_length.filter(|_| !matches!(head.status, 204 | 304));
        if end_stream && !stream.count_body(0, true) {
            return Err(malformed(id, "content-length without a body"));
        }
        self.events.push_back(Event::Headers { stream: id, headers, end_stream });
        if end_stream {
            self.step(id, Step::ReceiveEnd);
        }
        Ok(())
    }

    fn handle_trailers(&mut self, id: StreamId, headers: Vec<Header>, end_stream: bool) -> Result<(), Fault> {
        if !end_stream {
            return Err(malformed(id, "second field block without END_STREAM"));
        }
        fields::check_trailers(&headers).map_err(|reason| malformed(id, reason))?;
        let fits = self.streams.get_mut(id).is_none_or(|s| s.count_body(0, true));
        if !fits {
            return Err(malformed(id, "body contradicts its content-length"));
        }
        self.events.push_back(Event::Trailers { stream: id, headers });
        self.step(id, Step::ReceiveEnd);
        Ok(())
    }

    fn handle_reset(&mut self, id: StreamId, code: ErrorCode) -> Result<(), Fault> {
        if self.is_idle(id) {
            return Err(protocol("RST_STREAM on an idle stream"));
        }
        if self.streams.remove(id).is_none() {
            return Ok(());
        }
        if self.role == Role::Server {
            self.counts.abandon()?;
        }
        self.events.push_back(Event::Reset { stream: id, code, cause: ResetCause::Peer });
        self.close_when_drained();
        Ok(())
    }

    fn handle_settings(&mut self, entries: &[u8]) -> Result<(), Fault> {
        let before = self.peer.initial_window_size;
        let mut peer: PeerSettings = self.peer.clone();
        peer.apply(entries, self.role == Role::Client)?;
        self.peer = peer;
        self.encoder.set_peer_table_size(self.peer.header_table_size);
        let difference = i64::from(self.peer.initial_window_size) - i64::from(before);
        for stream in self.streams.values_mut() {
            let overflow = "INITIAL_WINDOW_SIZE makes a window overflow";
            stream
                .send_window
                .grow(difference)
                .map_err(|_| Fault::connection(ErrorCode::FLOW_CONTROL_ERROR, overflow))?;
        }
        if self.phase == Phase::Settings {
            self.phase = Phase::Open;
            self.handshake_deadline = None;
            self.events.push_back(Event::Settings);
        }
        match self.control.try_push_reply(frame::put_settings_ack) {
            true => Ok(()),
            false => Err(Connection::reply_overflow()),
        }
    }

    fn handle_ping(&mut self, ack: bool, payload: [u8; 8]) -> Result<(), Fault> {
        if ack {
            self.pinger.answered(payload);
            return Ok(());
        }
        match self.control.try_push_reply(|out| frame::put_ping(out, true, payload)) {
            true => Ok(()),
            false => Err(Connection::reply_overflow()),
        }
    }

    fn handle_go_away(&mut self, last_stream: StreamId, code: ErrorCode, debug: &[u8]) -> Result<(), Fault> {
        if self.go_away_received.as_ref().is_some_and(|(before, ..)| last_stream > *before) {
            return Err(protocol("GOAWAY that raises its last stream"));
        }
        let words = debug.get(..MAX_DEBUG).unwrap_or(debug);
        let words = String::from_utf8_lossy(words).chars().filter(|c| !c.is_control()).collect();
        self.go_away_received = Some((last_stream, code, words));
        self.events.push_back(Event::GoAway { last_stream, code });
        if self.role == Role::Client {
            for (id, _) in self.streams.split_off(last_stream.saturating_add(1)) {
                let (code, cause) = (ErrorCode::REFUSED_STREAM, ResetCause::NotProcessed);
                self.events.push_back(Event::Reset { stream: id, code, cause });
            }
        }
        self.close_when_drained();
        Ok(())
    }

    fn handle_window_update(&mut self, id: StreamId, increment: u32) -> Result<(), Fault> {
        let overflow = "WINDOW_UPDATE makes a window overflow";
        if id == 0 {
            if increment == 0 {
                return Err(protocol("WINDOW_UPDATE of zero"));
            }
            let grown = self.send_window.grow(i64::from(increment));
            return grown.map_err(|_| Fault::connection(ErrorCode::FLOW_CONTROL_ERROR, overflow));
        }
        if self.is_idle(id) {
            return Err(protocol("WINDOW_UPDATE on an idle stream"));
        }
        let Some(stream) = self.streams.get_mut(id) else {
            return Ok(());
        };
        if increment == 0 {
            return Err(malformed(id, "WINDOW_UPDATE of zero"));
        }
        let grown = stream.send_window.grow(i64::from(increment));
        grown.map_err(|_| Fault::stream(id, ErrorCode::FLOW_CONTROL_ERROR, overflow))
    }

    /// A frame on a closed stream: late if we reset it, an error otherwise (RFC 9113 section 5.1).
    fn stray(&mut self, id: StreamId) -> Result<(), Fault> {
        if self.was_reset(id) {
            return Ok(());
        }
        Err(Fault::stream(id, ErrorCode::STREAM_CLOSED, "frame on a closed stream"))
    }
}

fn protocol(reason: &'static str) -> Fault {
    Fault::connection(ErrorCode::PROTOCOL_ERROR, reason)
}

fn calm(reason: &'static str) -> Fault {
    Fault::connection(ErrorCode::ENHANCE_YOUR_CALM, reason)
}

fn malformed(id: StreamId, reason: &'static str) -> Fault {
    Fault::stream(id, ErrorCode::PROTOCOL_ERROR, reason)
}

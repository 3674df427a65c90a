//! Frames: the nine-byte header, parsing and writing of each type (RFC 9113 sections 4 and 6).
//!
//! Whether a frame is acceptable in the present state is not decided here, only whether it is well formed.

use super::error::{ErrorCode, Fault};

/// Length of a frame header (RFC 9113 section 4.1).
pub const HEADER_LEN: usize = 9;
/// The largest payload that we take. It is the protocol's least value and is never raised: a larger one only makes
/// a peer's DATA delay other streams and our buffers grow (RFC 9113 section 6.5.2).
pub const MAX_FRAME_SIZE: usize = 16_384;
/// What a client sends first (RFC 9113 section 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Entries in one SETTINGS frame: there are seven known settings; more than this is load, not configuration.
pub const MAX_SETTINGS_ENTRIES: usize = 64;

/// Frame types (RFC 9113 section 6).
pub mod kind {
    /// Section 6.1.
    pub const DATA: u8 = 0;
    /// Section 6.2.
    pub const HEADERS: u8 = 1;
    /// Section 6.3.
    pub const PRIORITY: u8 = 2;
    /// Section 6.4.
    pub const RST_STREAM: u8 = 3;
    /// Section 6.5.
    pub const SETTINGS: u8 = 4;
    /// Section 6.6.
    pub const PUSH_PROMISE: u8 = 5;
    /// Section 6.7.
    pub const PING: u8 = 6;
    /// Section 6.8.
    pub const GOAWAY: u8 = 7;
    /// Section 6.9.
    pub const WINDOW_UPDATE: u8 = 8;
    /// Section 6.10.
    pub const CONTINUATION: u8 = 9;
}

/// Frame flags (RFC 9113 section 6).
pub mod flag {
    /// On SETTINGS and PING.
    pub const ACK: u8 = 0x1;
    /// On DATA and HEADERS.
    pub const END_STREAM: u8 = 0x1;
    /// On HEADERS and CONTINUATION.
    pub const END_HEADERS: u8 = 0x4;
    /// On DATA and HEADERS.
    pub const PADDED: u8 = 0x8;
    /// On HEADERS.
    pub const PRIORITY: u8 = 0x20;
}

/// The header of each frame.
///
/// ```text
/// +-----------------------------------------------+
/// |                 Length (24)                   |
/// +---------------+---------------+---------------+
/// |   Type (8)    |   Flags (8)   |
/// +-+-------------+---------------+-------------------------------+
/// |R|                 Stream Identifier (31)                      |
/// +=+=============================================================+
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// Length of the payload.
    pub length: usize,
    /// One of [`kind`], or unknown.
    pub kind: u8,
    /// Bits of [`flag`].
    pub flags: u8,
    /// 0 for the connection as a whole.
    pub stream: u32,
}

impl FrameHeader {
    /// Reads the header (RFC 9113 section 4.1); the reserved bit is ignored.
    pub fn parse(bytes: &[u8; HEADER_LEN]) -> FrameHeader {
        let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = *bytes;
        FrameHeader {
            length: usize::from(l0) << 16 | usize::from(l1) << 8 | usize::from(l2),
            kind,
            flags,
            stream: u32::from_be_bytes([s0 & 0x7f, s1, s2, s3]),
        }
    }

    /// Decides on the header alone, before any of the payload is kept (RFC 9113 section 4.2). Each oversized frame
    /// ends the connection, also where the standard would let us end only the stream: skipping it would mean
    /// reading up to 16 MiB for a peer that ignores our settings.
    pub fn check(&self) -> Result<(), Fault> {
        if self.length > MAX_FRAME_SIZE {
            return Err(size_fault("frame larger than SETTINGS_MAX_FRAME_SIZE"));
        }
        let exact = match self.kind {
            kind::RST_STREAM | kind::WINDOW_UPDATE => Some(4),
            kind::PING => Some(8),
            _ => None,
        };
        if exact.is_some_and(|n| n != self.length) {
            return Err(size_fault("frame whose length its type forbids"));
        }
        let on_stream = matches!(
            self.kind,
            kind::DATA | kind::HEADERS | kind::PRIORITY | kind::RST_STREAM | kind::PUSH_PROMISE | kind::CONTINUATION
        );
        let on_connection = matches!(self.kind, kind::SETTINGS | kind::PING | kind::GOAWAY);
        if on_stream && self.stream == 0 || on_connection && self.stream != 0 {
            return Err(protocol_fault("frame whose stream identifier its type forbids"));
        }
        Ok(())
    }

    fn has(&self, bit: u8) -> bool {
        self.flags & bit != 0
    }
}

/// A well-formed frame that borrows its payload.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// Section 6.1. `flow_len` counts padding too, as flow control does.
    Data { stream: u32, data: &'a [u8], flow_len: usize, end_stream: bool },
    /// Section 6.2, without padding and priority.
    Headers { stream: u32, fragment: &'a [u8], end_stream: bool, end_headers: bool },
    /// Section 6.3; its content means nothing to us.
    Priority,
    /// Section 6.4.
    RstStream { stream: u32, code: ErrorCode },
    /// Section 6.5; six bytes an entry.
    Settings { ack: bool, entries: &'a [u8] },
    /// Section 6.6; always refused.
    PushPromise,
    /// Section 6.7.
    Ping { ack: bool, payload: [u8; 8] },
    /// Section 6.8.
    GoAway { last_stream: u32, code: ErrorCode, debug: &'a [u8] },
    /// Section 6.9.
    WindowUpdate { stream: u32, increment: u32 },
    /// Section 6.10.
    Continuation { stream: u32, fragment: &'a [u8], end_headers: bool },
    /// Section 5.5: ignored.
    Unknown,
}

/// Parses the payload of a frame whose header was checked.
pub fn parse<'a>(header: &FrameHeader, payload: &'a [u8]) -> Result<Frame<'a>, Fault> {
    let stream = header.stream;
    Ok(match header.kind {
        kind::DATA => Frame::Data {
            stream,
            data: unpad(header, payload)?,
            flow_len: payload.len(),
            end_stream: header.has(flag::END_STREAM),
        },
        kind::HEADERS => Frame::Headers {
            stream,
            fragment: strip_priority(header, unpad(header, payload)?)?,
            end_stream: header.has(flag::END_STREAM),
            end_headers: header.has(flag::END_HEADERS),
        },
        kind::PRIORITY if payload.len() != 5 => {
            return Err(Fault::stream(stream, ErrorCode::FRAME_SIZE_ERROR, "PRIORITY that is not 5 bytes long"));
        }
        kind::PRIORITY => Frame::Priority,
        kind::RST_STREAM => Frame::RstStream { stream, code: ErrorCode(be32(payload)?) },
        kind::SETTINGS => parse_settings(header, payload)?,
        kind::PUSH_PROMISE => Frame::PushPromise,
        kind::PING => Frame::Ping {
            ack: header.has(flag::ACK),
            payload: payload.try_into().map_err(|_| size_fault("PING that is not 8 bytes long"))?,
        },
        kind::GOAWAY => Frame::GoAway {
            last_stream: be32(payload)? & 0x7fff_ffff,
            code: ErrorCode(be32(payload.get(4..).unwrap_or_default())?),
            debug: payload.get(8..).unwrap_or_default(),
        },
        kind::WINDOW_UPDATE => Frame::WindowUpdate { stream, increment: be32(payload)? & 0x7fff_ffff },
        kind::CONTINUATION => {
            Frame::Continuation { stream, fragment: payload, end_headers: header.has(flag::END_HEADERS) }
        }
        _ => Frame::Unknown,
    })
}

fn parse_settings<'a>(header: &FrameHeader, payload: &'a [u8]) -> Result<Frame<'a>, Fault> {
    let ack = header.has(flag::ACK);
    if ack && !payload.is_empty() {
        return Err(size_fault("SETTINGS acknowledgement with a payload"));
    }
    if !payload.len().is_multiple_of(6) {
        return Err(size_fault("SETTINGS whose length is no multiple of 6"));
    }
    if payload.len() > MAX_SETTINGS_ENTRIES * 6 {
        return Err(Fault::connection(ErrorCode::ENHANCE_YOUR_CALM, "SETTINGS with too many entries"));
    }
    Ok(Frame::Settings { ack, entries: payload })
}

/// Takes the padding off (RFC 9113 section 6.1).
fn unpad<'a>(header: &FrameHeader, payload: &'a [u8]) -> Result<&'a [u8], Fault> {
    if !header.has(flag::PADDED) {
        return Ok(payload);
    }
    let (pad, rest) = payload.split_first().ok_or_else(|| size_fault("padded frame without a pad length"))?;
    let kept = rest.len().checked_sub(usize::from(*pad));
    kept.and_then(|n| rest.get(..n)).ok_or_else(|| protocol_fault("padding longer than the frame"))
}

/// Takes the priority fields off (RFC 9113 section 6.2).
fn strip_priority<'a>(header: &FrameHeader, fragment: &'a [u8]) -> Result<&'a [u8], Fault> {
    if !header.has(flag::PRIORITY) {
        return Ok(fragment);
    }
    fragment.get(5..).ok_or_else(|| size_fault("HEADERS too short for its priority"))
}

fn be32(bytes: &[u8]) -> Result<u32, Fault> {
    let head = bytes.first_chunk::<4>().ok_or_else(|| size_fault("frame shorter than its fields"))?;
    Ok(u32::from_be_bytes(*head))
}

fn size_fault(reason: &'static str) -> Fault {
    Fault::connection(ErrorCode::FRAME_SIZE_ERROR, reason)
}

fn protocol_fault(reason: &'static str) -> Fault {
    Fault::connection(ErrorCode::PROTOCOL_ERROR, reason)
}

/// Appends a frame header; `length` is at most 2^24-1 for each caller, since none writes more than a frame's limit.
pub fn put_header(out: &mut Vec<u8>, length: usize, kind: u8, flags: u8, stream: u32) {
    let [_, l0, l1, l2] = u32::try_from(length).unwrap_or(0x00ff_ffff).to_be_bytes();
    out.extend_from_slice(&[l0, l1, l2, kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
}

/// Appends a field block as HEADERS and as many CONTINUATION frames as it needs (RFC 9113 sections 6.2 and 6.10).
pub fn put_headers(out: &mut Vec<u8>, stream: u32, block: &[u8], end_stream: bool, max_frame: usize) {
    let (mut head, mut rest) = block.split_at(block.len().min(max_frame));
    let mut kind = kind::HEADERS;
    let mut flags = if end_stream { flag::END_STREAM } else { 0 };
    loop {
        if rest.is_empty() {
            flags |= flag::END_HEADERS;
        }
        put_header(out, head.len(), kind, flags, stream);
        out.extend_from_slice(head);
        if rest.is_empty() {
            return;
        }
        (head, rest) = rest.split_at(rest.len().min(max_frame));
        kind = kind::CONTINUATION;
        flags = 0;
    }
}

/// Appends RST_STREAM (RFC 9113 section 6.4).
pub fn put_rst_stream(out: &mut Vec<u8>, stream: u32, code: ErrorCode) {
    put_header(out, 4, kind::RST_STREAM, 0, stream);
    out.extend_from_slice(&code.0.to_be_bytes());
}

/// Appends SETTINGS (RFC 9113 section 6.5).
pub fn put_settings(out: &mut Vec<u8>, entries: &[(u16, u32)]) {
    put_header(out, entries.len() * 6, kind::SETTINGS, 0, 0);
    for (id, value) in entries {
        out.extend_from_slice(&id.to_be_bytes());
        out.extend_from_slice(&value.to_be_bytes());
    }
}

/// Appends the acknowledgement of SETTINGS (RFC 9113 section 6.5.3).
pub fn put_settings_ack(out: &mut Vec<u8>) {
    put_header(out, 0, kind::SETTINGS, flag::ACK, 0);
}

/// Appends PING (RFC 9113 section 6.7).
pub fn put_ping(out: &mut Vec<u8>, ack: bool, payload: [u8; 8]) {
    put_header(out, 8, kind::PING, if ack { flag::ACK } else { 0 }, 0);
    out.extend_from_slice(&payload);
}

/// Appends GOAWAY (RFC 9113 section 6.8).
pub fn put_go_away(out: &mut Vec<u8>, last_stream: u32, code: ErrorCode, debug: &[u8]) {
    put_header(out, 8 + debug.len(), kind::GOAWAY, 0, 0);
    out.extend_from_slice(&last_stream.to_be_bytes());
    out.extend_from_slice(&code.0.to_be_bytes());
    out.extend_from_slice(debug);
}

/// Appends WINDOW_UPDATE (RFC 9113 section 6.9).
pub fn put_window_update(out: &mut Vec<u8>, stream: u32, increment: u32) {
    put_header(out, 4, kind::WINDOW_UPDATE, 0, stream);
    out.extend_from_slice(&increment.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(length: usize, kind: u8, flags: u8, stream: u32) -> FrameHeader {
        FrameHeader { length, kind, flags, stream }
    }

    fn parse_all(bytes: &[u8]) -> Result<Frame<'_>, Fault> {
        let header = FrameHeader::parse(bytes.first_chunk().unwrap());
        header.check()?;
        parse(&header, &bytes[HEADER_LEN..])
    }

    fn code_of<T: std::fmt::Debug>(result: Result<T, Fault>) -> ErrorCode {
        match result.unwrap_err() {
            Fault::Connection { code, .. } | Fault::Stream { code, .. } => code,
        }
    }

    #[test]
    fn reads_header_and_ignores_the_reserved_bit() {
        let got = FrameHeader::parse(&[0x01, 0x02, 0x03, 0x04, 0x05, 0x80, 0, 0, 7]);
        assert_eq!(got, header(0x010203, 4, 5, 7));
    }

    #[test]
    fn writes_frames_as_the_standard_shows_them() {
        let mut out = Vec::new();
        put_settings(&mut out, &[(4, 0x0010_0000)]);
        put_settings_ack(&mut out);
        put_ping(&mut out, true, *b"12345678");
        put_rst_stream(&mut out, 3, ErrorCode::CANCEL);
        put_go_away(&mut out, 5, ErrorCode::NO_ERROR, b"x");
        put_window_update(&mut out, 0, 65_535);
        let want: &[&[u8]] = &[
            &[0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4, 0, 0x10, 0, 0],
            &[0, 0, 0, 4, 1, 0, 0, 0, 0],
            &[0, 0, 8, 6, 1, 0, 0, 0, 0],
            b"12345678",
            &[0, 0, 4, 3, 0, 0, 0, 0, 3, 0, 0, 0, 8],
            &[0, 0, 9, 7, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, b'x'],
            &[0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff],
        ];
        assert_eq!(out, want.concat());
    }

    #[test]
    fn splits_a_long_block_into_continuations() {
        let mut out = Vec::new();
        put_headers(&mut out, 1, b"abcdefg", true, 3);
        let want: &[&[u8]] = &[
            &[0, 0, 3, 1, 0x1, 0, 0, 0, 1],
            b"abc",
            &[0, 0, 3, 9, 0x0, 0, 0, 0, 1],
            b"def",
            &[0, 0, 1, 9, 0x4, 0, 0, 0, 1],
            b"g",
        ];
        assert_eq!(out, want.concat());
    }

    #[test]
    fn takes_padding_and_priority_off() {
        let padded = parse_all(&[0, 0, 6, 0, 0x9, 0, 0, 0, 1, 2, b'a', b'b', b'c', 0, 0]);
        assert_eq!(padded, Ok(Frame::Data { stream: 1, data: b"abc", flow_len: 6, end_stream: true }));
        let both = parse_all(&[0, 0, 8, 1, 0x2c, 0, 0, 0, 1, 1, 0, 0, 0, 3, 16, 0x82, 0]);
        assert_eq!(both, Ok(Frame::Headers { stream: 1, fragment: &[0x82], end_stream: false, end_headers: true }));
    }

    #[test]
    fn refuses_padding_that_is_as_long_as_the_payload() {
        assert_eq!(code_of(parse_all(&[0, 0, 2, 0, 0x8, 0, 0, 0, 1, 2, 0])), ErrorCode::PROTOCOL_ERROR);
        assert_eq!(code_of(parse_all(&[0, 0, 0, 0, 0x8, 0, 0, 0, 1])), ErrorCode::FRAME_SIZE_ERROR);
        assert_eq!(code_of(parse_all(&[0, 0, 4, 1, 0x24, 0, 0, 0, 1, 0, 0, 0, 0])), ErrorCode::FRAME_SIZE_ERROR);
    }

    #[test]
    fn decides_sizes_on_the_header() {
        for (length, kind, want) in [
            (16_385, kind::DATA, ErrorCode::FRAME_SIZE_ERROR),
            (3, kind::RST_STREAM, ErrorCode::FRAME_SIZE_ERROR),
            (5, kind::WINDOW_UPDATE, ErrorCode::FRAME_SIZE_ERROR),
            (16_385, 0xfa, ErrorCode::FRAME_SIZE_ERROR),
        ] {
            assert_eq!(code_of(header(length, kind, 0, 1).check()), want, "{kind}");
        }
        assert_eq!(code_of(header(7, kind::PING, 0, 0).check()), ErrorCode::FRAME_SIZE_ERROR);
        assert_eq!(header(16_384, kind::DATA, 0, 1).check(), Ok(()));
    }

    #[test]
    fn refuses_frames_on_the_wrong_kind_of_stream() {
        for kind in [kind::DATA, kind::HEADERS, kind::PRIORITY, kind::PUSH_PROMISE, kind::CONTINUATION] {
            assert_eq!(code_of(header(5, kind, 0, 0).check()), ErrorCode::PROTOCOL_ERROR);
        }
        assert_eq!(code_of(header(4, kind::RST_STREAM, 0, 0).check()), ErrorCode::PROTOCOL_ERROR);
        for (kind, length) in [(kind::SETTINGS, 0), (kind::PING, 8), (kind::GOAWAY, 8)] {
            assert_eq!(code_of(header(length, kind, 0, 1).check()), ErrorCode::PROTOCOL_ERROR);
        }
    }

    #[test]
    fn refuses_broken_settings() {
        assert_eq!(code_of(parse(&header(5, kind::SETTINGS, 0, 0), &[0; 5])), ErrorCode::FRAME_SIZE_ERROR);
        assert_eq!(code_of(parse(&header(6, kind::SETTINGS, 1, 0), &[0; 6])), ErrorCode::FRAME_SIZE_ERROR);
        assert_eq!(code_of(parse(&header(390, kind::SETTINGS, 0, 0), &[0; 390])), ErrorCode::ENHANCE_YOUR_CALM);
    }

    #[test]
    fn each_type_meets_truncation_at_every_byte() {
        for kind in 0..12 {
            for flags in [0, 0x1, 0x8, 0x20, 0x28] {
                for n in 0..24 {
                    let header = header(n, kind, flags, 1);
                    let _ = parse(&header, &vec![3; n]);
                }
            }
        }
    }
}

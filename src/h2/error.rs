//! Error codes (RFC 9113 section 7) and how far an error reaches (section 5.4).

use std::fmt;

/// The code of an RST_STREAM or GOAWAY frame. Codes without a name are kept as they came.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ErrorCode(pub u32);

impl ErrorCode {
    /// Not an error: an orderly end.
    pub const NO_ERROR: ErrorCode = ErrorCode(0);
    /// The peer broke the protocol, and no other code says it better.
    pub const PROTOCOL_ERROR: ErrorCode = ErrorCode(1);
    /// The endpoint failed in itself.
    pub const INTERNAL_ERROR: ErrorCode = ErrorCode(2);
    /// A flow-control window was overrun or overflowed.
    pub const FLOW_CONTROL_ERROR: ErrorCode = ErrorCode(3);
    /// A SETTINGS frame was not acknowledged in time.
    pub const SETTINGS_TIMEOUT: ErrorCode = ErrorCode(4);
    /// A frame came after its stream had ended.
    pub const STREAM_CLOSED: ErrorCode = ErrorCode(5);
    /// A frame has a size that its type or our limit forbids.
    pub const FRAME_SIZE_ERROR: ErrorCode = ErrorCode(6);
    /// The stream was refused before any of it was processed.
    pub const REFUSED_STREAM: ErrorCode = ErrorCode(7);
    /// The stream is no longer wanted.
    pub const CANCEL: ErrorCode = ErrorCode(8);
    /// The field compression state is lost.
    pub const COMPRESSION_ERROR: ErrorCode = ErrorCode(9);
    /// The connection of a CONNECT request failed.
    pub const CONNECT_ERROR: ErrorCode = ErrorCode(10);
    /// The peer causes too much load.
    pub const ENHANCE_YOUR_CALM: ErrorCode = ErrorCode(11);
    /// The transport is not secure enough.
    pub const INADEQUATE_SECURITY: ErrorCode = ErrorCode(12);
    /// HTTP/1.1 is required.
    pub const HTTP_1_1_REQUIRED: ErrorCode = ErrorCode(13);
}

const NAMES: [&str; 14] = [
    "NO_ERROR",
    "PROTOCOL_ERROR",
    "INTERNAL_ERROR",
    "FLOW_CONTROL_ERROR",
    "SETTINGS_TIMEOUT",
    "STREAM_CLOSED",
    "FRAME_SIZE_ERROR",
    "REFUSED_STREAM",
    "CANCEL",
    "COMPRESSION_ERROR",
    "CONNECT_ERROR",
    "ENHANCE_YOUR_CALM",
    "INADEQUATE_SECURITY",
    "HTTP_1_1_REQUIRED",
];

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match usize::try_from(self.0).ok().and_then(|i| NAMES.get(i)) {
            Some(name) => f.write_str(name),
            None => write!(f, "error code {:#x}", self.0),
        }
    }
}

impl fmt::Debug for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A violation by the peer, found while reading: its reach, the code that is sent for it, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Ends the connection (RFC 9113 section 5.4.1).
    Connection {
        /// Sent in GOAWAY.
        code: ErrorCode,
        /// What the peer did.
        reason: &'static str,
    },
    /// Ends one stream (RFC 9113 section 5.4.2).
    Stream {
        /// The stream that ends.
        id: u32,
        /// Sent in RST_STREAM.
        code: ErrorCode,
        /// What the peer did.
        reason: &'static str,
    },
}

impl Fault {
    /// A violation that ends the connection.
    pub fn connection(code: ErrorCode, reason: &'static str) -> Fault {
        Fault::Connection { code, reason }
    }

    /// A violation that ends one stream.
    pub fn stream(id: u32, code: ErrorCode, reason: &'static str) -> Fault {
        Fault::Stream { id, code, reason }
    }
}

/// Why a connection has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConnectionError {
    /// The peer broke the protocol or exceeded a limit; we sent GOAWAY with this code.
    Peer {
        /// The code that we sent.
        code: ErrorCode,
        /// What the peer did.
        reason: &'static str,
    },
    /// The peer ended the connection with GOAWAY.
    GoneAway {
        /// The code that the peer sent.
        code: ErrorCode,
        /// The peer's own words, cut and made printable.
        debug: String,
    },
    /// The transport ended without GOAWAY.
    Eof,
    /// A keepalive PING or the peer's first SETTINGS did not come in time.
    TimedOut {
        /// What was waited for.
        reason: &'static str,
    },
    /// This side ended the connection with GOAWAY and all streams are done.
    Local {
        /// The code that we sent.
        code: ErrorCode,
    },
}

impl fmt::Display for ConnectionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConnectionError::Peer { code, reason } => write!(f, "peer broke HTTP/2 ({code}): {reason}"),
            ConnectionError::GoneAway { code, debug } if debug.is_empty() => {
                write!(f, "peer closed the connection with {code}")
            }
            ConnectionError::GoneAway { code, debug } => write!(f, "peer closed the connection with {code}: {debug}"),
            ConnectionError::Eof => f.write_str("connection ended without GOAWAY"),
            ConnectionError::TimedOut { reason } => f.write_str(reason),
            ConnectionError::Local { code } => write!(f, "connection closed here with {code}"),
        }
    }
}

impl std::error::Error for ConnectionError {}

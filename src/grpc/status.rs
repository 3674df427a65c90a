//! Status codes, and how HTTP's own outcomes map to them.

use std::fmt;

use crate::h2::ErrorCode;

/// The code of a status (statuscodes.md).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Code {
    /// Not an error.
    Ok = 0,
    /// The call was cancelled, typically by the caller.
    Cancelled = 1,
    /// An error that has no code of its own.
    Unknown = 2,
    /// The caller sent an argument that is wrong whatever the state of the system.
    InvalidArgument = 3,
    /// The deadline passed before the call was done.
    DeadlineExceeded = 4,
    /// Something that was asked for does not exist.
    NotFound = 5,
    /// What was to be made exists already.
    AlreadyExists = 6,
    /// The caller may not do this.
    PermissionDenied = 7,
    /// A quota, a limit or space is used up.
    ResourceExhausted = 8,
    /// The system is not in the state that the call needs.
    FailedPrecondition = 9,
    /// The call was aborted, for instance by a conflict.
    Aborted = 10,
    /// Beyond the valid range.
    OutOfRange = 11,
    /// The method does not exist or is not supported.
    Unimplemented = 12,
    /// An invariant is broken.
    Internal = 13,
    /// The service is not available now; trying again may help.
    Unavailable = 14,
    /// Data is lost or damaged.
    DataLoss = 15,
    /// The caller did not say who it is, or not credibly.
    Unauthenticated = 16,
}

impl Code {
    /// All codes, by number.
    pub const ALL: [Code; 17] = [
        Code::Ok,
        Code::Cancelled,
        Code::Unknown,
        Code::InvalidArgument,
        Code::DeadlineExceeded,
        Code::NotFound,
        Code::AlreadyExists,
        Code::PermissionDenied,
        Code::ResourceExhausted,
        Code::FailedPrecondition,
        Code::Aborted,
        Code::OutOfRange,
        Code::Unimplemented,
        Code::Internal,
        Code::Unavailable,
        Code::DataLoss,
        Code::Unauthenticated,
    ];

    /// Reads the value of grpc-status: digits without sign. What is no known code is UNKNOWN.
    pub fn parse(value: &[u8]) -> Code {
        let text = std::str::from_utf8(value).ok().filter(|t| t.bytes().all(|b| b.is_ascii_digit()));
        let number = text.and_then(|t| t.parse::<usize>().ok());
        number.and_then(|n| Code::ALL.get(n).copied()).unwrap_or(Code::Unknown)
    }

    /// The number on the wire.
    pub fn number(self) -> u8 {
        self as u8
    }

    /// What a response without grpc-status means (http-grpc-status-mapping.md).
    pub fn from_http(status: u16) -> Code {
        match status {
            400 | 431 => Code::Internal,
            401 => Code::Unauthenticated,
            403 => Code::PermissionDenied,
            404 => Code::Unimplemented,
            429 | 502 | 503 | 504 => Code::Unavailable,
            _ => Code::Unknown,
        }
    }

    /// What an RST_STREAM means (PROTOCOL-HTTP2.md, Errors).
    pub fn from_reset(code: ErrorCode) -> Code {
        match code {
            ErrorCode::REFUSED_STREAM => Code::Unavailable,
            ErrorCode::CANCEL => Code::Cancelled,
            ErrorCode::ENHANCE_YOUR_CALM => Code::ResourceExhausted,
            ErrorCode::INADEQUATE_SECURITY => Code::PermissionDenied,
            _ if code.0 <= 13 && code != ErrorCode::STREAM_CLOSED && code != ErrorCode::HTTP_1_1_REQUIRED => {
                Code::Internal
            }
            _ => Code::Unknown,
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Code::Ok => "OK",
            Code::Cancelled => "CANCELLED",
            Code::Unknown => "UNKNOWN",
            Code::InvalidArgument => "INVALID_ARGUMENT",
            Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
            Code::NotFound => "NOT_FOUND",
            Code::AlreadyExists => "ALREADY_EXISTS",
            Code::PermissionDenied => "PERMISSION_DENIED",
            Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
            Code::FailedPrecondition => "FAILED_PRECONDITION",
            Code::Aborted => "ABORTED",
            Code::OutOfRange => "OUT_OF_RANGE",
            Code::Unimplemented => "UNIMPLEMENTED",
            Code::Internal => "INTERNAL",
            Code::Unavailable => "UNAVAILABLE",
            Code::DataLoss => "DATA_LOSS",
            Code::Unauthenticated => "UNAUTHENTICATED",
        })
    }
}

/// The outcome of a call: a code and words for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// What programs act on.
    pub code: Code,
    /// What people read. It may come from the peer and is not to be trusted as markup or terminal text.
    pub message: String,
}

impl Status {
    /// A status of this code.
    pub fn new(code: Code, message: impl Into<String>) -> Status {
        Status { code, message: message.into() }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.message.is_empty() {
            true => write!(f, "{}", self.code),
            false => write!(f, "{}: {}", self.code, self.message.escape_debug()),
        }
    }
}

impl std::error::Error for Status {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_wire() {
        for (i, code) in Code::ALL.iter().enumerate() {
            assert_eq!(usize::from(code.number()), i);
            assert_eq!(Code::parse(i.to_string().as_bytes()), *code);
        }
        for odd in ["", "17", "-1", "+1", "x", "99999999999999999999", "1 "] {
            assert_eq!(Code::parse(odd.as_bytes()), Code::Unknown, "{odd}");
        }
    }

    #[test]
    fn maps_http_and_resets_as_the_documents_say() {
        let http = [(400, 13), (401, 16), (403, 7), (404, 12), (429, 14), (502, 14), (503, 14), (504, 14), (431, 13)];
        for (status, code) in http.into_iter().chain([(200, 2), (500, 2), (302, 2)]) {
            assert_eq!(Code::from_http(status).number(), code, "{status}");
        }
        let resets = [
            (0, 13),
            (1, 13),
            (2, 13),
            (3, 13),
            (4, 13),
            (6, 13),
            (9, 13),
            (10, 13),
            (7, 14),
            (8, 1),
            (11, 8),
            (12, 7),
        ];
        for (reset, code) in resets.into_iter().chain([(5, 2), (13, 2), (99, 2)]) {
            assert_eq!(Code::from_reset(ErrorCode(reset)).number(), code, "{reset}");
        }
    }
}

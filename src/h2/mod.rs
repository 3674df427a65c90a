//! Sans-I/O HTTP/2 (RFC 9113) with HPACK (RFC 7541), both ends.
//!
//! Bytes, timeouts and calls go in; events and bytes come out; time is a parameter. Left out on purpose: server push,
//! priorities (RFC 9113 section 5.3 deprecates them), the HTTP/1.1 upgrade and the CONNECT method's tunnel.
//!
//! `musts.rs` has a table that says which rule of RFC 9113 is tested where.

use std::time::Duration;

mod connection;
mod error;
pub(crate) mod fields;
mod flow;
mod frame;
pub mod hpack;
pub(crate) mod ids;
mod musts;
mod settings;
mod stream;

pub use connection::{Config, Connection, Event, KeepAlive, OpenError, ResetCause, StreamId};
pub use error::{ConnectionError, ErrorCode};
pub use hpack::{Field, Header, Indexing};

/// A point in time: what has passed since an arbitrary origin that all callers of one connection share.
pub type Instant = Duration;

//! Sans-I/O unary gRPC over h2: message prefix, status, metadata, deadlines, both ends.
//!
//! The sections that comments name are those of gRPC's PROTOCOL-HTTP2.md, statuscodes.md and
//! http-grpc-status-mapping.md. Left out on purpose: streaming calls and compression. Neither end offers an encoding, so
//! a compressed message is an error of the peer and no bomb can be unpacked.

mod client;
mod message;
mod metadata;
mod server;
mod status;
mod timeout;

#[cfg(test)]
mod tests;

pub use client::{CallError, CallId, Client, ClientConfig, ClientEvent, Processed, Request, Response, WaitingCall};
pub use metadata::{InvalidMetadata, Metadata};
pub use server::{IncomingRequest, Reply, Server, ServerConfig, ServerEvent};
pub use status::{Code, Status};

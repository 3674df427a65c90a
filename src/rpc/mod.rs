//! Lanes that carry gRPC over real sockets, and the typed calls to a master.

pub mod backoff;
pub mod dial;
pub mod lane;
mod link;
mod poll;
pub mod schema;
pub mod server;
pub mod tls;
mod transport;
mod wake;

pub use wake::Waker;

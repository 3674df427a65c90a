//! Lanes that carry gRPC over real sockets, and the typed calls to a master.

pub mod backoff;
pub mod client;
pub mod convert;
pub mod dial;
pub mod key;
pub mod lane;
mod link;
pub mod master;
pub mod method;
mod poll;
pub mod proxy;
mod race;
mod resolve;
pub mod schema;
pub mod server;
mod socket;
mod target;
pub mod tls;
mod transport;
mod tunnel;
mod wake;
mod wire;

pub use wake::Waker;

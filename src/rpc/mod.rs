//! Lanes that carry gRPC over real sockets, and the typed calls to a master.
//!
//! | file | what |
//! | --- | --- |
//! | `client` | blocking client for other crates, on a lane |
//! | `master`, `method`, `convert`, `schema`, `wire` | typed calls: words of the node to messages and back; paths, deadlines, counts |
//! | `lane`, `link`, `backoff` | one thread's connection that comes back by itself; one connected transport |
//! | `dial`, `resolve`, `race`, `target` | from a URL to a connected socket: names, IPv6 and IPv4 raced |
//! | `proxy`, `tunnel` | which HTTP proxy, and CONNECT through it |
//! | `tls/` | trust, client certificate, time rule, problems in words; both ends |
//! | `transport`, `socket`, `poll`, `wake` | bytes without waiting, and the one place that waits |
//! | `server` | the serving end, for standalone mode |
//! | `key`, `signing` | private keys; whether the master has signed an assignment |

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
pub mod signing;
mod socket;
mod target;
pub mod tls;
mod transport;
mod tunnel;
mod wake;
mod wire;

pub use wake::Waker;

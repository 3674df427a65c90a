//! Addresses of this machine for the tests' own listeners.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU8, Ordering};

/// A loopback address of the caller's own: a port of it that is let go is still free later, while one of 127.0.0.1 may be
/// the other end of somebody's connection by then, or of the node's own to nobody.
pub fn own() -> Ipv4Addr {
    static COUNT: AtomicU8 = AtomicU8::new(0);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 64 + COUNT.fetch_add(1, Ordering::Relaxed) % 128, high, low)
}

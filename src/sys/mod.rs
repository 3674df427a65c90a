//! Clock, lock, signals and other calls to the operating system.

pub mod clock;
pub mod watch;

//! Clock, lock, signals and other calls to the operating system.

pub mod clock;
pub mod ends;
pub mod failpoint;
pub mod lock;
pub mod private;
pub mod process;
pub mod signal;
pub mod text;
pub mod time;
pub mod watch;

//! Fail points: named places at which the process ends as if killed, so that a test drives a crash to the moment that it
//! means instead of hoping for it. `HIVEMIND_FAIL_AT=NAME` names one, `NAME:3` its third passing. And clocks that jump: the
//! file that `HIVEMIND_CLOCKS` names has the seconds by which the boot clock and the wall clock are ahead, or behind.
//!
//! Only builds with debug assertions have them; in the shipped one the functions do nothing and no variable is read.

/// Moments of an attempt's life at the node, in order. The names in the variable are `K0` to `K17`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailPoint {
    /// The answer with an offer was read.
    AnswerRead,
    /// The decision to take it is written, and not synced.
    DecisionWritten,
    /// It is synced; the master does not know.
    DecisionSynced,
    /// The master has the confirmation.
    Confirmed,
    /// An image is being pulled.
    Pulling,
    /// The engine has made the container; its id is not known to the store.
    CreateSent,
    /// The container has its inputs and waits for its start.
    Created,
    /// It was started; nobody has noted that.
    Started,
    /// It was seen running.
    Running,
    /// It has ended; nobody has noted that.
    Exited,
    /// One output file is in the spool, the next one is not.
    HalfCollected,
    /// The final report is durable and about to be sent.
    Collected,
    /// The master has acknowledged the final report; the store does not know.
    Submitted,
    /// The container is removed, its volume is not.
    Cleaning,
    /// The bundle of an attempt that failed is half written. Before `Cleaning` in life; the numbers of the others are those
    /// of the fault matrix.
    Bundling,
    /// The file of a bounded volume has its size and its file system, and no device.
    VolumeAllocated,
    /// It has a device, and no name for the engine.
    VolumeAttached,
    /// The volume is removed at the engine and its device let go; the file is there.
    VolumeDetached,
}

/// Ends the process here if the environment says so.
#[cfg(not(debug_assertions))]
#[inline]
pub fn pass(_: FailPoint) {}

/// A clock that can jump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// Counts suspend.
    Boot,
    /// Tells the time of day.
    Wall,
}

/// The time as the test wants it.
#[cfg(not(debug_assertions))]
#[inline]
pub fn shift(now: std::time::Duration, _: Clock) -> std::time::Duration {
    now
}

#[cfg(debug_assertions)]
pub use armed::{pass, shift};

#[cfg(debug_assertions)]
mod armed {
    use std::fs;
    use std::path::PathBuf;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use rustix::process::{Signal, getpid, kill_process};

    use super::{Clock, FailPoint};

    /// The point, and its passings that are still let through.
    struct Armed {
        name: String,
        left: AtomicU32,
    }

    /// Ends the process here if the environment says so.
    pub fn pass(point: FailPoint) {
        static ARMED: OnceLock<Option<Armed>> = OnceLock::new();
        let armed = ARMED.get_or_init(|| std::env::var("HIVEMIND_FAIL_AT").ok().as_deref().and_then(parse));
        let Some(armed) = armed.as_ref().filter(|armed| armed.name == format!("K{}", point as u8)) else { return };
        if armed.left.fetch_sub(1, Ordering::Relaxed) == 1 {
            // Not an exit: no destructor, no buffer and no other thread gets a word in. The call does not return.
            let _ = kill_process(getpid(), Signal::KILL);
        }
    }

    /// The time as the test wants it; asked for at each reading, so that a clock can jump in the middle of a life.
    pub fn shift(now: Duration, clock: Clock) -> Duration {
        static FILE: OnceLock<Option<PathBuf>> = OnceLock::new();
        let Some(path) = FILE.get_or_init(|| std::env::var_os("HIVEMIND_CLOCKS").map(PathBuf::from)) else {
            return now;
        };
        let text = fs::read_to_string(path).unwrap_or_default();
        let ahead = text.split_whitespace().nth(clock as usize).and_then(|word| word.parse::<i64>().ok()).unwrap_or(0);
        let by = Duration::from_secs(ahead.unsigned_abs());
        if ahead < 0 { now.saturating_sub(by) } else { now.saturating_add(by) }
    }

    fn parse(text: &str) -> Option<Armed> {
        let (name, passing) = text.split_once(':').unwrap_or((text, "1"));
        Some(Armed { name: name.to_owned(), left: AtomicU32::new(passing.parse().ok()?) })
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn names_a_point_and_which_of_its_passings() {
            let read = |text| parse(text).map(|armed| (armed.name, armed.left.into_inner()));
            assert_eq!(read("K5"), Some(("K5".to_owned(), 1)));
            assert_eq!(read("K13:3"), Some(("K13".to_owned(), 3)));
            assert_eq!(read("K5:x"), None);
            assert_eq!((FailPoint::AnswerRead as u8, FailPoint::Cleaning as u8), (0, 13));
        }
    }
}

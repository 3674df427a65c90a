//! How the lives of this worker ended: what tells a crash from a restart, and when to stop trying.
//!
//! A crash is a life that ended without a word within its first minute, or one that the panic hook marked. A later
//! `kill -9`, a power cut after an hour and each orderly end are none. What is known is in one small file of the state
//! folder, written three times a life.

use std::fs;
use std::io;
use std::panic;
use std::path::{Path, PathBuf};
use std::time::Duration;

use log::warn;
use serde::{Deserialize, Serialize};

use crate::coordinator::Past;
use crate::sys::private::write_private;

/// A life that is longer than this was no failed start.
pub const SHORT_LIFE: Duration = Duration::from_secs(60);
/// Crashes in a row beyond the limit of an attempt, which may have been the reason, until the worker tries no more.
const MORE_UNTIL_SAFE: u32 = 2;
/// In the state folder.
const FILE: &str = "lives.json";
/// Beside it, once a thread has panicked.
const PANIC_FILE: &str = "panicked";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Life {
    /// It began and has not lasted for a minute yet.
    Short,
    /// It has lasted for a minute.
    Long,
    /// It ended in order.
    Ended,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    last: Life,
    /// Crashes in a row before this life.
    crashes: u32,
}

/// The present life.
#[derive(Debug)]
pub struct Lives {
    path: PathBuf,
    record: Record,
}

impl Lives {
    /// Begins a life, and says what the ones before mean for it.
    pub fn begin(state_dir: &Path, crash_limit: u32) -> (Self, Past) {
        let path = state_dir.join(FILE);
        let marker = state_dir.join(PANIC_FILE);
        let has_panicked = marker.exists();
        let before = read(&path);
        let has_crashed = before.as_ref().is_some_and(|record| match record.last {
            Life::Short => true,
            Life::Long => has_panicked,
            Life::Ended => false,
        });
        let crashes = match before {
            Some(record) if has_crashed => record.crashes.saturating_add(1),
            _ => 0,
        };
        let lives = Self { path, record: Record { last: Life::Short, crashes } };
        lives.write();
        if has_panicked && let Err(error) = fs::remove_file(&marker) {
            warn!("can't remove {}: {error}", marker.display());
        }
        mark_panics(marker);
        let safe_because = (crashes >= crash_limit.saturating_add(MORE_UNTIL_SAFE)).then(|| {
            format!(
                "the worker crashed {crashes} times in a row: it only delivers what it has, and leaves containers alone. \
                 Read its log, then restart it"
            )
        });
        (lives, Past { has_crashed, crash_limit, safe_because })
    }

    /// It has lasted for [`SHORT_LIFE`].
    pub fn has_lasted(&mut self) {
        self.record.last = Life::Long;
        self.write();
    }

    /// It ends in order.
    pub fn end(mut self) {
        self.record.last = Life::Ended;
        self.write();
    }

    /// A disk that fails here fails the store too, which says so louder.
    fn write(&self) {
        let written = serde_json::to_vec(&self.record).map_err(|error| error.to_string());
        let written = written.and_then(|json| write_private(&self.path, &json).map_err(|error| error.to_string()));
        if let Err(error) = written {
            warn!("can't note how this worker fares: {error}");
        }
    }
}

/// What can't be read says nothing.
fn read(path: &Path) -> Option<Record> {
    match fs::read(path) {
        Ok(json) => serde_json::from_slice(&json).ok(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            warn!("can't read {}: {error}", path.display());
            None
        }
    }
}

fn mark_panics(marker: PathBuf) {
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        // The panic itself is told next, whatever becomes of the mark.
        let _ = fs::write(&marker, "");
        before(info);
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Begins a life after one that ended so, and says whether that was a crash and whether this one is safe.
    fn after(folder: &Path, last: Life, panicked: bool) -> (bool, bool) {
        let crashes = read(&folder.join(FILE)).map_or(0, |record| record.crashes);
        fs::write(folder.join(FILE), serde_json::to_vec(&Record { last, crashes }).unwrap()).unwrap();
        if panicked {
            fs::write(folder.join(PANIC_FILE), "").unwrap();
        }
        let (_, past) = Lives::begin(folder, 3);
        assert!(!folder.join(PANIC_FILE).exists());
        (past.has_crashed, past.safe_because.is_some())
    }

    #[test]
    fn short_lives_and_panics_are_crashes_and_five_in_a_row_are_too_many() {
        let folder = std::env::temp_dir().join(format!("hivemind-lives-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        let (_, past) = Lives::begin(&folder, 3);
        assert!(!past.has_crashed && past.safe_because.is_none(), "there was none before");
        assert_eq!(after(&folder, Life::Ended, false), (false, false));
        assert_eq!(after(&folder, Life::Ended, true), (false, false), "what panicked while it ended did end");
        assert_eq!(after(&folder, Life::Long, false), (false, false));
        for _ in 0..2 {
            assert_eq!(after(&folder, Life::Short, false), (true, false));
            assert_eq!(after(&folder, Life::Long, true), (true, false));
        }
        assert_eq!(after(&folder, Life::Short, false), (true, true));
        assert_eq!(after(&folder, Life::Short, false), (true, true));
        assert_eq!(after(&folder, Life::Ended, false), (false, false), "an orderly end begins anew");
        fs::write(folder.join(FILE), "{").unwrap();
        let (lives, past) = Lives::begin(&folder, 3);
        assert!(!past.has_crashed);
        lives.end();
        assert_eq!(read(&folder.join(FILE)), Some(Record { last: Life::Ended, crashes: 0 }));
        fs::remove_dir_all(folder).unwrap();
    }
}

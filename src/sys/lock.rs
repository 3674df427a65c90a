//! One worker per state folder.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fmt, process, thread};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

/// Name of the file in the state folder. It stays when the worker ends: the lock is what counts, not the file.
const NAME: &str = "lock";
/// Longest wait for the last worker's children. One that it was just starting when it was killed has its open files, and so
/// the lock, until it executes its program.
const HANDOVER: Duration = Duration::from_secs(2);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(20);
/// A pid and a line end.
const MAX_PID_BYTES: u64 = 16;

/// Held as long as the worker runs; the kernel drops it with the process, however that ends.
#[derive(Debug)]
pub struct StateLock {
    _file: File,
}

/// Why the state folder isn't ours.
#[derive(Debug)]
pub enum LockError {
    /// Another worker has it.
    Held {
        /// The lock file.
        path: PathBuf,
        /// The other worker, when its number could be read.
        pid: Option<u32>,
    },
    /// The lock file can't be used.
    Io {
        /// The lock file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl fmt::Display for LockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Held { path, pid } => {
                f.write_str("another worker")?;
                if let Some(pid) = pid {
                    write!(f, " (process {pid})")?;
                }
                write!(f, " uses this state folder: it holds {}", path.display())
            }
            Self::Io { path, .. } => write!(f, "can't lock {}", path.display()),
        }
    }
}

impl std::error::Error for LockError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Held { .. } => None,
            Self::Io { source, .. } => Some(source),
        }
    }
}

impl StateLock {
    /// Takes the lock of a state folder that exists, and writes our process number into it for people.
    ///
    /// # Errors
    /// Another process has it, and keeps it for two seconds.
    pub fn acquire(dir: &Path) -> Result<Self, LockError> {
        Self::acquire_within(dir, HANDOVER)
    }

    fn acquire_within(dir: &Path, patience: Duration) -> Result<Self, LockError> {
        let path = dir.join(NAME);
        let fault = |source: io::Error| LockError::Io { path: path.clone(), source };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(fault)?;
        let begin = Instant::now();
        loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(Errno::WOULDBLOCK) if begin.elapsed() < patience => thread::sleep(PAUSE),
                Err(Errno::WOULDBLOCK) => {
                    let pid = read_pid(&file);
                    return Err(LockError::Held { path, pid });
                }
                Err(errno) => return Err(fault(errno.into())),
            }
        }
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", process::id()))
            .map_err(fault)?;
        Ok(Self { _file: file })
    }
}

fn read_pid(file: &File) -> Option<u32> {
    let mut text = String::new();
    file.take(MAX_PID_BYTES).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_worker_is_told_who_has_the_folder() {
        let dir = std::env::temp_dir().join(format!("hivemind-lock-{}", process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let lock = StateLock::acquire(&dir).unwrap();
        let error = StateLock::acquire_within(&dir, Duration::ZERO).unwrap_err();
        assert!(error.to_string().contains(&format!("process {}", process::id())), "{error}");
        drop(lock);
        StateLock::acquire(&dir).unwrap();
        let missing = StateLock::acquire(&dir.join("none")).unwrap_err();
        assert!(matches!(missing, LockError::Io { .. }));
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn what_a_killed_worker_was_starting_holds_up_the_next_one_for_a_moment_only() {
        let dir = std::env::temp_dir().join(format!("hivemind-handover-{}", process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let lock = StateLock::acquire(&dir).unwrap();
        // What a fork does.
        let inherited = lock._file.try_clone().unwrap();
        drop(lock);
        assert!(matches!(StateLock::acquire_within(&dir, Duration::ZERO), Err(LockError::Held { .. })));
        let next = {
            let dir = dir.clone();
            thread::spawn(move || StateLock::acquire_within(&dir, Duration::from_secs(60)).is_ok())
        };
        drop(inherited);
        assert!(next.join().unwrap());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}

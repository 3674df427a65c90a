//! Bundles of attempts that failed: one archive each in a folder of the state folder, within a budget of bytes and age.
//!
//! A bundle is born under another name and renamed when it is whole, so that a crash leaves no half of one; what it left
//! goes at the next start. Bundles are a help for people and no duty: where the disk is short, they go first. What is in
//! one is the sandbox's business.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use super::files;
use crate::node::id::{AttemptKey, Id};

/// Name of their folder in the state folder.
pub const BUNDLES: &str = "bundles";
/// Of a whole bundle.
const WHOLE: &str = ".tar";
/// Of one that is being written.
const HALF: &str = "new";
/// Below this much free room none is made, and the oldest go: the room is for tasks and their results.
const FLOOR_BYTES: u64 = 256 << 20;

/// The owner's choices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BundleLimits {
    /// All bundles together; 0: none are kept.
    pub bytes: u64,
    /// An older one goes.
    pub age: Duration,
}

impl Default for BundleLimits {
    fn default() -> Self {
        Self { bytes: 256 << 20, age: Duration::from_secs(7 * 86_400) }
    }
}

/// A bundle that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BundleFile {
    /// Whose.
    pub key: AttemptKey,
    /// Its size.
    pub bytes: u64,
    /// When it was made, by the wall clock.
    pub made: SystemTime,
}

/// The folder of bundles.
#[derive(Debug)]
pub struct Bundles {
    folder: PathBuf,
    limits: BundleLimits,
    /// Held while the folder changes.
    change: Mutex<()>,
}

impl Bundles {
    /// Those of a state folder, which this process has locked. Removes what a crash has left, and what is over the limits.
    pub fn open(state: &Path, limits: BundleLimits) -> Self {
        let bundles = Self { folder: state.join(BUNDLES), limits, change: Mutex::new(()) };
        for path in bundles.entries() {
            if path.extension().is_some_and(|extension| extension == HALF) {
                files::remove_or_say(&path);
            }
        }
        for gone in bundles.tidy() {
            log::info!("removed the bundle of {}: {}", gone.0.key, gone.1);
        }
        bundles
    }

    /// Whether any are kept.
    pub fn is_on(&self) -> bool {
        self.limits.bytes > 0
    }

    /// The longest that one may be, whatever else is kept.
    pub fn max_bytes(&self) -> u64 {
        self.limits.bytes
    }

    /// Keeps what `fill` writes as the attempt's bundle; older ones make room for it.
    ///
    /// # Errors
    /// Nothing is kept: it can't be written, is over the budget alone, or the disk is short.
    pub fn keep(&self, key: &AttemptKey, fill: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
        files::make_folder(&self.folder)?;
        self.tidy();
        if self.free_bytes() < FLOOR_BYTES {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "the disk is too full for bundles"));
        }
        let path = self.path(key);
        let half = path.with_extension(HALF);
        files::remove_if_there(&half)?;
        let mut file = files::create_new(&half)?;
        let kept = fill(&mut file).and_then(|()| file.sync_all()).and_then(|()| self.publish(&file, &half, &path));
        if kept.is_err() {
            files::remove_or_say(&half);
        }
        kept
    }

    fn publish(&self, file: &File, half: &Path, path: &Path) -> io::Result<()> {
        let bytes = file.metadata()?.len();
        if bytes > self.limits.bytes {
            return Err(io::Error::other("it is over the budget of all bundles"));
        }
        let _change = self.lock();
        for (bundle, _) in self.over(self.limits.bytes - bytes) {
            files::remove_or_say(&self.path(&bundle.key));
        }
        fs::rename(half, path)?;
        files::sync_folder(&self.folder)
    }

    /// Removes what is over a limit; what that was, and why.
    pub fn tidy(&self) -> Vec<(BundleFile, String)> {
        let _change = self.lock();
        let over = self.over(self.limits.bytes);
        over.into_iter().filter(|(bundle, _)| files::remove_or_say(&self.path(&bundle.key))).collect()
    }

    /// What [`Self::tidy`] would remove now.
    pub fn untidy(&self) -> Vec<(BundleFile, String)> {
        self.over(self.limits.bytes)
    }

    /// The bundle of an attempt, and its size.
    ///
    /// # Errors
    /// There is none, or it can't be read.
    pub fn read(&self, key: &AttemptKey) -> io::Result<(File, u64)> {
        let file = File::open(self.path(key))?;
        let bytes = file.metadata()?.len();
        Ok((file, bytes))
    }

    /// All that are kept, oldest first.
    pub fn list(&self) -> Vec<BundleFile> {
        let mut bundles: Vec<BundleFile> = self.entries().iter().filter_map(|path| bundle(path)).collect();
        bundles.sort_by(|one, other| (one.made, &one.key).cmp(&(other.made, &other.key)));
        bundles
    }

    fn over(&self, room: u64) -> Vec<(BundleFile, String)> {
        over(self.list(), room, self.limits.age, SystemTime::now(), self.free_bytes())
    }

    /// Of a folder that can't be asked, as much as one likes.
    fn free_bytes(&self) -> u64 {
        let free = rustix::fs::statvfs(&self.folder).ok().and_then(|stat| stat.f_bavail.checked_mul(stat.f_frsize));
        free.unwrap_or(u64::MAX)
    }

    fn path(&self, key: &AttemptKey) -> PathBuf {
        self.folder.join(format!("{}.{}{WHOLE}", key.task, key.attempt))
    }

    fn entries(&self) -> Vec<PathBuf> {
        fs::read_dir(&self.folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.change.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What must go so that `room` bytes are not passed, none is too old, and the disk has its floor: oldest first. A file from
/// the future, by a clock that was set back, is as good as new.
fn over(bundles: Vec<BundleFile>, room: u64, age: Duration, now: SystemTime, free: u64) -> Vec<(BundleFile, String)> {
    let mut total = bundles.iter().fold(0u64, |sum, bundle| sum.saturating_add(bundle.bytes));
    let mut free = free;
    let mut over = Vec::new();
    for bundle in bundles {
        let is_old = now.duration_since(bundle.made).is_ok_and(|passed| passed > age);
        let reason = if is_old {
            "over the age limit"
        } else if total > room {
            "over the budget"
        } else if free < FLOOR_BYTES {
            "the disk is nearly full"
        } else {
            continue;
        };
        total = total.saturating_sub(bundle.bytes);
        free = free.saturating_add(bundle.bytes);
        over.push((bundle, reason.to_owned()));
    }
    over
}

/// `TASK.ATTEMPT.tar`: a task's id may have dots too, so it is read from the end.
fn bundle(path: &Path) -> Option<BundleFile> {
    let stem = path.file_name()?.to_str()?.strip_suffix(WHOLE)?;
    let (task, attempt) = stem.rsplit_once('.')?;
    let key = AttemptKey { task: Id::parse(task).ok()?, attempt: attempt.parse().ok()? };
    let metadata = fs::symlink_metadata(path).ok().filter(fs::Metadata::is_file)?;
    Some(BundleFile { key, bytes: metadata.len(), made: metadata.modified().ok()? })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::fs::PermissionsExt;

    use super::super::testing::Folder;
    use super::*;

    fn key(task: &str) -> AttemptKey {
        AttemptKey { task: Id::parse(task).unwrap(), attempt: 1 }
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn names(over: &[(BundleFile, String)]) -> Vec<(&str, &str)> {
        over.iter().map(|(bundle, why)| (bundle.key.task.as_str(), why.as_str())).collect()
    }

    #[test]
    fn the_oldest_go_until_the_rest_is_within_the_limits() {
        let bundle = |task: &str, bytes, made| BundleFile { key: key(task), bytes, made: at(made) };
        let all = || vec![bundle("a", 10, 0), bundle("b", 20, 50), bundle("c", 30, 90), bundle("later", 1, 500)];
        let judge = |room, age, free| over(all(), room, Duration::from_secs(age), at(100), free);
        assert_eq!(names(&judge(61, 100, u64::MAX)), []);
        assert_eq!(names(&judge(60, 100, u64::MAX)), [("a", "over the budget")]);
        assert_eq!(names(&judge(31, 100, u64::MAX)), [("a", "over the budget"), ("b", "over the budget")]);
        assert_eq!(names(&judge(61, 49, u64::MAX)), [("a", "over the age limit"), ("b", "over the age limit")]);
        let few = FLOOR_BYTES - 25;
        assert_eq!(names(&judge(61, 100, few)), [("a", "the disk is nearly full"), ("b", "the disk is nearly full")]);
        assert_eq!(judge(0, 100, u64::MAX).len(), 4);
    }

    #[test]
    fn keeps_whole_private_ones_and_makes_room() {
        let folder = Folder::new();
        let limits = BundleLimits { bytes: 100, age: Duration::from_secs(60) };
        let bundles = Bundles::open(folder.path(), limits);
        let fill = |bytes: usize| move |file: &mut File| file.write_all(&vec![7; bytes]);
        bundles.keep(&key("a.1"), fill(60)).unwrap();
        let path = folder.path().join("bundles/a.1.1.tar");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
        assert!(bundles.keep(&key("huge"), fill(101)).is_err());
        assert!(bundles.keep(&key("torn"), |_| Err(io::Error::other("no"))).is_err());
        assert_eq!(bundles.list().iter().map(|bundle| bundle.key.clone()).collect::<Vec<_>>(), [key("a.1")]);
        bundles.keep(&key("b"), fill(60)).unwrap();
        assert_eq!(bundles.list().iter().map(|bundle| bundle.key.clone()).collect::<Vec<_>>(), [key("b")]);
        let (mut file, bytes) = bundles.read(&key("b")).unwrap();
        let mut content = Vec::new();
        file.read_to_end(&mut content).unwrap();
        assert_eq!((content, bytes), (vec![7; 60], 60));
        assert_eq!(bundles.read(&key("a.1")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_start_removes_halves_and_what_is_over() {
        let folder = Folder::new();
        let path = folder.path().join(BUNDLES);
        fs::create_dir(&path).unwrap();
        for name in ["half.1.new", "old.1.tar", "young.1.tar", "strange"] {
            fs::write(path.join(name), b"x").unwrap();
        }
        let old = File::options().write(true).open(path.join("old.1.tar")).unwrap();
        old.set_modified(SystemTime::now() - Duration::from_secs(3_600)).unwrap();
        let left = |limits| {
            let bundles = Bundles::open(folder.path(), limits);
            let mut names: Vec<_> = bundles.entries().iter().map(|path| path.file_name().unwrap().to_owned()).collect();
            names.sort();
            names
        };
        let limits = BundleLimits { bytes: 100, age: Duration::from_secs(60) };
        assert_eq!(left(limits), ["strange", "young.1.tar"]);
        assert_eq!(left(BundleLimits { bytes: 0, ..limits }), ["strange"]);
    }
}

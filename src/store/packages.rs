//! Which sets of installed packages there are at the engine: a small file each, named by what the set was made from. The
//! packages themselves are in a volume of the engine's, and only a volume that a file names counts: half a set, of an install
//! that was broken off, has none and goes with its attempt.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::files;
use crate::sys::text::{from_hex, hex};

/// Name of their folder in the state folder.
const PACKAGES: &str = "packages";
/// Of one file.
const MAX_FILE_BYTES: u64 = 4 << 10;
/// A set that was taken so short ago stays, whatever the limits: a task may be about to start with it.
const MIN_UNUSED: Duration = Duration::from_secs(3_600);

/// What a set was made from, hashed.
pub type SetKey = [u8; 32];

/// The owner's choices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackageLimits {
    /// All sets together.
    pub bytes: u64,
    /// One that was not used for so long goes.
    pub age: Duration,
}

impl Default for PackageLimits {
    fn default() -> Self {
        Self { bytes: 4 << 30, age: Duration::from_secs(30 * 86_400) }
    }
}

/// A set that is whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Set {
    volume: String,
    bytes: u64,
}

/// A set that is over a limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OldSet {
    /// For [`Packages::forget`].
    pub key: SetKey,
    /// Its volume.
    pub volume: String,
    /// Why it goes.
    pub reason: String,
}

/// See the module.
#[derive(Debug)]
pub struct Packages {
    folder: PathBuf,
    limits: PackageLimits,
    /// Sets that are being installed.
    busy: Mutex<BTreeSet<SetKey>>,
}

/// The right to make a set, until it is dropped.
#[derive(Debug)]
pub struct Claim {
    packages: Arc<Packages>,
    key: SetKey,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.packages.busy().remove(&self.key);
    }
}

/// What a look for a set finds.
#[derive(Debug)]
pub enum Look {
    /// It is in this volume, if the engine still has that.
    There(String),
    /// Who asked is to make it.
    Yours(Claim),
    /// Another task makes it now.
    Busy,
}

impl Packages {
    /// Those of a state folder, which this process has locked.
    pub fn open(state: &Path, limits: PackageLimits) -> Arc<Self> {
        Arc::new(Self { folder: state.join(PACKAGES), limits, busy: Mutex::default() })
    }

    /// Looks for a set, which is used by that.
    pub fn look(self: &Arc<Self>, key: &SetKey) -> Look {
        let mut busy = self.busy();
        if let Some(set) = read(&self.path(key)) {
            // Only the order in which they go depends on it.
            let _ = File::options().write(true).open(self.path(key)).map(|file| file.set_modified(SystemTime::now()));
            return Look::There(set.volume);
        }
        if !busy.insert(*key) {
            return Look::Busy;
        }
        Look::Yours(Claim { packages: Arc::clone(self), key: *key })
    }

    /// From now on the set is there.
    ///
    /// # Errors
    /// The disk is at fault.
    pub fn publish(&self, claim: &Claim, volume: &str, bytes: u64) -> io::Result<()> {
        files::make_folder(&self.folder)?;
        let text = serde_json::to_vec(&Set { volume: volume.to_owned(), bytes }).map_err(io::Error::other)?;
        files::replace(&self.path(&claim.key), &text)
    }

    /// The set is not there any more, or is about to go: before its volume, so that no task gets half of one.
    ///
    /// # Errors
    /// The disk is at fault.
    pub fn forget(&self, key: &SetKey) -> io::Result<()> {
        files::remove_if_there(&self.path(key))
    }

    /// Whether a volume has a set that is whole.
    pub fn has_volume(&self, volume: &str) -> bool {
        self.sets().iter().any(|(_, set, _)| set.volume == volume)
    }

    /// What is over a limit.
    pub fn over(&self) -> Vec<OldSet> {
        over(self.sets(), self.limits, SystemTime::now())
    }

    /// Oldest use first.
    fn sets(&self) -> Vec<(SetKey, Set, SystemTime)> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let mut sets: Vec<_> = entries
            .filter_map(|entry| {
                let key = from_hex(entry.file_name().to_str()?)?;
                Some((key, read(&entry.path())?, entry.metadata().ok()?.modified().ok()?))
            })
            .collect();
        sets.sort_by_key(|(key, _, used)| (*used, *key));
        sets
    }

    fn busy(&self) -> MutexGuard<'_, BTreeSet<SetKey>> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, key: &SetKey) -> PathBuf {
        self.folder.join(hex(key))
    }
}

/// One that can't be read is none: its volume goes, and it is installed anew.
fn read(path: &Path) -> Option<Set> {
    serde_json::from_slice(&files::read_bounded(path, MAX_FILE_BYTES).ok()?).ok()
}

fn over(sets: Vec<(SetKey, Set, SystemTime)>, limits: PackageLimits, now: SystemTime) -> Vec<OldSet> {
    let mut total = sets.iter().fold(0u64, |sum, (_, set, _)| sum.saturating_add(set.bytes));
    let mut over = Vec::new();
    for (key, set, used) in sets {
        let unused = now.duration_since(used).unwrap_or_default();
        let reason = if unused < MIN_UNUSED {
            continue;
        } else if unused > limits.age {
            "packages that were not used for long"
        } else if total > limits.bytes {
            "packages over the budget"
        } else {
            continue;
        };
        total = total.saturating_sub(set.bytes);
        over.push(OldSet { key, volume: set.volume, reason: reason.to_owned() });
    }
    over
}

#[cfg(test)]
mod tests {
    use super::super::testing::Folder;
    use super::*;

    #[test]
    fn one_makes_a_set_and_others_wait_until_it_is_whole() {
        let folder = Folder::new();
        let packages = Packages::open(folder.path(), PackageLimits::default());
        let Look::Yours(claim) = packages.look(&[1; 32]) else { panic!("nobody has it") };
        assert!(matches!(packages.look(&[1; 32]), Look::Busy));
        assert!(matches!(packages.look(&[2; 32]), Look::Yours(_)));
        drop(claim);
        let Look::Yours(claim) = packages.look(&[1; 32]) else { panic!("the other one gave up") };
        assert!(!packages.has_volume("v"));
        packages.publish(&claim, "v", 10).unwrap();
        assert!(packages.has_volume("v") && !packages.has_volume("w"));
        let again = Packages::open(folder.path(), PackageLimits::default());
        assert!(matches!(again.look(&[1; 32]), Look::There(volume) if volume == "v"));
        fs::write(folder.path().join("packages").join(hex(&[1; 32])), b"{\"volume\": 1").unwrap();
        assert!(!again.has_volume("v"), "a record that rotted is none");
        again.forget(&[1; 32]).unwrap();
    }

    #[test]
    fn sets_over_a_limit_go_but_not_while_they_may_be_in_use() {
        let at = |hours: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(3_600 * hours);
        let set = |name: u8, used| ([name; 32], Set { volume: name.to_string(), bytes: 10 }, at(used));
        let judge = |bytes, hours: u64| {
            let limits = PackageLimits { bytes, age: Duration::from_secs(3_600 * hours) };
            let gone = over(vec![set(1, 0), set(2, 50), set(3, 100)], limits, at(100));
            gone.into_iter().map(|set| set.volume).collect::<Vec<_>>()
        };
        assert_eq!(judge(30, 100), [""; 0]);
        assert_eq!(judge(29, 100), ["1"]);
        assert_eq!(judge(30, 99), ["1"]);
        assert_eq!(judge(0, 1), ["1", "2"]);
    }
}

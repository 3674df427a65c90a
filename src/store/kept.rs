//! Files that tasks have put out, kept for later tasks of the same owner: by content, within a budget of bytes. The one that
//! was not used for the longest time goes first.
//!
//! A file is born under another name and renamed when its digest is known, so that a crash leaves no half of one under its
//! name; and since it is not synced, it is checked against that name whenever it is used. Owners are apart: what one has put
//! out is not there for another, whatever digest it names.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use ring::digest::{Context, SHA256};

use super::files;
use crate::node::id::Id;
use crate::sys::text::{from_hex, hex};

/// Name of their folder in the state folder.
const KEPT: &str = "kept";
/// Of one that is being written.
const HALF: &str = "new";
/// Below this much free room nothing is kept, and the oldest go: the room is for tasks and their results.
const FLOOR_BYTES: u64 = 256 << 20;
/// Read at a time.
const PIECE: usize = 64 << 10;

/// A kept file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct KeptFile {
    path: PathBuf,
    bytes: u64,
    used: SystemTime,
}

/// The folder of kept files.
#[derive(Debug)]
pub struct Kept {
    folder: PathBuf,
    budget: u64,
    /// Held while the folder changes.
    change: Mutex<()>,
    next: AtomicU64,
}

/// A file that is being written. Unless it is published it goes with the value; who holds it open can go on reading.
#[derive(Debug)]
pub struct HalfFile {
    file: File,
    path: PathBuf,
}

impl HalfFile {
    /// Another handle of it, for reading and writing.
    ///
    /// # Errors
    /// The system's.
    pub fn file(&self) -> io::Result<File> {
        self.file.try_clone()
    }
}

impl Write for HalfFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for HalfFile {
    fn drop(&mut self) {
        // Of a published one there is no file of this name.
        files::remove_or_say(&self.path);
    }
}

impl Kept {
    /// Those of a state folder, which this process has locked. Removes what a crash has left, and what is over the budget.
    pub fn open(state: &Path, budget: u64) -> Self {
        let kept = Self { folder: state.join(KEPT), budget, change: Mutex::new(()), next: AtomicU64::new(0) };
        for path in entries(&kept.folder) {
            if path.extension().is_some_and(|extension| extension == HALF) {
                files::remove_or_say(&path);
            }
        }
        kept.tidy();
        kept
    }

    /// Whether any are kept.
    pub fn is_on(&self) -> bool {
        self.budget > 0
    }

    /// A file to write to.
    ///
    /// # Errors
    /// The disk is short or at fault.
    pub fn begin(&self) -> io::Result<HalfFile> {
        files::make_folder(&self.folder)?;
        if self.free_bytes() < FLOOR_BYTES {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "the disk is too full to keep files"));
        }
        let path = self.folder.join(format!("{}.{HALF}", self.next.fetch_add(1, Ordering::Relaxed)));
        files::remove_if_there(&path)?;
        let file = files::open_rewritable(&path)?;
        Ok(HalfFile { file, path })
    }

    /// Keeps what was written, which has this digest; others make room for it. One that is over the budget alone is not
    /// kept.
    ///
    /// # Errors
    /// The disk is at fault.
    pub fn publish(&self, owner: &Id, sha256: &[u8; 32], half: HalfFile) -> io::Result<()> {
        let bytes = half.file.metadata()?.len();
        if bytes > self.budget {
            return Ok(());
        }
        let _change = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        for file in self.over(self.budget - bytes) {
            files::remove_or_say(&file.path);
        }
        let path = self.path(owner, sha256);
        if let Some(folder) = path.parent() {
            files::make_folder(folder)?;
        }
        // By the same clock as a use: the kernel's own stamps lag behind it.
        let _ = half.file.set_modified(SystemTime::now());
        fs::rename(&half.path, &path)
    }

    /// The owner's file with this digest and size, checked by reading all of it, at its beginning. One that is not what
    /// its name says goes.
    ///
    /// # Errors
    /// `is_stopped` said so, or it can't be read.
    pub fn find(
        &self,
        owner: &Id,
        sha256: &[u8; 32],
        size: u64,
        is_stopped: &dyn Fn() -> bool,
    ) -> io::Result<Option<File>> {
        let path = self.path(owner, sha256);
        let mut file = match File::options().read(true).write(true).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        if file.metadata()?.len() != size || digest_of(&mut file, is_stopped)? != *sha256 {
            log::warn!("{} is not what it was and is removed", path.display());
            files::remove_or_say(&path);
            return Ok(None);
        }
        file.seek(SeekFrom::Start(0))?;
        // Only the order in which they go depends on it.
        let _ = file.set_modified(SystemTime::now());
        Ok(Some(file))
    }

    /// Removes what is over the budget, or keeps the disk from its floor.
    pub fn tidy(&self) {
        let _change = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        for file in self.over(self.budget) {
            if files::remove_or_say(&file.path) {
                log::info!(
                    "removed the kept file {}: over the budget, or the disk is nearly full",
                    file.path.display()
                );
            }
        }
    }

    fn over(&self, room: u64) -> Vec<KeptFile> {
        over(self.list(), room, self.free_bytes())
    }

    fn list(&self) -> Vec<KeptFile> {
        let folders = entries(&self.folder).into_iter().filter(|path| path.is_dir());
        let files = folders.flat_map(|folder| entries(&folder)).filter_map(|path| {
            let name = path.file_name()?.to_str()?;
            from_hex::<32>(name)?;
            let metadata = fs::symlink_metadata(&path).ok().filter(fs::Metadata::is_file)?;
            Some(KeptFile { bytes: metadata.len(), used: metadata.modified().ok()?, path })
        });
        let mut files: Vec<KeptFile> = files.collect();
        files.sort_by(|one, other| (one.used, &one.path).cmp(&(other.used, &other.path)));
        files
    }

    fn free_bytes(&self) -> u64 {
        let free = rustix::fs::statvfs(&self.folder).ok().and_then(|stat| stat.f_bavail.checked_mul(stat.f_frsize));
        free.unwrap_or(u64::MAX)
    }

    fn path(&self, owner: &Id, sha256: &[u8; 32]) -> PathBuf {
        self.folder.join(owner.as_str()).join(hex(sha256))
    }
}

/// What must go so that `room` bytes are not passed and the disk has its floor: the first of the list first.
fn over(files: Vec<KeptFile>, room: u64, free: u64) -> Vec<KeptFile> {
    let mut total = files.iter().fold(0u64, |sum, file| sum.saturating_add(file.bytes));
    let mut free = free;
    let is_over = |file: &KeptFile| {
        let must_go = total > room || free < FLOOR_BYTES;
        if must_go {
            total = total.saturating_sub(file.bytes);
            free = free.saturating_add(file.bytes);
        }
        must_go
    };
    files.into_iter().filter(is_over).collect()
}

fn digest_of(file: &mut File, is_stopped: &dyn Fn() -> bool) -> io::Result<[u8; 32]> {
    let mut sum = Context::new(&SHA256);
    let mut piece = vec![0; PIECE];
    loop {
        if is_stopped() {
            return Err(io::Error::other("released"));
        }
        match file.read(&mut piece)? {
            0 => break,
            count => sum.update(&piece[..count]),
        }
    }
    Ok(sum.finish().as_ref().try_into().unwrap_or_default())
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    use super::super::testing::Folder;
    use super::*;

    fn id(text: &str) -> Id {
        Id::parse(text).unwrap()
    }

    fn sum(bytes: &[u8]) -> [u8; 32] {
        ring::digest::digest(&SHA256, bytes).as_ref().try_into().unwrap()
    }

    fn keep(kept: &Kept, owner: &str, bytes: &[u8]) {
        let mut half = kept.begin().unwrap();
        half.write_all(bytes).unwrap();
        kept.publish(&id(owner), &sum(bytes), half).unwrap();
    }

    fn read(kept: &Kept, owner: &str, bytes: &[u8]) -> Option<Vec<u8>> {
        let mut file = kept.find(&id(owner), &sum(bytes), bytes.len() as u64, &|| false).unwrap()?;
        let mut content = Vec::new();
        file.read_to_end(&mut content).unwrap();
        Some(content)
    }

    #[test]
    fn an_owner_finds_its_own_files_and_nobody_elses() {
        let folder = Folder::new();
        let kept = Kept::open(folder.path(), 100);
        keep(&kept, "ada", b"hello");
        assert_eq!(read(&kept, "ada", b"hello").as_deref(), Some(&b"hello"[..]));
        assert_eq!(read(&kept, "eve", b"hello"), None);
        assert_eq!(read(&kept, "ada", b"other"), None);
        let path = folder.path().join("kept/ada").join(hex(&sum(b"hello")));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
        drop(kept.begin().unwrap());
        assert_eq!(entries(&folder.path().join("kept")), [folder.path().join("kept/ada")]);
    }

    #[test]
    fn a_file_that_rots_is_not_used_and_goes() {
        let folder = Folder::new();
        let kept = Kept::open(folder.path(), 100);
        for wrong in [&b"hellO"[..], b"hell", b""] {
            keep(&kept, "ada", b"hello");
            let path = folder.path().join("kept/ada").join(hex(&sum(b"hello")));
            fs::write(&path, wrong).unwrap();
            assert_eq!(read(&kept, "ada", b"hello"), None);
            assert!(!path.exists());
        }
        keep(&kept, "ada", b"hello");
        assert!(kept.find(&id("ada"), &sum(b"hello"), 5, &|| true).is_err(), "released");
    }

    #[test]
    fn the_one_that_was_not_used_for_the_longest_time_makes_room() {
        let folder = Folder::new();
        let kept = Kept::open(folder.path(), 10);
        let path = |bytes: &[u8]| folder.path().join("kept/ada").join(hex(&sum(bytes)));
        for (age, bytes) in [(30, b"one."), (20, b"two.")] {
            keep(&kept, "ada", bytes);
            let file = File::options().write(true).open(path(bytes)).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
        }
        assert!(read(&kept, "ada", b"one.").is_some(), "used now");
        keep(&kept, "ada", b"three");
        assert_eq!((path(b"one.").exists(), path(b"two.").exists(), path(b"three").exists()), (true, false, true));
        keep(&kept, "ada", b"more than the budget");
        assert_eq!(kept.list().len(), 2);
        // A half one of a crash goes at the start, and so does what a smaller budget has no room for.
        fs::write(folder.path().join("kept/7.new"), b"half").unwrap();
        let kept = Kept::open(folder.path(), 5);
        assert_eq!(kept.list().into_iter().map(|file| file.path).collect::<Vec<_>>(), [path(b"three")]);
        assert!(!folder.path().join("kept/7.new").exists());
        assert_eq!(over(kept.list(), 5, FLOOR_BYTES - 1).len(), 1, "the disk is nearly full");
    }
}

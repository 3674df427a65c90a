//! Private files and folders, synced: the few file operations that the store builds on. Names and formats are elsewhere.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use ring::digest::{Digest, SHA256, digest};
use rustix::fs::{FallocateFlags, fallocate};

/// Of each folder.
const FOLDER_MODE: u32 = 0o700;
/// Of each file.
const FILE_MODE: u32 = 0o600;
/// Pieces in which the reserve is written where the file system can't allocate.
const ZEROS: usize = 64 << 10;
/// Of something that can't be read.
const MAX_READS: u32 = 3;

/// Makes a folder that only its owner can enter; one that is there is kept.
pub(super) fn make_folder(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(FOLDER_MODE).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// Takes access from group and others. Tells whether they had any.
pub(super) fn make_private(path: &Path) -> io::Result<bool> {
    let metadata = std::fs::metadata(path)?;
    let is_open = metadata.mode() & 0o077 != 0;
    if is_open {
        let mode = if metadata.is_dir() { FOLDER_MODE } else { FILE_MODE };
        std::fs::set_permissions(path, Permissions::from_mode(mode))?;
    }
    Ok(is_open)
}

/// Whether the file or folder belongs to the user that this process runs as.
pub(super) fn is_ours(path: &Path) -> io::Result<bool> {
    Ok(std::fs::metadata(path)?.uid() == rustix::process::geteuid().as_raw())
}

/// A new private file, open for writing. One that is there is an error.
pub(super) fn create_new(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(path)
}

/// A private file, made if it is absent, open for appending and reading.
pub(super) fn open_append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).read(true).create(true).mode(FILE_MODE).open(path)
}

/// A private file, made if it is absent, open for reading and writing anywhere in it.
pub(super) fn open_rewritable(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(FILE_MODE).open(path)
}

/// Makes the entries of a folder survive a power loss.
pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Writes a whole file so that after a crash there is the old one or the new one: temporary file, sync, rename, and
/// the sync of the folder.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let temporary = path.with_extension("new");
    remove_if_there(&temporary)?;
    let mut file = create_new(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    sync_folder(folder)
}

/// Unlinks a file; that it is absent is as good.
pub(super) fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// As [`remove_if_there`]; whether it is gone. Why not is in the log.
pub(super) fn remove_or_say(path: &Path) -> bool {
    remove_if_there(path).inspect_err(|error| log::warn!("can't remove {}: {error}", path.display())).is_ok()
}

/// A whole file, at most `max` bytes of it: a longer one is an error.
pub(super) fn read_bounded(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(max.saturating_add(1)).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > max {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the file is too long"));
    }
    Ok(bytes)
}

/// Sets `bytes` of disk aside in a file, so that removing it lets a full disk take a few last words.
pub(super) fn make_reserve(path: &Path, bytes: u64) -> io::Result<()> {
    if std::fs::metadata(path).is_ok_and(|metadata| metadata.len() == bytes) {
        return Ok(());
    }
    remove_if_there(path)?;
    let file = create_new(path)?;
    let made = match fallocate(&file, FallocateFlags::empty(), 0, bytes) {
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => write_zeros(file, bytes),
        Err(error) => Err(error.into()),
        Ok(()) => file.sync_all(),
    };
    if made.is_err() {
        remove_if_there(path)?;
    }
    made
}

fn write_zeros(mut file: File, bytes: u64) -> io::Result<()> {
    let zeros = io::repeat(0).take(bytes);
    io::copy(&mut io::BufReader::with_capacity(ZEROS, zeros), &mut file)?;
    file.sync_all()
}

/// Whether a write failed for lack of space, which may come back, rather than for a fault of the disk.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// A disk that fails once often reads at the next try, and what is given up is lost for good.
pub(super) fn read_patiently<T>(mut read: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let mut tries = 1;
    loop {
        match read() {
            Err(_) if tries < MAX_READS => tries += 1,
            result => return result,
        }
    }
}

/// Whether what could not be read is gone or damaged, rather than out of reach at the moment: want of descriptors, of
/// memory or of a permission passes, and nothing may be given up for it.
pub(super) fn is_lost(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, NotFound, UnexpectedEof};
    let is_gone = matches!(error.kind(), NotFound | UnexpectedEof | InvalidData);
    is_gone || error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
}

/// SHA-256 over `domain`, a NUL, and `bytes`: the same bytes at another place have another checksum.
pub(super) fn checksum(domain: &str, bytes: &[u8]) -> Digest {
    let mut all = Vec::with_capacity(domain.len() + 1 + bytes.len());
    all.extend_from_slice(domain.as_bytes());
    all.push(0);
    all.extend_from_slice(bytes);
    digest(&SHA256, &all)
}

#[cfg(test)]
mod tests {
    use super::super::testing::Folder;
    use super::*;
    use crate::sys::text::hex;

    #[test]
    fn replaces_a_file_whole_and_private() {
        let folder = Folder::new();
        let path = folder.path().join("file.json");
        replace(&path, b"one").unwrap();
        replace(&path, b"two").unwrap();
        assert_eq!(read_bounded(&path, 3).unwrap(), b"two");
        assert!(read_bounded(&path, 2).is_err());
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn reserve_takes_its_blocks() {
        let folder = Folder::new();
        let path = folder.path().join("reserve");
        make_reserve(&path, 1 << 20).unwrap();
        make_reserve(&path, 1 << 20).unwrap();
        let metadata = std::fs::metadata(&path).unwrap();
        assert_eq!(metadata.len(), 1 << 20);
        assert!(metadata.blocks() * 512 >= 1 << 20);
    }

    #[test]
    fn checksum_depends_on_place_and_content() {
        let sum = |domain, bytes: &[u8]| hex(checksum(domain, bytes).as_ref());
        assert_ne!(sum("a", b"x"), sum("b", b"x"));
        assert_ne!(sum("a", b"x"), sum("a", b"y"));
        // `printf 'a\0x' | sha256sum`
        assert_eq!(sum("a", b"x").len(), 64);
    }
}

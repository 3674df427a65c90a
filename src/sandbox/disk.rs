//! The watch over a task's work folder: cheap each second, exact when the disk has lost room.
//!
//! A task can write for one interval, and up to the trigger, before it is measured: the worst overshoot is what the disk
//! takes in [`LOOK_EVERY`] plus an eighth of the limit (at most 64 MiB) plus the time of one walk and of the engine's freeze.
//! `tests/sandbox_disk.rs` measures it: 160 MiB over a limit of 256 MiB at 510 MB/s. Where the folder can't be seen, as with
//! an engine that is elsewhere or a worker without root, the engine is asked each [`ASK_EVERY`], and what the disk takes in
//! that time comes through.
//!
//! A bounded volume (`volume`) ends by itself, so there only the reserve of the disk that it lies on is watched, and its
//! filling noted.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::ext4::{BLOCK_BYTES, Filling};
use super::volume::read_superblock;
use crate::docker::Docker;

/// Between two looks at the free room.
pub const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Between two answers of the engine, which walks all volumes for each.
pub const ASK_EVERY: Duration = Duration::from_secs(10);
/// Below this the machine itself is in danger, whoever wrote.
pub const RESERVE_BYTES: u64 = 256 << 20;
/// Loss of room after which the folder is measured: an eighth of the limit, at most this.
const MAX_TRIGGER_BYTES: u64 = 64 << 20;
/// Entries of one walk. A folder with more is as good as over its limit: it eats inodes.
const MAX_ENTRIES: u64 = 200_000;
/// `stat` counts in these, whatever the file system's own.
const STAT_BYTES: u64 = 512;

/// What a look found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Nothing to do.
    Fine,
    /// The task is over its limit, in words.
    OverLimit(String),
    /// The disk is nearly full, in words.
    Reserve(String),
}

/// Of one task.
#[derive(Debug)]
pub struct DiskWatch {
    volume: String,
    /// The volume's folder where this process can see it, as root on the engine's own machine.
    folder: Option<PathBuf>,
    limit: u64,
    free_at_measure: u64,
    /// Most that a measurement has found.
    largest: Option<u64>,
    /// The file of a bounded volume.
    image: Option<PathBuf>,
}

/// What a watch knows at the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskEnd {
    /// Most bytes that the folder was seen to have.
    pub largest: Option<u64>,
    /// Whether nothing more fits into a bounded volume.
    pub is_full: Option<bool>,
}

impl DiskWatch {
    /// A watch over `volume`; `None` while the engine does not tell where it is. Without a folder that can be looked into
    /// there is only the engine's own count.
    pub fn new(docker: &Docker, volume: &str, limit: u64, image: Option<PathBuf>) -> Option<Self> {
        let folder = PathBuf::from(docker.inspect_volume(volume).ok()?.mountpoint);
        let folder = fs::read_dir(&folder).is_ok().then_some(folder);
        // As if all had been lost: what was written before the first look counts.
        Some(Self { volume: volume.to_owned(), folder, limit, free_at_measure: u64::MAX, largest: None, image })
    }

    /// The most that the folder ever had, with a last measurement of what is there now where that is cheap.
    pub fn end(mut self) -> DiskEnd {
        if self.image.is_some() {
            let is_full = self.filling().map(|filling| filling.is_full(self.limit));
            return DiskEnd { largest: self.largest, is_full };
        }
        if let Some(folder) = &self.folder {
            let used = used_bytes(folder, &mut 0);
            self.largest = self.largest.max(Some(used));
        }
        DiskEnd { largest: self.largest, is_full: None }
    }

    /// Of a bounded volume: by the mounted file system, or by what it has left in its file.
    fn filling(&mut self) -> Option<Filling> {
        let written = read_superblock(self.image.as_deref()?)?;
        let mounted = self.folder.as_deref().and_then(|folder| rustix::fs::statvfs(folder).ok());
        // Where nothing is mounted, it is of another file system.
        let mounted = mounted.filter(|stat| stat.f_files == written.inodes && stat.f_frsize == BLOCK_BYTES);
        let filling = match mounted {
            Some(stat) => Filling { free_bytes: stat.f_bavail * BLOCK_BYTES, free_inodes: stat.f_ffree },
            None => Some(written).filter(|written| written.is_clean)?.filling(),
        };
        self.largest = self.largest.max(Some(self.limit.saturating_sub(filling.free_bytes)));
        Some(filling)
    }

    /// Until the next look.
    pub fn interval(&self) -> Duration {
        if self.folder.is_some() || self.image.is_some() { LOOK_EVERY } else { ASK_EVERY }
    }

    /// One look.
    pub fn look(&mut self, docker: &Docker) -> Finding {
        let place = self.image.as_deref().or(self.folder.as_deref());
        let Some(free) = place.and_then(free_bytes) else { return self.ask(docker) };
        if free < RESERVE_BYTES {
            return Finding::Reserve(format!("the node's disk has only {free} bytes left"));
        }
        if self.image.is_some() {
            self.filling();
            return Finding::Fine;
        }
        let trigger = (self.limit / 8).min(MAX_TRIGGER_BYTES);
        // Room that came back makes the next loss visible again.
        self.free_at_measure = self.free_at_measure.max(free);
        if self.free_at_measure - free < trigger {
            return Finding::Fine;
        }
        self.free_at_measure = free;
        let mut entries = 0;
        let used = self.folder.as_deref().map_or(0, |folder| used_bytes(folder, &mut entries));
        self.judge(used, entries)
    }

    /// The engine's count walks all volumes, so it is asked only where nothing cheaper is to be had.
    fn ask(&mut self, docker: &Docker) -> Finding {
        let Ok(usage) = docker.disk_usage() else { return Finding::Fine };
        let used = usage.volumes.iter().find(|volume| volume.name == self.volume).and_then(|volume| volume.size);
        used.map_or(Finding::Fine, |used| self.judge(used, 0))
    }

    fn judge(&mut self, used: u64, entries: u64) -> Finding {
        self.largest = self.largest.max(Some(used));
        if used > self.limit {
            return Finding::OverLimit(format!("wrote {used} bytes, its disk limit is {}", self.limit));
        }
        if entries > MAX_ENTRIES {
            return Finding::OverLimit(format!("has more than {MAX_ENTRIES} files and folders"));
        }
        Finding::Fine
    }
}

/// What the file system of this folder or file has left for others than root.
pub fn free_bytes(folder: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(folder).ok()?;
    stat.f_bavail.checked_mul(stat.f_frsize)
}

/// Bytes on disk below `folder`, without following links; stops counting at [`MAX_ENTRIES`]. What vanishes on the way
/// counts nothing.
fn used_bytes(folder: &Path, entries: &mut u64) -> u64 {
    let mut folders = vec![folder.to_owned()];
    let mut used = 0u64;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            *entries += 1;
            if *entries > MAX_ENTRIES {
                return used;
            }
            // Of the entry itself: a link is not followed.
            let Ok(metadata) = entry.metadata() else { continue };
            used = used.saturating_add(metadata.blocks().saturating_mul(STAT_BYTES));
            if metadata.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    used
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_is_on_disk_and_follows_no_link() {
        let dir = std::env::temp_dir().join(format!("hivemind-disk-{}", std::process::id()));
        fs::create_dir_all(dir.join("deep")).unwrap();
        fs::write(dir.join("deep/one"), vec![1; 1 << 20]).unwrap();
        fs::File::create(dir.join("sparse")).unwrap().set_len(1 << 40).unwrap();
        std::os::unix::fs::symlink("/", dir.join("link")).unwrap();
        let mut entries = 0;
        let used = used_bytes(&dir, &mut entries);
        assert_eq!(entries, 4);
        assert!((1 << 20..2 << 20).contains(&used), "{used}");
        fs::remove_dir_all(&dir).unwrap();
    }
}

//! Volumes that are bounded by their size: a file of that size in the state folder, a loop device, a file system. A task
//! that fills its volume gets ENOSPC, and the machine loses not a byte more: overshoot 0, of files and of inodes.
//! Inputs count, too. What holds the tables of inodes comes on top, about 6.5 % of 1 GiB.
//!
//! The file is allocated, not sparse: a sparse one on a full disk loses what the task has written and told it that all is
//! well, and the watch over the reserve may look too late. Measured on ext4: allocating and removing 1 GiB takes 2 and 4
//! ms, 10 GiB 23 and 38 ms. mkfs.ext4 takes 5 ms; so of each size it is made once, and what differs from zeros (a few
//! KiB) is kept in memory and written into further files.
//!
//! The engine gets the device by a link below `/dev`, which a restart of the machine clears: a number alone might be
//! somebody else's by then, and the engine would mount it. The link is the last to be made and the first to go, the file
//! the last to go: what a crash leaves is found by the file, and by the devices that are of files in our folder.
//!
//! | state | file | device | link |
//! | --- | --- | --- | --- |
//! | being made, being removed | yes | perhaps | no |
//! | ready | yes | yes | yes |
//! | after a restart of the machine | yes | no | no |

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;

use super::body::TASK_USER;
use super::disk::{RESERVE_BYTES, free_bytes};
use super::ext4::{BLOCK_BYTES, Plan, RESERVED_AT, SUPERBLOCK_AT, SUPERBLOCK_BYTES, Superblock};
use super::losetup::{Tools, attached, backing};
use super::naming::Identity;
use super::sweep::IsHeld;
use crate::docker::EngineFacts;
use crate::node::id::{AttemptKey, Id};
use crate::node::leftover::{Collecting, LeftOver};
use crate::node::resources::DiskWay;
use crate::sys::failpoint::{self, FailPoint};

/// Where links to devices are. Of the kernel's own file system for devices: gone with the machine.
const LINKS: &str = "/dev";
/// Behind the attempt in a file's name.
const SUFFIX: &str = ".img";
/// Name of a file system that is being made for its pattern.
const DRAFT: &str = "draft";
/// Patterns that are kept in memory: sizes that tasks ask for in turn.
const MAX_PATTERNS: usize = 4;
/// A pattern with more is not kept, but made each time.
const MAX_PATTERN_BYTES: usize = 1 << 20;
/// A file system whose size the program rounds down gets more blocks, so often.
const MAX_PLANS: u32 = 6;

/// Of one node.
pub struct Volumes {
    choice: DiskWay,
    folder: PathBuf,
    identity: Identity,
    tools: Result<Tools, String>,
    /// What is known of the engine: whether it can mount them.
    engine: Mutex<Option<Result<(), String>>>,
    patterns: Mutex<Vec<Arc<Pattern>>>,
}

/// A fresh file system of one size.
struct Pattern {
    room_bytes: u64,
    file_bytes: u64,
    /// Blocks that are not all zeros, by their offset.
    blocks: Vec<(u64, Vec<u8>)>,
}

impl Pattern {
    fn bytes(&self) -> usize {
        self.blocks.iter().map(|(_, block)| block.len()).sum()
    }
}

/// From this version on an engine with live-restore keeps count of mounted volumes.
const LIVE_RESTORE_MENDED: u32 = 25;

/// Whether an engine can mount a volume of this machine's.
///
/// # Errors
/// Why it can't.
pub fn check_engine(facts: &EngineFacts) -> Result<(), String> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    if facts.podman {
        Err("the engine is Podman".to_owned())
    } else if facts.rootless {
        Err("the engine runs without root and can't mount".to_owned())
    } else if facts.security_options.iter().any(|option| option.starts_with("name=userns")) {
        Err("the engine gives containers other users than the machine's (userns-remap)".to_owned())
    } else if facts.live_restore && facts.major_version() < LIVE_RESTORE_MENDED {
        // moby issues 44422, 46148 and 46508: the count of a mounted volume begins at zero at the restart, falls below, and
        // keeps the volume there until the next one.
        Err(format!(
            "engine {} with live-restore loses count of what is mounted when it is restarted; \
             {LIVE_RESTORE_MENDED}.0 does not",
            facts.version
        ))
    } else if !Path::new(&facts.root_dir).is_dir() || facts.kernel != kernel.trim() {
        Err(format!("the engine is not on this machine: its folder is {}, its kernel {}", facts.root_dir, facts.kernel))
    } else {
        Ok(())
    }
}

/// Whether this machine can make bounded volumes and the engine mount them.
///
/// # Errors
/// What is missing, and how to mend it.
pub fn check_machine(facts: &EngineFacts) -> Result<(), String> {
    Tools::find().and_then(|_| check_engine(facts))
}

impl Volumes {
    /// In this state folder. Their folder is made with the first.
    ///
    /// # Errors
    /// The owner wants nothing else, and this machine can't make them.
    pub fn new(choice: DiskWay, state_dir: &Path, identity: Identity) -> Result<Self, String> {
        let tools = match choice {
            DiskWay::Watch => Err("the node's owner chose the watch".to_owned()),
            DiskWay::Auto | DiskWay::Volume => Tools::find(),
        };
        if let (DiskWay::Volume, Err(reason)) = (choice, &tools) {
            return Err(reason.clone());
        }
        // As the kernel names it.
        let state_dir = fs::canonicalize(state_dir).unwrap_or_else(|_| state_dir.to_owned());
        let folder = state_dir.join("volumes");
        Ok(Self { choice, folder, identity, tools, engine: Mutex::default(), patterns: Mutex::default() })
    }

    /// Whether an attempt that can't have one fails, as the node's fault.
    pub fn is_must(&self) -> bool {
        self.choice == DiskWay::Volume
    }

    /// Whether they are used, as far as that is known without the engine.
    pub fn known(&self) -> Option<Result<(), String>> {
        match &self.tools {
            Err(reason) => Some(Err(reason.clone())),
            Ok(_) => lock(&self.engine).clone(),
        }
    }

    /// Keeps what the engine's facts, or its failure at the first volume, say; the answer.
    pub fn keep(&self, verdict: Result<(), String>) -> Result<(), String> {
        lock(&self.engine).insert(verdict).clone()
    }

    fn file(&self, key: &AttemptKey) -> PathBuf {
        self.folder.join(format!("{}.{}{SUFFIX}", key.task, key.attempt))
    }

    /// The device of an attempt's volume, as the engine is told.
    pub fn link(&self, key: &AttemptKey) -> PathBuf {
        Path::new(LINKS).join(self.identity.name(key))
    }

    /// The file of an attempt that has a bounded volume.
    pub fn find(&self, key: &AttemptKey) -> Option<PathBuf> {
        Some(self.file(key)).filter(|file| file.is_file())
    }

    /// Makes a volume with room for so many bytes; what an earlier try left is removed first.
    ///
    /// # Errors
    /// In words.
    pub fn make(&self, key: &AttemptKey, room_bytes: u64) -> Result<(), String> {
        self.remove(key)?;
        // Half of one would be taken for a whole one.
        self.try_make(key, room_bytes).inspect_err(|_| self.remove(key).unwrap_or_default())
    }

    fn try_make(&self, key: &AttemptKey, room_bytes: u64) -> Result<(), String> {
        let tools = self.tools.as_ref().map_err(Clone::clone)?;
        let folder = &self.folder;
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.map_err(|error| words("make", folder, &error))?;
        let pattern = self.pattern(tools, room_bytes)?;
        let free = free_bytes(folder).unwrap_or(u64::MAX);
        if free < pattern.file_bytes.saturating_add(RESERVE_BYTES) {
            return Err(format!("the disk of {} has only {free} bytes left", folder.display()));
        }
        let path = self.file(key);
        allocate(&path, &pattern).map_err(|error| words("allocate", &path, &error))?;
        failpoint::pass(FailPoint::VolumeAllocated);
        let device = tools.attach(&path)?;
        failpoint::pass(FailPoint::VolumeAttached);
        self.name(key, &device)
    }

    /// Gives the device its name for the engine, which an older state folder may have left for another.
    fn name(&self, key: &AttemptKey, device: &Path) -> Result<(), String> {
        let link = self.link(key);
        remove_file(&link)?;
        symlink(device, &link).map_err(|error| words("make", &link, &error))
    }

    /// Makes sure that the device is there, as it is not after a restart of the machine. What was not unmounted then is
    /// mended first.
    ///
    /// # Errors
    /// In words.
    pub fn attach_again(&self, key: &AttemptKey) -> Result<(), String> {
        let Some(path) = self.find(key) else { return Ok(()) };
        let linked = fs::read_link(self.link(key)).ok();
        if linked.is_some_and(|device| backing(&device).as_ref() == Some(&path)) {
            return Ok(());
        }
        // Until it is right there is none: one that is there leads to somebody else's device, or nowhere.
        remove_file(&self.link(key))?;
        let device = match attached().into_iter().find(|(_, file)| *file == path) {
            Some((device, _)) => device,
            None => {
                let tools = self.any_tools()?;
                if !read_superblock(&path).is_some_and(|found| found.is_clean) {
                    tools.mend(&path)?;
                }
                tools.attach(&path)?
            }
        };
        self.name(key, &device)
    }

    /// Also where the owner's choice has changed since.
    fn any_tools(&self) -> Result<Tools, String> {
        self.tools.clone().or_else(|_| Tools::find())
    }

    /// Removes an attempt's volume, of whatever is there. The engine's must be gone.
    ///
    /// # Errors
    /// In words.
    pub fn remove(&self, key: &AttemptKey) -> Result<(), String> {
        let path = self.file(key);
        if !path.exists() {
            return Ok(());
        }
        remove_file(&self.link(key))?;
        self.detach(&path)?;
        failpoint::pass(FailPoint::VolumeDetached);
        remove_file(&path)
    }

    fn detach(&self, path: &Path) -> Result<(), String> {
        for (device, _) in attached().into_iter().filter(|(_, file)| file == path) {
            self.any_tools()?.detach(&device)?;
        }
        Ok(())
    }

    /// What is left of attempts that are not held. The folder is read before the question who is held: see `sweep`.
    pub fn reap(&self, is_held: IsHeld<'_>, how: Collecting) -> Vec<LeftOver> {
        // No pattern is in the making meanwhile.
        let _patterns = lock(&self.patterns);
        let names = fs::read_dir(&self.folder).into_iter().flatten().flatten().map(|entry| entry.path());
        let mut files: Vec<PathBuf> = names.collect();
        // A file without a name may have a device.
        files.extend(attached().into_iter().map(|(_, file)| file).filter(|file| file.starts_with(&self.folder)));
        files.sort();
        files.dedup();
        files.iter().filter_map(|path| self.reap_one(path, is_held, how)).collect()
    }

    fn reap_one(&self, path: &Path, is_held: IsHeld<'_>, how: Collecting) -> Option<LeftOver> {
        let key = key_of(path);
        if key.as_ref().is_some_and(is_held) {
            return None;
        }
        let trouble = match (how, &key) {
            (Collecting::Looks, _) => None,
            (Collecting::Removes, Some(key)) if path.exists() => self.remove(key).err(),
            (Collecting::Removes, _) => self.detach(path).and_then(|()| remove_file(path)).err(),
        };
        let reason = match &key {
            Some(key) => format!("{key} is not held any more"),
            None => "it belongs to no attempt".to_owned(),
        };
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Some(LeftOver { kind: "disk".to_owned(), name, reason, trouble })
    }

    fn pattern(&self, tools: &Tools, room_bytes: u64) -> Result<Arc<Pattern>, String> {
        let mut patterns = lock(&self.patterns);
        if let Some(found) = patterns.iter().find(|pattern| pattern.room_bytes == room_bytes) {
            return Ok(Arc::clone(found));
        }
        let draft = self.folder.join(DRAFT);
        let made = draw(tools, &draft, room_bytes);
        remove_file(&draft)?;
        let pattern = Arc::new(made?);
        if pattern.bytes() <= MAX_PATTERN_BYTES {
            patterns.insert(0, Arc::clone(&pattern));
            patterns.truncate(MAX_PATTERNS);
        }
        Ok(pattern)
    }
}

/// Makes a file system with exactly this room, and reads what is not zeros.
fn draw(tools: &Tools, draft: &Path, room_bytes: u64) -> Result<Pattern, String> {
    let too_much = || format!("no file system has room for {room_bytes} bytes");
    let mut plan = Plan::new(room_bytes).ok_or_else(too_much)?;
    for _ in 0..MAX_PLANS {
        let failed = |error: io::Error| words("make", draft, &error);
        remove_file(draft)?;
        let file = create(draft).map_err(failed)?;
        file.set_len(plan.file_bytes()).map_err(failed)?;
        tools.make(&plan.arguments(TASK_USER), draft)?;
        let found = read_superblock(draft).ok_or_else(|| format!("{} is no file system", draft.display()))?;
        match plan.surplus(&found) {
            Ok(surplus) => {
                file.write_all_at(&surplus.to_le_bytes(), RESERVED_AT).map_err(failed)?;
                let blocks = used_blocks(&file).map_err(failed)?;
                return Ok(Pattern { room_bytes, file_bytes: plan.file_bytes(), blocks });
            }
            Err(missing) => plan = plan.larger(missing + 64),
        }
    }
    Err(too_much())
}

/// What of a sparse file is not zeros, in whole blocks.
fn used_blocks(file: &File) -> io::Result<Vec<(u64, Vec<u8>)>> {
    let (mut blocks, mut at) = (Vec::new(), 0);
    let step = usize::try_from(BLOCK_BYTES).unwrap_or(usize::MAX);
    loop {
        at = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(found) => found / BLOCK_BYTES * BLOCK_BYTES,
            Err(Errno::NXIO) => return Ok(blocks),
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(file, SeekFrom::Hole(at))?;
        while at < end {
            let mut block = vec![0; step];
            file.read_exact_at(&mut block, at)?;
            if block.iter().any(|byte| *byte != 0) {
                blocks.push((at, block));
            }
            at += BLOCK_BYTES;
        }
    }
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)
}

fn allocate(path: &Path, pattern: &Pattern) -> io::Result<()> {
    let file = create(path)?;
    rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, pattern.file_bytes)?;
    pattern.blocks.iter().try_for_each(|(at, block)| file.write_all_at(block, *at))
}

/// Of a volume that is not mounted.
pub fn read_superblock(path: &Path) -> Option<Superblock> {
    let mut bytes = [0; SUPERBLOCK_BYTES];
    File::open(path).ok()?.read_exact_at(&mut bytes, SUPERBLOCK_AT).ok()?;
    Superblock::parse(&bytes)
}

fn key_of(path: &Path) -> Option<AttemptKey> {
    let name = path.file_name()?.to_str()?.strip_suffix(SUFFIX)?;
    let (task, attempt) = name.rsplit_once('.')?;
    Some(AttemptKey { task: Id::parse(task).ok()?, attempt: attempt.parse().ok()? })
}

fn remove_file(path: &Path) -> Result<(), String> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(words("remove", path, &error)),
        _ => Ok(()),
    }
}

fn words(step: &str, path: &Path, error: &io::Error) -> String {
    format!("can't {step} {}: {error}", path.display())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is in them is whole at each step.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_that_loses_count_at_its_restart_gets_no_volume() {
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap().trim().to_owned();
        let facts = |version: &str, live_restore| EngineFacts {
            version: version.to_owned(),
            live_restore,
            kernel: kernel.clone(),
            root_dir: "/".to_owned(),
            ..EngineFacts::default()
        };
        assert_eq!(check_engine(&facts("20.10.24+dfsg1", false)), Ok(()));
        assert_eq!(check_engine(&facts("25.0.0", true)), Ok(()));
        for version in ["20.10.24+dfsg1", "24.0.9", "dev"] {
            let reason = check_engine(&facts(version, true)).unwrap_err();
            assert!(reason.contains("live-restore loses count"), "{reason}");
        }
    }
}

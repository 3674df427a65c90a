//! The spool: one folder per attempt, from which its duty can be rebuilt when the database is lost.
//!
//! ```text
//! spool/<stem>/manifest.json                     the task, written and synced before the duty's row
//! spool/<stem>/inputs.tar                        its input archive, likewise
//! spool/<stem>/inputs.fetched                    its input archive where it was to be fetched, not synced
//! spool/<stem>/events.log                        copy of the events, appended after their commit; its being there
//!                                                says that the duty was committed
//! spool/<stem>/<stream>-<epoch>-<offset>.seg     bytes of a stream from this offset on; the one being written has a
//!                                                stamp, an attribute that tells what of it was synced
//! ```
//!
//! The copy of the events is what keeps their numbers and the final report when the database rots: an event number
//! that was sent must never get another content. It is not synced, as it matters only beside a second fault.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Value, json};

use super::files;
use super::stamp::{self, Boot};
use crate::node::id::AttemptKey;
use crate::node::record::Event;
use crate::node::spec::TaskSpec;
use crate::sys::text::hex;

const MANIFEST: &str = "manifest.json";
const INPUTS: &str = "inputs.tar";
const FETCHED: &str = "inputs.fetched";
const EVENTS: &str = "events.log";
const MANIFEST_VERSION: u64 = 1;
/// A task's words have at most 512 KiB, which JSON may lengthen sixfold.
const MAX_MANIFEST_BYTES: u64 = 8 << 20;
/// A final report with 10,000 files of the longest paths stays below.
const MAX_EVENT_BYTES: u64 = 128 << 20;
/// Of a folder whose manifest can't be read: kept for the owner and never looked at again.
const DAMAGED: &str = "damaged";

/// A folder's name: the first 32 hex digits of SHA-256 of `task#attempt`.
pub(super) fn stem(key: &AttemptKey) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, key.to_string().as_bytes());
    hex(digest.as_ref().get(..16).unwrap_or_default())
}

/// A segment file: bytes of a stream from an offset on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Segment {
    /// Byte stream.
    pub(super) stream: u32,
    /// Start of the worker that wrote it.
    pub(super) epoch: u64,
    /// Of its first byte.
    pub(super) offset: u64,
}

impl Segment {
    fn name(self) -> String {
        format!("{}-{}-{:016x}.seg", self.stream, self.epoch, self.offset)
    }

    fn parse(name: &str) -> Option<Self> {
        let mut parts = name.strip_suffix(".seg")?.split('-');
        let segment = Self {
            stream: parts.next()?.parse().ok()?,
            epoch: parts.next()?.parse().ok()?,
            offset: u64::from_str_radix(parts.next()?, 16).ok()?,
        };
        // Whatever is spelled in another way is not ours.
        (parts.next().is_none() && segment.name() == name).then_some(segment)
    }
}

/// See [`Spool::read_events`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Behind {
    Keep,
    Cut,
}

/// What a scan found in one folder.
pub(super) struct Found {
    /// The folder's name.
    pub(super) stem: String,
    /// The task; absent when there is no manifest, an error when there is one that can't be read.
    pub(super) manifest: io::Result<Option<TaskSpec>>,
    /// Whether the duty was committed once.
    pub(super) was_committed: bool,
}

/// The folder of folders.
#[derive(Clone)]
pub(super) struct Spool {
    root: PathBuf,
    boot: Option<Boot>,
}

impl Spool {
    /// Makes the folder if it is absent.
    pub(super) fn open(root: PathBuf, boot: Option<Boot>) -> io::Result<Self> {
        files::make_folder(&root)?;
        Ok(Self { root, boot })
    }

    /// For the stamps of segments.
    pub(super) fn boot(&self) -> Option<Boot> {
        self.boot
    }

    /// An attempt's folder.
    pub(super) fn folder(&self, key: &AttemptKey) -> PathBuf {
        self.root.join(stem(key))
    }

    /// Where a segment is.
    pub(super) fn segment(&self, key: &AttemptKey, segment: Segment) -> PathBuf {
        self.folder(key).join(segment.name())
    }

    /// Puts a task and its inputs on disk, synced. The manifest is last, so that where it is, all is.
    pub(super) fn take(&self, spec: &TaskSpec, inputs: &[u8]) -> io::Result<()> {
        let folder = self.folder(&spec.key);
        if folder.try_exists()? {
            self.remove_stem(&stem(&spec.key))?;
        }
        files::make_folder(&folder)?;
        let mut file = files::create_new(&folder.join(INPUTS))?;
        file.write_all(inputs)?;
        file.sync_all()?;
        self.write_manifest(spec)?;
        files::sync_folder(&self.root)
    }

    /// Writes the manifest, synced.
    pub(super) fn write_manifest(&self, spec: &TaskSpec) -> io::Result<()> {
        files::make_folder(&self.folder(&spec.key))?;
        let task = serde_json::to_value(spec).map_err(io::Error::other)?;
        let sum = manifest_sum(&task);
        let manifest = json!({"version": MANIFEST_VERSION, "spec": task, "sha256": sum});
        files::replace(&self.folder(&spec.key).join(MANIFEST), manifest.to_string().as_bytes())
    }

    /// The input archive.
    pub(super) fn read_inputs(&self, key: &AttemptKey) -> io::Result<File> {
        File::open(self.folder(key).join(INPUTS))
    }

    /// The file that an input archive is fetched into, to read and write; it may have something of an earlier life.
    pub(super) fn open_fetched(&self, key: &AttemptKey) -> io::Result<File> {
        files::open_rewritable(&self.folder(key).join(FETCHED))
    }

    /// Gives back the room of what was fetched.
    pub(super) fn remove_fetched(&self, key: &AttemptKey) -> io::Result<()> {
        files::remove_if_there(&self.folder(key).join(FETCHED))
    }

    /// Says that the duty is committed.
    pub(super) fn mark_committed(&self, key: &AttemptKey) -> io::Result<()> {
        files::open_append(&self.folder(key).join(EVENTS)).map(drop)
    }

    /// Copies committed events.
    pub(super) fn append_events<'a>(
        &self,
        key: &AttemptKey,
        events: impl Iterator<Item = &'a Event>,
    ) -> io::Result<()> {
        let mut lines = String::new();
        for event in events {
            let text = serde_json::to_string(event).map_err(io::Error::other)?;
            let sum = hex(files::checksum("event", text.as_bytes()).as_ref());
            lines.push_str(&format!("{sum} {text}\n"));
        }
        files::open_append(&self.folder(key).join(EVENTS))?.write_all(lines.as_bytes())
    }

    /// The copied events, up to the first line that is torn, damaged or out of order. `Behind::Cut` takes off what
    /// follows, so that the next append stands on good ground.
    pub(super) fn read_events(&self, key: &AttemptKey, behind: Behind) -> io::Result<Vec<Event>> {
        let path = self.folder(key).join(EVENTS);
        if !path.try_exists()? {
            return Ok(Vec::new());
        }
        let mut file = files::open_append(&path)?;
        file.seek(SeekFrom::Start(0))?;
        let mut reader = BufReader::new(&file);
        let mut events: Vec<Event> = Vec::new();
        let mut good = 0u64;
        loop {
            let mut line = Vec::new();
            let len = (&mut reader).take(MAX_EVENT_BYTES).read_until(b'\n', &mut line)?;
            let next = events.last().map_or(1, |event| event.number.saturating_add(1));
            match parse_event(&line) {
                Some(event) if event.number == next => events.push(event),
                _ => break,
            }
            good = good.saturating_add(u64::try_from(len).unwrap_or(u64::MAX));
        }
        if behind == Behind::Cut && good < file.metadata()?.len() {
            file.set_len(good)?;
        }
        Ok(events)
    }

    /// The segments of an attempt in order, with their lengths. A folder that is not there has none.
    pub(super) fn segments(&self, key: &AttemptKey) -> io::Result<Vec<(Segment, u64)>> {
        let mut segments = Vec::new();
        let entries = match std::fs::read_dir(self.folder(key)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(segments),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            if let Some(segment) = entry.file_name().to_str().and_then(Segment::parse) {
                segments.push((segment, entry.metadata()?.len()));
            }
        }
        segments.sort_unstable();
        Ok(segments)
    }

    /// How much of a stream's last segment is sound, when it was being written.
    pub(super) fn sound_len(&self, key: &AttemptKey, segment: Segment, len: u64) -> io::Result<Option<u64>> {
        stamp::sound_len(&self.segment(key, segment), len, self.boot)
    }

    /// Bytes of a segment from `at` within it.
    pub(super) fn read_segment(&self, key: &AttemptKey, segment: Segment, at: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut file = File::open(self.segment(key, segment))?;
        file.seek(SeekFrom::Start(at))?;
        let mut bytes = vec![0; len];
        file.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// All folders, and the epochs of all segments: the largest one. What is out of reach at the moment is an error, as
    /// a start must not take it for lost.
    pub(super) fn scan(&self) -> io::Result<(Vec<Found>, u64)> {
        let mut found = Vec::new();
        let mut epoch = 0;
        for entry in std::fs::read_dir(&self.root)? {
            let entry = entry?;
            let Ok(stem) = entry.file_name().into_string() else { continue };
            if !entry.file_type()?.is_dir() || Path::new(&stem).extension().is_some() {
                continue;
            }
            for file in std::fs::read_dir(entry.path())? {
                let segment = file?.file_name().to_str().and_then(Segment::parse);
                epoch = epoch.max(segment.map_or(0, |segment| segment.epoch));
            }
            let manifest = files::read_patiently(|| read_manifest(&entry.path(), &stem));
            let manifest = match manifest {
                Err(error) if !files::is_lost(&error) => return Err(error),
                manifest => manifest,
            };
            found.push(Found { manifest, was_committed: entry.path().join(EVENTS).try_exists()?, stem });
        }
        found.sort_by(|a, b| a.stem.cmp(&b.stem));
        Ok((found, epoch))
    }

    /// Removes an attempt's folder, the manifest first and synced: where it is gone, there is no duty, also when a power
    /// loss brings back the rest.
    pub(super) fn remove(&self, key: &AttemptKey) -> io::Result<()> {
        self.remove_stem(&stem(key))
    }

    /// See [`Self::remove`].
    pub(super) fn remove_stem(&self, stem: &str) -> io::Result<()> {
        let folder = self.root.join(stem);
        if folder.join(MANIFEST).try_exists()? {
            files::remove_if_there(&folder.join(MANIFEST))?;
            files::sync_folder(&folder)?;
        }
        match std::fs::remove_dir_all(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// Moves a folder out of sight of the scan without destroying it; gives its new path.
    pub(super) fn set_aside(&self, stem: &str) -> io::Result<PathBuf> {
        let aside = self.root.join(format!("{stem}.{DAMAGED}"));
        std::fs::rename(self.root.join(stem), &aside)?;
        Ok(aside)
    }
}

/// Over the JSON as a value, whose text doesn't depend on the fields that this version knows.
fn manifest_sum(task: &Value) -> String {
    hex(files::checksum("manifest", task.to_string().as_bytes()).as_ref())
}

fn read_manifest(folder: &Path, stem_of_folder: &str) -> io::Result<Option<TaskSpec>> {
    let bytes = match files::read_bounded(&folder.join(MANIFEST), MAX_MANIFEST_BYTES) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let manifest: Value = serde_json::from_slice(&bytes)?;
    let task = manifest.get("spec").unwrap_or(&Value::Null);
    if manifest.get("sha256").and_then(Value::as_str) != Some(&manifest_sum(task)) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "its checksum is wrong"));
    }
    let spec = TaskSpec::deserialize(task)?;
    if stem(&spec.key) != stem_of_folder {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it names another attempt"));
    }
    Ok(Some(spec))
}

fn parse_event(line: &[u8]) -> Option<Event> {
    let line = std::str::from_utf8(line.strip_suffix(b"\n")?).ok()?;
    let (sum, text) = line.split_once(' ')?;
    let is_good = hex(files::checksum("event", text.as_bytes()).as_ref()) == sum;
    is_good.then(|| serde_json::from_str(text).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Folder, key, spec};
    use super::*;
    use crate::node::record::EventKind;

    fn event(number: u64) -> Event {
        Event { number, time_ms: 7, kind: EventKind::Note(format!("note {number}")) }
    }

    #[test]
    fn names_folders_and_segments_as_documented() {
        // First 32 digits of `printf 'sum#1' | sha256sum`.
        assert_eq!(stem(&key("sum", 1)), "3d6342b2f55a9ad093813d8854f0fab1");
        let segment = Segment { stream: 16, epoch: 3, offset: 0x40_0000 };
        assert_eq!(segment.name(), "16-3-0000000000400000.seg");
        assert_eq!(Segment::parse("16-3-0000000000400000.seg"), Some(segment));
        for other in ["16-3-400000.seg", "+16-3-0000000000400000.seg", "16-3.seg", "a", "1-1-0-0.seg"] {
            assert_eq!(Segment::parse(other), None, "{other}");
        }
    }

    #[test]
    fn manifest_survives_and_damage_is_seen() {
        let folder = Folder::new();
        let spool = Spool::open(folder.path().join("spool"), None).unwrap();
        let spec = spec("sum", 1);
        spool.take(&spec, b"inputs").unwrap();
        let (found, _) = spool.scan().unwrap();
        assert_eq!(found[0].manifest.as_ref().unwrap().as_ref(), Some(&spec));
        assert!(!found[0].was_committed);

        let path = spool.folder(&spec.key).join(MANIFEST);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("anonymous", "anonymouS")).unwrap();
        let (found, _) = spool.scan().unwrap();
        assert!(found[0].manifest.is_err());
    }

    #[test]
    fn copied_events_end_at_the_first_torn_line() {
        let folder = Folder::new();
        let spool = Spool::open(folder.path().join("spool"), None).unwrap();
        let key = key("sum", 1);
        spool.take(&spec("sum", 1), b"").unwrap();
        spool.append_events(&key, [event(1), event(2)].iter()).unwrap();
        let path = spool.folder(&key).join(EVENTS);
        let whole = std::fs::read(&path).unwrap();
        let first = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        for len in 0..=whole.len() {
            std::fs::write(&path, &whole[..len]).unwrap();
            let expected = usize::from(len >= first) + usize::from(len == whole.len());
            assert_eq!(spool.read_events(&key, Behind::Cut).unwrap().len(), expected, "{len}");
        }
        std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        spool.read_events(&key, Behind::Cut).unwrap();
        spool.append_events(&key, [event(2), event(3)].iter()).unwrap();
        assert_eq!(spool.read_events(&key, Behind::Cut).unwrap(), [event(1), event(2), event(3)]);
    }
}

//! The small master's folder: what is written here before it is promised, and what a start finds.
//!
//! ```text
//! nodes.json                      node ids and their keys, replaced whole
//! tasks/TASK/ATTEMPT/
//!   assignment.bin  meta.json     written in tasks/TASK/.new-ATTEMPT, then renamed: there wholly or not at all
//!   node                          where it is placed; written before it is offered
//!   record.jsonl                  events, appended; a torn end is cut off
//!   streams/STREAM-EPOCH          bytes as they came; STREAM-EPOCH.refused where a limit ended them
//!   cancel                        somebody wants it stopped, and why
//!   verdict.json                  an end that this master decided itself
//! ```
//! Each call returns when its change is durable. A failed write changes nothing that counts: the next one goes to the
//! same place. After a failed sync the folder refuses everything until the next start, since the kernel may have
//! dropped what it had.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::attempt::Wants;
use super::gate::PublicKey;
use super::record::{self, FoundRecord};
use crate::node::id::{AttemptKey, Id};
use crate::node::record::Outcome;
use crate::sys::text::hex;

/// A byte stream of an attempt: number and epoch.
pub type StreamId = (u32, u64);

/// An end that this master decided itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// How it ended.
    pub outcome: Outcome,
    /// Why.
    pub reason: String,
    /// When, milliseconds since 1970.
    pub decided_ms: u64,
}

/// What is known of an attempt without its assignment, which may be large.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// When it was submitted, milliseconds since 1970.
    pub submitted_ms: u64,
    /// Bytes of the assignment.
    pub assignment_bytes: u64,
    /// What it asks for.
    pub wants: Wants,
}

/// A small file beside an attempt's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// The node that the attempt is placed on.
    Node,
    /// The reason of a wanted stop.
    Cancel,
    /// A [`Verdict`].
    Verdict,
}

impl Mark {
    fn file_name(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Cancel => "cancel",
            Self::Verdict => "verdict.json",
        }
    }
}

/// An attempt as it was found.
#[derive(Debug)]
pub struct FoundAttempt {
    /// Task and attempt.
    pub key: AttemptKey,
    /// When it came and what it asks for.
    pub meta: Meta,
    /// Where it is placed.
    pub node: Option<Id>,
    /// Why it is to be stopped.
    pub cancel: Option<String>,
    /// This master's own verdict.
    pub verdict: Option<Verdict>,
    /// Its events.
    pub record: FoundRecord,
    /// Bytes of each stream.
    pub streams: BTreeMap<StreamId, u64>,
    /// Streams that a limit ended.
    pub refused: BTreeSet<StreamId>,
}

/// Everything that a start finds.
#[derive(Debug, Default)]
pub struct Found {
    /// Nodes and their keys.
    pub keys: BTreeMap<Id, PublicKey>,
    /// Attempts by key.
    pub attempts: Vec<FoundAttempt>,
    /// Parts that could not be read and were left where they are, in words.
    pub troubles: Vec<String>,
}

/// See the module.
#[derive(Debug)]
pub struct Folder {
    root: PathBuf,
    is_broken: bool,
    /// Tests stop the folder at each of its steps.
    #[cfg(test)]
    pub steps_left: Option<u32>,
}

impl Folder {
    /// Opens or makes the folder and reads what is in it.
    ///
    /// # Errors
    /// The folder can't be made or read.
    pub fn open(root: &Path) -> io::Result<(Self, Found)> {
        let folder = Self {
            root: root.to_owned(),
            is_broken: false,
            #[cfg(test)]
            steps_left: None,
        };
        make_folder(root)?;
        make_folder(&root.join("tasks"))?;
        let found = super::found::read(root)?;
        Ok((folder, found))
    }

    /// Replaces the list of nodes.
    ///
    /// # Errors
    /// Nothing has changed.
    pub fn put_nodes(&mut self, keys: &BTreeMap<Id, PublicKey>) -> io::Result<()> {
        let text: BTreeMap<&Id, String> = keys.iter().map(|(id, key)| (id, hex(key))).collect();
        let json = serde_json::to_vec_pretty(&text)?;
        self.replace(&self.root.join("nodes.json"), &json)
    }

    /// Makes an attempt's folder.
    ///
    /// # Errors
    /// There is no such attempt now.
    pub fn create(&mut self, key: &AttemptKey, assignment: &[u8], meta: &Meta) -> io::Result<()> {
        let task = self.root.join("tasks").join(key.task.as_str());
        let new = task.join(format!(".new-{}", key.attempt));
        make_folder(&task)?;
        remove_tree(&new)?;
        make_folder(&new)?;
        make_folder(&new.join("streams"))?;
        self.write_new(&new.join("assignment.bin"), assignment)?;
        self.write_new(&new.join("meta.json"), &serde_json::to_vec(meta)?)?;
        self.sync_folder(&new)?;
        self.step()?;
        fs::rename(&new, self.attempt(key))?;
        self.sync_folder(&task)?;
        self.sync_folder(&self.root.join("tasks"))
    }

    /// The assignment's bytes.
    ///
    /// # Errors
    /// They can't be read.
    pub fn assignment(&self, key: &AttemptKey) -> io::Result<Vec<u8>> {
        fs::read(self.attempt(key).join("assignment.bin"))
    }

    /// Writes a mark, or takes it away.
    ///
    /// # Errors
    /// The mark is as it was.
    pub fn put_mark(&mut self, key: &AttemptKey, mark: Mark, content: Option<&[u8]>) -> io::Result<()> {
        let path = self.attempt(key).join(mark.file_name());
        match content {
            Some(content) => self.replace(&path, content),
            None => {
                self.step()?;
                match fs::remove_file(&path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                    Err(error) => Err(error),
                    Ok(()) => self.sync_folder(&self.attempt(key)),
                }
            }
        }
    }

    /// Writes a line of the record at its place.
    ///
    /// # Errors
    /// The record is as it was.
    pub fn append_line(&mut self, key: &AttemptKey, at: u64, line: &[u8]) -> io::Result<()> {
        let path = self.attempt(key).join("record.jsonl");
        self.append(&path, at, line)
    }

    /// Writes bytes of a stream at their place.
    ///
    /// # Errors
    /// The stream is as it was.
    pub fn append_stream(&mut self, key: &AttemptKey, stream: StreamId, at: u64, bytes: &[u8]) -> io::Result<()> {
        let path = self.stream(key, stream);
        self.append(&path, at, bytes)
    }

    /// Notes that a limit has ended a stream.
    ///
    /// # Errors
    /// It is not noted.
    pub fn refuse_stream(&mut self, key: &AttemptKey, stream: StreamId) -> io::Result<()> {
        let path = self.stream(key, stream).with_extension("refused");
        self.append(&path, 0, &[])
    }

    /// Where a stream's bytes are.
    pub fn stream(&self, key: &AttemptKey, (stream, epoch): StreamId) -> PathBuf {
        self.attempt(key).join("streams").join(format!("{stream}-{epoch}"))
    }

    /// Removes an attempt and all that came of it.
    ///
    /// # Errors
    /// Some of it is left, and is found again at the next start.
    pub fn remove(&mut self, key: &AttemptKey) -> io::Result<()> {
        self.step()?;
        let task = self.root.join("tasks").join(key.task.as_str());
        let gone = task.join(format!(".old-{}", key.attempt));
        remove_tree(&gone)?;
        fs::rename(self.attempt(key), &gone)?;
        self.sync_folder(&task)?;
        remove_tree(&gone)?;
        // Stays when another attempt of the task is there.
        let _ = fs::remove_dir(&task);
        Ok(())
    }

    fn attempt(&self, key: &AttemptKey) -> PathBuf {
        let task = self.root.join("tasks").join(key.task.as_str());
        task.join(key.attempt.to_string())
    }

    fn append(&mut self, path: &Path, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.step()?;
        let is_new = !path.exists();
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
        file.write_all_at(bytes, at)?;
        if bytes.is_empty() && file.metadata()?.len() < at {
            file.set_len(at)?;
        }
        self.sync(&file)?;
        match path.parent() {
            Some(parent) if is_new => self.sync_folder(parent),
            _ => Ok(()),
        }
    }

    fn replace(&mut self, path: &Path, content: &[u8]) -> io::Result<()> {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".new");
        let new = path.with_file_name(name);
        self.write_new(&new, content)?;
        self.step()?;
        fs::rename(&new, path)?;
        path.parent().map_or(Ok(()), |parent| self.sync_folder(parent))
    }

    fn write_new(&mut self, path: &Path, content: &[u8]) -> io::Result<()> {
        self.step()?;
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        file.write_all(content)?;
        self.sync(&file)
    }

    fn sync(&mut self, file: &File) -> io::Result<()> {
        self.step()?;
        file.sync_data().inspect_err(|_| self.is_broken = true)
    }

    fn sync_folder(&mut self, path: &Path) -> io::Result<()> {
        self.step()?;
        File::open(path)?.sync_all().inspect_err(|_| self.is_broken = true)
    }

    /// Before each step that could fail.
    fn step(&mut self) -> io::Result<()> {
        #[cfg(test)]
        if let Some(left) = &mut self.steps_left {
            match left.checked_sub(1) {
                Some(fewer) => *left = fewer,
                None => return Err(io::Error::other("stopped by the test")),
            }
        }
        if self.is_broken {
            return Err(io::Error::other("an earlier sync failed; start again when the disk is well"));
        }
        Ok(())
    }
}

/// Makes a folder for its owner alone, when it isn't there.
pub(super) fn make_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Removes a folder when it is there.
pub(super) fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Cuts off what was never promised.
pub(super) fn cut_record(path: &Path, bytes: &[u8]) -> io::Result<FoundRecord> {
    let found = record::parse(bytes);
    if !bytes.is_empty() {
        let file = OpenOptions::new().write(true).open(path)?;
        file.set_len(found.sound_bytes)?;
        file.sync_data()?;
    }
    Ok(found)
}

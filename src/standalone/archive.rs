//! A submission's archive: `task.json` and what lies below `workspace/`, repacked into the inputs of an assignment; or in
//! place of `workspace/` one archive, `inputs`, which is the node's to look into.
//!
//! Only regular files and folders are taken, with plain names, sanitised modes and the task user's numbers, so that a
//! node needn't wonder. Everything is bounded while it is read: the archive is not to be trusted in its sizes.

use std::collections::BTreeSet;
use std::io::{self, Read};

use tar::{Archive, Builder, Entry, EntryType, Header};

use crate::config::taskfile::MAX_TASK_FILE_BYTES;
use crate::node::spec::MAX_INPUT_BYTES;

/// Entries below `workspace/`: with their heads they stay far below the bytes that are allowed.
pub const MAX_ENTRIES: usize = 20_000;
/// Longest name below `workspace/`, as the kernel's limit for a path is four times this.
pub const MAX_NAME_BYTES: usize = 1_024;
/// The numeric user of a task's work folder.
pub const TASK_UID: u64 = 1_000;

const TASK_FILE: &str = "task.json";
const WHOLE: &str = "inputs";
const WORKSPACE: &str = "workspace";

/// What a submission says and brings.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Submission {
    /// Text of `task.json`.
    pub task: String,
    /// Archive for the work folder; empty when there is nothing to put into it.
    pub inputs: Vec<u8>,
}

/// Why an archive isn't taken: the part of it, and what is wrong.
#[derive(Debug, PartialEq, Eq)]
pub struct ArchiveError {
    /// `task.json`, `workspace/...`, or `archive`.
    pub part: String,
    /// In words.
    pub message: String,
}

/// Reads a submission.
///
/// # Errors
/// Names the entry that is wrong.
pub fn read(archive: &mut dyn Read) -> Result<Submission, ArchiveError> {
    let broken = |error: io::Error| wrong("archive", format!("can't be read: {error}"));
    // Heads and padding come on top of the content; nothing sound is longer.
    let most = MAX_INPUT_BYTES + MAX_TASK_FILE_BYTES + MAX_ENTRIES * 2_048;
    let mut archive = Archive::new(archive.take(most as u64));
    let mut entries = archive.entries().map_err(broken)?;
    let first = entries.next().ok_or_else(|| wrong("archive", "is empty"))?.map_err(broken)?;
    let task = read_task(first)?;
    let mut inputs = Inputs::default();
    for entry in entries {
        inputs.add(entry.map_err(broken)?)?;
    }
    Ok(Submission { task, inputs: inputs.finish()? })
}

fn read_task(entry: Entry<'_, impl Read>) -> Result<String, ArchiveError> {
    if entry.path_bytes().as_ref() != TASK_FILE.as_bytes() || entry.header().entry_type() != EntryType::Regular {
        return Err(wrong("archive", format!("must begin with the file {TASK_FILE}")));
    }
    let mut text = String::new();
    let most = MAX_TASK_FILE_BYTES as u64;
    if entry.size() > most {
        return Err(wrong(TASK_FILE, format!("has {} bytes, at most {most} are allowed", entry.size())));
    }
    match entry.take(most).read_to_string(&mut text) {
        Ok(_) => Ok(text),
        Err(error) => Err(wrong(TASK_FILE, format!("can't be read: {error}"))),
    }
}

struct Inputs {
    builder: Builder<Vec<u8>>,
    folders: BTreeSet<String>,
    files: BTreeSet<String>,
    whole: Option<Vec<u8>>,
}

impl Default for Inputs {
    fn default() -> Self {
        Self { builder: Builder::new(Vec::new()), folders: BTreeSet::new(), files: BTreeSet::new(), whole: None }
    }
}

impl Inputs {
    fn add(&mut self, entry: Entry<'_, impl Read>) -> Result<(), ArchiveError> {
        let bytes = entry.path_bytes().into_owned();
        let full = String::from_utf8_lossy(&bytes).into_owned();
        let is_whole = full == WHOLE && entry.header().entry_type() == EntryType::Regular;
        if self.whole.is_some() || (is_whole && !(self.files.is_empty() && self.folders.is_empty())) {
            return Err(wrong(&full, format!("stands beside {WHOLE}: there can be one archive or single files")));
        }
        if is_whole {
            self.whole = Some(self.content(&full, entry)?);
            return Ok(());
        }
        let name = check_name(&bytes).map_err(|reason| wrong(&full, reason))?;
        let kind = entry.header().entry_type();
        match kind {
            EntryType::Directory if name.is_empty() => Ok(()),
            _ if name.is_empty() => Err(wrong(&full, "must be a folder")),
            EntryType::Directory => self.add_folder(&full, &name),
            EntryType::Regular | EntryType::Continuous => self.add_file(&full, &name, entry),
            _ => Err(wrong(&full, format!("is {}: only files and folders can be sent", describe(kind)))),
        }
    }

    fn add_folder(&mut self, full: &str, name: &str) -> Result<(), ArchiveError> {
        if self.files.contains(name) {
            return Err(wrong(full, "is there twice, as a file and as a folder"));
        }
        if self.folders.contains(name) {
            return Ok(());
        }
        // A folder that only a file's name tells would otherwise be made by the engine, for another user.
        if let Some((parent, _)) = name.rsplit_once('/') {
            self.add_folder(full, parent)?;
        }
        self.count(full, 0)?;
        self.folders.insert(name.to_owned());
        let mut header = header(EntryType::Directory, 0o755, 0);
        self.append(full, &mut header, &format!("{name}/"), io::empty())
    }

    fn add_file(&mut self, full: &str, name: &str, entry: Entry<'_, impl Read>) -> Result<(), ArchiveError> {
        if self.folders.contains(name) || !self.files.insert(name.to_owned()) {
            return Err(wrong(full, "is there twice"));
        }
        if let Some((parent, _)) = name.rsplit_once('/') {
            self.add_folder(full, parent)?;
        }
        let is_executable = entry.header().mode().is_ok_and(|mode| mode & 0o111 != 0);
        let mut header = header(EntryType::Regular, if is_executable { 0o755 } else { 0o644 }, entry.size());
        header.set_mtime(entry.header().mtime().unwrap_or(0));
        let content = self.content(full, entry)?;
        self.append(full, &mut header, name, content.as_slice())
    }

    fn content(&self, full: &str, mut entry: Entry<'_, impl Read>) -> Result<Vec<u8>, ArchiveError> {
        let size = entry.size();
        self.count(full, size)?;
        let mut content = Vec::new();
        match entry.by_ref().take(size).read_to_end(&mut content) {
            Ok(read) if read as u64 == size => Ok(content),
            Ok(_) => Err(wrong(full, "is cut short")),
            Err(error) => Err(wrong(full, format!("can't be read: {error}"))),
        }
    }

    fn append(&mut self, full: &str, header: &mut Header, name: &str, content: impl Read) -> Result<(), ArchiveError> {
        let done = self.builder.append_data(header, name, content);
        done.map_err(|error| wrong(full, format!("can't be packed: {error}")))
    }

    fn count(&self, full: &str, size: u64) -> Result<(), ArchiveError> {
        if self.files.len() + self.folders.len() > MAX_ENTRIES {
            return Err(wrong(full, format!("is one too many: at most {MAX_ENTRIES} files and folders can be sent")));
        }
        let now = self.builder.get_ref().len() as u64;
        if now.saturating_add(size) > MAX_INPUT_BYTES as u64 {
            return Err(wrong(full, too_large()));
        }
        Ok(())
    }

    fn finish(self) -> Result<Vec<u8>, ArchiveError> {
        if let Some(whole) = self.whole {
            return Ok(whole);
        }
        if self.files.is_empty() && self.folders.is_empty() {
            return Ok(Vec::new());
        }
        let inputs =
            self.builder.into_inner().map_err(|error| wrong("archive", format!("can't be packed: {error}")))?;
        if inputs.len() > MAX_INPUT_BYTES {
            return Err(wrong(WORKSPACE, too_large()));
        }
        Ok(inputs)
    }
}

fn too_large() -> String {
    format!("makes the inputs larger than {} MiB, the most that a task can bring", MAX_INPUT_BYTES >> 20)
}

/// The name below `workspace/`, without a slash at its end.
fn check_name(bytes: &[u8]) -> Result<String, &'static str> {
    let name = std::str::from_utf8(bytes).map_err(|_| "has a name that is not UTF-8")?;
    let name = name.strip_suffix('/').unwrap_or(name);
    let below = match name.strip_prefix(WORKSPACE) {
        Some("") => return Ok(String::new()),
        Some(below) => below.strip_prefix('/'),
        None => None,
    };
    let below = below.ok_or("lies outside workspace/")?;
    if below.len() > MAX_NAME_BYTES {
        return Err("has a name that is too long");
    }
    if below.chars().any(char::is_control) {
        return Err("has a control character in its name");
    }
    if below.split('/').any(|part| matches!(part, "" | "." | "..") || part.len() > 255) {
        return Err("has an empty part, '.', '..' or a part that is too long in its name");
    }
    Ok(below.to_owned())
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(TASK_UID);
    header.set_gid(TASK_UID);
    header.set_mtime(0);
    header
}

fn describe(kind: EntryType) -> &'static str {
    match kind {
        EntryType::Symlink => "a symbolic link",
        EntryType::Link => "a hard link",
        EntryType::Char | EntryType::Block => "a device",
        EntryType::Fifo => "a pipe",
        _ => "of a kind that is not known",
    }
}

fn wrong(part: &str, message: impl Into<String>) -> ArchiveError {
    let part = part.chars().take(200).collect();
    ArchiveError { part, message: message.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(builder: &mut Builder<Vec<u8>>, kind: EntryType, name: &[u8], mode: u32, content: &[u8]) {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_mode(mode);
        header.set_uid(0);
        header.as_mut_bytes()[..name.len()].copy_from_slice(name);
        if matches!(kind, EntryType::Symlink | EntryType::Link) {
            header.set_link_name("target").unwrap();
        }
        header.set_cksum();
        builder.append(&header, content).unwrap();
    }

    fn pack(entries: &[(EntryType, &[u8], u32, &[u8])]) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        for (kind, name, mode, content) in entries {
            entry(&mut builder, *kind, name, *mode, content);
        }
        builder.into_inner().unwrap()
    }

    const TASK: (EntryType, &[u8], u32, &[u8]) = (EntryType::Regular, b"task.json", 0o644, b"{}");

    #[test]
    fn repacks_with_plain_modes_and_owner_and_makes_missing_folders() {
        let bytes = pack(&[
            TASK,
            (EntryType::Directory, b"workspace/", 0o777, b""),
            (EntryType::Regular, b"workspace/a/b/run.sh", 0o6755, b"echo"),
            (EntryType::Regular, b"workspace/main.py", 0o600, b"print()"),
        ]);
        let found = read(&mut bytes.as_slice()).unwrap();
        assert_eq!(found.task, "{}");
        let mut archive = Archive::new(found.inputs.as_slice());
        let seen: Vec<(String, u32, u64, u64)> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let header = entry.header();
                let name = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
                (name, header.mode().unwrap(), header.uid().unwrap(), entry.size())
            })
            .collect();
        let expected = [("a/", 0o755, 0), ("a/b/", 0o755, 0), ("a/b/run.sh", 0o755, 4), ("main.py", 0o644, 7)];
        let expected = expected.map(|(name, mode, size)| (name.to_owned(), mode, TASK_UID, size));
        assert_eq!(seen, expected);
    }

    #[test]
    fn one_archive_goes_to_the_node_as_it_is() {
        let whole: (EntryType, &[u8], u32, &[u8]) = (EntryType::Regular, b"inputs", 0o644, b"PK");
        let file: (EntryType, &[u8], u32, &[u8]) = (EntryType::Regular, b"workspace/f", 0o644, b"x");
        assert_eq!(read(&mut pack(&[TASK, whole]).as_slice()).unwrap().inputs, b"PK");
        for both in [[TASK, whole, file], [TASK, file, whole], [TASK, whole, whole]] {
            let error = read(&mut pack(&both).as_slice()).unwrap_err();
            assert!(error.message.contains("one archive or single files"), "{error:?}");
        }
    }

    #[test]
    fn a_submission_without_files_has_no_inputs() {
        let bytes = pack(&[TASK, (EntryType::Directory, b"workspace", 0o755, b"")]);
        assert_eq!(read(&mut bytes.as_slice()).unwrap().inputs, Vec::<u8>::new());
    }

    #[test]
    fn refuses_links_devices_and_names_that_lead_elsewhere() {
        let long = [b"workspace/".as_slice(), &[b'x'; 85]].concat();
        let table: [(EntryType, &[u8], &str); 14] = [
            (EntryType::Symlink, b"workspace/l", "a symbolic link"),
            (EntryType::Link, b"workspace/l", "a hard link"),
            (EntryType::Char, b"workspace/l", "a device"),
            (EntryType::Block, b"workspace/l", "a device"),
            (EntryType::Fifo, b"workspace/l", "a pipe"),
            (EntryType::Regular, b"other", "outside"),
            (EntryType::Regular, b"workspacex/a", "outside"),
            (EntryType::Regular, b"/workspace/a", "outside"),
            (EntryType::Regular, b"workspace/../a", "'..'"),
            (EntryType::Regular, b"workspace//a", "empty part"),
            (EntryType::Regular, b"workspace/./a", "'.'"),
            (EntryType::Regular, b"workspace/a\nb", "control"),
            (EntryType::Regular, b"workspace/\xff", "UTF-8"),
            (EntryType::Regular, b"workspace", "must be a folder"),
        ];
        for (kind, name, reason) in table {
            let error = read(&mut pack(&[TASK, (kind, name, 0o644, b"")]).as_slice()).unwrap_err();
            assert!(error.message.contains(reason), "{name:?}: {error:?}");
        }
        assert!(read(&mut pack(&[TASK, (EntryType::Regular, &long, 0o644, b"")]).as_slice()).is_ok());
    }

    #[test]
    fn refuses_doubles_missing_task_files_and_too_much() {
        let file: (EntryType, &[u8], u32, &[u8]) = (EntryType::Regular, b"workspace/a", 0o644, b"1");
        for entries in [vec![], vec![file], vec![TASK, file, file], vec![TASK, TASK]] {
            assert!(read(&mut pack(&entries).as_slice()).is_err());
        }
        let large = vec![0; MAX_INPUT_BYTES];
        let bytes = pack(&[TASK, (EntryType::Regular, b"workspace/a", 0o644, &large)]);
        assert!(read(&mut bytes.as_slice()).unwrap_err().message.contains("30 MiB"));
    }

    #[test]
    fn survives_truncation_at_every_byte_and_changed_bytes() {
        let bytes = pack(&[TASK, (EntryType::Regular, b"workspace/a/b", 0o644, b"content")]);
        for end in 0..bytes.len() {
            let _ = read(&mut &bytes[..end]);
        }
        for at in 0..bytes.len() {
            for value in [0, b'/', b'7', 0xff] {
                let mut changed = bytes.clone();
                changed[at] = value;
                let _ = read(&mut changed.as_slice());
            }
        }
    }
}

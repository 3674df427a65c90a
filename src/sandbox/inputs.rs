//! The first content of a work folder: a task's input archive, checked entry by entry and written anew, so that what the
//! engine unpacks was made here. Never unpacked on the host.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};

use tar::{Archive, Builder, EntryType, Header};

use super::body::{STARTER, TASK_USER};

/// Entries of one archive: ten times what a large source tree has.
const MAX_ENTRIES: usize = 100_000;
/// As the kernel's limit for a path.
const MAX_PATH_BYTES: usize = 4_096;
/// The starter that the worker puts in for a task without a command.
const RUN_TASK: &[u8] = include_bytes!("run_task.sh");

/// Whether the worker's starter goes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Starter {
    /// The task has no command.
    Include,
    /// It has one.
    Omit,
}

/// Why an archive can't be taken.
#[derive(Debug)]
pub enum InputError {
    /// The task's fault: what is wrong with which entry.
    Refused(String),
    /// The node's: reading or writing failed.
    Io(io::Error),
}

impl fmt::Display for InputError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(reason) => write!(f, "inputs {reason}"),
            Self::Io(error) => write!(f, "can't prepare the inputs: {error}"),
        }
    }
}

impl std::error::Error for InputError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Refused(_) => None,
            Self::Io(error) => Some(error),
        }
    }
}

/// Writes the archive for the work folder to `out`: every entry of `inputs`, owned by the task's user, each parent
/// folder before what is in it, then the starter.
///
/// # Errors
/// The first entry that is no plain file or folder, that leads out of the work folder, or that is too much.
pub fn rewrite(inputs: impl Read, out: impl Write, max_bytes: u64, starter: Starter) -> Result<(), InputError> {
    let mut archive = Archive::new(inputs);
    let mut builder = Builder::new(out);
    let mut folders = BTreeSet::new();
    add_folders(&mut builder, &mut folders, Path::new("output")).map_err(InputError::Io)?;
    let mut total = 0u64;
    for (count, entry) in archive.entries().map_err(broken)?.enumerate() {
        if count >= MAX_ENTRIES {
            return Err(InputError::Refused(format!("has more than {MAX_ENTRIES} entries")));
        }
        let mut entry = entry.map_err(broken)?;
        let path = checked_path(&entry.path_bytes())?;
        let shown = path.display().to_string();
        let size = entry.header().entry_size().map_err(broken)?.max(entry.size());
        total = total.saturating_add(size);
        if total > max_bytes {
            return Err(InputError::Refused(format!(
                "unpacks to more than the task's disk limit of {max_bytes} bytes"
            )));
        }
        let mode = entry.header().mode().unwrap_or(0o644) & 0o777;
        match entry.header().entry_type() {
            EntryType::Directory => add_folders(&mut builder, &mut folders, &path).map_err(InputError::Io)?,
            EntryType::Regular | EntryType::Continuous => {
                let parent = path.parent().unwrap_or(Path::new(""));
                add_folders(&mut builder, &mut folders, parent).map_err(InputError::Io)?;
                if path.as_os_str().is_empty() || folders.contains(&path) {
                    return Err(InputError::Refused(format!("have a file {shown:?} where a folder must be")));
                }
                let mut header = header(EntryType::Regular, entry.size(), mode | 0o600);
                builder.append_data(&mut header, &path, &mut entry).map_err(broken)?;
            }
            kind => {
                return Err(InputError::Refused(format!(
                    "have the entry {shown:?} of type {kind:?}: only files and folders are taken"
                )));
            }
        }
    }
    if starter == Starter::Include {
        let size = RUN_TASK.len() as u64;
        builder.append_data(&mut header(EntryType::Regular, size, 0o755), STARTER, RUN_TASK).map_err(InputError::Io)?;
    }
    builder.into_inner().and_then(|mut out| out.flush()).map_err(InputError::Io)
}

/// An archive that gives the work folder itself its owner, to be put into `/` of the helper container.
pub fn owner_archive() -> io::Result<Vec<u8>> {
    let mut builder = Builder::new(Vec::new());
    builder.append_data(&mut header(EntryType::Directory, 0, 0o755), "workspace/", io::empty())?;
    builder.into_inner()
}

fn broken(error: io::Error) -> InputError {
    InputError::Refused(format!("are not a tar archive: {error}"))
}

fn checked_path(bytes: &[u8]) -> Result<PathBuf, InputError> {
    let refuse =
        |what: &str| InputError::Refused(format!("have the entry {:?}: {what}", String::from_utf8_lossy(bytes)));
    if bytes.len() > MAX_PATH_BYTES {
        return Err(InputError::Refused(format!("have an entry with a path of {} bytes", bytes.len())));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| refuse("its path is not UTF-8"))?;
    if text.chars().any(char::is_control) {
        return Err(refuse("its path has a control character"));
    }
    let mut path = PathBuf::new();
    for component in Path::new(text).components() {
        match component {
            Component::Normal(name) => path.push(name),
            Component::CurDir => {}
            _ => return Err(refuse("its path leads out of the work folder")),
        }
    }
    Ok(path)
}

fn add_folders<W: Write>(builder: &mut Builder<W>, known: &mut BTreeSet<PathBuf>, folder: &Path) -> io::Result<()> {
    let ancestors: Vec<&Path> = folder.ancestors().filter(|ancestor| !ancestor.as_os_str().is_empty()).collect();
    for ancestor in ancestors.into_iter().rev() {
        if known.insert(ancestor.to_owned()) {
            builder.append_data(&mut header(EntryType::Directory, 0, 0o755), ancestor, io::empty())?;
        }
    }
    Ok(())
}

fn header(kind: EntryType, size: u64, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header.set_uid(u64::from(TASK_USER));
    header.set_gid(u64::from(TASK_USER));
    header.set_mtime(0);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(entries: &[(EntryType, &str, &[u8])]) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        for (kind, path, content) in entries {
            let mut header = Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_size(content.len() as u64);
            header.set_mode(0o6777);
            // Written by hand, since the builder itself refuses hostile names.
            header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
            if matches!(kind, EntryType::Symlink | EntryType::Link) {
                header.set_link_name("/etc/passwd").unwrap();
            }
            header.set_cksum();
            builder.append(&header, *content).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn rewritten(bytes: &[u8], starter: Starter) -> Result<Vec<(String, u64, u32)>, InputError> {
        let mut out = Vec::new();
        rewrite(bytes, &mut out, 1 << 20, starter)?;
        let mut archive = Archive::new(out.as_slice());
        let entries = archive.entries().unwrap().map(|entry| {
            let entry = entry.unwrap();
            assert_eq!(entry.header().uid().unwrap(), 1000);
            (entry.path().unwrap().display().to_string(), entry.size(), entry.header().mode().unwrap())
        });
        Ok(entries.collect())
    }

    #[test]
    fn parents_come_first_and_belong_to_the_task() {
        let bytes = archive(&[(EntryType::Regular, "a/b/main.py", b"print()"), (EntryType::Directory, "./a/", b"")]);
        let entries = rewritten(&bytes, Starter::Include).unwrap();
        let expected = [
            ("output", 0, 0o755),
            ("a", 0, 0o755),
            ("a/b", 0, 0o755),
            ("a/b/main.py", 7, 0o777),
            ("run_task.sh", RUN_TASK.len() as u64, 0o755),
        ];
        assert_eq!(entries, expected.map(|(path, size, mode)| (path.to_owned(), size, mode)));
    }

    #[test]
    fn nothing_is_an_archive_without_entries() {
        assert_eq!(rewritten(b"", Starter::Omit).unwrap(), [("output".to_owned(), 0, 0o755)]);
    }

    #[test]
    fn refuses_what_leads_out_links_devices_and_floods() {
        let hostile = [
            (EntryType::Regular, "/etc/passwd"),
            (EntryType::Regular, "../x"),
            (EntryType::Regular, "a/../../x"),
            (EntryType::Regular, "a\nb"),
            (EntryType::Regular, "output"),
            (EntryType::Symlink, "link"),
            (EntryType::Link, "hard"),
            (EntryType::Fifo, "fifo"),
            (EntryType::Char, "char"),
            (EntryType::Block, "block"),
            (EntryType::GNUSparse, "sparse"),
        ];
        for (kind, path) in hostile {
            let result = rewritten(&archive(&[(kind, path, b"")]), Starter::Omit);
            assert!(matches!(result, Err(InputError::Refused(_))), "{kind:?} {path:?}: {result:?}");
        }
        let large = archive(&[(EntryType::Regular, "large", &vec![0; (1 << 20) + 1])]);
        assert!(matches!(rewritten(&large, Starter::Omit), Err(InputError::Refused(_))));
    }

    #[test]
    fn refuses_an_archive_cut_at_any_block_or_filled_with_noise() {
        let bytes = archive(&[(EntryType::Regular, "main.py", &[b'x'; 2_000])]);
        for len in (1..2_500).step_by(100) {
            assert!(rewritten(&bytes[..len], Starter::Omit).is_err(), "{len}");
        }
        let noise: Vec<u8> = (0u32..4_096).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        assert!(rewritten(&noise, Starter::Omit).is_err());
    }
}

//! The archive that the engine unpacks, as it grows: what may go into it, and how much. The readers of the formats bring
//! entries; whatever they bring, the bounds hold here.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};

use tar::{Builder, EntryType, Header};

use super::super::body::TASK_USER;
use super::InputError;

/// Entries of one archive, with the folders that it only implies: ten times what a large source tree has.
pub(super) const MAX_ENTRIES: usize = 100_000;
/// As the kernel's limit for a path.
pub(super) const MAX_PATH_BYTES: usize = 4_096;
/// As the kernel's limit for a name in a folder.
const MAX_NAME_BYTES: usize = 255;
/// Folders in folders: deeper than any source tree, and a bound for what one path implies.
const MAX_DEPTH: usize = 64;
/// Of all paths together, which are held in memory.
const MAX_NAMES_BYTES: usize = 16 << 20;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Folder,
    File,
}

/// See the module's text.
pub(super) struct Folder<W: Write> {
    builder: Builder<W>,
    known: BTreeMap<PathBuf, Kind>,
    entries: usize,
    names_bytes: usize,
    total_bytes: u64,
    max_bytes: u64,
}

/// A file on its way in.
pub(super) struct NewFile<'a> {
    pub(super) path: &'a Path,
    pub(super) mode: u32,
    /// The content must have just so many bytes.
    pub(super) size: u64,
}

impl<W: Write> Folder<W> {
    pub(super) fn new(out: W, max_bytes: u64) -> Result<Self, InputError> {
        let builder = Builder::new(out);
        let mut folder =
            Self { builder, known: BTreeMap::new(), entries: 0, names_bytes: 0, total_bytes: 0, max_bytes };
        folder.add_folder(Path::new("output"))?;
        Ok(folder)
    }

    /// Counts something of the archive, entry or not.
    pub(super) fn count(&mut self) -> Result<(), InputError> {
        self.entries += 1;
        if self.entries > MAX_ENTRIES {
            return Err(InputError::Refused(format!("have more than {MAX_ENTRIES} entries, implied folders counted")));
        }
        Ok(())
    }

    /// Counts bytes that the archive unpacks to, before they are looked at.
    pub(super) fn charge(&mut self, bytes: u64) -> Result<(), InputError> {
        self.total_bytes = self.total_bytes.saturating_add(bytes);
        if self.total_bytes > self.max_bytes {
            let max = self.max_bytes;
            return Err(InputError::Refused(format!("unpack to more than the task's disk limit of {max} bytes")));
        }
        Ok(())
    }

    /// The folder and those above it, as far as they aren't there.
    pub(super) fn add_folder(&mut self, folder: &Path) -> Result<(), InputError> {
        let ancestors: Vec<&Path> = folder.ancestors().filter(|ancestor| !ancestor.as_os_str().is_empty()).collect();
        for ancestor in ancestors.into_iter().rev() {
            match self.known.get(ancestor) {
                Some(Kind::Folder) => {}
                Some(Kind::File) => {
                    let shown = folder.display().to_string();
                    let file = ancestor.display().to_string();
                    return Err(InputError::Refused(format!("have the entry {shown:?} below the file {file:?}")));
                }
                None => {
                    self.know(ancestor, Kind::Folder)?;
                    let mut header = header(EntryType::Directory, 0, 0o755);
                    self.builder.append_data(&mut header, ancestor, io::empty()).map_err(InputError::Io)?;
                }
            }
        }
        Ok(())
    }

    /// The file, and the folders above it. One that comes again replaces the first, as in every tar archive.
    pub(super) fn add_file(&mut self, file: &NewFile<'_>, content: &mut dyn Read) -> Result<(), InputError> {
        let shown = file.path.display().to_string();
        self.add_folder(file.path.parent().unwrap_or(Path::new("")))?;
        match self.known.get(file.path) {
            _ if file.path.as_os_str().is_empty() => return Err(in_the_way(&shown)),
            Some(Kind::Folder) => return Err(in_the_way(&shown)),
            Some(Kind::File) => {}
            None => self.know(file.path, Kind::File)?,
        }
        let mut header = header(EntryType::Regular, file.size, (file.mode & 0o777) | 0o600);
        let mut exact = Exact { content, left: file.size, error: None };
        let written = self.builder.append_data(&mut header, file.path, &mut exact);
        match (exact.error, written) {
            (Some(error), _) if error.raw_os_error().is_none() => {
                Err(InputError::Refused(format!("have the entry {shown:?}, which can't be read: {error}")))
            }
            (Some(error), _) | (None, Err(error)) => Err(InputError::Io(error)),
            (None, Ok(())) => Ok(()),
        }
    }

    /// Whether a file of this path is there.
    pub(super) fn has_file(&self, path: &Path) -> bool {
        self.known.get(path) == Some(&Kind::File)
    }

    fn know(&mut self, path: &Path, kind: Kind) -> Result<(), InputError> {
        if kind == Kind::Folder {
            self.count()?;
        }
        self.names_bytes += path.as_os_str().len();
        if self.names_bytes > MAX_NAMES_BYTES {
            let max = MAX_NAMES_BYTES >> 20;
            return Err(InputError::Refused(format!("have paths of more than {max} MiB together")));
        }
        self.known.insert(path.to_owned(), kind);
        Ok(())
    }

    /// The end of the archive, after the starter.
    pub(super) fn finish(mut self, starter: Option<(&str, &[u8])>) -> Result<(), InputError> {
        if let Some((name, content)) = starter {
            if self.known.get(Path::new(name)) == Some(&Kind::Folder) {
                return Err(in_the_way(name));
            }
            let mut header = header(EntryType::Regular, content.len() as u64, 0o755);
            self.builder.append_data(&mut header, name, content).map_err(InputError::Io)?;
        }
        self.builder.into_inner().and_then(|mut out| out.flush()).map_err(InputError::Io)
    }
}

fn in_the_way(shown: &str) -> InputError {
    InputError::Refused(format!("have a file {shown:?} where a folder must be, or the other way round"))
}

/// So many bytes of a content, no less and no more; its failure is told from that of the other side.
struct Exact<'a> {
    content: &'a mut dyn Read,
    left: u64,
    error: Option<io::Error>,
}

impl Exact<'_> {
    fn try_read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            // Also what makes a reader that verifies a checksum do so.
            return match self.content.read(&mut [0])? {
                0 => Ok(0),
                _ => Err(io::Error::new(io::ErrorKind::InvalidData, "it is longer than the archive says")),
            };
        }
        let room = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        match self.content.read(&mut buffer[..room])? {
            0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it is shorter than the archive says")),
            count => {
                self.left -= count as u64;
                Ok(count)
            }
        }
    }
}

impl Read for Exact<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.try_read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let kind = error.kind();
                    self.error = Some(error);
                    return Err(kind.into());
                }
                count => return count,
            }
        }
    }
}

/// An entry's path below the work folder; empty for the folder itself.
pub(super) fn checked_path(bytes: &[u8]) -> Result<PathBuf, InputError> {
    let refuse =
        |what: &str| InputError::Refused(format!("have the entry {:?}: {what}", String::from_utf8_lossy(bytes)));
    if bytes.len() > MAX_PATH_BYTES {
        let len = bytes.len();
        return Err(InputError::Refused(format!(
            "have an entry with a path of {len} bytes: at most {MAX_PATH_BYTES} are taken"
        )));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| refuse("its path is not UTF-8"))?;
    if text.chars().any(char::is_control) {
        return Err(refuse("its path has a control character"));
    }
    let mut path = PathBuf::new();
    for (depth, component) in Path::new(text).components().enumerate() {
        match component {
            Component::Normal(name) if name.len() > MAX_NAME_BYTES => {
                return Err(refuse("a name in its path has more than 255 bytes"));
            }
            Component::Normal(_) if depth >= MAX_DEPTH => return Err(refuse("it lies more than 64 folders deep")),
            Component::Normal(name) => path.push(name),
            Component::CurDir => {}
            _ => return Err(refuse("its path leads out of the work folder")),
        }
    }
    Ok(path)
}

/// Of an entry that the task's user owns.
pub(super) fn header(kind: EntryType, size: u64, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header.set_uid(u64::from(TASK_USER));
    header.set_gid(u64::from(TASK_USER));
    header.set_mtime(0);
    header
}

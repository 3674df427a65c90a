//! The first content of a work folder: a task's input archive (tar, tar.gz or zip), checked entry by entry and written
//! anew, so that what the engine unpacks is an uncompressed tar that was made here. Never unpacked on the host.
//!
//! Which of the three it is, its first bytes tell. Left out on purpose: other compressions, whose decoders are large and
//! whose archives an author can pack again.

mod folder;
mod tarball;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_zip;
mod zipfile;

use std::fmt;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};

use flate2::bufread::MultiGzDecoder;
use tar::Builder;

use self::folder::Folder;
use super::body::STARTER;

/// The starter that the worker puts in for a task without a command.
const RUN_TASK: &[u8] = include_bytes!("run_task.sh");
/// In which an archive is read.
const BUFFER: usize = 64 << 10;

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

/// Of an archive that breaks off or contradicts itself, which is the task's fault; a disk that fails is the node's.
fn broken(what: &str, error: io::Error) -> InputError {
    if error.raw_os_error().is_some() {
        return InputError::Io(error);
    }
    InputError::Refused(format!("are {what}: {error}"))
}

/// What an archive's first bytes say that it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    /// No bytes, no entries.
    Nothing,
    Tar,
    Gzip,
    Zip,
    /// Known, and not taken.
    Other(&'static str),
}

impl Format {
    fn of(start: &[u8]) -> Self {
        const MAGICS: [(&[u8], Format); 10] = [
            (b"\x1f\x8b", Format::Gzip),
            (b"PK\x03\x04", Format::Zip),
            (b"PK\x05\x06", Format::Zip),
            (b"PK\x07\x08", Format::Other("a part of a split zip file")),
            (b"\xfd7zXZ\0", Format::Other("packed with xz")),
            (b"BZh", Format::Other("packed with bzip2")),
            (b"\x28\xb5\x2f\xfd", Format::Other("packed with zstd")),
            (b"\x04\x22\x4d\x18", Format::Other("packed with lz4")),
            (b"7z\xbc\xaf\x27\x1c", Format::Other("a 7z file")),
            (b"Rar!\x1a\x07", Format::Other("a RAR file")),
        ];
        if start.is_empty() {
            return Self::Nothing;
        }
        // A tar archive begins with a file's name, which could look like one of these.
        if start.get(257..262) == Some(b"ustar") {
            return Self::Tar;
        }
        MAGICS.iter().find(|(magic, _)| start.starts_with(magic)).map_or(Self::Tar, |(_, format)| *format)
    }
}

/// Writes the archive for the work folder to `out`: every entry of `inputs`, owned by the task's user, each parent
/// folder before what is in it, then the starter.
///
/// # Errors
/// The first entry that is no plain file or folder, that leads out of the work folder, or that is too much.
pub fn rewrite(
    mut inputs: impl Read + Seek,
    out: impl Write,
    max_bytes: u64,
    starter: Starter,
) -> Result<(), InputError> {
    let mut start = Vec::new();
    (&mut inputs).take(512).read_to_end(&mut start).map_err(InputError::Io)?;
    inputs.seek(SeekFrom::Start(0)).map_err(InputError::Io)?;
    let mut folder = Folder::new(out, max_bytes)?;
    match Format::of(&start) {
        Format::Nothing => {}
        Format::Tar => tarball::read(BufReader::with_capacity(BUFFER, inputs), &mut folder, tarball::NOT_TAR)?,
        Format::Gzip => {
            let unpacked = MultiGzDecoder::new(BufReader::with_capacity(BUFFER, inputs));
            tarball::read(BufReader::with_capacity(BUFFER, unpacked), &mut folder, tarball::NOT_TAR_GZ)?;
        }
        Format::Zip => zipfile::read(inputs, &mut folder)?,
        Format::Other(what) => {
            return Err(InputError::Refused(format!("are {what}: send a tar, tar.gz or zip archive")));
        }
    }
    folder.finish((starter == Starter::Include).then_some((STARTER, RUN_TASK)))
}

/// An archive that gives the work folder itself its owner, to be put into `/` of the helper container.
pub fn owner_archive() -> io::Result<Vec<u8>> {
    let mut builder = Builder::new(Vec::new());
    builder.append_data(&mut folder::header(tar::EntryType::Directory, 0, 0o755), "workspace/", io::empty())?;
    builder.into_inner()
}

//! Files into and out of a container, as uncompressed tar streams.
//!
//! Put only before the start and get only after the end: while the container runs, its processes could change the paths
//! under the engine's hands.

use std::io::{self, Read};
use std::time::Duration;

use super::Docker;
use super::call::{Call, Stream, operation};
use super::containers::container;
use super::error::Error;
use super::transport::Patience;

/// How the engine recognises compressed archives. It then runs a decompressor as root, so such bytes are never sent.
const COMPRESSED: [&[u8]; 4] = [b"BZh", b"\x1f\x8b\x08", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"];
/// Zstandard's skippable frames: any first byte from 0x50 to 0x5f, then this.
const ZSTD_SKIPPABLE: &[u8] = b"\x2a\x4d\x18";
/// Enough of the archive to recognise all of them.
const MAGIC: usize = 6;

/// The tar stream of a path in a container. Errors are [`Error`] inside an [`io::Error`].
pub struct ArchiveReader {
    stream: Stream,
}

impl Docker {
    /// Unpacks an uncompressed tar into a folder of the container, of any length. `idle` bounds each gap, in our reading
    /// not included.
    ///
    /// The engine guesses compression from the first bytes, which are the first entry's name: an archive that begins
    /// with such a name is refused. Begin it with a folder entry.
    pub fn put_archive(&self, id: &str, folder: &str, tar: &mut dyn Read, idle: Duration) -> Result<(), Error> {
        let operation = operation("put files into container", id);
        let mut body = uncompressed(tar).map_err(|source| Error::Input { operation: operation.clone(), source })?;
        let target = container(id).word("archive").query("path", folder).query("noOverwriteDirNonDir", "1");
        let patience = Patience::Idle(self.timeouts().slow.max(idle), Some(idle));
        self.send(Call::put(target, operation).archive(&mut body).patience(patience)).map(drop)
    }

    /// A file or folder of the container as a tar stream. `idle` bounds each gap.
    pub fn get_archive(&self, id: &str, path: &str, idle: Duration) -> Result<ArchiveReader, Error> {
        let target = container(id).word("archive").query("path", path);
        let patience = Patience::Idle(self.timeouts().slow.min(idle), Some(idle));
        let reply = self.send(Call::get(target, operation("get files from container", id)).patience(patience))?;
        Ok(ArchiveReader { stream: reply.body })
    }
}

impl Read for ArchiveReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(self.stream.read_some(buffer)?)
    }
}

/// The same stream, after a look at its first bytes.
pub(super) fn uncompressed(tar: &mut dyn Read) -> io::Result<impl Read> {
    let mut head = [0; MAGIC];
    let filled = fill(tar, &mut head)?;
    check_uncompressed(&head[..filled])?;
    Ok(io::Cursor::new(head).take(filled as u64).chain(tar))
}

fn fill(reader: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

fn check_uncompressed(head: &[u8]) -> io::Result<()> {
    let skippable = matches!(head, [0x50..=0x5f, rest @ ..] if rest.starts_with(ZSTD_SKIPPABLE));
    if skippable || COMPRESSED.iter().any(|magic| head.starts_with(magic)) {
        let what = "the archive begins like a compressed one, or its first entry is named like that";
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_what_the_engine_would_decompress() {
        for head in
            [&b"BZh91A"[..], b"\x1f\x8b\x08\0\0\0", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd\0\0", b"\x5a\x2a\x4d\x18\0\0"]
        {
            assert!(check_uncompressed(head).is_err(), "{head:?}");
        }
        for head in [&b""[..], b"./", b"main.p", b"\0\0\0\0\0\0", b"BZ", b"P*M"] {
            assert!(check_uncompressed(head).is_ok(), "{head:?}");
        }
    }
}

//! Tar archives, packed by gzip or not. The crate finds the entries; what the extension headers mean is read here, because
//! the crate would hold them in memory however large they say they are.

use std::io::{self, Read, Write};

use tar::{Archive, Entry, EntryType};

use super::folder::{Folder, MAX_PATH_BYTES, NewFile, checked_path};
use super::{InputError, broken};

/// What an archive is that can't be read, by its format.
pub(super) const NOT_TAR: &str = "not a tar archive";
/// See [`NOT_TAR`].
pub(super) const NOT_TAR_GZ: &str = "not a tar archive packed with gzip";
/// Records of one extended header: a path, and what some programs keep of a file's attributes.
const MAX_PAX_BYTES: u64 = 64 << 10;
/// Zeros behind the end mark; some programs fill up blocks of up to this.
const MAX_PADDING: u64 = 1 << 20;

/// What the headers before an entry say of it.
#[derive(Default)]
struct Ahead {
    path: Option<Vec<u8>>,
    is_described: bool,
}

/// Puts every entry of the archive into the folder. `what` is told of an archive that can't be read.
pub(super) fn read<W: Write>(source: impl Read, folder: &mut Folder<W>, what: &'static str) -> Result<(), InputError> {
    let broken = |error| broken(what, error);
    let mut source = Watched { source, is_at_end: false };
    let mut archive = Archive::new(&mut source);
    let mut ahead = Ahead::default();
    for entry in archive.entries().map_err(broken)?.raw(true) {
        let mut entry = entry.map_err(broken)?;
        folder.count()?;
        folder.charge(entry.size())?;
        match entry.header().entry_type() {
            EntryType::GNULongName => ahead.set_path(long_name(&mut entry).map_err(broken)?)?,
            EntryType::XHeader => {
                if let Some(path) = pax_path(&mut entry)? {
                    ahead.set_path(path)?;
                }
                ahead.is_described = true;
            }
            // Of the link that follows and is refused; of the whole archive, as git's with the commit in it.
            EntryType::GNULongLink | EntryType::XGlobalHeader => {}
            _ => add(folder, &mut entry, std::mem::take(&mut ahead))?,
        }
    }
    if ahead.is_described || ahead.path.is_some() {
        return Err(InputError::Refused(format!("are {what}: it ends after the description of an entry")));
    }
    if source.is_at_end {
        return Err(InputError::Refused(format!("are {what}: it breaks off before its end mark")));
    }
    read_padding(&mut source.source).map_err(broken)
}

impl Ahead {
    fn set_path(&mut self, path: Vec<u8>) -> Result<(), InputError> {
        if self.path.is_some() {
            let path = String::from_utf8_lossy(&path).into_owned();
            return Err(InputError::Refused(format!("have the entry {path:?} under two long names")));
        }
        self.path = Some(path);
        Ok(())
    }
}

fn add<W: Write>(folder: &mut Folder<W>, entry: &mut Entry<'_, impl Read>, ahead: Ahead) -> Result<(), InputError> {
    let name = ahead.path.unwrap_or_else(|| entry.header().path_bytes().into_owned());
    let path = checked_path(&name)?;
    let mode = entry.header().mode().unwrap_or(0o644);
    match entry.header().entry_type() {
        EntryType::Directory => folder.add_folder(&path),
        // How tar archives had folders before they had a type for them.
        EntryType::Regular if name.ends_with(b"/") && entry.size() == 0 => folder.add_folder(&path),
        EntryType::Regular | EntryType::Continuous => {
            let file = NewFile { path: &path, mode, size: entry.size() };
            folder.add_file(&file, entry)
        }
        kind => Err(InputError::Refused(format!(
            "have the entry {:?} of type {kind:?}: only files and folders are taken",
            path.display().to_string()
        ))),
    }
}

fn long_name(entry: &mut Entry<'_, impl Read>) -> io::Result<Vec<u8>> {
    let mut name = read_small(entry, MAX_PATH_BYTES as u64 + 1)?;
    while name.last() == Some(&0) {
        name.pop();
    }
    Ok(name)
}

/// The path that an extended header gives, if it gives one.
fn pax_path(entry: &mut Entry<'_, impl Read>) -> Result<Option<Vec<u8>>, InputError> {
    let records = read_small(entry, MAX_PAX_BYTES).map_err(|error| broken(NOT_TAR, error))?;
    let mut path = None;
    let mut rest = records.as_slice();
    while !rest.is_empty() {
        let Some((key, value, behind)) = pax_record(rest) else {
            return Err(InputError::Refused(format!(
                "are {NOT_TAR}: an extended header has a record without its length"
            )));
        };
        rest = behind;
        match key {
            b"path" => path = Some(value.to_vec()),
            // In the header itself there is room for 8 GiB. Where two sizes are given, readers disagree on where the
            // next entry begins.
            b"size" => {
                return Err(InputError::Refused(
                    "have an entry with its size in an extended header: files have at most 8 GiB".to_owned(),
                ));
            }
            key if key.starts_with(b"GNU.sparse.") => {
                return Err(InputError::Refused("have a sparse file: pack it as a whole one".to_owned()));
            }
            _ => {}
        }
    }
    Ok(path)
}

/// `LENGTH KEY=VALUE\n`, where the length counts the whole record; and what is behind it.
fn pax_record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
    let (record, behind) = bytes.split_at_checked(length)?;
    let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some((&record[..equals], &record[equals + 1..], behind))
}

fn read_small(entry: &mut Entry<'_, impl Read>, max: u64) -> io::Result<Vec<u8>> {
    let size = entry.size();
    if size > max {
        let text = format!("an extension header has {size} bytes, at most {max} are taken");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let mut bytes = Vec::new();
    entry.read_to_end(&mut bytes)?;
    if bytes.len() as u64 != size {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(bytes)
}

/// To the end of the source, so that a checksum there is checked, and nothing is lost unsaid.
fn read_padding(source: &mut impl Read) -> io::Result<()> {
    let mut buffer = [0; 4_096];
    let mut total = 0;
    loop {
        let count = match source.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            count => count?,
        };
        total += count as u64;
        if buffer[..count].iter().any(|byte| *byte != 0) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it has something behind its end mark"));
        }
        match count {
            0 => return Ok(()),
            _ if total > MAX_PADDING => {
                let text = format!("it has more than {} MiB of zeros behind its end mark", MAX_PADDING >> 20);
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
            _ => {}
        }
    }
}

/// Remembers whether the source has ended: the crate takes that for an end mark.
struct Watched<R> {
    source: R,
    is_at_end: bool,
}

impl<R: Read> Read for Watched<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buffer)?;
        self.is_at_end |= count == 0 && !buffer.is_empty();
        Ok(count)
    }
}

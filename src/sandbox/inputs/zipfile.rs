//! Zip archives. The directory at the end is what counts, as for every program that unpacks them; where the header before
//! an entry's data says something else, the archive is refused, since it means to show two faces.

use std::io::{BufReader, Read, Seek, SeekFrom, Write};

use flate2::bufread::DeflateDecoder;
use rawzip::{CompressionMethod, Error, ErrorKind, ReaderAt, ZipArchive, ZipEntry, ZipFileHeaderRecord};

use super::folder::{Folder, MAX_ENTRIES, NewFile, checked_path};
use super::{InputError, broken};

/// Name, extra field and comment of an entry have at most 64 KiB each.
const BUFFER: usize = 256 << 10;
/// In which packed data is read.
const PACKED_BUFFER: usize = 32 << 10;
/// Of a file's type in a Unix mode.
const TYPE_MASK: u32 = 0o170_000;
const FOLDER: u32 = 0o040_000;
const FILE: u32 = 0o100_000;

/// Puts every entry of the archive into the folder.
pub(super) fn read<W: Write>(mut source: impl Read + Seek, folder: &mut Folder<W>) -> Result<(), InputError> {
    let len = source.seek(SeekFrom::End(0)).map_err(InputError::Io)?;
    let mut buffer = vec![0; BUFFER];
    let archive = ZipArchive::from_seekable(source, &mut buffer).map_err(not_zip)?;
    if archive.end_offset() != len {
        return Err(InputError::Refused("are a zip archive with something behind its end".to_owned()));
    }
    check_places(&archive, &mut buffer)?;
    let mut local = vec![0; BUFFER];
    let mut entries = archive.entries(&mut buffer);
    while let Some(record) = entries.next_entry().map_err(not_zip)? {
        folder.count()?;
        folder.charge(record.uncompressed_size_hint())?;
        let entry = archive.get_entry(record.wayfinder()).map_err(not_zip)?;
        check_local(&record, &entry, &mut local)?;
        add(folder, &record, &entry)?;
    }
    Ok(())
}

/// That the directory has as many entries as it says, and that no two share their bytes: such an archive can unpack to
/// a million times its size.
fn check_places<R: ReaderAt>(archive: &ZipArchive<R>, buffer: &mut [u8]) -> Result<(), InputError> {
    let mut places = Vec::new();
    let mut entries = archive.entries(buffer);
    while let Some(record) = entries.next_entry().map_err(not_zip)? {
        if places.len() >= MAX_ENTRIES {
            return Err(InputError::Refused(format!("have more than {MAX_ENTRIES} entries")));
        }
        let entry = archive.get_entry(record.wayfinder()).map_err(not_zip)?;
        places.push((record.local_header_offset(), entry.compressed_data_range().1));
    }
    if places.len() as u64 != archive.entries_hint() {
        let (found, told) = (places.len(), archive.entries_hint());
        return Err(InputError::Refused(format!("are a zip archive of {found} entries that says it has {told}")));
    }
    places.sort_unstable();
    let overlaps = places.windows(2).any(|pair| pair[0].1 > pair[1].0);
    if overlaps || places.last().is_some_and(|last| last.1 > archive.directory_offset()) {
        return Err(InputError::Refused("are a zip archive in which entries overlap".to_owned()));
    }
    Ok(())
}

fn check_local<R: ReaderAt>(
    record: &ZipFileHeaderRecord<'_>,
    entry: &ZipEntry<'_, R>,
    buffer: &mut [u8],
) -> Result<(), InputError> {
    let local = entry.local_header(buffer).map_err(not_zip)?;
    let has_sizes = !local.flags().has_data_descriptor();
    let is_same = local.file_path().as_ref() == record.file_path().as_ref()
        && local.compression_method() == record.compression_method()
        && local.flags().is_encrypted() == record.flags().is_encrypted()
        && local.flags().has_data_descriptor() == record.flags().has_data_descriptor()
        && (!has_sizes
            || (local.crc32() == record.crc32()
                && local.compressed_size_hint() == record.compressed_size_hint()
                && local.uncompressed_size_hint() == record.uncompressed_size_hint()));
    if is_same {
        return Ok(());
    }
    Err(refuse(record, "the directory of the zip archive and the entry itself say different things"))
}

fn add<W: Write, R: ReaderAt>(
    folder: &mut Folder<W>,
    record: &ZipFileHeaderRecord<'_>,
    entry: &ZipEntry<'_, R>,
) -> Result<(), InputError> {
    let name = record.file_path();
    let name: &[u8] = name.as_ref();
    let path = checked_path(name)?;
    if name.contains(&b'\\') {
        return Err(refuse(record, "its path has a backslash: pack it with '/' between folders"));
    }
    let flags = record.flags();
    if flags.is_encrypted() || flags.has_strong_encryption() || record.compression_method() == CompressionMethod::AES {
        return Err(refuse(record, "it is encrypted: pack it without a password"));
    }
    // Whoever made it: a program on another system leaves these at zero.
    let mode = record.external_attributes() >> 16;
    let size = record.uncompressed_size_hint();
    match mode & TYPE_MASK {
        0 | FOLDER | FILE if name.ends_with(b"/") || mode & TYPE_MASK == FOLDER => {
            if size > 0 {
                return Err(refuse(record, "it is a folder with content"));
            }
            folder.add_folder(&path)
        }
        0 | FILE => {
            if folder.has_file(&path) {
                return Err(refuse(record, "it is there twice"));
            }
            let mode = if mode & 0o777 == 0 { 0o644 } else { mode };
            let file = NewFile { path: &path, mode, size };
            let packed = entry.reader();
            match record.compression_method() {
                CompressionMethod::STORE => folder.add_file(&file, &mut entry.verifying_reader(packed)),
                CompressionMethod::DEFLATE => {
                    let unpacked = DeflateDecoder::new(BufReader::with_capacity(PACKED_BUFFER, packed));
                    folder.add_file(&file, &mut entry.verifying_reader(unpacked))
                }
                method => Err(refuse(record, &format!("it is packed by {method}: only store and deflate are read"))),
            }
        }
        _ => Err(refuse(
            record,
            &format!("it is a link, pipe or device (mode {mode:o}): only files and folders are taken"),
        )),
    }
}

fn refuse(record: &ZipFileHeaderRecord<'_>, what: &str) -> InputError {
    let name = record.file_path();
    InputError::Refused(format!("have the entry {:?}: {what}", String::from_utf8_lossy(name.as_ref())))
}

fn not_zip(error: Error) -> InputError {
    let what = "not a zip archive that can be read";
    match error.into_kind() {
        ErrorKind::IO(error) => broken(what, error),
        kind => InputError::Refused(format!("are {what}: {kind}")),
    }
}

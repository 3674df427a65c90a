//! Zip archives by their bytes (APPNOTE 6.3.10, sections 4.3.7, 4.3.12 and 4.3.16), with what a hostile one can have.

use flate2::Compression;
use flate2::write::DeflateEncoder;

use super::tests::{check_cuts, check_mutations, expected, refusal, rewritten};
use super::*;

/// One entry, as its two headers say it.
#[derive(Clone)]
struct Zipped {
    name: Vec<u8>,
    /// In the local header, where it is another.
    local_name: Option<Vec<u8>>,
    content: Vec<u8>,
    method: u16,
    flags: u16,
    mode: u32,
    /// Sizes that the directory tells in place of the true ones.
    packed_size: Option<u32>,
    size: Option<u32>,
    crc: Option<u32>,
    has_descriptor: bool,
}

fn zipped(name: &str, content: &[u8]) -> Zipped {
    Zipped {
        name: name.as_bytes().to_vec(),
        local_name: None,
        content: content.to_vec(),
        method: 8,
        flags: 0,
        mode: 0o100_644,
        packed_size: None,
        size: None,
        crc: None,
        has_descriptor: false,
    }
}

fn put(bytes: &mut Vec<u8>, fields: &[(u64, usize)]) {
    for (value, len) in fields {
        bytes.extend_from_slice(&value.to_le_bytes()[..*len]);
    }
}

impl Zipped {
    fn packed(&self) -> Vec<u8> {
        if self.method != 8 {
            return self.content.clone();
        }
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(&self.content).unwrap();
        encoder.finish().unwrap()
    }

    fn flags(&self) -> u64 {
        u64::from(self.flags) | if self.has_descriptor { 8 } else { 0 }
    }

    /// CRC, packed size, size: 4 bytes each.
    fn sums(&self) -> [(u64, usize); 3] {
        let crc = self.crc.unwrap_or_else(|| rawzip::crc32(&self.content));
        let packed = self.packed_size.map_or(self.packed().len() as u64, u64::from);
        [(crc.into(), 4), (packed, 4), (self.size.map_or(self.content.len() as u64, u64::from), 4)]
    }

    fn local(&self) -> Vec<u8> {
        let name = self.local_name.as_ref().unwrap_or(&self.name);
        let mut bytes = b"PK\x03\x04".to_vec();
        put(&mut bytes, &[(20, 2), (self.flags(), 2), (self.method.into(), 2), (0, 2), (0x21, 2)]);
        put(&mut bytes, &if self.has_descriptor { [(0, 4); 3] } else { self.sums() });
        put(&mut bytes, &[(name.len() as u64, 2), (0, 2)]);
        bytes.extend_from_slice(name);
        bytes.extend(self.packed());
        if self.has_descriptor {
            bytes.extend_from_slice(b"PK\x07\x08");
            put(&mut bytes, &self.sums());
        }
        bytes
    }

    fn central(&self, offset: u64) -> Vec<u8> {
        let mut bytes = b"PK\x01\x02".to_vec();
        // Made by version 2.0 on Unix.
        put(&mut bytes, &[(0x0314, 2), (20, 2), (self.flags(), 2), (self.method.into(), 2), (0, 2), (0x21, 2)]);
        put(&mut bytes, &self.sums());
        put(&mut bytes, &[(self.name.len() as u64, 2), (0, 2), (0, 2), (0, 2), (0, 2)]);
        put(&mut bytes, &[(u64::from(self.mode) << 16, 4), (offset, 4)]);
        bytes.extend_from_slice(&self.name);
        bytes
    }
}

fn end(count: u64, size: u64, offset: u64) -> Vec<u8> {
    let mut bytes = b"PK\x05\x06".to_vec();
    put(&mut bytes, &[(0, 2), (0, 2), (count, 2), (count, 2), (size, 4), (offset, 4), (0, 2)]);
    bytes
}

fn zip(entries: &[Zipped]) -> Vec<u8> {
    let (mut bytes, mut directory) = (Vec::new(), Vec::new());
    for entry in entries {
        directory.extend(entry.central(bytes.len() as u64));
        bytes.extend(entry.local());
    }
    let (offset, size) = (bytes.len() as u64, directory.len() as u64);
    bytes.extend(directory);
    bytes.extend(end(entries.len() as u64, size, offset));
    bytes
}

pub(super) fn stored(name: &str, content: &[u8]) -> Vec<u8> {
    zip(&[Zipped { method: 0, ..zipped(name, content) }])
}

fn small() -> Vec<u8> {
    zip(&[
        Zipped { mode: 0o040_755, method: 0, ..zipped("empty/", b"") },
        Zipped { mode: 0o100_755, ..zipped("a/b/main.py", b"print()print()print()") },
        Zipped { method: 0, ..zipped("stored", b"as it is") },
        Zipped { has_descriptor: true, ..zipped("streamed", b"its sizes come behind it") },
    ])
}

#[test]
fn files_and_folders_come_out_as_they_went_in() {
    let entries = [
        ("empty", 0, 0o755),
        ("a", 0, 0o755),
        ("a/b", 0, 0o755),
        ("a/b/main.py", 21, 0o755),
        ("stored", 8, 0o644),
        ("streamed", 24, 0o644),
    ];
    assert_eq!(rewritten(&small(), Starter::Omit).unwrap(), expected(&entries));
    assert_eq!(rewritten(&zip(&[]), Starter::Omit).unwrap(), expected(&[]));
    // A folder by its mode alone, a mode that nobody set, names in UTF-8 with and without the flag that says so.
    let odd = zip(&[
        Zipped { mode: 0o040_700, method: 0, ..zipped("by-mode", b"") },
        Zipped { mode: 0, ..zipped("no-mode", b"1") },
        Zipped { flags: 1 << 11, ..zipped("é", b"1") },
        zipped("ü", b"1"),
    ]);
    let entries = [("by-mode", 0, 0o755), ("no-mode", 1, 0o644), ("é", 1, 0o644), ("ü", 1, 0o644)];
    assert_eq!(rewritten(&odd, Starter::Omit).unwrap(), expected(&entries));
}

#[test]
fn refuses_hostile_entries_by_name() {
    let differ = "the directory of the zip archive and the entry itself say different things";
    let out = "its path leads out of the work folder";
    let kinds = "only files and folders are taken";
    let bad = "which can't be read";
    for (entry, reason) in [
        (zipped("/etc/passwd", b""), out),
        (zipped("../x", b""), out),
        (zipped("a/../../x", b""), out),
        (zipped("a\\b", b""), "its path has a backslash"),
        (zipped("..\\x", b""), "its path has a backslash"),
        (zipped("a\0b", b""), "a control character"),
        (Zipped { name: b"\x82\x8a".to_vec(), ..zipped("", b"") }, "is not UTF-8"),
        (zipped("", b"x"), "where a folder must be"),
        (zipped("output", b""), "where a folder must be"),
        (zipped("folder/", b"content"), "it is a folder with content"),
        (Zipped { mode: 0o120_777, ..zipped("link", b"/etc/passwd") }, kinds),
        (Zipped { mode: 0o010_644, ..zipped("fifo", b"") }, kinds),
        (Zipped { mode: 0o020_644, ..zipped("char", b"") }, kinds),
        (Zipped { mode: 0o060_644, ..zipped("block", b"") }, kinds),
        (Zipped { mode: 0o140_644, ..zipped("socket", b"") }, kinds),
        (Zipped { flags: 1, ..zipped("secret", b"x") }, "it is encrypted"),
        (Zipped { flags: 1 << 6, ..zipped("secret", b"x") }, "it is encrypted"),
        (Zipped { method: 99, ..zipped("secret", b"x") }, "it is encrypted"),
        (Zipped { method: 12, ..zipped("bz", b"x") }, "it is packed by 12 (BZIP2): only store and deflate"),
        (Zipped { method: 93, ..zipped("zstd", b"x") }, "only store and deflate are read"),
        (Zipped { local_name: Some(b"good".to_vec()), ..zipped("evil", b"x") }, differ),
        (Zipped { crc: Some(7), ..zipped("sum", b"x") }, bad),
        (Zipped { size: Some(2), ..zipped("longer", b"x") }, bad),
        (Zipped { size: Some(1), ..zipped("shorter", b"xyz") }, bad),
        (Zipped { size: Some(0), ..zipped("none", b"xyz") }, bad),
        (Zipped { method: 0, size: Some(9), ..zipped("stored", b"xyz") }, bad),
        (Zipped { size: Some(u32::MAX - 1), ..zipped("bomb", b"x") }, "more than the task's disk limit"),
    ] {
        let told = refusal(&zip(std::slice::from_ref(&entry)));
        assert!(told.contains(reason), "{:?}: {told}", String::from_utf8_lossy(&entry.name));
        // In words that name it, but for the sum of all.
        let name = format!("{:?}", String::from_utf8_lossy(&entry.name));
        assert!(told.contains(&name) || told.contains("disk limit"), "{told}");
    }
    let twice = zip(&[zipped("f", b"1"), zipped("./f", b"2")]);
    assert!(refusal(&twice).contains(r#"have the entry "./f": it is there twice"#), "{}", refusal(&twice));
    let below = zip(&[zipped("f", b"1"), zipped("f/x", b"2")]);
    assert!(refusal(&below).contains("below the file"));
}

/// Where the local header has other sizes, without a descriptor that would excuse it.
#[test]
fn local_sizes_must_be_those_of_the_directory() {
    let entry = zipped("f", b"content");
    let mut bytes = entry.local();
    let offset = bytes.len() as u64;
    bytes[22] ^= 1;
    let directory = entry.central(0);
    bytes.extend_from_slice(&directory);
    bytes.extend(end(1, directory.len() as u64, offset));
    assert!(refusal(&bytes).contains("say different things"), "{}", refusal(&bytes));
}

/// Many entries over the same bytes: David Fifield's bomb without nesting, and its plainest form.
#[test]
fn entries_that_share_bytes_are_refused() {
    let entry = zipped("0", &[0; 50_000]);
    let mut bytes = entry.local();
    let offset = bytes.len() as u64;
    let mut directory = Vec::new();
    for i in 0..8u8 {
        directory.extend(Zipped { name: vec![b'0' + i], ..entry.clone() }.central(0));
    }
    bytes.extend_from_slice(&directory);
    bytes.extend(end(8, directory.len() as u64, offset));
    assert!(refusal(&bytes).contains("entries overlap"), "{}", refusal(&bytes));
    // Into the directory itself.
    let long = Zipped { method: 0, packed_size: Some(60), size: Some(60), ..zipped("f", b"short") };
    assert!(refusal(&zip(&[long])).contains("entries overlap"));
}

#[test]
fn counts_and_ends_must_be_true() {
    let mut few = small();
    let at = few.len() - 12;
    few[at] = 3;
    few[at - 2] = 3;
    assert!(refusal(&few).contains("of 4 entries that says it has 3"), "{}", refusal(&few));
    let tail = [small(), b"tail".to_vec()].concat();
    assert!(refusal(&tail).contains("something behind its end"), "{}", refusal(&tail));
    let many: Vec<_> = (0..100_001).map(|i| Zipped { method: 0, ..zipped(&i.to_string(), b"") }).collect();
    assert!(refusal(&zip(&many)).contains("more than 100000 entries"), "{}", refusal(&zip(&many)));
}

#[test]
fn cuts_and_mutations_of_zip() {
    check_cuts(&small());
    check_mutations(&small(), 10_000, 3);
}

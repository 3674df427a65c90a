//! Tar archives, plain and packed, with what a hostile one can have; what `rewrite` promises of each.

use std::io::Cursor;

use flate2::Compression;
use flate2::write::GzEncoder;
use tar::{Archive, EntryType, Header};

use super::*;

pub(super) const MAX_BYTES: u64 = 1 << 20;
/// Of what is put in beside the entries' content: headers, padding, end mark.
const MAX_OVERHEAD: usize = 64 << 10;

pub(super) type Entries = Vec<(String, u64, u32)>;

pub(super) fn rewritten(bytes: &[u8], starter: Starter) -> Result<Entries, InputError> {
    let mut out = Vec::new();
    rewrite(Cursor::new(bytes), &mut out, MAX_BYTES, starter)?;
    let mut archive = Archive::new(out.as_slice());
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        assert_eq!(entry.header().uid().unwrap(), 1000);
        let kind = entry.header().entry_type();
        assert!(matches!(kind, EntryType::Regular | EntryType::Directory), "{kind:?}");
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        assert_eq!(content.len() as u64, entry.size());
        (entry.path().unwrap().display().to_string(), entry.size(), entry.header().mode().unwrap())
    });
    Ok(entries.collect())
}

/// The reason why an archive is refused, by the task's fault.
pub(super) fn refusal(bytes: &[u8]) -> String {
    match rewritten(bytes, Starter::Omit) {
        Err(error @ InputError::Refused(_)) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

pub(super) fn expected(entries: &[(&str, u64, u32)]) -> Entries {
    let first = ("output".to_owned(), 0, 0o755);
    let rest = entries.iter().map(|(path, size, mode)| ((*path).to_owned(), *size, *mode));
    std::iter::once(first).chain(rest).collect()
}

/// A member by its bytes: the builder itself would refuse hostile names.
fn member(kind: EntryType, path: &[u8], content: &[u8]) -> Vec<u8> {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(content.len() as u64);
    header.set_mode(0o6777);
    header.as_old_mut().name[..path.len()].copy_from_slice(path);
    if matches!(kind, EntryType::Symlink | EntryType::Link) {
        header.set_link_name("/etc/passwd").unwrap();
    }
    header.set_cksum();
    let mut bytes = [header.as_bytes(), content].concat();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn closed(members: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = members.concat();
    bytes.resize(bytes.len() + 1_024, 0);
    bytes
}

fn archive(entries: &[(EntryType, &str, &[u8])]) -> Vec<u8> {
    let members: Vec<_> = entries.iter().map(|(kind, path, content)| member(*kind, path.as_bytes(), content)).collect();
    closed(&members)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn small() -> Vec<u8> {
    archive(&[(EntryType::Regular, "a/b/main.py", b"print()"), (EntryType::Directory, "./a/", b"")])
}

#[test]
fn parents_come_first_and_belong_to_the_task() {
    let entries = rewritten(&small(), Starter::Include).unwrap();
    let starter = ("run_task.sh", RUN_TASK.len() as u64, 0o755);
    assert_eq!(entries, expected(&[("a", 0, 0o755), ("a/b", 0, 0o755), ("a/b/main.py", 7, 0o777), starter]));
    assert_eq!(rewritten(&gzip(&small()), Starter::Include).unwrap(), entries);
}

#[test]
fn nothing_is_an_archive_without_entries() {
    assert_eq!(rewritten(b"", Starter::Omit).unwrap(), expected(&[]));
    assert_eq!(rewritten(&closed(&[]), Starter::Omit).unwrap(), expected(&[]));
    assert_eq!(rewritten(&gzip(&closed(&[])), Starter::Omit).unwrap(), expected(&[]));
}

#[test]
fn odd_but_honest_archives_are_taken() {
    let pax = |records: &[u8]| member(EntryType::XHeader, b"PaxHeaders/x", records);
    let long = "l".repeat(200);
    let pax_long = format!("212 path=d/{long}\n27 mtime=1700000000.123456\n");
    for (members, entries) in [
        (vec![member(EntryType::Regular, b"old/", b"")], vec![("old", 0, 0o755)]),
        (
            vec![
                member(EntryType::XGlobalHeader, b"pax_global_header", b"52 comment=x\n"),
                member(EntryType::Regular, b"f", b"1"),
            ],
            vec![("f", 1, 0o777)],
        ),
        (
            vec![pax(pax_long.as_bytes()), member(EntryType::Regular, b"short", b"1")],
            vec![("d", 0, 0o755), (&format!("d/{long}"), 1, 0o777)],
        ),
        (
            vec![
                member(EntryType::GNULongName, b"././@LongLink", long.as_bytes()),
                member(EntryType::Regular, b"s", b"1"),
            ],
            vec![(&long, 1, 0o777)],
        ),
        // A later member replaces an earlier one, as with `tar -r`.
        (
            vec![member(EntryType::Regular, b"f", b"1"), member(EntryType::Regular, b"f", b"22")],
            vec![("f", 1, 0o777), ("f", 2, 0o777)],
        ),
        // Named like another format.
        (vec![member(EntryType::Regular, b"BZh.py", b"1")], vec![("BZh.py", 1, 0o777)]),
        (vec![member(EntryType::Regular, b"a\\b", b"1")], vec![("a\\b", 1, 0o777)]),
        (vec![member(EntryType::Directory, b"./", b"")], vec![]),
    ] {
        assert_eq!(rewritten(&closed(&members), Starter::Omit).unwrap(), expected(&entries));
    }
    let mut padded = small();
    padded.resize(1 << 20, 0);
    assert_eq!(rewritten(&padded, Starter::Omit).unwrap().len(), 4);
}

#[test]
fn refuses_what_leads_out_links_devices_and_floods() {
    let only = "only files and folders are taken";
    let out = "its path leads out of the work folder";
    let deep = "d/".repeat(65) + "f";
    let long = "n".repeat(256);
    for (kind, path, reason) in [
        (EntryType::Regular, "/etc/passwd", out),
        (EntryType::Regular, "../x", out),
        (EntryType::Regular, "a/../../x", out),
        (EntryType::Directory, "..", out),
        (EntryType::Regular, "a\nb", "its path has a control character"),
        (EntryType::Regular, "a\u{1b}[2J", "its path has a control character"),
        (EntryType::Regular, "a\u{85}", "its path has a control character"),
        (EntryType::Regular, "output", "where a folder must be"),
        (EntryType::Regular, "", "where a folder must be"),
        (EntryType::Regular, "./", "where a folder must be"),
        (EntryType::Symlink, "link", only),
        (EntryType::Link, "hard", only),
        (EntryType::Fifo, "fifo", only),
        (EntryType::Char, "char", only),
        (EntryType::Block, "block", only),
        (EntryType::GNUSparse, "sparse", only),
        (EntryType::new(b'V'), "label", only),
    ] {
        let content: &[u8] = if path == "./" { b"1" } else { b"" };
        for bytes in [archive(&[(kind, path, content)]), gzip(&archive(&[(kind, path, content)]))] {
            let told = refusal(&bytes);
            assert!(told.contains(reason), "{kind:?} {path:?}: {told}");
        }
    }
    for (path, reason) in [
        (deep.as_bytes(), "more than 64 folders deep"),
        (long.as_bytes(), "more than 255 bytes"),
        (&[b'p'; 4_097], "a path of 4097 bytes"),
        (b"\xff\xfe", "is not UTF-8"),
    ] {
        let long_name = member(EntryType::GNULongName, b"././@LongLink", path);
        let told = refusal(&closed(&[long_name, member(EntryType::Regular, b"s", b"")]));
        assert!(told.contains(reason), "{told}");
    }
    let large = archive(&[(EntryType::Regular, "large", &vec![0; (1 << 20) + 1])]);
    assert!(refusal(&large).contains("more than the task's disk limit of 1048576 bytes"));
    assert!(refusal(&gzip(&large)).contains("more than the task's disk limit of 1048576 bytes"));
    let below = archive(&[(EntryType::Regular, "f", b""), (EntryType::Regular, "f/x", b"")]);
    assert!(refusal(&below).contains(r#"have the entry "f" below the file "f""#), "{}", refusal(&below));
    let twice = archive(&[(EntryType::Regular, "f/x", b""), (EntryType::Regular, "f", b"")]);
    assert!(refusal(&twice).contains("where a folder must be"));
}

#[test]
fn a_folder_in_the_starters_place_is_refused_only_where_it_is_needed() {
    let bytes = archive(&[(EntryType::Directory, "run_task.sh", b"")]);
    assert!(rewritten(&bytes, Starter::Omit).is_ok());
    assert!(matches!(rewritten(&bytes, Starter::Include), Err(InputError::Refused(_))));
}

#[test]
fn extension_headers_cannot_lie_or_fill_the_memory() {
    let pax = |records: &[u8]| member(EntryType::XHeader, b"x", records);
    let file = || member(EntryType::Regular, b"f", b"1");
    let name = |name: &[u8]| member(EntryType::GNULongName, b"x", name);
    for (members, reason) in [
        (vec![pax(b"10 size=9\n"), file()], "its size in an extended header"),
        (vec![pax(b"22 GNU.sparse.major=1\n"), file()], "a sparse file"),
        (vec![pax(b"18 path=/etc/hosts\n"), file()], "record without its length"),
        (vec![pax(b"19 path=/etc/hosts\n"), file()], "leads out of the work folder"),
        (vec![pax(b"12 path=a\nb\n"), file()], "a control character"),
        (vec![pax(b"0 \n"), file()], "record without its length"),
        (vec![pax(b"99999999999999999999 a=b\n"), file()], "record without its length"),
        (vec![pax(&vec![b'9'; 70_000]), file()], "an extension header has 70000 bytes, at most 65536"),
        (vec![name(&[b'n'; 5_000]), file()], "an extension header has 5000 bytes, at most 4097"),
        (vec![name(b"a"), name(b"b"), file()], "under two long names"),
        (vec![name(b"a")], "ends after the description of an entry"),
        (vec![pax(b"9 path=a\n")], "ends after the description of an entry"),
    ] {
        let told = refusal(&closed(&members));
        assert!(told.contains(reason), "{told}");
    }
    // Eight GiB of zeros take eight MiB in gzip, and must not be read before they are refused.
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::GNULongName);
    header.set_size(8 << 30);
    header.set_cksum();
    assert!(refusal(&gzip(header.as_bytes())).contains("more than the task's disk limit"));
}

#[test]
fn many_entries_and_names_are_bounded() {
    let many: Vec<_> = (0..100_001).map(|i| member(EntryType::Regular, format!("{i}").as_bytes(), b"")).collect();
    assert!(refusal(&gzip(&closed(&many))).contains("have more than 100000 entries"));
    // Sixty folders each that no other entry has.
    let path = |i: u32| (0..60).fold(format!("{i:x}"), |path, depth| format!("{path}/{depth:x}"));
    let deep: Vec<_> = (0..2_000)
        .flat_map(|i| {
            let long = member(EntryType::GNULongName, b"x", path(i).as_bytes());
            [long, member(EntryType::Directory, b"s", b"")]
        })
        .collect();
    let told = refusal(&gzip(&closed(&deep)));
    assert!(told.contains("entries, implied folders counted") || told.contains("paths of more than 16 MiB"), "{told}");
}

#[test]
fn gzip_has_members_and_nothing_else() {
    let bytes = small();
    let (front, back) = bytes.split_at(700);
    let two = [gzip(front), gzip(back)].concat();
    assert_eq!(rewritten(&two, Starter::Omit).unwrap().len(), 4);
    let tail = [gzip(&bytes), b"tail".to_vec()].concat();
    assert!(refusal(&tail).contains("not a tar archive packed with gzip"), "{}", refusal(&tail));
    let mut wrong_sum = gzip(&bytes);
    let at = wrong_sum.len() - 8;
    wrong_sum[at] ^= 1;
    assert!(refusal(&wrong_sum).contains("not a tar archive packed with gzip"));
    let endless = gzip(&vec![0; 8 << 20]);
    assert!(refusal(&endless).contains("more than 1 MiB of zeros"), "{}", refusal(&endless));
    let plain = [small(), b"more".to_vec()].concat();
    assert!(refusal(&plain).contains("something behind its end mark"));
    let zip_inside = gzip(b"PK\x03\x04 and so on");
    assert!(refusal(&zip_inside).contains("not a tar archive packed with gzip"));
}

#[test]
fn what_is_no_archive_is_told_by_what_it_is() {
    for (start, what) in [
        (&b"\xfd7zXZ\0"[..], "packed with xz: send a tar, tar.gz or zip archive"),
        (b"BZh91AY", "packed with bzip2"),
        (b"\x28\xb5\x2f\xfd", "packed with zstd"),
        (b"7z\xbc\xaf\x27\x1c", "a 7z file"),
        (b"Rar!\x1a\x07\x01\0", "a RAR file"),
        (b"PK\x07\x08PK\x03\x04", "a part of a split zip file"),
        (b"<!DOCTYPE html>", "not a tar archive"),
        (&[b'x'; 1_024], "not a tar archive"),
        (b"\x1f\x8b", "not a tar archive packed with gzip"),
        (b"PK\x03\x04", "not a zip archive"),
    ] {
        assert!(refusal(start).contains(what), "{}", refusal(start));
    }
}

/// Cut anywhere, an archive is refused or whole: where it is taken, all of it is there.
pub(super) fn check_cuts(bytes: &[u8]) {
    let whole = rewritten(bytes, Starter::Omit).unwrap();
    for len in 1..bytes.len() {
        match rewritten(&bytes[..len], Starter::Omit) {
            Ok(entries) => assert_eq!(entries, whole, "{len}"),
            Err(InputError::Refused(_)) => {}
            Err(error) => panic!("{len}: {error}"),
        }
    }
}

/// Changed anywhere, an archive does not make more than it may, and nothing panics.
pub(super) fn check_mutations(bytes: &[u8], rounds: u32, seed: u64) {
    let mut dice = seed;
    let mut roll = |sides: usize| {
        // Knuth's MMIX generator.
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(dice >> 33).unwrap() % sides
    };
    let mut taken = 0;
    for _ in 0..rounds {
        let mut bytes = bytes.to_vec();
        for _ in 0..=roll(3) {
            let at = roll(bytes.len());
            match roll(4) {
                0 => bytes[at] ^= 1 << roll(8),
                1 => bytes[at] = [0, 0xff, b'/', b'.', b'7', 0x80][roll(6)],
                2 => bytes.truncate(at + 1),
                _ => bytes.extend_from_within(at..),
            }
            bytes.truncate(64 << 10);
        }
        let mut out = Vec::new();
        match rewrite(Cursor::new(&bytes), &mut out, MAX_BYTES, Starter::Omit) {
            Ok(()) => taken += 1,
            Err(InputError::Refused(_)) => {}
            Err(error) => panic!("{error}: {bytes:?}"),
        }
        assert!(out.len() <= usize::try_from(MAX_BYTES).unwrap() + MAX_OVERHEAD, "{} bytes", out.len());
    }
    assert!((1..rounds).contains(&taken), "{taken} of {rounds} were taken");
}

#[test]
fn cuts_and_mutations_of_tar() {
    let pax = member(EntryType::XHeader, b"x", b"13 path=a/b/c\n");
    let bytes = closed(&[pax, member(EntryType::Regular, b"f", b"12345"), member(EntryType::Regular, b"g", b"1")]);
    assert!(refusal(&bytes).contains("length"), "the record above is one byte short");
    let pax = member(EntryType::XHeader, b"x", b"14 path=a/b/c\n");
    let bytes = closed(&[pax, member(EntryType::Regular, b"f", b"12345"), member(EntryType::Regular, b"g", b"1")]);
    check_cuts(&bytes);
    check_mutations(&bytes, 10_000, 1);
}

#[test]
fn cuts_and_mutations_of_tar_gz() {
    check_cuts(&gzip(&small()));
    check_mutations(&gzip(&small()), 10_000, 2);
}

/// A disk that fails under the archive is the node's fault, and an engine that goes away no fault of the archive.
#[test]
fn a_failing_disk_or_engine_is_not_the_tasks_fault() {
    struct Failing(u64);
    impl Read for Failing {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::from_raw_os_error(5))
        }
    }
    impl Seek for Failing {
        fn seek(&mut self, _: SeekFrom) -> io::Result<u64> {
            Ok(self.0)
        }
    }
    impl Write for Failing {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let disk = rewrite(Failing(0), Vec::new(), MAX_BYTES, Starter::Omit);
    assert!(matches!(disk, Err(InputError::Io(_))), "{disk:?}");
    // In the middle, of each format.
    struct Dying(Cursor<Vec<u8>>);
    impl Read for Dying {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let left = 600u64.saturating_sub(self.0.position());
            let count = (&mut self.0).take(left).read(buffer)?;
            if count == 0 && !buffer.is_empty() { Err(io::Error::from_raw_os_error(5)) } else { Ok(count) }
        }
    }
    impl Seek for Dying {
        fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
            self.0.seek(to)
        }
    }
    let noise: Vec<u8> = (0u32..4_096).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let file = archive(&[(EntryType::Regular, "noise", &noise)]);
    for bytes in [file.clone(), gzip(&file), super::tests_zip::stored("noise", &noise)] {
        let disk = rewrite(Dying(Cursor::new(bytes)), Vec::new(), MAX_BYTES, Starter::Omit);
        assert!(matches!(disk, Err(InputError::Io(_))), "{disk:?}");
    }
    let engine = rewrite(Cursor::new(small()), Failing(0), MAX_BYTES, Starter::Omit);
    assert!(matches!(engine, Err(InputError::Io(_))), "{engine:?}");
    // In the middle of a file, where reading and writing take turns.
    let file = archive(&[(EntryType::Regular, "large", &vec![1; 100_000])]);
    let engine = rewrite(Cursor::new(file), io::BufWriter::with_capacity(2_048, Failing(0)), MAX_BYTES, Starter::Omit);
    assert!(matches!(engine, Err(InputError::Io(_))), "{engine:?}");
}

//! Output files, read from the engine's archive stream after the task's end: regular files that match a pattern, within
//! limits of count and size. Links, devices and odd names are listed, never followed or read.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};

use ring::digest::{Context, SHA256};
use tar::{Archive, EntryType};

use super::pattern::PathPattern;
use crate::node::record::{FIRST_OUTPUT, OutputFile};
use crate::sys::text::{hex, printable};

/// Files of one attempt. Each is a file in the spool and a few calls to the master.
const MAX_FILES: usize = 10_000;
/// Lines that say what was cut; the rest is counted.
const MAX_CUT_LINES: usize = 100;
/// Longest path that is taken, in bytes.
const MAX_PATH_BYTES: usize = 1_024;
/// All paths together, so that the final report with its lists fits into a call of 4 MiB: a larger one could never be
/// delivered.
const MAX_PATHS_BYTES: usize = 1 << 20;
/// Read and written at a time.
const BUFFER: usize = 64 << 10;

/// What is collected so far, over all archives of one attempt.
#[derive(Debug)]
pub struct Collection {
    patterns: Vec<PathPattern>,
    room_bytes: u64,
    room_paths: usize,
    /// Of the next file. One that broke off has used up its own.
    next_stream: u32,
    seen: BTreeSet<String>,
    /// The files, in the order of their streams.
    pub files: Vec<OutputFile>,
    /// What was left out, and why.
    pub cut: Vec<String>,
    more_cut: u64,
}

impl Collection {
    /// Nothing yet; at most `max_bytes` in all.
    pub fn new(patterns: &[String], max_bytes: u64) -> Self {
        let patterns = patterns.iter().filter_map(|pattern| PathPattern::parse(pattern)).collect();
        Self {
            patterns,
            room_bytes: max_bytes,
            room_paths: MAX_PATHS_BYTES,
            next_stream: FIRST_OUTPUT,
            seen: BTreeSet::new(),
            files: Vec::new(),
            cut: Vec::new(),
            more_cut: 0,
        }
    }

    /// Takes the matching files of the archive of `root`, a path below the work folder; empty for the work folder itself.
    /// The archive's entries begin with the last component of what was asked for.
    ///
    /// # Errors
    /// When the archive breaks off or the spool can't be written; what was taken before stands.
    pub fn take<W: Write>(
        &mut self,
        archive: impl Read,
        root: &str,
        open: &mut dyn FnMut(u32) -> io::Result<W>,
        close: &mut dyn FnMut(W, &str) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut archive = Archive::new(archive);
        for entry in archive.entries()? {
            let mut entry = entry?;
            let path_bytes = entry.path_bytes().into_owned();
            let Some(path) = self.wanted_path(root, &path_bytes, entry.header().entry_type()) else { continue };
            let size = entry.size();
            if self.files.len() >= MAX_FILES {
                self.cut(format!("{path}: only {MAX_FILES} files are kept"));
                continue;
            }
            if size > self.room_bytes {
                self.cut(format!("{path}: its {size} bytes are more than what is left of the output limit"));
                continue;
            }
            if path.len() > self.room_paths {
                self.cut(format!(
                    "{path}: the paths of the files before have {MAX_PATHS_BYTES} bytes, the most that is kept"
                ));
                continue;
            }
            let stream = self.next_stream;
            self.next_stream = self.next_stream.saturating_add(1);
            let mode = entry.header().mode().unwrap_or(0o644) & 0o777;
            let mut file = open(stream)?;
            let (written, sha256) = copy(&mut entry, &mut file)?;
            if written < size {
                // The engine ends its answer properly also where it could not read on.
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("{path} broke off")));
            }
            close(file, &sha256)?;
            self.room_bytes = self.room_bytes.saturating_sub(written);
            self.room_paths -= path.len();
            self.seen.insert(path.clone());
            self.files.push(OutputFile { stream, path, size: written, mode, sha256 });
        }
        Ok(())
    }

    /// Lines on what was left out, with a last one that counts the rest.
    pub fn into_parts(mut self) -> (Vec<OutputFile>, Vec<String>) {
        if self.more_cut > 0 {
            self.cut.push(format!("and {} more", self.more_cut));
        }
        (self.files, self.cut)
    }

    /// Notes what was left out.
    pub fn cut(&mut self, line: String) {
        if self.cut.len() < MAX_CUT_LINES {
            self.cut.push(line);
        } else {
            self.more_cut += 1;
        }
    }

    /// The entry's path below the work folder if it is to be read.
    fn wanted_path(&mut self, root: &str, bytes: &[u8], kind: EntryType) -> Option<String> {
        if kind == EntryType::Directory {
            return None;
        }
        let shown = || printable(&String::from_utf8_lossy(&bytes[..bytes.len().min(200)]));
        let Ok(name) = std::str::from_utf8(bytes) else {
            self.cut(format!("{}: its name is not UTF-8", shown()));
            return None;
        };
        let path = match (root, name.split_once('/')) {
            ("", inside) => inside.map_or("", |(_, inside)| inside).to_owned(),
            (root, None) => root.to_owned(),
            (root, Some((_, inside))) => format!("{root}/{inside}"),
        };
        let is_plain = |part: &str| !part.is_empty() && part != "." && part != "..";
        if path.len() > MAX_PATH_BYTES || path.chars().any(char::is_control) || !path.split('/').all(is_plain) {
            self.cut(format!("{}: such a name is not kept", shown()));
            return None;
        }
        if !self.patterns.iter().any(|pattern| pattern.matches(&path)) || self.seen.contains(&path) {
            return None;
        }
        if !matches!(kind, EntryType::Regular | EntryType::Continuous) {
            self.cut(format!("{path}: not a regular file"));
            return None;
        }
        Some(path)
    }
}

fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<(u64, String)> {
    let mut context = Context::new(&SHA256);
    let mut buffer = vec![0; BUFFER];
    let mut written = 0u64;
    loop {
        let len = from.read(&mut buffer)?;
        if len == 0 {
            return Ok((written, hex(context.finish().as_ref())));
        }
        context.update(&buffer[..len]);
        to.write_all(&buffer[..len])?;
        written += len as u64;
    }
}

/// The folders or files below the work folder that hold all matches: each pattern's part before its first wildcard.
/// An empty one is the work folder itself.
pub fn roots(patterns: &[String]) -> Vec<String> {
    let is_literal = |part: &&str| !part.contains(['*', '?', '[', ']']);
    let root = |pattern: &String| {
        let parts: Vec<&str> = pattern.split('/').take_while(is_literal).collect();
        parts.join("/")
    };
    let all: BTreeSet<String> = patterns.iter().map(root).collect();
    let is_inside = |inner: &str, outer: &str| {
        inner != outer && (outer.is_empty() || inner.strip_prefix(outer).is_some_and(|rest| rest.starts_with('/')))
    };
    all.iter().filter(|inner| !all.iter().any(|outer| is_inside(inner, outer))).cloned().collect()
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    type Made = (Vec<(String, Vec<u8>)>, Vec<String>);

    fn tar_of(entries: &[(EntryType, &[u8], &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (kind, path, content) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_size(content.len() as u64);
            header.set_mode(0o6755);
            header.as_old_mut().name[..path.len()].copy_from_slice(path);
            header.set_cksum();
            builder.append(&header, *content).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn collect(entries: &[(EntryType, &[u8], &[u8])], patterns: &[&str], max_bytes: u64) -> Made {
        collect_from("output", entries, patterns, max_bytes)
    }

    fn collect_from(root: &str, entries: &[(EntryType, &[u8], &[u8])], patterns: &[&str], max_bytes: u64) -> Made {
        let patterns: Vec<String> = patterns.iter().map(|pattern| (*pattern).to_owned()).collect();
        let mut collection = Collection::new(&patterns, max_bytes);
        let spool = RefCell::new(Vec::new());
        let mut close = |file: Vec<u8>, _: &str| {
            spool.borrow_mut().push(file);
            Ok(())
        };
        collection.take(tar_of(entries).as_slice(), root, &mut |_| Ok(Vec::new()), &mut close).unwrap();
        let (files, cut) = collection.into_parts();
        assert!(files.iter().zip(FIRST_OUTPUT..).all(|(file, stream)| file.stream == stream && file.mode == 0o755));
        let files = files.into_iter().map(|file| file.path).zip(spool.into_inner());
        (files.collect(), cut)
    }

    #[test]
    fn takes_regular_files_that_match() {
        let entries: [(EntryType, &[u8], &[u8]); 3] = [
            (EntryType::Directory, b"output", b""),
            (EntryType::Regular, b"output/a.txt", b"A"),
            (EntryType::Regular, b"output/deep/b.bin", b"B"),
        ];
        let (files, cut) = collect(&entries, &["output/**"], 100);
        assert_eq!(
            files,
            [("output/a.txt".to_owned(), b"A".to_vec()), ("output/deep/b.bin".to_owned(), b"B".to_vec())]
        );
        assert!(cut.is_empty());
        assert_eq!(collect(&entries, &["output/*"], 100).0.len(), 1, "* stays within a folder");
    }

    #[test]
    fn names_files_by_their_path_below_the_work_folder() {
        let paths = |root: &str, entry: &[u8]| {
            let made = collect_from(root, &[(EntryType::Regular, entry, b"x")], &["**"], 100);
            made.0.into_iter().map(|(path, _)| path).collect::<Vec<_>>()
        };
        assert_eq!(paths("", b"workspace/a.txt"), ["a.txt"]);
        assert_eq!(paths("logs/deep", b"deep/a.txt"), ["logs/deep/a.txt"]);
        assert_eq!(paths("logs/x.log", b"x.log"), ["logs/x.log"]);
    }

    #[test]
    fn lists_and_never_reads_links_devices_and_odd_names() {
        let entries: [(EntryType, &[u8], &[u8]); 7] = [
            (EntryType::Symlink, b"output/link", b""),
            (EntryType::Link, b"output/hard", b""),
            (EntryType::Fifo, b"output/fifo", b""),
            (EntryType::Char, b"output/null", b""),
            (EntryType::Regular, b"output/\xff\xfe", b"x"),
            (EntryType::Regular, b"output/a\nb", b"x"),
            (EntryType::Regular, b"output/../../etc/x", b"x"),
        ];
        let (files, cut) = collect(&entries, &["output/**"], 100);
        assert!(files.is_empty());
        assert_eq!(cut.len(), 7, "{cut:?}");
        assert!(cut.iter().all(|line| !line.contains('\n')));
    }

    #[test]
    fn keeps_what_fits_and_says_what_was_cut() {
        let entries: [(EntryType, &[u8], &[u8]); 3] = [
            (EntryType::Regular, b"output/1", b"12345"),
            (EntryType::Regular, b"output/2", b"123456"),
            (EntryType::Regular, b"output/3", b"12345"),
        ];
        let (files, cut) = collect(&entries, &["output/**"], 10);
        assert_eq!(files.len(), 2);
        assert!(cut[0].starts_with("output/2: its 6 bytes"), "{cut:?}");
        let many: Vec<(EntryType, &[u8], &[u8])> = vec![(EntryType::Fifo, b"output/f", b""); 250];
        let cut = collect(&many, &["output/**"], 10).1;
        assert_eq!((cut.len(), cut[100].as_str()), (101, "and 150 more"));
    }

    #[test]
    fn keeps_ten_thousand_files_and_says_that_there_were_more() {
        let names: Vec<String> = (0..MAX_FILES + 250).map(|number| format!("output/{number}")).collect();
        let entries: Vec<_> = names.iter().map(|name| (EntryType::Regular, name.as_bytes(), &b"x"[..])).collect();
        let (files, cut) = collect(&entries, &["output/**"], u64::MAX);
        assert_eq!(files.len(), 10_000);
        assert_eq!(cut[0], "output/10000: only 10000 files are kept");
        assert_eq!((cut.len(), cut[100].as_str()), (101, "and 150 more"));
    }

    #[test]
    fn goes_on_with_the_next_folder_after_one_that_broke_off() {
        let patterns = ["a/*".to_owned(), "b/*".to_owned()];
        let mut collection = Collection::new(&patterns, 100);
        let streams = RefCell::new(Vec::new());
        let mut open = |stream| {
            // As the store: a stream has one writer, ever.
            let is_new = !streams.borrow().contains(&stream);
            streams.borrow_mut().push(stream);
            if is_new { Ok(Vec::new()) } else { Err(io::Error::other("it had a writer")) }
        };
        let mut close = |_: Vec<u8>, _: &str| Ok(());
        let broken = &tar_of(&[(EntryType::Regular, b"a/x", &[1; 90])])[..512 + 10];
        assert!(collection.take(broken, "a", &mut open, &mut close).is_err());
        let whole = tar_of(&[(EntryType::Regular, b"b/y", b"y")]);
        collection.take(whole.as_slice(), "b", &mut open, &mut close).unwrap();
        assert_eq!(collection.files.iter().map(|file| file.stream).collect::<Vec<_>>(), [FIRST_OUTPUT + 1]);
    }

    #[test]
    fn the_list_of_files_fits_into_the_final_report() {
        let name = |number: usize| format!("output/{number:05}{}", "x".repeat(80));
        let names: Vec<String> = (0..MAX_FILES).chain([MAX_FILES]).map(name).collect();
        let mut long: Vec<(EntryType, &[u8], &[u8])> = Vec::new();
        for name in &names {
            long.push((EntryType::Regular, name.as_bytes(), b""));
        }
        // Ten times as many bytes of paths would be possible.
        let mut collection = Collection::new(&["output/**".to_owned()], 100);
        collection.room_paths = 92 * 5_000;
        let archive = tar_of(&long);
        collection.take(archive.as_slice(), "output", &mut |_| Ok(Vec::new()), &mut |_, _| Ok(())).unwrap();
        let (files, cut) = collection.into_parts();
        assert_eq!(files.len(), 5_000);
        assert!(cut[0].contains("paths"), "{}", cut[0]);
    }

    #[test]
    fn an_archive_that_broke_off_is_taken_again_for_the_rest() {
        let bytes =
            tar_of(&[(EntryType::Regular, b"output/1", b"one"), (EntryType::Regular, b"output/2", &[b'x'; 2_000])]);
        let mut collection = Collection::new(&["output/**".to_owned()], 10_000);
        let mut streams = Vec::new();
        let mut open = |stream| {
            streams.push(stream);
            Ok(Vec::new())
        };
        // The second file's content is cut.
        assert!(collection.take(&bytes[..2_048], "output", &mut open, &mut |_: Vec<u8>, _: &str| Ok(())).is_err());
        collection.take(bytes.as_slice(), "output", &mut open, &mut |_: Vec<u8>, _: &str| Ok(())).unwrap();
        let files: Vec<_> = collection.files.iter().map(|file| (file.stream, file.path.as_str(), file.size)).collect();
        assert_eq!(files, [(16, "output/1", 3), (18, "output/2", 2_000)]);
        assert_eq!(streams, [16, 17, 18]);
    }

    #[test]
    fn asks_the_engine_for_the_smallest_folders() {
        let roots = |patterns: &[&str]| roots(&patterns.iter().map(|p| (*p).to_owned()).collect::<Vec<_>>());
        assert_eq!(roots(&["output/**"]), ["output"]);
        assert_eq!(roots(&["output/**", "output/a/*.txt", "logs/x.log"]), ["logs/x.log", "output"]);
        assert_eq!(roots(&["*.txt", "output/**"]), [""]);
        assert_eq!(roots(&["a/b", "a"]), ["a"]);
    }
}

//! The bundle of an attempt that failed: what a person needs to see why, kept after its container is gone.
//!
//! | entry | is |
//! | --- | --- |
//! | `report.json` | the final report, with the limits as applied, without the last output |
//! | `task.json` | the task as it was taken |
//! | `events.json` | phases, notes and alerts of this life of the worker |
//! | `inspect.json` | all that the engine says of the container |
//! | `output.log`, `stdout.log`, `stderr.log` | the last 64 KiB of output, both streams together and each apart |
//! | `files.txt` | what was in the work folder |
//! | `work/...` | regular files of it, as many as fit |
//!
//! Best effort all along: the report is durable and on its way before this begins, and nothing waits for it but the
//! container's removal. What the engine does not give is left out.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::sync::Arc;
use std::time::Duration;

use tar::{Archive, Builder, EntryType, Header};

use super::body::WORK_FOLDER;
use super::task::{Context, Task};
use crate::docker::{Docker, OutputKind, Stop};
use crate::node::order::TaskNews;
use crate::node::record::{Event, EventKind, FinalReport, Outcome};
use crate::node::spec::TaskSpec;
use crate::sys::failpoint::{self, FailPoint};
use crate::sys::text::printable;
use crate::sys::time::unix_ms;

/// Bytes of the work folder's files in one bundle. Those that are larger than what is left are listed only.
const MAX_FILE_BYTES: u64 = 16 << 20;
/// Lines of `files.txt`.
const MAX_LISTED: usize = 10_000;
/// Read of the engine's archive, which has all files whole: what is behind is not even listed.
const MAX_ARCHIVE_BYTES: u64 = 256 << 20;
/// Between two pieces of the archive.
const ARCHIVE_IDLE: Duration = Duration::from_secs(30);
/// What a task told that is kept for its bundle; the oldest go first.
const MAX_TOLD: usize = 200;
/// Longest path of a file that is taken, in bytes.
const MAX_PATH_BYTES: usize = 1_024;

/// What a task has told for the record, with the node's clock.
#[derive(Debug, Default)]
pub struct Told(std::collections::VecDeque<Event>, u64);

impl Told {
    /// Keeps it if it is for the record.
    pub fn note(&mut self, news: &TaskNews) {
        let kind = match news {
            TaskNews::Phase(phase, detail) => EventKind::Phase(*phase, detail.clone()),
            TaskNews::Note(text) => EventKind::Note(text.clone()),
            TaskNews::Alert(text) | TaskNews::Undying(Some(text)) => EventKind::Alert(text.clone()),
            _ => return,
        };
        self.1 += 1;
        self.0.push_back(Event { number: self.1, time_ms: unix_ms(), kind });
        if self.0.len() > MAX_TOLD {
            self.0.pop_front();
        }
    }
}

/// Whether an attempt that ended so has something to look into.
fn is_failure(outcome: Outcome) -> bool {
    match outcome {
        Outcome::Failed | Outcome::OutOfMemory | Outcome::TimedOut | Outcome::DiskLimit | Outcome::NodeFault => true,
        Outcome::Succeeded | Outcome::Cancelled | Outcome::Rejected | Outcome::Preempted | Outcome::Superseded => false,
    }
}

impl Task {
    /// Whether a bundle is made of an attempt that ended so.
    pub fn wants_bundle(&self, outcome: Outcome) -> bool {
        self.context.bundles.is_on() && is_failure(outcome)
    }

    /// Makes the bundle. A failure is a line in the log; an order to leave ends it.
    pub fn keep_bundle(&self, mut report: FinalReport) {
        // The coordinator has added what only it knows.
        let kept = self.context.store.final_report(&self.spec.key);
        report.phases = kept.map(|kept| kept.phases).unwrap_or_default();
        let content = Content {
            context: Arc::clone(&self.context),
            container: self.name.clone(),
            spec: self.spec.clone(),
            events: self.told.borrow().0.iter().cloned().collect(),
            stdout: self.tail.bytes_of(OutputKind::Stdout),
            stderr: self.tail.bytes_of(OutputKind::Stderr),
            output: std::mem::take(&mut report.tail),
            report,
            has_ended: !self.is_undying,
        };
        let key = self.spec.key.clone();
        let made = self.call_unless(&|| self.leave_order(), &Stop::new(), move |docker| {
            let bundles = Arc::clone(&content.context.bundles);
            bundles.keep(&content.spec.key, |file| content.write(docker, file))
        });
        match made {
            Ok(Ok(())) => log::debug!("kept a bundle of {key}"),
            Ok(Err(error)) => log::warn!("no bundle of {key} is kept: {error}"),
            Err(_) => log::warn!("no bundle of {key} is kept: the worker ends"),
        }
    }
}

struct Content {
    context: Arc<Context>,
    container: String,
    spec: TaskSpec,
    report: FinalReport,
    events: Vec<Event>,
    output: Vec<u8>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    /// Of a container that runs, the files are nobody's to read.
    has_ended: bool,
}

impl Content {
    fn write(&self, docker: &Docker, file: &mut File) -> io::Result<()> {
        let mut tar = Builder::new(BufWriter::new(file));
        add(&mut tar, "report.json", &serde_json::to_vec_pretty(&self.report)?)?;
        add(&mut tar, "task.json", &serde_json::to_vec_pretty(&self.spec)?)?;
        add(&mut tar, "events.json", &serde_json::to_vec_pretty(&self.events)?)?;
        add(&mut tar, "output.log", &self.output)?;
        add(&mut tar, "stdout.log", &self.stdout)?;
        add(&mut tar, "stderr.log", &self.stderr)?;
        failpoint::pass(FailPoint::Bundling);
        match docker.inspect_container_whole(&self.container) {
            Ok(inspect) => add(&mut tar, "inspect.json", &serde_json::to_vec_pretty(&inspect)?)?,
            Err(error) if error.is_not_found() => {}
            Err(error) => log::debug!("a bundle without the engine's word: {error}"),
        }
        if self.has_ended {
            // Half of the budget: one bundle alone must not be over it.
            let room = MAX_FILE_BYTES.min(self.context.bundles.max_bytes() / 2);
            let list = self.add_files(docker, &mut tar, room)?;
            add(&mut tar, "files.txt", list.as_bytes())?;
        }
        tar.into_inner()?.into_inner().map_err(io::IntoInnerError::into_error)?;
        Ok(())
    }

    fn add_files(&self, docker: &Docker, tar: &mut Builder<impl Write>, room: u64) -> io::Result<String> {
        match docker.get_archive(&self.container, WORK_FOLDER, ARCHIVE_IDLE) {
            Ok(archive) => copy_files(archive, tar, room),
            Err(error) => Ok(format!("(the engine gives no files: {error})\n")),
        }
    }
}

fn add(tar: &mut Builder<impl Write>, path: &str, content: &[u8]) -> io::Result<()> {
    tar.append_data(&mut header(content.len() as u64, 0o600), path, content)
}

fn header(size: u64, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_size(size);
    header.set_mode(mode);
    header.set_mtime(unix_ms() / 1_000);
    header
}

/// Copies what fits of an archive of the work folder, and lists all of it. The archive may break off: what came is kept.
fn copy_files(archive: impl Read, tar: &mut Builder<impl Write>, mut room: u64) -> io::Result<String> {
    let mut list = String::new();
    let mut lines = 0;
    let mut left = MAX_ARCHIVE_BYTES;
    let mut archive = Archive::new(archive);
    for entry in archive.entries()? {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) => {
                let _ = writeln!(list, "(the archive broke off: {error})");
                break;
            }
        };
        let (kind, size) = (entry.header().entry_type(), entry.size());
        let path = entry.path_bytes().into_owned();
        let is_file = matches!(kind, EntryType::Regular | EntryType::Continuous);
        let taken = if is_file && size <= room.min(left) { plain_path(&path) } else { None };
        lines += 1;
        if lines <= MAX_LISTED {
            let kept = if taken.is_some() { "kept" } else { "-" };
            let name = printable(&String::from_utf8_lossy(&path[..path.len().min(MAX_PATH_BYTES)]));
            let _ = writeln!(list, "{} {size} {kept} {name}", word(kind));
        }
        if size > left {
            list.push_str("(the rest was not looked at)\n");
            break;
        }
        left -= size;
        if let Some(path) = taken {
            room -= size;
            let mode = entry.header().mode().unwrap_or(0o600) & 0o777;
            let mut padded = Padded { inner: entry, left: size, is_broken: false };
            tar.append_data(&mut header(size, mode), path, &mut padded)?;
            if padded.is_broken {
                list.push_str("(the archive broke off in the last file)\n");
                break;
            }
        }
    }
    if lines > MAX_LISTED {
        let _ = writeln!(list, "(and {} more)", lines - MAX_LISTED);
    }
    Ok(list)
}

fn word(kind: EntryType) -> &'static str {
    match kind {
        EntryType::Regular | EntryType::Continuous => "file",
        EntryType::Directory => "folder",
        EntryType::Symlink => "symlink",
        EntryType::Link => "link",
        _ => "other",
    }
}

/// The path in the bundle, if it leads nowhere else. The engine's entries begin with the work folder's own name.
fn plain_path(bytes: &[u8]) -> Option<String> {
    let name = std::str::from_utf8(bytes).ok().filter(|name| name.len() <= MAX_PATH_BYTES)?;
    let (_, inside) = name.split_once('/')?;
    let is_plain = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains('\0');
    inside.split('/').all(is_plain).then(|| format!("work/{inside}"))
}

/// As long as was said, whatever comes: a file that breaks off must not shift what is behind it.
struct Padded<R> {
    inner: R,
    left: u64,
    is_broken: bool,
}

impl<R: Read> Read for Padded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if most == 0 {
            return Ok(0);
        }
        let mut length = 0;
        if !self.is_broken {
            length = match self.inner.read(&mut buffer[..most]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
                result => result.unwrap_or(0),
            };
            self.is_broken = length == 0;
        }
        if self.is_broken {
            buffer[..most].fill(0);
            length = most;
        }
        self.left -= length as u64;
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(tar: &mut Builder<Vec<u8>>, kind: EntryType, path: &str, content: &[u8]) {
        let mut header = header(content.len() as u64, 0o4755);
        header.set_entry_type(kind);
        // Written as it is: the builder would refuse what a hostile archive has.
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        header.set_cksum();
        tar.append(&header, content).unwrap();
    }

    fn archive() -> Vec<u8> {
        let mut tar = Builder::new(Vec::new());
        entry(&mut tar, EntryType::Directory, "workspace/", b"");
        entry(&mut tar, EntryType::Regular, "workspace/a/b", b"12345");
        entry(&mut tar, EntryType::Regular, "workspace/large", &[7; 600]);
        entry(&mut tar, EntryType::Symlink, "workspace/link", b"");
        entry(&mut tar, EntryType::Regular, "workspace/../../etc/x", b"evil");
        entry(&mut tar, EntryType::Regular, "workspace/z", b"678");
        tar.into_inner().unwrap()
    }

    /// Path, mode and content of each entry of a bundle, and its list.
    fn copied(archive: &[u8], room: u64) -> (Vec<(String, u32, Vec<u8>)>, String) {
        let mut tar = Builder::new(Vec::new());
        let list = copy_files(archive, &mut tar, room).unwrap();
        let bytes = tar.into_inner().unwrap();
        let mut bundle = Archive::new(bytes.as_slice());
        let read = |entry: io::Result<tar::Entry<'_, &[u8]>>| {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            (entry.path().unwrap().display().to_string(), entry.header().mode().unwrap(), content)
        };
        (bundle.entries().unwrap().map(read).collect(), list)
    }

    #[test]
    fn copies_regular_files_that_fit_and_lists_all() {
        let (files, list) = copied(&archive(), 500);
        let expected = [("work/a/b", b"12345".to_vec()), ("work/z", b"678".to_vec())];
        assert_eq!(files, expected.map(|(path, content)| (path.to_owned(), 0o755, content)));
        assert_eq!(
            list,
            "folder 0 - workspace/\nfile 5 kept workspace/a/b\nfile 600 - workspace/large\n\
             symlink 0 - workspace/link\nfile 4 - workspace/../../etc/x\nfile 3 kept workspace/z\n"
        );
        assert_eq!(copied(&archive(), 4).0.len(), 1, "the one that fits");
    }

    #[test]
    fn an_archive_that_breaks_off_anywhere_leaves_a_sound_bundle() {
        let whole = archive();
        for end in 0..whole.len() {
            let (files, _) = copied(&whole[..end], 5_000);
            assert!(files.iter().all(|(path, ..)| path.starts_with("work/")), "{end}");
        }
        let (files, list) = copied(&whole[..512 + 512 + 3], 5_000);
        assert_eq!(files[0].2, b"123\0\0");
        assert!(list.contains("broke off in the last file"), "{list}");
    }

    #[test]
    fn only_failures_have_a_bundle() {
        let failures: Vec<_> = Outcome::ALL.into_iter().filter(|outcome| is_failure(*outcome)).collect();
        assert_eq!(
            failures,
            [Outcome::Failed, Outcome::OutOfMemory, Outcome::TimedOut, Outcome::DiskLimit, Outcome::NodeFault]
        );
    }
}

//! Files of earlier tasks: taken from what is kept here, else fetched, and put into a volume of their own, which the task
//! has read-only. The volume is filled through a helper container that is never started, since the engine puts nothing into
//! what is mounted read-only.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tar::{Builder, EntryType, Header};

use super::body::{DEPENDENCIES_FOLDER, dependencies_volume, filler_body};
use super::step::{Break, Step, fault};
use super::task::Task;
use crate::docker::{Docker, Error, VolumeCreate};
use crate::fetch::{FetchError, Stop, Wanted};
use crate::node::dependency::{Dependency, NOT_HERE};
use crate::node::order::TaskNews;
use crate::node::record::Outcome;

/// Between two pieces of an archive.
const ARCHIVE_IDLE: Duration = Duration::from_secs(120);
/// It holds a small buffer.
const STACK_BYTES: usize = 256 << 10;

/// Files with what they are, each at its beginning or anywhere in it.
pub type Found = Arc<Vec<(Dependency, File)>>;

impl Task {
    /// All files of earlier tasks, checked and open: what makes room for others takes none of them away.
    pub fn dependencies(&self) -> Step<Found> {
        let files = self.spec.dependencies.iter();
        files.map(|file| Ok((file.clone(), self.dependency(file)?))).collect::<Step<Vec<_>>>().map(Arc::new)
    }

    fn dependency(&self, file: &Dependency) -> Step<File> {
        let (stock, owner, wanted) = (Arc::clone(&self.context.stock), self.spec.owner.clone(), file.clone());
        let find = move |stop: &Stop| stock.kept.find(&owner, &wanted.sha256, wanted.size, &|| stop.is_stopped());
        let what = format!("{} of {}", file.path, file.key);
        match self.help(&Stop::new(), find)? {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => {}
            // It may be had from elsewhere.
            Err(error) => log::warn!("{}: the kept copy of {what} can't be read: {error}", self.spec.key),
        }
        let not_here = |outcome, why: String| {
            self.code.set(NOT_HERE);
            Break::End(outcome, format!("{NOT_HERE}: {what} {why}"))
        };
        let Some(url) = file.url.clone() else {
            let why = "is not kept on this node, and the assignment names no place to fetch it from".to_owned();
            return Err(not_here(Outcome::Rejected, why));
        };
        let disk = |error: io::Error| not_here(Outcome::NodeFault, format!("can't be kept: {error}"));
        let half = self.context.stock.kept.begin().map_err(disk)?;
        let wanted = Wanted { url, sha256: file.sha256, max_bytes: file.size };
        match self.fetch(wanted, half.file().map_err(disk)?)? {
            Ok(()) => {}
            Err(FetchError::Refused(reason)) => {
                return Err(not_here(Outcome::Rejected, format!("can't be fetched: {reason}")));
            }
            Err(error) => return Err(not_here(Outcome::NodeFault, format!("could not be fetched: {error}"))),
        }
        let found = half.file().map_err(disk)?;
        if let Err(error) = self.context.stock.kept.publish(&self.spec.owner, &file.sha256, half) {
            log::warn!("{}: {what} was fetched and can't be kept: {error}", self.spec.key);
        }
        Ok(found)
    }

    /// Puts them into the volume. What is there from an earlier try is written again.
    pub fn put_dependencies(&self, image_id: &str, found: Found) -> Step<()> {
        if found.is_empty() {
            return Ok(());
        }
        self.tell(TaskNews::Detail(format!("puts {} files of earlier tasks in place", found.len())));
        let volume = dependencies_volume(&self.name);
        self.own_volume(&volume)?;
        let labels = self.context.identity.labels(&self.spec.key, "owner");
        let body = filler_body(image_id, labels, &volume, DEPENDENCIES_FOLDER);
        self.fill_volume(&body, move |out| write_files(out, &found))
    }

    /// A volume of this attempt's, made or found.
    pub fn own_volume(&self, name: &str) -> Step<()> {
        let labels = self.context.identity.labels(&self.spec.key, "task");
        let volume = VolumeCreate { name: name.to_owned(), labels, ..VolumeCreate::default() };
        let made = self.engine_whole(move |docker| docker.create_volume(&volume))?.map_err(|error| fault(&error))?;
        if self.is_ours(&made.labels) {
            Ok(())
        } else {
            Err(Break::End(Outcome::NodeFault, format!("the volume {name} is not this node's")))
        }
    }

    /// Puts an archive into `/` of a helper that is never started, and removes the helper.
    pub fn fill_volume(
        &self,
        body: &crate::docker::CreateBody,
        write: impl Fn(&mut dyn Write) -> io::Result<()> + Clone + Send + 'static,
    ) -> Step<()> {
        let (name, body) = (filler_name(&self.name), body.clone());
        let filled = self.engine_whole(move |docker| {
            // One of an earlier try may have other mounts.
            docker.remove_container(&name)?;
            docker.create_container(&name, &body)?;
            let written = put(docker, &name, write.clone())?;
            docker.remove_container(&name)?;
            Ok(written)
        })?;
        match filled {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Break::End(Outcome::NodeFault, format!("can't fill a volume: {error}"))),
            Err(error) => Err(Break::End(Outcome::NodeFault, error.to_string())),
        }
    }
}

/// Name of the helper of the attempt whose container has this name.
pub fn filler_name(container: &str) -> String {
    format!("{container}-filler")
}

/// Writes on one thread and puts from another, through a pipe: nothing of it is held in memory. The engine's error counts
/// more than the writer's, which a broken pipe ends, unless the writer was first.
fn put(
    docker: &Docker,
    name: &str,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()> + Send + 'static,
) -> Result<io::Result<()>, Error> {
    let (mut reader, writer) = match io::pipe() {
        Ok(pipe) => pipe,
        Err(error) => return Ok(Err(error)),
    };
    let job = move || {
        let mut out = BufWriter::new(writer);
        write(&mut out).and_then(|()| out.flush())
    };
    let thread = match thread::Builder::new().name("filler".to_owned()).stack_size(STACK_BYTES).spawn(job) {
        Ok(thread) => thread,
        Err(error) => return Ok(Err(error)),
    };
    let put = docker.put_archive(name, "/", &mut reader, ARCHIVE_IDLE);
    drop(reader);
    let written = thread.join().unwrap_or_else(|_| Err(io::Error::other("the writer broke off")));
    match (written, put) {
        (Err(error), _) if error.kind() != io::ErrorKind::BrokenPipe => Ok(Err(error)),
        (_, Err(error)) => Err(error),
        (written, Ok(())) => Ok(written),
    }
}

/// Of root, so that the task's user changes nothing of it even where a mount would let it.
pub fn header(kind: EntryType, size: u64, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header.set_mtime(0);
    header
}

fn write_files(out: &mut dyn Write, files: &[(Dependency, File)]) -> io::Result<()> {
    let root = DEPENDENCIES_FOLDER.trim_start_matches('/');
    let mut builder = Builder::new(out);
    let mut folders = std::collections::BTreeSet::new();
    for (dependency, file) in files {
        let path = format!("{root}/{}", dependency.place());
        for (at, _) in path.match_indices('/').filter(|(at, _)| *at >= root.len()) {
            if folders.insert(path[..at].to_owned()) {
                let name = format!("{}/", &path[..at]);
                builder.append_data(&mut header(EntryType::Directory, 0, 0o555), name, io::empty())?;
            }
        }
        let mut file = file;
        file.seek(SeekFrom::Start(0))?;
        let mut header = header(EntryType::Regular, dependency.size, 0o444);
        // It was checked; one that has become shorter would make the archive wrong.
        let mut content = file.take(dependency.size);
        builder.append_data(&mut header, &path, &mut content)?;
        if content.limit() > 0 {
            return Err(io::Error::other(format!("the kept copy of {path} is shorter than it was")));
        }
    }
    builder.finish()
}

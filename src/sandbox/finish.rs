//! After the container's end: output files into the spool, the final report, and nothing left at the engine.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::body::{WORK_FOLDER, dependencies_volume, note_limit_reached, packages_volume};
use super::collect::{Collection, roots};
use super::dependencies::filler_name;
use super::network::prepare_name;
use super::step::Step;
use super::task::{Ended, Task};
use crate::docker::{Change, Docker, Error, Stop};
use crate::node::order::TaskNews;
use crate::node::record::{FIRST_OUTPUT, FinalReport, Outcome, Phase, StreamEnd};
use crate::node::spec::Network;
use crate::store::{HalfFile, StreamWriter};
use crate::sys::failpoint::{self, FailPoint};
use crate::sys::text::from_hex;

/// Between two pieces of an archive.
const ARCHIVE_IDLE: Duration = Duration::from_secs(120);
/// Tries at an archive that breaks off while the engine answers ...
const MAX_COLLECTIONS: u32 = 3;
/// ... and the pause between them.
const COLLECTION_PAUSE: Duration = Duration::from_secs(2);
/// Tries to remove what the engine says is in use: a mount may linger for a moment.
const MAX_REMOVALS: u32 = 10;
/// Before the first next try; each further one waits longer by this ...
const REMOVAL_PAUSE: Duration = Duration::from_millis(200);
/// ... up to this.
const MAX_REMOVAL_PAUSE: Duration = Duration::from_secs(10);

/// Whether output files are kept for later tasks, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Copies {
    Keep,
    None,
}

impl Task {
    /// Reads the output files and makes the report. Whatever fails here is said in the report, which is made anyway; only
    /// an order to leave ends it, and the next start of the worker collects again.
    pub fn collect(&self, ended: Ended) -> Step<FinalReport> {
        self.tell(TaskNews::Phase(Phase::Collecting, String::new()));
        let limit = self.spec.max_output_bytes.min(self.spec.disk_bytes);
        let mut collection = Collection::new(&self.spec.outputs, limit);
        let is_on = ended.outcome == Outcome::Succeeded && self.context.stock.kept.is_on();
        let copies = if is_on { Copies::Keep } else { Copies::None };
        if ended.has_container && ended.outcome != Outcome::Superseded {
            for root in roots(&self.spec.outputs) {
                collection = self.take_root(collection, &root, copies)?;
            }
        }
        let (outputs, cut) = collection.into_parts();
        let mut report = FinalReport {
            outcome: ended.outcome,
            exit_code: ended.exit_code,
            reason: ended.reason,
            usage: ended.usage,
            duration_ms: u64::try_from(ended.duration.as_millis()).unwrap_or(u64::MAX),
            image_digest: self.marks.image_digest.clone().unwrap_or_default(),
            outputs,
            cut,
            streams: counting(self.context.store.outbox().stream_ends(&self.spec.key)),
            tail: ended.tail.bytes(),
            // The coordinator's to say.
            phases: Vec::new(),
            limits: ended.limits,
            figures: Some(ended.figures),
            evidence: Some(ended.evidence),
            code: String::new(),
        };
        note_network(&mut report);
        if report.outcome == Outcome::OutOfMemory {
            note_limit_reached(&mut report, &self.spec);
        }
        Ok(report)
    }

    /// One folder or file below the work folder. An engine that is away is waited for; an archive that breaks off is
    /// asked for again a few times.
    fn take_root(&self, mut collection: Collection, root: &str, copies: Copies) -> Step<Collection> {
        let mut tries = 0;
        loop {
            let (taken, failure) = self.try_take_root(collection, root.to_owned(), copies)?;
            collection = taken;
            let Some(failure) = failure else { return Ok(collection) };
            let is_away = self.context.quick_docker.ping().is_err();
            tries += u32::from(!is_away);
            if tries >= MAX_COLLECTIONS || failure.kind() == io::ErrorKind::StorageFull {
                collection.cut(format!("{root}: not all of it could be read: {failure}"));
                return Ok(collection);
            }
            self.tell(TaskNews::Detail(format!("reads the output files again: {failure}")));
            self.wait_unless(&|| self.leave_order(), COLLECTION_PAUSE)?;
        }
    }

    fn try_take_root(
        &self,
        mut collection: Collection,
        root: String,
        copies: Copies,
    ) -> Step<(Collection, Option<io::Error>)> {
        let (name, key, store) = (self.name.clone(), self.spec.key.clone(), self.context.store.clone());
        let (stock, owner) = (Arc::clone(&self.context.stock), self.spec.owner.clone());
        self.call_unless(&|| self.leave_order(), &Stop::new(), move |docker| {
            let path = if root.is_empty() { WORK_FOLDER.to_owned() } else { format!("{WORK_FOLDER}/{root}") };
            let mut open = |stream| {
                if stream > FIRST_OUTPUT {
                    failpoint::pass(FailPoint::HalfCollected);
                }
                let copy = (copies == Copies::Keep).then(|| stock.kept.begin().ok()).flatten();
                store.output_writer(&key, stream).map(|spool| Sink { spool, copy })
            };
            let mut close = |sink: Sink, sha256: &str| {
                sink.spool.close();
                if let (Some(copy), Some(sha256)) = (sink.copy, from_hex(sha256))
                    && let Err(error) = stock.kept.publish(&owner, &sha256, copy)
                {
                    log::debug!("an output file of {key} is not kept: {error}");
                }
                Ok(())
            };
            let result = match docker.get_archive(&name, &path, ARCHIVE_IDLE) {
                Ok(archive) => collection.take(archive, &root, &mut open, &mut close),
                Err(error) if error.is_not_found() => Ok(()),
                Err(error) => Err(error.into()),
            };
            (collection, result.err())
        })
    }

    /// Removes container, helper, volume and network; what could not be, in words. Tries until the engine answers, or until the
    /// worker lets go: then the next start removes the rest.
    pub fn clean(&self) -> Option<String> {
        let (container, helper, volume) = (self.name.clone(), format!("{}-owner", self.name), self.name.clone());
        let mut removals = vec![
            self.remove(move |docker| docker.remove_container(&container)),
            self.remove(move |docker| {
                failpoint::pass(FailPoint::Cleaning);
                docker.remove_container(&helper)
            }),
            self.remove(move |docker| docker.remove_volume(&volume)),
        ];
        if !self.spec.dependencies.is_empty() {
            let (filler, volume) = (filler_name(&self.name), dependencies_volume(&self.name));
            removals.push(self.remove(move |docker| docker.remove_container(&filler)));
            removals.push(self.remove(move |docker| docker.remove_volume(&volume)));
        }
        if !self.spec.requirements.is_empty() {
            removals.extend(self.clean_packages());
        }
        if self.spec.network == Network::Egress {
            let network = self.name.clone();
            removals.push(self.remove(move |docker| docker.remove_network(&network)));
            // Behind the network: there is no moment at which one is there without rules.
            if removals.iter().all(Result::is_ok) {
                removals.push(self.close_network_of(&self.name));
            }
        }
        if removals.iter().all(Result::is_ok) {
            removals.push(self.context.volumes.remove(&self.spec.key));
        }
        let troubles: Vec<String> = removals.into_iter().filter_map(Result::err).collect();
        (!troubles.is_empty()).then(|| troubles.join("; "))
    }

    /// What an install has left. A set that is whole stays: it is not this attempt's any more.
    fn clean_packages(&self) -> Vec<Result<(), String>> {
        let (filler, name, volume) = (filler_name(&self.name), prepare_name(&self.name), packages_volume(&self.name));
        let network = name.clone();
        let mut removals = vec![
            self.remove(move |docker| docker.remove_container(&filler)),
            self.remove({
                let name = name.clone();
                move |docker| docker.remove_container(&name)
            }),
            self.remove(move |docker| docker.remove_network(&network)),
        ];
        if removals.iter().all(Result::is_ok) {
            removals.push(self.close_network_of(&name));
        }
        if !self.context.stock.packages.has_volume(&volume) {
            removals.push(self.remove(move |docker| docker.remove_volume(&volume)));
        }
        removals
    }

    fn remove(&self, remove: impl Fn(&Docker) -> Result<Change, Error> + Clone + Send + 'static) -> Result<(), String> {
        let left = |_| "the worker ended before".to_owned();
        for attempt in 1.. {
            match self.engine_patiently(remove.clone()).map_err(left)? {
                Ok(_) => return Ok(()),
                // What does not end is not free: its resources are held until it does.
                Err(error) if attempt >= MAX_REMOVALS && !self.is_undying => return Err(error.to_string()),
                Err(_) => {
                    let pause = (REMOVAL_PAUSE * attempt).min(MAX_REMOVAL_PAUSE);
                    self.wait_unless(&|| self.leave_order(), pause).map_err(left)?;
                }
            }
        }
        Ok(())
    }
}

/// Where there is no network, nothing went over it, also where nobody could look.
fn note_network(report: &mut FinalReport) {
    let is_none = report.limits.as_ref().is_some_and(|limits| limits.network == "none");
    if let Some(figures) = report.figures.as_mut().filter(|_| is_none) {
        figures.network_received_bytes = figures.network_received_bytes.or(Some(0));
        figures.network_sent_bytes = figures.network_sent_bytes.or(Some(0));
    }
}

/// The streams that make up the result. A collection that a restart has cut short left files of an earlier epoch: what
/// counts is the last one, whole; of the logs each epoch is a part.
fn counting(mut ends: Vec<StreamEnd>) -> Vec<StreamEnd> {
    let is_file = |end: &StreamEnd| end.stream >= FIRST_OUTPUT;
    let last = ends.iter().filter(|end| is_file(end)).map(|end| end.epoch).max();
    ends.retain(|end| !is_file(end) || Some(end.epoch) == last);
    ends
}

/// An output file on its way into the spool.
struct Sink {
    spool: StreamWriter,
    /// For later tasks of the same owner.
    copy: Option<HalfFile>,
}

impl io::Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A help for later tasks and no duty.
        if self.copy.as_mut().is_some_and(|copy| copy.write_all(bytes).is_err()) {
            self.copy = None;
        }
        let appended = self.spool.append(bytes)?;
        if appended < bytes.len() as u64 {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "the node's disk is full"));
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::record::{STDERR, STDOUT};

    #[test]
    fn files_of_a_collection_that_was_cut_short_do_not_count() {
        let end = |stream, epoch| StreamEnd { stream, epoch, bytes: epoch };
        let file = FIRST_OUTPUT;
        let ends = vec![end(STDOUT, 1), end(STDOUT, 3), end(STDERR, 3), end(file, 1), end(file, 3), end(file + 1, 1)];
        assert_eq!(counting(ends), [end(STDOUT, 1), end(STDOUT, 3), end(STDERR, 3), end(file, 3)]);
    }
}

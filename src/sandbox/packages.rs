//! Packages of a task: installed by pip in a prepare container of the task's own image, under the task's own limits, with a
//! network of its own, into a volume that tasks get read-only once it is whole. A set is known by the task's owner, the image
//! (whose digest says which Python it has), the index and the text, so that nobody's packages are another's.
//!
//! Left out on purpose: packages of tasks in other languages, and source distributions, which would be built here.

use std::sync::Arc;
use std::time::Duration;

use ring::digest::{Context, SHA256};
use tar::{Builder, EntryType, Header};

use super::body::{PACKAGES_FOLDER, TASK_USER, filler_body, packages_volume, prepare_body};
use super::dependencies::{self, filler_name};
use super::disk::{DiskWatch, Finding};
use super::image::TaskImage;
use super::network::{Member, prepare_name};
use super::readback::check_read_back;
use super::step::{Break, Step, fault};
use super::stock::Index;
use super::task::Task;
use crate::docker::{ContainerInspect, CreateBody, LogOptions};
use crate::node::order::TaskNews;
use crate::node::record::Outcome;
use crate::node::requirements;
use crate::node::spec::TaskSpec;
use crate::store::{Claim, Look, SetKey};
use crate::sys::text::printable;

/// Between two looks at a container that installs.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Between two looks whether another task has the same packages ready.
const BUSY_PAUSE: Duration = Duration::from_millis(500);
/// Between two pieces of the log.
const LOG_IDLE: Duration = Duration::from_secs(30);
/// Lines of the log in a reason ...
const LOG_LINES: usize = 12;
/// ... and bytes.
const LOG_BYTES: usize = 1_500;
/// Of the log that is looked at.
const MAX_LOG_BYTES: usize = 256 << 10;
/// The installer's word for an index that can't be reached.
const UNREACHABLE: i64 = 75;
/// pip's words where the index or the way to it is at fault. Such a failure ends with the same last line as a version that
/// does not exist.
const PASSING: [&str; 6] = [
    "connection broken by",
    "Could not fetch URL",
    "Temporary failure in name resolution",
    "Read timed out",
    "HTTP error 5",
    "Connection refused",
];
/// The requirements can't be installed on any node.
const WRONG: &str = "requirements";
/// This node could not install them.
const NOT_HERE: &str = "requirements_not_here";

impl Task {
    /// The volume with the task's packages, installed if nobody has before.
    pub fn packages(&self, image: &TaskImage) -> Step<Option<String>> {
        if self.spec.requirements.is_empty() {
            return Ok(None);
        }
        let stock = Arc::clone(&self.context.stock);
        let key = set_key(&self.spec, &image.id, &stock.index);
        loop {
            match stock.packages.look(&key) {
                Look::There(volume) if self.is_volume_there(&volume)? => return Ok(Some(volume)),
                // Somebody has removed it at the engine.
                Look::There(_) => stock.packages.forget(&key).map_err(|error| not_here(self, &error.to_string()))?,
                Look::Busy => {
                    let words = "waits for another task, which installs the same packages";
                    self.tell(TaskNews::Detail(words.to_owned()));
                    self.wait(BUSY_PAUSE)?;
                }
                Look::Yours(claim) => return self.install(image, &claim).map(Some),
            }
        }
    }

    fn is_volume_there(&self, volume: &str) -> Step<bool> {
        let name = volume.to_owned();
        match self.engine(move |docker| docker.inspect_volume(&name))? {
            Ok(found) => Ok(found.labels.get(super::naming::LABEL_KEY) == Some(&self.context.identity.key)),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(fault(&error)),
        }
    }

    fn install(&self, image: &TaskImage, claim: &Claim) -> Step<String> {
        let count = requirements::count(&self.spec.requirements);
        let things = if count == 1 { "requirement" } else { "requirements" };
        let stock = &self.context.stock;
        let (name, volume) = (prepare_name(&self.name), packages_volume(&self.name));
        // Of an earlier try, whatever there is.
        self.remove_prepared()?;
        self.open_network_of(Member::prepare(&self.name, stock.index.access()), &name)?;
        self.tell(TaskNews::Detail(format!("installs {count} {things}")));
        self.own_volume(&volume)?;
        self.fill_set(image, &volume)?;
        let body =
            prepare_body(&self.spec, &self.context.identity, image, &self.context.egress.dns, &stock.index.text());
        let (container, create) = (name.clone(), body.clone());
        let made = self.engine_whole(move |docker| {
            docker.create_container(&container, &create)?;
            docker.start_container(&container)
        })?;
        made.map_err(|error| not_here(self, &error.to_string()))?;
        let mut watch = DiskWatch::new(&self.context.quick_docker, &volume, self.spec.disk_bytes, None);
        let ended = self.watch_install(&name, &body, watch.as_mut());
        if ended.is_err() {
            // At once: until it is removed, the report has to be stored.
            let _ = self.context.quick_docker.kill_container(&name, "SIGKILL");
        }
        let ended = ended?;
        if ended.state.exit_code != 0 || ended.state.oom_killed {
            return Err(self.blame(&name, &ended));
        }
        let bytes = watch.and_then(|watch| watch.end().largest).unwrap_or(0);
        self.remove_install()?;
        stock.packages.publish(claim, &volume, bytes).map_err(|error| not_here(self, &error.to_string()))?;
        Ok(volume)
    }

    /// The folder that pip writes to, and what it reads.
    fn fill_set(&self, image: &TaskImage, volume: &str) -> Step<()> {
        let labels = self.context.identity.labels(&self.spec.key, "owner");
        let body = filler_body(&image.id, labels, volume, PACKAGES_FOLDER);
        let authorities = self.context.stock.index.authorities().map_err(|problem| not_here(self, &problem))?;
        let root = PACKAGES_FOLDER.trim_start_matches('/').to_owned();
        let mut files =
            vec![(format!("{root}/.install/requirements.txt"), self.spec.requirements.clone().into_bytes())];
        files.extend(authorities.map(|pem| (format!("{root}/.install/ca.pem"), pem)));
        self.fill_volume(&body, move |out| {
            let mut builder = Builder::new(out);
            for folder in [format!("{root}/"), format!("{root}/.install/")] {
                builder.append_data(&mut header(EntryType::Directory, 0, 0o755), folder, std::io::empty())?;
            }
            for (path, content) in &files {
                let mut header = header(EntryType::Regular, content.len() as u64, 0o644);
                builder.append_data(&mut header, path, content.as_slice())?;
            }
            builder.finish()
        })
    }

    /// Until the container has ended, by itself or over a limit.
    fn watch_install(
        &self,
        name: &str,
        body: &CreateBody,
        mut watch: Option<&mut DiskWatch>,
    ) -> Step<ContainerInspect> {
        let limit = self.context.stock.prepare_limit;
        let end = (self.context.clock)() + limit;
        let mut is_checked = false;
        loop {
            let name = name.to_owned();
            let found = self.engine(move |docker| docker.inspect_container(&name))?;
            let found = found.map_err(|error| not_here(self, &error.to_string()))?;
            if !is_checked {
                check_read_back(body, &found).map_err(|what| not_here(self, &what))?;
                is_checked = true;
            }
            if !found.state.running {
                return Ok(found);
            }
            if (self.context.clock)() >= end {
                let words = format!("installing took longer than {} s (HIVEMIND_PREPARE_LIMIT)", limit.as_secs_f64());
                return Err(not_here(self, &words));
            }
            match watch.as_mut().map(|watch| watch.look(&self.context.quick_docker)) {
                Some(Finding::OverLimit(reason)) => {
                    self.code.set(WRONG);
                    return Err(Break::End(Outcome::Rejected, format!("requirements: installing {reason}")));
                }
                Some(Finding::Reserve(reason)) => return Err(not_here(self, &reason)),
                Some(Finding::Fine) | None => {}
            }
            self.wait(LOOK_EVERY)?;
        }
    }

    /// Whose fault it is that pip failed.
    fn blame(&self, name: &str, ended: &ContainerInspect) -> Break {
        let options = LogOptions { stdout: true, stderr: true, ..LogOptions::default() };
        let name = name.to_owned();
        let said = self.engine(move |docker| {
            let mut output = docker.logs(&name, &options, LOG_IDLE)?;
            let mut said = Vec::new();
            while let Some((_, bytes)) = output.next_piece()? {
                said.extend(bytes.iter().take(MAX_LOG_BYTES - said.len().min(MAX_LOG_BYTES)));
            }
            Ok(said)
        });
        let said = match said {
            Err(interruption) => return interruption,
            Ok(said) => said.unwrap_or_else(|error| error.to_string().into_bytes()),
        };
        let said = String::from_utf8_lossy(&said);
        let code = ended.state.exit_code;
        if is_passing(code, &said) {
            return not_here(self, &format!("the package index could not be used: {}", end_of(&said)));
        }
        self.code.set(WRONG);
        let how = if ended.state.oom_killed {
            "needs more memory than the task's limit".to_owned()
        } else {
            format!("ended with {code}")
        };
        Break::End(Outcome::Rejected, format!("requirements: pip {how}: {}", end_of(&said)))
    }

    /// Container and network of an install, whatever there is of them.
    fn remove_install(&self) -> Step<()> {
        let name = prepare_name(&self.name);
        let filler = filler_name(&self.name);
        let removed = self.engine_whole(move |docker| {
            docker.remove_container(&name)?;
            docker.remove_container(&filler)?;
            docker.remove_network(&name)
        })?;
        removed.map_err(|error| not_here(self, &error.to_string()))?;
        self.close_network_of(&prepare_name(&self.name)).map_err(|problem| not_here(self, &problem))
    }

    fn remove_prepared(&self) -> Step<()> {
        self.remove_install()?;
        let volume = packages_volume(&self.name);
        // Published by an earlier life of the worker, under a key that has changed since.
        if self.context.stock.packages.has_volume(&volume) {
            return Err(not_here(self, "its volume has other packages"));
        }
        let removed = self.engine_whole(move |docker| docker.remove_volume(&volume))?;
        removed.map(drop).map_err(|error| not_here(self, &error.to_string()))
    }
}

fn not_here(task: &Task, why: &str) -> Break {
    task.code.set(NOT_HERE);
    Break::End(Outcome::NodeFault, format!("requirements: {why}"))
}

fn is_passing(code: i64, said: &str) -> bool {
    code == UNREACHABLE || PASSING.iter().any(|words| said.contains(words))
}

/// The last lines, fit to be shown.
fn end_of(said: &str) -> String {
    let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let text = lines.get(lines.len().saturating_sub(LOG_LINES)..).unwrap_or_default().join(" | ");
    let text = printable(&text);
    let mut at = text.len().saturating_sub(LOG_BYTES);
    while !text.is_char_boundary(at) {
        at += 1;
    }
    text[at..].to_owned()
}

/// Of the task's user, who installs them.
fn header(kind: EntryType, size: u64, mode: u32) -> Header {
    let mut header = dependencies::header(kind, size, mode);
    header.set_uid(u64::from(TASK_USER));
    header.set_gid(u64::from(TASK_USER));
    header
}

/// Parts with their lengths, so that no two lists of them look the same.
fn set_key(spec: &TaskSpec, image_id: &str, index: &Index) -> SetKey {
    let mut sum = Context::new(&SHA256);
    for part in [spec.owner.as_str(), image_id, &index.text(), &spec.requirements] {
        sum.update(&(part.len() as u64).to_be_bytes());
        sum.update(part.as_bytes());
    }
    sum.finish().as_ref().try_into().unwrap_or_default()
}

impl Member {
    /// Of the container that installs a task's packages.
    fn prepare(container: &str, access: super::firewall::Access) -> Self {
        Self::named(&prepare_name(container), access)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::net::NetworkPolicy;
    use crate::node::offer::Offer;
    use crate::node::spec::SpecDefaults;
    use crate::node::url::Url;

    fn spec(owner: &str, text: &str) -> TaskSpec {
        let offer = Offer {
            task: "t".to_owned(),
            attempt: 1,
            owner: owner.to_owned(),
            requirements: text.to_owned(),
            ..Offer::default()
        };
        let network = NetworkPolicy { is_egress_allowed: true, ..NetworkPolicy::default() };
        TaskSpec::check(&offer, &SpecDefaults { network, ..SpecDefaults::default() }).unwrap()
    }

    #[test]
    fn sets_are_apart_by_owner_image_index_and_text() {
        let own = Index { url: Url::parse("https://h/simple/").ok(), ca_file: None };
        let keys = [
            set_key(&spec("ada", "a==1"), "sha256:1", &Index::default()),
            set_key(&spec("eve", "a==1"), "sha256:1", &Index::default()),
            set_key(&spec("ada", "a==2"), "sha256:1", &Index::default()),
            set_key(&spec("ada", "a==1"), "sha256:2", &Index::default()),
            set_key(&spec("ada", "a==1"), "sha256:1", &own),
        ];
        let distinct: std::collections::BTreeSet<_> = keys.iter().collect();
        assert_eq!(distinct.len(), keys.len());
        assert_eq!(keys[0], set_key(&spec("ada", " a == 1 # why"), "sha256:1", &Index::default()));
    }

    #[test]
    fn a_version_that_does_not_exist_is_the_tasks_fault_and_the_index_the_nodes() {
        let last = "ERROR: No matching distribution found for a==9";
        assert!(!is_passing(1, last));
        assert!(is_passing(UNREACHABLE, last));
        let broken = format!("WARNING: Retrying after connection broken by 'NewConnectionError'\n{last}");
        assert!(is_passing(1, &broken));
        assert_eq!(end_of("a\n\n b\u{1b}[2J\n"), "a | b\\u{1b}[2J");
        assert!((LOG_BYTES - 3..=LOG_BYTES).contains(&end_of(&"\u{e9}".repeat(2_000)).len()));
    }
}

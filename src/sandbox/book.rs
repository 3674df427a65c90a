//! Images that this node has pulled itself and that were not at the engine before: the only ones that it ever removes. When
//! the engine's disk runs low, the least recently used of them go that no attempt holds and no container uses.
//!
//! Who else has a use for an image is told by its names: one that has a tag or a repository beside those that were pulled
//! here stays. What the owner removes is forgotten at the next look, each hour at the latest.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use log::{info, warn};
use serde::{Deserialize, Serialize};

use super::collector::log_one;
use super::disk::{RESERVE_BYTES, free_bytes};
use crate::docker::{Docker, Error, ImageInspect};
use crate::node::id::AttemptKey;
use crate::node::image::ImageRef;
use crate::node::leftover::{Collecting, LeftOver};
use crate::node::spec::base_image_name;
use crate::store::Store;
use crate::sys::time::unix_ms;

/// Below this the engine's disk runs low: some images' worth above what must stay free.
const LOW_BYTES: u64 = 4 * RESERVE_BYTES;
/// Images of one node. The oldest beyond are forgotten, and so never removed.
const MAX_IMAGES: usize = 1_000;
/// In the store.
const KEY: &str = "images";

/// An image that was pulled here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Pulled {
    /// The engine's.
    id: String,
    /// The references that it was pulled by, completed.
    names: BTreeSet<String>,
    /// Milliseconds since 1970; between two writes only in memory.
    used_ms: u64,
}

/// See the module.
pub struct Book {
    store: Store,
    pages: Mutex<Pages>,
}

#[derive(Default)]
struct Pages {
    pulled: Vec<Pulled>,
    held: HashMap<AttemptKey, String>,
    leaving: HashSet<String>,
}

/// Whether an attempt can have an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// This node never removes it.
    Foreign,
    /// It is not removed any more; whether it is still there must be asked again.
    Ours,
    /// It is being removed.
    Leaving,
}

impl Book {
    /// As the store has it.
    pub fn open(store: Store) -> Self {
        let pulled = store.kv_get(KEY).and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        Self { store, pages: Mutex::new(Pages { pulled, ..Pages::default() }) }
    }

    /// Notes what a pull has brought, unless it was there before.
    pub fn note(&self, image: &ImageRef, id: &str, before: &HashSet<String>) {
        let mut pages = self.pages();
        let is_known = pages.pulled.iter().any(|pulled| pulled.id == id);
        if image.name() == base_image_name() || (before.contains(id) && !is_known) {
            return;
        }
        pages.note(id, image.full_text(), unix_ms());
        let bytes = pages.to_bytes();
        drop(pages);
        self.write(&bytes);
    }

    /// Holds an image for an attempt, in place of what it held.
    pub fn hold(&self, key: &AttemptKey, id: &str) -> Hold {
        let mut pages = self.pages();
        if pages.leaving.contains(id) {
            return Hold::Leaving;
        }
        let Some(pulled) = pages.pulled.iter_mut().find(|pulled| pulled.id == id) else { return Hold::Foreign };
        pulled.used_ms = unix_ms();
        pages.held.insert(key.clone(), id.to_owned());
        Hold::Ours
    }

    /// The attempt needs its image no more.
    pub fn release(&self, key: &AttemptKey) {
        self.pages().held.remove(key);
    }

    /// Forgets what is gone, and removes what is too much on the engine's disk, or tells it.
    ///
    /// # Errors
    /// The engine's.
    pub fn tidy(&self, docker: &Docker, how: Collecting) -> Result<Vec<LeftOver>, Error> {
        if self.pages().pulled.is_empty() {
            return Ok(Vec::new());
        }
        let there = docker.image_ids()?;
        self.keep(|pulled| there.contains(&pulled.id));
        let folder = docker.facts()?.root_dir;
        let mut found = Vec::new();
        for pulled in self.least_recently_used() {
            let Some(free) = free_bytes(Path::new(&folder)).filter(|free| *free < LOW_BYTES) else { break };
            let name = pulled.names.first().cloned().unwrap_or_else(|| pulled.id.clone());
            let reason = format!(
                "pulled for tasks, last used {} minutes ago; the engine's disk has {} MiB left, less than {} MiB",
                unix_ms().saturating_sub(pulled.used_ms) / 60_000,
                free >> 20,
                LOW_BYTES >> 20
            );
            let left_over = |trouble| LeftOver { kind: "image".to_owned(), name, reason, trouble };
            match (how, self.may_go(docker, &pulled)?) {
                (_, false) => {}
                (Collecting::Looks, true) => found.push(left_over(None)),
                (Collecting::Removes, true) => match self.remove(docker, &pulled) {
                    // A container uses it, or an attempt has come for it.
                    None => {}
                    Some(Err(error)) if error.is_conflict() => {}
                    Some(result) => found.push(left_over(result.err().map(|error| error.to_string()))),
                },
            }
        }
        Ok(found)
    }

    /// As [`Self::tidy`], before a pull. What goes is told in the log.
    pub fn make_room(&self, docker: &Docker) {
        match self.tidy(docker, Collecting::Removes) {
            Ok(gone) => gone.iter().for_each(log_one),
            Err(error) => info!("no room is made for a pull: {error}"),
        }
    }

    /// Least recently used first, without those that are held.
    fn least_recently_used(&self) -> Vec<Pulled> {
        let pages = self.pages();
        let mut free: Vec<Pulled> = pages.pulled.iter().filter(|pulled| !pages.is_held(&pulled.id)).cloned().collect();
        free.sort_by_key(|pulled| pulled.used_ms);
        free
    }

    fn may_go(&self, docker: &Docker, pulled: &Pulled) -> Result<bool, Error> {
        match docker.inspect_image(&pulled.id) {
            Ok(image) => Ok(is_only_ours(&image, &pulled.names)),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The record goes first: an image that is removed and comes back by its owner's hand is the owner's.
    fn remove(&self, docker: &Docker, pulled: &Pulled) -> Option<Result<(), Error>> {
        {
            let mut pages = self.pages();
            if pages.is_held(&pulled.id) || !pages.leaving.insert(pulled.id.clone()) {
                return None;
            }
        }
        self.keep(|other| other.id != pulled.id);
        let removed = remove(docker, pulled);
        let mut pages = self.pages();
        pages.leaving.remove(&pulled.id);
        if removed.is_err() {
            pages.pulled.push(pulled.clone());
            let bytes = pages.to_bytes();
            drop(pages);
            self.write(&bytes);
        }
        Some(removed)
    }

    fn keep(&self, is_kept: impl Fn(&Pulled) -> bool) {
        let mut pages = self.pages();
        let before = pages.pulled.len();
        pages.pulled.retain(is_kept);
        if pages.pulled.len() != before {
            let bytes = pages.to_bytes();
            drop(pages);
            self.write(&bytes);
        }
    }

    /// What can't be written is forgotten by the next start, and then never removed.
    fn write(&self, bytes: &[u8]) {
        if let Err(error) = self.store.kv_put(KEY, bytes) {
            warn!("can't note which images were pulled: {error}");
        }
    }

    /// What is behind the lock is whole between two statements, so poison means nothing.
    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pages {
    fn note(&mut self, id: &str, name: String, now_ms: u64) {
        match self.pulled.iter_mut().find(|pulled| pulled.id == id) {
            Some(pulled) => {
                pulled.names.insert(name);
                pulled.used_ms = now_ms;
            }
            None => {
                self.pulled.push(Pulled { id: id.to_owned(), names: BTreeSet::from([name]), used_ms: now_ms });
                let too_many = self.pulled.len().saturating_sub(MAX_IMAGES);
                self.pulled.drain(..too_many);
            }
        }
    }

    fn is_held(&self, id: &str) -> bool {
        self.held.values().any(|held| held == id)
    }

    fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(&self.pulled).unwrap_or_default()
    }
}

/// An image that several tags name is removed only by each of them.
fn remove(docker: &Docker, pulled: &Pulled) -> Result<(), Error> {
    let tags = docker.inspect_image(&pulled.id)?.repo_tags;
    for tag in tags.iter().skip(1) {
        docker.remove_image(tag)?;
    }
    docker.remove_image(&pulled.id).map(drop)
}

/// Whether it has no name beside those that were pulled.
fn is_only_ours(image: &ImageInspect, names: &BTreeSet<String>) -> bool {
    let pulled: Vec<ImageRef> = names.iter().filter_map(|name| ImageRef::parse(name).ok()).collect();
    let is_pulled_tag = |tag: &ImageRef| names.contains(&tag.full_text());
    let is_pulled_name = |digest: &ImageRef| pulled.iter().any(|name| name.full_name() == digest.full_name());
    let all = |texts: &[String], is_it: &dyn Fn(&ImageRef) -> bool| {
        texts.iter().all(|text| ImageRef::parse(text).is_ok_and(|image| is_it(&image)))
    };
    all(&image.repo_tags, &is_pulled_tag) && all(&image.repo_digests, &is_pulled_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_with_another_name_is_not_only_ours() {
        let names = BTreeSet::from(["docker.io/library/python:3".to_owned(), "h.org/a:1".to_owned()]);
        let digest = |name: &str| format!("{name}@sha256:{}", "0f".repeat(32));
        let image = |tags: &[&str], digests: &[&str]| ImageInspect {
            repo_tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            repo_digests: digests.iter().map(|name| digest(name)).collect(),
            ..ImageInspect::default()
        };
        assert!(is_only_ours(&image(&["python:3", "h.org/a:1"], &["python", "h.org/a"]), &names));
        assert!(is_only_ours(&image(&[], &["python"]), &names), "its tag has moved on");
        for (tags, digests) in [
            (vec!["python:3", "mine:latest"], vec!["python"]),
            (vec!["python:3", "python:mine"], vec!["python"]),
            (vec!["python:3"], vec!["python", "h.org/b"]),
            (vec!["<none>:<none>"], vec![]),
        ] {
            assert!(!is_only_ours(&image(&tags, &digests), &names), "{tags:?} {digests:?}");
        }
    }

    #[test]
    fn pages_are_bounded_and_the_oldest_is_forgotten() {
        let mut pages = Pages::default();
        for number in 0..=MAX_IMAGES {
            pages.note(&format!("sha256:{number}"), "a:1".to_owned(), 1);
        }
        pages.note("sha256:5", "a:2".to_owned(), 2);
        assert_eq!((pages.pulled.len(), pages.pulled[0].id.as_str()), (MAX_IMAGES, "sha256:1"));
        assert_eq!(pages.pulled[4].names.len(), 2);
    }
}

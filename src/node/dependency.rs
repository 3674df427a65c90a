//! Files of earlier tasks that a task works on: what an assignment says of them, checked.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::id::{AttemptKey, Id};
use super::offer::OfferedFile;
use super::spec::{FieldError, MAX_ATTEMPT, MAX_BYTES, MAX_PATTERN_BYTES, refuse};
use super::url::Url;

/// Each is an open file while it is put into the container.
pub const MAX_DEPENDENCIES: usize = 256;
/// The code of a rejection for a file that is neither here nor to be had from here.
pub const NOT_HERE: &str = "dependency_not_here";

/// A file of an earlier task of the same owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dependency {
    /// The attempt that has put it out.
    pub key: AttemptKey,
    /// Path below that task's work folder.
    pub path: String,
    /// SHA-256 of the content.
    pub sha256: [u8; 32],
    /// Bytes.
    pub size: u64,
    /// Where it is, if the master has told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<Url>,
}

impl Dependency {
    /// Its place among all of the task's: a task has one attempt here, so that its id is enough.
    pub fn place(&self) -> String {
        format!("{}/{}", self.key.task, self.path)
    }
}

/// Bytes of all of them.
pub fn bytes(dependencies: &[Dependency]) -> u64 {
    dependencies.iter().fold(0, |sum, file| sum.saturating_add(file.size))
}

/// Checks what an assignment of `owner` names.
///
/// # Errors
/// Names the entry, and what would be right.
pub fn check(
    offered: &[OfferedFile],
    owner: &Id,
    disk_bytes: u64,
    max_fetch_bytes: u64,
) -> Result<Vec<Dependency>, FieldError> {
    if offered.len() > MAX_DEPENDENCIES {
        let reason = format!("has {} files, at most {MAX_DEPENDENCIES} are allowed", offered.len());
        return Err(refuse("dependencies", reason));
    }
    let mut checked: Vec<Dependency> = Vec::with_capacity(offered.len());
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    for (index, file) in offered.iter().enumerate() {
        let wrong = |reason: String| refuse(&format!("dependencies[{index}]"), reason);
        let dependency = check_one(file, owner, max_fetch_bytes).map_err(wrong)?;
        let is_other = |before: &&Dependency| before.key.task == dependency.key.task && before.key != dependency.key;
        if let Some(before) = checked.iter().find(is_other) {
            return Err(wrong(format!("is of {}, and one before it of {}", dependency.key, before.key)));
        }
        if let Some(before) = places.insert(dependency.place(), index) {
            return Err(wrong(format!("is the file of dependencies[{before}]")));
        }
        checked.push(dependency);
    }
    for (place, index) in &places {
        let mut folders = place.match_indices('/').map(|(at, _)| &place[..at]);
        if let Some(file) = folders.find_map(|folder| places.get(folder)) {
            let reason = format!("is below dependencies[{file}], which is a file");
            return Err(refuse(&format!("dependencies[{index}]"), reason));
        }
    }
    let total = bytes(&checked);
    if total > disk_bytes {
        let reason = format!("have {total} bytes together, more than the {disk_bytes} of disk_bytes");
        return Err(refuse("dependencies", reason));
    }
    Ok(checked)
}

fn check_one(file: &OfferedFile, owner: &Id, max_fetch_bytes: u64) -> Result<Dependency, String> {
    let task = Id::parse(&file.task).map_err(|error| format!("task_id {error}"))?;
    let attempt = match u32::try_from(file.attempt) {
        Ok(attempt @ 1..=MAX_ATTEMPT) => attempt,
        _ => return Err(format!("attempt is {}, must be from 1 to {MAX_ATTEMPT}", file.attempt)),
    };
    let theirs = if file.owner.is_empty() { "anonymous" } else { &file.owner };
    if theirs != owner.as_str() {
        return Err(format!("owner_id is not {owner}: a task may only have files of its own owner"));
    }
    let is_plain = |part: &str| !part.is_empty() && part != "." && part != "..";
    if file.path.len() > MAX_PATTERN_BYTES || !file.path.split('/').all(is_plain) {
        return Err(format!("path must be one below the work folder, of at most {MAX_PATTERN_BYTES} bytes"));
    }
    if file.path.chars().any(char::is_control) {
        return Err("path has a control character".to_owned());
    }
    let sha256 = file.sha256.as_slice().try_into();
    let sha256 = sha256.map_err(|_| format!("sha256 has {} bytes, must have 32", file.sha256.len()))?;
    let size = match u64::try_from(file.size) {
        Ok(size) if size <= MAX_BYTES => size,
        _ => return Err(format!("size is {}, must be from 0 to {MAX_BYTES}", file.size)),
    };
    let url = match file.url.as_str() {
        "" => None,
        _ if size > max_fetch_bytes => {
            return Err(format!("size is {size}, at most {max_fetch_bytes} bytes are fetched"));
        }
        url => Some(Url::parse(url).map_err(|reason| format!("url {reason}"))?),
    };
    Ok(Dependency { key: AttemptKey { task, attempt }, path: file.path.clone(), sha256, size, url })
}

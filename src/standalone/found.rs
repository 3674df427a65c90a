//! Reads the small master's folder at a start. What can't be read is left where it is and told, never removed; only
//! half-made and half-removed attempts, which nobody was promised, go.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::path::Path;

use super::folder::{Found, FoundAttempt, StreamId, cut_record, remove_tree};
use super::gate::PublicKey;
use crate::node::id::{AttemptKey, Id};
use crate::sys::text::from_hex;

/// Reads all of it.
///
/// # Errors
/// The folder itself can't be read.
pub fn read(root: &Path) -> io::Result<Found> {
    let mut found = Found::default();
    match optional(&root.join("nodes.json"))?.map(|json| parse_nodes(&json)) {
        Some(Some(keys)) => found.keys = keys,
        Some(None) => found.troubles.push("nodes.json can't be read: nodes are taken as new".to_owned()),
        None => {}
    }
    for task in names(&root.join("tasks"))? {
        let folder = root.join("tasks").join(&task);
        let Ok(id) = Id::parse(&task) else {
            found.troubles.push(format!("tasks/{task:?} is no task id"));
            continue;
        };
        for name in names(&folder)? {
            if name.starts_with(".new-") || name.starts_with(".old-") {
                remove_tree(&folder.join(&name))?;
                continue;
            }
            let attempt = name.parse().ok().filter(|attempt| *attempt > 0);
            let key = attempt.map(|attempt| AttemptKey { task: id.clone(), attempt });
            match key.map(|key| read_attempt(&folder.join(&name), key)) {
                Some(Ok(attempt)) => found.attempts.push(attempt),
                Some(Err(error)) => found.troubles.push(format!("tasks/{task}/{name}: {error}")),
                None => found.troubles.push(format!("tasks/{task}/{name:?} is no attempt")),
            }
        }
    }
    Ok(found)
}

fn read_attempt(folder: &Path, key: AttemptKey) -> io::Result<FoundAttempt> {
    let record = folder.join("record.jsonl");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let (streams, refused) = read_streams(&folder.join("streams"))?;
    Ok(FoundAttempt {
        key,
        meta: serde_json::from_slice(&fs::read(folder.join("meta.json"))?)?,
        node: optional(&folder.join("node"))?.and_then(|bytes| Id::parse(&text(bytes)).ok()),
        cancel: optional(&folder.join("cancel"))?.map(text),
        verdict: optional(&folder.join("verdict.json"))?.and_then(|json| serde_json::from_slice(&json).ok()),
        record: cut_record_at(&record)?,
        streams,
        refused,
    })
}

fn cut_record_at(path: &Path) -> io::Result<super::record::FoundRecord> {
    let bytes = optional(path)?.unwrap_or_default();
    cut_record(path, &bytes)
}

type Streams = (BTreeMap<StreamId, u64>, BTreeSet<StreamId>);

fn read_streams(folder: &Path) -> io::Result<Streams> {
    let (mut streams, mut refused) = Streams::default();
    for name in names(folder)? {
        let (stem, is_refused) = match name.strip_suffix(".refused") {
            Some(stem) => (stem, true),
            None => (name.as_str(), false),
        };
        let Some((stream, epoch)) = stem.split_once('-') else { continue };
        let (Ok(stream), Ok(epoch)) = (stream.parse(), epoch.parse()) else {
            continue;
        };
        if is_refused {
            refused.insert((stream, epoch));
        } else {
            // What a killed process had written and not synced counts from now on, so it is synced now.
            let file = File::open(folder.join(&name))?;
            file.sync_data()?;
            streams.insert((stream, epoch), file.metadata()?.len());
        }
    }
    Ok((streams, refused))
}

fn parse_nodes(json: &[u8]) -> Option<BTreeMap<Id, PublicKey>> {
    let texts: BTreeMap<Id, String> = serde_json::from_slice(json).ok()?;
    texts.into_iter().map(|(id, text)| Some((id, from_hex(&text)?))).collect()
}

/// Names in a folder; one that is no text can't be ours.
fn names(folder: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        if let Ok(name) = entry?.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn optional(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

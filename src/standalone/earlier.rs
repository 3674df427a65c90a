//! Earlier tasks that a task names: their output files, with all that a node must know of them, out of this master's records.
//!
//! Left out on purpose: a place to fetch them from. This master serves no HTTPS, so that only the node that has put a file out
//! has it, in its kept copy; another one answers `dependency_not_here`.

use super::core::Core;
use crate::node::id::Id;
use crate::node::offer::{Offer, OfferedFile};
use crate::node::record::{Outcome, OutputFile};
use crate::sys::text::from_hex;

/// Each named task or file becomes the files that it means; one that is complete stays as it is.
///
/// # Errors
/// Says which one can't be had, and why.
pub fn complete(core: &Core, offer: &Offer) -> Result<Vec<OfferedFile>, String> {
    let owner = if offer.owner.is_empty() { "anonymous" } else { &offer.owner };
    let mut files = Vec::new();
    for named in &offer.dependencies {
        // Numbers of attempts begin at 1.
        if named.attempt == 0 {
            files.extend(files_of(core, owner, named)?);
        } else {
            files.push(named.clone());
        }
    }
    Ok(files)
}

fn files_of(core: &Core, owner: &str, named: &OfferedFile) -> Result<Vec<OfferedFile>, String> {
    let task = Id::parse(&named.task).map_err(|error| format!("names a task whose id {error}"))?;
    let attempt = core.latest(&task).ok_or_else(|| format!("names {task}, which was not submitted here"))?;
    if core.owner_of(&attempt.key).as_deref() != Some(owner) {
        // Not whose it is: that is that owner's business.
        return Err(format!("names {task}, which is not a task of {owner}"));
    }
    let report = attempt.final_report.as_ref().filter(|report| report.outcome == Outcome::Succeeded);
    let report =
        report.ok_or_else(|| format!("names {task}, which has not succeeded: submit this task when it has"))?;
    let is_wanted = |file: &&OutputFile| named.path.is_empty() || file.path == named.path;
    let files: Vec<OfferedFile> = report
        .outputs
        .iter()
        .filter(is_wanted)
        .map(|file| OfferedFile {
            task: task.to_string(),
            attempt: i64::from(attempt.key.attempt),
            owner: owner.to_owned(),
            path: file.path.clone(),
            sha256: from_hex::<32>(&file.sha256).map(Vec::from).unwrap_or_default(),
            size: i64::try_from(file.size).unwrap_or(i64::MAX),
            url: String::new(),
        })
        .collect();
    match files.is_empty() {
        true if named.path.is_empty() => Err(format!("names {task}, which has put out no file")),
        true => Err(format!("names {}, which {task} has not put out", named.path)),
        false => Ok(files),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(owner: &str, task: &str, attempt: i64) -> Offer {
        let named = OfferedFile { task: task.to_owned(), attempt, ..OfferedFile::default() };
        Offer { owner: owner.to_owned(), dependencies: vec![named], ..Offer::default() }
    }

    #[test]
    fn a_task_that_is_not_here_is_named_and_a_complete_file_stays() {
        let folder = std::env::temp_dir().join(format!("hivemind-earlier-{}", std::process::id()));
        let core = Core::open(&folder, super::super::core::Terms::default(), 0).unwrap();
        assert_eq!(complete(&core, &offer("", "a", 0)).unwrap_err(), "names a, which was not submitted here");
        assert!(complete(&core, &offer("", "../a", 0)).unwrap_err().starts_with("names a task whose id"));
        let whole = offer("", "a", 3);
        assert_eq!(complete(&core, &whole), Ok(whole.dependencies));
        drop(core);
        std::fs::remove_dir_all(folder).unwrap();
    }
}

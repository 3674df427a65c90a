//! `drain`, `pause`, `resume` and `cancel`.

use std::time::Duration;

use crate::config::Format;
use crate::node::id::{AttemptKey, Id};
use crate::node::record::Outcome;

use super::client::{Client, ClientError, encoded};
use super::{Failure, print, table, tell};

/// Rows of history that are looked through: as many as the worker gives at once.
const MAX_HISTORY: u32 = 1_000;

/// Tells the node one of the words that it knows.
pub(super) fn act(client: &Client, word: &str, done: &str) -> Result<u8, Failure> {
    client.post(&format!("/api/v1/{word}"))?;
    tell(done);
    Ok(0)
}

/// `gc`: has what is left over collected.
pub(super) fn collect(client: &Client, format: Format, is_dry: bool) -> Result<u8, Failure> {
    let found = client.collect(is_dry)?;
    let failed = found.iter().any(|thing| thing.trouble.is_some());
    if format == Format::Json {
        print(&format!("{}\n", serde_json::json!({ "left_over": found })))?;
        return Ok(u8::from(failed));
    }
    let done = if is_dry { "would be removed" } else { "removed" };
    let rows: Vec<Vec<String>> = found
        .iter()
        .map(|thing| {
            let state = thing.trouble.as_ref().map_or(done.to_owned(), |trouble| format!("NOT removed: {trouble}"));
            table::row([&thing.kind, &thing.name, &state, &thing.reason])
        })
        .collect();
    print(&table::render(&rows))?;
    if found.is_empty() {
        tell("nothing is left over");
    }
    Ok(u8::from(failed))
}

/// Stops a task: as its author on a standalone node, else as the node's owner.
pub(super) fn cancel(client: &Client, task: &Id) -> Result<u8, Failure> {
    match client.post(&format!("/api/v1/submissions/{}/cancel", encoded(task.as_str()))) {
        Ok(()) => {}
        // Not submitted here, or no small master here (409): the node may hold it all the same.
        Err(ClientError::Refused { status: 404 | 409, .. }) => {
            if let Some(outcome) = ended_submission(client, task)? {
                return Err(has_ended(task, outcome));
            }
            let Some(key) = held_attempt(client, task)? else {
                let ended = client.history(MAX_HISTORY)?.into_iter().find(|row| row.key.task == *task);
                return Err(ended.map_or_else(|| not_held(task), |row| has_ended(task, row.outcome)));
            };
            client.post(&format!("/api/v1/tasks/{}/{}/stop", encoded(key.task.as_str()), key.attempt))?;
        }
        Err(error) => return Err(error.into()),
    }
    tell(&format!("{task} is being stopped"));
    Ok(0)
}

/// How a task ended that was submitted here; `None` while it goes on, and where it was not.
fn ended_submission(client: &Client, task: &Id) -> Result<Option<Outcome>, ClientError> {
    match client.submission(task.as_str(), None, Duration::ZERO) {
        Ok(view) => Ok(view.final_report.map(|report| report.outcome)),
        Err(ClientError::Refused { status: 404 | 409, .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn has_ended(task: &Id, outcome: Outcome) -> Failure {
    Failure::new(format!("{task} has ended: {outcome}"))
}

/// The latest attempt of a task that the node holds.
pub(super) fn held_attempt(client: &Client, task: &Id) -> Result<Option<AttemptKey>, ClientError> {
    let attempts = client.status()?.attempts;
    let keys = attempts.into_iter().map(|view| view.key).filter(|key| key.task == *task);
    Ok(keys.max_by_key(|key| key.attempt))
}

/// Nobody here knows the task.
pub(super) fn not_held(task: &Id) -> Failure {
    Failure::new(format!("this node holds no task {task}: `hivemind-worker tasks` lists them"))
}

//! The routes of single attempts: all that is known of one, its output, its bundle, an order to stop it; and the collection
//! of what attempts have left.

use super::routes::{Ask, Body, Context, Reply, act, answer_logs, get, post};
use super::{OutputContent, TaskView, views};
use crate::node::action::Action;
use crate::node::id::{AttemptKey, Id};
use crate::node::leftover::Collecting;

/// Answers what is below `/api/v1/tasks/`.
pub fn answer(context: &Context, ask: &Ask, rest: &[&str]) -> Reply {
    match rest {
        [task] => get(ask, || show(context, latest(context, task))),
        [task, attempt] => get(ask, || show(context, parse_key(task, attempt))),
        [task, attempt, "stop"] => post(ask, || stop(context, task, attempt)),
        [task, attempt, "logs"] => get(ask, || logs(context, ask, task, attempt)),
        [task, attempt, "bundle"] => get(ask, || bundle(context, ask, task, attempt)),
        _ => Reply::error(404, "there is nothing here"),
    }
}

/// Answers `/api/v1/gc`.
pub fn collect(context: &Context, ask: &Ask) -> Reply {
    let how = match ask.value("dry_run") {
        None | Some("0") => Collecting::Removes,
        Some(_) => Collecting::Looks,
    };
    match context.logs.collect(how) {
        Ok(found) => Reply::json(200, &views::left_overs(found)),
        Err(message) => Reply::error(503, &message),
    }
}

fn latest(context: &Context, task: &str) -> Option<AttemptKey> {
    let task = Id::parse(task).ok()?;
    let held = context.snapshot.latest();
    let held = held.attempts.iter().filter(|view| view.key.task == task).map(|view| view.key.attempt).max();
    let attempt = held.max(context.logs.latest(&task))?;
    Some(AttemptKey { task, attempt })
}

fn show(context: &Context, key: Option<AttemptKey>) -> Reply {
    let Some(key) = key else { return no_such_attempt() };
    let snapshot = context.snapshot.latest();
    let held = snapshot.attempts.iter().find(|view| view.key == key).cloned();
    let report = context.logs.report(&key);
    let ended = context.logs.ended(&key);
    let bundle_bytes = context.logs.bundle(&key).map(|bundle| bundle.size);
    if held.is_none() && report.is_none() && ended.is_none() && bundle_bytes.is_none() {
        return no_such_attempt();
    }
    Reply::json(200, &views::task(TaskView { key, held, ended, report, tail: String::new(), bundle_bytes }))
}

fn stop(context: &Context, task: &str, attempt: &str) -> Reply {
    match parse_key(task, attempt) {
        Some(key) if context.snapshot.latest().attempts.iter().any(|view| view.key == key) => {
            act(context, Action::StopTask(key), "stop")
        }
        _ => no_such_attempt(),
    }
}

fn logs(context: &Context, ask: &Ask, task: &str, attempt: &str) -> Reply {
    let Some(key) = parse_key(task, attempt) else {
        return no_such_attempt();
    };
    answer_logs(ask, |stream, offset, max| context.logs.read(&key, stream, offset, max))
}

/// A bundle has what the task's author wrote and whatever the task left: it is for the owner's own programs, not for what
/// runs in a browser.
fn bundle(context: &Context, ask: &Ask, task: &str, attempt: &str) -> Reply {
    if !ask.is_control {
        return Reply::error(403, "bundles are served over the control socket only");
    }
    match parse_key(task, attempt).and_then(|key| context.logs.bundle(&key)) {
        None => Reply::error(404, "no bundle of this attempt is kept"),
        Some(content) => stream(content),
    }
}

fn stream(content: OutputContent) -> Reply {
    let mut reply = Reply::new(200, "application/x-tar", "").with("Content-Disposition", "attachment");
    reply.body = Body::Stream(content);
    reply
}

fn parse_key(task: &str, attempt: &str) -> Option<AttemptKey> {
    Some(AttemptKey { task: Id::parse(task).ok()?, attempt: attempt.parse().ok()? })
}

/// 404 for an attempt that nobody here knows.
pub fn no_such_attempt() -> Reply {
    Reply::error(404, "the node holds no such attempt")
}

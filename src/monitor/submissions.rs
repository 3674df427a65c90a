//! The routes of the standalone mode's small master: submit, watch, read, fetch, cancel.

use std::io::Read;
use std::time::{Duration, Instant};

use super::head::Method;
use super::routes::{Ask, Body, Context, Reply, answer_logs, get, post, wrong_method};
use super::{Listed, Submissions, views};

/// Longest poll.
const MAX_WAIT_MS: u64 = 30_000;
/// How often a poll looks whether the monitor stops.
const LOOK: Duration = Duration::from_millis(250);

/// Answers what is below `/api/v1/submissions`.
pub fn answer(context: &Context, ask: &Ask, rest: &[&str], body: &mut dyn Read) -> Reply {
    let Some(master) = context.submissions.as_deref() else {
        return Reply::error(409, "this node is not standalone; give tasks to its master");
    };
    match rest {
        [] => match ask.method {
            Method::Post => submit(master, ask, body),
            Method::Get | Method::Head => list(master, ask),
            Method::Other => wrong_method("GET, HEAD, POST"),
        },
        [task] => get(ask, || view(context, master, ask, task)),
        [task, "logs"] => get(ask, || answer_logs(ask, |stream, offset, max| master.read(task, stream, offset, max))),
        [task, "outputs", path @ ..] => get(ask, || output(master, task, path)),
        [task, "cancel"] => post(ask, || cancel(master, task)),
        _ => Reply::error(404, "there is nothing here"),
    }
}

fn submit(master: &dyn Submissions, ask: &Ask, body: &mut dyn Read) -> Reply {
    if !ask.is_control {
        return Reply::error(403, "tasks are submitted over the control socket only");
    }
    match master.submit(body) {
        Ok(key) => Reply::json(201, &key),
        Err(error) => {
            // Without a field it is nobody's mistake: the queue is full, or the disk refuses.
            let (status, text) = match error.field.as_str() {
                "" => (503, error.message.clone()),
                field => (422, format!("{field} {}", error.message)),
            };
            let value = serde_json::json!({ "error": text, "field": error.field, "message": error.message });
            Reply::json(status, &value)
        }
    }
}

fn list(master: &dyn Submissions, ask: &Ask) -> Reply {
    let which = match ask.value("at") {
        None => Listed::All,
        Some("master") => Listed::AtMaster,
        Some(_) => return Reply::error(400, "at must be master"),
    };
    match ask.number("limit", u64::MAX) {
        Ok(limit) => {
            let limit = usize::try_from(limit).unwrap_or(usize::MAX);
            Reply::json(200, &views::submissions(master.list(which, limit)))
        }
        Err(reply) => reply,
    }
}

/// The present state, or the next one when `wait_ms` says so.
fn view(context: &Context, master: &dyn Submissions, ask: &Ask, task: &str) -> Reply {
    let (seen, wait_ms) = match (ask.number("seen", 0), ask.number("wait_ms", 0)) {
        (Ok(seen), Ok(wait_ms)) => (seen, wait_ms.min(MAX_WAIT_MS)),
        (Err(reply), _) | (_, Err(reply)) => return reply,
    };
    let must_wait = ask.value("seen").is_some();
    let deadline = Instant::now() + Duration::from_millis(wait_ms);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let wait = if must_wait { left.min(LOOK) } else { Duration::ZERO };
        let Some(view) = master.view(task, seen, wait) else {
            return no_such_task();
        };
        if !must_wait || view.version != seen || left.is_zero() || *context.stop.latest() {
            return Reply::json(200, &views::submission(view));
        }
    }
}

/// A path with an empty segment names nothing; those that lead elsewhere were refused with the target.
fn output(master: &dyn Submissions, task: &str, path: &[&str]) -> Reply {
    if path.is_empty() || path.contains(&"") {
        return no_such_output();
    }
    match master.output(task, &path.join("/")) {
        None => no_such_output(),
        Some(content) => {
            let mut reply = Reply::new(200, "application/octet-stream", "").with("Content-Disposition", "attachment");
            reply.body = Body::Stream(content);
            reply
        }
    }
}

fn cancel(master: &dyn Submissions, task: &str) -> Reply {
    if master.view(task, 0, Duration::ZERO).is_none() {
        return no_such_task();
    }
    match master.cancel(task) {
        Ok(()) => Reply::json(202, &serde_json::json!({ "accepted": "cancel" })),
        Err(message) => Reply::error(409, &message),
    }
}

fn no_such_task() -> Reply {
    Reply::error(404, "no such task was submitted here")
}

fn no_such_output() -> Reply {
    Reply::error(404, "the task has no such output")
}

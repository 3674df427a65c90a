//! Which request gets which answer. Knows no socket: a request is a value, and so is the answer.

use std::io::Read;
use std::sync::Arc;

use crossbeam_channel::{Sender, TrySendError};

use super::head::Method;
use super::text::{decode_percent, escape_controls, segments, whole_characters};
use super::{LogPart, Logs, OutputContent, Submissions, metrics, page, submissions, tasks, views};
use crate::node::action::Action;
use crate::node::record::{STDERR, STDOUT};
use crate::node::snapshot::{NodeState, Snapshot};
use crate::sys::watch::Watch;

/// Bytes of a log that an answer has without `max`, and at most.
const LOG_PART: usize = 64 * 1024;
const MAX_LOG_PART: usize = 1024 * 1024;
/// Rows of history that an answer has without `limit`, and at most.
const HISTORY: usize = 50;
const MAX_HISTORY: usize = 1000;

/// What the answers are made from.
pub struct Context {
    /// The node.
    pub snapshot: Watch<Snapshot>,
    /// Where the owner's wishes go.
    pub actions: Sender<Action>,
    /// The small master, on a standalone node.
    pub submissions: Option<Arc<dyn Submissions>>,
    /// Output of the node's own attempts.
    pub logs: Arc<dyn Logs>,
    /// Becomes true at the end.
    pub stop: Watch<bool>,
}

/// A request.
pub struct Ask {
    /// What to do.
    pub method: Method,
    /// Decoded; no segment leads elsewhere.
    pub path: Vec<String>,
    /// Whether it came over the control socket.
    pub is_control: bool,
    query: Vec<(String, String)>,
}

impl Ask {
    /// Takes a target apart; `None` when its path or query can't be one of ours.
    pub fn new(method: Method, target: &str, is_control: bool) -> Option<Self> {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let query = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((decode_percent(name)?, decode_percent(value)?))
        });
        Some(Self { method, path: segments(path)?, is_control, query: query.collect::<Option<_>>()? })
    }

    /// The value of a query parameter.
    pub fn value(&self, name: &str) -> Option<&str> {
        let pair = self.query.iter().find(|(key, _)| key == name);
        pair.map(|(_, value)| value.as_str())
    }

    /// A parameter that is a number, or `default` without it.
    pub fn number(&self, name: &str, default: u64) -> Result<u64, Reply> {
        match self.value(name) {
            None => Ok(default),
            Some(text) => {
                text.parse().map_err(|_| Reply::error(400, &format!("{name} must be a whole number, not negative")))
            }
        }
    }
}

/// An answer.
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// Header fields beside those that each answer has.
    pub fields: Vec<(&'static str, String)>,
    /// Content.
    pub body: Body,
}

/// Content of an answer.
pub enum Body {
    /// All of it.
    Bytes(Vec<u8>),
    /// Read while it is sent.
    Stream(OutputContent),
}

impl Reply {
    /// An answer that isn't to be kept.
    pub fn new(status: u16, content_type: &str, body: impl Into<Vec<u8>>) -> Self {
        let fields = vec![
            ("Server", "hivemind-worker".to_owned()),
            ("Content-Type", content_type.to_owned()),
            ("Cache-Control", "no-store".to_owned()),
        ];
        Self { status, fields, body: Body::Bytes(body.into()) }
    }

    /// A JSON answer.
    pub fn json(status: u16, value: &impl serde::Serialize) -> Self {
        match serde_json::to_vec(value) {
            Ok(body) => Self::new(status, "application/json", body),
            Err(error) => {
                log::error!("failed to write an answer of the monitor as JSON: {error}");
                Self::error(500, "the answer can't be written")
            }
        }
    }

    /// `{"error": message}`.
    pub fn error(status: u16, message: &str) -> Self {
        Self::json(status, &serde_json::json!({ "error": message }))
    }

    /// Adds a field.
    pub fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.fields.push((name, value.to_string()));
        self
    }
}

/// Answers `ask`, whose body is read only where the route wants one.
pub fn answer(context: &Context, ask: &Ask, body: &mut dyn Read) -> Reply {
    let path: Vec<&str> = ask.path.iter().map(String::as_str).collect();
    if let ["api", "v1", "submissions", rest @ ..] = path.as_slice() {
        return submissions::answer(context, ask, rest, body);
    }
    match path.as_slice() {
        ["api", "v1", "pause"] => post(ask, || act(context, Action::Pause, "pause")),
        ["api", "v1", "resume"] => post(ask, || act(context, Action::Resume, "resume")),
        ["api", "v1", "drain"] => post(ask, || act(context, Action::Drain, "drain")),
        ["api", "v1", "gc"] => post(ask, || tasks::collect(context, ask)),
        ["api", "v1", "tasks", rest @ ..] if !rest.is_empty() => tasks::answer(context, ask, rest),
        _ => match read(context, ask, &path) {
            Some(_) if ask.method == Method::Post => wrong_method("GET, HEAD"),
            Some(reply) => reply,
            None => Reply::error(404, "there is nothing here"),
        },
    }
}

/// The routes that only show something.
fn read(context: &Context, ask: &Ask, path: &[&str]) -> Option<Reply> {
    let snapshot = context.snapshot.latest();
    Some(match path {
        [""] | ["monitor"] => Reply::new(302, "text/plain; charset=utf-8", "").with("Location", "/monitor.html"),
        [name @ ("monitor.html" | "monitor.js" | "monitor.css")] => page::asset(name)?,
        ["api", "v1", "status"] => Reply::new(200, "application/json", views::status(&snapshot)),
        ["api", "v1", "tasks"] => Reply::json(200, &views::tasks(&snapshot)),
        ["api", "v1", "history"] => match ask.number("limit", HISTORY as u64) {
            Ok(limit) => {
                let limit = usize::try_from(limit).unwrap_or(MAX_HISTORY).min(MAX_HISTORY);
                Reply::json(200, &views::history(&snapshot, limit))
            }
            Err(reply) => reply,
        },
        ["healthz"] => Reply::new(200, "text/plain; charset=utf-8", "ok\n"),
        ["readyz"] if snapshot.state == NodeState::Degraded => {
            Reply::error(503, &format!("degraded: {}", escape_controls(&snapshot.state_reason)))
        }
        ["readyz"] => Reply::new(200, "text/plain; charset=utf-8", format!("{}\n", snapshot.state.as_str())),
        ["metrics"] => Reply::new(200, metrics::CONTENT_TYPE, metrics::text(&snapshot)),
        _ => return None,
    })
}

/// Runs `then` for GET and HEAD.
pub fn get(ask: &Ask, then: impl FnOnce() -> Reply) -> Reply {
    match ask.method {
        Method::Get | Method::Head => then(),
        _ => wrong_method("GET, HEAD"),
    }
}

/// Runs `then` for POST.
pub fn post(ask: &Ask, then: impl FnOnce() -> Reply) -> Reply {
    match ask.method {
        Method::Post => then(),
        _ => wrong_method("POST"),
    }
}

/// 405.
pub fn wrong_method(allowed: &str) -> Reply {
    Reply::error(405, &format!("only {allowed} is served here")).with("Allow", allowed)
}

/// Hands a wish of the owner over.
pub fn act(context: &Context, action: Action, word: &str) -> Reply {
    match context.actions.try_send(action) {
        Ok(()) => Reply::json(202, &serde_json::json!({ "accepted": word })),
        Err(TrySendError::Full(_)) => Reply::error(503, "too many actions wait; try again").with("Retry-After", 1),
        Err(TrySendError::Disconnected(_)) => Reply::error(503, "the node is stopping"),
    }
}

/// A piece of a log: as text, or as it came where the client is no browser.
pub fn answer_logs(ask: &Ask, read: impl FnOnce(u32, u64, usize) -> Option<LogPart>) -> Reply {
    let stream = match ask.value("stream") {
        None | Some("stdout") => STDOUT,
        Some("stderr") => STDERR,
        Some(_) => return Reply::error(400, "stream must be stdout or stderr"),
    };
    let is_raw = matches!(ask.value("raw"), Some(value) if value != "0");
    if is_raw && !ask.is_control {
        return Reply::error(403, "raw output is served over the control socket only");
    }
    let (offset, max) = match (ask.number("offset", 0), ask.number("max", LOG_PART as u64)) {
        (Ok(offset), Ok(max)) => (offset, usize::try_from(max).unwrap_or(MAX_LOG_PART)),
        (Err(reply), _) | (_, Err(reply)) => return reply,
    };
    // A character has up to four bytes: less could never show one.
    match read(stream, offset, max.clamp(4, MAX_LOG_PART)) {
        None => tasks::no_such_attempt(),
        Some(part) => log_reply(part, is_raw),
    }
}

fn log_reply(mut part: LogPart, is_raw: bool) -> Reply {
    let is_last = part.is_closed && part.offset.saturating_add(part.bytes.len() as u64) >= part.end;
    if !is_raw && !is_last {
        part.bytes.truncate(whole_characters(&part.bytes));
    }
    let next = part.offset.saturating_add(part.bytes.len() as u64);
    let (content_type, body) = if is_raw {
        ("application/octet-stream", part.bytes)
    } else {
        let text = String::from_utf8_lossy(&part.bytes);
        ("text/plain; charset=utf-8", escape_controls(&text).into_owned().into_bytes())
    };
    Reply::new(200, content_type, body)
        .with("X-Offset", part.offset)
        .with("X-Next-Offset", next)
        .with("X-End", part.end)
        .with("X-Closed", part.is_closed)
}

#[cfg(test)]
#[path = "routes_tests.rs"]
mod tests;

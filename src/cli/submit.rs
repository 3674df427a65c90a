//! `submit`: gives a task to the standalone node, and stays until it ended when told to.

use crate::config::{EXIT_USAGE, Format, Submit};
use crate::node::id::AttemptKey;
use crate::node::record::Outcome;

use super::client::{Client, ClientError};
use super::{Failure, follow, pack, print, tell};

/// Exit code where the task never got to run: refused, or no worker to give it to.
pub(super) const EXIT_NOT_RUN: u8 = 125;
/// Exit code of everything that has none of its own.
pub(super) const EXIT_OTHER: u8 = 126;

/// `submit`.
pub(super) fn submit(client: &Client, options: &Submit) -> Result<u8, Failure> {
    let archive = pack::pack(&options.source, options.name.as_ref())
        .map_err(|message| Failure::with_code(EXIT_USAGE, message))?;
    let key = client.submit(&archive).map_err(|error| refused(&error, options))?;
    drop(archive);
    if options.is_waiting {
        tell(&format!("{key} submitted"));
        return follow::follow(client, options, &key);
    }
    tell(&format!("{key} submitted: `hivemind-worker logs {} --follow` shows its output", key.task));
    print(&submitted(&key, options.format))
}

/// A mistake in the task is its author's, and is told with the place; anything else is the node's.
fn refused(error: &ClientError, options: &Submit) -> Failure {
    let ClientError::Refused { status: 422, message } = error else {
        return Failure::with_code(EXIT_NOT_RUN, error.to_string());
    };
    let is_about_flag = options.name.is_some() && message.starts_with("name ");
    let inner = options.source.join(pack::TASK_FILE);
    let place = match (is_about_flag, options.source.is_dir()) {
        (true, _) => "flag --name".to_owned(),
        (false, true) if inner.exists() => inner.display().to_string(),
        (false, _) => options.source.display().to_string(),
    };
    let message = message.strip_prefix(pack::TASK_FILE).map_or(message.as_str(), str::trim_start);
    Failure::with_code(EXIT_USAGE, format!("{place}: {message}"))
}

fn submitted(key: &AttemptKey, format: Format) -> String {
    match format {
        Format::Text => format!("{}\n", key.task),
        Format::Json => format!("{}\n", serde_json::json!({ "task": key.task, "attempt": key.attempt })),
    }
}

/// The exit code that stands for an outcome.
pub(super) fn exit_code(outcome: Outcome, exit_code: Option<i64>) -> u8 {
    match outcome {
        Outcome::Succeeded => 0,
        Outcome::Failed => {
            exit_code.and_then(|code| u8::try_from(code).ok()).filter(|code| *code != 0).unwrap_or(EXIT_OTHER)
        }
        Outcome::TimedOut => 124,
        Outcome::OutOfMemory => 137,
        Outcome::Cancelled => 130,
        Outcome::Rejected | Outcome::NodeFault => EXIT_NOT_RUN,
        Outcome::DiskLimit | Outcome::Preempted | Outcome::Superseded => EXIT_OTHER,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_outcome_has_its_exit_code() {
        for (outcome, code, expected) in [
            (Outcome::Succeeded, Some(0), 0),
            (Outcome::Failed, Some(3), 3),
            (Outcome::Failed, Some(256), 126),
            (Outcome::Failed, Some(0), 126),
            (Outcome::Failed, Some(-1), 126),
            (Outcome::Failed, None, 126),
            (Outcome::OutOfMemory, Some(0), 137),
            (Outcome::TimedOut, Some(143), 124),
            (Outcome::DiskLimit, None, 126),
            (Outcome::Cancelled, Some(143), 130),
            (Outcome::Rejected, None, 125),
            (Outcome::NodeFault, None, 125),
            (Outcome::Preempted, None, 126),
            (Outcome::Superseded, None, 126),
        ] {
            assert_eq!(exit_code(outcome, code), expected, "{outcome} {code:?}");
        }
    }
}

//! The life of a container: create, start, wait, inspect, update, pause, stop, kill, remove, list.

use std::time::Duration;

use serde::Deserialize;

use super::Docker;
use super::call::{Call, operation};
use super::create::{CreateBody, UpdateBody};
use super::error::Error;
use super::model::{ContainerInspect, ContainerSummary, Created, ExitStatus, or_default};
use super::target::Target;
use super::transport::Patience;

/// Whether a call changed something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It did.
    Done,
    /// It was so already: started, stopped, removed.
    Already,
}

/// What `wait` waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitCondition {
    /// That it doesn't run. A container that was not started yet fulfils this at once, with code 0.
    NotRunning,
    /// Its next end, also when it isn't started yet.
    NextExit,
    /// Its removal.
    Removed,
}

/// Which part of the engine's log to read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// Only what was written at this time or later: seconds since 1970, with a fraction of nine digits if wanted.
    pub since: Option<String>,
    /// Only so many lines from the end.
    pub tail: Option<u64>,
    /// Standard output.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
    /// The engine's time, RFC 3339 with nanoseconds, and a space before each line.
    pub timestamps: bool,
}

impl Docker {
    /// Creates a container. A name that is taken is a conflict; what the engine could not do is in the warnings.
    pub fn create_container(&self, name: &str, body: &CreateBody) -> Result<Created, Error> {
        let target = Target::new("containers").word("create").query("name", name);
        let call = Call::post(target, operation("create container", name)).json(body)?;
        self.fetch(call.within(self.timeouts().slow))
    }

    /// Starts a container.
    pub fn start_container(&self, id: &str) -> Result<Change, Error> {
        let call = Call::post(container(id).word("start"), operation("start container", id));
        self.changed(call.within(self.timeouts().slow), 304)
    }

    /// Waits for the end of a container, for ever if no limit is given. Breaks when the engine restarts, even where the
    /// container lives on: then wait again.
    pub fn wait_container(
        &self,
        id: &str,
        condition: WaitCondition,
        limit: Option<Duration>,
    ) -> Result<ExitStatus, Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Answer {
            status_code: i64,
            #[serde(default)]
            error: Option<Problem>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Problem {
            #[serde(default, deserialize_with = "or_default")]
            message: String,
        }
        let condition = match condition {
            WaitCondition::NotRunning => "not-running",
            WaitCondition::NextExit => "next-exit",
            WaitCondition::Removed => "removed",
        };
        let target = container(id).word("wait").query("condition", condition);
        let call = Call::post(target, operation("wait for container", id)).patience(Patience::Within(limit));
        let answer: Answer = self.fetch(call)?;
        let error = answer.error.map(|problem| problem.message).filter(|message| !message.is_empty());
        Ok(ExitStatus { code: answer.status_code, error })
    }

    /// Reads everything about a container.
    pub fn inspect_container(&self, id: &str) -> Result<ContainerInspect, Error> {
        self.fetch(Call::get(container(id).word("json"), operation("inspect container", id)))
    }

    /// The same as the engine wrote it, for people.
    pub fn inspect_container_whole(&self, id: &str) -> Result<serde_json::Value, Error> {
        self.fetch(Call::get(container(id).word("json"), operation("inspect container", id)))
    }

    /// Changes limits, also of a running container. Returns the engine's warnings.
    pub fn update_container(&self, id: &str, body: &UpdateBody) -> Result<Vec<String>, Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Answer {
            #[serde(default, deserialize_with = "or_default")]
            warnings: Vec<String>,
        }
        let call = Call::post(container(id).word("update"), operation("update container", id)).json(body)?;
        self.fetch::<Answer>(call).map(|answer| answer.warnings)
    }

    /// Freezes a container. One that is paused already or doesn't run is a conflict.
    pub fn pause_container(&self, id: &str) -> Result<(), Error> {
        self.send(Call::post(container(id).word("pause"), operation("pause container", id))).map(drop)
    }

    /// Thaws a container. One that isn't paused is a conflict.
    pub fn unpause_container(&self, id: &str) -> Result<(), Error> {
        self.send(Call::post(container(id).word("unpause"), operation("unpause container", id))).map(drop)
    }

    /// Asks a container to end, and kills it after `grace` (whole seconds). Returns when it has ended.
    pub fn stop_container(&self, id: &str, grace: Duration) -> Result<Change, Error> {
        let target = container(id).word("stop").query("t", &grace.as_secs().to_string());
        let call = Call::post(target, operation("stop container", id));
        self.changed(call.within(grace.saturating_add(self.timeouts().slow)), 304)
    }

    /// Sends a signal, such as `SIGKILL`. A container that doesn't run is a conflict.
    pub fn kill_container(&self, id: &str, signal: &str) -> Result<(), Error> {
        let target = container(id).word("kill").query("signal", signal);
        let call = Call::post(target, operation("kill container", id));
        self.send(call.within(self.timeouts().slow)).map(drop)
    }

    /// Removes a container, killing it first, together with its anonymous volumes. While another removal is under way
    /// the answer is a conflict.
    pub fn remove_container(&self, id: &str) -> Result<Change, Error> {
        let target = container(id).query("force", "1").query("v", "1");
        let call = Call::delete(target, operation("remove container", id));
        self.changed(call.within(self.timeouts().slow), 404)
    }

    /// All containers, running or not, that have each of these labels (`name` or `name=value`).
    pub fn list_containers(&self, labels: &[&str]) -> Result<Vec<ContainerSummary>, Error> {
        let target = Target::new("containers").word("json").query("all", "1").query("filters", &label_filter(labels));
        self.fetch(Call::get(target, "list containers".to_owned()))
    }

    /// Sends a call for which one status means that it was so already.
    pub(super) fn changed(&self, call: Call<'_>, already: u16) -> Result<Change, Error> {
        match self.send(call) {
            Ok(reply) if reply.status == already => Ok(Change::Already),
            Ok(_) => Ok(Change::Done),
            Err(Error::Refused { status, .. }) if status == already => Ok(Change::Already),
            Err(error) => Err(error),
        }
    }
}

/// The path of a container.
pub(super) fn container(id: &str) -> Target {
    Target::new("containers").name(id)
}

/// The engine's filter for labels.
pub(super) fn label_filter(labels: &[&str]) -> String {
    serde_json::json!({ "label": labels }).to_string()
}

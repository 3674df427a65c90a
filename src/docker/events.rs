//! The engine's events: start, die, oom and destroy of containers.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::Docker;
use super::call::{Call, Stream};
use super::error::Error;
use super::lines::{Lines, MAX_LINE};
use super::model::or_default;
use super::target::Target;
use super::transport::Patience;

/// The piece in which events are read.
const BUFFER: usize = 8 << 10;

/// The events that are asked for: Docker's words, and Podman's two.
const ACTIONS: [&str; 6] = ["start", "die", "died", "oom", "destroy", "remove"];

/// Which events to get.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventFilter {
    /// Labels that the container has, all of them: `name` or `name=value`.
    pub labels: Vec<String>,
    /// From this time on, events of the past too: nanoseconds since 1970. The engine keeps some 256 of them.
    pub since_ns: Option<u64>,
}

/// What happened to a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The container's id.
    pub id: String,
    /// The container's name.
    pub name: String,
    /// What it was.
    pub action: EventAction,
    /// The container's labels.
    pub labels: BTreeMap<String, String>,
    /// The engine's time in nanoseconds since 1970.
    pub time_ns: u64,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventAction {
    /// Process 1 runs.
    Start,
    /// Process 1 has ended, with its code where the engine says it.
    Die(Option<i64>),
    /// The kernel killed a process because memory ran out. Not every engine reports it: inspect decides.
    Oom,
    /// The container was removed.
    Destroy,
}

/// A blocking iterator over events; released by the `Stop` of the handle that made it. After an error it is at its end:
/// open another one and reconcile, since what happened in between may be lost.
pub struct EventStream {
    stream: Stream,
    labels: Vec<String>,
    lines: Lines,
    buffer: Vec<u8>,
    ended: bool,
}

impl Docker {
    /// Opens the stream of events and returns as soon as the engine has done so.
    pub fn events(&self, filter: &EventFilter) -> Result<EventStream, Error> {
        let filters = serde_json::json!({ "type": ["container"], "event": ACTIONS, "label": filter.labels });
        let mut target = Target::new("events").query("filters", &filters.to_string());
        if let Some(since) = filter.since_ns {
            let since = format!("{}.{:09}", since / 1_000_000_000, since % 1_000_000_000);
            target = target.query("since", &since);
        }
        let patience = Patience::Idle(self.timeouts().quick, None);
        let reply = self.send(Call::get(target, "listen to the engine's events".to_owned()).patience(patience))?;
        let labels = filter.labels.clone();
        Ok(EventStream { stream: reply.body, labels, lines: Lines::default(), buffer: vec![0; BUFFER], ended: false })
    }
}

impl Iterator for EventStream {
    type Item = Result<Event, Error>;

    fn next(&mut self) -> Option<Result<Event, Error>> {
        if self.ended {
            return None;
        }
        match self.next_event() {
            Ok(Some(event)) => Some(Ok(event)),
            Ok(None) => {
                self.ended = true;
                None
            }
            Err(error) => {
                self.ended = true;
                Some(Err(error))
            }
        }
    }
}

impl EventStream {
    fn next_event(&mut self) -> Result<Option<Event>, Error> {
        loop {
            match self.lines.poll_line() {
                Ok(Some(line)) => match parse_event(line) {
                    // Podman sends what has one of the labels.
                    Ok(Some(event)) if has_all(&event.labels, &self.labels) => return Ok(Some(event)),
                    Ok(_) => {}
                    Err(error) => {
                        return Err(self.stream.protocol(format!("an event that is no valid JSON ({error})")));
                    }
                },
                Ok(None) => {
                    let count = self.stream.read_some(&mut self.buffer)?;
                    if count == 0 {
                        return Ok(None);
                    }
                    self.lines.handle_input(&self.buffer[..count]);
                }
                Err(_) => return Err(self.stream.protocol(format!("an event of more than {MAX_LINE} bytes"))),
            }
        }
    }
}

/// Whether each wanted label, `name` or `name=value`, is there.
fn has_all(labels: &BTreeMap<String, String>, wanted: &[String]) -> bool {
    wanted.iter().all(|wanted| match wanted.split_once('=') {
        Some((name, value)) => labels.get(name).is_some_and(|has| has == value),
        None => labels.contains_key(wanted),
    })
}

/// Reads one line; `None` for events of other kinds.
fn parse_event(line: &[u8]) -> Result<Option<Event>, serde_json::Error> {
    #[derive(Deserialize)]
    struct Line {
        #[serde(rename = "Type", default)]
        kind: String,
        #[serde(rename = "Action", default)]
        action: String,
        #[serde(rename = "Actor", default)]
        actor: Actor,
        #[serde(rename = "timeNano", default)]
        time_ns: i64,
    }
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "PascalCase", default)]
    struct Actor {
        #[serde(rename = "ID")]
        id: String,
        #[serde(deserialize_with = "or_default")]
        attributes: BTreeMap<String, String>,
    }
    let mut line: Line = serde_json::from_slice(line)?;
    let attributes = &mut line.actor.attributes;
    let action = match (line.kind.as_str(), line.action.as_str()) {
        ("container", "start") => EventAction::Start,
        // Podman says died and remove.
        ("container", "die" | "died") => {
            let code = attributes.remove("exitCode").or_else(|| attributes.remove("containerExitCode"));
            EventAction::Die(code.and_then(|code| code.parse().ok()))
        }
        ("container", "oom") => EventAction::Oom,
        ("container", "destroy" | "remove") => EventAction::Destroy,
        _ => return Ok(None),
    };
    let name = attributes.remove("name").unwrap_or_default();
    attributes.remove("image");
    Ok(Some(Event {
        id: line.actor.id,
        name,
        action,
        labels: line.actor.attributes,
        time_ns: u64::try_from(line.time_ns).unwrap_or(0),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_events_of_an_engine() {
        let line = br#"{"status":"die","id":"abc","from":"i","Type":"container","Action":"die","Actor":{"ID":"abc",
            "Attributes":{"exitCode":"137","hivemind.task":"t1","image":"i","name":"n"}},"scope":"local",
            "time":1700000000,"timeNano":1700000000123456789}"#;
        let event = parse_event(line).unwrap().unwrap();
        assert_eq!(event.action, EventAction::Die(Some(137)));
        assert_eq!((event.id.as_str(), event.name.as_str()), ("abc", "n"));
        assert_eq!(event.labels, BTreeMap::from([("hivemind.task".to_owned(), "t1".to_owned())]));
        assert_eq!(event.time_ns, 1_700_000_000_123_456_789);
    }

    #[test]
    fn every_label_counts() {
        let labels = BTreeMap::from([("a".to_owned(), "1".to_owned()), ("b".to_owned(), "x=y".to_owned())]);
        let has = |wanted: &[&str]| has_all(&labels, &wanted.iter().map(|&label| label.to_owned()).collect::<Vec<_>>());
        assert!(has(&[]) && has(&["a=1"]) && has(&["a", "b=x=y"]));
        assert!(!has(&["a=1", "b=x"]) && !has(&["c"]) && !has(&["a=1", "c"]));
    }

    #[test]
    fn leaves_out_what_it_does_not_know_and_refuses_garbage() {
        assert_eq!(parse_event(br#"{"Type":"network","Action":"connect"}"#).unwrap(), None);
        assert_eq!(parse_event(br#"{"Type":"container","Action":"exec_create: sh"}"#).unwrap(), None);
        assert_eq!(parse_event(b"{}").unwrap(), None);
        for line in [&b"<html>"[..], b"[]1", b"{\"Actor\":3}", b"{\"Type\":"] {
            assert!(parse_event(line).is_err());
        }
    }
}

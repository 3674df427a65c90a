//! The other master of these tests: tests/peers/python_master.py, on grpcio, written from the contract alone.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Cursor, Lines, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hivemind_worker::monitor::{Listed, LogPart, OutputContent, SubmissionView, Submissions, SubmitError};
use hivemind_worker::node::id::AttemptKey;
use hivemind_worker::node::offer::Offer;
use hivemind_worker::node::record::{Event, EventKind, FinalReport};
use hivemind_worker::rpc::schema;
use hivemind_worker::standalone::convert;
use prost::Message;
use serde_json::{Value, json};

/// Which contract the master was made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contract {
    /// proto/ as it is.
    Ours,
    /// A later minor version: more fields, enum values and alternatives everywhere.
    Newer,
}

/// Makes tests of functions that take a [`MasterKind`](super::MasterKind): for what only the master in Python does.
#[allow(unused_macros, reason = "each test file uses a part")]
macro_rules! for_each_contract {
    ($($name:ident),* $(,)?) => {
        mod ours {
            $(#[test] fn $name() {
                super::$name(super::node_util::MasterKind::Python(super::node_util::Contract::Ours));
            })*
        }
        mod newer {
            $(#[test] fn $name() {
                super::$name(super::node_util::MasterKind::Python(super::node_util::Contract::Newer));
            })*
        }
    };
}
#[allow(unused_imports, reason = "each test file uses a part")]
pub(crate) use for_each_contract;

/// The master's process. It ends with its standard input.
pub struct PythonMaster {
    /// Where it listens, whether it does or not.
    pub address: SocketAddr,
    child: Child,
    pipes: Mutex<Option<Pipes>>,
}

struct Pipes {
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl PythonMaster {
    /// Starts one that knows nothing yet, and listens.
    pub fn start(contract: Contract) -> Self {
        let python = std::env::var_os("HIVEMIND_TEST_PYTHON").expect(
            "HIVEMIND_TEST_PYTHON is not set: it must name a Python that has grpcio, grpcio-tools and cryptography \
             (scripts/test.sh does it)",
        );
        let mut command = Command::new(python);
        // No compiled copies beside the sources.
        command.arg("-B").arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/peers/python_master.py"));
        if contract == Contract::Newer {
            command.arg("--newer");
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let input = child.stdin.take().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = output.next().expect("the master in Python has ended; see what it wrote").unwrap();
        let port = line.strip_prefix("PORT ").unwrap().parse().unwrap();
        let pipes = Mutex::new(Some(Pipes { input, output }));
        Self { address: (Ipv4Addr::LOCALHOST, port).into(), child, pipes }
    }

    /// A command of python_master.py.
    pub fn ask(&self, command: Value) -> Value {
        let mut pipes = self.pipes.lock().unwrap();
        let pipes = pipes.as_mut().unwrap();
        writeln!(pipes.input, "{command}").unwrap();
        let line = pipes.output.next().unwrap_or_else(|| panic!("the master in Python ended by {command}"));
        serde_json::from_str(&line.unwrap()).unwrap()
    }

    /// Changes how it behaves: attributes of its `Master` and `Book`.
    pub fn set(&self, values: Value) {
        let mut command = values;
        command["do"] = json!("set");
        self.ask(command);
    }

    /// Queues a task, unchecked.
    pub fn submit_offer(&self, offer: Offer) {
        self.ask(json!({"do": "submit", "assignment": assignment(offer)}));
    }

    /// All that arrived of an attempt.
    pub fn record(&self, task: &str, attempt: u32) -> Value {
        self.ask(json!({"do": "record", "task": task, "attempt": attempt}))
    }

    /// Its events.
    pub fn events(&self, task: &str, attempt: u32) -> Vec<Event> {
        let record = self.record(task, attempt);
        let events = record["events"].as_array().into_iter().flatten();
        events
            .map(|text| {
                let bytes = unhex(text.as_str().unwrap());
                convert::event(schema::Event::decode(bytes.as_slice()).unwrap()).unwrap()
            })
            .collect()
    }

    /// What it says of a node.
    pub fn node(&self, node: &str) -> Value {
        self.ask(json!({"do": "node", "node": node}))
    }

    /// Doubles, refusals and calls so far.
    pub fn counts(&self) -> Value {
        self.ask(json!({"do": "counts"}))
    }

    /// Panics when something came that can't be by the contract, such as other content under a number.
    pub fn check(&self) {
        let counts = self.counts();
        let violations = counts["violations"].as_array().unwrap();
        assert!(violations.is_empty(), "{violations:#?}");
    }

    fn final_report(&self, task: &str, attempt: u32) -> Option<FinalReport> {
        self.events(task, attempt).into_iter().find_map(|event| match event.kind {
            EventKind::Final(report) => Some(*report),
            _ => None,
        })
    }
}

impl Submissions for PythonMaster {
    fn submit(&self, _: &mut dyn Read) -> Result<AttemptKey, SubmitError> {
        panic!("archives are the standalone mode's own")
    }

    fn list(&self, _: Listed, limit: usize) -> Vec<SubmissionView> {
        let tasks = self.ask(json!({"do": "tasks"}));
        let tasks = tasks.as_array().unwrap().iter().take(limit);
        tasks.filter_map(|task| self.view(task.as_str().unwrap(), 0, Duration::ZERO)).collect()
    }

    fn view(&self, task: &str, seen_version: u64, wait: Duration) -> Option<SubmissionView> {
        let wait_ms = u64::try_from(wait.as_millis()).unwrap();
        let answer = self.ask(json!({"do": "view", "task": task, "seen": seen_version, "wait_ms": wait_ms}));
        let number = |name: &str| answer[name].as_u64().unwrap();
        let attempt = u32::try_from(answer.get("attempt")?.as_u64().unwrap()).unwrap();
        Some(SubmissionView {
            task: task.to_owned(),
            attempt,
            version: number("version"),
            phase: answer["phase"].as_str().unwrap().to_owned(),
            outcome: serde_json::from_value(answer["outcome"].clone()).unwrap(),
            final_report: answer["is_reported"].as_bool().unwrap().then(|| self.final_report(task, attempt).unwrap()),
            is_complete: answer["is_complete"].as_bool().unwrap(),
            stdout_bytes: number("stdout_bytes"),
            stderr_bytes: number("stderr_bytes"),
            notes: serde_json::from_value(answer["notes"].clone()).unwrap(),
            ..SubmissionView::default()
        })
    }

    fn read(&self, task: &str, stream: u32, offset: u64, max: usize) -> Option<LogPart> {
        let answer = self.ask(json!({"do": "read", "task": task, "stream": stream, "offset": offset, "max": max}));
        let bytes = STANDARD.decode(answer.as_str()?).unwrap();
        Some(LogPart { end: offset + bytes.len() as u64, bytes, offset, is_closed: false })
    }

    fn output(&self, task: &str, path: &str) -> Option<OutputContent> {
        let view = self.view(task, 0, Duration::ZERO)?;
        let file = view.final_report?.outputs.into_iter().find(|file| file.path == path)?;
        let bytes = self.read(task, file.stream, 0, usize::try_from(file.size).unwrap())?.bytes;
        Some(OutputContent { size: bytes.len() as u64, reader: Box::new(Cursor::new(bytes)) })
    }

    fn cancel(&self, task: &str) -> Result<(), String> {
        let answer = self.ask(json!({"do": "cancel", "task": task, "reason": "cancelled by its author"}));
        answer.as_bool().unwrap().then_some(()).ok_or_else(|| format!("{task} is over, or was never here"))
    }
}

impl Drop for PythonMaster {
    fn drop(&mut self) {
        drop(self.pipes.get_mut().map(Option::take));
        let _ = self.child.wait();
    }
}

/// An assignment in JSON as protobuf has it, which the master makes its own message from.
fn assignment(offer: Offer) -> Value {
    let mut fields = json!({
        "key": {"task_id": offer.task, "attempt": offer.attempt},
        "owner_id": offer.owner,
        "image": offer.image,
        "pull": offer.pull,
        "command": offer.command,
        "env": offer.env.into_iter().collect::<BTreeMap<_, _>>(),
        "cpu_millis": offer.cpu_millis,
        "memory_bytes": offer.memory_bytes,
        "disk_bytes": offer.disk_bytes,
        "gpus": offer.gpus,
        "timeout_ms": offer.timeout_ms,
        "network": offer.network,
        "network_allow": offer.network_allow,
        "runtime": offer.runtime,
        "at_lease_end": offer.at_lease_end,
        "outputs": offer.outputs,
        "max_output_bytes": offer.max_output_bytes,
        "inputs": STANDARD.encode(offer.inputs),
        "inputs_sha256": STANDARD.encode(offer.inputs_sha256),
    });
    for (name, value) in [("grace_ms", offer.grace_ms), ("priority", offer.priority)] {
        if let Some(value) = value {
            fields[name] = json!(value);
        }
    }
    fields
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

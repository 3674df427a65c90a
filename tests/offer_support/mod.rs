//! What the tests of assignments share: a good one, the bytes of a broken one, and a node that decides on it.
#![allow(dead_code, clippy::unwrap_used)]

use std::time::Duration;

use hivemind_worker::coordinator::{Coordinator, Effect, Event, Settings};
use hivemind_worker::node::alerts::Thresholds;
use hivemind_worker::node::image::ImageRef;
use hivemind_worker::node::offer::Offer;
use hivemind_worker::node::order::Refusal;
use hivemind_worker::node::resources::Resources;
use hivemind_worker::node::snapshot::{EngineView, Snapshot};
use hivemind_worker::node::spec::{
    MAX_ATTEMPT, MAX_BYTES, MAX_CPU_MILLIS, MAX_GRACE, MAX_PATTERNS, MAX_WORD_BYTES, MAX_WORDS, MIN_CPU_MILLIS,
    MIN_MEMORY_BYTES, SpecDefaults, TaskSpec,
};
use hivemind_worker::rpc::schema::{Assignment, AttemptKey};
use prost::Message;

/// A reason goes into the next poll and a log line, so that a value of a megabyte must not come back in it.
pub const MAX_REASON_BYTES: usize = 2_048;
pub const MIB: usize = 1 << 20;

pub fn good() -> Assignment {
    Assignment {
        key: Some(AttemptKey { task_id: "word-count".to_owned(), attempt: 1 }),
        owner_id: "ada".to_owned(),
        image: "registry.example.org:5000/tools/python:3.12".to_owned(),
        pull: "if-missing".to_owned(),
        command: vec!["python3".to_owned(), "main.py".to_owned()],
        env: [("LANG".to_owned(), "C.UTF-8".to_owned())].into(),
        cpu_millis: 500,
        memory_bytes: 256 << 20,
        disk_bytes: 64 << 20,
        gpus: 0,
        timeout_ms: 60_000,
        grace_ms: Some(5_000),
        priority: Some(50),
        network: "none".to_owned(),
        at_lease_end: "finish".to_owned(),
        outputs: vec!["output/**".to_owned()],
        max_output_bytes: 1 << 20,
        inputs: Vec::new(),
        inputs_sha256: Vec::new(),
        inputs_url: String::new(),
        inputs_url_bytes: 0,
        network_allow: Vec::new(),
        runtime: String::new(),
    }
}

pub fn with(change: impl FnOnce(&mut Assignment)) -> Vec<u8> {
    let mut assignment = good();
    change(&mut assignment);
    assignment.encode_to_vec()
}

pub fn start_of(text: &str) -> String {
    let start: String = text.chars().take(40).collect();
    format!("{start:?} of {} bytes", text.len())
}

pub fn node() -> Coordinator {
    node_of(SpecDefaults::default())
}

pub fn node_of(defaults: SpecDefaults) -> Coordinator {
    let lent = Resources { cpu_millis: MAX_CPU_MILLIS, memory_bytes: MAX_BYTES, disk_bytes: MAX_BYTES, slots: 4 };
    let settings = Settings { lent, defaults, alerts: Thresholds::default() };
    let mut node = Coordinator::new(settings, Snapshot::default(), Vec::new(), Duration::ZERO, 0);
    node.handle(Event::Engine(EngineView { is_usable: true, ..EngineView::default() }), Duration::ZERO, 0);
    node.take_effects();
    node
}

/// The refusal of the only offer, after a look at all that the node did.
pub fn refusal_of(offer: Result<Box<Offer>, hivemind_worker::node::spec::FieldError>) -> Result<Refusal, String> {
    let mut node = node();
    node.handle(Event::Offers { poll: 1, offers: vec![(7, offer)] }, Duration::ZERO, 0);
    let effects = node.take_effects();
    let [Effect::SettlePoll { poll: 1, taken, refused }] = effects.as_slice() else {
        return Err(format!("has other effects than an answer: {}", start_of(&format!("{effects:?}"))));
    };
    let [refusal] = refused.as_slice() else { return Err(format!("{taken:?} {refused:?}")) };
    let view = node.snapshot();
    if !(taken.is_empty() && view.attempts.is_empty() && view.history.is_empty()) {
        return Err("the node keeps something of it".to_owned());
    }
    Ok(refusal.clone())
}

/// What is wrong with how `offer` is refused.
pub fn complaint(field: &str, offer: Result<Box<Offer>, hivemind_worker::node::spec::FieldError>) -> Option<String> {
    let refusal = match refusal_of(offer) {
        Ok(refusal) => refusal,
        Err(complaint) => return Some(complaint),
    };
    let reason = &refusal.reason;
    if (refusal.offer_id, refusal.code) != (7, "invalid") {
        return Some(format!("is refused as {} {}", refusal.offer_id, refusal.code));
    }
    if reason.len() > MAX_REASON_BYTES || !reason.chars().all(hivemind_worker::sys::text::is_harmless) {
        return Some(format!("the reason is not fit to be shown: {}", start_of(reason)));
    }
    (!has_word(reason, field)).then(|| format!("the reason does not name the field: {reason}"))
}

pub fn has_word(text: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.match_indices(word)
        .any(|(at, _)| !text[..at].ends_with(is_part) && !text[at + word.len()..].starts_with(is_part))
}

pub fn varint(mut number: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while number >= 0x80 {
        out.push(u8::try_from(number & 0x7f).unwrap() | 0x80);
        number >>= 7;
    }
    out.push(u8::try_from(number).unwrap());
    out
}

pub fn tag(number: u64, wire_type: u64) -> Vec<u8> {
    varint(number << 3 | wire_type)
}

pub fn bytes_field(number: u64, bytes: &[u8]) -> Vec<u8> {
    [tag(number, 2), varint(u64::try_from(bytes.len()).unwrap()), bytes.to_vec()].concat()
}

pub fn number_field(number: u64, value: u64) -> Vec<u8> {
    [tag(number, 0), varint(value)].concat()
}

#[rustfmt::skip]
pub const FIELDS: [(u64, &str, u64); 23] = [
    (1, "key", 2), (2, "owner_id", 2), (3, "image", 2), (4, "pull", 2), (5, "command", 2), (6, "env", 2),
    (7, "cpu_millis", 0), (8, "memory_bytes", 0), (9, "disk_bytes", 0), (10, "gpus", 0), (11, "timeout_ms", 0),
    (12, "grace_ms", 0), (13, "priority", 0), (14, "network", 2), (15, "at_lease_end", 2), (16, "outputs", 2),
    (17, "max_output_bytes", 0), (18, "inputs", 2), (19, "inputs_sha256", 2), (20, "network_allow", 2), (22, "inputs_url", 2),
    (23, "inputs_url_bytes", 0), (30, "runtime", 2),
];

/// What everything behind the edge relies on.
pub fn check_ranges(spec: &TaskSpec) {
    let is_id =
        |text: &str| (1..=63).contains(&text.len()) && !text.contains(['/', '\0']) && !text.starts_with(['.', '-']);
    assert!(is_id(spec.key.task.as_str()) && is_id(spec.owner.as_str()), "{spec:?}");
    assert!((1..=MAX_ATTEMPT).contains(&spec.key.attempt), "{spec:?}");
    let image = spec.image.to_string();
    assert_eq!(ImageRef::parse(&image).as_ref(), Ok(&spec.image));
    assert!(image.bytes().all(|b| b.is_ascii_alphanumeric() || b"./:@_-".contains(&b)), "{image}");
    assert!((MIN_CPU_MILLIS..=MAX_CPU_MILLIS).contains(&spec.cpu_millis), "{spec:?}");
    assert!((MIN_MEMORY_BYTES..=MAX_BYTES).contains(&spec.memory_bytes), "{spec:?}");
    assert!((1 << 20..=MAX_BYTES).contains(&spec.disk_bytes) && (1..=MAX_BYTES).contains(&spec.max_output_bytes));
    assert!((Duration::from_millis(100)..=SpecDefaults::default().max_timeout).contains(&spec.timeout), "{spec:?}");
    assert!(spec.grace <= MAX_GRACE && spec.priority <= 100, "{spec:?}");
    assert!(spec.command.len() <= MAX_WORDS && spec.env.len() <= MAX_WORDS && spec.outputs.len() <= MAX_PATTERNS);
    let mut words = spec.command.iter().chain(spec.env.iter().flat_map(|(name, value)| [name, value]));
    assert!(words.all(|word| word.len() <= MAX_WORD_BYTES && !word.contains('\0')), "{spec:?}");
    assert!(spec.command.first().is_none_or(|program| !program.is_empty()), "{spec:?}");
    assert!(spec.env.iter().all(|(name, _)| !name.is_empty() && !name.contains('=') && name != "TASK_ID"), "{spec:?}");
    let is_below = |p: &String| !p.is_empty() && !p.starts_with('/') && p.split('/').all(|part| part != "..");
    assert!(spec.remote_inputs.as_ref().is_none_or(|remote| (1..=1 << 30).contains(&remote.max_bytes)), "{spec:?}");
    assert!(spec.outputs.iter().all(is_below) && spec.inputs_bytes <= 30 << 20, "{spec:?}");
}

//! A task that has passed the edge: each field is in range, so nothing behind this point checks again.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::allow::ImagePolicy;
use super::id::{AttemptKey, Id};
use super::image::ImageRef;
use super::net::{Destination, NetworkPolicy};
use super::offer::Offer;
use super::resources::Resources;
use super::runtime::Runtimes;
use super::url::Url;

/// The image of a task that names none; it is built here and never pulled for lack of a newer one.
pub const BASE_IMAGE: &str = "justin308/hivemind-worker:latest";
/// Many languages have no unsigned numbers, and a negative one that was cast arrives above this.
pub const MAX_ATTEMPT: u32 = i32::MAX as u32;
/// The base image without its tag: any version of it is made on this machine.
pub fn base_image_name() -> &'static str {
    BASE_IMAGE.split(':').next().unwrap_or(BASE_IMAGE)
}

/// Docker refuses memory limits below 6 MiB, and a Python start needs about 12 MiB.
pub const MIN_MEMORY_BYTES: u64 = 16 << 20;
/// No machine that we know of has more; keeps sums far from overflow.
pub const MAX_BYTES: u64 = 1 << 50;
/// 1,024 CPUs; as for [`MAX_BYTES`].
pub const MAX_CPU_MILLIS: u64 = 1_024_000;
/// The engine refuses less than a hundredth of a CPU.
pub const MIN_CPU_MILLIS: u64 = 10;
/// Arguments and environment together stay far below the kernel's 2 MiB for both.
pub const MAX_WORDS: usize = 1_024;
/// See [`MAX_WORDS`].
pub const MAX_WORD_BYTES: usize = 128 << 10;
/// See [`MAX_WORDS`].
pub const MAX_WORDS_BYTES: usize = 512 << 10;
/// The answer of AssignTask has at most 32 MiB, and something else is in it too.
pub const MAX_INPUT_BYTES: usize = 30 << 20;
/// A list that a person writes.
pub const MAX_PATTERNS: usize = 64;
/// As for a path component's limit in the kernel, four levels deep.
pub const MAX_PATTERN_BYTES: usize = 1_024;
/// Stars in one component of a pattern. Matching one costs up to the name's length to this power, in the worst case.
pub const MAX_STARS: usize = 4;
/// As for [`MAX_PATTERNS`].
pub const MAX_DESTINATIONS: usize = 64;
/// Longest time between SIGTERM and SIGKILL.
pub const MAX_GRACE: Duration = Duration::from_secs(60);

/// What a task gets when its assignment is silent, and the most that it may ask for: the owner's keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecDefaults {
    /// Running time of a task that names none.
    pub timeout: Duration,
    /// Longest running time that is taken.
    pub max_timeout: Duration,
    /// Largest archive that is fetched from a URL.
    pub max_fetch_bytes: u64,
    /// What tasks may reach.
    pub network: NetworkPolicy,
    /// Which images they may name.
    pub images: ImagePolicy,
    /// What may make their containers.
    pub runtimes: Runtimes,
}

impl Default for SpecDefaults {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(3_600),
            max_timeout: Duration::from_secs(86_400),
            max_fetch_bytes: 1 << 30,
            network: NetworkPolicy::default(),
            images: ImagePolicy::default(),
            runtimes: Runtimes::default(),
        }
    }
}

/// When an image is pulled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PullPolicy {
    /// Before each task.
    Always,
    /// When the engine has no such image.
    IfMissing,
    /// Never: the image must be there.
    Never,
}

/// What a task may reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Network {
    /// Its own loopback only.
    None,
    /// Out to public addresses.
    Egress,
}

/// What happens when the master has not been heard for the length of the lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AtLeaseEnd {
    /// Go on, and deliver whenever the master is back.
    Finish,
    /// Stop: the task must never run twice at a time.
    Stop,
}

/// An input archive that is elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteInputs {
    /// Where it is.
    pub url: Url,
    /// SHA-256 of it.
    pub sha256: [u8; 32],
    /// The most that is fetched of it.
    pub max_bytes: u64,
}

/// A checked task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskSpec {
    /// Task and attempt.
    pub key: AttemptKey,
    /// Whose task it is.
    pub owner: Id,
    /// Image to run.
    pub image: ImageRef,
    /// When to pull it.
    pub pull: PullPolicy,
    /// Argument vector; empty: `run_task.sh` picks a program.
    pub command: Vec<String>,
    /// Environment, names unique.
    pub env: Vec<(String, String)>,
    /// Thousandths of a CPU.
    pub cpu_millis: u64,
    /// Memory limit; swap is not added to it.
    pub memory_bytes: u64,
    /// Work folder and outputs.
    pub disk_bytes: u64,
    /// Running time, without pauses by the node.
    pub timeout: Duration,
    /// Between SIGTERM and SIGKILL.
    pub grace: Duration,
    /// 0 to 100.
    pub priority: u8,
    /// What the task may reach.
    pub network: Network,
    /// With egress: the only destinations; empty: every public one. Attempts from before there were lists have none.
    #[serde(default)]
    pub network_allow: Vec<Destination>,
    /// The engine's runtime; `None`: its default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<Id>,
    /// What happens at the lease's end.
    pub at_lease_end: AtLeaseEnd,
    /// Patterns of files to collect, below the work folder.
    pub outputs: Vec<String>,
    /// Bytes of all collected files together.
    pub max_output_bytes: u64,
    /// Bytes of the input archive, which the store keeps.
    pub inputs_bytes: u64,
    /// The input archive where it is to be fetched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote_inputs: Option<RemoteInputs>,
    /// SHA-256 of the assignment's exact bytes.
    pub digest: [u8; 32],
}

impl TaskSpec {
    /// What the ledger reserves for this task.
    pub fn needs(&self) -> Resources {
        Resources {
            cpu_millis: self.cpu_millis,
            memory_bytes: self.memory_bytes,
            disk_bytes: self.disk_bytes,
            slots: 1,
        }
    }

    /// Checks an offer field by field, in the order of the contract; the first that is wrong decides.
    ///
    /// # Errors
    /// Names the field and says what would be right.
    pub fn check(offer: &Offer, defaults: &SpecDefaults) -> Result<Self, FieldError> {
        let key = AttemptKey { task: id("task_id", &offer.task)?, attempt: attempt(offer.attempt)? };
        let owner = if offer.owner.is_empty() { id("owner_id", "anonymous")? } else { id("owner_id", &offer.owner)? };
        let image = if offer.image.is_empty() { BASE_IMAGE } else { &offer.image };
        let image = ImageRef::parse(image).map_err(|error| refuse("image", error.to_string()))?;
        defaults.images.judge(&image).map_err(|reason| refuse("image", reason))?;
        let pull = pull_policy(&offer.pull, &image)?;
        check_words(offer)?;
        let max_timeout = millis(defaults.max_timeout);
        if offer.gpus != 0 {
            return Err(refuse("gpus", "must be 0: this node lends no GPU"));
        }
        Ok(Self {
            key,
            owner,
            image,
            pull,
            command: offer.command.clone(),
            env: offer.env.clone(),
            cpu_millis: amount("cpu_millis", offer.cpu_millis, 1_000, MIN_CPU_MILLIS..=MAX_CPU_MILLIS)?,
            memory_bytes: amount("memory_bytes", offer.memory_bytes, 512 << 20, MIN_MEMORY_BYTES..=MAX_BYTES)?,
            disk_bytes: amount("disk_bytes", offer.disk_bytes, 1 << 30, 1 << 20..=MAX_BYTES)?,
            timeout: Duration::from_millis(amount(
                "timeout_ms",
                offer.timeout_ms,
                millis(defaults.timeout),
                100..=max_timeout,
            )?),
            grace: Duration::from_millis(optional("grace_ms", offer.grace_ms, 10_000, 0..=millis(MAX_GRACE))?),
            priority: u8::try_from(optional("priority", offer.priority, 50, 0..=100)?).unwrap_or(100),
            network: network(&offer.network, &defaults.network)?,
            network_allow: destinations(offer, &defaults.network)?,
            runtime: runtime(&offer.runtime, &defaults.runtimes)?,
            at_lease_end: at_lease_end(&offer.at_lease_end)?,
            outputs: patterns(&offer.outputs)?,
            max_output_bytes: amount("max_output_bytes", offer.max_output_bytes, 1 << 30, 1..=MAX_BYTES)?,
            inputs_bytes: inputs(offer)?,
            remote_inputs: remote_inputs(offer, defaults)?,
            digest: offer.digest,
        })
    }
}

/// A field of an assignment that can't be taken as it is: the master's or the task author's fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// Name as in the contract.
    pub field: String,
    /// What is wrong and what would be right, without the value where that could be long.
    pub reason: String,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.field, self.reason)
    }
}

impl std::error::Error for FieldError {}

fn refuse(field: &str, reason: impl Into<String>) -> FieldError {
    FieldError { field: field.to_owned(), reason: reason.into() }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn id(field: &str, text: &str) -> Result<Id, FieldError> {
    Id::parse(text).map_err(|error| refuse(field, error.to_string()))
}

fn attempt(number: i64) -> Result<u32, FieldError> {
    match u32::try_from(number) {
        Ok(attempt @ 1..=MAX_ATTEMPT) => Ok(attempt),
        _ => Err(refuse("attempt", format!("is {number}, must be from 1 to {MAX_ATTEMPT}"))),
    }
}

fn optional(
    field: &str,
    value: Option<i64>,
    default: u64,
    range: std::ops::RangeInclusive<u64>,
) -> Result<u64, FieldError> {
    let Some(value) = value else { return Ok(default) };
    match u64::try_from(value) {
        Ok(value) if range.contains(&value) => Ok(value),
        _ => Err(refuse(field, format!("is {value}, must be from {} to {}", range.start(), range.end()))),
    }
}

/// A field where zero means the default.
fn amount(field: &str, value: i64, default: u64, range: std::ops::RangeInclusive<u64>) -> Result<u64, FieldError> {
    optional(field, (value != 0).then_some(value), default, range)
}

fn pull_policy(text: &str, image: &ImageRef) -> Result<PullPolicy, FieldError> {
    match text {
        "always" => Ok(PullPolicy::Always),
        "if-missing" => Ok(PullPolicy::IfMissing),
        "never" => Ok(PullPolicy::Never),
        "" if image.digest().is_some() || image.name() == base_image_name() => Ok(PullPolicy::IfMissing),
        "" => Ok(PullPolicy::Always),
        _ => Err(refuse("pull", "must be always, if-missing or never")),
    }
}

fn network(text: &str, policy: &NetworkPolicy) -> Result<Network, FieldError> {
    match text {
        "" | "none" => Ok(Network::None),
        "egress" if policy.is_egress_allowed => Ok(Network::Egress),
        "egress" => {
            let reason = "is egress, which the owner of this node does not allow: HIVEMIND_TASK_NETWORK=egress would";
            Err(refuse("network", reason))
        }
        _ => Err(refuse("network", "must be none or egress")),
    }
}

fn destinations(offer: &Offer, policy: &NetworkPolicy) -> Result<Vec<Destination>, FieldError> {
    let list = &offer.network_allow;
    if list.len() > MAX_DESTINATIONS {
        let reason = format!("has {} entries, at most {MAX_DESTINATIONS} are allowed", list.len());
        return Err(refuse("network_allow", reason));
    }
    if !list.is_empty() && offer.network != "egress" {
        return Err(refuse("network_allow", "has entries, which only a task with network egress can have"));
    }
    let entry = |(index, text): (usize, &String)| {
        destination(text, policy).map_err(|reason| refuse(&format!("network_allow[{index}]"), reason))
    };
    list.iter().enumerate().map(entry).collect()
}

/// A network around private ones is fine: those in it stay closed.
fn destination(text: &str, policy: &NetworkPolicy) -> Result<Destination, String> {
    let destination: Destination = text.parse()?;
    let net = destination.net;
    if net.is_never() {
        return Err(format!("is {net}, which no task may reach"));
    }
    if net.is_private() && !policy.opens(&net) {
        return Err(format!(
            "is {net}, a private network that the owner of this node does not open by HIVEMIND_EGRESS_ALLOW"
        ));
    }
    Ok(destination)
}

fn runtime(text: &str, allowed: &Runtimes) -> Result<Option<Id>, FieldError> {
    if text.is_empty() {
        return Ok(None);
    }
    let name = id("runtime", text)?;
    if allowed.has(&name) {
        return Ok(Some(name));
    }
    let reason = format!("is {name}, which the owner of this node does not allow: HIVEMIND_RUNTIMES={name} would");
    Err(refuse("runtime", reason))
}

fn at_lease_end(text: &str) -> Result<AtLeaseEnd, FieldError> {
    match text {
        "" | "finish" => Ok(AtLeaseEnd::Finish),
        "stop" => Ok(AtLeaseEnd::Stop),
        _ => Err(refuse("at_lease_end", "must be finish or stop")),
    }
}

fn check_words(offer: &Offer) -> Result<(), FieldError> {
    // Counted before looked at: an answer of a master has room for millions of empty words.
    if offer.command.len() > MAX_WORDS {
        return Err(refuse("command", format!("has {} words, at most {MAX_WORDS} are allowed", offer.command.len())));
    }
    let mut total = 0usize;
    for (index, word) in offer.command.iter().enumerate() {
        check_word(&format!("command[{index}]"), word, &mut total)?;
    }
    if offer.command.first().is_some_and(String::is_empty) {
        return Err(refuse("command[0]", "is empty: it names the program"));
    }
    if offer.env.len() > MAX_WORDS {
        return Err(refuse("env", format!("has {} entries, at most {MAX_WORDS} are allowed", offer.env.len())));
    }
    let mut names = std::collections::BTreeSet::new();
    for (index, (name, value)) in offer.env.iter().enumerate() {
        let field = format!("env[{index}]");
        check_env_name(&field, name)?;
        // The contract's map has lost its order, so that the index alone would not tell which entry it is.
        check_word(&field, value, &mut total).map_err(|error| refuse(&field, format!("({name}) {}", error.reason)))?;
        total = total.saturating_add(name.len());
        if !names.insert(name) {
            return Err(refuse(&field, format!("({name}) is there twice")));
        }
    }
    if total > MAX_WORDS_BYTES {
        return Err(refuse(
            "command and env",
            format!("have {total} bytes together, at most {MAX_WORDS_BYTES} are allowed"),
        ));
    }
    Ok(())
}

fn check_word(field: &str, word: &str, total: &mut usize) -> Result<(), FieldError> {
    if word.len() > MAX_WORD_BYTES {
        return Err(refuse(field, format!("has {} bytes, at most {MAX_WORD_BYTES} are allowed", word.len())));
    }
    if word.contains('\0') {
        return Err(refuse(field, "has a NUL byte"));
    }
    *total = total.saturating_add(word.len());
    Ok(())
}

/// Names that the worker sets itself: a task's own value would make the contract lie.
const OUR_ENV: [&str; 2] = ["TASK_ID", "HIVEMIND_OUTPUT"];

/// Of a name that is wrong, so many characters are shown.
const SHOWN_NAME: usize = 64;

fn check_env_name(field: &str, name: &str) -> Result<(), FieldError> {
    let bytes = name.as_bytes();
    let is_first = |b: u8| b.is_ascii_alphabetic() || b == b'_';
    let is_name = bytes.len() <= 255
        && bytes.first().is_some_and(|b| is_first(*b))
        && bytes.iter().all(|b| is_first(*b) || b.is_ascii_digit());
    if !is_name {
        let shown: String = name.chars().take(SHOWN_NAME).flat_map(char::escape_default).collect();
        let size = bytes.len();
        let reason = format!("has the name \"{shown}\" of {size} bytes, which is not [A-Za-z_][A-Za-z0-9_]{{0,254}}");
        return Err(refuse(field, reason));
    }
    if OUR_ENV.contains(&name) {
        return Err(refuse(field, format!("sets {name}, which the worker sets")));
    }
    Ok(())
}

fn patterns(patterns: &[String]) -> Result<Vec<String>, FieldError> {
    if patterns.is_empty() {
        return Ok(vec!["output/**".to_owned()]);
    }
    if patterns.len() > MAX_PATTERNS {
        return Err(refuse("outputs", format!("has {} patterns, at most {MAX_PATTERNS} are allowed", patterns.len())));
    }
    for (index, pattern) in patterns.iter().enumerate() {
        let field = format!("outputs[{index}]");
        if pattern.is_empty() || pattern.len() > MAX_PATTERN_BYTES {
            return Err(refuse(&field, format!("has {} bytes, must have 1 to {MAX_PATTERN_BYTES}", pattern.len())));
        }
        if pattern.starts_with('/') || pattern.split('/').any(|part| part == ".." || part == "." || part.is_empty()) {
            return Err(refuse(&field, "must be a path below the work folder, without '.', '..' or empty parts"));
        }
        if pattern.chars().any(char::is_control) {
            return Err(refuse(&field, "has a control character"));
        }
        if pattern.split('/').any(|part| part != "**" && part.matches('*').count() > MAX_STARS) {
            return Err(refuse(&field, format!("has more than {MAX_STARS} '*' between two '/'")));
        }
        if let Err(error) = glob::Pattern::new(pattern) {
            return Err(refuse(&field, format!("is no pattern: {} at byte {}", error.msg, error.pos)));
        }
    }
    Ok(patterns.to_vec())
}

fn inputs(offer: &Offer) -> Result<u64, FieldError> {
    let len = offer.inputs.len();
    if len > MAX_INPUT_BYTES {
        return Err(refuse("inputs", format!("has {len} bytes, at most {MAX_INPUT_BYTES} are allowed")));
    }
    if !matches!(offer.inputs_sha256.len(), 0 | 32) {
        return Err(refuse("inputs_sha256", format!("has {} bytes, must have 32 or none", offer.inputs_sha256.len())));
    }
    Ok(u64::try_from(len).unwrap_or(u64::MAX))
}

fn remote_inputs(offer: &Offer, defaults: &SpecDefaults) -> Result<Option<RemoteInputs>, FieldError> {
    if offer.inputs_url.is_empty() {
        return match offer.inputs_url_bytes {
            0 => Ok(None),
            _ => Err(refuse("inputs_url_bytes", "is set without inputs_url")),
        };
    }
    if !offer.inputs.is_empty() {
        return Err(refuse("inputs_url", "is set beside inputs: a task has one archive"));
    }
    let url = Url::parse(&offer.inputs_url).map_err(|reason| refuse("inputs_url", reason))?;
    let sha256 = offer.inputs_sha256.as_slice().try_into();
    let sha256 = sha256.map_err(|_| refuse("inputs_sha256", "is missing: with inputs_url it must be there"))?;
    let most = defaults.max_fetch_bytes;
    let max_bytes = amount("inputs_url_bytes", offer.inputs_url_bytes, most, 1..=most)?;
    Ok(Some(RemoteInputs { url, sha256, max_bytes }))
}

//! The task file: what a person writes to describe a task. The same text goes to the standalone master, which reads it
//! with this code.
//!
//! Left out on purpose: the checks of [`crate::node::spec`], which every task meets at the node whatever its way there.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use serde_json::{Map, Value};

use crate::node::offer::Offer;
use crate::sys::text::{from_hex, hex};

use super::near;
use super::value::{self, shown};

/// The keys of a task file.
pub const TASK_KEYS: [&str; 22] = [
    "name",
    "image",
    "pull",
    "command",
    "env",
    "cpu",
    "memory",
    "disk",
    "timeout_s",
    "grace_s",
    "priority",
    "network",
    "network_allow",
    "runtime",
    "outputs",
    "max_output",
    "owner",
    "files",
    "archive",
    "inputs_url",
    "inputs_sha256",
    "inputs_url_bytes",
];
/// Largest task file; command and environment have at most 512 KiB.
pub const MAX_TASK_FILE_BYTES: usize = 1 << 20;

/// A task as its file describes it. What is absent is the node's default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskFile {
    /// Task id; the master makes one when absent.
    pub name: Option<String>,
    /// Image reference.
    pub image: Option<String>,
    /// `if-missing`, `always` or `never`.
    pub pull: Option<String>,
    /// Argument vector.
    pub command: Vec<String>,
    /// Environment, in the order of names.
    pub env: Vec<(String, String)>,
    /// Thousandths of a CPU.
    pub cpu_millis: Option<u64>,
    /// Bytes of memory.
    pub memory_bytes: Option<u64>,
    /// Bytes of disk.
    pub disk_bytes: Option<u64>,
    /// Running time.
    pub timeout_ms: Option<u64>,
    /// Time between SIGTERM and SIGKILL.
    pub grace_ms: Option<u64>,
    /// 0 to 100.
    pub priority: Option<i64>,
    /// `none` or `egress`.
    pub network: Option<String>,
    /// The only destinations with `egress`.
    pub network_allow: Vec<String>,
    /// Name of the engine's runtime.
    pub runtime: Option<String>,
    /// Patterns of files to collect.
    pub outputs: Vec<String>,
    /// Bytes of all collected files.
    pub max_output_bytes: Option<u64>,
    /// Id of the task's owner.
    pub owner: Option<String>,
    /// A tar, tar.gz or zip file for the work folder; only in a file on its way to `submit`.
    pub archive: Option<String>,
    /// Where such an archive is, when it is elsewhere.
    pub inputs_url: Option<String>,
    /// SHA-256 of it.
    pub inputs_sha256: Option<[u8; 32]>,
    /// The most bytes that may come from there.
    pub inputs_url_bytes: Option<u64>,
    /// What to put into the work folder; only in a file on its way to `submit`.
    pub files: Option<Files>,
}

/// The `files` of a task file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Files {
    /// The content of this folder.
    Folder(String),
    /// These files and folders, which keep their names.
    List(Vec<String>),
}

/// What is wrong with a task file, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskFileError {
    /// From 1; 0 when the file as a whole is meant.
    pub line: usize,
    /// From 1.
    pub column: usize,
    /// What is wrong and what would be right.
    pub message: String,
}

impl fmt::Display for TaskFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 0 {
            write!(f, "line {}, column {}: ", self.line, self.column)?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for TaskFileError {}

impl TaskFile {
    /// Reads the text of a task file.
    ///
    /// # Errors
    /// Says line and column, the key, and what would be right; the nearest key for an unknown one.
    pub fn parse(text: &str) -> Result<Self, TaskFileError> {
        if text.len() > MAX_TASK_FILE_BYTES {
            return Err(TaskFileError {
                line: 0,
                column: 0,
                message: format!("the task file is larger than {} KiB", MAX_TASK_FILE_BYTES >> 10),
            });
        }
        serde_json::from_str(text).map_err(|error| {
            let full = error.to_string();
            let position = format!(" at line {} column {}", error.line(), error.column());
            TaskFileError {
                line: error.line(),
                column: error.column(),
                message: full.strip_suffix(&position).unwrap_or(&full).to_owned(),
            }
        })
    }

    /// The text that `parse` reads back to the same task, without `files` and `archive`, whose content travels beside it.
    pub fn to_json(&self) -> String {
        let mut map = Map::new();
        let mut put = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                map.insert(key.to_owned(), value);
            }
        };
        let text = |text: &Option<String>| text.clone().map(Value::from);
        let list = |list: &[String]| (!list.is_empty()).then(|| Value::from(list));
        put("name", text(&self.name));
        put("image", text(&self.image));
        put("pull", text(&self.pull));
        put("command", list(&self.command));
        if !self.env.is_empty() {
            let env = self.env.iter().map(|(k, v)| (k.clone(), Value::from(v.as_str())));
            put("env", Some(Value::Object(env.collect())));
        }
        put("cpu", self.cpu_millis.map(thousandths));
        put("memory", self.memory_bytes.map(Value::from));
        put("disk", self.disk_bytes.map(Value::from));
        put("timeout_s", self.timeout_ms.map(thousandths));
        put("grace_s", self.grace_ms.map(thousandths));
        put("priority", self.priority.map(Value::from));
        put("network", text(&self.network));
        put("network_allow", list(&self.network_allow));
        put("runtime", text(&self.runtime));
        put("outputs", list(&self.outputs));
        put("max_output", self.max_output_bytes.map(Value::from));
        put("owner", text(&self.owner));
        put("inputs_url", text(&self.inputs_url));
        put("inputs_sha256", self.inputs_sha256.map(|sum| Value::from(hex(&sum))));
        put("inputs_url_bytes", self.inputs_url_bytes.map(Value::from));
        Value::Object(map).to_string()
    }

    /// The assignment of the first attempt; its inputs and digest are the master's to fill in, and the task id when
    /// the file has no name.
    pub fn to_offer(&self) -> Offer {
        let amount = |value: Option<u64>| value.map_or(0, |value| i64::try_from(value).unwrap_or(i64::MAX));
        Offer {
            task: self.name.clone().unwrap_or_default(),
            attempt: 1,
            owner: self.owner.clone().unwrap_or_default(),
            image: self.image.clone().unwrap_or_default(),
            pull: self.pull.clone().unwrap_or_default(),
            command: self.command.clone(),
            env: self.env.clone(),
            cpu_millis: amount(self.cpu_millis),
            memory_bytes: amount(self.memory_bytes),
            disk_bytes: amount(self.disk_bytes),
            timeout_ms: amount(self.timeout_ms),
            grace_ms: self.grace_ms.map(|grace| amount(Some(grace))),
            priority: self.priority,
            network: self.network.clone().unwrap_or_default(),
            network_allow: self.network_allow.clone(),
            runtime: self.runtime.clone().unwrap_or_default(),
            outputs: self.outputs.clone(),
            max_output_bytes: amount(self.max_output_bytes),
            inputs_url: self.inputs_url.clone().unwrap_or_default(),
            inputs_sha256: self.inputs_sha256.map(Vec::from).unwrap_or_default(),
            inputs_url_bytes: amount(self.inputs_url_bytes),
            ..Offer::default()
        }
    }

    fn take(&mut self, key: &str, value: Value) -> Result<(), String> {
        match key {
            "name" => self.name = Some(text(value)?),
            "image" => self.image = Some(text(value)?),
            "pull" => self.pull = Some(text(value)?),
            "command" => self.command = texts(value)?,
            "env" => self.env = env(value)?,
            "cpu" => {
                self.cpu_millis =
                    Some(decimal(&value, value::cpu_millis, "a number of CPUs from 0.01 to 1024, such as 1.5")?)
            }
            "memory" => self.memory_bytes = Some(bytes(&value)?),
            "disk" => self.disk_bytes = Some(bytes(&value)?),
            "timeout_s" => match seconds(&value)? {
                // Zero would mean "default" on the way to the node, which is not what a zero in a file says.
                0 => return Err("is 0, must be a number of seconds above 0".to_owned()),
                millis => self.timeout_ms = Some(millis),
            },
            "grace_s" => self.grace_ms = Some(seconds(&value)?),
            "priority" => {
                self.priority = Some(value.as_i64().ok_or("must be a whole number from 0 to 100")?);
            }
            "network" => self.network = Some(text(value)?),
            "network_allow" => self.network_allow = texts(value)?,
            "runtime" => self.runtime = Some(text(value)?),
            "outputs" => self.outputs = texts(value)?,
            "max_output" => self.max_output_bytes = Some(bytes(&value)?),
            "owner" => self.owner = Some(text(value)?),
            "archive" => self.archive = Some(text(value)?),
            "inputs_url" => self.inputs_url = Some(text(value)?),
            "inputs_sha256" => {
                let wrong = "must be a SHA-256 in hex, 64 digits, as sha256sum prints it";
                self.inputs_sha256 = Some(from_hex(&text(value)?).ok_or(wrong)?);
            }
            "inputs_url_bytes" => self.inputs_url_bytes = Some(bytes(&value)?),
            "files" => {
                self.files = Some(match value {
                    Value::String(folder) => Files::Folder(folder),
                    list => Files::List(texts(list).map_err(|_| "must be a folder or a list of paths")?),
                });
            }
            // `visit_map` looked the key up in the table before.
            _ => return Err("is no key of a task file".to_owned()),
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for TaskFile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Keys)
    }
}

struct Keys;

impl<'de> Visitor<'de> for Keys {
    type Value = TaskFile;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with the keys of a task file")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<TaskFile, A::Error> {
        let mut task = TaskFile::default();
        let mut seen: Vec<String> = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            if !TASK_KEYS.contains(&key.as_str()) {
                let near = near::nearest(&key, TASK_KEYS);
                return Err(A::Error::custom(match near {
                    Some(near) => format!("unknown key {}: the nearest is \"{near}\"", shown(&key)),
                    None => format!("unknown key {}: the keys are {}", shown(&key), TASK_KEYS.join(", ")),
                }));
            }
            if seen.contains(&key) {
                return Err(A::Error::custom(format!("\"{key}\" is there twice")));
            }
            let value = map.next_value::<Value>()?;
            task.take(&key, value).map_err(|problem| A::Error::custom(format!("\"{key}\" {problem}")))?;
            seen.push(key);
        }
        Ok(task)
    }
}

fn text(value: Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text),
        _ => Err("must be a text".to_owned()),
    }
}

fn texts(value: Value) -> Result<Vec<String>, String> {
    let wrong = || "must be a list of texts".to_owned();
    match value {
        Value::Array(list) => list.into_iter().map(|item| text(item).map_err(|_| wrong())).collect(),
        _ => Err(wrong()),
    }
}

fn env(value: Value) -> Result<Vec<(String, String)>, String> {
    let Value::Object(map) = value else {
        return Err("must be an object of names and texts".to_owned());
    };
    map.into_iter()
        .map(|(name, value)| match value {
            Value::String(text) => Ok((name, text)),
            _ => Err(format!("has {} that is no text: write it in quotes", shown(&name))),
        })
        .collect()
}

/// A JSON number by its digits, so that no float rounds it.
fn decimal<T>(value: &Value, read: impl FnOnce(&str) -> Result<T, String>, what: &str) -> Result<T, String> {
    match value {
        Value::Number(number) => read(&number.to_string()).map_err(|_| format!("is {number}, must be {what}")),
        _ => Err(format!("must be {what}")),
    }
}

fn bytes(value: &Value) -> Result<u64, String> {
    let bytes = match value {
        Value::Number(number) => number.as_u64().ok_or(()),
        Value::String(text) => value::size(text).map_err(|_| ()),
        _ => Err(()),
    };
    // As for a timeout of zero.
    match bytes {
        Ok(bytes) if bytes > 0 && i64::try_from(bytes).is_ok() => Ok(bytes),
        _ => Err("must be a size such as \"256MiB\", \"1.5GB\" or a number of bytes, above 0".to_owned()),
    }
}

fn seconds(value: &Value) -> Result<u64, String> {
    let read = |text: &str| {
        let millis = value::duration(text)?.as_millis();
        i64::try_from(millis).ok().and_then(|millis| u64::try_from(millis).ok()).ok_or_else(String::new)
    };
    decimal(value, read, "a number of seconds, 0 or more")
}

/// `1500` as `1.5`, the way the file had it.
fn thousandths(millis: u64) -> Value {
    if millis.is_multiple_of(1_000) {
        return Value::from(millis / 1_000);
    }
    // Exact enough: the shortest decimal text of this float has the three digits back.
    #[allow(clippy::cast_precision_loss)]
    Value::from(millis as f64 / 1_000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_key_and_gives_it_back() {
        let text = r#"{"name": "n", "image": "python:3", "pull": "never", "command": ["python3", "-c", "x"],
            "env": {"A": "1", "B": ""}, "cpu": 1.5, "memory": "256MiB", "disk": 1000000, "timeout_s": 90,
            "grace_s": 0.25, "priority": 7, "network": "egress",
            "network_allow": ["203.0.113.0/24:443"], "runtime": "runsc", "outputs": ["output/**"], "max_output": "1GB", "owner": "o",
            "inputs_url": "https://h/x.zip", "inputs_url_bytes": "2MiB",
            "inputs_sha256": "2C26B46B68FFC68FF99B453C1D30413413422D706483BFA0F98A5E886266E7AE"}"#;
        let task = TaskFile::parse(text).unwrap();
        assert_eq!(task.cpu_millis, Some(1_500));
        assert_eq!(task.memory_bytes, Some(256 << 20));
        assert_eq!(task.timeout_ms, Some(90_000));
        assert_eq!(task.grace_ms, Some(250));
        assert_eq!(task.max_output_bytes, Some(1_000_000_000));
        assert_eq!(TaskFile::parse(&task.to_json()).unwrap(), task);
        let offer = task.to_offer();
        assert_eq!((offer.task.as_str(), offer.attempt, offer.cpu_millis), ("n", 1, 1_500));
        assert_eq!(
            (offer.network.as_str(), &offer.network_allow[..]),
            ("egress", &["203.0.113.0/24:443".to_owned()][..])
        );
        assert_eq!(offer.runtime, "runsc");
        assert_eq!(offer.env, [("A".to_owned(), "1".to_owned()), ("B".to_owned(), String::new())]);
        assert_eq!((offer.inputs_url.as_str(), offer.inputs_url_bytes), ("https://h/x.zip", 2 << 20));
        assert_eq!((offer.inputs_sha256.len(), offer.inputs_sha256[0]), (32, 0x2c));
        assert_eq!((offer.grace_ms, offer.priority, offer.inputs.len()), (Some(250), Some(7), 0));
    }

    #[test]
    fn takes_an_empty_object_and_files() {
        assert_eq!(TaskFile::parse("{}").unwrap(), TaskFile::default());
        assert_eq!(TaskFile::parse("{}").unwrap().to_offer().memory_bytes, 0);
        assert_eq!(TaskFile::parse(r#"{"files": "src"}"#).unwrap().files, Some(Files::Folder("src".to_owned())));
        let listed = TaskFile::parse(r#"{"files": ["a", "b/c"]}"#).unwrap();
        assert_eq!(listed.files, Some(Files::List(vec!["a".to_owned(), "b/c".to_owned()])));
        assert_eq!(listed.to_json(), "{}");
    }

    #[test]
    fn says_where_and_what_would_be_right() {
        for (text, message) in [
            ("{\n  \"timeot_s\": 3}", "line 2, column 12: unknown key \"timeot_s\": the nearest is \"timeout_s\""),
            (
                "{\"memory\": \"lots\"}",
                "line 1, column 18: \"memory\" must be a size such as \"256MiB\", \"1.5GB\" or a number of bytes, above 0",
            ),
            (
                "{\"cpu\": -1}",
                "line 1, column 11: \"cpu\" is -1, must be a number of CPUs from 0.01 to 1024, such as 1.5",
            ),
            ("{\"cpu\": \"2\"}", "line 1, column 12: \"cpu\" must be a number of CPUs from 0.01 to 1024, such as 1.5"),
            ("{\"name\": 5}", "line 1, column 11: \"name\" must be a text"),
            ("{\"command\": \"python3 x\"}", "line 1, column 24: \"command\" must be a list of texts"),
            ("{\"env\": {\"A\": 1}}", "line 1, column 17: \"env\" has \"A\" that is no text: write it in quotes"),
            ("{\"timeout_s\": -5}", "line 1, column 17: \"timeout_s\" is -5, must be a number of seconds, 0 or more"),
            ("{\"timeout_s\": 0}", "line 1, column 16: \"timeout_s\" is 0, must be a number of seconds above 0"),
            ("{\"priority\": 1.5}", "line 1, column 17: \"priority\" must be a whole number from 0 to 100"),
            ("{\"files\": {}}", "line 1, column 13: \"files\" must be a folder or a list of paths"),
            ("{\"cpu\": 1, \"cpu\": 2}", "line 1, column 16: \"cpu\" is there twice"),
            ("[]", "line 1, column 0: invalid type: sequence, expected an object with the keys of a task file"),
            ("{\"cpu\": 1", "line 1, column 9: EOF while parsing an object"),
            ("{} x", "line 1, column 4: trailing characters"),
        ] {
            assert_eq!(TaskFile::parse(text).unwrap_err().to_string(), message, "{text}");
        }
        for key in ["memory", "disk", "max_output"] {
            for value in ["0", "-1", "1e300", "\"\"", "null", "99999999999999999999", "[]"] {
                let text = format!("{{\"{key}\": {value}}}");
                let error = TaskFile::parse(&text).unwrap_err().to_string();
                assert!(
                    error.contains(&format!("\"{key}\" must be a size")) || error.contains("number out of range"),
                    "{error}"
                );
            }
        }
        assert!(TaskFile::parse(&" ".repeat(MAX_TASK_FILE_BYTES + 1)).is_err());
    }

    #[test]
    fn never_panics_on_truncation() {
        let text = r#"{"env": {"A": "ä"}, "cpu": 1.5, "command": ["x"], "files": ["a"]}"#;
        for end in (0..text.len()).filter(|end| text.is_char_boundary(*end)) {
            assert!(TaskFile::parse(&text[..end]).is_err());
        }
    }
}

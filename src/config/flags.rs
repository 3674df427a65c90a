//! The command line: a subcommand, its words and options, and settings that stand above environment and file.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use crate::node::id::Id;

use super::error::{ConfigError, Place};
use super::keys::{KEYS, Key};
use super::near;
use super::value::{self, shown};

/// What the process is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Print help, of a subcommand or topic when one is named.
    Help(Option<String>),
    /// Print the version.
    Version,
    /// Run the node.
    Run,
    /// Run the node and a small master in one process.
    Standalone,
    /// Look for what would keep the node from working.
    Doctor,
    /// Ask the running worker whether it is well.
    Healthcheck,
    /// Something that the running worker is asked for.
    Client(ClientCommand),
}

/// What a running worker is asked for over its control socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientCommand {
    /// Give it a task.
    Submit(Submit),
    /// What the node looks like.
    Status(Format),
    /// Running tasks and the last that ended.
    Tasks {
        /// How to print.
        format: Format,
        /// How many of those that ended.
        limit: u32,
    },
    /// All about one attempt.
    Show {
        /// Of which task.
        task: Id,
        /// Which attempt; the latest when absent.
        attempt: Option<u32>,
        /// How to print.
        format: Format,
    },
    /// The bundle of an attempt that failed.
    Bundle {
        /// Of which task.
        task: Id,
        /// Which attempt; the latest when absent.
        attempt: Option<u32>,
        /// Where to save it; standard output when absent.
        output: Option<PathBuf>,
    },
    /// Remove what is left over.
    Collect {
        /// How to print.
        format: Format,
        /// Only tell.
        is_dry: bool,
    },
    /// Output of a task.
    Logs(Logs),
    /// Stop a task.
    Cancel {
        /// Which.
        task: Id,
    },
    /// Take no new tasks.
    Drain,
    /// Take no new tasks and freeze the running ones.
    Pause,
    /// Take tasks again.
    Resume,
    /// Show the address of the monitor page with its token.
    Monitor,
}

/// How an answer is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    /// For scripts.
    Json,
}

/// Options of `submit`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Submit {
    /// Task file or folder.
    pub source: PathBuf,
    /// Stay until the task ended and end with its exit code.
    pub is_waiting: bool,
    /// Where output files are saved.
    pub output: Option<PathBuf>,
    /// How to print.
    pub format: Format,
    /// Task id that replaces the file's.
    pub name: Option<Id>,
}

/// Options of `logs`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logs {
    /// Whose output.
    pub task: Id,
    /// Which attempt; the latest when absent.
    pub attempt: Option<u32>,
    /// Standard error instead of standard output.
    pub is_stderr: bool,
    /// Go on until the task ends.
    pub is_following: bool,
}

/// A value from the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlagSetting {
    /// Which key it sets.
    pub key: &'static Key,
    /// As written.
    pub value: OsString,
    /// The flag, with dashes.
    pub flag: String,
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Key {}

/// A parsed command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flags {
    /// What to do.
    pub command: Command,
    /// `--config`.
    pub config_file: Option<PathBuf>,
    /// Settings, in the order of the line; the last one of a key wins.
    pub settings: Vec<FlagSetting>,
}

/// Subcommands and the options that each takes beside the settings.
pub static COMMANDS: [(&str, &[&str]); 15] = [
    ("run", &[]),
    ("standalone", &[]),
    ("submit", &["wait", "output", "json", "name"]),
    ("status", &["json"]),
    ("tasks", &["json", "limit", "output"]),
    ("logs", &["stderr", "follow", "attempt"]),
    ("cancel", &[]),
    ("gc", &["dry-run", "json"]),
    ("drain", &[]),
    ("pause", &[]),
    ("resume", &[]),
    ("monitor", &[]),
    ("doctor", &[]),
    ("healthcheck", &[]),
    ("help", &[]),
];

/// Options that take no value and the ones that do, without those that set a key.
const SWITCHES: [&str; 8] = ["wait", "json", "stderr", "follow", "dry-run", "debug", "help", "version"];
const VALUED: [&str; 5] = ["config", "output", "name", "limit", "attempt"];

/// Options of `tasks` with all its words.
const COMMAND_OPTIONS: [&str; 3] = ["json", "limit", "output"];
/// How many tasks that ended `tasks` shows by default.
const DEFAULT_LIMIT: u32 = 20;

/// Reads a command line, without the name of the program.
///
/// # Errors
/// Names the flag or word and the nearest valid one.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Flags, ConfigError> {
    let mut parser = lexopt::Parser::from_args(args);
    let mut line = Line::default();
    while let Some(arg) = parser.next().map_err(usage)? {
        match arg {
            lexopt::Arg::Short('h') => line.is_help = true,
            lexopt::Arg::Short('V') => line.is_version = true,
            lexopt::Arg::Short(letter) => {
                return Err(ConfigError::new(
                    Place::Flag(format!("-{}", letter.escape_debug())),
                    "unknown flag: `hivemind-worker help` lists them",
                ));
            }
            lexopt::Arg::Long(name) => {
                let name = name.to_owned();
                line.take_long(&name, &mut parser)?;
            }
            lexopt::Arg::Value(word) => line.words.push(word),
        }
    }
    line.finish()
}

#[derive(Default)]
struct Line {
    words: Vec<OsString>,
    used: Vec<String>,
    config_file: Option<PathBuf>,
    settings: Vec<FlagSetting>,
    output: Option<PathBuf>,
    name: Option<Id>,
    attempt: Option<u32>,
    limit: Option<u32>,
    is_help: bool,
    is_version: bool,
}

impl Line {
    fn take_long(&mut self, name: &str, parser: &mut lexopt::Parser) -> Result<(), ConfigError> {
        let place = Place::Flag(format!("--{}", name.escape_debug()));
        if let Some(key) = KEYS.iter().find(|key| key.flag == Some(name)) {
            self.settings.push(FlagSetting { key, value: non_empty(parser, &place)?, flag: format!("--{name}") });
            return Ok(());
        }
        match name {
            "help" => self.is_help = true,
            "version" => self.is_version = true,
            "debug" => self.settings.extend(super::keys::find("LOG_LEVEL").map(|key| FlagSetting {
                key,
                value: "debug".into(),
                flag: "--debug".to_owned(),
            })),
            "config" => self.config_file = Some(non_empty(parser, &place)?.into()),
            "output" => self.output = Some(non_empty(parser, &place)?.into()),
            "name" => self.name = Some(id(&non_empty(parser, &place)?, &place)?),
            "attempt" => self.attempt = Some(number(&non_empty(parser, &place)?, 1, u32::MAX, &place)?),
            "limit" => self.limit = Some(number(&non_empty(parser, &place)?, 0, 1_000, &place)?),
            "wait" | "json" | "stderr" | "follow" | "dry-run" => {}
            _ => return Err(ConfigError::new(place, unknown_flag(name))),
        }
        if !matches!(name, "help" | "version" | "debug" | "config") {
            self.used.push(name.to_owned());
        }
        Ok(())
    }

    fn has(&self, option: &str) -> bool {
        self.used.iter().any(|used| used == option)
    }

    fn format(&self) -> Format {
        if self.has("json") { Format::Json } else { Format::Text }
    }

    fn finish(self) -> Result<Flags, ConfigError> {
        let mut words = self.words.iter();
        let name = match words.next() {
            Some(word) => word
                .to_str()
                .filter(|word| COMMANDS.iter().any(|(name, _)| name == word))
                .ok_or_else(|| usage(unknown_command(word)))?
                .to_owned(),
            None => "run".to_owned(),
        };
        let command = if self.is_version {
            Command::Version
        } else if self.is_help {
            Command::Help((!self.words.is_empty()).then_some(name))
        } else {
            self.check_options(&name)?;
            self.command(&name, &mut words)?
        };
        if let Some(word) = words.next().filter(|_| !self.is_help && !self.is_version) {
            return Err(usage(format!("unexpected word {}", shown(&word.to_string_lossy()))));
        }
        Ok(Flags { command, config_file: self.config_file, settings: self.settings })
    }

    fn check_options(&self, command: &str) -> Result<(), ConfigError> {
        let allowed = COMMANDS.iter().find(|(name, _)| *name == command).map_or(&[] as &[&str], |(_, options)| options);
        match self.used.iter().find(|used| !allowed.contains(&used.as_str())) {
            Some(used) => Err(ConfigError::new(
                Place::Flag(format!("--{used}")),
                format!("does not belong to `{command}`: see `hivemind-worker help {command}`"),
            )),
            None => Ok(()),
        }
    }

    fn command<'a>(&self, name: &str, words: &mut impl Iterator<Item = &'a OsString>) -> Result<Command, ConfigError> {
        let client = match name {
            "run" => return Ok(Command::Run),
            "standalone" => return Ok(Command::Standalone),
            "doctor" => return Ok(Command::Doctor),
            "healthcheck" => return Ok(Command::Healthcheck),
            "help" => return Ok(Command::Help(words.next().map(|word| word.to_string_lossy().into_owned()))),
            "submit" => {
                let source = words
                    .next()
                    .ok_or_else(|| usage("submit needs a task file or folder: hivemind-worker submit task.json"))?;
                let submit = Submit {
                    source: source.into(),
                    is_waiting: self.has("wait"),
                    output: self.output.clone(),
                    format: self.format(),
                    name: self.name.clone(),
                };
                if submit.output.is_some() && !submit.is_waiting {
                    return Err(ConfigError::new(
                        Place::Flag("--output".to_owned()),
                        "needs --wait: outputs are there when the task has ended",
                    ));
                }
                ClientCommand::Submit(submit)
            }
            "status" => ClientCommand::Status(self.format()),
            "tasks" => self.tasks(words)?,
            "gc" => ClientCommand::Collect { format: self.format(), is_dry: self.has("dry-run") },
            "logs" => ClientCommand::Logs(Logs {
                task: task_word(name, words)?,
                attempt: self.attempt,
                is_stderr: self.has("stderr"),
                is_following: self.has("follow"),
            }),
            "cancel" => ClientCommand::Cancel { task: task_word(name, words)? },
            "drain" => ClientCommand::Drain,
            "pause" => ClientCommand::Pause,
            "resume" => ClientCommand::Resume,
            "monitor" => ClientCommand::Monitor,
            _ => return Err(usage(unknown_command(OsStr::new(name)))),
        };
        Ok(Command::Client(client))
    }
}

impl Line {
    /// `tasks`, `tasks show ID[#ATTEMPT]` and `tasks bundle ID[#ATTEMPT]`.
    fn tasks<'a>(&self, words: &mut impl Iterator<Item = &'a OsString>) -> Result<ClientCommand, ConfigError> {
        let word = words.next().map(|word| word.to_string_lossy().into_owned());
        let (what, allowed): (_, &[&str]) = match word.as_deref() {
            None => ("tasks", &["json", "limit"]),
            Some("show") => ("tasks show", &["json"]),
            Some("bundle") => ("tasks bundle", &["output"]),
            Some(other) => {
                return Err(usage(format!(
                    "tasks knows show and bundle, not {}: see `hivemind-worker help tasks`",
                    shown(other)
                )));
            }
        };
        if let Some(used) =
            self.used.iter().find(|used| COMMAND_OPTIONS.contains(&used.as_str()) && !allowed.contains(&used.as_str()))
        {
            let message = format!("does not belong to `{what}`: see `hivemind-worker help tasks`");
            return Err(ConfigError::new(Place::Flag(format!("--{used}")), message));
        }
        if word.is_none() {
            return Ok(ClientCommand::Tasks { format: self.format(), limit: self.limit.unwrap_or(DEFAULT_LIMIT) });
        }
        let (task, attempt) = attempt_word(what, words)?;
        Ok(match what {
            "tasks show" => ClientCommand::Show { task, attempt, format: self.format() },
            _ => ClientCommand::Bundle { task, attempt, output: self.output.clone() },
        })
    }
}

/// `ID` or `ID#ATTEMPT`, as `tasks` prints it.
fn attempt_word<'a>(
    command: &str,
    words: &mut impl Iterator<Item = &'a OsString>,
) -> Result<(Id, Option<u32>), ConfigError> {
    let word = words.next().map(|word| word.to_string_lossy().into_owned());
    let word = word.ok_or_else(|| usage(format!("{command} needs the id of a task: see `hivemind-worker tasks`")))?;
    let (task, attempt) = match word.split_once('#') {
        None => (word.as_str(), None),
        Some((task, attempt)) => {
            let number = attempt.parse().ok().filter(|number| *number > 0);
            let wrong = || usage(format!("{} names no attempt: write ID or ID#1", shown(&word)));
            (task, Some(number.ok_or_else(wrong)?))
        }
    };
    let task = Id::parse(task).map_err(|error| usage(format!("the id of the task {error}")))?;
    Ok((task, attempt))
}

fn usage(message: impl ToString) -> ConfigError {
    ConfigError::new(Place::CommandLine, message.to_string())
}

fn non_empty(parser: &mut lexopt::Parser, place: &Place) -> Result<OsString, ConfigError> {
    match parser.value() {
        Ok(value) if !value.is_empty() => Ok(value),
        _ => Err(ConfigError::new(place.clone(), "needs a value")),
    }
}

fn id(text: &OsStr, place: &Place) -> Result<Id, ConfigError> {
    Id::parse(&text.to_string_lossy()).map_err(|error| ConfigError::new(place.clone(), error.to_string()))
}

fn number(text: &OsStr, min: u32, max: u32, place: &Place) -> Result<u32, ConfigError> {
    value::whole(&text.to_string_lossy(), u64::from(min)..=u64::from(max))
        .and_then(|number| u32::try_from(number).map_err(|error| error.to_string()))
        .map_err(|message| ConfigError::new(place.clone(), message))
}

fn task_word<'a>(command: &str, words: &mut impl Iterator<Item = &'a OsString>) -> Result<Id, ConfigError> {
    let word =
        words.next().ok_or_else(|| usage(format!("{command} needs the id of a task: see `hivemind-worker tasks`")))?;
    Id::parse(&word.to_string_lossy()).map_err(|error| usage(format!("the id of the task {error}")))
}

fn unknown_flag(name: &str) -> String {
    let known = KEYS.iter().filter_map(|key| key.flag).chain(SWITCHES).chain(VALUED);
    match near::nearest(name, known) {
        Some(near) => format!("unknown flag: the nearest is --{near}"),
        None => "unknown flag: `hivemind-worker help` lists them".to_owned(),
    }
}

fn unknown_command(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    match near::nearest(&word, COMMANDS.iter().map(|(name, _)| *name)) {
        Some(near) => format!("unknown command {}: the nearest is {near}", shown(&word)),
        None => format!("unknown command {}: `hivemind-worker help` lists them", shown(&word)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Result<Flags, ConfigError> {
        parse(text.split_whitespace().map(OsString::from))
    }

    #[test]
    fn knows_commands_and_their_options() {
        assert_eq!(line("").unwrap().command, Command::Run);
        assert_eq!(line("--debug standalone").unwrap().command, Command::Standalone);
        assert_eq!(line("-h").unwrap().command, Command::Help(None));
        assert_eq!(line("submit --help").unwrap().command, Command::Help(Some("submit".to_owned())));
        assert_eq!(line("help tasks").unwrap().command, Command::Help(Some("tasks".to_owned())));
        assert_eq!(line("-V").unwrap().command, Command::Version);
        assert_eq!(
            line("submit t.json --wait --output=out --name n1").unwrap().command,
            Command::Client(ClientCommand::Submit(Submit {
                source: "t.json".into(),
                is_waiting: true,
                output: Some("out".into()),
                format: Format::Text,
                name: Some(Id::parse("n1").unwrap()),
            }))
        );
        let task = Id::parse("t").unwrap();
        assert_eq!(
            line("tasks show t#3 --json").unwrap().command,
            Command::Client(ClientCommand::Show { task: task.clone(), attempt: Some(3), format: Format::Json })
        );
        assert_eq!(
            line("tasks bundle t --output f").unwrap().command,
            Command::Client(ClientCommand::Bundle { task, attempt: None, output: Some("f".into()) })
        );
        let flags = line("run --cpus 2 --config c --state=/s").unwrap();
        assert_eq!(flags.config_file, Some("c".into()));
        assert_eq!(flags.settings[0].key.name, "HIVEMIND_CPUS");
        assert_eq!(flags.settings[1].value, "/s");
    }

    #[test]
    fn says_what_is_wrong_and_what_is_near() {
        for (text, message) in [
            ("--cpu 2", "flag --cpu: unknown flag: the nearest is --cpus"),
            ("-x", "flag -x: unknown flag: `hivemind-worker help` lists them"),
            ("sumbit", "command line: unknown command \"sumbit\": the nearest is submit"),
            ("run --wait", "flag --wait: does not belong to `run`: see `hivemind-worker help run`"),
            ("status a", "command line: unexpected word \"a\""),
            ("submit", "command line: submit needs a task file or folder: hivemind-worker submit task.json"),
            ("submit t --output o", "flag --output: needs --wait: outputs are there when the task has ended"),
            ("cancel ../x", "command line: the id of the task must begin with a letter or digit"),
            ("logs", "command line: logs needs the id of a task: see `hivemind-worker tasks`"),
            ("tasks show", "command line: tasks show needs the id of a task: see `hivemind-worker tasks`"),
            ("tasks bundle t#0", "command line: \"t#0\" names no attempt: write ID or ID#1"),
            (
                "tasks bundel t",
                "command line: tasks knows show and bundle, not \"bundel\": see `hivemind-worker help tasks`",
            ),
            (
                "tasks show t --limit 3",
                "flag --limit: does not belong to `tasks show`: see `hivemind-worker help tasks`",
            ),
            ("tasks --output x", "flag --output: does not belong to `tasks`: see `hivemind-worker help tasks`"),
            ("--state", "flag --state: needs a value"),
            ("--state=", "flag --state: needs a value"),
            ("tasks --limit x", "flag --limit: \"x\" is not right: write a whole number from 0 to 1000"),
        ] {
            let error = line(text).unwrap_err();
            assert_eq!((error.to_string().as_str(), error.exit_code()), (message, 2));
        }
    }
}

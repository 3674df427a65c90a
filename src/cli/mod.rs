//! The subcommands' own code: what stands between a command line and the running worker.
//!
//! Standard output carries what was asked for; standard error carries everything else.

mod actions;
mod client;
mod doctor;
mod escape;
mod folder;
mod follow;
mod health;
mod help;
mod interrupt;
mod logging;
mod logs;
mod pack;
mod run;
mod save;
mod show;
mod socket;
mod status;
mod submit;
mod table;
mod view;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::ExitCode;

use crate::config::{self, ClientCommand, ClientOptions, Loaded, MAX_FILE_BYTES, Surroundings};
use crate::host;

/// Exit code of a command that didn't do what it was asked for.
const EXIT_FAILURE: u8 = 1;

/// Why a command ends without success: said once on standard error, by [`main`].
#[derive(Debug)]
struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    fn new(message: impl Into<String>) -> Self {
        Self::with_code(EXIT_FAILURE, message)
    }

    fn with_code(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

/// Runs a command line, without the program's name.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let loaded = match load(args) {
        Ok(loaded) => loaded,
        Err(error) => {
            complain(&error.to_string());
            return ExitCode::from(error.exit_code());
        }
    };
    match dispatch(loaded) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            complain(&failure.message);
            ExitCode::from(failure.code)
        }
    }
}

/// Reads a command line with this process's environment, files and machine; for the start and for SIGHUP.
///
/// # Errors
/// The operator's mistake.
pub fn load(args: impl IntoIterator<Item = OsString>) -> Result<Loaded, config::ConfigError> {
    let machine = host::machine_facts();
    let surroundings = Surroundings {
        env: &|name| std::env::var_os(name),
        read_file: &read_small_file,
        disk_free: &|path| host::disk_space_above(path).map(|space| space.free_bytes),
        machine: &machine,
        is_root: rustix::process::geteuid().is_root(),
    };
    config::load(args, &surroundings)
}

fn dispatch(loaded: Loaded) -> Result<u8, Failure> {
    match loaded {
        Loaded::Help(topic) => print(&help::text(topic.as_deref())?),
        Loaded::Version => print(&format!("hivemind-worker {}\n", env!("CARGO_PKG_VERSION"))),
        Loaded::Run(config) => run::run(*config),
        Loaded::Standalone(config) => run::standalone(*config),
        Loaded::Doctor(config) => doctor::doctor(&config),
        Loaded::Healthcheck(options) => health::healthcheck(&options),
        Loaded::Client(command, options) => client_command(&command, &options),
    }
}

fn client_command(command: &ClientCommand, options: &ClientOptions) -> Result<u8, Failure> {
    let client = client::Client::new(options);
    match command {
        ClientCommand::Submit(submit) => submit::submit(&client, submit),
        ClientCommand::Status(format) => status::status(&client, *format),
        ClientCommand::Tasks { format, limit } => status::tasks(&client, *format, *limit),
        ClientCommand::Show { task, attempt, format } => show::show(&client, task, *attempt, *format),
        ClientCommand::Bundle { task, attempt, output } => show::bundle(&client, task, *attempt, output.as_deref()),
        ClientCommand::Collect { format, is_dry } => actions::collect(&client, *format, *is_dry),
        ClientCommand::Logs(logs) => logs::logs(&client, logs),
        ClientCommand::Cancel { task } => actions::cancel(&client, task),
        ClientCommand::Drain => actions::act(&client, "drain", "draining: running tasks go on, new ones are not taken"),
        ClientCommand::Pause => {
            actions::act(&client, "pause", "pausing: running tasks are frozen, new ones are not taken")
        }
        ClientCommand::Resume => actions::act(&client, "resume", "resuming: tasks are taken again"),
        ClientCommand::Monitor => health::monitor(&client, options),
    }
}

/// Stops one byte behind the limit, so that the reader sees that there was more.
fn read_small_file(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_FILE_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Writes to standard output; a reader that went away is no failure of ours.
fn print(text: &str) -> Result<u8, Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(format!("failed to write to standard output: {error}")))
        }
        _ => Ok(0),
    }
}

/// A line on standard error. There is no other place left to say that this one failed.
fn complain(text: &str) {
    let _ = writeln!(io::stderr(), "hivemind-worker: {}", escape::line(text));
}

/// A line of progress on standard error.
fn tell(text: &str) {
    let _ = writeln!(io::stderr(), "{}", escape::cell(text));
}

//! The help texts. Flags and keys come from the table of keys; only what a table can't say is written here.

use crate::config::{self, COMMANDS, keys::KEYS};

use super::Failure;
use super::table;

struct Topic {
    name: &'static str,
    usage: &'static str,
    short: &'static str,
    text: &'static str,
}

const fn topic(name: &'static str, usage: &'static str, short: &'static str, text: &'static str) -> Topic {
    Topic { name, usage, short, text }
}

static TOPICS: [Topic; 15] = [
    topic(
        "run",
        "hivemind-worker [run] [FLAGS]",
        "run the node (default)",
        "Runs the node in the foreground: registers with the master, takes tasks, delivers results. Ends with 78 when the\n\
         configuration is wrong or names no master. SIGTERM or Ctrl-C stops it as HIVEMIND_SHUTDOWN says; a second one\n\
         ends it at once. SIGHUP reads the configuration again.\n",
    ),
    topic(
        "standalone",
        "hivemind-worker standalone [FLAGS]",
        "run the node and a small master in one process",
        "Runs a node that needs no master elsewhere: `submit` gives it tasks. Runs in the foreground; SIGTERM or Ctrl-C stops\n\
         it as HIVEMIND_SHUTDOWN says. The page is http://127.0.0.1:5001/monitor.html; `hivemind-worker monitor` prints it\n\
         with the token that its buttons need.\n",
    ),
    topic(
        "submit",
        "hivemind-worker submit TASK.json|FOLDER [OPTIONS]",
        "give a task to a standalone node",
        "A folder: all of it but its task.json is put into the task's work folder, /workspace; what starts is main.py,\n\
         task_script.py, run.py, app.py, script.py or else the first .py file, unless its task.json names a command.\n\
         A file: the task alone, with what its key `files` names. Inputs have at most 30 MiB together; links are refused.\n\
         \n\
         Options:\n\
         \x20 --wait          stay until the task ended: progress on standard error, its output passed through live\n\
         \x20 --output DIR    with --wait: save its output files below DIR, under their paths (output/x is DIR/output/x);\n\
         \x20                 files of the same name are replaced\n\
         \x20 --json          with --wait: no live output; the last line is the result as one JSON object\n\
         \x20 --name ID       task id instead of the task file's\n\
         \n\
         Keys of a task file (JSON object, all optional):\n\
         \x20 name        task id: letter or digit, then up to 62 of letters, digits, '_', '.', '-'; default: made up\n\
         \x20 image       container image; default: justin308/hivemind-worker:latest\n\
         \x20 pull        if-missing, always or never; default: if-missing for the base image and pinned ones, else always\n\
         \x20 command     list of words, the first is the program; default: the work folder's program, see above\n\
         \x20 env         object of names and texts; default: none\n\
         \x20 cpu         number of CPUs, 0.01 to 1024; default: 1\n\
         \x20 memory      \"256MiB\" or bytes, from 16MiB; default: 512MiB\n\
         \x20 disk        \"1GiB\" or bytes, from 1MiB: most of the inputs, of each file, of all outputs; default: 1GiB\n\
         \x20 timeout_s   seconds of running time, 0.1 to HIVEMIND_MAX_TIMEOUT; default: HIVEMIND_TIMEOUT, 1h\n\
         \x20 grace_s     seconds between SIGTERM and SIGKILL, 0 to 60; default: 10\n\
         \x20 priority    0 to 100; default: 50\n\
         \x20 network     none or egress (public IPv4 addresses, where the node's HIVEMIND_TASK_NETWORK allows it); default: none\n\
         \x20 network_allow  with egress: the only destinations, such as [\"203.0.113.0/24:443\"]; default: all public ones\n\
         \x20 runtime     name of the engine's runtime, one of the node's HIVEMIND_RUNTIMES; default: the engine's own\n\
         \x20 outputs     list of patterns of files to collect, below the work folder; default: [\"output/**\"]\n\
         \x20 max_output  \"1GiB\" or bytes of all collected files; default: 1GiB\n\
         \x20 owner       id of whose task it is; default: anonymous\n\
         \x20 files       only in a file: a folder whose content, or a list of paths that, go into the work folder;\n\
         \x20             relative to the task file\n\
         \x20 archive     only in a file, in place of files: a tar, tar.gz or zip file whose content goes there\n\
         \x20 inputs_url  in place of both: https:// address of such an archive, which the node fetches\n\
         \x20 inputs_sha256     its SHA-256 in hex; needed with inputs_url\n\
         \x20 inputs_url_bytes  the most that may come from there; default: HIVEMIND_FETCH_LIMIT\n\
         \x20 dependencies  list of earlier tasks of the same owner that have succeeded, or TASK/PATH for one file of one;\n\
         \x20               their output files are at /hivemind/dependencies/TASK/PATH, read-only\n\
         \x20 requirements  text of a requirements.txt, or a list of its lines: packages that are installed for the task,\n\
         \x20               named ones as wheels only, where the node's HIVEMIND_TASK_NETWORK allows egress\n\
         \n\
         Ends with the task's exit code, else: 124 timed out, 137 out of memory, 130 cancelled (or Ctrl-C, after which the\n\
         task goes on), 125 rejected, node fault or no standalone node, 126 anything else, and with --output also when a file was\n\
         cut or not saved, 2 a mistake in flags, files or the task file (it was not taken then).\n",
    ),
    topic(
        "status",
        "hivemind-worker status [--json]",
        "show the node: state, engine, master, machine, what is lent",
        "  --json   the whole snapshot as one JSON object\n",
    ),
    topic(
        "tasks",
        "hivemind-worker tasks [--json] [--limit N] | tasks show ID[#ATTEMPT] [--json] | tasks bundle ID[#ATTEMPT] [--output FILE]",
        "list the tasks that the node holds, those that wait at the small master, and those that ended; or show one",
        "`tasks show` tells all about one attempt, the latest when none is named: how it ended and by whom, times, limits, use,\n\
         outputs, and the last lines of its output. The last thousand that ended are known in full.\n\
         `tasks bundle` gives what is kept of an attempt that failed (HIVEMIND_BUNDLES, HIVEMIND_BUNDLE_AGE) as a tar archive:\n\
         report, task, events, last output, the engine's word on the container, a list of the work folder and its files as far\n\
         as they have 16 MiB together.\n\
         \n\
         \x20 --json      one JSON object; of the list with `tasks`, `history` and `submissions` (waiting or ended at the small master)\n\
         \x20 --limit N   of the list: how many that ended, 0 to 1000; default: 20\n\
         \x20 --output FILE  of the bundle: where to save it, a new file; default: standard output, unless it is a terminal\n",
    ),
    topic(
        "gc",
        "hivemind-worker gc [--dry-run] [--json]",
        "remove what ended tasks have left: containers, volumes, networks, old bundles, images",
        "Only what has this node's label and belongs to no task that it holds; of images only what this node has pulled itself,\n\
         and only while the engine's disk has less than 1 GiB left. The worker does the same each hour, and at each start but\n\
         for images. Ends with 1 when something could not be removed.\n\
         \n\
         \x20 --dry-run   only tell what would be removed\n\
         \x20 --json      one JSON object with `left_over`\n",
    ),
    topic(
        "logs",
        "hivemind-worker logs TASK [--stderr] [--follow] [--attempt N]",
        "print a task's output",
        "Standard error says what a reader must know: that the task has not started, or what is missing.\n\
         \n\
         \x20 --stderr      standard error instead of standard output\n\
         \x20 --follow      go on until the task ended or Ctrl-C\n\
         \x20 --attempt N   an attempt that the node holds; default: the latest\n",
    ),
    topic(
        "cancel",
        "hivemind-worker cancel TASK",
        "stop a task",
        "SIGTERM, then SIGKILL after the task's grace. Its outcome is Cancelled.\n",
    ),
    topic("drain", "hivemind-worker drain", "take no new tasks; running ones go on", "Until `resume`.\n"),
    topic(
        "pause",
        "hivemind-worker pause",
        "take no new tasks and freeze the running ones",
        "Until `resume`. Time spent frozen doesn't count for a task's timeout.\n",
    ),
    topic("resume", "hivemind-worker resume", "take tasks again after drain or pause", ""),
    topic(
        "monitor",
        "hivemind-worker monitor",
        "print the monitor page's address with its token; opens it where there is a screen",
        "Whoever has that address can act on the node.\n",
    ),
    topic(
        "doctor",
        "hivemind-worker doctor [FLAGS]",
        "look for what would keep the node from working",
        "One line a check: ok, hint, warn or FAIL, with how to mend it. Ends with 1 when one fails. Changes nothing.\n",
    ),
    topic(
        "healthcheck",
        "hivemind-worker healthcheck",
        "ask the running worker whether it is well",
        "Ends with 0 when http://MONITOR_ADDRESS:MONITOR_PORT/healthz says so, else 1. For containers and watchdogs.\n",
    ),
    topic("help", "hivemind-worker help [COMMAND|keys]", "show this, a command's help, or all configuration keys", ""),
];

/// The text of a topic, or the overview.
pub(super) fn text(name: Option<&str>) -> Result<String, Failure> {
    let Some(name) = name else { return Ok(overview()) };
    if name == "keys" {
        return Ok(keys());
    }
    let topic = TOPICS.iter().find(|topic| topic.name == name).ok_or_else(|| {
        let names = COMMANDS.iter().map(|(name, _)| *name).chain(["keys"]);
        let near = config::nearest(name, names).map_or(String::new(), |near| format!(": the nearest is {near}"));
        Failure::with_code(config::EXIT_USAGE, format!("no help about {name:?}{near}"))
    })?;
    let mut text = format!("{}\n\nUsage: {}\n", capital(topic.short), topic.usage);
    if !topic.text.is_empty() {
        text.push_str(&format!("\n{}", topic.text));
    }
    if matches!(name, "run" | "standalone" | "doctor") {
        text.push_str(&format!("\n{}", flags()));
    } else if name != "help" {
        text.push_str(
            "\nThe worker is found by its state folder: --state DIR, HIVEMIND_STATE, or the default of `help keys`.\n",
        );
    }
    Ok(text)
}

fn overview() -> String {
    let rows: Vec<Vec<String>> =
        TOPICS.iter().map(|topic| table::row([&format!("  {}", topic.name), topic.short])).collect();
    format!(
        "hivemind-worker {}: turns this machine into a node of a HiveMind network\n\n\
         Usage: hivemind-worker [COMMAND] [FLAGS]\n\nCommands:\n{}\n{}\n\
         Each flag has a key in environment and file: `hivemind-worker help keys`. Flag wins over environment over file.\n",
        env!("CARGO_PKG_VERSION"),
        table::render(&rows),
        flags()
    )
}

fn flags() -> String {
    let mut text = String::from("Flags:\n");
    let mut add = |flag: &str, meaning: &str| text.push_str(&format!("  {flag:<18} {meaning}\n"));
    add("--config FILE", "read keys from FILE: KEY=value lines");
    add("--debug", "log at level debug");
    for key in &KEYS {
        let Some(flag) = key.flag else { continue };
        let value = match flag {
            "master-url" => "URL",
            "state" => "DIR",
            "log-file" => "FILE",
            "memory" => "SIZE",
            "node-id" => "ID",
            "shutdown" => "MODE",
            _ => "N",
        };
        add(&format!("--{flag} {value}"), key.meaning);
        add("", &format!("({}: {})", key.unit, key.range));
        add("", &format!("(default: {})", key.default));
    }
    add("-h, --help", "show help, of a command when one is named");
    add("-V, --version", "show the version");
    text
}

fn keys() -> String {
    let mut text = "Keys, as environment variables or KEY=value lines of a --config file.\n\
                    Sizes: 512MiB, 2GiB, 1.5GB, 512M (1024s) or bytes. Durations: 90s, 5m, 1h, 1d or seconds.\n\
                    SIGHUP reads them again; those marked live change then, the others need a restart.\n"
        .to_owned();
    for key in &KEYS {
        let flag = key.flag.map_or(String::new(), |flag| format!("  (--{flag})"));
        let live = if key.is_live { "  live" } else { "" };
        text.push_str(&format!(
            "\n{}{flag}{live}\n    {}\n    {}: {}\n    default: {}\n",
            key.name, key.meaning, key.unit, key.range, key.default
        ));
    }
    text
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or(String::new(), |first| first.to_uppercase().chain(chars).collect())
}

#[cfg(test)]
mod tests {
    use crate::config::taskfile::TASK_KEYS;

    use super::*;

    #[test]
    fn each_command_and_key_has_its_text() {
        for (name, options) in &COMMANDS {
            let text = text(Some(name)).unwrap();
            for option in *options {
                assert!(text.contains(&format!("--{option}")), "{name} --{option}");
            }
        }
        assert_eq!(TOPICS.len(), COMMANDS.len());
        let submit = text(Some("submit")).unwrap();
        for key in TASK_KEYS {
            assert!(submit.contains(&format!("\n  {key} ")), "{key}");
        }
        let all = text(Some("keys")).unwrap();
        for key in &KEYS {
            assert!(all.contains(&format!("\n{}", key.name)), "{}", key.name);
        }
        let error = text(Some("sumbit")).unwrap_err();
        assert_eq!((error.code, error.message.as_str()), (2, "no help about \"sumbit\": the nearest is submit"));
    }
}

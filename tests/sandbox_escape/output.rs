//! Floods, lines without end, terminal codes, and links to the machine's files.

use std::time::{Duration, Instant};

use hivemind_worker::node::offer::Offer;
use hivemind_worker::node::record::{EventKind, Outcome};

use crate::node_util::{gated, how, python, until};
use crate::yard::Yard;

/// What a flood has at the least, of the engine's log driver: 3 MB/s.
const SLOWEST: u64 = 3_000_000;
/// The worker holds pieces of output on their way, and the last of it.
const MAX_FLOOD_MEMORY: u64 = 64 << 20;

/// Bytes of the flood: `HM_ESCAPE_OUTPUT_BYTES`, or a gibibyte.
fn flood_bytes() -> u64 {
    std::env::var("HM_ESCAPE_OUTPUT_BYTES").map_or(1 << 30, |text| text.parse().unwrap())
}

#[test]
fn a_flood_without_a_line_end_is_bounded_and_counted() {
    let yard = Yard::open("escape-flood");
    let total = flood_bytes();
    let program = format!(
        "import os\nblock, left = b'x' * 65536, {total}\nwhile left: left -= os.write(1, block[:min(left, 65536)])"
    );
    let begin = Instant::now();
    let timeout = Duration::from_secs(120 + total / SLOWEST);
    let timeout_ms = i64::try_from(timeout.as_millis()).unwrap();
    yard.scene.submit(Offer { cpu_millis: 1_000, timeout_ms, ..python("flood", &program) });
    let mut most = yard.before.memory;
    let report = loop {
        let view = yard.scene.master().view("flood", u64::MAX, Duration::from_millis(200)).unwrap();
        most = most.max(yard.holds().memory);
        if view.is_complete {
            break yard.scene.checked_report("flood");
        }
        assert!(begin.elapsed() < timeout, "{view:?}");
        // The task itself must not wait for the master: the node lives, and says so.
        assert!(yard.scene.status().is_some());
    };
    assert_eq!(how(&report), (Outcome::Succeeded, Some(0)), "{report:?}");
    let notes = yard.scene.record("flood").into_iter().filter_map(|event| match event.kind {
        EventKind::Note(text) => Some(text),
        _ => None,
    });
    let dropped = notes.filter_map(|note| note.split_once(" bytes of output were dropped")?.0.parse::<u64>().ok());
    let dropped: u64 = dropped.sum();
    let kept = yard.scene.view("flood").stdout_bytes;
    println!(
        "{total} bytes in {:?}: {kept} kept, {dropped} dropped, worker from {} to {most} bytes",
        begin.elapsed(),
        yard.before.memory
    );
    assert_eq!(kept + dropped, total, "each byte is kept or counted");
    assert!(kept <= 64 << 20, "the budget of a task's logs: {kept}");
    assert!(most <= yard.before.memory + MAX_FLOOD_MEMORY, "{most}");
    yard.unharmed();
}

#[test]
fn bytes_that_are_no_text_arrive_as_they_are_and_reach_no_terminal() {
    let yard = Yard::open("escape-bytes");
    // Every byte; a title, a cleared screen, a query that a terminal answers; UTF-8 that is cut, too long, or a surrogate;
    // one that turns the direction; a carriage return over the line before. Twice the view's size, so that it is cut.
    let mut wanted: Vec<u8> = (0..=255).collect();
    wanted.extend(b"\x1b]0;evil\x07\x1b[2J\x1b[6n\xc3(\xf0\x9f\x92\xc0\xaf\xed\xa0\x80\xe2\x80\xaeevil\rroot#");
    let wanted = wanted.repeat(40);
    let literal: String = wanted.iter().map(|byte| format!("\\x{byte:02x}")).collect();
    let rest = format!(
        "import os\ndata = b'{literal}'\nwhile data: data = data[os.write(1, data):]\n\
        signal.sigwait([signal.SIGUSR1])"
    );
    yard.scene.submit(gated("bytes", &rest));
    yard.scene.until_up("bytes");
    yard.scene.go("bytes");
    let all = wanted.len() as u64 + 3;
    yard.scene.until_view("bytes", "all bytes have come", |view| view.stdout_bytes >= all);
    let shown = until("the node's view has it", || {
        let status = yard.scene.status()?;
        status.attempts.first().filter(|held| held.tail.contains("evil")).map(|held| held.tail.clone())
    });
    assert!(shown.len() <= 3 * (4 << 10), "each byte that is none becomes one character: {}", shown.len());
    for words in [&["status"][..], &["tasks"], &["status", "--json"]] {
        let output = yard.scene.run(words);
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).expect("what is not UTF-8 is replaced");
        let is_harmful = |c: char| c.is_control() && c != '\n';
        assert!(!text.contains(is_harmful) && (words.len() > 1 || !text.contains('\u{202e}')), "{words:?}: {text:?}");
    }
    yard.scene.go("bytes");
    let report = yard.scene.until_complete("bytes");
    assert_eq!(how(&report), (Outcome::Succeeded, Some(0)), "{report:?}");
    let got = yard.scene.master().read("bytes", 1, 3, 1 << 20).unwrap().bytes;
    assert_eq!(got, wanted);
    assert!(!yard.scene.log().contains('\x1b'), "the worker's own log");
    yard.unharmed();
}

#[test]
fn links_in_the_output_folder_lead_nowhere() {
    let yard = Yard::open("escape-links");
    let program = "import os, socket\n\
        os.makedirs('output/deep')\nopen('output/ok', 'w').write('ok')\n\
        for i in range(2000): os.symlink('/etc/shadow', f'output/link{i}')\n\
        os.symlink('/', 'output/root')\nos.symlink('../../../../etc', 'output/up')\nos.symlink('loop', 'output/loop')\n\
        os.symlink('/proc/1/root/etc/shadow', 'output/deep/shadow')\nos.symlink('/var/run/docker.sock', 'output/sock')\n\
        os.mkfifo('output/fifo')\nsocket.socket(socket.AF_UNIX).bind('output/socket')\n\
        for path in ['/etc/passwd', '/proc/self/environ']:\n\
        \x20   try: os.link(path, 'output/hard'); print('linked', path)\n\
        \x20   except OSError as error: print(error.errno)\n";
    let (report, said) = yard.run(python("links", program));
    assert_eq!(how(&report), (Outcome::Succeeded, Some(0)), "{report:?} {said}");
    // EXDEV: another file system.
    assert_eq!(said, "18\n18\n");
    let names: Vec<&str> = report.outputs.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(names, ["output/ok"], "{:?}", report.cut.len());
    assert!(!report.cut.is_empty());
    // The folder itself is a link, or no folder at all.
    for (name, program) in [
        ("to-root", "import os; os.path.isdir('output') and os.rmdir('output'); os.symlink('/', 'output')"),
        ("to-etc", "import os; os.path.isdir('output') and os.rmdir('output'); os.symlink('/etc', 'output')"),
        ("fifo", "import os; os.path.isdir('output') and os.rmdir('output'); os.mkfifo('output')"),
    ] {
        let (report, _) = yard.run(python(name, program));
        assert_eq!((report.outcome, report.outputs.len()), (Outcome::Succeeded, 0), "{name}: {report:?}");
    }
    yard.unharmed();
}

#[test]
fn a_container_that_ends_at_once_has_said_everything() {
    let yard = Yard::open("escape-brief");
    let names: Vec<String> = (0..8).map(|i| format!("brief{i}")).collect();
    for name in &names {
        let command = ["sh", "-c", "echo out; echo err >&2"].map(str::to_owned).to_vec();
        yard.scene.submit(Offer { command, ..python(name, "") });
    }
    for name in &names {
        let report = yard.scene.until_complete(name);
        assert_eq!(how(&report), (Outcome::Succeeded, Some(0)), "{name}: {report:?}");
        assert_eq!(yard.scene.stdout(name), "out\n", "{name}");
        assert_eq!(yard.scene.master().read(name, 2, 0, 100).unwrap().bytes, b"err\n", "{name}");
    }
    yard.unharmed();
}

//! Lines that a task had not ended when the worker died: each byte arrives once, in its place.
#![allow(clippy::unwrap_used)]

mod node_util;

use hivemind_worker::node::record::{Outcome, STDOUT};
use node_util::{Scene, gated, how};

/// Prints a part and waits for the next signal, part by part.
fn parts(parts: &[&str]) -> String {
    let mut program = "n = 0\n".to_owned();
    for part in parts {
        program.push_str(&format!(
            "sys.stdout.write({part:?})\nsys.stdout.flush()\nopen(f'/workspace/at{{n}}', 'w')\nn += 1\nsignal.sigwait([signal.SIGUSR1])\n"
        ));
    }
    program
}

/// Until the task has printed part `number` and waits.
fn until_part(scene: &Scene, number: usize) {
    let container = scene.container("lines").unwrap();
    node_util::until_true("the part is printed", || {
        let path = format!("/workspace/at{number}");
        let look = std::process::Command::new("docker").args(["exec", &container, "test", "-e", &path]).status();
        look.unwrap().success()
    });
}

#[test]
fn a_line_that_had_begun_when_the_worker_died_is_whole() {
    let mut scene = Scene::with_master("lines");
    scene.start(&[]);
    scene.submit(gated("lines", &parts(&["one\ntw", "o\nth", "ree\nfo", "ur"])));
    scene.until_up("lines");
    scene.kill_worker();
    scene.go("lines");
    until_part(&scene, 0);
    // The engine's log has the first line now and not the begun one.
    scene.start(&[]);
    scene.until_adopted("lines", 1);
    scene.go("lines");
    until_part(&scene, 1);
    // Again, with a line that had begun while the worker was attached.
    scene.kill_worker();
    scene.go("lines");
    until_part(&scene, 2);
    scene.start(&[]);
    scene.until_adopted("lines", 2);
    scene.go("lines");
    until_part(&scene, 3);
    scene.go("lines");
    let report = scene.until_complete("lines");
    assert_eq!(how(&report), (Outcome::Succeeded, Some(0)), "{report:?}");
    assert_eq!(scene.stdout("lines"), "up\none\ntwo\nthree\nfour");
    let notes = scene.view("lines").notes;
    assert!(notes.iter().all(|note| !note.contains("missing")), "{notes:?}");
    let bytes: u64 = report.streams.iter().filter(|end| end.stream == STDOUT).map(|end| end.bytes).sum();
    assert_eq!(bytes, "up\none\ntwo\nthree\nfour".len() as u64);
    scene.until_clean();
}

#[test]
fn output_that_the_engines_log_does_not_keep_as_it_is_is_told_to_be_missing() {
    let mut scene = Scene::with_master("bytes");
    scene.start(&[]);
    let program = "sys.stdout.buffer.write(b'\\xff\\xfe\\n')\nsys.stdout.flush()\nopen('/workspace/at0', 'w')\n\
        signal.sigwait([signal.SIGUSR1])\nprint('end')\n";
    scene.submit(gated("lines", program));
    scene.until_up("lines");
    scene.kill_worker();
    scene.go("lines");
    until_part(&scene, 0);
    scene.start(&[]);
    scene.until_adopted("lines", 1);
    scene.go("lines");
    let report = scene.until_complete("lines");
    assert_eq!(how(&report), (Outcome::Succeeded, Some(0)), "{report:?}");
    // Two bytes of the log are not the task's: nothing of it is taken for its output.
    assert_eq!(scene.stdout("lines"), "up\nend\n");
    assert!(scene.view("lines").notes.iter().any(|note| note.contains("missing")));
}

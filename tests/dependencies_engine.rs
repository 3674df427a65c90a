//! Files of earlier tasks on the real engine: what a task has put out is kept and is there for the next one of its owner,
//! read-only; what is not kept is fetched, or the attempt is rejected with a word for programs.
#![allow(clippy::unwrap_used)]

mod fetch_util;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use fetch_util::node::Node;
use fetch_util::{Server, sha256};
use hivemind_worker::node::offer::{Offer, OfferedFile};
use hivemind_worker::node::record::{FinalReport, Outcome};
use hivemind_worker::sys::text::hex;

const NOT_HERE: &str = "dependency_not_here";

/// Prints each file below the folder with its mode and owner, then tries all that would change something.
const LOOK: &str = "
import os, pathlib
root = pathlib.Path(os.environ['HIVEMIND_DEPENDENCIES'])
for path in sorted(root.rglob('*')):
    if path.is_file():
        print(path, oct(path.stat().st_mode & 0o7777), path.stat().st_uid, repr(path.read_bytes()[:40]))
def denied(what, change):
    try:
        change()
        print('could', what)
    except OSError as error:
        assert error.errno in (1, 13, 30), error
some = next(path for path in root.rglob('*') if path.is_file())
denied('write', lambda: some.write_bytes(b'x'))
denied('append', lambda: open(some, 'ab').close())
denied('remove', some.unlink)
denied('chmod', lambda: some.chmod(0o777))
denied('make', lambda: (some.parent / 'new').write_bytes(b'x'))
denied('make at the root', lambda: (root / 'new').mkdir())
denied('rename', lambda: root.rename('/hivemind/other'))
";

fn python(task: &str, program: &str) -> Offer {
    Offer {
        task: task.to_owned(),
        attempt: 1,
        owner: "ada".to_owned(),
        command: ["python3", "-c", program].map(str::to_owned).to_vec(),
        ..Offer::default()
    }
}

fn file(task: &str, path: &str, content: &[u8]) -> OfferedFile {
    OfferedFile {
        task: task.to_owned(),
        attempt: 1,
        owner: "ada".to_owned(),
        path: path.to_owned(),
        sha256: sha256(content).to_vec(),
        size: i64::try_from(content.len()).unwrap(),
        url: String::new(),
    }
}

fn looks(task: &str, dependencies: Vec<OfferedFile>) -> Offer {
    Offer { dependencies, ..python(task, LOOK) }
}

fn said(report: &FinalReport) -> String {
    assert_eq!((report.outcome, report.exit_code), (Outcome::Succeeded, Some(0)), "{report:?}");
    String::from_utf8(report.tail.clone()).unwrap()
}

fn assert_not_here(report: &FinalReport, outcome: Outcome, why: &str) {
    assert_eq!((report.outcome, report.code.as_str()), (outcome, NOT_HERE), "{report:?}");
    assert!(report.reason.contains(why), "{report:?}");
}

#[test]
fn what_a_task_has_put_out_is_there_for_the_next_one_of_its_owner() {
    let server = Server::start(|request, out| request.answer(out, "404 Not Found", "", b""));
    let node = Node::new("kept", server.fetcher("data.test"));
    let make = "import os\nos.makedirs('output/a/b')\nopen('output/a/b/deep', 'w').write('deep\\n')\n\
        open('output/top', 'w').write('top\\n')\nopen('output/empty', 'w')\n";
    assert_eq!(node.run(&python("makes", make)).outcome, Outcome::Succeeded);
    let fail = "open('output/bad', 'w').write('bad\\n')\nraise SystemExit(3)";
    let fails = node.run(&python("fails", fail));
    assert_eq!((fails.outcome, fails.outputs.len()), (Outcome::Failed, 1), "{fails:?}");

    let all = || {
        vec![
            file("makes", "output/a/b/deep", b"deep\n"),
            file("makes", "output/top", b"top\n"),
            file("makes", "output/empty", b""),
        ]
    };
    let text = said(&node.run(&looks("reads", all())));
    let place = "/hivemind/dependencies/makes/output";
    assert_eq!(
        text,
        format!("{place}/a/b/deep 0o444 0 b'deep\\n'\n{place}/empty 0o444 0 b''\n{place}/top 0o444 0 b'top\\n'\n")
    );
    // Not for another owner, not of a task that failed, not with other content.
    let eve = |mut offer: Offer| {
        offer.owner = "eve".to_owned();
        offer.dependencies.iter_mut().for_each(|file| file.owner = "eve".to_owned());
        offer
    };
    for offer in [
        eve(looks("eve", all())),
        looks("of-failed", vec![file("fails", "output/bad", b"bad\n")]),
        looks("other", vec![file("makes", "output/top", b"TOP\n")]),
    ] {
        assert_not_here(&node.run(&offer), Outcome::Rejected, "is not kept on this node");
    }
    // One that has rotted on the disk is as good as none, and goes.
    let path = node.dir.join("kept/ada").join(hex(&sha256(b"top\n")));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    fs::write(&path, b"tOp\n").unwrap();
    assert_not_here(&node.run(&looks("rotten", all())), Outcome::Rejected, "output/top of makes#1");
    assert!(!path.exists());
    assert_eq!(server.connections(), 0);
    assert_eq!(node.left_overs(), 0);
}

#[test]
fn what_is_not_kept_is_fetched_once_and_what_can_not_be_is_said() {
    let server = Server::start(|request, out| match request.path.as_str() {
        "/good" => request.answer(out, "200 OK", "", b"from afar\n"),
        "/busy" => request.answer(out, "503 Busy", "", b""),
        "/wrong" => request.answer(out, "200 OK", "", b"from a far"),
        "/inside" => request.answer(out, "302 Found", "Location: https://meta.test/latest\r\n", b""),
        _ => request.answer(out, "404 Not Found", "", b""),
    });
    let node = Node::new("fetched", server.fetcher("data.test"));
    let at = |path: &str| OfferedFile { url: server.url(path), ..file("afar", "output/x", b"from afar\n") };
    for task in ["first", "second"] {
        let text = said(&node.run(&looks(task, vec![at("/good")])));
        assert_eq!(text, "/hivemind/dependencies/afar/output/x 0o444 0 b'from afar\\n'\n");
    }
    assert_eq!(server.connections(), 1, "the second has the kept copy");
    let kept = node.dir.join("kept/ada").join(hex(&sha256(b"from afar\n")));
    fs::remove_file(kept).unwrap();
    let private = OfferedFile { url: "https://private.test/x".to_owned(), ..at("/good") };
    for (task, file, outcome, why) in [
        ("none", at("/none"), Outcome::Rejected, "HTTP status 404"),
        ("wrong", at("/wrong"), Outcome::Rejected, "has the SHA-256"),
        ("inside", at("/inside"), Outcome::Rejected, "link-local, or a cloud's metadata"),
        ("private", private, Outcome::Rejected, "which is this machine"),
        ("busy", at("/busy"), Outcome::NodeFault, "HTTP status 503, at the last of 3 tries"),
    ] {
        assert_not_here(&node.run(&looks(task, vec![file])), outcome, why);
    }
    assert_eq!(node.left_overs(), 0);
    let halves = fs::read_dir(node.dir.join("kept")).unwrap().filter(|entry| entry.as_ref().unwrap().path().is_file());
    assert_eq!(halves.count(), 0);
}

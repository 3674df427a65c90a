//! Assignments that the master has signed, and those of somebody else in its place.
#![allow(clippy::unwrap_used)]

mod node_util;

use std::fs;

use hivemind_worker::node::record::Outcome;
use hivemind_worker::sys::text::hex;
use rustix::process::Signal;

use node_util::{Scene, how, python};

fn until_refused_for_its_signature(scene: &Scene, task: &str) {
    let view = scene.until_view(task, "it is refused", |view| view.outcome == Some(Outcome::Rejected));
    let reason = view.final_report.unwrap().reason;
    assert!(reason.starts_with("signature: signature is not the master's"), "{reason}");
}

#[test]
fn another_master_in_the_masters_place_is_given_nothing_until_the_owner_says_so() {
    let mut scene = Scene::with_master("impostor");
    scene.start(&[]);
    scene.submit(python("first", "print('up')\n"));
    assert_eq!(how(&scene.until_complete("first")), (Outcome::Succeeded, Some(0)));
    scene.stop_master();
    fs::remove_dir_all(scene.dir.join("master")).unwrap();
    scene.start_master();
    scene.submit(python("second", "print('up')\n"));
    until_refused_for_its_signature(&scene, "second");
    let status = scene.until_status("the owner is told", |status| status.alerts.len() >= 2);
    let has = |words: &str| status.alerts.iter().any(|alert| alert.contains(words));
    assert!(has("refused an assignment: its signature is not the master's"), "{:?}", status.alerts);
    assert!(has("master.pin and restart"), "{:?}", status.alerts);
    assert!(scene.containers_ever("second").is_empty());
    // The owner's word.
    scene.signal(Signal::TERM);
    scene.until_exit();
    fs::remove_file(scene.dir.join("state/master.pin")).unwrap();
    scene.start(&[]);
    scene.submit(python("third", "print('up')\n"));
    assert_eq!(how(&scene.until_complete("third")), (Outcome::Succeeded, Some(0)));
}

#[test]
fn a_key_that_the_owner_names_is_the_only_one() {
    let mut scene = Scene::with_master("named-key");
    scene.env.push(("MASTER_SIGNING_KEY".to_owned(), "07".repeat(32)));
    scene.start(&[]);
    scene.submit(python("refused", "print('up')\n"));
    until_refused_for_its_signature(&scene, "refused");
    scene.until_status("the owner is told", |status| {
        status.alerts.iter().any(|alert| alert.contains("change MASTER_SIGNING_KEY"))
    });
    scene.signal(Signal::TERM);
    scene.until_exit();
    scene.set_env("MASTER_SIGNING_KEY", &hex(&scene.signing_key()));
    scene.start(&[]);
    scene.submit(python("taken", "print('up')\n"));
    assert_eq!(how(&scene.until_complete("taken")), (Outcome::Succeeded, Some(0)));
    assert!(!scene.dir.join("state/master.pin").exists(), "the owner's word needs no pin");
}

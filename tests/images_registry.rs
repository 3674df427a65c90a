//! Images of tasks from a real registry on loopback: Debian's docker-registry, the real engine and a real worker.
#![allow(clippy::unwrap_used)]

mod node_util;
mod registry_util;

use hivemind_worker::docker::Docker;
use hivemind_worker::node::offer::Offer;
use hivemind_worker::node::record::Outcome;
use node_util::{Scene, how};
use registry_util::real::{Door, RealRegistry};
use registry_util::{Content, Registry, digest, reply, whole};
use rustix::process::Signal;

/// Images that go with the test, however that ends.
struct Pulled(Docker, Vec<String>);

impl Pulled {
    fn of(scene: &Scene, contents: &[&Content]) -> Self {
        let ids = contents.iter().map(|content| digest(&content.config)).collect();
        Self(scene.docker.clone(), ids)
    }
}

impl Drop for Pulled {
    fn drop(&mut self) {
        for id in &self.1 {
            let _ = self.0.remove_image(id);
        }
    }
}

/// By the node's own pull policy: a tag is always pulled.
fn task(name: &str, image: &str) -> Offer {
    Offer {
        image: image.to_owned(),
        pull: String::new(),
        command: ["/bin/busybox", "tail", "-c", "20", "/bin/busybox"].map(str::to_owned).to_vec(),
        ..node_util::python(name, "")
    }
}

#[test]
fn a_tag_that_moves_changes_nothing_for_an_attempt_that_has_begun() {
    let registry = RealRegistry::start(Door::Open);
    let (old, new) = (Content::busybox("amd64", "content old"), Content::busybox("amd64", "content new"));
    let mut scene = Scene::with_master("moved-tag");
    let _pulled = Pulled::of(&scene, &[&old, &new]);
    let old_digest = registry.push("moves", "1", &old);
    // The container is made and not started: nothing keeps the next start of the worker from making another one.
    scene.set_env("HIVEMIND_FAIL_AT", "K6");
    scene.start(&[]);
    scene.submit(task("first", &registry.at("moves:1")));
    scene.until_exit();
    let made = scene.container("first").unwrap();
    let new_digest = registry.push("moves", "1", &new);
    // A pull by somebody else moves the tag at the engine, too.
    scene.docker.pull_image(&registry.at("moves:1"), None, node_util::PATIENCE, &mut |_| {}).unwrap();
    // What an owner cleans up, the attempt still knows.
    scene.docker.remove_container(&made).unwrap();
    scene.docker.remove_image(&digest(&old.config)).unwrap();
    scene.set_env("HIVEMIND_FAIL_AT", "");
    scene.start(&[]);
    let first = scene.until_complete("first");
    assert_eq!(how(&first), (Outcome::Succeeded, Some(0)), "{first:?}");
    assert!(scene.stdout("first").contains("old"), "{}", scene.stdout("first"));
    assert_eq!(first.image_digest, format!("{}@{old_digest}", registry.at("moves")));
    // Another attempt looks again.
    scene.submit(task("second", &registry.at("moves:1")));
    let second = scene.until_complete("second");
    assert!(scene.stdout("second").contains("new"), "{}", scene.stdout("second"));
    assert_eq!(second.image_digest, format!("{}@{new_digest}", registry.at("moves")));
    // And one that names the digest gets that, whatever stands beside it.
    scene.submit(task("third", &format!("{}@{old_digest}", registry.at("moves:1"))));
    let third = scene.until_complete("third");
    assert!(scene.stdout("third").contains("old"), "{}", scene.stdout("third"));
    assert_eq!(third.image_digest, first.image_digest);
    scene.until_clean();
}

#[test]
fn what_is_not_there_or_not_for_this_machine_is_rejected_in_words() {
    let registry = RealRegistry::start(Door::Open);
    let arm = Content::busybox("arm64", "for arm");
    let mut scene = Scene::with_master("no-image");
    let _pulled = Pulled::of(&scene, &[&arm]);
    let digest_here = registry.push("arm", "1", &arm);
    registry.push_list("arm", "list", "arm64", &arm);
    scene.start(&["--slots", "4"]);
    let absent = format!("{}@sha256:{}", registry.at("arm"), "0f".repeat(32));
    let cases = [
        (
            "one",
            registry.at("arm:1"),
            "is for arm64, this node is amd64; build for linux/amd64 or a multi-platform image",
        ),
        (
            "list",
            registry.at("arm:list"),
            "has nothing for linux/amd64, which this node is; build for linux/amd64 or a multi-platform image",
        ),
    ];
    for (name, image, words) in &cases {
        scene.submit(task(name, image));
        let report = scene.until_complete(name);
        assert_eq!((report.outcome, report.reason), (Outcome::Rejected, format!("image {image} {words}")));
    }
    // What was looked up is told, though nothing ran.
    assert_eq!(scene.checked_report("one").image_digest, format!("{}@{digest_here}", registry.at("arm")));
    for (name, image) in [("tag", registry.at("arm:none")), ("digest", absent), ("name", registry.at("none:1"))] {
        scene.submit(task(name, &image));
        let report = scene.until_complete(name);
        assert_eq!(report.outcome, Outcome::Rejected, "{report:?}");
        assert!(report.reason.contains("manifest unknown"), "{report:?}");
        assert!(scene.containers_ever(name).is_empty());
    }
    scene.until_clean();
}

#[test]
fn a_registry_that_stalls_is_given_up_and_asked_again_by_the_next_attempt() {
    let registry = RealRegistry::start(Door::Open);
    let content = Content::busybox("amd64", "stalls");
    let mut scene = Scene::with_master("stalls");
    let _pulled = Pulled::of(&scene, &[&content]);
    registry.push("stalls", "1", &content);
    scene.set_env("HIVEMIND_PULL_LIMIT", "2s");
    scene.start(&[]);
    registry.signal(Signal::STOP);
    scene.submit(task("stalls", &registry.at("stalls:1")));
    let report = scene.until_complete("stalls");
    assert_eq!(report.outcome, Outcome::NodeFault, "{report:?}");
    assert!(report.reason.contains("it stood still for 2 s (HIVEMIND_PULL_LIMIT); tried 3 times"), "{report:?}");
    registry.signal(Signal::CONT);
    scene.submit(task("goes", &registry.at("stalls:1")));
    assert_eq!(how(&scene.until_complete("goes")), (Outcome::Succeeded, Some(0)));
    scene.until_clean();
}

#[test]
fn a_registry_that_answers_with_another_content_than_the_digests_is_refused() {
    let content = Content::busybox("amd64", "lies");
    let wanted = format!("sha256:{}", "0f".repeat(32));
    let registry = Registry::serve_with(content, whole, {
        let wanted = wanted.clone();
        move |path, content, stream| {
            let is_it = path.ends_with(&wanted);
            if is_it {
                let kind = format!("{}\r\nDocker-Content-Digest: {wanted}", registry_util::MANIFEST);
                reply(stream, "200 OK", &kind, &content.manifest);
            }
            is_it
        }
    });
    let mut scene = Scene::with_master("lying-registry");
    let _pulled = Pulled::of(&scene, &[&registry.content]);
    scene.start(&[]);
    scene.submit(task("t", &format!("{}@{wanted}", registry.name())));
    let report = scene.until_complete("t");
    assert_eq!(report.outcome, Outcome::Rejected, "{report:?}");
    assert!(report.reason.contains("manifest verification failed"), "{report:?}");
    assert_eq!(registry.layer_requests(), 0);
    scene.until_clean();
}

#[test]
fn an_image_that_the_owner_does_not_allow_is_refused_before_anything_happens() {
    let registry = RealRegistry::start(Door::Open);
    let content = Content::busybox("amd64", "allowed");
    let mut scene = Scene::with_master("allowed-images");
    let _pulled = Pulled::of(&scene, &[&content]);
    registry.push("acme/tool", "1", &content);
    scene.set_env("HIVEMIND_TASK_IMAGES", &format!("{}/acme/**", registry.host));
    scene.start(&[]);
    scene.submit(task("other", &registry.at("other/tool:1")));
    let view = scene.until_view("other", "it is refused", |view| view.outcome.is_some());
    let words = format!(
        "image is {}, which no pattern in HIVEMIND_TASK_IMAGES of this node (environment variable HIVEMIND_TASK_IMAGES) allows",
        registry.at("other/tool:1")
    );
    assert_eq!(view.outcome, Some(Outcome::Rejected));
    assert!(view.final_report.as_ref().unwrap().reason.ends_with(&words), "{view:?}");
    scene.submit(task("acme", &registry.at("acme/tool:1")));
    assert_eq!(how(&scene.until_complete("acme")), (Outcome::Succeeded, Some(0)));
    scene.submit(node_util::python("base", "print('base')"));
    assert_eq!(how(&scene.until_complete("base")), (Outcome::Succeeded, Some(0)));
    assert!(scene.containers_ever("other").is_empty());
    scene.until_clean();
}

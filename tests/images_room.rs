//! Room on the engine's disk: of images, only those that this node has pulled itself are ever removed.
#![allow(clippy::unwrap_used)]

mod node_util;
mod registry_util;

use std::sync::Arc;

use hivemind_worker::docker::DockerHost;
use hivemind_worker::node::leftover::LeftOver;
use hivemind_worker::node::offer::Offer;
use hivemind_worker::node::record::Outcome;
use node_util::own_engine::{IMAGE, OwnEngine};
use node_util::{PATIENCE, Scene, how};
use registry_util::{Content, Registry, digest, whole};

fn task(name: &str, registry: &Registry, command: &[&str]) -> Offer {
    Offer {
        image: format!("{}:1", registry.name()),
        pull: "if-missing".to_owned(),
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        ..node_util::python(name, "")
    }
}

/// The images among what a collection says, each without a word of trouble.
fn images(scene: &Scene, args: &[&str]) -> Vec<String> {
    let output = scene.run(&[&["gc", "--json"], args].concat());
    assert!(output.status.success(), "{output:?}");
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let found: Vec<LeftOver> = serde_json::from_value(said["left_over"].clone()).unwrap();
    let found = found.into_iter().filter(|thing| thing.kind == "image");
    found
        .map(|image| {
            assert!(image.trouble.is_none() && image.reason.contains("the engine's disk has"), "{image:?}");
            image.name
        })
        .collect()
}

#[test]
fn when_the_disk_runs_low_only_what_this_node_has_pulled_and_nobody_uses_is_removed() {
    // Less than what is called low, and more than what must stay free.
    let engine = OwnEngine::start_on_small_disk("room", 400);
    let serve = |text: &str| Registry::serve_at(engine.listen(), Content::busybox("amd64", text), None, whole);
    let [pulled, owners, used]: [Arc<Registry>; 3] = ["pulled", "owners", "used"].map(serve);
    let mut scene = Scene::with_engine("room", DockerHost::parse(&engine.host()).unwrap());
    let docker = scene.docker.clone();
    let has = |registry: &Registry| docker.inspect_image(&digest(&registry.content.config)).is_ok();
    let name = |registry: &Registry| format!("{}:1", registry.name());
    docker.pull_image(&name(&owners), None, PATIENCE, &mut |_| {}).unwrap();
    scene.start_master();
    scene.set_env("DOCKER_HOST", &engine.host());
    scene.start(&["--slots", "2"]);
    let echo = ["/bin/busybox", "echo", "up"];
    scene.submit(task("pulled", &pulled, &echo));
    assert_eq!(how(&scene.until_complete("pulled")), (Outcome::Succeeded, Some(0)));
    scene.until_clean();
    assert_eq!(images(&scene, &["--dry-run"]), [name(&pulled)]);
    assert!(has(&pulled), "it was only told");

    // The next start knows it, too.
    scene.kill_worker();
    scene.start(&["--slots", "2"]);
    scene.until_ready();
    scene.submit(Offer { pull: "always".to_owned(), ..task("owners", &owners, &echo) });
    assert_eq!(how(&scene.until_complete("owners")), (Outcome::Succeeded, Some(0)));
    scene.submit(Offer { image: IMAGE.to_owned(), pull: "never".to_owned(), ..task("imported", &owners, &echo) });
    assert_eq!(how(&scene.until_complete("imported")), (Outcome::Succeeded, Some(0)));
    scene.until_clean();
    // The owner's own pull of something else comes between: the next pull makes room for itself.
    scene.submit(task("used", &used, &["/bin/busybox", "sh", "-c", "echo up; exec sleep 600"]));
    scene.until_up("used");
    assert!(!has(&pulled) && has(&owners) && has(&used));
    assert!(scene.log().contains(&format!("removed the left-over image {}", name(&pulled))));

    assert_eq!(images(&scene, &[]), Vec::<String>::new(), "an attempt holds the one, the others are not ours");
    scene.master().cancel("used").unwrap();
    assert_eq!(scene.until_complete("used").outcome, Outcome::Cancelled);
    scene.until_clean();
    // A name of the owner's keeps it.
    let tag = |args: &[&str]| {
        let output = std::process::Command::new("docker").args(["--host", &engine.host()]).args(args).output();
        assert!(output.unwrap().status.success());
    };
    tag(&["tag", &name(&used), "mine:1"]);
    assert_eq!(images(&scene, &[]), Vec::<String>::new());
    tag(&["rmi", "mine:1"]);
    assert_eq!(images(&scene, &[]), [name(&used)]);
    assert!(!has(&used) && has(&owners) && docker.inspect_image(IMAGE).is_ok());
    scene.until_clean();
}

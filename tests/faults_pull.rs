//! Row 31 of the fault matrix: a registry that stands still or dribbles, and an engine whose disk is full.
#![allow(clippy::unwrap_used)]

mod node_util;
mod registry_util;

use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use hivemind_worker::docker::{Docker, DockerHost};
use hivemind_worker::node::offer::Offer;
use hivemind_worker::node::record::Outcome;
use hivemind_worker::node::snapshot::Snapshot;
use node_util::own_engine::{IMAGE, OwnEngine};
use node_util::{Scene, how};
use registry_util::{Content, Registry};

/// What the layer is sent as a whole: more than any limit lets pass at once.
const LAYER_BYTES: usize = 8 << 20;

/// An image with a static busybox. What follows a program's own bytes, the system does not look at.
fn busybox(text: &str) -> Content {
    let mut program = fs::read("/bin/busybox").expect("this test needs a static busybox at /bin/busybox");
    // The engine keeps layers by digest: each run has its own.
    program.extend(format!("{text} {}", std::process::id()).bytes());
    program.resize(LAYER_BYTES, 0);
    Content::with_file("bin/busybox", 0o755, &program)
}

/// An image that goes with the test, however that ends.
struct Pulled(Docker, String);

impl Drop for Pulled {
    fn drop(&mut self) {
        let _ = self.0.remove_image(&self.1);
    }
}

fn task(name: &str, image: String) -> Offer {
    Offer {
        image,
        pull: "if-missing".to_owned(),
        command: ["/bin/busybox", "echo", "up"].map(str::to_owned).to_vec(),
        ..node_util::python(name, "")
    }
}

/// The head of an answer that has the layer, or so much of it as will come.
fn begin(length: usize, stream: &mut TcpStream) {
    let _ = stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").as_bytes());
}

/// The engine has gone.
fn until_closed(stream: &mut TcpStream) {
    let _ = std::io::copy(stream, &mut std::io::sink());
}

/// Sends so much of the layer, and so much again after each pause: this is how fast the registry is.
fn trickle(layer: &[u8], piece: usize, pause: Duration, stream: &mut TcpStream) {
    begin(layer.len(), stream);
    for piece in layer.chunks(piece) {
        if stream.write_all(piece).is_err() {
            return;
        }
        thread::sleep(pause);
    }
}

fn detail_of(status: &Snapshot, task: &str) -> String {
    let held = status.attempts.iter().find(|held| held.key.task.as_str() == task);
    held.map(|held| held.detail.clone()).unwrap_or_default()
}

#[test]
fn row_31_slow_registry_is_waited_for_and_one_that_stands_still_is_not() {
    let stands = Registry::serve(busybox("stands"), None, |layer, stream| {
        begin(layer.len(), stream);
        until_closed(stream);
    });
    // The engine tells each percent of these: there is no pause in its words.
    let dribbles = Registry::serve(Content::new(&"dribble".repeat(1_000)), None, |layer, stream| {
        trickle(layer, 8, Duration::from_millis(20), stream);
    });
    let moves = Registry::serve(busybox("moves"), None, |layer, stream| {
        trickle(layer, LAYER_BYTES / 64, Duration::from_millis(70), stream);
    });
    let mut scene = Scene::with_master("slow-pull");
    let _pulled = Pulled(scene.docker.clone(), format!("{}:1", moves.name()));
    // What moves takes 64 x 70 ms at least, longer than the limit, and comes forward by 4 MiB in each.
    scene.env.push(("HIVEMIND_PULL_LIMIT".to_owned(), "2s".to_owned()));
    scene.start(&["--slots", "3"]);
    let registries: [(&str, &Arc<Registry>); 3] = [("stands", &stands), ("dribbles", &dribbles), ("moves", &moves)];
    for (name, registry) in registries {
        scene.submit(task(name, format!("{}:1", registry.name())));
    }
    scene.until_status("it is told how far the pull is", |status| {
        let detail = detail_of(status, "moves");
        detail.contains("Downloading") && detail.ends_with(&format!(" of {} bytes", moves.content.layer.len()))
    });
    assert_eq!(how(&scene.until_complete("moves")), (Outcome::Succeeded, Some(0)));
    assert_eq!(moves.layer_requests(), 1);
    for (name, registry) in [("stands", &stands), ("dribbles", &dribbles)] {
        let report = scene.until_complete(name);
        assert_eq!(report.outcome, Outcome::NodeFault, "{report:?}");
        let words =
            format!("pull image {}:1: it stood still for 2 s (HIVEMIND_PULL_LIMIT); tried 3 times", registry.name());
        assert_eq!(report.reason, words);
        assert_eq!(registry.layer_requests(), 3, "{name}");
        assert!(scene.containers_ever(name).is_empty());
    }
    scene.until_clean();
}

#[test]
fn row_31_pull_onto_a_full_disk_of_the_engine_ends_in_words_and_the_node_works_on() {
    // A little above what must stay free, and the image comes as fast as the engine writes: whether it is broken off at
    // the floor or runs into the end of the disk is a race.
    let engine = OwnEngine::start_on_small_disk("small", 300);
    let free = engine.free_bytes();
    let registry = Registry::serve_at(engine.listen(), Content::new("large"), None, |_, stream| {
        begin(1 << 30, stream);
        let zeros = vec![0; 1 << 20];
        while stream.write_all(&zeros).is_ok() {}
    });
    let mut scene = Scene::with_engine("small", DockerHost::parse(&engine.host()).unwrap());
    scene.start_master();
    scene.env.push(("DOCKER_HOST".to_owned(), engine.host()));
    scene.start(&[]);
    scene.submit(task("t", format!("{}:1", registry.name())));
    let report = scene.until_complete("t");
    assert_eq!(report.outcome, Outcome::NodeFault, "{report:?}");
    let words = ["no space left on device", "must stay free"];
    assert!(words.iter().any(|words| report.reason.contains(words)), "{report:?}");
    assert!((1..=3).contains(&registry.layer_requests()), "{}", registry.layer_requests());
    // The engine has cleaned up behind itself.
    node_util::until_true("the disk has room again", || engine.free_bytes() > free - (8 << 20));
    scene.submit(Offer { image: IMAGE.to_owned(), ..task("next", String::new()) });
    assert_eq!(how(&scene.until_complete("next")), (Outcome::Succeeded, Some(0)));
    scene.until_clean();
}

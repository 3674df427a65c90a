//! Pulls that several attempts want, and a pull that the engine's disk has no room for.
#![allow(clippy::unwrap_used)]

mod node_util;
mod registry_util;

use std::io::Write;
use std::sync::{Mutex, mpsc};
use std::time::Duration;

use hivemind_worker::docker::{Docker, DockerHost};
use hivemind_worker::node::offer::Offer;
use hivemind_worker::node::record::Outcome;
use hivemind_worker::node::snapshot::Snapshot;
use node_util::own_engine::{IMAGE, OwnEngine};
use node_util::{PATIENCE, Scene, how};
use registry_util::{Content, Registry, digest};

/// An image that goes with the test, however that ends.
struct Pulled(Docker, String);

impl Drop for Pulled {
    fn drop(&mut self) {
        let _ = self.0.remove_image(&self.1);
    }
}

fn task(name: &str, image: &str) -> Offer {
    Offer {
        image: image.to_owned(),
        pull: "always".to_owned(),
        command: ["/bin/busybox", "echo", "up"].map(str::to_owned).to_vec(),
        ..node_util::python(name, "")
    }
}

fn is_downloading(status: &Snapshot, task: &str) -> bool {
    let held = status.attempts.iter().find(|held| held.key.task.as_str() == task);
    held.is_some_and(|held| held.detail.contains("Downloading"))
}

/// The engine asks once for each pull what the tag means, whatever it has already.
fn manifest_requests(registry: &Registry) -> usize {
    let seen = registry.seen.lock().unwrap();
    seen.iter().filter(|head| head.starts_with("HEAD") && head.contains("/manifests/1 ")).count()
}

#[test]
fn attempts_that_want_the_same_image_share_one_pull_and_the_last_cancellation_ends_it() {
    // The layer comes a little at a time, until the test lets the rest come or the engine goes.
    let (go, gate) = mpsc::channel::<()>();
    let (gone, has_gone) = mpsc::channel();
    let (gate, gone) = (Mutex::new(gate), Mutex::new(gone));
    let mut program = std::fs::read("/bin/busybox").expect("this test needs a static busybox at /bin/busybox");
    program.extend(format!("shared {}", std::process::id()).bytes());
    program.resize(8 << 20, 0);
    let content = Content::with_file("bin/busybox", 0o755, &program);
    let registry = Registry::serve(content, None, move |layer, stream| {
        let _ = stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", layer.len()).as_bytes());
        let mut sent = 0;
        for piece in layer.chunks(2 << 10) {
            // This is how fast the registry is.
            if gate.lock().unwrap().recv_timeout(Duration::from_millis(20)).is_ok() {
                let _ = stream.write_all(&layer[sent..]);
                return;
            }
            if stream.write_all(piece).is_err() {
                return gone.lock().unwrap().send(()).unwrap();
            }
            sent += piece.len();
        }
    });
    let image = format!("{}:1", registry.name());
    let mut scene = Scene::with_master("shared-pull");
    let _pulled = Pulled(scene.docker.clone(), digest(&registry.content.config));
    scene.start(&["--slots", "4"]);

    // All cancelled: the registry sees the engine go.
    for name in ["a1", "a2"] {
        scene.submit(task(name, &image));
    }
    for name in ["a1", "a2"] {
        scene.until_status("it is told how far the pull is", |status| is_downloading(status, name));
    }
    assert_eq!(manifest_requests(&registry), 1);
    for name in ["a1", "a2"] {
        assert!(has_gone.try_recv().is_err());
        scene.master().cancel(name).unwrap();
        let report = scene.until_complete(name);
        assert_eq!(report.outcome, Outcome::Cancelled, "{report:?}");
    }
    has_gone.recv_timeout(PATIENCE).expect("the engine goes on pulling for nobody");

    // One cancelled: the others go on, on the same pull.
    for name in ["b1", "b2", "b3"] {
        scene.submit(task(name, &image));
    }
    for name in ["b1", "b2", "b3"] {
        scene.until_status("it is told how far the pull is", |status| is_downloading(status, name));
    }
    scene.master().cancel("b1").unwrap();
    assert_eq!(scene.until_complete("b1").outcome, Outcome::Cancelled);
    go.send(()).unwrap();
    let reports = ["b2", "b3"].map(|name| scene.until_complete(name));
    for report in &reports {
        assert_eq!(how(report), (Outcome::Succeeded, Some(0)), "{report:?}");
        assert!(report.image_digest.ends_with(&digest(&registry.content.manifest)), "{report:?}");
    }
    assert_eq!(manifest_requests(&registry), 2);
    scene.until_clean();
}

#[test]
fn a_pull_that_would_fill_the_engines_disk_is_broken_off() {
    // 256 MiB must stay free.
    let engine = OwnEngine::start_on_small_disk("floor", 330);
    let free = engine.free_bytes();
    let registry = Registry::serve_at(engine.listen(), Content::new("floor"), None, |_, stream| {
        let _ = stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 1 << 30).as_bytes());
        // Enough to come under the floor, and far from a full disk. Then the engine is to go.
        let zeros = vec![0; 1 << 20];
        for _ in 0..100 {
            let _ = stream.write_all(&zeros);
        }
        let _ = std::io::copy(stream, &mut std::io::sink());
    });
    let mut scene = Scene::with_engine("floor", DockerHost::parse(&engine.host()).unwrap());
    scene.start_master();
    scene.set_env("DOCKER_HOST", &engine.host());
    scene.start(&[]);
    scene.submit(task("t", &format!("{}:1", registry.name())));
    let report = scene.until_complete("t");
    assert_eq!(report.outcome, Outcome::NodeFault, "{report:?}");
    let words = format!("the engine's disk, at {}, has only ", engine.dir.join("data").display());
    assert!(report.reason.contains(&words) && report.reason.ends_with("256 MiB must stay free"), "{report:?}");
    assert_eq!(registry.layer_requests(), 1, "another try would not help");
    node_util::until_true("the engine cleans up behind itself", || engine.free_bytes() > free - (16 << 20));
    scene.submit(Offer { image: IMAGE.to_owned(), pull: "never".to_owned(), ..task("next", "") });
    assert_eq!(how(&scene.until_complete("next")), (Outcome::Succeeded, Some(0)));
    scene.until_clean();
}

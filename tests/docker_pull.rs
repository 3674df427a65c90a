//! Pulling by the real engine from a small registry on loopback, which the engine takes as insecure by default.

#![allow(clippy::unwrap_used, missing_docs)]

mod registry_util;

use std::io::Write;
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use hivemind_worker::docker::{Change, Docker, DockerHost, Error, NodeTimeouts, RegistryAuth, Stop};
use registry_util::{Content, Registry, digest, whole};

const IDLE: Duration = Duration::from_secs(60);

fn engine() -> Docker {
    let host =
        std::env::var("DOCKER_HOST").map_or_else(|_| DockerHost::default(), |text| DockerHost::parse(&text).unwrap());
    let docker = Docker::new(host, NodeTimeouts::default());
    if let Err(error) = docker.ping() {
        panic!("these tests need a running Docker engine: {error}");
    }
    docker
}

#[test]
fn pulls_by_tag_and_by_digest_and_says_how_far_it_is() {
    let docker = engine();
    let registry = Registry::serve(Content::new(&format!("plain {}", std::process::id())), None, whole);
    let name = registry.name();
    let mut lines = Vec::new();
    docker.pull_image(&format!("{name}:1"), None, IDLE, &mut |line| lines.push(line.clone())).unwrap();
    let image = docker.inspect_image(&format!("{name}:1")).unwrap();
    let pinned = format!("{name}@{}", digest(&registry.content.manifest));
    let again = docker.pull_image(&pinned, None, IDLE, &mut |_| {});
    let by_digest = docker.inspect_image(&pinned).map(|image| image.id);
    assert_eq!(docker.remove_image(&image.id).unwrap(), Change::Done);
    assert_eq!(docker.remove_image(&image.id).unwrap(), Change::Already);
    again.unwrap();
    assert_eq!(by_digest.unwrap(), image.id);
    assert_eq!(image.id, digest(&registry.content.config));
    assert_eq!(image.repo_digests, [pinned]);
    assert_eq!((image.config.user.as_str(), image.config.env.as_slice()), ("1000", &["A=b".to_owned()][..]));
    assert!(lines.iter().any(|line| line.status == "Pull complete" && !line.id.is_empty()), "{lines:?}");

    let error = docker.pull_image(&format!("{name}:none"), None, IDLE, &mut |_| {}).unwrap_err();
    // The status depends on engine and registry (404 or 500); the words do not.
    assert!(error.to_string().contains("manifest unknown"), "{error}");
    // Never all tags: without a tag it is latest.
    docker.pull_image(&name, None, IDLE, &mut |_| {}).unwrap_err();
    let seen = registry.seen.lock().unwrap().concat();
    assert!(seen.contains("/manifests/latest ") && !seen.contains("/tags/list"), "{seen}");
}

#[test]
fn credentials_arrive_and_their_lack_is_refused_in_words() {
    let docker = engine();
    // The standard's example: Aladdin, open sesame.
    let registry = Registry::serve(
        Content::new(&format!("secret {}", std::process::id())),
        Some("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="),
        whole,
    );
    let reference = format!("{}:1", registry.name());
    let error = docker.pull_image(&reference, None, IDLE, &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("no basic auth credentials"), "{error}");
    let server_address = registry.name().split('/').next().unwrap().to_owned();
    let mut auth = RegistryAuth {
        username: "Aladdin".into(),
        password: "wrong".into(),
        server_address,
        ..RegistryAuth::default()
    };
    let error = docker.pull_image(&reference, Some(&auth), IDLE, &mut |_| {}).unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error:?}");
    assert!(!format!("{error} {error:?}").contains("wrong"));
    auth.password = "open sesame".into();
    docker.pull_image(&reference, Some(&auth), IDLE, &mut |_| {}).unwrap();
    assert_eq!(docker.remove_image(&reference).unwrap(), Change::Done);
}

#[test]
fn a_stopped_pull_ends_here_and_at_the_registry() {
    let docker = engine();
    let (started, on_start) = mpsc::channel();
    let (gone, on_gone) = mpsc::channel();
    let (started, gone) = (Mutex::new(started), Mutex::new(gone));
    let registry = Registry::serve(Content::new(&"slow ".repeat(100_000)), None, move |layer, stream| {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", layer.len());
        let _ = stream.write_all(head.as_bytes());
        let _ = started.lock().unwrap().send(());
        for byte in layer {
            if stream.write_all(&[*byte]).is_err() {
                break;
            }
            thread::sleep(Duration::from_millis(20));
        }
        let _ = gone.lock().unwrap().send(());
    });
    let stop = Stop::new();
    let (bound, reference) = (docker.with_stop(&stop), format!("{}:1", registry.name()));
    let pulling = thread::spawn(move || bound.pull_image(&reference, None, IDLE, &mut |_| {}));
    on_start.recv_timeout(Duration::from_secs(20)).unwrap();
    let asked = Instant::now();
    stop.stop();
    assert!(pulling.join().unwrap().unwrap_err().is_stopped());
    assert!(asked.elapsed() < Duration::from_secs(2));
    on_gone.recv_timeout(Duration::from_secs(20)).expect("the engine goes on pulling after the stop");
}

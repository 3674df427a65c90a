//! Pulling by the real engine from a small registry on loopback, which the engine takes as insecure by default.

#![allow(clippy::unwrap_used, missing_docs)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use hivemind_worker::docker::{Change, Docker, DockerHost, Error, NodeTimeouts, RegistryAuth, Stop};

const IDLE: Duration = Duration::from_secs(60);
const MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

fn engine() -> Docker {
    let host =
        std::env::var("DOCKER_HOST").map_or_else(|_| DockerHost::default(), |text| DockerHost::parse(&text).unwrap());
    let docker = Docker::new(host, NodeTimeouts::default());
    if let Err(error) = docker.ping() {
        panic!("these tests need a running Docker engine: {error}");
    }
    docker
}

fn digest(bytes: &[u8]) -> String {
    let hash = ring::digest::digest(&ring::digest::SHA256, bytes);
    let hex: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// What the registry has: one image of one layer.
struct Content {
    layer: Vec<u8>,
    config: Vec<u8>,
    manifest: Vec<u8>,
}

impl Content {
    /// The engine keeps layers by digest, so each test makes its own.
    fn new(text: &str) -> Content {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        tar.append_data(&mut header, "file", text.as_bytes()).unwrap();
        let layer = tar.into_inner().unwrap();
        let config = serde_json::json!({
            "architecture": "amd64", "os": "linux", "config": { "User": "1000", "Env": ["A=b"] },
            "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
        });
        let config = config.to_string().into_bytes();
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": {
                "mediaType": "application/vnd.docker.container.image.v1+json",
                "size": config.len(), "digest": digest(&config),
            },
            "layers": [{
                "mediaType": "application/vnd.docker.image.rootfs.diff.tar",
                "size": layer.len(), "digest": digest(&layer),
            }],
        });
        Content { manifest: manifest.to_string().into_bytes(), layer, config }
    }
}

/// Sends the layer, or does something else.
type OnLayer = dyn Fn(&[u8], &mut TcpStream) + Send + Sync;

/// Answers one request; the layer is up to the test.
struct Registry {
    content: Content,
    /// `Basic ...` that is asked for.
    password: Option<&'static str>,
    on_layer: Box<OnLayer>,
    seen: Mutex<Vec<String>>,
    port: AtomicU16,
}

impl Registry {
    fn serve(
        text: &str,
        password: Option<&'static str>,
        on_layer: impl Fn(&[u8], &mut TcpStream) + Send + Sync + 'static,
    ) -> Arc<Registry> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let registry = Arc::new(Registry {
            content: Content::new(text),
            password,
            on_layer: Box::new(on_layer),
            seen: Mutex::default(),
            port: AtomicU16::new(listener.local_addr().unwrap().port()),
        });
        let server = Arc::clone(&registry);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let server = Arc::clone(&server);
                thread::spawn(move || server.answer(stream.unwrap()));
            }
        });
        registry
    }

    fn name(&self) -> String {
        format!("127.0.0.1:{}/hivemind-test-pull", self.port.load(Ordering::Relaxed))
    }

    fn answer(&self, mut stream: TcpStream) {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
            head.push(byte[0]);
            // The engine tries TLS first.
            if head[0] == 0x16 {
                return;
            }
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        self.seen.lock().unwrap().push(head.clone());
        let line = head.lines().next().unwrap_or("");
        let path = line.split(' ').nth(1).unwrap_or("").to_owned();
        if self.password.is_some_and(|password| !head.contains(password)) {
            let body = "{\"errors\":[{\"code\":\"UNAUTHORIZED\",\"message\":\"authentication required\"}]}";
            return reply(
                &mut stream,
                "401 Unauthorized",
                "application/json\r\nWWW-Authenticate: Basic realm=\"test\"",
                body.as_bytes(),
            );
        }
        let content = &self.content;
        if path == "/v2/" {
            reply(&mut stream, "200 OK", "application/json", b"{}");
        } else if path.ends_with("/manifests/1") || path.ends_with(&digest(&content.manifest)) {
            let kind = format!("{MANIFEST}\r\nDocker-Content-Digest: {}", digest(&content.manifest));
            reply(&mut stream, "200 OK", &kind, if line.starts_with("HEAD") { b"" } else { &content.manifest });
        } else if path.ends_with(&digest(&content.config)) {
            reply(&mut stream, "200 OK", "application/octet-stream", &content.config);
        } else if path.ends_with(&digest(&content.layer)) {
            (self.on_layer)(&content.layer, &mut stream);
        } else {
            let body = b"{\"errors\":[{\"code\":\"MANIFEST_UNKNOWN\",\"message\":\"manifest unknown\"}]}";
            reply(&mut stream, "404 Not Found", "application/json", body);
        }
    }
}

fn reply(stream: &mut TcpStream, status: &str, content_type: &str, body: &[u8]) {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n\
         Docker-Distribution-Api-Version: registry/2.0\r\n\r\n"
    );
    let _ = stream.write_all(&[head.as_bytes(), body].concat());
}

fn whole(layer: &[u8], stream: &mut TcpStream) {
    reply(stream, "200 OK", "application/octet-stream", layer);
}

#[test]
fn pulls_by_tag_and_by_digest_and_says_how_far_it_is() {
    let docker = engine();
    let registry = Registry::serve(&format!("plain {}", std::process::id()), None, whole);
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
    let registry =
        Registry::serve(&format!("secret {}", std::process::id()), Some("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="), whole);
    let reference = format!("{}:1", registry.name());
    let error = docker.pull_image(&reference, None, IDLE, &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("no basic auth credentials"), "{error}");
    let server_address = registry.name().split('/').next().unwrap().to_owned();
    let mut auth = RegistryAuth { username: "Aladdin".into(), password: "wrong".into(), server_address };
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
    let registry = Registry::serve(&"slow ".repeat(100_000), None, move |layer, stream| {
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

//! A small registry on loopback, which the engine takes as insecure by default. It has one image of one layer.
#![allow(dead_code, reason = "each test file uses a part")]
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

pub mod real;

/// Of one platform.
pub const MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// As the registry names it.
pub fn digest(bytes: &[u8]) -> String {
    let hash = ring::digest::digest(&ring::digest::SHA256, bytes);
    let hex: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// What the registry has: one image of one layer.
pub struct Content {
    /// The layer's archive.
    pub layer: Vec<u8>,
    /// The image's configuration.
    pub config: Vec<u8>,
    /// Names both.
    pub manifest: Vec<u8>,
}

impl Content {
    /// The engine keeps layers by digest, so each test makes its own.
    pub fn new(text: &str) -> Content {
        Self::with_file("file", 0o644, text.as_bytes())
    }

    /// As [`Self::new`], with this file.
    pub fn with_file(path: &str, mode: u32, bytes: &[u8]) -> Content {
        Self::for_machine("amd64", path, mode, bytes)
    }

    /// A static busybox as `/bin/busybox`, with this text behind it, which the system does not look at.
    pub fn busybox(arch: &str, text: &str) -> Content {
        let mut program = std::fs::read("/bin/busybox").expect("this test needs a static busybox at /bin/busybox");
        program.extend(format!("{text} {}", std::process::id()).bytes());
        Self::for_machine(arch, "bin/busybox", 0o755, &program)
    }

    /// As [`Self::with_file`], for this architecture.
    pub fn for_machine(arch: &str, path: &str, mode: u32, bytes: &[u8]) -> Content {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(mode);
        header.set_cksum();
        tar.append_data(&mut header, path, bytes).unwrap();
        let layer = tar.into_inner().unwrap();
        let config = serde_json::json!({
            "architecture": arch, "os": "linux", "config": { "User": "1000", "Env": ["A=b"] },
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
pub type OnLayer = dyn Fn(&[u8], &mut TcpStream) + Send + Sync;

/// Answers a request for this path itself, or declines.
pub type OnPath = dyn Fn(&str, &Content, &mut TcpStream) -> bool + Send + Sync;

/// Answers one request; the layer is up to the test.
pub struct Registry {
    /// What it has.
    pub content: Content,
    /// `Basic ...` that is asked for.
    password: Option<&'static str>,
    on_layer: Box<OnLayer>,
    on_path: Box<OnPath>,
    /// Heads of the requests so far.
    pub seen: Mutex<Vec<String>>,
    port: AtomicU16,
}

impl Registry {
    /// Serves until the test's process ends.
    pub fn serve(
        content: Content,
        password: Option<&'static str>,
        on_layer: impl Fn(&[u8], &mut TcpStream) + Send + Sync + 'static,
    ) -> Arc<Registry> {
        Self::serve_at(TcpListener::bind("127.0.0.1:0").unwrap(), content, password, on_layer)
    }

    /// As [`Self::serve`], where this listens.
    pub fn serve_at(
        listener: TcpListener,
        content: Content,
        password: Option<&'static str>,
        on_layer: impl Fn(&[u8], &mut TcpStream) + Send + Sync + 'static,
    ) -> Arc<Registry> {
        Self::run(listener, content, password, (Box::new(on_layer), Box::new(|_, _, _| false)))
    }

    /// As [`Self::serve`], where some answers are the test's.
    pub fn serve_with(
        content: Content,
        on_layer: impl Fn(&[u8], &mut TcpStream) + Send + Sync + 'static,
        on_path: impl Fn(&str, &Content, &mut TcpStream) -> bool + Send + Sync + 'static,
    ) -> Arc<Registry> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        Self::run(listener, content, None, (Box::new(on_layer), Box::new(on_path)))
    }

    fn run(
        listener: TcpListener,
        content: Content,
        password: Option<&'static str>,
        (on_layer, on_path): (Box<OnLayer>, Box<OnPath>),
    ) -> Arc<Registry> {
        let registry = Arc::new(Registry {
            content,
            password,
            on_layer,
            on_path,
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

    /// Of the image, without its tag 1.
    pub fn name(&self) -> String {
        format!("127.0.0.1:{}/hivemind-test-pull", self.port.load(Ordering::Relaxed))
    }

    /// How often the engine has asked for the layer.
    pub fn layer_requests(&self) -> usize {
        let layer = digest(&self.content.layer);
        self.seen.lock().unwrap().iter().filter(|head| head.lines().next().unwrap_or("").contains(&layer)).count()
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
        if (self.on_path)(&path, content, &mut stream) {
            return;
        }
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

/// Writes a whole answer.
pub fn reply(stream: &mut TcpStream, status: &str, content_type: &str, body: &[u8]) {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n\
         Docker-Distribution-Api-Version: registry/2.0\r\n\r\n"
    );
    let _ = stream.write_all(&[head.as_bytes(), body].concat());
}

/// Sends the layer.
pub fn whole(layer: &[u8], stream: &mut TcpStream) {
    reply(stream, "200 OK", "application/octet-stream", layer);
}

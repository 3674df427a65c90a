//! Debian's docker-registry on loopback, filled through its own API.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};

use super::{Content, MANIFEST, digest};

const LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// The standard's example of Basic: Aladdin, open sesame.
pub const USER: &str = "Aladdin";
pub const PASSWORD: &str = "open sesame";
/// Both, as the header has them.
pub const BASIC: &str = "QWxhZGRpbjpvcGVuIHNlc2FtZQ==";
/// Of the password, by bcrypt.
const HASH: &str = "$2b$04$AKmVJin1FJ3SfUqZ6HHCe.uUQ.jcSN2idTNkpY4LssbCkhg77UPxW";

/// Whom it lets in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Door {
    Open,
    /// With [`USER`] and [`PASSWORD`] only.
    Locked,
}

/// A running registry; it goes with the test.
pub struct RealRegistry {
    /// `127.0.0.1:PORT`.
    pub host: String,
    door: Door,
    dir: PathBuf,
    child: Child,
}

impl RealRegistry {
    pub fn start(door: Door) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("hivemind-registry-{}-{number}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir(&dir).unwrap();
        let at = |name: &str| dir.join(name).display().to_string();
        let mut config = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}}}\n\
             http: {{addr: '127.0.0.1:0', secret: test}}\n",
            at("data")
        );
        if door == Door::Locked {
            fs::write(at("users"), format!("{USER}:{HASH}\n")).unwrap();
            writeln!(config, "auth: {{htpasswd: {{realm: test, path: {}}}}}", at("users")).unwrap();
        }
        fs::write(at("config.yml"), config).unwrap();
        let mut command = Command::new("docker-registry");
        command.args(["serve", &at("config.yml")]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let child = command.spawn();
        let mut child = child.expect("this test needs docker-registry, the package of that name");
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut said = String::new();
        let host = loop {
            let line = lines.next().unwrap_or_else(|| panic!("the registry ended: {said}")).unwrap();
            if let Some((_, rest)) = line.split_once("listening on ") {
                break rest.split('"').next().unwrap().to_owned();
            }
            said.push_str(&line);
        };
        // Its log must not fill the pipe.
        thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Self { host, door, dir, child }
    }

    /// Sends it a signal, such as STOP: it accepts connections then, and never answers.
    pub fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.child.id()).unwrap();
        kill_process(Pid::from_raw(id).unwrap(), signal).unwrap();
    }

    /// A reference to what is in it.
    pub fn at(&self, name: &str) -> String {
        format!("{}/{name}", self.host)
    }

    /// Puts an image of one platform there; the digest of its manifest.
    pub fn push(&self, name: &str, tag: &str, content: &Content) -> String {
        for blob in [&content.layer, &content.config] {
            let (status, head) = self.ask("POST", &format!("/v2/{name}/blobs/uploads/"), "", b"");
            assert_eq!(status, 202, "{head}");
            let location = head.lines().find_map(|line| line.strip_prefix("Location: ")).unwrap();
            let path = &location[location.find("/v2/").unwrap()..];
            let (status, head) =
                self.ask("PUT", &format!("{path}&digest={}", digest(blob)), "application/octet-stream", blob);
            assert_eq!(status, 201, "{head}");
        }
        self.put_manifest(name, tag, MANIFEST, &content.manifest)
    }

    /// Makes the tag a list of this one manifest, which is there already, for this architecture.
    pub fn push_list(&self, name: &str, tag: &str, arch: &str, content: &Content) -> String {
        let list = serde_json::json!({"schemaVersion": 2, "mediaType": LIST, "manifests": [{
            "mediaType": MANIFEST, "size": content.manifest.len(), "digest": digest(&content.manifest),
            "platform": {"architecture": arch, "os": "linux"},
        }]});
        self.put_manifest(name, tag, LIST, list.to_string().as_bytes())
    }

    fn put_manifest(&self, name: &str, tag: &str, kind: &str, bytes: &[u8]) -> String {
        let (status, head) = self.ask("PUT", &format!("/v2/{name}/manifests/{tag}"), kind, bytes);
        assert_eq!(status, 201, "{head}");
        digest(bytes)
    }

    fn ask(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> (u16, String) {
        let mut head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: {}\r\n",
            self.host,
            body.len()
        );
        if !kind.is_empty() {
            write!(head, "Content-Type: {kind}\r\n").unwrap();
        }
        if self.door == Door::Locked {
            write!(head, "Authorization: Basic {BASIC}\r\n").unwrap();
        }
        let mut stream = TcpStream::connect(&self.host).unwrap();
        stream.write_all(&[head.as_bytes(), b"\r\n", body].concat()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer).replace("\r\n", "\n");
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (status, answer)
    }
}

impl Drop for RealRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

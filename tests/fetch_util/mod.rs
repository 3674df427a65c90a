//! An HTTPS server on loopback with a certificate of its own, and files to fetch into.
#![allow(dead_code, clippy::unwrap_used)]

#[path = "../node_util/namespace.rs"]
pub mod namespace;
pub mod node;

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use hivemind_worker::fetch::{Fetcher, Resolver};
use hivemind_worker::node::guard::{Allowed, Guard};
use hivemind_worker::node::url::Url;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

pub fn url(text: &str) -> Url {
    Url::parse(text).unwrap()
}

pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    ring::digest::digest(&ring::digest::SHA256, bytes).as_ref().try_into().unwrap()
}

/// Names of tests are on loopback, but for one that is where clouds have their metadata.
pub fn resolver() -> Resolver {
    Arc::new(|host| {
        let address = if host == "meta.test" { "169.254.169.254" } else { "127.0.0.1" };
        Ok(vec![address.parse().unwrap()])
    })
}

pub fn fetcher(guard: Guard, ca_file: Option<PathBuf>) -> Fetcher {
    Fetcher::new(guard, ca_file).unwrap().with_resolver(resolver())
}

/// A file that goes with the value.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("hivemind-fetch-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        Self(std::env::temp_dir().join(name))
    }

    pub fn path(&self) -> PathBuf {
        self.0.clone()
    }

    pub fn file(&self) -> File {
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&self.0).unwrap()
    }

    pub fn content(&self) -> Vec<u8> {
        std::fs::read(&self.0).unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A request as the server saw it.
#[derive(Clone)]
pub struct Request {
    pub path: String,
    pub head: String,
    /// From 0, over all of the server's.
    pub number: usize,
    port: u16,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<String> {
        let line = |line: &str| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        };
        self.head.lines().skip(1).find_map(line)
    }

    /// An answer with its length; `{port}` in the headers is the server's.
    pub fn answer(&self, out: &mut dyn Write, status: &str, headers: &str, body: &[u8]) {
        let headers = headers.replace("{port}", &self.port.to_string());
        let head = format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\nConnection: close\r\n\r\n", body.len());
        // The client may have had enough.
        let _ = out.write_all(head.as_bytes()).and_then(|()| out.write_all(body)).and_then(|()| out.flush());
    }
}

type Handler = dyn Fn(&Request, &mut dyn Write) + Send + Sync;

/// Serves `https://data.test:PORT`, each connection on a thread, one request each.
pub struct Server {
    pub port: u16,
    ca: Scratch,
    connections: Arc<AtomicUsize>,
    seen: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    pub fn start(handler: impl Fn(&Request, &mut dyn Write) + Send + Sync + 'static) -> Self {
        let made = rcgen::generate_simple_self_signed(vec!["data.test".to_owned()]).unwrap();
        let ca = Scratch::new();
        ca.file().write_all(made.cert.pem().as_bytes()).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = config.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key).unwrap();
        let (config, handler): (_, Arc<Handler>) = (Arc::new(config), Arc::new(handler));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (connections, seen) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
        let (counter, requests) = (Arc::clone(&connections), Arc::clone(&seen));
        // Ends with the process.
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                counter.fetch_add(1, Ordering::SeqCst);
                let session = ServerConnection::new(Arc::clone(&config)).unwrap();
                let (handler, requests) = (Arc::clone(&handler), Arc::clone(&requests));
                std::thread::spawn(move || serve(StreamOwned::new(session, stream), port, &*handler, &requests));
            }
        });
        Self { port, ca, connections, seen }
    }

    pub fn url(&self, path: &str) -> String {
        format!("https://data.test:{}{path}", self.port)
    }

    pub fn ca_file(&self) -> PathBuf {
        self.ca.path()
    }

    /// Trusts this server's certificate, under this guard.
    pub fn trusting(&self, guard: Guard) -> Fetcher {
        fetcher(guard, Some(self.ca_file()))
    }

    /// The same for an owner who allows these hosts.
    pub fn fetcher(&self, allowed: &str) -> Fetcher {
        self.trusting(Guard::new(Allowed::parse(allowed).unwrap(), Vec::new()))
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub fn seen(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }
}

fn serve(
    stream: StreamOwned<ServerConnection, std::net::TcpStream>,
    port: u16,
    handler: &Handler,
    seen: &Mutex<Vec<Request>>,
) {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        match reader.read_line(&mut head) {
            Ok(count) if count > 0 => {}
            _ => return,
        }
    }
    let path = head.split(' ').nth(1).unwrap().to_owned();
    let request = {
        let mut seen = seen.lock().unwrap();
        let request = Request { path, head, number: seen.len(), port };
        seen.push(request.clone());
        request
    };
    let mut stream = reader.into_inner();
    handler(&request, &mut stream);
    stream.conn.send_close_notify();
    let _ = stream.flush();
}

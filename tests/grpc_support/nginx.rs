//! nginx as a gRPC proxy, with a configuration of its own in a folder of its own.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use rustix::process::{Pid, Signal, kill_process};

use super::authority::Authority;
use super::{Folder, PATIENCE};

/// Two servers on loopback, plain and TLS, that pass all calls to one upstream.
pub struct Nginx {
    pub port: u16,
    pub tls_port: u16,
    pub authority: Authority,
    _folder: Folder,
    child: Child,
    lines: Receiver<String>,
}

impl Nginx {
    /// One that says GOAWAY after so many calls on a connection.
    pub fn start(upstream: u16, keepalive_requests: u32) -> Nginx {
        // A port that was free may be taken before nginx listens there: then it ends, and others are tried.
        (0..5).find_map(|_| Nginx::try_start(upstream, keepalive_requests)).expect("nginx does not start")
    }

    fn try_start(upstream: u16, keepalive_requests: u32) -> Option<Nginx> {
        let (folder, authority) = (Folder::new(), Authority::new());
        let free = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [port, tls_port] = free.each_ref().map(|listener| listener.local_addr().unwrap().port());
        drop(free);
        let [cert, key] = authority.issue("localhost");
        let dir = folder.0.display();
        let temporary =
            ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|n| format!("{n}_temp_path {dir}/{n};"));
        let configuration = format!(
            "daemon off;
            worker_processes 1;
            pid {dir}/nginx.pid;
            error_log stderr notice;
            events {{ worker_connections 1024; }}
            http {{
                access_log off;
                {}
                client_max_body_size 65m;
                keepalive_requests {keepalive_requests};
                grpc_next_upstream off;
                grpc_read_timeout 60s;
                upstream peer {{ server 127.0.0.1:{upstream} max_fails=0; keepalive 32; keepalive_requests 1000000; }}
                server {{
                    listen 127.0.0.1:{port} http2;
                    listen 127.0.0.1:{tls_port} ssl http2;
                    ssl_certificate {cert};
                    ssl_certificate_key {key};
                    location / {{ grpc_pass grpc://peer; }}
                    location /small. {{ client_max_body_size 1k; grpc_pass grpc://peer; }}
                }}
            }}",
            temporary.join("\n")
        );
        let file = folder.write("nginx.conf", &configuration);
        // It is not on the PATH of every user.
        let program = if Path::new("/usr/sbin/nginx").exists() { "/usr/sbin/nginx" } else { "nginx" };
        let mut child = Command::new(program)
            .args(["-p", folder.0.to_str().unwrap(), "-c", &file, "-e", "stderr"])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("failed to start nginx (Debian's nginx-light has it): {error}"));
        let output = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            output.lines().map_while(Result::ok).for_each(|line| drop(sender.send(line)));
        });
        let mut nginx = Nginx { port, tls_port, authority, _folder: folder, child, lines };
        nginx.wait_for("start worker process ").then_some(nginx)
    }

    /// Reads the configuration anew: other workers take over, those before finish what they have.
    pub fn reload(&mut self) {
        kill_process(self.pid(), Signal::HUP).unwrap();
        assert!(self.wait_for("gracefully shutting down"));
    }

    /// Ends the process that has the connections; nginx starts another.
    pub fn kill_worker(&mut self) {
        let id = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
        for child in children.split_whitespace() {
            let pid = Pid::from_raw(child.parse().unwrap()).unwrap();
            // One that is about to end after a reload may have ended.
            let _ = kill_process(pid, Signal::KILL);
        }
        assert!(self.wait_for("start worker process "));
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// False if it ended before it said so.
    fn wait_for(&mut self, words: &str) -> bool {
        let mut seen = Vec::new();
        while let Ok(line) = self.lines.recv_timeout(PATIENCE) {
            if line.contains(words) {
                return true;
            }
            seen.push(line);
        }
        eprintln!("nginx did not say {words:?} but:\n{}", seen.join("\n"));
        false
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = kill_process(self.pid(), Signal::TERM);
        let _ = self.child.wait();
    }
}

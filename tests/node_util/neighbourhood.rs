//! What a node has around it, in network name spaces of the test's own: local networks, a tunnel, a carrier's network, the
//! metadata address, and servers with public addresses behind a router. No packet leaves the machine.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use super::link::here;
use super::until_true;

/// Public servers behind the router: addresses for documentation (RFC 5737), which nobody has.
pub const SERVER: &str = "203.0.113.10";
/// Another one.
pub const OTHER_SERVER: &str = "198.51.100.20";
/// Resolves `server.example` to [`SERVER`].
pub const NAME_SERVER: &str = "203.0.113.53";
/// What no task may reach, all of it with an open port 8080: machines of local networks, one with public addresses among
/// them, the other end of the tunnel, the router, private networks behind it, and where clouds have their metadata.
pub const CLOSED: [&str; 11] = [
    "192.168.50.2",
    "192.0.2.2",
    "10.8.0.1",
    "10.77.1.2",
    "10.200.0.9",
    "172.20.0.9",
    "192.168.99.9",
    "100.64.0.9",
    "198.18.0.9",
    "192.0.0.9",
    "169.254.169.254",
];
/// The node's own addresses, beside those of its engine's bridges.
pub const OWN: [&str; 4] = ["192.168.50.1", "192.0.2.1", "10.8.0.2", "10.77.1.1"];
/// Each cable: name of the node's end, its address, the other end's address.
const CABLES: [(&str, &str, &str); 4] = [
    ("wan", "10.77.1.1/30", "10.77.1.2/30"),
    ("lan", "192.168.50.1/24", "192.168.50.2/24"),
    ("publan", "192.0.2.1/24", "192.0.2.2/24"),
    ("wg0", "10.8.0.2/24", "10.8.0.1/24"),
];
/// Of the node's own service, TCP and UDP.
pub const OWN_PORT: u16 = 9_000;

/// Serves TCP on 8080, 8443 and 53 at all addresses, and names.
const SERVERS: &str = "
import socket, threading
def serve(port):
    server = socket.create_server(('0.0.0.0', port), backlog=128)
    while True:
        one, _ = server.accept()
        one.sendall(b'hello')
        one.close()
for port in (8080, 8443, 53):
    threading.Thread(target=serve, args=(port,)).start()
names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
# Not at all addresses: an answer must come from the one that was asked.
names.bind(('203.0.113.53', 53))
print('up', flush=True)
while True:
    query, peer = names.recvfrom(512)
    end = query.index(b'\\0', 12) + 5
    is_known = b'\\x06server\\x07example\\0\\0\\x01' in query[:end].lower()
    head = query[:2] + (b'\\x81\\x80\\0\\1\\0\\1' if is_known else b'\\x81\\x83\\0\\1\\0\\0') + b'\\0\\0\\0\\0'
    answer = b'\\xc0\\x0c\\0\\1\\0\\1\\0\\0\\0\\x3c\\0\\4' + socket.inet_aton('203.0.113.10') if is_known else b''
    names.sendto(head + query[12:end] + answer, peer)
";

/// See the module's text.
pub struct Neighbourhood {
    holder: Child,
    servers: Child,
}

impl Neighbourhood {
    /// Only within [`super::namespace::in_namespace`].
    pub fn make() -> Self {
        let holder =
            Command::new("unshare").args(["--net", "sleep", "infinity"]).stdout(Stdio::null()).spawn().unwrap();
        let id = holder.id().to_string();
        let space = |id: &str| fs::read_link(format!("/proc/{id}/ns/net")).ok();
        until_true("the other name space is there", || space(&id).is_some_and(|other| Some(other) != space("self")));
        here(&["ip", "link", "set", "lo", "up"]);
        let there = |words: &[&str]| here(&[&["nsenter", &format!("--net=/proc/{id}/ns/net")], words].concat());
        there(&["ip", "link", "set", "lo", "up"]);
        for (name, ours, theirs) in CABLES {
            here(&["ip", "link", "add", "name", name, "type", "veth", "peer", "name", name, "netns", &id]);
            here(&["ip", "address", "add", ours, "dev", name]);
            here(&["ip", "link", "set", name, "up"]);
            there(&["ip", "address", "add", theirs, "dev", name]);
            there(&["ip", "link", "set", name, "up"]);
        }
        here(&["ip", "route", "add", "default", "via", "10.77.1.2"]);
        for address in [SERVER, OTHER_SERVER, NAME_SERVER].iter().chain(&CLOSED[4..]) {
            there(&["ip", "address", "add", &format!("{address}/32"), "dev", "lo"]);
        }
        let closed = CLOSED.join(", ");
        there(&["nft", "add", "table", "inet", "seen"]);
        there(&["nft", "add", "chain", "inet", "seen", "in", "{ type filter hook prerouting priority -300; }"]);
        there(&["nft", "add", "rule", "inet", "seen", "in", &format!("ip daddr {{ {closed} }} counter")]);
        let mut servers = Command::new("nsenter")
            .arg(format!("--net=/proc/{id}/ns/net"))
            .args(["python3", "-c", SERVERS])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut up = [0; 3];
        servers.stdout.take().unwrap().read_exact(&mut up).unwrap();
        serve_here();
        let neighbourhood = Self { holder, servers };
        neighbourhood.check_that_all_is_reached_from_here();
        neighbourhood
    }

    /// What a task does not reach must be there, or that would show nothing.
    fn check_that_all_is_reached_from_here(&self) {
        let before = self.packets_to_closed();
        let servers = [SERVER, OTHER_SERVER].iter().chain(&CLOSED).map(|address| format!("{address}:8080"));
        for target in servers.chain(OWN.iter().map(|address| format!("{address}:{OWN_PORT}"))) {
            let address: SocketAddr = target.parse().unwrap();
            let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(10)).expect(&target);
            let mut hello = [0; 5];
            stream.read_exact(&mut hello).unwrap();
            assert_eq!(&hello, b"hello", "{target}");
        }
        assert!(self.packets_to_closed() >= before + CLOSED.len() as u64);
    }

    /// A further server behind the router: a Python program, which says `up` when it serves. Its output goes there, too.
    pub fn serve(&self, program: &str, words: &[&str], output: File) -> Child {
        let mut server = Command::new("nsenter");
        server
            .arg(format!("--net=/proc/{}/ns/net", self.holder.id()))
            .args(["python3", "-u", "-c", program])
            .args(words);
        server.stdout(output.try_clone().unwrap()).stderr(output).spawn().unwrap()
    }

    /// Packets that came to addresses which no task may reach.
    pub fn packets_to_closed(&self) -> u64 {
        let output = Command::new("nsenter")
            .arg(format!("--net=/proc/{}/ns/net", self.holder.id()))
            .args(["nft", "list", "table", "inet", "seen"])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let words: Vec<&str> = text.split_whitespace().collect();
        let at = words.iter().position(|word| *word == "packets").unwrap();
        words[at + 1].parse().unwrap()
    }
}

impl Drop for Neighbourhood {
    fn drop(&mut self) {
        for child in [&mut self.servers, &mut self.holder] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The node's own service, on all of its addresses. Ends with the test's process.
fn serve_here() {
    let listener = TcpListener::bind(("0.0.0.0", OWN_PORT)).unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let _ = stream.write_all(b"hello");
        }
    });
    let socket = UdpSocket::bind(("0.0.0.0", OWN_PORT)).unwrap();
    thread::spawn(move || {
        let mut bytes = [0; 64];
        while let Ok((len, peer)) = socket.recv_from(&mut bytes) {
            let _ = socket.send_to(&bytes[..len], peer);
        }
    });
}

/// Tables of the firewall that are nodes' own.
pub fn tables() -> Vec<String> {
    let output = Command::new("nft")
        .args(["list", "tables"])
        .output()
        .expect("this test needs nft: scripts/test.sh installs it");
    let text = String::from_utf8(output.stdout).unwrap();
    let names = text.lines().filter_map(|line| line.strip_prefix("table inet "));
    names.filter(|name| name.starts_with("hivemind_")).map(str::to_owned).collect()
}

/// From now on this worker, which must have a mount table of its own, has an nft that only fails.
pub fn break_nft(worker: u32) {
    replace_nft(worker, "/bin/false");
}

/// From now on this worker has another program in the place of nft.
pub fn replace_nft(worker: u32, program: &str) {
    here(&["nsenter", &format!("--mount=/proc/{worker}/ns/mnt"), "mount", "--bind", program, "/usr/sbin/nft"]);
}

/// The worker has the machine's nft again.
pub fn mend_nft(worker: u32) {
    here(&["nsenter", &format!("--mount=/proc/{worker}/ns/mnt"), "umount", "/usr/sbin/nft"]);
}

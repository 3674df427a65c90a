//! The machine, its neighbours, the metadata address, other tasks, and sockets.

use std::fs;
use std::net::TcpStream;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::process::{Child, Command, Stdio};

use hivemind_worker::docker::DockerHost;
use hivemind_worker::node::offer::Offer;
use hivemind_worker::node::record::Outcome;

use crate::node_util::own_engine::{Containers, IMAGE as BUSYBOX, OwnEngine};
use crate::node_util::{Scene, gated, how, python, until, until_true};
use crate::yard::{Try, Yard, compare, outside};

/// Says hello to whoever comes.
const SERVICE: &str = "import socket\ns = socket.create_server(('0.0.0.0', 8080))\nwhile True:\n\
    \x20   c, _ = s.accept()\n    c.sendall(b'hello\\n')\n    c.close()\n";

/// A process that is ended with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(words: &[&str]) -> Process {
    Process(Command::new(words[0]).args(&words[1..]).stdout(Stdio::null()).spawn().unwrap())
}

/// Runs a command in the network name space of a process.
fn run_in(process: u32, words: &[&str]) {
    let space = format!("--net=/proc/{process}/ns/net");
    let output = Command::new("nsenter").arg(space).args(words).output().unwrap();
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A neighbour on a cable: a LAN host that also has the metadata address. Everything is in name spaces of the test's own.
fn neighbour(engine: u32) -> Process {
    let lan = start(&["unshare", "--net", "sleep", "infinity"]);
    let id = lan.0.id();
    let space = |id: &str| fs::read_link(format!("/proc/{id}/ns/net")).ok();
    let ours = space("self");
    until_true("the neighbour's name space is there", || {
        space(&id.to_string()).is_some_and(|other| Some(other) != ours)
    });
    let there = id.to_string();
    run_in(engine, &["ip", "link", "set", "lo", "up"]);
    run_in(engine, &["ip", "link", "add", "name", "hm0", "type", "veth", "peer", "name", "hm1", "netns", &there]);
    run_in(engine, &["ip", "address", "add", "10.78.0.1/24", "dev", "hm0"]);
    run_in(engine, &["ip", "link", "set", "hm0", "up"]);
    for address in ["10.78.0.2/24", "169.254.169.254/32"] {
        run_in(id, &["ip", "address", "add", address, "dev", "hm1"]);
    }
    run_in(id, &["ip", "link", "set", "hm1", "up"]);
    run_in(engine, &["ip", "route", "add", "169.254.169.254/32", "dev", "hm0"]);
    lan
}

#[test]
fn no_address_of_the_machine_and_its_neighbours_can_be_reached() {
    let engine = OwnEngine::start("escape-net", Containers::EndWithIt);
    let host = engine.process();
    let lan = neighbour(host);
    let service =
        |process: u32| start(&["nsenter", &format!("--net=/proc/{process}/ns/net"), "python3", "-c", SERVICE]);
    let _services = (service(host), service(lan.0.id()));
    let addresses = ["127.0.0.1", "10.78.0.1", "10.78.0.2", "169.254.169.254"];
    let script = "for a in 127.0.0.1 10.78.0.1 10.78.0.2 169.254.169.254; do \
        /bin/busybox nc -w 3 $a 8080 </dev/null 2>&1 || true; done; /bin/busybox ip -o link";
    let control = || {
        let output = Command::new("docker")
            .args([
                "--host",
                &engine.host(),
                "run",
                "--rm",
                "--network=host",
                BUSYBOX,
                "/bin/busybox",
                "sh",
                "-c",
                script,
            ])
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    // As soon as both services listen.
    let reached = until("the services answer", || Some(control()).filter(|said| said.matches("hello").count() == 4));
    assert!(reached.contains("hm0"), "{reached}");

    let mut scene = Scene::with_engine("escape-net", DockerHost::parse(&engine.host()).unwrap());
    scene.start_master();
    scene.env.push(("DOCKER_HOST".to_owned(), engine.host()));
    scene.start(&[]);
    let command = ["/bin/busybox", "sh", "-c", script].map(str::to_owned).to_vec();
    scene.submit(Offer { image: BUSYBOX.to_owned(), command, ..python("lan", "") });
    let report = scene.until_complete("lan");
    assert_eq!(how(&report), (Outcome::Succeeded, Some(0)), "{report:?}");
    let said = scene.stdout("lan");
    println!("outside: {reached}\ninside: {said}");
    let lines: Vec<&str> = said.lines().collect();
    for (line, address) in lines.iter().zip(addresses) {
        let why = if address == "127.0.0.1" { "Connection refused" } else { "Network is unreachable" };
        assert!(line.contains(address) && line.contains(why), "{said}");
    }
    let links: Vec<&&str> = lines[addresses.len()..].iter().filter(|line| !line.contains("state DOWN")).collect();
    assert!(matches!(links[..], [lo] if lo.starts_with("1: lo")), "{said}");
    scene.until_clean();
}

#[test]
fn sockets_and_other_tasks_are_out_of_reach() {
    let yard = Yard::open("escape-sockets");
    let scene = &yard.scene;
    let monitor = until("the monitor's address is told", || {
        let log = scene.log();
        let (_, rest) = log.split_once("monitor http://127.0.0.1:")?;
        rest.split('/').next().map(str::to_owned)
    });
    TcpStream::connect(format!("127.0.0.1:{monitor}")).expect("the monitor listens");
    // A name that file systems know nothing of: such sockets belong to the network's name space.
    let name = format!("hm-escape-{}", std::process::id());
    let _listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let neighbour = "import socket\ntcp = socket.create_server(('127.0.0.1', 4711))\n\
        local = socket.socket(socket.AF_UNIX)\nlocal.bind('\\0hm-neighbour')\nlocal.listen()\n\
        open('/workspace/secret', 'w').write('x')\nprint('listens', flush=True)\nsignal.sigwait([signal.SIGUSR1])";
    scene.submit(gated("neighbour", neighbour));
    scene.until_up("neighbour");
    scene.go("neighbour");
    scene.until_view("neighbour", "it listens", |view| view.stdout_bytes >= 11);
    let container = scene.container("neighbour").unwrap();
    let found = scene.docker.inspect_container(&container).unwrap();
    let control_socket = scene.dir.join("state/control.sock").display().to_string();
    let secret = format!("{}/secret", found.mounts[0].source);
    assert!(fs::exists(&secret).unwrap() && fs::exists(&control_socket).unwrap());
    let words = [
        format!("tcp=127.0.0.1:{monitor}"),
        format!("abstract={name}"),
        "unix=/var/run/docker.sock".to_owned(),
        format!("unix={control_socket}"),
        format!("file={secret}"),
        format!("signal={}", found.state.pid),
        "tcp=127.0.0.1:4711".to_owned(),
        "abstract=hm-neighbour".to_owned(),
    ];
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let more =
        ["file=/workspace/secret", "tcp=::1:80", "udp=10.255.255.1:53", "udp=169.254.169.254:80", "shared_memory=4711"];
    let inside = yard.probe("intruder", &[words.as_slice(), &more].concat());
    let (ours, theirs) = words.split_at(6);
    let folder = |path: &str| format!("--volume={path}:{path}");
    let data = found.mounts[0].source.as_str();
    let mut control = outside(
        &[
            "--network=host",
            "--user=0",
            "--pid=host",
            "--volume=/var/run/docker.sock:/var/run/docker.sock",
            &folder(scene.dir.to_str().unwrap()),
            &folder(data),
        ],
        ours,
    );
    control.extend(outside(&[&format!("--network=container:{container}")], theirs));
    let refused: &[&str] = &["ECONNREFUSED"];
    let (absent, done): (&[&str], &[&str]) = (&["ENOENT"], &["done"]);
    let tries: Vec<Try<'_>> = words
        .iter()
        .zip([refused, refused, absent, absent, absent, &["ESRCH"], refused, refused])
        .map(|(word, inside)| (*word, inside, done))
        .collect();
    compare(&tries, &inside, &control);
    let rest = more.map(|word| inside[word].as_str());
    assert_eq!(rest[0], "ENOENT", "each task has a work folder of its own");
    assert!(["EADDRNOTAVAIL", "ENETUNREACH", "EAFNOSUPPORT", "ECONNREFUSED"].contains(&rest[1]), "{rest:?}");
    assert_eq!(rest[2..], ["ENETUNREACH", "ENETUNREACH", "ENOENT"]);
    scene.go("neighbour");
    scene.until_complete("neighbour");
    yard.unharmed();
}

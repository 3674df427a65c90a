//! Tasks with egress on a real engine, real worker processes and the kernel's firewall, in network name spaces of the
//! test's own: what they reach, what they don't, and what becomes of the rules.
#![allow(clippy::unwrap_used)]

mod node_util;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hivemind_worker::docker::DockerHost;
use hivemind_worker::node::offer::Offer;
use hivemind_worker::node::record::{Event, EventKind, Outcome, Phase};
use node_util::link::here;
use node_util::namespace::in_namespace;
use node_util::neighbourhood::{
    CLOSED, NAME_SERVER, Neighbourhood, OTHER_SERVER, OWN, OWN_PORT, SERVER, break_nft, mend_nft, replace_nft, tables,
};
use node_util::own_engine::OwnEngine;
use node_util::{Scene, how, until, until_true};
use rustix::process::Signal;

const IMAGE: &str = "justin308/hivemind-worker:latest";

/// Tries each of its arguments at the same time: `tcp:ADDRESS:PORT`, `udp:ADDRESS:PORT` or `name:NAME`. `gateway` is its
/// own network's. Says for each what became of it, then waits to be let go.
const TRY: &str = "
import os, signal, socket, struct, sys, threading
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
routes = [line.split() for line in open('/proc/net/route')][1:]
gateway = next(socket.inet_ntoa(struct.pack('<I', int(r[2], 16))) for r in routes if r[1] == '00000000')
def tcp(address, port):
    with socket.create_connection((address, port), 3) as one:
        return 'ok' if one.recv(5) == b'hello' else 'odd'
def udp(address, port):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.settimeout(3)
        one.connect((address, port))
        one.send(b'hello')
        return 'ok' if one.recv(64) == b'hello' else 'odd'
def attempt(word):
    kind, rest = word.split(':', 1)
    try:
        if kind == 'name':
            return socket.gethostbyname(rest)
        address, port = rest.replace('gateway', gateway).rsplit(':', 1)
        return (tcp if kind == 'tcp' else udp)(address, int(port))
    except (TimeoutError, socket.timeout):
        return 'silence'
    except OSError as error:
        return type(error).__name__
said, lock = [], threading.Lock()
def run(word):
    result = attempt(word)
    with lock:
        said.append(f'{word}={result}')
threads = [threading.Thread(target=run, args=(word,)) for word in sys.argv[1:]]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
inet6 = open('/proc/net/if_inet6').read() if os.path.exists('/proc/net/if_inet6') else ''
print('up', *said, 'ipv6=' + str(len(inet6)), sep='\\n', flush=True)
signal.sigwait([signal.SIGUSR1])
";

fn egress(task: &str, program: &str, words: &[String], allow: &[&str]) -> Offer {
    let command = ["python3", "-u", "-c", program].map(str::to_owned).into_iter();
    Offer {
        command: command.chain(words.iter().cloned()).collect(),
        network: "egress".to_owned(),
        network_allow: allow.iter().map(|text| (*text).to_owned()).collect(),
        ..node_util::python(task, "")
    }
}

/// A node on this engine whose owner allows egress.
fn node(name: &str, engine: &OwnEngine, more: &[(&str, &str)]) -> Scene {
    let mut scene = Scene::with_engine(name, DockerHost::parse(&engine.host()).unwrap());
    scene.start_master();
    let env =
        [("HIVEMIND_TASK_NETWORK", "egress"), ("HIVEMIND_EGRESS_DNS", NAME_SERVER), ("DOCKER_HOST", &engine.host())];
    scene.env = env.iter().chain(more).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    scene
}

/// What the task said of each of its words.
fn results(scene: &Scene, task: &str) -> BTreeMap<String, String> {
    let line = |text: &str| text.split_once('=').map(|(word, result)| (word.to_owned(), result.to_owned()));
    until("the task has tried all", || {
        let said = scene.stdout(task);
        said.contains("ipv6=").then(|| said.lines().filter_map(line).collect())
    })
}

fn tried(scene: &Scene, task: &str, words: &[String], allow: &[&str]) -> BTreeMap<String, String> {
    scene.submit(egress(task, TRY, words, allow));
    scene.until_up(task);
    let results = results(scene, task);
    scene.go(task);
    let report = scene.until_complete(task);
    assert_eq!(how(&report), (Outcome::Succeeded, Some(0)), "{report:?}");
    results
}

fn words(targets: &[&str]) -> Vec<String> {
    targets.iter().map(|target| (*target).to_owned()).collect()
}

/// All that no task may reach.
fn closed() -> Vec<String> {
    let own = OWN.iter().chain(&["gateway", "172.17.0.1"]);
    let own = own.flat_map(|address| [format!("tcp:{address}:{OWN_PORT}"), format!("udp:{address}:{OWN_PORT}")]);
    CLOSED.iter().map(|address| format!("tcp:{address}:8080")).chain(own).collect()
}

fn address_of(scene: &Scene, task: &str) -> String {
    let id = scene.container(task).unwrap();
    let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
    let host = scene.env.iter().find(|(name, _)| name == "DOCKER_HOST").unwrap().1.clone();
    let output = Command::new("docker").args(["--host", &host, "inspect", "--format", format, &id]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn a_task_with_egress_reaches_public_addresses_and_nothing_else() {
    if !in_namespace("a_task_with_egress_reaches_public_addresses_and_nothing_else") {
        return;
    }
    let neighbourhood = Neighbourhood::make();
    let engine = OwnEngine::start_with_networks("egress", IMAGE);
    let (mut one, mut two) = (node("egress-one", &engine, &[]), node("egress-two", &engine, &[]));
    one.start(&["--slots", "2"]);
    two.start(&["--slots", "2"]);

    // A task of the other node, which listens.
    let listen = "import socket\nserver = socket.create_server(('0.0.0.0', 7000))\nprint('up', flush=True)\n\
        while True: server.accept()[0].sendall(b'hello')\n";
    two.submit(egress("listens", listen, &[], &[]));
    two.until_up("listens");
    let peer = address_of(&two, "listens");
    let process = two.docker.inspect_container(&two.container("listens").unwrap()).unwrap().state.pid;
    let within = format!("--net=/proc/{process}/ns/net");
    let hello = format!("import socket; assert socket.create_connection(('{peer}', 7000), 5).recv(5) == b'hello'");
    let listens = || here(&["nsenter", &within, "python3", "-c", &hello]);
    listens();
    assert_eq!(tables().len(), 1);

    let before = neighbourhood.packets_to_closed();
    let open = words(&[&format!("tcp:{SERVER}:8080"), &format!("tcp:{OTHER_SERVER}:8443"), "name:server.example"]);
    let mut all = [closed(), open.clone()].concat();
    all.push(format!("tcp:{peer}:7000"));
    one.submit(egress("tries", TRY, &all, &[]));
    one.until_up("tries");
    let found = results(&one, "tries");
    println!("{found:?}");
    assert_eq!([&found[&open[0]], &found[&open[1]], &found[&open[2]]], ["ok", "ok", SERVER], "{found:?}");
    assert_eq!(found["ipv6"], "0");
    // Not even a refusal comes back: that is an answer of somebody.
    let reached: Vec<_> = found
        .iter()
        .filter(|(word, result)| {
            !open.contains(word) && *word != "ipv6" && !(*result == "silence" || *result == "OSError")
        })
        .collect();
    assert!(reached.is_empty(), "{reached:?}");
    assert_eq!(found.len(), all.len() + 1);
    assert_eq!(neighbourhood.packets_to_closed(), before, "not a packet has come to what is closed");

    // Each node has its own, and takes away its own.
    assert_eq!(tables().len(), 2);
    one.go("tries");
    assert_eq!(how(&one.until_complete("tries")), (Outcome::Succeeded, Some(0)));
    one.until_clean();
    let other = format!("hivemind_{}", two.identity.key);
    until_true("the table is gone", || tables() == std::slice::from_ref(&other));
    assert_eq!(two.left_overs(), 3, "container, volume and network of the other node");
    listens();
    one.signal(Signal::TERM);
    assert!(one.until_exit().success());
    two.signal(Signal::TERM);
    assert!(two.until_exit().success());
    two.until_clean();
    assert_eq!(tables(), [""; 0]);
}

#[test]
fn a_list_opens_what_it_names_and_the_owner_decides_on_private_networks() {
    if !in_namespace("a_list_opens_what_it_names_and_the_owner_decides_on_private_networks") {
        return;
    }
    let neighbourhood = Neighbourhood::make();
    let engine = OwnEngine::start_with_networks("lists", IMAGE);
    let mut scene = node("egress-list", &engine, &[("HIVEMIND_EGRESS_ALLOW", "192.168.50.0/24")]);
    scene.start(&["--slots", "1"]);
    let all = words(&[
        &format!("tcp:{SERVER}:8080"),
        &format!("tcp:{SERVER}:8443"),
        &format!("tcp:{OTHER_SERVER}:8080"),
        &format!("tcp:{NAME_SERVER}:53"),
        "tcp:192.168.50.2:8080",
        "tcp:192.0.2.2:8080",
        &format!("tcp:gateway:{OWN_PORT}"),
        &format!("tcp:192.168.50.1:{OWN_PORT}"),
    ]);
    let open = |task: &str, allow: &[&str]| -> Vec<String> {
        let found = tried(&scene, task, &all, allow);
        assert_eq!(found.len(), all.len() + 1, "{found:?}");
        found.into_iter().filter(|(_, result)| result == "ok").map(|(word, _)| word).collect()
    };
    assert_eq!(open("one-port", &["203.0.113.10:8080"]), words(&["tcp:203.0.113.10:8080"]));
    // Everything, on one port: what is closed stays closed.
    assert_eq!(open("all", &["0.0.0.0/0:8080"]), words(&["tcp:198.51.100.20:8080", "tcp:203.0.113.10:8080"]));
    let before = neighbourhood.packets_to_closed();
    assert_eq!(open("lan", &["192.168.50.0/24:8080"]), words(&["tcp:192.168.50.2:8080"]));
    assert!(neighbourhood.packets_to_closed() > before, "the counter of closed addresses counts");
    // Who does not name it does not reach it.
    assert_eq!(
        open("none", &[]),
        words(&["tcp:198.51.100.20:8080", "tcp:203.0.113.10:8080", "tcp:203.0.113.10:8443", "tcp:203.0.113.53:53"])
    );
    // Of IPv6 alone: nothing.
    assert_eq!(open("six", &["[2001:db8::/32]:443"]), [""; 0]);
    let notes = scene
        .record("six")
        .into_iter()
        .filter(|event| matches!(&event.kind, EventKind::Note(text) if text.contains("IPv6")));
    assert_eq!(notes.count(), 1);
    // A private network that is not the owner's word.
    scene.submit(egress("private", TRY, &[], &["10.200.0.9"]));
    let view = scene.until_view("private", "it is refused", |view| view.is_complete);
    assert_eq!(view.outcome, Some(Outcome::Rejected), "{view:?}");
    let words = "network_allow[0] is 10.200.0.9/32, a private network that the owner of this node does not open";
    until_true("the owner is told", || scene.log().contains(words));
    scene.until_clean();
    assert_eq!(tables(), [""; 0]);
}

/// Says `up`, then tries the node's own service for ever and says when it is reached.
const PRESS: &str = "
import socket, struct, time
routes = [line.split() for line in open('/proc/net/route')][1:]
gateway = next(socket.inet_ntoa(struct.pack('<I', int(r[2], 16))) for r in routes if r[1] == '00000000')
print('up', flush=True)
while True:
    try:
        socket.create_connection((gateway, 9000), 0.2).close()
        print('reached', time.monotonic(), flush=True)
    except OSError:
        pass
    time.sleep(0.05)
";

#[test]
fn rules_that_somebody_removes_are_written_again_and_where_they_cant_be_the_task_ends() {
    if !in_namespace("rules_that_somebody_removes_are_written_again_and_where_they_cant_be_the_task_ends") {
        return;
    }
    let _neighbourhood = Neighbourhood::make();
    let engine = OwnEngine::start_with_networks("flush", IMAGE);
    let mut scene = node("egress-flush", &engine, &[("LOG_LEVEL", "debug")]);
    scene.prefix = ["/usr/bin/unshare", "--mount"].map(str::to_owned).to_vec();
    scene.start(&["--slots", "1"]);
    scene.submit(egress("presses", PRESS, &[], &[]));
    scene.until_up("presses");
    let table = format!("hivemind_{}", scene.identity.key);
    let listing = || {
        let output = Command::new("nft").args(["list", "table", "inet", &table]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let shape =
        |text: &str| text.split_whitespace().filter(|word| word.parse::<u64>().is_err()).collect::<Vec<_>>().join(" ");
    let good = shape(&listing());
    assert!(good.contains("@bridges"), "{good}");
    for (what, command) in [
        ("all", &["nft", "flush", "ruleset"][..]),
        ("the table", &["nft", "delete", "table", "inet", &table]),
        ("the rules", &["nft", "flush", "table", "inet", &table]),
        ("an element", &["nft", "delete", "element", "inet", &table, "private", "{ 192.168.0.0/16 }"]),
        ("one more rule", &["nft", "insert", "rule", "inet", &table, "egress", "accept"]),
    ] {
        // One change at a time: the next one comes when this one is mended, and that is read back.
        let mended = || scene.log().matches("as it is to be").count();
        let before = mended();
        let begin = Instant::now();
        here(command);
        until_true("the rules are there again", || mended() > before && shape(&listing()) == good);
        println!("{what}: again after {:?}", begin.elapsed());
        assert!(begin.elapsed() < Duration::from_secs(10), "{what}: {:?}", begin.elapsed());
    }
    let alerts = || {
        let is_it = |event: &&hivemind_worker::node::record::Event| matches!(&event.kind, EventKind::Alert(text) if text.contains("written again"));
        scene.record("presses").iter().filter(is_it).count()
    };
    until_true("the owner and the master are told", || alerts() >= 1);
    // It was open for a moment, which the task has used: without that this test shows nothing.
    until_true("the task has seen the gap", || scene.stdout("presses").contains("reached"));

    // With an nft that does not work any more the task is ended.
    break_nft(scene.worker.as_ref().unwrap().id());
    here(&["nft", "delete", "table", "inet", &table]);
    let begin = Instant::now();
    let container = scene.container("presses").unwrap();
    until_true("it is frozen or gone", || {
        scene.docker.inspect_container(&container).is_ok_and(|found| found.state.paused || !found.state.running)
            || scene.container("presses").is_none()
    });
    println!("frozen after {:?}", begin.elapsed());
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    let report = scene.until_complete("presses");
    assert_eq!(report.outcome, Outcome::NodeFault, "{report:?}");
    assert!(report.reason.contains("rules that guard its network"), "{report:?}");
    // Nor does another one begin.
    scene.submit(egress("next", PRESS, &[], &[]));
    let report = scene.until_complete("next");
    assert_eq!((report.outcome, report.exit_code), (Outcome::NodeFault, None), "{report:?}");
    assert!(report.reason.contains("nft"), "{report:?}");
    scene.until_clean();
}

/// An nft that does all that it is told, and reads it back, in a name space where no task is.
fn stray_nft(dir: &Path, space: u32) -> String {
    let (real, stray) = (dir.join("nft.real"), dir.join("nft.stray"));
    fs::copy("/usr/sbin/nft", &real).unwrap();
    let script = format!("#!/bin/sh\nexec /usr/bin/nsenter --net=/proc/{space}/ns/net {} \"$@\"\n", real.display());
    fs::write(&stray, script).unwrap();
    fs::set_permissions(&stray, fs::Permissions::from_mode(0o755)).unwrap();
    stray.display().to_string()
}

/// Holds a name space, and goes with the test however that ends.
struct Elsewhere(Child);

impl Drop for Elsewhere {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_firewall_that_does_not_stop_the_probe_refuses_tasks_until_it_is_mended() {
    if !in_namespace("a_firewall_that_does_not_stop_the_probe_refuses_tasks_until_it_is_mended") {
        return;
    }
    let _neighbourhood = Neighbourhood::make();
    let engine = OwnEngine::start_with_networks("probe", IMAGE);
    let mut elsewhere = Command::new("unshare");
    let elsewhere = elsewhere.args(["--net", "sleep", "infinity"]).stdout(Stdio::null()).stderr(Stdio::null());
    let elsewhere = Elsewhere(elsewhere.spawn().unwrap());
    let space = |id: &str| fs::read_link(format!("/proc/{id}/ns/net")).ok();
    let other = elsewhere.0.id().to_string();
    until_true("the other name space is there", || space(&other).is_some_and(|one| Some(one) != space("self")));
    let mut scene = node("egress-probe", &engine, &[]);
    scene.prefix = ["/usr/bin/unshare", "--mount"].map(str::to_owned).to_vec();
    scene.start(&["--slots", "1"]);
    let worker = scene.worker.as_ref().unwrap().id();
    replace_nft(worker, &stray_nft(&scene.dir, elsewhere.0.id()));

    let refused = |task: &str, words: &str| {
        scene.submit(egress(task, "print('ran')", &[], &[]));
        let report = scene.until_complete(task);
        println!("{task}: {}", report.reason);
        assert_eq!((report.outcome, report.exit_code), (Outcome::NodeFault, None), "{report:?}");
        assert!(report.reason.starts_with("the tasks' network is not as it must be: "), "{report:?}");
        assert!(report.reason.contains(words), "{report:?}");
        assert_eq!(scene.stdout(task), "", "it has not run");
        let alert = format!("no egress on this node: {}", report.reason);
        let is_it = |event: &Event| matches!(&event.kind, EventKind::Alert(text) if *text == alert);
        assert!(scene.record(task).iter().any(is_it), "the master is told");
        scene.until_status("the owner is told", |status| status.alerts.iter().any(|one| one.contains(&alert)));
        scene.until_clean();
        assert_eq!(tables(), [""; 0]);
    };
    refused("reaches", "a container reaches 10.");
    // Where something else stops it, that must not pass for rules that hold.
    here(&["nft", "add", "table", "inet", "foreign"]);
    for (chain, hook) in [("in", "input"), ("through", "forward")] {
        here(&["nft", "add", "chain", "inet", "foreign", chain, &format!("{{ type filter hook {hook} priority 0; }}")]);
        here(&["nft", "add", "rule", "inet", "foreign", chain, "iifname \"hmp*\" drop"]);
    }
    refused("unseen", "the rules have seen 0 of the probe's");
    here(&["nft", "delete", "table", "inet", "foreign"]);
    refused("reaches-again", "a container reaches 10.");

    mend_nft(worker);
    let words = words(&[&format!("tcp:gateway:{OWN_PORT}"), &format!("tcp:{SERVER}:8080")]);
    let found = tried(&scene, "mended", &words, &[]);
    assert_eq!([&*found[&words[0]], &*found[&words[1]]], ["silence", "ok"], "{found:?}");
    scene.until_clean();
}

#[test]
fn rules_outlive_a_killed_worker_and_go_with_the_task() {
    if !in_namespace("rules_outlive_a_killed_worker_and_go_with_the_task") {
        return;
    }
    let _neighbourhood = Neighbourhood::make();
    let mut engine = OwnEngine::start_with_networks("killed", IMAGE);
    let mut scene = node("egress-killed", &engine, &[]);
    scene.start(&["--slots", "1"]);
    scene.submit(egress("lives", TRY, &words(&[&format!("tcp:gateway:{OWN_PORT}")]), &[]));
    scene.until_up("lives");
    let table = format!("hivemind_{}", scene.identity.key);
    scene.kill_worker();
    assert_eq!(tables(), std::slice::from_ref(&table), "the container runs on, and its rules are there");
    scene.start(&["--slots", "1"]);
    scene.until_adopted("lives", 1);
    assert_eq!(tables(), std::slice::from_ref(&table));
    here(&["nft", "delete", "table", "inet", &table]);
    until_true("the adopted task's rules are watched", || tables() == std::slice::from_ref(&table));
    // The engine's restart: the rules stay, and the next task has the network tried anew.
    let probes = || scene.log().matches("the tasks' network was tried").count();
    assert_eq!(probes(), 1);
    engine.kill();
    engine.start_again();
    scene.until_status("it is followed again", |status| {
        status.attempts.iter().any(|held| held.phase == Phase::Running && held.detail.is_empty())
    });
    scene.go("lives");
    assert_eq!(how(&scene.until_complete("lives")), (Outcome::Succeeded, Some(0)));
    scene.until_clean();
    until_true("the table is gone", || tables().is_empty());
    let found =
        tried(&scene, "after", &words(&[&format!("tcp:gateway:{OWN_PORT}"), &format!("tcp:{SERVER}:8080")]), &[]);
    assert_eq!(
        (&*found[&format!("tcp:gateway:{OWN_PORT}")], &*found[&format!("tcp:{SERVER}:8080")]),
        ("silence", "ok")
    );
    assert_eq!(probes(), 2);

    // Killed with a task that is over by the time of the next start.
    scene.submit(egress("ends", TRY, &[], &[]));
    scene.until_up("ends");
    let container = scene.container("ends").unwrap();
    scene.kill_worker();
    scene.docker.kill_container(&container, "SIGUSR1").unwrap();
    until_true("it ends", || !scene.docker.inspect_container(&container).unwrap().state.running);
    scene.start(&["--slots", "1"]);
    assert_eq!(how(&scene.until_complete("ends")), (Outcome::Succeeded, Some(0)));
    scene.until_clean();
    until_true("the table is gone", || tables().is_empty());

    // A store that is gone: nobody knows the task any more, and everything of it goes.
    scene.submit(egress("lost", TRY, &[], &[]));
    scene.until_up("lost");
    scene.kill_worker();
    for entry in fs::read_dir(scene.dir.join("state")).unwrap().map_while(Result::ok) {
        // But for the key, which makes it this node.
        if entry.file_name() != "node.key" {
            let _ = fs::remove_file(entry.path()).or_else(|_| fs::remove_dir_all(entry.path()));
        }
    }
    scene.stop_master();
    scene.start(&["--slots", "1"]);
    scene.until_clean();
    until_true("the table is gone", || tables().is_empty());
}

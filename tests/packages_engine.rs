//! Packages of tasks on a real engine, with real worker processes, pip, and an index of the test's own in a network name space:
//! who gets which, what is refused and whose fault it is, and what becomes of half a set.
#![allow(clippy::unwrap_used)]

mod node_util;

use std::fs::{self, File};
use std::process::Child;

use hivemind_worker::docker::DockerHost;
use hivemind_worker::node::offer::Offer;
use hivemind_worker::node::record::{FinalReport, Outcome};
use node_util::namespace::in_namespace;
use node_util::neighbourhood::{NAME_SERVER, Neighbourhood, SERVER, tables};
use node_util::own_engine::OwnEngine;
use node_util::{Scene, how, until_true, write};

const IMAGE: &str = "justin308/hivemind-worker:latest";

/// An index by the simple API, with wheels that it makes: `hmdep` needs `hmtest`; `hmsource` has a source distribution only;
/// the first who asks for `hmslow` waits for ever. Prints the path of each request.
const INDEX: &str = "
import http.server, io, ssl, sys, threading, zipfile
def wheel(name, version, content, requires=''):
    out, info = io.BytesIO(), f'{name}-{version}.dist-info'
    files = {f'{name}/__init__.py': content,
        f'{info}/METADATA': f'Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n{requires}',
        f'{info}/WHEEL': 'Wheel-Version: 1.0\\nGenerator: test\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n'}
    files[f'{info}/RECORD'] = ''.join(f'{path},,\\n' for path in [*files, f'{info}/RECORD'])
    with zipfile.ZipFile(out, 'w') as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return out.getvalue()
FILES = {'hmtest-1.0-py3-none-any.whl': wheel('hmtest', '1.0', 'VALUE = \"one\"\\n'),
    'hmdep-1.0-py3-none-any.whl': wheel('hmdep', '1.0', 'import hmtest\\n', 'Requires-Dist: hmtest>=1\\n'),
    'hmslow-1.0-py3-none-any.whl': wheel('hmslow', '1.0', ''),
    'hmsource-1.0.tar.gz': b'never read'}
slow = []
class Index(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        print('GET', self.path, flush=True)
        name = self.path.strip('/').split('/')[-1]
        if name == 'hmslow' and not slow:
            slow.append(1)
            threading.Event().wait()
        listed = [file for file in FILES if file.split('-')[0] == name]
        body = FILES.get(name) or ''.join(f'<a href=\"/files/{file}\">{file}</a>' for file in listed).encode()
        self.send_response(200 if body else 404)
        self.send_header('Content-Type', 'text/html' if listed else 'application/octet-stream')
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
server = http.server.ThreadingHTTPServer(('203.0.113.10', 8555), Index)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1], sys.argv[2])
server.socket = context.wrap_socket(server.socket, server_side=True)
print('up', flush=True)
server.serve_forever()
";

/// Uses the packages, and tries to change them.
const USE: &str = "
import hmdep, hmtest
print(hmtest.VALUE, hmdep.__file__)
for path in ('/hivemind/packages/hmtest/__init__.py', '/hivemind/packages/new'):
    try:
        open(path, 'ab').close()
        print('could write', path)
    except OSError as error:
        assert error.errno == 30, error
";

struct Index {
    server: Child,
    log: std::path::PathBuf,
}

impl Index {
    /// What was asked of it so far.
    fn requests(&self) -> usize {
        fs::read_to_string(&self.log).unwrap().matches("GET ").count()
    }

    fn end(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

impl Drop for Index {
    fn drop(&mut self) {
        self.end();
    }
}

fn offer(task: &str, owner: &str, requirements: &str, program: &str) -> Offer {
    Offer { owner: owner.to_owned(), requirements: requirements.to_owned(), ..node_util::python(task, program) }
}

fn run(scene: &Scene, offer: Offer) -> FinalReport {
    let task = offer.task.clone();
    scene.submit(offer);
    scene.until_complete(&task)
}

/// A node, and the index that its owner names.
fn scene(name: &str, neighbourhood: &Neighbourhood, engine: &OwnEngine) -> (Scene, Index) {
    let mut scene = Scene::with_engine(name, DockerHost::parse(&engine.host()).unwrap());
    scene.start_master();
    let made = rcgen::generate_simple_self_signed(vec![SERVER.to_owned()]).unwrap();
    let certificate = write(scene.dir.join("index.pem"), &made.cert.pem());
    let key = write(scene.dir.join("index.key"), &made.signing_key.serialize_pem());
    let (certificate, key) = (certificate.display().to_string(), key.display().to_string());
    let log = scene.dir.join("index.log");
    let server = neighbourhood.serve(INDEX, &[&certificate, &key], File::create(&log).unwrap());
    let index = Index { server, log };
    until_true("the index serves", || fs::read_to_string(&index.log).unwrap().starts_with("up"));
    let url = format!("https://{SERVER}:8555/simple/");
    for (name, value) in [
        ("HIVEMIND_TASK_NETWORK", "egress"),
        ("HIVEMIND_EGRESS_DNS", NAME_SERVER),
        ("HIVEMIND_PACKAGE_INDEX", &url),
        ("HIVEMIND_PACKAGE_INDEX_CA_FILE", &certificate),
        ("DOCKER_HOST", &engine.host()),
    ] {
        scene.set_env(name, value);
    }
    (scene, index)
}

#[test]
fn packages_are_installed_once_for_an_owner_and_failures_are_told_apart() {
    if !in_namespace("packages_are_installed_once_for_an_owner_and_failures_are_told_apart") {
        return;
    }
    let neighbourhood = Neighbourhood::make();
    let engine = OwnEngine::start_with_networks("packages", IMAGE);
    let (mut scene, mut index) = scene("packages", &neighbourhood, &engine);
    scene.start(&["--slots", "2"]);
    let used = |task: &str, owner: &str, text: &str| {
        let report = run(&scene, offer(task, owner, text, USE));
        assert_eq!(how(&report), (Outcome::Succeeded, Some(0)), "{report:?}");
        assert_eq!(scene.stdout(task), "one /hivemind/packages/hmdep/__init__.py\n");
    };
    used("first", "ada", "hmdep==1.0");
    let first = index.requests();
    assert!(first > 0);
    used("second", "ada", " hmdep == 1.0   # the same");
    assert_eq!(index.requests(), first, "the second has the same set");
    used("other-owner", "eve", "hmdep==1.0");
    assert!(index.requests() > first, "nobody's packages are another's");
    let kept = 2;
    until_true("only the sets are left", || scene.left_overs() == kept);
    assert_eq!(tables(), [""; 0]);

    for (task, text, words) in [
        ("no-version", "hmtest==9.9", "No matching distribution found for hmtest==9.9"),
        ("no-package", "hmnone", "No matching distribution found for hmnone"),
        ("source", "hmsource", "No matching distribution found for hmsource"),
        ("hash", &format!("hmtest==1.0 --hash=sha256:{}", "0".repeat(64)), "DO NOT MATCH"),
    ] {
        let report = run(&scene, offer(task, "ada", text, "pass"));
        assert_eq!((report.outcome, report.code.as_str()), (Outcome::Rejected, "requirements"), "{task}: {report:?}");
        assert!(report.reason.contains(words), "{task}: {report:?}");
    }
    index.end();
    let report = run(&scene, offer("away", "ada", "hmtest==1.0", "pass"));
    assert_eq!((report.outcome, report.code.as_str()), (Outcome::NodeFault, "requirements_not_here"), "{report:?}");
    assert!(report.reason.contains("can't be reached"), "{report:?}");
    // What is there needs no index.
    used("third", "ada", "hmdep==1.0");
    until_true("only the sets are left", || scene.left_overs() == kept);
    // A collection leaves them, and takes what no record names.
    assert!(scene.run(&["gc"]).status.success());
    assert_eq!(scene.left_overs(), kept);
    fs::remove_dir_all(scene.dir.join("state/packages")).unwrap();
    assert!(scene.run(&["gc"]).status.success());
    scene.until_clean();
    assert_eq!(tables(), [""; 0]);
}

#[test]
fn half_a_set_of_a_killed_worker_is_nobodys() {
    if !in_namespace("half_a_set_of_a_killed_worker_is_nobodys") {
        return;
    }
    let neighbourhood = Neighbourhood::make();
    let engine = OwnEngine::start_with_networks("half", IMAGE);
    let (mut scene, index) = scene("half", &neighbourhood, &engine);
    scene.start(&["--slots", "1"]);
    scene.submit(offer("slow", "ada", "hmslow", "import hmslow"));
    scene.until_status("it installs", |status| {
        status.attempts.iter().any(|held| held.detail == "installs 1 requirement")
    });
    until_true("pip has asked", || index.requests() > 0);
    scene.kill_worker();
    assert!(scene.left_overs() >= 3, "container, network and volume of the install");
    scene.start(&["--slots", "1"]);
    let report = scene.until_complete("slow");
    assert_eq!(how(&report), (Outcome::Succeeded, Some(0)), "{report:?}");
    until_true("only the set is left", || scene.left_overs() == 1);
    assert_eq!(tables(), [""; 0]);
    fs::remove_dir_all(scene.dir.join("state/packages")).unwrap();
    assert!(scene.run(&["gc"]).status.success());
    scene.until_clean();
}

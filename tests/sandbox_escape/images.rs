//! What an image declares does not change the sandbox, and nothing of it stays.

use std::io::Read;
use std::process::Command;

use hivemind_worker::docker::{CreateBody, Docker, Healthcheck};
use hivemind_worker::node::offer::Offer;
use hivemind_worker::node::record::{EventKind, Outcome};

use crate::node_util::{GATED, how, python};
use crate::yard::{IMAGE, Yard, archive, outside_on, results};

/// A program that is root's by its mode.
const SETUID: &str = "/usr/local/bin/suid-python";

/// The base image with a setuid program, a user who is in every group, and these declarations.
struct Image {
    docker: Docker,
    name: String,
}

impl Image {
    fn make(docker: &Docker, name: &str, declares: &[&str]) -> Self {
        let name = format!("hivemind-test-escape-{name}:{}", std::process::id());
        let body = CreateBody {
            image: IMAGE.to_owned(),
            cmd: Some(vec!["none".to_owned()]),
            network_disabled: true,
            healthcheck: Some(Healthcheck::none()),
            ..CreateBody::default()
        };
        let id = docker.create_container(&format!("hivemind-test-escape-{}-{}", name.len(), std::process::id()), &body);
        let id = id.unwrap().id;
        docker.put_archive(&id, "/", &mut files().as_slice(), crate::node_util::PATIENCE).unwrap();
        let mut command = Command::new("docker");
        command.arg("commit");
        for line in declares {
            command.args(["--change", line]);
        }
        let output = command.args([&id, &name]).output().unwrap();
        docker.remove_container(&id).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self { docker: docker.clone(), name }
    }

    fn task(&self, name: &str, words: &[&str]) -> Offer {
        let command = words.iter().map(|word| (*word).to_owned()).collect();
        Offer { image: self.name.clone(), inputs: archive(), command, ..python(name, "") }
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = self.docker.remove_image(&self.name);
    }
}

fn files() -> Vec<u8> {
    let output = Command::new("docker")
        .args(["run", "--rm", "--network=none", "--label=hivemind.test=escape", "--entrypoint=cat", IMAGE])
        .arg("/usr/bin/python3")
        .output()
        .unwrap();
    assert!(output.status.success());
    let mut builder = tar::Builder::new(Vec::new());
    let group = b"root:x:0:task\ndisk:x:6:task\ndocker:x:999:task\ntask:x:1000:task\n";
    let entries: [(&str, u32, &[u8]); 4] = [
        (SETUID, 0o4755, &output.stdout),
        ("etc/group", 0o644, group),
        ("data/kept", 0o644, b"of the image"),
        ("evil.sh", 0o755, b"#!/bin/sh\necho evil\n"),
    ];
    for (path, mode, mut bytes) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(mode);
        builder.append_data(&mut header, path.trim_start_matches('/'), bytes.by_ref()).unwrap();
    }
    builder.into_inner().unwrap()
}

#[test]
fn a_setuid_program_gains_nothing() {
    let yard = Yard::open("escape-suid");
    let image = Image::make(&yard.scene.docker, "suid", &["USER root"]);
    let word = format!("suid={SETUID}");
    let (report, said) = yard.run(image.task("suid", &["python3", "probe.py", &word]));
    assert_eq!(how(&report), (Outcome::Succeeded, Some(0)), "{report:?}");
    let control = outside_on(None, &image.name, &["--user=1000:1000", "--network=none"], &[&word]);
    println!("inside {said:?}, outside {control:?}");
    assert!(control[&word].starts_with("0 ") && !control[&word].ends_with(" 0000000000000000"), "{control:?}");
    assert_eq!(results(&said)[&word], "1000 0000000000000000");
    yard.unharmed();
}

#[test]
fn our_configuration_wins_over_the_images() {
    let yard = Yard::open("escape-image");
    let declares = [
        "USER root",
        "ENTRYPOINT [\"/evil.sh\"]",
        "CMD [\"evil\"]",
        "VOLUME /data",
        "VOLUME /var/lib/more",
        "VOLUME /tmp",
        "VOLUME /workspace",
        "HEALTHCHECK --interval=1s CMD touch /workspace/healthy",
        "ENV LD_PRELOAD=/evil.so HOME=/evil TASK_ID=evil",
        "WORKDIR /evil",
        "EXPOSE 80",
        "LABEL hivemind.key=evil hivemind.role=evil hivemind.task=evil",
    ];
    let image = Image::make(&yard.scene.docker, "declares", &declares);
    let program = format!(
        "{GATED}status = dict(l.split(':\\t') for l in open('/proc/self/status').read().splitlines() if ':\\t' in l)\n\
         print(os.getuid(), os.getgroups(), os.getcwd(), os.environ['HOME'], os.environ['TASK_ID'], status['CapBnd'])\n\
         print(sorted(os.listdir('/data')), os.statvfs('/data').f_blocks * os.statvfs('/data').f_frsize)\n\
         open('/data/x', 'w'), open('/var/lib/more/x', 'w')\n"
    );
    yard.scene.submit(image.task("declares", &["python3", "-c", &program]));
    yard.scene.until_up("declares");
    let container = yard.scene.container("declares").expect("its labels are ours");
    let found = yard.scene.docker.inspect_container(&container).unwrap();
    let volumes: Vec<&str> = found.mounts.iter().map(|mount| mount.destination.as_str()).collect();
    assert_eq!(volumes, ["/workspace"], "no volume but ours");
    yard.scene.go("declares");
    let report = yard.scene.until_complete("declares");
    assert_eq!(how(&report), (Outcome::Succeeded, Some(0)), "{report:?} {}", yard.scene.stdout("declares"));
    // Half of the task's 64 MiB.
    let expected = "up\n1000 [1000] /workspace /workspace declares 0000000000000000\n[] 33554432\n";
    assert_eq!(yard.scene.stdout("declares"), expected);
    let is_told = |event: hivemind_worker::node::record::Event| matches!(event.kind, EventKind::Note(text) if text.starts_with("/data, a volume of the image"));
    assert!(yard.scene.record("declares").into_iter().any(is_told));
    yard.unharmed();
}

#[test]
fn a_volume_where_the_sandbox_has_its_own_is_refused() {
    let yard = Yard::open("escape-volumes");
    for (name, path) in [("output", "/workspace/output"), ("proc", "/proc"), ("cgroup", "/sys/fs/cgroup")] {
        let image = Image::make(&yard.scene.docker, name, &[&format!("VOLUME {path}")]);
        let (report, _) = yard.run(image.task(name, &["true"]));
        assert_eq!(report.outcome, Outcome::Rejected, "{report:?}");
        assert!(report.reason.contains(path), "{report:?}");
    }
    yard.unharmed();
}

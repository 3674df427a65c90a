//! Credentials for tasks' images: a real registry that asks for a password, and others that must never see it.
#![allow(clippy::unwrap_used)]

mod node_util;
mod registry_util;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use hivemind_worker::docker::Docker;
use hivemind_worker::node::offer::Offer;
use hivemind_worker::node::record::Outcome;
use node_util::{Scene, how};
use registry_util::real::{BASIC, Door, PASSWORD, RealRegistry};
use registry_util::{Content, Registry, digest, whole};

/// An image that goes with the test, however that ends.
struct Pulled(Docker, String);

impl Drop for Pulled {
    fn drop(&mut self) {
        let _ = self.0.remove_image(&self.1);
    }
}

fn task(name: &str, image: &str) -> Offer {
    Offer {
        image: image.to_owned(),
        pull: "always".to_owned(),
        command: ["/bin/busybox", "echo", "up"].map(str::to_owned).to_vec(),
        ..node_util::python(name, "")
    }
}

/// A file as `docker login` writes it, for these registries.
fn login(scene: &Scene, hosts: &[&str], basic: &str) -> PathBuf {
    let auths: serde_json::Map<_, _> =
        hosts.iter().map(|host| ((*host).to_owned(), serde_json::json!({ "auth": basic }))).collect();
    let path = scene.dir.join("login.json");
    fs::write(&path, serde_json::json!({ "auths": auths }).to_string()).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    path
}

/// Nothing that the scene has written or said shows the password.
fn assert_secret(scene: &Scene, tasks: &[&str]) {
    let mut texts = vec![scene.log(), format!("{:?}", scene.status())];
    texts.extend(tasks.iter().map(|task| format!("{:?}", scene.view(task))));
    for text in texts {
        assert!(!text.contains(PASSWORD) && !text.contains(BASIC), "{text}");
    }
}

#[test]
fn a_private_image_is_pulled_with_the_owners_credentials_and_others_never_see_them() {
    let registry = RealRegistry::start(Door::Locked);
    let content = Content::busybox("amd64", "private");
    registry.push("private", "1", &content);
    // It would take the same credentials, and the file has them for it. The owner has not named it.
    let curious = Registry::serve(Content::busybox("amd64", "curious"), Some("Basic never"), whole);
    let curious_host = curious.name().split('/').next().unwrap().to_owned();
    let mut scene = Scene::with_master("login");
    let _pulled = Pulled(scene.docker.clone(), digest(&content.config));
    let file = login(&scene, &[&registry.host, &curious_host], BASIC);

    // Nobody is named.
    scene.start(&[]);
    scene.submit(task("none", &registry.at("private:1")));
    let report = scene.until_complete("none");
    assert_eq!(report.outcome, Outcome::Rejected, "{report:?}");
    let hint = format!("the owner of this node names no credentials for {} (HIVEMIND_TASK_REGISTRIES)", registry.host);
    assert!(report.reason.contains("no basic auth credentials") && report.reason.contains(&hint), "{report:?}");
    scene.kill_worker();

    scene.set_env("HIVEMIND_REGISTRY_AUTH_FILE", file.to_str().unwrap());
    scene.set_env("HIVEMIND_TASK_REGISTRIES", &registry.host);
    scene.start(&[]);
    scene.submit(task("named", &registry.at("private:1")));
    let report = scene.until_complete("named");
    assert_eq!(how(&report), (Outcome::Succeeded, Some(0)), "{report:?}");
    scene.submit(task("curious", &format!("{}:1", curious.name())));
    let report = scene.until_complete("curious");
    assert_eq!(report.outcome, Outcome::Rejected, "{report:?}");
    let seen = curious.seen.lock().unwrap().join("\n").to_lowercase();
    assert!(seen.contains("get /v2/") && !seen.contains("authorization"), "{seen}");

    // What its registry does not take is the owner's to mend, and the file is read anew.
    login(&scene, &[&registry.host], "QWxhZGRpbjp3cm9uZw==");
    scene.submit(task("wrong", &registry.at("private:1")));
    let report = scene.until_complete("wrong");
    assert_eq!(report.outcome, Outcome::NodeFault, "{report:?}");
    let words = format!("{} does not take what HIVEMIND_REGISTRY_AUTH_FILE has for it", registry.host);
    assert!(report.reason.ends_with(&words), "{report:?}");
    assert_secret(&scene, &["none", "named", "curious", "wrong"]);
    scene.until_clean();
}

#[test]
fn a_file_that_others_may_read_or_that_has_nothing_to_offer_is_no_start() {
    let mut scene = Scene::with_master("login-file");
    let file = login(&scene, &["h.example.org"], BASIC);
    let url = format!("http://{}", scene.master_address());
    scene.set_env("HIVEMIND_REGISTRY_AUTH_FILE", file.to_str().unwrap());
    let said = |scene: &Scene| {
        let output = scene.run(&["--master-url", &url, "--monitor-port", "0"]);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(78), "{text}");
        assert!(!text.contains(BASIC) && !text.contains(PASSWORD), "{text}");
        text
    };
    scene.set_env("HIVEMIND_TASK_REGISTRIES", "h.example.org,other.example.org");
    assert!(said(&scene).contains("has no entry for other.example.org"));
    let doctor = |scene: &Scene| {
        let output = String::from_utf8(scene.run(&["doctor"]).stdout).unwrap();
        output.lines().find(|line| line.contains(" registries ")).unwrap_or_default().to_owned()
    };
    assert!(doctor(&scene).starts_with("FAIL") && doctor(&scene).contains("has no entry for"), "{}", doctor(&scene));
    scene.set_env("HIVEMIND_TASK_REGISTRIES", "h.example.org");
    assert!(doctor(&scene).starts_with("ok") && !doctor(&scene).contains(BASIC), "{}", doctor(&scene));
    fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
    let words = format!("has mode 0644, so others may read it: chmod 600 '{}'", file.display());
    assert!(said(&scene).contains(&words), "{}", said(&scene));
}

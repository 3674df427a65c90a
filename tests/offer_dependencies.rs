//! What an assignment says of files of earlier tasks and of packages: hostile and odd values are refused with the name of
//! the field, before anything is kept or started.
#![allow(clippy::unwrap_used)]

mod offer_support;

use hivemind_worker::node::dependency::MAX_DEPENDENCIES;
use hivemind_worker::node::net::NetworkPolicy;
use hivemind_worker::node::spec::{MAX_BYTES, SpecDefaults, TaskSpec};
use hivemind_worker::rpc::convert::decode_offer;
use hivemind_worker::rpc::schema::{Assignment, Dependency};
use offer_support::{complaint, with};

type Change = Box<dyn Fn(&mut Dependency)>;

fn file(path: &str) -> Dependency {
    Dependency {
        task_id: "earlier".to_owned(),
        attempt: 2,
        owner_id: "ada".to_owned(),
        path: path.to_owned(),
        sha256: vec![7; 32],
        size: 10,
        url: String::new(),
    }
}

fn check(files: Vec<Dependency>) -> Result<TaskSpec, String> {
    let offer = decode_offer(&with(|a| a.dependencies = files)).unwrap();
    TaskSpec::check(&offer, &SpecDefaults::default()).map_err(|error| error.to_string())
}

#[test]
fn a_wrong_file_is_refused_with_its_place_in_the_list() {
    let changes: Vec<(&str, Change)> = vec![
        ("owner_id is not ada", Box::new(|file| file.owner_id = "eve".to_owned())),
        ("owner_id is not ada", Box::new(|file| file.owner_id = String::new())),
        ("task_id", Box::new(|file| file.task_id = "..".to_owned())),
        ("task_id", Box::new(|file| file.task_id = String::new())),
        ("attempt is 0", Box::new(|file| file.attempt = 0)),
        ("attempt is 4294967295", Box::new(|file| file.attempt = u32::MAX)),
        ("sha256 has 0 bytes", Box::new(|file| file.sha256.clear())),
        ("sha256 has 33 bytes", Box::new(|file| file.sha256.push(0))),
        ("size is -1", Box::new(|file| file.size = -1)),
        ("size is", Box::new(|file| file.size = i64::MAX)),
        ("url must begin", Box::new(|file| file.url = "file:///etc/passwd".to_owned())),
        ("url", Box::new(|file| file.url = "https://user:word@h/".to_owned())),
        ("are fetched", Box::new(|file| (file.url, file.size) = ("https://h/x".to_owned(), (1 << 30) + 1))),
        ("is of earlier#3, and one before it of earlier#2", Box::new(|file| file.attempt = 3)),
        ("is the file of dependencies[0]", Box::new(|file| file.path = "output/a".to_owned())),
    ];
    let paths = ["", "/", "/etc/passwd", "..", "a/../b", "a//b", "a/", "./a", "a\0b", "a\nb", &"x".repeat(1_025)];
    let paths = paths.map(|path| ("path", path.to_owned()));
    for (word, path) in paths {
        let error = check(vec![file("output/a"), file(&path)]).expect_err(&path);
        assert!(error.starts_with("dependencies[1] ") && error.contains(word), "{path:?}: {error}");
    }
    for (words, change) in changes {
        let mut wrong = file("output/b");
        change(&mut wrong);
        let error = check(vec![file("output/a"), wrong]).expect_err(words);
        assert!(error.starts_with("dependencies[1] ") && error.contains(words), "{words}: {error}");
    }
    let error = check(vec![file("output/a/b"), file("output/a")]).unwrap_err();
    assert_eq!(error, "dependencies[0] is below dependencies[1], which is a file");
    let large = |size| Dependency { size, ..file("output/a") };
    let error = check(vec![large((64 << 20) - 9), file("b")]).unwrap_err();
    assert!(error.starts_with("dependencies have 67108865 bytes together, more than the 67108864"), "{error}");
    let many = |count: usize| (0..count).map(|n| file(&n.to_string())).collect();
    assert!(check(many(MAX_DEPENDENCIES)).is_ok());
    assert!(check(many(MAX_DEPENDENCIES + 1)).unwrap_err().contains("at most 256"));
    assert!(check(vec![large(i64::try_from(MAX_BYTES).unwrap() + 1)]).is_err());
}

#[test]
fn the_room_of_earlier_files_is_reserved() {
    let spec = check(vec![file("output/a"), file("output/b")]).unwrap();
    assert_eq!(spec.needs().disk_bytes, (64 << 20) + 20);
    assert_eq!(spec.dependencies[0].place(), "earlier/output/a");
}

#[test]
fn packages_need_egress_and_have_names_only() {
    let offer = |text: &str| decode_offer(&with(|a: &mut Assignment| a.requirements = text.to_owned()));
    let refused = complaint("requirements", offer("numpy==1.26.4").map(Box::new));
    assert_eq!(refused, None, "the owner has not allowed egress");
    let network = NetworkPolicy { is_egress_allowed: true, ..NetworkPolicy::default() };
    let defaults = SpecDefaults { network, ..SpecDefaults::default() };
    let check = |text: &str| TaskSpec::check(&offer(text).unwrap(), &defaults).map_err(|error| error.to_string());
    assert_eq!(check("numpy == 1.26.4\n# why").unwrap().requirements, "numpy==1.26.4\n");
    let error = check("numpy\n\n-e .").unwrap_err();
    assert!(error.starts_with("requirements line 3: \"-e .\" is an option"), "{error}");
    let words = complaint("requirements", offer("numpy\n--index-url https://evil.example/").map(Box::new));
    assert_eq!(words, None);
    // None at all need nothing.
    assert!(TaskSpec::check(&offer("# none\n").unwrap(), &SpecDefaults::default()).is_ok());
}

//! The binary's command line without a worker: help, version, mistakes and what is said about them.

#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::process::{Command, Output};

fn worker(args: &[&str], env: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hivemind-worker"))
        .args(args)
        .env_clear()
        .env("HOME", "/nonexistent")
        .envs(env.iter().copied())
        .output()
        .unwrap()
}

fn scratch(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("hivemind-cli-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).unwrap();
    path
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn help_and_version_go_to_standard_output() {
    let help = worker(&["--help"], &[]);
    assert_eq!(help.status.code(), Some(0));
    for word in ["Usage:", "standalone", "submit", "--config FILE", "--master-url URL", "--version", "default: 5001"] {
        assert!(out(&help).contains(word), "{word}");
    }
    let version = worker(&["--version"], &[]);
    assert_eq!(out(&version), format!("hivemind-worker {}\n", env!("CARGO_PKG_VERSION")));
    let submit = worker(&["submit", "--help"], &[]);
    assert!(out(&submit).contains("timeout_s   seconds"));
    assert!(out(&worker(&["help", "keys"], &[])).contains("RESOURCE_REPORT_INTERVAL  live"));
    assert!(help.stderr.is_empty() && version.stderr.is_empty());
}

#[test]
fn mistakes_on_the_command_line_end_with_2() {
    for (args, message) in [
        (&["--cpu", "2"][..], "hivemind-worker: flag --cpu: unknown flag: the nearest is --cpus\n"),
        (&["statsu"], "hivemind-worker: command line: unknown command \"statsu\": the nearest is status\n"),
        (
            &["--cpus", "many"],
            "hivemind-worker: flag --cpus: \"many\" is no number of CPUs: write 2 or 1.5, from 0.01 to 1024\n",
        ),
        (&["help", "statsu"], "hivemind-worker: no help about \"statsu\": the nearest is status\n"),
    ] {
        let output = worker(args, &[]);
        assert_eq!((output.status.code(), err(&output).as_str()), (Some(2), message));
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn mistakes_in_the_configuration_end_with_78() {
    let dir = scratch("config");
    let file = dir.join("worker.conf");
    std::fs::write(&file, "LOG_LEVEL=info\nMASTER_NOD_URL=https://m\n").unwrap();
    let path = file.to_str().unwrap();
    let output = worker(&["--config", path], &[]);
    assert_eq!(output.status.code(), Some(78));
    let message =
        format!("hivemind-worker: {path}:2: unknown key \"MASTER_NOD_URL\": the nearest is MASTER_NODE_URL\n");
    assert_eq!(err(&output), message);
    let output = worker(&["run"], &[("MONITOR_PORT", "x")]);
    assert_eq!(output.status.code(), Some(78));
    assert!(err(&output).contains("environment variable MONITOR_PORT"), "{}", err(&output));
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn without_a_master_it_says_what_to_do() {
    let output = worker(&["run"], &[]);
    assert_eq!(output.status.code(), Some(78));
    for word in ["MASTER_NODE_URL", "--master-url https://", "hivemind-worker standalone"] {
        assert!(err(&output).contains(word), "{}", err(&output));
    }
}

#[test]
fn an_address_for_grpc_alone_is_a_master() {
    let dir = scratch("grpc-alone");
    std::fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let env = [("MASTER_GRPC_URL", "https://127.0.0.1:1"), ("HIVEMIND_STATE", dir.to_str().unwrap())];
    let output = worker(&["run"], &env);
    assert!(err(&output).contains("chmod 700"), "it comes as far as the state folder: {}", err(&output));
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn a_token_is_never_shown() {
    for (name, value) in [("HIVEMIND_TOKEN", "s3cret token"), ("MASTER_NODE_URL", "https://u:s3cret@m")] {
        let output = worker(&["run"], &[(name, value)]);
        assert_eq!(output.status.code(), Some(78));
        assert!(!err(&output).contains("s3cret"), "{}", err(&output));
    }
}

#[test]
fn what_cannot_be_used_on_the_way_to_the_master_is_named() {
    let dir = scratch("way");
    let state = dir.join("state");
    let [cert, key] = ["cert.pem", "key.pem"].map(|name| dir.join(name).to_str().unwrap().to_owned());
    std::fs::write(&cert, "nothing").unwrap();
    let base = [("MASTER_NODE_URL", "https://master.invalid"), ("HIVEMIND_STATE", state.to_str().unwrap())];
    for (env, message) in [
        (
            [("https_proxy", "socks5://u:s3cret@p"), ("NO_PROXY", "other.invalid")],
            "environment variable https_proxy: must begin with http://".to_owned(),
        ),
        (
            [("MASTER_CLIENT_CERT_FILE", cert.as_str()), ("MASTER_CLIENT_KEY_FILE", &key)],
            format!("failed to read certificate chain from {cert}: it has no PEM section CERTIFICATE"),
        ),
    ] {
        for command in ["run", "doctor"] {
            let output = worker(&[command], &[&base[..], &env].concat());
            let text = [out(&output), err(&output)].concat();
            assert!(text.contains(&message) && !text.contains("s3cret"), "{text}");
            assert_eq!(output.status.code(), Some(if command == "run" { 78 } else { 1 }));
        }
    }
    let env = [&base[..], &[("HTTPS_PROXY", "http://u:s3cret@10.0.0.1:3128")]].concat();
    let text = out(&worker(&["doctor"], &env));
    assert!(text.contains("https://master.invalid:443 is behind the proxy 10.0.0.1:3128"), "{text}");
    assert!(!text.contains("s3cret"));
    let env = [&env[1..], &[("MASTER_NODE_URL", "https://10.9.9.9"), ("NO_PROXY", "10.9.0.0/16")]].concat();
    let text = out(&worker(&["doctor"], &env));
    assert!(text.contains("https://10.9.9.9:443 is at 10.9.9.9"), "{text}");
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn without_a_worker_clients_say_where_they_looked() {
    let dir = scratch("none");
    let state = dir.to_str().unwrap();
    std::fs::write(dir.join("t.json"), "{}").unwrap();
    let task = dir.join("t.json");
    for (args, code) in [
        (&["status"][..], 1),
        (&["tasks", "--json"], 1),
        (&["logs", "t"], 1),
        (&["cancel", "t"], 1),
        (&["drain"], 1),
        (&["monitor"], 1),
        (&["submit", task.to_str().unwrap()], 125),
    ] {
        let args: Vec<&str> = args.iter().copied().chain(["--state", state]).collect();
        let output = worker(&args, &[]);
        assert_eq!(output.status.code(), Some(code), "{args:?}");
        let message = format!("no worker answers at {state}/control.sock");
        assert!(err(&output).contains(&message), "{args:?} {}", err(&output));
        assert!(output.stdout.is_empty());
    }
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn doctor_grades_each_check_and_fails_without_an_engine() {
    let dir = scratch("doctor");
    let state = dir.join("state");
    let engine = format!("unix://{}/docker.sock", dir.display());
    let args = ["doctor", "--state", state.to_str().unwrap(), "--monitor-port", "0"];
    let output = worker(&args, &[("DOCKER_HOST", &engine)]);
    assert_eq!(output.status.code(), Some(1));
    let text = out(&output);
    let graded = |name: &str| {
        text.lines().find(|line| line.contains(name)).unwrap().split_whitespace().next().unwrap().to_owned()
    };
    assert_eq!(graded("state folder"), "ok", "{text}");
    assert_eq!(graded("engine"), "FAIL", "{text}");
    assert_eq!(graded("master"), "hint", "{text}");
    assert_eq!(graded("monitor"), "ok", "{text}");
    assert!(text.contains("apt-get install docker.io"), "{text}");
    std::fs::create_dir(&state).unwrap();
    std::fs::set_permissions(&state, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let text = out(&worker(&args, &[("DOCKER_HOST", &engine)]));
    assert!(text.contains(&format!("chmod 700 '{}'", state.display())), "{text}");
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn healthcheck_asks_the_monitor() {
    use std::io::{Read, Write};
    for (answer, code) in
        [("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n", 0), ("HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n", 1)]
    {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port().to_string();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = [0; 1024];
            let count = stream.read(&mut head).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8_lossy(&head[..count]).into_owned()
        });
        assert_eq!(worker(&["healthcheck", "--monitor-port", &port], &[]).status.code(), Some(code));
        assert!(server.join().unwrap().starts_with("GET /healthz HTTP/1.1\r\n"));
    }
    let wrong = worker(&["healthcheck", "--monitor-port", "1"], &[]);
    assert_eq!(wrong.status.code(), Some(1));
    assert!(err(&wrong).contains("--monitor-port N or MONITOR_PORT"), "{}", err(&wrong));
}

//! The engine client against a scripted engine on a Unix socket: what a real one doesn't do on request, such as
//! garbage, cuts, floods, silence.

#![allow(clippy::unwrap_used, missing_docs)]

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use hivemind_worker::docker::{
    Change, CreateBody, Docker, DockerHost, Error, EventFilter, LogOptions, NodeTimeouts, RegistryAuth, Stop,
    WaitCondition,
};

const PING: &[u8] = b"HTTP/1.1 200 OK\r\nApi-Version: 1.45\r\nContent-Length: 2\r\n\r\nOK";
const IDLE: Duration = Duration::from_secs(5);
/// Within this a stop must act; a slow machine has room.
const PROMPT: Duration = Duration::from_secs(2);

/// Answers pings itself and everything else by a script, one thread a connection.
struct Fake {
    path: PathBuf,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Fake {
    fn new(script: impl Fn(&str, &mut UnixStream) + Send + Sync + 'static) -> Fake {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("hivemind-fake-{}-{number}.sock", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (script, log) = (Arc::new(script), Arc::clone(&seen));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, script, log) = (stream.unwrap(), Arc::clone(&script), Arc::clone(&log));
                thread::spawn(move || {
                    let head = read_head(&mut stream);
                    if head.starts_with("GET /_ping ") {
                        let _ = stream.write_all(PING);
                        return;
                    }
                    log.lock().unwrap().push(head.clone());
                    script(&head, &mut stream);
                });
            }
        });
        Fake { path, seen }
    }

    /// Gives the same answer to everything.
    fn answering(answer: impl Into<Vec<u8>>) -> Fake {
        let answer = answer.into();
        Fake::new(move |_, stream| {
            let _ = stream.write_all(&answer);
        })
    }

    fn docker(&self) -> Docker {
        self.docker_with(NodeTimeouts::default())
    }

    fn docker_with(&self, timeouts: NodeTimeouts) -> Docker {
        Docker::new(DockerHost::parse(&format!("unix://{}", self.path.display())).unwrap(), timeouts)
    }

    fn request_line(&self) -> String {
        self.seen.lock().unwrap().last().unwrap().lines().next().unwrap().to_owned()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn read_head(stream: &mut UnixStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
        head.push(byte[0]);
    }
    String::from_utf8_lossy(&head).into_owned()
}

fn answer(status: &str, content_type: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n\r\n{body}")
}

fn json(status: &str, body: &str) -> String {
    answer(status, "application/json", body)
}

fn chunk(bytes: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

fn frame(stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&[stream, 0, 0, 0], &length[..], payload].concat()
}

const STREAM_HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
const ATTACH_HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\n";

fn protocol_text(error: Error) -> String {
    assert!(matches!(error, Error::Protocol { .. }), "{error:?}");
    error.to_string()
}

#[test]
fn no_socket_no_listener_and_a_long_path_say_what_to_do() {
    let docker = |path: &str| Docker::new(DockerHost::parse(path).unwrap(), NodeTimeouts::default());
    let error = docker("unix:///nonexistent/docker.sock").ping().unwrap_err();
    assert!(error.is_unreachable());
    assert!(error.to_string().contains("no engine socket at /nonexistent/docker.sock"), "{error}");

    let fake = Fake::answering("");
    let path = fake.path.with_extension("dead");
    drop(UnixListener::bind(&path).unwrap());
    let error = docker(&format!("unix://{}", path.display())).ping().unwrap_err();
    std::fs::remove_file(&path).unwrap();
    assert!(error.to_string().contains("nobody listens at"), "{error}");
}

#[test]
fn garbage_html_and_broken_json_are_not_an_engine() {
    for (bytes, word) in [
        ("SSH-2.0-OpenSSH_9.2\r\n\r\n".to_owned(), "inspect container c"),
        (answer("200 OK", "text/html", "<html><body>Log in</body></html>"), "text/html: <html>"),
        (answer("502 Bad Gateway", "text/html", "<html>proxy</html>"), "status 502"),
        (json("200 OK", "{\"Id\": tru"), "no valid JSON"),
        (json("200 OK", ""), "no valid JSON"),
        (json("200 OK", "[1,2]"), "no valid JSON"),
        (answer("302 Found\r\nLocation: http://10.0.0.1/", "text/plain", ""), "status 302"),
        (answer("500 Internal Server Error", "application/json", "{}"), "status 500"),
        (json("404 Not Found", "{\"message\":\"page not found\"}"), "doesn't know this call"),
    ] {
        let fake = Fake::answering(bytes.clone());
        let error = fake.docker().inspect_container("c").unwrap_err();
        assert!(!error.is_not_found());
        let text = protocol_text(error);
        assert!(text.contains(word), "{text} for {bytes}");
    }
}

#[test]
fn a_cut_body_is_an_error_at_every_byte() {
    let whole = json("200 OK", "{\"Id\":\"x\",\"Name\":\"/n\"}");
    let body = whole.find("\r\n\r\n").unwrap() + 4;
    for end in 0..whole.len() {
        let fake = Fake::answering(&whole.as_bytes()[..end]);
        let error = fake.docker().inspect_container("c").unwrap_err();
        if end >= body {
            assert!(protocol_text(error).contains("cut"));
        } else {
            assert!(matches!(error, Error::Unreachable { .. } | Error::Protocol { .. }), "{error:?}");
        }
    }
    let fake = Fake::answering([STREAM_HEAD, &chunk(b"{\"Id\":\"x\"}")].concat());
    assert!(protocol_text(fake.docker().inspect_container("c").unwrap_err()).contains("cut"));
}

#[test]
fn too_much_json_is_refused_without_reading_it_all() {
    let fake = Fake::new(|_, stream| {
        let _ = stream.write_all(STREAM_HEAD);
        let piece = chunk(&[b' '; 65536]);
        while stream.write_all(&piece).is_ok() {}
    });
    let text = protocol_text(fake.docker().inspect_container("c").unwrap_err());
    assert!(text.contains("more than 10485760 bytes"), "{text}");

    let fake = Fake::new(|_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 500 Oh\r\nTransfer-Encoding: chunked\r\n\r\n");
        while stream.write_all(&chunk(&[b'x'; 65536])).is_ok() {}
    });
    assert!(protocol_text(fake.docker().inspect_container("c").unwrap_err()).contains("more than 65536 bytes"));

    let deep = format!("{{\"Config\":{}", "[".repeat(1_000_000));
    let fake = Fake::answering(json("200 OK", &deep));
    assert!(protocol_text(fake.docker().inspect_container("c").unwrap_err()).contains("no valid JSON"));
}

#[test]
fn mutated_answers_are_errors_or_answers_but_never_a_panic() {
    let container = "{\"Id\":\"x\",\"Name\":\"/n\",\"State\":{\"ExitCode\":3,\"OOMKilled\":true,\"Status\":\"exited\"},\
                     \"Config\":{\"Labels\":{\"a\":\"b\"}},\"HostConfig\":{\"Memory\":5,\"CapDrop\":[\"ALL\"]},\"Mounts\":[]}";
    let chunked = [STREAM_HEAD, &chunk(container.as_bytes()), b"0\r\n\r\n"].concat();
    let event =
        "{\"Type\":\"container\",\"Action\":\"die\",\"Actor\":{\"ID\":\"a\",\"Attributes\":{\"exitCode\":\"3\"}}}\n";
    let events = [STREAM_HEAD, &chunk(event.as_bytes()), &chunk(event.as_bytes()), b"0\r\n\r\n"].concat();
    let output = [ATTACH_HEAD, &frame(1, b"out"), &frame(2, b"err"), &frame(3, b"gone")].concat();
    let plain = json("200 OK", container).into_bytes();
    let refusal = json("409 Conflict", "{\"message\":\"in use\"}").into_bytes();
    let answers = [plain, refusal, chunked, events, output];

    let seed = AtomicU32::new(1);
    let fake = Fake::new(move |head, stream| {
        let seed = seed.fetch_add(1, Ordering::Relaxed);
        let kind = if head.contains("/events") {
            3
        } else if head.contains("/attach") {
            4
        } else {
            seed as usize / 3 % 3
        };
        let mut bytes = answers[kind].clone();
        let mut state = u64::from(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        for _ in 0..seed / 9 % 4 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let at = (state >> 33) as usize % bytes.len();
            match (state >> 20) % 4 {
                0 => bytes[at] = (state >> 8) as u8,
                1 => bytes[at] ^= 1 << (state >> 8 & 7),
                2 => drop(bytes.remove(at)),
                _ => bytes.insert(at, (state >> 8) as u8),
            }
        }
        let _ = stream.write_all(&bytes);
    });
    let docker = fake.docker();
    let (mut good, mut bad) = (0, 0);
    for _ in 0..1000 {
        match docker.inspect_container("c") {
            Ok(_) => good += 1,
            Err(_) => bad += 1,
        }
        if let Ok(events) = docker.events(&EventFilter::default()) {
            assert!(events.take(1000).count() < 1000);
        }
        if let Ok(mut output) = docker.attach("c") {
            while let Ok(Some(_)) = output.next_piece() {}
        }
    }
    assert!(good > 50 && bad > 50, "{good} good, {bad} bad");
}

#[test]
fn an_endless_head_is_refused() {
    let fake = Fake::new(|_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n");
        while stream.write_all(b"X-Header: some value\r\n").is_ok() {}
    });
    protocol_text(fake.docker().inspect_container("c").unwrap_err());
}

#[test]
fn silence_and_trickle_are_a_timeout() {
    let timeouts = NodeTimeouts { quick: Duration::from_millis(300), ..NodeTimeouts::default() };
    let silent = Fake::new(|_, stream| {
        let _ = stream.read(&mut [0]);
    });
    let started = Instant::now();
    let error = silent.docker_with(timeouts).inspect_container("c").unwrap_err();
    assert!(matches!(&error, Error::Timeout { operation } if operation == "inspect container c"), "{error:?}");
    assert!(started.elapsed() < PROMPT);

    let trickle = Fake::new(|_, stream| {
        let _ = stream.write_all(STREAM_HEAD);
        while stream.write_all(&chunk(b" ")).is_ok() {
            thread::sleep(Duration::from_millis(20));
        }
    });
    let started = Instant::now();
    let error = trickle.docker_with(timeouts).inspect_container("c").unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
    assert!(started.elapsed() < PROMPT);

    let started = Instant::now();
    let limit = Some(Duration::from_millis(300));
    let error = silent.docker().wait_container("c", WaitCondition::NotRunning, limit).unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
    assert!(started.elapsed() < PROMPT);

    let idle = Duration::from_millis(300);
    let error = silent.docker().pull_image("i", None, idle, &mut |_| {}).unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error:?}");

    let deaf = Fake::new(|_, _| thread::sleep(Duration::from_secs(3)));
    let error = deaf.docker().put_archive("c", "/", &mut std::io::repeat(b'x'), idle).unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
}

#[test]
fn a_full_backlog_does_not_block_for_ever() {
    let path = std::env::temp_dir().join(format!("hivemind-backlog-{}.sock", std::process::id()));
    let listener = UnixListener::bind(&path).unwrap();
    // Waiting connections beyond the backlog block; they are freed with the listener.
    let host = DockerHost::parse(&format!("unix://{}", path.display())).unwrap();
    let mut held = Vec::new();
    let filler = path.clone();
    let (sender, receiver) = std::sync::mpsc::channel();
    thread::spawn(move || {
        while let Ok(stream) = UnixStream::connect(&filler) {
            if sender.send(stream).is_err() {
                break;
            }
        }
    });
    while let Ok(stream) = receiver.recv_timeout(Duration::from_millis(300)) {
        held.push(stream);
    }
    let timeouts = NodeTimeouts { connect: Duration::from_millis(300), ..NodeTimeouts::default() };
    let started = Instant::now();
    let error = Docker::new(host.clone(), timeouts).ping().unwrap_err();
    assert!(error.is_unreachable() && error.to_string().contains("takes no connection"), "{error}");
    assert!(started.elapsed() < PROMPT);

    let stop = Stop::new();
    let docker = Docker::new(host, NodeTimeouts { connect: Duration::from_secs(60), ..timeouts }).with_stop(&stop);
    let waiting = thread::spawn(move || docker.ping());
    thread::sleep(Duration::from_millis(200));
    let started = Instant::now();
    stop.stop();
    assert!(waiting.join().unwrap().unwrap_err().is_stopped());
    assert!(started.elapsed() < PROMPT);
    drop(listener);
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn a_stop_releases_every_kind_of_blocked_call() {
    // Answers heads of streams and then says nothing.
    let fake = Fake::new(|head, stream| {
        let head = head.lines().next().unwrap();
        if head.contains("/attach") {
            let _ = stream.write_all(ATTACH_HEAD);
        } else if head.contains("/events") || head.contains("/logs") || head.contains("fromImage") {
            let _ = stream.write_all(STREAM_HEAD);
        } else if head.starts_with("PUT") {
            thread::sleep(Duration::from_secs(10));
        }
        let _ = stream.read(&mut [0]);
    });
    type Blocked = fn(&Docker) -> Error;
    let calls: [Blocked; 7] = [
        |docker| docker.inspect_container("c").unwrap_err(),
        |docker| docker.wait_container("c", WaitCondition::NotRunning, None).unwrap_err(),
        |docker| docker.attach("c").unwrap().next_piece().unwrap_err(),
        |docker| docker.events(&EventFilter::default()).unwrap().next().unwrap().unwrap_err(),
        |docker| docker.pull_image("i", None, IDLE, &mut |_| {}).unwrap_err(),
        |docker| docker.logs("c", &LogOptions::default(), IDLE).unwrap().next_piece().unwrap_err(),
        |docker| docker.put_archive("c", "/", &mut std::io::repeat(b'x'), IDLE).unwrap_err(),
    ];
    for (index, call) in calls.into_iter().enumerate() {
        let stop = Stop::new();
        let docker = fake.docker().with_stop(&stop);
        let blocked = thread::spawn(move || call(&docker));
        thread::sleep(Duration::from_millis(150));
        assert!(!blocked.is_finished(), "call {index}");
        let started = Instant::now();
        stop.stop();
        let error = blocked.join().unwrap();
        assert!(error.is_stopped(), "call {index}: {error:?}");
        assert!(started.elapsed() < PROMPT, "call {index}");
    }
}

#[test]
fn calls_after_a_stop_fail_at_once_and_others_go_on() {
    let fake = Fake::answering(json("200 OK", "[]"));
    let (docker, stop) = (fake.docker(), Stop::new());
    let bound = docker.with_stop(&stop);
    assert!(bound.list_containers(&[]).is_ok());
    stop.stop();
    stop.stop();
    assert!(bound.list_containers(&[]).unwrap_err().is_stopped());
    assert!(bound.ping().unwrap_err().is_stopped());
    assert!(docker.list_containers(&[]).is_ok());
    assert!(bound.with_stop(&Stop::new()).list_containers(&[]).is_ok());
}

#[test]
fn refusals_have_the_engines_words() {
    let fake = Fake::answering(json("409 Conflict", "{\"message\":\"Conflict. The name is \\u001b[31min use\\n\"}"));
    let error = fake.docker().create_container("n", &CreateBody::default()).unwrap_err();
    assert!(error.is_conflict());
    assert_eq!(error.to_string(), "create container n: the engine refused with 409: Conflict. The name is ?[31min use");

    let fake = Fake::answering(json("404 Not Found", "{\"message\":\"No such container: c\"}"));
    let docker = fake.docker();
    assert!(docker.inspect_container("c").unwrap_err().is_not_found());
    assert_eq!(docker.remove_container("c").unwrap(), Change::Already);
    assert_eq!(docker.remove_volume("v").unwrap(), Change::Already);
    assert_eq!(docker.remove_network("n").unwrap(), Change::Already);
    assert!(docker.start_container("c").unwrap_err().is_not_found());

    let fake = Fake::answering("HTTP/1.1 304 Not Modified\r\n\r\n");
    assert_eq!(fake.docker().start_container("c").unwrap(), Change::Already);
    assert_eq!(fake.docker().stop_container("c", Duration::ZERO).unwrap(), Change::Already);
    let fake = Fake::answering("HTTP/1.1 204 No Content\r\n\r\n");
    assert_eq!(fake.docker().start_container("c").unwrap(), Change::Done);

    // Podman 4.3.1's.
    let body = r#"{"cause":"that name is already in use","message":"container create: the container name \"n\" is already in use by 1.: that name is already in use","response":500}"#;
    let fake = Fake::answering(json("500 Internal Server Error", body));
    assert!(fake.docker().create_container("n", &CreateBody::default()).unwrap_err().is_conflict());
    let body = r#"{"cause":"OCI runtime error","message":"crun: x: OCI runtime error","response":500}"#;
    let fake = Fake::answering(json("500 Internal Server Error", body));
    assert!(!fake.docker().start_container("c").unwrap_err().is_conflict());

    let fake =
        Fake::answering(answer("500 Internal Server Error", "text/plain; charset=utf-8", "disk quota exceeded\n"));
    let error = fake.docker().start_container("c").unwrap_err();
    assert_eq!(error.to_string(), "start container c: the engine refused with 500: disk quota exceeded");
}

#[test]
fn an_old_engine_is_refused_and_no_version_is_no_engine() {
    for (version, word) in
        [("Api-Version: 1.40\r\n", "API 1.40 is too old: 1.41"), ("", "no Api-Version"), ("Api-Version: x\r\n", "none")]
    {
        let path = std::env::temp_dir().join(format!("hivemind-old-{}.sock", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let host = DockerHost::parse(&format!("unix://{}", path.display())).unwrap();
        let engine = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            read_head(&mut stream);
            stream.write_all(format!("HTTP/1.1 200 OK\r\n{version}Content-Length: 2\r\n\r\nOK").as_bytes()).unwrap();
        });
        let error = Docker::new(host, NodeTimeouts::default()).list_containers(&[]).unwrap_err();
        engine.join().unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(error.to_string().contains(word), "{error}");
    }
}

#[test]
fn what_comes_from_outside_is_encoded() {
    let fake = Fake::answering(json("200 OK", "{\"Id\":\"x\"}"));
    let docker = fake.docker();
    docker.inspect_image("host:5000/a?fromSrc=x&y #é%2F:1").unwrap();
    let path = "/v1.45/images/host%3A5000/a%3FfromSrc%3Dx%26y%20%23%C3%A9%252F%3A1/json";
    assert_eq!(fake.request_line(), format!("GET {path} HTTP/1.1"));
}

#[test]
fn names_that_lead_elsewhere_are_not_sent() {
    let fake = Fake::answering(json("200 OK", "{\"Id\":\"x\"}"));
    let docker = fake.docker();
    for name in ["", "..", ".", "a/../../images", "a\r\nX: y", "a\0"] {
        let error = docker.inspect_container(name).unwrap_err();
        assert!(matches!(error, Error::Input { .. }), "{error:?}");
    }
    assert!(matches!(docker.inspect_image("../../etc/passwd").unwrap_err(), Error::Input { .. }));
    assert!(fake.seen.lock().unwrap().is_empty());
    docker.create_container("n&x=1 #?", &CreateBody::default()).unwrap();
    assert_eq!(fake.request_line(), "POST /v1.45/containers/create?name=n%26x%3D1%20%23%3F HTTP/1.1");
}

#[test]
fn pull_reports_progress_and_errors_in_the_stream() {
    let fake = Fake::new(|_, stream| {
        let _ = stream.write_all(STREAM_HEAD);
        let text = b"{\"status\":\"Pulling\",\"id\":\"abc\",\"progressDetail\":{\"current\":5,\"total\":9}}\r\n\
                     {\"errorDetail\":{\"message\":\"x\"},\"error\":\"unauthorized: access to the resource is denied\"}\r\n";
        // In two chunks that part a line.
        let _ = stream.write_all(&chunk(&text[..30]));
        let _ = stream.write_all(&chunk(&text[30..]));
        let _ = stream.write_all(b"0\r\n\r\n");
    });
    let mut seen = Vec::new();
    let auth = RegistryAuth {
        username: "u".into(),
        password: "p".into(),
        server_address: "h:5000".into(),
        ..RegistryAuth::default()
    };
    let error =
        fake.docker().pull_image("h:5000/i", Some(&auth), IDLE, &mut |line| seen.push(line.clone())).unwrap_err();
    assert_eq!(
        error.to_string(),
        "pull image h:5000/i: the engine refused with 200: unauthorized: access to the resource is denied"
    );
    assert_eq!((seen.len(), seen[0].id.as_str(), seen[0].detail.current), (1, "abc", Some(5)));
    let head = fake.seen.lock().unwrap()[0].to_ascii_lowercase();
    assert!(head.starts_with("post /v1.45/images/create?fromimage=h%3a5000%2fi&tag=latest http/1.1"), "{head}");
    let expected = "x-registry-auth: eyj1c2vybmftzsi6inuilcjwyxnzd29yzci6inailcjzzxj2zxjhzgryzxnzijoiado1mdawin0=";
    assert!(head.contains(expected), "{head}");

    let cut = Fake::answering([STREAM_HEAD, &chunk(b"{\"status\":\"Pulling\"}\n")].concat());
    assert!(protocol_text(cut.docker().pull_image("i", None, IDLE, &mut |_| {}).unwrap_err()).contains("cut"));

    let endless = Fake::new(|_, stream| {
        let _ = stream.write_all(STREAM_HEAD);
        while stream.write_all(&chunk(&[b'x'; 4096])).is_ok() {}
    });
    let error = endless.docker().pull_image("i", None, IDLE, &mut |_| {}).unwrap_err();
    assert!(protocol_text(error).contains("line of more than"));
}

#[test]
fn attach_returns_with_the_head_and_reads_frames_in_any_pieces() {
    let fake = Fake::new(|_, stream| {
        let _ = stream.write_all(ATTACH_HEAD);
        for byte in [frame(1, b"one\n"), frame(2, b"two\n"), frame(1, b""), frame(1, b"three")].concat() {
            let _ = stream.write_all(&[byte]);
        }
    });
    let mut output = fake.docker().attach("c").unwrap();
    let mut all = Vec::new();
    while let Some((kind, piece)) = output.next_piece().unwrap() {
        all.extend(piece.iter().map(|byte| (format!("{kind:?}"), *byte)));
    }
    let text = |kind: &str| all.iter().filter(|(k, _)| k == kind).map(|(_, b)| char::from(*b)).collect::<String>();
    assert_eq!((text("Stdout").as_str(), text("Stderr").as_str()), ("one\nthree", "two\n"));

    let cut = Fake::answering([ATTACH_HEAD, &frame(1, b"whole")[..10]].concat());
    let mut output = cut.docker().attach("c").unwrap();
    assert_eq!(output.next_piece().unwrap().unwrap().1, b"wh");
    assert!(protocol_text(output.next_piece().unwrap_err()).contains("inside a frame"));

    let garbage = Fake::answering([ATTACH_HEAD, b"plain text of a terminal"].concat());
    protocol_text(garbage.docker().attach("c").unwrap().next_piece().unwrap_err());
}

#[test]
fn events_survive_noise_and_end_at_garbage() {
    let good = "{\"Type\":\"container\",\"Action\":\"start\",\"Actor\":{\"ID\":\"a\",\"Attributes\":{\"name\":\"n\",\"a\":\"b\"}}}\n";
    let noise = "{\"Type\":\"container\",\"Action\":\"rename\"}\n\n";
    let body =
        [chunk(noise.as_bytes()), chunk(&good.as_bytes()[..20]), chunk(&good.as_bytes()[20..]), chunk(b"<html>\n")];
    let fake = Fake::answering([STREAM_HEAD, &body.concat(), b"0\r\n\r\n"].concat());
    let filter = EventFilter { labels: vec!["a=b".into()], since_ns: Some(1_700_000_000_000_000_005) };
    let mut events = fake.docker().events(&filter).unwrap();
    assert_eq!(events.next().unwrap().unwrap().name, "n");
    assert!(protocol_text(events.next().unwrap().unwrap_err()).contains("no valid JSON"));
    assert!(events.next().is_none());
    assert!(fake.request_line().ends_with("&since=1700000000.000000005 HTTP/1.1"), "{}", fake.request_line());
}

#[test]
fn an_answer_before_the_end_of_the_upload_is_read() {
    let fake = Fake::new(|_, stream| {
        let _ = stream.read(&mut [0; 1000]);
        let _ = stream.write_all(json("404 Not Found", "{\"message\":\"No such container: c\"}").as_bytes());
        // Closed with unread bytes of an endless upload.
    });
    let error = fake.docker().put_archive("c", "/w", &mut std::io::repeat(b'x'), IDLE).unwrap_err();
    assert!(error.is_not_found(), "{error:?}");
}

#[test]
fn a_source_that_fails_is_our_fault_and_a_compressed_one_is_not_sent() {
    struct Broken(usize);
    impl Read for Broken {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            self.0 = self.0.checked_sub(1).ok_or_else(|| std::io::Error::other("disk on fire"))?;
            buffer.fill(b'a');
            Ok(buffer.len())
        }
    }
    let fake = Fake::new(|_, stream| {
        let _ = std::io::copy(stream, &mut std::io::sink());
    });
    let error = fake.docker().put_archive("c", "/w", &mut Broken(3), IDLE).unwrap_err();
    assert_eq!(error.to_string(), "put files into container c: not sent: disk on fire");
    let sent = fake.seen.lock().unwrap().len();
    let error = fake.docker().put_archive("c", "/w", &mut &b"\x1f\x8b\x08 and so on"[..], IDLE).unwrap_err();
    assert!(matches!(error, Error::Input { .. }), "{error:?}");
    assert_eq!(fake.seen.lock().unwrap().len(), sent);
}

#[test]
fn handles_and_streams_can_go_to_other_threads() {
    fn is_send<T: Send>() {}
    is_send::<Docker>();
    is_send::<Stop>();
    is_send::<Error>();
    is_send::<hivemind_worker::docker::OutputStream>();
    is_send::<hivemind_worker::docker::EventStream>();
    is_send::<hivemind_worker::docker::ArchiveReader>();
}

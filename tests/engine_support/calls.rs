//! The calls of the Engine API that the worker makes.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::http::{self, Request, answer};
use super::script::{self, OTHER_IMAGES, Script};
use super::{Container, KILLED, Listener, MAX_REMOVAL_US, MAX_WORK_US, Shared, Status, TERMINATED, Volume, has_labels};

/// A refusal or an answer: status and body.
type Answer = (u16, Value);

fn refusal(status: u16, message: &str) -> Answer {
    (status, json!({ "message": message }))
}

fn no_container(name: &str) -> Answer {
    refusal(404, &format!("No such container: {name}"))
}

impl Shared {
    /// Carries out a call and answers it. What streams is answered by its own function.
    pub(super) fn answer(self: &Arc<Self>, request: &Request, stream: &UnixStream) {
        let path: Vec<&str> = request.path.iter().map(String::as_str).collect();
        let (status, body) = match (request.method.as_str(), &path[..]) {
            ("GET", ["_ping"]) => (200, json!("OK")),
            ("GET", ["version"]) => (200, json!({"Version": "20.10.24", "Os": "linux", "Arch": "amd64"})),
            ("GET", ["info"]) => (200, info()),
            ("GET", ["images", reference @ .., "json"]) => self.inspect_image(&reference.join("/")),
            ("POST", ["images", "create"]) => return self.pull(request, stream),
            ("GET", ["events"]) => return self.listen(request, stream),
            ("GET", ["system", "df"]) => (200, json!({"LayersSize": 0, "Volumes": []})),
            ("GET", ["networks"]) => (200, json!([])),
            ("GET", ["volumes"]) => self.list_volumes(request),
            ("POST", ["volumes", "create"]) => self.create_volume(request),
            ("GET", ["volumes", name]) => self.inspect_volume(name),
            ("DELETE", ["volumes", name]) => self.remove_volume(name),
            ("GET", ["containers", "json"]) => self.list_containers(request),
            ("POST", ["containers", "create"]) => self.create(request),
            ("GET", ["containers", name, "json"]) => self.inspect(name),
            ("GET", ["containers", name, "stats"]) => self.stats(name),
            ("GET", ["containers", name, "logs"]) => return self.logs(name, stream),
            ("GET", ["containers", name, "archive"]) => return self.get_archive(name, request, stream),
            ("PUT", ["containers", name, "archive"]) => self.put_archive(name, request),
            ("POST", ["containers", name, "attach"]) => return self.attach(name, stream),
            ("POST", ["containers", name, "start"]) => self.start(name),
            ("POST", ["containers", name, "kill"]) => self.kill(name, request.parameter("signal")),
            ("POST", ["containers", name, "pause"]) => self.freeze(name, true),
            ("POST", ["containers", name, "unpause"]) => self.freeze(name, false),
            ("DELETE", ["containers", name]) => self.remove(name),
            _ => {
                self.lock().break_rule(format!("a call that this engine does not have: {} {path:?}", request.method));
                refusal(404, "page not found")
            }
        };
        answer(stream, status, &body);
    }

    // ---- images

    fn inspect_image(&self, reference: &str) -> Answer {
        let is_it = |name: &&String| *name == reference || image_id(name) == reference;
        match self.lock().images.iter().find(is_it) {
            Some(name) => {
                (200, json!({"Id": image_id(name), "RepoTags": [name], "Os": "linux", "Architecture": "amd64"}))
            }
            None => refusal(404, &format!("No such image: {reference}")),
        }
    }

    fn pull(&self, request: &Request, stream: &UnixStream) {
        let name = format!("{}:{}", request.parameter("fromImage"), request.parameter("tag"));
        self.sights.note("pull");
        if request.parameter("fromImage") != OTHER_IMAGES {
            let (status, body) = refusal(404, &format!("pull access denied for {name}"));
            return answer(stream, status, &body);
        }
        http::begin(stream, "json");
        for step in ["Pulling fs layer", "Downloading", "Pull complete"] {
            http::send(stream, format!("{}\n", json!({"id": "layer", "status": step})).as_bytes());
            self.work(MAX_WORK_US);
        }
        self.lock().images.insert(name);
        http::send(stream, b"");
    }

    // ---- volumes

    fn create_volume(&self, request: &Request) -> Answer {
        let body: Value = serde_json::from_slice(&request.body).unwrap();
        self.work(MAX_WORK_US);
        let mut state = self.lock();
        let name = body["Name"].as_str().unwrap().to_owned();
        let labels = serde_json::from_value(body["Labels"].clone()).unwrap_or_default();
        let volume = state.volumes.entry(name.clone()).or_insert_with(|| Volume { labels, ..Volume::default() });
        let made = volume_json(&name, volume);
        if !volume.labels.contains_key("hivemind.key") {
            state.break_rule(format!("I6: the volume {name} has no label"));
        }
        drop(state);
        self.sights.note("volume");
        self.work(MAX_WORK_US);
        (201, made)
    }

    fn inspect_volume(&self, name: &str) -> Answer {
        match self.lock().volumes.get(name) {
            Some(volume) => (200, volume_json(name, volume)),
            None => refusal(404, &format!("get {name}: no such volume")),
        }
    }

    fn list_volumes(&self, request: &Request) -> Answer {
        let state = self.lock();
        let labels = request.labels();
        let found = state.volumes.iter().filter(|(_, volume)| has_labels(&volume.labels, &labels));
        (200, json!({"Volumes": found.map(|(name, volume)| volume_json(name, volume)).collect::<Vec<_>>()}))
    }

    fn remove_volume(&self, name: &str) -> Answer {
        self.work(MAX_WORK_US);
        let mut state = self.lock();
        let is_used = state.containers.values().any(|container| container.volumes().iter().any(|is| is == name));
        match state.volumes.get(name).map(|volume| volume.is_foreign) {
            None => refusal(404, &format!("get {name}: no such volume")),
            Some(_) if is_used => refusal(409, &format!("remove {name}: volume is in use")),
            Some(is_foreign) => {
                state.volumes.remove(name);
                if is_foreign {
                    state.break_rule(format!("I6: the volume {name} of somebody else is removed"));
                }
                drop(state);
                self.sights.note("volume removed");
                self.work(MAX_WORK_US);
                (204, Value::Null)
            }
        }
    }

    // ---- the life of a container

    fn create(&self, request: &Request) -> Answer {
        let body: Value = serde_json::from_slice(&request.body).unwrap();
        let name = request.parameter("name").to_owned();
        self.work(MAX_WORK_US);
        let mut state = self.lock();
        if let Some(id) = state.find(&name) {
            let message = format!("Conflict. The container name \"/{name}\" is already in use by container \"{id}\".");
            return refusal(409, &message);
        }
        if !state.images.iter().any(|image| body["Image"] == image_id(image)) {
            return refusal(404, &format!("No such image: {}", body["Image"]));
        }
        let id = format!("{:064x}", state.next_id);
        state.next_id += 1;
        let container = Container {
            name,
            labels: serde_json::from_value(body["Labels"].clone()).unwrap_or_default(),
            body,
            status: Status::Created,
            is_paused: false,
            has_inputs: false,
            exit_code: 0,
            signal: None,
            started_at: None,
            finished_at: None,
            log: Vec::new(),
            attached: Vec::new(),
            is_foreign: false,
        };
        if !container.labels.contains_key("hivemind.key") {
            state.break_rule(format!("I6: the container {} has no label", container.name));
        }
        for volume in container.volumes() {
            // As the engine does: what is not there is made, without a label.
            state.volumes.entry(volume).or_default();
        }
        if container.role() == "task" {
            let attempt = container.attempt();
            if state.containers.values().any(|other| other.role() == "task" && other.attempt() == attempt) {
                state.break_rule(format!("I2: two task containers of {attempt}"));
            }
            let made = state.made.entry(attempt.clone()).or_default();
            *made += 1;
            if *made > 1 {
                state.break_rule(format!("I2: a second task container of {attempt}"));
            }
        }
        state.containers.insert(id.clone(), container);
        drop(state);
        self.sights.note("create");
        self.work(MAX_WORK_US);
        (201, json!({"Id": id, "Warnings": []}))
    }

    fn start(self: &Arc<Self>, name: &str) -> Answer {
        self.work(MAX_WORK_US);
        let mut state = self.lock();
        let Some(id) = state.find(name) else { return no_container(name) };
        let container = state.containers.get_mut(&id).unwrap();
        match container.status {
            Status::Running => return (304, Value::Null),
            Status::Removing => return refusal(409, "container is marked for removal and cannot be started"),
            Status::Created | Status::Exited => {}
        }
        container.status = Status::Running;
        container.started_at = Some(SystemTime::now());
        let (attempt, role, is_foreign) = (container.attempt(), container.role().to_owned(), container.is_foreign);
        let has_inputs = container.has_inputs;
        let task = container.labels.get("hivemind.task").cloned().unwrap_or_default();
        let script = Script::of(self.seed, &task);
        let volume = container.volumes().into_iter().next().unwrap_or_default();
        let input = state.volumes.get(&volume).and_then(|volume| volume.files.get(script::INPUT_NAME).cloned());
        let started = state.started.entry(attempt.clone()).or_default();
        *started += 1;
        if *started > 1 {
            state.break_rule(format!("I2: {attempt} is started a second time"));
        }
        if is_foreign || role != "task" {
            state.break_rule(format!("I6: a container is started that is no task of the node: {name}"));
        }
        if !has_inputs || input != Some(script.input.clone()) {
            state.break_rule(format!("{attempt} is started without its inputs"));
        }
        state.tell(&id, "start", None);
        drop(state);
        let shared = Arc::clone(self);
        thread::spawn(move || shared.run(&id, &script));
        self.sights.note("start");
        self.work(MAX_WORK_US);
        (204, Value::Null)
    }

    fn kill(&self, name: &str, signal: &str) -> Answer {
        let mut state = self.lock();
        let Some(id) = state.find(name) else { return no_container(name) };
        let container = state.containers.get_mut(&id).unwrap();
        if container.status != Status::Running {
            return refusal(409, &format!("Cannot kill container: {name}: Container {id} is not running"));
        }
        let task = container.labels.get("hivemind.task").cloned().unwrap_or_default();
        match signal {
            "SIGKILL" => container.signal = Some(KILLED),
            _ if Script::of(self.seed, &task).is_stubborn => {}
            _ => container.signal = container.signal.or(Some(TERMINATED)),
        }
        drop(state);
        self.changed.notify_all();
        self.sights.note("kill");
        (204, Value::Null)
    }

    fn freeze(&self, name: &str, is_wanted: bool) -> Answer {
        let mut state = self.lock();
        let Some(id) = state.find(name) else { return no_container(name) };
        let container = state.containers.get_mut(&id).unwrap();
        if container.status != Status::Running || container.is_paused == is_wanted {
            return refusal(409, &format!("Container {id} is not so that this can be done"));
        }
        container.is_paused = is_wanted;
        (204, Value::Null)
    }

    /// Removes a container and ends it before, as with `force`.
    fn remove(&self, name: &str) -> Answer {
        let mut state = self.lock();
        let Some(id) = state.find(name) else { return no_container(name) };
        let container = state.containers.get_mut(&id).unwrap();
        let is_foreign = container.is_foreign;
        match container.status {
            Status::Removing => return refusal(409, &format!("removal of container {name} is already in progress")),
            Status::Running => state.end(&id, KILLED),
            Status::Created | Status::Exited => {}
        }
        state.containers.get_mut(&id).unwrap().status = Status::Removing;
        if is_foreign {
            state.break_rule(format!("I6: the container {name} of somebody else is removed"));
        }
        drop(state);
        self.changed.notify_all();
        self.sights.note("removal");
        self.work(MAX_REMOVAL_US);
        let mut state = self.lock();
        state.tell(&id, "destroy", None);
        state.containers.remove(&id);
        drop(state);
        self.sights.note("removed");
        self.work(MAX_WORK_US);
        (204, Value::Null)
    }

    // ---- looks

    fn inspect(&self, name: &str) -> Answer {
        self.sights.note("inspect");
        let state = self.lock();
        let Some(id) = state.find(name) else { return no_container(name) };
        let container = &state.containers[&id];
        let is_running = container.status == Status::Running;
        let body = &container.body;
        let found = json!({
            "Id": id,
            "Name": format!("/{}", container.name),
            "Image": body["Image"],
            "State": {
                "Status": word(container),
                "Running": is_running,
                "Paused": container.is_paused,
                "OOMKilled": false,
                "ExitCode": container.exit_code,
                "Error": "",
                // Of no process of this machine: the worker has only the engine's word for it.
                "Pid": if is_running { i64::from(i32::MAX) } else { 0 },
                "StartedAt": rfc3339(container.started_at),
                "FinishedAt": rfc3339(container.finished_at),
            },
            "Config": body,
            "HostConfig": body["HostConfig"],
            "Mounts": body["HostConfig"]["Mounts"].as_array().map(|mounts| mounts.iter().map(mount_json).collect::<Vec<_>>()),
            "NetworkSettings": {"Networks": {"none": {}}},
        });
        (200, found)
    }

    fn list_containers(&self, request: &Request) -> Answer {
        self.sights.note("list");
        let state = self.lock();
        let labels = request.labels();
        let found = state.containers.iter().filter(|(_, container)| has_labels(&container.labels, &labels));
        let found = found.map(|(id, container)| {
            json!({"Id": id, "Names": [format!("/{}", container.name)], "Labels": container.labels,
                "State": word(container), "Image": container.body["Image"]})
        });
        (200, json!(found.collect::<Vec<_>>()))
    }

    fn stats(&self, name: &str) -> Answer {
        match self.lock().find(name) {
            Some(_) => (200, json!({"memory_stats": {"usage": 1_000_000}, "pids_stats": {"current": 1}})),
            None => no_container(name),
        }
    }

    // ---- streams

    fn listen(&self, request: &Request, stream: &UnixStream) {
        let mut state = self.lock();
        if http::begin(stream, "json") {
            let stream = stream.try_clone().unwrap();
            state.listeners.push(Listener { labels: request.labels(), stream });
        }
        drop(state);
        self.sights.note("events");
    }

    /// From now on. One that has exited, or is never started, gives no end.
    fn attach(&self, name: &str, stream: &UnixStream) {
        let mut state = self.lock();
        let Some(id) = state.find(name) else {
            let (status, body) = no_container(name);
            return answer(stream, status, &body);
        };
        let container = state.containers.get_mut(&id).unwrap();
        if container.is_paused {
            let (status, body) = refusal(409, "Container is paused, unpause the container before attach.");
            return answer(stream, status, &body);
        }
        if http::begin_raw(stream) {
            container.attached.push(stream.try_clone().unwrap());
        }
        drop(state);
        self.sights.note("attach");
    }

    fn logs(&self, name: &str, stream: &UnixStream) {
        let state = self.lock();
        let Some(id) = state.find(name) else {
            let (status, body) = no_container(name);
            return answer(stream, status, &body);
        };
        let log = state.containers[&id].log.clone();
        drop(state);
        self.sights.note("logs");
        http::begin(stream, "vnd.docker.raw-stream");
        for (kind, bytes) in log {
            http::send(stream, &http::frame(kind, &bytes));
        }
        http::send(stream, b"");
    }

    fn put_archive(&self, name: &str, request: &Request) -> Answer {
        self.work(MAX_WORK_US);
        let mut state = self.lock();
        let Some(id) = state.find(name) else { return no_container(name) };
        let container = state.containers.get_mut(&id).unwrap();
        container.has_inputs = true;
        let status = container.status;
        let volume = container.volumes().into_iter().next().unwrap_or_default();
        if status != Status::Created {
            state.break_rule(format!("files are put into the container {name}, which is {status:?}"));
        }
        if request.parameter("path") == "/workspace" {
            let files = &mut state.volumes.entry(volume).or_default().files;
            for entry in tar::Archive::new(request.body.as_slice()).entries().unwrap() {
                let mut entry = entry.unwrap();
                let path = entry.path().unwrap().into_owned();
                let mut content = Vec::new();
                entry.read_to_end(&mut content).unwrap();
                files.insert(path.to_str().unwrap().trim_start_matches("./").to_owned(), content);
            }
        }
        drop(state);
        self.sights.note("put");
        self.work(MAX_WORK_US);
        (200, Value::Null)
    }

    fn get_archive(&self, name: &str, request: &Request, stream: &UnixStream) {
        self.sights.note("get");
        let mut state = self.lock();
        let found = state.find(name).filter(|_| request.parameter("path") == "/workspace/output");
        let Some(container) = found.map(|id| &state.containers[&id]) else {
            let (status, body) = no_container(name);
            return answer(stream, status, &body);
        };
        let script = Script::of(self.seed, &container.labels["hivemind.task"]);
        if container.status == Status::Running {
            let what = format!("files are read from {name} while it runs");
            state.break_rule(what);
        }
        drop(state);
        let mut archive = tar::Builder::new(Vec::new());
        for (path, content) in &script.files {
            script::append(&mut archive, path, content);
        }
        http::begin(stream, "x-tar");
        // In pieces, so that a collection can break off in each.
        for piece in archive.into_inner().unwrap().chunks(20_000) {
            http::send(stream, piece);
            self.work(MAX_WORK_US);
        }
        http::send(stream, b"");
    }
}

/// As the engine tells of a mount that it was asked for.
fn mount_json(asked: &Value) -> Value {
    json!({"Type": asked["Type"], "Name": asked["Source"], "Destination": asked["Target"], "RW": asked["ReadOnly"] != true})
}

fn info() -> Value {
    json!({"ID": "SCRIPTED", "Name": "scripted", "OperatingSystem": "scripted", "CgroupVersion": "1", "Driver": "none",
        "MemoryLimit": true, "SwapLimit": true, "PidsLimit": true, "CpuCfsQuota": true, "NCPU": 2,
        "MemTotal": 8_u64 << 30, "DockerRootDir": "/nowhere", "SecurityOptions": ["name=seccomp,profile=default"]})
}

fn image_id(name: &str) -> String {
    format!("sha256:{}", name.bytes().map(|byte| format!("{byte:02x}")).collect::<String>())
}

fn volume_json(name: &str, volume: &Volume) -> Value {
    json!({"Name": name, "Driver": "local", "Mountpoint": "/nowhere/that/is", "Labels": volume.labels})
}

fn word(container: &Container) -> &'static str {
    match container.status {
        Status::Running if container.is_paused => "paused",
        Status::Created => "created",
        Status::Running => "running",
        Status::Exited => "exited",
        Status::Removing => "removing",
    }
}

/// The engine's form of a time; of none, its zero.
fn rfc3339(time: Option<SystemTime>) -> String {
    let Some(time) = time else { return "0001-01-01T00:00:00Z".to_owned() };
    let since = time.duration_since(UNIX_EPOCH).unwrap();
    let (days, second) = (i64::try_from(since.as_secs() / 86_400).unwrap(), since.as_secs() % 86_400);
    // The civil calendar, with years that begin in March.
    let shifted = days + 719_468;
    let era_day = shifted % 146_097;
    let year_of_era = (era_day - era_day / 1_460 + era_day / 36_524 - era_day / 146_096) / 365;
    let day_of_year = era_day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    let year = year_of_era + shifted / 146_097 * 400 + i64::from(month <= 2);
    let (hour, minute) = (second / 3_600, second % 3_600 / 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{:02}.{:09}Z", second % 60, since.subsec_nanos())
}

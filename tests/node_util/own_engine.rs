//! A Docker engine of the test's own, in a network name space of its own, that can be killed and frozen. The machine's
//! engine, which others use, is left alone.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use hivemind_worker::docker::{Docker, DockerHost, NodeTimeouts};
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{until, until_true};

/// Its one image: a static busybox as `/bin/busybox`.
pub const IMAGE: &str = "hivemind-own-busybox:1";

/// What the engine does with its containers when it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Containers {
    /// The next engine finds and kills them.
    EndWithIt,
    /// They run on.
    LiveOn,
}

/// Where its bridges are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bridges {
    /// In a network name space of its own, without rules.
    Apart,
    /// In the test's, which must be one of its own; with the engine's rules.
    Here,
}

/// See the module's text.
pub struct OwnEngine {
    /// Its files.
    pub dir: PathBuf,
    containers: Containers,
    /// Words before and behind those that start it.
    words: (Vec<String>, Vec<String>),
    bridges: Bridges,
    child: Option<Child>,
}

impl OwnEngine {
    /// Starts it, with [`IMAGE`].
    pub fn start(name: &str, containers: Containers) -> Self {
        Self::start_with(name, containers, |_| (Vec::new(), Vec::new()))
    }

    /// As [`Self::start`], with what leads to it and more options, both of which may need files in its folder.
    pub fn start_with(
        name: &str,
        containers: Containers,
        words: impl FnOnce(&Path) -> (Vec<String>, Vec<String>),
    ) -> Self {
        let dir = folder(name);
        let words = words(&dir);
        Self::start_in(dir, containers, words, Bridges::Apart)
    }

    /// Starts it within [`super::namespace::in_namespace`], with networks that lead out of there, and with this image of the
    /// machine's engine.
    pub fn start_with_networks(name: &str, image: &str) -> Self {
        let engine = Self::start_in(folder(name), Containers::LiveOn, (Vec::new(), Vec::new()), Bridges::Here);
        let save = Command::new("docker").args(["save", image]).stdout(Stdio::piped()).spawn();
        let mut save = save.expect("this test needs the docker command");
        let mut load = Command::new("docker");
        load.args(["--host", &engine.host(), "load"]).stdin(save.stdout.take().unwrap());
        let load = load.output().unwrap();
        assert!(save.wait().unwrap().success() && load.status.success(), "{}", String::from_utf8_lossy(&load.stderr));
        engine
    }

    /// As [`Self::start`], with a disk of so much for all that it keeps.
    pub fn start_on_small_disk(name: &str, mib: u64) -> Self {
        let dir = folder(name);
        let data = dir.join("data");
        fs::create_dir(&data).unwrap();
        let output =
            Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs"]).arg(&data).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self::start_in(dir, Containers::EndWithIt, (Vec::new(), Vec::new()), Bridges::Apart)
    }

    fn start_in(dir: PathBuf, containers: Containers, words: (Vec<String>, Vec<String>), bridges: Bridges) -> Self {
        let mut engine = Self { dir, containers, words, bridges, child: None };
        engine.start_again();
        if bridges == Bridges::Apart {
            engine.import();
        }
        engine
    }

    /// Starts it on what the one before has left.
    pub fn start_again(&mut self) {
        assert!(self.child.is_none());
        self.remove_stale_ids();
        let at = |name: &str| self.dir.join(name).display().to_string();
        let log = File::options().create(true).append(true).open(self.dir.join("log")).unwrap();
        let mut command = match self.bridges {
            Bridges::Apart => Command::new("unshare"),
            Bridges::Here => Command::new("dockerd"),
        };
        if self.bridges == Bridges::Apart {
            command.arg("--net").args(&self.words.0);
            command.args(["dockerd", "--bridge=none", "--iptables=false", "--ip6tables=false"]);
        }
        command.args(&self.words.1);
        command.args(["--host", &self.host(), "--pidfile", &at("pid")]);
        command.args(["--data-root", &at("data"), "--exec-root", &at("exec")]);
        if self.containers == Containers::LiveOn {
            command.arg("--live-restore");
        }
        let child = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn();
        let mut child = child.expect("this test needs unshare, of util-linux");
        let docker = self.docker();
        until_true("the engine answers", || {
            let ended = child.try_wait().unwrap();
            assert!(ended.is_none(), "{ended:?}: {}", fs::read_to_string(self.dir.join("log")).unwrap_or_default());
            docker.ping().is_ok()
        });
        self.child = Some(child);
    }

    /// As `DOCKER_HOST` names it.
    pub fn host(&self) -> String {
        format!("unix://{}", self.dir.join("sock").display())
    }

    /// A listener on the loopback address that the engine sees.
    pub fn listen(&self) -> TcpListener {
        let space = format!("/proc/{}/ns/net", self.child.as_ref().unwrap().id());
        let output =
            Command::new("nsenter").arg(format!("--net={space}")).args(["ip", "link", "set", "lo", "up"]).output();
        let output = output.expect("this test needs nsenter, of util-linux, and ip, of iproute2");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let space = File::open(space).unwrap();
        // A socket stays in the name space in which it was made; the thread that goes there makes nothing else.
        let listener = std::thread::spawn(move || {
            move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()
        });
        listener.join().unwrap()
    }

    /// Bytes that are free where it keeps what it has.
    pub fn free_bytes(&self) -> u64 {
        let disk = rustix::fs::statvfs(self.dir.join("data")).unwrap();
        disk.f_bavail * disk.f_frsize
    }

    /// A way to it.
    pub fn docker(&self) -> Docker {
        Docker::new(DockerHost::parse(&self.host()).unwrap(), NodeTimeouts::default())
    }

    /// Its process, which has its name spaces.
    pub fn process(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// SIGKILL: its containers run on for now.
    pub fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        // Its own containerd dies with it, a moment later; the next engine must not take that one for alive.
        until_true("containerd dies with its engine", || self.containerd().is_none());
    }

    /// Sends it a signal, such as STOP: it accepts connections then, and never answers.
    pub fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.child.as_ref().unwrap().id()).unwrap();
        kill_process(Pid::from_raw(id).unwrap(), signal).unwrap();
    }

    /// Of a process that was killed and that nobody has reaped, an engine thinks that it lives.
    fn remove_stale_ids(&self) {
        let _ = fs::remove_file(self.dir.join("pid"));
        if self.containerd().is_none() {
            let _ = fs::remove_file(self.dir.join("exec/containerd/containerd.pid"));
        }
    }

    fn containerd(&self) -> Option<Pid> {
        let text = fs::read_to_string(self.dir.join("exec/containerd/containerd.pid")).ok()?;
        Pid::from_raw(text.trim().parse().ok()?).filter(|id| is_containerd(*id))
    }

    fn import(&self) {
        let busybox = fs::read("/bin/busybox").expect("this test needs a static busybox at /bin/busybox");
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(busybox.len() as u64);
        header.set_mode(0o755);
        header.set_cksum();
        tar.append_data(&mut header, "bin/busybox", busybox.as_slice()).unwrap();
        let archive = self.dir.join("image.tar");
        fs::write(&archive, tar.into_inner().unwrap()).unwrap();
        let output = Command::new("docker").args(["--host", &self.host(), "import"]).arg(archive).arg(IMAGE).output();
        let output = output.expect("this test needs the docker command");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Ends what is left of it: containers, the engine, and the containerd that it started.
    fn end(&mut self) {
        if let Some(mut child) = self.child.take() {
            let id = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
            let _ = kill_process(id, Signal::CONT);
            let docker = self.docker();
            for container in docker.list_containers(&[]).unwrap_or_default() {
                let _ = docker.remove_container(&container.id);
            }
            let _ = kill_process(id, Signal::TERM);
            until("the engine ends", || child.try_wait().unwrap());
        }
        // One whose engine was killed outlives the next.
        if let Some(id) = self.containerd() {
            let _ = kill_process(id, Signal::TERM);
            until_true("containerd ends", || !is_containerd(id));
        }
        self.end_shims();
    }
}

/// An empty one. A socket's path is short.
fn folder(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("hm-engine-{name}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir(&dir).unwrap();
    dir
}

impl OwnEngine {
    /// Of an engine that was killed and did not come back, shims and containers are left. They name this test's folder.
    fn end_shims(&self) {
        let folder = self.dir.display().to_string();
        for entry in fs::read_dir("/proc").unwrap().map_while(Result::ok) {
            let words = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
            let Some(id) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
            if !(words.contains("containerd-shim") && words.contains(&folder)) {
                continue;
            }
            let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
            for id in children.split_whitespace().filter_map(|child| child.parse().ok()).chain([id]) {
                let _ = Pid::from_raw(id).map(|id| kill_process(id, Signal::KILL));
            }
        }
    }
}

fn is_containerd(id: Pid) -> bool {
    let id = id.as_raw_nonzero();
    let is_zombie = fs::read_to_string(format!("/proc/{id}/status")).is_ok_and(|text| text.contains("State:\tZ"));
    !is_zombie && fs::read_to_string(format!("/proc/{id}/comm")).is_ok_and(|name| name.trim() == "containerd")
}

impl Drop for OwnEngine {
    fn drop(&mut self) {
        self.end();
        if std::thread::panicking() {
            let log = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().rev().take(30).collect();
            eprintln!("---- the engine's last lines, the latest first\n{}", lines.join("\n"));
        }
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let ours = |line: &&str| line.split(' ').nth(1).is_some_and(|at| at.starts_with(self.dir.to_str().unwrap()));
        for line in mounts.lines().filter(ours).collect::<Vec<_>>().into_iter().rev() {
            // Also where a process of the container is not quite gone.
            let _ = Command::new("umount").arg("--lazy").arg(line.split(' ').nth(1).unwrap()).output();
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

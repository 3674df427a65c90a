//! The programs that make a bounded volume, and the kernel's list of loop devices. Programs get an argument vector, a
//! deadline and an empty environment; they are not looked for in PATH, where anybody's may stand first.

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::sys::process;

/// Where distributions put them.
const PLACES: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];
/// They take milliseconds; a check of a large volume, or a small board that swaps, takes longer.
const DEADLINE: Duration = Duration::from_secs(60);
/// Of a complaint so much is repeated.
const MAX_WORDS: usize = 300;
/// Gives devices their numbers.
const CONTROL: &str = "/dev/loop-control";
/// The kernel's list of block devices.
const DEVICES: &str = "/sys/block";
/// Behind the name of a file that has none any more.
const DELETED: &[u8] = b" (deleted)";
/// Exit codes of e2fsck(8): 0 and 1 say that the file system is right now.
const MENDED: i32 = 1;

/// Where the programs are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tools {
    losetup: PathBuf,
    mkfs: PathBuf,
    debugfs: PathBuf,
    fsck: PathBuf,
}

impl Tools {
    /// Looks for all that is needed on this machine.
    ///
    /// # Errors
    /// What is missing, and how to mend it.
    pub fn find() -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("the worker does not run as root, which alone can make loop devices".to_owned());
        }
        let find = |program: &str, package: &str| {
            let found = PLACES.iter().map(|place| Path::new(place).join(program)).find(|path| path.is_file());
            found.ok_or_else(|| format!("there is no {program}: apt-get install {package}"))
        };
        let tools = Self {
            losetup: find("losetup", "mount")?,
            mkfs: find("mkfs.ext4", "e2fsprogs")?,
            debugfs: find("debugfs", "e2fsprogs")?,
            fsck: find("e2fsck", "e2fsprogs")?,
        };
        OpenOptions::new().read(true).write(true).open(CONTROL).map_err(|error| {
            format!("{CONTROL}: {error}: the kernel needs its module loop, and the worker that device")
        })?;
        // Busybox has one of that name that does less.
        let version = run(&tools.losetup, &["--version"])?;
        if !version.contains("util-linux") {
            return Err(format!("{} is not that of util-linux", tools.losetup.display()));
        }
        Ok(tools)
    }

    /// Makes a file system in a file, without the folder for found pieces.
    pub fn make(&self, arguments: &[String], file: &Path) -> Result<(), String> {
        let file = text(file)?;
        let words: Vec<&str> = arguments.iter().map(String::as_str).chain([file]).collect();
        run(&self.mkfs, &words)?;
        run(&self.debugfs, &["-w", "-R", "rmdir lost+found", file]).map(drop)
    }

    /// Mends a file system that was not unmounted.
    pub fn mend(&self, file: &Path) -> Result<(), String> {
        run_to(&self.fsck, &["-f", "-y", text(file)?], MENDED).map(drop)
    }

    /// Attaches a file to a device of the kernel's choice.
    pub fn attach(&self, file: &Path) -> Result<PathBuf, String> {
        let said = run(&self.losetup, &["--find", "--show", text(file)?])?;
        let device = PathBuf::from(said.trim());
        if backing(&device).as_deref() == Some(file) {
            Ok(device)
        } else {
            Err(format!("{} attached {} elsewhere: {}", self.losetup.display(), file.display(), said.trim()))
        }
    }

    /// Detaches a device; one that is in use goes with its last user.
    pub fn detach(&self, device: &Path) -> Result<(), String> {
        run(&self.losetup, &["--detach", text(device)?]).map(drop)
    }
}

/// Devices with the files that they are of, a file without a name included.
pub fn attached() -> Vec<(PathBuf, PathBuf)> {
    let names = fs::read_dir(DEVICES).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let devices = names.filter(|name| name.as_bytes().starts_with(b"loop")).map(|name| Path::new("/dev").join(name));
    devices.filter_map(|device| backing(&device).map(|file| (device, file))).collect()
}

/// The file that a device is of.
pub fn backing(device: &Path) -> Option<PathBuf> {
    let name = device.file_name()?;
    let line = fs::read(Path::new(DEVICES).join(name).join("loop/backing_file")).ok()?;
    let line = line.strip_suffix(b"\n").unwrap_or(&line);
    Some(OsStr::from_bytes(line.strip_suffix(DELETED).unwrap_or(line)).into())
}

fn text(path: &Path) -> Result<&str, String> {
    path.to_str().ok_or_else(|| format!("{} is not UTF-8", path.display()))
}

fn run(program: &Path, args: &[&str]) -> Result<String, String> {
    run_to(program, args, 0)
}

/// Exit codes up to `most` are good.
fn run_to(program: &Path, args: &[&str], most: i32) -> Result<String, String> {
    let failed = |error: io::Error| format!("{} {}: {error}", program.display(), args.join(" "));
    let ended = process::run(program, args, Vec::new(), DEADLINE).map_err(failed)?;
    if ended.status.code().is_some_and(|code| code <= most) {
        return String::from_utf8(ended.stdout).map_err(|error| failed(io::Error::other(error)));
    }
    let words = String::from_utf8_lossy(&ended.stderr);
    let words: String = words.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(MAX_WORDS).collect();
    Err(failed(io::Error::other(words)))
}

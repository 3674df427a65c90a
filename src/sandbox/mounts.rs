//! A container's mounts as the kernel lists them (`/proc/PID/mountinfo`, proc(5)): pure.

use super::inside::expect;
use crate::docker::HostConfig;

/// What the engine gives every container, beside file systems of the kernel's under `/proc`, `/sys` and `/dev`.
const ENGINES_FILES: [&str; 3] = ["/etc/resolv.conf", "/etc/hostname", "/etc/hosts"];
/// Where engines put the small init.
const INITS: [&str; 5] = ["/sbin/docker-init", "/usr/sbin/docker-init", "/dev/init", "/run/podman-init", "/catatonit"];
/// Devices that every container has. A rootless engine mounts the machine's.
const DEVICES: [&str; 8] = ["null", "zero", "full", "random", "urandom", "tty", "console", "ptmx"];
/// What the kernel rounds a file system's size up to: the largest page.
const MAX_PAGE_BYTES: u64 = 64 << 10;

/// One line.
struct Line<'a> {
    /// Of the file system, which part is mounted.
    root: &'a str,
    point: &'a str,
    options: Vec<&'a str>,
    kind: &'a str,
    super_options: Vec<&'a str>,
}

impl<'a> Line<'a> {
    /// Fields 4 to 6, and the first and third behind the separator.
    fn parse(line: &'a str) -> Option<Self> {
        let (first, second) = line.split_once(" - ")?;
        let mut first = first.split(' ').skip(3);
        let (root, point, options) = (first.next()?, first.next()?, first.next()?);
        let mut second = second.split(' ');
        let kind = second.next()?;
        let super_options = second.nth(1)?;
        Some(Self {
            root,
            point,
            options: options.split(',').collect(),
            kind,
            super_options: super_options.split(',').collect(),
        })
    }

    fn must_be(&self, option: &str) -> Result<(), String> {
        if self.options.contains(&option) {
            Ok(())
        } else {
            Err(format!("has {} mounted without {option}", self.point))
        }
    }
}

/// The root is read-only, each asked mount is there with its options, and nothing is there that nobody asked for.
pub fn check_mounts(text: &str, asked: &HostConfig) -> Result<(), String> {
    let lines = text.lines().map(|line| Line::parse(line).ok_or_else(|| format!("has an odd mount: {line:?}")));
    let lines = lines.collect::<Result<Vec<Line<'_>>, String>>()?;
    let find = |point: &str| {
        // The last one at a place is the one that is seen.
        let found = lines.iter().rev().find(|line| line.point == point);
        found.ok_or_else(|| format!("has nothing mounted at {point}"))
    };
    find("/")?.must_be("ro")?;
    for place in ["/sys", "/proc/sys"] {
        find(place)?.must_be("ro")?;
    }
    for mount in &asked.mounts {
        find(&mount.target)?.must_be(if mount.read_only { "ro" } else { "rw" })?;
    }
    for (point, wanted) in &asked.tmpfs {
        check_tmpfs(find(point)?, wanted)?;
    }
    if let Some(size) = asked.shm_size {
        check_tmpfs(find("/dev/shm")?, &format!("size={size}"))?;
    }
    for line in &lines {
        let is_asked = asked.mounts.iter().any(|mount| mount.target == line.point)
            || asked.tmpfs.contains_key(line.point)
            || line.point == "/";
        if !is_asked && !is_engines(line) {
            return Err(format!("has a mount that nobody asked for: {} at {}", line.root, line.point));
        }
    }
    Ok(())
}

/// Size and the options that keep it harmless.
fn check_tmpfs(line: &Line<'_>, wanted: &str) -> Result<(), String> {
    expect(&format!("at {}", line.point), line.kind, "tmpfs")?;
    for option in ["nosuid", "nodev"] {
        line.must_be(option)?;
    }
    let Some(wanted) = wanted.split(',').find_map(|option| option.strip_prefix("size=")) else { return Ok(()) };
    let size = line.super_options.iter().find_map(|option| option.strip_prefix("size=")).unwrap_or("none");
    let (got, most) = (kilobytes(size), wanted.parse::<u64>().ok());
    let is_bounded = got.zip(most).is_some_and(|(got, most)| got <= most.saturating_add(MAX_PAGE_BYTES));
    if is_bounded { Ok(()) } else { Err(format!("has {} of size {size} instead of {wanted}", line.point)) }
}

/// Such as `32768k`, as the kernel prints it.
fn kilobytes(text: &str) -> Option<u64> {
    text.strip_suffix('k')?.parse::<u64>().ok()?.checked_mul(1024)
}

/// Whether the engine gives it to every container.
fn is_engines(line: &Line<'_>) -> bool {
    let below = |folder: &str| {
        line.point == folder || line.point.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
    };
    let name = line.point.rsplit('/').next().unwrap_or_default();
    match line.kind {
        "proc" | "tmpfs" if below("/proc") => true,
        "devtmpfs" if below("/proc") => line.root == "/null",
        "sysfs" | "tmpfs" | "cgroup" | "cgroup2" if below("/sys") => true,
        "tmpfs" if below("/dev") => true,
        "devpts" | "mqueue" if below("/dev") => true,
        "devtmpfs" if below("/dev") => DEVICES.contains(&name) && line.root.strip_prefix('/') == Some(name),
        _ => ENGINES_FILES.contains(&line.point) || (INITS.contains(&line.point) && line.options.contains(&"ro")),
    }
}

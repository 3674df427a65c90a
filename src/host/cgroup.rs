//! The limits of the worker's own container, when it runs in one: an engine inside it can't lend more.
//!
//! Pure over a function that reads small files. Both hierarchies count: version 2, and version 1's `memory` and `cpu`.

/// What the cgroups above this process allow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Limits {
    /// Bytes of memory.
    pub(super) memory_bytes: Option<u64>,
    /// Thousandths of a CPU.
    pub(super) cpu_millis: Option<u64>,
}

/// Version 1 says "no limit" with a number near the largest; nothing real is above it.
const NO_LIMIT_V1: u64 = 1 << 60;
/// Cgroups that are looked at between the process and the root.
const MAX_DEPTH: usize = 32;

const ROOT: &str = "/sys/fs/cgroup";

/// The tightest limits on the way from `/proc/self/cgroup` up to the root.
pub(super) fn limits(self_cgroup: &str, read: &dyn Fn(&str) -> Option<String>) -> Limits {
    let mut limits = Limits::default();
    for line in self_cgroup.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        let has = |name: &str| controllers.split(',').any(|controller| controller == name);
        if controllers.is_empty() {
            each_level(ROOT, path, &mut |folder| {
                tighten(
                    &mut limits.memory_bytes,
                    read(&format!("{folder}/memory.max")).and_then(|text| memory_v2(&text)),
                );
                tighten(&mut limits.cpu_millis, read(&format!("{folder}/cpu.max")).and_then(|text| cpu_v2(&text)));
            });
        }
        if has("memory") {
            each_level(&format!("{ROOT}/memory"), path, &mut |folder| {
                let limit = read(&format!("{folder}/memory.limit_in_bytes"));
                tighten(&mut limits.memory_bytes, limit.and_then(|text| memory_v2(&text)));
            });
        }
        if has("cpu") {
            each_level(&format!("{ROOT}/cpu"), path, &mut |folder| {
                let quota = read(&format!("{folder}/cpu.cfs_quota_us"));
                let period = read(&format!("{folder}/cpu.cfs_period_us"));
                if let (Some(quota), Some(period)) = (quota, period) {
                    tighten(&mut limits.cpu_millis, share(quota.trim(), period.trim()));
                }
            });
        }
    }
    limits
}

/// Calls `look` with the folder of `path` and of each cgroup above it. In a container with the host's cgroup namespace
/// the path isn't there, but the root is, so the way up finds the container's own.
fn each_level(root: &str, path: &str, look: &mut dyn FnMut(&str)) {
    let mut path = path.trim_end_matches('/');
    if path.split('/').any(|part| part == "..") {
        path = "";
    }
    for _ in 0..MAX_DEPTH {
        look(&format!("{root}{path}"));
        match path.rfind('/') {
            Some(slash) => path = &path[..slash],
            None => break,
        }
    }
}

fn tighten(limit: &mut Option<u64>, found: Option<u64>) {
    *limit = match (*limit, found) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    };
}

fn memory_v2(text: &str) -> Option<u64> {
    text.trim().parse().ok().filter(|bytes| (1..NO_LIMIT_V1).contains(bytes))
}

fn cpu_v2(text: &str) -> Option<u64> {
    let (quota, period) = text.trim().split_once(' ')?;
    share(quota, period)
}

/// Both in microseconds; "max" and -1 are no numbers above zero, and so no limit.
fn share(quota: &str, period: &str) -> Option<u64> {
    let (quota, period): (u64, u64) = (quota.parse().ok()?, period.parse().ok()?);
    let millis = quota.checked_mul(1_000)?.checked_div(period)?;
    (millis > 0).then_some(millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(self_cgroup: &str, files: &[(&str, &str)]) -> Limits {
        limits(self_cgroup, &|path| {
            let found = files.iter().find(|(name, _)| *name == path);
            found.map(|(_, text)| (*text).to_owned())
        })
    }

    #[test]
    fn takes_the_tightest_level_of_version_2() {
        let files = [
            ("/sys/fs/cgroup/a/b/memory.max", "max\n"),
            ("/sys/fs/cgroup/a/memory.max", "1073741824\n"),
            ("/sys/fs/cgroup/memory.max", "2147483648\n"),
            ("/sys/fs/cgroup/a/b/cpu.max", "150000 100000\n"),
            ("/sys/fs/cgroup/a/cpu.max", "max 100000\n"),
        ];
        let expected = Limits { memory_bytes: Some(1 << 30), cpu_millis: Some(1_500) };
        assert_eq!(with("0::/a/b\n", &files), expected);
        assert_eq!(with("0::/\n", &files).memory_bytes, Some(2 << 30));
    }

    #[test]
    fn reads_version_1_where_the_path_is_the_hosts() {
        let files = [
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "536870912\n"),
            ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "50000\n"),
            ("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"),
        ];
        let expected = Limits { memory_bytes: Some(512 << 20), cpu_millis: Some(500) };
        let text = "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n0::/docker/abc\n";
        assert_eq!(with(text, &files), expected);
    }

    #[test]
    fn knows_no_limit_when_there_is_none() {
        let files = [
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n"),
            ("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "0\n"),
        ];
        assert_eq!(with("5:cpu:/\n4:memory:/\n", &files), Limits::default());
        assert_eq!(with("", &[]), Limits::default());
        assert_eq!(with("nonsense\n0::\n0::/../..\n", &[]), Limits::default());
    }
}

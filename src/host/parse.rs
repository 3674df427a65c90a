//! Texts of `/proc` to figures. Pure; the files are read elsewhere.
//!
//! procfs reads what it can; `meminfo` is read here, because procfs refuses the whole file when one of its many lines
//! is missing, as in some containers.

use procfs::{FromRead, LoadAverage, Uptime};

/// CPU time since boot, in the kernel's ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct CpuTicks {
    /// Work, and time that a hypervisor took from CPUs that had work: both are not to be had.
    pub(super) busy: u64,
    /// Idle, and waiting for a disk.
    pub(super) idle: u64,
}

impl CpuTicks {
    /// Busy share since `before`, 0 to 100. The kernel lets single counters go back a little; that counts as no time.
    pub(super) fn percent_since(&self, before: &Self) -> Option<f64> {
        let busy = self.busy.saturating_sub(before.busy);
        let all = busy.checked_add(self.idle.saturating_sub(before.idle))?;
        #[allow(clippy::cast_precision_loss)]
        (all > 0).then(|| busy as f64 * 100.0 / all as f64)
    }
}

/// The sum line of `/proc/stat`.
pub(super) fn cpu_ticks(text: &str) -> Option<CpuTicks> {
    let line = text.lines().find(|line| line.starts_with("cpu "))?;
    let mut ticks = [0u64; 8];
    let mut count = 0;
    for (slot, word) in ticks.iter_mut().zip(line.split_ascii_whitespace().skip(1)) {
        *slot = word.parse().ok()?;
        count += 1;
    }
    // Linux 2.4 had these four; the kernel has added further ones at the end since.
    if count < 4 {
        return None;
    }
    let [user, nice, system, idle, iowait, irq, softirq, steal] = ticks;
    let sum = |parts: &[u64]| parts.iter().try_fold(0u64, |sum, part| sum.checked_add(*part));
    Some(CpuTicks { busy: sum(&[user, nice, system, irq, softirq, steal])?, idle: sum(&[idle, iowait])? })
}

/// Bytes of memory and swap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Memory {
    pub(super) total: Option<u64>,
    pub(super) available: Option<u64>,
    pub(super) swap_total: Option<u64>,
    pub(super) swap_free: Option<u64>,
}

/// `/proc/meminfo`. Before Linux 3.14 there is no MemAvailable; free memory and caches stand in for it, without what
/// tmpfs holds, as far as the kernel tells.
pub(super) fn memory(text: &str) -> Memory {
    let field = |name: &str| {
        let line = text.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut words = line.split_ascii_whitespace().skip(1);
        let amount: u64 = words.next()?.parse().ok()?;
        match words.next() {
            Some("kB") => amount.checked_mul(1_024),
            _ => None,
        }
    };
    let estimate = || {
        let caches = field("Buffers")?.checked_add(field("Cached")?)?;
        let sum = field("MemFree")?.checked_add(caches)?;
        Some(sum.saturating_sub(field("Shmem").unwrap_or(0)))
    };
    Memory {
        total: field("MemTotal"),
        available: field("MemAvailable").or_else(estimate),
        swap_total: field("SwapTotal"),
        swap_free: field("SwapFree"),
    }
}

/// `/proc/loadavg`: over one minute.
pub(super) fn load_1m(text: &str) -> Option<f64> {
    LoadAverage::from_read(text.as_bytes())
        .ok()
        .map(|load| f64::from(load.one))
        .filter(|load| load.is_finite() && *load >= 0.0)
}

/// `/proc/uptime`: whole seconds since boot.
pub(super) fn uptime_s(text: &str) -> Option<u64> {
    let uptime = Uptime::from_read(text.as_bytes()).ok()?.uptime;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    (uptime.is_finite() && uptime >= 0.0).then_some(uptime as u64)
}

/// `/proc/net/dev`: bytes received and sent by all interfaces but loopback.
pub(super) fn network_bytes(text: &str) -> Option<(u64, u64)> {
    let devices = procfs::net::InterfaceDeviceStatus::from_read(text.as_bytes()).ok()?;
    devices.0.values().filter(|device| device.name != "lo").try_fold((0u64, 0u64), |(received, sent), device| {
        Some((received.checked_add(device.recv_bytes)?, sent.checked_add(device.sent_bytes)?))
    })
}

/// `/proc/cpuinfo`: the first name of a CPU; ARM boards tell it as `Model` or `Hardware`.
pub(super) fn cpu_model(text: &str) -> String {
    let field = |name: &str| {
        text.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            (key.trim() == name && !value.trim().is_empty()).then(|| value.trim().to_owned())
        })
    };
    ["model name", "Model", "Hardware", "cpu model"].into_iter().find_map(field).unwrap_or_default()
}

/// `/sys/devices/system/cpu/online`: ranges such as `0-3,6`.
pub(super) fn cpu_count(text: &str) -> Option<u32> {
    let mut count = 0u32;
    for range in text.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        count = count.checked_add(last.checked_sub(first)?.checked_add(1)?)?;
    }
    (count > 0).then_some(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_steal_as_busy_and_iowait_as_idle() {
        let text = "cpu  100 10 50 1000 200 5 5 30 7 3\ncpu0 1 2 3 4\nbtime 1\n";
        let ticks = cpu_ticks(text).unwrap();
        assert_eq!(ticks, CpuTicks { busy: 200, idle: 1_200 });
        let later = cpu_ticks("cpu  150 10 50 1050 200 5 5 30 7 3\n").unwrap();
        assert_eq!(later.percent_since(&ticks), Some(50.0));
        assert_eq!(ticks.percent_since(&ticks), None);
        assert_eq!(ticks.percent_since(&later), None);
    }

    #[test]
    fn reads_old_and_refuses_broken_stat() {
        assert_eq!(cpu_ticks("cpu 1 2 3 4\n"), Some(CpuTicks { busy: 6, idle: 4 }));
        for text in ["", "cpu0 1 2 3 4", "cpu 1 2 3", "cpu a b c d", "cpu -1 2 3 4", "cpu 18446744073709551615 1 0 0"] {
            assert_eq!(cpu_ticks(text), None, "{text}");
        }
    }

    #[test]
    fn reads_memory_with_and_without_available() {
        let new = "MemTotal: 16384 kB\nMemFree: 100 kB\nMemAvailable: 8192 kB\nSwapTotal: 0 kB\nSwapFree: 0 kB\n";
        let expected =
            Memory { total: Some(16 << 20), available: Some(8 << 20), swap_total: Some(0), swap_free: Some(0) };
        assert_eq!(memory(new), expected);
        let old = "MemTotal: 16384 kB\nMemFree: 100 kB\nBuffers: 20 kB\nCached: 300 kB\nShmem: 50 kB\n";
        assert_eq!(memory(old).available, Some(370 << 10));
        assert_eq!(memory(old).swap_total, None);
        assert_eq!(memory(""), Memory::default());
        assert_eq!(memory("MemTotal: x kB\nMemFree 5 kB\nMemAvailable: 5 pages\n"), Memory::default());
    }

    #[test]
    fn reads_load_uptime_and_network() {
        assert_eq!(load_1m("0.50 0.25 0.10 2/345 6789\n"), Some(0.5));
        assert_eq!(load_1m("x"), None);
        assert_eq!(uptime_s("12345.67 99999.99\n"), Some(12_345));
        assert_eq!(uptime_s(""), None);
        let text = "Inter-|   Receive  |  Transmit\n face |bytes packets errs drop fifo frame compressed multicast|bytes packets errs drop fifo colls carrier compressed\n\
                    \x20   lo: 999 1 0 0 0 0 0 0 999 1 0 0 0 0 0 0\n  eth0: 1000 1 0 0 0 0 0 0 2000 1 0 0 0 0 0 0\n  wlan0:5 1 0 0 0 0 0 0 6 1 0 0 0 0 0 0\n";
        assert_eq!(network_bytes(&text.replace("wlan0:5", "wlan0: 5")), Some((1_005, 2_006)));
        assert_eq!(network_bytes("h\nh\neth0: 1 2\n"), None);
    }

    #[test]
    fn reads_cpus() {
        assert_eq!(cpu_model("processor\t: 0\nmodel name\t: Fast CPU\nmodel name\t: Other\n"), "Fast CPU");
        assert_eq!(cpu_model("processor\t: 0\nHardware\t: BCM2835\nModel\t\t: Raspberry Pi 4\n"), "Raspberry Pi 4");
        assert_eq!(cpu_model(""), "");
        assert_eq!(cpu_count("0-3,6,8-9\n"), Some(7));
        assert_eq!(cpu_count("0"), Some(1));
        for text in ["", "3-1", "x", "0-4294967295"] {
            assert_eq!(cpu_count(text), None, "{text}");
        }
    }

    #[test]
    fn never_panics_on_truncation() {
        let text = "cpu  1 2 3 4 5 6 7 8 9 10\nMemTotal: 16384 kB\n0.50 0.25 0.10 2/345 6789\neth0: 1 2 3 4 5 6 7 8 9 1 2 3 4 5 6 7\n";
        for end in 0..text.len() {
            let part = &text[..end];
            let _ = (cpu_ticks(part), memory(part), load_1m(part), uptime_s(part));
            let _ = (network_bytes(part), cpu_model(part), cpu_count(part));
        }
    }
}

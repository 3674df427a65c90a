//! The reward estimate of design section 6. It rewards a busy host; what the tasks used is reported beside it.

use super::snapshot::HostSample;

/// Base of the estimate.
const BASE: f64 = 10.0;

/// Base 10, by the mean of CPU and memory use: over 80 % times 1.5, over 50 % times 1.2, over 20 % times 1.0, else
/// times 0.8; truncated. What is not known counts as unused.
pub fn estimate(host: &HostSample) -> u64 {
    let memory_percent = match (host.memory_total_bytes, host.memory_available_bytes) {
        (Some(total), Some(available)) if total > 0 => 100.0 * total.saturating_sub(available) as f64 / total as f64,
        _ => 0.0,
    };
    let mean = (host.cpu_percent.unwrap_or(0.0) + memory_percent) / 2.0;
    let factor = match mean {
        mean if mean > 80.0 => 1.5,
        mean if mean > 50.0 => 1.2,
        mean if mean > 20.0 => 1.0,
        _ => 0.8,
    };
    (BASE * factor) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_the_steps_of_the_formula() {
        let host = |cpu: f64, used: u64| HostSample {
            cpu_percent: Some(cpu),
            memory_total_bytes: Some(100),
            memory_available_bytes: Some(100 - used),
            ..HostSample::default()
        };
        let rewards = [(100.0, 61, 15), (80.0, 80, 12), (60.0, 41, 12), (50.0, 50, 10), (20.0, 20, 8), (0.0, 0, 8)];
        for (cpu, used, expected) in rewards {
            assert_eq!(estimate(&host(cpu, used)), expected, "{cpu} {used}");
        }
        assert_eq!(estimate(&HostSample::default()), 8);
    }
}

//! `/metrics` in the Prometheus text format 0.0.4: base units in the names, a figure that the machine doesn't tell absent.

use std::fmt::{Display, Write};

use crate::node::snapshot::{CallCounts, NodeState, Snapshot};

/// What a scraper expects.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

const STATES: [NodeState; 5] =
    [NodeState::Ready, NodeState::Busy, NodeState::Paused, NodeState::Draining, NodeState::Degraded];

/// All metrics of `snapshot`.
pub fn text(snapshot: &Snapshot) -> String {
    let mut page = Page(String::with_capacity(4096));
    node(&mut page, snapshot);
    host(&mut page, snapshot);
    tasks(&mut page, snapshot);
    page.0
}

fn node(page: &mut Page, snapshot: &Snapshot) {
    page.head("hivemind_build_info", "gauge", "Version of the worker and name of the node.");
    page.line("hivemind_build_info", &[("version", &snapshot.version), ("node", &snapshot.node_id)], 1);
    page.head("hivemind_node_state", "gauge", "1 for the state that the node is in.");
    for state in STATES {
        page.line("hivemind_node_state", &[("state", state.as_str())], u8::from(state == snapshot.state));
    }
    let started = snapshot.started_ms as f64 / 1000.0;
    page.gauge("hivemind_start_time_seconds", "Start of the worker, since 1970.", Some(started));
    let is_connected = u8::from(snapshot.master.is_connected);
    page.gauge("hivemind_master_connected", "1 while the node is registered.", Some(is_connected));
    calls(page, &snapshot.master.calls);
    page.gauge("hivemind_engine_usable", "1 while tasks can run.", Some(u8::from(snapshot.engine.is_usable)));
    let over = snapshot.over_threshold.len();
    page.gauge("hivemind_over_threshold", "Values of this machine that are over their threshold.", Some(over));
    page.gauge("hivemind_alerts", "Alerts that are shown to the owner.", Some(snapshot.alerts.len()));
    for (kind, amount) in [("lent", &snapshot.lent), ("promised", &snapshot.promised)] {
        let name = |what: &str| format!("hivemind_{kind}_{what}");
        let cores = amount.cpu_millis as f64 / 1000.0;
        page.gauge(&name("cpu_cores"), &format!("CPUs {kind}."), Some(cores));
        page.gauge(&name("memory_bytes"), &format!("Memory {kind}."), Some(amount.memory_bytes));
        page.gauge(&name("disk_bytes"), &format!("Disk {kind}."), Some(amount.disk_bytes));
        page.gauge(&name("slots"), &format!("Tasks at the same time, {kind}."), Some(amount.slots));
    }
}

fn calls(page: &mut Page, calls: &[CallCounts]) {
    let mut figure = |name: &str, help: &str, of: fn(&CallCounts) -> u64| {
        page.head(name, "counter", help);
        for counts in calls {
            page.line(name, &[("method", &counts.method)], of(counts));
        }
    };
    figure("hivemind_master_calls_total", "Calls to the master.", |counts| counts.calls);
    figure("hivemind_master_failed_calls_total", "Calls to the master that failed.", |counts| counts.failed);
    figure("hivemind_master_sent_bytes_total", "Bytes of messages to the master.", |counts| counts.sent_bytes);
    figure("hivemind_master_received_bytes_total", "Bytes of the master's answers.", |counts| counts.received_bytes);
}

fn host(page: &mut Page, snapshot: &Snapshot) {
    let host = &snapshot.host;
    let busy = host.cpu_percent.map(|percent| percent / 100.0);
    page.gauge("hivemind_host_cpu_busy_ratio", "Busy share of all CPUs.", busy);
    page.gauge("hivemind_host_load1", "Load average over one minute.", host.load_1m);
    page.gauge("hivemind_host_cpus", "CPUs online.", Some(host.cpus));
    page.gauge("hivemind_host_memory_total_bytes", "Memory.", host.memory_total_bytes);
    page.gauge(
        "hivemind_host_memory_available_bytes",
        "Memory to be had without swapping.",
        host.memory_available_bytes,
    );
    page.gauge("hivemind_host_swap_total_bytes", "Swap.", host.swap_total_bytes);
    page.gauge("hivemind_host_swap_free_bytes", "Swap unused.", host.swap_free_bytes);
    page.gauge("hivemind_host_disk_total_bytes", "File system of the state folder.", host.disk_total_bytes);
    page.gauge("hivemind_host_disk_free_bytes", "Free bytes of it.", host.disk_free_bytes);
    page.gauge("hivemind_host_uptime_seconds", "Time since boot.", host.uptime_s);
    for (way, bytes) in [("received", host.network_received_bytes), ("sent", host.network_sent_bytes)] {
        if let Some(bytes) = bytes {
            let name = format!("hivemind_host_network_{way}_bytes_total");
            page.head(&name, "counter", &format!("Bytes {way} by all interfaces but loopback."));
            page.line(&name, &[], bytes);
        }
    }
}

fn tasks(page: &mut Page, snapshot: &Snapshot) {
    page.gauge("hivemind_attempts", "Attempts that the node holds.", Some(snapshot.attempts.len()));
    if snapshot.attempts.is_empty() {
        return;
    }
    type Figure = (&'static str, &'static str, &'static str, fn(&crate::node::snapshot::AttemptView) -> f64);
    let figures: [Figure; 5] = [
        ("hivemind_task_cpu_seconds_total", "counter", "CPU time used.", |task| task.usage.cpu_ms as f64 / 1000.0),
        ("hivemind_task_memory_bytes", "gauge", "Memory in use.", |task| task.usage.memory_bytes as f64),
        ("hivemind_task_memory_limit_bytes", "gauge", "Limit of memory.", |task| task.limits.memory_bytes as f64),
        ("hivemind_task_processes", "gauge", "Processes and threads.", |task| task.usage.pids as f64),
        ("hivemind_task_running_seconds", "gauge", "Running time.", |task| task.running_ms as f64 / 1000.0),
    ];
    for (name, kind, help, value) in figures {
        page.head(name, kind, help);
        for task in &snapshot.attempts {
            let attempt = task.key.attempt.to_string();
            page.line(name, &[("task", task.key.task.as_str()), ("attempt", &attempt)], value(task));
        }
    }
}

struct Page(String);

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a String can't fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn line(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.0.push_str(name);
        for (index, (label, text)) in labels.iter().enumerate() {
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let before = if index == 0 { '{' } else { ',' };
            let _ = write!(self.0, "{before}{label}=\"{text}\"");
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        let _ = writeln!(self.0, " {value}");
    }

    fn gauge(&mut self, name: &str, help: &str, value: Option<impl Display>) {
        if let Some(value) = value {
            self.head(name, "gauge", help);
            self.line(name, &[], value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::snapshot::HostSample;

    #[test]
    fn each_metric_has_its_type_and_unknown_figures_are_absent() {
        let snapshot = Snapshot {
            version: "1\"\n\\".to_owned(),
            host: HostSample { cpu_percent: Some(50.0), ..HostSample::default() },
            ..Snapshot::default()
        };
        let text = text(&snapshot);
        assert!(text.contains("# TYPE hivemind_host_cpu_busy_ratio gauge\nhivemind_host_cpu_busy_ratio 0.5\n"));
        assert!(text.contains("hivemind_build_info{version=\"1\\\"\\n\\\\\",node=\"\"} 1\n"));
        assert!(text.contains("hivemind_node_state{state=\"ready\"} 1\n"));
        assert!(!text.contains("swap"));
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let name = line.split(['{', ' ']).next().unwrap();
            assert!(text.contains(&format!("# TYPE {name} ")), "{line}");
        }
    }
}

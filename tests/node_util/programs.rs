//! Programs of tasks.

use hivemind_worker::node::offer::Offer;

/// Begins a Python program that says `up` and goes on when `Scene::go` lets it.
pub const GATED: &str = "import os, signal, sys, time\n\
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])\n\
    print('up', flush=True)\n\
    signal.sigwait([signal.SIGUSR1])\n";

/// A task that runs this Python program as process 1.
pub fn python(task: &str, program: &str) -> Offer {
    Offer {
        task: task.to_owned(),
        attempt: 1,
        cpu_millis: 500,
        memory_bytes: 64 << 20,
        disk_bytes: 256 << 20,
        pull: "never".to_owned(),
        command: ["python3", "-c", program].map(str::to_owned).to_vec(),
        ..Offer::default()
    }
}

/// As [`python`], after [`GATED`].
pub fn gated(task: &str, rest: &str) -> Offer {
    python(task, &format!("{GATED}{rest}"))
}

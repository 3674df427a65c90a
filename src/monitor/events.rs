//! Event streams, written and flushed by the gate: a server that buffers would hold events back.
//! A client that doesn't read blocks only its own thread, until the write deadline ends it.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::gate::Common;
use super::head::{Head, Method};
use super::relay::COMMON_FIELDS;
use super::socket::Socket;
use super::views;
use crate::node::snapshot::Snapshot;

/// How often a stream looks whether its client or the monitor has gone.
const LOOK: Duration = Duration::from_millis(500);
/// How long a browser waits before it connects again.
const RETRY_MS: u32 = 2000;

/// Sends a `snapshot` event now and after each change, until either end goes.
pub fn stream(client: &Socket, head: &Head, common: &Common) {
    let fields =
        format!("HTTP/1.1 200 OK\r\n{COMMON_FIELDS}Content-Type: text/event-stream\r\nCache-Control: no-store\r\n\r\n");
    let started = client.write_by(Instant::now() + common.limits.write, fields.as_bytes());
    if head.method == Method::Head {
        return;
    }
    if let Err(error) = started.and_then(|()| send_changes(client, common)) {
        log::debug!("an event stream of the monitor ended: {error}");
    }
}

fn send_changes(client: &Socket, common: &Common) -> io::Result<()> {
    let limits = &common.limits;
    let send = |text: &str| client.write_by(Instant::now() + limits.write, text.as_bytes());
    let (mut seen, snapshot) = common.snapshot.latest_with_version();
    send(&format!("retry: {RETRY_MS}\n\n{}", event(seen, &snapshot)))?;
    let mut sent = Instant::now();
    while !*common.stop.latest() && !client.is_gone(&mut [0; 1024]) {
        let (version, _) = common.snapshot.wait_newer(seen, LOOK.min(limits.heartbeat));
        if version != seen {
            let rest = limits.event_interval.saturating_sub(sent.elapsed());
            common.stop.wait_newer(0, rest);
            let (version, snapshot) = common.snapshot.latest_with_version();
            send(&event(version, &snapshot))?;
            seen = version;
            sent = Instant::now();
        } else if sent.elapsed() >= limits.heartbeat {
            send(": still here\n\n")?;
            sent = Instant::now();
        }
    }
    Ok(())
}

/// JSON has no raw line breaks, so one `data` line holds it.
fn event(version: u64, snapshot: &Arc<Snapshot>) -> String {
    format!("event: snapshot\nid: {version}\ndata: {}\n\n", views::status(snapshot))
}

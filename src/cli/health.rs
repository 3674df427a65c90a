//! `healthcheck` and `monitor`: the two that have to do with the monitor page.

use std::net::SocketAddr;
use std::process::{Command, Stdio};

use crate::config::{self, ClientOptions};
use crate::monitor;

use super::client::Client;
use super::{Failure, print, tell};

/// Seconds that a worker which is well needs at most for a line.
const PATIENCE_S: u64 = 5;

/// The likeliest mistake.
const OTHER_PORT: &str = "if the worker's page is on another port, say so with --monitor-port N or MONITOR_PORT";

/// `healthcheck`: ends with 0 when the monitor says that all is well.
pub(super) fn healthcheck(options: &ClientOptions) -> Result<u8, Failure> {
    let address = config::reachable(options.monitor);
    if address.port() == 0 {
        return Err(Failure::new("MONITOR_PORT is 0, so nobody knows the port: set one that the health check can ask"));
    }
    let url = format!("http://{address}/healthz");
    match get(&url) {
        Ok(200) => {
            print("ok\n")?;
            Ok(0)
        }
        Ok(status) => Err(Failure::new(format!("{url} answers {status}: {OTHER_PORT}"))),
        Err(error) => Err(Failure::new(format!("{url} does not answer: {error}: {OTHER_PORT}"))),
    }
}

/// The status alone: the body could be another program's, and endless.
fn get(url: &str) -> Result<u16, minreq::Error> {
    let request = minreq::get(url).with_timeout(PATIENCE_S).with_follow_redirects(false);
    Ok(request.send_lazy()?.status_code)
}

/// Whether a worker of ours answers at this address.
pub(super) fn is_worker(address: SocketAddr) -> bool {
    get(&format!("http://{}/healthz", config::reachable(address))).is_ok_and(|status| status == 200)
}

/// `monitor`: prints the page's address with the token, and opens it where there is a screen.
pub(super) fn monitor(client: &Client, options: &ClientOptions) -> Result<u8, Failure> {
    let told = client.status()?.monitor;
    let page =
        if told.is_empty() { format!("http://{}/monitor.html", config::reachable(options.monitor)) } else { told };
    if !page.starts_with("http://") || page.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(Failure::new("the worker tells no address of a monitor page"));
    }
    // A service's socket is elsewhere; the token lies in the state folder in either case.
    let token = monitor::read_token(&options.state_dir).map_err(|error| {
        let path = options.state_dir.join(monitor::TOKEN_FILE);
        Failure::new(format!(
            "the monitor's token {} can't be read: {error} (name the worker's state folder with --state)",
            path.display()
        ))
    })?;
    let url = format!("{page}#token={token}");
    print(&format!("{url}\n"))?;
    let has_screen = ["DISPLAY", "WAYLAND_DISPLAY"].iter().any(|name| std::env::var_os(name).is_some());
    if has_screen {
        open(&url);
    }
    Ok(0)
}

/// The browser outlives us and its exit code says nothing; the address stands on the terminal in any case.
fn open(url: &str) {
    let started =
        Command::new("xdg-open").arg(url).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    if let Err(error) = started {
        tell(&format!("no browser was opened: xdg-open: {error}"));
    }
}

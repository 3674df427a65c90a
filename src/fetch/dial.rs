//! From an address in words to a connection that is checked. Looking up and connecting block and can't be interrupted, so
//! a thread of its own does both; whoever is released leaves it behind, and it ends by its own deadlines.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{after, bounded, select};

use super::{FetchError, Fetcher, Resolver, Stop};
use crate::node::guard::Guard;
use crate::node::url::Url;

/// Looking up and connecting together.
const DIAL_TIMEOUT: Duration = Duration::from_secs(20);
/// To one address, as another may answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(8);
/// The resolver of glibc needs about 100 KiB.
const STACK_BYTES: usize = 256 << 10;

/// Connects to one of the host's addresses that the guard leaves.
pub(super) fn dial(fetcher: &Fetcher, url: &Url, stop: &Stop) -> Result<TcpStream, FetchError> {
    fetcher.guard.check_url(url).map_err(FetchError::Refused)?;
    let (sender, result) = bounded(1);
    let (guard, resolver, own_url) = (Arc::clone(&fetcher.guard), Arc::clone(&fetcher.resolver), url.clone());
    let work = move || {
        // Nobody may wait any more.
        let _ = sender.send(connect(&guard, &resolver, &own_url));
    };
    let thread = thread::Builder::new().name("fetch-dial".to_owned()).stack_size(STACK_BYTES).spawn(work);
    thread.map_err(|error| FetchError::Node(format!("can't start a thread: {error}")))?;
    select! {
        recv(result) -> result => {
            result.unwrap_or_else(|_| Err(FetchError::Passing(format!("{url}: the connecting thread broke off"))))
        }
        recv(stop.stopped()) -> _ => Err(FetchError::Stopped),
        recv(after(DIAL_TIMEOUT)) -> _ => {
            Err(FetchError::Passing(format!("{url}: no connection within {} s", DIAL_TIMEOUT.as_secs())))
        }
    }
}

fn connect(guard: &Guard, resolver: &Resolver, url: &Url) -> Result<TcpStream, FetchError> {
    let until = Instant::now() + DIAL_TIMEOUT;
    let found = match url.address() {
        Some(address) => vec![address],
        None => {
            let failed = |error| FetchError::Passing(format!("{url}: can't resolve {}: {error}", url.host()));
            resolver(url.host()).map_err(failed)?
        }
    };
    let addresses = guard.check_addresses(url, &found).map_err(FetchError::Refused)?;
    let mut why = String::new();
    for address in addresses {
        let left = until.saturating_duration_since(Instant::now()).min(CONNECT_TIMEOUT);
        if left.is_zero() {
            break;
        }
        match TcpStream::connect_timeout(&SocketAddr::new(address, url.port()), left) {
            Ok(stream) => return checked_own(guard, url, address, stream),
            Err(error) => why = format!("{address}: {error}"),
        }
    }
    Err(FetchError::Passing(format!("{url}: can't connect to {why}")))
}

/// A connection from an address to itself stays on this machine, behind whatever keeps others away from its services.
/// Nothing was sent on it yet.
fn checked_own(guard: &Guard, url: &Url, address: IpAddr, stream: TcpStream) -> Result<TcpStream, FetchError> {
    let own = stream.local_addr().map_err(|error| FetchError::Passing(format!("{url}: {error}")))?;
    if own.ip().to_canonical() == address.to_canonical() && !guard.allows(url, address) {
        let host = url.host();
        return Err(FetchError::Refused(format!(
            "{url}: {host} leads to {address}, which is this machine: not fetched, but for hosts in HIVEMIND_FETCH_ALLOW"
        )));
    }
    Ok(stream)
}

//! Fetching for a task, without being the way in: each address is checked by [`crate::node::guard`] after the name is
//! resolved, and that address is the one connected to; no proxy, no second look-up. Redirects are followed by hand, each
//! checked anew.
//!
//! | file | has |
//! | --- | --- |
//! | `dial` | from a name to a checked connection |
//! | `line` | that connection, plain or TLS, with deadlines |
//! | `exchange` | one HTTP request over it: the seam to ureq |
//! | `download` | a file that grows over several tries |
//! | `stop` | release of whoever fetches |
//!
//! Left out on purpose: HTTP/2, cookies, credentials, compressed answers, and the trusted time of `rpc` (certificates are
//! checked by the system's clock).

mod dial;
mod download;
mod exchange;
mod line;
mod stop;

use std::fmt;
use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

use crate::node::guard::Guard;
pub use download::{Download, Progress, Wanted};
pub use stop::Stop;

/// Of a PEM file that is read; a system's whole store is a quarter of a megabyte.
const MAX_PEM_BYTES: u64 = 4 << 20;
/// Addresses of one name that are looked at.
const MAX_ADDRESSES: usize = 16;

/// Why something was not fetched.
#[derive(Debug)]
pub enum FetchError {
    /// Whoever asked for it is at fault, and another try would end the same.
    Refused(String),
    /// It may work at another time.
    Passing(String),
    /// This machine can't: its disk, its certificates.
    Node(String),
    /// Released.
    Stopped,
}

impl fmt::Display for FetchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(reason) | Self::Passing(reason) | Self::Node(reason) => f.write_str(reason),
            Self::Stopped => f.write_str("the fetch was released"),
        }
    }
}

impl std::error::Error for FetchError {}

/// Looks a name up; blocks, so that it is called on a thread of its own.
pub type Resolver = Arc<dyn Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync>;

/// What is fetched with. Clones are cheap.
#[derive(Clone)]
pub struct Fetcher {
    guard: Arc<Guard>,
    /// Authorities beside those of the system.
    authorities: Arc<Vec<CertificateDer<'static>>>,
    resolver: Resolver,
    idle_timeout: Duration,
    tls: Arc<OnceLock<Arc<ClientConfig>>>,
}

impl Fetcher {
    /// A fetcher under this guard; `ca_file` has authorities that are trusted beside those of the system.
    ///
    /// # Errors
    /// The file can't be used.
    pub fn new(guard: Guard, ca_file: Option<PathBuf>) -> Result<Self, String> {
        let authorities = ca_file.map(read_authorities).transpose()?.unwrap_or_default();
        Ok(Self {
            guard: Arc::new(guard),
            authorities: Arc::new(authorities),
            resolver: Arc::new(system_resolver),
            idle_timeout: exchange::IDLE_TIMEOUT,
            tls: Arc::default(),
        })
    }

    /// The same with another source of addresses: for tests.
    pub fn with_resolver(self, resolver: Resolver) -> Self {
        Self { resolver, ..self }
    }

    /// The same with another longest pause between two bytes: for tests.
    pub fn with_idle_timeout(self, idle_timeout: Duration) -> Self {
        Self { idle_timeout, ..self }
    }

    /// Read at the first use: a node that fetches nothing needs no authorities.
    fn tls(&self) -> Result<Arc<ClientConfig>, FetchError> {
        if let Some(config) = self.tls.get() {
            return Ok(Arc::clone(config));
        }
        let mut roots = RootCertStore::empty();
        // Systems have some authorities that cannot be parsed; the others count.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        roots.add_parsable_certificates(self.authorities.iter().cloned());
        if roots.is_empty() {
            let reason = "the system has no certificate authorities to check an https:// server with";
            return Err(FetchError::Node(reason.to_owned()));
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| FetchError::Node(format!("can't set up TLS: {error}")))?;
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::clone(self.tls.get_or_init(|| Arc::new(config))))
    }
}

fn read_authorities(path: PathBuf) -> Result<Vec<CertificateDer<'static>>, String> {
    use std::io::Read;
    let unreadable = |error: &dyn fmt::Display| format!("{} can't be read: {error}", path.display());
    let mut pem = Vec::new();
    let file = std::fs::File::open(&path).map_err(|error| unreadable(&error))?;
    file.take(MAX_PEM_BYTES + 1).read_to_end(&mut pem).map_err(|error| unreadable(&error))?;
    if pem.len() as u64 > MAX_PEM_BYTES {
        return Err(unreadable(&format_args!("it has more than {MAX_PEM_BYTES} bytes")));
    }
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match all {
        Ok(all) if all.is_empty() => Err(format!("{} has no certificate in PEM form", path.display())),
        Ok(all) => Ok(all),
        Err(error) => Err(unreadable(&error)),
    }
}

fn system_resolver(host: &str) -> io::Result<Vec<IpAddr>> {
    Ok((host, 0).to_socket_addrs()?.map(|found| found.ip()).take(MAX_ADDRESSES).collect())
}

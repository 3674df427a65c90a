//! TLS for lanes and servers: whose certificates are trusted, who we say we are, that HTTP/2 is agreed on, and words for
//! what goes wrong. Version 1.2 or later; rustls is fed by hand in `transport`.

mod client;
mod identity;
mod refusal;
mod server;
mod time;
mod words;

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

pub use client::client_config;
pub use identity::Identity;
pub use server::server_config;
pub use time::TrustedTime;
pub use words::explain;

pub(super) use client::session;
pub(super) use server::server_session;
pub(super) use words::no_http2;

/// The only protocol that is agreed on by ALPN.
pub(super) const ALPN: &[u8] = b"h2";
/// Plaintext that rustls holds for us before it is encrypted: as much as a connection yields at once.
const BUFFER_LIMIT: usize = 64 * 1024;
/// Of a PEM file that is read; a system's whole store is a quarter of a megabyte.
const MAX_PEM_BYTES: u64 = 4 << 20;

/// Whose certificates are trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Roots {
    /// The authorities that the system trusts.
    System,
    /// Only the authorities in this PEM file.
    File(PathBuf),
}

impl Roots {
    fn load(&self) -> Result<RootCertStore, TlsError> {
        let mut store = RootCertStore::empty();
        let place = match self {
            Roots::System => {
                // Systems have some authorities that cannot be parsed; the others count.
                store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                "the system's store".to_owned()
            }
            Roots::File(path) => {
                for certificate in certificates(path, Part::Authorities)? {
                    store.add(certificate).map_err(|error| Part::Authorities.garbled(path, error))?;
                }
                path.display().to_string()
            }
        };
        match store.is_empty() {
            true => Err(TlsError::NoRoots { place }),
            false => Ok(store),
        }
    }
}

/// What a PEM file holds for us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Certificates of authorities.
    Authorities,
    /// Our certificate, then those up to the authority.
    Chain,
    /// The private key of our certificate.
    Key,
}

impl Part {
    fn unreadable(self, path: &Path, source: io::Error) -> TlsError {
        TlsError::File { part: self, path: path.to_owned(), source }
    }

    fn garbled(self, path: &Path, error: impl fmt::Display) -> TlsError {
        self.unreadable(path, io::Error::new(io::ErrorKind::InvalidData, error.to_string()))
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Part::Authorities => "certificate authorities",
            Part::Chain => "certificate chain",
            Part::Key => "private key",
        })
    }
}

/// TLS cannot be set up as the operator asked.
#[derive(Debug)]
pub enum TlsError {
    /// A file cannot be read or does not hold what it should.
    File {
        /// What it was read for.
        part: Part,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file, or the system, has no certificate that can be used.
    NoRoots {
        /// Where they were looked for.
        place: String,
    },
    /// The private key belongs to another certificate.
    KeyMismatch {
        /// The file of the certificate.
        chain: PathBuf,
        /// The file of the key.
        key: PathBuf,
    },
    /// rustls refuses the configuration.
    Config(rustls::Error),
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TlsError::File { part, path, .. } => write!(f, "read {part} from {}", path.display()),
            TlsError::NoRoots { place } => write!(f, "find a certificate authority in {place}"),
            TlsError::KeyMismatch { chain, key } => {
                let (chain, key) = (chain.display(), key.display());
                write!(f, "use private key {key}: it is not the key of the certificate in {chain}")
            }
            TlsError::Config(_) => f.write_str("set up TLS"),
        }
    }
}

impl std::error::Error for TlsError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            TlsError::File { source, .. } => Some(source),
            TlsError::NoRoots { .. } | TlsError::KeyMismatch { .. } => None,
            TlsError::Config(source) => Some(source),
        }
    }
}

fn read_pem(path: &Path, part: Part) -> Result<Vec<u8>, TlsError> {
    let mut pem = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_PEM_BYTES + 1).read_to_end(&mut pem));
    match read {
        Ok(n) if n as u64 > MAX_PEM_BYTES => Err(part.garbled(path, "it is too large")),
        Ok(_) => Ok(pem),
        Err(source) => Err(part.unreadable(path, source)),
    }
}

/// All certificates of a PEM file, in its order; there may be none.
fn certificates(path: &Path, part: Part) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = read_pem(path, part)?;
    let all: Result<_, _> = CertificateDer::pem_slice_iter(&pem).collect();
    all.map_err(|error| part.garbled(path, error))
}

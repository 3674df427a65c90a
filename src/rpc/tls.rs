//! TLS for lanes: which authorities are trusted, that HTTP/2 is agreed on, and words for what goes wrong.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::client::ClientConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::time_provider::TimeProvider;
use rustls::{CertificateError, ClientConnection, RootCertStore};

/// Plaintext that rustls holds for us before it is encrypted: as much as a connection yields at once.
const BUFFER_LIMIT: usize = 64 * 1024;

/// Whose certificates are trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Roots {
    /// The authorities that the system trusts.
    System,
    /// Only the authorities in this PEM file.
    File(PathBuf),
}

/// TLS cannot be set up as the operator asked.
#[derive(Debug)]
pub enum TlsError {
    /// The authorities' file cannot be read or is no PEM.
    File {
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
    /// rustls refuses the configuration.
    Config(rustls::Error),
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TlsError::File { path, .. } => write!(f, "read certificate authorities from {}", path.display()),
            TlsError::NoRoots { place } => write!(f, "find a certificate authority in {place}"),
            TlsError::Config(_) => f.write_str("set up TLS"),
        }
    }
}

impl std::error::Error for TlsError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            TlsError::File { source, .. } => Some(source),
            TlsError::NoRoots { .. } => None,
            TlsError::Config(source) => Some(source),
        }
    }
}

/// What certificates are checked against: a function that yields the time since 1970.
pub struct Clock<F>(pub F);

impl<F> fmt::Debug for Clock<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

impl<F: Fn() -> Duration + Send + Sync> TimeProvider for Clock<F> {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch((self.0)()))
    }
}

/// A client's TLS: version 1.2 or later, HTTP/2 by ALPN, certificates checked at the time that `time` says.
pub fn client_config(roots: &Roots, time: Arc<dyn TimeProvider>) -> Result<Arc<ClientConfig>, TlsError> {
    let store = match roots {
        Roots::System => system_roots()?,
        Roots::File(path) => file_roots(path)?,
    };
    let builder = ClientConfig::builder_with_details(Arc::new(ring::default_provider()), time);
    let builder = builder.with_safe_default_protocol_versions().map_err(TlsError::Config)?;
    let mut config = builder.with_root_certificates(store).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

fn system_roots() -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    // Systems have some authorities that cannot be parsed; the others count.
    store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    match store.is_empty() {
        true => Err(TlsError::NoRoots { place: "the system's store".into() }),
        false => Ok(store),
    }
}

fn file_roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let failed = |source| TlsError::File { path: path.to_owned(), source };
    let pem = std::fs::read(path).map_err(failed)?;
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|e| failed(io::Error::new(io::ErrorKind::InvalidData, e.to_string())))?;
        store.add(certificate).map_err(|e| failed(io::Error::new(io::ErrorKind::InvalidData, e)))?;
    }
    match store.is_empty() {
        true => Err(TlsError::NoRoots { place: path.display().to_string() }),
        false => Ok(store),
    }
}

/// A session to this host, name or address.
pub(super) fn session(config: &Arc<ClientConfig>, host: &str) -> Result<ClientConnection, String> {
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| format!("{host:?} is no name that a certificate can have"))?;
    let mut session = ClientConnection::new(Arc::clone(config), name).map_err(|e| explain(&e, host))?;
    session.set_buffer_limit(Some(BUFFER_LIMIT));
    Ok(session)
}

/// What went wrong, in words that an operator can act on.
pub fn explain(error: &rustls::Error, host: &str) -> String {
    let rustls::Error::InvalidCertificate(problem) = error else {
        return match error {
            rustls::Error::InvalidMessage(_) => format!("{host} does not speak TLS on this port ({error})"),
            rustls::Error::NoApplicationProtocol => no_http2(host),
            _ => format!("TLS with {host} failed: {error}"),
        };
    };
    match problem {
        // A bad signature is what an authority of the same name but another key gives.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            format!("certificate of {host} is signed by an authority that is not trusted here")
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            format!("certificate of {host} has expired, or the clock here is ahead ({problem})")
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            format!("certificate of {host} is not valid yet, or the clock here is behind ({problem})")
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            format!("certificate of {host} is for another name ({problem})")
        }
        CertificateError::Revoked => format!("certificate of {host} is revoked"),
        _ => format!("certificate of {host} is refused: {problem}"),
    }
}

/// The server agreed on something else than HTTP/2, or on nothing.
pub(super) fn no_http2(host: &str) -> String {
    format!("{host} does not offer HTTP/2 over TLS (ALPN h2), which gRPC needs")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock() -> Arc<dyn TimeProvider> {
        Arc::new(Clock(|| Duration::from_secs(1_700_000_000)))
    }

    #[test]
    fn file_without_certificates_is_refused_by_name() {
        let path = std::env::temp_dir().join(format!("hivemind-no-roots-{}", std::process::id()));
        let file = Roots::File(path.clone());
        assert!(matches!(client_config(&file, clock()), Err(TlsError::File { .. })));
        std::fs::write(&path, "nothing here").unwrap();
        assert!(matches!(client_config(&file, clock()), Err(TlsError::NoRoots { .. })));
        std::fs::write(&path, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
        let error = client_config(&file, clock()).unwrap_err();
        assert!(error.to_string().contains("hivemind-no-roots"), "{error}");
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn certificate_problems_have_words() {
        let words = |e| explain(&rustls::Error::InvalidCertificate(e), "master.example");
        assert!(words(CertificateError::Expired).contains("clock here is ahead"));
        assert!(words(CertificateError::UnknownIssuer).contains("not trusted"));
        assert!(words(CertificateError::NotValidForName).contains("another name"));
    }
}

//! A certificate chain with its private key, from PEM files: who a server, or a client that is asked, says it is. Files that
//! are renewed count from the next connection on; while they can't be used, what was there before does.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::crypto::ring;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::{self, PemObject};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{Error, InconsistentKeys};

use super::{Part, TlsError, certificates, read_pem};

/// A certificate chain and the key that fits it.
#[derive(Clone)]
pub struct Identity(Arc<Files>);

/// What tells that a file is another one than before.
type Stamp = [Option<(SystemTime, u64)>; 2];

pub(super) struct Files {
    chain: PathBuf,
    key: PathBuf,
    held: Mutex<(Stamp, Arc<CertifiedKey>)>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity")
    }
}

impl Identity {
    /// Reads both files. `chain` has the own certificate first, then those that lead to an authority; `key` is PKCS#8,
    /// PKCS#1 or SEC1, without a passphrase.
    ///
    /// # Errors
    /// Names the file that cannot be read or used, or that key and certificate do not belong together.
    pub fn from_files(chain: &Path, key: &Path) -> Result<Identity, TlsError> {
        let held = Mutex::new((stamp(chain, key), read(chain, key)?));
        Ok(Identity(Arc::new(Files { chain: chain.to_owned(), key: key.to_owned(), held })))
    }

    /// The same certificate for every peer.
    pub(super) fn resolver(&self) -> Arc<Files> {
        Arc::clone(&self.0)
    }
}

impl Files {
    /// As the files are now.
    fn current(&self) -> Arc<CertifiedKey> {
        let now = stamp(&self.chain, &self.key);
        if self.held().0 != now {
            // Without the lock: another handshake may go on, at the worst with the old one.
            match read(&self.chain, &self.key) {
                Ok(renewed) => {
                    log::info!("uses the renewed certificate in {}", self.chain.display());
                    *self.held() = (now, renewed);
                }
                Err(error) => {
                    let cause = std::error::Error::source(&error).map_or(String::new(), |cause| format!(": {cause}"));
                    log::warn!("goes on with the certificate from before: failed to {error}{cause}");
                    self.held().0 = now;
                }
            }
        }
        Arc::clone(&self.held().1)
    }

    fn held(&self) -> MutexGuard<'_, (Stamp, Arc<CertifiedKey>)> {
        // Each change is one assignment, so that a panic elsewhere leaves it whole.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Files")
    }
}

impl ResolvesClientCert for Files {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl ResolvesServerCert for Files {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }
}

fn stamp(chain: &Path, key: &Path) -> Stamp {
    [chain, key].map(|path| {
        let facts = fs::metadata(path).ok()?;
        Some((facts.modified().ok()?, facts.len()))
    })
}

fn read(chain: &Path, key: &Path) -> Result<Arc<CertifiedKey>, TlsError> {
    let certificates = certificates(chain, Part::Chain)?;
    if certificates.is_empty() {
        return Err(Part::Chain.garbled(chain, "it has no PEM section CERTIFICATE"));
    }
    let pem = read_pem(key, Part::Key)?;
    let private = PrivateKeyDer::from_pem_slice(&pem).map_err(|error| match error {
        pem::Error::NoItemsFound => Part::Key.garbled(key, "it has no PEM section PRIVATE KEY without a passphrase"),
        error => Part::Key.garbled(key, error),
    })?;
    match CertifiedKey::from_der(certificates, private, &ring::default_provider()) {
        Ok(certified) => Ok(Arc::new(certified)),
        Err(Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
            Err(TlsError::KeyMismatch { chain: chain.to_owned(), key: key.to_owned() })
        }
        // Beside the key only the first certificate is looked into.
        Err(error @ Error::InvalidCertificate(_)) => Err(Part::Chain.garbled(chain, error)),
        Err(error) => Err(Part::Key.garbled(key, error)),
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;
    use std::path::PathBuf;

    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    /// A certificate, its key and another key, as PEM.
    fn material() -> [String; 3] {
        let [key, other] = [(); 2].map(|()| KeyPair::generate().unwrap());
        let certificate = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
        [certificate.pem(), key.serialize_pem(), other.serialize_pem()]
    }

    /// Reads an identity out of files with this content; what went wrong, with the files named `chain` and `key`.
    fn read(name: &str, chain: Option<&str>, key: Option<&str>) -> Result<Identity, String> {
        let folder = std::env::temp_dir().join(format!("hivemind-identity-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let write = |name: &str, content: Option<&str>| -> PathBuf {
            let path = folder.join(name);
            content.into_iter().for_each(|content| std::fs::write(&path, content).unwrap());
            path
        };
        let (chain, key) = (write("chain", chain), write("key", key));
        let read = Identity::from_files(&chain, &key);
        std::fs::remove_dir_all(&folder).unwrap();
        read.map_err(|error| {
            let source = error.source().map_or(String::new(), |source| format!(": {source}"));
            format!("{error}{source}").replace(&format!("{}/", folder.display()), "")
        })
    }

    #[test]
    fn chain_and_key_that_fit_are_taken_and_not_shown() {
        let [certificate, key, _] = material();
        let identity = read("good", Some(&certificate), Some(&key)).unwrap();
        assert_eq!(format!("{identity:?}"), "Identity");
    }

    #[test]
    fn each_mistake_names_its_file() {
        let [certificate, key, other] = material();
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for (name, chain, key, words) in [
            ("a", None, Some(key.as_str()), "read certificate chain from chain: No such file"),
            ("b", Some(certificate.as_str()), None, "read private key from key: No such file"),
            ("c", Some(""), Some(&key), "read certificate chain from chain: it has no PEM section CERTIFICATE"),
            ("d", Some(broken), Some(&key), "read certificate chain from chain: invalid peer certificate: BadEncoding"),
            ("e", Some(&certificate), Some("x"), "read private key from key: it has no PEM section PRIVATE KEY"),
            ("f", Some(&certificate), Some(&certificate), "read private key from key: it has no PEM section"),
            (
                "g",
                Some(&certificate),
                Some(&other),
                "use private key key: it is not the key of the certificate in chain",
            ),
        ] {
            let error = read(name, chain, key).unwrap_err();
            assert!(error.starts_with(words), "{error}");
        }
        let garbled = key.lines().nth(1).map(|line| key.replace(line, "AAAA")).unwrap();
        let error = read("h", Some(&certificate), Some(&garbled)).unwrap_err();
        assert!(error.starts_with("read private key from key: "), "{error}");
        let secret = key.lines().nth(1).unwrap();
        assert!(!error.contains(secret));
    }
}

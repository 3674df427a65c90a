//! Certificates, made at run time: an authority and what it signs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hivemind_worker::rpc::tls::{self, Identity, Roots, TrustedTime};
use hivemind_worker::sys::clock::boottime;
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair};

use super::Folder;

/// An authority with a folder of PEM files.
pub struct Authority {
    pub folder: Folder,
    pub issuer: Issuer<'static, KeyPair>,
    pub roots: Roots,
    /// Path of its certificate.
    pub ca: String,
    issued: AtomicU32,
}

impl Authority {
    pub fn new() -> Authority {
        let folder = Folder::new();
        let name = folder.0.file_name().unwrap().to_str().unwrap().to_owned();
        Authority::named(folder, &name)
    }

    /// Another one that has the same name.
    pub fn like(other: &Authority) -> Authority {
        Authority::named(Folder::new(), other.folder.0.file_name().unwrap().to_str().unwrap())
    }

    fn named(folder: Folder, name: &str) -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = folder.write("ca.pem", &params.self_signed(&key).unwrap().pem());
        let roots = Roots::File(ca.clone().into());
        Authority { folder, issuer: Issuer::new(params, key), roots, ca, issued: AtomicU32::new(0) }
    }

    /// Files with a certificate for this name and its key.
    pub fn issue(&self, name: &str) -> [String; 2] {
        self.sign(CertificateParams::new(vec![name.to_owned()]).unwrap())
    }

    /// Files with this certificate and its key.
    pub fn sign(&self, params: CertificateParams) -> [String; 2] {
        let n = self.issued.fetch_add(1, Ordering::Relaxed);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let write = |kind: &str, pem: &str| self.folder.write(&format!("{kind}-{n}.pem"), pem);
        [write("cert", &certificate.pem()), write("key", &key.serialize_pem())]
    }

    /// A certificate for this name and its key, read by the product.
    pub fn identity(&self, name: &str) -> Identity {
        let [chain, key] = self.issue(name);
        Identity::from_files(chain.as_ref(), key.as_ref()).unwrap()
    }

    pub fn client(&self) -> Arc<rustls::ClientConfig> {
        tls::client_config(&self.roots, None, &Arc::new(TrustedTime::default())).unwrap()
    }

    /// One whose clock is thousands of years ahead.
    pub fn client_that_is_ahead(&self) -> Arc<rustls::ClientConfig> {
        let clock =
            || SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + Duration::from_secs(4_000 * 365 * 86_400);
        tls::client_config(&self.roots, None, &Arc::new(TrustedTime::new(clock, boottime))).unwrap()
    }
}

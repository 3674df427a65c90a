//! A certificate authority that is made at run time.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hivemind_worker::rpc::tls::{self, Clock, Roots};
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair};

use super::Folder;

pub struct Authority {
    pub folder: Folder,
    issuer: Issuer<'static, KeyPair>,
    pub roots: Roots,
}

impl Authority {
    pub fn new() -> Authority {
        let folder = Folder::new();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, format!("{}", folder.0.display()));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        let roots = Roots::File(folder.write("ca.pem", &certificate.pem()).into());
        Authority { folder, issuer: Issuer::new(params, key), roots }
    }

    /// Files with a certificate for this name and its key.
    pub fn issue(&self, name: &str) -> [String; 2] {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &self.issuer).unwrap();
        [self.folder.write("cert.pem", &certificate.pem()), self.folder.write("key.pem", &key.serialize_pem())]
    }

    pub fn client(&self) -> Arc<rustls::ClientConfig> {
        self.client_at(Duration::ZERO)
    }

    pub fn client_at(&self, ahead: Duration) -> Arc<rustls::ClientConfig> {
        let clock = move || SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + ahead;
        tls::client_config(&self.roots, Arc::new(Clock(clock))).unwrap()
    }
}

//! What rustls does not say about a certificate that it refuses: who signed it, and whether the clock here is to blame.
//!
//! The check itself is rustls's own. An error that we know more about is wrapped; the peer is then told
//! `certificate_unknown` instead of a closer alert, since rustls derives that from its own errors only.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, OtherError, SignatureScheme};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::time::TrustedTime;

/// Characters of a name that is repeated; real ones have far fewer.
const MAX_NAME: usize = 200;

/// Why a certificate is refused, where rustls's own error says less.
#[derive(Debug)]
pub(super) enum Refusal {
    /// No authority that is trusted here has signed it.
    Untrusted { issuer: Issuer },
    /// Its time seems to be over, but not by the master's own clock.
    ClockAhead { here: Duration, master: Duration, not_after: Duration },
}

/// Who has signed the last certificate of a chain.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Issuer {
    Itself(String),
    Named(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Refusal::Untrusted { .. } => "signed by an authority that is not trusted",
            Refusal::ClockAhead { .. } => "the clock here is ahead",
        })
    }
}

impl std::error::Error for Refusal {}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Error {
        Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(refusal))))
    }
}

/// rustls's verifier, with more to say.
#[derive(Debug)]
pub(super) struct Verifier {
    pub(super) inner: Arc<WebPkiServerVerifier>,
    pub(super) time: Arc<TrustedTime>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        verified.map_err(|error| {
            let Error::InvalidCertificate(problem) = &error else { return error };
            let refusal = match problem {
                // A bad signature is what an authority of the same name but another key gives.
                CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                    issuer(end_entity, intermediates).map(|issuer| Refusal::Untrusted { issuer })
                }
                CertificateError::ExpiredContext { time, not_after } => self.clock_ahead(*time, *not_after),
                _ => None,
            };
            refusal.map_or(error, Error::from)
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

impl Verifier {
    fn clock_ahead(&self, here: UnixTime, not_after: UnixTime) -> Option<Refusal> {
        let master = self.time.of_master()?;
        let [here, not_after] = [here, not_after].map(|time| Duration::from_secs(time.as_secs()));
        (master < not_after).then_some(Refusal::ClockAhead { here, master, not_after })
    }
}

/// Follows the chain up to the last certificate that was sent.
fn issuer(end_entity: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) -> Option<Issuer> {
    fn parse<'a>(der: &'a CertificateDer<'_>) -> Option<X509Certificate<'a>> {
        X509Certificate::from_der(der).ok().map(|(_, certificate)| certificate)
    }
    let leaf = parse(end_entity)?;
    if leaf.issuer().as_raw() == leaf.subject().as_raw() {
        return Some(Issuer::Itself(name(&leaf)));
    }
    let above: Vec<_> = intermediates.iter().filter_map(parse).collect();
    let mut last = &leaf;
    // A chain that leads in a circle ends too.
    for _ in &above {
        let is_parent = |parent: &&X509Certificate<'_>| parent.subject().as_raw() == last.issuer().as_raw();
        match above.iter().find(is_parent) {
            Some(parent) => last = parent,
            None => break,
        }
    }
    Some(Issuer::Named(name(last)))
}

/// The issuer, as the certificate states it.
fn name(certificate: &X509Certificate<'_>) -> String {
    certificate.issuer().to_string().chars().take(MAX_NAME).collect()
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer as Signer, KeyPair};

    use super::*;

    fn params(name: &str) -> CertificateParams {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
    }

    #[test]
    fn issuer_is_the_one_above_all_that_was_sent() {
        let keys = [(); 3].map(|()| KeyPair::generate().unwrap());
        let [root_key, middle_key, leaf_key] = &keys;
        let root = Signer::new(params("Root"), root_key);
        let middle = params("Middle").signed_by(middle_key, &root).unwrap();
        let middle_signer = Signer::new(params("Middle"), middle_key);
        let leaf = params("Leaf").signed_by(leaf_key, &middle_signer).unwrap();
        assert_eq!(issuer(leaf.der(), &[]), Some(Issuer::Named("CN=Middle".into())));
        assert_eq!(issuer(leaf.der(), &[middle.der().clone()]), Some(Issuer::Named("CN=Root".into())));
        let root = params("Root").self_signed(root_key).unwrap();
        let sent = [middle.der().clone(), root.der().clone()];
        assert_eq!(issuer(leaf.der(), &sent), Some(Issuer::Named("CN=Root".into())));
        assert_eq!(issuer(root.der(), &[]), Some(Issuer::Itself("CN=Root".into())));
        let long = params(&"x".repeat(1_000)).self_signed(root_key).unwrap();
        assert_eq!(issuer(long.der(), &[]), Some(Issuer::Itself(format!("CN={}", "x".repeat(MAX_NAME - 3)))));
    }

    #[test]
    fn what_is_no_certificate_has_no_issuer() {
        let whole = params("x").self_signed(&KeyPair::generate().unwrap()).unwrap();
        let der = whole.der().as_ref();
        for cut in 0..der.len() {
            assert_eq!(issuer(&der[..cut].into(), &[]), None, "{cut}");
        }
        let mut state = 1u32;
        for at in 0..der.len() {
            // It may still be a certificate; it must not panic.
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let mut der = der.to_vec();
            der[at] ^= (state >> 24) as u8 | 1;
            issuer(&der.as_slice().into(), &[whole.der().clone()]);
        }
    }
}

//! The client's end of TLS.

use std::sync::Arc;

use rustls::ClientConnection;
use rustls::client::{ClientConfig, WebPkiServerVerifier};
use rustls::crypto::ring;
use rustls::pki_types::ServerName;

use super::refusal::Verifier;
use super::{ALPN, BUFFER_LIMIT, Identity, Roots, TlsError, TrustedTime, explain};

/// A client's TLS: version 1.2 or later, HTTP/2 by ALPN, certificates checked by the time rule of [`TrustedTime`]. A server
/// that asks for a certificate gets `identity`.
///
/// # Errors
/// The authorities cannot be used.
pub fn client_config(
    roots: &Roots,
    identity: Option<&Identity>,
    time: &Arc<TrustedTime>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let crypto = Arc::new(ring::default_provider());
    let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots.load()?), Arc::clone(&crypto));
    let inner = inner.build().map_err(|error| TlsError::Config(rustls::Error::General(error.to_string())))?;
    let builder = ClientConfig::builder_with_details(crypto, Arc::<TrustedTime>::clone(time));
    let builder = builder.with_safe_default_protocol_versions().map_err(TlsError::Config)?;
    // Nothing is waived by it: the verifier inside is the one that a configuration has by default.
    let builder =
        builder.dangerous().with_custom_certificate_verifier(Arc::new(Verifier { inner, time: Arc::clone(time) }));
    let mut config = match identity {
        Some(identity) => builder.with_client_cert_resolver(identity.resolver()),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config))
}

/// A session to this host, name or address.
pub(in crate::rpc) fn session(config: &Arc<ClientConfig>, host: &str) -> Result<ClientConnection, String> {
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| format!("{host:?} is no name that a certificate can have"))?;
    let mut session = ClientConnection::new(Arc::clone(config), name).map_err(|e| explain(&e, host))?;
    session.set_buffer_limit(Some(BUFFER_LIMIT));
    Ok(session)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_without_certificates_is_refused_by_name() {
        let path = std::env::temp_dir().join(format!("hivemind-no-roots-{}", std::process::id()));
        let file = Roots::File(path.clone());
        let read = || client_config(&file, None, &Arc::new(TrustedTime::default()));
        assert!(matches!(read(), Err(TlsError::File { .. })));
        std::fs::write(&path, "nothing here").unwrap();
        assert!(matches!(read(), Err(TlsError::NoRoots { .. })));
        std::fs::write(&path, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
        let error = read().unwrap_err();
        assert!(error.to_string().contains("hivemind-no-roots"), "{error}");
        std::fs::remove_file(&path).unwrap();
    }
}

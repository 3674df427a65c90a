//! The client's end of TLS.

use std::sync::Arc;

use rustls::ClientConnection;
use rustls::client::ClientConfig;
use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use rustls::time_provider::TimeProvider;

use super::{ALPN, BUFFER_LIMIT, Roots, TlsError, explain};

/// A client's TLS: version 1.2 or later, HTTP/2 by ALPN, certificates checked at the time that `time` says.
pub fn client_config(roots: &Roots, time: Arc<dyn TimeProvider>) -> Result<Arc<ClientConfig>, TlsError> {
    let store = roots.load()?;
    let builder = ClientConfig::builder_with_details(Arc::new(ring::default_provider()), time);
    let builder = builder.with_safe_default_protocol_versions().map_err(TlsError::Config)?;
    let mut config = builder.with_root_certificates(store).with_no_client_auth();
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
    use std::time::Duration;

    use super::super::Clock;
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
}

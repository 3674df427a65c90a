//! The server's end of TLS.

use std::sync::Arc;

use rustls::ServerConnection;
use rustls::crypto::ring;
use rustls::server::{ServerConfig, WebPkiClientVerifier};

use super::{ALPN, BUFFER_LIMIT, Identity, Roots, TlsError};

/// A server's TLS: version 1.2 or later, HTTP/2 by ALPN. With `clients`, each client must have a certificate of one of
/// these authorities.
///
/// # Errors
/// The authorities cannot be used.
pub fn server_config(identity: &Identity, clients: Option<&Roots>) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
    let builder = builder.with_safe_default_protocol_versions().map_err(TlsError::Config)?;
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(roots) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots.load()?), provider);
            let verifier =
                verifier.build().map_err(|error| TlsError::Config(rustls::Error::General(error.to_string())))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_cert_resolver(identity.resolver());
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config))
}

/// A session with a client that has just connected.
pub(in crate::rpc) fn server_session(config: &Arc<ServerConfig>) -> Result<ServerConnection, rustls::Error> {
    let mut session = ServerConnection::new(Arc::clone(config))?;
    session.set_buffer_limit(Some(BUFFER_LIMIT));
    Ok(session)
}

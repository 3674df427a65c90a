//! What went wrong with TLS, in words that an operator can act on.

use rustls::CertificateError;

/// What went wrong with this peer, in words that an operator can act on.
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
pub(in crate::rpc) fn no_http2(host: &str) -> String {
    format!("{host} does not offer HTTP/2 over TLS (ALPN h2), which gRPC needs")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificate_problems_have_words() {
        let words = |e| explain(&rustls::Error::InvalidCertificate(e), "master.example");
        assert!(words(CertificateError::Expired).contains("clock here is ahead"));
        assert!(words(CertificateError::UnknownIssuer).contains("not trusted"));
        assert!(words(CertificateError::NotValidForName).contains("another name"));
    }
}

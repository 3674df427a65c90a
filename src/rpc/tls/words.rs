//! What went wrong with TLS, in words that an operator can act on.

use rustls::pki_types::{ServerName, UnixTime};
use rustls::{AlertDescription, CertificateError, Error, PeerIncompatible};

use super::refusal::{Issuer, Refusal};
use crate::sys::time::utc;

/// Names of a certificate that are repeated.
const MAX_NAMES: usize = 8;
/// Characters of each.
const MAX_NAME: usize = 100;

/// What went wrong with this peer, in words that an operator can act on.
pub fn explain(error: &Error, host: &str) -> String {
    match error {
        Error::InvalidCertificate(problem) => explain_certificate(problem, host),
        Error::AlertReceived(alert) => explain_alert(*alert, host),
        Error::InvalidMessage(_) => format!("{host} does not speak TLS on this port ({error})"),
        Error::NoApplicationProtocol => no_http2(host),
        Error::NoCertificatesPresented => format!("{host} has shown no certificate"),
        Error::PeerIncompatible(PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig) => too_old(host),
        _ => format!("TLS with {host} failed: {error}"),
    }
}

/// The server agreed on something else than HTTP/2, or on nothing.
pub(in crate::rpc) fn no_http2(host: &str) -> String {
    format!("{host} does not offer HTTP/2 over TLS (ALPN h2), which gRPC needs")
}

fn too_old(host: &str) -> String {
    format!("{host} speaks no version of TLS that is taken here (1.2 or later)")
}

fn explain_certificate(problem: &CertificateError, host: &str) -> String {
    match problem {
        CertificateError::Other(other) => match other.0.downcast_ref() {
            Some(refusal) => explain_refusal(refusal, host),
            None => format!("certificate of {host} is refused: {problem}"),
        },
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            format!("certificate of {host} is signed by an authority that is not trusted here")
        }
        CertificateError::ExpiredContext { time, not_after } => format!(
            "certificate of {host} has expired, or the clock here is ahead: it ended at {}, and here it is {}",
            shown(*not_after),
            shown(*time)
        ),
        CertificateError::Expired => format!("certificate of {host} has expired, or the clock here is ahead"),
        CertificateError::NotValidYetContext { time, not_before } => format!(
            "certificate of {host} is not valid yet, or the clock here is behind: it begins at {}, and here it is {}",
            shown(*not_before),
            shown(*time)
        ),
        CertificateError::NotValidYet => format!("certificate of {host} is not valid yet, or the clock here is behind"),
        CertificateError::NotValidForNameContext { expected, presented } => explain_name(expected, presented, host),
        CertificateError::NotValidForName => format!("certificate of {host} is for another name"),
        CertificateError::Revoked => format!("certificate of {host} is revoked"),
        _ => format!("certificate of {host} is refused: {problem}"),
    }
}

fn explain_refusal(refusal: &Refusal, host: &str) -> String {
    match refusal {
        Refusal::Untrusted { issuer: Issuer::Itself(name) } => {
            format!("certificate of {host} is signed by itself ({name:?}), which is not trusted here")
        }
        Refusal::Untrusted { issuer: Issuer::Named(name) } => {
            format!("certificate of {host} is signed by {name:?}, an authority that is not trusted here")
        }
        Refusal::ClockAhead { here, master, not_after } => format!(
            "the clock here is ahead and must be set right: it says {}, the master's says {}, and the certificate of \
             {host} is good until {}",
            utc(here.as_secs()),
            utc(master.as_secs()),
            utc(not_after.as_secs())
        ),
    }
}

fn explain_name(expected: &ServerName<'_>, presented: &[String], host: &str) -> String {
    let wanted = expected.to_str();
    if presented.is_empty() {
        return format!("certificate of {host} has no name at all (a common name does not count); wanted is {wanted}");
    }
    let names: Vec<String> = presented.iter().take(MAX_NAMES).map(|name| bare(name)).collect();
    let more = match presented.len().saturating_sub(MAX_NAMES) {
        0 => String::new(),
        n => format!(" and {n} more"),
    };
    format!("certificate of {host} is for another name: it has {}{more}; wanted is {wanted}", names.join(", "))
}

/// `localhost` out of `DnsName("localhost")`, as rustls writes a name down.
fn bare(name: &str) -> String {
    let inside = name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')')).unwrap_or(name);
    inside.trim_matches('"').chars().take(MAX_NAME).collect()
}

fn explain_alert(alert: AlertDescription, host: &str) -> String {
    let refused = |why: &str| format!("{host} refuses our certificate: {why}");
    match alert {
        AlertDescription::CertificateRequired => format!("{host} requires a client certificate"),
        AlertDescription::UnknownCA => refused("it does not trust who signed it"),
        AlertDescription::CertificateExpired => refused("it has expired, or is not valid yet, by the clock there"),
        AlertDescription::CertificateRevoked => refused("it is revoked"),
        AlertDescription::AccessDenied => refused("its holder has no access"),
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateUnknown => refused("no closer reason is given"),
        AlertDescription::HandshakeFailure => {
            format!("{host} has no cipher in common with us, or requires a client certificate")
        }
        AlertDescription::ProtocolVersion => too_old(host),
        AlertDescription::UnrecognisedName => format!("{host} does not know that name"),
        AlertDescription::NoApplicationProtocol => no_http2(host),
        _ => format!("{host} ended TLS with the alert {alert:?}"),
    }
}

fn shown(time: UnixTime) -> String {
    utc(time.as_secs())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use rustls::OtherError;

    use super::*;

    fn words(problem: CertificateError) -> String {
        explain(&Error::InvalidCertificate(problem), "master.example")
    }

    fn at(seconds: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(seconds))
    }

    #[test]
    fn times_and_names_are_told() {
        // Seconds as `date -u -d "2026-01-31 12:00" +%s` gives them.
        let (end, later) = (at(1_769_860_800), at(1_770_105_645));
        assert_eq!(
            words(CertificateError::ExpiredContext { time: later, not_after: end }),
            "certificate of master.example has expired, or the clock here is ahead: it ended at 2026-01-31 12:00 UTC, \
             and here it is 2026-02-03 08:00 UTC"
        );
        assert_eq!(
            words(CertificateError::NotValidYetContext { time: end, not_before: later }),
            "certificate of master.example is not valid yet, or the clock here is behind: it begins at 2026-02-03 08:00 \
             UTC, and here it is 2026-01-31 12:00 UTC"
        );
        let expected = ServerName::try_from("master.example").unwrap();
        let name = |n: usize| format!("DnsName(\"a{n}.example\")");
        let problem = |presented| CertificateError::NotValidForNameContext { expected: expected.clone(), presented };
        assert_eq!(
            words(problem(vec![name(1), "IpAddress(10.0.0.1)".into()])),
            "certificate of master.example is for another name: it has a1.example, 10.0.0.1; wanted is master.example"
        );
        assert!(words(problem((0..100).map(name).collect())).contains("a7.example and 92 more; wanted"));
        assert!(words(problem(vec![])).contains("no name at all"));
    }

    #[test]
    fn what_our_own_check_adds_is_told() {
        let words = |refusal| words(CertificateError::Other(OtherError(Arc::new(refusal))));
        let issuer = Issuer::Named("CN=Root\n".into());
        assert_eq!(
            words(Refusal::Untrusted { issuer }),
            "certificate of master.example is signed by \"CN=Root\\n\", an authority that is not trusted here"
        );
        let [here, master, not_after] = [2_000_000_000, 1_769_860_800, 1_770_105_645].map(Duration::from_secs);
        assert_eq!(
            words(Refusal::ClockAhead { here, master, not_after }),
            "the clock here is ahead and must be set right: it says 2033-05-18 03:33 UTC, the master's says 2026-01-31 \
             12:00 UTC, and the certificate of master.example is good until 2026-02-03 08:00 UTC"
        );
    }

    #[test]
    fn alerts_have_words() {
        let words = |alert| explain(&Error::AlertReceived(alert), "h");
        assert_eq!(words(AlertDescription::CertificateRequired), "h requires a client certificate");
        assert_eq!(words(AlertDescription::UnknownCA), "h refuses our certificate: it does not trust who signed it");
        assert_eq!(words(AlertDescription::DecodeError), "h ended TLS with the alert DecodeError");
        assert_eq!(words(AlertDescription::NoApplicationProtocol), no_http2("h"));
    }
}

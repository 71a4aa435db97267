//! Which servers are trusted: those whose certificate an authority has signed that the host or the
//! user trusts, and those whose own certificate the user has given.
//!
//! # Invariants
//! - A server's own certificate that the user has given is accepted only byte for byte, within its
//!   time, and for the name that was asked for; it does not count as an authority.

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use rustls_platform_verifier::Verifier;
use std::sync::Arc;

/// Returns the certificates in a file, or what is wrong with it.
pub(crate) fn certificates(bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
    let all = all.map_err(|_| "it is not in the form PEM".to_owned())?;
    if all.is_empty() {
        return Err("it holds no certificate".to_owned());
    }
    Ok(all)
}

/// Returns how connections are made that trust `given` beside what the host trusts.
///
/// # Errors
/// That one of them cannot be used.
pub(crate) fn config(given: Vec<CertificateDer<'static>>) -> Result<ClientConfig, Error> {
    let provider = Arc::new(ring::default_provider());
    let verifier = GivenOrSigned::new(given, Arc::clone(&provider))?;
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// Accepts a server's own certificate that was given, and what the host's verifier accepts with the
/// authorities that were given.
#[derive(Debug)]
struct GivenOrSigned {
    /// `None` on a host without authorities, if none was given.
    signed: Option<Verifier>,
    given: Vec<CertificateDer<'static>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl GivenOrSigned {
    fn new(
        given: Vec<CertificateDer<'static>>,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, Error> {
        let algorithms = provider.signature_verification_algorithms;
        let now = UnixTime::now();
        let authorities = given.iter().filter(|it| may_sign(it, &algorithms, now));
        let authorities: Vec<_> = authorities.cloned().collect();
        let has_authorities = !authorities.is_empty();
        let signed = match Verifier::new_with_extra_roots(authorities, provider) {
            Ok(verifier) => Some(verifier),
            Err(error) if has_authorities => return Err(error),
            Err(_) => None,
        };
        Ok(Self {
            signed,
            given,
            algorithms,
        })
    }
}

/// Checks what is in a certificate itself: its time, and that it is a server's own. Nobody has signed
/// it as far as this goes.
fn check_alone(
    certificate: &CertificateDer<'_>,
    algorithms: &WebPkiSupportedAlgorithms,
    now: UnixTime,
) -> Result<(), webpki::Error> {
    let certificate = webpki::EndEntityCert::try_from(certificate)?;
    let usage = webpki::KeyUsage::server_auth();
    certificate
        .verify_for_usage(algorithms.all, &[], &[], now, usage, None, None)
        .map(drop)
}

/// Returns true for the certificate of an authority: it counts for what it has signed. A server's own
/// does not, whoever has its key.
fn may_sign(
    certificate: &CertificateDer<'_>,
    algorithms: &WebPkiSupportedAlgorithms,
    now: UnixTime,
) -> bool {
    matches!(
        check_alone(certificate, algorithms, now),
        Err(webpki::Error::CaUsedAsEndEntity)
    )
}

impl ServerCertVerifier for GivenOrSigned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        use CertificateError as C;
        if self.given.contains(end_entity) {
            let fault = match check_alone(end_entity, &self.algorithms, now) {
                Ok(()) | Err(webpki::Error::UnknownIssuer | webpki::Error::CaUsedAsEndEntity) => {
                    None
                }
                Err(webpki::Error::CertExpired { .. }) => Some(C::Expired),
                Err(webpki::Error::CertNotValidYet { .. }) => Some(C::NotValidYet),
                Err(_) => Some(C::InvalidPurpose),
            };
            if let Some(fault) = fault {
                return Err(fault.into());
            }
            verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
            return Ok(ServerCertVerified::assertion());
        }
        let Some(signed) = &self.signed else {
            return Err(C::UnknownIssuer.into());
        };
        signed.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Returns true if the server shows the certificate of an authority as its own.
fn is_authority(error: &Error) -> bool {
    let Error::InvalidCertificate(CertificateError::Other(other)) = error else {
        return false;
    };
    let cause = other.0.downcast_ref();
    matches!(cause, Some(webpki::Error::CaUsedAsEndEntity))
}

/// Returns true if no authority that is trusted has signed the certificate.
fn is_unknown(error: &Error) -> bool {
    matches!(
        error,
        Error::InvalidCertificate(CertificateError::UnknownIssuer)
    )
}

/// Returns true if giving a certificate helps.
pub(crate) fn wants_certificate(error: &Error) -> bool {
    is_unknown(error) || is_authority(error)
}

/// Returns why a server is not trusted, in words, and what helps.
pub(crate) fn in_words(error: &Error) -> String {
    use CertificateError as C;
    let Error::InvalidCertificate(fault) = error else {
        return format!("no secure connection could be agreed on ({error})");
    };
    let text = match fault {
        _ if is_authority(error) => {
            "it shows the certificate of an authority as its own; give that certificate"
        }
        _ if is_unknown(error) => {
            "no authority that is trusted here has signed its certificate; give its own \
             certificate, or that of its authority"
        }
        C::Expired | C::ExpiredContext { .. } => {
            "its certificate has expired (or the clock of this host is wrong)"
        }
        C::NotValidYet | C::NotValidYetContext { .. } => {
            "its certificate is not valid yet (or the clock of this host is wrong)"
        }
        C::NotValidForName | C::NotValidForNameContext { .. } => {
            "its certificate is for another name, or has no subjectAltName; use that name, or have \
             a certificate made for this one"
        }
        C::Revoked => "its certificate was revoked",
        C::BadSignature => "the signature of its certificate is wrong",
        _ => "its certificate does not serve for a server, or cannot be read",
    };
    text.to_owned()
}

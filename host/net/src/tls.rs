//! TLS: a listener's certificate, and the identity in its clients' certificates.
//!
//! rustls with ring, TLS 1.2 and 1.3. A replaced certificate applies to later handshakes; open
//! connections keep theirs. This module knows files and certificates, and neither HTTP nor RESP.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::RwLock;
use rustls::RootCertStore;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use thiserror::Error;
use tokio_rustls::TlsAcceptor;
use x509_cert::der::{Decode, Encode};

use switchyard_config::file::{self, SETTINGS_BYTES_MAX};
use switchyard_config::{ClientCertificates, TlsConfig};

/// The key under which plugins find the subject of a client's certificate.
pub const SUBJECT: &str = "tls.subject";

/// Why a certificate cannot be used.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{}: {source}", .file.display())]
    Unreadable {
        /// Which file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file does not contain what it should.
    #[error("{}: {problem}", .file.display())]
    File {
        /// Which file.
        file: PathBuf,
        /// Why.
        problem: String,
    },
    /// Certificate, key and CA do not match.
    #[error("{}: {problem}", .certificate.display())]
    Unusable {
        /// The certificate's file.
        certificate: PathBuf,
        /// Why.
        problem: String,
    },
}

/// The current certificate of a listener.
pub struct Tls {
    current: RwLock<Loaded>,
}

struct Loaded {
    files: Vec<Vec<u8>>,
    config: Arc<ServerConfig>,
}

impl Tls {
    /// Loads the files.
    ///
    /// # Errors
    ///
    /// A file cannot be read, or they do not match.
    pub fn load(config: &TlsConfig) -> Result<Tls, TlsError> {
        Ok(Tls { current: RwLock::new(Loaded::read(config)?) })
    }

    /// Reloads the files. False: they are unchanged.
    ///
    /// # Errors
    ///
    /// They cannot be used; those in use stay.
    pub fn reload(&self, config: &TlsConfig) -> Result<bool, TlsError> {
        let new = Loaded::read(config)?;
        let mut current = self.current.write();
        let is_new = current.files != new.files;
        if is_new {
            *current = new;
        }
        Ok(is_new)
    }

    /// Performs the handshake with one client.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.current.read().config.clone())
    }
}

impl Loaded {
    fn read(config: &TlsConfig) -> Result<Loaded, TlsError> {
        let TlsConfig { certificate, key, client_ca, client_certificates } = config;
        let certificate_pem = read(certificate)?;
        let key_pem = read(key)?;
        let mut files = vec![certificate_pem, key_pem, vec![*client_certificates as u8]];
        let unusable =
            |problem: String| TlsError::Unusable { certificate: certificate.clone(), problem };
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| unusable(error.to_string()))?;
        let builder = match client_ca {
            None => builder.with_no_client_auth(),
            Some(file) => {
                let pem = read(file)?;
                let mut roots = RootCertStore::empty();
                for root in certificates(file, &pem)? {
                    roots.add(root).map_err(|error| problem(file, error))?;
                }
                files.push(pem);
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                let verifier = match client_certificates {
                    ClientCertificates::Required => verifier,
                    ClientCertificates::Optional => verifier.allow_unauthenticated(),
                };
                builder.with_client_cert_verifier(
                    verifier.build().map_err(|error| problem(file, error))?,
                )
            }
        };
        let [certificate_pem, key_pem, ..] = files.as_slice() else {
            unreachable!("they were put there above")
        };
        let chain = certificates(certificate, certificate_pem)?;
        let private_key =
            PrivateKeyDer::from_pem_slice(key_pem).map_err(|error| problem(key, error))?;
        let config = builder
            .with_single_cert(chain, private_key)
            .map_err(|error| unusable(format!("with the key {}: {error}", key.display())))?;
        Ok(Loaded { files, config: Arc::new(config) })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    file::read(path, SETTINGS_BYTES_MAX)
        .map_err(|source| TlsError::Unreadable { file: path.to_owned(), source })
}

fn certificates(file: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(certificates) if certificates.is_empty() => {
            Err(problem(file, "there is no certificate in it"))
        }
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(problem(file, error)),
    }
}

fn problem(file: &Path, problem: impl ToString) -> TlsError {
    TlsError::File { file: file.to_owned(), problem: problem.to_string() }
}

/// The subject of a client's certificate as RFC 4514 writes it, such as
/// `CN=alice,O=Example`. The certificate has been verified.
pub fn subject_of(certificate: &CertificateDer<'_>) -> Option<String> {
    let certificate = x509_cert::Certificate::from_der(certificate).ok()?;
    let subject = certificate.tbs_certificate().subject();
    // A name that cannot be formatted is ignored.
    subject.to_der().ok()?;
    Some(subject.to_string())
}

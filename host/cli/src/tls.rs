//! TLS for the commands that connect to a server: which certificates they trust.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use clap::Args;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use switchyard_config::file::{self, SETTINGS_BYTES_MAX};
use ureq::tls::{Certificate, RootCerts, TlsConfig};

/// The certificates to trust for `wss://` and `https://`.
#[derive(Debug, Default, Clone, Args)]
pub struct TrustArgs {
    /// The certificate authorities to trust for wss:// and https://, in PEM [default: those of the
    /// system].
    #[arg(long, value_name = "FILE", env = "SWITCHYARD_CA")]
    pub ca: Option<PathBuf>,

    /// Made at the first connection, for all connections.
    #[arg(skip)]
    config: Arc<OnceLock<Arc<ClientConfig>>>,
}

impl TrustArgs {
    /// The authorities to trust.
    ///
    /// # Errors
    ///
    /// The file cannot be read or has no certificate, or the system has none.
    fn roots(&self) -> Result<Vec<CertificateDer<'static>>, String> {
        let Some(file) = &self.ca else {
            let found = rustls_native_certs::load_native_certs();
            return match (found.certs.is_empty(), found.errors.first()) {
                (false, _) => Ok(found.certs),
                (true, Some(error)) => {
                    Err(format!("the system's certificate authorities: {error}; see --ca"))
                }
                (true, None) => {
                    Err("this system trusts no certificate authority; see --ca".to_owned())
                }
            };
        };
        let cannot = |problem: String| format!("cannot read --ca {}: {problem}", file.display());
        let pem =
            file::read(file, SETTINGS_BYTES_MAX).map_err(|error| cannot(error.to_string()))?;
        let found = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
        let found = found.map_err(|error| cannot(error.to_string()))?;
        match found.is_empty() {
            true => Err(cannot("it has no certificate in PEM".to_owned())),
            false => Ok(found),
        }
    }

    /// The configuration of a WebSocket's TLS.
    ///
    /// # Errors
    ///
    /// As `roots`; also if no certificate can be used.
    pub fn for_websocket(&self) -> Result<Arc<ClientConfig>, String> {
        if let Some(config) = self.config.get() {
            return Ok(config.clone());
        }
        let mut roots = RootCertStore::empty();
        if roots.add_parsable_certificates(self.roots()?).0 == 0 {
            return Err("no trusted certificate authority can be used; see --ca".to_owned());
        }
        let config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(self.config.get_or_init(|| Arc::new(config)).clone())
    }

    /// The configuration of HTTP requests to this URL. The authorities are read only for `https://`.
    ///
    /// # Errors
    ///
    /// As `roots`.
    pub fn for_http(&self, url: &str) -> Result<TlsConfig, String> {
        let config = TlsConfig::builder().unversioned_rustls_crypto_provider(provider());
        if !url.starts_with("https://") {
            return Ok(config.build());
        }
        let roots = self.roots()?;
        let roots: Vec<_> =
            roots.iter().map(|root| Certificate::from_der(root).to_owned()).collect();
        Ok(config.root_certs(RootCerts::new_with_certs(&roots)).build())
    }

    /// As `for_http`, for a request without secrets. Without `--ca`, the certificate of a server on a
    /// loopback address is not verified: it is valid for the name that clients use.
    ///
    /// # Errors
    ///
    /// As `roots`.
    pub fn for_probe(&self, url: &str) -> Result<TlsConfig, String> {
        if self.ca.is_none() && is_loopback(url) {
            return Ok(TlsConfig::builder()
                .unversioned_rustls_crypto_provider(provider())
                .disable_verification(true)
                .build());
        }
        self.for_http(url)
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// Whether the host of a URL is this machine.
pub(crate) fn is_loopback(url: &str) -> bool {
    let Ok(uri) = url.parse::<ureq::http::Uri>() else { return false };
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

/// What to do about the error of a connection: none, if certificates are not its cause.
pub(crate) fn advice(problem: &str) -> Option<&'static str> {
    if problem.contains("CaUsedAsEndEntity") {
        return Some(
            "; the server shows a certificate for an authority (CA:TRUE), which is not valid for a \
             server. A self-signed one that is, and that --ca accepts, is made by `openssl req \
             -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 365 -subj \
             /CN=HOST -addext subjectAltName=DNS:HOST -addext basicConstraints=critical,CA:FALSE \
             -keyout server.key -out server.pem`",
        );
    }
    problem.contains("certificate").then_some(
        "; the authority that signed the server's certificate is trusted with --ca FILE, and the \
         URL must have a name that is in the certificate",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_known_by_its_names() {
        for url in [
            "https://127.0.0.1:1/x",
            "http://localhost",
            "https://[::1]:8080/",
            "https://127.9.9.9",
        ] {
            assert!(is_loopback(url), "{url}");
        }
        for url in
            ["https://localhost.example/", "https://10.0.0.1/", "https://127.0.0.1.example", "here"]
        {
            assert!(!is_loopback(url), "{url}");
        }
    }

    #[test]
    fn a_file_without_certificates_is_refused() {
        let file = tempfile::NamedTempFile::new().expect("there is room");
        let trust = TrustArgs { ca: Some(file.path().to_owned()), ..TrustArgs::default() };
        let problem = trust.for_http("https://here").expect_err("it is empty");
        assert!(problem.contains("no certificate in PEM"), "{problem}");
        assert!(trust.for_http("http://here").is_ok(), "no certificate is needed");
        let missing = TrustArgs { ca: Some("/nonexistent/ca.pem".into()), ..TrustArgs::default() };
        let problem = missing.for_websocket().expect_err("there is no such file");
        assert!(problem.contains("/nonexistent/ca.pem"), "{problem}");
    }
}

//! By which authorities a Redis is trusted, and by which certificate it is shown who connects.
//!
//! Files are read at every connection, so a changed one is used by the next.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redis::{ClientTlsConfig, TlsCertificates};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::bus::BusError;
use crate::config::{self, RedisTls, SecretFile};

/// The settings.
pub(super) struct Tls {
    ca_file: Option<PathBuf>,
    /// The certificate that the server asks for, and its key.
    identity: Option<(PathBuf, SecretFile)>,
}

/// A certificate with those that signed it, and its key.
type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

impl Tls {
    /// Reads the settings; `None` where connections are clear.
    ///
    /// # Errors
    /// [`BusError::Misconfigured`] for files that cannot work.
    pub(super) fn new(config: &RedisTls) -> Result<Option<Self>, BusError> {
        if !config.enabled {
            return Ok(None);
        }
        // Fails where one is installed already: it is the same one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let ca_file = (!config.ca_file.as_os_str().is_empty()).then(|| config.ca_file.clone());
        let identity = config.key_file.path();
        let identity = identity.map(|_| (config.certificate_file.clone(), config.key_file.clone()));
        let tls = Self { ca_file, identity };
        tls.check()?;
        Ok(Some(tls))
    }

    /// Reads the files once, so that those that cannot work are refused at the start.
    fn check(&self) -> Result<(), BusError> {
        let wrong = |setting: &str, path: &Path, error: io::Error| {
            let path = path.display();
            BusError::Misconfigured(format!("redis.tls.{setting} {path}: {error}"))
        };
        if let Some(path) = &self.ca_file {
            authorities(path).map_err(|error| wrong("ca_file", path, error))?;
        }
        let Some((path, _)) = &self.identity else {
            return Ok(());
        };
        self.identity()
            .and_then(|identity| match identity {
                Some((chain, key)) => {
                    let provider = rustls::crypto::ring::default_provider();
                    let certified = CertifiedKey::from_der(chain, key, &provider);
                    certified.map(drop).map_err(io::Error::other)
                }
                None => Ok(()),
            })
            .map_err(|error| wrong("certificate_file and key_file", path, error))
    }

    /// The files of the certificate and of its key.
    pub(super) fn identity_files(&self) -> impl Iterator<Item = &Path> {
        let identity = self.identity.iter();
        identity.flat_map(|(certificate, key)| {
            [Some(certificate.as_path()), key.path()]
                .into_iter()
                .flatten()
        })
    }

    /// The authorities and the certificate, as their files are now, for the Redis client.
    pub(super) fn certificates(&self) -> io::Result<TlsCertificates> {
        let pem = self.identity_pem()?;
        Ok(TlsCertificates {
            client_tls: pem.map(|(certificate, key)| ClientTlsConfig {
                client_cert: certificate,
                client_key: key.expose().into(),
            }),
            root_cert: self.ca_file.as_ref().map(std::fs::read).transpose()?,
        })
    }

    /// Begins to encrypt a connection to a host.
    pub(super) async fn connect(
        &self,
        host: &str,
        stream: TcpStream,
    ) -> io::Result<TlsStream<TcpStream>> {
        let roots = match &self.ca_file {
            Some(path) => authorities(path)?,
            None => authorities_of_system()?,
        };
        let config = ClientConfig::builder().with_root_certificates(roots);
        let config = match self.identity()? {
            Some((chain, key)) => config
                .with_client_auth_cert(chain, key)
                .map_err(io::Error::other)?,
            None => config.with_no_client_auth(),
        };
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
    }

    fn identity_pem(&self) -> io::Result<Option<(Vec<u8>, config::Secret)>> {
        let Some((certificate, key)) = &self.identity else {
            return Ok(None);
        };
        let key = config::read_secret(key)?.unwrap_or_default();
        Ok(Some((std::fs::read(certificate)?, key)))
    }

    fn identity(&self) -> io::Result<Option<Identity>> {
        let Some((certificate, key)) = self.identity_pem()? else {
            return Ok(None);
        };
        let chain = CertificateDer::pem_slice_iter(&certificate)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| io::Error::other("the certificate is not PEM"))?;
        let key = PrivateKeyDer::from_pem_slice(key.expose().as_bytes())
            .map_err(|_| io::Error::other("the key is not a PEM private key"))?;
        Ok(Some((chain, key)))
    }
}

fn authorities(path: &Path) -> io::Result<RootCertStore> {
    let pem = std::fs::read(path)?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(io::Error::other)?;
        roots.add(certificate).map_err(io::Error::other)?;
    }
    if roots.is_empty() {
        return Err(io::Error::other("it holds no PEM certificate"));
    }
    Ok(roots)
}

fn authorities_of_system() -> io::Result<RootCertStore> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    match found.errors.into_iter().next() {
        Some(error) if added == 0 => Err(io::Error::other(error)),
        _ => Ok(roots),
    }
}

//! A client over TLS, and the certificates of both sides.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use signal_services::{Authority, PrivateKey};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::client::{Client, KeyMember};
use crate::wait::within;

/// TLS on a socket.
pub type Stream = tokio_rustls::client::TlsStream<TcpStream>;

/// An authority, and the files that a server of it reads: `tls.crt` and `tls.key`.
pub struct Certificates {
    dir: PathBuf,
    authority: Authority,
}

impl Certificates {
    /// Makes an authority in a folder and a first certificate of it.
    ///
    /// # Panics
    /// When `openssl` fails.
    pub fn new(dir: &Path) -> Self {
        let certificates = Self {
            dir: dir.into(),
            authority: Authority::new(dir).expect("openssl makes an authority"),
        };
        certificates.issue("first", PrivateKey::Pkcs8);
        certificates.place("first", "first");
        certificates
    }

    /// Issues a certificate for loopback: `NAME.pem` and `NAME.key`.
    ///
    /// # Panics
    /// When `openssl` fails.
    pub fn issue(&self, name: &str, key: PrivateKey) {
        self.issue_at(Ipv4Addr::LOCALHOST, name, key);
    }

    /// The same for another address.
    ///
    /// # Panics
    /// When `openssl` fails.
    pub fn issue_at(&self, ip: Ipv4Addr, name: &str, key: PrivateKey) {
        self.authority
            .issue(name, ip, key)
            .expect("openssl issues a certificate");
    }

    /// Puts the certificate of one name, and the key of another, where the server reads them.
    ///
    /// # Panics
    /// When the folder is not writable.
    pub fn place(&self, certificate: &str, key: &str) {
        for (from, to) in [
            (format!("{certificate}.pem"), "tls.crt"),
            (format!("{key}.key"), "tls.key"),
        ] {
            let new = self.path("new");
            std::fs::copy(self.path(&from), &new).expect("a readable file");
            std::fs::rename(new, self.path(to)).expect("a writable folder");
        }
    }

    /// A file in its folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The certificate of this name, as a client sees it.
    ///
    /// # Panics
    /// When it was not issued.
    pub fn certificate(&self, name: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(self.path(&format!("{name}.pem"))).expect("a certificate")
    }

    /// A client that trusts the authority.
    ///
    /// # Panics
    /// When it cannot be built.
    pub fn client(&self) -> TlsClient {
        self.client_of(rustls::ALL_VERSIONS, None)
    }

    /// A client of these versions, which shows the certificate of this name.
    ///
    /// # Panics
    /// When it cannot be built.
    pub fn client_of(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        certificate: Option<&str>,
    ) -> TlsClient {
        let mut roots = RootCertStore::empty();
        roots
            .add(self.certificate("ca"))
            .expect("a certificate of an authority");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .expect("versions of TLS")
            .with_root_certificates(roots);
        let config = match certificate {
            None => builder.with_no_client_auth(),
            Some(name) => {
                let key = PrivateKeyDer::from_pem_file(self.path(&format!("{name}.key")));
                builder
                    .with_client_auth_cert(vec![self.certificate(name)], key.expect("a key"))
                    .expect("a pair")
            }
        };
        TlsClient { config }
    }
}

/// How clients connect over TLS. Its copies share the sessions that they may resume.
#[derive(Clone)]
pub struct TlsClient {
    /// Settings of its connections.
    pub config: ClientConfig,
}

impl TlsClient {
    /// The same without sessions to resume.
    pub fn without_resumption(mut self) -> Self {
        self.config.resumption = Resumption::disabled();
        self
    }

    /// Performs a handshake.
    ///
    /// # Errors
    /// When it fails.
    pub async fn try_connect(&self, address: SocketAddr) -> std::io::Result<Stream> {
        let socket = within("connect", TcpStream::connect(address)).await?;
        self.over(socket, address).await
    }

    /// Performs a handshake on a socket.
    ///
    /// # Errors
    /// When it fails.
    pub async fn over(&self, socket: TcpStream, address: SocketAddr) -> std::io::Result<Stream> {
        socket.set_nodelay(true)?;
        let name = ServerName::IpAddress(address.ip().into());
        let connector = TlsConnector::from(Arc::new(self.config.clone()));
        within("a TLS handshake", connector.connect(name, socket)).await
    }

    /// Performs a handshake.
    ///
    /// # Panics
    /// When it fails.
    pub async fn connect(&self, address: SocketAddr) -> Stream {
        self.try_connect(address)
            .await
            .unwrap_or_else(|error| panic!("no TLS with {address}: {error}"))
    }

    /// Connects to `/stream`.
    ///
    /// # Panics
    /// When the server refuses.
    pub async fn stream(&self, address: SocketAddr) -> Client {
        let stream = self.connect(address).await;
        Client::over(stream, "wss", address, &[])
            .await
            .unwrap_or_else(|error| panic!("cannot upgrade at {address}: {error}"))
    }

    /// Connects and authenticates.
    ///
    /// # Panics
    /// When either fails.
    pub async fn open(&self, address: SocketAddr, token: &str, key: KeyMember) -> Client {
        let mut client = self.stream(address).await;
        client.authenticate(token, key).await;
        client
    }
}

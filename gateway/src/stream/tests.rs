//! A client of another implementation's making against the stream, on real sockets.

use std::future::poll_fn;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use signal_contract::{SecretFile, ServerTls, TlsVersion};
use signal_services::{Authority, PrivateKey};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsConnector;

use super::*;
use crate::clock::SystemClock;
use crate::tls::Tls;

type Client = tokio_rustls::client::TlsStream<TcpStream>;

struct Rig {
    _dir: tempfile::TempDir,
    tls: Arc<Tls>,
    client: ClientConfig,
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::new(dir.path()).unwrap();
        authority
            .issue("server", Ipv4Addr::LOCALHOST, PrivateKey::Pkcs8)
            .unwrap();
        let files = ServerTls {
            certificate_file: dir.path().join("server.pem"),
            key_file: SecretFile::new(dir.path().join("server.key")),
            client_ca_file: Default::default(),
            min_version: TlsVersion::V1_2,
        };
        Self {
            tls: Tls::load(&files, Arc::new(SystemClock)).unwrap().unwrap(),
            client: client(dir.path(), rustls::DEFAULT_VERSIONS),
            _dir: dir,
        }
    }

    /// A handshake of both sides.
    async fn pair(&self) -> (io::Result<Client>, Result<Accepted, NotAccepted>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connecting = async {
            let socket = TcpStream::connect(address).await.unwrap();
            let name = ServerName::IpAddress(address.ip().into());
            TlsConnector::from(Arc::new(self.client.clone()))
                .connect(name, socket)
                .await
        };
        let accepting = async {
            let (socket, _) = listener.accept().await.unwrap();
            TlsStream::accept(socket, self.tls.config(), false, Vec::new()).await
        };
        tokio::join!(connecting, accepting)
    }

    async fn open(&self) -> (Client, Stream) {
        let (client, accepted) = self.pair().await;
        (
            client.unwrap(),
            Stream::Tls(Box::new(accepted.unwrap().stream)),
        )
    }
}

fn client(dir: &Path, versions: &[&'static rustls::SupportedProtocolVersion]) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(dir.join("ca.pem")).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth()
}

async fn read(stream: &Stream) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; READ_BYTES];
    loop {
        poll_fn(|cx| stream.poll_readable(cx)).await?;
        match stream.read(&mut buffer) {
            Ok(n) => return Ok(buffer[..n].to_vec()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

async fn write(stream: &Stream, mut bytes: &[u8]) {
    let tls = stream.tls().unwrap();
    while !bytes.is_empty() || tls.held_output() > 0 {
        if tls.held_output() > 0 {
            match tls.write_held() {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    poll_fn(|cx| stream.poll_writable(cx)).await.unwrap();
                }
                Err(error) => panic!("{error}"),
            }
        } else {
            bytes = &bytes[tls.write(bytes).unwrap()..];
            assert!(tls.held_output() <= 17 * 1024, "a record at most is held");
        }
    }
}

#[test]
fn a_clear_stream_is_no_longer_than_its_socket() {
    assert_eq!(size_of::<Stream>(), size_of::<TcpStream>());
}

#[tokio::test]
async fn bytes_are_the_same_both_ways_and_a_resting_stream_holds_no_buffer() {
    let mut rig = Rig::new();
    for versions in [[&rustls::version::TLS12], [&rustls::version::TLS13]] {
        rig.client = client(rig._dir.path(), &versions);
        let (client, stream) = rig.open().await;
        let (mut from, mut to) = tokio::io::split(client);
        let sent: Vec<u8> = (0..3_000_000u32).flat_map(u32::to_le_bytes).collect();
        let writing = async {
            to.write_all(&sent).await.unwrap();
            to.flush().await.unwrap();
        };
        let echoing = async {
            let mut got = Vec::new();
            while got.len() < sent.len() {
                let bytes = read(&stream).await.unwrap();
                assert_ne!(bytes.len(), 0);
                write(&stream, &bytes).await;
                got.extend(bytes);
            }
            got
        };
        let reading = async {
            let mut got = vec![0; sent.len()];
            from.read_exact(&mut got).await.unwrap();
            got
        };
        let ((), echoed, back) = tokio::join!(writing, echoing, reading);
        assert!(echoed == sent && back == sent);
        assert_eq!(
            (stream.held_input(), stream.tls().unwrap().held_output()),
            (0, 0)
        );
    }
}

#[tokio::test]
async fn a_key_update_of_the_client_is_answered_before_the_next_record() {
    let rig = Rig::new();
    let (mut client, stream) = rig.open().await;
    for round in 0..3u8 {
        client.get_mut().1.refresh_traffic_keys().unwrap();
        client.write_all(&[round]).await.unwrap();
        client.flush().await.unwrap();
        assert_eq!(read(&stream).await.unwrap(), [round]);
        write(&stream, b"answer").await;
        let mut answer = [0; 6];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"answer");
    }
}

#[tokio::test]
async fn the_end_is_told_both_ways() {
    let rig = Rig::new();
    let (mut client, stream) = rig.open().await;
    assert!(stream.write_first(b"last words"));
    stream.shutdown_write();
    let mut all = Vec::new();
    // Without close_notify this would be an error.
    client.read_to_end(&mut all).await.unwrap();
    assert_eq!(all, b"last words");
    client.write_all(b"bye").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(read(&stream).await.unwrap(), b"bye");
    assert_eq!(read(&stream).await.unwrap(), b"");

    let (client, stream) = rig.open().await;
    drop(client);
    assert!(
        read(&stream).await.map_or(true, |bytes| bytes.is_empty()),
        "a socket that ends without close_notify is a closed socket"
    );
}

#[tokio::test]
async fn a_stream_goes_to_another_runtime_and_back() {
    let rig = Rig::new();
    let (mut client, stream) = rig.open().await;
    let mut detached = stream.detach().unwrap();
    for round in 0..2u8 {
        let other = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let stream = detached.attach().unwrap();
                write(&stream, &[round]).await;
                stream.detach().unwrap()
            })
        });
        let mut byte = [0];
        client.read_exact(&mut byte).await.unwrap();
        assert_eq!(byte, [round]);
        detached = other.join().unwrap();
    }
}

#[tokio::test]
async fn a_client_of_http_2_alone_is_told_so() {
    let mut rig = Rig::new();
    rig.client.alpn_protocols = vec![b"h2".to_vec()];
    let (client, accepted) = rig.pair().await;
    let error = client.unwrap_err().to_string();
    assert!(error.contains("NoApplicationProtocol"), "{error}");
    assert!(matches!(accepted, Err(NotAccepted::Failed(_))));
    rig.client.alpn_protocols.push(b"http/1.1".to_vec());
    let (client, _stream) = rig.open().await;
    assert_eq!(client.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
}

#[tokio::test]
async fn hostile_bytes_end_a_handshake_or_a_stream_and_nothing_else() {
    let rig = Rig::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut state = 7u32;
    let mut random = move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    for round in 0..200u16 {
        let mut socket = TcpStream::connect(address).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        let mut bytes: Vec<u8> = (0..round * 7).map(|_| random()).collect();
        // The half of them begin as a record of a handshake does.
        if round % 2 == 0 {
            bytes.splice(..0, [22, 3, 1, 0, 200, 1, 0, 0, 196]);
        }
        socket.write_all(&bytes).await.unwrap();
        socket.shutdown().await.unwrap();
        let accepting = TlsStream::accept(accepted, rig.tls.config(), false, Vec::new());
        let ended = tokio::time::timeout(Duration::from_secs(5), accepting).await;
        assert!(ended.expect("it ends").is_err());
    }
    // Records that do not open, and parts of ones, behind a good handshake.
    for tail in [
        &[23, 3, 3, 0, 5, 1, 2, 3, 4, 5][..],
        &[22, 3, 3, 0, 4, 24, 0, 0, 1],
        &[255; 70_000],
    ] {
        let (client, stream) = rig.open().await;
        let (mut socket, _) = client.into_inner();
        socket.write_all(tail).await.unwrap();
        assert!(read(&stream).await.map_or(true, |bytes| bytes.is_empty()));
        // Whatever is queued afterwards must not panic.
        let _ = stream.tls().unwrap().write(b"more");
        stream.shutdown_write();
    }
}

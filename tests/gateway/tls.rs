//! TLS on the public listener: handshakes, REST and connections over it, slow readers, and certificates that change under open connections.

use std::net::SocketAddr;
use std::time::Duration;

use rustls::HandshakeKind::{Full, Resumed};
use serde_json::{Value, json};
use signal_services::PrivateKey;
use signal_tests::client::Incoming;
use signal_tests::gateway::Builder;
use signal_tests::rest::Answer;
use signal_tests::tls::{Certificates, Stream, TlsClient};
use signal_tests::wait::{until, within};
use signal_tests::{Client, Gateway, KeyMember, Raw, skip};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::{Stage, admin};

/// A gateway that speaks TLS, and who may connect to it.
struct Secure {
    stage: Stage,
    certificates: Certificates,
    client: TlsClient,
}

impl Secure {
    async fn new() -> Self {
        Self::with(|settings, _| settings).await
    }

    async fn with(configure: impl FnOnce(Builder, &Certificates) -> Builder) -> Self {
        let mut made = None;
        let stage = Stage::with(|settings| {
            let certificates = Certificates::new(settings.dir());
            let settings = tls(settings, &certificates);
            let settings = configure(settings, &certificates);
            made = Some(certificates);
            settings
        })
        .await;
        let certificates = made.expect("made above");
        Self {
            client: certificates.client(),
            stage,
            certificates,
        }
    }

    fn address(&self) -> SocketAddr {
        self.stage.gateway.address()
    }

    async fn open(&self, user: &str, key: KeyMember) -> Client {
        let token = self.stage.issuer.token(user);
        self.client.open(self.address(), &token, key).await
    }

    /// One request on a connection of its own, which the server ends with a `close_notify`.
    async fn rest(&self, method: &str, path: &str, body: Option<Value>) -> (u16, String) {
        let client = self.client.clone().without_resumption();
        let mut stream = client.connect(self.address()).await;
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            admin(&self.stage.issuer),
            body.len()
        );
        stream
            .write_all(request.as_bytes())
            .await
            .expect("a request");
        let mut answer = String::new();
        within("an answer", stream.read_to_string(&mut answer))
            .await
            .expect("an answer and an orderly end");
        let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
        (status.expect("a status"), answer)
    }

    async fn broadcast(&self, data: Value) {
        let body = json!({"event": "told", "data": data});
        let (status, answer) = self
            .rest("POST", "/socket/websocket/broadcast", Some(body))
            .await;
        assert_eq!(status, 202, "{answer}");
    }

    async fn handshakes(&self, kind: &str) -> f64 {
        let labels = format!("\"{kind}\"");
        let gateway = &self.stage.gateway;
        let found = gateway.metric("signal_tls_handshakes_total", &labels);
        found.await.unwrap_or_default()
    }

    async fn report(&self) -> Value {
        let status: Answer = self.stage.gateway.admin("GET", "/status").await;
        status.expect(200).json()["tls"].take()
    }

    /// Which certificate a new handshake shows.
    async fn shown(&self) -> &'static str {
        let stream = self
            .client
            .clone()
            .without_resumption()
            .connect(self.address())
            .await;
        let shown = stream.get_ref().1.peer_certificates().expect("a chain")[0].clone();
        ["first", "second"]
            .into_iter()
            .find(|name| {
                self.certificates.path(&format!("{name}.pem")).exists()
                    && self.certificates.certificate(name) == shown
            })
            .expect("one of the certificates")
    }
}

fn tls(settings: Builder, certificates: &Certificates) -> Builder {
    let path = |name: &str| certificates.path(name).display().to_string();
    settings
        .set("server.tls.certificate_file", path("tls.crt"))
        .set("server.tls.key_file", path("tls.key"))
}

fn kind(stream: &Stream) -> rustls::HandshakeKind {
    stream.get_ref().1.handshake_kind().expect("a handshake")
}

#[tokio::test]
async fn connections_of_both_versions_are_sealed_told_and_resumed() {
    let secure = Secure::new().await;
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let tls = secure.certificates.client_of(&[version], None);
        for expected in [Full, Resumed] {
            let stream = tls.connect(secure.address()).await;
            assert_eq!(stream.get_ref().1.protocol_version(), Some(version.version));
            assert_eq!(kind(&stream), expected);
            let mut client = Client::over(stream, "wss", secure.address(), &[])
                .await
                .expect("an upgrade");
            let token = secure.stage.issuer.token("17");
            client
                .authenticate(&token, KeyMember::ClientPublicKey)
                .await;
            assert!(client.is_encrypted());
            secure.broadcast(json!("sealed")).await;
            let told = client.expect("told").await;
            assert!(told.sealed && told.data == "sealed", "{told:?}");
            client.send_sealed("heartbeat", json!(null)).await;
            client.close().await;
        }
    }
    assert_eq!(secure.handshakes("resumed").await, 2.0);
}

#[tokio::test]
async fn a_connection_makes_requests_and_upgrades_afterwards() {
    let secure = Secure::new().await;
    let mut stream = secure.client.connect(secure.address()).await;
    for _ in 0..2 {
        stream
            .write_all(b"GET /nothing HTTP/1.1\r\nHost: gateway\r\n\r\n")
            .await
            .expect("a request");
        let mut answer = Vec::new();
        while !answer.ends_with(b"}") {
            let mut piece = [0; 1024];
            let read = within("an answer", stream.read(&mut piece)).await;
            answer.extend_from_slice(&piece[..read.expect("an answer")]);
        }
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    }
    let mut client = Client::over(stream, "wss", secure.address(), &[])
        .await
        .expect("an upgrade");
    let token = secure.stage.issuer.token("17");
    client.authenticate(&token, KeyMember::None).await;
    secure
        .broadcast(json!({"filler": "x".repeat(100_000)}))
        .await;
    let told = client.expect("told").await;
    assert_eq!(told.data["filler"].as_str().map(str::len), Some(100_000));
    client.close().await;
}

/// protocol.md 8.2, 8.3 and 7.14, over TLS.
#[tokio::test]
async fn a_slow_reader_over_tls_is_closed_with_4008_and_slows_nobody() {
    let secure = Secure::with(|settings, _| {
        settings
            .live("limits.send_queue.bytes", 300_000)
            .live("limits.send_queue.frames", 200)
            .live("limits.send_queue.write_timeout_ms", 10_000)
    })
    .await;
    let mut fast = secure.open("17", KeyMember::None).await;
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4096).expect("a buffer size");
    let socket = socket
        .connect(secure.address())
        .await
        .expect("a connection");
    let stream = secure.client.over(socket, secure.address()).await;
    let mut slow = Client::over(stream.expect("TLS"), "wss", secure.address(), &[])
        .await
        .expect("an upgrade");
    let token = secure.stage.issuer.token("18");
    slow.authenticate(&token, KeyMember::ClientPublicKey).await;

    let count = 300;
    let filler = "x".repeat(50_000);
    let sending = async {
        for n in 0..count {
            secure.broadcast(json!({"n": n, "filler": filler})).await;
        }
    };
    let receiving = async {
        let mut longest = Duration::ZERO;
        for n in 0..count {
            let begun = Instant::now();
            let told = fast.expect("told").await;
            assert_eq!(told.data["n"], n, "in order and none missing");
            longest = longest.max(begun.elapsed());
        }
        longest
    };
    let ((), longest) = tokio::join!(sending, receiving);
    assert!(
        longest < Duration::from_secs(8),
        "whoever is held up by the slow one waits for the end of its write: {longest:?}"
    );
    let gateway = &secure.stage.gateway;
    until("4008 in the metrics", || async {
        let closed = gateway.metric("signal_connections_closed_total", "\"4008\"");
        (closed.await? >= 1.0).then_some(())
    })
    .await;
    // What was on its way comes whole, and behind it the Close frame if it was still in time.
    let end = loop {
        match slow.next().await {
            Incoming::Envelope(_) => {}
            end => break end,
        }
    };
    assert!(
        matches!(&end, Incoming::Lost) || matches!(&end, Incoming::Closed(4008, _)),
        "{end:?}"
    );
    secure.broadcast(json!("still here")).await;
    assert_eq!(fast.expect("told").await.data, "still here");
}

/// `SIGNAL_TLS_CLIENTS` says how many clients are connected meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_certificate_is_shown_to_new_handshakes_and_closes_no_connection() {
    let count: usize = std::env::var("SIGNAL_TLS_CLIENTS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(100);
    let secure = Secure::with(|settings, _| {
        settings
            .live("limits.accepts_per_second", 100_000)
            .live("limits.accept_burst", 100_000)
    })
    .await;
    let mut opening = JoinSet::new();
    for n in 0..count {
        let (tls, address) = (secure.client.clone(), secure.address());
        let token = secure.stage.issuer.token(&format!("u{n}"));
        opening.spawn(async move { tls.open(address, &token, KeyMember::None).await });
    }
    let mut clients = opening.join_all().await;
    assert_eq!(secure.shown().await, "first");
    let before = secure.report().await;

    secure.certificates.issue("second", PrivateKey::Rsa);
    secure.certificates.place("second", "second");
    until("the second certificate", || async {
        (secure.shown().await == "second").then_some(())
    })
    .await;
    assert_eq!(secure.report().await["error"], Value::Null, "{before}");
    // A session of before is not resumed: it would not show the new certificate.
    assert_eq!(kind(&secure.client.connect(secure.address()).await), Full);

    secure.broadcast(json!("after the change")).await;
    for client in &mut clients {
        assert_eq!(client.expect("told").await.data, "after the change");
    }
    let mut new = secure.open("new", KeyMember::None).await;
    secure.broadcast(json!("to all")).await;
    for client in clients.iter_mut().chain([&mut new]) {
        assert_eq!(client.expect("told").await.data, "to all");
    }
    let gateway = &secure.stage.gateway;
    let closed = gateway.metric("signal_connections_closed_total", "").await;
    assert_eq!(closed.unwrap_or_default(), 0.0, "none was closed");
}

#[tokio::test]
async fn a_broken_pair_keeps_the_one_before_and_is_told() {
    let secure = Secure::new().await;
    let client = secure.open("17", KeyMember::None).await;
    secure.certificates.issue("second", PrivateKey::Sec1);
    secure.certificates.place("second", "first");
    until("the fault in /status", || async {
        let error = secure.report().await["error"].as_str()?.to_owned();
        error
            .contains("does not belong to the certificate")
            .then_some(())
    })
    .await;
    assert_eq!(secure.shown().await, "first");
    secure.certificates.place("second", "second");
    until("the second certificate", || async {
        (secure.report().await["error"].is_null() && secure.shown().await == "second").then_some(())
    })
    .await;
    let ends = secure
        .stage
        .gateway
        .metric("signal_tls_certificate_not_after_seconds", "")
        .await;
    assert!(ends.is_some_and(|ends| ends > 1.7e9), "{ends:?}");
    client.close().await;
}

#[tokio::test]
async fn a_broken_pair_at_the_start_is_an_error_that_names_the_file() {
    let settings = Gateway::build();
    let certificates = Certificates::new(settings.dir());
    certificates.issue("second", PrivateKey::Pkcs8);
    certificates.place("second", "first");
    let settings = tls(settings, &certificates);
    for command in ["check-config", "serve"] {
        let (status, output) = settings.clone().run_to_end(&[command]).await;
        assert!(!status.success(), "{command}: {output}");
        assert!(
            output.contains("server.tls.key_file: ") && output.contains("tls.key"),
            "{command}: {output}"
        );
    }
    certificates.place("second", "second");
    let (status, output) = settings.run_to_end(&["check-config"]).await;
    assert!(status.success(), "{output}");
}

/// protocol.md 1.12.
#[tokio::test]
async fn plain_http_is_told_what_this_port_speaks() {
    let secure = Secure::new().await;
    let mut raw = Raw::connect(secure.address()).await;
    raw.send(b"POST /socket/websocket/broadcast HTTP/1.1\r\nHost: gateway\r\nContent-Length: 3\r\n\r\n{}\n")
        .await;
    let answer = String::from_utf8(raw.read_to_end().await).expect("text");
    assert!(
        answer.starts_with("HTTP/1.1 400 Bad Request\r\n"),
        "{answer}"
    );
    assert!(answer.contains("This port speaks TLS"), "{answer}");
    assert_eq!(secure.handshakes("plain_http").await, 1.0);
    // The admin listener stays in the clear.
    secure.stage.gateway.expect_ready().await;
}

/// protocol.md 1.10 and 1.12.
#[tokio::test]
async fn a_client_that_stalls_in_its_handshake_is_dropped_in_time() {
    let secure =
        Secure::with(|settings, _| settings.set("server.header_read_timeout_secs", 1)).await;
    let mut stalled = Vec::new();
    // Nothing, a part of a record's head, and a part of a ClientHello.
    for bytes in [&[][..], &[22, 3], &[22, 3, 1, 1, 0, 1, 0, 0, 252, 3, 3]] {
        let mut socket = TcpStream::connect(secure.address())
            .await
            .expect("a connection");
        socket.write_all(bytes).await.expect("some bytes");
        stalled.push(socket);
    }
    // One that finishes its handshake and sends no request.
    let silent = secure.client.connect(secure.address()).await;
    let mut good = secure.open("17", KeyMember::None).await;
    let begun = Instant::now();
    for socket in &mut stalled {
        let mut rest = Vec::new();
        let _ = within("the end", socket.read_to_end(&mut rest)).await;
    }
    let (mut silent, _) = silent.into_inner();
    let _ = within("the end", silent.read_to_end(&mut Vec::new())).await;
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(secure.handshakes("timeout").await, 3.0);
    secure.broadcast(json!("still here")).await;
    good.expect("told").await;
}

#[tokio::test]
async fn clients_without_a_certificate_of_the_authority_are_refused_where_it_is_demanded() {
    let secure = Secure::with(|settings, certificates| {
        settings.set(
            "server.tls.client_ca_file",
            certificates.path("ca.pem").display().to_string(),
        )
    })
    .await;
    secure.certificates.issue("client", PrivateKey::Pkcs8);
    let elsewhere = tempfile::tempdir().expect("a folder");
    Certificates::new(elsewhere.path());
    for name in ["first.pem", "first.key"] {
        let to = secure.certificates.path(&name.replace("first", "stranger"));
        std::fs::copy(elsewhere.path().join(name), to).expect("a file");
    }
    let token = secure.stage.issuer.token("17");
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        for refused in [None, Some("stranger")] {
            let tls = secure.certificates.client_of(&[version], refused);
            // With TLS 1.3 the client has finished when the server refuses it.
            if let Ok(mut stream) = tls.try_connect(secure.address()).await {
                let ended = within("an alert", stream.read(&mut [0])).await;
                assert!(ended.is_err(), "{refused:?}: {ended:?}");
            }
        }
        let tls = secure.certificates.client_of(&[version], Some("client"));
        for _ in 0..2 {
            let mut client = tls.open(secure.address(), &token, KeyMember::None).await;
            client.send("heartbeat", json!(null)).await;
            client.close().await;
        }
    }
    assert_eq!(secure.handshakes("failed").await, 4.0);
    assert_eq!(secure.handshakes("resumed").await, 2.0);
}

/// protocol.md 1.12.
#[tokio::test]
async fn older_versions_and_other_protocols_are_refused() {
    let secure = Secure::with(|settings, _| settings.set("server.tls.min_version", "1.3")).await;
    let old = secure
        .certificates
        .client_of(&[&rustls::version::TLS12], None);
    let error = old.try_connect(secure.address()).await.unwrap_err();
    assert!(error.to_string().contains("ProtocolVersion"), "{error}");
    let mut other = secure.client.clone();
    other.config.alpn_protocols = vec![b"h2".to_vec()];
    let error = other.try_connect(secure.address()).await.unwrap_err();
    assert!(
        error.to_string().contains("NoApplicationProtocol"),
        "{error}"
    );
    other.config.alpn_protocols.push(b"http/1.1".to_vec());
    let stream = other.connect(secure.address()).await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
}

#[tokio::test]
async fn a_listener_on_every_address_serves_ipv4_and_ipv6() {
    if tokio::net::TcpListener::bind("[::1]:0").await.is_err() {
        return skip("this machine has no IPv6");
    }
    let stage = Stage::with(|settings| {
        settings
            .set("server.public_address", "[::]:0")
            .set("server.admin_address", "[::]:0")
    })
    .await;
    let token = stage.issuer.token("17");
    let port = stage.gateway.address().port();
    for address in [
        SocketAddr::from(([127, 0, 0, 1], port)),
        format!("[::1]:{port}").parse().expect("an address"),
    ] {
        Client::open(address, &token).await.close().await;
    }
    until("both to have gone", || async {
        let open = stage.gateway.metric("signal_connections", "").await?;
        (open == 0.0).then_some(())
    })
    .await;
}

//! Logins that real brokers ask for: tokens of an issuer, and certificates that change.

use std::path::Path;
use std::sync::atomic::{AtomicI64, AtomicUsize};

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use serde_json::{Value, json};
use signal_services::{Authority, Kafka as Server, KafkaInstallation, PrivateKey};

use super::*;
use crate::clock::Clock as _;
use crate::config::{KafkaMechanism, KafkaProtocol, SecretFile};

/// `None`, with a word why, where no broker of its own can be started.
fn installation_or_skip(test: &str) -> Option<KafkaInstallation> {
    let found = KafkaInstallation::find();
    if found.is_none() {
        eprintln!("skipped: {test}: needs Apache Kafka, which is not installed");
    }
    found
}

/// An issuer that gives unsigned tokens to one client.
#[derive(Default)]
struct Issuer {
    life_secs: AtomicI64,
    granted: AtomicUsize,
    refused: AtomicUsize,
}

impl Issuer {
    async fn start(life_secs: i64) -> (Arc<Self>, String) {
        let issuer = Arc::new(Self::default());
        issuer.life_secs.store(life_secs, Ordering::SeqCst);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/token", listener.local_addr().unwrap());
        let routes = axum::Router::new()
            .route("/token", post(Self::grant))
            .with_state(issuer.clone());
        tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
        (issuer, url)
    }

    async fn grant(
        State(issuer): State<Arc<Self>>,
        headers: HeaderMap,
        form: String,
    ) -> (StatusCode, Json<Value>) {
        let base64 = base64_simd::STANDARD.encode_to_string("signal:s3%26cret");
        let is_client = headers["authorization"] == format!("Basic {base64}").as_str();
        if !is_client || form != "grant_type=client_credentials&scope=kafka" {
            issuer.refused.fetch_add(1, Ordering::SeqCst);
            let error = json!({"error": "invalid_client"});
            return (StatusCode::UNAUTHORIZED, Json(error));
        }
        issuer.granted.fetch_add(1, Ordering::SeqCst);
        let life = issuer.life_secs.load(Ordering::SeqCst);
        let now = SystemClock.now_ms() / 1000;
        let part = |value: Value| {
            base64_simd::URL_SAFE_NO_PAD.encode_to_string(value.to_string().as_bytes())
        };
        let token = format!(
            "{}.{}.",
            part(json!({"alg": "none"})),
            part(json!({"sub": "signal", "iat": now, "exp": now + life}))
        );
        (
            StatusCode::OK,
            Json(json!({"access_token": token, "token_type": "Bearer", "expires_in": life})),
        )
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_of_an_issuer_log_in_and_are_renewed_before_they_end() {
    let Some(installation) =
        installation_or_skip("tokens_of_an_issuer_log_in_and_are_renewed_before_they_end")
    else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let (server, secured) = Server::start_oauth(&installation, dir.path()).unwrap();
    let (issuer, url) = Issuer::start(8).await;
    let broker = Broker {
        address: server.address().to_string(),
        mock: None,
    };
    let mut stage = Stage::new(broker, 2).await;
    // Its dead-letter topic is missing, and a gateway that logs in by a token creates it.
    stage.config.dead_letter_suffix = ".letters".into();
    let secret = dir.path().join("secret");
    std::fs::write(&secret, "not yet").unwrap();
    stage.config.brokers = vec![secured.to_string()];
    let security = &mut stage.config.security;
    security.protocol = KafkaProtocol::SaslPlaintext;
    security.auth.mechanism = KafkaMechanism::OAuthBearer;
    security.auth.username = "signal".into();
    security.auth.password_file = SecretFile::new(&secret);
    security.auth.token_url = url;
    security.auth.scope = "kafka".into();
    let running = stage.run();
    until("the issuer has refused the client", || {
        issuer.refused.load(Ordering::SeqCst) >= 2
    })
    .await;
    std::fs::write(&secret, "s3&cret\n").unwrap();

    let mut produced = 0;
    while issuer.granted.load(Ordering::SeqCst) < 4 {
        let prefix = format!("a{produced}-");
        stage.produce_many(0, &prefix, "17", 1).await;
        produced += 1;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let started = Instant::now();
    while look_at_topics(&stage.config).await.unwrap()[1].state != TopicState::Exists(2) {
        assert!(started.elapsed() < PATIENCE, "it creates the topic");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    stage.produce(0, "not json").await;
    stage.until_committed(0, produced + 1).await;
    running.stop().await;
    assert_eq!(stage.rows.count() as i64, produced);
    stage.read(&format!("{}.letters", stage.topic()), 1).await;
    let all = ReplayOptions {
        topic: stage.topic().into(),
        reasons: Vec::new(),
        limit: None,
        dry_run: false,
    };
    assert_eq!(replay(&stage.config, all).await.unwrap().total(), 1);
}

/// The identity of a client: its certificate and key, under the names that the settings have.
fn present(authority: &Authority, from: &Path, name: &str, to: &Path) {
    authority
        .issue(name, std::net::Ipv4Addr::LOCALHOST, PrivateKey::Pkcs8)
        .unwrap();
    for (end, target) in [("pem", "client.pem"), ("key", "client.key")] {
        std::fs::copy(from.join(format!("{name}.{end}")), to.join(target)).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_certificate_is_presented_and_one_that_brokers_refuse_is_not() {
    let test = "a_changed_certificate_is_presented_and_one_that_brokers_refuse_is_not";
    let Some(installation) = installation_or_skip(test) else {
        return;
    };
    let root = tempfile::tempdir().unwrap();
    let [trusted, other, own] = ["trusted", "other", "own"].map(|name| {
        let dir = root.path().join(name);
        std::fs::create_dir(&dir).unwrap();
        dir
    });
    let (authority, stranger) = (
        Authority::new(&trusted).unwrap(),
        Authority::new(&other).unwrap(),
    );
    authority
        .issue("broker", std::net::Ipv4Addr::LOCALHOST, PrivateKey::Pkcs8)
        .unwrap();
    let read = |name: &str| std::fs::read_to_string(trusted.join(name)).unwrap();
    let identity = trusted.join("identity.pem");
    std::fs::write(&identity, [read("broker.key"), read("broker.pem")].concat()).unwrap();
    let ca = trusted.join("ca.pem");
    let (server, secured) =
        Server::start_tls(&installation, &root.path().join("kafka"), &identity, &ca).unwrap();
    let broker = Broker {
        address: server.address().to_string(),
        mock: None,
    };
    let mut stage = Stage::new(broker, 1).await;
    present(&authority, &trusted, "first", &own);
    stage.config.brokers = vec![secured.to_string()];
    let security = &mut stage.config.security;
    security.protocol = KafkaProtocol::Ssl;
    security.ca_file = ca;
    security.certificate_file = own.join("client.pem");
    security.key_file = SecretFile::new(own.join("client.key"));
    let running = stage.run();
    stage.produce_many(0, "a", "17", 10).await;
    stage.until_committed(0, 10).await;
    let before = stage.members().await;
    // What brokers refuse is tried, and the connections of before stay in use.
    present(&stranger, &other, "stranger", &own);
    tokio::time::sleep(2 * files::INTERVAL).await;
    stage.produce_many(0, "b", "17", 10).await;
    stage.until_committed(0, 20).await;
    assert_eq!(stage.members().await, before);
    present(&authority, &trusted, "second", &own);
    let started = Instant::now();
    let mut produced = 20;
    loop {
        let prefix = format!("c{produced}-");
        stage.produce_many(0, &prefix, "17", 1).await;
        produced += 1;
        let members = stage.members().await;
        if members.len() == 1 && members != before {
            break;
        }
        assert!(started.elapsed() < PATIENCE, "{members:?}");
    }
    stage.until_committed(0, produced).await;
    running.stop().await;
    assert_eq!(stage.rows.count() as i64, produced);
}

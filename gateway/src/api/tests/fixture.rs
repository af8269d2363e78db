//! A gateway without sockets: what the tests of REST start from.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use chrono::DateTime;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode};
use http_body_util::BodyExt;
use p256::ecdsa::signature::Signer;
use p256::ecdsa::{Signature, SigningKey};
use parking_lot::Mutex;
use serde_json::{Value, json};
use signal_contract::StatusReport;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::api::{AdminState, ApiState, admin_router, router};
use crate::auth::{Access, Authenticator, Basic, PublishedKeys, Revocations};
use crate::bus::{
    Answers, Ask, Bus, BusError, BusStatus, Interest, PreviousServer, SubscriberState,
};
use crate::clock::{Clock, FixedClock, SystemClock};
use crate::config::{Config, Live, RedisMode, Secret, SecretFile, load_live};
use crate::delivery::Delivery;
use crate::dispatch::Dispatch;
use crate::hub::Hub;
use crate::id::IdGenerator;
use crate::inbox::Inbox;
use crate::lifecycle::Lifecycle;
use crate::metrics::Metrics;
use crate::notification::{NewActivity, Notification};
use crate::peer::PeerAddress;
use crate::revocation::Revocation;
use crate::store::platform::{Platform, PolicyDefinition, seed};
use crate::store::{NotificationStore, open};

/// When every test takes place.
pub(super) const NOW: i64 = 1_795_000_000;
pub(super) const ADMIN_TOKEN: &str = "a-token-of-the-operator";
pub(super) const PASSWORD: &str = "open sesame";
const ISSUER: &str = "https://id.example.com/";
const AWAY: &str = "https://away.example.com/";

type Answering = Box<dyn Fn(&Ask) -> Answers + Send>;

/// Other instances, played: what they answer is chosen, what they hear is noted.
pub(super) struct Neighbours {
    answer: Mutex<Answering>,
    pub(super) asked: Mutex<Vec<Ask>>,
    pub(super) published: Mutex<Vec<Dispatch>>,
    pub(super) stored: Mutex<Vec<Revocation>>,
    pub(super) publishing_fails: AtomicBool,
    pub(super) asking_fails: AtomicBool,
    pub(super) storing_fails: AtomicBool,
}

impl Neighbours {
    fn none() -> Arc<Self> {
        Arc::new(Self {
            answer: Mutex::new(Box::new(|_| Answers::default())),
            asked: Mutex::default(),
            published: Mutex::default(),
            stored: Mutex::default(),
            publishing_fails: AtomicBool::new(false),
            asking_fails: AtomicBool::new(false),
            storing_fails: AtomicBool::new(false),
        })
    }

    pub(super) fn answer(&self, answer: impl Fn(&Ask) -> Answers + Send + 'static) {
        *self.answer.lock() = Box::new(answer);
    }

    fn away(flag: &AtomicBool) -> Result<(), BusError> {
        if flag.load(Ordering::SeqCst) {
            Err(BusError::Unavailable(
                "connection refused at 10.1.2.3:6379".into(),
            ))
        } else {
            Ok(())
        }
    }
}

impl Bus for Neighbours {
    fn publish<'a>(&'a self, dispatch: &'a Dispatch) -> BoxFuture<'a, Result<(), BusError>> {
        let taken = Self::away(&self.publishing_fails)
            .map(|()| self.published.lock().push(dispatch.clone()));
        ready(taken).boxed()
    }

    fn subscribe(&self, _: Vec<Interest>) -> BoxFuture<'static, Result<(), BusError>> {
        ready(Ok(())).boxed()
    }

    fn unsubscribe(&self, _: Vec<Interest>) {}

    fn ask<'a>(&'a self, ask: &'a Ask) -> BoxFuture<'a, Result<Answers, BusError>> {
        self.asked.lock().push(ask.clone());
        ready(Self::away(&self.asking_fails).map(|()| (self.answer.lock())(ask))).boxed()
    }

    fn store_revocation<'a>(
        &'a self,
        revocation: &'a Revocation,
    ) -> BoxFuture<'a, Result<(), BusError>> {
        ready(Self::away(&self.storing_fails).map(|()| self.stored.lock().push(revocation.clone())))
            .boxed()
    }

    fn revocations(&self) -> BoxFuture<'_, Result<Vec<Revocation>, BusError>> {
        ready(Ok(self.stored.lock().clone())).boxed()
    }

    fn status(&self) -> BusStatus {
        let previous = Some(PreviousServer {
            nodes: vec!["old:6379".into()],
            subscribed: false,
        });
        BusStatus {
            mode: RedisMode::Standalone,
            nodes: vec!["new:6379".into()],
            previous,
            ..BusStatus::default()
        }
    }

    fn subscriber(&self) -> SubscriberState {
        SubscriberState::Live
    }

    fn lag(&self) -> Option<Duration> {
        Some(Duration::from_millis(2))
    }

    fn lease_lapsed(&self) -> bool {
        false
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        ready(()).boxed()
    }
}

/// A gateway without sockets, and everything a test turns or looks at.
pub(super) struct House {
    pub(super) rest: Router,
    pub(super) admin: Router,
    pub(super) neighbours: Arc<Neighbours>,
    pub(super) notifications: Arc<dyn NotificationStore>,
    pub(super) revocations: Arc<Revocations>,
    pub(super) clock: FixedClock,
    pub(super) live: watch::Sender<Arc<Live>>,
    pub(super) published: watch::Sender<Option<Arc<PublishedKeys>>>,
    pub(super) lifecycle: Arc<Lifecycle>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) folder: tempfile::TempDir,
    key: SigningKey,
    shutdown: CancellationToken,
}

impl Drop for House {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// Serves one key as a JWK Set; says where.
async fn serve_keys(key: &SigningKey, shutdown: CancellationToken) -> String {
    let point = key.verifying_key().to_sec1_point(false);
    let part = |bytes: &[u8]| base64_simd::URL_SAFE_NO_PAD.encode_to_string(bytes);
    let (x, y) = (
        part(&point.as_bytes()[1..33]),
        part(&point.as_bytes()[33..]),
    );
    let set = json!({"keys": [{"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": "k1", "x": x, "y": y}]});
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = Router::new().route(
        "/certs",
        axum::routing::get(move || async move { axum::Json(set) }),
    );
    tokio::spawn(async move {
        tokio::select! {
            served = async { axum::serve(listener, app).await } => served.unwrap(),
            () = shutdown.cancelled() => {}
        }
    });
    format!("http://{address}/certs")
}

/// `root` may everything, `finder` only find, `ops` is a Basic user with the rights of `root`; anybody else may nothing.
fn platform() -> Platform {
    let permissions = [
        ("1", "WebSocketClient.find", "read"),
        ("2", "WebSocketClient.findById", "read"),
        ("3", "WebSocketClient.send", "execute"),
        ("4", "WebSocketClient.broadcast", "execute"),
        ("5", "WebSocketClient.disconnect", "delete"),
        ("6", "WebSocketClient.join", "update"),
        ("7", "WebSocketClient.leave", "update"),
    ];
    let mut definitions: Vec<PolicyDefinition> = permissions
        .iter()
        .map(|(id, _, action)| PolicyDefinition::may("1", id, action, None))
        .collect();
    definitions.push(PolicyDefinition::may("2", "1", "read", None));
    definitions.push(PolicyDefinition::member("root", "1", None));
    definitions.push(PolicyDefinition::member("finder", "2", None));
    Platform {
        permissions: permissions
            .iter()
            .map(|(id, code, _)| ((*id).into(), (*code).into()))
            .collect(),
        roles: vec![
            ("1".into(), "operator".into()),
            ("2".into(), "viewer".into()),
        ],
        definitions,
    }
}

/// Argon2id at its cheapest: what is tested is REST, not the hash.
fn users_file(folder: &std::path::Path) -> SecretFile {
    use argon2::password_hash::{PasswordHasher, SaltString};
    let argon = argon2::Argon2::new(
        argon2::Algorithm::Argon2id,
        argon2::Version::V0x13,
        argon2::Params::new(19_456, 2, 1, None).unwrap(),
    );
    let hash = argon
        .hash_password(
            PASSWORD.as_bytes(),
            &SaltString::from_b64("c2lnbmFsLXRlc3Rz").unwrap(),
        )
        .unwrap()
        .to_string();
    let path = folder.join("users.json");
    std::fs::write(
        &path,
        json!([{"name": "ops", "hash": hash, "subject": "root"}]).to_string(),
    )
    .unwrap();
    SecretFile::new(path)
}

impl House {
    pub(super) async fn new() -> Self {
        let (folder, shutdown) = (tempfile::tempdir().unwrap(), CancellationToken::new());
        let mut config = Config::for_tests();
        config.database.url = Secret::new(format!(
            "sqlite://{}",
            folder.path().join("signal.db").display()
        ));
        config.auth.basic_users_file = users_file(folder.path());
        let key = SigningKey::from_slice(&[7; 32]).unwrap();
        let certs = serve_keys(&key, shutdown.clone()).await;
        let text = format!(
            "allowed_origins = [\"https://shop.example.com\"]\ntrusted_proxies = [\"10.0.0.0/8\"]\n\
             [[jwks.sources]]\nname = \"main\"\nissuer = \"{ISSUER}\"\nurl = \"{certs}\"\naudiences = [\"signal\"]\nalgorithms = [\"ES256\"]\nallow_insecure_http = true\n\
             [[jwks.sources]]\nname = \"away\"\nissuer = \"{AWAY}\"\nurl = \"http://127.0.0.1:1/certs\"\naudiences = [\"signal\"]\nalgorithms = [\"ES256\"]\nallow_insecure_http = true\n"
        );
        let (live, told) = watch::channel(Arc::new(load_live(&text).unwrap()));
        let clock = FixedClock::new(DateTime::from_timestamp(NOW, 0).unwrap());
        let (metrics, lifecycle) = (Metrics::new(), Arc::new(Lifecycle::default()));
        let published = watch::Sender::new(None);
        let revocations = Revocations::new(Arc::new(clock.clone()));

        seed(&config.database.url, &platform()).await.unwrap();
        let stores = open(
            &config.database,
            &config.policy,
            IdGenerator::new(9, Arc::new(SystemClock)),
            shutdown.clone(),
        )
        .await
        .unwrap();
        let (authenticator, _) = Authenticator::start(
            told.clone(),
            Arc::new(clock.clone()),
            metrics.clone(),
            revocations.clone(),
            shutdown.clone(),
        );
        let (basic, _) = Basic::start(&config.auth, shutdown.clone()).unwrap();
        let (hub, neighbours) = (Hub::none(), Neighbours::none());
        let bus: Arc<dyn Bus> = neighbours.clone();
        let token_file = folder.path().join("admin-token");
        std::fs::write(&token_file, format!("{ADMIN_TOKEN}\n")).unwrap();

        let delivery = Delivery::new(hub.clone(), bus.clone());
        let state = ApiState {
            authenticator: authenticator.clone(),
            basic,
            access: Access::new(stores.policies.clone(), &config.policy, config.rooms),
            notifications: stores.notifications.clone(),
            inbox: Inbox::new(
                stores.notifications.clone(),
                delivery.clone(),
                Arc::new(clock.clone()),
            ),
            delivery,
            hub: hub.clone(),
            bus: bus.clone(),
            revocations: revocations.clone(),
            clock: Arc::new(clock.clone()),
            live: told,
            published: published.subscribe(),
            metrics: metrics.clone(),
            lifecycle: lifecycle.clone(),
            instance: "gateway-0".into(),
            max_body_bytes: 4096,
            token_life: Duration::from_secs(31 * 86_400),
        };
        let (status, told_keys) = (authenticator.clone(), published.subscribe());
        let admin = AdminState {
            lifecycle: lifecycle.clone(),
            hub,
            bus,
            notifications: stores.notifications.clone(),
            metrics: metrics.clone(),
            instance: "gateway-0".into(),
            token_file: SecretFile::new(token_file),
            facts: Arc::new(move || StatusReport {
                static_revision: "sha256:1".into(),
                live_revision: "sha256:2".into(),
                live_error: None,
                catalogs_revision: "sha256:3".into(),
                key_sources: status.status(),
                jwks_file: told_keys.borrow().as_deref().map(PublishedKeys::report),
                kafka: None,
                ..StatusReport::default()
            }),
        };
        let house = Self {
            rest: router(state),
            admin: admin_router(admin),
            neighbours,
            notifications: stores.notifications,
            revocations,
            clock,
            live,
            published,
            lifecycle,
            metrics,
            folder,
            key,
            shutdown,
        };
        house.keys_are_there(&authenticator).await;
        house
    }

    async fn keys_are_there(&self, authenticator: &Authenticator) {
        for _ in 0..500 {
            if authenticator
                .status()
                .iter()
                .any(|source| !source.keys.is_empty())
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the key set was not fetched in 5 s");
    }

    fn sign(&self, claims: &Value) -> String {
        let part = |value: &Value| base64_simd::URL_SAFE_NO_PAD.encode_to_string(value.to_string());
        let signed = format!(
            "{}.{}",
            part(&json!({"alg": "ES256", "kid": "k1"})),
            part(claims)
        );
        let signature: Signature = self.key.sign(signed.as_bytes());
        format!(
            "{signed}.{}",
            base64_simd::URL_SAFE_NO_PAD.encode_to_string(signature.to_bytes())
        )
    }

    /// A token of ten minutes, `changes` put over its claims.
    pub(super) fn token_with(&self, subject: &str, changes: Value) -> String {
        let now = self.clock.now().timestamp();
        let mut claims = json!({"iss": ISSUER, "aud": "signal", "sub": subject, "iat": now - 60, "exp": now + 600, "jti": format!("t-{subject}")});
        for (name, value) in changes.as_object().unwrap() {
            claims[name] = value.clone();
        }
        self.sign(&claims)
    }

    pub(super) fn bearer(&self, subject: &str) -> String {
        format!("Bearer {}", self.token_with(subject, json!({})))
    }

    /// Of the issuer whose keys cannot be fetched.
    pub(super) fn bearer_of_absent_issuer(&self) -> String {
        format!("Bearer {}", self.token_with("17", json!({"iss": AWAY})))
    }

    pub(super) async fn send(&self, call: Call) -> Answer {
        call.send(&self.rest).await
    }

    /// What `/status` says.
    pub(super) async fn status(&self) -> Value {
        let call = Call::new(Method::GET, "/status")
            .header(AUTHORIZATION, &format!("Bearer {ADMIN_TOKEN}"));
        call.send(&self.admin).await.ok(200)
    }

    pub(super) fn as_user(&self, subject: &str, method: Method, path: &str) -> Call {
        Call::new(method, path).header(AUTHORIZATION, &self.bearer(subject))
    }

    /// As `root`.
    pub(super) fn call(&self, method: Method, path: &str) -> Call {
        self.as_user("root", method, path)
    }

    /// Puts notifications into inboxes, one activity a call; says the rows.
    pub(super) async fn store(
        &self,
        event: &str,
        kind: &str,
        recipients: &[&str],
    ) -> Vec<Notification> {
        let activity = NewActivity {
            source: "tests".into(),
            event_id: event.into(),
            kind: kind.into(),
            title: "Tiêu đề".into(),
            content: "Nội dung".into(),
            locale: "vi".into(),
            data: serde_json::value::to_raw_value(&json!({"amount": 150_000})).unwrap(),
            actor_id: None,
            organizer_id: None,
            merchant_id: Some("42".into()),
            recipients: recipients.iter().map(|r| (*r).to_owned()).collect(),
        };
        let stored = self
            .notifications
            .insert(&[activity], self.clock.now())
            .await
            .unwrap();
        stored
            .into_iter()
            .map(|stored| stored.notification)
            .collect()
    }

    /// What was published so far: event, destination and data; forgotten by this.
    pub(super) fn published(&self) -> Vec<(String, String, Value)> {
        let published = std::mem::take(&mut *self.neighbours.published.lock());
        let tell = |d: Dispatch| {
            (
                d.event.to_string(),
                format!("{:?}", d.destination),
                serde_json::from_str(d.data.get()).unwrap(),
            )
        };
        published.into_iter().map(tell).collect()
    }
}

/// A request on its way.
pub(super) struct Call {
    method: Method,
    path: String,
    headers: HeaderMap,
    body: Body,
    peer: IpAddr,
}

impl Call {
    pub(super) fn new(method: Method, path: &str) -> Self {
        Self {
            method,
            path: path.into(),
            headers: HeaderMap::new(),
            body: Body::empty(),
            peer: [192, 0, 2, 1].into(),
        }
    }

    pub(super) fn header(
        mut self,
        name: impl TryInto<HeaderName, Error: std::fmt::Debug>,
        value: &str,
    ) -> Self {
        self.headers.append(
            name.try_into().unwrap(),
            HeaderValue::from_str(value).unwrap(),
        );
        self
    }

    pub(super) fn basic(self, name: &str, password: &str) -> Self {
        let text = base64_simd::STANDARD.encode_to_string(format!("{name}:{password}"));
        self.header(AUTHORIZATION, &format!("Basic {text}"))
    }

    pub(super) fn peer(mut self, peer: impl Into<IpAddr>) -> Self {
        self.peer = peer.into();
        self
    }

    pub(super) fn json(self, body: &Value) -> Self {
        self.header(CONTENT_TYPE, "application/json")
            .body(body.to_string())
    }

    pub(super) fn body(mut self, body: impl Into<Body>) -> Self {
        self.body = body.into();
        self
    }

    pub(super) async fn send(self, router: &Router) -> Answer {
        let mut request = Request::builder()
            .method(self.method)
            .uri(&self.path)
            .body(self.body)
            .unwrap();
        *request.headers_mut() = self.headers;
        request.extensions_mut().insert(PeerAddress(self.peer));
        let response = router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        Answer {
            status: parts.status,
            headers: parts.headers,
            body,
            text: String::from_utf8(bytes.into()).unwrap(),
        }
    }
}

/// A response, read to its end.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Value,
    pub(super) text: String,
}

impl Answer {
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    /// Every value of a header.
    pub(super) fn all(&self, name: &str) -> Vec<&str> {
        self.headers
            .get_all(name)
            .iter()
            .map(|value| value.to_str().unwrap())
            .collect()
    }

    /// Holds the answer to be right and personal.
    #[track_caller]
    pub(super) fn ok(self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{}", self.text);
        assert_eq!(self.header("cache-control"), "no-store");
        assert_eq!(self.header("x-content-type-options"), "nosniff");
        self.body
    }

    /// Holds the answer to be that problem in its full form.
    #[track_caller]
    pub(super) fn problem(self, status: u16, code: &str) -> Self {
        assert_eq!(
            (self.status.as_u16(), self.body["code"].as_str()),
            (status, Some(code)),
            "{}",
            self.text
        );
        assert_eq!(self.header("content-type"), "application/problem+json");
        assert_eq!(self.header("cache-control"), "no-store");
        assert_eq!(self.header("x-content-type-options"), "nosniff");
        assert_eq!(self.body["status"], status);
        assert_eq!(self.body["type"], format!("/docs#{code}"));
        assert!(
            self.body["title"]
                .as_str()
                .is_some_and(|title| !title.is_empty())
        );
        assert!(
            self.body["detail"]
                .as_str()
                .is_some_and(|detail| !detail.is_empty())
        );
        assert_eq!(self.body["instance"], self.header("x-request-id"));
        assert!(
            !self.text.contains("10.1.2.3"),
            "an error tells of the inside: {}",
            self.text
        );
        self
    }
}

//! A gateway without sockets, which the tests of REST use.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use chrono::{DateTime, Utc};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use http::Method;
use http::header::AUTHORIZATION;
use p256::ecdsa::signature::Signer;
use p256::ecdsa::{Signature, SigningKey};
use parking_lot::Mutex;
use serde_json::{Value, json};
use signal_contract::StatusReport;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub(super) use super::call::{Answer, Call};
use crate::api::{AdminState, ApiState, admin_router, router};
use crate::auth::{Access, Authenticator, Basic, PublishedKeys, Revocations};
use crate::bus::{
    Announcer, Answers, Ask, Bus, BusError, BusStatus, Interest, PreviousServer, Reception,
    SubscriberState,
};
use crate::clock::{Clock, FixedClock};
use crate::config::{Config, Live, RedisMode, Secret, SecretFile, load_live};
use crate::delivery::Delivery;
use crate::dispatch::Dispatch;
use crate::hub::Hub;
use crate::inbox::Inbox;
use crate::lifecycle::Lifecycle;
use crate::metrics::Metrics;
use crate::notification::{NewActivity, Notification};
use crate::revocation::Revocation;
use crate::store::platform::{Platform, PolicyDefinition, seed};
use crate::store::testing::unavailable;
use crate::store::{
    Added, ChangedRevocation, NotificationStore, RevocationStore, StoreFuture, Stores, open,
};

/// The time of every test.
pub(super) const NOW: i64 = 1_795_000_000;
pub(super) const ADMIN_TOKEN: &str = "a-token-of-the-operator";
pub(super) const PASSWORD: &str = "open sesame";
const ISSUER: &str = "https://id.example.com/";
const AWAY: &str = "https://away.example.com/";

type Answering = Box<dyn Fn(&Ask) -> Answers + Send>;

/// The other instances, simulated: a test sets their answers and sees what they received.
pub(super) struct OtherInstances {
    answer: Mutex<Answering>,
    pub(super) asked: Mutex<Vec<Ask>>,
    /// Their names, as they were last listed.
    pub(super) live: Mutex<Vec<String>>,
    pub(super) published: Mutex<Vec<Dispatch>>,
    pub(super) shared: Mutex<Vec<Revocation>>,
    pub(super) publishing_fails: AtomicBool,
    pub(super) asking_fails: AtomicBool,
}

/// The revocations in the database, or a database that does not answer.
pub(super) struct RevocationTable {
    store: Arc<dyn RevocationStore>,
    pub(super) is_away: AtomicBool,
}

impl RevocationTable {
    fn over(stores: &Stores) -> Arc<Self> {
        Arc::new(Self {
            store: stores.revocations.clone(),
            is_away: AtomicBool::new(false),
        })
    }

    /// What is in force at the time of the tests.
    pub(super) async fn all(&self) -> Vec<Revocation> {
        let now = DateTime::from_timestamp(NOW, 0).unwrap();
        let changed = self.store.changed(0, 100, now).await.unwrap();
        changed.into_iter().map(|one| one.revocation).collect()
    }
}

impl RevocationStore for RevocationTable {
    fn add<'a>(
        &'a self,
        revocations: &'a [Revocation],
        most: u64,
        now: DateTime<Utc>,
    ) -> StoreFuture<'a, Added> {
        if self.is_away.load(Ordering::SeqCst) {
            return ready(Err(unavailable("connection refused at 10.1.2.3:5432"))).boxed();
        }
        self.store.add(revocations, most, now)
    }

    fn changed(
        &self,
        after: i64,
        limit: u32,
        now: DateTime<Utc>,
    ) -> StoreFuture<'_, Vec<ChangedRevocation>> {
        self.store.changed(after, limit, now)
    }

    fn purge_ended(&self, before: DateTime<Utc>, limit: u32) -> StoreFuture<'_, u64> {
        self.store.purge_ended(before, limit)
    }
}

impl OtherInstances {
    fn none() -> Arc<Self> {
        Arc::new(Self {
            answer: Mutex::new(Box::new(|_| Answers::default())),
            asked: Mutex::default(),
            live: Mutex::new(vec!["gateway-2".into()]),
            published: Mutex::default(),
            shared: Mutex::default(),
            publishing_fails: AtomicBool::new(false),
            asking_fails: AtomicBool::new(false),
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

impl Bus for OtherInstances {
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

    fn last_seen(&self) -> Vec<String> {
        self.live.lock().clone()
    }

    fn share_revocation<'a>(
        &'a self,
        revocation: &'a Revocation,
    ) -> BoxFuture<'a, Result<(), BusError>> {
        ready(Self::away(&self.asking_fails).map(|()| self.shared.lock().push(revocation.clone())))
            .boxed()
    }

    fn shared_revocations(&self) -> BoxFuture<'_, Result<Vec<Revocation>, BusError>> {
        ready(Ok(self.shared.lock().clone())).boxed()
    }

    fn reception(&self) -> Option<Reception> {
        None
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

/// A gateway without sockets, and everything that a test changes or reads.
pub(super) struct TestGateway {
    pub(super) rest: Router,
    pub(super) admin: Router,
    pub(super) others: Arc<OtherInstances>,
    pub(super) notifications: Arc<dyn NotificationStore>,
    pub(super) revocations: Arc<Revocations>,
    pub(super) table: Arc<RevocationTable>,
    pub(super) clock: FixedClock,
    pub(super) live: watch::Sender<Arc<Live>>,
    pub(super) published: watch::Sender<Option<Arc<PublishedKeys>>>,
    pub(super) lifecycle: Arc<Lifecycle>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) folder: tempfile::TempDir,
    key: SigningKey,
    shutdown: CancellationToken,
}

impl Drop for TestGateway {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// Serves one key as a JWK Set; returns the URL.
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

/// `root` has every permission, `finder` only that to find; all others have none. `ops` is a Basic user with the rights of `root`.
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

/// Argon2id with low cost, because REST is tested and not the hash.
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

/// Two sources: one whose keys are served at `certs`, and one that cannot be reached.
fn live_settings(certs: &str) -> Live {
    let text = format!(
        "allowed_origins = [\"https://shop.example.com\"]\ntrusted_proxies = [\"10.0.0.0/8\"]\n\
             [[jwks.sources]]\nname = \"main\"\nissuer = \"{ISSUER}\"\nurl = \"{certs}\"\naudiences = [\"signal\"]\nalgorithms = [\"ES256\"]\nallow_insecure_http = true\n\
             [[jwks.sources]]\nname = \"away\"\nissuer = \"{AWAY}\"\nurl = \"http://127.0.0.1:1/certs\"\naudiences = [\"signal\"]\nalgorithms = [\"ES256\"]\nsubject_prefix = \"away:\"\nallow_insecure_http = true\n"
    );
    load_live(&text).unwrap()
}

fn admin_state(state: &ApiState, folder: &std::path::Path) -> AdminState {
    let token_file = folder.join("admin-token");
    std::fs::write(&token_file, format!("{ADMIN_TOKEN}\n")).unwrap();
    let (authenticator, published) = (state.authenticator.clone(), state.published.clone());
    AdminState {
        lifecycle: state.lifecycle.clone(),
        hub: state.hub.clone(),
        bus: state.bus.clone(),
        notifications: state.notifications.clone(),
        metrics: state.metrics.clone(),
        instance: state.instance.clone(),
        token_file: SecretFile::new(token_file),
        facts: Arc::new(move || StatusReport {
            static_revision: "sha256:1".into(),
            live_revision: "sha256:2".into(),
            live_error: None,
            catalogs_revision: "sha256:3".into(),
            key_sources: authenticator.status(),
            jwks_file: published.borrow().as_deref().map(PublishedKeys::report),
            kafka: None,
            ..StatusReport::default()
        }),
    }
}

fn database_in(folder: &std::path::Path) -> Secret {
    Secret::new(format!("sqlite://{}", folder.join("signal.db").display()))
}

impl TestGateway {
    pub(super) async fn new() -> Self {
        let (folder, shutdown) = (tempfile::tempdir().unwrap(), CancellationToken::new());
        let mut config = Config::for_tests();
        config.database.url = database_in(folder.path());
        config.auth.basic_users_file = users_file(folder.path());
        let key = SigningKey::from_slice(&[7; 32]).unwrap();
        let certs = serve_keys(&key, shutdown.clone()).await;
        let (live, followed) = watch::channel(Arc::new(live_settings(&certs)));
        let clock = FixedClock::new(DateTime::from_timestamp(NOW, 0).unwrap());
        let (metrics, lifecycle) = (Metrics::new(), Arc::new(Lifecycle::default()));
        let published = watch::Sender::new(None);
        let revocations = Revocations::new(Arc::new(clock.clone()));
        revocations.follow();

        seed(&config.database.url, &platform()).await.unwrap();
        let stores = open(&config.database, &config.policy, shutdown.clone())
            .await
            .unwrap();
        let (authenticator, _) = Authenticator::start(
            followed.clone(),
            Arc::new(clock.clone()),
            metrics.clone(),
            revocations.clone(),
            shutdown.clone(),
        );
        let (basic, _) = Basic::start(&config.auth, shutdown.clone()).unwrap();
        let table = RevocationTable::over(&stores);
        let (hub, others) = (Hub::none(), OtherInstances::none());
        let bus: Arc<dyn Bus> = others.clone();

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
            leftovers: crate::leftovers::Leftovers::default(),
            delivery,
            hub,
            announcer: Announcer::new(bus.clone()),
            bus,
            revocation_store: table.clone(),
            revocations: revocations.clone(),
            clock: Arc::new(clock.clone()),
            live: followed,
            published: published.subscribe(),
            metrics: metrics.clone(),
            lifecycle: lifecycle.clone(),
            instance: "gateway-0".into(),
            max_body_bytes: 8192,
            token_life: Duration::from_secs(31 * 86_400),
        };
        let admin = admin_state(&state, folder.path());
        let gateway = Self {
            rest: router(state),
            admin: admin_router(admin),
            others,
            notifications: stores.notifications,
            revocations,
            table,
            clock,
            live,
            published,
            lifecycle,
            metrics,
            folder,
            key,
            shutdown,
        };
        gateway.keys_are_there(&authenticator).await;
        gateway
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

    /// Returns a token of ten minutes; `changes` replace claims.
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

    /// Returns a token of the issuer whose keys cannot be fetched.
    pub(super) fn bearer_of_absent_issuer(&self) -> String {
        format!("Bearer {}", self.token_with("17", json!({"iss": AWAY})))
    }

    pub(super) async fn send(&self, call: Call) -> Answer {
        call.send(&self.rest).await
    }

    /// Returns `/status`.
    pub(super) async fn status(&self) -> Value {
        let call = Call::new(Method::GET, "/status")
            .header(AUTHORIZATION, &format!("Bearer {ADMIN_TOKEN}"));
        call.send(&self.admin).await.ok(200)
    }

    pub(super) fn as_user(&self, subject: &str, method: Method, path: &str) -> Call {
        Call::new(method, path).header(AUTHORIZATION, &self.bearer(subject))
    }

    /// Makes a request of `root`.
    pub(super) fn call(&self, method: Method, path: &str) -> Call {
        self.as_user("root", method, path)
    }

    /// Stores the notifications of one activity; returns the rows.
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
            occurred_at: DateTime::from_timestamp_millis(1_795_420_798_412),
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

    /// Returns and clears what was published: event, destination and data.
    pub(super) fn published(&self) -> Vec<(String, String, Value)> {
        let published = std::mem::take(&mut *self.others.published.lock());
        let describe = |d: Dispatch| {
            (
                d.event.to_string(),
                format!("{:?}", d.destination),
                serde_json::from_str(d.data_text().unwrap()).unwrap(),
            )
        };
        published.into_iter().map(describe).collect()
    }
}

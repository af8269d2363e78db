//! Redis, PostgreSQL and Kafka for one test: what `cargo xtask test` started, or a server of the test's own.
//!
//! Where neither is possible the test is skipped: the functions here print `skipped: NAME: REASON` and answer `None`.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use signal_services::{Kafka, KafkaInstallation, Postgres, Redis, Sentinels, Server};
use sqlx::{Connection as _, PgConnection};
use tempfile::TempDir;

use crate::chaos::Proxy;

/// Says that the running test did nothing, and why. Written past the runner's capture, so that it is seen.
pub fn skip(reason: &str) {
    let thread = std::thread::current();
    let _ = writeln!(
        std::io::stdout(),
        "skipped: {}: {reason}",
        thread.name().unwrap_or("a test")
    );
}

/// A name that no other test and no other run uses: for topics, groups and databases.
pub fn unique(prefix: &str) -> String {
    format!("{prefix}_{:012x}", rand::random::<u64>() >> 16)
}

/// A folder that the user `postgres` can reach, gone when dropped.
///
/// # Panics
/// When it cannot be made.
pub fn scratch() -> TempDir {
    let dir = tempfile::Builder::new()
        .prefix("signal-tests.")
        .tempdir()
        .expect("a temporary folder");
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(dir.path(), open).expect("permissions of an own folder");
    dir
}

/// A server of one test, with its data.
#[derive(Clone)]
pub struct Own {
    server: Arc<Mutex<Server>>,
    address: SocketAddr,
    _dir: Arc<TempDir>,
}

impl Own {
    /// Where it listens, also after a restart.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Kill -9; its data and its port stay.
    pub async fn kill(&self) {
        self.with(Server::kill).await;
    }

    /// Starts it again and waits until it answers.
    ///
    /// # Panics
    /// When it does not.
    pub async fn restart(&self) {
        self.with(|server| server.restart().expect("the server restarts"))
            .await;
    }

    /// SIGSTOP: connections stay open and nothing is answered.
    pub async fn pause(&self) {
        self.with(|server| server.pause()).await;
    }

    /// SIGCONT.
    pub async fn resume(&self) {
        self.with(|server| server.resume()).await;
    }

    async fn with(&self, act: impl FnOnce(&mut Server) + Send + 'static) {
        let server = Arc::clone(&self.server);
        tokio::task::spawn_blocking(move || act(&mut server.lock()))
            .await
            .expect("the server obeys");
    }

    async fn start(start: impl FnOnce(&Path) -> anyhow::Result<Server> + Send + 'static) -> Self {
        let started = tokio::task::spawn_blocking(move || {
            let dir = scratch();
            start(dir.path()).map(|server| (server, dir))
        });
        let (server, dir) = started.await.expect("no panic").expect("the server starts");
        Self {
            address: server.address(),
            server: Arc::new(Mutex::new(server)),
            _dir: Arc::new(dir),
        }
    }
}

/// A Redis of the test's own: the channels are the same for everyone (protocol.md 10.2), so tests do not share one.
pub async fn redis() -> Option<Own> {
    if !Redis::is_installed() {
        skip("redis-server is not installed");
        return None;
    }
    Some(Own::start(|dir| Redis::start(dir, &[])).await)
}

/// A Redis master named `mymaster` with a replica and three sentinels, all of the test's own.
pub struct Watched {
    parts: Arc<Mutex<Sentinels>>,
    sentinels: Vec<SocketAddr>,
    replica: SocketAddr,
    _dir: TempDir,
}

impl Watched {
    /// `host:port` of each sentinel.
    pub fn sentinels(&self) -> Vec<String> {
        self.sentinels.iter().map(ToString::to_string).collect()
    }

    /// Who becomes master when the first one is gone.
    pub fn replica(&self) -> SocketAddr {
        self.replica
    }

    /// Kill -9 of the first master.
    ///
    /// # Panics
    /// When it cannot be killed.
    pub async fn kill_master(&self) {
        let parts = Arc::clone(&self.parts);
        tokio::task::spawn_blocking(move || parts.lock().master.kill())
            .await
            .expect("the master is killed");
    }
}

/// A Redis that sentinels watch.
///
/// # Panics
/// When it does not start.
pub async fn watched_redis() -> Option<Watched> {
    if !Redis::is_installed() {
        skip("redis-server is not installed");
        return None;
    }
    let dir = scratch();
    let path = dir.path().to_owned();
    let parts = tokio::task::spawn_blocking(move || Redis::start_sentinels(&path))
        .await
        .expect("no panic")
        .expect("sentinels start");
    let sentinels = parts.sentinels.iter().map(Server::address).collect();
    let replica = parts.replica.address();
    Some(Watched {
        parts: Arc::new(Mutex::new(parts)),
        sentinels,
        replica,
        _dir: dir,
    })
}

/// A Redis cluster of the test's own: three masters and a replica of each.
pub struct Cluster {
    nodes: Arc<Mutex<Vec<Server>>>,
    addresses: Vec<SocketAddr>,
    _dir: TempDir,
}

impl Cluster {
    /// Where its nodes listen; those that were masters at first come first.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Kill -9 of one node.
    ///
    /// # Panics
    /// When it cannot be killed.
    pub async fn kill(&self, node: usize) {
        let nodes = Arc::clone(&self.nodes);
        tokio::task::spawn_blocking(move || nodes.lock()[node].kill())
            .await
            .expect("the node is killed");
    }
}

/// A Redis cluster.
///
/// # Panics
/// When it does not start.
pub async fn redis_cluster() -> Option<Cluster> {
    if !Redis::is_installed() {
        skip("redis-server is not installed");
        return None;
    }
    let dir = scratch();
    let path = dir.path().to_owned();
    let nodes = tokio::task::spawn_blocking(move || Redis::start_cluster(&path))
        .await
        .expect("no panic")
        .expect("the cluster starts");
    let addresses = nodes.iter().map(Server::address).collect();
    Some(Cluster {
        nodes: Arc::new(Mutex::new(nodes)),
        addresses,
        _dir: dir,
    })
}

/// A broker of the test's own with a second listener that asks for SCRAM-SHA-512.
pub struct ScramKafka {
    installation: KafkaInstallation,
    broker: Own,
    scram: SocketAddr,
}

impl ScramKafka {
    /// `host:port` in the clear.
    pub fn clear(&self) -> String {
        self.broker.address().to_string()
    }

    /// `host:port` of the listener that asks for a password.
    pub fn scram(&self) -> String {
        self.scram.to_string()
    }

    /// Gives a user a password, its only one; connections made with the one before stay.
    ///
    /// # Panics
    /// When the broker refuses.
    pub async fn set_password(&self, user: &'static str, password: &'static str) {
        let (installation, address) = (self.installation.clone(), self.broker.address());
        let set = tokio::task::spawn_blocking(move || {
            Kafka::set_scram_password(&installation, address, user, password)
        });
        set.await.expect("no panic").expect("the password is set");
    }
}

/// A broker that asks for passwords.
pub async fn scram_kafka() -> Option<ScramKafka> {
    let installation = kafka_installation()?;
    let (tell, told) = std::sync::mpsc::channel();
    let with = installation.clone();
    let broker = Own::start(move |dir| {
        let (server, scram) = Kafka::start_scram(&with, dir)?;
        tell.send(scram)?;
        Ok(server)
    })
    .await;
    let scram = told.recv().expect("sent before the server was given");
    Some(ScramKafka {
        installation,
        broker,
        scram,
    })
}

/// A Kafka broker of the test's own, to be killed and restarted.
pub async fn own_kafka() -> Option<Own> {
    let installation = kafka_installation()?;
    Some(Own::start(move |dir| Kafka::start(&installation, dir)).await)
}

/// A Kafka broker of the test's own, and a proxy before it. Clients of the proxy cannot get around it; those of the broker's own address do not pass it.
///
/// # Panics
/// When it does not start.
pub async fn own_kafka_behind_proxy() -> Option<(Own, Proxy)> {
    let installation = kafka_installation()?;
    let port = signal_services::free_port().expect("a free port");
    let advertised = SocketAddr::from(([127, 0, 0, 1], port));
    let (tell, told) = std::sync::mpsc::channel();
    let broker = Own::start(move |dir| {
        let (server, listener) = Kafka::start_behind(&installation, dir, advertised)?;
        tell.send(listener)?;
        Ok(server)
    })
    .await;
    let listener = told.recv().expect("sent before the server was given");
    Some((broker, Proxy::at(advertised, listener).await))
}

/// A PostgreSQL server of the test's own that keeps what it committed through a kill -9.
pub async fn own_postgres() -> Option<Own> {
    if Postgres::programs().is_none() {
        skip("PostgreSQL's server programs are not installed");
        return None;
    }
    Some(Own::start(|dir| Postgres::start(dir, true)).await)
}

/// `host:port` of a broker that tests share; topics and groups are each test's own.
pub async fn kafka() -> Option<String> {
    if let Some(address) = environment("SIGNAL_TEST_KAFKA") {
        return Some(address);
    }
    let installation = kafka_installation()?;
    static BROKER: OnceLock<SharedServer> = OnceLock::new();
    let address = shared(&BROKER, move |dir| Kafka::start(&installation, dir)).await;
    Some(address.to_string())
}

fn kafka_installation() -> Option<KafkaInstallation> {
    let installation = KafkaInstallation::find();
    if installation.is_none() {
        skip("Kafka is not in the cache folder: run `cargo xtask setup`");
    }
    installation
}

/// A fresh database on a server that tests share, or on the test's own.
#[derive(Debug, Clone)]
pub struct Database {
    /// `postgres://user@host:port/name`
    pub url: String,
    /// Where its server listens.
    pub server: SocketAddr,
}

impl Database {
    /// Makes an empty database on a server.
    ///
    /// # Panics
    /// When the server refuses.
    pub async fn create(server_url: &str) -> Self {
        let mut url = url::Url::parse(server_url).expect("a database URL");
        let server = url.socket_addrs(|| Some(5432)).expect("an address")[0];
        let name = unique("signal");
        let mut connection = PgConnection::connect(server_url)
            .await
            .expect("the shared PostgreSQL answers");
        let sql = sqlx::AssertSqlSafe(format!("create database {name}"));
        sqlx::query(sql)
            .execute(&mut connection)
            .await
            .expect("a database is made");
        url.set_path(&name);
        Self {
            url: url.into(),
            server,
        }
    }

    /// The same database, reached at another address: through a proxy.
    ///
    /// # Panics
    /// When the URL takes no port.
    pub fn through(&self, address: SocketAddr) -> String {
        let mut url = url::Url::parse(&self.url).expect("a database URL");
        url.set_port(Some(address.port()))
            .expect("a URL with a host");
        url.set_host(Some("127.0.0.1")).expect("a host");
        url.into()
    }
}

/// A fresh database on the shared server.
pub async fn postgres() -> Option<Database> {
    if let Some(url) = environment("SIGNAL_TEST_POSTGRES") {
        return Some(Database::create(&url).await);
    }
    if Postgres::programs().is_none() {
        skip("PostgreSQL's server programs are not installed");
        return None;
    }
    static SERVER: OnceLock<SharedServer> = OnceLock::new();
    let address = shared(&SERVER, |dir| Postgres::start(dir, false)).await;
    Some(Database::create(&format!("postgres://postgres@{address}/postgres")).await)
}

/// A fresh database on a server of the test's own.
pub async fn database_on(server: &Own) -> Database {
    Database::create(&format!(
        "postgres://postgres@{}/postgres",
        server.address()
    ))
    .await
}

struct SharedServer {
    server: Server,
    _dir: TempDir,
}

/// Starts it once in this process. It ends with the process: the kernel sees to that, since statics are never dropped.
async fn shared(
    slot: &'static OnceLock<SharedServer>,
    start: impl FnOnce(&Path) -> anyhow::Result<Server> + Send + 'static,
) -> SocketAddr {
    let started = tokio::task::spawn_blocking(move || {
        let shared = slot.get_or_init(|| {
            let dir = scratch();
            SharedServer {
                server: start(dir.path()).expect("the shared server starts"),
                _dir: dir,
            }
        });
        shared.server.address()
    });
    started.await.expect("the shared server starts")
}

pub(crate) fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::producer::{Producer, payment};
    use crate::wait::within;
    use crate::{Emitter, Policies};

    #[tokio::test]
    async fn an_emitter_reaches_a_subscriber_of_the_named_channel() {
        let Some(server) = redis().await else { return };
        let client = redis::Client::open(format!("redis://{}", server.address())).unwrap();
        let mut subscriber = client.get_async_pubsub().await.unwrap();
        subscriber.subscribe("ws:room:merchant:42").await.unwrap();
        let mut emitter = Emitter::connect(server.address()).await.unwrap();
        assert_eq!(
            emitter
                .to_room("merchant:42", "price", json!({"vnd": 1}), &["c1"])
                .await
                .unwrap(),
            1
        );
        let message = within(
            "the message",
            futures_util::StreamExt::next(&mut subscriber.on_message()),
        )
        .await
        .unwrap();
        let payload: serde_json::Value =
            serde_json::from_str(&message.get_payload::<String>().unwrap()).unwrap();
        let want = json!({"serverId": "emitter", "type": "room", "target": "merchant:42", "event": "price", "data": {"vnd": 1}, "exclude": ["c1"]});
        assert_eq!(payload, want);
    }

    #[tokio::test]
    async fn what_a_producer_sends_is_read_back_in_order_with_its_headers() {
        let Some(brokers) = kafka().await else { return };
        let producer = Producer::new(&brokers).unwrap();
        let topic = unique("topic");
        producer.create_topic(&topic, 1).await.unwrap();
        producer
            .send(&topic, "42", &payment("evt-1", "42", 5))
            .await
            .unwrap();
        producer
            .send_raw(&topic, "42", b"not json", &[("traceparent", "00-1-2-01")])
            .await
            .unwrap();
        let records = producer.read(&topic, 2).await.unwrap();
        assert_eq!(records[0].key, b"42");
        assert_eq!(
            (
                records[1].value.as_slice(),
                records[1].header("traceparent").as_str()
            ),
            (&b"not json"[..], "00-1-2-01")
        );
    }

    #[tokio::test]
    async fn databases_are_fresh_and_take_the_policy_tables() {
        let Some(first) = postgres().await else {
            return;
        };
        let Some(second) = postgres().await else {
            return;
        };
        assert_ne!(first.url, second.url);
        let policies = Policies::create(&first.url).await.unwrap();
        policies.join("17", "Merchant_42").await.unwrap();
        policies
            .grant("17", "WebSocketClient.find", "read", "allow")
            .await
            .unwrap();
        let mut connection = PgConnection::connect(&first.through(first.server))
            .await
            .unwrap();
        let rows: i64 = sqlx::query_scalar("select count(*) from policy_definition")
            .fetch_one(&mut connection)
            .await
            .unwrap();
        assert_eq!(rows, 2);
        policies.leave("17", "Merchant_42").await.unwrap();
        let left: i64 = sqlx::query_scalar("select count(*) from policy_definition")
            .fetch_one(&mut connection)
            .await
            .unwrap();
        assert_eq!(left, 1);
    }
}

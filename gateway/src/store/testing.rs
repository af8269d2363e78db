//! For the tests of this folder and of others: errors, small activities, and a real database of each kind, one per test.

use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::value::RawValue;
use sqlx::{ConnectOptions as _, Connection as _, Executor as _};
use tokio_util::sync::CancellationToken;

use super::{StoreError, Stores, open};
use crate::config::{Config, Database, Secret};
use crate::notification::NewActivity;

/// The error of a store whose database does not answer.
pub(crate) fn unavailable(why: &'static str) -> StoreError {
    StoreError::unavailable(std::io::Error::other(why))
}

/// The error of a store whose database gives up on a statement because of its size.
pub(crate) fn too_much(why: &'static str) -> StoreError {
    let StoreError::Unavailable { source } = unavailable(why) else {
        unreachable!("as it was made");
    };
    StoreError::TooMuch { source }
}

/// The error of a store whose database refuses a value.
pub(crate) fn refused(why: &'static str) -> StoreError {
    StoreError::refused(std::io::Error::other(why))
}

/// An activity with every optional text; its texts contain the event's id.
pub(crate) fn activity(event: &str, recipients: &[&str]) -> NewActivity {
    NewActivity {
        source: "shop".into(),
        event_id: event.into(),
        kind: "PAYMENT_SUCCESS".into(),
        title: format!("title of {event}"),
        content: format!("nội dung {event}"),
        locale: "vi".into(),
        data: RawValue::from_string(r#"{"z": 1.50, "a":[null, "\u00e9"] }"#.into()).unwrap(),
        actor_id: Some("17".into()),
        organizer_id: None,
        merchant_id: Some("42".into()),
        occurred_at: chrono::DateTime::from_timestamp_millis(1_795_420_798_412),
        recipients: recipients.iter().map(|r| (*r).to_owned()).collect(),
    }
}

/// A connection to a server that may still be starting.
async fn reached(options: &sqlx::postgres::PgConnectOptions) -> sqlx::PgConnection {
    let began = std::time::Instant::now();
    loop {
        match options.connect().await {
            Ok(connection) => return connection,
            Err(error) => assert!(
                began.elapsed() < std::time::Duration::from_secs(30),
                "PostgreSQL does not take connections: {error}"
            ),
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

/// A database of one test.
pub(crate) struct TestDatabase {
    pub(crate) settings: Database,
    folder: Option<tempfile::TempDir>,
}

impl TestDatabase {
    /// A file in a folder that does not exist yet.
    pub(crate) fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!(
            "sqlite://{}",
            folder.path().join("made/signal.db").display()
        );
        Self {
            settings: settings(&url),
            folder: Some(folder),
        }
    }

    /// A fresh database on the server, or `None` where there is none, which is printed.
    pub(crate) async fn postgres(test: &str) -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let server = match server() {
            Ok(server) => server,
            Err(reason) => {
                println!("skipped {test} on PostgreSQL: {reason}");
                return None;
            }
        };
        let name = format!(
            "signal_{}_{}",
            std::process::id(),
            NUMBER.fetch_add(1, Ordering::Relaxed)
        );
        let mut url = url::Url::parse(server).unwrap();
        let mut admin = reached(&url.as_str().parse().unwrap()).await;
        admin
            .execute(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}")))
            .await
            .unwrap();
        admin.close().await.unwrap();
        url.set_path(&name);
        Some(Self {
            settings: settings(url.as_str()),
            folder: None,
        })
    }

    /// A database that is there already.
    pub(super) fn on_postgres(url: &str) -> Self {
        Self {
            settings: settings(url),
            folder: None,
        }
    }

    /// Another database on the same server.
    pub(super) fn at(&self, url: &str) -> Self {
        Self {
            settings: Database {
                url: Secret::new(url),
                ..self.settings.clone()
            },
            folder: None,
        }
    }

    pub(super) fn url(&self) -> &Secret {
        &self.settings.url
    }

    pub(super) fn is_postgres(&self) -> bool {
        self.folder.is_none()
    }

    /// Another instance on the same database.
    pub(crate) async fn open(&self) -> Stores {
        self.open_with(&Config::for_tests().policy).await
    }

    /// Another instance that finds the platform's tables by these settings.
    pub(crate) async fn open_with(&self, policy: &crate::config::Policy) -> Stores {
        open(&self.settings, policy, CancellationToken::new())
            .await
            .unwrap()
    }

    /// Keeps a copy of everything. No instance may be open.
    pub(super) async fn back_up(&self) {
        if self.is_postgres() {
            let name = self.name();
            self.on_server(&[format!("CREATE DATABASE {name}_copy TEMPLATE {name}")])
                .await;
        } else {
            std::fs::copy(self.file(), self.file().with_extension("copy")).unwrap();
        }
    }

    /// Puts the copy in the place of what there is, as often as one likes. No instance may be open.
    pub(super) async fn restore(&self) {
        if self.is_postgres() {
            let name = self.name();
            self.on_server(&[
                format!("DROP DATABASE {name} WITH (FORCE)"),
                format!("CREATE DATABASE {name} TEMPLATE {name}_copy"),
            ])
            .await;
        } else {
            std::fs::copy(self.file().with_extension("copy"), self.file()).unwrap();
        }
    }

    fn name(&self) -> String {
        let url = url::Url::parse(self.url().expose()).unwrap();
        url.path().trim_start_matches('/').to_owned()
    }

    fn file(&self) -> PathBuf {
        let url = self.url().expose();
        url.trim_start_matches("sqlite://").into()
    }

    /// Runs statements in another database of the server, each by itself.
    async fn on_server(&self, statements: &[String]) {
        let options: sqlx::postgres::PgConnectOptions = self.url().expose().parse().unwrap();
        let mut admin = options.database("postgres").connect().await.unwrap();
        for statement in statements {
            admin
                .execute(sqlx::AssertSqlSafe(statement.as_str()))
                .await
                .unwrap();
        }
        admin.close().await.unwrap();
    }

    /// Runs statements on a connection of their own.
    pub(super) async fn execute(&self, sql: &str) {
        let url = self.url().expose();
        if self.is_postgres() {
            let mut connection = connected(url).await;
            sqlx::raw_sql(sqlx::AssertSqlSafe(sql))
                .execute(&mut connection)
                .await
                .unwrap();
        } else {
            let mut connection = url
                .parse::<sqlx::sqlite::SqliteConnectOptions>()
                .unwrap()
                .connect()
                .await
                .unwrap();
            sqlx::raw_sql(sqlx::AssertSqlSafe(sql))
                .execute(&mut connection)
                .await
                .unwrap();
        }
    }

    /// Asks for one number on a connection of its own.
    pub(super) async fn number(&self, sql: &str) -> i64 {
        let url = self.url().expose();
        if self.is_postgres() {
            let mut connection = connected(url).await;
            sqlx::query_scalar(sqlx::AssertSqlSafe(sql))
                .persistent(false)
                .fetch_one(&mut connection)
                .await
                .unwrap()
        } else {
            let mut connection = url
                .parse::<sqlx::sqlite::SqliteConnectOptions>()
                .unwrap()
                .connect()
                .await
                .unwrap();
            sqlx::query_scalar(sqlx::AssertSqlSafe(sql))
                .fetch_one(&mut connection)
                .await
                .unwrap()
        }
    }
}

/// A connection that a pooler takes, too.
async fn connected(url: &str) -> sqlx::PgConnection {
    let options: sqlx::postgres::PgConnectOptions = url.parse().unwrap();
    let options = options.extra_float_digits(None);
    options.connect().await.unwrap()
}

fn settings(url: &str) -> Database {
    let mut settings = Config::for_tests().database;
    settings.url = Secret::new(url);
    // Tests queue more than production does, on fewer cores.
    settings.acquire_timeout_ms = 60_000;
    settings
}

/// The URL of a server where databases can be made: `SIGNAL_TEST_POSTGRES`, or one that this process starts and that
/// ends with it. An error only where there is none to start.
fn server() -> Result<&'static str, &'static str> {
    static SERVER: OnceLock<Result<String, String>> = OnceLock::new();
    let server = SERVER.get_or_init(|| match std::env::var("SIGNAL_TEST_POSTGRES") {
        Ok(url) if !url.is_empty() => Ok(url),
        _ => start_server(),
    });
    server.as_deref().map_err(String::as_str)
}

/// Makes and serves a cluster; goes on until its standard input, which this process holds, is closed. `initdb` refuses root.
const SERVE: &str = r#"
set -eu
bin=$1 dir=$2 port=$3
as=
if [ "$(id -u)" = 0 ]; then as="setpriv --reuid=postgres --regid=postgres --init-groups"; chown postgres: "$dir"; fi
cd "$dir"
$as "$bin/initdb" -D "$dir/data" -U postgres -A trust -E UTF8 --locale=C.UTF-8 --no-sync >"$dir/initdb.log" 2>&1
$as "$bin/postgres" -D "$dir/data" -c listen_addresses=127.0.0.1 -c port="$port" -c unix_socket_directories= -c fsync=off \
    -c synchronous_commit=off -c full_page_writes=off -c shared_buffers=64MB -c max_connections=200 >"$dir/log" 2>&1 </dev/null &
server=$!
cat >/dev/null
kill -INT "$server"
wait "$server" || true
rm -rf "$dir"
"#;

fn start_server() -> Result<String, String> {
    let bin = binaries()
        .ok_or("SIGNAL_TEST_POSTGRES is unset and no server is installed in /usr/lib/postgresql")?;
    let dir = std::env::temp_dir().join(format!("signal-store-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let mut child = Command::new("sh")
        .args(["-c", SERVE, "serve"])
        .args([bin.as_os_str(), dir.as_os_str()])
        .arg(port.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !ready(port) {
        let ended = child.try_wait().ok().flatten().is_some();
        if ended || Instant::now() > deadline {
            let log = |name| std::fs::read_to_string(dir.join(name)).unwrap_or_default();
            panic!(
                "the server in {} does not start: {}{}",
                bin.display(),
                log("initdb.log"),
                log("log")
            );
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    // The pipe is held until the process ends, whichever way.
    std::mem::forget(child);
    Ok(format!("postgres://postgres@127.0.0.1:{port}/postgres"))
}

pub(super) fn binaries() -> Option<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .ok()?
        .flatten()
        .map(|entry| entry.path().join("bin"))
        .collect();
    found.sort();
    found
        .into_iter()
        .rev()
        .find(|bin| bin.join("postgres").is_file() && bin.join("initdb").is_file())
}

/// Whether the server answers a request for TLS, which it does once it takes connections.
fn ready(port: u16) -> bool {
    use std::io::Write;
    let Ok(mut stream) = std::net::TcpStream::connect(("127.0.0.1", port)) else {
        return false;
    };
    let mut answer = [0];
    stream
        .set_read_timeout(Some(Duration::from_secs(5)))
        .is_ok()
        && stream.write_all(&[0, 0, 0, 8, 4, 210, 22, 47]).is_ok()
        && stream.read_exact(&mut answer).is_ok()
}

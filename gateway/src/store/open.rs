//! Opens the stores that the settings name, and follows their URL files.
//!
//! Input: `[database]` and `[policy]`. Output: [`Stores`]. A database that is unavailable is waited for, so that a pod does not restart again and again;
//! a setting that is wrong or a schema that does not fit is an error at once.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use sqlx::sqlite::SqliteConnectOptions;
use tokio::sync::watch::Receiver;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::migrate::prepare;
use super::policy::{PostgresPolicies, SqlitePolicies};
use super::postgres::{Opened, PostgresPool, PostgresStore, Servers};
use super::sqlite::{SqlitePools, SqliteStore};
use super::{NotificationStore, OpenError, PolicyStore, PolicySurvey, RevocationStore, StoreError};
use crate::backoff::Backoff;
use crate::config::{self, Secret, SecretFile};
use crate::files;

/// The first delay between two tries to reach a database.
const RETRY_FIRST: Duration = Duration::from_millis(250);

/// Both stores, opened.
pub struct Stores {
    /// The notification tables.
    pub notifications: Arc<dyn NotificationStore>,
    /// The revocations, in the same database.
    pub revocations: Arc<dyn RevocationStore>,
    /// The policy tables, possibly in another database.
    pub policies: Arc<dyn PolicyStore>,
    /// Tasks that follow the URL files; they end at shutdown and never before.
    pub tasks: Vec<JoinHandle<()>>,
    databases: Vec<Database>,
}

impl Stores {
    /// Waits until no connection is used, and closes them: the last step of the process, after everything that stores.
    pub async fn close(&self) {
        for database in &self.databases {
            database.close().await;
        }
    }
}

/// One database that is used.
#[derive(Clone)]
enum Database {
    Postgres(Arc<PostgresPool>),
    Sqlite(SqlitePools),
}

impl Database {
    /// Waits until no connection is used, and closes them.
    async fn close(&self) {
        match self {
            Self::Postgres(postgres) => postgres.close().await,
            Self::Sqlite(sqlite) => sqlite.close().await,
        }
    }

    fn new(address: &DatabaseAddress, database: &config::Database) -> Self {
        match address {
            DatabaseAddress::Postgres(servers) => {
                Self::Postgres(PostgresPool::new(servers.clone(), database))
            }
            DatabaseAddress::Sqlite { options, in_memory } => {
                Self::Sqlite(SqlitePools::new(options.clone(), *in_memory, database))
            }
        }
    }
}

/// The database that a URL names.
#[derive(Clone)]
#[expect(
    clippy::large_enum_variant,
    reason = "a process has two of them at most"
)]
pub(super) enum DatabaseAddress {
    Postgres(Servers),
    Sqlite {
        options: SqliteConnectOptions,
        in_memory: bool,
    },
}

/// Reads a URL. The reason given for a wrong one never repeats it.
pub(super) fn parse_address(
    setting: &'static str,
    url: &Secret,
) -> Result<DatabaseAddress, OpenError> {
    let text = url.expose();
    let wrong = |error: sqlx::Error| OpenError::Setting {
        setting,
        reason: error.to_string(),
    };
    if text.starts_with("postgres://") || text.starts_with("postgresql://") {
        let servers = Servers::parse(text).map_err(wrong)?;
        // Notifications are written, whatever the URL asks for. Policies are only read, and may come from a standby.
        return Ok(DatabaseAddress::Postgres(
            if setting.starts_with("database.") {
                servers.for_writes()
            } else {
                servers
            },
        ));
    }
    if text.starts_with("sqlite:") {
        let in_memory = text.contains(":memory:") || text.contains("mode=memory");
        let options = SqliteConnectOptions::from_str(text).map_err(wrong)?;
        if let Some(folder) = options
            .get_filename()
            .parent()
            .filter(|folder| !in_memory && !folder.as_os_str().is_empty())
        {
            std::fs::create_dir_all(folder).map_err(|source| OpenError::File {
                setting,
                path: folder.to_owned(),
                source,
            })?;
        }
        return Ok(DatabaseAddress::Sqlite { options, in_memory });
    }
    Err(OpenError::Setting {
        setting,
        reason: "must begin with postgres:// or sqlite:".into(),
    })
}

/// The URL out of its file, if one is named, else the URL itself.
pub(super) async fn secret(
    setting: &'static str,
    url: &Secret,
    file: &SecretFile,
) -> Result<Secret, OpenError> {
    let Some(path) = file.path().map(ToOwned::to_owned) else {
        return Ok(url.clone());
    };
    let file = file.clone();
    let read = tokio::task::spawn_blocking(move || crate::config::read_secret(&file))
        .await
        .unwrap_or_else(|error| Err(std::io::Error::other(error)));
    match read {
        Ok(secret) => Ok(secret.unwrap_or_default()),
        Err(source) => Err(OpenError::File {
            setting,
            path,
            source,
        }),
    }
}

/// Opens both stores. Returns when the notification database has the schema; the policy tables are looked at with the first question.
///
/// A database that is unavailable, or that another instance migrates, is tried again with growing delay until `shutdown`; each failure is logged.
/// A PostgreSQL URL that comes out of a file is watched: new content opens a new pool, and the old one is closed when it is idle.
///
/// # Errors
/// A wrong setting, a file that cannot be read, missing migrations where `database.migrate` is off, or one that fails;
/// [`OpenError::Stopped`] at `shutdown`.
pub async fn open(
    database: &config::Database,
    policy: &config::Policy,
    shutdown: CancellationToken,
) -> Result<Stores, OpenError> {
    let mut stores = Tasks {
        tasks: Vec::new(),
        shutdown: shutdown.clone(),
    };
    // The watch begins before the content is read, so that it reports a change in between.
    let changes = stores.watch(&database.url_file);
    let (url, address) = reach(database, &shutdown).await?;
    let notifications_in = Database::new(&address, database);
    if let Some(changes) = changes {
        let check = database.clone();
        let follow = Follow {
            setting: "database.url_file",
            file: database.url_file.clone(),
            settings: database.clone(),
            check: Box::new(move |address| {
                let (address, check) = (address.clone(), check.clone());
                Box::pin(async move { prepare(&address, &check).await })
            }),
        };
        stores.follow(follow, url, notifications_in.clone(), changes);
    }

    let elsewhere = !policy.url.is_empty() || policy.url_file.path().is_some();
    let mut databases = vec![notifications_in.clone()];
    let policies_in = if elsewhere {
        let changes = stores.watch(&policy.url_file);
        let url = secret("policy.url_file", &policy.url, &policy.url_file).await?;
        let policies_in = Database::new(&parse_address("policy.url", &url)?, database);
        databases.push(policies_in.clone());
        if let Some(changes) = changes {
            let follow = Follow {
                setting: "policy.url_file",
                file: policy.url_file.clone(),
                settings: database.clone(),
                check: Box::new(|_| Box::pin(async { Ok(()) })),
            };
            stores.follow(follow, url, policies_in.clone(), changes);
        }
        policies_in
    } else {
        notifications_in.clone()
    };

    let (notifications, revocations): (Arc<dyn NotificationStore>, Arc<dyn RevocationStore>) =
        match notifications_in {
            Database::Postgres(postgres) => {
                let store = Arc::new(PostgresStore::new(postgres));
                (store.clone(), store)
            }
            Database::Sqlite(sqlite) => {
                let store = Arc::new(SqliteStore::new(sqlite));
                (store.clone(), store)
            }
        };
    Ok(Stores {
        notifications,
        revocations,
        policies: match policies_in {
            Database::Postgres(postgres) => Arc::new(PostgresPolicies::new(postgres, policy)),
            Database::Sqlite(sqlite) => Arc::new(SqlitePolicies::new(sqlite, policy)),
        },
        tasks: stores.tasks,
        databases,
    })
}

/// Looks at the platform's tables once, without touching the notification tables.
///
/// # Errors
/// A wrong setting, a file that cannot be read, a database that does not answer, or a table or column that is missing.
pub async fn survey_policies(
    database: &config::Database,
    policy: &config::Policy,
) -> Result<PolicySurvey, OpenError> {
    let elsewhere = !policy.url.is_empty() || policy.url_file.path().is_some();
    let address = if elsewhere {
        let url = secret("policy.url_file", &policy.url, &policy.url_file).await?;
        parse_address("policy.url", &url)?
    } else {
        let url = secret("database.url_file", &database.url, &database.url_file).await?;
        parse_address("database.url", &url)?
    };
    let opened = Database::new(&address, database);
    let policies: Box<dyn PolicyStore> = match opened.clone() {
        Database::Postgres(postgres) => Box::new(PostgresPolicies::new(postgres, policy)),
        Database::Sqlite(sqlite) => Box::new(SqlitePolicies::new(sqlite, policy)),
    };
    let survey = policies.survey().await;
    opened.close().await;
    survey.map_err(|error| match error {
        StoreError::Unavailable { source }
        | StoreError::TooMuch { source }
        | StoreError::Refused { source, .. } => OpenError::Unavailable(source),
    })
}

/// Tries until the notification database is there with its schema. The file is read again each time: the password in it may be the reason.
async fn reach(
    database: &config::Database,
    shutdown: &CancellationToken,
) -> Result<(Secret, DatabaseAddress), OpenError> {
    let mut backoff = Backoff::new(RETRY_FIRST);
    loop {
        let url = secret("database.url_file", &database.url, &database.url_file).await?;
        let address = parse_address("database.url", &url)?;
        let prepared = tokio::select! {
            prepared = prepare(&address, database) => prepared,
            () = shutdown.cancelled() => return Err(OpenError::Stopped),
        };
        let delay = backoff.next_delay();
        match prepared {
            Ok(()) => return Ok((url, address)),
            Err(error) if error.is_transient() => {
                tracing::warn!(%error, retry_ms = delay.as_millis() as u64, "the notification database cannot be opened; trying again");
            }
            Err(error) => return Err(error),
        }
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            () = shutdown.cancelled() => return Err(OpenError::Stopped),
        }
    }
}

type Check =
    Box<dyn Fn(&DatabaseAddress) -> BoxFuture<'static, Result<(), OpenError>> + Send + Sync>;

/// A database whose URL comes out of a watched file.
struct Follow {
    setting: &'static str,
    file: SecretFile,
    settings: config::Database,
    /// What must hold before a new address is used.
    check: Check,
}

struct Tasks {
    tasks: Vec<JoinHandle<()>>,
    shutdown: CancellationToken,
}

impl Tasks {
    fn watch(&self, file: &SecretFile) -> Option<Receiver<String>> {
        file.path()
            .map(|path| files::watch(path.to_owned(), files::INTERVAL, self.shutdown.clone()))
    }

    fn follow(
        &mut self,
        follow: Follow,
        url: Secret,
        database: Database,
        changes: Receiver<String>,
    ) {
        self.tasks.push(tokio::spawn(follow.run(
            url,
            database,
            changes,
            self.shutdown.clone(),
        )));
    }
}

impl Follow {
    /// Replaces the pool at every new URL that works. One that does not is tried again; the pool in use goes on meanwhile.
    async fn run(
        self,
        mut url: Secret,
        database: Database,
        mut changes: Receiver<String>,
        shutdown: CancellationToken,
    ) {
        loop {
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return shutdown.cancelled().await },
                () = shutdown.cancelled() => return,
            }
            let mut backoff = Backoff::new(RETRY_FIRST);
            loop {
                let again = tokio::select! {
                    again = self.again(&mut url, &database) => again,
                    () = shutdown.cancelled() => return,
                };
                let delay = backoff.next_delay();
                match again {
                    Ok(()) => break,
                    Err(error) => {
                        let retry_ms = delay.as_millis() as u64;
                        tracing::warn!(%error, setting = self.setting, retry_ms, "the changed database URL does not work; the current connections stay in use, trying again");
                    }
                }
                tokio::select! {
                    () = tokio::time::sleep(delay) => {}
                    () = shutdown.cancelled() => return,
                }
            }
        }
    }

    async fn again(&self, url: &mut Secret, database: &Database) -> Result<(), OpenError> {
        let new = secret(self.setting, &Secret::default(), &self.file).await?;
        if new.expose() == url.expose() {
            return Ok(());
        }
        match (database, parse_address(self.setting, &new)?) {
            (Database::Postgres(postgres), DatabaseAddress::Postgres(servers)) => {
                (self.check)(&DatabaseAddress::Postgres(servers.clone())).await?;
                let opened = Opened::new(servers, &self.settings);
                drop(opened.acquire().await?);
                postgres.replace(opened);
                tracing::info!(
                    setting = self.setting,
                    "connected to the database with its changed URL"
                );
            }
            _ => tracing::warn!(
                setting = self.setting,
                "the changed URL names another kind of database or another file; restart the gateway to use it"
            ),
        }
        *url = new;
        Ok(())
    }
}

//! Which server a URL means: its hosts in turn, whether one is a pooler, and whether it takes writes.
//!
//! Input: the URL, as libpq reads it (<https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING>): several hosts, and
//! `target_session_attrs`. Output: a connection to the first host that is fit, and how the next ones are made.

use std::str::FromStr;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions as _, Connection as _, Executor as _, Row as _};

/// A server that got this start-up option keeps what a session sets. A pooler refuses the option or leaves it out.
const MARK: (&str, &str) = ("signal.session", "kept");
/// What is asked of each new server.
const LOOK: &str = "SELECT coalesce(current_setting('signal.session', true), '') AS mark, current_setting('transaction_read_only') AS read_only,
    current_setting('fsync') AS fsync, current_setting('full_page_writes') AS full_page_writes";

/// The servers that a URL names.
#[derive(Clone)]
pub(in crate::store) struct Servers {
    hosts: Vec<PgConnectOptions>,
    writes: bool,
}

/// What a server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) struct Server {
    /// Index of its host in the URL.
    host: usize,
    /// Whether a pooler stands before it, which may give every transaction another session.
    pub(in crate::store) is_pooled: bool,
    /// Whether it forgets confirmed transactions when the machine fails.
    pub(in crate::store) is_volatile: bool,
}

/// Why a server that answers cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(in crate::store) enum Unfit {
    #[error("the server takes no writes: it is a standby, or default_transaction_read_only is on")]
    ReadOnly,
    #[error(
        "the URL leads to a pooler in statement mode, which cannot run a transaction: use pool_mode = transaction or session"
    )]
    StatementMode,
    #[error("a pooler stands before the server since the last connection")]
    Pooled,
}

impl From<Unfit> for sqlx::Error {
    fn from(unfit: Unfit) -> Self {
        Self::Configuration(unfit.into())
    }
}

impl Servers {
    /// Reads a URL. Errors never repeat it.
    pub(in crate::store) fn parse(url: &str) -> Result<Self, sqlx::Error> {
        let (mut writes, mut hosts) = (false, Vec::new());
        for url in signal_contract::one_url_per_host(url) {
            let mut url: url::Url = url.parse().map_err(config)?;
            let mut left = Vec::new();
            for (key, value) in url.query_pairs() {
                if key != "target_session_attrs" {
                    left.push((key.into_owned(), value.into_owned()));
                    continue;
                }
                writes = match &*value {
                    "any" => false,
                    "read-write" | "primary" => true,
                    _ => {
                        return Err(config(std::io::Error::other(
                            "target_session_attrs must be any, read-write or primary",
                        )));
                    }
                };
            }
            url.set_query(None);
            if !left.is_empty() {
                url.query_pairs_mut().extend_pairs(left);
            }
            hosts.push(
                PgConnectOptions::from_str(url.as_str())?
                    .extra_float_digits(None)
                    .application_name("signal-gateway"),
            );
        }
        Ok(Self { hosts, writes })
    }

    /// The same servers, of which only one that takes writes is fit.
    pub(in crate::store) fn for_writes(self) -> Self {
        Self {
            writes: true,
            ..self
        }
    }

    pub(in crate::store) fn take_writes(&self) -> bool {
        self.writes
    }

    pub(in crate::store) fn are_several(&self) -> bool {
        self.hosts.len() > 1
    }

    /// How connections to this server are made.
    pub(in crate::store) fn options(&self, server: Option<Server>) -> PgConnectOptions {
        let host = &self.hosts[server.map_or(0, |server| server.host)];
        match server {
            Some(server) if !server.is_pooled => host.clone().options([MARK]),
            _ => host.clone(),
        }
    }

    /// Tries the hosts in turn, each for a share of `limit`, and returns the first that is fit; else the error of the last.
    pub(in crate::store) async fn connect(
        &self,
        limit: Duration,
    ) -> Result<(PgConnection, Server), sqlx::Error> {
        let each = limit / self.hosts.len().max(1) as u32;
        let mut failure = sqlx::Error::PoolTimedOut;
        for host in 0..self.hosts.len() {
            match tokio::time::timeout(each, self.connect_to(host)).await {
                Ok(Ok(found)) => return Ok(found),
                // A standby says less than a server that is away: it was not asked for.
                Ok(Err(error)) if unfit(&error) == Some(Unfit::ReadOnly) && host > 0 => {}
                Ok(Err(error)) => failure = error,
                Err(_) => failure = sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()),
            }
        }
        Err(failure)
    }

    async fn connect_to(&self, host: usize) -> Result<(PgConnection, Server), sqlx::Error> {
        let options = &self.hosts[host];
        let (mut connection, mut is_pooled) = match options.clone().options([MARK]).connect().await
        {
            Err(error) if may_refuse_option(&error) => (options.connect().await?, true),
            other => (other?, false),
        };
        let row = connection.fetch_one(LOOK).await?;
        let text = |column| row.try_get::<String, _>(column);
        is_pooled |= text("mark")? != MARK.1;
        if self.writes && text("read_only")? == "on" {
            return Err(Unfit::ReadOnly.into());
        }
        if is_pooled {
            let begun = connection.execute("BEGIN").await;
            if begun.as_ref().is_err_and(refuses_transactions) {
                return Err(Unfit::StatementMode.into());
            }
            begun?;
            connection.execute("ROLLBACK").await?;
        }
        let server = Server {
            host,
            is_pooled,
            is_volatile: text("fsync")? == "off" || text("full_page_writes")? == "off",
        };
        Ok((connection, server))
    }

    /// Looks which host is fit, without keeping the connection.
    pub(in crate::store) async fn find(&self, limit: Duration) -> Result<Server, sqlx::Error> {
        let (connection, server) = self.connect(limit).await?;
        let _ = connection.close().await;
        Ok(server)
    }
}

/// What was found to be wrong with a server that answered.
pub(in crate::store) fn unfit(error: &sqlx::Error) -> Option<Unfit> {
    match error {
        sqlx::Error::Configuration(source) => source.downcast_ref().copied(),
        _ => None,
    }
}

fn config(error: impl std::error::Error + Send + Sync + 'static) -> sqlx::Error {
    sqlx::Error::Configuration(error.into())
}

/// PgBouncer says "unsupported startup parameter: options", and since 1.20 "unsupported startup parameter in options: signal.session"; others say it in
/// their words. The login (28), the database (3D), connections (53) and the server's state (57) have codes of their own.
fn may_refuse_option(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| !matches!(code.get(..2), Some("28" | "3D" | "53" | "57")))
}

/// PgBouncer: "transaction blocks not allowed in statement pooling mode".
fn refuses_transactions(error: &sqlx::Error) -> bool {
    error
        .as_database_error()
        .is_some_and(|error| error.message().contains("statement pooling"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_may_name_several_hosts_as_libpq_reads_it() {
        let parsed = Servers::parse(
            "postgres://u:p%2Cw@one:5001,two,[::1]:5003/signal?target_session_attrs=read-write&sslmode=disable",
        )
        .unwrap();
        let hosts: Vec<(&str, u16)> = parsed
            .hosts
            .iter()
            .map(|host| (host.get_host(), host.get_port()))
            .collect();
        assert_eq!(hosts, [("one", 5001), ("two", 5432), ("[::1]", 5003)]);
        assert!(parsed.writes);
        for host in &parsed.hosts {
            assert_eq!(host.get_username(), "u");
            assert_eq!(host.get_database(), Some("signal"));
            assert_eq!(host.get_options(), None);
        }
        assert!(!Servers::parse("postgres://one/x").unwrap().writes);
        assert!(
            Servers::parse("postgres://one/x")
                .unwrap()
                .for_writes()
                .writes
        );
        assert!(Servers::parse("postgres://one/x?target_session_attrs=standby").is_err());
        assert!(Servers::parse("postgres://one:x,two/x").is_err());
    }
}

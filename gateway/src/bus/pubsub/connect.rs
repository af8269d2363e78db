//! Connections to whatever `redis.mode` names: one server, the master that sentinels name, a node of a cluster.
//!
//! Passwords and certificates are read from their files at every connection, so a changed one is used by the next. In a cluster any node hands a message of classic
//! Pub/Sub to all others, so one node is enough to publish and to subscribe; keys need the cluster's routing, and a segment the master of its slot.

use std::path::PathBuf;
use std::time::Duration;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster::{ClusterClientBuilder, ClusterConfig};
use redis::cluster_async::ClusterConnection;
use redis::io::tcp::TcpSettings;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, FromRedisValue,
    IntoConnectionInfo, ProtocolVersion, RedisConnectionInfo, RedisError, RedisResult, TlsMode,
    Value,
};
use tokio::net::TcpStream;

use super::nodes::{self, Address, Prefer, holds_slot, master_of, ordered};
use super::subscription::{Session, Stream};
use super::tls::Tls;
use crate::bus::BusError;
use crate::config::{self, RedisMode, SecretFile};

/// A connection to one node.
pub(super) struct Link {
    pub(super) connection: MultiplexedConnection,
    pub(super) address: Address,
}

/// What key commands go through.
#[derive(Clone)]
pub(super) enum Keys {
    /// A server that holds all keys.
    Node(MultiplexedConnection),
    /// A connection that finds the node of each key.
    Cluster(ClusterConnection),
}

impl Keys {
    /// Runs one command.
    pub(super) async fn query<T: FromRedisValue>(&mut self, cmd: &Cmd) -> RedisResult<T> {
        match self {
            Self::Node(connection) => run(connection, cmd).await,
            Self::Cluster(connection) => run(connection, cmd).await,
        }
    }
}

async fn run<T: FromRedisValue>(
    connection: &mut (impl ConnectionLike + Send),
    cmd: &Cmd,
) -> RedisResult<T> {
    cmd.query_async(connection).await
}

/// Makes connections.
pub(super) struct Connector {
    mode: RedisMode,
    nodes: Vec<Address>,
    master: String,
    database: i64,
    username: String,
    username_file: SecretFile,
    password: SecretFile,
    sentinel_password: SecretFile,
    tls: Option<Tls>,
    timeout: Duration,
}

impl Connector {
    /// Reads the settings; nothing is connected yet.
    pub(super) fn new(config: &config::Redis) -> Result<Self, BusError> {
        let nodes = config
            .nodes
            .iter()
            .map(|node| nodes::parse(node))
            .collect::<Result<Vec<_>, _>>()?;
        if nodes.is_empty() {
            return Err(BusError::Misconfigured(
                "redis.nodes names no host:port".into(),
            ));
        }
        Ok(Self {
            mode: config.mode,
            nodes,
            master: config.sentinel.master_name.clone(),
            database: if config.mode == RedisMode::Cluster {
                0
            } else {
                config.database
            },
            username: config.auth.username.clone(),
            username_file: config.auth.username_file.clone(),
            password: config.auth.password_file.clone(),
            sentinel_password: config.sentinel.password_file.clone(),
            tls: Tls::new(&config.tls)?,
            timeout: Duration::from_millis(config.command_timeout_ms.max(1)),
        })
    }

    /// The user as its file is now.
    fn username(&self) -> std::io::Result<String> {
        config::read_username(&self.username, &self.username_file)
    }

    /// Which kind of Redis.
    pub(super) fn mode(&self) -> RedisMode {
        self.mode
    }

    /// `host:port` of each, as configured but for IPv6 hosts, which are in brackets.
    pub(super) fn nodes(&self) -> Vec<String> {
        self.nodes.iter().map(nodes::format).collect()
    }

    /// The files whose change asks for new connections: what this gateway shows of itself.
    pub(super) fn login_files(&self) -> Vec<PathBuf> {
        let login = [self.username_file.path(), self.password.path()];
        let identity = self.tls.iter().flat_map(Tls::identity_files);
        let files = login.into_iter().flatten().chain(identity);
        files.map(ToOwned::to_owned).collect()
    }

    /// How long one answer may take.
    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Whether `PUBLISH` returns the number of all receivers.
    pub(super) fn counts_all_receivers(&self) -> bool {
        self.mode != RedisMode::Cluster
    }

    /// Connects to a node for publishing and for keys.
    pub(super) async fn link(&self, prefer: &Prefer) -> RedisResult<Link> {
        let (connection, address) = self.find(prefer).await?;
        Ok(Link {
            connection,
            address,
        })
    }

    /// Connects to a node for subscribing.
    pub(super) async fn session(&self, prefer: &Prefer) -> RedisResult<(Session, Address)> {
        self.find(prefer).await
    }

    async fn find<C: Connection>(&self, prefer: &Prefer) -> RedisResult<(C, Address)> {
        // Names, sentinels and clusters take several steps: the whole has a limit, not each of them alone.
        match tokio::time::timeout(3 * self.timeout, self.find_unlimited(prefer)).await {
            Ok(found) => found,
            Err(_) => Err(failed("connecting took too long")),
        }
    }

    async fn find_unlimited<C: Connection>(&self, prefer: &Prefer) -> RedisResult<(C, Address)> {
        let mut last = failed("no node is known");
        let mut unfit = None;
        for address in self.candidates(prefer).await? {
            match C::open(self, &address).await {
                Ok(mut connection) => match self.is_fit(&mut connection).await {
                    Ok(()) => return Ok((connection, address)),
                    Err(error) => {
                        last = error;
                        unfit = unfit.or(Some((connection, address)));
                    }
                },
                Err(error) => last = error,
            }
        }
        match unfit {
            // A cluster that lacks slots still hands messages from node to node.
            Some(found) if self.mode == RedisMode::Cluster => Ok(found),
            _ => Err(last),
        }
    }

    /// The nodes to try, in order.
    async fn candidates(&self, prefer: &Prefer) -> RedisResult<Vec<Address>> {
        let nodes = match self.mode {
            RedisMode::Sentinel => vec![self.ask_sentinels().await?],
            RedisMode::Cluster => self.cluster_nodes(prefer).await?,
            _ => self.nodes.clone(),
        };
        Ok(ordered(nodes, prefer))
    }

    /// Returns what key commands go through: `link` itself where one node holds all keys. A cluster is connected to in the background, so that publishing
    /// does not wait for a node that only keys need.
    pub(super) fn keys(&self, link: &Link) -> RedisResult<Keys> {
        if self.mode != RedisMode::Cluster {
            return Ok(Keys::Node(link.connection.clone()));
        }
        let nodes: Vec<ConnectionInfo> = std::iter::once(&link.address)
            .chain(&self.nodes)
            .map(|address| self.info(address, "", None, 0))
            .collect::<RedisResult<_>>()?;
        let mut builder = ClusterClientBuilder::new(nodes)
            .connection_timeout(self.timeout)
            .response_timeout(self.timeout)
            .retries(3)
            .tcp_settings(TcpSettings::default().set_nodelay(true));
        let password = config::read_secret(&self.password)?;
        let username = self.username()?;
        if password.is_some() || !username.is_empty() {
            builder = builder.password(password.as_ref().map_or("", config::Secret::expose));
        }
        if !username.is_empty() {
            builder = builder.username(&username);
        }
        if let Some(tls) = &self.tls {
            builder = builder.tls(TlsMode::Secure).certs(tls.certificates()?);
        }
        Ok(Keys::Cluster(
            builder
                .build()?
                .get_pending_async_connection_with_config(ClusterConfig::new()),
        ))
    }

    /// Refuses a replica that was a master, and a node that has lost its cluster while there is another: both take what is published and do not pass it
    /// on.
    async fn is_fit(&self, connection: &mut impl Connection) -> RedisResult<()> {
        match self.mode {
            RedisMode::Sentinel => {
                let role = connection.ask(&redis::cmd("ROLE")).await?;
                let role = redis::from_redis_value::<Vec<Value>>(role)?
                    .into_iter()
                    .next()
                    .map(redis::from_redis_value::<String>)
                    .transpose()?;
                (role.as_deref() == Some("master"))
                    .then_some(())
                    .ok_or_else(|| failed("the sentinels name a server that is not master"))
            }
            RedisMode::Cluster => {
                let info = connection.ask(redis::cmd("CLUSTER").arg("INFO")).await?;
                redis::from_redis_value::<String>(info)?
                    .contains("cluster_state:ok")
                    .then_some(())
                    .ok_or_else(|| failed("the node reports that its cluster is not ok"))
            }
            _ => Ok(()),
        }
    }

    async fn ask_sentinels(&self) -> RedisResult<Address> {
        let mut last = failed("no sentinel is known");
        for sentinel in &self.nodes {
            let answer: RedisResult<Option<(String, u16)>> = async {
                let mut connection = self
                    .connect(sentinel, "", &self.sentinel_password, 0)
                    .await?;
                redis::cmd("SENTINEL")
                    .arg("GET-MASTER-ADDR-BY-NAME")
                    .arg(&self.master)
                    .query_async(&mut connection)
                    .await
            }
            .await;
            match answer {
                Ok(Some(master)) => return Ok(master),
                Ok(None) => last = failed("the sentinels know no master of that name"),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Returns the masters of the cluster, or the one that has the slot, as the first node that answers reports them.
    async fn cluster_nodes(&self, prefer: &Prefer) -> RedisResult<Vec<Address>> {
        let mut last = failed("no node is known");
        for seed in &self.nodes {
            let slots: RedisResult<Vec<Value>> = async {
                let mut connection = self
                    .connect(seed, &self.username()?, &self.password, 0)
                    .await?;
                redis::cmd("CLUSTER")
                    .arg("SLOTS")
                    .query_async(&mut connection)
                    .await
            }
            .await;
            match slots {
                Ok(slots) => {
                    let is_meant = |range: &&Value| match prefer {
                        Prefer::Owner(slot) => holds_slot(range, *slot),
                        _ => true,
                    };
                    let mut nodes: Vec<Address> = slots
                        .iter()
                        .filter(is_meant)
                        .filter_map(|range| master_of(range, &seed.0))
                        .collect();
                    nodes.sort();
                    nodes.dedup();
                    if nodes.is_empty() {
                        if let Prefer::Owner(_) = prefer {
                            return Err(failed("no node has the slot of a segment"));
                        }
                        nodes.push(seed.clone());
                    }
                    return Ok(nodes);
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn client(&self, address: &Address) -> RedisResult<MultiplexedConnection> {
        let username = self.username()?;
        self.connect(address, &username, &self.password, self.database)
            .await
    }

    /// Pub/Sub knows no database.
    async fn log_in(&self, address: &Address) -> RedisResult<Session> {
        let username = self.username()?;
        let password = config::read_secret(&self.password)?;
        let stream = tokio::time::timeout(self.timeout, self.stream(address)).await;
        let stream = stream.map_err(|_| failed("connecting took too long"))??;
        let password = password.as_ref().map(config::Secret::expose);
        Session::log_in(stream, &username, password, self.timeout).await
    }

    async fn stream(&self, (host, port): &Address) -> std::io::Result<Box<dyn Stream>> {
        let addresses = tokio::net::lookup_host((host.as_str(), *port)).await?;
        let connecting: Vec<_> = addresses
            .map(|to| Box::pin(TcpStream::connect(to)))
            .collect();
        if connecting.is_empty() {
            return Err(std::io::Error::other("the name has no address"));
        }
        let (stream, _) = futures_util::future::select_ok(connecting).await?;
        stream.set_nodelay(true)?;
        Ok(match &self.tls {
            Some(tls) => Box::new(tls.connect(host, stream).await?),
            None => Box::new(stream),
        })
    }

    async fn connect(
        &self,
        address: &Address,
        username: &str,
        password: &SecretFile,
        database: i64,
    ) -> RedisResult<MultiplexedConnection> {
        let password = config::read_secret(password)?;
        let info = self.info(
            address,
            username,
            password.as_ref().map(config::Secret::expose),
            database,
        )?;
        let client = match &self.tls {
            Some(tls) => Client::build_with_tls(info, tls.certificates()?)?,
            None => Client::open(info)?,
        };
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.timeout))
            .set_response_timeout(Some(self.timeout));
        client
            .get_multiplexed_async_connection_with_config(&config)
            .await
    }

    fn info(
        &self,
        (host, port): &Address,
        username: &str,
        password: Option<&str>,
        database: i64,
    ) -> RedisResult<ConnectionInfo> {
        let (host, port) = (host.clone(), *port);
        let address = if self.tls.is_some() {
            ConnectionAddr::TcpTls {
                host,
                port,
                insecure: false,
                tls_params: None,
            }
        } else {
            ConnectionAddr::Tcp(host, port)
        };
        let mut settings = RedisConnectionInfo::default()
            .set_protocol(ProtocolVersion::RESP3)
            .set_db(database)
            .set_skip_set_lib_name();
        // A user without a password takes any, and logs in only with one.
        if password.is_some() || !username.is_empty() {
            settings = settings.set_password(password.unwrap_or_default());
        }
        if !username.is_empty() {
            settings = settings.set_username(username);
        }
        Ok(address
            .into_connection_info()?
            .set_redis_settings(settings)
            .set_tcp_settings(TcpSettings::default().set_nodelay(true)))
    }
}

/// What a connection is made for.
trait Connection: Sized + Send {
    fn open(
        connector: &Connector,
        address: &Address,
    ) -> impl Future<Output = RedisResult<Self>> + Send;

    /// Runs one command.
    fn ask(&mut self, command: &Cmd) -> impl Future<Output = RedisResult<Value>> + Send;
}

impl Connection for MultiplexedConnection {
    async fn open(connector: &Connector, address: &Address) -> RedisResult<Self> {
        connector.client(address).await
    }

    async fn ask(&mut self, command: &Cmd) -> RedisResult<Value> {
        command.query_async(self).await
    }
}

impl Connection for Session {
    async fn open(connector: &Connector, address: &Address) -> RedisResult<Self> {
        connector.log_in(address).await
    }

    async fn ask(&mut self, command: &Cmd) -> RedisResult<Value> {
        self.query(command).await
    }
}

pub(super) fn failed(text: &'static str) -> RedisError {
    RedisError::from((ErrorKind::Client, text))
}

/// Returns the error for the rest of the gateway. It keeps the message of the server, which names what is denied and never holds a password.
pub(super) fn unavailable(error: &RedisError) -> BusError {
    BusError::Unavailable(error.to_string())
}

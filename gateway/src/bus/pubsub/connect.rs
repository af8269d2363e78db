//! Connections to whatever `redis.mode` names: one server, the master that sentinels name, a node of a cluster.
//!
//! Passwords and certificates are read from their files at every connection, so a changed one is used by the next. In a cluster any node hands a message of classic
//! Pub/Sub to all others, so one node is enough to publish and to subscribe; keys need the cluster's routing, and a segment the master of its slot.

use std::path::PathBuf;
use std::time::Duration;

use redis::aio::{AsyncPushSender, ConnectionLike, MultiplexedConnection};
use redis::cluster::{ClusterClientBuilder, ClusterConfig};
use redis::cluster_async::ClusterConnection;
use redis::io::tcp::TcpSettings;
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind,
    FromRedisValue, IntoConnectionInfo, ProtocolVersion, RedisConnectionInfo, RedisError,
    RedisResult, TlsCertificates, TlsMode, Value,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::nodes::{self, Address, Prefer, holds_slot, master_of, ordered};
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
    tls: bool,
    ca_file: Option<PathBuf>,
    /// The certificate that the server asks for, and its key.
    identity: Option<(PathBuf, SecretFile)>,
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
        let ca_file =
            (!config.tls.ca_file.as_os_str().is_empty()).then(|| config.tls.ca_file.clone());
        let connector = Self {
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
            tls: config.tls.enabled,
            ca_file,
            identity: config.tls.key_file.path().map(|_| {
                let tls = &config.tls;
                (tls.certificate_file.clone(), tls.key_file.clone())
            }),
            timeout: Duration::from_millis(config.command_timeout_ms.max(1)),
        };
        connector.check_authorities()?;
        connector.check_identity()?;
        Ok(connector)
    }

    /// The user as its file is now.
    fn username(&self) -> std::io::Result<String> {
        config::read_username(&self.username, &self.username_file)
    }

    /// The same for the certificate that the server asks for, and its key.
    fn check_identity(&self) -> Result<(), BusError> {
        let Some((path, _)) = self.identity.as_ref().filter(|_| self.tls) else {
            return Ok(());
        };
        let wrong = |text: &str| {
            let path = path.display();
            BusError::Misconfigured(format!(
                "redis.tls.certificate_file {path} with redis.tls.key_file: {text}"
            ))
        };
        let identity = self.identity().map_err(|error| wrong(&error.to_string()))?;
        let Some(ClientTlsConfig {
            client_cert,
            client_key,
        }) = identity
        else {
            return Ok(());
        };
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&client_cert)
            .collect::<Result<_, _>>()
            .map_err(|_| wrong("the certificate is not PEM"))?;
        let key = PrivateKeyDer::from_pem_slice(&client_key)
            .map_err(|_| wrong("the key is not a PEM private key"))?;
        let provider = rustls::crypto::ring::default_provider();
        CertifiedKey::from_der(chain, key, &provider)
            .map(drop)
            .map_err(|error| wrong(&error.to_string()))
    }

    /// Reads the file of authorities once, so that one that cannot work is refused at the start.
    fn check_authorities(&self) -> Result<(), BusError> {
        let (true, Some(path)) = (self.tls, &self.ca_file) else {
            return Ok(());
        };
        let wrong = |text: String| {
            BusError::Misconfigured(format!("redis.tls.ca_file {}: {text}", path.display()))
        };
        let pem = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
        let nowhere = ConnectionAddr::TcpTls {
            host: "localhost".into(),
            port: 1,
            insecure: false,
            tls_params: None,
        };
        if !pem.windows(27).any(|w| w == b"-----BEGIN CERTIFICATE-----") {
            return Err(wrong("it holds no PEM certificate".into()));
        }
        let authorities = TlsCertificates {
            client_tls: None,
            root_cert: Some(pem),
        };
        Client::build_with_tls(
            nowhere
                .into_connection_info()
                .map_err(|e| wrong(e.to_string()))?,
            authorities,
        )
        .map_err(|error| wrong(error.to_string()))?;
        Ok(())
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
        let identity = self.identity.as_ref().filter(|_| self.tls);
        let identity = identity.map(|(certificate, key)| [Some(certificate.as_path()), key.path()]);
        let login = [self.username_file.path(), self.password.path()];
        let files = login.into_iter().chain(identity.into_iter().flatten());
        files.flatten().map(ToOwned::to_owned).collect()
    }

    /// How long one answer may take.
    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Whether `PUBLISH` returns the number of all receivers.
    pub(super) fn counts_all_receivers(&self) -> bool {
        self.mode != RedisMode::Cluster
    }

    /// Connects to a node for publishing or subscribing. `push` is called with what is received.
    pub(super) async fn link(
        &self,
        prefer: &Prefer,
        push: Option<impl AsyncPushSender>,
    ) -> RedisResult<Link> {
        // Names, sentinels and clusters take several steps: the whole has a limit, not each of them alone.
        match tokio::time::timeout(3 * self.timeout, self.link_unlimited(prefer, push)).await {
            Ok(link) => link,
            Err(_) => Err(failed("connecting took too long")),
        }
    }

    async fn link_unlimited(
        &self,
        prefer: &Prefer,
        push: Option<impl AsyncPushSender>,
    ) -> RedisResult<Link> {
        let candidates = match self.mode {
            RedisMode::Sentinel => vec![self.ask_sentinels().await?],
            RedisMode::Cluster => self.cluster_nodes(prefer).await?,
            _ => self.nodes.clone(),
        };
        let push = push.map(std::sync::Arc::new);
        let username = self.username()?;
        let mut last = failed("no node is known");
        let mut unfit = None;
        for address in ordered(candidates, prefer) {
            let mut config = self.async_config();
            if let Some(push) = &push {
                config = config.set_push_sender(push.clone());
            }
            match self
                .connect(&address, &username, &self.password, self.database, config)
                .await
            {
                Ok(mut connection) => match self.is_fit(&mut connection).await {
                    Ok(()) => {
                        return Ok(Link {
                            connection,
                            address,
                        });
                    }
                    Err(error) => {
                        last = error;
                        unfit = unfit.or(Some(Link {
                            connection,
                            address,
                        }));
                    }
                },
                Err(error) => last = error,
            }
        }
        match unfit {
            // A cluster that lacks slots still hands messages from node to node.
            Some(link) if self.mode == RedisMode::Cluster => Ok(link),
            _ => Err(last),
        }
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
        if self.tls {
            builder = builder.tls(TlsMode::Secure).certs(self.certificates()?);
        }
        Ok(Keys::Cluster(
            builder
                .build()?
                .get_pending_async_connection_with_config(ClusterConfig::new()),
        ))
    }

    /// Refuses a replica that was a master, and a node that has lost its cluster while there is another: both take what is published and do not pass it
    /// on.
    async fn is_fit(&self, connection: &mut MultiplexedConnection) -> RedisResult<()> {
        match self.mode {
            RedisMode::Sentinel => {
                let role: Vec<Value> = redis::cmd("ROLE").query_async(connection).await?;
                let role = role
                    .into_iter()
                    .next()
                    .map(redis::from_redis_value::<String>)
                    .transpose()?;
                (role.as_deref() == Some("master"))
                    .then_some(())
                    .ok_or_else(|| failed("the sentinels name a server that is not master"))
            }
            RedisMode::Cluster => {
                let info: String = redis::cmd("CLUSTER")
                    .arg("INFO")
                    .query_async(connection)
                    .await?;
                info.contains("cluster_state:ok")
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
                    .connect(
                        sentinel,
                        "",
                        &self.sentinel_password,
                        0,
                        self.async_config(),
                    )
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
                    .connect(
                        seed,
                        &self.username()?,
                        &self.password,
                        0,
                        self.async_config(),
                    )
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

    async fn connect(
        &self,
        address: &Address,
        username: &str,
        password: &SecretFile,
        database: i64,
        config: AsyncConnectionConfig,
    ) -> RedisResult<MultiplexedConnection> {
        let password = config::read_secret(password)?;
        let info = self.info(
            address,
            username,
            password.as_ref().map(config::Secret::expose),
            database,
        )?;
        let client = if self.tls {
            Client::build_with_tls(info, self.certificates()?)?
        } else {
            Client::open(info)?
        };
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
        let address = if self.tls {
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

    fn async_config(&self) -> AsyncConnectionConfig {
        AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.timeout))
            .set_response_timeout(Some(self.timeout))
    }

    /// The authorities and the certificate, as their files are now.
    fn certificates(&self) -> RedisResult<TlsCertificates> {
        Ok(TlsCertificates {
            client_tls: self.identity()?,
            root_cert: self.ca_file.as_ref().map(std::fs::read).transpose()?,
        })
    }

    fn identity(&self) -> std::io::Result<Option<ClientTlsConfig>> {
        let Some((certificate, key)) = &self.identity else {
            return Ok(None);
        };
        let key = config::read_secret(key)?.unwrap_or_default();
        Ok(Some(ClientTlsConfig {
            client_cert: std::fs::read(certificate)?,
            client_key: key.expose().into(),
        }))
    }
}

fn failed(text: &'static str) -> RedisError {
    RedisError::from((ErrorKind::Client, text))
}

/// Returns the error for the rest of the gateway. It keeps the message of the server, which names what is denied and never holds a password.
pub(super) fn unavailable(error: &RedisError) -> BusError {
    BusError::Unavailable(error.to_string())
}

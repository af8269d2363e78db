//! Dev mode: the gateway of production with everything it needs embedded, for one person at a terminal.
//!
//! Input: ports and a folder. Output: a running gateway on SQLite and without Redis, a broker that any producer can reach, an issuer whose keys the
//! gateway fetches over HTTP, a few merchants and users, a page to try it, and a printed sheet of commands to paste. [`crate::app`] starts the gateway with settings from
//! a file, as in production; the gateway does not know of dev mode.
//!
//! The folder survives a restart with inboxes, policies and keys. Records do not, because the broker keeps nothing. Their identity contains the time of
//! production, so the records of the next run are new although their offsets start at 0 again.

mod broker;
mod folder;
mod forward;
mod issuer;
mod playground;
mod print_events;
mod produce;
mod settings;
mod sheet;
mod versions;

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Subcommand};

use crate::activity::Catalogs;
use crate::app::{self, Sockets};
use crate::clock::{Clock, SystemClock};
use crate::config::Config;
use crate::lifecycle::Lifecycle;
use crate::store::platform::{self, Platform, PolicyDefinition};
use crate::telemetry::Telemetry;
use broker::Broker;
use folder::{Addresses, Folder};
use issuer::{Issuer, TOKEN_LIFE};
use playground::Playground;
use settings::ListenAddresses;

/// Partitions of every topic: enough to see that order is kept within one.
const PARTITIONS: i32 = 4;
/// How often readiness is checked.
const READY_INTERVAL: Duration = Duration::from_millis(20);
/// Name of the file that marks the platform's tables as filled, so that rows that are deleted later stay deleted.
const SEEDED: &str = "platform.seeded";
/// The file with the key of the playground.
const PLAYGROUND_KEY: &str = "playground.key";
/// The users that tokens are printed for.
const USERS: [&str; 2] = ["17", "18"];
/// The user who may manage connections.
const ADMIN: &str = "1";
/// Which users each merchant and organizer has.
const MEMBERS: [(&str, &[&str]); 3] = [
    ("Merchant_42", &["17", "18"]),
    ("Merchant_43", &["18"]),
    ("Organizer_7", &["17"]),
];

/// `signal-gateway dev`
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Arguments {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    command: Option<Command>,
}

/// Options of dev mode: where it listens and keeps its state.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    folder: DataFolder,
    /// Where /stream and REST listen
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    public: SocketAddr,
    /// Where probes, metrics and drain listen
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9090")]
    admin: SocketAddr,
    /// Port of the embedded broker on 127.0.0.1; 0 for any, as in the other options
    #[arg(long, value_name = "PORT", default_value_t = 9092)]
    kafka_port: u16,
    /// Port of the development issuer's key set on 127.0.0.1
    #[arg(long, value_name = "PORT", default_value_t = 8090)]
    issuer_port: u16,
    /// Allow --public and --admin to be reached from other machines. The tokens of dev mode allow everything
    #[arg(long)]
    allow_non_loopback: bool,
}

/// The folder of dev mode.
#[derive(Debug, Args)]
pub struct DataFolder {
    /// Folder for inboxes, policies, keys and tokens; kept across restarts
    #[arg(long, value_name = "DIR", default_value = ".signal-dev")]
    data_dir: PathBuf,
}

/// Commands that work with a running dev mode.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Connect as a user, encrypted, and print every event that arrives
    Watch {
        /// The folder of the running dev mode.
        #[command(flatten)]
        folder: DataFolder,
        /// Whose notifications to watch
        #[arg(long, value_name = "ID", default_value = USERS[0])]
        user: String,
    },
    /// Produce an activity record to the embedded broker
    Produce {
        /// The folder of the running dev mode.
        #[command(flatten)]
        folder: DataFolder,
        /// The record to produce.
        #[command(flatten)]
        record: produce::Record,
    },
    /// Print a token of any user, valid for 12 hours
    Token {
        /// The folder of the running dev mode.
        #[command(flatten)]
        folder: DataFolder,
        /// The user of the token
        #[arg(long, value_name = "ID", default_value = USERS[0])]
        user: String,
    },
}

impl Arguments {
    /// Returns the options of dev mode, or the command to run.
    pub fn split(self) -> Result<Options, Command> {
        self.command.map_or(Ok(self.options), Err)
    }
}

impl Command {
    /// Runs the command to its end; blocks.
    ///
    /// # Errors
    /// No dev mode runs in the folder, or it refuses.
    pub fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Watch { folder, user } => {
                let folder = Folder::open(&folder.data_dir)?;
                let issuer = Issuer::open(&folder)?;
                print_events::print_events(&folder.addresses()?.stream, &user, || {
                    issuer.token(&user, SystemClock.now(), TOKEN_LIFE)
                })
            }
            Self::Produce { folder, record } => {
                let addresses = Folder::open(&folder.data_dir)?.addresses()?;
                produce::produce(&addresses.kafka, &addresses.topic, &record)
            }
            Self::Token { folder, user } => {
                let token = Issuer::open(&Folder::open(&folder.data_dir)?)?.token(
                    &user,
                    SystemClock.now(),
                    TOKEN_LIFE,
                )?;
                Ok(writeln!(std::io::stdout(), "{token}")?)
            }
        }
    }
}

/// Dev mode before its runtime starts: bound listeners, settings, keys.
pub struct Prepared {
    config: Config,
    folder: Folder,
    issuer: Issuer,
    listeners: Listeners,
    addresses: Addresses,
    playground_key: String,
    typed_folder: PathBuf,
}

struct Listeners {
    public: TcpListener,
    admin: TcpListener,
    kafka: TcpListener,
    issuer: TcpListener,
}

impl Options {
    /// Binds the listeners, and writes missing files into the folder.
    ///
    /// # Errors
    /// An address that is neither loopback nor allowed, or cannot be bound; a folder that cannot be used; wrong settings.
    pub fn prepare(
        self,
        environment: impl Iterator<Item = (String, String)>,
    ) -> anyhow::Result<Prepared> {
        for (name, address) in [("--public", self.public), ("--admin", self.admin)] {
            anyhow::ensure!(
                self.allow_non_loopback || address.ip().is_loopback(),
                "{name} {address} can be reached from other machines, and the tokens of dev mode allow everything; \
                 add --allow-non-loopback to allow it"
            );
        }
        let folder = Folder::take(&self.folder.data_dir)?;
        let listeners = Listeners {
            public: bind("--public", self.public)?,
            admin: bind("--admin", self.admin)?,
            kafka: bind("--kafka-port", broker::address(self.kafka_port))?,
            issuer: bind("--issuer-port", broker::address(self.issuer_port))?,
        };
        let listening = ListenAddresses {
            public: listeners.public.local_addr()?,
            admin: listeners.admin.local_addr()?,
            kafka: listeners.kafka.local_addr()?,
            issuer: listeners.issuer.local_addr()?,
        };
        let issuer = Issuer::open(&folder)?;
        folder.secret(settings::ADMIN_TOKEN_FILE, random_text)?;
        let playground_key = String::from_utf8(folder.secret(PLAYGROUND_KEY, random_text)?)?;
        let config = settings::prepare(&folder, listening, environment)?;
        let addresses = Addresses {
            stream: format!("ws://{}/stream", reachable(listening.public)),
            playground: format!("http://{}/#{playground_key}", reachable(listening.public)),
            rest: format!("http://{}", reachable(listening.public)),
            admin: format!("http://{}", reachable(listening.admin)),
            kafka: listening.kafka.to_string(),
            topic: config.kafka.topics.first().cloned().unwrap_or_default(),
            certs: settings::certs(listening.issuer),
        };
        Ok(Prepared {
            config,
            folder,
            issuer,
            listeners,
            addresses,
            playground_key,
            typed_folder: self.folder.data_dir,
        })
    }
}

/// Makes a secret that a person can paste.
fn random_text() -> anyhow::Result<Vec<u8>> {
    use ring::rand::SecureRandom as _;
    let mut bytes = [0; 24];
    ring::rand::SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| anyhow::anyhow!("the system cannot provide randomness"))?;
    Ok(base64_simd::URL_SAFE_NO_PAD
        .encode_to_string(bytes)
        .into_bytes())
}

fn bind(argument: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind(address)
        .with_context(|| format!("{argument}: cannot bind {address}; choose another"))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Returns an address to connect to: loopback for an address that stands for all interfaces.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() {
            [127, 0, 0, 1].into()
        } else {
            std::net::Ipv6Addr::LOCALHOST.into()
        });
    }
    address
}

impl Prepared {
    /// Returns the settings of the gateway.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Runs until `lifecycle` asks for a drain, and prints the sheet to standard output when everything is ready. `program` is the name by which this
    /// program was called.
    ///
    /// # Errors
    /// A part that cannot start, or one that ended unexpectedly.
    pub async fn run(
        self,
        program: &Path,
        lifecycle: Arc<Lifecycle>,
        telemetry: Option<Telemetry>,
    ) -> anyhow::Result<()> {
        let Self {
            config,
            folder,
            issuer,
            listeners,
            addresses,
            playground_key,
            typed_folder,
        } = self;
        let issuer = Arc::new(issuer);
        seed(&folder).await?;
        let tokens = write_tokens(&folder, &issuer)?;
        folder.write_addresses(&addresses)?;

        let topics: Vec<String> = config
            .kafka
            .topics
            .iter()
            .flat_map(|topic| {
                [
                    topic.clone(),
                    format!("{topic}{}", config.kafka.dead_letter_suffix),
                ]
            })
            .collect();
        let broker = Broker::start(listeners.kafka.local_addr()?, &topics, PARTITIONS)?;
        let forward = broker.forward(tokio(listeners.kafka)?);
        let certs = axum::serve(tokio(listeners.issuer)?, issuer.router());
        let sockets = Sockets {
            public: tokio(listeners.public)?,
            admin: tokio(listeners.admin)?,
        };

        let texts = &config.notifications;
        let pages = playground::router(Playground {
            issuer: Arc::clone(&issuer),
            lifecycle: Arc::clone(&lifecycle),
            catalogs: Catalogs::load(&texts.catalog_dir, &texts.default_locale)?,
            broker: addresses.kafka.clone(),
            topic: addresses.topic.clone(),
            key: playground_key,
            producer: OnceLock::new(),
        });
        let sheet = sheet::Sheet {
            program,
            data_dir: &typed_folder,
            folder: folder.path(),
            addresses: &addresses,
            tokens: &tokens,
            topics: &topics,
        };
        let print_when_ready = async {
            ready(&lifecycle).await;
            // Dev mode continues without standard output.
            let _ = write!(std::io::stdout(), "{sheet}").and_then(|()| std::io::stdout().flush());
            std::future::pending::<()>().await;
        };
        // Not ready until `run` sets the state of its parts.
        lifecycle.set("keys", Some("starting".into()));
        tokio::select! {
            ended = app::run(config, sockets, Arc::clone(&lifecycle), telemetry, pages) => ended,
            () = print_when_ready => unreachable!("it never ends"),
            () = forward => anyhow::bail!("the broker's forwarder ended unexpectedly"),
            ended = certs => ended.context("the issuer ended unexpectedly"),
        }
    }
}

fn tokio(listener: TcpListener) -> anyhow::Result<tokio::net::TcpListener> {
    Ok(tokio::net::TcpListener::from_std(listener)?)
}

async fn ready(lifecycle: &Lifecycle) {
    while !lifecycle.unready().is_empty() {
        tokio::time::sleep(READY_INTERVAL).await;
    }
}

/// A user's token, and the file it is in.
struct Token {
    user: &'static str,
    is_admin: bool,
    text: String,
    file: PathBuf,
}

fn write_tokens(folder: &Folder, issuer: &Issuer) -> anyhow::Result<Vec<Token>> {
    let named = USERS
        .iter()
        .map(|user| (*user, format!("user-{user}.token")))
        .chain([(ADMIN, "admin.token".to_owned())]);
    named
        .map(|(user, name)| {
            let text = issuer.token(user, SystemClock.now(), TOKEN_LIFE)?;
            folder.write(&name, text.as_bytes())?;
            Ok(Token {
                user,
                is_admin: user == ADMIN,
                text,
                file: folder.file(&name),
            })
        })
        .collect()
}

/// Fills the platform's tables once.
async fn seed(folder: &Folder) -> anyhow::Result<()> {
    let known = folder.file(SEEDED).exists();
    let platform = if known {
        Platform::default()
    } else {
        sample_platform()
    };
    platform::seed(&settings::platform(folder)?, &platform).await?;
    if !known {
        folder.write(
            SEEDED,
            b"The platform's tables are filled. Without this file dev mode fills them again.\n",
        )?;
    }
    Ok(())
}

fn sample_platform() -> Platform {
    let (member, admin, connections) = ("member", "connection-admin", "connections");
    let members = MEMBERS.iter().flat_map(|(domain, users)| {
        users
            .iter()
            .map(move |user| PolicyDefinition::member(user, member, Some(domain)))
    });
    let may = ["read", "execute", "update", "delete"]
        .map(|action| PolicyDefinition::may(admin, connections, action, None));
    Platform {
        permissions: vec![(connections.into(), "WebSocketClient.*".into())],
        roles: vec![(member.into(), member.into()), (admin.into(), admin.into())],
        definitions: members
            .chain(may)
            .chain([PolicyDefinition::member(ADMIN, admin, None)])
            .collect(),
    }
}

#[cfg(test)]
mod tests;

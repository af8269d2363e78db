//! Starts each part once, connects them, supervises their tasks and drains them in order.
//!
//! The process is ready when every part has started. A task that ends unexpectedly ends the process, so that Kubernetes restarts it instead of
//! keeping a pod that is Ready and receives nothing.

mod admin;
mod drain;
mod epoch;
mod inbound;
mod pipeline;
mod probe;
mod revocations;
mod serve;
mod settings;
mod start;
mod supervisor;
mod tasks;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use axum::Router;
use socket2::{Domain, Socket, Type};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::activity::{self, Catalogs};
use crate::clock::{Clock as _, SystemClock};
use crate::config::{Config, Invalid};
use crate::lifecycle::Lifecycle;
use crate::metrics::Metrics;
use crate::telemetry::Telemetry;
use crate::tls;

use admin::serve_admin;
use serve::Gateway;
use settings::{Fault, LiveSettings};

/// The listening sockets. They are bound before anything else, so that a wrong address fails at once.
#[derive(Debug)]
pub struct Sockets {
    /// `/stream` and REST.
    pub public: TcpListener,
    /// Probes, metrics, drain.
    pub admin: TcpListener,
}

impl Sockets {
    /// Binds the addresses of the settings. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// The setting whose address cannot be bound.
    pub fn bind(config: &Config) -> anyhow::Result<Self> {
        let server = &config.server;
        let bind = |name: &str, address: SocketAddr| {
            listen(address).with_context(|| format!("server.{name}: cannot bind {address}"))
        };
        Ok(Self {
            public: bind("public_address", server.public_address)?,
            admin: bind("admin_address", server.admin_address)?,
        })
    }
}

/// Listens on an address. One of IPv6 takes clients of IPv4 as well, whatever the default of the system is.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    /// As the standard library. The public listener makes it longer.
    const BACKLOG: i32 = 128;
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Checks what can be checked without connecting anywhere: the live file, the catalogs, the TLS files and the Kafka settings. [`check_files`] checks the
/// files that the live file names, because a gateway that starts waits for them.
///
/// # Errors
/// Everything that is wrong, together.
pub fn check(config: &Config) -> Result<(), Invalid> {
    let mut problems = Vec::new();
    if let Err(Invalid(more)) = settings::read_settings(&config.live_file, config.redis.mode) {
        problems.extend(more);
    }
    if let Err(error) = Catalogs::load(
        &config.notifications.catalog_dir,
        &config.notifications.default_locale,
    ) {
        problems.push(format!("notifications: {error}"));
    }
    problems.extend(tls::check(&config.server.tls, SystemClock.now()));
    if config.kafka.enabled {
        problems.extend(activity::check(&config.kafka));
    }
    if problems.is_empty() {
        Ok(())
    } else {
        Err(Invalid(problems))
    }
}

/// Checks that the files that the live settings name exist and can be used.
///
/// # Errors
/// Everything that is wrong, together.
pub fn check_files(config: &Config) -> Result<(), Invalid> {
    match LiveSettings::load(&config.live_file, config.redis.mode) {
        Ok(_) => Ok(()),
        Err(Fault::Settings(invalid) | Fault::Files(invalid)) => Err(invalid),
    }
}

/// Returns the log filter of the live settings.
///
/// # Errors
/// Everything that is wrong with the live file.
pub fn log_filter(config: &Config) -> Result<String, Invalid> {
    Ok(
        settings::read_settings(&config.live_file, config.redis.mode)?
            .observability
            .log_filter,
    )
}

/// Runs the gateway until `lifecycle` asks for a drain; returns after the drain. The public listener serves `pages` besides REST.
///
/// # Errors
/// A part that cannot start, or one that ended unexpectedly.
pub async fn run(
    config: Config,
    sockets: Sockets,
    lifecycle: Arc<Lifecycle>,
    telemetry: Option<Telemetry>,
    pages: Router,
) -> anyhow::Result<()> {
    for part in ["settings", "redis", "database", "keys", "revocations"] {
        lifecycle.set(part, Some("starting".into()));
    }
    let stop = CancellationToken::new();
    let metrics = Metrics::new();
    lifecycle.write_unready(&metrics);
    let admin = Arc::new(ArcSwap::from_pointee(admin::starting(&metrics)));
    let public_address = sockets.public.local_addr()?;
    let admin_address = sockets.admin.local_addr()?;
    let mut probing = tokio::spawn(serve_admin(sockets.admin, Arc::clone(&admin), stop.clone()));
    tracing::info!(public.address = %public_address, admin.address = %admin_address, version = env!("CARGO_PKG_VERSION"), "listening");

    let started = tokio::select! {
        started = Gateway::start(&config, &lifecycle, &metrics, &stop, telemetry, pages) => Some(started),
        // There are no connections and no records yet, so there is nothing to drain.
        () = lifecycle.drain_requested().cancelled() => None,
    };
    let result = match started {
        Some(Ok(gateway)) => {
            gateway
                .serve(sockets.public, &admin, &mut probing, &lifecycle)
                .await
        }
        Some(Err(error)) => Err(error),
        None => Ok(()),
    };
    stop.cancel();
    probing.abort();
    result
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config;

    #[test]
    fn the_settings_of_the_compose_file_are_valid() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/compose");
        let live = folder.join("live.toml").display().to_string();
        let environment = [("SIGNAL__LIVE_FILE".to_owned(), live)];
        let file = folder.join("config.toml");
        let config = config::load(Some(&file), environment.into_iter()).unwrap();
        check(&config).unwrap();
        check_files(&config).unwrap();
    }
}

//! Starts each part once, in the order in which they need each other, and connects them.
//!
//! Input: the settings. Output: a [`Gateway`] that can serve. A part that cannot start ends the start; only files that the live settings name are
//! waited for.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use ring::rand::SystemRandom;
use signal_contract::StatusReport;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::epoch;
use super::pipeline::PipelineState;
use super::revocations::{self, RevocationReader};
use super::serve::{Gateway, Pipeline};
use super::settings::{Fault, LiveSettings};
use super::supervisor::Supervisor;
use crate::activity::{self, Catalogs};
use crate::api;
use crate::auth::{Access, Authenticator, Basic, PublishedKeys, Revocations};
use crate::bus::{self, Announcer, Bus};
use crate::clock::{Clock, SystemClock};
use crate::config::{self, Config, Invalid};
use crate::delivery::Delivery;
use crate::files;
use crate::hub::{self, Hub};
use crate::id::IdGenerator;
use crate::inbox::Inbox;
use crate::leftovers::Leftovers;
use crate::lifecycle::Lifecycle;
use crate::metrics::Metrics;
use crate::store::{self, NotificationStore, PolicyStore, RevocationStore};
use crate::telemetry::Telemetry;
use crate::tls::Tls;
use crate::ws;

/// What every step of the start needs.
pub(super) struct Start<'a> {
    pub(super) config: &'a Config,
    pub(super) lifecycle: &'a Arc<Lifecycle>,
    pub(super) metrics: &'a Arc<Metrics>,
    /// Ends every task.
    pub(super) stop: &'a CancellationToken,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) settings: Arc<LiveSettings>,
    /// TLS of the public listener.
    pub(super) tls: Option<Arc<Tls>>,
    pub(super) instance: Arc<str>,
    pub(super) supervisor: Supervisor,
}

/// Verifies callers.
pub(super) struct Identity {
    pub(super) authenticator: Authenticator,
    pub(super) basic: Basic,
    pub(super) revocations: Arc<Revocations>,
}

/// The parts that have started and that connections, requests and tasks use.
pub(super) struct Running {
    pub(super) identity: Identity,
    pub(super) access: Access,
    pub(super) hub: Hub,
    pub(super) delivery: Delivery,
    pub(super) inbox: Inbox,
    pub(super) leftovers: Leftovers,
    pub(super) bus: Arc<dyn Bus>,
    pub(super) announcer: Arc<Announcer>,
    pub(super) notifications: Arc<dyn NotificationStore>,
    pub(super) revocations: Arc<dyn RevocationStore>,
    pub(super) policies: Arc<dyn PolicyStore>,
    pub(super) ids: IdGenerator,
    /// `None` without Kafka.
    pub(super) pipeline: Option<PipelineState>,
}

impl Gateway {
    /// Starts every part. Dropping the future ends the parts that have started once `stop` is cancelled.
    ///
    /// # Errors
    /// The first part that cannot start.
    pub(super) async fn start(
        config: &Config,
        lifecycle: &Arc<Lifecycle>,
        metrics: &Arc<Metrics>,
        stop: &CancellationToken,
        telemetry: Option<Telemetry>,
        pages: Router,
    ) -> anyhow::Result<Self> {
        let settings = load_settings(config, lifecycle).await?;
        log_allowed_origins(&settings.current().allowed_origins);
        let mut start = Start {
            config,
            lifecycle,
            metrics,
            stop,
            clock: Arc::new(SystemClock),
            settings,
            tls: Tls::load(&config.server.tls, Arc::new(SystemClock)).map_err(Invalid)?,
            instance: instance_name(config).into(),
            supervisor: Supervisor::default(),
        };
        let identity = start.identity()?;
        let catalogs = Arc::new(Catalogs::load(
            &config.notifications.catalog_dir,
            &config.notifications.default_locale,
        )?);
        let mut threads = hub::Threads::start(shard_count(config))?;
        // With one shard the bus receives on its thread, so that a push to a connection wakes one thread and not two. Several shards are all kept
        // free of the bus.
        let bus_runtime = threads.only().unwrap_or_else(Handle::current);
        let opened = start.open_bus(&bus_runtime).await?;
        let ids = IdGenerator::following(opened.worker, Arc::clone(&start.clock));
        let stores = start.open_stores().await?;
        let epoch = epoch::look(&*stores.notifications).await;
        let reader = start
            .read_revocations(&opened.bus, &stores.revocations, &identity.revocations)
            .await;
        let shards_stop = CancellationToken::new();
        let hub = start.hub(&opened.bus, &mut threads, &shards_stop);
        let delivery = Delivery::new(hub.clone(), Arc::clone(&opened.bus));
        let pipeline = PipelineState::new(&config.kafka, &opened.bus, &stores.notifications);
        let running = Running {
            identity,
            access: Access::new(Arc::clone(&stores.policies), &config.policy, config.rooms),
            inbox: Inbox::new(
                Arc::clone(&stores.notifications),
                delivery.clone(),
                Arc::clone(&start.clock),
            ),
            leftovers: Leftovers::default(),
            delivery,
            hub,
            announcer: Announcer::new(Arc::clone(&opened.bus)),
            bus: opened.bus,
            notifications: Arc::clone(&stores.notifications),
            revocations: Arc::clone(&stores.revocations),
            policies: Arc::clone(&stores.policies),
            pipeline,
            ids,
        };

        start.follow_bus(&running, opened.events, &bus_runtime, reader);
        let no_new_connections = start.follow_readiness(&running);
        start.follow_files(&catalogs, telemetry);
        start.follow_tables(&running, epoch);
        let pipeline_stop = CancellationToken::new();
        let pipeline = start.pipeline(&running, &catalogs, pipeline_stop.clone());
        let listener = start.listener(&running, no_new_connections, pages);
        let admin = api::admin_router(start.admin(&running, catalogs)?);
        Ok(Self {
            config: config.clone(),
            hub: running.hub,
            leftovers: running.leftovers,
            threads,
            bus: running.bus,
            stores,
            supervisor: start.supervisor,
            pipeline,
            pipeline_stop,
            shards_stop,
            listener,
            admin,
            metrics: Arc::clone(metrics),
        })
    }
}

/// Parts, in the order in which they start.
impl Start<'_> {
    fn identity(&mut self) -> anyhow::Result<Identity> {
        let revocations = Revocations::new(Arc::clone(&self.clock));
        let (authenticator, keys) = Authenticator::start(
            self.settings.subscribe(),
            Arc::clone(&self.clock),
            Arc::clone(self.metrics),
            Arc::clone(&revocations),
            self.stop.clone(),
        );
        self.supervisor
            .spawn("key sets", async move { Ok(keys.await?) });
        let (basic, users) = Basic::start(&self.config.auth, self.stop.clone())?;
        self.supervisor
            .spawn("Basic users", async move { Ok(users.await?) });
        Ok(Identity {
            authenticator,
            basic,
            revocations,
        })
    }

    async fn open_bus(&self, runtime: &Handle) -> anyhow::Result<bus::Opened> {
        let options = bus::BusOptions {
            config: self.config.redis.clone(),
            ids: self.config.ids.clone(),
            instance_name: self.instance.to_string(),
            live: self.settings.subscribe(),
            clock: Arc::clone(&self.clock),
            metrics: Arc::clone(self.metrics),
            shutdown: self.stop.clone(),
        };
        let opened = runtime
            .spawn(bus::open(options))
            .await
            .context("the bus cannot be opened")??;
        self.lifecycle.set("redis", None);
        Ok(opened)
    }

    /// Reads the revocations, however long it takes: the listener does not accept before.
    async fn read_revocations(
        &self,
        bus: &Arc<dyn Bus>,
        store: &Arc<dyn RevocationStore>,
        known: &Arc<Revocations>,
    ) -> RevocationReader {
        let redis = &self.config.redis;
        RevocationReader::start(revocations::ReaderParts {
            store: Arc::clone(store),
            bus: Arc::clone(bus),
            revocations: Arc::clone(known),
            prompt: Arc::default(),
            lifecycle: Arc::clone(self.lifecycle),
            metrics: Arc::clone(self.metrics),
            clock: Arc::clone(&self.clock),
            ping_interval: Duration::from_millis(redis.self_ping_interval_ms),
        })
        .await
    }

    async fn open_stores(&mut self) -> anyhow::Result<store::Stores> {
        let mut stores = store::open(
            &self.config.database,
            &self.config.policy,
            self.stop.clone(),
        )
        .await?;
        self.lifecycle.set("database", None);
        for task in std::mem::take(&mut stores.tasks) {
            self.supervisor
                .spawn("database URL", async move { Ok(task.await?) });
        }
        Ok(stores)
    }

    fn hub(
        &self,
        bus: &Arc<dyn Bus>,
        threads: &mut hub::Threads,
        shards_stop: &CancellationToken,
    ) -> Hub {
        let options = hub::HubOptions {
            live: self.settings.subscribe(),
            bus: Arc::clone(bus),
            clock: Arc::clone(&self.clock),
            metrics: Arc::clone(self.metrics),
            shutdown: shards_stop.clone(),
        };
        Hub::start(options, threads)
    }

    fn pipeline(
        &self,
        running: &Running,
        catalogs: &Arc<Catalogs>,
        stop: CancellationToken,
    ) -> Option<Pipeline> {
        running.pipeline.as_ref().map(|pipeline| {
            let options = activity::PipelineOptions {
                config: self.config.kafka.clone(),
                cache_secs: self.config.policy.cache_secs,
                inbox: running.inbox.clone(),
                policies: Arc::clone(&running.policies),
                catalogs: Arc::clone(catalogs),
                clock: Arc::clone(&self.clock),
                metrics: Arc::clone(self.metrics),
                status: Arc::clone(&pipeline.status),
                around: pipeline.around(),
            };
            tokio::spawn(activity::run(options, stop))
        })
    }
}

/// What the listeners hand to connections and requests.
impl Start<'_> {
    fn listener(&self, running: &Running, closed: Arc<AtomicBool>, pages: Router) -> ws::Listener {
        ws::Listener {
            server: self.config.server.clone(),
            hub: running.hub.clone(),
            context: Arc::new(self.connections(running)),
            tls: self.tls.clone(),
            rest: api::router(self.api(running)).merge(pages),
            ids: running.ids.clone(),
            lifecycle: Arc::clone(self.lifecycle),
            closed,
        }
    }

    fn connections(&self, running: &Running) -> ws::Context {
        let session = &self.config.session;
        ws::Context {
            rules: rules(self.config),
            echo: session.conformance_echo,
            close_timeout: Duration::from_millis(session.close_timeout_ms),
            subscribe_timeout: Duration::from_millis(session.subscribe_timeout_ms),
            silent_after: silent_after(&self.config.heartbeat),
            recheck_interval: running.access.recheck_interval(),
            authenticator: running.identity.authenticator.clone(),
            access: running.access.clone(),
            inbox: running.inbox.clone(),
            leftovers: running.leftovers.clone(),
            hub: running.hub.clone(),
            bus: Arc::clone(&running.bus),
            clock: Arc::clone(&self.clock),
            metrics: Arc::clone(self.metrics),
            live: self.settings.subscribe(),
            control: Handle::current(),
            random: SystemRandom::new(),
        }
    }

    fn api(&self, running: &Running) -> api::ApiState {
        let token_life_days = u64::from(self.config.revocations.token_life_days);
        api::ApiState {
            authenticator: running.identity.authenticator.clone(),
            basic: running.identity.basic.clone(),
            access: running.access.clone(),
            notifications: Arc::clone(&running.notifications),
            inbox: running.inbox.clone(),
            leftovers: running.leftovers.clone(),
            delivery: running.delivery.clone(),
            hub: running.hub.clone(),
            bus: Arc::clone(&running.bus),
            announcer: Arc::clone(&running.announcer),
            revocation_store: Arc::clone(&running.revocations),
            revocations: Arc::clone(&running.identity.revocations),
            clock: Arc::clone(&self.clock),
            live: self.settings.subscribe(),
            published: self.settings.published(),
            metrics: Arc::clone(self.metrics),
            lifecycle: Arc::clone(self.lifecycle),
            instance: Arc::clone(&self.instance),
            max_body_bytes: self.config.server.max_body_bytes,
            token_life: Duration::from_secs(token_life_days * 24 * 3600),
        }
    }

    fn admin(&self, running: &Running, catalogs: Arc<Catalogs>) -> anyhow::Result<api::AdminState> {
        let static_revision = files::revision_of(&toml::to_string(self.config)?);
        let pipeline = running.pipeline.clone();
        let (settings, published) = (Arc::clone(&self.settings), self.settings.published());
        let authenticator = running.identity.authenticator.clone();
        let tls = self.tls.clone();
        let facts = move || {
            let current = settings.revision();
            StatusReport {
                static_revision: static_revision.clone(),
                live_revision: current.revision,
                live_error: current.error,
                tls: tls.as_deref().map(Tls::report),
                catalogs_revision: catalogs.revision(),
                key_sources: authenticator.status(),
                jwks_file: published.borrow().as_deref().map(PublishedKeys::report),
                kafka: pipeline.as_ref().map(|pipeline| pipeline.status.facts()),
                ..StatusReport::default()
            }
        };
        Ok(api::AdminState {
            lifecycle: Arc::clone(self.lifecycle),
            hub: running.hub.clone(),
            bus: Arc::clone(&running.bus),
            notifications: Arc::clone(&running.notifications),
            metrics: Arc::clone(self.metrics),
            instance: Arc::clone(&self.instance),
            token_file: self.config.server.admin_token_file.clone(),
            facts: Arc::new(facts),
        })
    }
}

/// Loads the live settings. Waits, not ready, for files that they name and that cannot be used yet.
async fn load_settings(
    config: &Config,
    lifecycle: &Lifecycle,
) -> Result<Arc<LiveSettings>, Invalid> {
    loop {
        match LiveSettings::load(&config.live_file, config.redis.mode) {
            Ok(settings) => {
                lifecycle.set("settings", None);
                return Ok(settings);
            }
            Err(Fault::Settings(invalid)) => return Err(invalid),
            Err(fault @ Fault::Files(_)) => {
                tracing::warn!(error = %fault, "start waits: a file that the live settings name cannot be used yet");
                lifecycle.set("settings", Some(fault.to_string()));
                tokio::time::sleep(files::INTERVAL).await;
            }
        }
    }
}

fn log_allowed_origins(allowed: &[String]) {
    if allowed.is_empty() {
        tracing::info!(
            "web pages may connect only from this gateway's own origin; requests without Origin are allowed"
        );
    } else {
        tracing::info!(origins = ?allowed, "web pages may connect from this gateway's own origin and from the listed ones; requests without Origin are allowed");
    }
}

fn rules(config: &Config) -> ws::Rules {
    let ms = Duration::from_millis;
    let (auth, heartbeat) = (&config.auth, &config.heartbeat);
    ws::Rules {
        authenticate_timeout: ms(auth.connect_timeout_ms),
        finish_timeout: ms(auth.finish_timeout_ms),
        heartbeat_timeout: ms(heartbeat.timeout_ms),
        sweep_interval: ms(heartbeat.sweep_interval_ms),
        ping_interval: (heartbeat.ping_interval_ms > 0).then(|| ms(heartbeat.ping_interval_ms)),
        expiring_lead: Duration::from_secs(auth.expiring_lead_secs),
        encryption: config.encryption,
    }
}

/// Returns how long nothing may come from a connection before another one of its user may take its place (protocol.md 4.8): a third of the heartbeat's time,
/// but long enough for the pong of a live one.
fn silent_after(heartbeat: &config::Heartbeat) -> Duration {
    let ms = Duration::from_millis;
    match heartbeat.ping_interval_ms {
        0 => ms(heartbeat.timeout_ms),
        interval => ms(heartbeat.timeout_ms / 3).max(ms(interval) * 6 / 5),
    }
}

/// Returns the number of shards: the setting, or one per core where it is 0.
fn shard_count(config: &Config) -> usize {
    match config.workers.shards {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        shards => shards,
    }
}

/// Returns the instance's name: the setting, else the host's name.
fn instance_name(config: &Config) -> String {
    if !config.server.instance_name.is_empty() {
        return config.server.instance_name.clone();
    }
    let mut name = [0u8; 256];
    #[expect(
        unsafe_code,
        reason = "the standard library cannot return the host's name"
    )]
    // SAFETY: the buffer is valid for its length less one, so the result is always terminated.
    let result = unsafe { libc::gethostname(name.as_mut_ptr().cast(), name.len() - 1) };
    let end = name.iter().position(|b| *b == 0).unwrap_or(0);
    match std::str::from_utf8(&name[..end]) {
        Ok(name) if result == 0 && !name.is_empty() => name.to_owned(),
        _ => "gateway".to_owned(),
    }
}

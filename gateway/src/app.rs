//! Builds each part once, wires them, supervises the tasks and drains them in order.
//!
//! Ready means every part has started; a task that ends unasked takes the process with it, so that Kubernetes restarts it instead of keeping a pod
//! that is Ready and deaf.

mod admin;
mod drain;
mod inbound;
mod probe;
mod settings;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use axum::Router;
use ring::rand::SystemRandom;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::activity::{self, Catalogs};
use crate::api;
use crate::auth::{Access, Authenticator, Basic, Revocations};
use crate::bus::{self, Bus};
use crate::clock::{Clock, SystemClock};
use crate::config::{Config, Invalid, SessionTimes};
use crate::delivery::Delivery;
use crate::files;
use crate::hub::{self, Hub};
use crate::id::IdGenerator;
use crate::lifecycle::Lifecycle;
use crate::metrics::Metrics;
use crate::store;
use crate::telemetry::Telemetry;
use crate::ws;

use admin::serve_admin;
use drain::Drain;
use inbound::Inbound;
use probe::Probe;
use settings::{Fault, LiveSettings};

/// Longest time the pipeline may take to finish what it has in hand.
const PIPELINE_STOP: Duration = Duration::from_secs(25);
/// Longest time the bus and the database may take to close.
const CLOSE_LIMIT: Duration = Duration::from_secs(10);

/// The listeners, bound before anything else so that a wrong address fails at once.
#[derive(Debug)]
pub struct Sockets {
    /// `/stream` and REST.
    pub public: TcpListener,
    /// Probes, metrics, drain.
    pub admin: TcpListener,
}

impl Sockets {
    /// Binds what the settings name.
    ///
    /// # Errors
    /// An address that cannot be bound, by name.
    pub async fn bind(config: &Config) -> anyhow::Result<Self> {
        let server = &config.server;
        let bind = async |name: &str, address: SocketAddr| {
            TcpListener::bind(address)
                .await
                .with_context(|| format!("server.{name}: cannot bind {address}"))
        };
        Ok(Self {
            public: bind("public_address", server.public_address).await?,
            admin: bind("admin_address", server.admin_address).await?,
        })
    }
}

/// Checks everything that can be checked without connecting anywhere: the live file, the catalogs, the Kafka settings, the Basic users. Files that
/// the live file names are left to [`check_files`]: a gateway that starts waits for them.
///
/// # Errors
/// All that is wrong, together.
pub fn check(config: &Config) -> Result<(), Invalid> {
    let mut problems = Vec::new();
    if let Err(Invalid(more)) = settings::read_settings(&config.live_file, config.bus.mode) {
        problems.extend(more);
    }
    if let Err(error) = Catalogs::load(
        &config.notifications.catalog_dir,
        &config.notifications.default_locale,
    ) {
        problems.push(format!("notifications: {error}"));
    }
    if config.kafka.enabled {
        problems.extend(activity::check(&config.kafka));
    }
    if problems.is_empty() {
        Ok(())
    } else {
        Err(Invalid(problems))
    }
}

/// Checks that the files are there, and can be used, that the live settings name.
///
/// # Errors
/// All that is wrong, together.
pub fn check_files(config: &Config) -> Result<(), Invalid> {
    match LiveSettings::load(&config.live_file, config.bus.mode) {
        Ok(_) => Ok(()),
        Err(Fault::Settings(invalid) | Fault::Files(invalid)) => Err(invalid),
    }
}

/// The log filter that the live settings name.
///
/// # Errors
/// All that is wrong with the live file.
pub fn log_filter(config: &Config) -> Result<String, Invalid> {
    Ok(settings::read_settings(&config.live_file, config.bus.mode)?.log_filter)
}

/// Tasks that run until the process ends; one that ends unasked is told.
struct Supervisor {
    tasks: JoinSet<(&'static str, anyhow::Result<()>)>,
}

impl Supervisor {
    fn spawn(
        &mut self,
        name: &'static str,
        task: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) {
        self.tasks.spawn(async move { (name, task.await) });
    }

    /// A task that has no other result than to go on.
    fn spawn_forever(
        &mut self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        self.spawn_forever_on(&Handle::current(), name, task);
    }

    /// The same, on this runtime.
    fn spawn_forever_on(
        &mut self,
        runtime: &Handle,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        let task = async move {
            task.await;
            (name, Ok(()))
        };
        self.tasks.spawn_on(task, runtime);
    }

    async fn any_ended(&mut self) -> anyhow::Error {
        match self.tasks.join_next().await {
            Some(Ok((name, Ok(())))) => anyhow::anyhow!("{name} ended unasked"),
            Some(Ok((name, Err(error)))) => error.context(format!("{name} failed")),
            Some(Err(panic)) => anyhow::anyhow!("a task panicked: {panic}"),
            None => std::future::pending().await,
        }
    }
}

/// Runs the gateway until `lifecycle` asks it to drain; returns after the drain.
///
/// # Errors
/// A part that cannot start, or one that ended unasked.
pub async fn run(
    config: Config,
    sockets: Sockets,
    lifecycle: Arc<Lifecycle>,
    telemetry: Option<Telemetry>,
) -> anyhow::Result<()> {
    for part in ["settings", "bus", "database", "keys"] {
        lifecycle.set(part, Some("starting".into()));
    }
    let stop = CancellationToken::new();
    let metrics = Metrics::new();
    lifecycle.write_unready(&metrics);
    let admin = Arc::new(ArcSwap::from_pointee(admin::starting(&metrics)));
    let public_address = sockets.public.local_addr()?;
    let admin_address = sockets.admin.local_addr()?;
    let mut serving = tokio::spawn(serve_admin(sockets.admin, Arc::clone(&admin), stop.clone()));
    tracing::info!(public.address = %public_address, admin.address = %admin_address, version = env!("CARGO_PKG_VERSION"), "listening");

    let started = tokio::select! {
        started = Gateway::start(&config, &lifecycle, &metrics, &stop, telemetry) => Some(started),
        // Nothing is held yet, so there is nothing to drain.
        () = lifecycle.drain_requested().cancelled() => None,
    };
    let result = match started {
        Some(Ok(gateway)) => {
            gateway
                .serve(sockets.public, &admin, &mut serving, &lifecycle)
                .await
        }
        Some(Err(error)) => Err(error),
        None => Ok(()),
    };
    stop.cancel();
    serving.abort();
    result
}

/// Every part, started.
struct Gateway {
    config: Config,
    hub: Hub,
    threads: hub::Threads,
    bus: Arc<dyn Bus>,
    stores: store::Stores,
    supervisor: Supervisor,
    pipeline: Option<tokio::task::JoinHandle<Result<(), activity::PipelineError>>>,
    pipeline_stop: CancellationToken,
    accept_stop: CancellationToken,
    shards_stop: CancellationToken,
    listener: ws::Listener,
    admin: Router,
    metrics: Arc<Metrics>,
}

impl Gateway {
    async fn start(
        config: &Config,
        lifecycle: &Arc<Lifecycle>,
        metrics: &Arc<Metrics>,
        stop: &CancellationToken,
        telemetry: Option<Telemetry>,
    ) -> anyhow::Result<Self> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let settings = load_settings(config, lifecycle).await?;
        let instance: Arc<str> = instance_name(config).into();
        let mut supervisor = Supervisor {
            tasks: JoinSet::new(),
        };
        tell_what_origins_mean(&settings.current().allowed_origins);

        let revocations = Revocations::new(Arc::clone(&clock));
        let (authenticator, keys) = Authenticator::start(
            settings.subscribe(),
            Arc::clone(&clock),
            Arc::clone(metrics),
            Arc::clone(&revocations),
            stop.clone(),
        );
        supervisor.spawn("key sets", async move { Ok(keys.await?) });
        let (basic, users) = Basic::start(&config.basic, stop.clone())?;
        supervisor.spawn("Basic users", async move { Ok(users.await?) });
        let catalogs = Arc::new(Catalogs::load(
            &config.notifications.catalog_dir,
            &config.notifications.default_locale,
        )?);

        let known = Arc::clone(&revocations);
        let options = bus::BusOptions {
            config: config.bus.clone(),
            ids: config.ids.clone(),
            instance_name: instance.to_string(),
            live: settings.subscribe(),
            known_revocations: Arc::new(move || known.all()),
            clock: Arc::clone(&clock),
            metrics: Arc::clone(metrics),
            shutdown: stop.clone(),
        };
        let mut threads = hub::Threads::start(shard_count(config))?;
        // With one shard, what the bus hears is heard on its thread: a push to a connection wakes one thread, not two. Several are all kept free of it.
        let hearing = threads.only().unwrap_or_else(Handle::current);
        let bus::Opened {
            bus,
            events,
            worker,
        } = hearing
            .spawn(bus::open(options))
            .await
            .context("the bus cannot be opened")??;
        lifecycle.set("bus", None);
        revocations.extend(bus.revocations().await?);
        let ids = IdGenerator::following(worker, Arc::clone(&clock));
        let mut stores =
            store::open(&config.database, &config.policy, ids.clone(), stop.clone()).await?;
        lifecycle.set("database", None);
        for task in std::mem::take(&mut stores.tasks) {
            supervisor.spawn("database URL", async move { Ok(task.await?) });
        }
        let access = Access::new(Arc::clone(&stores.policies), &config.policy, config.rooms);

        let shards_stop = CancellationToken::new();
        let parts = hub::Parts {
            live: settings.subscribe(),
            bus: Arc::clone(&bus),
            clock: Arc::clone(&clock),
            metrics: Arc::clone(metrics),
            shutdown: shards_stop.clone(),
        };
        let hub = Hub::start(parts, &mut threads);
        let delivery = Delivery::new(hub.clone(), Arc::clone(&bus));
        let context = Arc::new(ws::Context {
            rules: rules(&config.session, config),
            echo: config.session.conformance_echo,
            close_timeout: Duration::from_millis(config.session.close_timeout_ms),
            subscribe_timeout: Duration::from_millis(config.session.subscribe_timeout_ms),
            recheck_interval: access.recheck_interval(),
            authenticator: authenticator.clone(),
            access: access.clone(),
            notifications: Arc::clone(&stores.notifications),
            delivery: delivery.clone(),
            bus: Arc::clone(&bus),
            clock: Arc::clone(&clock),
            metrics: Arc::clone(metrics),
            live: settings.subscribe(),
            control: Handle::current(),
            random: SystemRandom::new(),
        });

        let inbound = Inbound {
            hub: hub.clone(),
            bus: Arc::clone(&bus),
            revocations: Arc::clone(&revocations),
            authenticator: authenticator.clone(),
            metrics: Arc::clone(metrics),
            control: Handle::current(),
        };
        supervisor.spawn_forever("trust", follow_trust(inbound.clone(), stop.clone()));
        supervisor.spawn_forever_on(&hearing, "bus events", inbound.run(events));
        let closed = Arc::new(AtomicBool::new(false));
        let probe = Probe {
            lifecycle: Arc::clone(lifecycle),
            authenticator: authenticator.clone(),
            bus: Arc::clone(&bus),
            hub: hub.clone(),
            metrics: Arc::clone(metrics),
            closed: Arc::clone(&closed),
            ids: ids.clone(),
        };
        supervisor.spawn_forever("readiness", probe.run(stop.clone()));
        if !config.live_file.as_os_str().is_empty() {
            supervisor.spawn_forever(
                "live settings",
                Arc::clone(&settings).follow(Arc::clone(metrics), stop.clone()),
            );
        }
        supervisor.spawn_forever(
            "log filter",
            follow_filter(Arc::clone(&settings), telemetry, stop.clone()),
        );
        if !config.notifications.catalog_dir.as_os_str().is_empty() {
            supervisor.spawn_forever(
                "catalogs",
                Arc::clone(&catalogs).watch(Arc::clone(metrics), stop.clone()),
            );
        }
        let purge = store::purge_loop(
            Arc::clone(&stores.notifications),
            config.database.clone(),
            Arc::clone(&clock),
            stop.clone(),
        );
        supervisor.spawn_forever("purge", purge);

        let status = Arc::new(activity::PipelineStatus::default());
        let pipeline_stop = CancellationToken::new();
        let pipeline = config.kafka.enabled.then(|| {
            let options = activity::PipelineOptions {
                config: config.kafka.clone(),
                cache_secs: config.policy.cache_secs,
                notifications: Arc::clone(&stores.notifications),
                policies: Arc::clone(&stores.policies),
                delivery: delivery.clone(),
                catalogs: Arc::clone(&catalogs),
                clock: Arc::clone(&clock),
                metrics: Arc::clone(metrics),
                status: Arc::clone(&status),
            };
            tokio::spawn(activity::run(options, pipeline_stop.clone()))
        });

        let rest = api::router(api::ApiState {
            authenticator: authenticator.clone(),
            basic,
            access,
            notifications: Arc::clone(&stores.notifications),
            delivery,
            hub: hub.clone(),
            bus: Arc::clone(&bus),
            revocations,
            clock,
            live: settings.subscribe(),
            published: settings.published(),
            metrics: Arc::clone(metrics),
            lifecycle: Arc::clone(lifecycle),
            instance: Arc::clone(&instance),
            max_body_bytes: config.server.max_body_bytes,
            token_life: Duration::from_secs(config.revocations.token_life_days.into()) * 24 * 3600,
        });
        let static_revision = files::revision_of(&toml::to_string(config)?);
        let kafka_enabled = config.kafka.enabled;
        let facts = {
            let (settings, catalogs, published) = (
                Arc::clone(&settings),
                Arc::clone(&catalogs),
                settings.published(),
            );
            move || {
                let holds = settings.revision();
                let kafka = if kafka_enabled {
                    serde_json::to_value(status.facts()).unwrap_or_default()
                } else {
                    serde_json::Value::Null
                };
                api::Facts {
                    static_revision: static_revision.clone(),
                    live_revision: holds.revision,
                    live_error: holds.error,
                    catalogs_revision: catalogs.revision(),
                    key_sources: authenticator.status(),
                    jwks_file: published.borrow().as_deref().map(api::JwksFile::of),
                    kafka,
                }
            }
        };
        let admin = api::admin_router(api::AdminState {
            lifecycle: Arc::clone(lifecycle),
            hub: hub.clone(),
            bus: Arc::clone(&bus),
            notifications: Arc::clone(&stores.notifications),
            metrics: Arc::clone(metrics),
            instance,
            token_file: config.server.admin_token_file.clone(),
            facts: Arc::new(facts),
        });
        let listener = ws::Listener {
            server: config.server.clone(),
            hub: hub.clone(),
            context,
            rest,
            ids,
            lifecycle: Arc::clone(lifecycle),
            closed,
        };
        Ok(Self {
            config: config.clone(),
            hub,
            threads,
            bus,
            stores,
            supervisor,
            pipeline,
            pipeline_stop,
            accept_stop: CancellationToken::new(),
            shards_stop,
            listener,
            admin,
            metrics: Arc::clone(metrics),
        })
    }

    async fn serve(
        mut self,
        socket: TcpListener,
        admin: &ArcSwap<Router>,
        probing: &mut tokio::task::JoinHandle<()>,
        lifecycle: &Arc<Lifecycle>,
    ) -> anyhow::Result<()> {
        admin.store(Arc::new(self.admin.clone()));
        // With one shard every socket goes to its thread: accepted there, it wakes no other on its way.
        let accepts = self.threads.only().unwrap_or_else(Handle::current);
        let mut accepting =
            accepts.spawn(ws::serve(self.listener, socket, self.accept_stop.clone()));
        let drain = Drain {
            config: &self.config,
            hub: &self.hub,
            lifecycle,
            metrics: &self.metrics,
        };
        let ended = tokio::select! {
            ended = &mut accepting => Err(anyhow::anyhow!("the accept loop ended unasked: {ended:?}")),
            ended = &mut *probing => Err(anyhow::anyhow!("the admin listener ended unasked: {ended:?}")),
            () = lifecycle.drain_requested().cancelled() => Ok(()),
            error = self.supervisor.any_ended() => Err(error),
            () = self.threads.any_ended() => Err(anyhow::anyhow!("a shard ended unasked")),
            ended = finished(&mut self.pipeline) => Err(ended),
            never = drain.follow_holds() => match never {},
        };
        lifecycle.request_drain();
        self.metrics.draining.set(1);
        // What a held drain has done of it is not done again.
        let hold = lifecycle.hold();
        tracing::info!(connections = self.hub.counts().total, "draining");
        drain.wait(drain.propagation_left(hold)).await;

        self.pipeline_stop.cancel();
        if let Some(pipeline) = self.pipeline.take() {
            match drain.within(PIPELINE_STOP, pipeline).await {
                Some(Ok(Ok(()))) => tracing::info!("the pipeline has finished what it had in hand"),
                Some(Ok(Err(error))) => {
                    tracing::error!(%error, "the pipeline failed on its way down")
                }
                Some(Err(error)) => tracing::error!(%error, "the pipeline panicked"),
                None => tracing::warn!(
                    "the pipeline did not finish in time; what it had in hand is delivered again"
                ),
            }
        }
        self.accept_stop.cancel();
        drain
            .close_connections(hold.and_then(|hold| hold.closing_since))
            .await;
        accepting.abort();
        // Before the threads end, for the bus may be at work on one of them.
        let closed = drain.within(CLOSE_LIMIT, async {
            self.bus.close().await;
            self.stores.close().await;
        });
        if closed.await.is_none() {
            tracing::warn!("the bus or the database did not close in time");
        }
        self.shards_stop.cancel();
        let threads = self.threads;
        let whole = drain
            .within(
                CLOSE_LIMIT,
                tokio::task::spawn_blocking(move || threads.join()),
            )
            .await;
        tracing::info!("drained");
        ended?;
        anyhow::ensure!(
            !matches!(whole, Some(Ok(false) | Err(_))),
            "a shard panicked"
        );
        Ok(())
    }
}

/// Loads the live settings; waits, not ready, for files that they name and that are not there yet.
async fn load_settings(
    config: &Config,
    lifecycle: &Lifecycle,
) -> Result<Arc<LiveSettings>, Invalid> {
    loop {
        match LiveSettings::load(&config.live_file, config.bus.mode) {
            Ok(settings) => {
                lifecycle.set("settings", None);
                return Ok(settings);
            }
            Err(Fault::Settings(invalid)) => return Err(invalid),
            Err(fault @ Fault::Files(_)) => {
                tracing::warn!(error = %fault, "files that the live settings name cannot be used yet");
                lifecycle.set("settings", Some(fault.to_string()));
                tokio::time::sleep(files::INTERVAL).await;
            }
        }
    }
}

/// Ends when the pipeline does, which it should not.
async fn finished(
    pipeline: &mut Option<tokio::task::JoinHandle<Result<(), activity::PipelineError>>>,
) -> anyhow::Error {
    let Some(running) = pipeline else {
        return std::future::pending().await;
    };
    let result = running.await;
    *pipeline = None;
    match result {
        Ok(Ok(())) => anyhow::anyhow!("the pipeline ended unasked"),
        Ok(Err(error)) => anyhow::Error::new(error).context("the pipeline failed"),
        Err(error) => anyhow::anyhow!("the pipeline panicked: {error}"),
    }
}

/// Closes connections whose source or key is gone, whenever key sets change.
async fn follow_trust(inbound: Inbound, stop: CancellationToken) {
    let mut changes = inbound.authenticator.changes();
    loop {
        tokio::select! {
            changed = changes.changed() => match changed {
                Ok(()) => inbound.close_fallen().await,
                Err(_) => return stop.cancelled().await,
            },
            () = stop.cancelled() => return,
        }
    }
}

/// Keeps the log filter at what the live settings say.
async fn follow_filter(
    settings: Arc<LiveSettings>,
    telemetry: Option<Telemetry>,
    stop: CancellationToken,
) {
    let mut live = settings.subscribe();
    loop {
        tokio::select! {
            Ok(()) = live.changed() => {
                let filter = live.borrow_and_update().log_filter.clone();
                if let Some(telemetry) = &telemetry {
                    telemetry.set_filter(&filter);
                }
            }
            () = stop.cancelled() => return,
        }
    }
}

fn tell_what_origins_mean(allowed: &[String]) {
    if allowed.is_empty() {
        tracing::info!(
            "browsers may connect from this gateway's own origin alone; a request without Origin is allowed"
        );
    } else {
        tracing::info!(origins = ?allowed, "browsers may connect from this gateway's own origin and these; a request without Origin is allowed");
    }
}

fn rules(times: &SessionTimes, config: &Config) -> ws::Rules {
    let ms = Duration::from_millis;
    ws::Rules {
        authenticate_timeout: ms(times.authenticate_timeout_ms),
        verify_timeout: ms(times.verify_timeout_ms),
        heartbeat_timeout: ms(times.heartbeat_timeout_ms),
        sweep_interval: ms(times.sweep_interval_ms),
        ping_interval: (times.ping_interval_ms > 0).then(|| ms(times.ping_interval_ms)),
        expiring_lead: Duration::from_secs(times.expiring_lead_secs),
        encryption: config.encryption,
    }
}

fn shard_count(config: &Config) -> usize {
    match config.workers.shards {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        shards => shards,
    }
}

fn instance_name(config: &Config) -> String {
    if !config.server.instance_name.is_empty() {
        return config.server.instance_name.clone();
    }
    let mut name = [0u8; 256];
    #[expect(
        unsafe_code,
        reason = "the standard library does not tell the host's name"
    )]
    // SAFETY: the buffer is valid for its length less one, so the result is always terminated.
    let result = unsafe { libc::gethostname(name.as_mut_ptr().cast(), name.len() - 1) };
    let end = name.iter().position(|b| *b == 0).unwrap_or(0);
    match std::str::from_utf8(&name[..end]) {
        Ok(name) if result == 0 && !name.is_empty() => name.to_owned(),
        _ => "gateway".to_owned(),
    }
}

//! The servers, the ways to them, and the gateways; every fault is done and undone here.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use signal_tests::gateway::Builder;
use signal_tests::services::{self, Database, Own, unique};
use signal_tests::{Gateway, Issuer, Producer, Proxy};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tokio::time::{Instant, sleep};

use crate::ledger::{MERCHANTS, members};
use crate::run_state::{Condition, Known, RunState};
use crate::schedule::{CLOCKED, Fault, Hindrance, MEMBERS, Service};
use crate::watch::STUCK_AFTER;

/// The number of the gateway that joins and leaves.
const GUEST: usize = MEMBERS;
const PARTITIONS: i32 = 6;
/// How long a gateway may take to end after SIGTERM, and to start.
const CHANGE_LIMIT: Duration = Duration::from_secs(40);

/// The ways of one gateway.
struct Ways {
    database: Proxy,
    redis: Proxy,
}

/// Everything around the gateways, and they themselves.
pub(crate) struct Stage {
    run: RunState,
    pub(crate) issuer: Arc<Issuer>,
    pub(crate) topic: String,
    database: Database,
    postgres: Own,
    redis: Own,
    kafka: Own,
    kafka_way: Proxy,
    ways: Vec<Ways>,
    gateways: Vec<Gateway>,
    /// The file that says how far the clock of [`CLOCKED`] is off.
    clock: Option<PathBuf>,
    settings: Builder,
}

impl Stage {
    /// Starts everything. `None` where a server is not installed, which is said.
    pub(crate) async fn start(run: &RunState) -> Result<Option<Self>> {
        let Some((kafka, kafka_way)) = services::own_kafka_behind_proxy().await else {
            return Ok(None);
        };
        let Some(postgres) = services::own_postgres().await else {
            return Ok(None);
        };
        let Some(redis) = services::redis().await else {
            return Ok(None);
        };
        let database = services::database_on(&postgres).await;
        let (issuer, topic) = (Arc::new(Issuer::start().await), unique("soak"));
        let producer = Producer::new(&kafka.address().to_string())?;
        producer.create_topic(&topic, PARTITIONS).await?;
        producer.create_topic(&format!("{topic}.dlq"), 1).await?;
        let settings = Gateway::build()
            .trust(&issuer)
            .kafka(&kafka_way.address().to_string(), &topic)
            .set("kafka.stuck_after_secs", STUCK_AFTER.as_secs() as i64)
            .postgres(&database)
            .live("observability.log_filter", "info");
        let policies = settings.policies().await;
        for merchant in 1..=MERCHANTS {
            for user in members(merchant) {
                let domain = format!("Merchant_m{merchant}");
                policies.join(&format!("u{user}"), &domain).await?;
            }
        }
        let library = signal_services::fake_clock();
        let mut stage = Self {
            run: run.clone(),
            issuer,
            topic,
            database,
            postgres,
            redis,
            kafka,
            kafka_way,
            ways: Vec::new(),
            gateways: Vec::new(),
            clock: library
                .is_some()
                .then(|| settings.dir().join("clock-offset")),
            settings,
        };
        for number in 0..=GUEST {
            stage.start_gateway(number, library.as_deref()).await?;
        }
        stage.terminate(GUEST).await;
        Ok(Some(stage))
    }

    async fn start_gateway(&mut self, number: usize, library: Option<&Path>) -> Result<()> {
        let ways = Ways {
            database: Proxy::to(self.postgres.address()).await,
            redis: Proxy::to(self.redis.address()).await,
        };
        let mut settings = self
            .settings
            .clone()
            .postgres_url(&self.database.through(ways.database.address()))
            .redis(ways.redis.address());
        if let (CLOCKED, Some(library), Some(file)) = (number, library, &self.clock) {
            std::fs::write(file, "+0")?;
            settings = settings
                .environment("LD_PRELOAD", library.display().to_string())
                .environment("FAKETIME_TIMESTAMP_FILE", file.display().to_string())
                .environment("FAKETIME_CACHE_DURATION", "1")
                .environment("FAKETIME_DONT_FAKE_MONOTONIC", "1")
                .environment("DONT_FAKE_MONOTONIC", "1");
        }
        self.ways.push(ways);
        self.gateways.push(settings.start_number(number).await);
        self.is_up(number);
        Ok(())
    }

    /// Whether a clock can be stepped here.
    pub(crate) fn has_clock(&self) -> bool {
        self.clock.is_some()
    }

    /// Where producers find the broker: not through the proxy.
    pub(crate) fn brokers(&self) -> String {
        self.kafka.address().to_string()
    }

    /// A connection to the database that passes no proxy.
    pub(crate) async fn connect(&self) -> Result<PgConnection> {
        let connection = PgConnection::connect(&self.database.url).await;
        connection.context("the database does not answer the harness")
    }

    /// Begins a fault.
    pub(crate) async fn begin(&mut self, fault: Fault) -> Result<()> {
        self.run.begin(fault);
        match fault {
            Fault::Kill(number) => {
                self.run.change(number, Condition::Gone);
                self.gateways[number].kill();
            }
            Fault::Freeze(number) => {
                self.run.change(number, Condition::Frozen);
                self.gateways[number].signal("STOP");
            }
            Fault::Terminate(number) => self.terminate(number).await,
            Fault::Way(service, whose, hindrance) => self.hinder(service, whose, Some(hindrance)),
            Fault::ReadOnly => self.read_only(true).await?,
            Fault::Down(service) => self.server(service).kill().await,
            Fault::Join => self.bring_up(GUEST).await,
            Fault::Clock(by) => self.step_clock(by)?,
        }
        Ok(())
    }

    /// Ends faults: those of servers first, since a gateway that starts needs them.
    pub(crate) async fn end(&mut self, faults: &[Fault]) -> Result<()> {
        for fault in faults {
            match *fault {
                Fault::Way(service, whose, _) => self.hinder(service, whose, None),
                Fault::ReadOnly => self.read_only(false).await?,
                Fault::Down(service) => self.server(service).restart().await,
                Fault::Join => self.terminate(GUEST).await,
                Fault::Clock(_) => self.step_clock(0)?,
                Fault::Kill(_) | Fault::Freeze(_) | Fault::Terminate(_) => {}
            }
        }
        for fault in faults {
            match *fault {
                Fault::Kill(number) | Fault::Terminate(number) => self.bring_up(number).await,
                Fault::Freeze(number) => {
                    self.gateways[number].signal("CONT");
                    self.run.change(number, Condition::Running);
                }
                _ => {}
            }
        }
        self.run.end_all();
        self.expect_alive().await;
        Ok(())
    }

    /// A gateway that ended unasked is a failure; it is started again.
    async fn expect_alive(&mut self) {
        for number in 0..MEMBERS {
            if let Some(status) = self.gateways[number].ended() {
                self.run
                    .fail(format!("gateway {number} ended with {status}"));
                self.bring_up(number).await;
            }
        }
    }

    fn server(&self, service: Service) -> Own {
        match service {
            Service::Database => self.postgres.clone(),
            Service::Redis => self.redis.clone(),
            Service::Kafka => self.kafka.clone(),
        }
    }

    fn hinder(&self, service: Service, whose: Option<usize>, hindrance: Option<Hindrance>) {
        let act = |proxy: &Proxy| match hindrance {
            Some(Hindrance::Cut) => proxy.cut(),
            Some(Hindrance::Stall) => proxy.stall(),
            Some(Hindrance::Slow(by)) => proxy.slow(by),
            None => proxy.restore(),
        };
        if service == Service::Kafka {
            return act(&self.kafka_way);
        }
        for (number, ways) in self.ways.iter().enumerate() {
            if whose.is_none_or(|whose| whose == number) {
                match service {
                    Service::Database => act(&ways.database),
                    _ => act(&ways.redis),
                }
            }
        }
    }

    async fn read_only(&self, on: bool) -> Result<()> {
        let mut connection = self.connect().await?;
        let value = if on { "on" } else { "off" };
        let sql = format!("alter system set default_transaction_read_only = {value}");
        sqlx::raw_sql(AssertSqlSafe(sql))
            .execute(&mut connection)
            .await?;
        sqlx::raw_sql("select pg_reload_conf()")
            .execute(&mut connection)
            .await?;
        Ok(())
    }

    fn step_clock(&self, milliseconds: i64) -> Result<()> {
        let Some(file) = &self.clock else {
            return Ok(());
        };
        let draft = file.with_extension("draft");
        let sign = if milliseconds < 0 { '-' } else { '+' };
        let (seconds, rest) = (milliseconds.abs() / 1000, milliseconds.abs() % 1000);
        std::fs::write(&draft, format!("{sign}{seconds}.{rest:03}"))?;
        std::fs::rename(&draft, file)?;
        Ok(())
    }

    /// SIGTERM, and its end.
    async fn terminate(&mut self, number: usize) {
        self.run.change(number, Condition::Changing);
        self.gateways[number].signal("TERM");
        let begun = Instant::now();
        loop {
            if let Some(status) = self.gateways[number].ended() {
                if !status.success() {
                    self.run.fail(format!(
                        "gateway {number} ended with {status} after SIGTERM"
                    ));
                }
                break;
            }
            if begun.elapsed() > CHANGE_LIMIT {
                self.run.fail(format!(
                    "gateway {number} did not end within {CHANGE_LIMIT:?} of SIGTERM"
                ));
                break;
            }
            sleep(Duration::from_millis(50)).await;
        }
        self.gateways[number].kill();
        self.run.change(number, Condition::Gone);
    }

    /// Starts a gateway that is gone. While a server recovers it may end again, as a pod would.
    async fn bring_up(&mut self, number: usize) {
        let begun = Instant::now();
        while let Err(why) = self.gateways[number].try_restart().await {
            if begun.elapsed() > CHANGE_LIMIT {
                let failure = format!("gateway {number} does not start: {why}");
                return self.run.fail(failure);
            }
            sleep(Duration::from_millis(500)).await;
        }
        self.is_up(number);
    }

    fn is_up(&self, number: usize) {
        let gateway = &self.gateways[number];
        let known = Known {
            public: gateway.address(),
            admin: gateway.admin_address(),
            pid: gateway.pid().unwrap_or_default(),
            condition: Condition::Running,
            since: Instant::now(),
        };
        self.run.set(number, known);
    }

    /// Copies every log and every setting of the gateways into a folder.
    pub(crate) fn keep_logs(&self, folder: &Path) -> Result<()> {
        for entry in std::fs::read_dir(self.settings.dir())?.flatten() {
            let name = entry.file_name();
            let text = name.to_string_lossy();
            if text.ends_with(".log") || text.ends_with(".toml") {
                std::fs::copy(entry.path(), folder.join(&name))?;
            }
        }
        Ok(())
    }
}

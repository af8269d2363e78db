//! The command line: reads arguments and settings, starts telemetry and runs a subcommand.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use axum::Router;
use clap::{Args, Parser, Subcommand};
use signal_gateway::activity::TopicState;
use signal_gateway::activity::replay::{self, ReplayOptions};
use signal_gateway::app::{self, Sockets};
use signal_gateway::config::{self, Config};
use signal_gateway::lifecycle::Lifecycle;
use signal_gateway::{activity, dev, memory, store, telemetry};
use tokio::signal::unix::{SignalKind, signal};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The realtime edge: clients hold a WebSocket to it, services only publish.
#[derive(Debug, Parser)]
#[command(name = "signal-gateway", version, about, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve until SIGTERM, then drain; a second SIGTERM exits at once
    Serve(Settings),
    /// Serve with everything embedded: SQLite, a broker, an issuer, and users and merchants to try it with
    Dev(dev::Arguments),
    /// Check the settings and print everything that is wrong, without connecting anywhere
    CheckConfig {
        #[command(flatten)]
        settings: Settings,
        /// Also connect to the policy database, and print which rows of the platform's table are not understood; exits 1 if there are any
        #[arg(long)]
        database: bool,
        /// Also ask the Kafka brokers for every topic and its dead-letter topic, and print which are missing; exits 1 if there are any. Creates nothing
        #[arg(long)]
        kafka: bool,
    },
    /// Migrate the notification database to the schema of this version, under a lock
    Migrate(Settings),
    /// Ask a running gateway's admin listener whether it is ready; exits 0 or 1
    Healthcheck {
        #[command(flatten)]
        settings: Settings,
        /// Ask /livez instead of /readyz
        #[arg(long)]
        live: bool,
    },
    /// Work with dead letters
    #[command(subcommand)]
    Dlq(Dlq),
}

#[derive(Debug, Subcommand)]
enum Dlq {
    /// Produce dead letters again to the topic they came from
    Replay {
        #[command(flatten)]
        settings: Settings,
        /// The topic that the dead letters came from
        #[arg(long)]
        topic: String,
        /// Only dead letters with this reason in their header; may be repeated
        #[arg(long = "reason", value_name = "REASON", value_parser = reason)]
        reasons: Vec<activity::DeadLetterReason>,
        /// Replay at most this many
        #[arg(long, value_name = "COUNT")]
        limit: Option<u64>,
        /// Only count; produce and commit nothing
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Debug, Args)]
struct Settings {
    /// TOML file with static settings; missing keys have their defaults, and SIGNAL__SECTION__KEY overrides the file
    #[arg(long, value_name = "FILE", env = "SIGNAL_CONFIG")]
    config: Option<PathBuf>,
}

impl Settings {
    fn load(&self) -> anyhow::Result<Config> {
        Ok(config::load(self.config.as_deref(), std::env::vars())?)
    }
}

fn main() -> ExitCode {
    // For every TLS client of the process; the trace exporter makes one before a runtime exists.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let arguments = Arguments::parse();
    let outcome = match arguments.command {
        Command::Serve(settings) => serve(&settings),
        Command::Dev(arguments) => match arguments.split() {
            Ok(options) => develop(options),
            Err(command) => command.run(),
        },
        Command::CheckConfig {
            settings,
            database,
            kafka,
        } => check(&settings, database, kafka),
        Command::Migrate(settings) => migrate(&settings),
        Command::Healthcheck { settings, live } => healthcheck(&settings, live),
        Command::Dlq(Dlq::Replay {
            settings,
            topic,
            reasons,
            limit,
            dry_run,
        }) => replay_dead_letters(
            &settings,
            ReplayOptions {
                topic,
                reasons,
                limit,
                dry_run,
            },
        ),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("signal-gateway: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Prints a line for a person at a terminal to standard error, like the log.
#[expect(
    clippy::print_stderr,
    reason = "the only place that prints to a terminal"
)]
fn say(text: &str) {
    eprintln!("{text}");
}

fn runtime(threads: usize) -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name("control")
        .on_thread_park(memory::give_back)
        .enable_all()
        .build()
        .context("cannot start a runtime")
}

/// Turns off transparent huge pages. The memory of many small connections is used sparsely, and huge pages would double it.
fn turn_off_huge_pages() {
    #[expect(unsafe_code, reason = "there is no safe name for this call")]
    // SAFETY: no memory is involved; a kernel that does not know the option refuses it, which is harmless.
    unsafe {
        libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0);
    }
}

/// After this many milliseconds, pages that a grown index or a finished handshake freed go back to the kernel. With the allocator's default of a second
/// they often stay: once many clients have connected and are idle, nothing triggers the purge.
const PURGE_DELAY_MS: std::ffi::c_long = 100;
/// `mi_option_purge_delay` of mimalloc.h, which the bindings lack. The numbers of options never change.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

fn purge_soon() {
    #[expect(unsafe_code, reason = "the allocator's settings have no safe name")]
    // SAFETY: it writes one number of the allocator, and only if `MIMALLOC_PURGE_DELAY` is not set.
    unsafe {
        libmimalloc_sys::mi_option_set_default(PURGE_DELAY, PURGE_DELAY_MS);
    }
}

fn serve(settings: &Settings) -> anyhow::Result<()> {
    turn_off_huge_pages();
    purge_soon();
    let config = settings.load()?;
    app::check(&config)?;
    let filter = app::log_filter(&config)?;
    let telemetry = telemetry::init(&config.observability, &filter, &config.server.instance_name)?;
    let runtime = runtime(config.workers.control_threads)?;
    let result = runtime.block_on(async {
        let lifecycle = Arc::new(Lifecycle::default());
        drain_on_signals(&lifecycle)?;
        let sockets = Sockets::bind(&config)?;
        app::run(config, sockets, lifecycle, Some(telemetry), Router::new()).await
    });
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    result
}

/// Makes the first SIGTERM or SIGINT request a drain and the next one an exit at once. Called before anything slow, so that an early signal is not lost.
fn drain_on_signals(lifecycle: &Arc<Lifecycle>) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let lifecycle = Arc::clone(lifecycle);
    tokio::spawn(async move {
        let mut signalled = false;
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            // Only a second signal skips the drain; one that was requested over HTTP does not count.
            if signalled {
                lifecycle.request_exit()
            } else {
                lifecycle.request_drain()
            }
            signalled = true;
        }
    });
    Ok(())
}

fn develop(options: dev::Options) -> anyhow::Result<()> {
    let prepared = options.prepare(std::env::vars())?;
    let config = prepared.config();
    app::check(config)?;
    let filter = app::log_filter(config)?;
    let telemetry = telemetry::init(&config.observability, &filter, &config.server.instance_name)?;
    let program = std::env::args_os()
        .next()
        .map_or_else(|| "signal-gateway".into(), PathBuf::from);
    let runtime = runtime(config.workers.control_threads)?;
    let result = runtime.block_on(async {
        let lifecycle = Arc::new(Lifecycle::default());
        drain_on_signals(&lifecycle)?;
        prepared.run(&program, lifecycle, Some(telemetry)).await
    });
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    result
}

fn check(settings: &Settings, database: bool, kafka: bool) -> anyhow::Result<()> {
    let config = settings.load()?;
    app::check(&config)?;
    app::check_files(&config)?;
    say("the settings are valid");
    if database {
        check_policies(&config)?;
    }
    if kafka {
        check_topics(&config)?;
    }
    Ok(())
}

/// Prints what the brokers know of each topic. Nothing is created.
fn check_topics(config: &Config) -> anyhow::Result<()> {
    let mut unusable = 0;
    let looked = runtime(1)?
        .block_on(activity::look_at_topics(&config.kafka))
        .context("the Kafka brokers")?;
    for topic in looked {
        let name = &topic.name;
        let kind = if topic.is_of_dead_letters {
            "dead-letter topic"
        } else {
            "topic"
        };
        match topic.state {
            TopicState::Exists(partitions) => {
                say(&format!("the {kind} {name} has {partitions} partitions"));
                continue;
            }
            TopicState::Missing if topic.is_of_dead_letters => say(&format!(
                "the {kind} {name} is missing: a gateway creates it when it starts, if its login may"
            )),
            TopicState::Missing => say(&format!("the {kind} {name} is missing")),
            TopicState::Refused(why) => {
                say(&format!("the {kind} {name} cannot be looked at: {why}"));
            }
        }
        unusable += 1;
    }
    anyhow::ensure!(
        unusable == 0,
        "{unusable} topics are missing or cannot be looked at"
    );
    Ok(())
}

/// Prints what the platform's table holds. Nothing is written, and no migration runs.
fn check_policies(config: &Config) -> anyhow::Result<()> {
    let survey = runtime(1)?
        .block_on(store::survey_policies(&config.database, &config.policy))
        .context("the policy tables")?;
    say(&format!("the table {} can be read", survey.table));
    for (variant, count) in &survey.variants {
        say(&format!("  {count} rows of variant {variant:?}"));
    }
    match survey.deleted {
        Some(count) => say(&format!("  {count} deleted rows, which are not read")),
        None => say("  no column marks deleted rows"),
    }
    if survey.incomplete {
        say("  rows of too many kinds: the rarest are not counted");
    }
    for unread in &survey.unread {
        say(&format!("not understood: {unread}"));
    }
    anyhow::ensure!(
        survey.unread.is_empty() && !survey.incomplete,
        "{} policy rows are not understood",
        survey.unread_rows()
    );
    Ok(())
}

fn migrate(settings: &Settings) -> anyhow::Result<()> {
    let config = settings.load()?;
    let _telemetry = telemetry::init(&config.observability, "info", &config.server.instance_name)?;
    let migrated = runtime(1)?.block_on(store::migrate(&config.database))?;
    say(&format!(
        "applied {:?}; the database is at version {}",
        migrated.applied, migrated.version
    ));
    Ok(())
}

fn healthcheck(settings: &Settings, live: bool) -> anyhow::Result<()> {
    let mut address = settings.load()?.server.admin_address;
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() {
            [127, 0, 0, 1].into()
        } else {
            std::net::Ipv6Addr::LOCALHOST.into()
        });
    }
    let path = if live { "livez" } else { "readyz?verbose" };
    runtime(1)?.block_on(async {
        let client = reqwest::Client::builder()
            .no_proxy()
            .timeout(std::time::Duration::from_secs(3))
            .build()?;
        let response = client
            .get(format!("http://{address}/{path}"))
            .send()
            .await?;
        let status = response.status();
        let text = response.text().await?;
        anyhow::ensure!(status.is_success(), "{status}: {}", text.trim());
        say(text.trim());
        Ok(())
    })
}

fn reason(text: &str) -> Result<activity::DeadLetterReason, String> {
    let known = activity::DeadLetterReason::ALL;
    known
        .into_iter()
        .find(|reason| reason.as_str() == text)
        .ok_or_else(|| {
            let names: Vec<_> = known.iter().map(|reason| reason.as_str()).collect();
            format!("must be one of {}", names.join(", "))
        })
}

fn replay_dead_letters(settings: &Settings, options: ReplayOptions) -> anyhow::Result<()> {
    let config = settings.load()?;
    let _telemetry = telemetry::init(&config.observability, "warn", &config.server.instance_name)?;
    let report = runtime(1)?.block_on(replay::replay(&config.kafka, options))?;
    say(&serde_json::to_string_pretty(&report)?);
    Ok(())
}

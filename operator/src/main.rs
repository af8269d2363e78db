//! Reads the arguments, sets up the log, and runs the subcommand; nothing to test here.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser as _;
use kube::client::ClientBuilder;
use signal_operator::args::{Arguments, Command, LogFormat, Run};
use signal_operator::control::clusters::Clusters;
use signal_operator::control::external_scaler;
use signal_operator::control::run::BackgroundTask;
use signal_operator::healthcheck;
use signal_operator::metrics::Metrics;
use signal_operator::observe::admin_client::AdminClient;
use signal_operator::requests::CountRequests;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Longest time for an answer to `healthcheck`.
const HEALTHCHECK_LIMIT: Duration = Duration::from_secs(3);
/// Longest time to connect to the API server.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stderr, reason = "the log may not have been set up")]
fn complain(error: &anyhow::Error) {
    eprintln!("signal-operator: {error:#}");
}

#[expect(
    clippy::print_stdout,
    reason = "printing is what the subcommand is for"
)]
fn start() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Crd => {
            print!("{}", signal_crds::crd_yaml());
            Ok(())
        }
        Command::Healthcheck { url } => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .context("start the runtime")?;
            println!(
                "{}",
                runtime.block_on(healthcheck::check(&url, HEALTHCHECK_LIMIT))?
            );
            Ok(())
        }
        Command::Run(args) => {
            log(&args)?;
            rustls::crypto::ring::default_provider()
                .install_default()
                .map_err(|_| anyhow::anyhow!("a cryptographic provider is installed already"))?;
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .enable_all()
                .build()
                .context("start the runtime")?;
            runtime.block_on(serve(*args))
        }
    }
}

fn log(args: &Run) -> anyhow::Result<()> {
    // Callers log their failed requests themselves. A filter that names kube_client turns its own lines on again.
    let filter = EnvFilter::try_new(format!("kube_client=off,{}", args.log_filter))
        .with_context(|| format!("read the log filter {:?}", args.log_filter))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter);
    match args.log_format {
        LogFormat::Json => log.json().flatten_event(true).init(),
        LogFormat::Text => log.init(),
    }
    Ok(())
}

async fn serve(args: Run) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let mut asked = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupted = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let cancel = stop.clone();
    let signals = async move {
        tokio::select! {
            _ = asked.recv() => {}
            _ = interrupted.recv() => {}
        }
        tracing::info!("signal received; stopping");
        cancel.cancel();
        std::future::pending::<anyhow::Result<()>>().await
    };
    let mut config = kube::Config::infer()
        .await
        .context("find out how to reach the API server")?;
    config.connect_timeout = Some(CONNECT_LIMIT);
    let metrics = Metrics::default();
    let client = ClientBuilder::try_from(config)
        .context("make a client of the API server")?
        .with_layer(&CountRequests(metrics.clone()))
        .build();
    let pods = AdminClient::new().context("make a client of the pods")?;
    let listener = TcpListener::bind(args.scaler_address)
        .await
        .with_context(|| format!("bind the scaler address {}", args.scaler_address))?;
    let tasks = move |clusters: &Clusters, stop: CancellationToken| {
        let scaler = external_scaler::serve(clusters.store().clone(), listener, stop);
        vec![
            Box::pin(async move { scaler.await.context("serve the external scaler") })
                as BackgroundTask,
        ]
    };
    tokio::select! {
        outcome = signal_operator::control::run::run(args, client, pods, metrics, tasks, stop) => outcome,
        outcome = signals => outcome,
    }
}

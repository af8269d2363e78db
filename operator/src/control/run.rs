//! The process: starts every task once, awaits each of them, and ends them in order.
//!
//! Order: admin listener -> wait for the definition of SignalCluster -> watch SignalClusters and kinds -> lease -> controller, while the lease is held.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kube::runtime::events::EventType;
use kube::{Api, Client, Resource as _};
use rand::Rng as _;
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::act::events::Events;
use crate::act::fence::Fence;
use crate::act::writer::Writer;
use crate::args::{Allow, Run};
use crate::control::admin::{self, Pending};
use crate::control::clusters::{Clusters, Scope};
use crate::control::controller;
use crate::control::kinds::{self, SIGNAL};
use crate::control::lease::{self, Lease};
use crate::metrics::Metrics;
use crate::observe::admin_client::AdminClient;
use crate::observe::observed::PodAllowances;
use crate::observe::polls::Polls;
use crate::observe::{Poll, Reader};
use crate::reasons::EventReason;
use crate::reconcile::context::{Context, Settings};
use crate::time::about;

/// Between two attempts to find the definition.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// Longest time for the listeners to end.
const LISTENER_LIMIT: Duration = Duration::from_secs(2);

/// A task that runs until its token is cancelled; one that ends before is an error.
pub type BackgroundTask = Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>>;

/// Runs until `stop`. `more` makes further tasks from the watched SignalClusters; the token ends them after the last reconcile has ended.
///
/// # Errors
/// When a task cannot start, or ends before `stop`.
pub async fn run(
    args: Run,
    client: Client,
    pods: AdminClient,
    metrics: Metrics,
    more: impl FnOnce(&Clusters, CancellationToken) -> Vec<BackgroundTask>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let pending = Pending::default();
    pending.wait("start", "the API server has not been asked yet");
    let listener = TcpListener::bind(args.admin_address)
        .await
        .with_context(|| format!("bind the admin address {}", args.admin_address))?;
    let listener_stop = CancellationToken::new();
    let mut admin = tokio::spawn(admin::serve(
        listener,
        pending.clone(),
        metrics.clone(),
        listener_stop.clone(),
    ));
    let work = work(args, client, pods, more, &pending, &metrics, &stop);
    let outcome = tokio::select! {
        outcome = work => outcome,
        ended = &mut admin => return Err(anyhow::anyhow!("the admin listener ended unexpectedly: {ended:?}")),
    };
    listener_stop.cancel();
    // An open connection does not delay the end.
    let _ = tokio::time::timeout(LISTENER_LIMIT, admin).await;
    outcome
}

async fn work(
    args: Run,
    client: Client,
    pods: AdminClient,
    more: impl FnOnce(&Clusters, CancellationToken) -> Vec<BackgroundTask>,
    pending: &Pending,
    metrics: &Metrics,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let identity = format!(
        "{}_{:016x}",
        args.pod_name.as_deref().unwrap_or("signal-operator"),
        rand::rng().random::<u64>()
    );
    let scopes = Scope::of(&args.namespaces);
    let waiting = wait_for_crd(&client, &scopes, &args, &identity, pending, metrics);
    let Some(kinds) = stop.run_until_cancelled(waiting).await else {
        return Ok(());
    };
    let (kinds_sender, kinds) = watch::channel(kinds);
    let (clusters, follow) =
        Clusters::watch(&client, &scopes, &args.selector, metrics, &pending.scopes);
    let mut tasks: JoinSet<_> = follow.into_iter().map(endless).collect();
    let kinds_doubted = Arc::new(Notify::new());
    let follow_kinds = kinds::follow(
        client.clone(),
        scopes.clone(),
        kinds_sender,
        kinds_doubted.clone(),
        metrics.clone(),
    );
    tasks.spawn(endless(follow_kinds));
    let watches = tasks.len();
    let after = CancellationToken::new();
    for task in more(&clusters, after.clone()) {
        tasks.spawn(task);
    }
    pending.wait("signalclusters", "they have not been listed yet");
    pending.done("start");
    let listed = report_listed(&clusters, pending);
    let fence = Fence::default();
    let settings = lease_settings(&args, &client, &identity);
    let (leading, is_leading) = watch::channel(false);
    let release = CancellationToken::new();
    let mut lease = tokio::spawn(
        Lease::new(client.clone(), settings, fence.clone()).run(leading, release.clone()),
    );
    let mut context = Context::new(
        Reader {
            client: client.clone(),
            kinds,
            polls: Polls::new(poll(&pods), metrics.clone()),
            allowed: allowed(&args.allow),
        },
        Writer::new(client.clone(), fence.clone(), metrics.clone()),
        Events::new(client, identity, fence),
        pods,
        metrics.clone(),
        args.pod_namespace.clone(),
        Settings {
            concurrency: args.concurrency,
            resync: args.resync(),
        },
    );
    context.kinds_doubted = kinds_doubted;
    let lead = lead(
        Arc::new(context),
        &clusters,
        &scopes,
        is_leading,
        metrics,
        stop,
    );
    let outcome = tokio::select! {
        () = lead => Ok(()),
        () = listed => Ok(()),
        ended = &mut lease => Err(anyhow::anyhow!("the lease's task ended unexpectedly: {ended:?}")),
        Some(ended) = tasks.join_next() => Err(anyhow::anyhow!("a background task ended unexpectedly: {ended:?}")),
    };
    after.cancel();
    // No reconcile runs any more, so another process may take the lease at once.
    release.cancel();
    if outcome.is_ok() {
        lease.await.context("the lease's task")?;
    }
    end(tasks, watches).await;
    outcome
}

fn allowed(allow: &Allow) -> PodAllowances {
    PodAllowances {
        service_accounts: allow.allow_service_accounts,
        secret_volumes: allow.allow_secret_volumes,
        extra_containers: allow.allow_extra_containers,
        host_access: allow.allow_host_access,
    }
}

/// Waits, within a limit, for all tasks but the watches, which never end.
async fn end(mut tasks: JoinSet<anyhow::Result<()>>, watches: usize) {
    let ended = async { while tasks.len() > watches && tasks.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(LISTENER_LIMIT, ended).await;
}

/// Reports the first list of SignalClusters to readiness; never ends.
async fn report_listed(clusters: &Clusters, pending: &Pending) {
    // An error means that a watching task has ended, which ends the process elsewhere.
    let _ = clusters.store().wait_until_ready().await;
    pending.done("signalclusters");
    std::future::pending().await
}

fn lease_settings(args: &Run, client: &Client, identity: &str) -> lease::Settings {
    let namespaces = [&args.lease.lease_namespace, &args.pod_namespace];
    lease::Settings {
        namespace: namespaces
            .into_iter()
            .flatten()
            .next()
            .cloned()
            .unwrap_or_else(|| client.default_namespace().to_owned()),
        name: args.lease.lease_name.clone(),
        identity: identity.to_owned(),
        duration: args.lease.duration(),
    }
}

async fn endless(task: impl Future<Output = ()>) -> anyhow::Result<()> {
    task.await;
    Ok(())
}

/// Polls the status of pods over their admin listener.
pub fn poll(pods: &AdminClient) -> Poll {
    let pods = pods.clone();
    Arc::new(move |ip, port, token| {
        let pods = pods.clone();
        Box::pin(async move { pods.status(ip, port, &token).await })
    })
}

/// Runs the controller while the lease is held, until `stop`.
async fn lead(
    context: Arc<Context>,
    clusters: &Clusters,
    scopes: &[Scope],
    mut leading: watch::Receiver<bool>,
    metrics: &Metrics,
    stop: &CancellationToken,
) {
    loop {
        let elected = async { leading.wait_for(|leading| *leading).await.is_ok() };
        if stop.run_until_cancelled(elected).await != Some(true) {
            return;
        }
        metrics.leader.set(1);
        let term = stop.child_token();
        let over = async {
            // An error means that the lease's task has ended, which ends the process in `work`.
            let _ = leading.wait_for(|leading| !*leading).await;
            term.cancel();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = controller::run(context.clone(), clusters, scopes, term.clone()) => {}
            () = over => {}
        }
        metrics.leader.set(0);
    }
}

/// Waits until the API server knows SignalCluster, and reports that it waits. Returns the optional kinds.
async fn wait_for_crd(
    client: &Client,
    scopes: &[Scope],
    args: &Run,
    identity: &str,
    pending: &Pending,
    metrics: &Metrics,
) -> crate::observe::observed::KindsByNamespace {
    let mut reported = false;
    loop {
        let why = match kinds::knows_signal_cluster(client).await {
            Ok(true) => match kinds::discover(client, scopes).await {
                Ok(kinds) => {
                    metrics.crd_present.set(1);
                    return kinds;
                }
                Err(error) => format!("the API server does not list its kinds: {error}"),
            },
            Ok(false) => {
                if !reported {
                    tracing::warn!(
                        "CustomResourceDefinition signalclusters.signal.dev is not installed; waiting for it"
                    );
                    report_missing_crd(client, args, identity).await;
                    reported = true;
                }
                format!(
                    "the API server does not know SignalCluster ({SIGNAL}): install the CustomResourceDefinition"
                )
            }
            Err(error) => format!("the API server does not answer: {error}"),
        };
        pending.wait("start", why);
        tokio::time::sleep(about(LOOK_AGAIN)).await;
    }
}

/// One Warning on the operator's own pod.
async fn report_missing_crd(client: &Client, args: &Run, identity: &str) {
    let (Some(name), Some(namespace)) = (&args.pod_name, &args.pod_namespace) else {
        return;
    };
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let object = match pods.get_opt(name).await {
        Ok(Some(pod)) => pod.object_ref(&()),
        // Without the right to read pods the Event still refers to its pod by name.
        _ => ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            name: Some(name.clone()),
            namespace: Some(namespace.clone()),
            ..ObjectReference::default()
        },
    };
    let note = format!(
        "the API server does not know SignalCluster ({SIGNAL}): install the chart signal-crds; the operator waits for it"
    );
    Events::of_the_process(client.clone(), identity.to_owned())
        .publish_on(
            &object,
            EventType::Warning,
            EventReason::CustomResourceDefinitionMissing.as_str(),
            &note,
        )
        .await;
}

//! Real processes: one leads, the others stand by; whatever happens to the leader, a standby takes over within the lease duration.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::events::v1::Event;
use kube::api::ListParams;
use kube::{Api, Client};

use signal_services::Component;

use crate::{Server, Stage, define, signal, skip, touch, until};

const LEASE: Duration = Duration::from_secs(6);
/// What a loaded machine may add.
pub(crate) const SLACK: Duration = Duration::from_secs(20);

/// One operator process; it ends with the test.
pub(crate) struct Operator {
    child: Child,
    admin: SocketAddr,
}

/// How an operator process is started.
pub(crate) struct OperatorCommand {
    pub(crate) command: Command,
    admin: SocketAddr,
}

impl OperatorCommand {
    pub(crate) fn start(mut self) -> Operator {
        Operator {
            child: self.command.spawn().unwrap(),
            admin: self.admin,
        }
    }
}

impl Operator {
    pub(crate) fn start(kubeconfig: &Path, namespace: &str, pod: &str) -> Self {
        Self::start_with(kubeconfig, namespace, pod, &[])
    }

    pub(crate) fn start_with(
        kubeconfig: &Path,
        namespace: &str,
        pod: &str,
        arguments: &[&str],
    ) -> Self {
        let mut operator = Self::command(kubeconfig, namespace, pod);
        operator.command.args(arguments);
        operator.start()
    }

    /// One that is to be started.
    pub(crate) fn command(kubeconfig: &Path, namespace: &str, pod: &str) -> OperatorCommand {
        let free = || {
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
                .unwrap()
                .local_addr()
                .unwrap()
        };
        let (admin, scaler) = (free(), free());
        let mut command = Command::new(env!("CARGO_BIN_EXE_signal-operator"));
        command
            .args([
                "run",
                "--namespace",
                namespace,
                "--admin-address",
                &admin.to_string(),
                "--scaler-address",
                &scaler.to_string(),
            ])
            .args([
                "--lease-duration-secs",
                &LEASE.as_secs().to_string(),
                "--log-format",
                "text",
            ])
            .env("KUBECONFIG", kubeconfig)
            .env("POD_NAME", pod)
            .env("POD_NAMESPACE", namespace)
            .stdin(Stdio::null());
        OperatorCommand { command, admin }
    }

    pub(crate) async fn get(&self, path: &str) -> Option<(u16, String)> {
        let client = reqwest::Client::builder()
            .no_proxy()
            .timeout(Duration::from_secs(2))
            .build()
            .unwrap();
        let answer = client
            .get(format!("http://{}{path}", self.admin))
            .send()
            .await
            .ok()?;
        Some((answer.status().as_u16(), answer.text().await.ok()?))
    }

    pub(crate) async fn metric(&self, name: &str) -> Option<f64> {
        let (_, text) = self.get("/metrics").await?;
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
    }

    /// Over all labels.
    pub(crate) async fn sum(&self, name: &str) -> f64 {
        let (_, text) = self.get("/metrics").await.expect("its metrics");
        let values = text
            .lines()
            .filter(|line| line.starts_with(name))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        values.sum()
    }

    /// What of its memory is in RAM.
    pub(crate) fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    pub(crate) async fn leads(&self) -> bool {
        self.metric("signal_operator_leader ").await == Some(1.0)
    }

    async fn stands_by(&self) -> bool {
        self.metric("signal_operator_leader ").await == Some(0.0)
            && self
                .get("/readyz")
                .await
                .is_some_and(|(code, _)| code == 200)
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn the_lease_goes_on_when_its_holder_is_killed_stopped_or_asked_to_end() {
    let Some(stage) =
        Stage::new("the_lease_goes_on_when_its_holder_is_killed_stopped_or_asked_to_end").await
    else {
        return;
    };
    let kubeconfig = stage.server.cluster.kubeconfig();
    let first = Operator::start(&kubeconfig, &stage.namespace, "one");
    until("the first leads", SLACK, async || first.leads().await).await;
    let mut second = Operator::start(&kubeconfig, &stage.namespace, "two");
    until("the second is ready and stands by", SLACK, async || {
        second.stands_by().await
    })
    .await;

    signal(first.child.id(), "STOP");
    let stopped = Instant::now();
    until(
        "the second takes over from a stopped process",
        LEASE * 2 + SLACK,
        async || second.leads().await,
    )
    .await;
    assert!(
        stopped.elapsed() >= LEASE / 2,
        "it took over while the other could still write"
    );
    signal(first.child.id(), "CONT");
    until("the stopped process notices", SLACK, async || {
        first.stands_by().await
    })
    .await;
    assert!(second.leads().await);

    signal(second.child.id(), "TERM");
    assert!(second.child.wait().unwrap().success());
    let lease = async || {
        let lease = stage.api::<Lease>().get("signal-operator").await;
        lease.unwrap().spec.unwrap()
    };
    let holder = lease().await.holder_identity.unwrap_or_default();
    assert!(
        holder.is_empty() || holder.starts_with("one_"),
        "nobody has to wait for the lease to run out: {holder}"
    );
    until(
        "the first takes over from one that let go",
        SLACK,
        async || first.leads().await,
    )
    .await;

    let mut first = first;
    let third = Operator::start(&kubeconfig, &stage.namespace, "three");
    until("the third stands by", SLACK, async || {
        third.stands_by().await
    })
    .await;
    first.child.kill().unwrap();
    until(
        "the third takes over from a killed process",
        LEASE * 2 + SLACK,
        async || third.leads().await,
    )
    .await;
    let lease = lease().await;
    assert!(lease.holder_identity.unwrap().starts_with("three_"));
    assert_eq!(lease.lease_transitions, Some(3));
}

#[tokio::test]
async fn a_change_of_a_secret_that_a_spec_names_and_a_new_cluster_are_looked_at() {
    let Some(stage) =
        Stage::new("a_change_of_a_secret_that_a_spec_names_and_a_new_cluster_are_looked_at").await
    else {
        return;
    };
    stage.cluster("edge").await;
    let operator = Operator::start(&stage.server.cluster.kubeconfig(), &stage.namespace, "one");
    let triggers = async |source: &str| {
        operator
            .metric(&format!(
                "signal_operator_triggers_total{{source=\"{source}\"}} "
            ))
            .await
            .unwrap_or(0.0)
    };
    until(
        "a change of the named Secret asks for a look",
        SLACK,
        async || {
            touch::<Secret>(&stage, "authority").await;
            triggers("named").await >= 1.0
        },
    )
    .await;
    let of_clusters = triggers("cluster").await;
    stage.cluster("other").await;
    until("another cluster asks for a look", SLACK, async || {
        triggers("cluster").await > of_clusters
    })
    .await;
    assert_eq!(
        operator.metric("signal_operator_clusters ").await,
        Some(2.0)
    );
}

/// Counts the Events of this reason.
async fn count_events(client: &Client, reason: &str) -> usize {
    let events: Api<Event> = Api::namespaced(client.clone(), "default");
    let events = events.list(&ListParams::default()).await.unwrap().items;
    events
        .iter()
        .filter(|event| event.reason.as_deref() == Some(reason))
        .count()
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one course of events, in its order")]
async fn it_waits_for_its_definition_and_outlives_an_api_server_that_is_away() {
    let server = match Server::start() {
        Ok(server) => server,
        Err(reason) => {
            return skip(
                "it_waits_for_its_definition_and_outlives_an_api_server_that_is_away",
                &reason,
            );
        }
    };
    let client = server.client().await;
    let mut operator = Operator::start(&server.cluster.kubeconfig(), "default", "one");
    let reports = async |part: &str| {
        operator
            .get("/readyz")
            .await
            .is_some_and(|(code, text)| code == 503 && text.contains(part))
    };
    until("it reports what it waits for", SLACK, async || {
        reports("install the CustomResourceDefinition").await
    })
    .await;
    assert_eq!(
        operator.get("/livez").await.map(|(code, _)| code),
        Some(200)
    );
    assert_eq!(
        operator.metric("signal_operator_crd_present ").await,
        Some(0.0)
    );
    let published = async || count_events(&client, "CustomResourceDefinitionMissing").await;
    until("it publishes an Event on its pod", SLACK, async || {
        published().await == 1
    })
    .await;

    server
        .cluster
        .stop_component(Component::ApiServer, true)
        .unwrap();
    until(
        "it reports that the API server does not answer",
        SLACK,
        async || reports("does not answer").await,
    )
    .await;
    server
        .cluster
        .start_component(Component::ApiServer)
        .unwrap();
    define(&client).await;
    until("it leads", SLACK * 2, async || operator.leads().await).await;
    assert_eq!(
        operator.metric("signal_operator_crd_present ").await,
        Some(1.0)
    );
    assert_eq!(published().await, 1, "published once");

    server
        .cluster
        .stop_component(Component::ApiServer, true)
        .unwrap();
    until(
        "it stops leading when it can renew no longer",
        LEASE + SLACK,
        async || operator.metric("signal_operator_leader ").await == Some(0.0),
    )
    .await;
    assert_eq!(
        operator.get("/livez").await.map(|(code, _)| code),
        Some(200)
    );
    server
        .cluster
        .start_component(Component::ApiServer)
        .unwrap();
    until("it leads again", LEASE * 2 + SLACK * 2, async || {
        operator.leads().await
    })
    .await;
    assert!(
        operator.child.try_wait().unwrap().is_none(),
        "it never ended"
    );
}

//! What others do to a running edge: network policies, a rollout that is stuck, a container that is killed, a webhook that is down, nodes that are full.
//! Nobody who comes is refused meanwhile.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use signal_services::Authority;
use signal_tests::Client;
use signal_tests::cluster::OwnCluster;
use signal_tests::services::scratch;
use signal_tests::wait::{until, until_within};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::LONG;
use crate::canary;
use crate::certificates;
use crate::crowd::Crowd;
use crate::edge::{Edge, Lab};
use crate::network_policy::Enforcer;
use crate::visitors::Visitors;

/// How long it may take until the status names what keeps a pod from running, counted from when the pod says so itself.
const TOLD: Duration = Duration::from_secs(10);
/// Within it a connection that a policy does not let through shows that it is none.
const UNANSWERED: Duration = Duration::from_secs(1);

/// An image that no registry has; nobody listens there.
fn no_image() -> Value {
    json!({"repository": "10.240.0.1:1/signal-gateway", "tag": "none", "pullPolicy": "IfNotPresent"})
}

fn image() -> Value {
    json!({"repository": "localhost/signal-gateway", "tag": "test", "pullPolicy": "Never"})
}

struct Scene {
    cluster: OwnCluster,
    edge: Edge,
    /// That of the database's certificate, in PEM.
    authority: String,
    crowd: Crowd,
    visitors: Visitors,
}

#[tokio::test]
async fn behind_network_policies_nobody_is_refused_whatever_becomes_of_pods() {
    let Some(lab) = Lab::start().await else {
        return;
    };
    let cluster = lab.cluster.clone();
    let enforcer = Enforcer::start(&cluster).expect("tables on every node");
    let inside = cluster.clone();
    cluster
        .outside(async move || {
            let scene = Scene::set(lab, inside).await;
            only_gateways_public_port_is_open(&scene).await;
            the_operator_answers_pods_alone(&scene).await;
            ports_change_places(&scene).await;
            ports_change_back_in_a_rollout_that_is_stuck(&scene).await;
            an_old_pod_comes_back_as_it_was(&scene).await;
            the_change_is_taken_back(&scene).await;
            pods_that_drain_refuse_nobody(&scene).await;
            a_canary_that_crashes_refuses_nobody(&scene).await;
            a_webhook_that_is_down_holds_up_its_own_kinds_alone(&scene).await;
            full_nodes_are_told_and_room_is_made(&scene).await;
            let edge = scene.leave().await;
            edge.empty_nodes();
            canary::soak(&edge, "3s");
            certificates::a_renewed_certificate_reaches_new_connections_and_closes_none(&edge)
                .await;
            canary::has_passed_alone(&edge);
        })
        .await;
    assert_eq!(enforcer.failures(), BTreeMap::new());
}

impl Scene {
    async fn set(lab: Lab, cluster: OwnCluster) -> Self {
        let edge = Edge::install(lab).await;
        let authority = edge.encrypt_database();
        edge.make_secret_of(&authority);
        let secret = |key: &str| json!({"name": "edge-database", "key": key});
        edge.apply(&edge.manifest(json!({
            "rebalance": {"enabled": false},
            "database": {"urlSecretRef": secret("url"), "caSecretRef": secret("ca.crt")},
        })));
        edge.ready(LONG).await;
        edge.is_reachable().await;
        Self {
            crowd: Crowd::gather(&edge, 300).await,
            visitors: Visitors::come(&edge, 10),
            cluster,
            edge,
            authority,
        }
    }

    /// Everybody goes.
    async fn leave(self) -> Edge {
        self.visitors.leave().await;
        self.crowd.leave().await;
        self.edge
    }

    /// Begins to count refusals.
    async fn begin(&self) {
        self.crowd.assembled().await;
        self.crowd.forget();
        self.visitors.forget();
    }

    /// Since [`Self::begin`] everybody who came was let in, and whose connection was closed was told to come again.
    async fn nobody_was_refused(&self, when: &str) {
        self.crowd.assembled().await;
        self.visitors.assert_all_served(when);
        let refused = self.crowd.refused();
        assert!(refused.is_empty(), "{when}: {refused:?}");
        let closed = self.crowd.closed();
        assert!(
            closed.keys().all(|code| *code == 1001),
            "{when}: {closed:?}"
        );
    }

    /// Gateways that are not on their way out.
    fn staying(&self) -> Vec<Value> {
        let mut pods = self.edge.gateways();
        pods.retain(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        pods
    }

    /// Waits until a pod says so of a container, or of itself, and then until the condition does: with the pod's name, and soon.
    async fn told(
        &self,
        kind: &str,
        reason: &str,
        of_pod: impl Fn(&Value) -> bool,
        component: &str,
    ) {
        let find = async || {
            let all = self.edge.pods_of(component);
            let found = all.iter().find(|pod| of_pod(pod))?;
            Some(found["metadata"]["name"].as_str()?.to_owned())
        };
        let pod = until_within(LONG, reason, find).await;
        let begun = Instant::now();
        until_within(TOLD, &format!("{kind} names {pod}"), async || {
            let (_, _, message) = self.edge.condition(kind)?;
            let is_named = message.contains(reason) && message.contains(&pod);
            is_named.then_some(())
        })
        .await;
        assert!(begun.elapsed() <= TOLD, "{:?}", begun.elapsed());
    }

    /// The authority of the database as the kubelet shows it to a pod on this node.
    fn mounted(&self, node: usize, pod: &Value) -> String {
        let uid = pod["metadata"]["uid"].as_str().expect("a UID");
        let file = format!(
            "/var/lib/kubelet/pods/{uid}/volumes/kubernetes.io~projected/live/database-ca.crt"
        );
        let read = self.cluster.in_node(node, "cat").arg(file).output();
        let read = read.expect("cat runs");
        assert!(read.status.success(), "{read:?}");
        String::from_utf8(read.stdout).expect("PEM")
    }

    /// Every pod that serves is read by the operator.
    async fn is_read(&self, pods: i64) {
        until_within(LONG, "a report of every pod", async || {
            let status = self.edge.status();
            let is_read = self.edge.is_observed()
                && status["connections"]["reportingPods"] == pods
                && status["redis"]["subscribedReplicas"] == pods;
            (is_read && self.edge.condition("RedisReachable")?.0 == "True").then_some(())
        })
        .await;
    }
}

/// A port of the gateway's container, by its name.
fn port_of(pod: &Value, name: &str) -> SocketAddr {
    let ports = pod["spec"]["containers"][0]["ports"].as_array();
    let mut ports = ports.into_iter().flatten();
    let port = ports.find(|port| port["name"] == name).expect("its port");
    let number = port["containerPort"].as_u64().expect("a number");
    let ip = pod["status"]["podIP"].as_str().expect("an address");
    let ip: std::net::IpAddr = ip.parse().expect("an address");
    (ip, u16::try_from(number).expect("a port")).into()
}

async fn is_open(address: SocketAddr) -> bool {
    matches!(
        timeout(UNANSWERED, TcpStream::connect(address)).await,
        Ok(Ok(_))
    )
}

/// The policy of a SignalCluster: all may come to the public port, and only the operator to the other.
async fn only_gateways_public_port_is_open(scene: &Scene) {
    for pod in scene.staying() {
        assert!(is_open(port_of(&pod, "public")).await, "{pod}");
        assert!(!is_open(port_of(&pod, "admin")).await, "{pod}");
    }
    scene.is_read(2).await;
}

/// The policy of the operator's chart, and that of the chart's own test, whose pod asks by a Service and its name.
async fn the_operator_answers_pods_alone(scene: &Scene) {
    for pod in scene.edge.operators() {
        assert!(!is_open(port_of(&pod, "admin")).await, "{pod}");
    }
    scene.edge.test_chart();
}

/// Each of the two ports gets the other's number, so that one number is open on some pods and closed on others.
async fn ports_change_places(scene: &Scene) {
    scene.begin().await;
    let before = scene.edge.pods();
    scene.edge.patch(json!({
        "gateway": {"publicPort": 9090, "adminPort": 8080},
        "rollout": {"strategy": "Canary"},
    }));
    canary::is_held_until_it_is_approved(&scene.edge, &before).await;
    until_within(LONG, "all pods are new", async || {
        let pods = scene.edge.pods();
        let is_new = pods.len() == 2 && pods.iter().all(|pod| !before.contains(pod));
        (is_new && scene.edge.is_observed() && scene.edge.condition("Ready")?.0 == "True")
            .then_some(())
    })
    .await;
    scene
        .edge
        .patch(json!({"rollout": {"strategy": "Automatic"}}));
    only_gateways_public_port_is_open(scene).await;
    scene.nobody_was_refused("ports change places").await;
}

/// The new image does not exist: first its migration cannot run, then its pods cannot. The database gets an authority that is not that of its
/// certificate, which is read only as a gateway starts.
async fn ports_change_back_in_a_rollout_that_is_stuck(scene: &Scene) {
    scene.begin().await;
    let before = scene.edge.pods();
    let ports = json!({"publicPort": 8080, "adminPort": 9090});
    scene
        .edge
        .patch(json!({"gateway": ports, "image": no_image()}));
    let cannot_pull = |pod: &Value| {
        let reason = &pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"];
        reason == "ErrImagePull" || reason == "ImagePullBackOff"
    };
    scene
        .told("Progressing", "ImagePullBackOff", cannot_pull, "migration")
        .await;
    let dir = scratch();
    Authority::new(dir.path()).expect("openssl makes one");
    let other = std::fs::read_to_string(dir.path().join("ca.pem")).expect("its certificate");
    scene.edge.make_secret_of(&other);
    scene.is_read(2).await;

    scene
        .edge
        .patch(json!({"database": {"migrations": "Startup"}}));
    scene
        .told("Degraded", "ImagePullBackOff", cannot_pull, "gateway")
        .await;
    scene.is_read(2).await;
    let old = scene.edge.pods();
    assert!(before.iter().all(|pod| old.contains(pod)), "{old:?}");
    scene.nobody_was_refused("a rollout is stuck").await;
}

/// The node kills a container in the middle of the rollout that is stuck.
async fn an_old_pod_comes_back_as_it_was(scene: &Scene) {
    let pod = scene.staying().into_iter().find(is_ready);
    let pod = pod.expect("an old pod");
    let name = pod["metadata"]["name"].as_str().expect("a name").to_owned();
    scene.crowd.forgive(true);
    let id = pod["status"]["containerStatuses"][0]["containerID"].as_str();
    let id = id
        .and_then(|id| id.strip_prefix("containerd://"))
        .expect("an id")
        .to_owned();
    let node = pod["spec"]["nodeName"]
        .as_str()
        .and_then(|node| node.strip_prefix("node"));
    let node = node.and_then(|node| node.parse().ok()).expect("a node");
    let killed = scene
        .cluster
        .in_node(node, "ctr")
        .args(["-n", "k8s.io", "tasks", "kill", "-s", "SIGKILL", &id])
        .output();
    let killed = killed.expect("ctr runs");
    assert!(killed.status.success(), "{killed:?}");
    // What all revisions read has the newest authority already.
    let newest = scene.edge.credential("database-ca.crt");
    assert!(!newest.is_empty() && newest != scene.authority, "{newest}");
    let again = until_within(LONG, "the pod is back", async || {
        let mut pods = scene.staying().into_iter();
        let pod = pods.find(|pod| pod["metadata"]["name"] == name)?;
        let restarts = &pod["status"]["containerStatuses"][0]["restartCount"];
        (*restarts == 1 && is_ready(&pod)).then_some(pod)
    })
    .await;
    // It could not be ready with another authority: it would not trust the database.
    assert_eq!(scene.mounted(node, &again), scene.authority);
    let closed = scene.crowd.closed();
    assert!(
        closed.contains_key(&1006),
        "its connections broke: {closed:?}"
    );
    // By its own address: no other pod answers for it.
    let client = Client::open(port_of(&again, "public"), &scene.edge.issuer.token("17")).await;
    client.close().await;
    assert_eq!(port_of(&again, "public"), port_of(&pod, "public"));
    scene.is_read(2).await;
    scene.crowd.spread_out().await;
    scene.crowd.forgive(false);
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    let mut conditions = conditions.into_iter().flatten();
    conditions.any(|one| one["type"] == "Ready" && one["status"] == "True")
}

async fn the_change_is_taken_back(scene: &Scene) {
    scene.begin().await;
    let old: Vec<String> = ready_names(scene);
    scene.edge.make_secret_of(&scene.authority);
    let ports = json!({"publicPort": 9090, "adminPort": 8080});
    let back = json!({"gateway": ports, "image": image(), "database": {"migrations": "Job"}});
    scene.edge.patch(back);
    until_within(LONG, "all is as it was", async || {
        (scene.edge.is_observed() && scene.edge.condition("Ready")?.0 == "True").then_some(())
    })
    .await;
    scene.edge.settled(2, LONG).await;
    assert_eq!(ready_names(scene), old, "no pod was replaced");
    scene.nobody_was_refused("the change is taken back").await;
}

/// Names of pods that serve, sorted.
fn ready_names(scene: &Scene) -> Vec<String> {
    let pods = scene.staying();
    let ready = pods.iter().filter(|pod| is_ready(pod));
    let mut names: Vec<String> = ready
        .map(|pod| pod["metadata"]["name"].to_string())
        .collect();
    names.sort();
    names
}

async fn a_canary_that_crashes_refuses_nobody(scene: &Scene) {
    scene.begin().await;
    canary::one_that_crashes_is_held(&scene.edge).await;
    scene.nobody_was_refused("a canary crashes").await;
}

/// A held drain: the pod is out of every endpoint before it takes no connection.
async fn pods_that_drain_refuse_nobody(scene: &Scene) {
    scene.begin().await;
    scene.edge.kubectl(&["scale", "sigc/edge", "--replicas=3"]);
    scene.edge.settled(3, LONG).await;
    scene.crowd.spread_out().await;
    scene.edge.kubectl(&["scale", "sigc/edge", "--replicas=2"]);
    scene.edge.settled(2, LONG).await;
    scene.nobody_was_refused("a pod drains").await;
    let closed = scene.crowd.closed();
    assert!(
        closed.contains_key(&1001),
        "the pod had clients: {closed:?}"
    );
}

/// Both kinds of webhook, each for a kind that the operator writes: nobody answers at their address.
fn webhooks() -> [Value; 2] {
    let configuration = |kind: &str, group: &str, resource: &str| {
        let metadata = json!({"name": format!("{resource}-down")});
        let rule = json!({"apiGroups": [group], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": [resource]});
        let webhook = json!({
            "name": format!("{resource}.down.example"), "rules": [rule], "failurePolicy": "Fail", "timeoutSeconds": 2,
            "clientConfig": {"url": "https://10.240.0.1:1/"}, "sideEffects": "None", "admissionReviewVersions": ["v1"],
        });
        json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": metadata, "webhooks": [webhook]})
    };
    [
        configuration(
            "ValidatingWebhookConfiguration",
            "policy",
            "poddisruptionbudgets",
        ),
        configuration(
            "MutatingWebhookConfiguration",
            "networking.k8s.io",
            "ingresses",
        ),
    ]
}

async fn a_webhook_that_is_down_holds_up_its_own_kinds_alone(scene: &Scene) {
    scene.begin().await;
    let edge = &scene.edge;
    for webhook in webhooks() {
        edge.apply(&webhook);
    }
    // Every API server notices a configuration a moment later.
    until("writes are refused", async || {
        let text = edge.try_patch("pdb/edge", &json!({"metadata": {"labels": {"a": "b"}}}));
        text.err().filter(|error| error.contains("down.example"))
    })
    .await;
    edge.patch(json!({
        "disruption": {"maxUnavailable": 2},
        "exposure": {"ingress": {"host": "edge.example.com"}},
    }));
    for (kind, status, webhook) in [
        ("Degraded", "True", "poddisruptionbudgets.down.example"),
        ("Exposed", "False", "ingresses.down.example"),
    ] {
        until(kind, async || {
            let found = edge.condition(kind)?;
            let is_told = found.0 == status && found.1 == "ApplyFailed";
            (is_told && found.2.contains(webhook)).then_some(())
        })
        .await;
    }
    edge.kubectl(&["scale", "sigc/edge", "--replicas=3"]);
    edge.settled(3, LONG).await;
    edge.kubectl(&["scale", "sigc/edge", "--replicas=2"]);
    edge.settled(2, LONG).await;
    assert!(edge.is_observed(), "the status is of the newest spec");
    assert_eq!(
        edge.condition("Degraded").map(|it| it.1).as_deref(),
        Some("ApplyFailed")
    );
    scene.nobody_was_refused("a webhook is down").await;
    for webhook in webhooks() {
        let kind = webhook["kind"].as_str().unwrap_or_default();
        let name = webhook["metadata"]["name"].as_str().unwrap_or_default();
        edge.kubectl(&["delete", kind, name]);
    }
    until_within(LONG, "it heals", async || {
        // It is applied; and no controller of Ingresses is here to serve it.
        let is_applied = edge.condition("Exposed")?.1 == "AddressNotAssigned";
        let is_well = is_applied && edge.condition("Degraded")?.0 == "False";
        is_well.then_some(())
    })
    .await;
    let budget = edge.kubectl(&[
        "get",
        "pdb",
        "edge",
        "-o",
        "jsonpath={.spec.maxUnavailable}",
    ]);
    assert_eq!(budget, "2");
    edge.kubectl(&["get", "ingress", "edge"]);
}

/// No node has room for another gateway.
async fn full_nodes_are_told_and_room_is_made(scene: &Scene) {
    let edge = &scene.edge;
    scene.begin().await;
    edge.none_is_going(LONG).await;
    edge.fill_nodes(100).await;
    let unplaced = |pod: &Value| {
        let conditions = pod["status"]["conditions"].as_array();
        let mut conditions = conditions.into_iter().flatten();
        conditions.any(|one| one["type"] == "PodScheduled" && one["reason"] == "Unschedulable")
    };
    restart(edge, "first");
    scene
        .told("Degraded", "Unschedulable", unplaced, "gateway")
        .await;
    assert_eq!(ready_names(scene).len(), 2, "the old pods stay");
    // What is not needed may go, and its place is that of the pod that waits.
    edge.kubectl(&["scale", "sigc/edge", "--replicas=1"]);
    until_within(LONG, "one new pod", async || {
        let pods = edge.pods();
        (pods.len() == 1 && edge.is_observed() && edge.condition("Ready")?.0 == "True")
            .then_some(())
    })
    .await;
    edge.kubectl(&["scale", "sigc/edge", "--replicas=2"]);
    edge.settled(2, LONG).await;
    edge.ready(LONG).await;
    edge.none_is_going(LONG).await;

    let before = edge.pods();
    restart(edge, "second");
    scene
        .told("Degraded", "Unschedulable", unplaced, "gateway")
        .await;
    assert_eq!(edge.pods().len(), 3, "the old pods and the one that waits");
    edge.patch(json!({"rollout": {"maxUnavailable": 1}}));
    until_within(LONG, "all pods are new", async || {
        let pods = edge.pods();
        let is_new = pods.len() == 2 && pods.iter().all(|pod| !before.contains(pod));
        (is_new && edge.is_observed() && edge.condition("Ready")?.0 == "True").then_some(())
    })
    .await;
    scene.nobody_was_refused("nodes are full").await;
}

fn restart(edge: &Edge, value: &str) {
    let annotation = format!("signal.dev/restarted-at={value}");
    edge.kubectl(&["annotate", "sigc", "edge", "--overwrite", &annotation]);
}

//! End to end on a real cluster: both charts, real pods of both binaries, real Redis, Kafka and PostgreSQL, real clients.
//!
//! Needs root for the cluster's nodes; elsewhere each test says that it is skipped, and why. Tests act at the cluster's switch,
//! which is where clients outside of a cluster are.

mod canary;
mod certificates;
mod crowd;
mod edge;
mod foreign;
mod isolation;
mod journal;
mod more;
mod network_policy;
mod upgrade;
mod visitors;

use std::cell::Cell;
use std::time::{Duration, Instant};

use serde_json::json;
use signal_tests::client::KeyMember;
use signal_tests::producer::payment;
use signal_tests::wait::{until, until_within};
use signal_tests::{Client, Emitter, Issuer};

use crowd::Crowd;
use edge::{Edge, Lab};

/// How long a step of pods may take on a busy machine.
const LONG: Duration = Duration::from_secs(180);

#[tokio::test]
async fn from_nothing_to_an_edge_that_scales_rotates_and_moves_without_dropping_people() {
    let Some(lab) = Lab::start().await else {
        return;
    };
    let cluster = lab.cluster.clone();
    cluster
        .outside(async move || {
            let edge = Edge::install(lab).await;
            a_wrong_secret_is_told_and_heals(&edge).await;
            a_record_reaches_a_client_through_the_service(&edge).await;
            let crowd = Crowd::gather(&edge, 2000).await;
            scaling_in_moves_only_those_of_the_drained_pods(&edge, &crowd).await;
            more::connections_make_pods_and_the_fullest_shed(&edge, &crowd).await;
            another_image_comes_in_without_anybody_left_out(&edge, &crowd).await;
            trust_moves_to_another_issuer_without_a_refusal(&edge).await;
            more::managed_keys_come_and_go(&edge).await;
            more::an_emergency_closes_those_who_rest_on_the_source(&edge, &crowd).await;
            redis_moves_and_pushes_go_on(&edge).await;
            an_api_server_that_is_away_disturbs_nobody(&edge, &crowd).await;
            more::a_node_that_dies_is_made_up_for(&edge, &crowd).await;
            crowd.leave().await;
            a_deleted_cluster_leaves_nothing_behind(&edge).await;
        })
        .await;
}

/// The Secret is made only after the SignalCluster.
async fn a_wrong_secret_is_told_and_heals(edge: &Edge) {
    let refused = edge
        .try_apply(&edge.manifest(json!({"drain": {"window": "2h"}})))
        .expect_err("a wrong spec is refused");
    assert!(
        refused.contains("spec.drain") && refused.contains("at most 30m"),
        "{refused}"
    );
    edge.apply(&edge.manifest(json!({})));
    until("the condition names the Secret", async || {
        let (status, reason, message) = edge.condition("SecretsResolved")?;
        (status == "False" && reason == "SecretMissing" && message.contains("edge-database"))
            .then_some(())
    })
    .await;
    until("an Event", async || {
        edge.kubectl(&["get", "events"])
            .contains("SecretMissing")
            .then_some(())
    })
    .await;
    edge.make_secret();
    edge.ready(LONG).await;
    let table = edge.kubectl(&["get", "sigc"]);
    assert!(table.contains("AllPodsReady"), "{table}");
}

/// A record reaches an encrypted connection that came through the Service.
async fn a_record_reaches_a_client_through_the_service(edge: &Edge) {
    edge.is_reachable().await;
    edge.policies()
        .await
        .join("17", "Merchant_42")
        .await
        .expect("a member");
    let mut client = Client::open_encrypted(edge.address(), &edge.issuer.token("17")).await;
    edge.producer()
        .send(
            "activity-notification",
            "42",
            &payment("evt-1", "42", 150_000),
        )
        .await
        .expect("produced");
    let created = client.expect("notification:created").await;
    assert!(
        created.sealed && created.data["notification"]["recipientId"] == "17",
        "{created:?}"
    );
    client.close().await;
}

/// The Service leads to every pod. Where nothing is decided by connections, the operator looks at them about once a minute.
async fn people_are_everywhere(edge: &Edge, crowd: &Crowd) {
    until_within(2 * LONG, "connections on every pod", async || {
        crowd.spread_out().await;
        until_within(LONG, "a look at them", async || {
            (edge.status()["connections"]["total"] == crowd.size()).then_some(())
        })
        .await;
        (edge.status()["connections"]["minPerPod"] != 0).then_some(())
    })
    .await;
}

/// Each connection on the drained pods gets 1001 once and reconnects; the others stay open, and nothing sent meanwhile is lost.
async fn scaling_in_moves_only_those_of_the_drained_pods(edge: &Edge, crowd: &Crowd) {
    edge.kubectl(&["scale", "sigc/edge", "--replicas=4"]);
    edge.settled(4, LONG).await;
    people_are_everywhere(edge, crowd).await;
    let before = edge.pods();
    crowd.forget();
    more::make_members(edge).await;
    edge.kubectl(&["scale", "sigc/edge", "--replicas=2"]);
    tokio::join!(more::send_records(edge), edge.settled(2, LONG));
    let after = edge.pods();
    assert!(
        after.iter().all(|pod| before.contains(pod)),
        "{before:?} became {after:?}"
    );
    until_within(LONG, "everybody is back", async || {
        (edge.status()["connections"]["total"] == crowd.size()).then_some(())
    })
    .await;
    let closed = crowd.closed();
    // `4 pods become 2; these drain first: edge-1 (91 connections), edge-2 (93 connections)`
    let told = edge.kubectl(&[
        "get",
        "events",
        "--field-selector",
        "reason=DrainStarted",
        "-o",
        "jsonpath={.items[*].note}{.items[*].message}",
    ]);
    let drained: Vec<u64> = told
        .split('(')
        .skip(1)
        .filter_map(|rest| rest.split(' ').next()?.parse().ok())
        .collect();
    assert_eq!(drained.len(), 2, "{told}");
    assert_eq!(
        closed.values().sum::<u64>(),
        drained.iter().sum::<u64>(),
        "those of the drained pods, once each: {closed:?}, {told}"
    );
    assert_eq!(
        closed.keys().copied().collect::<Vec<u16>>(),
        [1001],
        "{closed:?}"
    );
    more::nothing_is_missing_after_sync(edge).await;
}

/// A rolling update with everybody connected.
async fn another_image_comes_in_without_anybody_left_out(edge: &Edge, crowd: &Crowd) {
    let before = edge.pods();
    crowd.assembled().await;
    crowd.forget();
    edge.patch(json!({"image": {"repository": "localhost/signal-gateway", "tag": "next", "pullPolicy": "Never"}}));
    let fewest = Cell::new(crowd.size());
    until_within(LONG, "all pods are new", async || {
        fewest.set(fewest.get().min(crowd.connected()));
        let pods = edge.pods();
        let moved = crowd.closed().values().sum::<u64>() >= crowd.size();
        let replaced = moved && pods.len() == 2 && pods.iter().all(|pod| !before.contains(pod));
        (replaced && edge.condition("Ready")?.0 == "True").then_some(())
    })
    .await;
    crowd.assembled().await;
    // One of two pods closes all its connections, slowly enough that clients reconnect meanwhile.
    assert!(
        fewest.get() >= crowd.size() / 2,
        "only {} of {} were connected",
        fewest.get(),
        crowd.size()
    );
    let closed = crowd.closed();
    assert_eq!(
        closed.keys().copied().collect::<Vec<u16>>(),
        [1001],
        "{closed:?}"
    );
}

/// No connection is closed, and what is changed afterwards takes effect.
async fn an_api_server_that_is_away_disturbs_nobody(edge: &Edge, crowd: &Crowd) {
    crowd.assembled().await;
    crowd.forget();
    let pods = edge.pods();
    edge.without_api(Duration::from_secs(30)).await;
    assert!(crowd.closed().is_empty(), "{:?}", crowd.closed());
    edge.ready(LONG).await;
    // The operator has come back by itself.
    edge.kubectl(&["scale", "sigc/edge", "--replicas=3"]);
    edge.settled(3, LONG).await;
    assert!(pods.iter().all(|pod| edge.pods().contains(pod)));
    // The proxies of the nodes need a while; until then they lead to pods that have ended.
    people_are_everywhere(edge, crowd).await;
}

/// Old and new tokens all the time, and the operator killed in each stage.
async fn trust_moves_to_another_issuer_without_a_refusal(edge: &Edge) {
    let pods = edge.pods();
    let next = Issuer::start_at(edge.ip()).await;
    edge.patch(
        json!({"jwks": {"rotation": {"overlap": "15s"}, "sources": [edge::source("next", &next)]}}),
    );
    let stage_of = |status: &serde_json::Value, name: &str| {
        let sources = status["jwks"].as_array().cloned().unwrap_or_default();
        sources
            .iter()
            .find(|source| source["name"] == name)
            .and_then(|source| source["state"].as_str().map(str::to_owned))
    };
    let mut new_trusted = false;
    let mut killed_in = Vec::new();
    let begun = Instant::now();
    loop {
        assert!(
            begun.elapsed() < 2 * LONG,
            "the old source is not gone: killed in {killed_in:?}"
        );
        // What was accepted before an attempt, and still is after it, had to be accepted in between.
        let status = edge.status();
        let before = stage_of(&status, "main");
        let stages = (before.clone(), stage_of(&status, "next"));
        if stages.1.is_some() && before.is_some() && !killed_in.contains(&stages) {
            edge.kill_operators();
            killed_in.push(stages);
        }
        let admitted = admits(edge, &edge.issuer).await;
        let after = stage_of(&edge.status(), "main");
        assert!(
            admitted || before.is_none() || after.is_none(),
            "an old token was refused while its source is {after:?}"
        );
        // Retiring begins when every pod trusts the new one.
        if before.as_deref() == Some("Retiring") {
            new_trusted = true;
            if !admits(edge, &next).await {
                let logs = edge.kubectl(&[
                    "logs",
                    "-l",
                    "app.kubernetes.io/component=gateway",
                    "--tail=12",
                    "--prefix",
                ]);
                let events = edge.kubectl(&["get", "events"]);
                panic!(
                    "a new token was refused although every pod trusts its source: {}\n{logs}\n{events}",
                    edge.status()
                );
            }
        }
        if after.is_none() {
            break;
        }
    }
    assert!(new_trusted, "the overlap was seen");
    assert!(killed_in.len() >= 3, "killed in {killed_in:?}");
    until_within(LONG, "old tokens are refused", async || {
        (!admits(edge, &edge.issuer).await).then_some(())
    })
    .await;
    assert!(admits(edge, &next).await);
    assert_eq!(edge.pods(), pods, "no pod restarted");
    // The rest of the test uses the first issuer again.
    edge.patch(json!({"jwks": {"sources": [edge::source("main", &edge.issuer)]}}));
    until_within(LONG, "the first issuer is trusted again", async || {
        (edge.condition("JWKSRotationComplete")?.0 == "True"
            && stage_of(&edge.status(), "main").is_some())
        .then_some(())
    })
    .await;
}

/// Whether a new connection with a new token is accepted.
async fn admits(edge: &Edge, issuer: &Issuer) -> bool {
    let mut client = Client::connect(edge.address()).await;
    client
        .send_authenticate(&issuer.token("23"), KeyMember::None)
        .await;
    let admitted = client.next_envelope().await.event == "connected";
    if admitted {
        client.close().await;
    }
    admitted
}

/// From a server in the clear to one with TLS and a user: pushes reach clients on every pod after the switch, and no pod restarts.
async fn redis_moves_and_pushes_go_on(edge: &Edge) {
    let pods = edge.pods();
    let mut clients = Vec::new();
    for _ in 0..6 {
        clients.push(Client::open(edge.address(), &edge.issuer.token("31")).await);
    }
    edge.patch(json!({"redis": edge.guarded_redis()}));
    until_within(LONG, "every pod uses the other Redis", async || {
        // In this order: a status that was read later is about the newest spec too.
        let observed = edge.is_observed();
        let status = edge.status();
        let moved = observed
            && status["redis"]["switching"] == false
            && status["redis"]["subscribedReplicas"] == 2;
        let progressing = edge.condition("Progressing")?;
        (moved && progressing.0 == "False").then_some(())
    })
    .await;
    let mut emitter = Emitter::connect(edge.other_redis())
        .await
        .expect("the other Redis");
    emitter
        .to_user("31", "moved", json!({"n": 1}))
        .await
        .expect("published");
    for client in &mut clients {
        assert_eq!(client.expect("moved").await.data["n"], 1);
    }
    assert_eq!(edge.pods(), pods, "no pod restarted");
    for client in clients {
        client.close().await;
    }
}

async fn a_deleted_cluster_leaves_nothing_behind(edge: &Edge) {
    edge.kubectl(&["delete", "sigc", "edge", "--timeout=60s"]);
    until_within(LONG, "nothing is left", async || {
        let kinds = "deployments,services,configmaps,secrets,jobs,poddisruptionbudgets,networkpolicies,serviceaccounts,pods";
        let left = edge.kubectl(&["get", kinds, "-l", "app.kubernetes.io/instance=edge", "-o", "name"]);
        left.trim().is_empty().then_some(())
    })
    .await;
}

//! What a platform asks of an edge that runs: nothing missing after a drain, pods by connections.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::json;
use signal_tests::Client;
use signal_tests::producer::payment;
use signal_tests::wait::until_within;

use crate::LONG;
use crate::crowd::Crowd;
use crate::edge::Edge;

/// People of the crowd who are members of one merchant, and how many records it is sent while pods go.
const MEMBERS: usize = 50;
const RECORDS: usize = 40;
const MERCHANT: &str = "43";

/// Makes some of the crowd members of a merchant.
pub(crate) async fn make_members(edge: &Edge) {
    let policies = edge.policies().await;
    for member in 0..MEMBERS {
        policies.join(&format!("crowd-{member}"), &format!("Merchant_{MERCHANT}")).await.expect("a member");
    }
}

/// Sends the merchant its records, one after the other.
pub(crate) async fn send_records(edge: &Edge) {
    let producer = edge.producer();
    for record in 0..RECORDS {
        let payment = payment(&format!("evt-drain-{record}"), MERCHANT, 1000);
        producer.send("activity-notification", MERCHANT, &payment).await.expect("produced");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

/// Every member has every record once, asked for as someone does who comes back.
pub(crate) async fn nothing_is_missing_after_sync(edge: &Edge) {
    for member in 0..MEMBERS {
        let token = edge.issuer.token(&format!("crowd-{member}"));
        until_within(LONG, "every notification", async || (synced(edge, &token).await.len() == RECORDS).then_some(())).await;
    }
}

async fn synced(edge: &Edge, token: &str) -> BTreeSet<String> {
    let mut client = Client::open(edge.address(), token).await;
    client.send("notification:sync", json!({"after": 0, "limit": 200})).await;
    let mut events = BTreeSet::new();
    loop {
        let envelope = client.expect_where("a notification or the end", |envelope| envelope.event.starts_with("notification:")).await;
        match envelope.event.as_str() {
            "notification:created" => {
                let id = envelope.data["notification"]["id"].as_str().expect("an id").to_owned();
                assert!(events.insert(id), "twice: {envelope:?}");
            }
            "notification:synced" => break,
            _ => {}
        }
    }
    client.close().await;
    events
}

/// The operator itself makes as many pods as connections ask for, and the fullest pods shed theirs.
pub(crate) async fn connections_make_pods_and_the_fullest_shed(edge: &Edge, crowd: &Crowd) {
    crowd.assembled().await;
    crowd.forget();
    edge.patch(json!({
        "rebalance": {"stableFor": "5s", "maxPerMinute": 100_000},
        "autoscaling": {"mode": "Connections", "minReplicas": 2, "maxReplicas": 4, "targetConnectionsPerPod": 700},
    }));
    edge.settled(3, LONG).await;
    until_within(LONG, "connections on every pod", async || {
        let connections = edge.status()["connections"].clone();
        let even = connections["total"] == crowd.size() && connections["minPerPod"].as_u64()? > crowd.size() / 6;
        even.then_some(())
    })
    .await;
    let closed = crowd.closed();
    assert_eq!(closed.keys().copied().collect::<Vec<u16>>(), [4009], "{closed:?}");
    // A HorizontalPodAutoscaler needs an adapter for the number of connections, which is not here.
    edge.patch(json!({"autoscaling": {"mode": "HPA"}, "rebalance": {"enabled": false}}));
    until_within(LONG, "the missing metric is told", async || {
        let (status, reason, _) = edge.condition("ScalingLimited")?;
        (status == "True" && reason == "MetricUnavailable").then_some(())
    })
    .await;
    assert_eq!(edge.status()["replicas"], 3);
    edge.patch(json!({"autoscaling": null}));
    crowd.assembled().await;
    edge.kubectl(&["scale", "sigc/edge", "--replicas=2"]);
    edge.settled(2, LONG).await;
    crowd.assembled().await;
}

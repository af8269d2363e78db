//! A running edge under load: a drain that loses nothing, scaling by connections, managed keys, a stolen key, a dead node.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use signal_tests::client::KeyMember;
use signal_tests::producer::payment;
use signal_tests::wait::until_within;
use signal_tests::{Client, Issuer};

use crate::crowd::Crowd;
use crate::edge::{self, Edge};
use crate::{LONG, admits};

/// How many of the crowd are members of one merchant, and how many records it gets while pods stop.
const MEMBERS: usize = 50;
const RECORDS: usize = 40;
const MERCHANT: &str = "43";

/// Makes some of the crowd members of a merchant.
pub(crate) async fn make_members(edge: &Edge) {
    let policies = edge.policies().await;
    for member in 0..MEMBERS {
        policies
            .join(&format!("crowd-{member}"), &format!("Merchant_{MERCHANT}"))
            .await
            .expect("a member");
    }
}

/// Sends the merchant its records, one after the other.
pub(crate) async fn send_records(edge: &Edge) {
    let producer = edge.producer();
    for record in 0..RECORDS {
        let payment = payment(&format!("evt-drain-{record}"), MERCHANT, 1000);
        producer
            .send("activity-notification", MERCHANT, &payment)
            .await
            .expect("produced");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

/// Checks that every member has every record once, by a sync as after a reconnect.
pub(crate) async fn nothing_is_missing_after_sync(edge: &Edge) {
    for member in 0..MEMBERS {
        let token = edge.issuer.token(&format!("crowd-{member}"));
        until_within(LONG, "every notification", async || {
            (synced(edge, &token).await.len() == RECORDS).then_some(())
        })
        .await;
    }
}

async fn synced(edge: &Edge, token: &str) -> BTreeSet<String> {
    let mut client = Client::open(edge.address(), token).await;
    client
        .send("notification:sync", json!({"after": 0, "limit": 200}))
        .await;
    let mut events = BTreeSet::new();
    loop {
        let envelope = client
            .expect_where("a notification or the end", |envelope| {
                envelope.event.starts_with("notification:")
            })
            .await;
        match envelope.event.as_str() {
            "notification:created" => {
                let id = envelope.data["notification"]["id"]
                    .as_str()
                    .expect("an id")
                    .to_owned();
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
        let even = connections["total"] == crowd.size()
            && connections["minPerPod"].as_u64()? > crowd.size() / 6;
        even.then_some(())
    })
    .await;
    let closed = crowd.closed();
    assert_eq!(
        closed.keys().copied().collect::<Vec<u16>>(),
        [4009],
        "{closed:?}"
    );
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

/// The platform's issuer signs with keys that the operator makes and replaces; gateways publish and trust them, and drop the old one.
pub(crate) async fn managed_keys_come_and_go(edge: &Edge) {
    let pods = edge.pods();
    let managed = json!({
        "issuer": "https://edge.example/", "audiences": ["signal"], "subjectPrefix": "edge:", "maxTokenLife": "20s", "rotateEvery": "30s", "cacheAge": "5s",
    });
    edge.patch(json!({"jwks": {"managed": managed}}));
    let first = until_within(LONG, "a key to sign with", async || edge.signing_key()).await;
    // A gateway reads what is mounted a moment after it was written.
    until_within(LONG, "its tokens are let in", async || {
        first.lets_in(edge).await.then_some(())
    })
    .await;
    assert!(edge.published_keys().await.contains(&first.kid));
    let second = until_within(LONG, "another key signs", async || {
        edge.signing_key().filter(|key| key.kid != first.kid)
    })
    .await;
    assert!(
        second.lets_in(edge).await,
        "it was published and trusted before it signed: {}",
        edge.status()
    );
    assert!(
        first.lets_in(edge).await,
        "tokens of the one before are still alive: {}",
        edge.status()
    );
    until_within(LONG, "the first key is gone", async || {
        (!edge.published_keys().await.contains(&first.kid)).then_some(())
    })
    .await;
    until_within(LONG, "its tokens are refused", async || {
        (!first.lets_in(edge).await).then_some(())
    })
    .await;
    assert_eq!(edge.pods(), pods, "no pod restarted");
    edge.patch(json!({"jwks": {"managed": null}}));
}

/// A stolen key: connections that rest on its source are closed at once, all others stay.
pub(crate) async fn an_emergency_closes_those_who_rest_on_the_source(edge: &Edge, crowd: &Crowd) {
    let stolen = Issuer::start_at(edge.ip()).await;
    let main = edge::source("main", &edge.issuer);
    let mut other = edge::source("stolen", &stolen);
    other["subjectPrefix"] = json!("stolen:");
    edge.patch(json!({"jwks": {"sources": [main, other]}}));
    until_within(LONG, "both are trusted", async || {
        (edge.is_observed() && edge.condition("JWKSRotationComplete")?.0 == "True").then_some(())
    })
    .await;
    let mut thief = Client::connect(edge.address()).await;
    thief
        .authenticate(&stolen.token("99"), KeyMember::None)
        .await;
    crowd.assembled().await;
    crowd.forget();
    edge.patch(json!({"jwks": {"sources": [main], "rotation": {"emergency": true, "emergencySources": ["stolen"]}}}));
    let (code, _) = thief.expect_closed_within(LONG).await;
    assert_eq!(code, 4006);
    until_within(LONG, "its tokens are refused everywhere", async || {
        (!admits(edge, &stolen).await).then_some(())
    })
    .await;
    assert!(crowd.closed().is_empty(), "{:?}", crowd.closed());
    edge.patch(json!({"jwks": {"rotation": {"emergency": false, "emergencySources": []}}}));
}

/// A node with pods of gateways dies: others take their place, and everybody is let in again.
pub(crate) async fn a_node_that_dies_is_made_up_for(edge: &Edge, crowd: &Crowd) {
    // Kubernetes gives up a pod on a dead node soon.
    let tolerations = ["not-ready", "unreachable"].map(|condition| {
        let key = format!("node.kubernetes.io/{condition}");
        json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5})
    });
    edge.patch(json!({"podTemplate": {"spec": {"tolerations": tolerations}}}));
    until_within(LONG, "pods that do not wait long", async || {
        let done = edge.is_observed() && edge.condition("Progressing")?.0 == "False";
        done.then_some(())
    })
    .await;
    edge.settled(3, LONG).await;
    edge.none_is_going(LONG).await;
    crowd.assembled().await;
    let (node, lost) = edge.node_of_a_gateway_that_is_not(1);
    crowd.forgive(true);
    edge.kill_node(node).await;
    until_within(2 * LONG, "as many pods as before", async || {
        let pods = edge.pods();
        let ready = edge.condition("Ready")?.0 == "True";
        (ready && pods.len() == 3 && !pods.iter().any(|pod| pod.starts_with(&lost))).then_some(())
    })
    .await;
    // Clients on that node received nothing and reconnect, as clients do when a heartbeat is missing.
    crowd.spread_out().await;
    crowd.forgive(false);
    until_within(LONG, "everybody is counted", async || {
        (edge.status()["connections"]["total"] == crowd.size()).then_some(())
    })
    .await;
    edge.boot_nodes().await;
    until_within(LONG, "nothing is left of the lost pod", async || {
        (!edge.kubectl(&["get", "pods", "-o", "name"]).contains(&lost)).then_some(())
    })
    .await;
    edge.settled(3, LONG).await;
}

/// A key that the operator made.
pub(crate) struct SigningKey {
    pub(crate) kid: String,
    pem: String,
    issuer: String,
    audience: Value,
}

impl SigningKey {
    pub(crate) fn of_secret(read: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let current: Value = serde_json::from_str(&read("current.json")?).ok()?;
        let text = |key: &str| Some(current[key].as_str()?.to_owned());
        Some(Self {
            kid: text("kid")?,
            pem: read("current.pem")?,
            issuer: text("iss")?,
            audience: current["aud"].clone(),
        })
    }

    /// Whether a fresh token of it is accepted.
    async fn lets_in(&self, edge: &Edge) -> bool {
        use p256::ecdsa::signature::Signer as _;
        use p256::pkcs8::DecodePrivateKey as _;
        let mut claims = edge.issuer.claims("24");
        claims["iss"] = json!(self.issuer);
        claims["aud"] = self.audience.clone();
        claims["exp"] = json!(claims["iat"].as_u64().expect("a time") + 20);
        let part = |value: &Value| base64_simd::URL_SAFE_NO_PAD.encode_to_string(value.to_string());
        let signed = format!(
            "{}.{}",
            part(&json!({"alg": "ES256", "kid": self.kid, "typ": "JWT"})),
            part(&claims)
        );
        let key = p256::ecdsa::SigningKey::from_pkcs8_pem(&self.pem).expect("a key");
        let signature: p256::ecdsa::Signature = key.sign(signed.as_bytes());
        let token = format!(
            "{signed}.{}",
            base64_simd::URL_SAFE_NO_PAD.encode_to_string(signature.to_bytes())
        );
        let mut client = Client::connect(edge.address()).await;
        client.send_authenticate(&token, KeyMember::None).await;
        let admitted = client.next_envelope().await.event == "connected";
        if admitted {
            client.close().await;
        }
        admitted
    }
}

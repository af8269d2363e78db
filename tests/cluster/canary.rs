//! Strategy Canary, rolled by the Deployment's controller: one pod first, until it is approved, or stayed good, or failed.

use std::time::Duration;

use serde_json::{Value, json};
use signal_tests::wait::until_within;

use crate::LONG;
use crate::edge::Edge;

/// How long nothing more may happen than one pod.
const HELD: Duration = Duration::from_secs(4);

/// What the Deployment remembers of its canary.
fn remembered(edge: &Edge) -> Value {
    let path = "jsonpath={.metadata.annotations.signal\\.dev/canary}";
    let text = edge.kubectl(&["get", "deployment", "edge", "-o", path]);
    serde_json::from_str(&text).unwrap_or_default()
}

/// Waits for the canary of a change that was applied, checks that the pods `before` it stay and are joined by one alone, and approves it.
pub(crate) async fn is_held_until_it_is_approved(edge: &Edge, before: &[String]) {
    let is_held = || {
        let pods = edge.pods();
        before.iter().all(|pod| pods.contains(pod)) && pods.len() == before.len() + 1
    };
    let message = until_within(LONG, "a canary that serves", async || {
        let (_, reason, message) = edge.condition("Progressing")?;
        let is_observed = reason == "AwaitingApproval" && edge.is_observed();
        let is_good = !remembered(edge)["goodSince"].is_null();
        (is_observed && is_good && is_held()).then_some(message)
    })
    .await;
    tokio::time::sleep(HELD).await;
    assert!(is_held(), "{before:?} became {:?}", edge.pods());
    let ready = edge.condition("Ready").expect("it is there");
    assert_eq!(ready.0, "False", "{ready:?}");
    let mut words = message.split(' ').skip_while(|word| *word != "revision");
    let revision = words.nth(1).expect("a revision").trim_end_matches(',');
    let approval = format!("signal.dev/approve-rollout={revision}");
    edge.kubectl(&["annotate", "sigc", "edge", "--overwrite", &approval]);
}

/// Lets a canary that stays good so long be followed by the others.
pub(crate) fn soak(edge: &Edge, soak: &str) {
    edge.patch(json!({"rollout": {"strategy": "Canary", "canary": {"soak": soak}}}));
}

/// A rollout has ended by a soak: nobody has approved it.
pub(crate) fn has_passed_alone(edge: &Edge) {
    let canary = remembered(edge);
    assert_eq!(canary["state"], "Passed", "{canary}");
    let good = canary["goodSince"].as_str();
    assert!(good.is_some(), "an approval alone: {canary}");
    let template = canary["template"].as_str().expect("a hash");
    let path = "jsonpath={.metadata.annotations.signal\\.dev/approve-rollout}";
    let approved = edge.kubectl(&["get", "sigc", "edge", "-o", path]);
    assert!(
        approved.is_empty() || !template.contains(&approved),
        "{canary}"
    );
}

/// The new template's container ends at once: the others stay, the status says why, and setting the field back needs nobody's approval.
pub(crate) async fn one_that_crashes_is_held(edge: &Edge) {
    let before = edge.pods();
    let variable = json!({"name": "SIGNAL__NO__SUCH_SETTING", "value": "1"});
    let container = json!({"name": "gateway", "env": [variable]});
    edge.patch(json!({
        "rollout": {"strategy": "Canary", "canary": null},
        "podTemplate": {"spec": {"containers": [container]}},
    }));
    until_within(LONG, "the canary failed", async || {
        let (status, reason, message) = edge.condition("Degraded")?;
        let is_told = status == "True" && reason == "CanaryFailed" && message.contains("pod edge-");
        (is_told && edge.condition("Ready")?.0 == "False").then_some(())
    })
    .await;
    tokio::time::sleep(HELD).await;
    let pods: Vec<String> = edge.pods();
    assert!(before.iter().all(|pod| pods.contains(pod)), "{pods:?}");
    assert_eq!(pods.len(), before.len() + 1, "{pods:?}");

    edge.patch(json!({"podTemplate": null}));
    until_within(LONG, "all is as it was", async || {
        let is_back = edge.pods() == before && edge.is_observed();
        (is_back && edge.condition("Ready")?.0 == "True").then_some(())
    })
    .await;
    let degraded = edge.condition("Degraded").expect("it is there");
    assert_eq!(degraded.0, "False", "{degraded:?}");
    edge.patch(json!({"rollout": {"strategy": "Automatic"}}));
}

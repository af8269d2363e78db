//! From charts, operator and gateways of an older revision to those of this checkout, and back, with everybody connected: an operator alone restarts no pod.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use signal_tests::skip;
use signal_tests::wait::until_within;

use crate::LONG;
use crate::crowd::Crowd;
use crate::edge::{Edge, Lab, REPOSITORY, TAG, import_release};
use crate::journal::{Journal, condition};
use crate::network_policy::Enforcer;
use crate::visitors::Visitors;

/// The tag of both images of the older revision.
const OLD: &str = "old";

struct Scene {
    edge: Edge,
    crowd: Crowd,
    visitors: Visitors,
    journal: Journal,
}

#[tokio::test]
#[ignore = "needs an older revision: SIGNAL_TEST_OLD_CHECKOUT, with both binaries built in its target/debug"]
async fn an_operator_of_another_revision_restarts_no_pod() {
    let Some(old) = std::env::var_os("SIGNAL_TEST_OLD_CHECKOUT").map(PathBuf::from) else {
        return skip("SIGNAL_TEST_OLD_CHECKOUT names no checkout of an older revision");
    };
    let Some(lab) = Lab::start().await else {
        return;
    };
    let cluster = lab.cluster.clone();
    import_release(&cluster, &old.join("target/debug/signal-gateway"), OLD).await;
    let enforcer = Enforcer::start(&cluster).expect("tables on every node");
    cluster
        .outside(async move || {
            let scene = Scene::set(lab, &old).await;
            scene.upgrade("the first upgrade").await;
            pods_come_as_the_others_are(&scene).await;
            an_operator_that_is_rolled_back_restarts_none(&scene).await;
            scene.upgrade("the second upgrade").await;
            another_image_takes_the_new_template_over(&scene).await;
            the_older_operator_rolls_its_own_template_out(&scene).await;
            scene.leave().await;
        })
        .await;
    assert_eq!(enforcer.failures(), BTreeMap::new());
}

impl Scene {
    /// All of the older revision, and clients.
    async fn set(lab: Lab, old: &Path) -> Self {
        let edge = Edge::begin(lab).await;
        edge.charts("install", old, OLD);
        edge.make_secret();
        let example = old.join("charts/examples/minimal.yaml");
        let example = std::fs::read_to_string(example).expect("its example");
        edge.apply(&edge.manifest_of(
            &example,
            json!({"image": image(OLD), "rebalance": {"enabled": false}}),
        ));
        edge.ready(LONG).await;
        edge.is_reachable().await;
        Self {
            crowd: Crowd::gather(&edge, 300).await,
            visitors: Visitors::come(&edge, 10),
            journal: Journal::begin(&edge),
            edge,
        }
    }

    async fn leave(self) {
        self.visitors.leave().await;
        self.crowd.leave().await;
    }

    async fn begin(&self) {
        self.edge.none_is_going(LONG).await;
        self.crowd.assembled().await;
        self.crowd.forget();
        self.visitors.forget();
    }

    /// Since [`Self::begin`] whoever came was let in, connections closed with none but these codes, and no status said what was not so.
    fn all_went_well(&self, when: &str, codes: &[u16]) {
        self.no_status_was_wrong(when);
        self.nobody_was_dropped(when, codes);
        self.nobody_was_refused(when);
    }

    fn no_status_was_wrong(&self, when: &str) {
        let wrong = self.journal.lies();
        assert!(
            wrong.is_empty(),
            "{when}: {wrong:#?}, {}",
            self.edge.status()
        );
    }

    fn nobody_was_dropped(&self, when: &str, codes: &[u16]) {
        let closed = self.crowd.closed();
        assert!(
            closed.keys().all(|code| codes.contains(code)),
            "{when}: {closed:?}"
        );
    }

    fn nobody_was_refused(&self, when: &str) {
        self.visitors.assert_all_served(when);
        let refused = self.crowd.refused();
        assert!(refused.is_empty(), "{when}: {refused:?}");
    }

    /// Every pod was asked by whoever operates.
    async fn is_read(&self, pods: i64) {
        until_within(LONG, "a report of every pod", async || {
            let status = self.edge.status();
            let is_read = self.edge.is_observed()
                && status["connections"]["reportingPods"] == pods
                && status["redis"]["subscribedReplicas"] == pods;
            is_read.then_some(())
        })
        .await;
    }

    /// To this checkout's charts and operator. Pods stay, and the status says all the time that they serve, and what they would be.
    async fn upgrade(&self, when: &str) {
        self.begin().await;
        let pods = identities(&self.edge);
        let before = self.journal.version();
        self.edge.charts("upgrade", REPOSITORY.as_ref(), TAG);
        until_within(LONG, "the new operator's status", async || {
            self.edge.condition("UpdatePending")
        })
        .await;
        self.is_read(2).await;
        // It goes on looking: nothing comes of it later.
        let noticed = self.journal.version();
        until_within(LONG, "another look", async || {
            (!self.journal.statuses_since(noticed).is_empty()).then_some(())
        })
        .await;
        assert_eq!(
            identities(&self.edge),
            pods,
            "{when}: {:#?}",
            self.journal.conditions_since(before)
        );
        for status in self.journal.statuses_since(before) {
            let ready = condition(&status, "Ready");
            assert!(ready.is_some_and(|it| it.0 == "True"), "{when}: {status}");
            // The older operator does not know it.
            let pending = condition(&status, "UpdatePending");
            let is_pending =
                pending.is_none_or(|it| it == ("True".into(), "OperatorChanged".into()));
            assert!(is_pending, "{when}: {status}");
            for kind in ["Reconciling", "Stalled"] {
                assert_eq!(condition(&status, kind), None, "{when}: {status}");
            }
        }
        self.all_went_well(when, &[]);
    }
}

fn image(tag: &str) -> Value {
    json!({"repository": "localhost/signal-gateway", "tag": tag, "pullPolicy": "Never"})
}

/// Of each pod that does not stop: its UID, and how often its container was restarted.
fn identities(edge: &Edge) -> BTreeMap<String, Value> {
    let staying = edge.gateways().into_iter();
    let staying = staying.filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    staying
        .map(|pod| {
            let uid = pod["metadata"]["uid"].as_str().expect("a UID").to_owned();
            (
                uid,
                pod["status"]["containerStatuses"][0]["restartCount"].clone(),
            )
        })
        .collect()
}

/// While the update is pending, what the older operator made for starting pods is still there, and its pods go in and out as usual.
async fn pods_come_as_the_others_are(scene: &Scene) {
    scene.begin().await;
    let edge = &scene.edge;
    let before = identities(edge);
    edge.kubectl(&["scale", "sigc/edge", "--replicas=3"]);
    edge.settled(3, LONG).await;
    let after = identities(edge);
    assert!(before.iter().all(|(uid, _)| after.contains_key(uid)));
    scene.all_went_well("a pod more", &[]);
    edge.kubectl(&["scale", "sigc/edge", "--replicas=2"]);
    edge.settled(2, LONG).await;
    edge.ready(LONG).await;
    scene.crowd.assembled().await;
    // A gateway that knows no pause answers 503 from a moment on at which some still come to it.
    scene.no_status_was_wrong("a pod less");
    scene.nobody_was_dropped("a pod less", &[1001]);
}

/// The older operator finds its own template.
async fn an_operator_that_is_rolled_back_restarts_none(scene: &Scene) {
    scene.begin().await;
    let pods = identities(&scene.edge);
    roll_back(scene).await;
    scene.is_read(2).await;
    assert_eq!(identities(&scene.edge), pods);
    scene.all_went_well("rolled back", &[]);
}

/// The definition goes first here as well: an operator may not be able to read what a newer one has.
async fn roll_back(scene: &Scene) {
    let edge = &scene.edge;
    edge.helm(&["rollback", "signal-crds", "1"]);
    let operator = ["signal-operator", "1", "--namespace", "signal-system"];
    edge.helm(&[&["rollback", "--wait", "--timeout=3m"], &operator[..]].concat());
    until_within(LONG, "the older operator's status", async || {
        let is_older = edge.condition("UpdatePending").is_none();
        (is_older && edge.is_observed()).then_some(())
    })
    .await;
    // It may look after its migration once more: the newer one has another Job.
    edge.ready(LONG).await;
}

async fn another_image_takes_the_new_template_over(scene: &Scene) {
    scene.begin().await;
    let edge = &scene.edge;
    let before = identities(edge);
    edge.patch(json!({"image": image(TAG)}));
    all_are_new(scene, &before).await;
    let pending = edge.condition("UpdatePending").expect("it is there");
    assert_eq!(
        (pending.0.as_str(), pending.1.as_str()),
        ("False", "UpToDate")
    );
    edge.none_is_going(LONG).await;
    scene.crowd.assembled().await;
    scene.all_went_well("another image", &[1001]);
}

/// It does not know that it is the other one: its pods replace those of the newer operator, as in any rollout.
async fn the_older_operator_rolls_its_own_template_out(scene: &Scene) {
    scene.begin().await;
    let before = identities(&scene.edge);
    roll_back(scene).await;
    all_are_new(scene, &before).await;
    scene.edge.none_is_going(LONG).await;
    scene.crowd.assembled().await;
    // What its statuses say is not of this revision.
    let when = "rolled back after the rollout";
    scene.nobody_was_dropped(when, &[1001]);
    scene.nobody_was_refused(when);
}

async fn all_are_new(scene: &Scene, before: &BTreeMap<String, Value>) {
    let edge = &scene.edge;
    until_within(2 * LONG, "all pods are new", async || {
        let pods = identities(edge);
        let is_new = pods.len() == 2 && pods.keys().all(|uid| !before.contains_key(uid));
        (is_new && edge.is_observed() && edge.condition("Ready")?.0 == "True").then_some(())
    })
    .await;
}

//! What is due is looked at then, and not before; what pods have to tell, with a delay that grows.

use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use signal_crds::data::Migrations;
use signal_crds::status::SourceStage;

use super::*;
use crate::decide::decide;
use crate::fixture::{changed, pod};
use crate::observe::observed::Observed;
use crate::plan::canary::CanaryState;
use crate::plan::record::{Record, RecordedSource};
use crate::status::status;

const RESYNC: Duration = Duration::from_secs(60);

fn at(secs: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000 + secs, 0).unwrap()
}

/// Decides, writes what was decided into the observation, and has its pods take it; returns when to look again, without a spread.
fn look(
    observed: &mut Observed,
    memory: &mut ClusterMemory,
    resync: Duration,
    now: DateTime<Utc>,
) -> (Wake, Record) {
    // Each look draws another key.
    let mut random = StdRng::seed_from_u64(now.timestamp().unsigned_abs());
    let plan = decide(observed, memory, None, &mut random, now);
    let after = status(observed, &plan, &[], now);
    let input = WakeInput {
        observed,
        plan: &plan,
        conditions: &after.conditions,
        resync,
        asked: observed.fleet.pods.len(),
        chance: 0.5,
    };
    let wake = wake(&input, memory, now);
    std::sync::Arc::make_mut(&mut observed.cluster).status = Some(after);
    let planned = plan.planned().expect("the example is valid");
    observed.live_config = Some(planned.desired.live_config.clone());
    observed.credentials = Some(planned.desired.credentials.clone());
    observed.signing_keys = planned.desired.signing_keys.clone();
    observed.deployment = planned.desired.deployment.clone().map(|it| Deployment {
        status: Some(DeploymentStatus {
            replicas: Some(1),
            updated_replicas: Some(1),
            ..Default::default()
        }),
        ..it
    });
    (wake, planned.facts.record.clone())
}

/// The production example with one source, no keys of its own, and one pod.
fn running() -> Observed {
    let mut observed = changed("production", |cluster| {
        let database = cluster.spec.database.as_mut().unwrap();
        database.migrations = Migrations::Startup;
        cluster.spec.jwks.managed = None;
        cluster.spec.autoscaling = None;
        cluster.spec.replicas = 1;
        cluster.spec.rebalance.enabled = false;
        cluster.metadata.name = Some("edge".into());
    });
    look(&mut observed, &mut ClusterMemory::default(), RESYNC, at(0));
    observed.fleet.pods = vec![pod("edge-1")];
    observed
}

/// The pod has the newest live settings and the keys of every source.
fn follow(observed: &mut Observed, record: &Record) {
    let live = observed
        .live_config
        .as_ref()
        .unwrap()
        .data
        .as_ref()
        .unwrap();
    let revision = crate::objects::revision(&live[crate::objects::LIVE_TOML]);
    let held = |source: &RecordedSource| signal_contract::KeySourceReport {
        name: source.name.clone(),
        state: Some(source.stage.into()),
        keys: vec!["k".into()],
        ..Default::default()
    };
    let report = observed.fleet.pods[0].report.as_mut().unwrap();
    report.live_revision = revision;
    report.key_sources = record.jwks.sources.iter().map(held).collect();
    report.redis.subscribed = true;
    report.kafka = Some(signal_contract::KafkaReport {
        partitions: 1,
        ..Default::default()
    });
}

#[test]
fn an_overlap_is_looked_at_when_it_ends_however_long_it_is() {
    let mut observed = running();
    let memory = &mut ClusterMemory::default();
    let (_, record) = look(&mut observed, memory, RESYNC, at(1));
    follow(&mut observed, &record);
    let cluster = std::sync::Arc::make_mut(&mut observed.cluster);
    cluster.spec.jwks.sources[0].url = "https://elsewhere.example.com/jwks.json".into();
    let overlap = cluster.spec.jwks.rotation.overlap.as_secs();
    let mut now = at(10);
    let mut looks = 0;
    // Prepared, trusted, retiring: each waits for pods.
    let retires = loop {
        looks += 1;
        assert!(looks < 20);
        let (wake, record) = look(&mut observed, memory, RESYNC, now);
        let retiring = record.jwks.sources.iter().find_map(|it| it.retire_after);
        follow(&mut observed, &record);
        if let Some(retires) = retiring {
            break retires;
        }
        assert!(wake.after <= Duration::from_secs(15), "{wake:?}");
        now += TimeDelta::from_std(wake.after).unwrap();
    };
    let begin = now + TimeDelta::seconds(1);
    // The resync is far away: nothing but the end of the overlap asks for a look.
    let far = Duration::from_secs(10 * overlap);
    let (wake, _) = look(&mut observed, memory, far, begin);
    assert_eq!(wake.why, WakeReason::Due(DueReason::Overlap));
    assert_eq!(wake.after, (retires - begin).to_std().unwrap() + MARGIN);
    // It is near: then it comes first, and the end is still exact.
    let (wake, _) = look(&mut observed, memory, RESYNC, begin);
    assert_eq!((wake.why, wake.after), (WakeReason::Resync, RESYNC));
    let (wake, _) = look(
        &mut observed,
        memory,
        RESYNC,
        retires - TimeDelta::seconds(20),
    );
    assert_eq!(wake.why, WakeReason::Due(DueReason::Overlap));
    assert_eq!(wake.after, Duration::from_secs(20) + MARGIN);
    let (_, record) = look(
        &mut observed,
        memory,
        RESYNC,
        retires + TimeDelta::from_std(MARGIN).unwrap(),
    );
    let stages = |stage| {
        record
            .jwks
            .sources
            .iter()
            .filter(move |it| it.stage == stage)
    };
    let all = observed.cluster.spec.jwks.sources.len();
    assert_eq!(
        (
            record.jwks.sources.len(),
            stages(SourceStage::Trusted).count()
        ),
        (all, all),
        "nothing is left to wait for"
    );
}

#[test]
fn a_clock_that_is_set_back_or_forward_moves_what_is_due_with_it() {
    let mut observed = running();
    let memory = &mut ClusterMemory::default();
    let (_, mut record) = look(&mut observed, memory, RESYNC, at(1));
    let mut old = record.jwks.sources[0].clone();
    (old.name, old.declared, old.stage) = ("old".into(), "old".into(), SourceStage::Retiring);
    old.retire_after = Some(at(7200));
    record.jwks.sources.push(old);
    let far = Duration::from_secs(100_000);
    let annotations = |observed: &mut Observed| {
        let live = observed.live_config.as_mut().unwrap();
        live.metadata
            .annotations
            .get_or_insert_default()
            .insert(crate::names::RECORD.into(), record.write());
    };
    for (now, left) in [(100, 7100), (-3600, 10_800), (7000, 200)] {
        annotations(&mut observed);
        let (_, seen) = look(&mut observed, memory, far, at(now));
        follow(&mut observed, &seen);
        let (wake, _) = look(&mut observed, memory, far, at(now));
        assert_eq!(
            wake.after,
            Duration::from_secs(left) + MARGIN,
            "at {now}: {wake:?}"
        );
    }
}

#[test]
fn a_pod_that_does_not_follow_is_asked_less_and_less_often_until_something_changes() {
    let mut observed = running();
    let memory = &mut ClusterMemory::default();
    let (_, record) = look(&mut observed, memory, RESYNC, at(1));
    follow(&mut observed, &record);
    let cluster = std::sync::Arc::make_mut(&mut observed.cluster);
    cluster.spec.jwks.sources[0].url = "https://elsewhere.example.com/jwks.json".into();
    look(&mut observed, memory, RESYNC, at(2));
    let mut now = at(3);
    let mut pauses = Vec::new();
    for _ in 0..6 {
        let (wake, _) = look(&mut observed, memory, RESYNC, now);
        assert_eq!(wake.why, WakeReason::Pods);
        pauses.push(wake.after.as_secs_f64());
        now += TimeDelta::from_std(wake.after).unwrap();
    }
    // Three quarters of 2, 4, 8, 15 s.
    assert_eq!(pauses, [1.5, 3.0, 6.0, 11.25, 11.25, 11.25]);
    // It has the settings, and cannot reach the issuer: that is something new, and may last.
    let (_, record) = look(&mut observed, memory, RESYNC, now);
    follow(&mut observed, &record);
    let report = observed.fleet.pods[0].report.as_mut().unwrap();
    for source in &mut report.key_sources {
        if source.state == Some(signal_contract::SourceState::Prepared) {
            source.keys.clear();
            source.error = Some("the issuer does not answer".into());
        }
    }
    let mut pauses = Vec::new();
    for _ in 0..7 {
        let (wake, _) = look(&mut observed, memory, Duration::from_secs(600), now);
        pauses.push(wake.after.as_secs_f64());
        now += TimeDelta::seconds(1);
    }
    assert_eq!(pauses, [1.5, 3.0, 6.0, 12.0, 24.0, 45.0, 45.0]);
}

/// The canary of another image: the old pod, and a new one, both as `ready` says. Nothing but its time asks for a look.
fn canary(ready: bool) -> (Observed, ClusterMemory) {
    let mut observed = running();
    let mut memory = ClusterMemory::default();
    let (_, record) = look(&mut observed, &mut memory, RESYNC, at(1));
    follow(&mut observed, &record);
    let cluster = std::sync::Arc::make_mut(&mut observed.cluster);
    let image = &mut cluster.spec.image;
    (image.tag, image.digest) = (Some("next".into()), None);
    let rollout = serde_json::json!({"strategy": "Canary", "canary": {"soak": "1h"}, "progressDeadline": "10m"});
    cluster.spec.rollout = serde_json::from_value(rollout).unwrap();
    // The template is applied.
    look(&mut observed, &mut memory, RESYNC, at(10));
    let mut new = observed.fleet.pods[0].clone();
    new.name = "edge-2".into();
    (new.template_hash, new.created) = ("2".into(), at(11));
    new.report.as_mut().unwrap().ready = true;
    observed.fleet.pods.push(new);
    for pod in &mut observed.fleet.pods {
        pod.ready = ready;
        if !ready {
            pod.report = Err("it does not answer".into());
        }
    }
    (observed, memory)
}

#[test]
fn a_canary_is_looked_at_when_its_soak_ends() {
    let far = Duration::from_secs(1_000_000);
    let (mut observed, mut memory) = canary(true);
    look(&mut observed, &mut memory, far, at(20));
    let state = |observed: &Observed| {
        let canary = crate::objects::canary_of(observed.deployment.as_ref().unwrap());
        canary.unwrap().state
    };
    // Pods are asked meanwhile; a second before the end nothing but the end comes first.
    let end = 20 + 3600;
    let (wake, _) = look(&mut observed, &mut memory, far, at(end - 1));
    assert_eq!(wake.why, WakeReason::Due(DueReason::Canary));
    assert_eq!(wake.after, Duration::from_secs(1) + MARGIN);
    assert_eq!(state(&observed), CanaryState::Observed);
    look(&mut observed, &mut memory, far, at(end));
    assert_eq!(state(&observed), CanaryState::Passed);
}

#[test]
fn a_canary_is_looked_at_when_its_deadline_ends() {
    let far = Duration::from_secs(1_000_000);
    let (mut observed, mut memory) = canary(false);
    let (wake, _) = look(&mut observed, &mut memory, far, at(20));
    assert_eq!(wake.why, WakeReason::Due(DueReason::Canary));
    assert_eq!(wake.after, Duration::from_secs(590) + MARGIN);
    let failed = at(10 + 600);
    let (wake, _) = look(&mut observed, &mut memory, far, failed);
    let canary = crate::objects::canary_of(observed.deployment.as_ref().unwrap()).unwrap();
    assert_eq!(canary.state, CanaryState::Failed);
    assert_eq!(wake.why, WakeReason::Resync, "nothing is left to wait for");
}

#[test]
fn a_pod_is_looked_at_when_its_time_to_start_and_its_old_problem_are_over() {
    let far = Duration::from_secs(1_000_000);
    let mut observed = running();
    let memory = &mut ClusterMemory::default();
    let pod = &mut observed.fleet.pods[0];
    (pod.ready, pod.created, pod.changes_at) = (false, at(0), Some(at(300)));
    let (wake, _) = look(&mut observed, memory, far, at(10));
    assert_eq!(wake.why, WakeReason::Due(DueReason::Starting));
    assert_eq!(wake.after, Duration::from_secs(50) + MARGIN);
    let redis = |observed: &Observed| {
        let status = observed.cluster.status.as_ref().unwrap();
        let mut all = status.conditions.iter();
        all.find(|one| one.type_ == "RedisReachable")
            .unwrap()
            .reason
            .clone()
    };
    assert_eq!(redis(&observed), "NotReported");
    let (wake, _) = look(&mut observed, memory, far, at(60));
    assert_eq!(redis(&observed), "SubscriptionStalled");
    assert_eq!(wake.why, WakeReason::Due(DueReason::Problem));
    assert_eq!(wake.after, Duration::from_secs(240) + MARGIN);
}

/// At every second of two days and at chance, the plan of a time before the next known one is the plan of now.
#[test]
fn nothing_changes_by_time_alone_before_it_is_due() {
    let mut observed = running();
    let cluster = std::sync::Arc::make_mut(&mut observed.cluster);
    let managed = serde_json::json!({"issuer": "https://edge.example.com/", "audiences": ["signal"], "subjectPrefix": "e:", "rotateEvery": "24h", "maxTokenLife": "2h"});
    cluster.spec.jwks.managed = Some(serde_json::from_value(managed).unwrap());
    let memory = &mut ClusterMemory::default();
    let far = Duration::from_secs(1_000_000);
    let mut now = at(10);
    let mut stages = std::collections::BTreeSet::new();
    let mut last = None;
    for _ in 0..400 {
        let (_, record) = look(&mut observed, memory, far, now);
        follow(&mut observed, &record);
        serve_keys(&mut observed);
        let (wake, record) = look(&mut observed, memory, far, now);
        last = Some((
            wake,
            observed.cluster.status.clone().map(|it| it.conditions),
        ));
        for key in &record.signing.keys {
            stages.insert((key.kid.clone(), format!("{:?}", key.stage)));
        }
        if wake.why == WakeReason::Samples
            || wake.why == WakeReason::Pods
            || wake.why == WakeReason::Settling
        {
            now += TimeDelta::from_std(wake.after).unwrap();
            continue;
        }
        let before =
            now + TimeDelta::from_std(wake.after - MARGIN).unwrap() - TimeDelta::milliseconds(1);
        let mut early = observed.clone();
        let (_, then) = look(&mut early, memory, far, before.max(now));
        assert_eq!(then, record, "{wake:?}");
        now += TimeDelta::from_std(wake.after).unwrap();
        if now > at(2 * 86_400) {
            break;
        }
    }
    assert!(now > at(2 * 86_400), "it came to {now}: {last:?}");
    let of = |stage: &str| stages.iter().filter(|(_, seen)| seen == stage).count();
    assert!(
        of("Published") >= 1 && of("Signing") >= 2 && of("VerifyOnly") >= 1,
        "{stages:?}"
    );
}

/// The pod serves every key of the set.
fn serve_keys(observed: &mut Observed) {
    let data = observed
        .live_config
        .as_ref()
        .unwrap()
        .data
        .as_ref()
        .unwrap();
    let set: serde_json::Value = serde_json::from_str(&data[crate::objects::JWKS_JSON]).unwrap();
    let keys = set["keys"].as_array().unwrap().iter();
    let keys = keys
        .map(|key| key["kid"].as_str().unwrap().to_owned())
        .collect();
    observed.fleet.pods[0].report.as_mut().unwrap().jwks_file =
        Some(signal_contract::JwksFileReport {
            revision: String::new(),
            keys,
        });
}

//! Nothing out of a Secret leaves Secrets: no object of another kind, Event or condition contains a value that was planted in one.

use std::sync::Arc;

use k8s_openapi::api::batch::v1::{JobCondition, JobStatus};
use k8s_openapi::api::core::v1::Secret;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use signal_crds::data::KafkaProtocol;

use super::*;
use crate::act::apply::{Wanted, wanted};
use crate::fixture::{example, pod, with_secrets_of_operators};
use crate::observe::resources::SECRET;
use crate::status::status;

/// Written over every value that is no certificate, in the form that it must have.
const PLANTED: &str = "planted";

/// The examples with a value of its own in every key of every Secret.
fn planted() -> Vec<Observed> {
    let examples = [
        example("production"),
        with_secrets_of_operators(KafkaProtocol::Ssl),
        with_secrets_of_operators(KafkaProtocol::SaslSsl),
    ];
    examples.into_iter().map(planted_in).collect()
}

fn planted_in(mut observed: Observed) -> Observed {
    let mut count = 0;
    for (name, data) in &mut observed.secrets {
        for (key, content) in data.iter_mut().flatten() {
            let value = format!("{PLANTED}-{name}-{key}");
            let text = String::from_utf8_lossy(content);
            *content = match text.as_ref() {
                // A key must belong to its certificate; what is looked for is its label.
                pem if pem.contains("-----BEGIN ") => continue,
                port if port.parse::<u16>().is_ok() => continue,
                json if json.starts_with('[') => {
                    format!(r#"[{{"username":"{value}","password":"{value}"}}]"#)
                }
                url if url.contains("://") => {
                    format!("postgres://{value}:{value}@{value}/signal?a={value}")
                }
                _ => value,
            }
            .into_bytes();
            count += 1;
        }
    }
    assert!(count >= 7, "{count}");
    observed
}

/// Every text that one reconcile writes: objects but for Secrets, the status, Events.
fn texts(observed: &Observed) -> (Vec<String>, ClusterPlan) {
    let now = DateTime::UNIX_EPOCH;
    let mut memory = ClusterMemory::default();
    let plan = decide(
        observed,
        &mut memory,
        Some("operators"),
        &mut StdRng::seed_from_u64(7),
        now,
    );
    let mut texts = Vec::new();
    if let Some(planned) = plan.planned() {
        for object in wanted(planned.desired.clone()).unwrap() {
            if let Wanted::Object(kind, object) = object
                && kind != SECRET
            {
                texts.push(serde_json::to_string(&object).unwrap());
            }
        }
    }
    let status = status(observed, &plan, &[], now);
    texts.push(serde_json::to_string(&status).unwrap());
    texts.push(format!("{:?}", plan.facts().events));
    texts.push(format!("{:?}", plan.problems()));
    (texts, plan)
}

fn assert_nothing_planted(observed: &Observed, also: &[String]) -> ClusterPlan {
    let (texts, plan) = texts(observed);
    for text in &texts {
        let private = ["PRIVATE KEY", "\"d\":", "\\\"d\\\"", PLANTED];
        let own = also.iter().map(String::as_str);
        let found = private
            .into_iter()
            .chain(own)
            .find(|one| text.contains(one));
        assert_eq!(found, None, "{text}");
    }
    plan
}

/// What the operator itself made and keeps in Secrets: tokens and keys of more than a few letters.
fn made(secrets: &[&Secret]) -> Vec<String> {
    let data = secrets.iter().filter_map(|secret| secret.data.as_ref());
    let values = data.flat_map(|data| data.values());
    let texts = values.filter_map(|value| String::from_utf8(value.0.clone()).ok());
    texts
        .filter(|text| !text.contains("CERTIFICATE") && !text.starts_with('{'))
        .collect()
}

#[test]
fn nothing_out_of_a_secret_is_in_any_object_condition_or_event() {
    for observed in planted() {
        nothing_leaves_while_a_cluster_comes_up(observed);
    }
}

/// From nothing to a cluster that runs, with a rotation on its way.
fn nothing_leaves_while_a_cluster_comes_up(mut observed: Observed) {
    let first = assert_nothing_planted(&observed, &[]);
    let planned = first.planned().unwrap();
    observed.jobs = planned.desired.migration.clone().into_iter().collect();
    let complete = JobCondition {
        type_: "Complete".into(),
        status: "True".into(),
        ..JobCondition::default()
    };
    observed.jobs[0].status = Some(JobStatus {
        conditions: Some(vec![complete]),
        ..JobStatus::default()
    });
    let second = assert_nothing_planted(&observed, &[]);
    let desired = second.planned().unwrap().desired.clone();
    observed.deployment = desired.deployment;
    observed.live_config = Some(desired.live_config);
    observed.credentials = Some(desired.credentials.clone());
    observed.signing_keys = desired.signing_keys.clone();
    observed.fleet.pods = vec![pod("a"), pod("b")];
    let made = made(&[&desired.credentials, desired.signing_keys.as_ref().unwrap()]);
    assert!(made.len() >= 3, "the token and the current key: {made:?}");
    let running = assert_nothing_planted(&observed, &made);
    let stages = running.facts().signing_keys.iter().map(|key| key.state);
    assert!(stages.count() > 0, "keys are shown");

    // Another login of Redis, and another source: changes that the record and Events tell.
    let cluster = Arc::make_mut(&mut observed.cluster);
    cluster.spec.jwks.sources.pop();
    let redis = observed.secrets.get_mut("redis").unwrap().as_mut().unwrap();
    redis.insert("user".into(), b"planted-another".to_vec());
    let moved = assert_nothing_planted(&observed, &made);
    assert!(!moved.facts().events.is_empty());
}

#[test]
fn nothing_out_of_a_secret_that_cannot_be_used_is_in_what_is_said_about_it() {
    let spoils: [fn(&mut Vec<u8>); 3] = [
        |content| content.extend(b"\nplanted"),
        |content| {
            content.splice(0..0, *b"planted\0");
        },
        |content| *content = b"{\"planted\": \"planted://planted:planted@planted\"}\n-".to_vec(),
    ];
    let all = planted();
    for (spoil, planted) in spoils
        .iter()
        .flat_map(|one| all.iter().map(move |it| (one, it)))
    {
        for name in planted.secrets.keys() {
            let mut observed = planted.clone();
            let data = observed.secrets.get_mut(name).unwrap().as_mut().unwrap();
            let is_pem = |content: &Vec<u8>| content.starts_with(b"-----BEGIN ");
            let has_pem = data.values().any(is_pem);
            data.values_mut().for_each(spoil);
            let plan = assert_nothing_planted(&observed, &[]);
            let wrong = plan.problems().iter();
            let wrong = wrong.filter(|problem| problem.kind == ProblemKind::Reference);
            // Text around certificates and keys is no part of them.
            assert!(wrong.count() > 0 || has_pem, "{name}");
        }
    }
    // Also in the Secret of keys that the operator made.
    let mut observed = planted().remove(0);
    let damaged = serde_json::from_value(serde_json::json!({
        "metadata": {"name": "edge-signing-keys"},
        "data": {"ring.json": k8s_openapi::ByteString(b"{\"keys\":[{\"kid\":\"a\",\"d\":\"planted\"},\"planted\"]}".to_vec())},
    }));
    observed.signing_keys = Some(damaged.unwrap());
    let plan = assert_nothing_planted(&observed, &[]);
    let said = |event: &PlanEvent| event.reason == crate::reasons::EventReason::SigningKeysDamaged;
    assert!(plan.facts().events.iter().any(said));
}

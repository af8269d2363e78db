//! A record that cannot be read changes nothing of what it speaks of, and says so.

use signal_crds::data::Migrations;

use super::*;
use crate::fixture::{changed, plan_of};
use crate::status::status;

fn at(secs: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000 + secs, 0).unwrap()
}

fn look(observed: &Observed) -> ClusterPlan {
    plan_of(observed, at(0))
}

/// The production example with everything written, and then a source more in its spec and a record that reads like this.
fn with_record(text: Option<&str>) -> Observed {
    // Otherwise the Deployment waits for the migration's Job.
    let mut observed = changed("production", |cluster| {
        let database = cluster.spec.database.as_mut().unwrap();
        database.migrations = Migrations::Startup;
    });
    let ClusterPlan::Planned(planned) = look(&observed) else {
        panic!("the example is valid")
    };
    let written = planned.desired;
    observed.live_config = Some(written.live_config);
    observed.credentials = Some(written.credentials);
    observed.signing_keys = written.signing_keys;
    let live = observed.live_config.as_mut().unwrap();
    live.metadata.annotations = text.map(|text| [(RECORD.to_owned(), text.to_owned())].into());
    let cluster = std::sync::Arc::make_mut(&mut observed.cluster);
    let mut new = cluster.spec.jwks.sources[0].clone();
    (new.name, new.issuer) = ("new".into(), "https://new.example.com/".into());
    new.subject_prefix = "new:".into();
    cluster.spec.jwks.sources.push(new);
    observed
}

#[test]
fn live_settings_trust_and_keys_stay_and_a_condition_names_the_annotation() {
    for text in [Some("{"), Some("{\"version\":99}"), None] {
        let observed = with_record(text);
        let plan = look(&observed);
        let planned = plan.planned().expect("scaling goes on");
        let desired = &planned.desired;
        let (live, current) = (&desired.live_config, observed.live_config.as_ref().unwrap());
        assert_eq!(live.data, current.data, "{text:?}");
        assert_eq!(live.metadata.annotations, current.metadata.annotations);
        let live = &live.data.as_ref().unwrap()[LIVE_TOML];
        assert!(
            !live.contains("new.example.com"),
            "the new source is not trusted"
        );
        assert_eq!(plan.facts().revision, revision(live));
        let keys =
            |secret: Option<&k8s_openapi::api::core::v1::Secret>| secret.unwrap().data.clone();
        assert_eq!(
            keys(desired.signing_keys.as_ref()),
            keys(observed.signing_keys.as_ref())
        );
        let before = keys(observed.credentials.as_ref()).unwrap();
        let after = keys(Some(&desired.credentials)).unwrap();
        assert!(
            before.keys().all(|file| after.contains_key(file)),
            "no file is taken away that live settings may name"
        );
        assert!(desired.deployment.is_some() && planned.pods.scale.deployment_replicas > 0);
        let kinds: Vec<_> = plan.problems().iter().map(|found| found.kind).collect();
        assert_eq!(kinds, [ProblemKind::Record]);
        let status = status(&observed, &plan, &[], at(0));
        for (kind, state) in [("JWKSRotationComplete", "False"), ("Degraded", "True")] {
            let all = &status.conditions;
            let condition = all.iter().find(|one| one.type_ == kind).unwrap();
            assert_eq!(
                (condition.status.as_str(), condition.reason.as_str()),
                (state, "RecordUnreadable")
            );
            assert!(condition.message.contains(RECORD), "{}", condition.message);
        }
    }
}

#[test]
fn a_record_without_a_version_goes_on_where_it_stands() {
    let mut observed = with_record(None);
    let cluster = validate(&observed).unwrap();
    let first_form = serde_json::to_string(&crate::fixture::settled(&cluster)).unwrap();
    assert!(!first_form.contains("version"));
    let live = observed.live_config.as_mut().unwrap();
    live.metadata.annotations = Some([(RECORD.to_owned(), first_form)].into());
    let plan = look(&observed);
    assert!(plan.problems().is_empty());
    assert_eq!(
        plan.facts().record.jwks.sources.len(),
        cluster.sources.len()
    );
}

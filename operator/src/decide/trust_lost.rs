//! Objects that people delete by hand: what is trusted, and what tokens need, survives them.

use k8s_openapi::api::core::v1::ConfigMap;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use signal_crds::data::Migrations;

use super::*;
use crate::fixture::changed;
use crate::objects::JWKS_JSON;
use crate::status::status;

fn at(secs: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000 + secs, 0).unwrap()
}

/// Decides, and writes what was decided into the observation.
fn look(observed: &mut Observed, secs: i64) -> Box<PlannedCluster> {
    let plan = decide(
        observed,
        &mut ClusterMemory::default(),
        None,
        &mut StdRng::seed_from_u64(secs.unsigned_abs()),
        at(secs),
    );
    std::sync::Arc::make_mut(&mut observed.cluster).status =
        Some(status(observed, &plan, &[], at(secs)));
    let ClusterPlan::Planned(planned) = plan else {
        panic!("the example is valid")
    };
    observed.live_config = Some(planned.desired.live_config.clone());
    observed.credentials = Some(planned.desired.credentials.clone());
    observed.signing_keys = planned.desired.signing_keys.clone();
    planned
}

/// The production example with everything written.
fn running() -> Observed {
    let mut observed = changed("production", |cluster| {
        let database = cluster.spec.database.as_mut().unwrap();
        database.migrations = Migrations::Startup;
        cluster.metadata.name = Some("edge".into());
    });
    look(&mut observed, 0);
    look(&mut observed, 1);
    observed
}

fn kids(observed: &Observed) -> Vec<String> {
    let data = observed.live_config.as_ref().unwrap().data.as_ref();
    let set: serde_json::Value = serde_json::from_str(&data.unwrap()[JWKS_JSON]).unwrap();
    let keys = set["keys"].as_array().unwrap();
    keys.iter()
        .map(|key| key["kid"].as_str().unwrap().to_owned())
        .collect()
}

fn condition(observed: &Observed, kind: &str) -> (String, String, String) {
    let all = &observed.cluster.status.as_ref().unwrap().conditions;
    let found = all.iter().find(|one| one.type_ == kind).unwrap();
    (
        found.status.clone(),
        found.reason.clone(),
        found.message.clone(),
    )
}

fn warnings(plan: &PlannedCluster) -> Vec<&'static str> {
    let all = plan.facts.events.iter();
    all.filter(|event| event.kind == crate::plan::EventKind::Warning)
        .map(|event| event.reason.as_str())
        .collect()
}

#[test]
fn a_signing_secret_that_is_deleted_by_hand_leaves_public_halves_that_verify_until_no_token_is_valid()
 {
    let mut observed = running();
    let old = kids(&observed);
    assert_eq!(condition(&observed, "SigningKeysIntact").0, "True");
    observed.signing_keys = None;
    let plan = look(&mut observed, 100);
    assert_eq!(warnings(&plan), ["SigningKeysLost"]);
    let both = kids(&observed);
    assert_eq!(both.len(), 2);
    assert!(both.contains(&old[0]), "tokens of it are still about");
    let (state, reason, message) = condition(&observed, "SigningKeysIntact");
    assert_eq!((&*state, &*reason), ("False", "SigningKeysLost"));
    assert!(message.contains(&old[0]), "{message}");
    assert_eq!(condition(&observed, "Degraded").0, "False");

    // The other copy of the public halves is lost as well: neither depends on the other.
    let again = look(&mut observed, 101);
    assert_eq!(warnings(&again), [""; 0], "it is said once");
    observed.live_config = None;
    look(&mut observed, 102);
    assert_eq!(kids(&observed), both);
    observed.signing_keys = None;
    look(&mut observed, 103);
    assert!(both.iter().all(|kid| kids(&observed).contains(kid)));

    // `maxTokenLife`, clock skew and `cacheAge` later no token of them can be valid.
    let spec = &observed.cluster.spec;
    let managed = spec.jwks.managed.as_ref().unwrap();
    let life = [
        managed.max_token_life,
        managed.cache_age,
        spec.gateway.auth.clock_skew,
    ];
    let life: u64 = life.iter().map(|span| span.std().as_secs()).sum();
    let life = i64::try_from(life).unwrap();
    look(&mut observed, 100 + life - 1);
    assert!(kids(&observed).contains(&old[0]));
    look(&mut observed, 103 + life);
    assert_eq!(kids(&observed).len(), 1);
    assert_eq!(condition(&observed, "SigningKeysIntact").0, "True");
}

#[test]
fn a_live_config_map_that_is_deleted_in_mid_rotation_trusts_nothing_unseen() {
    let mut observed = running();
    let cluster = std::sync::Arc::make_mut(&mut observed.cluster);
    let mut new = cluster.spec.jwks.sources[0].clone();
    (new.name, new.issuer) = ("new".into(), "https://new.example.com/".into());
    new.subject_prefix = "new:".into();
    cluster.spec.jwks.sources.push(new);
    observed.fleet.pods = vec![crate::fixture::pod("edge-1")];
    let stage = |plan: &PlannedCluster| {
        let all = &plan.facts.record.jwks.sources;
        all.iter()
            .find(|source| source.name == "new")
            .unwrap()
            .stage
    };
    let begun = look(&mut observed, 10);
    assert_eq!(stage(&begun), SourceStage::Prepared);
    for copy in [true, false] {
        let written = observed.live_config.take();
        if !copy {
            observed.credentials.as_mut().unwrap().metadata.annotations = None;
        }
        let plan = look(&mut observed, 11);
        assert_eq!(stage(&plan), SourceStage::Prepared, "copy: {copy}");
        let reason = if copy { "RecordRestored" } else { "RecordLost" };
        assert_eq!(warnings(&plan), [reason]);
        let data = |map: Option<ConfigMap>| map.unwrap().data.unwrap()[LIVE_TOML].clone();
        if copy {
            assert_eq!(data(observed.live_config.clone()), data(written));
        }
    }
}

#[test]
fn an_emergency_shows_in_a_condition_that_says_what_became_of_each_source_it_names() {
    let mut observed = running();
    assert_eq!(condition(&observed, "EmergencyInForce").0, "False");
    let cluster = std::sync::Arc::make_mut(&mut observed.cluster);
    let name = cluster.spec.jwks.sources[0].name.clone();
    cluster.spec.jwks.sources[0].url = "https://elsewhere.example.com/jwks.json".into();
    cluster.spec.jwks.rotation.emergency = true;
    cluster.spec.jwks.rotation.emergency_sources = vec![name.clone(), "x".into()];
    look(&mut observed, 10);
    let (state, reason, message) = condition(&observed, "EmergencyInForce");
    assert_eq!((&*state, &*reason), ("True", "EmergencyInForce"));
    assert!(message.contains(&format!("{name} lost trust")), "{message}");
    assert!(message.contains("x is not known"), "{message}");
}

//! The number of pods follows the spec, and drains go on, where nothing else can be decided.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec};

use super::*;
use crate::fixture::{changed, plan_of, pod};
use crate::status::status;

/// Three pods, of which this many are wanted, and a spec that cannot be carried out.
fn three(wanted: i32, spoil: impl Fn(&mut Observed)) -> (Observed, ClusterPlan) {
    let mut observed = changed("production", |cluster| {
        cluster.spec.replicas = wanted;
        cluster.spec.autoscaling = None;
    });
    observed.deployment = Some(Deployment {
        spec: Some(DeploymentSpec {
            replicas: Some(3),
            ..DeploymentSpec::default()
        }),
        ..Deployment::default()
    });
    observed.fleet.pods = ["a", "b", "c"].map(pod).into();
    spoil(&mut observed);
    let plan = plan_of(&observed, DateTime::UNIX_EPOCH);
    assert!(plan.planned().is_none());
    (observed, plan)
}

#[test]
fn pods_come_and_go_without_a_secret_a_valid_field_or_an_answer() {
    let spoils: [fn(&mut Observed); 3] = [
        |observed| {
            observed
                .secrets
                .values_mut()
                .for_each(|secret| *secret = None)
        },
        |observed| {
            let cluster = Arc::make_mut(&mut observed.cluster);
            cluster.spec.gateway.admin_port = cluster.spec.gateway.public_port;
        },
        |observed| observed.unread.push("read Secret: not within 15 s".into()),
    ];
    for spoil in spoils {
        let (_, plan) = three(5, spoil);
        assert_eq!(plan.pods().scale.deployment_replicas, 5);
        let (_, plan) = three(1, spoil);
        assert_eq!(plan.pods().scale.mark.len(), 2, "two drain");
    }
}

#[test]
fn what_could_not_be_read_is_unknown_and_changes_no_object() {
    let stages = |observed: &mut Observed| {
        let status = signal_crds::Status {
            jwks: vec![signal_crds::status::SourceStatus {
                name: "main".into(),
                issuer: "https://id.example.com/".into(),
                state: SourceStage::Trusted,
                key_ids: Vec::new(),
                fetched_replicas: 3,
                retire_after: None,
                last_error: None,
            }],
            ..signal_crds::Status::default()
        };
        Arc::make_mut(&mut observed.cluster).status = Some(status);
        observed.unread.push("read ConfigMap: 500".into());
    };
    let (observed, plan) = three(3, stages);
    let status = status(&observed, &plan, &[], DateTime::UNIX_EPOCH);
    for kind in ["Ready", "SecretsResolved"] {
        let conditions = &status.conditions;
        let found = conditions.iter().find(|one| one.type_ == kind).unwrap();
        assert_eq!(
            (found.status.as_str(), found.reason.as_str()),
            ("Unknown", "ReadFailed")
        );
        assert!(found.message.contains("ConfigMap"), "{}", found.message);
    }
    assert_eq!(status.ready_replicas, 3, "the pods were seen");
    assert_eq!(status.jwks.len(), 1, "stages stay as they were known");
}

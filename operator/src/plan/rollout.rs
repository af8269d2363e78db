//! Whether pods are being replaced, how far that is, and whether it is stuck: from the Deployment's status and the fleet.
//!
//! A change of the number alone is no rollout: pods that start, fail or are missing all have the newest revision. A pod of another revision that is
//! not terminating makes a rollout.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use k8s_openapi::api::apps::v1::Deployment;

use crate::names::TEMPLATE_HASH;
use crate::observe::fleet::{Fleet, Pod};

/// The state of a rollout.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rollout {
    /// Pods of an older revision exist.
    pub going_on: bool,
    /// The Deployment's message, if it made no progress within its deadline.
    pub stuck: Option<String>,
    /// `pod-template-hash` of the newest revision, once a pod of it was seen.
    pub newest: Option<String>,
    /// Pods of the newest revision that are not terminating.
    pub updated: i32,
}

impl Rollout {
    /// The rollout of an observed Deployment.
    pub fn of(deployment: Option<&Deployment>, fleet: &Fleet) -> Self {
        let Some(deployment) = deployment else {
            return Self::default();
        };
        let status = deployment.status.clone().unwrap_or_default();
        let pods = status.replicas.unwrap_or(0);
        let updated = status.updated_replicas.unwrap_or(0);
        // Until the Deployment's controller has observed the newest generation, its counts belong to the previous template.
        let is_current = status.observed_generation >= deployment.metadata.generation;
        let revisions = Revisions::of(fleet);
        let newest = revisions.newest(is_current.then_some(updated));
        let stuck = status
            .conditions
            .unwrap_or_default()
            .into_iter()
            .find_map(|condition| {
                let is_stuck = condition.type_ == "Progressing"
                    && condition.reason.as_deref() == Some("ProgressDeadlineExceeded");
                (is_stuck && is_current).then(|| condition.message.unwrap_or_default())
            });
        Self {
            going_on: revisions.0.len() > 1 || updated < pods,
            stuck,
            updated: newest
                .as_ref()
                .and_then(|hash| revisions.0.get(hash))
                .map_or(0, |revision| revision.count),
            newest,
        }
    }

    /// Whether the Deployment's controller works on the template of this Deployment. Until then its counts, and all pods, are of an older template. A
    /// change of the number alone, which it has not observed either, leaves the template's hash on the newest ReplicaSet.
    pub fn is_begun(deployment: &Deployment, template_hashes: &BTreeSet<String>) -> bool {
        let status = deployment.status.as_ref();
        let observed = status.and_then(|status| status.observed_generation);
        let annotations = deployment.metadata.annotations.as_ref();
        let hash = annotations.and_then(|all| all.get(TEMPLATE_HASH));
        observed >= deployment.metadata.generation
            || hash.is_some_and(|hash| template_hashes.contains(hash))
    }

    /// Whether this pod is of the newest revision.
    pub fn is_newest(&self, pod: &Pod) -> bool {
        self.newest.as_ref() == Some(&pod.template_hash)
    }
}

/// Pods that are not terminating by revision.
struct Revisions(BTreeMap<String, Revision>);

#[derive(Default)]
struct Revision {
    count: i32,
    youngest: DateTime<Utc>,
}

impl Revisions {
    fn of(fleet: &Fleet) -> Self {
        let mut revisions: BTreeMap<String, Revision> = BTreeMap::new();
        for pod in fleet.alive() {
            let revision = revisions.entry(pod.template_hash.clone()).or_default();
            revision.count += 1;
            revision.youngest = revision.youngest.max(pod.created);
        }
        Self(revisions)
    }

    /// The revision with as many pods as the Deployment counts as updated; if several or none have, the one with the youngest pod. The youngest pod
    /// alone is not enough: a stuck rollout may have replaced a pod of the old revision.
    fn newest(&self, updated: Option<i32>) -> Option<String> {
        if updated == Some(0) {
            return None;
        }
        let rank = |revision: &Revision| (Some(revision.count) == updated, revision.youngest);
        self.0
            .iter()
            .max_by_key(|(_, revision)| rank(revision))
            .map(|(hash, _)| hash.clone())
    }
}

#[cfg(test)]
mod tests {

    use chrono::TimeDelta;
    use k8s_openapi::api::apps::v1::{DeploymentCondition, DeploymentStatus};

    use super::*;

    fn deployment(pods: i32, updated: i32) -> Deployment {
        let mut deployment = Deployment::default();
        deployment.metadata.generation = Some(3);
        deployment.status = Some(DeploymentStatus {
            observed_generation: Some(3),
            replicas: Some(pods),
            updated_replicas: Some(updated),
            ..Default::default()
        });
        deployment
    }

    /// One pod for each letter of the text, named after its place, each a minute younger than the last; the letter is its revision.
    fn fleet(revisions: &str) -> Fleet {
        let pods = revisions.chars().enumerate().map(|(place, hash)| Pod {
            uid: String::new(),
            resource_version: String::new(),
            node: None,
            template_hash: hash.to_string(),
            created: DateTime::UNIX_EPOCH + TimeDelta::minutes(i64::try_from(place).unwrap()),
            report: Err(String::new()),
            ..crate::fixture::pod(&format!("p{place}"))
        });
        Fleet {
            pods: pods.collect(),
        }
    }

    #[test]
    fn pods_of_one_revision_are_no_rollout_however_many_are_missing() {
        for (pods, updated) in [(3, 3), (2, 2), (0, 0)] {
            let rollout = Rollout::of(Some(&deployment(pods, updated)), &fleet("aa"));
            assert!(!rollout.going_on, "{pods} {updated}");
        }
        assert_eq!(Rollout::of(None, &fleet("aa")), Rollout::default());
    }

    #[test]
    fn a_pod_of_another_revision_is_a_rollout_until_it_terminates() {
        let mut fleet = fleet("aabb");
        let rollout = Rollout::of(Some(&deployment(4, 2)), &fleet);
        assert!(rollout.going_on);
        assert_eq!((rollout.newest.as_deref(), rollout.updated), (Some("b"), 2));
        assert!(rollout.is_newest(&fleet.pods[2]) && !rollout.is_newest(&fleet.pods[0]));
        fleet.pods[0].terminating = true;
        fleet.pods[1].terminating = true;
        assert!(!Rollout::of(Some(&deployment(2, 2)), &fleet).going_on);
    }

    #[test]
    fn a_new_revision_without_a_pod_is_a_rollout_too() {
        let rollout = Rollout::of(Some(&deployment(2, 0)), &fleet("aa"));
        assert_eq!(
            (rollout.going_on, rollout.newest, rollout.updated),
            (true, None, 0)
        );
    }

    #[test]
    fn a_replaced_pod_of_the_old_revision_is_not_taken_for_the_newest() {
        let rollout = Rollout::of(Some(&deployment(4, 1)), &fleet("aaba"));
        assert_eq!(rollout.newest.as_deref(), Some("b"));
    }

    #[test]
    fn counts_of_the_previous_template_are_not_trusted() {
        let mut deployment = deployment(3, 2);
        deployment.metadata.generation = Some(4);
        let rollout = Rollout::of(Some(&deployment), &fleet("aab"));
        assert_eq!(rollout.newest.as_deref(), Some("b"));
    }

    #[test]
    fn a_rollout_begins_once_its_controller_has_observed_it_or_has_a_replica_set_for_it() {
        let mut deployment = deployment(2, 2);
        let hashes = |hash: &str| BTreeSet::from([hash.to_owned()]);
        assert!(Rollout::is_begun(&deployment, &BTreeSet::new()));
        deployment.metadata.generation = Some(4);
        deployment.metadata.annotations = Some([(TEMPLATE_HASH.into(), "new".into())].into());
        assert!(!Rollout::is_begun(&deployment, &hashes("old")));
        assert!(
            Rollout::is_begun(&deployment, &hashes("new")),
            "only the number changed"
        );
        deployment.status = None;
        assert!(!Rollout::is_begun(&deployment, &BTreeSet::new()));
    }

    #[test]
    fn a_rollout_past_its_deadline_is_stuck_with_the_deployments_message() {
        let mut deployment = deployment(4, 1);
        deployment.status.as_mut().unwrap().conditions = Some(vec![DeploymentCondition {
            type_: "Progressing".into(),
            status: "False".into(),
            reason: Some("ProgressDeadlineExceeded".into()),
            message: Some("no progress".into()),
            ..Default::default()
        }]);
        assert_eq!(
            Rollout::of(Some(&deployment), &fleet("aaab"))
                .stuck
                .as_deref(),
            Some("no progress")
        );
        deployment.metadata.generation = Some(4);
        assert_eq!(
            Rollout::of(Some(&deployment), &fleet("aaab")).stuck,
            None,
            "the message belongs to the previous template"
        );
    }
}

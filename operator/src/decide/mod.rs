//! Observed -> [`ClusterPlan`]: the middle of a reconcile. Pure.
//!
//! The plans run in this order: key sources, Redis, signing keys, the number of pods; every object is made from their results. The number of pods needs
//! nothing but the spec's numbers, the Deployment and its pods, so it is planned also where the spec cannot be carried out. The same observation gives
//! the same plan, so an operator that was killed at any point continues. The exception is [`ClusterMemory`], which a new leader starts empty.

mod step;
mod wake;

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use k8s_openapi::api::core::v1::Secret;
use signal_crds::status::SigningKeyStatus;
#[cfg(test)]
use signal_crds::status::SourceStage;

use crate::names::{RECORD, TEMPLATE_HASH};
use crate::objects::{
    self, Desired, DesiredInput, LIVE_TOML, Migration, canary_of, desired, revision,
};
use crate::observe::fleet::Fleet;
use crate::observe::observed::Observed;
use crate::plan::autoscale::{self, Decision, History};
use crate::plan::rebalance::RebalanceMemory;
use crate::plan::record::{PublicKey, Record};
use crate::plan::rollout::Rollout;
use crate::plan::scale::ScaleStep;
use crate::plan::validate::{Problem, ProblemKind, ValidCluster, validate};
use crate::plan::{Due, DueReason, PlanEvent, Waiting};
use crate::reasons::ConditionReason;

use step::{Step, signing_keys_before};
use wake::Patience;

pub use wake::{Wake, WakeInput, WakeReason, wake};

/// What is remembered of one SignalCluster between reconciles. A new leader starts it empty, without harm.
#[derive(Clone, Default)]
pub struct ClusterMemory {
    history: History,
    decided: Option<(DateTime<Utc>, Decision)>,
    rebalance: RebalanceMemory,
    rebalanced: Option<DateTime<Utc>>,
    /// Hash of the template that could not be applied the last time: no rollout begins by it, so pods may leave meanwhile.
    template_not_applied: Option<String>,
    published: Vec<PlanEvent>,
    /// Since when a pod that drains is known to do so, by uid.
    drains: BTreeMap<String, DateTime<Utc>>,
    /// When held drains were ordered again.
    renewed: Option<DateTime<Utc>>,
    /// How long pods have told nothing new.
    patience: Patience,
}

impl ClusterMemory {
    /// Those of these events that the last reconcile did not have: a plan repeats its events while it waits.
    pub(crate) fn unpublished(&mut self, events: &[PlanEvent]) -> Vec<PlanEvent> {
        let fresh = events
            .iter()
            .filter(|event| !self.published.contains(event))
            .cloned()
            .collect();
        self.published = events.to_vec();
        fresh
    }

    /// Remembers since when pods drain. A clock that was set back does not make a drain longer than its time.
    fn follow_drains(&mut self, fleet: &Fleet, now: DateTime<Utc>) {
        let drains = fleet.pods.iter().filter(|pod| pod.draining_since.is_some());
        self.drains = drains
            .map(|pod| {
                let seen = self.drains.get(&pod.uid).copied().unwrap_or(now);
                (pod.uid.clone(), seen.min(now))
            })
            .collect();
    }

    /// Remembers the template that an apply of this plan did not reach, if any.
    pub(crate) fn applied(&mut self, plan: &PlannedCluster, reached: bool) {
        let deployment = plan.desired.deployment.as_ref().filter(|_| !reached);
        let annotations =
            deployment.and_then(|deployment| deployment.metadata.annotations.as_ref());
        self.template_not_applied = annotations.and_then(|all| all.get(TEMPLATE_HASH).cloned());
    }
}

/// What is to be done about one SignalCluster.
pub enum ClusterPlan {
    /// No object is changed, because the spec cannot be carried out. Only the number of pods follows it.
    Invalid(Box<InvalidCluster>),
    /// The spec is valid; this is the next step towards it.
    Planned(Box<PlannedCluster>),
}

/// Why no object is changed, and what the cluster runs with meanwhile.
pub struct InvalidCluster {
    /// Everything that is wrong; never empty.
    pub problems: Vec<Problem>,
    /// The pods.
    pub pods: PodsPlan,
    /// As it is in the cluster.
    pub facts: ClusterFacts,
}

/// The next step of a SignalCluster with a valid spec.
pub struct PlannedCluster {
    /// Every object.
    pub desired: Desired,
    /// The pods.
    pub pods: PodsPlan,
    /// How far the schema is.
    pub migration: Migration,
    /// What the key sources wait for, or the signing keys.
    pub rotation: Option<Waiting>,
    /// Signing keys whose private parts are gone, while their public halves are verified.
    pub lost_keys: Vec<PublicKey>,
    /// What the switch to another Redis waits for.
    pub routing: Option<Waiting>,
    /// When stages, keys, the migration and the canary go on by time alone.
    pub due: Vec<Due>,
    /// Why the record cannot be read. Live settings, trust and keys then stay as they are; the rest of the plan goes on.
    pub unreadable: Option<Problem>,
    /// As it is after this step.
    pub facts: ClusterFacts,
}

/// What is to be done about the pods, whether the spec is valid or not.
pub struct PodsPlan {
    /// The number of pods, and which of them drain.
    pub scale: ScaleStep,
    /// Pods and how many connections each sheds.
    pub shed: Vec<(String, u32)>,
    /// The number to be written through the scale subresource.
    pub rescale: Option<i32>,
    /// What limits the number of pods: reason and message.
    pub limited: Option<(ConditionReason, String)>,
}

/// What is known of a SignalCluster whether its spec is valid or not.
pub struct ClusterFacts {
    /// The stages of everything that changes in stages.
    pub record: Record,
    /// `sha256:` of the wanted `live.toml`; empty where there is none.
    pub revision: String,
    /// Whether pods are being replaced.
    pub rollout: Rollout,
    /// Whether the Deployment in the cluster has the wanted template and its controller works on it. Until then nothing that is observed is about the
    /// wanted template.
    pub rollout_begun: bool,
    /// The keys that the operator makes, as their Secret holds them.
    pub signing_keys: Vec<SigningKeyStatus>,
    /// What happened in this step.
    pub events: Vec<PlanEvent>,
}

impl ClusterPlan {
    /// What is known in both cases.
    pub fn facts(&self) -> &ClusterFacts {
        match self {
            Self::Invalid(invalid) => &invalid.facts,
            Self::Planned(planned) => &planned.facts,
        }
    }

    /// What is to be done about the pods.
    pub fn pods(&self) -> &PodsPlan {
        match self {
            Self::Invalid(invalid) => &invalid.pods,
            Self::Planned(planned) => &planned.pods,
        }
    }

    /// The next step, if the spec is valid.
    pub fn planned(&self) -> Option<&PlannedCluster> {
        match self {
            Self::Invalid(_) => None,
            Self::Planned(planned) => Some(planned),
        }
    }

    /// What is wrong; empty if the spec is valid and the record can be read.
    pub fn problems(&self) -> &[Problem] {
        match self {
            Self::Invalid(invalid) => &invalid.problems,
            Self::Planned(planned) => planned.unreadable.as_slice(),
        }
    }

    /// Whether pods get orders, or their number changes.
    pub fn gives_orders(&self, observed: &Observed) -> bool {
        let (pods, scale) = (self.pods(), &self.pods().scale);
        let deployment = observed.deployment.as_ref();
        let number = deployment.and_then(|it| it.spec.as_ref()?.replicas);
        let marks = scale.mark.len() + scale.unmark.len();
        let orders = scale.drain.len() + scale.renew.len() + scale.undrain.len() + pods.shed.len();
        marks + orders > 0
            || pods.rescale.is_some()
            || number.is_some_and(|number| number != scale.deployment_replicas)
    }

    /// Every time at which the plan changes although nothing else does. Times that have passed may be among them.
    pub fn due(&self) -> impl Iterator<Item = &Due> {
        let planned = self.planned().into_iter();
        let stages = planned.flat_map(|planned| &planned.due);
        stages.chain(&self.pods().scale.due)
    }
}

/// Decides what is to be done. `operator_namespace` is the namespace of the operator's own pod; `None` where operators may run in any.
pub fn decide(
    observed: &Observed,
    memory: &mut ClusterMemory,
    operator_namespace: Option<&str>,
    random: &mut impl rand::CryptoRng,
    now: DateTime<Utc>,
) -> ClusterPlan {
    let recorded = recorded(observed);
    let mut step = Step {
        spec: &observed.cluster.spec,
        observed,
        rollout: Rollout::of(observed.deployment.as_ref(), &observed.fleet),
        changes_template: false,
        now,
        events: Vec::new(),
    };
    let valid = match validate(observed).and_then(|valid| within_bounds(valid, observed)) {
        Ok(valid) => valid,
        Err(wrong) => {
            let is_read = observed.unread.is_empty();
            let unreadable = recorded.as_ref().err().filter(|_| is_read).cloned();
            let problems = unreadable.into_iter().chain(wrong).collect();
            let recorded = recorded.as_ref().ok().filter(|_| is_read);
            return invalid(step, memory, recorded, problems);
        }
    };
    let stages = match &recorded {
        Ok(recorded) => step.stages(&valid, recorded),
        Err(unreadable) => step.unknown_stages(unreadable),
    };
    let mut record = stages.record;
    let signing = match &recorded {
        Ok(recorded) => step.signing_keys(&recorded.record.signing, random),
        Err(_) => step.kept_signing_keys(),
    };
    record.signing = signing.record;
    let mut entropy = [0; 32];
    random.fill_bytes(&mut entropy);
    let mut desired = desired(
        &valid,
        &record,
        DesiredInput {
            keys: signing.keys.as_ref(),
            replicas: autoscale::wanted(&autoscale::number(observed)).0,
            observed,
            operator_namespace,
            entropy,
            now,
        },
    );
    if recorded.is_err() {
        desired.keep_live_config(observed);
    }
    desired.inherit(&observed.cluster.spec.inherited_metadata);
    step.restart();
    let pods = step.pods(memory, Some(&mut desired));
    let migration = match objects::migration(&valid, observed) {
        Migration::Pending { .. } if desired.awaits_approval() => Migration::AwaitsApproval,
        migration => migration,
    };
    let live = desired
        .live_config
        .data
        .as_ref()
        .and_then(|data| data.get(LIVE_TOML));
    ClusterPlan::Planned(Box::new(PlannedCluster {
        facts: ClusterFacts {
            record,
            revision: live.map(|text| revision(text)).unwrap_or_default(),
            rollout_begun: !step.changes_template
                && observed.deployment.as_ref().is_none_or(|deployment| {
                    Rollout::is_begun(deployment, &observed.template_hashes)
                }),
            rollout: step.rollout,
            signing_keys: signing.shown,
            events: step.events,
        },
        pods,
        due: [stages.due, signing.due, due(&migration, &desired, observed)].concat(),
        migration,
        rotation: stages.rotation.or(signing.waiting),
        lost_keys: signing.lost,
        routing: stages.routing,
        desired,
        unreadable: recorded.err(),
    }))
}

/// When a failed migration is tried again, or one that has no pod is told, and when the canary passes or fails.
fn due(migration: &Migration, desired: &Desired, observed: &Observed) -> Vec<Due> {
    let spec = &observed.cluster.spec;
    let migration = match migration {
        Migration::Failed { again_at, .. } if migration.tried_again(spec).is_some() => {
            Some((*again_at, DueReason::Migration))
        }
        Migration::Pending { job } => {
            objects::without_pods_until(observed, job).map(|at| (at, DueReason::Migration))
        }
        _ => None,
    };
    let deployment = desired.deployment.as_ref();
    let canary = deployment.and_then(|deployment| canary_of(deployment)?.due(&spec.rollout));
    let canary = canary.map(|at| (at, DueReason::Canary));
    let times = migration.into_iter().chain(canary);
    times.map(|(at, why)| Due { at, why }).collect()
}

/// The cluster, if its pods stay within what the operator's arguments allow.
fn within_bounds(valid: ValidCluster, observed: &Observed) -> Result<ValidCluster, Vec<Problem>> {
    let beyond = objects::beyond_bounds(&valid, &observed.allowed);
    if beyond.is_empty() {
        return Ok(valid);
    }
    let problem = |message| Problem {
        kind: ProblemKind::Spec,
        reason: ConditionReason::PodTemplateNotAllowed,
        message,
    };
    Err(beyond.into_iter().map(problem).collect())
}

/// No object is changed; what is known stays as it is in the cluster. Pods come and go as the spec's numbers say.
fn invalid(
    mut step: Step<'_>,
    memory: &mut ClusterMemory,
    recorded: Option<&Recorded>,
    problems: Vec<Problem>,
) -> ClusterPlan {
    let Recorded {
        record, revision, ..
    } = recorded.cloned().unwrap_or_default();
    let pods = step.pods(memory, None);
    ClusterPlan::Invalid(Box::new(InvalidCluster {
        problems,
        pods,
        facts: ClusterFacts {
            record,
            revision: revision.unwrap_or_default(),
            rollout_begun: false,
            signing_keys: signing_keys_before(step.observed),
            rollout: step.rollout,
            events: step.events,
        },
    }))
}

/// What the live ConfigMap holds: the record, and the revision of the `live.toml` that was made from it.
#[derive(Debug, Clone, Default)]
struct Recorded {
    record: Record,
    /// `None`: there is no `live.toml` of this record yet.
    revision: Option<String>,
    /// Whether the ConfigMap is gone and this is the copy in the Secret of credentials.
    is_copy: bool,
}

/// Reads the live ConfigMap, or without it the copy of its record. A record that cannot be read is a [`Problem`]: without it, new sources would be
/// trusted at once.
fn recorded(observed: &Observed) -> Result<Recorded, Problem> {
    let Some(live) = &observed.live_config else {
        return copied(observed.credentials.as_ref());
    };
    let annotations = live.metadata.annotations.as_ref();
    let toml = live.data.as_ref().and_then(|data| data.get(LIVE_TOML));
    let read = match annotations.and_then(|annotations| annotations.get(RECORD)) {
        Some(text) => Record::read(text),
        None if toml.is_none() => return copied(observed.credentials.as_ref()),
        None => Err("it is missing".to_owned()),
    };
    let name = live.metadata.name.as_deref().unwrap_or_default();
    let way_out = "Restore the annotation, or delete the ConfigMap to go on from the copy of the record in the Secret of credentials";
    let record = read.map_err(|error| unreadable_record("ConfigMap", name, &error, way_out))?;
    Ok(Recorded {
        record,
        revision: toml.map(|text| revision(text)),
        is_copy: false,
    })
}

/// The copy of the record; nothing where there is none, as in a cluster that is new.
fn copied(credentials: Option<&Secret>) -> Result<Recorded, Problem> {
    let metadata = credentials.map(|secret| &secret.metadata);
    let annotations = metadata.and_then(|metadata| metadata.annotations.as_ref());
    let Some(text) = annotations.and_then(|all| all.get(RECORD)) else {
        return Ok(Recorded::default());
    };
    let name = metadata.and_then(|metadata| metadata.name.as_deref());
    let way_out = "Restore or remove the annotation. Without it, sources that the status shows as trusted stay so";
    let record = Record::read(text)
        .map_err(|error| unreadable_record("Secret", name.unwrap_or_default(), &error, way_out))?;
    Ok(Recorded {
        record,
        revision: None,
        is_copy: true,
    })
}

fn unreadable_record(kind: &str, name: &str, error: &str, way_out: &str) -> Problem {
    Problem {
        kind: ProblemKind::Record,
        reason: ConditionReason::RecordUnreadable,
        message: format!(
            "annotation {RECORD} of {kind} {name} cannot be read: {error}. Live settings, trust and keys stay as they are. {way_out}"
        ),
    }
}

#[cfg(test)]
mod planted;
#[cfg(test)]
mod pods_first;
#[cfg(test)]
mod rollouts;
#[cfg(test)]
mod trust_lost;
#[cfg(test)]
mod unreadable;

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;
    use crate::reasons::EventReason;

    #[test]
    fn an_event_that_every_reconcile_repeats_is_published_once_until_it_is_gone() {
        let late = [PlanEvent::warning(
            EventReason::AcknowledgementTimedOut,
            "edge-1: it holds an older configuration".into(),
        )];
        let mut remembered = ClusterMemory::default();
        assert_eq!(remembered.unpublished(&late), late);
        assert_eq!(remembered.unpublished(&late), []);
        assert_eq!(remembered.unpublished(&[]), []);
        assert_eq!(remembered.unpublished(&late), late);
    }

    #[test]
    fn a_record_that_cannot_be_read_changes_nothing_and_is_reported() {
        let mut observed = crate::fixture::example("production");
        observed.live_config = Some(ConfigMap {
            metadata: ObjectMeta {
                annotations: Some([(RECORD.to_owned(), "{\"sources\": 7}".to_owned())].into()),
                ..ObjectMeta::default()
            },
            ..ConfigMap::default()
        });
        let plan = crate::fixture::plan_of(&observed, DateTime::UNIX_EPOCH);
        let planned = plan.planned().unwrap();
        assert_eq!(planned.desired.live_config.data, None);
        let kinds: Vec<_> = plan.problems().iter().map(|found| found.kind).collect();
        assert_eq!(kinds, [ProblemKind::Record]);
        let status = crate::status::status(&observed, &plan, &[], DateTime::UNIX_EPOCH);
        for kind in ["Degraded", "Ready"] {
            let conditions = &mut status.conditions.iter();
            let condition = conditions.find(|one| one.type_ == kind).unwrap();
            assert_eq!(condition.reason, "RecordUnreadable");
        }
    }

    #[test]
    fn each_plan_keeps_its_own_members_of_one_record() {
        let json = serde_json::json!({
            "sources": [], "revokedSources": ["x"], "revokedSince": "2026-01-01T00:00:00Z", "redisSince": "2026-01-02T00:00:00Z",
        });
        let record: Record = serde_json::from_value(json.clone()).unwrap();
        assert_eq!(record.jwks.revoked_sources, ["x"]);
        assert!(record.redis.since.is_some());
        assert_eq!(serde_json::to_value(&record).unwrap(), json);
    }
}

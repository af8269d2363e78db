//! The plans of one reconcile, each with exactly the input that it needs.

use std::cmp::Reverse;

use chrono::{DateTime, TimeDelta, Utc};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use signal_crds::SignalClusterSpec;
use signal_crds::scaling::AutoscalingMode;
use signal_crds::status::{ScalingState, SigningKeyStatus};

use super::{ClusterMemory, PodsPlan, Recorded};
use crate::names::{RESTARTED_AT, ROTATE_NOW, TEMPLATE_HASH};
use crate::objects::{Desired, ManagedKeys, compare};
use crate::observe::fleet::{Pod, PodProblemKind};
use crate::observe::observed::Observed;
use crate::plan::autoscale::Number;
use crate::plan::rebalance::{self, RebalanceInput};
use crate::plan::record::{PublicKey, Record, SigningRecord};
use crate::plan::rollout::Rollout;
use crate::plan::routing::{self, RoutingInput};
use crate::plan::scale::{self, ScaleInput, ScaleStep, ShrinkingSet};
use crate::plan::signing::{self, KeyRing, SigningInput};
use crate::plan::sources::{self, SourcesInput};
use crate::plan::validate::{Problem, ValidCluster};
use crate::plan::{Due, PlanEvent, Waiting, autoscale};
use crate::reasons::{ConditionReason, EventReason};

/// How often connections decide about the number of pods: the HPA's own interval.
const AUTOSCALE_EVERY: TimeDelta = TimeDelta::seconds(15);
/// How often a held drain is ordered again: it expires after three times as long.
const RENEW_EVERY: TimeDelta = TimeDelta::minutes(5);
/// How often connections are spread.
const REBALANCE_EVERY: TimeDelta = TimeDelta::seconds(5);

/// One reconcile of a SignalCluster.
pub(super) struct Step<'a> {
    pub(super) spec: &'a SignalClusterSpec,
    pub(super) observed: &'a Observed,
    pub(super) rollout: Rollout,
    /// Whether this reconcile applies another template than the one in the cluster.
    pub(super) changes_template: bool,
    pub(super) now: DateTime<Utc>,
    /// What happened so far.
    pub(super) events: Vec<PlanEvent>,
}

/// How far everything has come that changes in stages.
pub(super) struct Stages {
    /// After this step.
    pub(super) record: Record,
    /// What key sources wait for.
    pub(super) rotation: Option<Waiting>,
    /// What the switch to another Redis waits for.
    pub(super) routing: Option<Waiting>,
    /// When they go on by time alone.
    pub(super) due: Vec<Due>,
}

/// The keys that the operator makes.
#[derive(Default)]
pub(super) struct SigningKeys {
    /// After this step; `None`: the spec wants none.
    pub(super) keys: Option<ManagedKeys>,
    /// For the status: what the Secret holds. A key that is not written yet is not shown.
    pub(super) shown: Vec<SigningKeyStatus>,
    /// For the record: their public halves.
    pub(super) record: SigningRecord,
    /// Those whose private parts are gone.
    pub(super) lost: Vec<PublicKey>,
    /// What the keys wait for.
    pub(super) waiting: Option<Waiting>,
    /// When they go on by time alone.
    pub(super) due: Vec<Due>,
}

impl Step<'_> {
    /// The record after this step, and what key sources and Redis wait for.
    pub(super) fn stages(&mut self, cluster: &ValidCluster, recorded: &Recorded) -> Stages {
        let rotation = &self.spec.jwks.rotation;
        let (revision, fleet) = (recorded.revision.as_deref(), &self.observed.fleet);
        let status = self.observed.cluster.status.as_ref();
        if recorded.is_copy {
            let note = "the live ConfigMap is gone: the stages of sources and Redis are those of the copy in the Secret of credentials";
            self.events.push(PlanEvent::warning(
                EventReason::RecordRestored,
                note.to_owned(),
            ));
        }
        let sources = sources::plan(
            &SourcesInput {
                wanted: &cluster.sources,
                rotation,
                record: &recorded.record.jwks,
                revision,
                shown: status.map_or(&[], |status| &status.jwks),
                fleet,
            },
            self.now,
        );
        let redis = routing::plan(
            &RoutingInput {
                wanted: cluster.redis.as_ref(),
                record: &recorded.record.redis,
                revision,
                fleet,
                ack_timeout: rotation.ack_timeout,
            },
            self.now,
        );
        self.events.extend(sources.events);
        self.events.extend(redis.events);
        Stages {
            record: Record {
                jwks: sources.next,
                redis: redis.next,
                signing: recorded.record.signing.clone(),
            },
            rotation: sources.waiting,
            routing: redis.waiting,
            due: [sources.due, redis.due].concat(),
        }
    }

    /// Says that a person asked for a restart, as long as the Deployment does not have it.
    pub(super) fn restart(&mut self) {
        let annotations = self.observed.cluster.metadata.annotations.as_ref();
        let asked = annotations.and_then(|all| all.get(RESTARTED_AT));
        let (Some(asked), Some(deployment)) = (asked, &self.observed.deployment) else {
            return;
        };
        let template = deployment.spec.as_ref().map(|spec| &spec.template);
        let metadata = template.and_then(|template| template.metadata.as_ref());
        let annotations = metadata.and_then(|metadata| metadata.annotations.as_ref());
        let carried_out = annotations.and_then(|all| all.get(RESTARTED_AT));
        if carried_out.is_none_or(|carried_out| carried_out != asked) {
            self.events.push(PlanEvent::normal(
                EventReason::RestartRequested,
                format!("pods are replaced one after the other ({RESTARTED_AT}: {asked})"),
            ));
        }
    }

    /// Without a readable record: no stages are known, and key sources wait for it.
    pub(super) fn unknown_stages(&self, unreadable: &Problem) -> Stages {
        Stages {
            record: Record::default(),
            rotation: Some(Waiting {
                reason: unreadable.reason,
                message: unreadable.message.clone(),
            }),
            routing: None,
            due: Vec::new(),
        }
    }

    /// The keys that the operator made, as their Secret holds them.
    pub(super) fn kept_signing_keys(&self) -> SigningKeys {
        let secret = self.observed.signing_keys.as_ref();
        let keys = secret
            .and_then(|secret| secret.data.as_ref())
            .map(|data| ManagedKeys {
                jwks: String::new(),
                data: data
                    .iter()
                    .map(|(key, value)| (key.clone(), value.0.clone()))
                    .collect(),
            });
        SigningKeys {
            keys,
            shown: signing_keys_before(self.observed),
            ..SigningKeys::default()
        }
    }

    /// The keys that the operator makes, after this step.
    pub(super) fn signing_keys(
        &mut self,
        recorded: &SigningRecord,
        random: &mut impl rand::CryptoRng,
    ) -> SigningKeys {
        let Some(managed) = &self.spec.jwks.managed else {
            return SigningKeys::default();
        };
        let data = self
            .observed
            .signing_keys
            .iter()
            .filter_map(|secret| secret.data.as_ref())
            .flatten()
            .map(|(key, value)| (key.clone(), value.0.clone()))
            .collect();
        let (ring, shown) = match KeyRing::from_secret(&data) {
            Ok(ring) => {
                let shown = ring.as_ref().map(KeyRing::status).unwrap_or_default();
                (ring, shown)
            }
            Err(damage) => {
                self.events.push(PlanEvent::warning(
                    EventReason::SigningKeysDamaged,
                    damage.to_string(),
                ));
                (
                    damage.ring.map(|ring| *ring),
                    signing_keys_before(self.observed),
                )
            }
        };
        let input = SigningInput {
            managed,
            skew: self.spec.gateway.auth.clock_skew,
            ring: ring.as_ref(),
            recorded,
            rotate_now: self
                .observed
                .cluster
                .metadata
                .annotations
                .as_ref()
                .and_then(|all| all.get(ROTATE_NOW))
                .map(String::as_str)
                .filter(|value| !value.is_empty()),
            fleet: &self.observed.fleet,
        };
        let plan = signing::plan(&input, self.now, random);
        self.events.extend(plan.events);
        SigningKeys {
            keys: Some(ManagedKeys {
                jwks: plan.next.jwks(),
                data: plan.next.to_secret(),
            }),
            shown,
            record: plan.next.record(ring.as_ref()),
            lost: plan.next.lost().to_vec(),
            waiting: plan.waiting,
            due: plan.due,
        }
    }

    /// What is to be done about the pods. The number is written into the Deployment, where objects are made at all.
    pub(super) fn pods(
        &mut self,
        memory: &mut ClusterMemory,
        mut desired: Option<&mut Desired>,
    ) -> PodsPlan {
        let number = autoscale::number(self.observed);
        let (wanted, bounded) = autoscale::wanted(&number);
        let begins = desired
            .as_deref_mut()
            .is_some_and(|desired| self.begins_rollout(memory, desired));
        let scale = self.scale(memory, wanted, begins);
        let deployment = desired.and_then(|desired| desired.deployment.as_mut());
        if let Some(spec) = deployment.and_then(|deployment| deployment.spec.as_mut()) {
            spec.replicas = Some(scale.deployment_replicas);
        }
        let (rescale, limited) = self.autoscale(memory, &number, bounded, &scale);
        let rescale = rescale.or_else(|| number.lost().filter(|_| !self.spec.paused));
        let shed = self.rebalance(memory, &scale);
        PodsPlan {
            scale,
            shed,
            rescale,
            limited,
        }
    }

    /// Marks the template, and returns whether its apply begins a rollout, as far as anybody knows.
    fn begins_rollout(&mut self, memory: &ClusterMemory, desired: &mut Desired) -> bool {
        self.changes_template = mark_template(desired, self.observed);
        let annotations = desired
            .deployment
            .as_ref()
            .and_then(|deployment| deployment.metadata.annotations.as_ref());
        let mark = annotations.and_then(|all| all.get(TEMPLATE_HASH));
        self.changes_template && memory.template_not_applied.as_ref() != mark
    }

    /// The number of pods.
    fn scale(
        &mut self,
        memory: &mut ClusterMemory,
        wanted: i32,
        begins_rollout: bool,
    ) -> ScaleStep {
        memory.follow_drains(&self.observed.fleet, self.now);
        let rolling_out = self.rollout.going_on || begins_rollout;
        let has_surge = !is_zero(&self.spec.rollout.max_surge);
        let fleet = &self.observed.fleet;
        let mut scale = scale::plan(
            &ScaleInput {
                wanted: scale::wanted_with_drains(wanted, fleet, has_surge, rolling_out),
                deployment: self.observed.deployment.as_ref(),
                fleet: &self.observed.fleet,
                drain: &self.spec.drain,
                seen: &memory.drains,
                rolling_out,
                shrinks: self.shrinks().filter(|_| !begins_rollout),
            },
            self.now,
        );
        self.events.append(&mut scale.events);
        if scale.renew.is_empty() {
            memory.renewed = None;
        } else if memory
            .renewed
            .is_some_and(|at| (TimeDelta::zero()..RENEW_EVERY).contains(&(self.now - at)))
        {
            scale.renew.clear();
        } else {
            memory.renewed = Some(self.now);
        }
        scale
    }

    /// The ReplicaSet that shrinks first, where the rollout is stuck: it made no progress, or no node or quota has room for its next pod.
    fn shrinks(&self) -> Option<ShrinkingSet<'_>> {
        let observed = self.observed;
        let waits_for_room = |pod: &Pod| {
            let problem = pod.problem.as_ref();
            let is_without_room =
                problem.is_some_and(|problem| problem.kind == PodProblemKind::Unschedulable);
            is_without_room && self.rollout.is_newest(pod)
        };
        let is_stuck = self.rollout.stuck.is_some()
            || observed.fleet.alive().any(waits_for_room)
            || observed.revisions.iter().any(|it| it.failure.is_some());
        if !is_stuck {
            return None;
        }
        let active = observed.revisions.iter().filter(|it| it.is_active());
        let largest = active.max_by_key(|it| (it.wanted, Reverse(it.created)))?;
        let pods_of = |hash: &str| {
            let alive = observed.fleet.alive();
            alive.filter(|pod| pod.template_hash == hash).count()
        };
        let has_surplus = observed.revisions.iter().any(|revision| {
            let wanted = usize::try_from(revision.wanted).unwrap_or_default();
            pods_of(&revision.template_hash) > wanted
        });
        let metadata = observed.deployment.as_ref().map(|it| &it.metadata);
        let status = observed
            .deployment
            .as_ref()
            .and_then(|it| it.status.as_ref());
        let is_seen = status.and_then(|status| status.observed_generation)
            >= metadata.and_then(|metadata| metadata.generation);
        Some(ShrinkingSet {
            template_hash: &largest.template_hash,
            settled: is_seen && !has_surplus,
        })
    }

    /// What autoscaling writes, and what limits the number of pods. `bounded` is the bound that `spec.replicas` was brought to.
    fn autoscale(
        &self,
        memory: &mut ClusterMemory,
        number: &Number<'_>,
        bounded: Option<ConditionReason>,
        scale: &ScaleStep,
    ) -> (Option<i32>, Option<(ConditionReason, String)>) {
        let spec = self.spec;
        let by_connections = spec.autoscaling.as_ref().filter(|autoscaling| {
            autoscaling.mode == AutoscalingMode::Connections && !spec.stopped && !spec.paused
        });
        let by_scaling = scale
            .waiting
            .as_ref()
            .map(|waiting| (waiting.reason, waiting.message.clone()));
        let Some(autoscaling) = by_connections else {
            memory.decided = None;
            let message = "spec.replicas is outside of minReplicas and maxReplicas";
            let by_bound = bounded.map(|reason| (reason, message.to_owned()));
            return (None, by_bound.or(by_scaling));
        };
        let mut rescale = None;
        let decided = memory.decided.as_ref();
        if decided.is_none_or(|(at, _)| self.now - *at >= AUTOSCALE_EVERY) {
            let decision = autoscale::decide(
                autoscaling,
                number.get(),
                &self.observed.fleet,
                &mut memory.history,
                self.now,
            );
            rescale = decision.replicas;
            memory.decided = Some((self.now, decision));
        }
        let by_decision = memory
            .decided
            .as_ref()
            .and_then(|(_, decision)| Some((decision.limited?, decision.message.clone())));
        (rescale, by_decision.or(by_scaling))
    }

    /// Pods and how many connections each sheds.
    fn rebalance(&self, memory: &mut ClusterMemory, scale: &ScaleStep) -> Vec<(String, u32)> {
        let last = memory.rebalanced;
        if last.is_some_and(|at| self.now - at < REBALANCE_EVERY) {
            return Vec::new();
        }
        memory.rebalanced = Some(self.now);
        let spec = self.spec;
        let input = RebalanceInput {
            settings: &spec.rebalance,
            fleet: &self.observed.fleet,
            rolling_out: self.rollout.going_on,
            scaling: scale.status.state != ScalingState::Idle,
            paused: spec.paused || spec.stopped,
        };
        rebalance::plan(&input, &mut memory.rebalance, self.now)
    }
}

fn is_zero(number: &IntOrString) -> bool {
    match number {
        IntOrString::Int(number) => *number == 0,
        IntOrString::String(percent) => percent == "0%",
    }
}

/// The keys as the status of the last reconcile showed them.
pub(super) fn signing_keys_before(observed: &Observed) -> Vec<SigningKeyStatus> {
    let status = observed.cluster.status.as_ref();
    status
        .map(|status| status.signing_keys.clone())
        .unwrap_or_default()
}

/// Writes the template's hash on the Deployment; returns whether applying it begins a rollout.
fn mark_template(desired: &mut Desired, observed: &Observed) -> bool {
    let Some(deployment) = &mut desired.deployment else {
        return false;
    };
    let template = deployment
        .spec
        .as_ref()
        .map(|spec| serde_json::to_value(&spec.template).expect("a template is plain data"));
    let hash = compare::hash(&template.unwrap_or_default());
    let before = observed.deployment.as_ref().map(|live| {
        let annotations = live.metadata.annotations.as_ref();
        annotations.and_then(|all| all.get(TEMPLATE_HASH))
    });
    // A template that is held back is the observed one, with the API server's defaults: it keeps its hash.
    let is_held_back = observed.deployment.as_ref().is_some_and(|live| {
        live.spec.as_ref().map(|spec| &spec.template)
            == deployment.spec.as_ref().map(|spec| &spec.template)
    });
    let mark = match before {
        Some(Some(before)) if is_held_back => before.clone(),
        _ => hash,
    };
    let changes = matches!(before, Some(before) if before != Some(&mark));
    deployment
        .metadata
        .annotations
        .get_or_insert_default()
        .insert(TEMPLATE_HASH.into(), mark);
    changes
}

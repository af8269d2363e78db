//! What is observed -> what is to be done: the middle of a reconcile, without a client.
//!
//! The plans follow each other: sources, Redis, signing keys, the number of pods; then every object is made from what they say. Whatever the
//! operator was killed in, the same observation gives the same plan, but for what two memories hold: how connections went (a new leader begins
//! with the present number) and since when pods are skewed.

use chrono::{DateTime, TimeDelta, Utc};
use k8s_openapi::api::core::v1::ConfigMap;
use signal_crds::scaling::AutoscalingMode;
use signal_crds::status::{ScalingState, SigningKeyStatus};

use crate::names::{RECORD, TEMPLATE_HASH};
use crate::objects::compare;
use crate::objects::{self, Desired, LIVE_TOML, ManagedKeys, Migration, desired, revision};
use crate::observe::fleet::Fleet;
use crate::observe::observed::Observed;
use crate::plan::autoscale::{self, Decision, History};
use crate::plan::rebalance::{self, Memory, RebalanceInput};
use crate::plan::record::Record;
use crate::plan::rollout::Rollout;
use crate::plan::routing::{self, RoutingInput};
use crate::plan::scale::{self, ScaleInput, ScaleStep};
use crate::plan::signing::{self, KeyRing, SigningInput};
use crate::plan::sources::{self, SourcesInput};
use crate::plan::validate::{Problem, ValidCluster, validate};
use crate::plan::{PlanEvent, Waiting};

/// How often connections decide about the number of pods: the HPA's own interval.
const AUTOSCALE_EVERY: TimeDelta = TimeDelta::seconds(15);
/// How often connections are spread.
const REBALANCE_EVERY: TimeDelta = TimeDelta::seconds(5);

/// What is remembered of one SignalCluster between reconciles; lost with the leader, without harm.
#[derive(Default)]
pub struct ClusterMemory {
    history: History,
    decided: Option<(DateTime<Utc>, Decision)>,
    rebalance: Memory,
    rebalanced: Option<DateTime<Utc>>,
    told: Vec<PlanEvent>,
}

impl ClusterMemory {
    /// Of these events those that the look before did not have.
    pub(crate) fn unpublished(&mut self, events: &[PlanEvent]) -> Vec<PlanEvent> {
        let fresh = events
            .iter()
            .filter(|event| !self.told.contains(event))
            .cloned()
            .collect();
        self.told = events.to_vec();
        fresh
    }
}

/// What is to be done about one SignalCluster.
pub struct ClusterPlan {
    /// The spec, if it can be acted on.
    pub valid: Result<ValidCluster, Vec<Problem>>,
    /// What is recorded from now on.
    pub record: Record,
    /// `sha256:` of the `live.toml` that is wanted; empty where there is none.
    pub revision: String,
    /// Every object, where the spec can be acted on.
    pub desired: Option<Desired>,
    /// The number of pods.
    pub scale: Option<ScaleStep>,
    /// Pods and how many connections each sheds.
    pub shed: Vec<(String, u32)>,
    /// Number to be written through the scale subresource.
    pub rescale: Option<i32>,
    /// What holds the number of pods: reason and message.
    pub limited: Option<(&'static str, String)>,
    /// Whether pods are being replaced.
    pub rollout: Rollout,
    /// How far the schema is.
    pub migration: Migration,
    /// What the sources wait for, or the keys that the operator makes.
    pub rotation: Option<Waiting>,
    /// The keys that the operator makes, as their Secret holds them.
    pub signing: Vec<SigningKeyStatus>,
    /// What the move of Redis waits for.
    pub routing: Option<Waiting>,
    /// What happened.
    pub events: Vec<PlanEvent>,
}

impl ClusterPlan {
    /// Something is under way that no watch announces. Pods that come and go are announced; what those that serve say of themselves is not.
    pub fn is_busy(&self, fleet: &Fleet) -> bool {
        let state = self
            .scale
            .as_ref()
            .map_or(ScalingState::Idle, |step| step.status.state);
        let moving = state != ScalingState::Idle || self.rollout.going_on;
        let asked =
            state == ScalingState::Draining || self.rotation.is_some() || self.routing.is_some();
        asked || (moving && fleet.ready().next().is_some())
    }
}

/// Judges what is observed. `operator_namespace` is that of the operator's own pod, if pods of others cannot be operators.
pub fn decide(
    observed: &Observed,
    remembered: &mut ClusterMemory,
    operator_namespace: Option<&str>,
    random: &mut impl rand::CryptoRng,
    now: DateTime<Utc>,
) -> ClusterPlan {
    let rollout = Rollout::of(observed.deployment.as_ref(), &observed.fleet);
    let mut events = Vec::new();
    let (record, held) = recorded(observed.live_config.as_ref(), &mut events);
    let valid = match validate(observed) {
        Ok(valid) => valid,
        Err(problems) => {
            return ClusterPlan {
                valid: Err(problems),
                revision: held.unwrap_or_default(),
                record,
                desired: None,
                scale: None,
                shed: Vec::new(),
                rescale: None,
                limited: None,
                rollout,
                migration: Migration::NotWanted,
                rotation: None,
                signing: signing_before(observed),
                routing: None,
                events,
            };
        }
    };
    let fleet = &observed.fleet;
    let revised = held.as_deref();

    let rotation = sources::plan(
        &SourcesInput {
            wanted: &valid.sources,
            rotation: &valid.spec.jwks.rotation,
            record: &record,
            revision: revised,
            fleet,
        },
        now,
    );
    events.extend(rotation.events);
    // What only routing changes is still as it was in the cluster, so the revision speaks for it.
    let ack_timeout = valid.spec.jwks.rotation.ack_timeout;
    let routing = routing::plan(
        &RoutingInput {
            wanted: valid.redis.as_ref(),
            record: &rotation.next,
            revision: revised,
            fleet,
            ack_timeout,
        },
        now,
    );
    events.extend(routing.events);
    let record = routing.next;
    let (keys, signing, keys_wait) = managed_keys(&valid, observed, random, now, &mut events);

    let (wanted, bounded) = autoscale::wanted(&valid.spec);
    let mut entropy = [0; 32];
    random.fill_bytes(&mut entropy);
    let make = |replicas| {
        let input = objects::Input {
            keys: keys.as_ref(),
            replicas,
            observed,
            operator_namespace,
            entropy,
            now,
        };
        desired(&valid, &record, input)
    };
    let mut wanted_objects = make(wanted);
    let changes_template = mark_template(&mut wanted_objects, observed);
    let scale = scale::plan(
        &ScaleInput {
            wanted,
            deployment: observed.deployment.as_ref(),
            fleet,
            drain: &valid.spec.drain,
            rolling_out: rollout.going_on || changes_template,
        },
        now,
    );
    events.extend(scale.events.iter().cloned());
    if let Some(deployment) = wanted_objects
        .deployment
        .as_mut()
        .and_then(|deployment| deployment.spec.as_mut())
    {
        deployment.replicas = Some(scale.deployment_replicas);
    }
    let (rescale, limited) = number(&valid, observed, remembered, bounded, &scale, now);
    let shed = spread(&valid, observed, remembered, &rollout, &scale, now);
    let migration = objects::migration(&valid, &observed.jobs);
    let live = wanted_objects
        .live_config
        .data
        .as_ref()
        .and_then(|data| data.get(LIVE_TOML));
    ClusterPlan {
        revision: live.map(|text| revision(text)).unwrap_or_default(),
        record,
        desired: Some(wanted_objects),
        scale: Some(scale),
        shed,
        rescale,
        limited,
        rollout,
        migration,
        rotation: rotation.waiting.or(keys_wait),
        signing,
        routing: routing.waiting,
        events,
        valid: Ok(valid),
    }
}

/// The record in the cluster, and the revision of the `live.toml` beside it.
fn recorded(live: Option<&ConfigMap>, events: &mut Vec<PlanEvent>) -> (Record, Option<String>) {
    let Some(live) = live else {
        return (Record::default(), None);
    };
    let held = live
        .data
        .as_ref()
        .and_then(|data| data.get(LIVE_TOML))
        .map(|text| revision(text));
    let text = live
        .metadata
        .annotations
        .as_ref()
        .and_then(|annotations| annotations.get(RECORD));
    match text.map(|text| serde_json::from_str(text)) {
        Some(Ok(record)) => (record, held),
        // Beginning anew would trust new sources at once, so it is said aloud.
        Some(Err(error)) => {
            events.push(PlanEvent::warning(
                "RecordUnreadable",
                format!("annotation {RECORD} cannot be read, stages begin anew: {error}"),
            ));
            (Record::default(), None)
        }
        None => (Record::default(), None),
    }
}

/// The keys that the operator makes, after this step; how status shows them; what they wait for.
fn managed_keys(
    valid: &ValidCluster,
    observed: &Observed,
    random: &mut impl rand::CryptoRng,
    now: DateTime<Utc>,
    events: &mut Vec<PlanEvent>,
) -> (Option<ManagedKeys>, Vec<SigningKeyStatus>, Option<Waiting>) {
    let Some(managed) = &valid.spec.jwks.managed else {
        return (None, Vec::new(), None);
    };
    let data = observed
        .signing_keys
        .as_ref()
        .and_then(|secret| secret.data.as_ref());
    let data = data
        .map(|data| {
            data.iter()
                .map(|(key, value)| (key.clone(), value.0.clone()))
                .collect()
        })
        .unwrap_or_default();
    // Status shows what the Secret holds: a key that was not written yet, or will not be while paused, is no key.
    let (ring, shown) = match KeyRing::from_secret(&data) {
        Ok(ring) => {
            let shown = ring.as_ref().map(KeyRing::status).unwrap_or_default();
            (ring, shown)
        }
        Err(damage) => {
            events.push(PlanEvent::warning(
                signing::SIGNING_KEYS_DAMAGED,
                damage.to_string(),
            ));
            (damage.ring, signing_before(observed))
        }
    };
    let input = SigningInput {
        managed,
        skew: valid.spec.gateway.auth.clock_skew,
        ring: ring.as_ref(),
        fleet: &observed.fleet,
    };
    let plan = signing::plan(&input, now, random);
    events.extend(plan.events);
    let keys = ManagedKeys {
        jwks: plan.next.jwks(),
        data: plan.next.to_secret(),
    };
    (Some(keys), shown, plan.waiting)
}

/// As status showed the keys at the last look.
fn signing_before(observed: &Observed) -> Vec<SigningKeyStatus> {
    observed
        .cluster
        .status
        .as_ref()
        .map(|status| status.signing_keys.clone())
        .unwrap_or_default()
}

/// Notes the template's hash on the Deployment; says whether the write of it begins a rollout.
fn mark_template(wanted: &mut Desired, observed: &Observed) -> bool {
    let Some(deployment) = &mut wanted.deployment else {
        return false;
    };
    let template = deployment
        .spec
        .as_ref()
        .map(|spec| serde_json::to_value(&spec.template).expect("a template is plain data"));
    let hash = compare::hash(&template.unwrap_or_default());
    let before = observed.deployment.as_ref().map(|there| {
        there
            .metadata
            .annotations
            .as_ref()
            .and_then(|all| all.get(TEMPLATE_HASH))
    });
    // A template that is held back is the observed one, with what the API server filled in: it keeps its mark.
    let held = observed.deployment.as_ref().is_some_and(|there| {
        there.spec.as_ref().map(|spec| &spec.template)
            == deployment.spec.as_ref().map(|spec| &spec.template)
    });
    let mark = match before {
        Some(Some(before)) if held => before.clone(),
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

/// What autoscaling writes, and what holds the number of pods.
fn number(
    valid: &ValidCluster,
    observed: &Observed,
    remembered: &mut ClusterMemory,
    bounded: Option<&'static str>,
    scale: &ScaleStep,
    now: DateTime<Utc>,
) -> (Option<i32>, Option<(&'static str, String)>) {
    let spec = &valid.spec;
    let mut rescale = None;
    let mut limited = bounded.map(|reason| {
        (
            reason,
            "spec.replicas is outside of minReplicas and maxReplicas".to_owned(),
        )
    });
    if let Some(autoscaling) = spec
        .autoscaling
        .as_ref()
        .filter(|a| a.mode == AutoscalingMode::Connections && !spec.stopped && !spec.paused)
    {
        let due = remembered
            .decided
            .as_ref()
            .is_none_or(|(at, _)| now - *at >= AUTOSCALE_EVERY);
        if due {
            let decision = autoscale::decide(
                autoscaling,
                spec.replicas,
                &observed.fleet,
                &mut remembered.history,
                now,
            );
            rescale = decision.replicas;
            remembered.decided = Some((now, decision));
        }
        if let Some((
            _,
            Decision {
                limited: Some(reason),
                message,
                ..
            },
        )) = &remembered.decided
        {
            limited = Some((*reason, message.clone()));
        }
    } else {
        remembered.decided = None;
    }
    if let Some(waiting) = &scale.waiting {
        limited = limited.or_else(|| Some((waiting.reason, waiting.message.clone())));
    }
    (rescale, limited)
}

fn spread(
    valid: &ValidCluster,
    observed: &Observed,
    remembered: &mut ClusterMemory,
    rollout: &Rollout,
    scale: &ScaleStep,
    now: DateTime<Utc>,
) -> Vec<(String, u32)> {
    if remembered
        .rebalanced
        .is_some_and(|at| now - at < REBALANCE_EVERY)
    {
        return Vec::new();
    }
    remembered.rebalanced = Some(now);
    let input = RebalanceInput {
        settings: &valid.spec.rebalance,
        fleet: &observed.fleet,
        rolling_out: rollout.going_on,
        scaling: scale.status.state != ScalingState::Idle,
        paused: valid.spec.paused || valid.spec.stopped,
    };
    rebalance::plan(&input, &mut remembered.rebalance, now)
}

/// Whether connections are looked at often although nothing is under way: somebody decides by them.
pub fn wants_samples(observed: &Observed) -> bool {
    let spec = &observed.cluster.spec;
    let connections = spec
        .autoscaling
        .as_ref()
        .is_some_and(|autoscaling| autoscaling.mode != AutoscalingMode::Hpa);
    let rotating = spec.jwks.managed.is_some()
        || observed.cluster.status.as_ref().is_some_and(|status| {
            status
                .jwks
                .iter()
                .any(|source| source.state != signal_crds::status::SourceStage::Trusted)
        });
    observed.fleet.ready().next().is_some()
        && (connections || rotating || (spec.rebalance.enabled && spec.replicas > 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_that_every_look_repeats_is_told_once_until_it_is_gone() {
        let late = [PlanEvent::warning(
            "AcknowledgementTimedOut",
            "edge-1: it holds an older configuration".into(),
        )];
        let mut remembered = ClusterMemory::default();
        assert_eq!(remembered.unpublished(&late), late);
        assert_eq!(remembered.unpublished(&late), []);
        assert_eq!(remembered.unpublished(&[]), []);
        assert_eq!(remembered.unpublished(&late), late);
    }
}

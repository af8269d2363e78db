//! One reconcile, as its steps: observe, decide, apply, give orders, write the status. Holds a client.

pub mod context;
mod kept;
mod look;
pub mod spoils;
pub(crate) mod unreadable;

use chrono::{DateTime, TimeDelta, Utc};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::Api;
use kube::core::DynamicObject;
use kube::runtime::controller::Action;
use kube::runtime::events::EventType;
use serde_json::json;
use signal_crds::SignalCluster;

use crate::act::apply::{
    Application, Applied, ApplyError, FailedObject, Wanted, fingerprint, wanted,
};
use crate::act::orders::{self, Orders};
use crate::act::writer::WriteError;
use crate::decide::{ClusterPlan, PlannedCluster, WakeReason};
use crate::metrics::Metrics;
use crate::names::Children;
use crate::objects::ADMIN_TOKEN;
use crate::observe::observed::Observed;
use crate::observe::owner::Owner;
use crate::observe::resources::{HTTP_ROUTE, INGRESS, SECRET, SERVICE};
use crate::observe::{ObserveError, observe};
use crate::plan::{EventKind, PlanEvent};
use crate::reasons::{ConditionReason, EventReason};
use crate::reconcile::context::{Context, Error, label};
use crate::reconcile::kept::Kept;
use crate::reconcile::look::Look;
use crate::status::conditions::ConditionType;
use crate::status::{ApplyFailure, Difference, difference, status};
use crate::time::{from_k8s, now};

/// An object that is being deleted is mostly gone sooner, and nobody needs to be told.
const LEAVES_WITHIN: TimeDelta = TimeDelta::seconds(10);

/// Brings one SignalCluster a step closer to its spec. Where nothing of it has changed, pods alone are asked.
///
/// # Errors
/// When a step failed; the controller tries again after a pause.
pub async fn reconcile(context: &Context, cluster: &SignalCluster) -> Result<Action, Error> {
    show_lag(context, cluster);
    if let Some(action) = kept::glance(context, cluster).await? {
        return Ok(action);
    }
    whole(context, cluster).await
}

/// Reads everything, decides, and acts.
async fn whole(context: &Context, cluster: &SignalCluster) -> Result<Action, Error> {
    Metrics::count(&context.metrics.looks, "everything");
    let mark = context.spoils.mark();
    let mut observed = match observe(&context.reader, cluster).await {
        Err(ObserveError::Gone) => {
            context.forget(cluster);
            return Ok(Action::await_change());
        }
        // Its own change leads back here.
        Err(ObserveError::Unreadable(_)) => return Ok(Action::await_change()),
        observed => observed?,
    };
    if observed.cluster.metadata.deletion_timestamp.is_some() {
        // The garbage collector deletes everything by its owner reference.
        context.forget(cluster);
        return Ok(Action::await_change());
    }
    doubt_kinds(context, &observed);
    let look = Look {
        context,
        now: now(),
        asked: observed.fleet.pods.len(),
    };
    let plan = {
        let remembered = context.remembered(&observed.cluster);
        look.decide(&observed, &mut remembered.lock())
    };
    let mut done = Done::default();
    if !observed.cluster.spec.paused {
        act(context, &observed, &plan, &mut done).await?;
    }
    observed.update(std::mem::take(&mut done.exposure));
    // The status says also what could not be applied or ordered.
    let failures = done.failed.iter();
    let failures: Vec<ApplyFailure> = failures
        .filter_map(|failed| failure(failed, &observed, look.now))
        .collect();
    let status = status(&observed, &plan, &failures, look.now);
    if !observed.cluster.spec.paused {
        publish_events(context, &observed, &plan, &done).await;
    }
    publish_conditions(context, &observed, &status.conditions).await;
    let differs = difference(observed.cluster.status.as_ref(), &status);
    let wait = differs == Difference::Numbers
        && kept::may_wait(context, &observed, differs, WakeReason::Resync);
    if differs != Difference::None && !wait {
        write_status(context, &mut observed, &status, differs).await?;
    }
    look.show(&observed, &plan, &status);
    let remembered = context.remembered(&observed.cluster);
    let wake = look.wake(&observed, &plan, &status, &mut remembered.lock());
    let keeps = !done.did_something() && kept::may_be_kept(&observed, &plan);
    if keeps {
        let (kept, wake) = Kept::new(observed, mark, done.fingerprint, wake);
        context.keep(cluster, kept);
        return Ok(context.look_again(wake));
    }
    match done.error() {
        // What failed is tried again after its own pause, but pods do not wait for it.
        Some(error) if wake.why != WakeReason::Resync => Err(Error::InPart {
            source: Box::new(error),
            soon: wake.after,
        }),
        Some(error) => Err(error),
        None => Ok(context.look_again(wake)),
    }
}

/// A spec that is new may ask for a kind that was not there the last time.
fn doubt_kinds(context: &Context, observed: &Observed) {
    let cluster = &observed.cluster;
    let status = cluster.status.as_ref();
    let known = status.and_then(|status| status.observed_generation);
    if known != cluster.metadata.generation && observed.kinds.lack(&cluster.spec) {
        context.kinds_doubted.notify_one();
    }
}

/// Shows how many generations of the spec the status does not know, until it is written.
fn show_lag(context: &Context, cluster: &SignalCluster) {
    let status = cluster.status.as_ref();
    let known = status.and_then(|status| status.observed_generation);
    // An object that no operator has looked at knows generation -1, by the definition.
    let known = known.unwrap_or_default().max(0);
    let lag = cluster.metadata.generation.unwrap_or_default() - known;
    let metric = &context.metrics.cluster.generation_lag;
    metric.get_or_create(&label(cluster)).set(lag);
}

/// What one reconcile could not do.
#[derive(Default)]
struct Done {
    /// Objects that could not be applied.
    failed: Vec<FailedObject>,
    /// Services, Ingress and HTTPRoute as the API server returned them.
    exposure: Vec<DynamicObject>,
    /// The first order that could not be given.
    order: Option<WriteError>,
    /// Whether an object was written or pruned.
    wrote: bool,
    /// Of everything that is wanted.
    fingerprint: Option<String>,
}

impl Done {
    /// Whether anything changed by it, or should have changed.
    fn did_something(&self) -> bool {
        self.wrote || self.order.is_some() || !self.failed.is_empty()
    }

    /// Whether what an Event of this reason tells was carried out. Stages and keys are in the objects of the gateways.
    fn has_happened(&self, reason: EventReason) -> bool {
        match reason {
            // They tell what was seen.
            EventReason::AcknowledgementTimedOut | EventReason::SigningKeysDamaged => true,
            EventReason::DrainStarted
            | EventReason::DrainCancelled
            | EventReason::DrainDeadlineExceeded
            | EventReason::ScaledOut
            | EventReason::ScaledIn => self.order.is_none(),
            _ => !self.failed.iter().any(|it| {
                let is_there = matches!(it.error, ApplyError::Contested { .. });
                it.kind.is_of_gateways() && !is_there
            }),
        }
    }

    /// What decides about the next attempt: orders come first, because people wait for them.
    fn error(self) -> Option<Error> {
        let order = self.order.map(Error::from);
        order.or_else(|| {
            let first = self.failed.into_iter().next();
            first.map(|failed| failed.error.into())
        })
    }
}

/// Applies the objects and gives the orders of a plan: the gateways first, then orders to pods, then everything around them. Only the lease ends it early.
async fn act(
    context: &Context,
    observed: &Observed,
    plan: &ClusterPlan,
    done: &mut Done,
) -> Result<(), Error> {
    let owner = Owner::of(observed);
    let mut application = match plan.planned() {
        Some(planned) => {
            let wanted = everything(planned, observed)?;
            done.fingerprint = Some(fingerprint(&wanted)?);
            let writer = &context.writer;
            Some(Application::new(wanted, observed, &owner, writer)?)
        }
        None => None,
    };
    let nothing = Applied::default();
    let gateways = match &mut application {
        Some(application) => application.gateways().await?,
        None => &nothing,
    };
    if let Some(planned) = plan.planned() {
        let remembered = context.remembered(&observed.cluster);
        remembered
            .lock()
            .applied(planned, gateways.failed.is_empty());
    }
    let pods = plan.pods();
    let token = admin_token(gateways, observed);
    let ordered = orders::give(
        Orders {
            scale: &pods.scale,
            shed: &pods.shed,
            rescale: pods.rescale,
            deployment: number_alone(gateways, observed, pods.scale.deployment_replicas),
        },
        &observed.fleet,
        &owner,
        token.as_deref(),
        &context.pods,
        &context.writer,
    )
    .await;
    match ordered {
        Err(error @ WriteError::NotHeld) => return Err(error.into()),
        ordered => done.order = ordered.err(),
    }
    let Some(application) = application else {
        return Ok(());
    };
    let applied = application.surroundings().await?;
    if applied.writes() > 0 {
        tracing::info!(
            namespace = observed.cluster.metadata.namespace,
            name = observed.cluster.metadata.name,
            writes = applied.writes(),
            "objects applied"
        );
    }
    done.wrote = applied.writes() > 0;
    let exposure = applied.objects.into_iter();
    let exposure = exposure.filter(|it| [SERVICE, INGRESS, HTTP_ROUTE].contains(&it.kind));
    done.exposure = exposure.map(|it| it.object).collect();
    done.failed = applied.failed;
    Ok(())
}

/// All objects of a plan.
fn everything(plan: &PlannedCluster, observed: &Observed) -> Result<Vec<Wanted>, ApplyError> {
    let desired = &plan.desired;
    let mut objects = wanted(desired.clone())?;
    if desired.signing_keys.is_none()
        && observed
            .live_config
            .as_ref()
            .is_some_and(names_managed_keys)
    {
        // While gateways still verify with the keys, the issuer's Secret is kept.
        let children = Children::of(
            observed
                .cluster
                .metadata
                .name
                .as_deref()
                .unwrap_or_default(),
        );
        objects.push(Wanted::Kept(SECRET, children.signing_keys));
    }
    Ok(objects)
}

/// The observed Deployment, where its number has to change and was not applied.
fn number_alone<'a>(
    applied: &Applied,
    observed: &'a Observed,
    wanted: i32,
) -> Option<(&'a Deployment, i32)> {
    let current = observed.deployment.as_ref()?;
    let name = current.metadata.name.as_deref()?;
    let applied: Option<Deployment> = applied.get(name);
    let number = |deployment: &Deployment| deployment.spec.as_ref()?.replicas;
    let is_wanted = number(applied.as_ref().unwrap_or(current)) == Some(wanted);
    (!is_wanted).then_some((current, wanted))
}

fn admin_token(applied: &Applied, observed: &Observed) -> Option<String> {
    let name = Children::of(observed.cluster.metadata.name.as_deref()?).credentials;
    let secret: Option<Secret> = applied.get(&name);
    let secret = secret.or_else(|| observed.credentials.clone());
    String::from_utf8(secret?.data?.remove(ADMIN_TOKEN)?.0)
        .ok()
        .map(|token| token.trim().to_owned())
}

fn names_managed_keys(live: &k8s_openapi::api::core::v1::ConfigMap) -> bool {
    live.data
        .as_ref()
        .is_some_and(|data| data.contains_key(crate::objects::JWKS_JSON))
}

/// The failure for the conditions; `None` for what passes by itself.
fn failure(failed: &FailedObject, observed: &Observed, now: DateTime<Utc>) -> Option<ApplyFailure> {
    let answer = match &failed.error {
        ApplyError::Write(write) => write.api(),
        _ => None,
    };
    // A field that the API server refuses stays refused; a right or a quota may be on its way.
    let is_final = matches!(failed.error, ApplyError::Occupied { .. })
        || matches!(answer, Some(kube::Error::Api(status)) if matches!(status.code, 400 | 422));
    let (reason, message) = match &failed.error {
        error @ ApplyError::Occupied { .. } => (ConditionReason::NameOccupied, error.to_string()),
        ApplyError::Write(write) if write.is_conflict() => return None,
        ApplyError::Write(write) => answered(write, write.api())?,
        error @ ApplyError::Read { source, .. } => answered(error, Some(source))?,
        error @ ApplyError::Leaving { since, .. } => {
            let created = observed.cluster.metadata.creation_timestamp.as_ref();
            let since = since.as_ref().or(created).map(from_k8s);
            if since.is_some_and(|since| now - since < LEAVES_WITHIN) {
                return None;
            }
            (ConditionReason::ObjectTerminating, error.to_string())
        }
        error @ ApplyError::Contested { .. } => {
            (ConditionReason::ObjectContested, error.to_string())
        }
        ApplyError::UnknownKind(_) | ApplyError::Shape(_) => return None,
    };
    Some(ApplyFailure {
        kind: failed.kind,
        reason,
        message,
        is_final,
    })
}

/// Reason and message of what the API server answered, or did not answer.
fn answered(
    error: &dyn std::fmt::Display,
    answer: Option<&kube::Error>,
) -> Option<(ConditionReason, String)> {
    Some(match answer {
        Some(kube::Error::Api(status)) if matches!(status.code, 400..=499) => (
            ConditionReason::ApplyRefused,
            format!("{error}: {}", status.message),
        ),
        Some(kube::Error::Api(status)) => (
            ConditionReason::ApplyFailed,
            format!("{error}: {}", status.message),
        ),
        Some(other) => (ConditionReason::ApplyFailed, format!("{error}: {other}")),
        None => (ConditionReason::ApplyFailed, error.to_string()),
    })
}

/// Publishes the events of a plan; one that it repeats while it waits is published once. What could not be carried out has not happened: the next plan says
/// it again.
async fn publish_events(context: &Context, observed: &Observed, plan: &ClusterPlan, done: &Done) {
    let events = plan.facts().events.iter();
    let happened: Vec<PlanEvent> = events
        .filter(|event| done.has_happened(event.reason))
        .cloned()
        .collect();
    let fresh = context
        .remembered(&observed.cluster)
        .lock()
        .unpublished(&happened);
    for event in &fresh {
        let kind = match event.kind {
            EventKind::Normal => EventType::Normal,
            EventKind::Warning => EventType::Warning,
        };
        context
            .events
            .publish(&observed.cluster, kind, event.reason.as_str(), &event.note)
            .await;
    }
}

/// Publishes an Event for each condition that turned: a Warning if it got worse.
async fn publish_conditions(context: &Context, observed: &Observed, after: &[Condition]) {
    let before = observed
        .cluster
        .status
        .as_ref()
        .map_or(&[][..], |status| &status.conditions);
    for condition in after {
        let old = before.iter().find(|old| old.type_ == condition.type_);
        let Some(turn) = turned(old, condition) else {
            continue;
        };
        context
            .events
            .publish(
                &observed.cluster,
                turn,
                &condition.reason,
                &format!("{}: {}", condition.type_, condition.message),
            )
            .await;
    }
}

fn turned(old: Option<&Condition>, new: &Condition) -> Option<EventType> {
    let same = old.is_some_and(|old| {
        old.status == new.status && (old.reason == new.reason || new.status != "False")
    });
    if same {
        return None;
    }
    let was = old.map_or("Unknown", |old| old.status.as_str());
    let is = |all: &[ConditionType]| all.iter().any(|kind| kind.as_str() == new.type_);
    if is(&[ConditionType::Exposed, ConditionType::Monitored]) {
        let waits = [
            ConditionReason::Pending,
            ConditionReason::AddressNotAssigned,
        ];
        let waits = waits.iter().any(|reason| reason.as_str() == new.reason);
        return match new.status.as_str() {
            "False" if was == "True" || !waits => Some(EventType::Warning),
            "True" if was == "False" => Some(EventType::Normal),
            _ => None,
        };
    }
    let unhealthy = [ConditionType::Degraded];
    let healthy = [
        ConditionType::Ready,
        ConditionType::SpecAccepted,
        ConditionType::SecretsResolved,
        ConditionType::RedisReachable,
        ConditionType::DatabaseMigrated,
        ConditionType::JWKSHealthy,
    ];
    match new.status.as_str() {
        "True" if is(&unhealthy) => Some(EventType::Warning),
        "False" if is(&unhealthy) && was == "True" => Some(EventType::Normal),
        "True"
            if is(&healthy)
                && was != "True"
                && (was == "False" || new.type_ == ConditionType::Ready.as_str()) =>
        {
            Some(EventType::Normal)
        }
        // Pods that come and go as they should.
        "False" if is(&healthy) && was == "True" && is_ordinary(&new.reason) => {
            Some(EventType::Normal)
        }
        // A cluster that starts is not ready and not migrated yet, which deserves no Warning.
        "False" if is(&healthy[1..4]) || (is(&healthy) && was == "True") => {
            Some(EventType::Warning)
        }
        _ => None,
    }
}

/// Whether a condition is false for a reason that belongs to every change; what keeps pods from serving is a reason of its own.
fn is_ordinary(reason: &str) -> bool {
    let ordinary = [
        ConditionReason::MigrationRunning,
        ConditionReason::PodsStarting,
        ConditionReason::RolloutInProgress,
        ConditionReason::ScaledToZero,
        ConditionReason::Stopped,
    ];
    ordinary.iter().any(|it| it.as_str() == reason)
}

async fn write_status(
    context: &Context,
    observed: &mut Observed,
    status: &signal_crds::Status,
    differs: Difference,
) -> Result<(), Error> {
    let owner = Owner::of(observed);
    let api: Api<SignalCluster> =
        Api::namespaced(context.writer.client().clone(), &owner.namespace);
    // A merge patch removes a member only if it is null.
    let patch = json!({
        "metadata": {"uid": owner.uid, "resourceVersion": observed.cluster.metadata.resource_version},
        "status": replaced(observed.cluster.status.as_ref(), status),
    });
    let params = crate::act::writer::Writer::patch_params();
    let request = async {
        api.patch_status(&owner.name, &params, &kube::api::Patch::Merge(&patch))
            .await
    };
    let answer = context
        .writer
        .write("status", "SignalCluster", &owner.name, request)
        .await?;
    context.wrote_status(&observed.cluster, differs);
    kept::written(observed, answer);
    Ok(())
}

/// The new status, with null for every member that only the old one has.
fn replaced(old: Option<&signal_crds::Status>, new: &signal_crds::Status) -> serde_json::Value {
    let mut value = serde_json::to_value(new).expect("a status is plain data");
    let old = old.map(|old| serde_json::to_value(old).expect("a status is plain data"));
    if let Some(old) = &old {
        null_removed_members(old, &mut value);
    }
    value
}

fn null_removed_members(old: &serde_json::Value, new: &mut serde_json::Value) {
    let (Some(old), Some(new)) = (old.as_object(), new.as_object_mut()) else {
        return;
    };
    for (key, before) in old {
        match new.get_mut(key) {
            Some(after) => null_removed_members(before, after),
            None => {
                new.insert(key.clone(), serde_json::Value::Null);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;

    use super::*;
    use crate::names::RECORD;

    /// The conditions of the production example, with this record in its live ConfigMap.
    fn conditions(record: Option<&str>) -> Vec<Condition> {
        let mut observed = crate::fixture::example("production");
        observed.live_config = record.map(|text| {
            let mut live = ConfigMap::default();
            live.metadata.annotations = Some([(RECORD.to_owned(), text.to_owned())].into());
            live
        });
        let plan = crate::fixture::plan_of(&observed, DateTime::UNIX_EPOCH);
        crate::status::status(&observed, &plan, &[], DateTime::UNIX_EPOCH).conditions
    }

    #[test]
    fn an_object_that_does_not_go_is_said_after_a_while() {
        let mut observed = crate::fixture::example("minimal");
        let begun = DateTime::UNIX_EPOCH;
        let cluster = std::sync::Arc::make_mut(&mut observed.cluster);
        cluster.metadata.creation_timestamp = Some(crate::time::to_k8s(begun));
        let later = begun + TimeDelta::hours(1);
        for (since, begun) in [(None, begun), (Some(crate::time::to_k8s(later)), later)] {
            let failed = FailedObject {
                kind: SERVICE,
                error: ApplyError::Leaving {
                    kind: SERVICE.kind,
                    name: "edge".into(),
                    waits_for: "it waits for its finalizers example.com/hold".into(),
                    since,
                },
            };
            let said = |secs| failure(&failed, &observed, begun + TimeDelta::seconds(secs));
            assert_eq!(said(9), None);
            let said = said(10).unwrap();
            assert_eq!(
                (said.reason, said.is_final, &*said.message),
                (
                    ConditionReason::ObjectTerminating,
                    false,
                    "Service edge is still being deleted: it waits for its finalizers example.com/hold"
                )
            );
        }
    }

    #[test]
    fn what_could_not_be_carried_out_has_not_happened() {
        use EventReason as E;
        let refused = |kind| Done {
            failed: vec![FailedObject {
                kind,
                error: ApplyError::UnknownKind(String::new()),
            }],
            ..Done::default()
        };
        let order = Done {
            order: Some(WriteError::NotHeld),
            ..Done::default()
        };
        let config = crate::observe::resources::CONFIG_MAP;
        for (done, reason, happened) in [
            (&Done::default(), E::SigningKeyActivated, true),
            (&refused(config), E::SigningKeyActivated, false),
            (&refused(config), E::SourceTrusted, false),
            (&refused(config), E::SigningKeysDamaged, true),
            (&refused(config), E::ScaledOut, true),
            (&refused(INGRESS), E::SourceTrusted, true),
            (&order, E::ScaledOut, false),
            (&order, E::SourceTrusted, true),
        ] {
            assert_eq!(done.has_happened(reason), happened, "{reason:?}");
        }
    }

    #[test]
    fn an_ordinary_change_warns_nobody() {
        use ConditionReason as R;
        let condition = |kind: ConditionType, status: &str, reason: R| Condition {
            type_: kind.as_str().into(),
            status: status.into(),
            reason: reason.as_str().into(),
            message: String::new(),
            observed_generation: None,
            last_transition_time: crate::time::to_k8s(DateTime::UNIX_EPOCH),
        };
        let turn = |kind, (was, before), (is, after)| {
            turned(
                Some(&condition(kind, was, before)),
                &condition(kind, is, after),
            )
        };
        let (ready, migrated) = (ConditionType::Ready, ConditionType::DatabaseMigrated);
        let well = ("True", R::AllPodsReady);
        for ordinary in [
            R::RolloutInProgress,
            R::PodsStarting,
            R::MigrationRunning,
            R::Stopped,
            R::ScaledToZero,
        ] {
            let turned = turn(ready, well, ("False", ordinary));
            assert_eq!(turned, Some(EventType::Normal), "{ordinary:?}");
        }
        assert_eq!(
            turn(
                migrated,
                ("True", R::Migrated),
                ("False", R::MigrationRunning)
            ),
            Some(EventType::Normal)
        );
        for worse in [
            R::CrashLoopBackOff,
            R::SubscriptionStalled,
            R::SecretMissing,
        ] {
            let turned = turn(ready, well, ("False", worse));
            assert_eq!(turned, Some(EventType::Warning), "{worse:?}");
        }
        assert_eq!(
            turn(
                migrated,
                ("True", R::Migrated),
                ("False", R::MigrationFailed)
            ),
            Some(EventType::Warning)
        );
        assert_eq!(
            turn(
                ConditionType::Available,
                ("True", R::PodsAvailable),
                ("False", R::Stopped)
            ),
            None
        );
    }

    #[test]
    fn a_record_that_cannot_be_read_is_a_warning_once() {
        let (before, after) = (conditions(None), conditions(Some("{")));
        let warnings = |before: &[Condition]| -> Vec<String> {
            let turned = after.iter().filter(|condition| {
                let old = before.iter().find(|old| old.type_ == condition.type_);
                turned(old, condition) == Some(EventType::Warning)
            });
            turned
                .map(|condition| format!("{} {}", condition.type_, condition.reason))
                .collect()
        };
        for before in [&[][..], &before] {
            assert_eq!(warnings(before), ["Degraded RecordUnreadable"]);
        }
        assert!(warnings(&after).is_empty());
    }
}

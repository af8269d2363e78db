//! One reconcile, as its steps: observe, decide, apply, give orders, write the status. Holds a client.

pub mod context;

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::Api;
use kube::runtime::controller::Action;
use kube::runtime::events::EventType;
use serde_json::json;
use signal_crds::SignalCluster;

use crate::act::apply::{Applied, ApplyError, Wanted, apply, wanted};
use crate::act::orders::{self, Orders};
use crate::decide::{ClusterPlan, PlannedCluster, decide, wants_samples};
use crate::names::Children;
use crate::objects::ADMIN_TOKEN;
use crate::observe::observed::Observed;
use crate::observe::owner::Owner;
use crate::observe::resources::SECRET;
use crate::observe::{ObserveError, observe};
use crate::plan::EventKind;
use crate::reasons::ConditionReason;
use crate::reconcile::context::{Context, Error};
use crate::status::conditions::ConditionType;
use crate::status::{ApplyFailure, status};
use crate::time::now;

/// Until the next reconcile while something is in progress that no watch reports.
const BUSY: Duration = Duration::from_secs(2);
/// Until the next reconcile while decisions depend on what pods report.
const SAMPLE: Duration = Duration::from_secs(10);

/// Brings one SignalCluster a step closer to its spec.
///
/// # Errors
/// When a step failed; the controller tries again after a pause.
pub async fn reconcile(context: &Context, cluster: &SignalCluster) -> Result<Action, Error> {
    let observed = match observe(&context.reader, cluster).await {
        Err(ObserveError::Gone) => {
            context.forget(cluster);
            return Ok(Action::await_change());
        }
        observed => observed?,
    };
    if observed.cluster.metadata.deletion_timestamp.is_some() {
        // The garbage collector deletes everything by its owner reference.
        context.forget(cluster);
        return Ok(Action::await_change());
    }
    let now = now();
    let plan = {
        let remembered = context.remembered(&observed.cluster);
        let mut remembered = remembered.lock();
        decide(
            &observed,
            &mut remembered,
            context.operator_namespace.as_deref(),
            &mut rand::rng(),
            now,
        )
    };
    let planned = plan.planned().filter(|_| !observed.cluster.spec.paused);
    let outcome = match planned {
        None => Ok(()),
        Some(planned) => act(context, &observed, planned).await,
    };
    let failure = match &outcome {
        Err(Error::Apply(error)) => lasting(error),
        _ => None,
    };
    // The status is written also when the objects could not be applied.
    let status = status(&observed, &plan, failure.as_ref(), now);
    if outcome.is_ok() || failure.is_some() {
        if !observed.cluster.spec.paused && outcome.is_ok() {
            publish_events(context, &observed, &plan).await;
        }
        publish_conditions(context, &observed, &status.conditions).await;
        write_status(context, &observed, &status).await?;
    }
    outcome?;
    // No watch reports the time of the next attempt.
    let migrates_again = plan.planned().is_some_and(|planned| {
        let retried = planned.migration.tried_again(&observed.cluster.spec);
        retried.is_some()
    });
    Ok(if plan.is_busy(&observed.fleet) {
        context.look_again(BUSY)
    } else if wants_samples(&observed) || settling(&observed, &status.conditions) || migrates_again
    {
        context.look_again(SAMPLE)
    } else {
        context.resync()
    })
}

/// Whether pods serve and report something that is not as it should be.
fn settling(observed: &Observed, conditions: &[Condition]) -> bool {
    let holds = |kind: ConditionType| {
        conditions
            .iter()
            .any(|condition| condition.type_ == kind.as_str() && condition.status == "True")
    };
    let settled = holds(ConditionType::Ready) && holds(ConditionType::KafkaReachable);
    !settled && observed.fleet.ready().next().is_some()
}

/// Applies the objects and gives the orders of a plan.
async fn act(context: &Context, observed: &Observed, plan: &PlannedCluster) -> Result<(), Error> {
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
    let applied = apply(objects, observed, &context.writer).await?;
    if applied.writes() > 0 {
        tracing::info!(
            namespace = observed.cluster.metadata.namespace,
            name = observed.cluster.metadata.name,
            writes = applied.writes(),
            "objects applied"
        );
    }
    let token = admin_token(&applied, observed);
    orders::give(
        Orders {
            scale: &plan.scale,
            shed: &plan.shed,
            rescale: plan.rescale,
        },
        &observed.fleet,
        &Owner::of(observed),
        token.as_deref(),
        &context.pods,
        &context.writer,
    )
    .await?;
    Ok(())
}

fn admin_token(applied: &Applied, observed: &Observed) -> Option<String> {
    let name = Children::of(observed.cluster.metadata.name.as_deref()?).credentials;
    let secret: k8s_openapi::api::core::v1::Secret = applied.get(&name)?;
    String::from_utf8(secret.data?.remove(ADMIN_TOKEN)?.0)
        .ok()
        .map(|token| token.trim().to_owned())
}

fn names_managed_keys(live: &k8s_openapi::api::core::v1::ConfigMap) -> bool {
    live.data
        .as_ref()
        .is_some_and(|data| data.contains_key(crate::objects::JWKS_JSON))
}

/// The failure for the conditions, if another attempt does not help.
fn lasting(error: &ApplyError) -> Option<ApplyFailure> {
    match error {
        ApplyError::Occupied { .. } => Some(ApplyFailure {
            reason: ConditionReason::NameOccupied,
            message: error.to_string(),
        }),
        ApplyError::Write(write) => match write.api() {
            Some(kube::Error::Api(status)) if matches!(status.code, 400 | 403 | 422) => {
                Some(ApplyFailure {
                    reason: ConditionReason::ApplyRefused,
                    message: format!("{write}: {}", status.message),
                })
            }
            _ => None,
        },
        ApplyError::Read { .. }
        | ApplyError::Leaving { .. }
        | ApplyError::UnknownKind(_)
        | ApplyError::Shape(_) => None,
    }
}

/// Publishes the events of a plan; one that it repeats while it waits is published once.
async fn publish_events(context: &Context, observed: &Observed, plan: &ClusterPlan) {
    let fresh = context
        .remembered(&observed.cluster)
        .lock()
        .unpublished(&plan.facts().events);
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
    let unhealthy = [ConditionType::Degraded];
    let healthy = [
        ConditionType::Ready,
        ConditionType::SpecAccepted,
        ConditionType::SecretsResolved,
        ConditionType::RedisReachable,
        ConditionType::DatabaseMigrated,
        ConditionType::JWKSHealthy,
    ];
    let is = |all: &[ConditionType]| all.iter().any(|kind| kind.as_str() == new.type_);
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
        // A cluster that starts is not ready and not migrated yet, which deserves no Warning.
        "False" if is(&healthy[1..4]) || (is(&healthy) && was == "True") => {
            Some(EventType::Warning)
        }
        _ => None,
    }
}

async fn write_status(
    context: &Context,
    observed: &Observed,
    status: &signal_crds::Status,
) -> Result<(), Error> {
    if observed.cluster.status.as_ref() == Some(status) {
        return Ok(());
    }
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
    context
        .writer
        .write("status", "SignalCluster", &owner.name, request)
        .await?;
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
    use chrono::DateTime;
    use k8s_openapi::api::core::v1::ConfigMap;
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

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
        let plan = decide(
            &observed,
            &mut Default::default(),
            None,
            &mut StdRng::seed_from_u64(7),
            DateTime::UNIX_EPOCH,
        );
        crate::status::status(&observed, &plan, None, DateTime::UNIX_EPOCH).conditions
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

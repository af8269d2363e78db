//! What keeps pods from serving, by their names: for the conditions Progressing and Degraded. Bounded, and never with a value of a Secret.

use chrono::{DateTime, Utc};

use crate::objects::without_pods_until;
use crate::observe::fleet::{Pod, PodProblem, PodProblemKind};
use crate::observe::observed::Observed;
use crate::reasons::ConditionReason;

/// Most pods that a message names.
const NAMED: usize = 3;
/// Shorter values of Secrets are not looked for: they are in every text.
const MIN_SECRET: usize = 4;

/// Reason of a problem.
fn reason(problem: &PodProblem) -> ConditionReason {
    match problem.kind {
        PodProblemKind::Image => ConditionReason::ImagePullBackOff,
        PodProblemKind::Crash => ConditionReason::CrashLoopBackOff,
        PodProblemKind::OutOfMemory => ConditionReason::OOMKilled,
        PodProblemKind::Configuration => ConditionReason::ContainerCannotStart,
        PodProblemKind::Unschedulable => ConditionReason::Unschedulable,
    }
}

/// Reason and message of what keeps gateways from serving, or from being created: the newest revision's pods come first.
pub(super) fn wrong(
    observed: &Observed,
    is_newest: impl Fn(&Pod) -> bool,
) -> Option<(ConditionReason, String)> {
    let mut pods: Vec<(&Pod, &PodProblem)> = observed
        .fleet
        .alive()
        .filter_map(|pod| Some((pod, pod.problem.as_ref()?)))
        .collect();
    pods.sort_by_key(|(pod, problem)| (!is_newest(pod), problem.kind as usize, &pod.name));
    let named = pods.iter().map(|(pod, problem)| (&*pod.name, *problem));
    list(observed, &named.collect::<Vec<_>>()).or_else(|| not_created(observed))
}

/// The same of the pods of migration Jobs, and of this one where it has none. Its controller tells why in Events alone, which the operator may not read.
pub(super) fn wrong_with_migration(
    observed: &Observed,
    job: &str,
    now: DateTime<Utc>,
) -> Option<(ConditionReason, String)> {
    let pods = observed.migration_pods.iter();
    let pods: Vec<_> = pods.map(|(name, problem)| (&**name, problem)).collect();
    let without_pods = || {
        let is_late = without_pods_until(observed, job).is_some_and(|until| until <= now);
        is_late.then(|| {
            let why = "no pod of it can be created, by a quota, a LimitRange, a policy or a webhook; the Events of the Job say which";
            (ConditionReason::ReplicaFailure, why.to_owned())
        })
    };
    list(observed, &pods).or_else(without_pods)
}

/// Quotas, limits and webhooks keep a ReplicaSet from creating pods.
fn not_created(observed: &Observed) -> Option<(ConditionReason, String)> {
    let active = observed.revisions.iter().filter(|it| it.is_active());
    let by_set = active
        .filter_map(|it| {
            Some((
                it.created,
                format!("ReplicaSet {}: {}", it.name, it.failure.as_ref()?),
            ))
        })
        .max_by_key(|(created, _)| *created)
        .map(|(_, message)| message);
    let by_deployment = || {
        let status = observed.deployment.as_ref()?.status.as_ref()?;
        let conditions = &mut status.conditions.iter().flatten();
        let failure = conditions
            .find(|condition| condition.type_ == "ReplicaFailure" && condition.status == "True")?;
        Some(failure.message.clone().unwrap_or_default())
    };
    let message = by_set.or_else(by_deployment)?;
    Some((
        ConditionReason::ReplicaFailure,
        without_secrets(observed, message),
    ))
}

fn list(observed: &Observed, pods: &[(&str, &PodProblem)]) -> Option<(ConditionReason, String)> {
    let (_, first) = pods.first()?;
    let mut named: Vec<String> = pods
        .iter()
        .take(NAMED)
        .map(|(name, problem)| {
            let reason = reason(problem).as_str();
            format!("pod {name}: {reason}: {}", problem.message)
        })
        .collect();
    if pods.len() > NAMED {
        named.push(format!("and {} more", pods.len() - NAMED));
    }
    Some((reason(first), without_secrets(observed, named.join("; "))))
}

/// A text that a container wrote, without what stands in the Secrets of the spec.
fn without_secrets(observed: &Observed, mut text: String) -> String {
    let secrets = observed.secrets.values().flatten();
    for content in secrets.flat_map(|data| data.values()) {
        let Ok(value) = std::str::from_utf8(content) else {
            continue;
        };
        let value = value.trim();
        let password = url::Url::parse(value).ok();
        let password = password.as_ref().and_then(url::Url::password);
        for part in [Some(value), password].into_iter().flatten() {
            if part.len() >= MIN_SECRET {
                text = text.replace(part, "[secret]");
            }
        }
    }
    text
}

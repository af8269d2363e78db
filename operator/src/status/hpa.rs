//! The status of a HorizontalPodAutoscaler as condition ScalingLimited.

use k8s_openapi::api::autoscaling::v2::{
    HorizontalPodAutoscaler, HorizontalPodAutoscalerCondition,
};

use crate::reasons::ConditionReason;
use crate::status::conditions::State;

/// State, reason and message of condition ScalingLimited. `Unknown` until its controller has written a status.
///
/// A metric that it cannot read is a limit with reason `MetricUnavailable`: the number does not follow the load.
pub(super) fn hpa_condition(hpa: &HorizontalPodAutoscaler) -> (State, ConditionReason, String) {
    let conditions = hpa
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_deref())
        .unwrap_or_default();
    let find = |kind: &str| conditions.iter().find(|condition| condition.type_ == kind);
    let message = |condition: &HorizontalPodAutoscalerCondition| {
        condition.message.clone().unwrap_or_default()
    };
    if let Some(active) = find("ScalingActive").filter(|condition| condition.status == "False") {
        let is_disabled = active.reason.as_deref() == Some("ScalingDisabled");
        return (
            State::True,
            if is_disabled {
                ConditionReason::ScalingDisabled
            } else {
                ConditionReason::MetricUnavailable
            },
            message(active),
        );
    }
    if let Some(able) = find("AbleToScale").filter(|condition| condition.status == "False") {
        return (State::True, ConditionReason::UnableToScale, message(able));
    }
    match find("ScalingLimited") {
        Some(limited) if limited.status == "True" => (
            State::True,
            limit(limited.reason.as_deref()),
            message(limited),
        ),
        Some(limited) => (
            State::False,
            ConditionReason::DesiredWithinRange,
            message(limited),
        ),
        None => (
            State::Unknown,
            ConditionReason::NotObserved,
            "the HorizontalPodAutoscaler has no status yet".to_owned(),
        ),
    }
}

/// The reason of this limit.
fn limit(reason: Option<&str>) -> ConditionReason {
    match reason {
        Some("TooManyReplicas") => ConditionReason::TooManyReplicas,
        Some("TooFewReplicas") => ConditionReason::TooFewReplicas,
        Some("ScaleUpLimit") => ConditionReason::ScaleUpLimit,
        Some("ScaleDownLimit") => ConditionReason::ScaleDownLimit,
        _ => ConditionReason::ScalingLimited,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscalerStatus;

    use super::*;

    fn hpa(conditions: &[(&str, &str, &str)]) -> HorizontalPodAutoscaler {
        let condition =
            |(kind, status, reason): &(&str, &str, &str)| HorizontalPodAutoscalerCondition {
                type_: (*kind).into(),
                status: (*status).into(),
                reason: Some((*reason).into()),
                message: Some(format!("message of {kind}")),
                ..Default::default()
            };
        let conditions = Some(conditions.iter().map(condition).collect());
        HorizontalPodAutoscaler {
            status: Some(HorizontalPodAutoscalerStatus {
                conditions,
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn the_status_of_the_hpa_becomes_the_condition() {
        let able = ("AbleToScale", "True", "ReadyForNewScale");
        let active = ("ScalingActive", "True", "ValidMetricFound");
        for (conditions, state, reason) in [
            (&[][..], State::Unknown, ConditionReason::NotObserved),
            (
                &[able, ("ScalingActive", "False", "FailedGetPodsMetric")],
                State::True,
                ConditionReason::MetricUnavailable,
            ),
            (
                &[able, ("ScalingActive", "False", "ScalingDisabled")],
                State::True,
                ConditionReason::ScalingDisabled,
            ),
            (
                &[("AbleToScale", "False", "FailedGetScale")],
                State::True,
                ConditionReason::UnableToScale,
            ),
            (
                &[able, active, ("ScalingLimited", "True", "TooManyReplicas")],
                State::True,
                ConditionReason::TooManyReplicas,
            ),
            (
                &[able, active, ("ScalingLimited", "True", "ScaleUpLimit")],
                State::True,
                ConditionReason::ScaleUpLimit,
            ),
            (
                &[
                    able,
                    active,
                    ("ScalingLimited", "False", "DesiredWithinRange"),
                ],
                State::False,
                ConditionReason::DesiredWithinRange,
            ),
        ] {
            let found = hpa_condition(&hpa(conditions));
            assert_eq!((found.0, found.1), (state, reason), "{conditions:?}");
        }
        assert_eq!(
            hpa_condition(&hpa(&[("ScalingActive", "False", "FailedGetPodsMetric")])).2,
            "message of ScalingActive"
        );
    }
}

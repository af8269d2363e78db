//! The HorizontalPodAutoscaler of mode HPA. It writes the SignalCluster's scale subresource, so that scale-in drains first.

use k8s_openapi::api::autoscaling::v2::{
    CrossVersionObjectReference, HPAScalingPolicy, HPAScalingRules, HorizontalPodAutoscaler,
    HorizontalPodAutoscalerBehavior, HorizontalPodAutoscalerSpec, MetricIdentifier, MetricSpec,
    MetricTarget, PodsMetricSource, ResourceMetricSource,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::Resource;
use signal_crds::SignalCluster;
use signal_crds::scaling::{AutoscalingMode, PolicyKind, ScalingRules, SelectPolicy};

use crate::names::Children;
use crate::plan::validate::ValidCluster;

/// The metric of the custom metrics API: open connections of one pod.
pub const CONNECTIONS_METRIC: &str = "signal_connections";

pub(super) fn hpa(cluster: &ValidCluster, children: &Children) -> Option<HorizontalPodAutoscaler> {
    let autoscaling =
        cluster.spec.autoscaling.as_ref().filter(|autoscaling| {
            autoscaling.mode == AutoscalingMode::Hpa && !cluster.spec.stopped
        })?;
    let mut metrics = vec![connections(autoscaling.target_connections_per_pod)];
    metrics.extend(autoscaling.target_cpu_utilization.map(cpu));
    metrics.extend(cluster.extra_metrics.iter().cloned());
    let behavior = autoscaling.behavior.as_ref();
    Some(HorizontalPodAutoscaler {
        metadata: super::meta(cluster, &children.name),
        spec: Some(HorizontalPodAutoscalerSpec {
            scale_target_ref: CrossVersionObjectReference {
                api_version: Some(SignalCluster::api_version(&()).into_owned()),
                kind: SignalCluster::kind(&()).into_owned(),
                name: cluster.name.clone(),
            },
            min_replicas: Some(autoscaling.min_replicas),
            max_replicas: autoscaling.max_replicas,
            metrics: Some(metrics),
            behavior: Some(HorizontalPodAutoscalerBehavior {
                scale_up: behavior
                    .and_then(|behavior| behavior.scale_up.as_ref())
                    .map(rules),
                scale_down: Some(
                    behavior
                        .and_then(|behavior| behavior.scale_down.as_ref())
                        .map_or_else(slowly_down, rules),
                ),
            }),
        }),
        ..HorizontalPodAutoscaler::default()
    })
}

fn connections(target: u32) -> MetricSpec {
    MetricSpec {
        type_: "Pods".into(),
        pods: Some(PodsMetricSource {
            metric: MetricIdentifier {
                name: CONNECTIONS_METRIC.into(),
                selector: None,
            },
            target: MetricTarget {
                type_: "AverageValue".into(),
                average_value: Some(Quantity(target.to_string())),
                ..MetricTarget::default()
            },
        }),
        ..MetricSpec::default()
    }
}

fn cpu(percent: i32) -> MetricSpec {
    MetricSpec {
        type_: "Resource".into(),
        resource: Some(ResourceMetricSource {
            name: "cpu".into(),
            target: MetricTarget {
                type_: "Utilization".into(),
                average_utilization: Some(percent),
                ..MetricTarget::default()
            },
        }),
        ..MetricSpec::default()
    }
}

/// Down by one pod every two minutes, after five minutes of lower load: each scale-in makes clients reconnect.
fn slowly_down() -> HPAScalingRules {
    HPAScalingRules {
        stabilization_window_seconds: Some(300),
        select_policy: Some("Max".into()),
        policies: Some(vec![HPAScalingPolicy {
            type_: "Pods".into(),
            value: 1,
            period_seconds: 120,
        }]),
        ..HPAScalingRules::default()
    }
}

fn rules(rules: &ScalingRules) -> HPAScalingRules {
    let select = match rules.select_policy {
        SelectPolicy::Max => "Max",
        SelectPolicy::Min => "Min",
        SelectPolicy::Disabled => "Disabled",
    };
    let policies: Vec<_> = rules
        .policies
        .iter()
        .map(|policy| HPAScalingPolicy {
            type_: match policy.kind {
                PolicyKind::Pods => "Pods".into(),
                PolicyKind::Percent => "Percent".into(),
            },
            value: policy.value,
            period_seconds: policy.period_seconds,
        })
        .collect();
    HPAScalingRules {
        stabilization_window_seconds: rules.stabilization_window_seconds,
        select_policy: Some(select.into()),
        policies: (!policies.is_empty()).then_some(policies),
        ..HPAScalingRules::default()
    }
}

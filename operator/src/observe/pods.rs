//! A pod of the API server -> [`Pod`] of the fleet, before it is polled.

use std::time::Duration;

use chrono::{DateTime, Utc};
use k8s_openapi::api::core::v1::{Pod as KubePod, Probe};
use kube::ResourceExt as _;

use crate::names::{self, DELETION_COST, DRAIN, DRAINING, DRAINING_SINCE};
use crate::observe::fleet::Pod;
use crate::observe::problems::{changes_at, problem};
use crate::time::from_k8s;

/// The gateway's own default.
const DEFAULT_ADMIN_PORT: u16 = 9090;

/// A pod as Kubernetes reports it; `None` for one that has ended.
pub(super) fn pod(pod: &KubePod, now: DateTime<Utc>) -> Option<Pod> {
    let (spec, status) = (pod.spec.as_ref(), pod.status.as_ref());
    if matches!(
        status.and_then(|status| status.phase.as_deref()),
        Some("Succeeded" | "Failed")
    ) {
        return None;
    }
    let gateway = spec.and_then(|spec| {
        spec.containers
            .iter()
            .find(|container| container.name == names::CONTAINER)
    });
    let ports = gateway
        .and_then(|container| container.ports.as_deref())
        .unwrap_or_default();
    let admin_port = ports
        .iter()
        .find(|port| port.name.as_deref() == Some(names::ADMIN_PORT))
        .map(|port| port.container_port);
    let conditions = status
        .and_then(|status| status.conditions.as_deref())
        .unwrap_or_default();
    let drains = pod.labels().get(DRAINING).map(String::as_str) == Some("true");
    let since = pod
        .annotations()
        .get(DRAINING_SINCE)
        .and_then(|text| chrono::DateTime::parse_from_rfc3339(text).ok());
    Some(Pod {
        name: pod.name_any(),
        uid: pod.uid().unwrap_or_default(),
        resource_version: pod.resource_version().unwrap_or_default(),
        ip: status
            .and_then(|status| status.pod_ip.as_deref())
            .and_then(|ip| ip.parse().ok()),
        admin_port: admin_port
            .and_then(|port| u16::try_from(port).ok())
            .unwrap_or(DEFAULT_ADMIN_PORT),
        readiness_lag: readiness_lag(gateway.and_then(|gateway| gateway.readiness_probe.as_ref())),
        node: spec.and_then(|spec| spec.node_name.clone()),
        ready: conditions
            .iter()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True"),
        terminating: pod.metadata.deletion_timestamp.is_some(),
        // A mark with an unreadable time counts as old: its deadline has passed.
        draining_since: drains.then(|| since.map_or(chrono::DateTime::UNIX_EPOCH, Into::into)),
        restarts: restarts(pod),
        asked_to_drain: pod.annotations().contains_key(DRAIN),
        deletion_cost: pod
            .annotations()
            .get(DELETION_COST)
            .and_then(|cost| cost.parse().ok()),
        template_hash: pod
            .labels()
            .get("pod-template-hash")
            .cloned()
            .unwrap_or_default(),
        created: pod
            .metadata
            .creation_timestamp
            .as_ref()
            .map(from_k8s)
            .unwrap_or_default(),
        problem: problem(pod, now),
        changes_at: changes_at(pod, now),
        report: Err("it has not been polled yet".into()),
    })
}

fn restarts(pod: &KubePod) -> i32 {
    let statuses = pod
        .status
        .as_ref()
        .and_then(|status| status.container_statuses.as_deref());
    let mut statuses = statuses.unwrap_or_default().iter();
    let gateway = statuses.find(|status| status.name == names::CONTAINER);
    gateway.map_or(0, |status| status.restart_count)
}

/// The longest time until a probe that fails from now on makes the pod unready: one that is under way may still succeed.
fn readiness_lag(probe: Option<&Probe>) -> Duration {
    // Kubernetes' own defaults.
    let number = |of: fn(&Probe) -> Option<i32>, default: i32| {
        let given = probe.and_then(of).unwrap_or(default);
        u64::try_from(given.max(1)).unwrap_or(1)
    };
    let failures = number(|probe| probe.failure_threshold, 3);
    let period = number(|probe| probe.period_seconds, 10);
    Duration::from_secs(failures * period + number(|probe| probe.timeout_seconds, 1))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn kube_pod(value: serde_json::Value) -> KubePod {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_pod_is_read_with_its_port_its_readiness_and_its_drain() {
        let read = pod(&kube_pod(json!({
            "metadata": {
                "name": "edge-1", "uid": "u", "resourceVersion": "7", "creationTimestamp": "2026-01-01T00:00:00Z",
                "labels": {"pod-template-hash": "abc", "signal.dev/draining": "true"},
                "annotations": {"signal.dev/draining-since": "2026-01-01T00:01:00Z", "controller.kubernetes.io/pod-deletion-cost": "-5", "signal.dev/drain": "now"},
            },
            "spec": {"nodeName": "n", "containers": [
                {"name": "proxy", "ports": [{"name": "admin", "containerPort": 1}]},
                {"name": "gateway", "ports": [{"name": "public", "containerPort": 8080}, {"name": "admin", "containerPort": 9191}]},
            ]},
            "status": {"phase": "Running", "podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]},
        })), DateTime::UNIX_EPOCH)
        .unwrap();
        assert_eq!(
            (
                read.admin_port,
                read.ready,
                read.terminating,
                read.deletion_cost
            ),
            (9191, true, false, Some(-5))
        );
        assert!(read.asked_to_drain);
        assert_eq!(
            (
                read.ip,
                read.template_hash.as_str(),
                read.created.timestamp()
            ),
            (Some([10, 0, 0, 1].into()), "abc", 1_767_225_600)
        );
        assert_eq!(
            read.draining_since.map(|since| since.timestamp()),
            Some(1_767_225_660)
        );
    }

    #[test]
    fn the_first_address_of_a_pod_counts_and_may_be_of_ipv6() {
        for (ip, ips) in [
            ("2001:db8::7", json!([{"ip": "2001:db8::7"}])),
            (
                "2001:db8::7",
                json!([{"ip": "2001:db8::7"}, {"ip": "10.0.0.1"}]),
            ),
            (
                "10.0.0.1",
                json!([{"ip": "10.0.0.1"}, {"ip": "2001:db8::7"}]),
            ),
        ] {
            let status = json!({"phase": "Running", "podIP": ip, "podIPs": ips});
            let read = pod(
                &kube_pod(json!({"metadata": {"name": "edge-1"}, "status": status})),
                DateTime::UNIX_EPOCH,
            );
            assert_eq!(read.unwrap().ip, Some(ip.parse().unwrap()));
        }
    }

    #[test]
    fn the_time_until_a_pod_counts_as_unready_follows_from_its_own_probe() {
        let lag = |probe: serde_json::Value| {
            let container = json!({"name": "gateway", "readinessProbe": probe});
            let read = pod(
                &kube_pod(json!({"metadata": {"name": "a"}, "spec": {"containers": [container]}})),
                DateTime::UNIX_EPOCH,
            );
            read.unwrap().readiness_lag.as_secs()
        };
        assert_eq!(
            lag(json!({"periodSeconds": 5, "failureThreshold": 2, "timeoutSeconds": 3})),
            13
        );
        assert_eq!(lag(json!({})), 31, "the defaults of Kubernetes");
        assert_eq!(lag(serde_json::Value::Null), 31);
    }

    #[test]
    fn a_pod_that_has_ended_is_left_out_and_an_annotation_alone_is_no_drain() {
        assert!(
            pod(
                &kube_pod(json!({"metadata": {"name": "a"}, "status": {"phase": "Failed"}})),
                DateTime::UNIX_EPOCH
            )
            .is_none()
        );
        let annotated = kube_pod(
            json!({"metadata": {"name": "a", "annotations": {"signal.dev/draining-since": "2026-01-01T00:01:00Z"}}}),
        );
        assert_eq!(
            pod(&annotated, DateTime::UNIX_EPOCH)
                .unwrap()
                .draining_since,
            None
        );
    }
}

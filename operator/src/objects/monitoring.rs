//! Objects for Prometheus's operator: what to scrape, and the alerts.
//!
//! Alerts select by namespace and by the pattern of the pods' names, labels that every scraper adds, and read only metrics of gateways: no other
//! exporter is needed.

use std::collections::BTreeMap;

use kube::core::DynamicObject;
use serde_json::{Value, json};

use super::deployment::grace_period;
use crate::names::{ADMIN_PORT, Children, selector};
use crate::observe::observed::Kinds;
use crate::observe::resources::{PROMETHEUS_RULE, SERVICE_MONITOR};
use crate::plan::validate::ValidCluster;

/// A ServiceMonitor on the admin Service: the public one has no port of that name.
pub(super) fn service_monitor(
    cluster: &ValidCluster,
    children: &Children,
    kinds: Kinds,
) -> Option<DynamicObject> {
    let monitor = cluster
        .spec
        .observability
        .service_monitor
        .as_ref()
        .filter(|_| kinds.has(SERVICE_MONITOR))?;
    let spec = json!({
        "jobLabel": "app.kubernetes.io/instance",
        "selector": {"matchLabels": selector(&cluster.name)},
        "namespaceSelector": {"matchNames": [cluster.namespace]},
        "endpoints": [{"port": ADMIN_PORT, "path": "/metrics", "interval": monitor.interval}],
    });
    let monitor_object = super::dynamic(
        cluster,
        &children.name,
        "monitoring.coreos.com/v1",
        "ServiceMonitor",
        spec,
    );
    Some(labelled(monitor_object, &monitor.labels))
}

/// A PrometheusRule with Signal's alerts.
pub(super) fn prometheus_rule(
    cluster: &ValidCluster,
    children: &Children,
    kinds: Kinds,
) -> Option<DynamicObject> {
    let rules = cluster
        .spec
        .observability
        .prometheus_rule
        .as_ref()
        .filter(|_| kinds.has(PROMETHEUS_RULE))?;
    let spec = json!({"groups": [{"name": format!("signal.{}.{}", cluster.namespace, cluster.name), "rules": alerts(cluster)}]});
    Some(labelled(
        super::dynamic(
            cluster,
            &children.name,
            "monitoring.coreos.com/v1",
            "PrometheusRule",
            spec,
        ),
        &rules.labels,
    ))
}

/// Labels by which Prometheus finds the object; ours win.
fn labelled(mut object: DynamicObject, given: &BTreeMap<String, String>) -> DynamicObject {
    let mut labels = given.clone();
    labels.extend(object.metadata.labels.take().unwrap_or_default());
    object.metadata.labels = Some(labels);
    object
}

fn alerts(cluster: &ValidCluster) -> Vec<Value> {
    let (name, namespace) = (&cluster.name, &cluster.namespace);
    let context = AlertContext {
        cluster,
        // Matches pods of this Deployment, and not of another one whose name starts the same.
        pods: format!(r#"namespace="{namespace}",pod=~"{name}-[a-z0-9]+-[a-z0-9]{{5}}""#),
    };
    let mut all = gateway_alerts(&context);
    if cluster.spec.gateway.tls.is_some() {
        all.push(certificate_alert(&context));
    }
    if cluster.spec.redis.is_some() {
        all.push(redis_alert(&context));
    }
    if cluster.spec.kafka.is_some() {
        all.extend(kafka_alerts(&context));
    }
    all
}

/// What all alerts of one SignalCluster share.
struct AlertContext<'a> {
    cluster: &'a ValidCluster,
    /// Label matchers of its pods.
    pods: String,
}

impl AlertContext<'_> {
    fn alert(
        &self,
        title: &str,
        expr: String,
        lasting: &str,
        severity: &str,
        summary: &str,
        description: &str,
    ) -> Value {
        let (name, namespace) = (&self.cluster.name, &self.cluster.namespace);
        json!({
            "alert": title,
            "expr": expr,
            "for": lasting,
            "labels": {"severity": severity, "signalcluster": name, "namespace": namespace},
            "annotations": {"summary": format!("{namespace}/{name}: {summary}"), "description": description},
        })
    }
}

fn gateway_alerts(context: &AlertContext<'_>) -> Vec<Value> {
    let AlertContext { cluster, pods } = context;
    let stale = cluster.spec.jwks.max_stale.as_secs();
    vec![
        context.alert(
            "SignalReconnectStorm",
            format!(
                "sum(rate(signal_connections_opened_total{{{pods}}}[5m])) > 0.005 * sum(signal_connections{{{pods}}}) and sum(rate(signal_connections_opened_total{{{pods}}}[5m])) > 10"
            ),
            "10m",
            "warning",
            "clients reconnect far more often than they stay",
            "So many clients connect that a connection lasts less than four minutes on average. Look at signal_connections_closed_total by code.",
        ),
        context.alert(
            "SignalAuthenticationFailures",
            format!(
                "sum by (kind) (rate(signal_authentications_total{{{pods},kind!=\"accepted\"}}[10m])) > 0.2 * scalar(sum(rate(signal_authentications_total{{{pods}}}[10m]))) and sum by (kind) (rate(signal_authentications_total{{{pods},kind!=\"accepted\"}}[10m])) > 1"
            ),
            "10m",
            "warning",
            "many tokens are refused: {{ $labels.kind }}",
            "More than a fifth of all authentications fail for this reason. After a change of issuers or keys, look at the condition JWKSHealthy.",
        ),
        context.alert(
            "SignalKeySetStale",
            format!(
                "max by (source) (signal_key_set_age_seconds{{{pods}}}) > {}",
                stale / 2
            ),
            "5m",
            "critical",
            "keys of {{ $labels.source }} cannot be fetched",
            "The key set is half as old as it may become (spec.jwks.maxStale); beyond that all tokens of this issuer are refused.",
        ),
        context.alert(
            "SignalConfigurationRefused",
            format!("increase(signal_config_reloads_total{{{pods},kind=~\".+_error\"}}[15m]) > 0"),
            "10m",
            "warning",
            "{{ $labels.pod }} refuses its live settings, or its TLS certificate",
            "The last good settings stay in use. status.config.error or the condition Degraded of the SignalCluster shows the error.",
        ),
        context.alert(
            "SignalDrainOverrun",
            format!("signal_draining{{{pods}}} == 1 and signal_connections{{{pods}}} > 0"),
            &format!("{}s", grace_period(cluster)),
            "warning",
            "{{ $labels.pod }} still has connections after its drain",
            "The pod's grace period is over and clients are still connected; they are cut off when the pod ends.",
        ),
        context.alert(
            "SignalPodUnready",
            format!("sum by (pod, kind) (signal_unready{{{pods},kind!=\"drain\"}}) > 0"),
            "5m",
            "critical",
            "{{ $labels.pod }} is not ready: {{ $labels.kind }}",
            "The pod accepts no new connections. Its /readyz?verbose shows why.",
        ),
    ]
}

fn certificate_alert(context: &AlertContext<'_>) -> Value {
    let pods = &context.pods;
    context.alert(
        "SignalCertificateExpires",
        format!("min by (pod) (signal_tls_certificate_not_after_seconds{{{pods}}}) - time() < 7 * 86400"),
        "1h",
        "critical",
        "the TLS certificate that {{ $labels.pod }} shows ends within a week",
        "Renew the certificate in the Secret that spec.gateway.tls.secretName names; pods take it up by themselves. If it was renewed, /status of the pod shows why it is not in use.",
    )
}

fn redis_alert(context: &AlertContext<'_>) -> Value {
    let pods = &context.pods;
    context.alert(
            "SignalRedisStalled",
            format!("max by (pod) (signal_bus_stalled{{{pods}}}) == 1"),
            "1m",
            "critical",
            "{{ $labels.pod }} misses messages of other pods",
            "No message came back through Redis for spec.redis.stalledAfter. Clients are told to fetch what they may have missed once messages arrive again.",
    )
}

fn kafka_alerts(context: &AlertContext<'_>) -> [Value; 5] {
    let pods = &context.pods;
    [
        context.alert(
            "SignalKafkaLag",
            format!("max by (topic, partition) (signal_kafka_lag_records{{{pods}}}) > 10000"),
            "10m",
            "warning",
            "records wait in {{ $labels.topic }}/{{ $labels.partition }}",
            "Notifications arrive late. Look at signal_kafka_retries_total and at the database.",
        ),
        context.alert(
            "SignalDeadLetters",
            format!("sum by (kind) (increase(signal_kafka_dead_letters_total{{{pods}}}[15m])) > 0"),
            "0m",
            "warning",
            "records became dead letters: {{ $labels.kind }}",
            "Nobody was notified of them. `signal-gateway dlq replay` puts them back once the cause is gone.",
        ),
        context.alert(
            "SignalKafkaStuck",
            format!("max by (topic, partition) (signal_kafka_stuck_seconds{{{pods}}}) > 0"),
            "1m",
            "critical",
            "{{ $labels.topic }}/{{ $labels.partition }} has records and does not advance",
            "Its notifications arrive when it does. `kubectl get --raw` of a pod's /readyz?verbose, or /status, says at which offset it stands and why.",
        ),
        context.alert(
            "SignalKafkaMissedRecords",
            format!("sum by (topic, partition) (increase(signal_kafka_missed_records_total{{{pods}}}[15m])) > 0"),
            "0m",
            "critical",
            "records of {{ $labels.topic }}/{{ $labels.partition }} were deleted before they were read",
            "Nobody was notified of them. The log of the pod has their offsets. Look at the topic's retention, and at who deletes topics or records.",
        ),
        context.alert(
            "SignalDeadLetterTopicMissing",
            format!("max(signal_kafka_dead_letter_topics_missing{{{pods}}}) > 0"),
            "5m",
            "warning",
            "a dead-letter topic cannot be used",
            "The first dead letter will hold its partition until the topic can be used. /readyz?verbose of a pod names it. Create it, or allow the login of the pods to.",
        ),
    ]
}

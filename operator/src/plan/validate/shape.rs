//! Checks that the API server cannot make: durations in their units, origins, networks, addresses, and parts that belong to other kinds.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use signal_contract::prefixes_collide;
use signal_crds::data::Kafka;
use signal_crds::jwks::Jwks;
use signal_crds::pod::Observability;
use signal_crds::{Duration, SignalClusterSpec};

use super::{Problem, ProblemKind};
use crate::reasons::ConditionReason;

/// Collects what is wrong with the spec.
pub(super) struct Shape<'a> {
    problems: &'a mut Vec<Problem>,
}

impl<'a> Shape<'a> {
    pub(super) fn new(problems: &'a mut Vec<Problem>) -> Self {
        Self { problems }
    }

    /// Records a problem of a field.
    pub(super) fn refuse(&mut self, reason: ConditionReason, message: String) {
        self.problems.push(Problem {
            kind: ProblemKind::Spec,
            reason,
            message,
        });
    }

    fn need(&mut self, good: bool, field: &str, text: &str) {
        if !good {
            self.refuse(
                ConditionReason::InvalidSpec,
                format!("spec.{field}: {text}"),
            );
        }
    }

    /// Checks everything of the spec but Secrets and parts of other kinds.
    pub(super) fn spec(&mut self, spec: &SignalClusterSpec) {
        self.durations(spec);
        for origin in &spec.gateway.allowed_origins {
            self.need(
                signal_contract::is_allowed_origin(origin),
                "gateway.allowedOrigins",
                &format!(
                    "`{origin}` is not scheme://host[:port] (http and https with *. in front of the host at most), null or loopback"
                ),
            );
        }
        for path in &spec.gateway.stream_paths {
            self.need(
                signal_contract::is_stream_path(path),
                "gateway.streamPaths",
                &format!("`{path}` is not a path of letters, digits and -._~/, or belongs to REST"),
            );
        }
        let admitted = spec.service.load_balancer_source_ranges.as_deref();
        for (field, networks) in [
            ("gateway.trustedProxies", &*spec.gateway.trusted_proxies),
            (
                "gateway.proxyProtocolFrom",
                &spec.gateway.proxy_protocol_from,
            ),
            (
                "service.loadBalancerSourceRanges",
                admitted.unwrap_or_default(),
            ),
        ] {
            for network in networks {
                self.need(
                    network.parse::<ipnet::IpNet>().is_ok(),
                    field,
                    &format!("`{network}` is not a network such as 10.0.0.0/8"),
                );
            }
        }
        self.need(
            spec.gateway.public_port != spec.gateway.admin_port,
            "gateway.adminPort",
            "must differ from publicPort",
        );
        for node in spec.redis.iter().flat_map(|redis| &redis.nodes) {
            self.need(
                is_address(node),
                "redis.nodes",
                &format!("`{node}` is not host:port"),
            );
        }
        let limits = &spec.limits;
        for (field, bytes) in [
            ("sendQueue.bytes", limits.send_queue.bytes),
            ("messageBytes", limits.message_bytes),
            ("frameBytes", limits.frame_bytes),
        ] {
            self.need(
                limits.send_queue.total_bytes >= u64::from(bytes),
                "limits.sendQueue.totalBytes",
                &format!("must not be less than {field} ({bytes})"),
            );
        }
        if let Some(kafka) = &spec.kafka {
            self.kafka(kafka);
        }
        self.metadata(spec);
        self.sources(&spec.jwks);
        self.observability(&spec.observability);
    }

    /// What one object refuses, all refuse, so it is refused here. So are labels and annotations of Services and routes: they would stand in the way of
    /// what else changes.
    fn metadata(&mut self, spec: &SignalClusterSpec) {
        let none = BTreeMap::new();
        let (own, admin) = (&spec.service, spec.admin_service.as_ref());
        let route = spec.exposure.http_route.as_ref();
        let inherited = &spec.inherited_metadata;
        let labels = [
            ("inheritedMetadata.labels", &inherited.labels),
            ("service.labels", &own.labels),
            ("adminService.labels", admin.map_or(&none, |it| &it.labels)),
        ];
        let annotations = [
            (
                "adminService.annotations",
                admin.map_or(&none, |it| &it.annotations),
            ),
            (
                "exposure.httpRoute.annotations",
                route.map_or(&none, |it| &it.annotations),
            ),
        ];
        let inherited = [("inheritedMetadata.annotations", &inherited.annotations)];
        for (field, names) in labels.iter().chain(&inherited).chain(&annotations) {
            for name in names.keys() {
                self.need(
                    is_metadata_name(name),
                    field,
                    &format!("`{name}` is no name such as team or example.com/team"),
                );
            }
        }
        // What one object has is for its controllers, and may well be Kubernetes' own.
        for (field, names) in labels[..1].iter().chain(&inherited) {
            for name in names.keys() {
                self.need(
                    !is_reserved(name),
                    field,
                    &format!("`{name}` belongs to Kubernetes or to the operator"),
                );
            }
        }
        for (field, labels) in labels {
            for (name, value) in labels {
                self.need(
                    value.is_empty() || is_label_value(value),
                    field,
                    &format!(
                        "the value of `{name}` is not of letters, digits and -_. (63 at most, a letter or a digit at both ends)"
                    ),
                );
            }
        }
    }

    fn kafka(&mut self, kafka: &Kafka) {
        for broker in &kafka.brokers {
            self.need(
                is_address(broker),
                "kafka.brokers",
                &format!("`{broker}` is not host:port"),
            );
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        self.need(
            kafka.dead_letter_suffix.chars().all(allowed),
            "kafka.deadLetterSuffix",
            "takes letters, digits, dots, underscores and hyphens",
        );
        self.kafka_addresses(kafka);
        for topic in &kafka.topics {
            self.need(
                topic.chars().all(allowed),
                "kafka.topics",
                &format!("`{topic}` is not a topic name"),
            );
            let letters = format!("{topic}{}", kafka.dead_letter_suffix);
            self.need(
                !kafka.topics.contains(&letters),
                "kafka.topics",
                &format!("`{letters}` is the dead-letter topic of `{topic}`"),
            );
        }
    }

    /// Addresses of HTTP, without credentials that the settings would show.
    fn kafka_addresses(&mut self, kafka: &Kafka) {
        let auth = kafka.security.auth.as_ref();
        let token_url = auth.and_then(|auth| auth.token_url.as_deref());
        let registry = kafka.registry.as_ref();
        for (field, address) in [
            ("kafka.security.auth.tokenUrl", token_url),
            (
                "kafka.registry.url",
                registry.map(|registry| registry.url.as_str()),
            ),
        ] {
            let good = address.is_none_or(|address| {
                url::Url::parse(address).is_ok_and(|url| {
                    matches!(url.scheme(), "http" | "https")
                        && url.has_host()
                        && url.username().is_empty()
                        && url.password().is_none()
                })
            });
            self.need(good, field, "is not an http URL without a user");
        }
        for topic in registry.iter().flat_map(|registry| &registry.topics) {
            self.need(
                kafka.topics.contains(topic),
                "kafka.registry.topics",
                &format!("`{topic}` is none of kafka.topics"),
            );
        }
    }

    fn sources(&mut self, jwks: &Jwks) {
        for (at, source) in jwks.sources.iter().enumerate() {
            let good = url::Url::parse(&source.url).is_ok_and(|url| url.has_host());
            self.need(
                good,
                &format!("jwks.sources[{at}].url"),
                &format!("`{}` is not a URL", source.url),
            );
            let free = jwks.managed.is_none() || source.name != super::MANAGED_SOURCE;
            self.need(
                free,
                &format!("jwks.sources[{at}].name"),
                "`managed` is reserved for the keys that the operator makes",
            );
        }
        self.prefixes(jwks);
    }

    /// Of two issuers neither prefix may begin the other, and only one may have none: a subject of one would be taken for one of the other. Every
    /// declared source is an issuer of its own.
    fn prefixes(&mut self, jwks: &Jwks) {
        let declared = jwks.sources.iter().enumerate();
        let mut all: Vec<(String, &str)> = declared
            .map(|(at, source)| (format!("jwks.sources[{at}]"), &*source.subject_prefix))
            .collect();
        let managed = jwks.managed.iter();
        all.extend(managed.map(|managed| ("jwks.managed".to_owned(), &*managed.subject_prefix)));
        for (at, (field, prefix)) in all.iter().enumerate() {
            self.need(
                !prefix.contains(char::is_control),
                &format!("{field}.subjectPrefix"),
                "has a control character",
            );
            for (other, taken) in &all[..at] {
                self.need(
                    !prefixes_collide(prefix, taken),
                    &format!("{field}.subjectPrefix"),
                    &format!(
                        "`{prefix}` collides with `{taken}` of {other}: of two issuers neither may begin the other, and only one may have none"
                    ),
                );
            }
        }
    }

    fn observability(&mut self, observability: &Observability) {
        let filter = observability
            .log_filter
            .parse::<tracing_subscriber::EnvFilter>();
        self.need(
            filter.is_ok(),
            "observability.logFilter",
            "is not a filter such as `info,signal_gateway::ws=debug`",
        );
        if let Some(tracing) = &observability.tracing {
            let good = url::Url::parse(&tracing.endpoint)
                .is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
            self.need(
                good,
                "observability.tracing.endpoint",
                &format!("`{}` is not an http URL", tracing.endpoint),
            );
        }
    }

    /// Durations that become a setting in seconds are whole seconds; timeouts and intervals are above zero.
    fn durations(&mut self, spec: &SignalClusterSpec) {
        let (auth, jwks, drain, rollout) =
            (&spec.gateway.auth, &spec.jwks, &spec.drain, &spec.rollout);
        let gateway = &spec.gateway;
        let above_zero: [(&str, Duration); 10] = [
            ("gateway.headerReadTimeout", gateway.header_read_timeout),
            ("gateway.keepAliveTimeout", gateway.keep_alive_timeout),
            ("gateway.auth.connectTimeout", auth.connect_timeout),
            ("gateway.auth.finishTimeout", auth.finish_timeout),
            (
                "limits.sendQueue.writeTimeout",
                spec.limits.send_queue.write_timeout,
            ),
            ("jwks.refreshInterval", jwks.refresh_interval),
            ("jwks.maxStale", jwks.max_stale),
            ("jwks.requestTimeout", jwks.request_timeout),
            ("drain.batchInterval", drain.batch_interval),
            ("rollout.progressDeadline", rollout.progress_deadline),
        ];
        for (field, duration) in above_zero {
            self.need(duration.as_millis() > 0, field, "must be above zero");
        }
        let mut seconds = vec![
            ("gateway.headerReadTimeout", gateway.header_read_timeout),
            ("gateway.keepAliveTimeout", gateway.keep_alive_timeout),
            ("gateway.auth.clockSkew", auth.clock_skew),
            ("gateway.auth.expiringLead", auth.expiring_lead),
            ("jwks.refreshInterval", jwks.refresh_interval),
            ("jwks.minRefreshInterval", jwks.min_refresh_interval),
            ("jwks.maxStale", jwks.max_stale),
            ("policy.cache", spec.policy.cache),
            ("rollout.minReady", rollout.min_ready),
            ("rollout.progressDeadline", rollout.progress_deadline),
        ];
        seconds.extend(
            jwks.managed
                .iter()
                .map(|managed| ("jwks.managed.cacheAge", managed.cache_age)),
        );
        seconds.extend(
            spec.kafka
                .iter()
                .map(|kafka| ("kafka.stuckAfter", kafka.stuck_after)),
        );
        seconds.extend(
            spec.observability
                .service_monitor
                .iter()
                .map(|monitor| ("observability.serviceMonitor.interval", monitor.interval)),
        );
        for (field, duration) in seconds {
            self.need(
                duration.as_millis().is_multiple_of(1000),
                field,
                "must be whole seconds",
            );
            // Kubernetes counts these in 32 bits.
            self.need(duration.as_secs() <= i32::MAX as u64, field, "is too long");
        }
        self.bounds(spec);
        let kinds = &spec.policy.kinds;
        let named = [
            &kinds.role,
            &kinds.permission,
            &kinds.merchant,
            &kinds.organizer,
        ];
        self.need(
            named
                .iter()
                .enumerate()
                .all(|(at, kind)| *kind != "User" && !named[..at].contains(kind)),
            "policy.kinds",
            "must differ from each other and from User",
        );
    }

    /// Bounds of single durations.
    fn bounds(&mut self, spec: &SignalClusterSpec) {
        const DAY: u64 = 24 * 3600 * 1000;
        let (auth, jwks, rollout) = (&spec.gateway.auth, &spec.jwks, &spec.rollout);
        self.need(
            auth.clock_skew <= Duration::secs(300),
            "gateway.auth.clockSkew",
            "is at most 5m",
        );
        self.need(
            rollout.progress_deadline > rollout.min_ready,
            "rollout.progressDeadline",
            "must exceed minReady",
        );
        if let Some(managed) = &jwks.managed {
            self.need(
                managed.cache_age >= Duration::secs(1),
                "jwks.managed.cacheAge",
                "must be above zero",
            );
            self.need(
                managed.cache_age <= Duration::secs(86_400),
                "jwks.managed.cacheAge",
                "is at most 24h",
            );
        }
        if let Some(redis) = &spec.redis {
            self.need(
                redis.self_ping_interval.as_millis() > 0,
                "redis.selfPingInterval",
                "must be above zero",
            );
        }
        if let Some(database) = &spec.database {
            self.need(
                database.retention.as_millis().is_multiple_of(DAY),
                "database.retention",
                "must be whole days, such as 4320h",
            );
            self.need(
                database.retention.as_millis() / DAY <= 36_500,
                "database.retention",
                "is too long",
            );
        }
    }

    /// Reads parts that belong to another kind.
    pub(super) fn parts<T: DeserializeOwned + Serialize>(
        &mut self,
        field: &str,
        parts: &[Map<String, Value>],
    ) -> Vec<T> {
        let read = parts.iter().enumerate().filter_map(|(at, part)| {
            self.part(&format!("{field}[{at}]"), &Value::Object(part.clone()))
        });
        read.collect()
    }

    /// Reads a part that belongs to another kind. A field that the kind does not have is refused: the API server would drop it without a word.
    pub(super) fn part<T: DeserializeOwned + Serialize>(
        &mut self,
        field: &str,
        part: &Value,
    ) -> Option<T> {
        let read: T = match serde_path_to_error::deserialize(part) {
            Ok(read) => read,
            Err(error) => {
                let path = error.path().to_string();
                let dot = if path.starts_with('[') || path == "." {
                    ""
                } else {
                    "."
                };
                self.refuse(
                    ConditionReason::InvalidSpec,
                    format!(
                        "spec.{field}{dot}{}: {}",
                        path.trim_end_matches('.'),
                        error.inner()
                    ),
                );
                return None;
            }
        };
        let known = serde_json::to_value(&read).expect("kinds of Kubernetes are JSON");
        let unknown = first_unknown(part, &known);
        if let Some(path) = &unknown {
            self.refuse(
                ConditionReason::InvalidSpec,
                format!("spec.{field}{path}: there is no such field"),
            );
        }
        unknown.is_none().then_some(read)
    }

    /// Locales of the catalogs; every key is `LOCALE.ftl`.
    pub(super) fn catalogs(&mut self, name: &str, found: Option<&ConfigMap>) -> Vec<String> {
        let Some(found) = found else {
            self.refuse(
                ConditionReason::CatalogsMissing,
                format!("spec.notifications.catalogRef: ConfigMap {name} does not exist"),
            );
            return Vec::new();
        };
        let empty = BTreeMap::new();
        let mut locales = Vec::new();
        let binary = found.binary_data.iter().flat_map(BTreeMap::keys);
        for key in found.data.as_ref().unwrap_or(&empty).keys().chain(binary) {
            match key.strip_suffix(".ftl").filter(|locale| is_locale(locale)) {
                Some(locale) => locales.push(locale.to_owned()),
                None => self
                    .refuse(ConditionReason::CatalogsInvalid, format!("spec.notifications.catalogRef: key {key} of ConfigMap {name} is not LOCALE.ftl")),
            }
        }
        locales.sort();
        locales
    }
}

/// The first path in `given` that is not in `known`; nulls and empty values do not count.
fn first_unknown(given: &Value, known: &Value) -> Option<String> {
    match (given, known) {
        (Value::Object(given), Value::Object(known)) => {
            given.iter().find_map(|(key, value)| match known.get(key) {
                Some(known) => first_unknown(value, known).map(|path| format!(".{key}{path}")),
                None => (!is_empty_value(value)).then(|| format!(".{key}")),
            })
        }
        (Value::Array(given), Value::Array(known)) => {
            given
                .iter()
                .zip(known)
                .enumerate()
                .find_map(|(at, (given, known))| {
                    first_unknown(given, known).map(|path| format!("[{at}]{path}"))
                })
        }
        _ => None,
    }
}

fn is_empty_value(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(is_empty_value),
        _ => false,
    }
}

fn is_address(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty()
            && !host.contains(char::is_whitespace)
            && port.parse::<u16>().is_ok_and(|port| port > 0)
    })
}

/// A language with script, region or variants: `vi`, `en-GB`, `zh-Hant-TW`.
fn is_locale(text: &str) -> bool {
    let alphabetic = |part: &str| part.chars().all(|c| c.is_ascii_alphabetic());
    let mut parts = text.split('-');
    let language = parts.next().unwrap_or_default();
    matches!(language.len(), 2 | 3 | 5..=8)
        && alphabetic(language)
        && parts.all(|part| match part.len() {
            2 => alphabetic(part),
            3 => part.chars().all(|c| c.is_ascii_digit()),
            4 => alphabetic(part) || part.starts_with(|c: char| c.is_ascii_digit()),
            5..=8 => part.chars().all(|c| c.is_ascii_alphanumeric()),
            _ => false,
        })
}

/// Kubernetes' rule for the value of a label, and for what stands behind the slash of a name.
fn is_label_value(text: &str) -> bool {
    let inside = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let end = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    text.len() <= 63
        && text.chars().all(inside)
        && end(text.chars().next())
        && end(text.chars().next_back())
}

/// Kubernetes' rule for names of labels and annotations.
fn is_metadata_name(name: &str) -> bool {
    let Some((domain, rest)) = name.split_once('/') else {
        return is_label_value(name);
    };
    let part = |part: &str| {
        !part.is_empty()
            && part
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    domain.len() <= 253 && domain.split('.').all(part) && is_label_value(rest)
}

/// Whether its domain is Kubernetes' or the operator's.
fn is_reserved(name: &str) -> bool {
    let Some((domain, _)) = name.split_once('/') else {
        return false;
    };
    ["kubernetes.io", "k8s.io", "signal.dev"].iter().any(|own| {
        domain == *own
            || domain
                .strip_suffix(own)
                .is_some_and(|sub| sub.ends_with('.'))
    })
}

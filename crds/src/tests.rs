//! The committed YAML, its size, and every rule both ways.

use kube::core::cel::{validate_cel, validate_cel_update};
use serde_json::{Value, json};

use super::*;

#[test]
fn the_committed_yaml_is_what_the_types_say_and_below_200_kb() {
    let text = crd_yaml();
    // Beside this crate, and in the chart that ships it, which cannot reach outside of its folder.
    for path in [
        "signalclusters.yaml",
        "../charts/signal-crds/files/signalclusters.yaml",
    ] {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
        if std::env::var_os("SIGNAL_UPDATE_CRDS").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        let committed = std::fs::read_to_string(&path).unwrap();
        assert_eq!(
            committed,
            text,
            "{}: SIGNAL_UPDATE_CRDS=1 cargo test -p signal-crds rewrites it",
            path.display()
        );
    }
    assert!(text.len() < 200_000, "{} bytes", text.len());
}

/// The API server writes defaults into what it stores. A comparison at the client takes a list as a whole, so that a default inside of one is a difference
/// from the manifest for ever.
#[test]
fn no_default_is_inside_of_a_list() {
    fn walk(schema: &Value, path: &str, in_list: bool, found: &mut Vec<String>) {
        if in_list && schema.get("default").is_some() {
            found.push(path.to_owned());
        }
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            walk(field, &format!("{path}.{name}"), in_list, found);
        }
        if schema["items"].is_object() {
            walk(&schema["items"], &format!("{path}[]"), true, found);
        }
        if schema["additionalProperties"].is_object() {
            walk(&schema["additionalProperties"], path, in_list, found);
        }
    }
    let definition = serde_json::to_value(SignalCluster::crd()).unwrap();
    let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    assert_eq!(
        schema["properties"]["spec"]["properties"]["replicas"]["default"],
        2
    );
    let mut found = Vec::new();
    walk(schema, "", false, &mut found);
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn what_a_source_leaves_out_is_filled_in_as_it_is_read_and_not_written() {
    let written = json!({"name": "a", "url": "https://a/c"});
    let source: jwks::Source = serde_json::from_value(written.clone()).unwrap();
    assert_eq!(
        source.algorithms,
        [jwks::Algorithm::ES256, jwks::Algorithm::RS256]
    );
    assert_eq!(source.preset, jwks::SourcePreset::Standard);
    assert!(source.issuer.is_empty() && source.audiences.is_empty());
    assert!(source.subject_claims.is_empty() && source.subject_prefix.is_empty());
    assert!(!source.trust_roles && !source.allow_insecure_http);
    assert_eq!(serde_json::to_value(&source).unwrap(), written);
}

#[test]
fn an_object_that_no_operator_has_looked_at_says_so() {
    let definition = serde_json::to_value(SignalCluster::crd()).unwrap();
    let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    let unseen: Status =
        serde_json::from_value(schema["properties"]["status"]["default"].clone()).unwrap();
    assert_eq!(unseen.observed_generation, Some(-1));
    let [ready] = unseen.conditions.as_slice() else {
        panic!("{:?}", unseen.conditions)
    };
    assert_eq!((&*ready.type_, &*ready.status), ("Ready", "Unknown"));
    assert_eq!(ready.reason, status::UNSEEN_REASON);
}

/// What the API server would accept, with room for every rule.
fn base() -> Value {
    let secret = json!({"name": "a", "key": "b"});
    json!({
        "apiVersion": "signal.dev/v1alpha1",
        "kind": "SignalCluster",
        "metadata": {"name": "edge", "namespace": "realtime"},
        "spec": {
            "replicas": 3,
            "image": {"repository": "signal-gateway", "tag": "1"},
            "gateway": {"heartbeat": {}},
            "redis": {"mode": "Standalone", "nodes": ["redis:6379"]},
            "kafka": {"brokers": ["kafka:9092"], "security": {"protocol": "SASL_SSL", "auth": {"usernameSecretRef": secret, "passwordSecretRef": secret}}},
            "database": {"urlSecretRef": secret},
            "jwks": {
                "sources": [{"name": "main", "issuer": "i", "url": "https://i/certs", "audiences": ["signal"]}],
                "managed": {"issuer": "own", "audiences": ["signal"], "subjectPrefix": "own:"},
            },
            "drain": {},
            "rollout": {},
            "autoscaling": {"mode": "HPA", "maxReplicas": 9},
        },
    })
}

/// The base with one value put at a pointer, or taken away by `null`.
fn with(changes: &[(&str, Value)]) -> SignalCluster {
    let mut whole = base();
    for (pointer, value) in changes {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        let parent = whole
            .pointer_mut(parent)
            .unwrap_or_else(|| panic!("{pointer}"))
            .as_object_mut()
            .unwrap();
        match value {
            Value::Null => parent.remove(key),
            value => parent.insert(key.to_owned(), value.clone()),
        };
    }
    serde_json::from_value(whole).unwrap_or_else(|error| panic!("{changes:?}: {error}"))
}

/// A change that a rule refuses with its message, and one beside it that it lets pass.
type Case = (
    &'static str,
    Vec<(&'static str, Value)>,
    Vec<(&'static str, Value)>,
);

#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn cases() -> Vec<Case> {
    let source = |name: &str, issuer: &str, url: &str, insecure: bool| json!({"name": name, "issuer": issuer, "url": url, "audiences": ["signal"], "allowInsecureHTTP": insecure});
    let prefixed = |name: &str, prefix: &str| json!({"name": name, "issuer": name, "url": "https://a/c", "audiences": ["signal"], "subjectPrefix": prefix});
    let secret = json!({"name": "a", "key": "b"});
    let sentinel = json!({"masterName": "m"});
    let auth = json!({"usernameSecretRef": {"name": "a", "key": "b"}, "passwordSecretRef": {"name": "a", "key": "b"}});
    let digest = format!("sha256:{}", "0".repeat(64));
    let alone = |without: &'static str, replicas: i32| {
        vec![
            (without, Value::Null),
            ("/spec/autoscaling", Value::Null),
            ("/spec/replicas", json!(replicas)),
        ]
    };
    vec![
        (
            "at most 40 characters",
            vec![("/metadata/name", json!("a".repeat(41)))],
            vec![("/metadata/name", json!("a".repeat(40)))],
        ),
        (
            "metadata.name is the name of a Service (RFC 1035)",
            vec![("/metadata/name", json!("edge.eu"))],
            vec![("/metadata/name", json!("edge-eu2"))],
        ),
        (
            "metadata.name is the name of a Service (RFC 1035)",
            vec![("/metadata/name", json!("2edge"))],
            vec![("/metadata/name", json!("e"))],
        ),
        (
            "more than one replica needs redis",
            alone("/spec/redis", 2),
            alone("/spec/redis", 1),
        ),
        (
            "more than one replica needs redis",
            vec![("/spec/redis", Value::Null), ("/spec/replicas", json!(1))],
            alone("/spec/redis", 0),
        ),
        (
            "more than one replica needs a database",
            alone("/spec/database", 2),
            alone("/spec/database", 1),
        ),
        (
            "more than one replica needs a database",
            vec![
                ("/spec/database", Value::Null),
                ("/spec/replicas", json!(1)),
            ],
            alone("/spec/database", 0),
        ),
        (
            "timeout must exceed two ping intervals",
            vec![("/spec/gateway/heartbeat/timeout", json!("50s"))],
            vec![("/spec/gateway/heartbeat/timeout", json!("51s"))],
        ),
        (
            "set either tag or digest",
            vec![("/spec/image/digest", json!(digest))],
            vec![
                ("/spec/image/tag", Value::Null),
                ("/spec/image/digest", json!(digest)),
            ],
        ),
        (
            "set either tag or digest",
            vec![("/spec/image/tag", Value::Null)],
            vec![],
        ),
        (
            "sentinel belongs to mode Sentinel",
            vec![("/spec/redis/sentinel", sentinel.clone())],
            vec![
                ("/spec/redis/mode", json!("Sentinel")),
                ("/spec/redis/sentinel", sentinel),
            ],
        ),
        (
            "sentinel belongs to mode Sentinel",
            vec![("/spec/redis/mode", json!("Sentinel"))],
            vec![("/spec/redis/mode", json!("Cluster"))],
        ),
        (
            "mode Standalone takes exactly one node",
            vec![("/spec/redis/nodes", json!(["a:1", "b:1"]))],
            vec![
                ("/spec/redis/mode", json!("Cluster")),
                ("/spec/redis/nodes", json!(["a:1", "b:1"])),
            ],
        ),
        (
            "a Redis Cluster has database 0 alone",
            vec![
                ("/spec/redis/mode", json!("Cluster")),
                ("/spec/redis/database", json!(1)),
            ],
            vec![("/spec/redis/database", json!(1))],
        ),
        (
            "shardedPubsub belongs to mode Cluster",
            vec![("/spec/redis/shardedPubsub", json!(true))],
            vec![
                ("/spec/redis/mode", json!("Cluster")),
                ("/spec/redis/shardedPubsub", json!(true)),
            ],
        ),
        (
            "with shardedPubsub the channelPrefix holds no braces",
            vec![
                ("/spec/redis/mode", json!("Cluster")),
                ("/spec/redis/shardedPubsub", json!(true)),
                ("/spec/redis/channelPrefix", json!("{a}:")),
            ],
            vec![("/spec/redis/channelPrefix", json!("{a}:"))],
        ),
        (
            "stalledAfter must exceed selfPingInterval",
            vec![("/spec/redis/stalledAfter", json!("5s"))],
            vec![("/spec/redis/stalledAfter", json!("5001ms"))],
        ),
        (
            "a node is host:port",
            vec![("/spec/redis/nodes", json!(["redis"]))],
            vec![("/spec/redis/nodes", json!(["[::1]:6379"]))],
        ),
        (
            "SASL needs auth",
            vec![("/spec/kafka/security/auth", Value::Null)],
            vec![("/spec/kafka/security", json!({"protocol": "SSL"}))],
        ),
        (
            "SASL needs auth or user",
            vec![("/spec/kafka/security/auth", Value::Null)],
            vec![(
                "/spec/kafka/security",
                json!({"protocol": "SASL_SSL", "user": {"secretName": "signal"}}),
            )],
        ),
        (
            "auth needs either username or usernameSecretRef",
            vec![("/spec/kafka/security/auth/username", json!("signal"))],
            vec![(
                "/spec/kafka/security/auth",
                json!({"username": "signal", "passwordSecretRef": secret}),
            )],
        ),
        (
            "auth needs either username or usernameSecretRef",
            vec![("/spec/kafka/security/auth/usernameSecretRef", Value::Null)],
            vec![],
        ),
        (
            "user takes the place of auth",
            vec![("/spec/kafka/security/user", json!({"secretName": "signal"}))],
            vec![(
                "/spec/kafka/security",
                json!({"protocol": "SSL", "user": {"secretName": "signal"}}),
            )],
        ),
        (
            "user takes the place of auth",
            vec![(
                "/spec/kafka/security",
                json!({"protocol": "SSL", "user": {"secretName": "signal"}, "certificateSecretRef": secret, "keySecretRef": secret}),
            )],
            vec![],
        ),
        (
            "user needs SSL or a SASL protocol",
            vec![(
                "/spec/kafka/security",
                json!({"user": {"secretName": "signal"}}),
            )],
            vec![],
        ),
        (
            "certificateSecretRef and keySecretRef belong together",
            vec![("/spec/redis/tls", json!({"keySecretRef": secret}))],
            vec![(
                "/spec/redis/tls",
                json!({"certificateSecretRef": secret, "keySecretRef": secret}),
            )],
        ),
        (
            "set either urlSecretRef or connection",
            vec![("/spec/database", json!({}))],
            vec![(
                "/spec/database",
                json!({"connection": {"secretName": "db-app"}, "sslMode": "VerifyFull"}),
            )],
        ),
        (
            "set either urlSecretRef or connection",
            vec![("/spec/database/connection", json!({"secretName": "db-app"}))],
            vec![],
        ),
        (
            "set either urlSecretRef or connection",
            vec![(
                "/spec/policy",
                json!({"connection": {"secretName": "db-app"}, "urlSecretRef": secret}),
            )],
            vec![(
                "/spec/policy",
                json!({"connection": {"secretName": "db-app"}}),
            )],
        ),
        (
            "sslMode and caSecretRef belong to urlSecretRef or connection",
            vec![("/spec/policy", json!({"caSecretRef": secret}))],
            vec![(
                "/spec/policy",
                json!({"urlSecretRef": secret, "caSecretRef": secret, "sslMode": "Require"}),
            )],
        ),
        (
            "canary belongs to strategy Canary",
            vec![("/spec/rollout/canary", json!({"soak": "10m"}))],
            vec![(
                "/spec/rollout",
                json!({"strategy": "Canary", "canary": {"soak": "10m"}}),
            )],
        ),
        (
            "auth needs a SASL protocol",
            vec![("/spec/kafka/security/protocol", json!("SSL"))],
            vec![(
                "/spec/kafka/security",
                json!({"protocol": "SASL_PLAINTEXT", "auth": auth}),
            )],
        ),
        (
            "OAUTHBEARER needs tokenUrl, and no other mechanism has one",
            vec![("/spec/kafka/security/auth/mechanism", json!("OAUTHBEARER"))],
            vec![(
                "/spec/kafka/security/auth",
                json!({"mechanism": "OAUTHBEARER", "tokenUrl": "https://id/token", "usernameSecretRef": secret, "passwordSecretRef": secret}),
            )],
        ),
        (
            "certificateSecretRef and keySecretRef belong together",
            vec![("/spec/kafka/security/keySecretRef", secret.clone())],
            vec![
                ("/spec/kafka/security/keySecretRef", secret.clone()),
                ("/spec/kafka/security/certificateSecretRef", secret.clone()),
            ],
        ),
        (
            "a certificate needs SSL or SASL_SSL",
            vec![(
                "/spec/kafka/security",
                json!({"keySecretRef": secret, "certificateSecretRef": secret}),
            )],
            vec![(
                "/spec/kafka/security",
                json!({"protocol": "SSL", "keySecretRef": secret, "certificateSecretRef": secret}),
            )],
        ),
        (
            "passwordSecretRef and tokenSecretRef exclude each other",
            vec![(
                "/spec/kafka/registry",
                json!({"url": "https://r", "topics": ["t"], "usernameSecretRef": secret, "passwordSecretRef": secret, "tokenSecretRef": secret}),
            )],
            vec![(
                "/spec/kafka/registry",
                json!({"url": "https://r", "topics": ["t"], "tokenSecretRef": secret}),
            )],
        ),
        (
            "usernameSecretRef and passwordSecretRef belong together",
            vec![(
                "/spec/kafka/registry",
                json!({"url": "https://r", "topics": ["t"], "passwordSecretRef": secret}),
            )],
            vec![(
                "/spec/kafka/registry",
                json!({"url": "https://r", "topics": ["t"], "usernameSecretRef": secret, "passwordSecretRef": secret}),
            )],
        ),
        (
            "stuckAfter must be 5s to 1h",
            vec![("/spec/kafka/stuckAfter", json!("4s"))],
            vec![("/spec/kafka/stuckAfter", json!("5s"))],
        ),
        (
            "name a source, or let the operator manage keys",
            vec![
                ("/spec/jwks/sources", json!([])),
                ("/spec/jwks/managed", Value::Null),
            ],
            vec![("/spec/jwks/sources", json!([]))],
        ),
        (
            "one declared source per issuer",
            vec![(
                "/spec/jwks/sources",
                json!([
                    prefixed("a", "a:"),
                    {"name": "b", "issuer": "a", "url": "https://b/c", "audiences": ["signal"], "subjectPrefix": "b:"}
                ]),
            )],
            vec![(
                "/spec/jwks/sources",
                json!([prefixed("a", "a:"), prefixed("b", "b:")]),
            )],
        ),
        (
            "one declared source per issuer",
            vec![("/spec/jwks/managed/issuer", json!("i"))],
            vec![("/spec/jwks/managed", Value::Null)],
        ),
        (
            "of two issuers neither subjectPrefix may begin the other",
            vec![(
                "/spec/jwks/sources",
                json!([prefixed("a", "x:"), prefixed("b", "x:y:")]),
            )],
            vec![(
                "/spec/jwks/sources",
                json!([
                    prefixed("a", "x:"),
                    prefixed("b", "y:x:"),
                    prefixed("c", "")
                ]),
            )],
        ),
        (
            "of two issuers neither subjectPrefix may begin the other",
            vec![(
                "/spec/jwks/sources",
                json!([prefixed("a", ""), prefixed("b", "")]),
            )],
            vec![],
        ),
        (
            "of two issuers neither subjectPrefix may begin the other",
            vec![("/spec/jwks/managed/subjectPrefix", json!(""))],
            vec![("/spec/jwks/managed/subjectPrefix", json!("m"))],
        ),
        (
            "of two issuers neither subjectPrefix may begin the other",
            vec![("/spec/jwks/sources", json!([prefixed("a", "own:x")]))],
            vec![("/spec/jwks/sources", json!([prefixed("a", "owner:")]))],
        ),
        (
            "name an issuer and an audience; only preset Ignis can do without",
            vec![(
                "/spec/jwks/sources",
                json!([{"name": "a", "url": "https://a/c"}]),
            )],
            vec![(
                "/spec/jwks/sources",
                json!([{"name": "a", "url": "https://a/c", "preset": "Ignis", "applicationSecretRef": secret}]),
            )],
        ),
        (
            "encrypted payloads are of preset Ignis",
            vec![(
                "/spec/jwks/sources",
                json!([{"name": "a", "issuer": "a", "audiences": ["s"], "url": "https://a/c", "applicationSecretRef": secret}]),
            )],
            vec![],
        ),
        (
            "an emergency names the sources it is about",
            vec![("/spec/jwks/rotation", json!({"emergency": true}))],
            vec![(
                "/spec/jwks/rotation",
                json!({"emergency": true, "emergencySources": ["a"]}),
            )],
        ),
        (
            "maxStale must be at least refreshInterval",
            vec![("/spec/jwks/maxStale", json!("299s"))],
            vec![("/spec/jwks/maxStale", json!("5m"))],
        ),
        (
            "a JWKS URL must be https",
            vec![(
                "/spec/jwks/sources",
                json!([source("a", "i", "http://a/c", false)]),
            )],
            vec![(
                "/spec/jwks/sources",
                json!([source("a", "i", "http://a/c", true)]),
            )],
        ),
        (
            "a JWKS URL must be https",
            vec![(
                "/spec/jwks/sources",
                json!([source("a", "i", "file:///keys", true)]),
            )],
            vec![],
        ),
        (
            "rotateEvery must be at least maxTokenLife",
            vec![("/spec/jwks/managed/rotateEvery", json!("23h"))],
            vec![("/spec/jwks/managed/rotateEvery", json!("24h"))],
        ),
        (
            "the drain window is at most 30m",
            vec![("/spec/drain/window", json!("1801s"))],
            vec![("/spec/drain/window", json!("30m"))],
        ),
        (
            "endpointPropagation is at most 2m",
            vec![("/spec/drain/endpointPropagation", json!("121s"))],
            vec![("/spec/drain/endpointPropagation", json!("2m"))],
        ),
        (
            "batchInterval must be above zero and within the window",
            vec![("/spec/drain/batchInterval", json!("0s"))],
            vec![("/spec/drain/batchInterval", json!("1ms"))],
        ),
        (
            "batchInterval must be above zero and within the window",
            vec![("/spec/drain/batchInterval", json!("121s"))],
            vec![("/spec/drain/batchInterval", json!("120s"))],
        ),
        (
            "maxSurge or maxUnavailable must be above 0",
            vec![("/spec/rollout/maxSurge", json!(0))],
            vec![("/spec/rollout/maxSurge", json!(1))],
        ),
        (
            "maxSurge or maxUnavailable must be above 0",
            vec![(
                "/spec/rollout",
                json!({"maxSurge": "0%", "maxUnavailable": "0%"}),
            )],
            vec![(
                "/spec/rollout",
                json!({"maxSurge": "0%", "maxUnavailable": 1}),
            )],
        ),
        (
            "minReplicas must not exceed maxReplicas",
            vec![("/spec/autoscaling/minReplicas", json!(10))],
            vec![("/spec/autoscaling/minReplicas", json!(9))],
        ),
        (
            "extraMetrics belong to mode HPA",
            vec![(
                "/spec/autoscaling",
                json!({"mode": "Connections", "maxReplicas": 9, "extraMetrics": []}),
            )],
            vec![("/spec/autoscaling/extraMetrics", json!([]))],
        ),
        (
            "targetCPUUtilization belongs to mode HPA",
            vec![(
                "/spec/autoscaling",
                json!({"mode": "External", "maxReplicas": 9, "targetCPUUtilization": 50}),
            )],
            vec![("/spec/autoscaling/targetCPUUtilization", json!(50))],
        ),
        (
            "behavior belongs to modes Connections and HPA",
            vec![(
                "/spec/autoscaling",
                json!({"mode": "External", "maxReplicas": 9, "behavior": {}}),
            )],
            vec![(
                "/spec/autoscaling",
                json!({"mode": "Connections", "maxReplicas": 9, "behavior": {}}),
            )],
        ),
    ]
    .into_iter()
    .chain(exposure_cases())
    .chain(family_cases())
    .collect()
}

/// Those of Services and routes.
fn exposure_cases() -> Vec<Case> {
    let service = |service: Value| vec![("/spec/service", service)];
    let route = |timeouts: Value| {
        let route = json!({"parentRefs": [{"name": "public"}], "timeouts": timeouts});
        vec![("/spec/exposure", json!({"httpRoute": route}))]
    };
    vec![
        (
            "externalTrafficPolicy belongs to types LoadBalancer and NodePort",
            service(json!({"externalTrafficPolicy": "Local"})),
            service(json!({"type": "NodePort", "externalTrafficPolicy": "Local"})),
        ),
        (
            "loadBalancerClass belongs to type LoadBalancer",
            service(json!({"type": "NodePort", "loadBalancerClass": "example.com/lb"})),
            service(json!({"type": "LoadBalancer", "loadBalancerClass": "example.com/lb"})),
        ),
        (
            "loadBalancerSourceRanges belong to type LoadBalancer",
            service(json!({"loadBalancerSourceRanges": ["192.0.2.0/24"]})),
            service(json!({"type": "LoadBalancer", "loadBalancerSourceRanges": ["192.0.2.0/24"]})),
        ),
        (
            "backendRequest must not exceed request",
            route(json!({"request": "10s", "backendRequest": "10001ms"})),
            route(json!({"request": "10s", "backendRequest": "10s"})),
        ),
        (
            "backendRequest must not exceed request",
            route(json!({"request": "1ms", "backendRequest": "10s"})),
            route(json!({"request": "0s", "backendRequest": "10s"})),
        ),
    ]
}

/// Those of families of addresses, which both Services have.
fn family_cases() -> Vec<Case> {
    let both = json!(["IPv6", "IPv4"]);
    // Pods that listen on both families, with this member of the spec.
    let dual = |field: &'static str, value: Value| {
        vec![
            ("/spec/gateway/addressFamilies", json!("DualStack")),
            (field, value),
        ]
    };
    let mut cases = Vec::new();
    for field in ["/spec/service", "/spec/adminService"] {
        cases.extend([
            (
                "two ipFamilies need ipFamilyPolicy PreferDualStack or RequireDualStack",
                dual(field, json!({"ipFamilies": both})),
                dual(
                    field,
                    json!({"ipFamilies": both, "ipFamilyPolicy": "PreferDualStack"}),
                ),
            ),
            (
                "two ipFamilies need ipFamilyPolicy PreferDualStack or RequireDualStack",
                dual(
                    field,
                    json!({"ipFamilies": both, "ipFamilyPolicy": "SingleStack"}),
                ),
                dual(
                    field,
                    json!({"ipFamilies": ["IPv6"], "ipFamilyPolicy": "SingleStack"}),
                ),
            ),
            (
                "ipFamilies names each family once",
                dual(
                    field,
                    json!({"ipFamilies": ["IPv6", "IPv6"], "ipFamilyPolicy": "RequireDualStack"}),
                ),
                dual(
                    field,
                    json!({"ipFamilies": both, "ipFamilyPolicy": "RequireDualStack"}),
                ),
            ),
            (
                "a Service with IPv6 addresses needs gateway.addressFamilies DualStack",
                vec![(field, json!({"ipFamilies": ["IPv6"]}))],
                vec![(field, json!({"ipFamilies": ["IPv4"]}))],
            ),
            (
                "a Service with IPv6 addresses needs gateway.addressFamilies DualStack",
                vec![(field, json!({"ipFamilyPolicy": "PreferDualStack"}))],
                vec![(field, json!({"ipFamilyPolicy": "SingleStack"}))],
            ),
        ]);
    }
    cases
}

/// A rule that holds between two versions of an object.
const TRANSITION: &str = "another group reads the topic again or skips part of it";
/// The same of a Service.
const CLASS: &str = "loadBalancerClass cannot change while type is LoadBalancer";
const FIRST_FAMILY: &str = "the first of ipFamilies cannot change";

#[test]
fn every_rule_refuses_with_its_message_and_accepts_values_close_to_it() {
    for (message, wrong, right) in cases() {
        let errors = validate_cel(&with(&wrong)).expect_err(message).to_string();
        assert!(
            errors.contains(message),
            "{wrong:?} is refused by `{errors}`, not by `{message}`"
        );
        validate_cel(&with(&right)).unwrap_or_else(|errors| panic!("{right:?}: {errors}"));
    }
}

#[test]
fn another_consumer_group_must_be_allowed() {
    let before = with(&[]);
    let errors = validate_cel_update(&with(&[("/spec/kafka/groupId", json!("other"))]), &before)
        .unwrap_err()
        .to_string();
    assert!(errors.contains(TRANSITION), "{errors}");
    let allowed = with(&[
        ("/spec/kafka/groupId", json!("other")),
        ("/spec/kafka/allowGroupChange", json!(true)),
    ]);
    validate_cel_update(&allowed, &before).unwrap();
    validate_cel_update(&with(&[("/spec/replicas", json!(4))]), &before).unwrap();
    validate_cel_update(&with(&[("/spec/kafka", Value::Null)]), &before).unwrap();
}

#[test]
fn what_kubernetes_fixes_of_a_service_is_fixed_here() {
    let of = |changes: Value| {
        with(&[
            ("/spec/gateway/addressFamilies", json!("DualStack")),
            ("/spec/service", changes.clone()),
            ("/spec/adminService", {
                json!({"ipFamilies": changes["ipFamilies"], "ipFamilyPolicy": "PreferDualStack"})
            }),
        ])
    };
    let classed = |class: Option<&str>| match class {
        Some(class) => with(&[(
            "/spec/service",
            json!({"type": "LoadBalancer", "loadBalancerClass": class}),
        )]),
        None => with(&[("/spec/service", json!({"type": "LoadBalancer"}))]),
    };
    let changed = [(Some("a"), Some("b")), (Some("a"), None), (None, Some("a"))];
    for (old, new) in changed {
        let errors = validate_cel_update(&classed(new), &classed(old)).unwrap_err();
        assert!(errors.to_string().contains(CLASS), "{errors}");
    }
    validate_cel_update(&classed(Some("a")), &classed(Some("a"))).unwrap();
    let inside = with(&[]);
    validate_cel_update(&classed(Some("b")), &inside).unwrap();
    validate_cel_update(&inside, &classed(Some("a"))).unwrap();

    let families =
        |families: Value| of(json!({"ipFamilies": families, "ipFamilyPolicy": "PreferDualStack"}));
    let four = families(json!(["IPv4"]));
    let errors = validate_cel_update(&families(json!(["IPv6", "IPv4"])), &four).unwrap_err();
    assert!(errors.to_string().contains(FIRST_FAMILY), "{errors}");
    validate_cel_update(&families(json!(["IPv4", "IPv6"])), &four).unwrap();
    validate_cel_update(&inside, &four).unwrap();
}

#[test]
fn no_rule_is_without_a_case() {
    fn messages(schema: &Value, found: &mut Vec<String>) {
        match schema {
            Value::Object(fields) => {
                for rule in fields
                    .get("x-kubernetes-validations")
                    .and_then(Value::as_array)
                    .into_iter()
                    .flatten()
                {
                    found.push(
                        rule["message"]
                            .as_str()
                            .expect("every rule has a message")
                            .to_owned(),
                    );
                }
                fields.values().for_each(|field| messages(field, found));
            }
            Value::Array(items) => items.iter().for_each(|item| messages(item, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    messages(
        &serde_json::to_value(SignalCluster::crd()).unwrap(),
        &mut found,
    );
    assert!(found.len() > 20, "{found:?}");
    let cases = cases();
    for message in found {
        assert!(
            [TRANSITION, CLASS, FIRST_FAMILY]
                .iter()
                .any(|between| message.starts_with(between))
                || cases.iter().any(|(known, ..)| message.contains(known)),
            "`{message}` has no case"
        );
    }
}

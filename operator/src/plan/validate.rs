//! Spec and observed objects -> [`ValidCluster`], the input of every later step; or everything that is wrong, by field and object.

mod postgres;
mod secrets;
mod shape;

use std::collections::BTreeMap;

use k8s_openapi::api::autoscaling::v2::MetricSpec;
use k8s_openapi::api::core::v1::PodSpec;
use k8s_openapi::api::networking::v1::NetworkPolicyPeer;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::ResourceExt as _;
use serde_json::Value;
use signal_contract::SourcePreset;
use signal_crds::SignalClusterSpec;
use signal_crds::data::KafkaProtocol;
use signal_crds::jwks::Algorithm;
use signal_crds::reference::SecretKey;
use signal_crds::secrets::KafkaUser;

use crate::names::{APPROVE_ROLLOUT, RESTARTED_AT};
use crate::observe::observed::{Observed, Secrets};
use crate::observe::owner::Owner;
use crate::plan::record::{RecordedRedis, SourceDefinition};
use crate::reasons::ConditionReason;
use postgres::PostgresFields;
use secrets::Resolver;
pub use secrets::{
    BASIC_USERS, DATABASE_CA, DATABASE_URL, KAFKA_CA, KAFKA_CERTIFICATE, KAFKA_KEY, KAFKA_PASSWORD,
    KAFKA_TOKEN_CA, KAFKA_USERNAME, POLICY_CA, POLICY_URL, REGISTRY_CA, REGISTRY_PASSWORD,
    REGISTRY_TOKEN, REGISTRY_USERNAME, TLS_CERTIFICATE, TLS_CLIENT_CA, TLS_KEY,
};
use shape::Shape;

/// Keys of the credentials Secret -> content.
pub type Files = BTreeMap<String, Vec<u8>>;

/// Declared name of the source whose keys the operator makes.
pub const MANAGED_SOURCE: &str = "managed";

/// A valid spec, and everything it refers to.
#[derive(Debug, Clone)]
pub struct ValidCluster {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its uid.
    pub uid: String,
    /// The generation of the spec.
    pub generation: i64,
    /// The spec itself.
    pub spec: SignalClusterSpec,
    /// Files of the credentials Secret that the spec needs; without the admin token.
    pub files: Files,
    /// Sources of keys by their declared names, in the order of the spec; the managed one comes last.
    pub sources: Vec<(String, SourceDefinition)>,
    /// Redis.
    pub redis: Option<RecordedRedis>,
    /// The restart that was asked for last.
    pub restarted_at: Option<String>,
    /// The revision of a pod template that a person approves.
    pub approved_revision: Option<String>,
    /// Locales of the catalogs that are added to those of the image, sorted.
    pub locales: Vec<String>,
    /// Peers that may reach the public port; empty: all.
    pub public_from: Vec<NetworkPolicyPeer>,
    /// Peers that may reach the admin port, in addition to the operator.
    pub admin_from: Vec<NetworkPolicyPeer>,
    /// Further metrics of the HorizontalPodAutoscaler.
    pub extra_metrics: Vec<MetricSpec>,
}

impl ValidCluster {
    /// The owner reference that makes an object be deleted with the SignalCluster.
    pub fn owner_ref(&self) -> OwnerReference {
        let owner = Owner {
            name: self.name.clone(),
            namespace: self.namespace.clone(),
            uid: self.uid.clone(),
        };
        owner.reference()
    }
}

/// Why a spec cannot be carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What is wrong.
    pub kind: ProblemKind,
    /// Reason of the condition.
    pub reason: ConditionReason,
    /// Names the field and the object; never a secret.
    pub message: String,
}

/// What is wrong, and so which condition shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProblemKind {
    /// The spec itself.
    Spec,
    /// A Secret or ConfigMap that the spec names.
    Reference,
    /// The record of stages that an operator wrote.
    Record,
    /// The API server did not let something be read that decides about the others.
    Unread,
}

/// Checks the spec against everything it refers to.
///
/// # Errors
/// Everything that is wrong.
pub fn validate(observed: &Observed) -> Result<ValidCluster, Vec<Problem>> {
    let unread = observed.unread.iter().map(|what| Problem {
        kind: ProblemKind::Unread,
        reason: ConditionReason::ReadFailed,
        message: what.clone(),
    });
    let mut problems: Vec<Problem> = unread.collect();
    if !problems.is_empty() {
        // What was not read would look absent.
        return Err(problems);
    }
    let cluster = &observed.cluster;
    let spec = &cluster.spec;
    let mut shape = Shape::new(&mut problems);
    shape.spec(spec);
    let _: Option<PodSpec> = shape.part(
        "podTemplate.spec",
        &Value::Object(spec.pod_template.spec.clone()),
    );
    let public_from = shape.parts("networkPolicy.publicFrom", &spec.network_policy.public_from);
    let admin_from = shape.parts("networkPolicy.adminFrom", &spec.network_policy.admin_from);
    let extra = spec
        .autoscaling
        .as_ref()
        .and_then(|autoscaling| autoscaling.extra_metrics.as_deref());
    let extra_metrics = shape.parts("autoscaling.extraMetrics", extra.unwrap_or_default());
    let locales = match &spec.notifications.catalog_ref {
        Some(named) => shape.catalogs(
            &named.name,
            observed.catalogs.as_ref().and_then(Option::as_ref),
        ),
        None => Vec::new(),
    };
    let Resolved {
        files,
        sources,
        redis,
    } = resolve(spec, &observed.secrets, &mut problems);
    if !problems.is_empty() {
        return Err(problems);
    }
    let meta = &cluster.metadata;
    Ok(ValidCluster {
        name: meta.name.clone().unwrap_or_default(),
        namespace: meta.namespace.clone().unwrap_or_default(),
        uid: meta.uid.clone().unwrap_or_default(),
        generation: meta.generation.unwrap_or_default(),
        spec: spec.clone(),
        files,
        sources,
        redis,
        restarted_at: restarted_at(observed),
        approved_revision: cluster.annotations().get(APPROVE_ROLLOUT).cloned(),
        locales,
        public_from,
        admin_from,
        extra_metrics,
    })
}

/// The restart that pods have, or that a person asks for. Without the annotation they keep the one that they had: a tool may take away what is not in its
/// manifest, and that restarts nobody. While the pods of a restart still come, taking the annotation away takes it back.
fn restarted_at(observed: &Observed) -> Option<String> {
    if let Some(asked) = observed.cluster.annotations().get(RESTARTED_AT) {
        return Some(asked.clone());
    }
    let active = observed.revisions.iter().filter(|it| it.is_active());
    if let Some(oldest) = active.min_by_key(|it| it.created) {
        return oldest.restarted_at.clone();
    }
    let spec = observed.deployment.as_ref()?.spec.as_ref()?;
    let annotations = spec.template.metadata.as_ref()?.annotations.as_ref()?;
    annotations.get(RESTARTED_AT).cloned()
}

struct Resolved {
    files: Files,
    sources: Vec<(String, SourceDefinition)>,
    redis: Option<RecordedRedis>,
}

fn resolve(spec: &SignalClusterSpec, secrets: &Secrets, problems: &mut Vec<Problem>) -> Resolved {
    let mut resolver = Resolver::new(secrets, problems);
    if let Some(key) = &spec.gateway.auth.basic_users_secret_ref {
        resolver.basic_users("spec.gateway.auth.basicUsersSecretRef", key);
    }
    if let Some(tls) = &spec.gateway.tls {
        let [certificate, key] = [TLS_CERTIFICATE, TLS_KEY].map(|key| SecretKey {
            name: tls.secret_name.clone(),
            key: key.to_owned(),
        });
        resolver.fixed_pair(
            ["spec.gateway.tls.secretName"; 2],
            [&certificate, &key],
            [TLS_CERTIFICATE, TLS_KEY],
        );
        if let Some(key) = &tls.client_ca_secret_ref {
            resolver.fixed_authorities("spec.gateway.tls.clientCaSecretRef", key, TLS_CLIENT_CA);
        }
    }
    databases(spec, &mut resolver);
    kafka_login(spec, &mut resolver);
    registry_login(spec, &mut resolver);
    let redis = redis(spec, &mut resolver);
    let sources = sources(spec, &mut resolver);
    Resolved {
        files: resolver.files,
        sources,
        redis,
    }
}

/// Files of the databases of notifications and of policies.
fn databases(spec: &SignalClusterSpec, resolver: &mut Resolver<'_>) {
    if let Some(database) = &spec.database {
        resolver.postgres(&PostgresFields {
            field: "spec.database",
            url: database.url_secret_ref.as_ref(),
            connection: database.connection.as_ref(),
            ssl_mode: database.ssl_mode,
            ca: database.ca_secret_ref.as_ref(),
            url_file: DATABASE_URL,
            ca_file: DATABASE_CA,
        });
    }
    let policy = &spec.policy;
    resolver.postgres(&PostgresFields {
        field: "spec.policy",
        url: policy.url_secret_ref.as_ref(),
        connection: policy.connection.as_ref(),
        ssl_mode: policy.ssl_mode,
        ca: policy.ca_secret_ref.as_ref(),
        url_file: POLICY_URL,
        ca_file: POLICY_CA,
    });
}

/// Files of Kafka's logins.
fn kafka_login(spec: &SignalClusterSpec, resolver: &mut Resolver<'_>) {
    let Some(security) = spec.kafka.as_ref().map(|kafka| &kafka.security) else {
        return;
    };
    if let Some(auth) = &security.auth {
        if let Some(key) = &auth.username_secret_ref {
            let field = "spec.kafka.security.auth.usernameSecretRef";
            resolver.fixed_text(field, key, KAFKA_USERNAME);
        }
        resolver.fixed_text(
            "spec.kafka.security.auth.passwordSecretRef",
            &auth.password_secret_ref,
            KAFKA_PASSWORD,
        );
        if let Some(key) = &auth.token_ca_secret_ref {
            let field = "spec.kafka.security.auth.tokenCaSecretRef";
            resolver.fixed_authorities(field, key, KAFKA_TOKEN_CA);
        }
    }
    if let Some(key) = &security.ca_secret_ref {
        resolver.fixed_authorities("spec.kafka.security.caSecretRef", key, KAFKA_CA);
    }
    if let (Some(certificate), Some(key)) =
        (&security.certificate_secret_ref, &security.key_secret_ref)
    {
        resolver.fixed_pair(
            [
                "spec.kafka.security.certificateSecretRef",
                "spec.kafka.security.keySecretRef",
            ],
            [certificate, key],
            [KAFKA_CERTIFICATE, KAFKA_KEY],
        );
    }
    if let Some(user) = &security.user {
        kafka_user(user, security.protocol, resolver);
    }
}

/// Files of a user whose Secret Strimzi writes: what its transport needs.
fn kafka_user(user: &KafkaUser, protocol: KafkaProtocol, resolver: &mut Resolver<'_>) {
    let field = "spec.kafka.security.user";
    let named = |key: &String| SecretKey {
        name: user.secret_name.clone(),
        key: key.clone(),
    };
    match protocol {
        KafkaProtocol::Ssl => resolver.fixed_pair(
            [field; 2],
            [&named(&user.certificate_key), &named(&user.private_key_key)],
            [KAFKA_CERTIFICATE, KAFKA_KEY],
        ),
        KafkaProtocol::SaslPlaintext | KafkaProtocol::SaslSsl => {
            resolver.fixed_text(field, &named(&user.password_key), KAFKA_PASSWORD);
        }
        // The definition refuses it.
        KafkaProtocol::Plaintext => {}
    }
}

/// Files for the registry of schemas.
fn registry_login(spec: &SignalClusterSpec, resolver: &mut Resolver<'_>) {
    let registry = spec
        .kafka
        .as_ref()
        .and_then(|kafka| kafka.registry.as_ref());
    let Some(registry) = registry else {
        return;
    };
    if let Some(key) = &registry.username_secret_ref {
        let field = "spec.kafka.registry.usernameSecretRef";
        resolver.fixed_text(field, key, REGISTRY_USERNAME);
    }
    if let Some(key) = &registry.password_secret_ref {
        let field = "spec.kafka.registry.passwordSecretRef";
        resolver.fixed_text(field, key, REGISTRY_PASSWORD);
    }
    if let Some(key) = &registry.token_secret_ref {
        resolver.fixed_text("spec.kafka.registry.tokenSecretRef", key, REGISTRY_TOKEN);
    }
    if let Some(key) = &registry.ca_secret_ref {
        resolver.fixed_authorities("spec.kafka.registry.caSecretRef", key, REGISTRY_CA);
    }
}

fn redis(spec: &SignalClusterSpec, resolver: &mut Resolver<'_>) -> Option<RecordedRedis> {
    let redis = spec.redis.as_ref()?;
    let auth = redis.auth.as_ref();
    let user = auth.and_then(|auth| auth.username_secret_ref.as_ref());
    let sentinel = redis.sentinel.as_ref();
    let tls = redis.tls.as_ref();
    let authorities = tls.and_then(|tls| tls.ca_secret_ref.as_ref());
    let client = tls.and_then(|tls| {
        let keys = [
            tls.certificate_secret_ref.as_ref()?,
            tls.key_secret_ref.as_ref()?,
        ];
        let fields = [
            "spec.redis.tls.certificateSecretRef",
            "spec.redis.tls.keySecretRef",
        ];
        resolver.addressed_pair(fields, keys, ["redis-client", "redis-client-key"])
    });
    let [certificate_file, key_file] = client.map_or([None, None], |names| names.map(Some));
    Some(RecordedRedis {
        mode: redis.mode.into(),
        nodes: redis.nodes.clone(),
        sentinel_master: sentinel
            .map(|sentinel| sentinel.master_name.clone())
            .unwrap_or_default(),
        database: redis.database,
        username: String::new(),
        username_file: user.and_then(|key| {
            resolver.addressed_text("spec.redis.auth.usernameSecretRef", key, "redis-username")
        }),
        password_file: auth.and_then(|auth| {
            resolver.addressed_text(
                "spec.redis.auth.passwordSecretRef",
                &auth.password_secret_ref,
                "redis-password",
            )
        }),
        sentinel_password_file: sentinel
            .and_then(|sentinel| sentinel.password_secret_ref.as_ref())
            .and_then(|key| {
                resolver.addressed_text(
                    "spec.redis.sentinel.passwordSecretRef",
                    key,
                    "redis-sentinel-password",
                )
            }),
        tls: redis.tls.is_some(),
        ca_file: authorities.and_then(|key| {
            resolver.addressed_authorities("spec.redis.tls.caSecretRef", key, "redis-ca")
        }),
        certificate_file,
        key_file,
        prefix: redis.channel_prefix.clone(),
    })
}

fn sources(
    spec: &SignalClusterSpec,
    resolver: &mut Resolver<'_>,
) -> Vec<(String, SourceDefinition)> {
    let mut all = Vec::new();
    for (at, source) in spec.jwks.sources.iter().enumerate() {
        let ca_file = source.ca_secret_ref.as_ref().and_then(|key| {
            resolver.addressed_authorities(
                &format!("spec.jwks.sources[{at}].caSecretRef"),
                key,
                &format!("source-{}-ca", source.name),
            )
        });
        let secret = source.application_secret_ref.as_ref();
        let application_secret_file = secret.and_then(|key| {
            resolver.addressed_text(
                &format!("spec.jwks.sources[{at}].applicationSecretRef"),
                key,
                &format!("source-{}-secret", source.name),
            )
        });
        let algorithms = source.algorithms.iter();
        let definition = SourceDefinition {
            issuer: source.issuer.clone(),
            url: Some(source.url.clone()),
            audiences: source.audiences.clone(),
            // Every release reads these names, in a record too; another name for the same algorithm is no other source.
            algorithms: algorithms.map(|named| named.canonical()).collect(),
            preset: source.preset.into(),
            subject_claims: source.subject_claims.clone(),
            subject_prefix: source.subject_prefix.clone(),
            application_secret_file,
            trust_roles: source.trust_roles,
            ca_file,
            allow_insecure_http: source.allow_insecure_http,
        };
        all.push((source.name.clone(), definition));
    }
    if let Some(managed) = &spec.jwks.managed {
        let definition = SourceDefinition {
            issuer: managed.issuer.clone(),
            url: None,
            audiences: managed.audiences.clone(),
            algorithms: vec![Algorithm::ES256],
            preset: SourcePreset::Standard,
            subject_claims: Vec::new(),
            subject_prefix: managed.subject_prefix.clone(),
            application_secret_file: None,
            trust_roles: managed.trust_roles,
            ca_file: None,
            allow_insecure_http: false,
        };
        all.push((MANAGED_SOURCE.to_owned(), definition));
    }
    all
}

#[cfg(test)]
mod tests;

//! [`ValidCluster`] -> [`Desired`]: every object of a SignalCluster, one field per kind. Pure.
//!
//! The same input gives the same output, byte for byte, in every version of the operator: an upgrade of the operator restarts no pod.

pub mod compare;

mod autoscaler;
mod bounds;
mod config_map;
mod credentials;
mod deployment;
mod exposure;
mod merge;
mod migration;
mod monitoring;
mod network_policy;
mod pdb;
mod revisions;
mod service;
mod settings;

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::{Ingress, NetworkPolicy};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::{DynamicObject, TypeMeta};
use serde_json::{Value, json};
use signal_crds::pod::InheritedMetadata;

pub use autoscaler::CONNECTIONS_METRIC;
pub use bounds::beyond_bounds;
pub use config_map::{GATEWAY_TOML, JWKS_JSON, LIVE_TOML, gateway_toml, live_toml, revision};
pub use credentials::ADMIN_TOKEN;
pub use deployment::{STOP_MARGIN_SECS, grace_period};
pub use migration::{Migrated, Migration, job_name, migration, without_pods_until};
pub use revisions::{Held, canary_of, revision_name};

use crate::names::{Children, RECORD, labels};
use crate::observe::observed::Observed;
use crate::observe::resources::Owned;
use crate::plan::record::Record;
use crate::plan::validate::ValidCluster;

/// Every object that is wanted. What is `None` is removed where it is there, but for [`Desired::deployment`].
#[derive(Debug, Clone, PartialEq)]
pub struct Desired {
    /// The gateways; `None`: held back until the database is migrated, and nothing runs yet.
    pub deployment: Option<Deployment>,
    /// The public Service.
    pub service: Service,
    /// The headless Service of the admin port.
    pub admin_service: Service,
    /// `gateway.toml`; `None`: the pods keep theirs.
    pub static_config: Option<ConfigMap>,
    /// Files that a gateway reads only as it starts; `None`: there are none, or the pods keep theirs.
    pub static_secret: Option<Secret>,
    /// Kind and name of what other revisions of the pods mount.
    pub kept_revisions: Vec<(Owned, String)>,
    /// Why the pods keep their template, if they do.
    pub held: Option<Held>,
    /// `live.toml`, the public keys, the record.
    pub live_config: ConfigMap,
    /// Everything that gateways read from Secrets.
    pub credentials: Secret,
    /// Keys that the operator makes.
    pub signing_keys: Option<Secret>,
    /// The pods' account.
    pub service_account: ServiceAccount,
    /// How many pods a node drain may evict.
    pub pdb: Option<PodDisruptionBudget>,
    /// The autoscaler of mode HPA.
    pub hpa: Option<HorizontalPodAutoscaler>,
    /// Who may reach the pods.
    pub network_policy: Option<NetworkPolicy>,
    /// The migration Job: created, never changed.
    pub migration: Option<Job>,
    /// Exposure by Ingress.
    pub ingress: Option<Ingress>,
    /// Exposure by HTTPRoute.
    pub http_route: Option<DynamicObject>,
    /// The redirect to HTTPS.
    pub redirect_route: Option<DynamicObject>,
    /// What Prometheus scrapes.
    pub service_monitor: Option<DynamicObject>,
    /// What Prometheus alerts on.
    pub prometheus_rule: Option<DynamicObject>,
}

impl Desired {
    /// Adds labels and annotations to every object, but for names that the operator uses itself.
    pub fn inherit(&mut self, inherited: &InheritedMetadata) {
        for metadata in self.metadata() {
            add(&mut metadata.labels, &inherited.labels);
            add(&mut metadata.annotations, &inherited.annotations);
        }
    }

    /// That of every object. A new field does not compile until it is here.
    fn metadata(&mut self) -> Vec<&mut ObjectMeta> {
        let Self {
            deployment,
            service,
            admin_service,
            static_config,
            static_secret,
            // Those are only named.
            kept_revisions: _,
            held: _,
            live_config,
            credentials,
            signing_keys,
            service_account,
            pdb,
            hpa,
            network_policy,
            migration,
            ingress,
            http_route,
            redirect_route,
            service_monitor,
            prometheus_rule,
        } = self;
        let mut all = vec![
            &mut service.metadata,
            &mut admin_service.metadata,
            &mut live_config.metadata,
            &mut credentials.metadata,
            &mut service_account.metadata,
        ];
        all.extend(deployment.as_mut().map(|object| &mut object.metadata));
        all.extend(static_config.as_mut().map(|object| &mut object.metadata));
        all.extend(static_secret.as_mut().map(|object| &mut object.metadata));
        all.extend(signing_keys.as_mut().map(|object| &mut object.metadata));
        all.extend(pdb.as_mut().map(|object| &mut object.metadata));
        all.extend(hpa.as_mut().map(|object| &mut object.metadata));
        all.extend(network_policy.as_mut().map(|object| &mut object.metadata));
        all.extend(migration.as_mut().map(|object| &mut object.metadata));
        all.extend(ingress.as_mut().map(|object| &mut object.metadata));
        for object in [http_route, redirect_route, service_monitor, prometheus_rule] {
            all.extend(object.as_mut().map(|object| &mut object.metadata));
        }
        all
    }

    /// Whether a new template waits for a person.
    pub fn awaits_approval(&self) -> bool {
        matches!(self.held, Some(Held::Approval { .. }))
    }

    /// Puts back the live settings that are in the cluster, and their record.
    pub fn keep_live_config(&mut self, observed: &Observed) {
        let copy = observed.credentials.as_ref();
        let copy = copy.and_then(|secret| secret.metadata.annotations.as_ref()?.get(RECORD));
        self.credentials.metadata.annotations =
            copy.map(|text| [(RECORD.to_owned(), text.clone())].into());
        let Some(current) = &observed.live_config else {
            return;
        };
        let annotations = current.metadata.annotations.as_ref();
        let record = annotations.and_then(|all| all.get(RECORD)).cloned();
        self.live_config.data.clone_from(&current.data);
        self.live_config.metadata.annotations =
            record.map(|text| [(RECORD.to_owned(), text)].into());
    }
}

/// The keys that the operator makes, as far as objects show them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManagedKeys {
    /// The public JWK Set.
    pub jwks: String,
    /// Data of the Secret with the private keys and their stages.
    pub data: BTreeMap<String, Vec<u8>>,
}

/// Further input of [`desired`].
#[derive(Debug, Clone, Copy)]
pub struct DesiredInput<'a> {
    /// The managed keys, if the spec wants some.
    pub keys: Option<&'a ManagedKeys>,
    /// Pods of the Deployment.
    pub replicas: i32,
    /// For what must be kept: the admin token, files that pods may still read, and the running template while a migration runs.
    pub observed: &'a Observed,
    /// The operator's namespace; `None` where operators may run in any.
    pub operator_namespace: Option<&'a str>,
    /// Randomness for the admin token, if there is none yet.
    pub entropy: [u8; 32],
    /// Decides whether a failed migration is tried again.
    pub now: DateTime<Utc>,
}

/// Every object of a SignalCluster.
pub fn desired(cluster: &ValidCluster, record: &Record, input: DesiredInput<'_>) -> Desired {
    let DesiredInput {
        keys,
        replicas,
        observed,
        operator_namespace,
        entropy,
        now,
    } = input;
    let children = Children::of(&cluster.name);
    let jwks = keys.map(|keys| keys.jwks.as_str());
    let gateway = gateway_toml(cluster);
    let live = live_toml(cluster, record, jwks.is_some());
    let wanted = deployment::deployment(cluster, &children, &gateway, replicas);
    let static_config = config_map::static_config(cluster, &children, gateway);
    let static_secret = credentials::static_secret(cluster, &children);
    let held = held(cluster, observed, &wanted);
    let awaits_approval = matches!(held, Some(Held::Approval { .. }));
    let (mut deployment, static_config, static_secret) = match &held {
        None => (Some(wanted), Some(static_config), static_secret),
        Some(held) => (
            revisions::held_back(wanted, observed.deployment.as_ref(), held),
            None,
            None,
        ),
    };
    if let Some(deployment) = &mut deployment {
        revisions::limit_to_canary(cluster, observed, deployment, held.as_ref(), now);
    }
    Desired {
        deployment,
        service: service::public(cluster, &children),
        admin_service: service::admin(cluster, &children),
        static_config,
        static_secret,
        kept_revisions: revisions::kept(observed, &children),
        held,
        live_config: config_map::live_config(
            cluster,
            &children,
            record,
            jwks,
            observed.live_config.as_ref(),
        ),
        credentials: credentials::credentials(
            cluster, &children, record, &live, observed, &entropy,
        ),
        signing_keys: keys.map(|keys| credentials::signing_keys(cluster, &children, &keys.data)),
        service_account: service::account(cluster, &children),
        pdb: pdb::pdb(cluster, &children),
        hpa: autoscaler::hpa(cluster, &children),
        network_policy: network_policy::network_policy(cluster, &children, operator_namespace),
        migration: migration::job(cluster, &children, observed, now)
            .filter(|job| !awaits_approval || migration::is_there(job, observed)),
        ingress: exposure::ingress(cluster, &children, observed.kinds),
        http_route: exposure::http_route(cluster, &children, observed.kinds),
        redirect_route: exposure::redirect_route(cluster, &children, observed.kinds),
        service_monitor: monitoring::service_monitor(cluster, &children, observed.kinds),
        prometheus_rule: monitoring::prometheus_rule(cluster, &children, observed.kinds),
    }
}

/// Why the pods keep their template, if they do. A person approves a template before the database is migrated for it.
fn held(cluster: &ValidCluster, observed: &Observed, wanted: &Deployment) -> Option<Held> {
    let update = revisions::waiting_update(cluster, observed, wanted);
    if update.is_none()
        && let Some(unapproved) = revisions::unapproved(cluster, observed, wanted)
    {
        return Some(unapproved);
    }
    match migration(cluster, observed).lets_pods_start() {
        false => Some(Held::Migration),
        true => update.map(Held::Update),
    }
}

/// Adds what is not there.
fn add(own: &mut Option<BTreeMap<String, String>>, more: &BTreeMap<String, String>) {
    if more.is_empty() {
        return;
    }
    let own = own.get_or_insert_default();
    for (name, value) in more {
        own.entry(name.clone()).or_insert_with(|| value.clone());
    }
}

/// Name, labels and owner of an object.
fn meta(cluster: &ValidCluster, name: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some(cluster.namespace.clone()),
        labels: Some(labels(&cluster.name)),
        owner_references: Some(vec![cluster.owner_ref()]),
        ..ObjectMeta::default()
    }
}

/// An object of an optional kind.
fn dynamic(
    cluster: &ValidCluster,
    name: &str,
    api_version: &str,
    kind: &str,
    spec: Value,
) -> DynamicObject {
    DynamicObject {
        types: Some(TypeMeta {
            api_version: api_version.into(),
            kind: kind.into(),
        }),
        metadata: meta(cluster, name),
        data: json!({"spec": spec}),
    }
}

#[cfg(test)]
mod tests;

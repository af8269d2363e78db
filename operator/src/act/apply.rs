//! Server-side apply in a fixed order, then deletion of owned objects that are not wanted any more.
//!
//! The gateways come first: what a pod mounts, and the Deployment, in which each needs those before it. The objects around them need nothing of each
//! other: one that fails keeps no other from being applied.
//!
//! An object that is as wanted costs no request. One that differs is applied with its `resourceVersion` as a precondition, so an operator with an old
//! observation, or one that lost its lease without noticing, changes nothing. One that was not observed is read by name first: an object of the same
//! name that belongs to someone else is never taken over.

use std::collections::{HashMap, VecDeque};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, DeleteParams, Patch, Preconditions};
use kube::core::DynamicObject;
use kube::{Resource, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::act::writer::{ServerChanges, WriteError, Writer};
use crate::names::{APPLIED, INSTANCE_LABEL, MANAGED_BY_LABEL, MANAGER};
use crate::objects::Desired;
use crate::objects::compare::{Difference, differences, hash};
use crate::observe::observed::Observed;
use crate::observe::owner::{Owner, controller, is_labelled};
use crate::observe::resources::{DEPLOYMENT, JOB, Owned};

/// Most fields that a message names.
const NAMED: usize = 3;

/// What a reconcile wants to exist.
#[derive(Debug, Clone)]
pub enum Wanted {
    /// This object, with at least these fields.
    Object(Owned, Box<DynamicObject>),
    /// The object of this kind and name stays as it is, if it exists.
    Kept(Owned, String),
}

/// What the API server holds after an apply.
#[derive(Debug, Default)]
pub struct Applied {
    /// Everything that is wanted, as the API server returned it.
    pub objects: Vec<AppliedObject>,
    /// Kind and name of every object that was pruned.
    pub pruned: Vec<(&'static str, String)>,
    /// What could not be applied or pruned.
    pub failed: Vec<FailedObject>,
}

/// One object that could not be applied or pruned.
#[derive(Debug)]
pub struct FailedObject {
    /// Its kind.
    pub kind: Owned,
    /// Why.
    pub error: ApplyError,
}

/// One object after an apply.
#[derive(Debug, Clone)]
pub struct AppliedObject {
    /// Its kind.
    pub kind: Owned,
    /// As the API server returned it: from the write, or from the observation.
    pub object: DynamicObject,
    /// Whether this apply wrote it.
    pub written: bool,
}

/// Why an object could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// A write failed.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// A read by name failed.
    #[error("get {kind} {name}")]
    Read {
        /// Kind of the object.
        kind: &'static str,
        /// Its name.
        name: String,
        /// The API server's answer.
        source: Box<kube::Error>,
    },
    /// An object of the name belongs to someone else.
    #[error(
        "{kind} {name} exists and belongs to {owner}: delete it, or choose another name for the SignalCluster"
    )]
    Occupied {
        /// Kind of the object.
        kind: &'static str,
        /// Its name.
        name: String,
        /// Its owner.
        owner: String,
    },
    /// The object, or the earlier SignalCluster of the same name that owns it, is being deleted; it passes.
    #[error("{kind} {name} is still being deleted: {waits_for}")]
    Leaving {
        /// Kind of the object.
        kind: &'static str,
        /// Its name.
        name: String,
        /// Who has to act first.
        waits_for: String,
        /// Since when; `None`: nobody has begun to delete it.
        since: Option<Time>,
    },
    /// Somebody changes the object again and again.
    #[error(
        "{kind} {name} is changed each time that it is written, so it is written less often: {fields}"
    )]
    Contested {
        /// Kind of the object.
        kind: &'static str,
        /// Its name.
        name: String,
        /// Fields that are not as they were written.
        fields: String,
    },
    /// The operator makes no objects of this kind.
    #[error("the operator makes no objects of kind {0}")]
    UnknownKind(String),
    /// An object cannot be converted into one of the API server's.
    #[error("convert an object into one of the API server's")]
    Shape(#[from] serde_json::Error),
}

impl Wanted {
    /// Wants this object.
    ///
    /// # Errors
    /// When the operator makes no objects of this kind.
    pub fn object<K: Resource<DynamicType = ()> + Serialize>(
        object: &K,
    ) -> Result<Self, ApplyError> {
        Self::dynamic(dynamic(object)?)
    }

    /// Wants an object of a kind without a Rust type.
    ///
    /// # Errors
    /// When the operator makes no objects of this kind.
    pub fn dynamic(object: DynamicObject) -> Result<Self, ApplyError> {
        let kind = Owned::of(&object).ok_or_else(|| {
            ApplyError::UnknownKind(
                object
                    .types
                    .clone()
                    .map(|types| types.kind)
                    .unwrap_or_default(),
            )
        })?;
        Ok(Self::Object(kind, Box::new(object)))
    }

    fn kind(&self) -> Owned {
        match self {
            Wanted::Object(kind, _) | Wanted::Kept(kind, _) => *kind,
        }
    }

    fn is(&self, kind: Owned, name: &str) -> bool {
        self.kind() == kind && self.name() == name
    }

    fn name(&self) -> &str {
        match self {
            Wanted::Object(_, object) => object.metadata.name.as_deref().unwrap_or_default(),
            Wanted::Kept(_, name) => name,
        }
    }
}

impl Applied {
    /// How many objects were written or pruned.
    pub fn writes(&self) -> usize {
        self.objects.iter().filter(|object| object.written).count() + self.pruned.len()
    }

    /// Itself, if nothing failed.
    ///
    /// # Errors
    /// The first failure.
    pub fn whole(mut self) -> Result<Self, ApplyError> {
        if self.failed.is_empty() {
            return Ok(self);
        }
        Err(self.failed.swap_remove(0).error)
    }

    /// The object of this kind and name, if it exists.
    pub fn get<K: Resource<DynamicType = ()> + DeserializeOwned>(&self, name: &str) -> Option<K> {
        let found = self.objects.iter().find(|applied| {
            applied.kind.kind == K::kind(&()) && applied.object.name_any() == name
        })?;
        serde_json::to_value(&found.object)
            .and_then(serde_json::from_value)
            .ok()
    }
}

/// The same object without its Rust type and without `managedFields`, which are large and not read.
pub(crate) fn dynamic<K: Resource<DynamicType = ()> + Serialize>(
    object: &K,
) -> Result<DynamicObject, serde_json::Error> {
    let mut value = serde_json::to_value(object)?;
    value["apiVersion"] = K::api_version(&()).into();
    value["kind"] = K::kind(&()).into();
    let mut object: DynamicObject = serde_json::from_value(value)?;
    object.metadata.managed_fields = None;
    Ok(object)
}

/// Every object of a SignalCluster for [`apply`]. A Deployment that is held back stays as it is.
///
/// # Errors
/// When an object is of a kind that the operator makes none of.
pub fn wanted(desired: Desired) -> Result<Vec<Wanted>, ApplyError> {
    let Desired {
        deployment,
        service,
        admin_service,
        static_config,
        static_secret,
        kept_revisions,
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
    } = desired;
    let name = service.metadata.name.clone().unwrap_or_default();
    let mut wanted = vec![
        Wanted::object(&service_account)?,
        Wanted::object(&live_config)?,
        Wanted::object(&credentials)?,
        Wanted::object(&service)?,
        Wanted::object(&admin_service)?,
    ];
    wanted.extend(static_config.as_ref().map(Wanted::object).transpose()?);
    wanted.extend(static_secret.as_ref().map(Wanted::object).transpose()?);
    for (kind, name) in kept_revisions {
        // One of them may be wanted, too.
        if !wanted.iter().any(|wanted| wanted.is(kind, &name)) {
            wanted.push(Wanted::Kept(kind, name));
        }
    }
    wanted.extend(signing_keys.as_ref().map(Wanted::object).transpose()?);
    wanted.extend(network_policy.as_ref().map(Wanted::object).transpose()?);
    wanted.extend(migration.as_ref().map(Wanted::object).transpose()?);
    wanted.push(
        deployment
            .as_ref()
            .map_or_else(|| Ok(Wanted::Kept(DEPLOYMENT, name)), Wanted::object)?,
    );
    wanted.extend(pdb.as_ref().map(Wanted::object).transpose()?);
    wanted.extend(hpa.as_ref().map(Wanted::object).transpose()?);
    wanted.extend(ingress.as_ref().map(Wanted::object).transpose()?);
    for object in [http_route, redirect_route, service_monitor, prometheus_rule]
        .into_iter()
        .flatten()
    {
        wanted.push(Wanted::dynamic(object)?);
    }
    Ok(wanted)
}

/// The same for the same objects: with the same observation, an apply of them does the same.
///
/// # Errors
/// When an object cannot be converted.
pub fn fingerprint(wanted: &[Wanted]) -> Result<String, ApplyError> {
    let one = |wanted: &Wanted| match wanted {
        Wanted::Object(_, object) => Ok(hash(&serde_json::to_value(object)?)),
        Wanted::Kept(kind, name) => Ok(format!("{} {name}", kind.kind)),
    };
    let all = wanted
        .iter()
        .map(one)
        .collect::<Result<Vec<_>, serde_json::Error>>()?;
    Ok(all.join("\n"))
}

/// Applies everything that is wanted, and deletes owned objects that are not.
///
/// # Errors
/// The first failure; everything that does not need the failed object is applied.
pub async fn apply(
    wanted: Vec<Wanted>,
    observed: &Observed,
    writer: &Writer,
) -> Result<Applied, ApplyError> {
    let owner = Owner::of(observed);
    let mut application = Application::new(wanted, observed, &owner, writer)?;
    application.gateways().await?;
    application.surroundings().await?.whole()
}

/// All objects of the SignalCluster that were observed.
fn live(observed: &Observed) -> Result<Vec<DynamicObject>, serde_json::Error> {
    let Observed {
        deployment,
        live_config,
        credentials,
        signing_keys,
        jobs,
        hpa,
        owned,
        ..
    } = observed;
    let mut live = owned.clone();
    live.extend(
        live_config
            .iter()
            .map(dynamic)
            .collect::<Result<Vec<_>, _>>()?,
    );
    for secret in [credentials, signing_keys].into_iter().flatten() {
        live.push(dynamic(secret)?);
    }
    for job in jobs {
        live.push(dynamic(job)?);
    }
    live.extend(
        deployment
            .iter()
            .map(dynamic)
            .collect::<Result<Vec<_>, _>>()?,
    );
    live.extend(hpa.iter().map(dynamic).collect::<Result<Vec<_>, _>>()?);
    Ok(live)
}

/// One apply, in two parts: what is to be done for pods and people comes between them.
pub struct Application<'a> {
    /// In the order of application.
    wanted: VecDeque<Wanted>,
    /// What was observed and has not been applied yet.
    there: HashMap<(&'static str, String), DynamicObject>,
    applied: Applied,
    owner: &'a Owner,
    writer: &'a Writer,
}

impl<'a> Application<'a> {
    /// Over the observed objects.
    ///
    /// # Errors
    /// When an object cannot be converted.
    pub fn new(
        mut wanted: Vec<Wanted>,
        observed: &Observed,
        owner: &'a Owner,
        writer: &'a Writer,
    ) -> Result<Self, ApplyError> {
        wanted.sort_by_key(|wanted| wanted.kind().order());
        let there = live(observed)?
            .into_iter()
            .filter_map(|object| Some(((Owned::of(&object)?.kind, object.name_any()), object)));
        Ok(Self {
            wanted: wanted.into(),
            there: there.collect(),
            applied: Applied::default(),
            owner,
            writer,
        })
    }

    /// Applies the Deployment and what its pods mount, up to the first failure: the Deployment never refers to what is not there. Returns what was
    /// applied so far.
    ///
    /// # Errors
    /// When the lease is not held.
    pub async fn gateways(&mut self) -> Result<&Applied, ApplyError> {
        while let Some(wanted) = self.wanted.front() {
            if !wanted.kind().is_of_gateways() {
                break;
            }
            let Some(wanted) = self.wanted.pop_front() else {
                break;
            };
            let found = self.take(&wanted);
            // One that somebody else changes is there, so that others may need it.
            let mut failed = self.applied.failed.iter();
            if failed.all(|it| matches!(it.error, ApplyError::Contested { .. })) {
                self.bring(wanted, found).await?;
            } else {
                self.keep(wanted.kind(), found);
            }
        }
        Ok(&self.applied)
    }

    /// Applies the objects around the gateways, each on its own, and prunes.
    ///
    /// # Errors
    /// When the lease is not held.
    pub async fn surroundings(mut self) -> Result<Applied, ApplyError> {
        while let Some(wanted) = self.wanted.pop_front() {
            let found = self.take(&wanted);
            self.bring(wanted, found).await?;
        }
        let mut rest: Vec<_> = std::mem::take(&mut self.there).into_iter().collect();
        rest.sort_by(|(a, _), (b, _)| a.cmp(b));
        for ((_, name), object) in rest {
            let Some(kind) = Owned::of(&object) else {
                continue;
            };
            match prune(kind, &name, &object, self.owner, self.writer).await {
                Ok(true) => self.applied.pruned.push((kind.kind, name)),
                Ok(false) => {}
                Err(error) => self.fail(kind, error)?,
            }
        }
        Ok(self.applied)
    }

    fn take(&mut self, wanted: &Wanted) -> Option<DynamicObject> {
        let key = (wanted.kind().kind, wanted.name().to_owned());
        self.there.remove(&key)
    }

    fn keep(&mut self, kind: Owned, found: Option<DynamicObject>) {
        let kept = found.map(|object| AppliedObject {
            kind,
            object,
            written: false,
        });
        self.applied.objects.extend(kept);
    }

    async fn bring(
        &mut self,
        wanted: Wanted,
        found: Option<DynamicObject>,
    ) -> Result<(), ApplyError> {
        let kind = wanted.kind();
        let Wanted::Object(_, object) = wanted else {
            let kept = match found {
                Some(found) => adopt(kind, found, self.owner, self.writer).await,
                None => return Ok(()),
            };
            match kept {
                Ok(object) => self.applied.objects.push(object),
                Err(error) => self.fail(kind, error)?,
            }
            return Ok(());
        };
        let kept = found.clone();
        match apply_one(kind, *object, found, self.owner, self.writer).await {
            Ok(object) => self.applied.objects.push(object),
            Err(error) => {
                if matches!(error, ApplyError::Contested { .. }) {
                    self.keep(kind, kept);
                }
                self.fail(kind, error)?;
            }
        }
        Ok(())
    }

    /// Without the lease nothing further is tried.
    fn fail(&mut self, kind: Owned, error: ApplyError) -> Result<(), ApplyError> {
        if matches!(error, ApplyError::Write(WriteError::NotHeld)) {
            return Err(error);
        }
        self.applied.failed.push(FailedObject { kind, error });
        Ok(())
    }
}

async fn apply_one(
    kind: Owned,
    mut object: DynamicObject,
    found: Option<DynamicObject>,
    owner: &Owner,
    writer: &Writer,
) -> Result<AppliedObject, ApplyError> {
    let name = object.name_any();
    let api: Api<DynamicObject> =
        Api::namespaced_with(writer.client().clone(), &owner.namespace, &kind.resource());
    let found = match found {
        Some(found) => Some(found),
        None => by_name(kind, &api, &name, owner).await?,
    };
    let since = found.as_ref().map(|found| &found.metadata);
    let since = since.and_then(|metadata| metadata.deletion_timestamp.as_ref());
    if let (Some(found), Some(since)) = (&found, since) {
        return Err(ApplyError::Leaving {
            kind: kind.kind,
            name,
            waits_for: waits_for(found),
            since: Some(since.clone()),
        });
    }
    let hash = hash(&serde_json::to_value(&object)?);
    object
        .annotations_mut()
        .insert(APPLIED.into(), hash.clone());
    let content = serde_json::to_value(&object)?;
    let key = (kind.kind, owner.namespace.clone(), name.clone());
    if let Some(found) = found {
        // A Job's template cannot change; what it was made for is in its name.
        if kind == JOB {
            return adopt(kind, found, owner, writer).await;
        }
        if is_as_wanted(
            &content,
            &hash,
            &found,
            writer.server_changes(&key).as_ref(),
        )? {
            return Ok(AppliedObject {
                kind,
                object: found,
                written: false,
            });
        }
        if !writer.may_repeat(&key, &hash) {
            return Err(ApplyError::Contested {
                kind: kind.kind,
                name,
                fields: named(&differences(&content, &serde_json::to_value(&found)?)),
            });
        }
        object.metadata.resource_version = found.metadata.resource_version;
    }
    // Without a version the object does not exist yet; if someone creates it at the same time, their fields are kept.
    let force = object.metadata.resource_version.is_some();
    let request = async {
        api.patch(&name, &Writer::apply_params(force), &Patch::Apply(&object))
            .await
    };
    let mut returned = writer.write("apply", kind.kind, &name, request).await?;
    returned.metadata.managed_fields = None;
    if force {
        writer.count_repeat(&key, &hash);
    }
    let left = differences(&content, &serde_json::to_value(&returned)?);
    if !left.is_empty() {
        tracing::debug!(kind = kind.kind, name, paths = ?left.iter().map(|difference| &difference.path).collect::<Vec<_>>(), "the API server changes fields of the applied object");
    }
    writer.keep_server_changes(
        key,
        ServerChanges {
            uid: returned.uid().unwrap_or_default(),
            hash,
            differences: left,
        },
    );
    Ok(AppliedObject {
        kind,
        object: returned,
        written: true,
    })
}

/// An object that stays as it is, with its owner and the labels by which it is listed: a backup may have been restored without owners, and what has none is
/// not deleted with the SignalCluster. One that is not listed would look as if it did not exist.
async fn adopt(
    kind: Owned,
    found: DynamicObject,
    owner: &Owner,
    writer: &Writer,
) -> Result<AppliedObject, ApplyError> {
    let has_owner = controller(&found.metadata).is_some();
    let is_listed = is_labelled(&found.metadata, &owner.name);
    if has_owner && is_listed {
        return Ok(AppliedObject {
            kind,
            object: found,
            written: false,
        });
    }
    let name = found.name_any();
    let api: Api<DynamicObject> =
        Api::namespaced_with(writer.client().clone(), &owner.namespace, &kind.resource());
    let mut owners = found.metadata.owner_references.clone().unwrap_or_default();
    if !has_owner {
        owners.push(owner.reference());
    }
    let patch = serde_json::json!({"metadata": {
        "uid": found.metadata.uid,
        "resourceVersion": found.metadata.resource_version,
        "ownerReferences": owners,
        "labels": {MANAGED_BY_LABEL: MANAGER, INSTANCE_LABEL: owner.name},
    }});
    let params = Writer::patch_params();
    let request = async { api.patch(&name, &params, &Patch::Merge(&patch)).await };
    let mut object = writer.write("adopt", kind.kind, &name, request).await?;
    object.metadata.managed_fields = None;
    Ok(AppliedObject {
        kind,
        object,
        written: true,
    })
}

/// The first few fields, without their values.
fn named(differences: &[Difference]) -> String {
    let paths = differences.iter().map(|difference| &*difference.path);
    paths.take(NAMED).collect::<Vec<_>>().join(", ")
}

/// What keeps an object that is to go.
fn waits_for(found: &DynamicObject) -> String {
    match found.finalizers() {
        [] => "the garbage collector has not deleted it yet".to_owned(),
        finalizers => format!("it waits for its finalizers {}", finalizers.join(", ")),
    }
}

/// Reads an object by name before it is created: it may exist although it was not among the observed ones.
async fn by_name(
    kind: Owned,
    api: &Api<DynamicObject>,
    name: &str,
    owner: &Owner,
) -> Result<Option<DynamicObject>, ApplyError> {
    let found = api.get_opt(name).await.map_err(|source| ApplyError::Read {
        kind: kind.kind,
        name: name.to_owned(),
        source: Box::new(source),
    })?;
    let Some(mut found) = found else {
        return Ok(None);
    };
    found.metadata.managed_fields = None;
    if owner.owns(&found.metadata) {
        return Ok(Some(found));
    }
    Err(match controller(&found.metadata) {
        Some(other) if other.kind == "SignalCluster" && other.name == owner.name => {
            ApplyError::Leaving {
                kind: kind.kind,
                name: name.to_owned(),
                waits_for: waits_for(&found),
                since: found.metadata.deletion_timestamp.clone(),
            }
        }
        Some(other) => ApplyError::Occupied {
            kind: kind.kind,
            name: name.to_owned(),
            owner: format!("{} {}", other.kind, other.name),
        },
        None => ApplyError::Occupied {
            kind: kind.kind,
            name: name.to_owned(),
            owner: "an owner that is not a SignalCluster".into(),
        },
    })
}

/// Whether the same content was applied and has not changed since, apart from what the API server itself changes.
fn is_as_wanted(
    content: &Value,
    hash: &str,
    found: &DynamicObject,
    server_changes: Option<&ServerChanges>,
) -> Result<bool, serde_json::Error> {
    if found.annotations().get(APPLIED).map(String::as_str) != Some(hash) {
        return Ok(false);
    }
    let left = differences(content, &serde_json::to_value(found)?);
    let known = server_changes.filter(|server_changes| {
        server_changes.hash == hash && Some(&server_changes.uid) == found.metadata.uid.as_ref()
    });
    Ok(left.iter().all(|difference| {
        known.is_some_and(|server_changes| server_changes.differences.contains(difference))
    }))
}

async fn prune(
    kind: Owned,
    name: &str,
    object: &DynamicObject,
    owner: &Owner,
    writer: &Writer,
) -> Result<bool, ApplyError> {
    if !owner.owns(&object.metadata) || object.metadata.deletion_timestamp.is_some() {
        return Ok(false);
    }
    let api: Api<DynamicObject> =
        Api::namespaced_with(writer.client().clone(), &owner.namespace, &kind.resource());
    let preconditions = Preconditions {
        uid: object.metadata.uid.clone(),
        resource_version: object.metadata.resource_version.clone(),
    };
    let params = DeleteParams {
        preconditions: Some(preconditions),
        ..DeleteParams::background()
    };
    match writer
        .write("delete", kind.kind, name, async {
            api.delete(name, &params).await
        })
        .await
    {
        Err(error) if !error.is_gone() => Err(error.into()),
        _ => {
            writer.forget(&(kind.kind, owner.namespace.clone(), name.to_owned()));
            Ok(true)
        }
    }
}

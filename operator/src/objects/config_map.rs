//! The ConfigMaps: `gateway.toml`, which a gateway reads as it starts, and `live.toml`, which it follows.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
pub use signal_contract::revision;

use super::revisions::static_name;
use super::settings::{live_settings, static_settings};
use crate::names::{Children, RECORD};
use crate::plan::record::Record;
use crate::plan::validate::ValidCluster;

/// Key of the static ConfigMap.
pub const GATEWAY_TOML: &str = "gateway.toml";
/// Key of the live ConfigMap.
pub const LIVE_TOML: &str = "live.toml";
/// Key of the live ConfigMap with the public set of the managed keys.
pub const JWKS_JSON: &str = "jwks.json";

/// Folder of the database of a pod without one of its own.
pub(super) const DATA_DIR: &str = "/var/lib/signal";

/// Returns `gateway.toml`: what differs from the defaults. The same settings are the same text.
pub fn gateway_toml(cluster: &ValidCluster) -> String {
    static_settings(cluster).to_sparse_toml()
}

/// Returns `live.toml`: what differs from the defaults. With `managed`, or while the record still names a source of the managed keys, gateways
/// publish their public set.
pub fn live_toml(cluster: &ValidCluster, record: &Record, managed: bool) -> String {
    live_settings(cluster, record, managed).to_sparse_toml()
}

/// The ConfigMap of a `gateway.toml`. It never changes: another text is another object.
pub(super) fn static_config(
    cluster: &ValidCluster,
    children: &Children,
    text: String,
) -> ConfigMap {
    ConfigMap {
        metadata: super::meta(cluster, &static_name(children, text.as_bytes())),
        data: Some([(GATEWAY_TOML.to_owned(), text)].into()),
        immutable: Some(true),
        ..ConfigMap::default()
    }
}

/// The ConfigMap of `live.toml`, with the record that it was made from. `jwks` is the current public set of the managed keys; while the record
/// names them and there is none, the one in the cluster stays.
pub(super) fn live_config(
    cluster: &ValidCluster,
    children: &Children,
    record: &Record,
    jwks: Option<&str>,
    current: Option<&ConfigMap>,
) -> ConfigMap {
    let mut data: BTreeMap<String, String> = [(
        LIVE_TOML.to_owned(),
        live_toml(cluster, record, jwks.is_some()),
    )]
    .into();
    let kept = || {
        current
            .filter(|_| record.names_managed())
            .and_then(|map| map.data.as_ref()?.get(JWKS_JSON).cloned())
    };
    if let Some(jwks) = jwks.map(str::to_owned).or_else(kept) {
        data.insert(JWKS_JSON.into(), jwks);
    }
    let mut metadata = super::meta(cluster, &children.live_config);
    metadata.annotations = Some([(RECORD.to_owned(), record.write())].into());
    ConfigMap {
        metadata,
        data: Some(data),
        ..ConfigMap::default()
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod vocabulary;

//! Two Secrets: everything that gateways read, and the keys that the operator makes.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;

use super::config_map::{LIVE_TOML, revision};
use super::revisions::{read_at_start, static_secret_name};
use crate::names::{Children, RECORD};
use crate::observe::observed::Observed;
use crate::plan::record::Record;
use crate::plan::validate::ValidCluster;

/// Key with the bearer token of the gateways' admin listener.
pub const ADMIN_TOKEN: &str = "admin-token";

/// Everything that gateways read: the files that the spec needs, the admin token, and content-addressed files that some pod may still read.
///
/// The token is made once, from `entropy`, and then kept. An annotation has the copy of the record.
pub(super) fn credentials(
    cluster: &ValidCluster,
    children: &Children,
    record: &Record,
    live_toml: &str,
    observed: &Observed,
    entropy: &[u8; 32],
) -> Secret {
    let empty = BTreeMap::new();
    let current = observed
        .credentials
        .as_ref()
        .and_then(|secret| secret.data.as_ref())
        .unwrap_or(&empty);
    let mut data: BTreeMap<String, ByteString> = cluster
        .files
        .iter()
        .map(|(name, content)| (name.clone(), ByteString(content.clone())))
        .collect();
    let acknowledged = acknowledged(live_toml, observed);
    for (name, content) in current.iter().filter(|(name, _)| is_addressed(name)) {
        if !acknowledged || record.files().any(|named| named == name) {
            data.entry(name.clone()).or_insert_with(|| content.clone());
        }
    }
    let token = match current.get(ADMIN_TOKEN) {
        Some(token) if !token.0.is_empty() => token.clone(),
        _ => ByteString(
            entropy
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect::<String>()
                .into_bytes(),
        ),
    };
    data.insert(ADMIN_TOKEN.into(), token);
    let mut secret = secret(cluster, &children.credentials, data);
    secret.metadata.annotations = Some([(RECORD.to_owned(), record.write())].into());
    secret
}

/// The files that a gateway reads only as it starts; `None` where there are none. It never changes: another content is another object.
pub(super) fn static_secret(cluster: &ValidCluster, children: &Children) -> Option<Secret> {
    let name = static_secret_name(cluster, children)?;
    let files = read_at_start(&cluster.files);
    let data = files.map(|(name, content)| (name.to_owned(), ByteString(content.to_vec())));
    Some(Secret {
        immutable: Some(true),
        ..secret(cluster, &name, data.collect())
    })
}

/// The keys that the operator makes, as their ring writes them.
pub(super) fn signing_keys(
    cluster: &ValidCluster,
    children: &Children,
    data: &BTreeMap<String, Vec<u8>>,
) -> Secret {
    let data = data
        .iter()
        .map(|(name, content)| (name.clone(), ByteString(content.clone())))
        .collect();
    secret(cluster, &children.signing_keys, data)
}

fn secret(cluster: &ValidCluster, name: &str, data: BTreeMap<String, ByteString>) -> Secret {
    Secret {
        metadata: super::meta(cluster, name),
        data: Some(data),
        type_: Some("Opaque".into()),
        ..Secret::default()
    }
}

/// Whether the wanted `live.toml` is in the cluster and every ready pod holds it: then no pod reads files of an older one.
fn acknowledged(live_toml: &str, observed: &Observed) -> bool {
    let current = observed
        .live_config
        .as_ref()
        .and_then(|map| map.data.as_ref()?.get(LIVE_TOML));
    current.is_some_and(|text| text == live_toml)
        && observed
            .fleet
            .missing_acknowledgement(&revision(live_toml))
            .is_empty()
}

/// Whether a key is named by its content: it ends in eight hexadecimal digits, `.crt` aside.
fn is_addressed(name: &str) -> bool {
    let stem = name.strip_suffix(".crt").unwrap_or(name);
    let digits = stem.rsplit_once('-').map(|(_, digits)| digits);
    (name.starts_with("redis-") || name.starts_with("source-"))
        && digits.is_some_and(|digits| {
            digits.len() == 8 && digits.bytes().all(|b| b.is_ascii_hexdigit())
        })
}

//! Parts of Services and routes, in the words of Kubernetes and of the Gateway API.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use crate::Duration;
use crate::pod::ParentRef;

/// Name of a header field (RFC 9110, section 5.1).
const HEADER: &str = "^[A-Za-z0-9!#$%&'*+.^_`|~-]+$";

/// Which pods of a Service are sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TrafficPolicy {
    /// All.
    Cluster,
    /// Those of the node at which the traffic arrives.
    Local,
}

/// Which pods of a Service are preferred.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TrafficDistribution {
    /// Those of the client's zone.
    PreferClose,
    /// The same by its newer name.
    PreferSameZone,
    /// Those of the client's node.
    PreferSameNode,
}

/// How many families of addresses a Service has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum IpFamilyPolicy {
    /// One.
    SingleStack,
    /// Two where the cluster has two.
    PreferDualStack,
    /// Two.
    RequireDualStack,
}

/// A family of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum IpFamily {
    /// IPv4.
    IPv4,
    /// IPv6.
    IPv6,
}

/// Rules of a Service with `ipFamilies` and `ipFamilyPolicy`.
pub(crate) mod families {
    use kube::core::Rule;

    pub(crate) fn two_need_a_policy() -> Rule {
        of_families(
            "size(self.ipFamilies) < 2 || (has(self.ipFamilyPolicy) && self.ipFamilyPolicy != 'SingleStack')",
            "two ipFamilies need ipFamilyPolicy PreferDualStack or RequireDualStack",
        )
    }

    pub(crate) fn each_once() -> Rule {
        of_families(
            "size(self.ipFamilies) < 2 || self.ipFamilies[0] != self.ipFamilies[1]",
            "ipFamilies names each family once",
        )
    }

    pub(crate) fn first_stays() -> Rule {
        of_families(
            "!has(oldSelf.ipFamilies) || self.ipFamilies[0] == oldSelf.ipFamilies[0]",
            "the first of ipFamilies cannot change: Kubernetes fixes it with the Service",
        )
    }

    fn of_families(rule: &str, message: &str) -> Rule {
        Rule::new(format!("!has(self.ipFamilies) || {rule}"))
            .message(message)
            .field_path(".ipFamilies")
    }
}

/// The headless Service of the admin ports.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = families::two_need_a_policy(),
    validation = families::each_once(),
    validation = families::first_stays(),
)]
pub struct AdminService {
    /// Its labels, besides those that the operator sets.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    pub labels: BTreeMap<String, String>,
    /// Its annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    pub annotations: BTreeMap<String, String>,
    /// How many families of addresses it has; absent: as `gateway.addressFamilies` says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip_family_policy: Option<IpFamilyPolicy>,
    /// Its families, the first one for good; absent: the cluster's choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2))]
    pub ip_families: Option<Vec<IpFamily>>,
}

/// How long a Gateway waits. `0s`: for ever.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.request) || !has(self.backendRequest) || duration(self.request) == duration('0s') || duration(self.backendRequest) <= duration(self.request)")
    .message("backendRequest must not exceed request").field_path(".backendRequest"))]
pub struct RouteTimeouts {
    /// For the whole answer. Many Gateways end a WebSocket after this time as well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<Duration>,
    /// For one attempt to reach a pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend_request: Option<Duration>,
}

/// What is changed in the header of requests or of responses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct HeaderChanges {
    /// Fields that get this value alone.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub set: Vec<HeaderField>,
    /// Fields that get this value beside those that they have.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub add: Vec<HeaderField>,
    /// Names of fields that are taken away.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 256), regex(pattern = HEADER)), extend("x-kubernetes-list-type" = "set"))]
    pub remove: Vec<String>,
}

/// A field of a header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HeaderField {
    /// Its name.
    #[schemars(length(min = 1, max = 256), regex(pattern = HEADER))]
    pub name: String,
    /// Its value.
    #[schemars(length(min = 1, max = 4096))]
    pub value: String,
}

/// Redirects what comes to other listeners to HTTPS: an HTTPRoute of its own, `NAME-redirect`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Redirect {
    /// The listeners without TLS, by `sectionName`.
    #[schemars(length(min = 1, max = 8))]
    pub parent_refs: Vec<ParentRef>,
    /// The port of the new URL; absent: 443, which the URL does not show.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<u16>,
    /// Whether clients may remember it (301) or not (302).
    #[serde(default = "Redirect::status_code")]
    #[schemars(extend("enum" = [301, 302]))]
    pub status_code: u16,
}

impl Redirect {
    fn status_code() -> u16 {
        301
    }
}

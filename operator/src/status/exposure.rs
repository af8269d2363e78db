//! How the public Service is reached from outside, as the API server, controllers and Gateways say: condition Exposed, and the URLs of
//! `status.endpoints`. Pure.
//!
//! A URL is shown only once somebody serves it: a parent has accepted the newest HTTPRoute, an Ingress or a load balancer has an address.

use std::net::Ipv6Addr;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::Ingress;
use kube::core::DynamicObject;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use signal_crds::SignalClusterSpec;
use signal_crds::pod::ServiceType;
use signal_crds::status::Endpoints;

use super::conditions::{ConditionType as Type, Finding};
use super::failures::{ApplyFailure, Concern, Obstacle, of_concern, sum_up, unusable};
use crate::names::Children;
use crate::observe::observed::Observed;
use crate::observe::resources::{HTTP_ROUTE, INGRESS, SERVICE};
use crate::reasons::ConditionReason;

/// Most URLs that the status lists: every host name of a route, and as many addresses of a load balancer.
const MAX_URLS: usize = 32;
/// The group of Gateways.
const GATEWAY_API: &str = "gateway.networking.k8s.io";

/// What was found of one way in from outside.
#[derive(Debug, Default)]
struct Entrance {
    /// What serves.
    urls: Vec<String>,
    /// What does not, and why.
    wrong: Vec<Obstacle>,
}

/// Condition Exposed.
pub(super) fn exposed(observed: &Observed, failures: &[ApplyFailure]) -> Finding {
    let mut wrong = of_concern(failures, Concern::Exposure);
    wrong.extend(
        entrances(observed)
            .into_iter()
            .flat_map(|entrance| entrance.wrong),
    );
    sum_up(Type::Exposed, wrong)
}

/// Where clients connect.
pub(super) fn endpoints(observed: &Observed, name: &str, namespace: &str) -> Endpoints {
    let spec = &observed.cluster.spec;
    let mut all_public: Vec<String> = entrances(observed)
        .into_iter()
        .flat_map(|entrance| entrance.urls)
        .collect();
    all_public.truncate(MAX_URLS);
    let host = format!("{name}.{namespace}.svc");
    Endpoints {
        public: all_public.first().cloned(),
        all_public,
        internal: pod_url(spec, &host),
    }
}

/// Every way in that the spec wants, in the order in which clients would take them.
fn entrances(observed: &Observed) -> Vec<Entrance> {
    let spec = &observed.cluster.spec;
    let mut entrances = Vec::new();
    let children = Children::of(name(observed));
    if let Some(wanted) = &spec.exposure.http_route {
        entrances.push(match unusable(observed, HTTP_ROUTE, "exposure.httpRoute") {
            Some(wrong) => Entrance::without(wrong),
            None => http_route(observed, &children.name),
        });
        if wanted.redirect.is_some() && observed.kinds.has(HTTP_ROUTE) {
            // It leads to the URLs of the other one, and has none itself.
            entrances.push(Entrance {
                urls: Vec::new(),
                ..http_route(observed, &children.redirect_route)
            });
        }
    }
    if spec.exposure.ingress.is_some() {
        entrances.push(match unusable(observed, INGRESS, "exposure.ingress") {
            Some(wrong) => Entrance::without(wrong),
            None => ingress(observed),
        });
    }
    if spec.service.kind == ServiceType::LoadBalancer {
        entrances.push(load_balancer(observed));
    }
    entrances
}

impl Entrance {
    fn without(wrong: Obstacle) -> Self {
        Self {
            urls: Vec::new(),
            wrong: vec![wrong],
        }
    }

    /// Nobody has said anything of it yet.
    fn pending(reason: ConditionReason, message: String) -> Self {
        Self::without(Obstacle::pending(reason, message))
    }
}

fn stream_path(spec: &SignalClusterSpec) -> &str {
    let paths = &spec.gateway.stream_paths;
    paths.first().map_or("/stream", String::as_str)
}

/// The URL of a host that leads to the port of the public Service, on which gateways may end TLS themselves.
fn pod_url(spec: &SignalClusterSpec, host: &str) -> String {
    let scheme = if spec.gateway.tls.is_some() {
        "wss"
    } else {
        "ws"
    };
    let host = match host.parse::<Ipv6Addr>() {
        Ok(ip) => format!("[{ip}]"),
        Err(_) => host.to_owned(),
    };
    let (port, path) = (spec.service.port, stream_path(spec));
    format!("{scheme}://{host}:{port}{path}")
}

/// A pattern such as `*.example.com` is no host that a client could connect to.
fn is_host(name: &str) -> bool {
    !name.is_empty() && !name.contains('*')
}

fn name(observed: &Observed) -> &str {
    observed
        .cluster
        .metadata
        .name
        .as_deref()
        .unwrap_or_default()
}

fn read<T: DeserializeOwned>(object: &DynamicObject) -> Option<T> {
    serde_json::to_value(object)
        .and_then(serde_json::from_value)
        .ok()
}

fn load_balancer(observed: &Observed) -> Entrance {
    let name = name(observed);
    let service: Option<Service> = observed.find_owned(SERVICE, name).and_then(read);
    let addresses = service
        .and_then(|service| service.status?.load_balancer?.ingress)
        .unwrap_or_default();
    let mut entrance = Entrance::default();
    for address in addresses {
        let mut ports = address.ports.iter().flatten();
        let error = ports.find_map(|port| port.error.as_deref());
        let Some(host) = address.hostname.or(address.ip) else {
            continue;
        };
        match error {
            Some(error) => entrance.wrong.push(Obstacle::refused(
                ConditionReason::AddressNotAssigned,
                format!("Service {name}: the load balancer does not serve {host}: {error}"),
            )),
            None => entrance.urls.push(pod_url(&observed.cluster.spec, &host)),
        }
    }
    if entrance.urls.is_empty() && entrance.wrong.is_empty() {
        return Entrance::pending(
            ConditionReason::AddressNotAssigned,
            format!("Service {name} has no address of a load balancer yet"),
        );
    }
    entrance
}

fn ingress(observed: &Observed) -> Entrance {
    let name = name(observed);
    let ingress: Option<Ingress> = observed.find_owned(INGRESS, name).and_then(read);
    let has_address = ingress.as_ref().is_some_and(|ingress| {
        let status = ingress.status.as_ref();
        let balancer = status.and_then(|status| status.load_balancer.as_ref());
        let mut addresses = balancer
            .into_iter()
            .flat_map(|it| it.ingress.iter().flatten());
        addresses.any(|address| address.ip.is_some() || address.hostname.is_some())
    });
    let Some(spec) = ingress
        .and_then(|ingress| ingress.spec)
        .filter(|_| has_address)
    else {
        let class = observed.cluster.spec.exposure.ingress.as_ref();
        let class = class.and_then(|ingress| ingress.class_name.as_deref());
        let class = class.map_or("the default class".into(), |class| format!("class {class}"));
        return Entrance::pending(
            ConditionReason::AddressNotAssigned,
            format!("Ingress {name} has no address yet: no controller of {class} has given it one"),
        );
    };
    let scheme = if spec.tls.iter().flatten().next().is_some() {
        "wss"
    } else {
        "ws"
    };
    let path = stream_path(&observed.cluster.spec);
    let hosts = spec
        .rules
        .into_iter()
        .flatten()
        .filter_map(|rule| rule.host);
    Entrance {
        urls: hosts
            .filter(|host| is_host(host))
            .map(|host| format!("{scheme}://{host}{path}"))
            .collect(),
        wrong: Vec::new(),
    }
}

/// What is read of the spec of an HTTPRoute.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RouteSpec {
    parent_refs: Vec<Parent>,
    hostnames: Vec<String>,
}

/// What a controller says of a route for one parent.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ParentStatus {
    parent_ref: Parent,
    conditions: Vec<ParentCondition>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ParentCondition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
    reason: String,
    message: String,
    observed_generation: Option<i64>,
}

#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Parent {
    group: Option<String>,
    kind: Option<String>,
    namespace: Option<String>,
    name: String,
    section_name: Option<String>,
    port: Option<i32>,
}

impl Parent {
    /// With the defaults of the Gateway API filled in.
    fn whole(mut self, namespace: &str) -> Self {
        self.group.get_or_insert_with(|| GATEWAY_API.into());
        self.kind.get_or_insert_with(|| "Gateway".into());
        self.namespace.get_or_insert_with(|| namespace.into());
        self
    }

    /// For people.
    fn describe(&self) -> String {
        let kind = self.kind.as_deref().unwrap_or_default();
        let namespace = self.namespace.as_deref().unwrap_or_default();
        let listener = self.section_name.as_ref();
        let listener = listener.map(|name| format!(", listener {name}"));
        format!(
            "{kind} {namespace}/{}{}",
            self.name,
            listener.unwrap_or_default()
        )
    }
}

/// What a parent says of a route.
#[derive(Debug)]
enum Answer {
    Serves,
    Refuses(ConditionReason, String),
    Silent,
}

fn http_route(observed: &Observed, name: &str) -> Entrance {
    let namespace = observed.cluster.metadata.namespace.as_deref();
    let namespace = namespace.unwrap_or_default();
    let Some(object) = observed.find_owned(HTTP_ROUTE, name) else {
        return Entrance::pending(
            ConditionReason::Pending,
            format!("HTTPRoute {name} is not made yet"),
        );
    };
    let generation = object.metadata.generation;
    let route: RouteSpec = serde_json::from_value(object.data["spec"].clone()).unwrap_or_default();
    let answers = object.data["status"]["parents"].as_array();
    // Others write them; one that cannot be read says nothing.
    let answers: Vec<ParentStatus> = answers
        .into_iter()
        .flatten()
        .filter_map(|answer| ParentStatus::deserialize(answer).ok())
        .map(|mut answer| {
            answer.parent_ref = answer.parent_ref.whole(namespace);
            answer
        })
        .collect();
    let mut entrance = Entrance::default();
    let mut serving = Vec::new();
    for parent in route.parent_refs {
        let parent = parent.whole(namespace);
        let of_parent = answers.iter().filter(|answer| answer.parent_ref == parent);
        // Several controllers may answer for one parent; one that serves is enough.
        let said = of_parent.map(|answer| of_controller(answer, generation));
        let best = said.min_by_key(|answer| match answer {
            Answer::Serves => 0,
            Answer::Refuses(..) => 1,
            Answer::Silent => 2,
        });
        let said = parent.describe();
        match best.unwrap_or(Answer::Silent) {
            Answer::Serves => serving.push(parent),
            Answer::Refuses(reason, why) => entrance.wrong.push(Obstacle::refused(
                reason,
                format!("HTTPRoute {name}: {said}: {why}"),
            )),
            Answer::Silent => entrance.wrong.push(Obstacle::pending(
                ConditionReason::Pending,
                format!(
                    "HTTPRoute {name}: no controller has answered for {said} yet; it may not exist"
                ),
            )),
        }
    }
    if !serving.is_empty() {
        let path = stream_path(&observed.cluster.spec);
        let hosts = route.hostnames.iter().filter(|host| is_host(host));
        let url = |host: &String| {
            let in_clear = serving
                .iter()
                .all(|parent| is_in_clear(observed, parent, host));
            let scheme = if in_clear { "ws" } else { "wss" };
            format!("{scheme}://{host}{path}")
        };
        entrance.urls = hosts.map(url).collect();
    }
    entrance
}

/// What is read of the spec of a Gateway.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct GatewaySpec {
    listeners: Vec<Listener>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Listener {
    name: String,
    hostname: Option<String>,
    port: i32,
    protocol: String,
}

impl Listener {
    /// Whether requests for this host come to a route of this parent by it.
    fn takes(&self, parent: &Parent, host: &str) -> bool {
        let is_named = parent
            .section_name
            .as_ref()
            .is_none_or(|it| *it == self.name);
        let is_of_host = match self.hostname.as_deref() {
            None | Some("") => true,
            Some(own) => match own.strip_prefix('*') {
                Some(ending) => host.len() > ending.len() && host.ends_with(ending),
                None => own == host,
            },
        };
        is_named && is_of_host && parent.port.is_none_or(|port| port == self.port)
    }
}

/// Whether a parent takes requests for a host in the clear alone. One that cannot be read is believed to speak TLS: outside of a cluster it nearly always
/// does.
fn is_in_clear(observed: &Observed, parent: &Parent, host: &str) -> bool {
    let is_parent = |gateway: &&DynamicObject| {
        let metadata = &gateway.metadata;
        metadata.name.as_ref() == Some(&parent.name) && metadata.namespace == parent.namespace
    };
    let Some(gateway) = observed.gateways.iter().find(is_parent) else {
        return false;
    };
    let spec = GatewaySpec::deserialize(&gateway.data["spec"]).unwrap_or_default();
    let listeners = spec.listeners.iter();
    let mut taking = listeners
        .filter(|listener| listener.takes(parent, host))
        .peekable();
    taking.peek().is_some() && taking.all(|listener| listener.protocol == "HTTP")
}

/// What one controller says of this generation of a route for one parent.
fn of_controller(answer: &ParentStatus, generation: Option<i64>) -> Answer {
    let is_current = |condition: &&ParentCondition| {
        condition.observed_generation.is_none() || condition.observed_generation >= generation
    };
    let of = |kind: &str| {
        let mut conditions = answer.conditions.iter().filter(is_current);
        conditions.find(|condition| condition.kind == kind)
    };
    let mut serves = true;
    for (kind, reason) in [
        ("Accepted", ConditionReason::RouteNotAccepted),
        ("ResolvedRefs", ConditionReason::ReferencesNotResolved),
    ] {
        match of(kind) {
            Some(condition) if condition.status == "True" => {}
            Some(condition) if condition.status == "False" => {
                return Answer::Refuses(
                    reason,
                    format!("{}: {}", condition.reason, condition.message),
                );
            }
            _ => serves = false,
        }
    }
    match serves {
        true => Answer::Serves,
        false => Answer::Silent,
    }
}

#[cfg(test)]
mod tests;

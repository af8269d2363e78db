//! What people read about ways in, from objects as API servers show them.

use std::sync::Arc;

use serde_json::{Value, json};
use signal_crds::SignalCluster;

use super::*;
use crate::fixture::changed;
use crate::observe::observed::KindAccess;

/// A SignalCluster `edge` in namespace `realtime` with this exposure and Service.
fn exposed_by(exposure: Value, service: Value) -> Observed {
    changed("minimal", |cluster: &mut SignalCluster| {
        cluster.metadata.name = Some("edge".into());
        cluster.metadata.namespace = Some("realtime".into());
        cluster.spec.exposure = serde_json::from_value(exposure).unwrap();
        cluster.spec.service = serde_json::from_value(service).unwrap();
    })
}

fn live(observed: &mut Observed, object: Value) {
    observed.update([serde_json::from_value(object).unwrap()]);
}

fn object(api_version: &str, kind: &str, rest: Value) -> Value {
    let mut object = json!({"apiVersion": api_version, "kind": kind});
    let members = object.as_object_mut().unwrap();
    members.extend(rest.as_object().unwrap().clone());
    object["metadata"]["name"] = json!("edge");
    object
}

/// State, reason and message of the condition, and the URLs from outside.
fn look(observed: &Observed) -> (&'static str, &'static str, String, Vec<String>) {
    let found = exposed(observed, &[]);
    let urls = endpoints(observed, "edge", "realtime");
    assert_eq!(urls.public.as_ref(), urls.all_public.first());
    (
        found.state.as_str(),
        found.reason.as_str(),
        found.message,
        urls.all_public,
    )
}

/// Where the route of [`route`] is attached, as its spec says and as its status repeats it.
fn gateway() -> Value {
    json!({"group": "gateway.networking.k8s.io", "kind": "Gateway", "namespace": "gw", "name": "public", "sectionName": "https"})
}

/// The spec of that route.
fn attached() -> Value {
    json!({"parentRefs": [gateway()], "hostnames": ["rt.example.com", "*.example.com"]})
}

fn route() -> Observed {
    exposed_by(json!({"httpRoute": attached()}), json!({}))
}

fn says(kind: &str, status: &str, generation: i64) -> Value {
    json!({"type": kind, "status": status, "reason": format!("{kind}Reason"), "message": format!("{kind} is {status}"), "observedGeneration": generation})
}

/// The route of [`route`] at generation 2, with these parents in its status.
fn answered(observed: &mut Observed, parents: Value) {
    let whole =
        json!({"metadata": {"generation": 2}, "spec": attached(), "status": {"parents": parents}});
    live(
        observed,
        object("gateway.networking.k8s.io/v1", "HTTPRoute", whole),
    );
}

fn parent(conditions: Value) -> Value {
    json!({"parentRef": gateway(), "controllerName": "example.com/gateway", "conditions": conditions})
}

#[test]
fn a_route_serves_once_a_parent_has_accepted_its_newest_generation() {
    let mut observed = route();
    answered(
        &mut observed,
        json!([parent(json!([
            says("Accepted", "True", 2),
            says("ResolvedRefs", "True", 2)
        ]))]),
    );
    let url = "wss://rt.example.com/stream".to_owned();
    assert_eq!(
        look(&observed),
        ("True", "Applied", String::new(), vec![url])
    );
}

#[test]
fn the_scheme_of_a_route_is_that_of_the_listeners_that_take_its_host() {
    let listener =
        |name: &str, protocol: &str| json!({"name": name, "port": 80, "protocol": protocol});
    let of_host = |host: &str, protocol: &str| {
        let mut listener = listener("https", protocol);
        listener["hostname"] = json!(host);
        listener
    };
    for (listeners, scheme) in [
        (json!([listener("https", "HTTPS")]), "wss"),
        (json!([listener("https", "TLS")]), "wss"),
        (json!([listener("https", "HTTP")]), "ws"),
        // Another one is not that of the route.
        (
            json!([listener("http", "HTTPS"), listener("https", "HTTP")]),
            "ws",
        ),
        (json!([listener("http", "HTTP")]), "wss"),
        (
            json!([
                of_host("*.example.com", "HTTP"),
                of_host("example.com", "HTTPS")
            ]),
            "ws",
        ),
        (json!([of_host("rt.example.com", "HTTP")]), "ws"),
        (json!([of_host("other.example.com", "HTTP")]), "wss"),
        (json!("of another form"), "wss"),
    ] {
        let mut observed = route();
        let good = json!([says("Accepted", "True", 2), says("ResolvedRefs", "True", 2)]);
        answered(&mut observed, json!([parent(good)]));
        let gateway = json!({"metadata": {"name": "public", "namespace": "gw"}, "spec": {"listeners": listeners}});
        observed.gateways = vec![serde_json::from_value(gateway.clone()).unwrap()];
        let url = format!("{scheme}://rt.example.com/stream");
        assert_eq!(look(&observed).3, [url], "{listeners}");
        observed.gateways[0].metadata.namespace = Some("elsewhere".into());
        assert_eq!(look(&observed).3, ["wss://rt.example.com/stream"]);
    }
}

#[test]
fn a_route_that_a_parent_refuses_is_told_with_its_words_and_has_no_url() {
    for (conditions, reason, why) in [
        (
            json!([
                says("Accepted", "False", 2),
                says("ResolvedRefs", "True", 2)
            ]),
            "RouteNotAccepted",
            "AcceptedReason: Accepted is False",
        ),
        (
            json!([
                says("Accepted", "True", 2),
                says("ResolvedRefs", "False", 2)
            ]),
            "ReferencesNotResolved",
            "ResolvedRefsReason: ResolvedRefs is False",
        ),
    ] {
        let mut observed = route();
        answered(&mut observed, json!([parent(conditions)]));
        let message = format!("HTTPRoute edge: Gateway gw/public, listener https: {why}");
        assert_eq!(look(&observed), ("False", reason, message, vec![]));
    }
}

#[test]
fn a_parent_that_has_not_answered_for_this_generation_is_waited_for() {
    let message = "HTTPRoute edge: no controller has answered for Gateway gw/public, listener https yet; it may not exist";
    let mut elsewhere = parent(json!([
        says("Accepted", "True", 2),
        says("ResolvedRefs", "True", 2)
    ]));
    elsewhere["parentRef"]["sectionName"] = json!("http");
    for parents in [
        json!([]),
        json!([parent(json!([]))]),
        json!([parent(json!([says("Accepted", "True", 2)]))]),
        json!([parent(json!([
            says("Accepted", "True", 1),
            says("ResolvedRefs", "True", 1)
        ]))]),
        json!([parent(json!([
            says("Accepted", "Unknown", 2),
            says("ResolvedRefs", "True", 2)
        ]))]),
        json!([elsewhere]),
        json!("of another form"),
        json!([{"parentRef": 7}]),
    ] {
        let mut observed = route();
        answered(&mut observed, parents.clone());
        let (state, reason, said, urls) = look(&observed);
        assert_eq!(
            (state, reason, urls),
            ("False", "Pending", vec![]),
            "{parents}"
        );
        assert_eq!(said, message, "{parents}");
    }
    let (state, reason, message, urls) = look(&route());
    assert_eq!((state, reason, urls), ("False", "Pending", vec![]));
    assert_eq!(message, "HTTPRoute edge is not made yet");
}

#[test]
fn one_controller_that_serves_is_enough_and_of_two_parents_each_is_told() {
    let good = json!([says("Accepted", "True", 2), says("ResolvedRefs", "True", 2)]);
    let mut observed = route();
    answered(
        &mut observed,
        json!([
            parent(json!([says("Accepted", "False", 2)])),
            parent(good.clone())
        ]),
    );
    assert_eq!(look(&observed).1, "Applied");

    let spec = json!({"parentRefs": [gateway(), {"name": "own"}], "hostnames": ["rt.example.com"]});
    let mut own = parent(json!([says("Accepted", "False", 2)]));
    own["parentRef"] = json!({"name": "own"});
    let whole = json!({"metadata": {"generation": 2}, "spec": spec, "status": {"parents": [parent(good), own]}});
    live(
        &mut observed,
        object("gateway.networking.k8s.io/v1", "HTTPRoute", whole),
    );
    let (state, reason, message, urls) = look(&observed);
    assert_eq!((state, reason), ("False", "RouteNotAccepted"));
    assert_eq!(
        message,
        "HTTPRoute edge: Gateway realtime/own: AcceptedReason: Accepted is False"
    );
    assert_eq!(urls, ["wss://rt.example.com/stream"], "the other serves");
}

#[test]
fn an_ingress_serves_once_it_has_an_address() {
    let mut observed = exposed_by(
        json!({"ingress": {"host": "rt.example.com", "className": "nginx"}}),
        json!({}),
    );
    let spec =
        json!({"rules": [{"host": "rt.example.com"}], "tls": [{"hosts": ["rt.example.com"]}]});
    let ingress = |status: Value| {
        object(
            "networking.k8s.io/v1",
            "Ingress",
            json!({"spec": spec, "status": status}),
        )
    };
    for status in [json!({}), json!({"loadBalancer": {"ingress": [{}]}})] {
        live(&mut observed, ingress(status));
        let (state, reason, message, urls) = look(&observed);
        assert_eq!(
            (state, reason, urls),
            ("False", "AddressNotAssigned", vec![])
        );
        assert_eq!(
            message,
            "Ingress edge has no address yet: no controller of class nginx has given it one"
        );
    }
    live(
        &mut observed,
        ingress(json!({"loadBalancer": {"ingress": [{"hostname": "lb.example.net"}]}})),
    );
    let url = "wss://rt.example.com/stream".to_owned();
    assert_eq!(
        look(&observed),
        ("True", "Applied", String::new(), vec![url])
    );
}

#[test]
fn a_load_balancer_serves_at_each_of_its_addresses() {
    let mut observed = exposed_by(json!({}), json!({"type": "LoadBalancer", "port": 443}));
    let (state, reason, message, urls) = look(&observed);
    assert_eq!(
        (state, reason, urls),
        ("False", "AddressNotAssigned", vec![])
    );
    assert_eq!(
        message,
        "Service edge has no address of a load balancer yet"
    );
    let addresses = json!([{"ip": "203.0.113.7"}, {"ip": "2001:db8::7"}, {"hostname": "lb.example.net", "ip": "203.0.113.8"}]);
    live(
        &mut observed,
        object(
            "v1",
            "Service",
            json!({"status": {"loadBalancer": {"ingress": addresses}}}),
        ),
    );
    assert_eq!(
        look(&observed).3,
        [
            "ws://203.0.113.7:443/stream",
            "ws://[2001:db8::7]:443/stream",
            "ws://lb.example.net:443/stream"
        ]
    );
    Arc::make_mut(&mut observed.cluster).spec.gateway.tls =
        Some(serde_json::from_value(json!({"secretName": "edge-tls"})).unwrap());
    let all = endpoints(&observed, "edge", "realtime");
    assert_eq!(all.public.unwrap(), "wss://203.0.113.7:443/stream");
    assert_eq!(all.internal, "wss://edge.realtime.svc:443/stream");

    let refused = json!([{"ip": "203.0.113.7", "ports": [{"port": 443, "protocol": "TCP", "error": "example.com/PortInUse"}]}]);
    live(
        &mut observed,
        object(
            "v1",
            "Service",
            json!({"status": {"loadBalancer": {"ingress": refused}}}),
        ),
    );
    let (state, reason, message, urls) = look(&observed);
    assert_eq!(
        (state, reason, urls),
        ("False", "AddressNotAssigned", vec![])
    );
    assert_eq!(
        message,
        "Service edge: the load balancer does not serve 203.0.113.7: example.com/PortInUse"
    );
}

#[test]
fn a_kind_that_is_absent_or_forbidden_is_named_before_what_is_waited_for() {
    let mut observed = route();
    Arc::make_mut(&mut observed.cluster).spec.service.kind = ServiceType::LoadBalancer;
    observed.kinds.http_route = KindAccess::Missing;
    let (state, reason, message, urls) = look(&observed);
    assert_eq!((state, reason, urls), ("False", "KindMissing", vec![]));
    assert_eq!(
        message,
        "spec.exposure.httpRoute: the API server does not know gateway.networking.k8s.io/v1 HTTPRoute; Service edge has no address of a load balancer yet"
    );
    observed.kinds.http_route = KindAccess::Forbidden;
    let (state, reason, message, _) = look(&observed);
    assert_eq!((state, reason), ("False", "KindForbidden"));
    assert!(
        message.contains("no right to list httproutes.gateway.networking.k8s.io"),
        "{message}"
    );
    observed.kinds.http_route = KindAccess::Unknown;
    assert_eq!(look(&observed).0, "Unknown");
    Arc::make_mut(&mut observed.cluster).spec.service.kind = ServiceType::ClusterIP;
    assert_eq!(
        (look(&observed).0, look(&observed).1),
        ("Unknown", "ReadFailed")
    );
}

#[test]
fn a_monitor_whose_kind_is_absent_is_named_as_well() {
    let mut observed = changed("production", |_| {});
    observed.kinds.service_monitor = KindAccess::Missing;
    observed.kinds.prometheus_rule = KindAccess::Forbidden;
    let found = super::super::failures::monitored(&observed, &[]);
    assert_eq!(
        (found.state.as_str(), found.reason),
        ("False", ConditionReason::KindMissing)
    );
    assert_eq!(
        found.message,
        "spec.observability.serviceMonitor: the API server does not know monitoring.coreos.com/v1 ServiceMonitor; spec.observability.prometheusRule: the operator has no right to list prometheusrules.monitoring.coreos.com"
    );
}

#[test]
fn without_a_way_in_nothing_is_missing() {
    let observed = exposed_by(json!({}), json!({}));
    assert_eq!(look(&observed), ("True", "Applied", String::new(), vec![]));
}

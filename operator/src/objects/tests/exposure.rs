//! The public listener's surroundings: every field of Services and routes, and nothing where none is named.

use serde_json::json;

use super::*;

fn with(service: Value, admin: Value, exposure: Value) -> Desired {
    make(&changed("minimal", |cluster| {
        cluster.spec.service = serde_json::from_value(service).unwrap();
        cluster.spec.admin_service = serde_json::from_value(admin).unwrap();
        cluster.spec.exposure = serde_json::from_value(exposure).unwrap();
    }))
}

#[test]
fn each_field_of_the_services_reaches_its_object() {
    let desired = with(
        json!({
            "type": "LoadBalancer", "port": 443,
            "labels": {"team": "realtime", "app.kubernetes.io/name": "mine"}, "annotations": {"example.com/lb": "nlb"},
            "appProtocol": "kubernetes.io/ws", "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local",
            "trafficDistribution": "PreferSameZone", "loadBalancerClass": "example.com/lb",
            "loadBalancerSourceRanges": ["192.0.2.0/24", "2001:db8::/32"],
            "ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6", "IPv4"],
        }),
        json!({"labels": {"scrape": "yes"}, "annotations": {"example.com/a": "b"}, "ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv6"]}),
        json!({}),
    );
    let service = json(Some(&desired.service)).unwrap();
    let spec = json!({
        "type": "LoadBalancer",
        "selector": crate::names::selector("try"),
        "ports": [{"name": "public", "port": 443, "targetPort": "public", "protocol": "TCP", "appProtocol": "kubernetes.io/ws"}],
        "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local", "trafficDistribution": "PreferSameZone",
        "loadBalancerClass": "example.com/lb", "loadBalancerSourceRanges": ["192.0.2.0/24", "2001:db8::/32"],
        "ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6", "IPv4"],
    });
    assert_eq!(service["spec"], spec);
    let metadata = &service["metadata"];
    assert_eq!(metadata["labels"]["team"], "realtime");
    assert_eq!(
        metadata["labels"]["app.kubernetes.io/name"],
        "signal-gateway"
    );
    assert_eq!(metadata["annotations"], json!({"example.com/lb": "nlb"}));

    let admin = json(Some(&desired.admin_service)).unwrap();
    assert_eq!(admin["metadata"]["labels"]["scrape"], "yes");
    assert_eq!(
        admin["metadata"]["annotations"],
        json!({"example.com/a": "b"})
    );
    assert_eq!(admin["spec"]["ipFamilyPolicy"], "SingleStack");
    assert_eq!(admin["spec"]["ipFamilies"], json!(["IPv6"]));
}

#[test]
fn a_route_has_what_is_named_and_a_redirect_is_a_route_of_its_own() {
    let plain = with(
        json!({}),
        Value::Null,
        json!({"httpRoute": {"parentRefs": [{"name": "public"}]}}),
    );
    let route = plain.http_route.unwrap();
    assert_eq!(route.metadata.annotations, None);
    let rule = json!({
        "matches": [{"path": {"type": "PathPrefix", "value": "/"}}],
        "backendRefs": [{"name": "try", "port": 8080}],
    });
    assert_eq!(
        route.data["spec"],
        json!({"parentRefs": [{"name": "public"}], "rules": [rule]})
    );
    assert_eq!(plain.redirect_route, None);

    let whole = with(
        json!({}),
        Value::Null,
        json!({"httpRoute": {
            "parentRefs": [{"name": "public", "sectionName": "https"}], "hostnames": ["rt.example.com"],
            "annotations": {"example.com/a": "b"},
            "timeouts": {"request": "0s", "backendRequest": "10s"},
            "requestHeaders": {"set": [{"name": "X-Edge", "value": "a"}], "remove": ["X-Debug"]},
            "responseHeaders": {"add": [{"name": "Strict-Transport-Security", "value": "max-age=300"}]},
            "redirect": {"parentRefs": [{"name": "public", "sectionName": "http"}], "port": 8443, "statusCode": 302},
        }}),
    );
    let route = whole.http_route.unwrap();
    let rule = &route.data["spec"]["rules"][0];
    assert_eq!(
        rule["timeouts"],
        json!({"request": "0s", "backendRequest": "10s"})
    );
    assert_eq!(
        rule["filters"],
        json!([
            {"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [{"name": "X-Edge", "value": "a"}], "remove": ["X-Debug"]}},
            {"type": "ResponseHeaderModifier", "responseHeaderModifier": {"add": [{"name": "Strict-Transport-Security", "value": "max-age=300"}]}},
        ])
    );
    assert_eq!(route.metadata.annotations.unwrap()["example.com/a"], "b");
    let redirect = whole.redirect_route.unwrap();
    assert_eq!(redirect.metadata.name.as_deref(), Some("try-redirect"));
    assert_eq!(
        redirect.data["spec"],
        json!({
            "parentRefs": [{"name": "public", "sectionName": "http"}], "hostnames": ["rt.example.com"],
            "rules": [{
                "matches": [{"path": {"type": "PathPrefix", "value": "/"}}],
                "filters": [{"type": "RequestRedirect", "requestRedirect": {"scheme": "https", "port": 8443, "statusCode": 302}}],
            }],
        })
    );
}

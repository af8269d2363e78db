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

/// Templates of the Deployment and of the migration Job.
fn pods(change: impl FnOnce(&mut signal_crds::SignalCluster)) -> [Value; 2] {
    let observed = changed("production", change);
    let job = make(&observed).migration;
    let deployment = make(&migrated(observed)).deployment;
    [
        json(deployment).unwrap()["spec"]["template"].take(),
        json(job).unwrap()["spec"]["template"].take(),
    ]
}

/// What SecurityContextConstraints `restricted-v2` demands (OpenShift, "Managing security context constraints"): no user and no group of one's own, no
/// privileges, and only these volumes.
#[test]
fn on_openshift_pods_leave_user_and_groups_to_the_constraints_and_stay_within_them() {
    for pod in pods(|_| {}) {
        let security = &pod["spec"]["securityContext"];
        for field in ["runAsUser", "runAsGroup", "fsGroup"] {
            assert_eq!(security[field], 65532, "{field}");
        }
    }
    for pod in pods(|cluster| cluster.spec.platform = Some(signal_crds::pod::Platform::OpenShift)) {
        let spec = &pod["spec"];
        let containers = spec["containers"].as_array().unwrap();
        for container in containers {
            let security = &container["securityContext"];
            assert_eq!(security["allowPrivilegeEscalation"], false);
            assert_eq!(security["capabilities"], json!({"drop": ["ALL"]}));
            assert_ne!(security["privileged"], true);
        }
        let contexts = containers
            .iter()
            .map(|container| &container["securityContext"]);
        for security in contexts.chain([&spec["securityContext"]]) {
            for field in ["runAsUser", "runAsGroup", "fsGroup", "supplementalGroups"] {
                assert!(security[field].is_null(), "{field}: {}", security[field]);
            }
            assert_ne!(security["runAsNonRoot"], false);
        }
        assert_eq!(spec["securityContext"]["runAsNonRoot"], true);
        assert_eq!(
            spec["securityContext"]["seccompProfile"]["type"],
            "RuntimeDefault"
        );
        for volume in spec["volumes"].as_array().unwrap() {
            let allowed = ["configMap", "emptyDir", "projected", "secret"];
            let is_allowed = allowed.iter().any(|kind| volume[*kind].is_object());
            assert!(is_allowed, "{volume}");
        }
        for forbidden in ["hostNetwork", "hostPID", "hostIPC"] {
            assert_ne!(spec[forbidden], true);
        }
    }
}

#[test]
fn sidecars_leave_the_admin_port_alone_where_a_mesh_is_named() {
    let annotations = |mesh: Option<signal_crds::pod::Mesh>, given: Option<(&str, &str)>| {
        let [deployment, _] = pods(|cluster| {
            cluster.spec.mesh = mesh;
            cluster.spec.gateway.admin_port = 9191;
            let own = &mut cluster.spec.pod_template.metadata.annotations;
            own.extend(given.map(|(name, value)| (name.into(), value.into())));
        });
        deployment["metadata"]["annotations"].clone()
    };
    let istio = "traffic.sidecar.istio.io/excludeInboundPorts";
    let linkerd = "config.linkerd.io/skip-inbound-ports";
    let none = annotations(None, None);
    assert!(none[istio].is_null() && none[linkerd].is_null());
    let mesh = Some(signal_crds::pod::Mesh::Istio);
    assert_eq!(annotations(mesh, None)[istio], "9191");
    assert_eq!(
        annotations(mesh, Some((istio, "4000, 4001")))[istio],
        "4000, 4001,9191"
    );
    assert_eq!(
        annotations(mesh, Some((istio, "4000, 9191")))[istio],
        "4000, 9191"
    );
    let mesh = Some(signal_crds::pod::Mesh::Linkerd);
    let found = annotations(mesh, None);
    assert_eq!(
        (&found[linkerd], &found[istio]),
        (&json!("9191"), &Value::Null)
    );
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

//! What the operator may do: enough, and no more.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::{VARIANTS, documents, kind, render};

fn rules(object: &Value) -> &Vec<Value> {
    object["rules"].as_array().unwrap()
}

fn words<'a>(rule: &'a Value, field: &str) -> impl Iterator<Item = &'a str> {
    rule[field]
        .as_array()
        .into_iter()
        .flatten()
        .map(|word| word.as_str().unwrap())
}

#[test]
fn no_rule_has_a_wildcard_or_leads_to_more_rights() {
    for variant in VARIANTS {
        let Some(text) = render("charts/signal-operator", variant) else {
            return;
        };
        let objects = documents(&text);
        let roles = objects
            .iter()
            .filter(|object| kind(object).ends_with("Role"));
        let mut seen = 0;
        for rule in roles.flat_map(rules) {
            seen += 1;
            assert!(rule.get("nonResourceURLs").is_none(), "{rule}");
            for verb in words(rule, "verbs") {
                assert!(
                    [
                        "get",
                        "list",
                        "watch",
                        "create",
                        "patch",
                        "update",
                        "delete",
                        "deletecollection"
                    ]
                    .contains(&verb),
                    "{rule}"
                );
            }
            for resource in words(rule, "resources") {
                let unwanted = [
                    "*",
                    "roles",
                    "rolebindings",
                    "clusterroles",
                    "clusterrolebindings",
                    "nodes",
                    "namespaces",
                ];
                assert!(!unwanted.contains(&resource), "{rule}");
                // Of the subresources only these: no exec, no token, no proxy, no eviction.
                let sub = resource.split_once('/').map(|(_, sub)| sub);
                assert!(
                    matches!(sub, None | Some("status" | "scale" | "finalizers")),
                    "{rule}"
                );
            }
            assert!(words(rule, "apiGroups").all(|group| group != "*"), "{rule}");
        }
        assert!(seen > 10, "{variant:?}");
    }
}

#[test]
fn named_namespaces_need_no_right_beyond_them() {
    let Some(text) = render("charts/signal-operator", VARIANTS[1]) else {
        return;
    };
    let objects = documents(&text);
    let bound: BTreeSet<(&str, &str)> = objects
        .iter()
        .filter(|object| object["apiVersion"] == "rbac.authorization.k8s.io/v1")
        .map(|object| {
            (
                kind(object),
                object["metadata"]["namespace"]
                    .as_str()
                    .expect("a namespace"),
            )
        })
        .collect();
    let want = ["realtime", "signal-system", "staging"]
        .into_iter()
        .flat_map(|namespace| [("Role", namespace), ("RoleBinding", namespace)]);
    assert_eq!(bound, want.collect());
    let leader = objects
        .iter()
        .find(|object| kind(object) == "Role" && object["metadata"]["namespace"] == "signal-system")
        .unwrap();
    let resources: BTreeSet<&str> = rules(leader)
        .iter()
        .flat_map(|rule| words(rule, "resources"))
        .collect();
    assert_eq!(resources, ["events", "leases"].into());
}

#[test]
fn a_namespace_and_all_of_them_are_granted_the_same() {
    let (Some(all), Some(named)) = (
        render("charts/signal-operator", &[]),
        render("charts/signal-operator", VARIANTS[1]),
    ) else {
        return;
    };
    let (all, named) = (documents(&all), documents(&named));
    let cluster = rules(
        all.iter()
            .find(|object| kind(object) == "ClusterRole")
            .unwrap(),
    );
    let realtime = named
        .iter()
        .find(|object| kind(object) == "Role" && object["metadata"]["namespace"] == "realtime")
        .unwrap();
    assert_eq!(cluster, rules(realtime));
}

#[test]
fn every_binding_names_the_account_that_the_pods_run_as() {
    for variant in VARIANTS {
        let Some(text) = render("charts/signal-operator", variant) else {
            return;
        };
        let objects = documents(&text);
        let deployment = objects
            .iter()
            .find(|object| kind(object) == "Deployment")
            .unwrap();
        let account = &deployment["spec"]["template"]["spec"]["serviceAccountName"];
        for binding in objects
            .iter()
            .filter(|object| kind(object).ends_with("RoleBinding"))
        {
            assert_eq!(&binding["subjects"][0]["name"], account, "{binding}");
            assert_eq!(
                binding["subjects"][0]["namespace"], "signal-system",
                "{binding}"
            );
            let role = &binding["roleRef"];
            let there = objects.iter().any(|object| {
                object["kind"] == role["kind"]
                    && object["metadata"]["name"] == role["name"]
                    && object["metadata"]["namespace"] == binding["metadata"]["namespace"]
            });
            assert!(there, "{binding}");
        }
    }
}

#[test]
fn people_get_rights_on_signalclusters_by_the_roles_of_kubernetes() {
    let (Some(all), Some(off)) = (
        render("charts/signal-operator", &[]),
        render("charts/signal-operator", &["--set", "rbac.aggregate=false"]),
    ) else {
        return;
    };
    let aggregated = |text: &str| -> Vec<Value> {
        let label = |object: &Value, role: &str| {
            object["metadata"]["labels"]
                [format!("rbac.authorization.k8s.io/aggregate-to-{role}").as_str()]
                == "true"
        };
        let of_people = |object: &Value| ["view", "edit", "admin"].map(|role| label(object, role));
        let objects = documents(text).into_iter();
        objects
            .filter(|object| of_people(object).contains(&true))
            .map(|object| {
                let verbs: Vec<&str> = rules(&object)
                    .iter()
                    .flat_map(|rule| words(rule, "verbs"))
                    .collect();
                let writes = verbs.contains(&"patch");
                assert_eq!(of_people(&object), [!writes, true, true], "{object}");
                for rule in rules(&object) {
                    assert!(words(rule, "apiGroups").eq(["signal.dev"]), "{rule}");
                    let status = words(rule, "resources").any(|one| one.ends_with("/status"));
                    let reads =
                        words(rule, "verbs").all(|one| ["get", "list", "watch"].contains(&one));
                    assert!(!status || reads, "{rule}");
                }
                object
            })
            .collect()
    };
    assert_eq!(aggregated(&all).len(), 2);
    assert_eq!(aggregated(&off).len(), 0);
}

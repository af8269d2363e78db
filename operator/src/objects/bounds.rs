//! What `spec.podTemplate` may make of a pod: an allow-list, checked on the result of the merge. Pure.
//!
//! Who may create a SignalCluster creates pods with the operator's rights. Without a further permission such a pod stays within the restricted Pod Security
//! standard (Kubernetes, "Pod Security Standards"), uses the account that the operator makes, which has no token, and mounts no Secret but the operator's.

use serde_json::Value;

use super::deployment::pod_template;
use super::revisions::static_secret_name;
use crate::names::{CONTAINER, Children};
use crate::observe::observed::PodAllowances;
use crate::plan::validate::ValidCluster;

/// Fields of a PodSpec that schedule, name and tune a pod.
const FREE: [&str; 23] = [
    "affinity",
    "automountServiceAccountToken",
    "dnsConfig",
    "dnsPolicy",
    "enableServiceLinks",
    "hostAliases",
    "hostname",
    "imagePullSecrets",
    "nodeSelector",
    "overhead",
    "preemptionPolicy",
    "priority",
    "priorityClassName",
    "readinessGates",
    "resources",
    "restartPolicy",
    "runtimeClassName",
    "schedulerName",
    "setHostnameAsFQDN",
    "subdomain",
    "terminationGracePeriodSeconds",
    "tolerations",
    "topologySpreadConstraints",
];
/// Sources of volumes that hold nothing of the node and no Secret.
const PLAIN_VOLUMES: [&str; 5] = [
    "configMap",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
];
/// Sources of a projected volume of which the same is true.
const PLAIN_SOURCES: [&str; 3] = ["configMap", "downwardAPI", "clusterTrustBundle"];
/// The safe sysctls of the standard.
const SYSCTLS: [&str; 10] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_syncookies",
];
/// Types of SELinux that the standard allows.
const SELINUX: [&str; 4] = ["", "container_t", "container_init_t", "container_kvm_t"];

/// A permission of the operator's arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Permission {
    ServiceAccounts,
    SecretVolumes,
    ExtraContainers,
    HostAccess,
}

/// Collects what the result has beyond what is allowed.
struct Bounds<'a> {
    allowed: &'a PodAllowances,
    /// Names of Secrets that the operator makes for pods.
    own_secrets: Vec<String>,
    found: Vec<String>,
}

/// Everything that the pods would have beyond what is allowed, by field and the missing permission.
pub fn beyond_bounds(cluster: &ValidCluster, allowed: &PodAllowances) -> Vec<String> {
    let children = Children::of(&cluster.name);
    let template = pod_template(cluster, &children, "");
    let mut bounds = Bounds {
        allowed,
        own_secrets: static_secret_name(cluster, &children)
            .into_iter()
            .chain([children.credentials.clone()])
            .collect(),
        found: Vec::new(),
    };
    let annotations = template.metadata.and_then(|meta| meta.annotations);
    let database = cluster.spec.database.as_ref();
    let of_job = database.map(|database| database.migration_job.metadata.annotations.clone());
    let annotations = annotations.into_iter().chain(of_job).flatten();
    for (name, value) in annotations {
        let unconfined = name.contains("apparmor") && value == "unconfined";
        bounds.need(!unconfined, Permission::HostAccess, "metadata.annotations");
    }
    let pod = serde_json::to_value(template.spec).expect("a PodSpec is plain data");
    bounds.pod(&pod, &children);
    bounds.found
}

fn list<'a>(value: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
    value[field].as_array().into_iter().flatten()
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

impl Bounds<'_> {
    fn need(&mut self, good: bool, permission: Permission, field: &str) {
        let (allowed, name) = match permission {
            Permission::ServiceAccounts => (self.allowed.service_accounts, "serviceAccounts"),
            Permission::SecretVolumes => (self.allowed.secret_volumes, "secretVolumes"),
            Permission::ExtraContainers => (self.allowed.extra_containers, "extraContainers"),
            Permission::HostAccess => (self.allowed.host_access, "hostAccess"),
        };
        if !good && !allowed {
            self.found.push(format!(
                "spec.podTemplate: {field} needs podTemplate.allow.{name} in the operator's chart"
            ));
        }
    }

    fn pod(&mut self, pod: &Value, children: &Children) {
        for (field, value) in pod.as_object().into_iter().flatten() {
            match field.as_str() {
                "containers" | "initContainers" | "ephemeralContainers" => {
                    for container in list(pod, field) {
                        self.container(field, container);
                    }
                }
                "volumes" => {
                    for volume in list(pod, field) {
                        self.volume(volume);
                    }
                }
                "serviceAccountName" | "serviceAccount" => self.need(
                    *value == children.name.as_str(),
                    Permission::ServiceAccounts,
                    field,
                ),
                "securityContext" => self.security("securityContext", value),
                "hostNetwork" | "hostPID" | "hostIPC" => {
                    self.need(*value == false, Permission::HostAccess, field);
                }
                // Other users than those of the node are less, not more.
                "hostUsers" => {}
                "shareProcessNamespace" => {
                    self.need(*value == false, Permission::ExtraContainers, field);
                }
                known if FREE.contains(&known) => {}
                _ => self.need(false, Permission::HostAccess, field),
            }
        }
    }

    fn container(&mut self, of: &str, container: &Value) {
        let name = text(container, "name");
        let field = format!("{of} {name}");
        let is_ours = of == "containers" && name == CONTAINER;
        self.need(is_ours, Permission::ExtraContainers, &field);
        self.security(
            &format!("{field}: securityContext"),
            &container["securityContext"],
        );
        for port in list(container, "ports") {
            let free =
                port["hostPort"].as_i64().unwrap_or(0) == 0 && text(port, "hostIP").is_empty();
            self.need(free, Permission::HostAccess, &format!("{field}: hostPort"));
        }
        for variable in list(container, "env") {
            let secret = &variable["valueFrom"]["secretKeyRef"];
            let field = format!("{field}: env {}", text(variable, "name"));
            self.need(secret.is_null(), Permission::SecretVolumes, &field);
        }
        for source in list(container, "envFrom") {
            let plain = source["secretRef"].is_null();
            self.need(
                plain,
                Permission::SecretVolumes,
                &format!("{field}: envFrom"),
            );
        }
        // The kubelet would ask any address from the node.
        let probes = ["livenessProbe", "readinessProbe", "startupProbe"].map(|at| &container[at]);
        let hooks = ["postStart", "preStop"].map(|at| &container["lifecycle"][at]);
        for handler in probes.into_iter().chain(hooks) {
            let named = ["httpGet", "tcpSocket"].map(|at| text(&handler[at], "host"));
            let free = named.iter().all(|host| host.is_empty());
            self.need(
                free,
                Permission::HostAccess,
                &format!("{field}: host of a probe"),
            );
        }
        let devices = list(&container["resources"], "claims").count();
        self.need(
            devices == 0,
            Permission::HostAccess,
            &format!("{field}: resources.claims"),
        );
    }

    fn security(&mut self, field: &str, context: &Value) {
        let is = |name: &str, value: bool| context[name] == value;
        let adds = list(&context["capabilities"], "add").any(|added| added != "NET_BIND_SERVICE");
        let confined = |profile: &Value| profile.is_null() || text(profile, "type") != "Unconfined";
        let selinux = &context["seLinuxOptions"];
        let is_plain_selinux = SELINUX.contains(&text(selinux, "type"))
            && text(selinux, "user").is_empty()
            && text(selinux, "role").is_empty();
        let unsafe_sysctl =
            list(context, "sysctls").any(|sysctl| !SYSCTLS.contains(&text(sysctl, "name")));
        for (good, name) in [
            (!is("privileged", true), "privileged"),
            (
                !is("allowPrivilegeEscalation", true),
                "allowPrivilegeEscalation",
            ),
            (!is("runAsNonRoot", false), "runAsNonRoot"),
            (context["runAsUser"].as_i64() != Some(0), "runAsUser"),
            (!adds, "capabilities"),
            (
                matches!(text(context, "procMount"), "" | "Default"),
                "procMount",
            ),
            (confined(&context["seccompProfile"]), "seccompProfile"),
            (confined(&context["appArmorProfile"]), "appArmorProfile"),
            (is_plain_selinux, "seLinuxOptions"),
            (context["windowsOptions"].is_null(), "windowsOptions"),
            (!unsafe_sysctl, "sysctls"),
        ] {
            self.need(good, Permission::HostAccess, &format!("{field}.{name}"));
        }
    }

    fn volume(&mut self, volume: &Value) {
        let field = format!("volumes {}", text(volume, "name"));
        for (source, content) in volume.as_object().into_iter().flatten() {
            match source.as_str() {
                "name" => {}
                "secret" => self.need(false, Permission::SecretVolumes, &field),
                "projected" => {
                    for source in list(content, "sources") {
                        self.projected(&field, source);
                    }
                }
                "csi" => {
                    let plain = content["nodePublishSecretRef"].is_null();
                    self.need(plain, Permission::SecretVolumes, &field);
                }
                plain if PLAIN_VOLUMES.contains(&plain) => {}
                _ => self.need(false, Permission::HostAccess, &field),
            }
        }
    }

    fn projected(&mut self, field: &str, source: &Value) {
        for (kind, content) in source.as_object().into_iter().flatten() {
            match kind.as_str() {
                "secret" => {
                    let name = text(content, "name");
                    let is_ours = self.own_secrets.iter().any(|own| own == name);
                    self.need(is_ours, Permission::SecretVolumes, field);
                }
                "serviceAccountToken" | "podCertificate" => {
                    self.need(false, Permission::ServiceAccounts, field);
                }
                plain if PLAIN_SOURCES.contains(&plain) => {}
                _ => self.need(false, Permission::HostAccess, field),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fixture::{EXAMPLES, changed, example};
    use crate::plan::validate::validate;

    /// What is found with these permissions, and everything that is found at all.
    fn found(part: &Value, allowed: PodAllowances) -> Vec<String> {
        let observed = changed("minimal", |cluster| {
            cluster.spec.pod_template.spec = part.as_object().unwrap().clone();
        });
        beyond_bounds(&validate(&observed).unwrap(), &allowed)
    }

    fn all() -> PodAllowances {
        PodAllowances {
            service_accounts: true,
            secret_volumes: true,
            extra_containers: true,
            host_access: true,
        }
    }

    fn gateway(part: Value) -> Value {
        let mut container = json!({"name": "gateway"});
        let fields = part.as_object().unwrap().clone();
        container.as_object_mut().unwrap().extend(fields);
        json!({"containers": [container]})
    }

    fn volume(part: Value) -> Value {
        let mut volume = json!({"name": "x"});
        let fields = part.as_object().unwrap().clone();
        volume.as_object_mut().unwrap().extend(fields);
        json!({"volumes": [volume]})
    }

    /// Each part is refused with this permission's name, and taken with the permission alone.
    fn each_needs(name: &str, permission: PodAllowances, parts: &[Value]) {
        for part in parts {
            let refused = found(part, PodAllowances::default());
            assert!(
                refused.iter().any(|line| line.contains(name)),
                "{part}: {refused:?}"
            );
            assert_eq!(found(part, permission), [""; 0], "{part}");
        }
    }

    #[test]
    fn privileges_and_the_node_need_a_permission() {
        let secure = |part: Value| gateway(json!({"securityContext": part}));
        let hook = json!({"preStop": {"httpGet": {"host": "169.254.169.254", "port": 80}}});
        let permission = PodAllowances {
            host_access: true,
            ..PodAllowances::default()
        };
        each_needs(
            "hostAccess",
            permission,
            &[
                json!({"hostNetwork": true}),
                json!({"hostPID": true}),
                json!({"hostIPC": true}),
                json!({"nodeName": "control-plane"}),
                json!({"securityContext": {"runAsUser": 0}}),
                json!({"securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}}),
                json!({"securityContext": {"appArmorProfile": {"type": "Unconfined"}}}),
                json!({"securityContext": {"seLinuxOptions": {"type": "spc_t"}}}),
                secure(json!({"capabilities": {"add": ["SYS_ADMIN"]}})),
                secure(json!({"procMount": "Unmasked"})),
                secure(json!({"runAsUser": 0})),
                secure(json!({"seccompProfile": {"type": "Unconfined"}})),
                gateway(json!({"ports": [{"name": "x", "containerPort": 1, "hostPort": 1}]})),
                gateway(json!({"lifecycle": hook})),
                volume(json!({"hostPath": {"path": "/"}})),
                volume(json!({"nfs": {"server": "a", "path": "/"}})),
            ],
        );
    }

    #[test]
    fn accounts_secrets_and_further_containers_need_a_permission_each() {
        let none = PodAllowances::default();
        let service_accounts = PodAllowances {
            service_accounts: true,
            ..none
        };
        let token = json!([{"serviceAccountToken": {"path": "token"}}]);
        each_needs(
            "serviceAccounts",
            service_accounts,
            &[
                json!({"serviceAccountName": "cluster-admin"}),
                json!({"serviceAccount": "cluster-admin"}),
                volume(json!({"projected": {"sources": token}})),
            ],
        );
        let secret_volumes = PodAllowances {
            secret_volumes: true,
            ..none
        };
        let key = json!({"name": "others", "key": "k"});
        each_needs(
            "secretVolumes",
            secret_volumes,
            &[
                volume(json!({"secret": {"secretName": "others"}})),
                volume(json!({"projected": {"sources": [{"secret": {"name": "others"}}]}})),
                gateway(json!({"env": [{"name": "A", "valueFrom": {"secretKeyRef": key}}]})),
                gateway(json!({"envFrom": [{"secretRef": {"name": "others"}}]})),
            ],
        );
        let extra_containers = PodAllowances {
            extra_containers: true,
            ..none
        };
        each_needs(
            "extraContainers",
            extra_containers,
            &[
                json!({"containers": [{"name": "more", "image": "i"}]}),
                json!({"initContainers": [{"name": "more", "image": "i"}]}),
                json!({"shareProcessNamespace": true}),
            ],
        );
    }

    #[test]
    fn a_permission_for_containers_is_none_for_privileged_ones() {
        let allowed = PodAllowances {
            extra_containers: true,
            ..PodAllowances::default()
        };
        for (field, value) in [
            ("privileged", json!(true)),
            ("allowPrivilegeEscalation", json!(true)),
            ("runAsNonRoot", json!(false)),
        ] {
            let container =
                json!({"name": "more", "image": "i", "securityContext": {field: value}});
            for list in ["containers", "initContainers"] {
                let refused = found(&json!({list: [container]}), allowed);
                assert_eq!(refused.len(), 1, "{refused:?}");
                assert!(refused[0].contains(field) && refused[0].contains("hostAccess"));
            }
        }
    }

    #[test]
    fn what_schedules_and_tunes_a_pod_is_free_and_so_is_every_example() {
        let free = json!({
            "priorityClassName": "critical", "nodeSelector": {"a": "b"}, "tolerations": [{"operator": "Exists"}], "hostUsers": false,
            "containers": [{"name": "gateway", "resources": {"limits": {"memory": "1Gi"}}, "env": [{"name": "A", "value": "1"}],
                "securityContext": {"capabilities": {"add": ["NET_BIND_SERVICE"]}}}],
            "volumes": [{"name": "a", "emptyDir": {}}, {"name": "b", "configMap": {"name": "c"}}, {"name": "d", "persistentVolumeClaim": {"claimName": "e"}}],
        });
        assert_eq!(found(&free, PodAllowances::default()), [""; 0]);
        for (name, _) in EXAMPLES {
            let cluster = validate(&example(name)).unwrap();
            assert_eq!(beyond_bounds(&cluster, &all()), [""; 0]);
            let refused = beyond_bounds(&cluster, &PodAllowances::default());
            assert_eq!(
                refused.len(),
                usize::from(name == "production"),
                "{refused:?}"
            );
        }
    }
}

//! NetworkPolicies, pods and namespaces -> the nftables table of one node. Pure.
//!
//! What Kubernetes says of a policy, for IPv4: a pod that a policy selects accepts, or sends, only what one of its policies allows. A port with a name is
//! resolved by the pod that listens. Traffic between a node and its own pods does not come by here, so probes of the kubelet always pass.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Namespace, Pod};
use k8s_openapi::api::networking::v1::{
    IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt as _;
use kube::core::{Selector, SelectorExt as _};

/// Everything that decides which connections pass.
pub(super) struct Objects {
    pub(super) policies: Vec<Arc<NetworkPolicy>>,
    pub(super) pods: Vec<Arc<Pod>>,
    pub(super) namespaces: Vec<Arc<Namespace>>,
}

/// Name of the table; the node's proxy has tables of its own.
pub(super) const TABLE: &str = "signal-network-policy";

/// A pod with an address of its own.
struct Workload<'a> {
    namespace: &'a str,
    labels: &'a BTreeMap<String, String>,
    node: &'a str,
    ip: Ipv4Addr,
    containers: Vec<&'a Container>,
}

impl<'a> Workload<'a> {
    /// `None` for a pod in its node's network, and for one that has no address or has given it back.
    fn of(pod: &'a Pod) -> Option<Self> {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        let (spec, status) = (pod.spec.as_ref()?, pod.status.as_ref()?);
        let has_ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        if has_ended || spec.host_network == Some(true) {
            return None;
        }
        let init = spec.init_containers.iter().flatten();
        Some(Self {
            namespace: pod.metadata.namespace.as_deref()?,
            labels: pod.metadata.labels.as_ref().unwrap_or(&NONE),
            node: spec.node_name.as_deref()?,
            ip: status.pod_ip.as_ref()?.parse().ok()?,
            containers: spec.containers.iter().chain(init).collect(),
        })
    }

    fn port(&self, name: &str, protocol: &str) -> Option<i32> {
        let ports = self
            .containers
            .iter()
            .flat_map(|it| it.ports.iter().flatten());
        ports
            .filter(|port| port.protocol.as_deref().unwrap_or("TCP") == protocol)
            .find(|port| port.name.as_deref() == Some(name))
            .map(|port| port.container_port)
    }
}

/// Seen from the pod that a policy selects.
#[derive(Clone, Copy, PartialEq)]
enum Direction {
    Ingress,
    Egress,
}

impl Direction {
    /// The chain of a pod.
    fn chain(self, ip: Ipv4Addr) -> String {
        match self {
            Self::Ingress => format!("to_{ip}"),
            Self::Egress => format!("from_{ip}"),
        }
    }

    /// The peer's address, as nftables calls it.
    fn peer(self) -> &'static str {
        match self {
            Self::Ingress => "ip saddr",
            Self::Egress => "ip daddr",
        }
    }

    fn is_of(self, spec: &NetworkPolicySpec) -> bool {
        let name = match self {
            Self::Ingress => "Ingress",
            Self::Egress => "Egress",
        };
        match &spec.policy_types {
            Some(types) => types.iter().any(|one| one == name),
            None => self == Self::Ingress || spec.egress.is_some(),
        }
    }
}

/// Peers and ports of one rule; an empty list is no limit.
struct Rule<'a> {
    peers: &'a [NetworkPolicyPeer],
    ports: &'a [NetworkPolicyPort],
}

fn rules(spec: &NetworkPolicySpec, direction: Direction) -> Vec<Rule<'_>> {
    match direction {
        Direction::Ingress => {
            let rules = spec.ingress.iter().flatten();
            let rule = rules.map(|rule| Rule {
                peers: rule.from.as_deref().unwrap_or_default(),
                ports: rule.ports.as_deref().unwrap_or_default(),
            });
            rule.collect()
        }
        Direction::Egress => {
            let rules = spec.egress.iter().flatten();
            let rule = rules.map(|rule| Rule {
                peers: rule.to.as_deref().unwrap_or_default(),
                ports: rule.ports.as_deref().unwrap_or_default(),
            });
            rule.collect()
        }
    }
}

/// Whom a rule names.
enum Peers<'a> {
    Any,
    Pods(Vec<&'a Workload<'a>>),
    Block(&'a IPBlock),
}

/// The table of a node, as `nft -f` reads it: all of it is replaced at once.
pub(super) fn table(objects: &Objects, node: &str) -> String {
    let pods = objects.pods.iter();
    let known: Vec<Workload<'_>> = pods.filter_map(|pod| Workload::of(pod)).collect();
    let mut text = format!("table ip {TABLE}\ndelete table ip {TABLE}\ntable ip {TABLE} {{\n");
    let mut jumps = [(Direction::Egress, vec![]), (Direction::Ingress, vec![])];
    for subject in known.iter().filter(|pod| pod.node == node) {
        for (direction, isolated) in &mut jumps {
            let Some(lines) = lines(objects, &known, subject, *direction) else {
                continue;
            };
            let chain = direction.chain(subject.ip);
            let _ = writeln!(text, "chain {chain} {{");
            for line in lines {
                let _ = writeln!(text, "{line} return");
            }
            text.push_str("counter drop\n}\n");
            isolated.push(format!("{} : jump {chain}", subject.ip));
        }
    }
    for (direction, isolated) in jumps {
        let (name, own) = match direction {
            Direction::Egress => ("from_pods", "ip saddr"),
            Direction::Ingress => ("to_pods", "ip daddr"),
        };
        let _ = writeln!(text, "chain {name} {{\nct state established,related return");
        if !isolated.is_empty() {
            let _ = writeln!(text, "{own} vmap {{ {} }}", isolated.join(", "));
        }
        text.push_str("}\n");
    }
    // Behind the proxy's translation of Services, and before it hides senders. A bridge brings what passes between pods of one node here, too
    // (br_netfilter). The second hook is for what a pod sends to its own node.
    text.push_str(
        "chain forwarded {\ntype filter hook forward priority filter; policy accept;\njump from_pods\njump to_pods\n}\n\
         chain received {\ntype filter hook input priority filter; policy accept;\njump from_pods\n}\n}\n",
    );
    text
}

/// What a pod may exchange; `None`: no policy of this direction selects it.
fn lines(
    objects: &Objects,
    known: &[Workload<'_>],
    subject: &Workload<'_>,
    direction: Direction,
) -> Option<BTreeSet<String>> {
    let mut allowed = None;
    for policy in &objects.policies {
        let Some(spec) = policy.spec.as_ref().filter(|spec| direction.is_of(spec)) else {
            continue;
        };
        let is_selected = policy.namespace().as_deref() == Some(subject.namespace)
            && matches(spec.pod_selector.as_ref(), subject.labels);
        if !is_selected {
            continue;
        }
        // A pod always reaches itself, by a Service too.
        let own = format!("{} {}", direction.peer(), subject.ip);
        let allowed = allowed.get_or_insert_with(|| BTreeSet::from([own]));
        for rule in rules(spec, direction) {
            for peers in peers(objects, known, &rule, subject.namespace) {
                if rule.ports.is_empty() {
                    allowed.extend(addresses(&peers, direction));
                }
                for port in rule.ports {
                    allowed.extend(with_port(&peers, port, known, subject, direction));
                }
            }
        }
    }
    allowed
}

fn peers<'a>(
    objects: &Objects,
    known: &'a [Workload<'a>],
    rule: &Rule<'a>,
    namespace: &str,
) -> Vec<Peers<'a>> {
    if rule.peers.is_empty() {
        return vec![Peers::Any];
    }
    let of = |peer: &'a NetworkPolicyPeer| {
        if let Some(block) = &peer.ip_block {
            return Peers::Block(block);
        }
        let is_of = |pod: &&Workload<'_>| {
            let in_namespace = match &peer.namespace_selector {
                None => pod.namespace == namespace,
                Some(selector) => objects.namespaces.iter().any(|one| {
                    one.name_any() == pod.namespace && matches(Some(selector), one.labels())
                }),
            };
            in_namespace && matches(peer.pod_selector.as_ref(), pod.labels)
        };
        Peers::Pods(known.iter().filter(is_of).collect())
    };
    rule.peers.iter().map(of).collect()
}

/// A selector that is not there, or is empty, matches all.
fn matches(selector: Option<&LabelSelector>, labels: &BTreeMap<String, String>) -> bool {
    let selector = Selector::try_from(selector.cloned().unwrap_or_default());
    selector.is_ok_and(|selector| selector.matches(labels))
}

/// How nftables matches these peers; `None`: there are none.
fn addresses(peers: &Peers<'_>, direction: Direction) -> Option<String> {
    let address = direction.peer();
    match peers {
        Peers::Any => Some(String::new()),
        Peers::Pods(pods) if pods.is_empty() => None,
        Peers::Pods(pods) => {
            let ips: BTreeSet<String> = pods.iter().map(|pod| pod.ip.to_string()).collect();
            Some(format!(
                "{address} {{ {} }}",
                Vec::from_iter(ips).join(", ")
            ))
        }
        Peers::Block(block) if block.cidr.contains(':') => None,
        Peers::Block(block) => {
            let except = block.except.iter().flatten();
            let except = except.map(|cidr| format!(" {address} != {cidr}"));
            Some(format!(
                "{address} {}{}",
                block.cidr,
                String::from_iter(except)
            ))
        }
    }
}

/// How nftables matches one port of these peers, or of the subject.
fn with_port(
    peers: &Peers<'_>,
    port: &NetworkPolicyPort,
    known: &[Workload<'_>],
    subject: &Workload<'_>,
    direction: Direction,
) -> Vec<String> {
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    let lower = protocol.to_lowercase();
    let to = |number: &dyn std::fmt::Display| format!("{lower} dport {number}");
    let matched = match (&port.port, port.end_port) {
        (None, _) => format!("ip protocol {lower}"),
        (Some(IntOrString::Int(first)), Some(last)) => to(&format!("{first}-{last}")),
        (Some(IntOrString::Int(number)), None) => to(number),
        (Some(IntOrString::String(name)), _) if direction == Direction::Ingress => {
            match subject.port(name, protocol) {
                Some(number) => to(&number),
                None => return vec![],
            }
        }
        // Each pod that listens gives the name its own number. An address block has no names.
        (Some(IntOrString::String(name)), _) => {
            let pods: Vec<&Workload<'_>> = match peers {
                Peers::Any => known.iter().collect(),
                Peers::Pods(pods) => pods.clone(),
                Peers::Block(_) => vec![],
            };
            let pods = pods.into_iter();
            let line = |pod: &Workload<'_>| {
                let number = pod.port(name, protocol)?;
                Some(format!("{} {} {}", direction.peer(), pod.ip, to(&number)))
            };
            return pods.filter_map(line).collect();
        }
    };
    let addresses = addresses(peers, direction);
    let line = addresses.map(|addresses| format!("{addresses} {matched}"));
    line.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::serde_json::{Value, from_value, json};

    use super::*;

    fn pod(namespace: &str, name: &str, ip: &str, http: i32) -> Value {
        json!({
            "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
            "spec": {"nodeName": "node1", "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": http}]}]},
            "status": {"phase": "Running", "podIP": ip},
        })
    }

    /// Two pods named `shop` on different ports, one `client`, and a `client` in another namespace; all on node 1 but the second shop.
    fn objects(specs: &[Value]) -> Objects {
        let mut second = pod("a", "shop", "10.244.2.3", 9090);
        second["spec"]["nodeName"] = json!("node2");
        let mut ended = pod("a", "client", "10.244.1.9", 1);
        ended["status"]["phase"] = json!("Succeeded");
        let mut host = pod("a", "client", "10.240.0.11", 1);
        host["spec"]["hostNetwork"] = json!(true);
        let pods = [
            pod("a", "shop", "10.244.1.3", 8080),
            second,
            pod("a", "client", "10.244.1.4", 1),
            pod("b", "client", "10.244.1.5", 1),
            ended,
            host,
        ];
        let namespace = |name: &str| json!({"metadata": {"name": name, "labels": {"name": name}}});
        let policy =
            |spec: &Value| json!({"metadata": {"name": "p", "namespace": "a"}, "spec": spec});
        Objects {
            policies: specs
                .iter()
                .map(|spec| from_value(policy(spec)).unwrap())
                .collect(),
            pods: pods.map(|pod| from_value(pod).unwrap()).into(),
            namespaces: ["a", "b"]
                .map(|name| from_value(namespace(name)).unwrap())
                .into(),
        }
    }

    /// Lines of a chain, but for the pod's own address and the drop at its end.
    fn chain(text: &str, name: &str) -> Option<Vec<String>> {
        let (_, rest) = text.split_once(&format!("chain {name} {{\n"))?;
        let (body, _) = rest.split_once("\n}")?;
        let mut lines: Vec<String> = body.lines().map(|line| line.trim().to_owned()).collect();
        assert_eq!(lines.pop().unwrap(), "counter drop");
        let own = name.split_once('_').unwrap().1;
        lines.retain(|line| !line.ends_with(&format!(" {own} return")));
        Some(lines)
    }

    const SHOP: &str = "to_10.244.1.3";

    fn ingress(rules: Value) -> Value {
        json!({"podSelector": {"matchLabels": {"app": "shop"}}, "ingress": rules})
    }

    #[test]
    fn only_selected_pods_of_the_node_and_the_direction_are_isolated() {
        let text = table(&objects(&[ingress(json!([]))]), "node1");
        assert_eq!(chain(&text, SHOP), Some(vec![]));
        for free in ["to_10.244.2.3", "from_10.244.1.3", "to_10.244.1.4"] {
            assert_eq!(chain(&text, free), None, "{free}");
        }
        assert!(text.contains("ip daddr vmap { 10.244.1.3 : jump to_10.244.1.3 }"));
        assert!(!text.contains("ip saddr vmap"));
        let none = table(&objects(&[]), "node1");
        assert!(!none.contains("vmap"), "{none}");
    }

    #[test]
    fn peers_are_pods_of_one_namespace_of_selected_ones_or_addresses() {
        let client = json!({"matchLabels": {"app": "client"}});
        let other =
            json!({"matchExpressions": [{"key": "name", "operator": "In", "values": ["b"]}]});
        for (peer, expected) in [
            (
                json!({"podSelector": client}),
                "ip saddr { 10.244.1.4 } return",
            ),
            (
                json!({"podSelector": client, "namespaceSelector": {}}),
                "ip saddr { 10.244.1.4, 10.244.1.5 } return",
            ),
            (
                json!({"namespaceSelector": other}),
                "ip saddr { 10.244.1.5 } return",
            ),
            (
                json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16", "10.2.0.0/16"]}}),
                "ip saddr 10.0.0.0/8 ip saddr != 10.1.0.0/16 ip saddr != 10.2.0.0/16 return",
            ),
        ] {
            let text = table(&objects(&[ingress(json!([{"from": [peer]}]))]), "node1");
            assert_eq!(chain(&text, SHOP), Some(vec![expected.to_owned()]));
        }
        let nobody = json!([{"from": [{"podSelector": {"matchLabels": {"app": "none"}}}]}]);
        assert_eq!(
            chain(&table(&objects(&[ingress(nobody)]), "node1"), SHOP),
            Some(vec![])
        );
    }

    #[test]
    fn a_port_has_a_number_a_range_or_a_name_of_the_pod_that_listens() {
        let ports = json!([{"port": 80}, {"port": 90, "endPort": 95, "protocol": "UDP"}, {"port": "http"}, {"port": "none"}, {"protocol": "SCTP"}]);
        let objects = objects(&[ingress(json!([{"ports": ports}]))]);
        let lines = chain(&table(&objects, "node1"), SHOP).unwrap();
        let expected = [
            "ip protocol sctp",
            "tcp dport 80",
            "tcp dport 8080",
            "udp dport 90-95",
        ];
        let trimmed: Vec<&str> = lines
            .iter()
            .map(|line| line.trim_end_matches(" return").trim())
            .collect();
        assert_eq!(trimmed, expected);
        let second = chain(&table(&objects, "node2"), "to_10.244.2.3").unwrap();
        assert!(
            second.iter().any(|line| line.contains("tcp dport 9090")),
            "{second:?}"
        );
    }

    #[test]
    fn egress_names_ports_of_each_pod_it_leads_to() {
        let to = json!([{"to": [{"podSelector": {"matchLabels": {"app": "shop"}}}], "ports": [{"port": "http"}]}]);
        let policy = json!({"podSelector": {"matchLabels": {"app": "client"}}, "policyTypes": ["Egress"], "egress": to});
        let text = table(&objects(&[policy]), "node1");
        let expected = [
            "ip daddr 10.244.1.3 tcp dport 8080 return",
            "ip daddr 10.244.2.3 tcp dport 9090 return",
        ];
        assert_eq!(chain(&text, "from_10.244.1.4").unwrap(), expected);
        assert_eq!(chain(&text, "to_10.244.1.4"), None);
        assert_eq!(
            chain(&text, "from_10.244.1.5"),
            None,
            "of another namespace"
        );
    }

    #[test]
    fn what_several_policies_allow_is_allowed() {
        let one = ingress(json!([{"ports": [{"port": 1}]}]));
        let other = ingress(json!([{"ports": [{"port": 2}]}]));
        let lines = chain(&table(&objects(&[one, other]), "node1"), SHOP).unwrap();
        assert_eq!(lines.len(), 2, "{lines:?}");
    }
}

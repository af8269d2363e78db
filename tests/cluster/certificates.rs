//! TLS on the public port, from a Secret: a renewed certificate reaches new connections and closes none, and one that cannot be used changes nothing.

use std::net::IpAddr;
use std::time::Duration;

use serde_json::json;
use signal_services::PrivateKey;
use signal_tests::Client;
use signal_tests::client::KeyMember;
use signal_tests::services::scratch;
use signal_tests::tls::Certificates;
use signal_tests::wait::until_within;

use crate::LONG;
use crate::edge::Edge;

const NAMES: [&str; 2] = ["old", "new"];
/// Handshakes that look for the certificate: enough to meet every pod.
const HANDSHAKES: usize = 12;

/// Writes the Secret of a certificate and a key, which need not belong together.
fn put(edge: &Edge, certificates: &Certificates, certificate: &str, key: &str) {
    let read = |name: String| std::fs::read_to_string(certificates.path(&name)).expect("a file");
    let data = json!({"tls.crt": read(format!("{certificate}.pem")), "tls.key": read(format!("{key}.key"))});
    edge.apply(&json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "edge-tls"},
        "type": "kubernetes.io/tls", "stringData": data,
    }));
}

/// Whether every new handshake shows this certificate.
async fn all_show(edge: &Edge, certificates: &Certificates, name: &str) -> Option<()> {
    let client = certificates.client().without_resumption();
    for _ in 0..HANDSHAKES {
        let stream = client.try_connect(edge.address()).await.ok()?;
        let chain = stream.get_ref().1.peer_certificates()?;
        if chain[0] != certificates.certificate(name) {
            return None;
        }
    }
    Some(())
}

async fn are_open(clients: &mut [Client]) {
    for client in clients {
        assert_eq!(client.next_within(Duration::from_millis(50)).await, None);
    }
}

pub(crate) async fn a_renewed_certificate_reaches_new_connections_and_closes_none(edge: &Edge) {
    let dir = scratch();
    let certificates = Certificates::new(dir.path());
    let IpAddr::V4(ip) = edge.address().ip() else {
        panic!("nodes have addresses of IPv4");
    };
    for name in NAMES {
        certificates.issue_at(ip, name, PrivateKey::Pkcs8);
    }
    put(edge, &certificates, "old", "old");
    edge.patch(json!({"gateway": {"tls": {"secretName": "edge-tls"}}}));
    until_within(LONG, "every pod speaks TLS", async || {
        let is_done = edge.is_observed() && edge.condition("Ready")?.0 == "True";
        if !is_done {
            return None;
        }
        all_show(edge, &certificates, "old").await
    })
    .await;
    edge.none_is_going(LONG).await;
    let pods = edge.pods();
    let client = certificates.client();
    let mut clients = Vec::new();
    for number in 0..HANDSHAKES {
        let token = edge.issuer.token(&format!("secure-{number}"));
        let opened = client.open(edge.address(), &token, KeyMember::ClientPublicKey);
        clients.push(opened.await);
    }

    put(edge, &certificates, "new", "new");
    until_within(LONG, "new connections see it", async || {
        all_show(edge, &certificates, "new").await
    })
    .await;
    are_open(&mut clients).await;

    put(edge, &certificates, "old", "new");
    until_within(LONG, "it is told", async || {
        let (status, reason, message) = edge.condition("SecretsResolved")?;
        let is_told = status == "False" && reason == "CertificateInvalid";
        (is_told && message.contains("edge-tls")).then_some(())
    })
    .await;
    assert!(all_show(edge, &certificates, "new").await.is_some());
    put(edge, &certificates, "new", "new");
    edge.ready(LONG).await;
    are_open(&mut clients).await;
    assert_eq!(edge.pods(), pods, "no pod restarted");
    for client in clients {
        client.close().await;
    }
}

//! TLS on the public port: the Secret as files, the settings, the Services, the alert.

use std::net::Ipv4Addr;

use signal_crds::gateway::{AddressFamilies, Tls, TlsVersion};
use signal_crds::reference::SecretKey;
use signal_services::{Authority, PrivateKey};

use super::*;
use crate::plan::validate::validate;

/// The production example with TLS, and Secrets as `openssl` makes them.
fn with_tls(certificate: &str, key: &str) -> Observed {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path()).unwrap();
    for name in ["one", "two"] {
        authority
            .issue(name, Ipv4Addr::LOCALHOST, PrivateKey::Pkcs8)
            .unwrap();
    }
    let mut observed = changed("production", |cluster| {
        cluster.spec.gateway.tls = Some(Tls {
            secret_name: "edge".into(),
            client_ca_secret_ref: Some(SecretKey {
                name: "edge".into(),
                key: "ca.crt".into(),
            }),
            min_version: TlsVersion::V1_3,
        });
    });
    let read = |name: &str| std::fs::read(dir.path().join(name)).unwrap_or_default();
    let data = [
        ("tls.crt", read(certificate)),
        ("tls.key", read(key)),
        ("ca.crt", read("ca.pem")),
    ];
    let data = data
        .into_iter()
        .filter(|(_, content)| !content.is_empty())
        .map(|(name, content)| (name.to_owned(), content))
        .collect();
    observed.secrets.insert("edge".into(), Some(data));
    observed
}

#[test]
fn tls_is_mounted_and_followed_and_only_its_settings_roll_the_pods() {
    let before = with_tls("one.pem", "one.key");
    let desired = make(&migrated(before.clone()));
    let config = desired
        .static_config
        .as_ref()
        .unwrap()
        .data
        .as_ref()
        .unwrap()["gateway.toml"]
        .clone();
    for line in [
        "certificate_file = \"/etc/signal/live/tls.crt\"",
        "key_file = \"/etc/signal/live/tls.key\"",
        "client_ca_file = \"/etc/signal/live/tls-client-ca.crt\"",
        "min_version = \"1.3\"",
    ] {
        assert!(config.contains(line), "{line}: {config}");
    }
    let credentials = desired.credentials.data.as_ref().unwrap();
    for (file, key) in [
        ("tls.crt", "tls.crt"),
        ("tls.key", "tls.key"),
        ("tls-client-ca.crt", "ca.crt"),
    ] {
        let content = &before.secrets["edge"].as_ref().unwrap()[key];
        assert_eq!(&credentials[file].0, content, "{file}");
    }
    // Another certificate is other content and nothing else.
    let after = make(&migrated(with_tls("two.pem", "two.key")));
    assert_eq!(template(&after), template(&desired));
    assert_ne!(after.credentials.data, desired.credentials.data);

    let ports = |service: &Service| service.spec.clone().unwrap().ports.unwrap();
    assert_eq!(
        ports(&desired.service)[0].app_protocol.as_deref(),
        Some("https")
    );
    assert_eq!(
        ports(&desired.admin_service)[0].app_protocol.as_deref(),
        Some("http")
    );
    let container = template(&desired)["spec"]["containers"][0].clone();
    assert_eq!(container["readinessProbe"]["httpGet"]["port"], "admin");
    assert_eq!(container["readinessProbe"]["httpGet"]["scheme"], "HTTP");
    let rules = serde_json::to_string(&desired.prometheus_rule).unwrap();
    assert!(rules.contains("SignalCertificateExpires"), "{rules}");
    let without = make(&migrated(example("production")));
    let rules = serde_json::to_string(&without.prometheus_rule).unwrap();
    assert!(!rules.contains("SignalCertificateExpires"));
}

#[test]
fn a_secret_that_is_no_pair_is_refused_without_being_told() {
    for (certificate, key, text) in [
        (
            "two.pem",
            "one.key",
            "tls.key does not belong to the certificate",
        ),
        (
            "one.key",
            "one.key",
            "tls.crt does not hold PEM certificates",
        ),
        (
            "one.pem",
            "one.pem",
            "tls.key does not hold a PEM private key",
        ),
    ] {
        let problems = validate(&with_tls(certificate, key)).unwrap_err();
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert_eq!(problems[0].reason, "CertificateInvalid");
        assert!(
            problems[0]
                .message
                .starts_with("spec.gateway.tls.secretName: Secret edge: ")
                && problems[0].message.contains(text),
            "{problems:?}"
        );
    }
    let problems = validate(&with_tls("one.pem", "none")).unwrap_err();
    assert_eq!(problems[0].reason, "SecretKeyMissing");
    let mut missing = with_tls("one.pem", "one.key");
    missing.secrets.insert("edge".into(), None);
    let problems = validate(&missing).unwrap_err();
    assert!(
        problems
            .iter()
            .all(|problem| problem.reason == "SecretMissing"),
        "{problems:?}"
    );
}

#[test]
fn both_families_are_listened_on_where_the_spec_says_so() {
    let both = changed("production", |cluster| {
        cluster.spec.gateway.address_families = AddressFamilies::DualStack
    });
    let desired = make(&migrated(both));
    let config = &desired
        .static_config
        .as_ref()
        .unwrap()
        .data
        .as_ref()
        .unwrap()["gateway.toml"];
    assert!(
        config.contains("public_address = \"[::]:8080\""),
        "{config}"
    );
    assert!(config.contains("admin_address = \"[::]:9090\""), "{config}");
    for service in [&desired.service, &desired.admin_service] {
        let policy = service.spec.as_ref().unwrap().ip_family_policy.as_deref();
        assert_eq!(policy, Some("PreferDualStack"));
    }
    let before = make(&migrated(example("production")));
    assert_eq!(before.service.spec.unwrap().ip_family_policy, None);
}

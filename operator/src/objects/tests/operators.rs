//! Secrets as Strimzi, CloudNativePG and cert-manager write them: files, settings, what is said of them, and what a changed one does.

use signal_crds::data::KafkaProtocol;
use signal_crds::secrets::SslMode;
use signal_gateway::config;

use super::*;
use crate::fixture::with_secrets_of_operators;
use crate::plan::validate::POLICY_CA;

/// The settings as a gateway reads them, and the texts of the files.
fn rendered(observed: &Observed) -> (config::Config, config::Live, BTreeMap<String, String>) {
    let cluster = validate(observed).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("gateway.toml");
    std::fs::write(&path, gateway_toml(&cluster)).unwrap();
    let live = config::load_live(&live_toml(&cluster, &settled(&cluster), true)).unwrap();
    let text = |(name, content): (&String, &Vec<u8>)| {
        let text = String::from_utf8(content.clone()).unwrap();
        (name.clone(), text)
    };
    let files = cluster.files.iter().map(text).collect();
    let config = config::load(Some(&path), std::iter::empty()).unwrap();
    (config, live, files)
}

fn secret<'a>(observed: &'a mut Observed, name: &str) -> &'a mut BTreeMap<String, Vec<u8>> {
    observed.secrets.get_mut(name).unwrap().as_mut().unwrap()
}

#[test]
fn the_secret_of_a_kafka_user_is_a_certificate_with_ssl_and_a_login_with_sasl() {
    let observed = with_secrets_of_operators(KafkaProtocol::Ssl);
    let (config, _, files) = rendered(&observed);
    let user = observed.secrets["signal"].as_ref().unwrap();
    let security = &config.kafka.security;
    let name = |path: &std::path::Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    for (path, key) in [
        (security.certificate_file.as_path(), "user.crt"),
        (security.key_file.path().unwrap(), "user.key"),
    ] {
        assert_eq!(files[&name(path)].as_bytes(), user[key], "{key}");
    }
    assert_eq!(name(&security.ca_file), "kafka-ca.crt");
    assert!(security.auth.username.is_empty() && security.auth.password_file.path().is_none());
    assert!(!files.values().any(|text| text.contains("of-the-p12")));

    let mut observed = with_secrets_of_operators(KafkaProtocol::SaslSsl);
    let (config, _, files) = rendered(&observed);
    let auth = &config.kafka.security.auth;
    assert_eq!(
        auth.username, "signal",
        "the KafkaUser has the name of its Secret"
    );
    assert_eq!(auth.mechanism, config::KafkaMechanism::ScramSha512);
    assert_eq!(files["kafka-password"], "strimzi:pass word");
    assert!(config.kafka.security.key_file.path().is_none());
    let cluster = std::sync::Arc::make_mut(&mut observed.cluster);
    let security = &mut cluster.spec.kafka.as_mut().unwrap().security;
    security.user.as_mut().unwrap().username = Some("copied".into());
    assert_eq!(rendered(&observed).0.kafka.security.auth.username, "copied");
}

#[test]
fn while_strimzi_replaces_its_authority_both_are_trusted() {
    let mut observed = with_secrets_of_operators(KafkaProtocol::Ssl);
    let before = rendered(&observed).2.remove("kafka-ca.crt").unwrap();
    let set = |observed: &mut Observed, key: &str| {
        let cluster = std::sync::Arc::make_mut(&mut observed.cluster);
        let security = &mut cluster.spec.kafka.as_mut().unwrap().security;
        security.ca_secret_ref.as_mut().unwrap().key = key.into();
    };
    set(&mut observed, "*.crt");
    assert_eq!(
        rendered(&observed).2["kafka-ca.crt"].trim(),
        before.trim(),
        "one alone is what it is"
    );
    let dir = tempfile::tempdir().unwrap();
    signal_services::Authority::new(dir.path()).unwrap();
    let new = std::fs::read_to_string(dir.path().join("ca.pem")).unwrap();
    let secret = secret(&mut observed, "kafka-cluster-ca-cert");
    let old = secret.insert("ca.crt".into(), new.clone().into());
    secret.insert("ca-2026-11-29T22-00-00Z.crt".into(), old.unwrap());
    let both = rendered(&observed).2.remove("kafka-ca.crt").unwrap();
    assert_eq!(both, format!("{}\n{}\n", before.trim(), new.trim()));

    // What is wrong is named by its own key.
    let wrong = |observed: &Observed| {
        let problems = validate(observed).unwrap_err();
        problems[0].message.clone()
    };
    set(&mut observed, "*.pem");
    let text = wrong(&observed);
    assert!(
        text.ends_with("Secret kafka-cluster-ca-cert has no key *.pem"),
        "{text}"
    );
    set(&mut observed, "*.crt");
    let secret = self::secret(&mut observed, "kafka-cluster-ca-cert");
    secret.insert("ca-2026-11-29T22-00-00Z.crt".into(), b" ".to_vec());
    let text = wrong(&observed);
    assert!(
        text.contains("key ca-2026-11-29T22-00-00Z.crt of Secret kafka-cluster-ca-cert is empty"),
        "{text}"
    );
}

#[test]
fn the_parts_of_a_database_are_one_url() {
    let mut observed = with_secrets_of_operators(KafkaProtocol::Ssl);
    let (config, _, files) = rendered(&observed);
    let login = "postgres://app:a%2Fb%3Ac%40d%20%252F%C3%A9%2B@db-rw:5432/app";
    assert_eq!(
        files["database-url"],
        format!("{login}?sslmode=verify-full&sslrootcert={LIVE_DIR}/{DATABASE_CA}")
    );
    assert_eq!(
        files["policy-url"],
        format!("{login}?sslmode=verify-full&sslrootcert={LIVE_DIR}/{POLICY_CA}")
    );
    assert!(files[DATABASE_CA].contains("BEGIN CERTIFICATE") && files.contains_key(POLICY_CA));
    assert!(
        !files
            .values()
            .any(|text| text.contains("pgpass") || text.contains("jdbc"))
    );
    let read: url::Url = files["database-url"].parse().unwrap();
    assert_eq!(read.host_str(), Some("db-rw"));
    assert_eq!(
        config.database.url_file.path().unwrap(),
        std::path::Path::new("/etc/signal/live/database-url")
    );

    let spec = |observed: &mut Observed, change: fn(&mut signal_crds::data::Database)| {
        let cluster = std::sync::Arc::make_mut(&mut observed.cluster);
        change(cluster.spec.database.as_mut().unwrap());
        rendered(observed).2.remove("database-url").unwrap()
    };
    let url = spec(&mut observed, |database| database.ca_secret_ref = None);
    assert!(url.ends_with("/app?sslmode=require"), "{url}");
    let url = spec(&mut observed, |database| {
        database.ssl_mode = Some(SslMode::Disable);
        let connection = database.connection.as_mut().unwrap();
        (connection.host, connection.port) = (Some("one,fd00::2".into()), Some(6432));
        connection.database = Some("signal".into());
    });
    assert!(
        url.ends_with("@one:6432,[fd00::2]:6432/signal?sslmode=disable"),
        "{url}"
    );
}

#[test]
fn the_uri_of_an_application_is_usable_as_it_is() {
    let mut observed = with_secrets_of_operators(KafkaProtocol::Ssl);
    let cluster = std::sync::Arc::make_mut(&mut observed.cluster);
    let database = cluster.spec.database.as_mut().unwrap();
    database.connection = None;
    database.url_secret_ref = Some(signal_crds::reference::SecretKey {
        name: "db-app".into(),
        key: "uri".into(),
    });
    database.ca_secret_ref = None;
    let uri = "postgresql://app:secret@db-rw.realtime:5432/app";
    assert_eq!(rendered(&observed).2["database-url"], uri);
    let cluster = std::sync::Arc::make_mut(&mut observed.cluster);
    cluster.spec.database.as_mut().unwrap().ssl_mode = Some(SslMode::VerifyCa);
    assert_eq!(
        rendered(&observed).2["database-url"],
        format!("{uri}?sslmode=verify-ca")
    );
    secret(&mut observed, "db-app").insert("uri".into(), format!("{uri}?sslmode=require").into());
    assert_eq!(
        rendered(&observed).2["database-url"],
        format!("{uri}?sslmode=require"),
        "the URL says it itself"
    );
}

#[test]
fn the_certificate_for_redis_is_a_pair_of_files_that_change_together() {
    let observed = with_secrets_of_operators(KafkaProtocol::Ssl);
    let (_, live, files) = rendered(&observed);
    let tls = live.redis.unwrap().tls;
    let pair = [&tls.certificate_file, tls.key_file.path().unwrap()];
    let names = pair.map(|path| path.file_name().unwrap().to_str().unwrap());
    let redis = observed.secrets["redis-client"].as_ref().unwrap();
    for (name, key) in names.iter().zip(["tls.crt", "tls.key"]) {
        assert_eq!(files[*name].as_bytes(), redis[key]);
    }
    // A renewed one has other names, and the files of before stay until every pod has taken it over.
    let mut renewed = with_secrets_of_operators(KafkaProtocol::Ssl);
    renewed.credentials = Some(make(&migrated(observed.clone())).credentials);
    let made = make(&renewed).credentials.data.unwrap();
    let count = |begin: &str| made.keys().filter(|name| name.starts_with(begin)).count();
    assert_eq!(count("redis-client-"), 4, "{:?}", made.keys());
    assert!(names.iter().all(|name| made.contains_key(*name)));
}

#[test]
fn what_is_missing_or_wrong_is_said_by_secret_and_key_and_without_its_value() {
    let all = with_secrets_of_operators(KafkaProtocol::Ssl);
    let database = "spec.database.connection";
    for (name, key, content, reason, message) in [
        ("signal", "user.key", None, "SecretKeyMissing", "spec.kafka.security.user: Secret signal has no key user.key".to_owned()),
        ("redis-client", "tls.crt", None, "SecretKeyMissing", "spec.redis.tls.certificateSecretRef: Secret redis-client has no key tls.crt".to_owned()),
        ("redis-client", "tls.key", Some("hidden"), "CertificateInvalid", "spec.redis.tls.certificateSecretRef: Secret redis-client: tls.key does not hold a PEM private key".to_owned()),
        ("db-app", "port", None, "SecretKeyMissing", format!("{database}: Secret db-app has no key port")),
        ("db-app", "password", Some(""), "SecretValueEmpty", format!("{database}: key password of Secret db-app is empty")),
        ("db-app", "username", Some("a\nhidden"), "SecretValueInvalid", format!("{database}: key username of Secret db-app is not one line of text")),
        ("db-app", "host", Some("hidden/"), "DatabaseURLInvalid", format!("{database}: key host of Secret db-app is not the name or address of a server, or {database}: key port of Secret db-app is not a port")),
    ] {
        let mut observed = all.clone();
        match content {
            None => secret(&mut observed, name).remove(key),
            Some(content) => secret(&mut observed, name).insert(key.into(), content.into()),
        };
        let problems = validate(&observed).unwrap_err();
        // Policies are in the same database here.
        assert_eq!(problems.len(), if name == "db-app" { 2 } else { 1 }, "{problems:?}");
        assert_eq!((problems[0].reason.as_str(), &problems[0].message), (reason, &message));
        assert!(problems.iter().all(|one| !one.message.contains("hidden")));
    }
    let mut none = all;
    none.secrets.insert("db-app".into(), None);
    let problems = validate(&none).unwrap_err();
    let reasons: Vec<_> = problems.iter().map(|one| one.reason.as_str()).collect();
    assert_eq!(
        reasons, ["SecretMissing"; 2],
        "once for each field: {problems:?}"
    );
}

#[test]
fn a_rotated_login_restarts_no_pod_and_another_authority_rolls_them() {
    let before = with_secrets_of_operators(KafkaProtocol::SaslSsl);
    let first = make(&migrated(before.clone()));
    for (name, key) in [("signal", "password"), ("db-app", "password")] {
        let mut rotated = before.clone();
        secret(&mut rotated, name).insert(key.into(), b"rotated".to_vec());
        let desired = make(&migrated(rotated));
        assert_eq!(template(&desired), template(&first), "{name}");
        assert_eq!(
            desired.migration.map(|job| job.metadata.name),
            first.migration.clone().map(|job| job.metadata.name)
        );
        assert_ne!(desired.credentials.data, first.credentials.data);
    }
    let authority = with_secrets_of_operators(KafkaProtocol::SaslSsl)
        .secrets
        .remove("db-ca");
    for (name, rolls) in [("kafka-cluster-ca-cert", true), ("db-ca", true)] {
        let mut rotated = before.clone();
        rotated
            .secrets
            .insert(name.into(), authority.clone().unwrap());
        let desired = make(&migrated(rotated));
        assert_eq!(template(&desired) != template(&first), rolls, "{name}");
    }
}

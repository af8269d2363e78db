//! What is wrong is reported together and by name; the order of defaults, file and environment.

use super::*;
use std::io::Write;

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn environment(pairs: &[(&str, &str)]) -> std::vec::IntoIter<(String, String)> {
    pairs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect::<Vec<_>>()
        .into_iter()
}

#[test]
fn the_defaults_are_valid_as_they_stand() {
    load(None, environment(&[])).unwrap();
    load_live("").unwrap();
}

#[test]
fn the_environment_wins_over_the_file_and_the_file_over_the_defaults() {
    let file =
        file("[server]\npublic_address = \"127.0.0.1:1\"\nadmin_address = \"127.0.0.1:2\"\n");
    let config = load(
        Some(file.path()),
        environment(&[
            ("SIGNAL__SERVER__PUBLIC_ADDRESS", "127.0.0.1:3"),
            ("SIGNAL__KAFKA__BROKERS", "a:1, b:2"),
            ("SIGNAL__REDIS__AUTH__USERNAME", "17"),
            ("SIGNAL__OBSERVABILITY__TRACING__SAMPLES_PER_MILLION", "1"),
            ("PATH", "/bin"),
        ]),
    )
    .unwrap();
    assert_eq!(config.server.public_address.port(), 3);
    assert_eq!(config.server.admin_address.port(), 2);
    assert_eq!(config.kafka.brokers, ["a:1", "b:2"]);
    assert_eq!(config.redis.auth.username, "17");
    assert_eq!(config.observability.tracing.samples_per_million, 1);
}

#[test]
fn every_unknown_key_and_wrong_value_is_reported_together() {
    let file = file(
        "typo = 1\n[server]\npublic_address = \"nowhere\"\nmax_headers = -1\n[sessions]\nx = 1\n",
    );
    let Invalid(problems) = load(
        Some(file.path()),
        environment(&[("SIGNAL__REDIS__MODE", "cluster")]),
    )
    .unwrap_err();
    let names: Vec<_> = problems
        .iter()
        .map(|p| p.split(':').next().unwrap())
        .collect();
    assert_eq!(names.len(), 5, "{problems:?}");
    for name in [
        "typo",
        "server.public_address",
        "server.max_headers",
        "sessions.x",
        "redis.nodes",
    ] {
        assert!(names.contains(&name), "{name} in {problems:?}");
    }
}

#[test]
fn a_source_needs_issuer_audience_https_and_an_asymmetric_algorithm() {
    let source = |rest: &str| load_live(&format!("[[jwks.sources]]\nname = \"a\"\n{rest}"));
    let good = "issuer = \"i\"\naudiences = [\"s\"]\nalgorithms = [\"ES256\"]\nurl = \"https://i/certs\"\n";
    source(good).unwrap();
    for (from, to) in [
        ("issuer = \"i\"", "issuer = \"\""),
        ("[\"s\"]", "[]"),
        ("ES256", "HS256"),
        ("https", "http"),
        ("[\"ES256\"]", "[]"),
    ] {
        assert!(source(&good.replace(from, to)).is_err(), "{to}");
    }
}

#[test]
fn a_source_has_its_keys_from_a_url_or_a_file_and_a_name_of_its_own() {
    let source = |name: &str, keys: &str| {
        format!(
            "[[jwks.sources]]\nname = {name:?}\nissuer = \"i\"\naudiences = [\"s\"]\nalgorithms = [\"ES256\"]\n{keys}\n"
        )
    };
    let (url, file) = ("url = \"https://i/certs\"", "keys_file = \"/keys.json\"");
    let both = load_live(&[source("a", url), source("b", file)].concat()).unwrap();
    assert_eq!(both.jwks.sources[1].keys_file, Path::new("/keys.json"));
    assert_eq!(
        both.files().collect::<Vec<_>>(),
        [(
            "jwks.sources[1].keys_file".to_owned(),
            Path::new("/keys.json")
        )]
    );
    let ca = "keys_file = \"/keys.json\"\nca_file = \"/ca.crt\"";
    for wrong in [
        source("a", ""),
        source("a", &format!("{url}\n{file}")),
        source("a", ca),
        [source("a", url), source("a", file)].concat(),
    ] {
        let Invalid(problems) = load_live(&wrong).unwrap_err();
        assert!(
            problems.len() == 1 && problems[0].starts_with("jwks.sources["),
            "{problems:?}"
        );
    }
    for wrong in [
        "jwks.managed.cache_age_secs = 0",
        "jwks.managed.cache_age_secs = 86401",
        "jwks.revoked_sources = [\"\"]",
    ] {
        assert_eq!(load_live(wrong).unwrap_err().0.len(), 1, "{wrong}");
    }
}

#[test]
fn a_secret_never_prints() {
    let mut config = Config::for_tests();
    config.database.url = crate::config::Secret::new("postgres://u:hunter2@h/d");
    assert!(!format!("{config:?}").contains("hunter2"));
    assert!(!toml::to_string(&config).unwrap().contains("hunter2"));
}

#[test]
fn a_redis_in_the_live_file_stands_for_itself_and_every_fault_in_it_is_named() {
    let live = load_live(
        "[redis]\nmode = \"standalone\"\nnodes = [\"new:6379\"]\n[redis_previous]\nmode = \"standalone\"\nnodes = [\"old:6379\"]\n",
    );
    let live = live.unwrap();
    let (redis, previous) = (live.redis.unwrap(), live.redis_previous.unwrap());
    assert_eq!(
        (redis.nodes.as_slice(), previous.nodes.as_slice()),
        (&["new:6379".to_owned()][..], &["old:6379".to_owned()][..])
    );
    assert_eq!(redis.sentinel.master_name, "mymaster");
    for (wrong, name) in [
        ("[redis]\nmode = \"none\"\nnodes = [\"a:1\"]", "redis.mode"),
        ("[redis]\nmode = \"standalone\"\nnodes = []", "redis.nodes"),
        (
            "[redis]\nmode = \"standalone\"\nnodes = [\"a\"]",
            "redis.nodes",
        ),
        (
            "[redis]\nmode = \"standalone\"\nnodes = [\"a:1\"]\npublish_queue = 1",
            "redis",
        ),
        (
            "[redis_previous]\nmode = \"standalone\"\nnodes = [\":1\"]",
            "redis_previous.nodes",
        ),
        (
            "[redis]\nmode = \"standalone\"\nnodes = [\"a:1\"]\n[redis_previous]\nmode = \"standalone\"\nnodes = [\"a:1\"]",
            "redis_previous",
        ),
    ] {
        let Invalid(problems) = load_live(wrong).unwrap_err();
        assert!(
            problems
                .iter()
                .all(|problem| problem.starts_with(&format!("{name}:"))),
            "{wrong}: {problems:?}"
        );
    }
}

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

/// One source of an issuer of its own, with these lines.
fn source_of(name: &str, rest: &str) -> String {
    format!(
        "[[jwks.sources]]\nname = {name:?}\nissuer = {name:?}\naudiences = [\"s\"]\nalgorithms = [\"Ed25519\"]\nkeys_file = \"/k\"\n{rest}\n"
    )
}

/// authorization.md 2.8.
#[test]
fn of_two_issuers_neither_subject_prefix_may_begin_the_other() {
    let both = |a: &str, b: &str| load_live(&[source_of("a", a), source_of("b", b)].concat());
    let prefix = |text: &str| format!("subject_prefix = {text:?}");
    for (a, b, good) in [
        ("", "", false),
        ("", "b:", true),
        ("a:", "", true),
        ("a:", "b:", true),
        ("x:", "x:", false),
        ("x:", "x:y:", false),
        ("x:y:", "x:", false),
        ("xy:", "xz:", true),
    ] {
        let loaded = both(&prefix(a), &prefix(b));
        assert_eq!(loaded.is_ok(), good, "{a:?} and {b:?}");
        if let Err(Invalid(problems)) = loaded {
            assert_eq!(problems.len(), 1);
            assert!(problems[0].contains("collides"), "{problems:?}");
        }
    }
    // Sources of one issuer, and those that say that they have the same people, may be alike.
    both("", "issuer = \"a\"").unwrap_err();
    let of_a = source_of("b", "").replace("issuer = \"b\"", "issuer = \"a\"");
    load_live(&[source_of("a", ""), of_a.clone()].concat()).unwrap();
    both("", "same_subjects_as = [\"a\"]").unwrap();
    both("same_subjects_as = [\"b\"]", "").unwrap();
    assert!(both("", "same_subjects_as = [\"c\"]").is_err());
    // A source that waives `iss` is an issuer of its own.
    let waives = of_a.clone() + "skip_issuer_check = true\n";
    assert!(load_live(&[source_of("a", ""), waives].concat()).is_err());
    let ignis = of_a.replace("issuer = \"a\"", "preset = \"ignis\"");
    assert!(load_live(&[source_of("a", ""), ignis].concat()).is_err());
}

/// authorization.md 1.9, 1.14 and 2.12.
#[test]
fn the_subject_of_a_source_has_bounded_claims_and_a_secret_only_with_its_preset() {
    let loads = |rest: &str| load_live(&source_of("a", rest)).is_ok();
    let claims = |n: usize| format!("subject_claims = {:?}", vec!["sub"; n]);
    for (rest, good) in [
        (claims(8), true),
        (claims(9), false),
        ("subject_claims = [\"\"]".into(), false),
        (format!("subject_claims = [{:?}]", "x".repeat(65)), false),
        (format!("subject_prefix = {:?}", "x".repeat(64)), true),
        (format!("subject_prefix = {:?}", "x".repeat(65)), false),
        ("subject_prefix = \"a\\n\"".into(), false),
        ("application_secret_file = \"/s\"".into(), false),
        (
            "preset = \"ignis\"\napplication_secret_file = \"/s\"".into(),
            true,
        ),
        ("preset = \"other\"".into(), false),
    ] {
        assert_eq!(loads(&rest), good, "{rest}");
    }
    // The preset needs neither issuer nor audience.
    let bare = "[[jwks.sources]]\nname = \"a\"\npreset = \"ignis\"\nalgorithms = [\"ES256\"]\nkeys_file = \"/k\"\napplication_secret_file = \"/s\"";
    let live = load_live(bare).unwrap();
    let claims: Vec<&str> = live.jwks.sources[0].subject_claims().collect();
    assert_eq!(claims, ["userId", "sub"]);
    assert!(live.files().any(|(name, path)| {
        name == "jwks.sources[0].application_secret_file" && path == Path::new("/s")
    }));
    load_live(&bare.replace("ignis", "standard")).unwrap_err();
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

/// Texts that read as another kind of TOML value.
const LOOKALIKES: [&str; 12] = [
    "1e5",
    "100000",
    "007",
    "true",
    "1.10",
    "inf",
    "[a]",
    "{ a = 1 }",
    "2026-11-23",
    "\"quoted\"",
    " spaced ",
    "a # b",
];

#[test]
fn a_setting_that_is_text_keeps_every_character_of_the_environment() {
    for text in LOOKALIKES {
        let config = load(
            None,
            environment(&[
                ("SIGNAL__REDIS__AUTH__USERNAME", text),
                ("SIGNAL__DATABASE__URL_FILE", text),
                ("SIGNAL__POLICY__URL", text),
                ("SIGNAL__KAFKA__PROPERTIES__CLIENT.ID", text),
            ]),
        );
        let config = config.unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(config.redis.auth.username, text);
        assert_eq!(
            config.database.url_file.path(),
            Some(Path::new(text)),
            "a path"
        );
        assert_eq!(config.policy.url.expose(), text, "a secret");
        assert_eq!(config.kafka.properties["client.id"], text, "an open key");
    }
}

#[test]
fn every_setting_is_read_from_the_environment_as_the_kind_of_its_default() {
    let mut leaves = Vec::new();
    flatten(&table(DEFAULTS), &mut Vec::new(), &[], &mut leaves);
    assert!(leaves.len() > 80);
    for (keys, default) in leaves {
        for text in LOOKALIKES {
            let value = typed(Some(&default), text.to_owned());
            let is_kept = value.as_str() == Some(text);
            match &default {
                Value::String(_) => assert!(is_kept, "{keys:?}"),
                Value::Array(_) => assert!(
                    value.as_array().unwrap().iter().all(Value::is_str),
                    "{keys:?}"
                ),
                _ => assert!(is_kept || !value.is_array(), "{keys:?}: {value:?}"),
            }
        }
        if !default.is_str() && !default.is_array() {
            assert_eq!(typed(Some(&default), default.to_string()), default);
        }
    }
}

#[test]
fn numbers_booleans_and_lists_are_read_from_the_environment() {
    let config = load(
        None,
        environment(&[
            ("SIGNAL__SERVER__MAX_HEADERS", "1_000"),
            ("SIGNAL__REDIS__DATABASE", "-0"),
            ("SIGNAL__DATABASE__MIGRATE", "false"),
            ("SIGNAL__KAFKA__BROKERS", "[::1]:9092, 007:1"),
            ("SIGNAL__KAFKA__TOPICS", r#"["a,b", "1e5"]"#),
            ("SIGNAL__POLICY__ALWAYS_ALLOW_ROLES", "1e5, true ,[1]"),
            ("SIGNAL__REDIS__NODES", ""),
            ("SIGNAL__KAFKA__PROPERTIES", r#"{ "linger.ms" = "5" }"#),
        ]),
    )
    .unwrap();
    assert_eq!(config.server.max_headers, 1000);
    assert_eq!(config.redis.database, 0);
    assert!(!config.database.migrate);
    assert_eq!(config.kafka.brokers, ["[::1]:9092", "007:1"]);
    assert_eq!(config.kafka.topics, ["a,b", "1e5"]);
    assert_eq!(config.policy.always_allow_roles, ["1e5", "true", "[1]"]);
    assert_eq!(config.redis.nodes, [""; 0]);
    assert_eq!(config.kafka.properties["linger.ms"], "5");
}

#[test]
fn a_value_of_another_kind_is_refused_by_name_wherever_it_stands() {
    for (name, text, setting) in [
        ("SIGNAL__SERVER__MAX_HEADERS", "1e3", "server.max_headers"),
        ("SIGNAL__SERVER__MAX_HEADERS", "", "server.max_headers"),
        (
            "SIGNAL__SERVER__MAX_HEADERS",
            "1\nx = 2",
            "server.max_headers",
        ),
        ("SIGNAL__DATABASE__MIGRATE", "yes", "database.migrate"),
        ("SIGNAL__REDIS", "none", "redis"),
    ] {
        let Invalid(problems) = load(None, environment(&[(name, text)])).unwrap_err();
        assert!(
            problems.len() == 1 && problems[0].starts_with(&format!("{setting}: ")),
            "{name}={text}: {problems:?}"
        );
    }
    let file = file("[redis.auth]\nusername = 1e5\n");
    let Invalid(problems) = load(Some(file.path()), environment(&[])).unwrap_err();
    assert!(
        problems.len() == 1 && problems[0].starts_with("redis.auth.username: "),
        "{problems:?}"
    );
}

#[test]
fn a_syntax_error_is_named_by_its_place_and_quotes_nothing() {
    let file = file("[database]\nurl = \"postgres://u:hunter2@h\n");
    let Invalid(problems) = load(Some(file.path()), environment(&[])).unwrap_err();
    assert!(
        problems[0].contains(": line 2, column ") && !problems[0].contains("hunter2"),
        "{problems:?}"
    );
}

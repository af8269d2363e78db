use argon2::password_hash::{PasswordHasher, SaltString};
use argon2::{Algorithm, Params, Version};

use super::*;

const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
const THERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

fn hash(password: &str, memory_kib: u32) -> String {
    let params = Params::new(memory_kib, 1, 1, None).unwrap();
    let salt = SaltString::encode_b64(b"salt of the test").unwrap();
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password(password.as_bytes(), &salt)
        .unwrap()
        .to_string()
}

fn header(name: &str, password: &str) -> String {
    format!(
        "Basic {}",
        STANDARD.encode_to_string(format!("{name}:{password}"))
    )
}

fn users(list: &[(&str, &str, &str)]) -> String {
    let list: Vec<_> = list
        .iter()
        .map(|(n, p, s)| serde_json::json!({"name": n, "hash": hash(p, 64), "subject": s}))
        .collect();
    serde_json::to_string(&list).unwrap()
}

fn settings(path: &std::path::Path) -> config::Auth {
    config::Auth {
        basic_users_file: config::SecretFile::new(path),
        basic_max_failures_per_minute: 3,
        ..config::Config::for_tests().auth
    }
}

fn started(text: &str) -> (Basic, tempfile::NamedTempFile, CancellationToken) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let shutdown = CancellationToken::new();
    let (basic, _task) = Basic::start_with(
        &settings(file.path()),
        Duration::from_millis(10),
        shutdown.clone(),
    )
    .unwrap();
    (basic, file, shutdown)
}

/// authorization.md 7.1 and 7.2.
#[tokio::test]
async fn the_right_password_gives_the_users_subject_and_no_roles() {
    let (basic, _file, _stop) = started(&users(&[("ops", "p:w", "17"), ("b", "x", "18")]));
    let principal = basic.verify(&header("ops", "p:w"), HERE).await.unwrap();
    assert_eq!(
        (&*principal.subject, principal.roles.len(), &principal.via),
        ("17", 0, &Via::Basic)
    );
    for bad in [
        header("ops", "x"),
        header("b", "p:w"),
        header("nobody", "p:w"),
        "Basic".into(),
        "Basic !".into(),
        "Basic b3Bz".into(),
        "Bearer b3BzOnA6dw==".into(),
        format!("Basic {}", "A".repeat(5000)),
    ] {
        assert_eq!(
            basic.verify(&bad, THERE).await,
            Err(BasicError::Refused),
            "{bad}"
        );
    }
    assert_eq!(
        basic
            .verify(&header("ops", "p:w").replace("Basic", "basic"), HERE)
            .await
            .unwrap(),
        principal
    );
}

/// authorization.md 7.1.
#[tokio::test]
async fn without_a_users_file_every_attempt_is_refused() {
    let settings = config::Auth {
        basic_users_file: config::SecretFile::default(),
        basic_max_failures_per_minute: 3,
        ..config::Config::for_tests().auth
    };
    let shutdown = CancellationToken::new();
    let (basic, task) = Basic::start(&settings, shutdown.clone()).unwrap();
    assert_eq!(
        basic.verify(&header("ops", "p"), HERE).await,
        Err(BasicError::Refused)
    );
    shutdown.cancel();
    task.await.unwrap();
}

/// authorization.md 7.3.
#[tokio::test]
async fn an_address_that_fails_too_often_waits_even_with_the_right_password() {
    let (basic, _file, _stop) = started(&users(&[("ops", "right", "17")]));
    basic.verify(&header("ops", "right"), HERE).await.unwrap();
    for name in ["ops", "nobody", "ops"] {
        assert_eq!(
            basic.verify(&header(name, "wrong"), HERE).await,
            Err(BasicError::Refused)
        );
    }
    for password in ["wrong", "right"] {
        let Err(BasicError::TooMany { retry_after_secs }) =
            basic.verify(&header("ops", password), HERE).await
        else {
            panic!("the fourth attempt was answered");
        };
        assert!((1..=60).contains(&retry_after_secs));
    }
    basic.verify(&header("ops", "right"), THERE).await.unwrap();
    tokio::time::pause();
    tokio::time::advance(WINDOW).await;
    basic.verify(&header("ops", "right"), HERE).await.unwrap();
}

#[tokio::test]
async fn attempts_at_the_same_time_are_limited_together() {
    let (basic, _file, _stop) = started(&users(&[("ops", "right", "17")]));
    let guess = header("ops", "wrong");
    let attempts =
        futures_util::future::join_all((0..20).map(|_| basic.verify(&guess, HERE))).await;
    assert_eq!(
        attempts
            .iter()
            .filter(|a| **a == Err(BasicError::Refused))
            .count(),
        3
    );
}

/// authorization.md 7.3.
#[tokio::test]
async fn addresses_of_one_ipv6_network_count_together() {
    let (basic, _file, _stop) = started(&users(&[("ops", "right", "17")]));
    for host in 1..=3 {
        let from: IpAddr = format!("2001:db8::{host}").parse().unwrap();
        assert_eq!(
            basic.verify(&header("ops", "wrong"), from).await,
            Err(BasicError::Refused)
        );
    }
    let same: IpAddr = "2001:db8::ffff".parse().unwrap();
    assert!(matches!(
        basic.verify(&header("ops", "right"), same).await,
        Err(BasicError::TooMany { .. })
    ));
    assert_eq!(network("::ffff:192.0.2.1".parse().unwrap()), HERE);
}

#[tokio::test]
async fn verified_credentials_are_remembered_for_a_while_and_only_while_the_file_stays() {
    let (basic, file, _stop) = started(&users(&[("ops", "old", "17")]));
    basic.verify(&header("ops", "old"), HERE).await.unwrap();
    // No hash can be computed, so only remembered credentials are accepted.
    let all_permits = basic
        .inner
        .queue
        .clone()
        .acquire_many_owned((HASHES + WAITING) as u32)
        .await
        .unwrap();
    basic.verify(&header("ops", "old"), HERE).await.unwrap();
    assert_eq!(
        basic.verify(&header("ops", "new"), HERE).await,
        Err(BasicError::TooMany {
            retry_after_secs: 1
        })
    );
    std::fs::write(file.path(), users(&[("ops", "new", "18")])).unwrap();
    until(|| {
        basic
            .inner
            .users
            .load()
            .as_ref()
            .is_some_and(|u| u.generation > 0)
    })
    .await;
    assert_eq!(
        basic.verify(&header("ops", "old"), HERE).await,
        Err(BasicError::TooMany {
            retry_after_secs: 1
        })
    );
    drop(all_permits);
    assert_eq!(
        basic.verify(&header("ops", "old"), THERE).await,
        Err(BasicError::Refused)
    );
    assert_eq!(
        &*basic
            .verify(&header("ops", "new"), THERE)
            .await
            .unwrap()
            .subject,
        "18"
    );
}

async fn until(mut condition: impl FnMut() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), wait)
        .await
        .expect("the condition comes true");
}

#[tokio::test]
async fn a_changed_file_that_is_wrong_keeps_the_current_users() {
    let (basic, file, _stop) = started(&users(&[("ops", "right", "17")]));
    std::fs::write(file.path(), "[{]").unwrap();
    basic.inner.reload(file.path().to_owned(), 1).await;
    assert_eq!(
        &*basic
            .verify(&header("ops", "right"), HERE)
            .await
            .unwrap()
            .subject,
        "17"
    );
    std::fs::write(file.path(), users(&[("second", "right", "18")])).unwrap();
    until(|| {
        basic
            .inner
            .users
            .load()
            .as_ref()
            .is_some_and(|u| u.by_name.contains_key("second"))
    })
    .await;
    assert_eq!(
        &*basic
            .verify(&header("second", "right"), HERE)
            .await
            .unwrap()
            .subject,
        "18"
    );
    assert_eq!(
        basic.verify(&header("ops", "right"), HERE).await,
        Err(BasicError::Refused)
    );
}

/// Users of whom each fourth has a hash of twice the memory.
fn mixed_users() -> String {
    let (small, large) = (hash("x", 64), hash("x", 128));
    let list: Vec<_> = (0..40)
        .map(|n| {
            let hash = if n % 4 == 0 { &large } else { &small };
            serde_json::json!({"name": format!("user{n}"), "hash": hash, "subject": "1"})
        })
        .collect();
    serde_json::to_string(&list).unwrap()
}

/// authorization.md 7.3.
#[test]
fn unknown_names_cost_what_known_names_cost() {
    let users = Users::parse(mixed_users().as_bytes(), 0).unwrap();
    let is_large = |name: &String| users.decoy(name).unwrap().contains("m=128");
    let names: Vec<String> = (0..4000).map(|n| format!("nobody{n}")).collect();
    // A quarter of the users has the large hash, and so has a quarter of the names that nobody has.
    let large = names.iter().filter(|name| is_large(name)).count();
    assert!((800..1200).contains(&large), "{large}");
    // A name keeps its costs: on another instance, after a restart, and with the users in another order.
    let mut list: Vec<serde_json::Value> = serde_json::from_str(&mixed_users()).unwrap();
    list.reverse();
    let other = Users::parse(serde_json::to_string(&list).unwrap().as_bytes(), 7).unwrap();
    for name in &names {
        assert_eq!(users.decoy(name), other.decoy(name));
    }
    assert_eq!(Users::parse(b"[]", 0).unwrap().decoy("nobody"), None);
}

/// authorization.md 7.3.
#[tokio::test]
async fn an_unknown_name_computes_one_hash_with_parameters_of_the_file() {
    let (basic, _file, _stop) = started(&mixed_users());
    for (name, from) in [
        ("user0", HERE),
        ("user1", HERE),
        ("nobody", HERE),
        ("nobody", THERE),
    ] {
        // "x" is the password of the hash that is computed for a name that nobody has, too.
        let password = if name == "nobody" { "x" } else { "wrong" };
        assert_eq!(
            basic.verify(&header(name, password), from).await,
            Err(BasicError::Refused)
        );
    }
    let computed = basic.inner.computed.lock();
    let memory: Vec<bool> = computed.iter().map(|hash| hash.contains("m=128")).collect();
    assert_eq!(memory[..2], [true, false]);
    assert_eq!((memory.len(), memory[2]), (4, memory[3]));
}

/// authorization.md 7.3.
#[tokio::test]
async fn a_full_queue_charges_nobody() {
    let (basic, _file, _stop) = started(&users(&[("ops", "right", "17")]));
    let all = (HASHES + WAITING) as u32;
    let strangers = basic.inner.queue.clone().acquire_many_owned(all).await;
    for _ in 0..20 {
        assert_eq!(
            basic.verify(&header("ops", "right"), HERE).await,
            Err(BasicError::TooMany {
                retry_after_secs: 1
            })
        );
    }
    drop(strangers);
    assert!(basic.inner.computed.lock().is_empty());
    basic.verify(&header("ops", "right"), HERE).await.unwrap();
}

/// authorization.md 7.3.
#[tokio::test]
async fn a_client_that_leaves_is_charged_only_for_a_hash_that_was_computed() {
    let (basic, _file, _stop) = started(&users(&[("ops", "right", "17")]));
    let turns = basic
        .inner
        .hashes
        .clone()
        .acquire_many_owned(HASHES as u32)
        .await;
    let guess = header("ops", "wrong");
    for _ in 0..20 {
        // It waits for its turn when its client leaves.
        let mut attempt = std::pin::pin!(basic.verify(&guess, HERE));
        assert!(futures_util::poll!(&mut attempt).is_pending());
    }
    drop(turns);
    for round in 0..3 {
        // Its hash is under way when its client leaves.
        {
            let mut attempt = std::pin::pin!(basic.verify(&guess, HERE));
            let _ = futures_util::poll!(&mut attempt);
        }
        until(|| basic.inner.computed.lock().len() > round).await;
    }
    until(|| basic.inner.hashes.available_permits() == HASHES).await;
    assert!(matches!(
        basic.verify(&header("ops", "right"), HERE).await,
        Err(BasicError::TooMany { .. })
    ));
}

/// authorization.md 7.3.
#[tokio::test]
async fn a_file_without_users_computes_and_charges_nothing() {
    let (basic, _file, _stop) = started("[]");
    for _ in 0..20 {
        assert_eq!(
            basic.verify(&header("ops", "wrong"), HERE).await,
            Err(BasicError::Refused)
        );
    }
    assert!(basic.inner.computed.lock().is_empty());
}

#[test]
fn a_wrong_users_file_is_refused_and_the_wrong_user_is_named() {
    let good = hash("x", 64);
    let user = |name: &str, hash: &str, subject: &str| serde_json::json!({"name": name, "hash": hash, "subject": subject});
    for bad in [
        serde_json::json!([user("a", "plain", "1")]),
        serde_json::json!([user("a", &good.replace("argon2id", "argon2i"), "1")]),
        serde_json::json!([user("a", &good.replace("m=64", "m=262145"), "1")]),
        serde_json::json!([user("a", &good, "")]),
        serde_json::json!([user("", &good, "1")]),
        serde_json::json!([user("a:b", &good, "1")]),
        serde_json::json!([user("a", &good, "1"), user("a", &good, "2")]),
    ] {
        assert!(
            matches!(
                Users::parse(bad.to_string().as_bytes(), 0),
                Err(UsersError::User { .. })
            ),
            "{bad}"
        );
    }
    let list = serde_json::json!([["a", good, "1"]]).to_string();
    for no_user in [&br#"[{"name": "a", "pass": "b"}]"#[..], list.as_bytes()] {
        assert!(matches!(Users::parse(no_user, 0), Err(UsersError::Json(_))));
    }
    assert!(matches!(
        Users::read(std::path::Path::new("/nowhere"), 0),
        Err(UsersError::Read { .. })
    ));
    let error = Users::parse(
        serde_json::json!([user("a", &good, "")])
            .to_string()
            .as_bytes(),
        0,
    )
    .err()
    .unwrap();
    assert!(!error.to_string().contains("argon2"), "{error}");
}

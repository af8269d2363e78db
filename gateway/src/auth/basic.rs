//! `Authorization: Basic` for administrators and services: users in a mounted file, Argon2id hashes, each mapped to a policy subject.
//!
//! Input: the users file, read again when its content changes, and credentials from [`crate::api`]. Output: a [`Principal`] without inbox.
//! Guessing is slow: a few failures per address and minute, two hashes at a time on the whole instance, and no hint whether a user exists.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use argon2::password_hash::{PasswordHash, PasswordVerifier};
use argon2::{Argon2, Params};
use base64_simd::STANDARD;
use parking_lot::Mutex;
use ring::{hmac, rand};
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use super::recent::Recent;
use crate::config;
use crate::principal::{Principal, Via};

/// Longest header in bytes.
const MAX_HEADER_BYTES: usize = 4096;
/// Most users in the file.
const MAX_USERS: usize = 10_000;
/// Hashes computed at a time, and how many may wait for their turn.
const HASHES: usize = 2;
const WAITING: usize = 32;
/// The dearest hash that is accepted: 256 MiB, 16 passes, 16 lanes.
const MAX_MEMORY_KIB: u32 = 256 * 1024;
const MAX_PASSES: u32 = 16;
const MAX_LANES: u32 = 16;
/// Over which failures of an address are counted.
const WINDOW: Duration = Duration::from_secs(60);
/// How long verified credentials are remembered, and how many.
const REMEMBER: Duration = Duration::from_secs(60);
const REMEMBERED: usize = 1024;
/// Addresses whose failures are remembered.
const ADDRESSES: usize = 16_384;

/// Why credentials were not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BasicError {
    /// They are wrong, or not readable, or nobody may use Basic.
    #[error("the credentials are refused")]
    Refused,
    /// Too many failures from this address, or too many attempts on this instance at once.
    #[error("too many attempts: try again in {retry_after_secs} s")]
    TooMany {
        /// When to try again, in seconds.
        retry_after_secs: u64,
    },
}

/// Why the users file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum UsersError {
    /// It cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not a JSON array of `{"name", "hash", "subject"}`.
    #[error("not a list of users: {0}")]
    Json(#[from] serde_json::Error),
    /// More users than are held.
    #[error("{0} users, more than {MAX_USERS}")]
    TooMany(usize),
    /// One of the users is wrong.
    #[error("user {name:?}: {problem}")]
    User {
        /// Which.
        name: String,
        /// What is wrong.
        problem: &'static str,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    hash: String,
    subject: String,
}

struct User {
    hash: String,
    subject: Arc<str>,
}

struct Users {
    /// Tells credentials verified against one file from those of the next.
    generation: u64,
    by_name: HashMap<String, User>,
    /// The dearest hash in the file, computed for a name that nobody has.
    decoy: Option<String>,
}

/// Verifies Basic credentials. Cheap to clone.
#[derive(Clone)]
pub struct Basic {
    inner: Arc<Inner>,
}

struct Inner {
    users: ArcSwapOption<Users>,
    max_failures: u32,
    failures: Mutex<Recent<IpAddr, Failures>>,
    known: Mutex<Recent<[u8; 32], Known>>,
    secret: hmac::Key,
    queue: Arc<Semaphore>,
    hashes: Arc<Semaphore>,
}

struct Failures {
    since: Instant,
    count: u32,
}

struct Known {
    until: Instant,
    subject: Arc<str>,
}

impl Basic {
    /// Reads the users and follows changes of the file until `shutdown`; a changed file that is wrong is reported, and the users before it stay.
    /// Without a file every attempt is refused. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`UsersError`] when the file cannot be used at start.
    pub fn start(
        settings: &config::Basic,
        shutdown: CancellationToken,
    ) -> Result<(Self, JoinHandle<()>), UsersError> {
        Self::start_with(settings, crate::files::INTERVAL, shutdown)
    }

    fn start_with(
        settings: &config::Basic,
        interval: Duration,
        shutdown: CancellationToken,
    ) -> Result<(Self, JoinHandle<()>), UsersError> {
        let secret = hmac::Key::generate(hmac::HMAC_SHA256, &rand::SystemRandom::new())
            .expect("the system gives randomness");
        let inner = Arc::new(Inner {
            users: ArcSwapOption::empty(),
            max_failures: settings.max_failures_per_minute.max(1),
            failures: Mutex::new(Recent::new(ADDRESSES)),
            known: Mutex::new(Recent::new(REMEMBERED)),
            secret,
            queue: Arc::new(Semaphore::new(HASHES + WAITING)),
            hashes: Arc::new(Semaphore::new(HASHES)),
        });
        let basic = Self { inner };
        let Some(path) = settings.users_file.path().map(PathBuf::from) else {
            return Ok((
                basic,
                tokio::spawn(async move { shutdown.cancelled().await }),
            ));
        };
        // Watched before it is read, so that no change falls in between.
        let mut told = crate::files::watch(path.clone(), interval, shutdown.clone());
        basic
            .inner
            .users
            .store(Some(Arc::new(Users::read(&path, 0)?)));
        let inner = Arc::clone(&basic.inner);
        let follow = async move {
            for generation in 1.. {
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    Ok(()) = told.changed() => inner.reload(path.clone(), generation).await,
                    else => return,
                }
            }
        };
        Ok((basic, tokio::spawn(follow)))
    }

    /// Who the value of an `Authorization` header that begins with `Basic` speaks for; `from` is the client's address.
    ///
    /// # Errors
    /// [`BasicError::Refused`] for wrong credentials, [`BasicError::TooMany`] when this address failed too often.
    pub async fn verify(&self, header: &str, from: IpAddr) -> Result<Principal, BasicError> {
        let users = self.inner.users.load_full().ok_or(BasicError::Refused)?;
        let credentials = Credentials::parse(header).ok_or(BasicError::Refused)?;
        let from = network(from);
        self.inner.count_attempt(from, 0)?;
        let fingerprint = self.inner.fingerprint(users.generation, &credentials);
        if let Some(subject) = self.inner.recall(&fingerprint) {
            return Ok(principal(subject));
        }
        // Counted as a failure until it is none, so that attempts at the same time do not slip through together.
        self.inner.count_attempt(from, 1)?;
        let subject = self
            .inner
            .check(&users, credentials)
            .await?
            .ok_or(BasicError::Refused)?;
        self.inner.forgive(from);
        let known = Known {
            until: Instant::now() + REMEMBER,
            subject: Arc::clone(&subject),
        };
        self.inner.known.lock().insert(fingerprint, known);
        Ok(principal(subject))
    }
}

fn principal(subject: Arc<str>) -> Principal {
    Principal {
        subject,
        roles: Vec::new(),
        via: Via::Basic,
    }
}

/// One address of IPv4; of IPv6 the /64 that one customer has.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) & (u128::MAX << 64)).into()),
        v4 => v4,
    }
}

impl Inner {
    async fn reload(&self, path: PathBuf, generation: u64) {
        let read = tokio::task::spawn_blocking(move || Users::read(&path, generation)).await;
        match read {
            Ok(Ok(users)) => {
                tracing::info!(users = users.by_name.len(), "users of Basic read again");
                self.users.store(Some(Arc::new(users)));
            }
            Ok(Err(error)) => {
                tracing::error!(%error, "the changed users file cannot be used; the users before it stay")
            }
            Err(error) => tracing::error!(%error, "the changed users file was not read"),
        }
    }

    /// Refuses an address that has failed too often; else adds `failures` to its count.
    fn count_attempt(&self, from: IpAddr, failures: u32) -> Result<(), BasicError> {
        let now = Instant::now();
        let mut table = self.failures.lock();
        if let Some(held) = table.get(&from) {
            let end = held.since + WINDOW;
            if now < end {
                if held.count >= self.max_failures {
                    return Err(BasicError::TooMany {
                        retry_after_secs: (end - now).as_secs() + 1,
                    });
                }
                held.count += failures;
                return Ok(());
            }
            table.remove(&from);
        }
        if failures > 0 {
            table.insert(
                from,
                Failures {
                    since: now,
                    count: failures,
                },
            );
        }
        Ok(())
    }

    fn forgive(&self, from: IpAddr) {
        if let Some(held) = self.failures.lock().get(&from) {
            held.count = held.count.saturating_sub(1);
        }
    }

    fn fingerprint(&self, generation: u64, credentials: &Credentials) -> [u8; 32] {
        let mut context = hmac::Context::with_key(&self.secret);
        context.update(&generation.to_be_bytes());
        context.update(&(credentials.name.len() as u64).to_be_bytes());
        context.update(credentials.name.as_bytes());
        context.update(credentials.password.as_bytes());
        context
            .sign()
            .as_ref()
            .try_into()
            .expect("HMAC-SHA-256 has 32 bytes")
    }

    fn recall(&self, fingerprint: &[u8; 32]) -> Option<Arc<str>> {
        let mut known = self.known.lock();
        let held = known.get(fingerprint)?;
        (Instant::now() < held.until).then(|| Arc::clone(&held.subject))
    }

    /// The subject, if the password is right. An unknown name costs one hash too.
    async fn check(
        &self,
        users: &Users,
        credentials: Credentials,
    ) -> Result<Option<Arc<str>>, BasicError> {
        let user = users.by_name.get(&credentials.name);
        let Some(hash) = user
            .map(|user| &user.hash)
            .or(users.decoy.as_ref())
            .cloned()
        else {
            return Ok(None);
        };
        let place =
            Arc::clone(&self.queue)
                .try_acquire_owned()
                .map_err(|_| BasicError::TooMany {
                    retry_after_secs: 1,
                })?;
        let turn = Arc::clone(&self.hashes)
            .acquire_owned()
            .await
            .map_err(|_| BasicError::Refused)?;
        let right = tokio::task::spawn_blocking(move || {
            // Held by the work and not by who waits for it: a client that hangs up frees no place early.
            let _held = (place, turn);
            let hash = PasswordHash::new(&hash).expect("hashes are parsed when the file is read");
            Argon2::default()
                .verify_password(credentials.password.as_bytes(), &hash)
                .is_ok()
        });
        let right = right.await.unwrap_or(false);
        Ok(user.filter(|_| right).map(|user| Arc::clone(&user.subject)))
    }
}

struct Credentials {
    name: String,
    password: Zeroizing<String>,
}

impl Credentials {
    /// RFC 7617: `Basic` and base64 of `name:password`.
    fn parse(header: &str) -> Option<Self> {
        let (scheme, encoded) = header.split_once(' ')?;
        if header.len() > MAX_HEADER_BYTES || !scheme.eq_ignore_ascii_case("Basic") {
            return None;
        }
        let bytes = Zeroizing::new(STANDARD.decode_to_vec(encoded.trim().as_bytes()).ok()?);
        let (name, password) = std::str::from_utf8(&bytes).ok()?.split_once(':')?;
        Some(Self {
            name: name.to_owned(),
            password: Zeroizing::new(password.to_owned()),
        })
    }
}

impl Users {
    fn read(path: &std::path::Path, generation: u64) -> Result<Self, UsersError> {
        let text = std::fs::read(path).map_err(|source| UsersError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text, generation)
    }

    fn parse(text: &[u8], generation: u64) -> Result<Self, UsersError> {
        let entries: Vec<Entry> = serde_json::from_slice(text)?;
        if entries.len() > MAX_USERS {
            return Err(UsersError::TooMany(entries.len()));
        }
        let mut by_name = HashMap::with_capacity(entries.len());
        let mut dearest: Option<(u64, String)> = None;
        for Entry {
            name,
            hash,
            subject,
        } in entries
        {
            let cost = cost(&hash).map_err(|problem| UsersError::User {
                name: name.clone(),
                problem,
            })?;
            let problem = match () {
                () if name.is_empty() || name.contains(':') => {
                    Some("a name must not be empty or hold a colon")
                }
                () if subject.is_empty() => Some("the subject must not be empty"),
                () if by_name.contains_key(&name) => Some("the name is taken by an earlier user"),
                () => None,
            };
            if let Some(problem) = problem {
                return Err(UsersError::User { name, problem });
            }
            if dearest.as_ref().is_none_or(|(most, _)| cost > *most) {
                dearest = Some((cost, hash.clone()));
            }
            by_name.insert(
                name,
                User {
                    hash,
                    subject: subject.into(),
                },
            );
        }
        Ok(Self {
            generation,
            by_name,
            decoy: dearest.map(|(_, hash)| hash),
        })
    }
}

/// What a hash costs to verify: memory times passes.
fn cost(hash: &str) -> Result<u64, &'static str> {
    const NOT_ARGON2ID: &str =
        "the hash is not of the form $argon2id$v=19$m=..,t=..,p=..$salt$hash";
    let parsed = PasswordHash::new(hash).map_err(|_| NOT_ARGON2ID)?;
    if parsed.algorithm.as_str() != "argon2id"
        || parsed.version != Some(19)
        || parsed.salt.is_none()
        || parsed.hash.is_none()
    {
        return Err(NOT_ARGON2ID);
    }
    let params =
        Params::try_from(&parsed).map_err(|_| "the parameters of the hash are not valid")?;
    if params.m_cost() > MAX_MEMORY_KIB
        || params.t_cost() > MAX_PASSES
        || params.p_cost() > MAX_LANES
    {
        return Err("the hash costs more than m=262144, t=16, p=16");
    }
    Ok(u64::from(params.m_cost()) * u64::from(params.t_cost()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use argon2::password_hash::{PasswordHasher, SaltString};
    use argon2::{Algorithm, Version};

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

    fn settings(path: &std::path::Path) -> config::Basic {
        config::Basic {
            users_file: config::SecretFile::new(path),
            max_failures_per_minute: 3,
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
    async fn without_a_users_file_everybody_is_refused() {
        let settings = config::Basic {
            users_file: config::SecretFile::default(),
            max_failures_per_minute: 3,
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
    async fn attempts_at_the_same_time_do_not_slip_through_together() {
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
        // With no hash to be had, only what is remembered is answered.
        let _all = basic
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
        drop(_all);
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
    async fn a_changed_file_that_is_wrong_leaves_the_users_before_it() {
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

    /// authorization.md 7.3.
    #[test]
    fn an_unknown_name_costs_the_dearest_hash_of_the_file() {
        let list = serde_json::json!([
            {"name": "a", "hash": hash("x", 64), "subject": "1"},
            {"name": "b", "hash": hash("x", 128), "subject": "2"},
            {"name": "c", "hash": hash("x", 64), "subject": "3"},
        ]);
        let users = Users::parse(list.to_string().as_bytes(), 0).unwrap();
        assert!(users.decoy.unwrap().contains("m=128"));
    }

    #[test]
    fn a_file_with_something_wrong_in_it_is_refused_by_name() {
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
        assert!(matches!(
            Users::parse(br#"[{"name": "a", "pass": "b"}]"#, 0),
            Err(UsersError::Json(_))
        ));
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
}

//! `Authorization: Basic` for administrators and services: users in a mounted file, Argon2id hashes, each mapped to a policy subject
//! (authorization.md 7).
//!
//! Input: the users file, read again when its content changes, and the credentials of REST requests. Output: a [`Principal`] without inbox.
//! Guessing is slow: a few failures per address and minute, two hashes at a time on the whole instance, and an unknown name takes as long as a
//! wrong password. A failure is a hash that was computed for a wrong password: an attempt that found no place in the queue, or whose client left
//! before its turn, costs its address nothing.

mod users;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use argon2::Argon2;
use argon2::password_hash::{PasswordHash, PasswordVerifier};
use base64_simd::STANDARD;
use parking_lot::Mutex;
use ring::{hmac, rand};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use super::recent::Recent;
use crate::config;
use crate::principal::{Principal, USER, Via};
use crate::rate::{Rate, TokenBucket};

use users::Users;
pub use users::UsersError;

/// Longest header in bytes.
const MAX_HEADER_BYTES: usize = 4096;
/// Hashes that are computed at the same time ...
const HASHES: usize = 2;
/// ... and attempts that may wait for one.
const WAITING: usize = 32;
/// How long an address waits until all its failures are forgotten.
const WINDOW: Duration = Duration::from_secs(60);
/// How long verified credentials are remembered ...
const REMEMBER: Duration = Duration::from_secs(60);
/// ... and how many.
const REMEMBERED: usize = 1024;
/// Addresses whose failures are remembered.
const ADDRESSES: usize = 16_384;

/// Why credentials were not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BasicError {
    /// They are wrong or cannot be read, or there is no users file.
    #[error("the credentials are refused")]
    Refused,
    /// Too many failures from this address, or too many attempts on this instance at once.
    #[error("too many attempts: try again in {retry_after_secs} s")]
    TooMany {
        /// When to try again, in seconds.
        retry_after_secs: u64,
    },
}

/// Verifies Basic credentials. Cheap to clone.
#[derive(Clone)]
pub struct Basic {
    inner: Arc<Inner>,
}

struct Inner {
    users: ArcSwapOption<Users>,
    failure_rate: Rate,
    /// What each address has left: an attempt takes a token, and gets it back unless it fails.
    attempts: Mutex<Recent<IpAddr, TokenBucket>>,
    verified: Mutex<Recent<[u8; 32], Verified>>,
    secret: hmac::Key,
    queue: Arc<Semaphore>,
    hashes: Arc<Semaphore>,
    /// The hashes that were computed.
    #[cfg(test)]
    computed: Mutex<Vec<Arc<str>>>,
}

/// One of an address's attempts. While it is under way it counts as a failure, so that attempts at the same time are limited together; when it is
/// dropped it goes back, unless it has failed.
struct Attempt {
    inner: Arc<Inner>,
    from: IpAddr,
    failed: bool,
}

impl Attempt {
    /// Ends it. One that has failed does not go back.
    fn end(mut self, failed: bool) {
        self.failed = failed;
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if !self.failed {
            self.inner.give_back_attempt(self.from);
        }
    }
}

/// Credentials that were verified a short time ago.
struct Verified {
    until: Instant,
    subject: Arc<str>,
}

impl Basic {
    /// Reads the users file and follows its changes until `shutdown`. A changed file that is wrong is logged, and the current users stay. Without
    /// a file every attempt is refused. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`UsersError`] when the file cannot be used at start.
    pub fn start(
        settings: &config::Auth,
        shutdown: CancellationToken,
    ) -> Result<(Self, JoinHandle<()>), UsersError> {
        Self::start_with(settings, crate::files::INTERVAL, shutdown)
    }

    fn start_with(
        settings: &config::Auth,
        interval: Duration,
        shutdown: CancellationToken,
    ) -> Result<(Self, JoinHandle<()>), UsersError> {
        let secret = hmac::Key::generate(hmac::HMAC_SHA256, &rand::SystemRandom::new())
            .expect("the system gives randomness");
        let max_failures = settings.basic_max_failures_per_minute.max(1);
        let inner = Arc::new(Inner {
            users: ArcSwapOption::empty(),
            failure_rate: Rate {
                per_second: f64::from(max_failures) / WINDOW.as_secs_f64(),
                burst: max_failures,
            },
            attempts: Mutex::new(Recent::new(ADDRESSES)),
            verified: Mutex::new(Recent::new(REMEMBERED)),
            secret,
            queue: Arc::new(Semaphore::new(HASHES + WAITING)),
            hashes: Arc::new(Semaphore::new(HASHES)),
            #[cfg(test)]
            computed: Mutex::default(),
        });
        let basic = Self { inner };
        let Some(path) = settings.basic_users_file.path().map(PathBuf::from) else {
            return Ok((
                basic,
                tokio::spawn(async move { shutdown.cancelled().await }),
            ));
        };
        // Watched before it is read, so that no change falls in between.
        let mut changes = crate::files::watch(path.clone(), interval, shutdown.clone());
        basic
            .inner
            .users
            .store(Some(Arc::new(Users::read(&path, 0)?)));
        let inner = Arc::clone(&basic.inner);
        let follow = async move {
            for generation in 1.. {
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    Ok(()) = changes.changed() => inner.reload(path.clone(), generation).await,
                    else => return,
                }
            }
        };
        Ok((basic, tokio::spawn(follow)))
    }

    /// Returns the principal of an `Authorization` header that begins with `Basic`; `from` is the client's address.
    ///
    /// # Errors
    /// [`BasicError::Refused`] for wrong credentials; [`BasicError::TooMany`] when this address failed too often or too many attempts wait.
    pub async fn verify(&self, header: &str, from: IpAddr) -> Result<Principal, BasicError> {
        let users = self.inner.users.load_full().ok_or(BasicError::Refused)?;
        let credentials = Credentials::parse(header).ok_or(BasicError::Refused)?;
        let from = network(from);
        self.inner.check_attempts(from)?;
        let fingerprint = self.inner.fingerprint(users.generation, &credentials);
        if let Some(subject) = self.inner.recall(&fingerprint) {
            return Ok(principal(subject));
        }
        let attempt = self.inner.take_attempt(from)?;
        let subject = check(&users, credentials, attempt)
            .await?
            .ok_or(BasicError::Refused)?;
        let verified = Verified {
            until: Instant::now() + REMEMBER,
            subject: Arc::clone(&subject),
        };
        self.inner.verified.lock().insert(fingerprint, verified);
        Ok(principal(subject))
    }
}

fn principal(subject: Arc<str>) -> Principal {
    Principal {
        subject,
        kind: USER.into(),
        roles: Box::default(),
        via: Via::Basic,
    }
}

/// Returns an IPv4 address as it is, and of an IPv6 address the /64 network, which usually is one customer's.
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
                tracing::info!(
                    users = users.by_name.len(),
                    "the users file changed; its users are in use"
                );
                self.users.store(Some(Arc::new(users)));
            }
            Ok(Err(error)) => {
                tracing::error!(%error, "the changed users file is not valid; the current users stay")
            }
            Err(error) => {
                tracing::error!(%error, "reading the changed users file panicked; the current users stay")
            }
        }
    }

    /// Refuses an address that has no attempts left.
    fn check_attempts(&self, from: IpAddr) -> Result<(), BasicError> {
        match self.attempts.lock().get(&from) {
            Some(bucket) => match bucket.wait(self.failure_rate, now()) {
                Duration::ZERO => Ok(()),
                wait => Err(too_many(wait)),
            },
            None => Ok(()),
        }
    }

    /// Takes one of the address's attempts, or refuses an address that has none left.
    fn take_attempt(self: &Arc<Self>, from: IpAddr) -> Result<Attempt, BasicError> {
        let (rate, now) = (self.failure_rate, now());
        let mut attempts = self.attempts.lock();
        if let Some(bucket) = attempts.get(&from) {
            if !bucket.try_take(rate, now) {
                return Err(too_many(bucket.wait(rate, now)));
            }
        } else {
            let mut bucket = TokenBucket::full(rate, now);
            bucket.try_take(rate, now);
            attempts.insert(from, bucket);
        }
        Ok(Attempt {
            inner: Arc::clone(self),
            from,
            failed: false,
        })
    }

    fn give_back_attempt(&self, from: IpAddr) {
        if let Some(bucket) = self.attempts.lock().get(&from) {
            bucket.give_back(self.failure_rate);
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
        let mut verified = self.verified.lock();
        let found = verified.get(fingerprint)?;
        (Instant::now() < found.until).then(|| Arc::clone(&found.subject))
    }
}

/// Returns the subject if the password is right. An unknown name costs one hash too. The attempt fails only where a hash was computed and does not
/// give access.
async fn check(
    users: &Users,
    credentials: Credentials,
    attempt: Attempt,
) -> Result<Option<Arc<str>>, BasicError> {
    let user = users.by_name.get(&credentials.name);
    let Some(hash) = user
        .map(|user| &user.hash)
        .or_else(|| users.decoy(&credentials.name))
        .cloned()
    else {
        return Ok(None);
    };
    let waiting = Arc::clone(&attempt.inner.queue)
        .try_acquire_owned()
        .map_err(|_| BasicError::TooMany {
            retry_after_secs: 1,
        })?;
    let turn = Arc::clone(&attempt.inner.hashes)
        .acquire_owned()
        .await
        .map_err(|_| BasicError::Refused)?;
    let is_known = user.is_some();
    let right = tokio::task::spawn_blocking(move || {
        // The work holds the permits and the attempt, not the request: a client that hangs up does not free them early.
        let _permits = (waiting, turn);
        let computed = compute(&credentials.password, &hash);
        #[cfg(test)]
        attempt.inner.computed.lock().push(hash);
        let right = is_known && computed == Some(true);
        attempt.end(computed.is_some() && !right);
        right
    });
    let right = right.await.unwrap_or(false);
    Ok(user.filter(|_| right).map(|user| Arc::clone(&user.subject)))
}

/// Returns whether the password is that of the hash, or `None` where the hash could not be computed.
fn compute(password: &str, hash: &str) -> Option<bool> {
    let hash = PasswordHash::new(hash).expect("hashes are parsed when the file is read");
    match Argon2::default().verify_password(password.as_bytes(), &hash) {
        Ok(()) => Some(true),
        Err(argon2::password_hash::Error::Password) => Some(false),
        Err(error) => {
            tracing::error!(%error, "a password hash could not be computed; the attempt is refused");
            None
        }
    }
}

/// Returns the monotonic time; tests can pause it.
fn now() -> std::time::Instant {
    Instant::now().into_std()
}

fn too_many(wait: Duration) -> BasicError {
    BasicError::TooMany {
        retry_after_secs: wait.as_secs() + 1,
    }
}

struct Credentials {
    name: String,
    password: Zeroizing<String>,
}

impl Credentials {
    /// Reads `Basic` and base64 of `name:password` (RFC 7617).
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

#[cfg(test)]
mod tests;

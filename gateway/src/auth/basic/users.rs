//! The users file of `Authorization: Basic` (authorization.md 7.1): `[{"name", "hash", "subject"}]`.
//!
//! Input: the file. Output: users by name, or what is wrong with it; a file with one wrong user is refused whole.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use argon2::Params;
use argon2::password_hash::PasswordHash;
use ring::{digest, hmac};
use serde::Deserialize;
use signal_contract::Object;

use crate::principal::is_user_id;

/// Most users in the file.
const MAX_USERS: usize = 10_000;
/// The most expensive hash that is accepted: 256 MiB, 16 passes, 16 lanes.
const MAX_MEMORY_KIB: u32 = 256 * 1024;
const MAX_PASSES: u32 = 16;
const MAX_LANES: u32 = 16;

/// Why the users file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum UsersError {
    /// It cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not a JSON array of `{"name", "hash", "subject"}`.
    #[error("not a list of users: line {}, column {}", .0.line(), .0.column())]
    Json(#[from] serde_json::Error),
    /// More users than a gateway keeps.
    #[error("{0} users, more than {MAX_USERS}")]
    TooMany(usize),
    /// One of the users is wrong.
    #[error("users[{at}]: {problem}")]
    User {
        /// Which, counted from 0: the error is logged, and names are not.
        at: usize,
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

pub(super) struct User {
    pub(super) hash: Arc<str>,
    pub(super) subject: Arc<str>,
}

pub(super) struct Users {
    /// Counts the files that were read: credentials that were verified with an earlier file are verified again.
    pub(super) generation: u64,
    pub(super) by_name: HashMap<String, User>,
    /// The hashes of all users, in the order of their names: one of them is computed for an unknown name.
    decoys: Vec<Arc<str>>,
    /// Chooses it. Made from the hashes, which nobody outside knows, so that all instances with the same file choose alike.
    decoy_key: hmac::Key,
}

impl Users {
    pub(super) fn read(path: &Path, generation: u64) -> Result<Self, UsersError> {
        let text = std::fs::read(path).map_err(|source| UsersError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text, generation)
    }

    pub(super) fn parse(text: &[u8], generation: u64) -> Result<Self, UsersError> {
        let entries: Vec<Object<Entry>> = serde_json::from_slice(text)?;
        if entries.len() > MAX_USERS {
            return Err(UsersError::TooMany(entries.len()));
        }
        let mut by_name = HashMap::with_capacity(entries.len());
        for (at, Object(entry)) in entries.into_iter().enumerate() {
            let Entry {
                name,
                hash,
                subject,
            } = entry;
            check(&hash).map_err(|problem| UsersError::User { at, problem })?;
            let problem = match () {
                () if name.is_empty() || name.contains(':') => {
                    Some("a name must not be empty or hold a colon")
                }
                () if !is_user_id(&subject) => {
                    Some("the subject must have 1 to 256 bytes without control characters")
                }
                () if by_name.contains_key(&name) => Some("the name is taken by an earlier user"),
                () => None,
            };
            if let Some(problem) = problem {
                return Err(UsersError::User { at, problem });
            }
            by_name.insert(
                name,
                User {
                    hash: hash.into(),
                    subject: subject.into(),
                },
            );
        }
        Ok(Self::new(generation, by_name))
    }

    fn new(generation: u64, by_name: HashMap<String, User>) -> Self {
        let mut users: Vec<(&String, &User)> = by_name.iter().collect();
        users.sort_unstable_by_key(|(name, _)| *name);
        let decoys: Vec<Arc<str>> = users
            .into_iter()
            .map(|(_, user)| Arc::clone(&user.hash))
            .collect();
        let mut secret = digest::Context::new(&digest::SHA256);
        for hash in &decoys {
            secret.update(hash.as_bytes());
        }
        Self {
            generation,
            decoy_key: hmac::Key::new(hmac::HMAC_SHA256, secret.finish().as_ref()),
            decoys,
            by_name,
        }
    }

    /// Returns the hash that is computed for an unknown name, which is one of the file's: its costs are those of a name that is known. A name always
    /// gets the same one, and as many names get the parameters of a hash as there are users with them, so that neither one answer nor many tell which
    /// names are known. `None` without users.
    pub(super) fn decoy(&self, name: &str) -> Option<&Arc<str>> {
        let tag = hmac::sign(&self.decoy_key, name.as_bytes());
        let number = u64::from_be_bytes(tag.as_ref()[..8].try_into().expect("a tag has 32 bytes"));
        let count = self.decoys.len() as u64;
        self.decoys
            .get(usize::try_from(number.checked_rem(count)?).ok()?)
    }
}

/// Returns what is wrong with a hash, if anything is.
fn check(hash: &str) -> Result<(), &'static str> {
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
    Ok(())
}

//! Who is asking, and may they: Bearer tokens against remote key sets, Basic users, revocations, and Casbin policies.
//!
//! Input: credentials from [`crate::ws`] and [`crate::http`], key sets over HTTP, policy rows from [`crate::store`].
//! Output: a [`Principal`], or a refusal; and yes or no.

mod basic;
#[cfg(test)]
mod fixture;
mod jwk;
mod key_set;
mod policy;
mod published;
mod recent;
mod revocation;
mod token;

use std::sync::Arc;

use chrono::{DateTime, Utc};

pub use basic::{Basic, BasicError, UsersError};
pub use key_set::SourceStatus;
pub use policy::Access;
pub use published::{NotPublic, PublishedKeys};
pub use revocation::{Revocations, revocation_matches};
pub use token::{Authenticator, Reason, VerifyError};

/// SHA-256 of a public key (RFC 7638).
pub type Thumbprint = [u8; 32];

/// Who a token, or a Basic user, speaks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// The subject, with its source's prefix: compared as text everywhere.
    pub subject: Arc<str>,
    /// Identifiers of its roles; empty unless the source's roles are trusted.
    pub roles: Vec<String>,
    /// How it was authenticated.
    pub via: Via,
}

/// How a principal was authenticated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Via {
    /// A verified token.
    Token(TokenFacts),
    /// `Authorization: Basic`: it has no inbox.
    Basic,
}

/// What is kept of a verified token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenFacts {
    /// Name of the source that issued it.
    pub source: Arc<str>,
    /// The key that verified it. Not its `kid`, behind which an issuer may put another one.
    pub thumbprint: Arc<Thumbprint>,
    /// `jti`
    pub token_id: Option<Arc<str>>,
    /// `iat`
    pub issued_at: Option<DateTime<Utc>>,
    /// `exp`
    pub expires_at: Option<DateTime<Utc>>,
}

impl Principal {
    /// The token's facts, unless it is a Basic user.
    pub fn token(&self) -> Option<&TokenFacts> {
        match &self.via {
            Via::Token(facts) => Some(facts),
            Via::Basic => None,
        }
    }
}

//! Who a caller is, once authenticated. Plain data: [`crate::auth`] makes it, everything else reads it.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};

/// Longest user id, in bytes.
pub const MAX_USER_ID_BYTES: usize = 256;

/// Returns whether a text may be a user id, wherever it comes from: 1 to [`MAX_USER_ID_BYTES`] bytes without control characters. `.` and `..` are none, because
/// no path of REST can name them (RFC 3986 section 5.2.4).
pub fn is_user_id(text: &str) -> bool {
    (1..=MAX_USER_ID_BYTES).contains(&text.len())
        && !text.chars().any(char::is_control)
        && !matches!(text, "." | "..")
}

/// SHA-256 of a public key (RFC 7638).
pub type Thumbprint = [u8; 32];

/// The kind of a subject whose token names none, and of every Basic user.
pub const USER: &str = "User";

/// The kind of a subject. Almost every one is [`USER`], so it is one word in each principal, and text only in those of another kind.
#[derive(Clone, PartialEq, Eq)]
pub struct Kind(Option<Box<Box<str>>>);

impl Deref for Kind {
    type Target = str;

    fn deref(&self) -> &str {
        self.0.as_deref().map_or(USER, |name| name)
    }
}

impl From<&str> for Kind {
    fn from(name: &str) -> Self {
        Self((name != USER).then(|| Box::new(name.into())))
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

/// Stands for the `jti` of a token: half of its SHA-256. Nobody finds another text with the same, and it is always as short.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenId([u8; 16]);

impl TokenId {
    /// Returns what stands for this `jti`.
    pub fn of(jti: &str) -> Self {
        let hash: [u8; 32] = Sha256::digest(jti).into();
        let mut half = [0; 16];
        half.copy_from_slice(&hash[..16]);
        Self(half)
    }
}

/// Who a token, or a Basic user, speaks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// The subject, with the prefix of its source: compared as text everywhere.
    pub subject: Arc<str>,
    /// What the subject is (`principalType`): [`USER`] unless its token says otherwise. Policies know the subject as `{kind}_{subject}`.
    pub kind: Kind,
    /// Identifiers of its roles; empty unless the roles of the source are trusted.
    pub roles: Box<[String]>,
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
    /// The key that verified it. Not its `kid`: an issuer may use the same `kid` for another key.
    pub thumbprint: Arc<Thumbprint>,
    /// `jti`
    pub token_id: Option<TokenId>,
    /// `iat`
    pub issued_at: Option<DateTime<Utc>>,
    /// `exp`
    pub expires_at: Option<DateTime<Utc>>,
}

impl Principal {
    /// Returns the token's facts, or `None` for a Basic user.
    pub fn token(&self) -> Option<&TokenFacts> {
        match &self.via {
            Via::Token(facts) => Some(facts),
            Via::Basic => None,
        }
    }
}

impl TokenFacts {
    /// Returns `iat` in milliseconds since the Unix epoch; a token without it counts as issued at time zero.
    pub fn issued_ms(&self) -> i64 {
        self.issued_at.map_or(0, |at| at.timestamp_millis())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every connection has one: with the counts of references the allocator has a class for it.
    #[test]
    fn a_principal_and_its_counts_fit_into_128_bytes() {
        assert!(
            size_of::<Principal>() + 2 * size_of::<usize>() <= 128,
            "{}",
            size_of::<Principal>()
        );
    }

    #[test]
    fn a_kind_is_the_name_it_was_given() {
        for name in [USER, "Staff", "x"] {
            let kind = Kind::from(name);
            assert_eq!((&*kind, kind.to_string().as_str()), (name, name));
            assert_eq!(kind.0.is_none(), name == USER);
            assert_eq!(kind, Kind::from(name));
        }
        assert_ne!(Kind::from("Staff"), Kind::from(USER));
    }

    /// authorization.md 1.9.
    #[test]
    fn a_user_id_is_what_rest_can_name() {
        for (text, good) in [
            ("17", true),
            ("người dùng/1", true),
            (" ", true),
            (&*"x".repeat(256), true),
            (&*"x".repeat(257), false),
            ("", false),
            ("a\u{7}", false),
            (".", false),
            ("..", false),
            ("...", true),
        ] {
            assert_eq!(is_user_id(text), good, "{text:?}");
        }
    }
}

//! Who a caller is, once authenticated. Plain data: [`crate::auth`] makes it, everything else reads it.

use std::borrow::Cow;
use std::sync::Arc;

use chrono::{DateTime, Utc};

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

/// Who a token, or a Basic user, speaks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// The subject, with the prefix of its source: compared as text everywhere.
    pub subject: Arc<str>,
    /// What the subject is (`principalType`): [`USER`] unless its token says otherwise. Policies know the subject as `{kind}_{subject}`.
    pub kind: Cow<'static, str>,
    /// Identifiers of its roles; empty unless the roles of the source are trusted.
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
    /// The key that verified it. Not its `kid`: an issuer may use the same `kid` for another key.
    pub thumbprint: Arc<Thumbprint>,
    /// `jti`
    pub token_id: Option<Arc<str>>,
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

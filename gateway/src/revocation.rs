//! A revocation: tokens that are refused before they expire. Plain data, shared between instances.

use serde::{Deserialize, Serialize};

use crate::principal::{Principal, TokenId};

/// Revokes tokens before they expire.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Revocation {
    /// All tokens of this subject ...
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_id: Option<String>,
    /// ... or the one token with this `jti` ...
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jti: Option<String>,
    /// ... that were issued before this time, in milliseconds since the Unix epoch.
    pub issued_before_ms: i64,
    /// When it may be forgotten: the longest life of a token later, in milliseconds since the Unix epoch.
    pub until_ms: i64,
}

impl Revocation {
    /// Returns a function that tells whether a principal's token is revoked: it names the subject or the `jti`, and the token was issued before its time. A
    /// token without `iat` counts as issued at time zero. A Basic user has no token to revoke.
    pub fn matcher(&self) -> impl Fn(&Principal) -> bool + Clone + Send + 'static + use<> {
        let token_id = self.jti.as_deref().map(TokenId::of);
        let (user_id, issued_before_ms) = (self.user_id.clone(), self.issued_before_ms);
        move |principal| {
            let Some(token) = principal.token() else {
                return false;
            };
            let named = user_id.as_deref() == Some(&*principal.subject)
                || (token_id.is_some() && token_id == token.token_id);
            named && token.issued_ms() < issued_before_ms
        }
    }
}

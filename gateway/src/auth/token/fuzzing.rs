//! The entry point of tokens for `crate::fuzzing`.

use super::ParsedToken;
use super::parse::are_claims;
use super::payload::PayloadKey;
use crate::auth::jwk::MAX_KID;

/// Reads what a token says before it is verified, and the same bytes as what stands in a verified one: its `kid` must be bounded, and no member
/// without a name opens.
pub(crate) fn jwt(input: &[u8]) {
    if are_claims(input)
        && let Ok(members) = serde_json::from_slice(input)
        && let Ok(key) = PayloadKey::new("application")
    {
        let opened = key.open(members);
        assert!(opened.is_none_or(|opened| !opened.has("")));
    }
    let Ok(token) = std::str::from_utf8(input) else {
        return;
    };
    if let Ok(parsed) = ParsedToken::parse(token) {
        assert!(parsed.kid.is_none_or(|kid| kid.len() <= MAX_KID));
    }
}

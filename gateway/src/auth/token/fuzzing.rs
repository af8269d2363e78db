//! The entry point of tokens for `crate::fuzzing`.

use super::ParsedToken;
use crate::auth::jwk::MAX_KID;

/// Parses a token. The signed part must be its beginning, and its `kid` must be bounded.
pub(crate) fn jwt(input: &[u8]) {
    let Ok(token) = std::str::from_utf8(input) else {
        return;
    };
    let Ok(parsed) = ParsedToken::parse(token) else {
        return;
    };
    assert!(token.as_bytes().starts_with(parsed.message));
    assert!(parsed.message.len() < token.len());
    assert!(parsed.signature.len() <= token.len() - parsed.message.len());
    assert!(parsed.kid.is_none_or(|kid| kid.len() <= MAX_KID));
}

//! The entry point of tokens for `crate::fuzzing`.

use super::{MAX_KID, Parts};

/// Takes a token apart: what is signed is its beginning, and its `kid` is bounded.
pub(crate) fn jwt(input: &[u8]) {
    let Ok(token) = std::str::from_utf8(input) else {
        return;
    };
    let Ok(parts) = Parts::parse(token) else {
        return;
    };
    assert!(token.as_bytes().starts_with(parts.message));
    assert!(parts.message.len() < token.len());
    assert!(parts.signature.len() <= token.len() - parts.message.len());
    assert!(parts.kid.is_none_or(|kid| kid.len() <= MAX_KID));
}

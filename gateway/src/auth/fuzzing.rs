//! The entry points of tokens and key sets for `crate::fuzzing`.

pub(crate) use super::token::fuzzing::jwt;

use super::jwk::{MAX_KEYS, MAX_KID, parse};

/// Reads a key set: bounded, every key named and fit for something, and none verifies an empty signature.
pub(crate) fn jwks(input: &[u8]) {
    let Ok(keys) = parse(input) else { return };
    assert!(keys.len() <= MAX_KEYS);
    for key in keys {
        assert!(!key.name.is_empty() && !key.algorithms.is_empty());
        assert!(key.kid.as_ref().is_none_or(|kid| kid.len() <= MAX_KID));
        for algorithm in key.algorithms {
            assert!(!key.verifies(*algorithm, b"message", b""));
        }
    }
}

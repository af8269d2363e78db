//! The revision of a text: how operator and gateway agree on which version of a document is in use.

use std::fmt::Write;

use sha2::{Digest, Sha256};

/// Returns the revision of a text: `sha256:` and 64 hexadecimal digits.
pub fn revision(text: &str) -> String {
    revision_of_digest(&Sha256::digest(text.as_bytes()))
}

/// Returns the same for a digest that was computed piece by piece.
pub fn revision_of_digest(digest: &[u8]) -> String {
    digest
        .iter()
        .fold(String::from("sha256:"), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_is_the_sha_256_of_the_text() {
        // FIPS 180-4, the digest of "abc".
        assert_eq!(
            revision("abc"),
            "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}

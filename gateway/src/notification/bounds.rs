//! Bounds of the text in a record, and the one character that no text may hold; no IO.
//!
//! Input: text from [`crate::activity`] before it is decoded, and from [`crate::store`] before a database is asked. Output: whether it
//! may go on. Every field of a record is measured here and nowhere else.

/// Longest `id`, `type`, source, or id of a person, merchant or organizer, in bytes: three of them fit into an index entry.
pub const MAX_NAME_BYTES: usize = 512;
/// Longest `title`, in bytes.
pub const MAX_TITLE_BYTES: usize = 4096;
/// Longest `content`, in bytes.
pub const MAX_CONTENT_BYTES: usize = 65_536;
/// Longest `data`, in bytes of JSON: it travels to every connection of every recipient.
pub const MAX_DATA_BYTES: usize = 262_144;
/// Longest `locale`, in bytes (RFC 5646 section 4.4.1 asks for 35 at least).
pub const MAX_LOCALE_BYTES: usize = 64;

/// Why a text is refused. Reads on after the name of its field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// It has more than so many bytes.
    #[error("is longer than {0} bytes")]
    TooLong(usize),
    /// It holds a character that PostgreSQL refuses.
    #[error("holds the character U+0000")]
    Nul,
}

/// Checks a text.
///
/// # Errors
/// It is longer than `max_bytes`, or holds U+0000.
pub fn check_text(text: &str, max_bytes: usize) -> Result<(), TextError> {
    if text.len() > max_bytes {
        Err(TextError::TooLong(max_bytes))
    } else if has_nul(text) {
        Err(TextError::Nul)
    } else {
        Ok(())
    }
}

/// Checks a JSON text.
///
/// # Errors
/// It is longer than `max_bytes`, or one of its strings spells U+0000.
pub fn check_json(json: &str, max_bytes: usize) -> Result<(), TextError> {
    if json.len() > max_bytes {
        Err(TextError::TooLong(max_bytes))
    } else if json_has_nul(json) {
        Err(TextError::Nul)
    } else {
        Ok(())
    }
}

/// Whether a text holds U+0000, which PostgreSQL's `text` refuses.
pub fn has_nul(text: &str) -> bool {
    memchr::memchr(0, text.as_bytes()).is_some()
}

/// Whether a JSON text holds the escape `\u0000`. An escaped backslash in front of `u0000` makes none.
pub fn json_has_nul(json: &str) -> bool {
    let bytes = json.as_bytes();
    memchr::memmem::find_iter(bytes, br"\u0000").any(|at| {
        let backslashes_before = bytes[..at]
            .iter()
            .rev()
            .take_while(|b| **b == b'\\')
            .count();
        backslashes_before.is_multiple_of(2)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nul_is_found_as_an_escape_and_an_escaped_backslash_makes_none() {
        for (json, nul) in [
            (r#""\u0000""#, true),
            (r#""\\\u0000""#, true),
            (r#""\\u0000""#, false),
            (r#""\u0001 u0000""#, false),
            (r#"{"a\u0000":1}"#, true),
        ] {
            assert_eq!(json_has_nul(json), nul, "{json}");
        }
    }

    #[test]
    fn text_is_measured_in_bytes_and_may_be_as_long_as_its_bound() {
        assert_eq!(check_text("ăb", 3), Ok(()));
        assert_eq!(check_text("ăb", 2), Err(TextError::TooLong(2)));
        assert_eq!(check_text("a\0", 2), Err(TextError::Nul));
        assert_eq!(check_json(r#"{"a":"\u0000"}"#, 99), Err(TextError::Nul));
        assert_eq!(check_json("{}", 1), Err(TextError::TooLong(1)));
    }
}

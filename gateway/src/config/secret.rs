//! Reads files whose content is a secret.

use std::io;

use signal_contract::{Secret, SecretFile};
use zeroize::Zeroizing;

/// Reads the content of a file without surrounding white space; returns `None` when no path is set.
///
/// # Errors
/// The file cannot be read or is not UTF-8.
pub fn read_secret(file: &SecretFile) -> io::Result<Option<Secret>> {
    match file.path() {
        None => Ok(None),
        Some(path) => {
            let text = Zeroizing::new(std::fs::read_to_string(path)?);
            Ok(Some(Secret::new(text.trim())))
        }
    }
}

/// The user of a login: the content of its file where one is set, otherwise the text.
///
/// # Errors
/// When the file cannot be read.
pub fn read_username(text: &str, file: &SecretFile) -> io::Result<String> {
    let read = read_secret(file)?;
    Ok(read.map_or_else(|| text.to_owned(), |name| name.expose().to_owned()))
}

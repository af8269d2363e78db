//! What dev mode tells a person once it is ready: where everything is, and lines to paste.

use std::fmt;
use std::path::Path;

use super::folder::Addresses;
use super::issuer::TOKEN_HOURS;
use super::settings::ADMIN_TOKEN_FILE;
use super::{Token, produce};

/// Prints as several lines of text.
pub(super) struct Sheet<'a> {
    /// How this program was called.
    pub(super) program: &'a Path,
    /// The data folder as it was given.
    pub(super) data_dir: &'a Path,
    /// The same as a whole path, so that pasted lines work anywhere.
    pub(super) folder: &'a Path,
    pub(super) addresses: &'a Addresses,
    pub(super) tokens: &'a [Token],
    pub(super) topics: &'a [String],
}

impl fmt::Display for Sheet<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Addresses {
            stream,
            rest,
            admin,
            kafka,
            topic,
            certs,
        } = self.addresses;
        let beside = |command: &str| {
            let place = if self.data_dir == Path::new(".signal-dev") {
                String::new()
            } else {
                format!(" --data-dir {}", quoted(self.folder))
            };
            format!("{} dev {command}{place}", quoted(self.program))
        };
        writeln!(
            f,
            "\nSignal is ready, in dev mode: everything is embedded.\n"
        )?;
        writeln!(f, "  state    {}", self.folder.display())?;
        writeln!(
            f,
            "           inboxes, policies, keys and tokens, kept across restarts; delete the folder to begin anew"
        )?;
        writeln!(f, "  stream   {stream}")?;
        writeln!(f, "  REST     {rest}    documents: {rest}/docs")?;
        writeln!(f, "  admin    {admin}")?;
        writeln!(
            f,
            "  Kafka    {kafka}    topics: {}; records go with the process",
            self.topics.join(", ")
        )?;
        writeln!(f, "  keys     {certs}")?;
        writeln!(
            f,
            "\nMerchant 42 has users 17 and 18, merchant 43 has user 18, organizer 7 has user 17. User 1 may manage connections.\n"
        )?;
        writeln!(
            f,
            "Watch user 17's notifications appear, in a second terminal:\n"
        )?;
        writeln!(f, "  {}\n", beside("watch --user 17"))?;
        writeln!(
            f,
            "Produce an activity for merchant 42; the second line does the same with kcat:\n"
        )?;
        writeln!(f, "  {} '{}'", beside("produce"), produce::SAMPLE)?;
        writeln!(
            f,
            "  echo '{}' | kcat -P -b {kafka} -t {topic} -k 42\n",
            produce::SAMPLE
        )?;
        writeln!(
            f,
            "Read an inbox; list all connections, as the administrator; look into the gateway:\n"
        )?;
        for (path, is_admin) in [
            ("/notifications", false),
            ("/socket/websocket/clients", true),
        ] {
            let Some(token) = self.tokens.iter().find(|token| token.is_admin == is_admin) else {
                continue;
            };
            writeln!(
                f,
                "  curl -H \"Authorization: Bearer $(cat {})\" {rest}{path}",
                quoted(&token.file)
            )?;
        }
        let file = self.folder.join(ADMIN_TOKEN_FILE);
        writeln!(
            f,
            "  curl -H \"Authorization: Bearer $(cat {})\" {admin}/status\n",
            quoted(&file)
        )?;
        writeln!(
            f,
            "Tokens, good for {TOKEN_HOURS} hours, also in {}:\n",
            self.folder.join("*.token").display()
        )?;
        for Token {
            user,
            is_admin,
            text,
            ..
        } in self.tokens
        {
            writeln!(
                f,
                "  {} {user}\n  {text}\n",
                if *is_admin {
                    "administrator, user"
                } else {
                    "user"
                }
            )?;
        }
        writeln!(f, "Ctrl-C ends it.\n")
    }
}

/// As a shell reads it back.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%,".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_survives_the_shell() {
        assert_eq!(quoted(Path::new("/a/b.c")), "/a/b.c");
        assert_eq!(quoted(Path::new("/a b/it's")), r"'/a b/it'\''s'");
    }
}

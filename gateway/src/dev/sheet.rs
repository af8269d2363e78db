//! What dev mode prints when it is ready: all addresses, and commands to paste.

use std::fmt;
use std::path::Path;

use super::folder::Addresses;
use super::issuer::TOKEN_HOURS;
use super::settings::ADMIN_TOKEN_FILE;
use super::{Token, produce};

/// The text, printed by its `Display`.
pub(super) struct Sheet<'a> {
    /// The name by which this program was called.
    pub(super) program: &'a Path,
    /// The data folder as it was typed.
    pub(super) data_dir: &'a Path,
    /// The absolute path of the data folder, so that pasted commands work anywhere.
    pub(super) folder: &'a Path,
    pub(super) addresses: &'a Addresses,
    pub(super) tokens: &'a [Token],
    pub(super) topics: &'a [String],
}

impl fmt::Display for Sheet<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_addresses(f)?;
        self.write_commands(f)?;
        self.write_tokens(f)?;
        writeln!(f, "Press Ctrl-C to stop.\n")
    }
}

impl Sheet<'_> {
    fn write_addresses(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Addresses {
            playground,
            stream,
            rest,
            admin,
            kafka,
            certs,
            ..
        } = self.addresses;
        let (folder, topics) = (self.folder.display(), self.topics.join(", "));
        writeln!(
            f,
            "\nSignal is ready, in dev mode: everything is embedded.\n"
        )?;
        writeln!(f, "Open the playground, two inboxes side by side:\n")?;
        writeln!(f, "  {playground}\n")?;
        writeln!(f, "  state    {folder}")?;
        writeln!(
            f,
            "           inboxes, policies, keys and tokens; kept across restarts; delete the folder to start from zero"
        )?;
        writeln!(f, "  stream   {stream}")?;
        writeln!(f, "  REST     {rest}    documents: {rest}/docs")?;
        writeln!(f, "  admin    {admin}")?;
        writeln!(
            f,
            "  Kafka    {kafka}    topics: {topics}; records are lost when the process ends"
        )?;
        writeln!(f, "  keys     {certs}")?;
        writeln!(
            f,
            "\nMerchant 42 has users 17 and 18, merchant 43 has user 18, organizer 7 has user 17. User 1 may manage connections.\n"
        )
    }

    fn write_commands(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Addresses {
            rest,
            admin,
            kafka,
            topic,
            ..
        } = self.addresses;
        writeln!(
            f,
            "Watch the notifications of user 17 arrive, in a second terminal:\n"
        )?;
        writeln!(f, "  {}\n", self.dev_command("watch --user 17"))?;
        writeln!(
            f,
            "Produce an activity for merchant 42; the second line does the same with kcat:\n"
        )?;
        let sample = produce::SAMPLE;
        writeln!(f, "  {} '{sample}'", self.dev_command("produce"))?;
        writeln!(
            f,
            "  echo '{sample}' | kcat -P -b {kafka} -t {topic} -k 42\n"
        )?;
        writeln!(
            f,
            "Read an inbox; list all connections as the administrator; read the status of the gateway:\n"
        )?;
        let curl = |file: &Path, url: &str| {
            format!(
                "  curl -H \"Authorization: Bearer $(cat {})\" {url}",
                quoted(file)
            )
        };
        for (path, is_admin) in [
            ("/notifications", false),
            ("/socket/websocket/clients", true),
        ] {
            if let Some(token) = self.tokens.iter().find(|token| token.is_admin == is_admin) {
                writeln!(f, "{}", curl(&token.file, &format!("{rest}{path}")))?;
            }
        }
        let file = self.folder.join(ADMIN_TOKEN_FILE);
        writeln!(f, "{}\n", curl(&file, &format!("{admin}/status")))
    }

    fn write_tokens(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let files = self.folder.join("*.token");
        writeln!(
            f,
            "Tokens, valid for {TOKEN_HOURS} hours, also in {}:\n",
            files.display()
        )?;
        for Token {
            user,
            is_admin,
            text,
            ..
        } in self.tokens
        {
            let kind = if *is_admin {
                "administrator, user"
            } else {
                "user"
            };
            writeln!(f, "  {kind} {user}\n  {text}\n")?;
        }
        Ok(())
    }

    /// Returns the command line of a dev mode subcommand.
    fn dev_command(&self, arguments: &str) -> String {
        let folder = if self.data_dir == Path::new(".signal-dev") {
            String::new()
        } else {
            format!(" --data-dir {}", quoted(self.folder))
        };
        format!("{} dev {arguments}{folder}", quoted(self.program))
    }
}

/// Quotes a path for a shell.
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
    fn a_path_is_quoted_for_the_shell() {
        assert_eq!(quoted(Path::new("/a/b.c")), "/a/b.c");
        assert_eq!(quoted(Path::new("/a b/it's")), r"'/a b/it'\''s'");
    }
}

//! Refuses names of our own items that say nothing: too general for a type, or no verb or noun that one would search for.
//!
//! `_typos.toml` forbids words everywhere. These are ordinary words in prose, so only names are looked at.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use syn::Ident;
use syn::visit::{self, Visit};

/// Words that no name may contain.
const WORDS: [&str; 2] = ["beside", "home"];
/// Names that no type may have.
const TYPES: [&str; 13] = [
    "Hand",
    "Happening",
    "Item",
    "Line",
    "Parts",
    "Place",
    "Reason",
    "Shared",
    "Side",
    "Trouble",
    "Way",
    "Which",
    "World",
];

/// Checks every Rust file that git tracks or would track.
pub(super) fn check(root: &Path) -> Result<()> {
    let mut found = Vec::new();
    for file in files(root)? {
        let text = std::fs::read_to_string(root.join(&file))?;
        let names = read(&text).with_context(|| format!("cannot parse {}", file.display()))?;
        found.extend(
            names
                .into_iter()
                .map(|(line, name)| format!("{}:{line}: {name}", file.display())),
        );
    }
    if found.is_empty() {
        return Ok(());
    }
    bail!(
        "{} names that say nothing:\n  {}",
        found.len(),
        found.join("\n  ")
    )
}

fn files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut list = Command::new("git");
    list.args([
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
        "*.rs",
    ]);
    let output = list.current_dir(root).output().context("cannot run git")?;
    if !output.status.success() {
        bail!("git ls-files ended with {}", output.status);
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let files = text.lines().map(PathBuf::from);
    // A file that is deleted and not committed is still listed.
    Ok(files.filter(|file| root.join(file).is_file()).collect())
}

fn read(text: &str) -> Result<Vec<(usize, String)>> {
    let mut reader = Reader { found: Vec::new() };
    reader.visit_file(&syn::parse_file(text)?);
    Ok(reader.found)
}

struct Reader {
    found: Vec<(usize, String)>,
}

impl Reader {
    fn name(&mut self, ident: &Ident) {
        let name = ident.to_string();
        if words(&name).any(|word| WORDS.contains(&word.as_str())) {
            self.found.push((ident.span().start().line, name));
        }
    }

    fn type_name(&mut self, ident: &Ident) {
        self.name(ident);
        if TYPES.iter().any(|name| ident == name) {
            self.found
                .push((ident.span().start().line, ident.to_string()));
        }
    }
}

/// The words of a name in either style, in lower case.
fn words(name: &str) -> impl Iterator<Item = String> {
    let mut words = vec![String::new()];
    let mut before_is_lower = false;
    for letter in name.chars() {
        if letter == '_' || (letter.is_uppercase() && before_is_lower) {
            words.push(String::new());
        }
        before_is_lower = letter.is_lowercase();
        if letter != '_'
            && let Some(word) = words.last_mut()
        {
            word.extend(letter.to_lowercase());
        }
    }
    words.into_iter()
}

impl<'ast> Visit<'ast> for Reader {
    fn visit_item_struct(&mut self, item: &'ast syn::ItemStruct) {
        self.type_name(&item.ident);
        visit::visit_item_struct(self, item);
    }

    fn visit_item_enum(&mut self, item: &'ast syn::ItemEnum) {
        self.type_name(&item.ident);
        visit::visit_item_enum(self, item);
    }

    fn visit_item_trait(&mut self, item: &'ast syn::ItemTrait) {
        self.type_name(&item.ident);
        visit::visit_item_trait(self, item);
    }

    fn visit_item_type(&mut self, item: &'ast syn::ItemType) {
        self.type_name(&item.ident);
        visit::visit_item_type(self, item);
    }

    fn visit_item_const(&mut self, item: &'ast syn::ItemConst) {
        self.name(&item.ident);
        visit::visit_item_const(self, item);
    }

    fn visit_item_static(&mut self, item: &'ast syn::ItemStatic) {
        self.name(&item.ident);
        visit::visit_item_static(self, item);
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        self.name(&item.ident);
        visit::visit_item_mod(self, item);
    }

    fn visit_signature(&mut self, signature: &'ast syn::Signature) {
        self.name(&signature.ident);
        visit::visit_signature(self, signature);
    }

    fn visit_impl_item_const(&mut self, item: &'ast syn::ImplItemConst) {
        self.name(&item.ident);
        visit::visit_impl_item_const(self, item);
    }

    fn visit_variant(&mut self, variant: &'ast syn::Variant) {
        self.name(&variant.ident);
        visit::visit_variant(self, variant);
    }

    fn visit_field(&mut self, field: &'ast syn::Field) {
        field.ident.iter().for_each(|ident| self.name(ident));
        visit::visit_field(self, field);
    }

    fn visit_pat_ident(&mut self, pattern: &'ast syn::PatIdent) {
        self.name(&pattern.ident);
        visit::visit_pat_ident(self, pattern);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<String> {
        let found = read(text).unwrap();
        found.into_iter().map(|(_, name)| name).collect()
    }

    #[test]
    fn types_that_say_nothing_are_refused_under_exactly_these_names() {
        assert_eq!(names("struct Parts; struct RequestParts;"), ["Parts"]);
        assert_eq!(names("type Line = u8; enum Way {}"), ["Line", "Way"]);
        assert_eq!(names("trait World {}"), ["World"]);
    }

    #[test]
    fn types_of_libraries_may_be_used_and_implemented() {
        let text = "use http::request::Parts; impl Iterator for X { type Item = Parts; }";
        assert_eq!(names(text), Vec::<String>::new());
    }

    #[test]
    fn a_forbidden_word_is_found_in_every_kind_of_name() {
        let text = "fn run_beside(home: u8) { let at_home = 1; } struct X { home_room: u8 } const HOME: u8 = 1; \
                    enum E { BesideIt }";
        let wanted = [
            "run_beside",
            "home",
            "at_home",
            "home_room",
            "HOME",
            "BesideIt",
        ];
        let mut found = names(text);
        found.sort();
        let mut wanted = wanted.to_vec();
        wanted.sort_unstable();
        assert_eq!(found, wanted);
    }

    #[test]
    fn a_word_within_a_longer_word_is_another_word() {
        assert_eq!(names("fn homebrew() {}"), Vec::<String>::new());
    }
}

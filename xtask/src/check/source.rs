//! Reads a package's modules and which of them use which, from its sources.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use proc_macro2::{TokenStream, TokenTree};
use syn::spanned::Spanned as _;
use syn::visit::{self, Visit};
use syn::{Attribute, Item, ItemMod, ItemUse, Macro, Meta, UseTree};

/// What a package's sources use.
#[derive(Debug, Default)]
pub(super) struct Uses {
    /// The top-level modules.
    pub(super) modules: BTreeSet<String>,
    /// For each pair of user and used module, where, as `FILE:LINE`.
    pub(super) arrows: BTreeMap<(String, String), Vec<String>>,
}

/// Reads `src/lib.rs` and every module file that it declares, without those that only tests compile.
///
/// # Errors
/// When a declared file is missing or a file is not Rust.
pub(super) fn read_package(folder: &Path) -> Result<Uses> {
    let src = folder.join("src");
    let mut reader = Reader {
        uses: Uses::default(),
        module: Vec::new(),
        file: src.join("lib.rs"),
        children: src,
        pending: Vec::new(),
    };
    reader.read_file()?;
    while let Some(next) = reader.pending.pop() {
        reader.module = next.module;
        (reader.file, reader.children) = locate(&next.parent, &next.name)?;
        reader.read_file()?;
    }
    for places in reader.uses.arrows.values_mut() {
        places.sort();
        places.dedup();
    }
    Ok(reader.uses)
}

/// A module in a file that is still to be read.
struct Pending {
    module: Vec<String>,
    name: String,
    /// The folder that holds the module's file or folder.
    parent: PathBuf,
}

struct Reader {
    uses: Uses,
    /// The path of the module that is being read, from the root of the crate.
    module: Vec<String>,
    file: PathBuf,
    /// Where the files of this module's children lie.
    children: PathBuf,
    pending: Vec<Pending>,
}

/// The file of a module and the folder of its children.
fn locate(parent: &Path, name: &str) -> Result<(PathBuf, PathBuf)> {
    let folder = parent.join(name);
    let file = parent.join(format!("{name}.rs"));
    if file.is_file() {
        return Ok((file, folder));
    }
    let file = folder.join("mod.rs");
    file.is_file()
        .then_some((file, folder))
        .with_context(|| format!("no file for the module {name} in {}", parent.display()))
}

impl Reader {
    fn read_file(&mut self) -> Result<()> {
        let text = std::fs::read_to_string(&self.file)
            .with_context(|| format!("cannot read {}", self.file.display()))?;
        let file = syn::parse_file(&text)
            .with_context(|| format!("cannot parse {}", self.file.display()))?;
        self.visit_file(&file);
        Ok(())
    }

    /// Notes the use of a path that begins with `crate`, `super` or `self`.
    fn note(&mut self, path: &[String], line: usize) {
        // The root declares and re-exports; it belongs to no module.
        let Some(own) = self.module.first().cloned() else {
            return;
        };
        let mut base = match path.first().map(String::as_str) {
            Some("crate") => Vec::new(),
            Some("super" | "self") => self.module.clone(),
            _ => return,
        };
        for segment in path {
            match segment.as_str() {
                "crate" | "self" => {}
                "super" => {
                    base.pop();
                }
                name => base.push(name.to_owned()),
            }
        }
        let used = base.first().cloned().unwrap_or_else(|| "*".to_owned());
        if used != own {
            let name = self.file.file_name().unwrap_or_default().to_string_lossy();
            let folder = self.file.parent().and_then(Path::file_name);
            let folder = folder.unwrap_or_default().to_string_lossy();
            let place = format!("{folder}/{name}:{line}");
            self.uses.arrows.entry((own, used)).or_default().push(place);
        }
    }

    fn note_tree(&mut self, tree: &UseTree, before: &mut Vec<String>) {
        match tree {
            UseTree::Path(path) => {
                before.push(path.ident.to_string());
                self.note_tree(&path.tree, before);
                before.pop();
            }
            UseTree::Name(name) => {
                before.push(name.ident.to_string());
                self.note(before, name.span().start().line);
                before.pop();
            }
            UseTree::Rename(rename) => {
                before.push(rename.ident.to_string());
                self.note(before, rename.span().start().line);
                before.pop();
            }
            UseTree::Glob(glob) => self.note(before, glob.span().start().line),
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.note_tree(tree, before);
                }
            }
        }
    }

    /// Finds paths in the arguments of a macro, which are no syntax tree.
    fn note_tokens(&mut self, tokens: TokenStream) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        for (at, token) in tokens.iter().enumerate() {
            match token {
                TokenTree::Group(group) => self.note_tokens(group.stream()),
                TokenTree::Ident(ident) if *ident == "crate" || *ident == "super" => {
                    let rest = &tokens[at + 1..];
                    let mut path = vec![ident.to_string()];
                    for step in rest.chunks(3) {
                        let [
                            TokenTree::Punct(one),
                            TokenTree::Punct(two),
                            TokenTree::Ident(name),
                        ] = step
                        else {
                            break;
                        };
                        if one.as_char() != ':' || two.as_char() != ':' {
                            break;
                        }
                        path.push(name.to_string());
                    }
                    // The second `super` of `super::super` begins no path.
                    let continues = at > 0
                        && matches!(&tokens[at - 1], TokenTree::Punct(punct) if punct.as_char() == ':');
                    // `crate` alone stands in `pub(crate)`.
                    if !continues && path.len() > 1 {
                        self.note(&path, ident.span().start().line);
                    }
                }
                _ => {}
            }
        }
    }
}

/// Whether only tests compile what has these attributes.
pub(super) fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        Meta::List(list) if list.path.is_ident("cfg") => {
            let text = list.tokens.to_string();
            text.split(|c: char| !c.is_alphanumeric() && c != '_')
                .any(|word| word == "test")
                && !text.contains("not")
        }
        meta => meta.path().is_ident("test"),
    })
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

impl<'ast> Visit<'ast> for Reader {
    fn visit_item(&mut self, item: &'ast Item) {
        if !is_for_tests(attributes(item)) {
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        if !is_for_tests(&function.attrs) {
            visit::visit_impl_item_fn(self, function);
        }
    }

    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        let name = item.ident.to_string();
        if self.module.is_empty() {
            self.uses.modules.insert(name.clone());
        }
        self.module.push(name.clone());
        if let Some((_, items)) = &item.content {
            let folder = self.children.join(&name);
            let children = std::mem::replace(&mut self.children, folder);
            items.iter().for_each(|item| self.visit_item(item));
            self.children = children;
        } else {
            self.pending.push(Pending {
                module: self.module.clone(),
                name,
                parent: self.children.clone(),
            });
        }
        self.module.pop();
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        self.note_tree(&item.tree, &mut Vec::new());
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Vec<String> = path
            .segments
            .iter()
            .map(|segment| segment.ident.to_string())
            .collect();
        self.note(&segments, path.span().start().line);
        visit::visit_path(self, path);
    }

    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {
        // `pub(in crate::x)` and `pub(super)` use nothing.
    }

    fn visit_macro(&mut self, item: &'ast Macro) {
        self.visit_path(&item.path);
        self.note_tokens(item.tokens.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrows(files: &[(&str, &str)]) -> Vec<String> {
        let dir = std::env::temp_dir().join(format!(
            "signal-source-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        for (name, text) in files {
            let file = dir.join("src").join(name);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, text).unwrap();
        }
        let uses = read_package(&dir);
        std::fs::remove_dir_all(&dir).unwrap();
        let uses = uses.unwrap();
        uses.arrows
            .keys()
            .map(|(from, to)| format!("{from} -> {to}"))
            .collect()
    }

    #[test]
    fn a_forbidden_use_is_seen_in_each_form_that_it_can_have() {
        for text in [
            "use crate::b::X;",
            "use crate::{b::{self, X}, a};",
            "use super::b::X as Y;",
            "fn f() { crate::b::f() }",
            "fn f(x: &crate::b::X) {}",
            "mod inner { use super::super::b::X; }",
            "fn f() { println!(\"{}\", crate::b::X); }",
            "fn f() { println!(\"{:?}\", [super::b::X]); }",
        ] {
            let files = [("lib.rs", "mod a; mod b;"), ("a.rs", text), ("b.rs", "")];
            assert_eq!(arrows(&files), ["a -> b"], "{text}");
        }
    }

    #[test]
    fn what_only_tests_compile_is_left_out() {
        let text = "#[cfg(test)] mod tests; #[cfg(test)] mod more { use crate::b::X; } #[cfg(test)] use crate::b::Y;";
        let files = [
            ("lib.rs", "mod a; mod b;"),
            ("a.rs", text),
            ("a/tests.rs", "use crate::b::X;"),
            ("b/mod.rs", "#[test] fn f() { crate::a::f() }"),
        ];
        assert_eq!(arrows(&files), Vec::<String>::new());
    }

    #[test]
    fn files_of_modules_are_found_in_both_layouts() {
        let files = [
            ("lib.rs", "mod a; mod b; mod c;"),
            ("a.rs", "mod deep;"),
            ("a/deep.rs", "use super::super::c::X;"),
            ("b/mod.rs", "mod deep;"),
            ("b/deep.rs", "use crate::c::X; use super::Y;"),
            ("c.rs", "use self::X;"),
        ];
        assert_eq!(arrows(&files), ["a -> c", "b -> c"]);
    }
}

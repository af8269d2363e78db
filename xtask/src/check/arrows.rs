//! Compares the arrows between the top-level modules of a package with those that `ARCHITECTURE.md` draws.
//!
//! The page has a fenced block ` ```arrows PACKAGE ` per package, with lines `a, b -> c, d`: a and b may use c and d. A
//! module that uses none has nothing right of the arrow; `a -> all but b` is for the module that puts the parts together.
//! The sources are read from `src/lib.rs` along its `mod` declarations, without what only tests compile.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use super::source::{Uses, read_package};

/// The packages that have a block, by folder.
const PACKAGES: [&str; 2] = ["gateway", "operator"];

/// Checks each package and fails with every difference.
pub(super) fn check(root: &Path) -> Result<()> {
    let page = std::fs::read_to_string(root.join("ARCHITECTURE.md"))?;
    let mut problems = Vec::new();
    for package in PACKAGES {
        let drawing = Drawing::find(&page, package)?;
        let uses = read_package(&root.join(package))?;
        let differences = drawing.differences(&uses);
        problems.extend(
            differences
                .into_iter()
                .map(|text| format!("{package}: {text}")),
        );
    }
    if problems.is_empty() {
        return Ok(());
    }
    bail!(
        "{} differences between the sources and ARCHITECTURE.md:\n  {}",
        problems.len(),
        problems.join("\n  ")
    )
}

/// The arrows of one package as the sources have them, in the form of the block.
pub(super) fn print(root: &Path, package: &str) -> Result<String> {
    let uses = read_package(&root.join(package))?;
    let mut text = String::new();
    for module in &uses.modules {
        let targets: BTreeSet<&str> = uses
            .arrows
            .keys()
            .filter(|(from, _)| from == module)
            .map(|(_, to)| to.as_str())
            .collect();
        let targets: Vec<&str> = targets.into_iter().collect();
        text += format!("{module} -> {}", targets.join(", ")).trim_end();
        text.push('\n');
    }
    Ok(text)
}

/// What a block draws.
#[derive(Debug, Default)]
struct Drawing {
    /// The modules that each module may use.
    arrows: BTreeMap<String, BTreeSet<String>>,
    /// Modules that may use all but some.
    all_but: BTreeMap<String, BTreeSet<String>>,
}

impl Drawing {
    fn find(page: &str, package: &str) -> Result<Self> {
        let fence = format!("```arrows {package}");
        let mut lines = page.lines().skip_while(|line| line.trim() != fence).skip(1);
        let mut block = Vec::new();
        for line in &mut lines {
            if line.trim() == "```" {
                return Self::read(&block).with_context(|| format!("the block of {package}"));
            }
            block.push(line);
        }
        bail!("ARCHITECTURE.md has no block that begins with {fence}")
    }

    fn read(lines: &[&str]) -> Result<Self> {
        let mut drawing = Self::default();
        for line in lines.iter().filter(|line| !line.trim().is_empty()) {
            let (from, to) = line
                .split_once("->")
                .with_context(|| format!("a line without an arrow: {line:?}"))?;
            let to = to.trim();
            for from in names(from) {
                let (known, to) = match to.strip_prefix("all but") {
                    Some(rest) => (&mut drawing.all_but, rest),
                    None => (&mut drawing.arrows, to),
                };
                known
                    .entry(from.to_owned())
                    .or_default()
                    .extend(names(to).map(str::to_owned));
            }
        }
        Ok(drawing)
    }

    fn is_drawn(&self, from: &str, to: &str) -> bool {
        self.arrows
            .get(from)
            .is_some_and(|targets| targets.contains(to))
            || self
                .all_but
                .get(from)
                .is_some_and(|except| !except.contains(to))
    }

    fn differences(&self, uses: &Uses) -> Vec<String> {
        let mut found = Vec::new();
        let drawn: BTreeSet<&String> = self.arrows.keys().chain(self.all_but.keys()).collect();
        for module in &uses.modules {
            if !drawn.contains(module) {
                found.push(format!("the module {module} has no line"));
            }
        }
        let targets = self.arrows.values().chain(self.all_but.values()).flatten();
        for name in drawn
            .iter()
            .copied()
            .chain(targets)
            .collect::<BTreeSet<_>>()
        {
            if !uses.modules.contains(name) {
                found.push(format!("there is no module {name}"));
            }
        }
        for ((from, to), places) in &uses.arrows {
            if !self.is_drawn(from, to) {
                found.push(format!(
                    "{from} -> {to} is not drawn: {}",
                    places.join(", ")
                ));
            }
        }
        for (from, to) in self.listed() {
            if !uses.arrows.contains_key(&(from.clone(), to.clone())) {
                found.push(format!("{from} -> {to} is drawn, and nothing uses it"));
            }
        }
        found.extend(
            self.circle(uses)
                .map(|circle| format!("a circle: {}", circle.join(" -> "))),
        );
        found
    }

    fn listed(&self) -> impl Iterator<Item = (&String, &String)> {
        self.arrows
            .iter()
            .flat_map(|(from, targets)| targets.iter().map(move |to| (from, to)))
    }

    /// A circle among the arrows that are drawn or used.
    fn circle(&self, uses: &Uses) -> Option<Vec<String>> {
        let mut graph: BTreeMap<&String, BTreeSet<&String>> = BTreeMap::new();
        let used = uses.arrows.keys().map(|(from, to)| (from, to));
        for (from, to) in used.chain(self.listed()) {
            graph.entry(from).or_default().insert(to);
        }
        // Takes away the modules that use none of those left, until nothing changes: what remains uses itself.
        loop {
            let kept: BTreeSet<&String> = graph.keys().copied().collect();
            let before = graph.len();
            for targets in graph.values_mut() {
                targets.retain(|to| kept.contains(to));
            }
            graph.retain(|_, targets| !targets.is_empty());
            if graph.len() == before {
                break;
            }
        }
        let mut path: Vec<&String> = vec![graph.keys().next()?];
        loop {
            let next = *graph.get(*path.last()?)?.first()?;
            if let Some(start) = path.iter().position(|module| *module == next) {
                path.push(next);
                return Some(path.drain(start..).cloned().collect());
            }
            path.push(next);
        }
    }
}

fn names(list: &str) -> impl Iterator<Item = &str> {
    list.split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uses(modules: &[&str], arrows: &[(&str, &str)]) -> Uses {
        Uses {
            modules: modules.iter().map(|name| (*name).to_owned()).collect(),
            arrows: arrows
                .iter()
                .map(|(from, to)| {
                    (
                        ((*from).to_owned(), (*to).to_owned()),
                        vec!["x.rs:1".to_owned()],
                    )
                })
                .collect(),
        }
    }

    #[test]
    fn the_sources_have_the_arrows_that_the_page_draws() {
        check(&crate::root()).unwrap();
    }

    fn drawing(lines: &[&str]) -> Drawing {
        Drawing::read(lines).unwrap()
    }

    #[test]
    fn what_is_drawn_and_used_is_accepted() {
        let drawing = drawing(&["low ->", "middle -> low", "top -> all but low"]);
        let uses = uses(
            &["low", "middle", "top"],
            &[("middle", "low"), ("top", "middle")],
        );
        assert_eq!(drawing.differences(&uses), Vec::<String>::new());
    }

    #[test]
    fn an_arrow_that_is_not_drawn_is_reported_with_its_place() {
        let drawing = drawing(&["low, other ->", "top -> all but low"]);
        let uses = uses(
            &["low", "other", "top"],
            &[("low", "other"), ("top", "low")],
        );
        assert_eq!(
            drawing.differences(&uses),
            [
                "low -> other is not drawn: x.rs:1",
                "top -> low is not drawn: x.rs:1"
            ]
        );
    }

    #[test]
    fn a_drawn_arrow_that_nothing_uses_is_reported() {
        let drawing = drawing(&["low ->", "top -> low"]);
        assert_eq!(
            drawing.differences(&uses(&["low", "top"], &[])),
            ["top -> low is drawn, and nothing uses it"]
        );
    }

    #[test]
    fn modules_and_lines_must_match() {
        let drawing = drawing(&["old ->"]);
        assert_eq!(
            drawing.differences(&uses(&["new"], &[])),
            ["the module new has no line", "there is no module old"]
        );
    }

    #[test]
    fn a_circle_is_reported_although_it_is_drawn() {
        let drawing = drawing(&["a -> b", "b -> c", "c -> b"]);
        let uses = uses(&["a", "b", "c"], &[("a", "b"), ("b", "c"), ("c", "b")]);
        assert_eq!(drawing.differences(&uses), ["a circle: b -> c -> b"]);
    }

    #[test]
    fn the_block_of_a_package_is_found_in_the_page() {
        let page = "text\n```arrows one\na ->\n```\nmore\n```arrows two\nb ->\n```\n";
        let drawing = Drawing::find(page, "two").unwrap();
        assert_eq!(drawing.arrows.keys().collect::<Vec<_>>(), ["b"]);
        assert!(Drawing::find(page, "three").is_err());
    }
}

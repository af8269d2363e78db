//! The pages and the code say the same: clauses that are cited exist, tables of the protocol are tested row by row, and every setting, metric,
//! module and path that a page names is in the tree.
//!
//! Reads files only. A failure lists every place with its reason.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Pages that number their clauses.
const SPECIFICATIONS: [&str; 2] = ["protocol.md", "authorization.md"];
/// The tables of `protocol.md` whose every row needs a test: events and close codes.
const TABLES: [&str; 2] = ["3.", "7."];
/// What is generated, built or not ours.
const SKIPPED: [&str; 4] = ["target", ".git", "node_modules", "golden"];
/// Endings of names that are files and not settings.
const FILE_ENDINGS: [&str; 14] = [
    "md", "rs", "toml", "json", "yaml", "sh", "pem", "db", "seen", "html", "key", "token", "go",
    "sum",
];
/// What a setting's name ends in when it carries a unit.
const UNITS: [&str; 5] = ["_ms", "_secs", "_bytes", "_days", "_file"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask lies in the repository")
        .to_owned()
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every text file with one of these endings, with its path from the root.
fn files(endings: &[&str]) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root()];
    while let Some(folder) = folders.pop() {
        let entries = std::fs::read_dir(&folder).expect("a folder of the repository");
        for entry in entries.map(|entry| entry.expect("an entry of it")) {
            let (path, name) = (entry.path(), entry.file_name());
            let name = name.to_string_lossy();
            if SKIPPED.contains(&&*name) {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else if name
                .rsplit_once('.')
                .is_some_and(|(_, end)| endings.contains(&end))
            {
                let short = path.strip_prefix(root()).expect("below the root");
                found.push((short.display().to_string(), read(&path)));
            }
        }
    }
    found.sort();
    found
}

/// The numbers of a specification's clauses.
fn clauses(page: &str) -> BTreeSet<String> {
    let text = read(&root().join("docs").join(page));
    let mut clauses = BTreeSet::new();
    for anchor in text.split("<a id=\"").skip(1) {
        let number = anchor.split('"').next().unwrap_or_default().to_owned();
        assert!(
            clauses.insert(number.clone()),
            "{page} has clause {number} twice"
        );
    }
    clauses
}

/// The length of a clause's number at the front of `text`, such as `3.12`.
fn number_at(text: &str) -> Option<&str> {
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let number = text[..end].trim_end_matches('.');
    let (section, clause) = number.split_once('.')?;
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    (is_number(section) && is_number(clause)).then_some(number)
}

/// Every clause of `page` that a text cites: `protocol.md 3.2`, `protocol.md#3.2`, and lists such as `protocol.md 4.4, 4.5 and 4.6`.
fn cited(text: &str, page: &str) -> Vec<String> {
    let mut cited = Vec::new();
    for rest in text.split(page).skip(1) {
        let Some(mut rest) = rest.strip_prefix([' ', '#']) else {
            continue;
        };
        while let Some(number) = number_at(rest) {
            cited.push(number.to_owned());
            rest = &rest[number.len()..];
            let next = [", ", " and ", " to "]
                .into_iter()
                .find_map(|joint| rest.strip_prefix(joint));
            let Some(next) = next else { break };
            rest = next;
        }
    }
    cited
}

/// The comments above each test function of a source file.
fn docs_of_tests(source: &str) -> Vec<String> {
    let mut docs = Vec::new();
    let (mut comment, mut is_test) = (String::new(), false);
    for line in source.lines().map(str::trim) {
        if let Some(text) = line.strip_prefix("///") {
            // Joined, so that a citation may be broken over two lines.
            comment.push(' ');
            comment.push_str(text.trim());
        } else if line.starts_with("#[") {
            is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
        } else {
            if is_test {
                docs.push(std::mem::take(&mut comment));
            }
            (comment, is_test) = (String::new(), false);
        }
    }
    docs
}

/// What stands between backticks on one line.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .flat_map(|line| line.split('`').skip(1).step_by(2))
}

fn pages() -> Vec<(String, String)> {
    let mut pages = files(&["md"]);
    pages.retain(|(path, _)| path != "CHANGELOG.md");
    pages
}

#[test]
fn every_cited_clause_exists() {
    let sources = files(&["rs", "md", "toml", "yaml", "js", "ts"]);
    let mut missing = Vec::new();
    let mut count = 0;
    for page in SPECIFICATIONS {
        let clauses = clauses(page);
        assert!(clauses.len() > 30, "{page} has clauses");
        for (path, text) in &sources {
            for clause in cited(text, page) {
                count += 1;
                if !clauses.contains(&clause) {
                    missing.push(format!(
                        "{path} cites {page} {clause}, which does not exist"
                    ));
                }
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
    assert!(count > 50, "only {count} citations were found");
}

#[test]
fn every_row_of_the_event_and_close_code_tables_is_cited_by_a_test() {
    let tested: BTreeSet<String> = files(&["rs"])
        .iter()
        .flat_map(|(_, source)| docs_of_tests(source))
        .flat_map(|doc| cited(&doc, "protocol.md"))
        .collect();
    let page = read(&root().join("docs/protocol.md"));
    let rows = page
        .lines()
        .filter_map(|line| line.strip_prefix("| <a id=\"")?.split('"').next());
    let untested: Vec<&str> = rows
        .filter(|row| TABLES.iter().any(|table| row.starts_with(table)))
        .filter(|row| !tested.contains(*row))
        .collect();
    assert!(
        untested.is_empty(),
        "no test's doc comment cites protocol.md {}",
        untested.join(", ")
    );
}

/// The static and live settings, as `section.key` and as the key alone.
fn settings() -> BTreeSet<String> {
    let mut settings = BTreeSet::new();
    for file in ["config.default.toml", "live.default.toml"] {
        let mut section = String::new();
        for line in read(&root().join("contract").join(file)).lines() {
            // Tables and keys that stand there as examples are behind a `#`.
            let line = line.trim_start_matches("# ");
            if let Some(name) = line.strip_prefix('[') {
                section = name.trim_matches(['[', ']']).to_owned();
            } else if let Some((key, _)) = line.split_once(" = ") {
                settings.insert(key.to_owned());
                settings.insert(format!("{section}.{key}"));
            }
        }
    }
    settings
}

/// Whether a quoted name looks like a setting: `section.key`, or a key that ends in its unit.
fn is_setting(name: &str) -> bool {
    let is_word =
        |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    match name.rsplit_once('.') {
        Some((section, key)) => {
            section.split('.').all(is_word) && is_word(key) && !FILE_ENDINGS.contains(&key)
        }
        None => is_word(name) && UNITS.iter().any(|unit| name.ends_with(unit)),
    }
}

#[test]
fn every_setting_that_a_page_names_exists() {
    let settings = settings();
    let mut missing = Vec::new();
    for (path, text) in pages() {
        // Those name values of charts and fields of the resource, and members of the client.
        if path.starts_with("charts/") || path.starts_with("clients/") {
            continue;
        }
        for quoted in quoted(&text) {
            let name = quoted.split_once(" = ").map_or(quoted, |(name, _)| name);
            let is_of_resource = name.starts_with("spec.") || name.starts_with("status.");
            // Within `[redis]` a page may leave the section out.
            let exists = settings.contains(name) || settings.contains(&format!("redis.{name}"));
            if is_setting(name) && !is_of_resource && !exists {
                missing.push(format!("{path}: {name}"));
            }
        }
    }
    assert!(
        missing.is_empty(),
        "not in the default settings:\n{}",
        missing.join("\n")
    );
}

#[test]
fn every_metric_and_table_that_a_page_names_exists() {
    let sources = ["gateway/src/metrics.rs", "operator/src/metrics.rs"];
    let [of_gateways, of_operators] = sources.map(|path| read(&root().join(path)));
    let tables: String = files(&["sql"]).into_iter().map(|(_, text)| text).collect();
    let tables = tables + &read(&root().join("gateway/src/store/migrate.rs"));
    let crates = ["signal_gateway", "signal_operator", "signal_contract"];
    let mut missing = Vec::new();
    for (path, text) in pages() {
        for name in quoted(&text) {
            let Some(bare) = name.strip_prefix("signal_") else {
                continue;
            };
            let end = bare
                .find(|c: char| !c.is_ascii_lowercase() && c != '_')
                .unwrap_or(bare.len());
            let bare = &bare[..end];
            let counter = bare.strip_suffix("_total").unwrap_or(bare);
            let whole = format!("signal_{bare}");
            let known = match counter.strip_prefix("operator_") {
                Some(counter) => of_operators.contains(&format!("\"{counter}\"")),
                None => of_gateways.contains(&format!("\"{counter}\"")),
            };
            let exists =
                bare.is_empty() || known || tables.contains(&whole) || crates.contains(&&*whole);
            if !exists {
                missing.push(format!("{path}: {name}"));
            }
        }
    }
    assert!(
        missing.is_empty(),
        "no such metric or table:\n{}",
        missing.join("\n")
    );
}

#[test]
fn every_path_that_a_page_names_exists() {
    let folders = [
        "gateway/",
        "operator/",
        "contract/",
        "crds/",
        "charts/",
        "deploy/",
        "migrations/",
        "tests/",
        "bench/",
        "xtask/",
        "docs/",
        "examples/",
        "fuzz/",
        ".ci/",
        ".github/",
    ];
    let mut missing = Vec::new();
    for (path, text) in pages() {
        for name in quoted(&text).filter(|name| folders.iter().any(|f| name.starts_with(f))) {
            let is_pattern = name.contains(['*', '{', ' ', '<']) || name.contains("...");
            if !is_pattern && !root().join(name).exists() {
                missing.push(format!("{path}: {name}"));
            }
        }
        // Links to pages, from the folder of the page.
        let folder = root().join(&path);
        let folder = folder.parent().expect("a page lies in a folder");
        for link in text.split("](").skip(1) {
            let target = link.split([')', '#']).next().unwrap_or_default();
            if !target.is_empty() && !target.contains("://") && !folder.join(target).exists() {
                missing.push(format!("{path}: a link to {target}"));
            }
        }
    }
    assert!(
        missing.is_empty(),
        "not in the tree:\n{}",
        missing.join("\n")
    );
}

#[test]
fn every_module_that_the_map_names_exists() {
    let map = read(&root().join("ARCHITECTURE.md"));
    let mut missing = Vec::new();
    for name in quoted(&map) {
        let Some((module, item)) = name.rsplit_once("::").filter(|_| !name.contains(' ')) else {
            continue;
        };
        let module = &module.replace("::", "/");
        let source = root().join("gateway/src");
        let folder = source.join(module);
        let whole: String = [source.join(format!("{module}.rs")), folder.join("mod.rs")]
            .iter()
            .filter_map(|path| std::fs::read_to_string(path).ok())
            .collect();
        let is_file = folder.join(format!("{item}.rs")).exists() || folder.join(item).is_dir();
        let is_item = ["trait", "struct", "enum", "fn"]
            .iter()
            .any(|kind| whole.contains(&format!("{kind} {item}")));
        if !is_file && !is_item {
            missing.push(name.to_owned());
        }
    }
    assert!(
        missing.is_empty(),
        "ARCHITECTURE.md names modules that are not there: {}",
        missing.join(", ")
    );
}

//! The catalogs of texts: those that ship with the gateway and, over them, those of a mounted folder, which may change at any time.
//!
//! Input: `notifications.catalog_dir`, with one folder per locale and `*.ftl` files in it. Output: an activity's text ([`super::render`]).
//! The catalogs are used whole or not at all: a broken file is refused at start, and after a change the catalogs in use stay.

mod calls;
mod references;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use fluent_bundle::FluentResource;
use tokio_util::sync::CancellationToken;
use unic_langid::LanguageIdentifier;

use self::calls::Calls;
use self::references::{Names, named};
use super::decode::Activity;
use super::poison::Poison;
use super::render::{self, Catalog, Text};
use crate::files;
use crate::metrics::Metrics;
use crate::notification::bounds::has_nul;

/// Largest catalog file, in bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Most catalog files.
const MAX_FILES: usize = 1000;
/// The catalogs that ship with the gateway: locale, file name, text.
const BUILT_IN: [(&str, &str, &str); 2] = [
    (
        "vi",
        "built-in vi/notifications.ftl",
        include_str!("../../catalogs/vi/notifications.ftl"),
    ),
    (
        "en",
        "built-in en/notifications.ftl",
        include_str!("../../catalogs/en/notifications.ftl"),
    ),
];

/// A catalog that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct CatalogError {
    /// The file, folder or setting.
    pub at: String,
    /// The line in the file, from 1.
    pub line: Option<usize>,
    /// What is wrong there.
    pub problem: String,
}

impl fmt::Display for CatalogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.at, self.problem),
            None => write!(f, "{}: {}", self.at, self.problem),
        }
    }
}

/// The catalogs in use.
pub struct Catalogs {
    dir: Option<PathBuf>,
    default_locale: String,
    current: ArcSwap<Loaded>,
}

struct Loaded {
    locales: BTreeMap<String, Catalog>,
    revision: String,
}

impl Catalogs {
    /// Loads the built-in catalogs and, over them, those in `dir`; an empty `dir` means none.
    ///
    /// # Errors
    /// A file cannot be read or is broken, or there is no catalog for `default_locale`.
    pub fn load(dir: &Path, default_locale: &str) -> Result<Self, CatalogError> {
        let dir = (!dir.as_os_str().is_empty()).then(|| dir.to_owned());
        let loaded = read(dir.as_deref(), default_locale)?;
        Ok(Self {
            dir,
            default_locale: default_locale.to_owned(),
            current: ArcSwap::from_pointee(loaded),
        })
    }

    /// A hash of all the texts in use: `sha256:` and 64 hexadecimal digits.
    pub fn revision(&self) -> String {
        self.current.load().revision.clone()
    }

    /// The locales there are texts for.
    pub fn locales(&self) -> Vec<String> {
        self.current.load().locales.keys().cloned().collect()
    }

    /// Renders an activity in the locale it asks for or the best one there is.
    ///
    /// # Errors
    /// [`super::DeadLetterReason::NoTemplate`], as [`render::render`].
    pub fn render(&self, activity: &Activity) -> Result<Text, Poison> {
        render::render(activity, &self.current.load().locales, &self.default_locale)
    }

    /// Reads everything again, and returns whether anything changed. On an error the catalogs in use stay.
    ///
    /// # Errors
    /// As [`Catalogs::load`].
    pub fn reload(&self) -> Result<bool, CatalogError> {
        let loaded = read(self.dir.as_deref(), &self.default_locale)?;
        let changed = loaded.revision != self.current.load().revision;
        if changed {
            self.current.store(Arc::new(loaded));
        }
        Ok(changed)
    }

    /// Reloads whenever the folder changes, until `shutdown`. Ends at once where there is no folder.
    pub async fn watch(self: Arc<Self>, metrics: Arc<Metrics>, shutdown: CancellationToken) {
        let Some(dir) = self.dir.clone() else { return };
        self.watch_every(dir, files::INTERVAL, metrics, shutdown)
            .await;
    }

    async fn watch_every(
        self: Arc<Self>,
        dir: PathBuf,
        interval: std::time::Duration,
        metrics: Arc<Metrics>,
        shutdown: CancellationToken,
    ) {
        let mut changes = files::watch(dir, interval, shutdown);
        // A change between load and here is not reported: look once.
        changes.mark_changed();
        while changes.changed().await.is_ok() {
            changes.mark_unchanged();
            let catalogs = self.clone();
            let Ok(outcome) = tokio::task::spawn_blocking(move || catalogs.reload()).await else {
                return;
            };
            match outcome {
                Ok(false) => {}
                Ok(true) => {
                    tracing::info!(catalogs.revision = %self.revision(), "catalogs reloaded");
                    metrics
                        .config_reloads
                        .get_or_create(&Metrics::kind("catalog_ok"))
                        .inc();
                }
                Err(error) => {
                    tracing::error!(%error, catalogs.revision = %self.revision(), "catalog reload failed: the changed files are broken; the current catalogs stay in use");
                    metrics
                        .config_reloads
                        .get_or_create(&Metrics::kind("catalog_error"))
                        .inc();
                }
            }
        }
    }
}

/// One file, parsed.
struct File {
    name: String,
    resource: FluentResource,
}

impl File {
    fn parse(name: String, text: String) -> Result<Self, CatalogError> {
        if has_nul(&text) {
            return Err(CatalogError {
                at: name,
                line: None,
                problem: "holds the character U+0000".into(),
            });
        }
        match FluentResource::try_new(text) {
            Ok(resource) => Ok(Self { name, resource }),
            Err((resource, errors)) => {
                let error = errors.first();
                let line = error.map(|e| {
                    line_at(
                        resource.source(),
                        e.slice
                            .as_ref()
                            .map_or(e.pos.start, |s| e.pos.start.max(s.start)),
                    )
                });
                let problem = error.map_or_else(|| "cannot be parsed".into(), ToString::to_string);
                Err(CatalogError {
                    at: name,
                    line,
                    problem,
                })
            }
        }
    }

    fn error(&self, id: &str, problem: String) -> CatalogError {
        let at = self.resource.source().lines().position(|line| {
            line.strip_prefix(id)
                .is_some_and(|rest| rest.trim_start().starts_with('='))
        });
        CatalogError {
            at: self.name.clone(),
            line: at.map(|n| n + 1),
            problem,
        }
    }
}

/// Adds a file to a catalog, with its calls as functions of the catalog.
fn add(catalog: &mut Catalog, calls: &mut Calls, file: &File) -> Result<(), CatalogError> {
    let text = calls
        .rewrite(file.resource.source())
        .map_err(|(key, problem)| file.error(&key, format!("{key}: {problem}")))?;
    let resource = FluentResource::try_new(text).map_err(|_| CatalogError {
        at: file.name.clone(),
        line: None,
        problem: "cannot be put together".into(),
    })?;
    catalog.add_resource_overriding(Arc::new(resource));
    Ok(())
}

fn line_at(text: &str, at: usize) -> usize {
    text.as_bytes()
        .iter()
        .take(at)
        .filter(|b| **b == b'\n')
        .count()
        + 1
}

fn read(dir: Option<&Path>, default_locale: &str) -> Result<Loaded, CatalogError> {
    let mut locales: BTreeMap<String, (LanguageIdentifier, Vec<File>, Vec<File>)> = BTreeMap::new();
    let mut revision = String::new();
    for (locale, name, text) in BUILT_IN {
        let id: LanguageIdentifier = locale.parse().expect("a built-in locale is one");
        let (_, built_in, _) = locales
            .entry(id.to_string())
            .or_insert_with(|| (id, Vec::new(), Vec::new()));
        built_in.push(File::parse(name.to_owned(), text.to_owned())?);
        revision += &files::revision_of(text);
    }
    for (locale, path) in dir.map(files).transpose()?.unwrap_or_default() {
        let name = path.display().to_string();
        let text = read_file(&path).map_err(|error| CatalogError {
            at: name.clone(),
            line: None,
            problem: error.to_string(),
        })?;
        revision += &format!(
            "{locale}/{}",
            path.file_name().unwrap_or_default().to_string_lossy()
        );
        revision += &files::revision_of(&text);
        let (_, _, given) = locales
            .entry(locale.to_string())
            .or_insert_with(|| (locale, Vec::new(), Vec::new()));
        given.push(File::parse(name, text)?);
    }
    let locales: BTreeMap<String, Catalog> = locales
        .into_iter()
        .map(|(name, (id, built_in, given))| Ok((name, assemble(&id, &built_in, &given)?)))
        .collect::<Result<_, CatalogError>>()?;
    if !render::lineage(default_locale)
        .iter()
        .any(|locale| locales.contains_key(locale))
    {
        return Err(CatalogError {
            at: "notifications.default_locale".into(),
            line: None,
            problem: format!(
                "there is no catalog for {default_locale:?}; there are: {}",
                locales.keys().cloned().collect::<Vec<_>>().join(", ")
            ),
        });
    }
    Ok(Loaded {
        locales,
        revision: files::revision_of(&revision),
    })
}

fn read_file(path: &Path) -> std::io::Result<String> {
    if std::fs::metadata(path)?.len() > MAX_FILE_BYTES {
        return Err(std::io::Error::other(format!(
            "is larger than {MAX_FILE_BYTES} bytes"
        )));
    }
    std::fs::read_to_string(path)
}

/// Every `<locale>/*.ftl` by name. Names that begin with a dot are skipped: a kubelet keeps its own folders there.
fn files(dir: &Path) -> Result<Vec<(LanguageIdentifier, PathBuf)>, CatalogError> {
    let list = |dir: &Path| -> Result<Vec<(String, PathBuf)>, CatalogError> {
        let failed = |error: std::io::Error| CatalogError {
            at: dir.display().to_string(),
            line: None,
            problem: error.to_string(),
        };
        let mut inside = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            inside.push((
                entry.file_name().to_string_lossy().into_owned(),
                entry.path(),
            ));
        }
        inside.retain(|(name, _)| !name.starts_with('.'));
        inside.sort();
        Ok(inside)
    };
    let mut found = Vec::new();
    for (name, folder) in list(dir)? {
        if !folder.is_dir() {
            continue;
        }
        let locale: LanguageIdentifier = name.parse().map_err(|_| CatalogError {
            at: folder.display().to_string(),
            line: None,
            problem: "the folder's name is no locale, such as vi or en-GB".into(),
        })?;
        found.extend(
            list(&folder)?
                .into_iter()
                .filter(|(name, _)| name.ends_with(".ftl"))
                .map(|(_, path)| (locale.clone(), path)),
        );
    }
    if found.len() > MAX_FILES {
        return Err(CatalogError {
            at: dir.display().to_string(),
            line: None,
            problem: format!("holds more than {MAX_FILES} catalog files"),
        });
    }
    Ok(found)
}

/// Puts a locale together: given files replace built-in ones, message by message. No message may be given twice or refer to a missing one.
fn assemble(
    locale: &LanguageIdentifier,
    built_in: &[File],
    given: &[File],
) -> Result<Catalog, CatalogError> {
    let mut seen: HashMap<String, &str> = HashMap::new();
    for file in given {
        for (key, id) in file.resource.entries().filter_map(named) {
            if let Some(first) = seen.insert(key.clone(), &file.name) {
                return Err(file.error(&key, format!("{id} is defined already in {first}")));
            }
        }
    }
    let names = Names::of(
        built_in
            .iter()
            .chain(given)
            .flat_map(|file| file.resource.entries()),
    );
    for file in built_in.iter().chain(given) {
        for entry in file.resource.entries() {
            names.check(entry).map_err(|problem| match named(entry) {
                Some((key, _)) => file.error(&key, problem),
                None => CatalogError {
                    at: file.name.clone(),
                    line: None,
                    problem,
                },
            })?;
        }
    }
    let entries = built_in
        .iter()
        .chain(given)
        .flat_map(|file| file.resource.entries());
    let taken = entries.filter_map(named).map(|(_, id)| id.to_owned());
    let mut calls = Calls::new(render::locale(locale), taken.collect());
    let mut catalog = render::catalog(locale);
    for file in built_in.iter().chain(given) {
        add(&mut catalog, &mut calls, file)?;
    }
    for (name, function) in calls.functions {
        catalog
            .add_function(&name, function)
            .expect("each call has a name of its own");
    }
    Ok(catalog)
}

/// A catalog of one text, as tests have it.
#[cfg(test)]
pub(super) fn of_text(locale: &str, text: &str) -> Result<Catalog, CatalogError> {
    let file = File::parse("test.ftl".into(), text.into())?;
    assemble(&locale.parse().expect("a locale"), &[], &[file])
}

#[cfg(test)]
mod tests;

//! The state of all sources that verification reads: their settings, their keys, and whether these may be used. Plain data.

use std::sync::Arc;

use super::FetchHandle;
use crate::auth::jwk::Key;
use crate::auth::token::payload::PayloadKey;
use crate::config::{self, Source, SourceState};
use crate::principal::Thumbprint;

/// One consistent state of all sources, which verification reads.
pub(in crate::auth) struct SourceTable {
    pub(in crate::auth) jwks: config::Jwks,
    /// Allowed difference between clocks, in seconds.
    pub(in crate::auth) clock_skew_secs: u64,
    pub(in crate::auth) sources: Vec<SourceView>,
    /// Names of revoked sources, which need not be in `sources`: their tokens are refused and their connections are closed.
    pub(super) revoked: Vec<String>,
}

/// One source and its keys.
#[derive(Clone)]
pub(in crate::auth) struct SourceView {
    /// The pointer stays the same while everything is that a verified token rests on but its key: the settings, the secret, others' prefixes.
    pub(in crate::auth) source: Arc<Source>,
    pub(in crate::auth) name: Arc<str>,
    /// Prefixes of other issuers' subjects; empty for a source that has a prefix of its own, since no subject behind that one begins with another.
    pub(super) foreign: Arc<[String]>,
    /// The key of its encrypted payloads.
    pub(in crate::auth) payload_key: Option<PayloadKey>,
    pub(super) set: Option<Set>,
    pub(super) error: Option<String>,
    pub(super) revoked: bool,
    pub(super) handle: Arc<FetchHandle>,
}

#[derive(Clone)]
pub(super) struct Set {
    pub(super) keys: Arc<[Arc<Key>]>,
    pub(super) fetched_ms: i64,
}

/// Whether a source's keys may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::auth) enum Freshness {
    NeverFetched,
    Stale,
    Usable,
}

/// Returns the prefixes with which a subject of this source must not begin (authorization.md 2.8).
pub(super) fn foreign_prefixes(source: &Source, all: &[Source]) -> Arc<[String]> {
    all.iter()
        .filter(|other| source.subject_prefix.is_empty() && !source.shares_subjects_with(other))
        .filter(|other| !other.subject_prefix.is_empty())
        .map(|other| other.subject_prefix.clone())
        .collect()
}

impl SourceView {
    /// Returns whether a subject, with the prefix of the source, is one of this issuer: it does not begin with the prefix of another.
    pub(in crate::auth) fn owns(&self, subject: &str) -> bool {
        !self
            .foreign
            .iter()
            .any(|prefix| subject.starts_with(prefix))
    }

    /// Has tokens of this source that were verified before be verified again.
    pub(super) fn forget_verified(&mut self) {
        self.source = Arc::new(Source::clone(&self.source));
    }

    /// Returns whether its tokens are accepted at all.
    pub(in crate::auth) fn is_accepted(&self) -> bool {
        !self.revoked
            && matches!(
                self.source.state,
                SourceState::Trusted | SourceState::Retiring
            )
    }

    pub(in crate::auth) fn was_fetched(&self) -> bool {
        self.set.is_some()
    }

    pub(in crate::auth) fn freshness(&self, now_ms: i64, max_stale_secs: u64) -> Freshness {
        match &self.set {
            None => Freshness::NeverFetched,
            Some(set)
                if now_ms.saturating_sub(set.fetched_ms)
                    > max_stale_secs.saturating_mul(1000) as i64 =>
            {
                Freshness::Stale
            }
            Some(_) => Freshness::Usable,
        }
    }

    /// Returns the keys that can verify a signature by one of the source's algorithms.
    pub(in crate::auth) fn keys(&self) -> impl Iterator<Item = &Arc<Key>> {
        let keys = self.set.as_ref().map_or(&[][..], |set| &set.keys);
        keys.iter().filter(|key| {
            key.algorithms
                .iter()
                .any(|a| self.source.algorithms.contains(a))
        })
    }

    /// Returns whether it still has exactly this key.
    pub(in crate::auth) fn has(&self, thumbprint: &Thumbprint) -> bool {
        self.keys().any(|key| *key.thumbprint == *thumbprint)
    }

    /// Returns why its keys cannot be used, for the log and `/readyz`.
    pub(in crate::auth) fn unusable(&self) -> String {
        format!(
            "key source {}: {}",
            self.name,
            self.problem().unwrap_or_else(|| "not fetched yet".into())
        )
    }

    pub(super) fn problem(&self) -> Option<String> {
        if self.revoked {
            return Some("its tokens are refused: revoked_sources names it".to_owned());
        }
        let without_keys = self.set.is_some() && self.keys().next().is_none();
        self.error
            .clone()
            .or_else(|| without_keys.then(|| "no key in the set can be used".to_owned()))
    }

    pub(super) fn is_usable(&self, now_ms: i64, max_stale_secs: u64) -> bool {
        self.freshness(now_ms, max_stale_secs) == Freshness::Usable && self.keys().next().is_some()
    }
}

impl SourceTable {
    /// Returns the accepted sources that a token of this issuer may come from: first those with exactly this issuer, then those that waive the check.
    pub(in crate::auth) fn candidates<'t>(
        &'t self,
        issuer: Option<&'t str>,
    ) -> impl Iterator<Item = &'t SourceView> {
        let named = move |view: &&SourceView| {
            view.is_accepted()
                && !view.source.waives_issuer()
                && issuer == Some(view.source.issuer.as_str())
        };
        let waived = |view: &&SourceView| view.is_accepted() && view.source.waives_issuer();
        self.sources
            .iter()
            .filter(named)
            .chain(self.sources.iter().filter(waived))
    }

    /// Returns whether a token of this issuer may come from a listed source that is revoked.
    pub(in crate::auth) fn is_of_revoked(&self, issuer: Option<&str>) -> bool {
        self.sources.iter().any(|view| {
            view.revoked
                && (view.source.waives_issuer() || issuer == Some(view.source.issuer.as_str()))
        })
    }

    /// Returns whether a subject of this source is one of its issuer; see [`SourceView::owns`].
    pub(in crate::auth) fn owns(&self, source: &str, subject: &str) -> bool {
        let view = self.sources.iter().find(|view| &*view.name == source);
        view.is_none_or(|view| view.owns(subject))
    }

    /// Returns whether this source is revoked, so that its connections are closed.
    pub(in crate::auth) fn is_revoked(&self, source: &str) -> bool {
        self.revoked.iter().any(|name| name == source)
    }
}

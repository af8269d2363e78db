//! A look at the whole table: how many rows there are of each variant, and which of them are not understood.
//!
//! Input: rows by shape, counted by the database. Output: a [`PolicySurvey`], for the log at start, a metric and `check-config --database`.

use std::collections::BTreeMap;

use sqlx::{ColumnIndex, Decode, Row, Type};

use super::read::{DENY, Misread, Reading};
use super::tables::MAX_SHAPES;
use super::{Platform, written};
use crate::store::StoreError;

/// What the platform's table holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PolicySurvey {
    /// The table, as the settings name it.
    pub table: String,
    /// Rows of each variant, deleted ones not counted.
    pub variants: BTreeMap<String, u64>,
    /// Rows that were deleted; `None` where the table has no column for it.
    pub deleted: Option<u64>,
    /// Rows that are not understood.
    pub unread: Vec<Unread>,
    /// There are more kinds of rows than a survey tells apart; the rarest are not counted.
    pub incomplete: bool,
}

/// Rows of one variant that are not understood for one reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unread {
    /// Their variant; empty where there is none.
    pub variant: String,
    /// Why.
    pub why: Misread,
    /// Whether their effect is `deny`: their subjects are denied their targets.
    pub denies: bool,
    /// How many.
    pub count: u64,
    /// The id of one of them, if rows have ids.
    pub example: Option<String>,
}

impl PolicySurvey {
    /// Returns how many rows are not understood.
    pub fn unread_rows(&self) -> u64 {
        self.unread.iter().map(|unread| unread.count).sum()
    }
}

impl std::fmt::Display for Unread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let what = if self.denies {
            "denies its target"
        } else {
            "grants nothing"
        };
        write!(
            f,
            "{} of variant {:?}: {}; each {what}",
            self.count,
            self.variant,
            self.why.reason()
        )?;
        match &self.example {
            Some(id) => write!(f, "; one has the id {id:?}"),
            None => Ok(()),
        }
    }
}

impl Platform {
    pub(super) fn survey<'r, R: Row>(&self, rows: &'r [R]) -> Result<PolicySurvey, StoreError>
    where
        &'static str: ColumnIndex<R>,
        &'r str: Decode<'r, R::Database> + Type<R::Database>,
        i64: Decode<'r, R::Database> + Type<R::Database>,
    {
        let mut survey = PolicySurvey {
            table: self.tables.definition.name.clone(),
            incomplete: rows.len() >= MAX_SHAPES,
            ..PolicySurvey::default()
        };
        for row in rows {
            let shape = written(row)?;
            let count = row.try_get::<i64, _>("number")?.cast_unsigned();
            let variant = shape.variant.unwrap_or_default();
            *survey.variants.entry(variant.to_owned()).or_default() += count;
            let Reading::Unread { why, .. } = self.reader.read(&shape) else {
                continue;
            };
            let denies = shape.effect == Some(DENY);
            let example = row.try_get::<Option<&str>, _>("example")?;
            let same = survey.unread.iter_mut().find(|other| {
                other.variant == variant && other.why == why && other.denies == denies
            });
            match same {
                Some(same) => {
                    same.count += count;
                    same.example = same.example.take().or(example.map(str::to_owned));
                }
                None => survey.unread.push(Unread {
                    variant: variant.to_owned(),
                    why,
                    denies,
                    count,
                    example: example.map(str::to_owned),
                }),
            }
        }
        Ok(survey)
    }
}

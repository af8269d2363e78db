//! The named arguments of a call in a catalog, taken one by one; what is left at the end is an option that does not exist.

use std::fmt::Display;
use std::ops::RangeInclusive;

/// The value of an option as a catalog has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::activity) enum Literal {
    /// In quotes.
    Text(String),
    /// Digits, perhaps with a point.
    Number(String),
}

impl Literal {
    fn as_str(&self) -> &str {
        match self {
            Self::Text(text) | Self::Number(text) => text,
        }
    }
}

/// The options of one call.
#[derive(Debug, Clone)]
pub(in crate::activity) struct Options {
    function: &'static str,
    given: Vec<(String, Literal)>,
}

impl Options {
    /// Takes the options of a call of this function.
    pub(in crate::activity) fn new(function: &'static str, given: Vec<(String, Literal)>) -> Self {
        Self { function, given }
    }

    /// Says what is wrong with an option.
    pub(super) fn problem(&self, name: &str, why: impl Display) -> String {
        format!("option {name} of {} {why}", self.function)
    }

    /// Whether an option is given.
    pub(super) fn has(&self, name: &str) -> bool {
        self.given.iter().any(|(given, _)| given == name)
    }

    /// Takes an option whatever it is.
    pub(super) fn any(&mut self, name: &str) -> Option<String> {
        let at = self.given.iter().position(|(given, _)| given == name)?;
        Some(self.given.remove(at).1.as_str().to_owned())
    }

    /// Takes an option that is one of these words.
    pub(super) fn word<T: Copy>(
        &mut self,
        name: &str,
        words: &[(&str, T)],
    ) -> Result<Option<T>, String> {
        let Some(value) = self.any(name) else {
            return Ok(None);
        };
        match words.iter().find(|(word, _)| *word == value) {
            Some((_, meaning)) => Ok(Some(*meaning)),
            None => {
                let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
                let why = format!("is {value:?}; it may be {}", words.join(", "));
                Err(self.problem(name, why))
            }
        }
    }

    /// Takes an option that is a whole number within a range.
    pub(super) fn count(
        &mut self,
        name: &str,
        range: RangeInclusive<i16>,
    ) -> Result<Option<i16>, String> {
        let Some(value) = self.any(name) else {
            return Ok(None);
        };
        match value.parse().ok().filter(|count| range.contains(count)) {
            Some(count) => Ok(Some(count)),
            None => {
                let (least, most) = range.into_inner();
                let why = format!("is {value:?}; it may be a number from {least} to {most}");
                Err(self.problem(name, why))
            }
        }
    }

    /// Refuses what has not been taken.
    pub(super) fn finish(self) -> Result<(), String> {
        match self.given.first() {
            Some((name, _)) => Err(self.problem(name, "is not supported")),
            None => Ok(()),
        }
    }
}

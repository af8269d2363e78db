//! Whether the messages of a catalog are complete and refer only to what there is; no IO.
//!
//! Input: the parsed files of one locale. Output: what is wrong with an entry, in words for the catalog's author.

use std::collections::HashSet;

use fluent_syntax::ast::{
    CallArguments, Entry, Expression, Identifier, InlineExpression, Pattern, PatternElement,
};
use fluent_syntax::unicode::unescape_unicode_to_string;

use super::calls::{DATETIME, NUMBER};

/// What a message must have: these attributes, and no others.
const ATTRIBUTES: [&str; 2] = ["title", "content"];

/// The text that an entry's line begins with, and its id.
pub(super) fn named<'e>(entry: &Entry<&'e str>) -> Option<(String, &'e str)> {
    match entry {
        Entry::Message(message) => Some((message.id.name.to_owned(), message.id.name)),
        Entry::Term(term) => Some((format!("-{}", term.id.name), term.id.name)),
        _ => None,
    }
}

/// Everything that a message can refer to, with attributes after a dot and terms after a hyphen.
pub(super) struct Names(HashSet<String>);

impl Names {
    pub(super) fn of<'f>(entries: impl Iterator<Item = &'f Entry<&'f str>>) -> Self {
        let mut names = HashSet::new();
        for entry in entries {
            let Some((key, _)) = named(entry) else {
                continue;
            };
            let (has_value, attributes) = match entry {
                Entry::Message(message) => (message.value.is_some(), &message.attributes),
                Entry::Term(term) => (true, &term.attributes),
                _ => continue,
            };
            names.extend(
                attributes
                    .iter()
                    .map(|attribute| format!("{key}.{}", attribute.id.name)),
            );
            if has_value {
                names.insert(key);
            }
        }
        Self(names)
    }

    pub(super) fn check(&self, entry: &Entry<&str>) -> Result<(), String> {
        match entry {
            Entry::Message(message) => {
                let attributes: Vec<&str> = message
                    .attributes
                    .iter()
                    .map(|attribute| attribute.id.name)
                    .collect();
                let is_text = attributes.len() == ATTRIBUTES.len()
                    && ATTRIBUTES.iter().all(|name| attributes.contains(name))
                    && message.value.is_none();
                // Other messages may refer to a message that has a value and no attributes.
                let is_part = attributes.is_empty() && message.value.is_some();
                if !(is_text || is_part) {
                    return Err(format!(
                        "{} must have the attributes .title and .content, and nothing else",
                        message.id.name
                    ));
                }
                message
                    .value
                    .iter()
                    .chain(message.attributes.iter().map(|a| &a.value))
                    .try_for_each(|pattern| self.pattern(pattern))
            }
            Entry::Term(term) => {
                self.pattern(&term.value)?;
                term.attributes
                    .iter()
                    .try_for_each(|attribute| self.pattern(&attribute.value))
            }
            _ => Ok(()),
        }
    }

    fn pattern(&self, pattern: &Pattern<&str>) -> Result<(), String> {
        pattern
            .elements
            .iter()
            .try_for_each(|element| match element {
                PatternElement::TextElement { .. } => Ok(()),
                PatternElement::Placeable { expression } => self.expression(expression),
            })
    }

    fn expression(&self, expression: &Expression<&str>) -> Result<(), String> {
        match expression {
            Expression::Inline(inline) => self.inline(inline),
            Expression::Select { selector, variants } => {
                self.inline(selector)?;
                variants
                    .iter()
                    .try_for_each(|variant| self.pattern(&variant.value))
            }
        }
    }

    fn inline(&self, inline: &InlineExpression<&str>) -> Result<(), String> {
        let known = |key: String| {
            if self.0.contains(&key) {
                Ok(())
            } else {
                Err(format!("refers to {key}, which does not exist"))
            }
        };
        let with = |attribute: &Option<Identifier<&str>>| {
            attribute
                .as_ref()
                .map_or(String::new(), |a| format!(".{}", a.name))
        };
        match inline {
            InlineExpression::MessageReference { id, attribute } => {
                known(format!("{}{}", id.name, with(attribute)))
            }
            InlineExpression::TermReference {
                id,
                attribute,
                arguments,
            } => {
                known(format!("-{}{}", id.name, with(attribute)))?;
                arguments
                    .as_ref()
                    .map_or(Ok(()), |arguments| self.arguments(arguments))
            }
            InlineExpression::FunctionReference { id, arguments }
                if [NUMBER, DATETIME].contains(&id.name) =>
            {
                self.arguments(arguments)
            }
            InlineExpression::FunctionReference { id, .. } => Err(format!(
                "calls {}; the functions are NUMBER and DATETIME",
                id.name
            )),
            InlineExpression::Placeable { expression } => self.expression(expression),
            InlineExpression::StringLiteral { value }
                if unescape_unicode_to_string(value).contains('\0') =>
            {
                Err("holds the character U+0000".into())
            }
            InlineExpression::StringLiteral { .. }
            | InlineExpression::NumberLiteral { .. }
            | InlineExpression::VariableReference { .. } => Ok(()),
        }
    }

    fn arguments(&self, arguments: &CallArguments<&str>) -> Result<(), String> {
        arguments
            .positional
            .iter()
            .chain(arguments.named.iter().map(|n| &n.value))
            .try_for_each(|inline| self.inline(inline))
    }
}

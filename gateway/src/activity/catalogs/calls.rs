//! Gives every call of `NUMBER` and `DATETIME`, and every selector, a function of its own, prepared for its locale and options.
//!
//! Input: the text of a catalog file that has been checked. Output: the same text with other calls in it, and the functions that it calls; or what is
//! wrong with an option. Fluent's own numbers are doubles, and its selectors know no other values, so the digits of a number travel as a value of ours
//! ([`Figure`]) and the functions turn it into a text or into the key of a variant.

use std::collections::HashSet;

use fixed_decimal::Decimal;
use fluent_bundle::{FluentArgs, FluentValue};
use fluent_syntax::ast::{
    CallArguments, Entry, Expression, Identifier, InlineExpression, Pattern, PatternElement,
    Variant, VariantKey,
};
use fluent_syntax::{parser, serializer};
use icu_locale_core::Locale;

use crate::activity::intl::{DateFormat, Literal, NumberFormat, Options, Selector};
use crate::activity::render::{self, Figure};
use crate::activity::time;

/// The functions of catalogs.
pub(super) const NUMBER: &str = "NUMBER";
pub(super) const DATETIME: &str = "DATETIME";

/// A function of one place in a catalog.
pub(super) type Function =
    Box<dyn for<'a> Fn(&[FluentValue<'a>], &FluentArgs<'_>) -> FluentValue<'a> + Send + Sync>;

/// The calls of one locale.
pub(super) struct Calls {
    locale: Locale,
    /// Names of messages and terms, which no function may have.
    taken: HashSet<String>,
    /// With their names.
    pub(super) functions: Vec<(String, Function)>,
}

impl Calls {
    pub(super) fn new(locale: Locale, taken: HashSet<String>) -> Self {
        Self {
            locale,
            taken,
            functions: Vec::new(),
        }
    }

    /// Rewrites a file.
    ///
    /// # Errors
    /// The name of the message or term, as its line begins, and what is wrong in it.
    pub(super) fn rewrite(&mut self, text: &str) -> Result<String, (String, String)> {
        let mut resource = parser::parse(text.to_owned())
            .map_err(|_| (String::new(), "cannot be parsed".to_owned()))?;
        for entry in &mut resource.body {
            let (key, patterns): (String, Vec<&mut Pattern<String>>) = match entry {
                Entry::Message(message) => (
                    message.id.name.clone(),
                    message
                        .value
                        .iter_mut()
                        .chain(message.attributes.iter_mut().map(|a| &mut a.value))
                        .collect(),
                ),
                Entry::Term(term) => (
                    format!("-{}", term.id.name),
                    std::iter::once(&mut term.value)
                        .chain(term.attributes.iter_mut().map(|a| &mut a.value))
                        .collect(),
                ),
                _ => continue,
            };
            for pattern in patterns {
                self.pattern(pattern)
                    .map_err(|problem| (key.clone(), problem))?;
            }
        }
        Ok(serializer::serialize(&resource))
    }

    fn pattern(&mut self, pattern: &mut Pattern<String>) -> Result<(), String> {
        pattern.elements.iter_mut().try_for_each(|element| {
            if let PatternElement::Placeable { expression } = element {
                self.expression(expression)
            } else {
                Ok(())
            }
        })
    }

    fn expression(&mut self, expression: &mut Expression<String>) -> Result<(), String> {
        match expression {
            Expression::Inline(inline) => self.inline(inline),
            Expression::Select { selector, variants } => {
                self.selector(selector, variants)?;
                variants
                    .iter_mut()
                    .try_for_each(|variant| self.pattern(&mut variant.value))
            }
        }
    }

    fn inline(&mut self, inline: &mut InlineExpression<String>) -> Result<(), String> {
        match inline {
            InlineExpression::Placeable { expression } => self.expression(expression),
            InlineExpression::FunctionReference { id, arguments } => {
                let shown = shown(&id.name, arguments);
                let function: Function = if id.name == NUMBER {
                    let (value, options) = call(NUMBER, arguments)?;
                    let format = NumberFormat::new(&self.locale, options)?;
                    arguments.positional = vec![value];
                    Box::new(move |given, _| match number(given) {
                        Some(number) => format.format(number).into(),
                        None => render::fault(&shown, "is not given a number"),
                    })
                } else {
                    let (value, options) = call(DATETIME, arguments)?;
                    let format = DateFormat::new(&self.locale, options)?;
                    arguments.positional = vec![value];
                    Box::new(
                        move |given, _| match moment(given).and_then(|at| format.format(at)) {
                            Some(text) => text.into(),
                            None => render::fault(&shown, "is not given a time"),
                        },
                    )
                };
                arguments.named.clear();
                id.name = self.add(function);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// A selecting variable, alone or in `NUMBER`.
    fn selector(
        &mut self,
        selector: &mut InlineExpression<String>,
        variants: &mut [Variant<String>],
    ) -> Result<(), String> {
        let (value, options) = match selector {
            InlineExpression::VariableReference { .. } => (selector.clone(), None),
            InlineExpression::FunctionReference { id, arguments } if id.name == NUMBER => {
                let (value, options) = call(NUMBER, arguments)?;
                (value, Some(options))
            }
            InlineExpression::FunctionReference { .. } => {
                return Err("selects by DATETIME, which makes texts only".to_owned());
            }
            _ => return Ok(()),
        };
        // Fluent compares numbers as doubles. A key that is a number gets a name, by which the function selects it.
        let mut exact = Vec::new();
        for variant in variants {
            if let VariantKey::NumberLiteral { value } = &variant.key {
                let name = format!("exactly-{}", exact.len());
                exact.push((value.clone(), name.clone()));
                variant.key = VariantKey::Identifier { name };
            }
        }
        let select = Selector::new(&self.locale, options, &exact)?;
        let function: Function = Box::new(move |given, _| match number_alone(given) {
            // What is no number selects by its text.
            None => given.first().cloned().unwrap_or(FluentValue::None),
            Some(number) => select.select(number).to_owned().into(),
        });
        *selector = InlineExpression::FunctionReference {
            id: Identifier {
                name: self.add(function),
            },
            arguments: CallArguments {
                positional: vec![value],
                named: Vec::new(),
            },
        };
        Ok(())
    }

    fn add(&mut self, function: Function) -> String {
        let mut name = format!("CALL-{}", self.functions.len());
        while self.taken.contains(&name) {
            name.push('-');
        }
        self.functions.push((name.clone(), function));
        name
    }
}

/// The value and the options of a call.
fn call(
    function: &'static str,
    arguments: &CallArguments<String>,
) -> Result<(InlineExpression<String>, Options), String> {
    let value = match arguments.positional.as_slice() {
        [value @ InlineExpression::VariableReference { .. }] => value.clone(),
        [value @ InlineExpression::NumberLiteral { .. }] if function == NUMBER => value.clone(),
        _ => {
            return Err(format!(
                "calls {function} with something other than one variable"
            ));
        }
    };
    let mut given: Vec<(String, Literal)> = Vec::with_capacity(arguments.named.len());
    for argument in &arguments.named {
        let name = &argument.name.name;
        let literal = match &argument.value {
            InlineExpression::StringLiteral { value } => Literal::Text(value.clone()),
            InlineExpression::NumberLiteral { value } => Literal::Number(value.clone()),
            _ => return Err(format!("option {name} of {function} is no text or number")),
        };
        if given.iter().any(|(known, _)| known == name) {
            return Err(format!("option {name} of {function} is given twice"));
        }
        given.push((name.clone(), literal));
    }
    Ok((value, Options::new(function, given)))
}

/// How an author finds the call again.
fn shown(function: &str, arguments: &CallArguments<String>) -> String {
    match arguments.positional.first() {
        Some(InlineExpression::VariableReference { id }) => format!("{function}(${})", id.name),
        _ => format!("{function}()"),
    }
}

/// A number, also from a text: so write producers who trust no number of JSON with their money.
fn number(given: &[FluentValue<'_>]) -> Option<Decimal> {
    match given.first()? {
        FluentValue::String(text) => render::decimal(text),
        _ => number_alone(given),
    }
}

fn number_alone(given: &[FluentValue<'_>]) -> Option<Decimal> {
    match given.first()? {
        FluentValue::Custom(value) => value.as_any().downcast_ref::<Figure>()?.decimal(),
        FluentValue::Number(number) => render::decimal(&number.as_string()),
        _ => None,
    }
}

fn moment(given: &[FluentValue<'_>]) -> Option<chrono::DateTime<chrono::Utc>> {
    match given.first()? {
        FluentValue::String(text) => time::or_date(text),
        FluentValue::Custom(value) => {
            time::of_text(value.as_any().downcast_ref::<Figure>()?.as_str())
        }
        _ => None,
    }
}

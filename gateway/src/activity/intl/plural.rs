//! Which variant of a text a number selects: one for exactly this number, else one for the plural category of the locale.

use fixed_decimal::Decimal;
use icu_locale_core::Locale;
use icu_plurals::{PluralCategory, PluralRuleType, PluralRules};

use super::number::Digits;
use super::options::Options;

/// Selects among the variants of one place in a catalog.
pub(in crate::activity) struct Selector {
    rules: PluralRules,
    /// What the options of `NUMBER` leave of a number; everything without a call.
    digits: Option<Digits>,
    exact: Vec<(Decimal, String)>,
}

impl Selector {
    /// The options are those of `NUMBER` around the selecting variable, if it is there; `exact` has the variants that are numbers, each with a name.
    ///
    /// # Errors
    /// An option is unknown, has a value that it cannot have, or does not belong to a selector.
    pub(in crate::activity) fn new(
        locale: &Locale,
        options: Option<Options>,
        exact: &[(String, String)],
    ) -> Result<Self, String> {
        let (mut kind, mut digits) = (PluralRuleType::Cardinal, None);
        if let Some(mut options) = options {
            let kinds = [
                ("cardinal", PluralRuleType::Cardinal),
                ("ordinal", PluralRuleType::Ordinal),
            ];
            kind = options.word("type", &kinds)?.unwrap_or(kind);
            // It changes nothing about a category.
            options.any("useGrouping");
            digits = Some(Digits::new(&mut options, (0, 3), false)?);
            if let Some(wrong) = ["style", "currency"].iter().find(|name| options.has(name)) {
                return Err(options.problem(wrong, "is not supported in a selector"));
            }
            options.finish()?;
        }
        let exact = exact.iter().filter_map(|(text, name)| {
            let number = Decimal::try_from_str(text).ok()?;
            Some((canonical(number), name.clone()))
        });
        Ok(Self {
            rules: PluralRules::try_new(locale.into(), kind.into())
                .map_err(|error| error.to_string())?,
            digits,
            exact: exact.collect(),
        })
    }

    /// The name of the variant for exactly this number, else its plural category.
    pub(in crate::activity) fn select(&self, number: Decimal) -> &str {
        let number = match &self.digits {
            Some(digits) => digits.of(number),
            None => number,
        };
        let same = canonical(number.clone());
        if let Some((_, name)) = self.exact.iter().find(|(exact, _)| *exact == same) {
            return name;
        }
        match self.rules.category_for(&number) {
            PluralCategory::Zero => "zero",
            PluralCategory::One => "one",
            PluralCategory::Two => "two",
            PluralCategory::Few => "few",
            PluralCategory::Many => "many",
            PluralCategory::Other => "other",
        }
    }
}

/// The same for every way to write a number.
fn canonical(mut number: Decimal) -> Decimal {
    number.trim_start();
    number.trim_end();
    if number.is_zero() {
        number.set_sign(fixed_decimal::Sign::None);
    }
    number
}

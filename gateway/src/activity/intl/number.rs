//! Numbers: digits by the options of ECMA-402, signs and separators by the locale.
//!
//! A number keeps every digit that its producer wrote until an option rounds it: it is a decimal here, never a double.

use fixed_decimal::{Decimal, SignDisplay, SignedRoundingMode, UnsignedRoundingMode};
use icu_decimal::DecimalFormatter;
use icu_decimal::options::{DecimalFormatterOptions, GroupingStrategy};
use icu_experimental::dimension::percent::formatter::PercentFormatter;
use icu_experimental::dimension::percent::options::Display as PercentDisplay;
use icu_locale_core::Locale;

use super::currency::{self, CurrencyFormat};
use super::options::Options;

/// Most digits behind the point, and of `minimumIntegerDigits` and the significant digits (ECMA-402, 16.1.2).
const MAX_FRACTION: i16 = 100;
const MAX_DIGITS: i16 = 21;

/// Writes numbers as they are, with the separators of a locale.
pub(in crate::activity) struct Plain(DecimalFormatter);

impl Plain {
    /// # Errors
    /// There is no data for the locale, which CLDR's root prevents.
    pub(in crate::activity) fn new(locale: &Locale) -> Result<Self, String> {
        DecimalFormatter::try_new(locale.into(), DecimalFormatterOptions::default())
            .map(Self)
            .map_err(|error| error.to_string())
    }

    /// Writes every digit.
    pub(in crate::activity) fn format(&self, number: &Decimal) -> String {
        self.0.format(number).to_string()
    }
}

/// How one call of `NUMBER` writes numbers.
pub(in crate::activity) struct NumberFormat {
    digits: Digits,
    style: Style,
}

enum Style {
    Decimal(DecimalFormatter),
    Percent(PercentFormatter<DecimalFormatter>),
    Currency(CurrencyFormat),
}

/// Which digits of a number are written.
#[derive(Debug, Clone)]
pub(super) struct Digits {
    rounding: Rounding,
    mode: SignedRoundingMode,
    least_whole: i16,
    is_stripped_if_whole: bool,
    sign: SignDisplay,
    is_percent: bool,
}

#[derive(Debug, Clone, Copy)]
enum Rounding {
    Fraction { least: i16, most: i16 },
    Significant { least: i16, most: i16 },
}

impl NumberFormat {
    /// # Errors
    /// An option is unknown, has a value that it cannot have, or cannot be honoured.
    pub(in crate::activity) fn new(locale: &Locale, mut options: Options) -> Result<Self, String> {
        let words = [
            ("decimal", "decimal"),
            ("percent", "percent"),
            ("currency", "currency"),
        ];
        let style = options.word("style", &words)?.unwrap_or("decimal");
        // How a number is selected by, and nothing about how it is written.
        options.word("type", &[("cardinal", ()), ("ordinal", ())])?;
        let currency = options.any("currency");
        let widths = currency::WIDTHS;
        let width = options
            .word("currencyDisplay", &widths)?
            .unwrap_or_default();
        let signs = [("standard", false), ("accounting", true)];
        let is_accounting = options.word("currencySign", &signs)?.unwrap_or(false);
        let currency = match (style, currency) {
            ("currency", None) => {
                return Err(options.problem("currency", "is missing; style is currency"));
            }
            ("currency", Some(code)) => Some(currency::code(&code).ok_or_else(|| {
                options.problem(
                    "currency",
                    format!("is {code:?}, which is no code such as VND"),
                )
            })?),
            // ECMA-402 reads it and makes nothing of it.
            _ => None,
        };
        let grouping = grouping(&mut options)?;
        let default = match (style, currency) {
            (_, Some(code)) => (currency::digits(code)?, currency::digits(code)?),
            ("percent", _) => (0, 0),
            _ => (0, 3),
        };
        let digits = Digits::new(&mut options, default, style == "percent")?;
        if style != "decimal"
            && matches!(digits.sign, SignDisplay::Always | SignDisplay::ExceptZero)
        {
            let why = format!("writes no plus sign with style {style}");
            return Err(options.problem("signDisplay", why));
        }
        let refused = |error: icu_provider::DataError| error.to_string();
        let style = match currency {
            Some(code) => {
                let fractions = digits.fractions().ok_or_else(|| {
                    options.problem(
                        "maximumSignificantDigits",
                        "is not supported with style currency; use fraction digits",
                    )
                })?;
                let format =
                    CurrencyFormat::new(locale, code, width, is_accounting, grouping, fractions);
                Style::Currency(format.map_err(refused)?)
            }
            None => {
                let number = DecimalFormatter::try_new(locale.into(), grouping.into());
                let number = number.map_err(refused)?;
                if style == "percent" {
                    let standard = PercentDisplay::Standard.into();
                    Style::Percent(
                        PercentFormatter::try_new_with_decimal_formatter(
                            locale.into(),
                            number,
                            standard,
                        )
                        .map_err(refused)?,
                    )
                } else {
                    Style::Decimal(number)
                }
            }
        };
        options.finish()?;
        Ok(Self { digits, style })
    }

    /// Rounds a number, and writes it.
    pub(in crate::activity) fn format(&self, number: Decimal) -> String {
        let number = self.digits.of(number);
        match &self.style {
            Style::Decimal(format) => format.format(&number).to_string(),
            Style::Percent(format) => format.format(&number).to_string(),
            Style::Currency(format) => format.format(&number),
        }
    }
}

/// `"false"` is how a catalog, which has no booleans, writes false.
fn grouping(options: &mut Options) -> Result<GroupingStrategy, String> {
    let words = [
        ("true", GroupingStrategy::Auto),
        ("auto", GroupingStrategy::Auto),
        ("false", GroupingStrategy::Never),
        ("min2", GroupingStrategy::Min2),
    ];
    Ok(options
        .word("useGrouping", &words)?
        .unwrap_or(GroupingStrategy::Auto))
}

impl Digits {
    /// Reads the options of `SetNumberFormatDigitOptions` (ECMA-402, 16.1.2).
    pub(super) fn new(
        options: &mut Options,
        default: (i16, i16),
        is_percent: bool,
    ) -> Result<Self, String> {
        let least_whole = options.count("minimumIntegerDigits", 1..=MAX_DIGITS)?;
        let least_fraction = options.count("minimumFractionDigits", 0..=MAX_FRACTION)?;
        let most_fraction = options.count("maximumFractionDigits", 0..=MAX_FRACTION)?;
        let least_significant = options.count("minimumSignificantDigits", 1..=MAX_DIGITS)?;
        let most_significant = options.count("maximumSignificantDigits", 1..=MAX_DIGITS)?;
        let above = |name: &str| format!("is greater than {name}");
        let rounding = if least_significant.is_some() || most_significant.is_some() {
            let (least, most) = (
                least_significant.unwrap_or(1),
                most_significant.unwrap_or(MAX_DIGITS),
            );
            if least > most {
                let why = above("maximumSignificantDigits");
                return Err(options.problem("minimumSignificantDigits", why));
            }
            Rounding::Significant { least, most }
        } else {
            let (least, most) = match (least_fraction, most_fraction) {
                (None, None) => default,
                (Some(least), None) => (least, default.1.max(least)),
                (None, Some(most)) => (default.0.min(most), most),
                (Some(least), Some(most)) => (least, most),
            };
            if least > most {
                let why = above("maximumFractionDigits");
                return Err(options.problem("minimumFractionDigits", why));
            }
            Rounding::Fraction { least, most }
        };
        let unsigned = SignedRoundingMode::Unsigned;
        let modes = [
            ("ceil", SignedRoundingMode::Ceil),
            ("floor", SignedRoundingMode::Floor),
            ("expand", unsigned(UnsignedRoundingMode::Expand)),
            ("trunc", unsigned(UnsignedRoundingMode::Trunc)),
            ("halfCeil", SignedRoundingMode::HalfCeil),
            ("halfFloor", SignedRoundingMode::HalfFloor),
            ("halfExpand", unsigned(UnsignedRoundingMode::HalfExpand)),
            ("halfTrunc", unsigned(UnsignedRoundingMode::HalfTrunc)),
            ("halfEven", unsigned(UnsignedRoundingMode::HalfEven)),
        ];
        let half_expand = unsigned(UnsignedRoundingMode::HalfExpand);
        let signs = [
            ("auto", SignDisplay::Auto),
            ("always", SignDisplay::Always),
            ("exceptZero", SignDisplay::ExceptZero),
            ("negative", SignDisplay::Negative),
            ("never", SignDisplay::Never),
        ];
        let zeros = [("auto", false), ("stripIfInteger", true)];
        Ok(Self {
            rounding,
            mode: options.word("roundingMode", &modes)?.unwrap_or(half_expand),
            least_whole: least_whole.unwrap_or(1),
            is_stripped_if_whole: options
                .word("trailingZeroDisplay", &zeros)?
                .unwrap_or(false),
            sign: options
                .word("signDisplay", &signs)?
                .unwrap_or(SignDisplay::Auto),
            is_percent,
        })
    }

    /// The numbers of fraction digits that a number may get; `None` where they follow from the number.
    fn fractions(&self) -> Option<std::ops::RangeInclusive<i16>> {
        match self.rounding {
            Rounding::Fraction { most, .. } if self.is_stripped_if_whole => Some(0..=most),
            Rounding::Fraction { least, most } => Some(least..=most),
            Rounding::Significant { .. } => None,
        }
    }

    /// Gives a number the digits and the sign that are to be written.
    pub(super) fn of(&self, mut number: Decimal) -> Decimal {
        if self.is_percent {
            number.multiply_pow10(2);
        }
        match self.rounding {
            Rounding::Fraction { least, most } => {
                number.round_with_mode(-most, self.mode);
                number.trim_end();
                number.pad_end(-least);
            }
            Rounding::Significant { least, most } => {
                let most = number.nonzero_magnitude_start() - most + 1;
                number.round_with_mode(most, self.mode);
                number.trim_end();
                let least = number.nonzero_magnitude_start() - least + 1;
                number.pad_end(least.min(0));
            }
        }
        if self.is_stripped_if_whole {
            number.trim_end_if_integer();
        }
        number.trim_start();
        number.pad_start(self.least_whole);
        number.with_sign_display(self.sign)
    }
}

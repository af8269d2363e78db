//! Amounts of money: symbol, code or name of the currency, where the locale puts it.
//!
//! ICU4X always writes as many fraction digits as the currency has. ECMA-402 lets a call choose them, so [`Chosen`] hands ICU4X the chosen number as if the
//! currency had it, and there is one formatter for each number of digits that an amount may come out with.

use std::ops::RangeInclusive;

use fixed_decimal::Decimal;
use icu_decimal::DecimalFormatter;
use icu_decimal::options::GroupingStrategy;
use icu_decimal::provider::{DecimalDigitsV1, DecimalSymbols, DecimalSymbolsV1};
use icu_experimental::dimension::currency::CurrencyType;
use icu_experimental::dimension::currency::formatter::CurrencyFormatter;
use icu_experimental::dimension::currency::options::{CurrencyFormatterOptions, CurrencyUsage};
use icu_experimental::dimension::provider::currency::essentials::CurrencyEssentialsV1;
use icu_experimental::dimension::provider::currency::extended::CurrencyExtendedDataV1;
use icu_experimental::dimension::provider::currency::fractions::{
    CurrencyFractions, CurrencyFractionsV1, FractionInfo,
};
use icu_experimental::dimension::provider::currency::no_currency::CurrencyPatternsNoCurrencyV1;
use icu_experimental::dimension::provider::currency::patterns::CurrencyPatternsDataV1;
use icu_experimental::dimension::provider::currency::symbols::{
    CurrencyDecimalSymbolsV1, CurrencySymbolsV1,
};
use icu_experimental::provider::Baked;
use icu_locale_core::Locale;
use icu_plurals::provider::PluralsCardinalV1;
use icu_provider::prelude::*;

/// `currencyDisplay`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Width {
    #[default]
    Symbol,
    NarrowSymbol,
    Code,
    Name,
}

/// The words for it.
pub(super) const WIDTHS: [(&str, Width); 4] = [
    ("symbol", Width::Symbol),
    ("narrowSymbol", Width::NarrowSymbol),
    ("code", Width::Code),
    ("name", Width::Name),
];

/// Reads a code: three letters, in capitals or not.
pub(super) fn code(text: &str) -> Option<CurrencyType> {
    CurrencyType::try_from_str(text).ok()
}

/// How many fraction digits a currency has.
pub(super) fn digits(code: CurrencyType) -> Result<i16, String> {
    let fractions: DataResponse<CurrencyFractionsV1> = Baked
        .load(DataRequest::default())
        .map_err(|error| error.to_string())?;
    Ok(fractions.payload.get().resolve(code).digits.into())
}

/// How amounts of one currency are written.
pub(super) struct CurrencyFormat {
    least: i16,
    /// By the number of fraction digits, from `least` on.
    by_digits: Vec<CurrencyFormatter<DecimalFormatter>>,
}

impl CurrencyFormat {
    pub(super) fn new(
        locale: &Locale,
        code: CurrencyType,
        width: Width,
        is_accounting: bool,
        grouping: GroupingStrategy,
        fractions: RangeInclusive<i16>,
    ) -> Result<Self, DataError> {
        let usage = if is_accounting {
            CurrencyUsage::Accounting
        } else {
            CurrencyUsage::Standard
        };
        let options = CurrencyFormatterOptions::from(usage);
        let least = *fractions.start();
        let by_digits = fractions.map(|digits| {
            let data = Chosen {
                digits: u8::try_from(digits).unwrap_or(u8::MAX),
                grouping,
            };
            let locale = locale.into();
            match width {
                Width::Symbol => {
                    CurrencyFormatter::try_new_symbol_unstable(&data, locale, code, options)
                }
                Width::NarrowSymbol => {
                    CurrencyFormatter::try_new_symbol_narrow_unstable(&data, locale, code, options)
                }
                Width::Code => {
                    CurrencyFormatter::try_new_code_unstable(&data, locale, code, options)
                }
                Width::Name => CurrencyFormatter::try_new_name_unstable(&data, locale, code),
            }
        });
        Ok(Self {
            least,
            by_digits: by_digits.collect::<Result<_, _>>()?,
        })
    }

    /// Writes an amount that has the digits to be written.
    pub(super) fn format(&self, amount: &Decimal) -> String {
        let digits = -*amount.magnitude_range().start();
        let at = usize::try_from(digits - self.least).unwrap_or(0);
        let format = &self.by_digits[at.min(self.by_digits.len() - 1)];
        format.format_fixed_decimal(amount).to_string()
    }
}

/// A look-up that is not reported where it finds nothing: a currency without a symbol of its own is no fault.
fn silent(mut request: DataRequest<'_>) -> DataRequest<'_> {
    request.metadata.silent = true;
    request
}

/// ICU4X's data, with a number of fraction digits and a way of grouping of our own.
struct Chosen {
    digits: u8,
    grouping: GroupingStrategy,
}

impl Chosen {
    fn grouped<M>(&self, mut response: DataResponse<M>) -> DataResponse<M>
    where
        M: DataMarker<DataStruct = DecimalSymbols<'static>>,
    {
        let grouping = self.grouping;
        response.payload = response.payload.map_project(move |mut symbols, _| {
            match grouping {
                GroupingStrategy::Never => symbols.grouping_sizes.primary = 0,
                GroupingStrategy::Min2 => {
                    let sizes = &mut symbols.grouping_sizes;
                    sizes.min_grouping = sizes.min_grouping.max(2);
                }
                _ => {}
            }
            symbols
        });
        response
    }
}

impl DataProvider<CurrencyFractionsV1> for Chosen {
    fn load(&self, _: DataRequest<'_>) -> Result<DataResponse<CurrencyFractionsV1>, DataError> {
        Ok(DataResponse {
            metadata: DataResponseMetadata::default(),
            payload: DataPayload::from_owned(CurrencyFractions {
                fractions: Default::default(),
                default: FractionInfo {
                    digits: self.digits,
                    ..FractionInfo::default()
                },
            }),
        })
    }
}

impl DataProvider<DecimalSymbolsV1> for Chosen {
    fn load(&self, request: DataRequest<'_>) -> Result<DataResponse<DecimalSymbolsV1>, DataError> {
        icu_decimal::provider::Baked
            .load(request)
            .map(|response| self.grouped(response))
    }
}

impl DataProvider<CurrencyDecimalSymbolsV1> for Chosen {
    fn load(
        &self,
        request: DataRequest<'_>,
    ) -> Result<DataResponse<CurrencyDecimalSymbolsV1>, DataError> {
        Baked.load(request).map(|response| self.grouped(response))
    }
}

macro_rules! as_it_is {
    ($($marker:ty, $from:expr;)*) => {
        $(impl DataProvider<$marker> for Chosen {
            fn load(&self, request: DataRequest<'_>) -> Result<DataResponse<$marker>, DataError> {
                $from.load(silent(request))
            }
        })*
    };
}

as_it_is! {
    CurrencyEssentialsV1, Baked;
    CurrencySymbolsV1, Baked;
    CurrencyPatternsNoCurrencyV1, Baked;
    CurrencyPatternsDataV1, Baked;
    CurrencyExtendedDataV1, Baked;
    DecimalDigitsV1, icu_decimal::provider::Baked;
    PluralsCardinalV1, icu_plurals::provider::Baked;
}

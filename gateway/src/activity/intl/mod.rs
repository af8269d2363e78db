//! Numbers, dates and plurals as the Unicode CLDR has them for a locale, under the options of ECMA-402; no IO.
//!
//! Input: a locale, and the options that a catalog gives to `NUMBER` or `DATETIME`. Output: a format, prepared once, that takes any number of values; or
//! what is wrong with the options. Data and algorithms are ICU4X's. An option that ICU4X cannot honour as ECMA-402 does is refused when a catalog is
//! loaded: no text is ever formatted in another way than its author asked for.

mod currency;
mod date;
mod number;
mod options;
mod plural;
#[cfg(test)]
mod tests;

pub(super) use date::DateFormat;
pub(super) use number::{NumberFormat, Plain};
pub(super) use options::{Literal, Options};
pub(super) use plural::Selector;

//! The pipeline: consumer -> decode -> resolve -> render -> store -> delivery -> commit.

pub mod catalogs;
pub mod decode;
pub mod poison;
pub mod render;
pub mod resolve;
#[cfg(test)]
mod testing;

pub use catalogs::{CatalogError, Catalogs};
pub use poison::{Poison, Reason};

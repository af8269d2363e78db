//! The pipeline: consumer -> decode -> resolve -> render -> store -> delivery -> commit.

pub mod decode;
pub mod poison;

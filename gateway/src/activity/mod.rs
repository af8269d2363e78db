//! The pipeline: consumer -> decode -> resolve -> render -> store -> delivery -> commit.

//! The operator of Signal.

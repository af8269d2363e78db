//! Dev mode: everything embedded.

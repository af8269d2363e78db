//! Arguments; nothing to test here.
fn main() {}

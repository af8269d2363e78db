//! End-to-end tests of the gateway: real processes, real servers, a client of its own.

fn main() {}

//! Arguments, configuration, telemetry, `run`.

fn main() {}

//! One target for all entries: `SIGNAL_FUZZ_ENTRY` names the one that runs. `cargo xtask fuzz` calls it for each.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use signal_gateway::fuzzing::{ENTRIES, Entry};

static ENTRY: LazyLock<Entry> = LazyLock::new(|| {
    let wanted = std::env::var("SIGNAL_FUZZ_ENTRY").unwrap_or_default();
    let found = ENTRIES.iter().find(|(name, _)| *name == wanted);
    found.expect("SIGNAL_FUZZ_ENTRY names an entry").1
});

fuzz_target!(|input: &[u8]| ENTRY(input));

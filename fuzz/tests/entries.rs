//! Every entry point for half a second each: the corpus is taken as it is, and so is what mutation makes of it.

use std::time::Duration;

use signal_fuzz::{ENTRIES, Entry, run};

#[test]
fn no_entry_panics_on_its_corpus_or_on_mutations_of_it() {
    for (name, entry) in ENTRIES {
        let outcome = run(name, entry, Duration::from_millis(500), 1).expect("a corpus");
        assert_eq!(outcome.crash, None, "{name}");
        assert!(outcome.inputs > 100, "{name}: {} inputs", outcome.inputs);
    }
}

#[test]
fn an_input_that_panics_is_written_out() {
    let entry: Entry = |input| assert!(input.is_empty(), "a fault");
    let outcome = run("frame", entry, Duration::from_secs(1), 1).expect("a corpus");
    let file = outcome.crash.expect("the first input panics");
    let written = std::fs::read(&file).expect("the input");
    std::fs::remove_file(&file).expect("it is there");
    assert!(
        signal_fuzz::corpus("frame")
            .expect("a corpus")
            .contains(&written)
    );
}

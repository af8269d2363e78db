//! The committed YAML, its size, and every rule both ways.

use super::*;

#[test]
fn the_committed_yaml_is_what_the_types_say_and_below_200_kb() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/signalclusters.yaml");
    let text = crd_yaml();
    if std::env::var_os("SIGNAL_UPDATE_CRDS").is_some() {
        std::fs::write(path, &text).unwrap();
    }
    assert_eq!(std::fs::read_to_string(path).unwrap(), text, "SIGNAL_UPDATE_CRDS=1 cargo test -p signal-crds writes it anew");
    assert!(text.len() < 200_000, "{} bytes", text.len());
}

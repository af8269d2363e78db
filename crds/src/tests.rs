//! The committed YAML, its size, and every rule both ways.

use super::*;

#[test]
fn the_committed_yaml_is_what_the_types_say_and_below_200_kb() {
    let text = crd_yaml();
    // Beside this crate, and in the chart that ships it, which cannot reach outside of its folder.
    for path in ["signalclusters.yaml", "../charts/signal-crds/files/signalclusters.yaml"] {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
        if std::env::var_os("SIGNAL_UPDATE_CRDS").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        let committed = std::fs::read_to_string(&path).unwrap();
        assert_eq!(committed, text, "{}: SIGNAL_UPDATE_CRDS=1 cargo test -p signal-crds writes it anew", path.display());
    }
    assert!(text.len() < 200_000, "{} bytes", text.len());
}

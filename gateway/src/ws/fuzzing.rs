//! The entry points of the opening handshake and of what comes before it, for `crate::fuzzing`.

use super::head::{self, Bounds, Head};
use super::proxied::{self, Proxied};

/// Reads a request head: a whole one lies within the bytes and its bounds, and reads the same with more bytes behind it, and when
/// it arrives in two pieces.
pub(crate) fn opening(input: &[u8]) {
    const BOUNDS: Bounds = Bounds {
        bytes: 4096,
        fields: 32,
    };
    let paths = ["/stream".to_owned()];
    let read = |bytes, before| match head::read(bytes, before, BOUNDS, &paths) {
        Head::Stream { length, .. } => Some(length),
        Head::Partial | Head::Other => None,
    };
    let Some(length) = read(input, 0) else {
        return;
    };
    assert!(length <= input.len() && length <= BOUNDS.bytes);
    let mut longer = input[..length].to_vec();
    longer.extend_from_slice(b"\x81\x80\0\0\0\0");
    assert_eq!(read(&longer, 0), Some(length));
    let half = length / 2;
    assert!(matches!(
        head::read(&input[..half], 0, BOUNDS, &paths),
        Head::Partial
    ));
    assert_eq!(read(input, half), Some(length));
}

/// Reads a header of the PROXY protocol: a whole one lies within the bytes, and reads the same with more bytes behind it and not at all without its last.
pub(crate) fn proxied(input: &[u8]) {
    let (proxied, length) = proxied::read(input);
    assert!(length <= input.len());
    assert_eq!(length > 0, matches!(proxied, Proxied::Whole { .. }));
    if length > 0 {
        let longer = [&input[..length], b"GET /"].concat();
        assert_eq!(proxied::read(&longer), (proxied, length));
        assert_eq!(proxied::read(&input[..length - 1]), (Proxied::Partial, 0));
    }
}

//! The entry point of the opening handshake for `crate::fuzzing`.

use super::head::{self, Bounds, Head};

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

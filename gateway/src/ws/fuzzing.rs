//! The entry point of the opening handshake for `crate::fuzzing`.

use super::head::{Bounds, Head, read};

/// Reads a request head: a whole one lies within the bytes and its bounds, and reads the same with more bytes behind it, and when
/// it arrives in two pieces.
pub(crate) fn opening(input: &[u8]) {
    const BOUNDS: Bounds = Bounds {
        bytes: 4096,
        fields: 32,
    };
    let Some(length) = length(read(input, 0, BOUNDS)) else {
        return;
    };
    assert!(length <= input.len() && length <= BOUNDS.bytes);
    let mut longer = input[..length].to_vec();
    longer.extend_from_slice(b"\x81\x80\0\0\0\0");
    assert_eq!(self::length(read(&longer, 0, BOUNDS)), Some(length));
    let half = length / 2;
    assert!(matches!(read(&input[..half], 0, BOUNDS), Head::Partial));
    assert_eq!(self::length(read(input, half, BOUNDS)), Some(length));
}

fn length(head: Head<'_>) -> Option<usize> {
    match head {
        Head::Stream { length, .. } => Some(length),
        Head::Partial | Head::Other => None,
    }
}

//! The entry point of what comes over Redis for `crate::fuzzing`.

use super::wire::{decode, encode};
use crate::dispatch::Destination;

/// Reads a payload, writes what was read, and reads it again: both are the same.
pub(crate) fn redis(input: &[u8]) {
    let Ok(Some((dispatch, server, bridged))) = decode("me", Destination::Broadcast, input) else {
        return;
    };
    assert!(!dispatch.event.is_empty() && server != "me");
    let written = encode(&server, &dispatch, bridged);
    let (again, server_again, bridged_again) = decode("me", Destination::Broadcast, &written)
        .expect("what was written is read")
        .expect("it is of another instance");
    assert_eq!(
        (&again.event, again.data.get(), &again.exclude),
        (&dispatch.event, dispatch.data.get(), &dispatch.exclude)
    );
    assert_eq!((server_again, bridged_again), (server, bridged));
}

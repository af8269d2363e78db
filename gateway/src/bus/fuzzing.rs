//! The entry point of what comes over Redis for `crate::fuzzing`.

use super::wire::{EncodedAudience, decode, encode, encode_audience, publisher_of_audience};

/// Reads a payload, writes what was read, and reads it again: both are the same.
pub(crate) fn redis(input: &[u8]) {
    audience(input);
    let Ok(Some((dispatch, server, bridged))) = decode("me", input) else {
        return;
    };
    assert_ne!(server, "me");
    let written = encode(&server, &dispatch, bridged);
    let (again, server_again, bridged_again) = decode("me", &written)
        .expect("what was written is read")
        .expect("it is of another instance");
    assert_eq!(
        (&again.event, again.data_text(), &again.exclude),
        (&dispatch.event, dispatch.data_text(), &dispatch.exclude)
    );
    assert_eq!((server_again, bridged_again), (server, bridged));
}

fn audience(input: &[u8]) {
    let encoded = EncodedAudience::new(input);
    let (Some(from), Some(audience)) = (publisher_of_audience(input), encoded.read()) else {
        return;
    };
    let written = encode_audience(from, &audience);
    let again = EncodedAudience::new(&written);
    let again = again.read().expect("what was written is read");
    assert_eq!(
        (&again.text, &again.addressees),
        (&audience.text, &audience.addressees)
    );
    audience.dispatches().for_each(drop);
}

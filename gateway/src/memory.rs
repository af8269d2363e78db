//! Gives memory that was freed back to the system, on threads that rest.
//!
//! Input: calls from threads that are about to rest, and from the Kafka consumer. Output: a smaller resident memory, within a minute after it was needed.
//!
//! The allocator gives back what a thread has freed of its own when that thread allocates again, and what another thread has freed of it not before. After
//! an outage the records of a hundred partitions are freed by one thread and belong to another, which then sleeps.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// How often a thread gives back what it does not use.
const INTERVAL: Duration = Duration::from_secs(5);

thread_local! {
    static DUE: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Gives back what this thread does not use; at most every five seconds, whoever calls and however often.
pub fn give_back() {
    let now = Instant::now();
    if DUE.get().is_none_or(|due| due <= now) {
        DUE.set(Some(now + INTERVAL));
        #[expect(unsafe_code, reason = "the allocator's functions have no safe name")]
        // SAFETY: it frees pages that hold nothing, of the calling thread alone.
        unsafe {
            libmimalloc_sys::mi_collect(true);
        }
    }
}

/// Gives back what the allocator of the C library does not use: librdkafka keeps what it fetched there. It looks at all of it, so call it rarely.
pub fn give_back_of_c() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        #[expect(unsafe_code, reason = "there is no safe name for this call")]
        // SAFETY: it frees pages that hold nothing, and takes its own locks.
        unsafe {
            libc::malloc_trim(0);
        }
    }
}

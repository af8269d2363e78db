//! REST and the admin listener.

//! What travels on the socket: frames, envelopes, events, close codes and the cipher. No IO.
//!
//! Input: bytes and text from [`crate::ws`]. Output: frames in, [`Message`]s out. Reads no clock; entropy comes in as an argument.

pub mod bounds;
pub mod cipher;
pub mod close;
pub mod envelope;
pub mod event;
pub mod frame;
pub mod room;
pub mod shared;
pub mod whole;

pub use envelope::Envelope;
pub use frame::Message;
pub use shared::SharedMessages;

//! What travels on the socket, without any IO: envelopes, events, close codes, the cipher and the frame codec.

pub mod close;

//! The real router on a real store, a real key set and real policies. Neighbours on the bus are played, so that each of their answers
//! can be chosen.

mod access;
mod admin;
mod clients;
mod documents;
mod fixture;
mod hostile;
mod jwks;
mod messages;
mod notifications;

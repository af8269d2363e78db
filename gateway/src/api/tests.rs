//! Tests of the real router with a real store, key set and policies. The other instances are simulated, so that a test can choose their answers.

mod access;
mod admin;
mod call;
mod clients;
mod documents;
mod fixture;
mod hostile;
mod jwks;
mod messages;
mod notifications;

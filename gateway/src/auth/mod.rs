//! Authentication and authorization: Bearer tokens checked with the key sets of their issuers, Basic users, revocations, and Casbin policies.
//!
//! Input: credentials of connections and requests, key sets over HTTP, policy rows from [`crate::store`].
//! Output: a [`Principal`](crate::principal::Principal), or a refusal; whether a principal may do something.

mod basic;
#[cfg(test)]
mod fixture;
pub(crate) mod fuzzing;
mod jwk;
mod key_set;
mod members;
mod policy;
mod published;
mod recent;
mod revocation;
mod signature;
mod token;

pub use basic::{Basic, BasicError, UsersError};
pub use policy::Access;
pub use published::{NotPublic, PublishedKeys};
pub use revocation::{MAX_BLIND, Revocations};
pub use token::{Authenticator, MAX_TOKEN_BYTES, TokenFault, VerifyError};

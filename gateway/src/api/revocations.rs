//! Revoking tokens (authorization.md 3): the revocation is stored in the database, where every instance finds it, then applied here and announced.
//!
//! Input: an administrator's `{userId}` or `{jti}`. Output: the stored revocation, and how many connections were closed.

use std::borrow::Cow;
use std::time::Duration;

use axum::extract::State;
use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};
use utoipa::openapi::schema::{KnownFormat, ObjectBuilder, Schema, SchemaFormat, SchemaType, Type};
use utoipa::openapi::{Ref, RefOr};
use utoipa::{PartialSchema, ToSchema};

use super::clients::{Disconnect, counted};
use super::extract::{Json, May, Name, NoParams, Params};
use super::openapi::one_of;
use super::problem::{Cause, Problem};
use super::{AUDIT, ApiState, CLIENTS};
use crate::bus::Answers;
use crate::revocation::Revocation;
use crate::store::{Added, MAX_REVOCATIONS, StoreError};

/// How far in the future `issuedBefore` may lie, because an issuer's clock may be ahead.
const MAX_AHEAD: Duration = Duration::from_secs(300);

/// Whose tokens are revoked: exactly one of `userId` and `jti`; the other may be null.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Body {
    user_id: Option<Name>,
    jti: Option<Name>,
    issued_before: Option<Time>,
}

/// A time of RFC 3339, and of nothing else that chrono reads.
#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
struct Time(DateTime<Utc>);

impl TryFrom<String> for Time {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, &'static str> {
        // chrono also reads a space in place of the T.
        let has_t = text.as_bytes().get(10).is_some_and(|t| b"Tt".contains(t));
        DateTime::parse_from_rfc3339(&text)
            .ok()
            .filter(|_| has_t)
            .map(|at| Self(at.with_timezone(&Utc)))
            .ok_or("`issuedBefore` must be an RFC 3339 time")
    }
}

impl PartialSchema for Body {
    fn schema() -> RefOr<Schema> {
        let issued_before = ObjectBuilder::new()
            .schema_type(SchemaType::from_iter([Type::String, Type::Null]))
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)))
            .description(Some(
                "Only tokens issued before this time, which may lie at most 5 minutes in the future, and not so far in the past that every such token \
                 has ended (`revocations.token_life_days`). By default the time of the request.",
            ));
        one_of(
            "Whose tokens are revoked: all of the subject `userId`, or the one with this `jti`. The other member may be null.",
            [
                ("userId", Ref::from_schema_name("Name").into()),
                ("jti", Ref::from_schema_name("Name").into()),
            ],
            &[("issuedBefore", issued_before.into())],
            serde_json::json!({"userId": "17", "issuedBefore": "2026-11-23T08:00:00Z"}),
        )
    }
}

impl ToSchema for Body {
    fn name() -> Cow<'static, str> {
        "NewRevocation".into()
    }
}

/// Which tokens are revoked, and how many connections were closed.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({"closed": 3, "missing": [], "issuedBefore": "2026-11-23T08:00:00.000Z", "until": "2026-12-24T08:00:00.000Z"}))]
pub(crate) struct Revoked {
    /// How many connections were closed with 4006, on all instances that answered.
    closed: usize,
    /// Live instances that did not answer in time, and while Redis is away those that were live before. They are told again, and read it from the
    /// database: within seconds while they receive nothing from Redis, within 36 s in any case.
    missing: Vec<String>,
    /// Tokens issued before this time are refused.
    #[schema(format = DateTime)]
    issued_before: String,
    /// When the revocation is dropped; every such token has ended by then.
    #[schema(format = DateTime)]
    until: String,
}

fn text(ms: i64) -> String {
    DateTime::<Utc>::from_timestamp_millis(ms)
        .unwrap_or_default()
        .to_rfc3339_opts(SecondsFormat::Millis, true)
}

impl Body {
    fn checked(self, now_ms: i64, token_life: Duration) -> Result<Revocation, Problem> {
        if self.user_id.is_some() == self.jti.is_some() {
            return Err(Cause::InvalidBody.because("want exactly one of `userId` and `jti`"));
        }
        let issued_before_ms = self
            .issued_before
            .map_or(now_ms, |Time(at)| at.timestamp_millis());
        if issued_before_ms > now_ms.saturating_add(MAX_AHEAD.as_millis() as i64) {
            return Err(Cause::InvalidBody.because("`issuedBefore` is more than 5 minutes ahead"));
        }
        // A token issued before `issuedBefore` ends at the latest one longest life after it.
        let until_ms = issued_before_ms
            .saturating_add(i64::try_from(token_life.as_millis()).unwrap_or(i64::MAX));
        if until_ms <= now_ms {
            return Err(
                Cause::InvalidBody.because("every token issued before `issuedBefore` has ended")
            );
        }
        Ok(Revocation {
            user_id: self.user_id.map(|n| n.0),
            jti: self.jti.map(|n| n.0),
            issued_before_ms,
            until_ms,
        })
    }
}

/// Revokes tokens, and closes their connections with 4006 on every instance.
///
/// The revocation is stored in the database first. If that fails, nothing has changed. Once it is stored it holds on every instance, also on those that
/// could not be told at once. Repeating the request is safe.
#[utoipa::path(post, path = "/socket/websocket/revocations", operation_id = "revokeTokens", tag = CLIENTS, request_body = Body,
    responses((status = 200, description = "The tokens are revoked", body = Revoked)))]
pub(crate) async fn revoke(
    by: May<Disconnect>,
    State(state): State<ApiState>,
    _: Params<NoParams>,
    Json(body): Json<Body>,
) -> Result<Json<Revoked>, Problem> {
    let revocation = body.checked(state.clock.now_ms(), state.token_life)?;
    // Goes on to its end also when the caller gives up: what is stored is announced.
    let carried_out = tokio::spawn(carry_out(state, revocation.clone()));
    let (closed, missing) = carried_out
        .await
        .map_err(|_| Cause::Internal.because("the revocation was not carried out to its end"))??;
    let Revocation {
        user_id,
        jti,
        issued_before_ms,
        until_ms,
    } = revocation;
    tracing::info!(target: AUDIT, by = %by.subject, user.id = user_id, jti, closed, missing = missing.len(), "tokens revoked");
    Ok(Json(Revoked {
        closed,
        missing,
        issued_before: text(issued_before_ms),
        until: text(until_ms),
    }))
}

/// Stores a revocation, applies it here, and announces it. Returns how many connections were closed, and who did not answer.
async fn carry_out(
    state: ApiState,
    revocation: Revocation,
) -> Result<(usize, Vec<String>), Problem> {
    store(&state, &revocation).await?;
    state.revocations.add(revocation.clone());
    let here = state.hub.revoke(&revocation).await;
    let Answers { replies, missing } = state.announcer.announce(&revocation).await;
    Ok((here + counted(&replies), missing))
}

async fn store(state: &ApiState, revocation: &Revocation) -> Result<(), Problem> {
    let stored = state.revocation_store.add(
        std::slice::from_ref(revocation),
        MAX_REVOCATIONS,
        state.clock.now(),
    );
    match stored.await {
        Ok(Added::Stored) => Ok(()),
        Ok(Added::Full) => {
            tracing::error!(
                most = MAX_REVOCATIONS,
                "revocation refused: no more are kept; nothing is revoked"
            );
            Err(Cause::StoreUnavailable
                .because("no more revocations are kept; nothing is revoked and nothing was closed"))
        }
        Err(StoreError::Refused { .. }) => {
            Err(Cause::InvalidBody.because("the name holds a character that cannot be kept"))
        }
        Err(error @ (StoreError::Unavailable { .. } | StoreError::TooMuch { .. })) => {
            tracing::error!(%error, "revocation failed: it could not be stored; nothing is revoked");
            Err(Cause::StoreUnavailable
                .because("the revocation could not be stored; nothing is revoked and nothing was closed; try again")
                .retry_after(5))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);
    const NOW: i64 = 1_795_000_000_000;

    fn checked(json: &str) -> Result<Revocation, Problem> {
        serde_json::from_str::<Body>(json)
            .unwrap()
            .checked(NOW, 31 * DAY)
    }

    #[test]
    fn exactly_one_of_user_and_token_must_be_named() {
        assert!(checked("{}").is_err());
        assert!(checked(r#"{"userId": "17", "jti": "a"}"#).is_err());
        assert!(checked(r#"{"userId": null, "jti": "a"}"#).is_ok());
        assert!(serde_json::from_str::<Body>(r#"{"userId": ""}"#).is_err());
    }

    #[test]
    fn a_revocation_is_kept_until_every_matching_token_has_ended() {
        let revocation = checked(r#"{"userId": "17"}"#).unwrap();
        assert_eq!(revocation.issued_before_ms, NOW);
        assert_eq!(revocation.until_ms, NOW + 31 * 86_400_000);
    }

    #[test]
    fn times_too_far_ahead_or_too_long_ago_are_refused() {
        let body = |offset_ms: i64| {
            format!(
                r#"{{"userId": "17", "issuedBefore": "{}"}}"#,
                text(NOW + offset_ms)
            )
        };
        assert!(checked(&body(300_000)).is_ok());
        assert!(checked(&body(300_001)).is_err());
        assert!(checked(&body(-31 * 86_400_000 + 1)).is_ok());
        assert!(checked(&body(-31 * 86_400_000)).is_err());
    }
}

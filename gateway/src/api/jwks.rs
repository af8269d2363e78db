//! The key set that this gateway serves at a well-known path (RFC 8615), so that services that verify the platform's tokens find the keys.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use http::{HeaderMap, StatusCode};

use super::extract::{NoParams, Params};
use super::problem::{Cause, Problem};
use super::{ApiState, KEYS};

/// RFC 7517 section 8.5.
const MEDIA_TYPE: &str = "application/jwk-set+json";

/// Serves the public keys of the platform's token issuer, if this gateway is configured to.
#[utoipa::path(get, path = "/.well-known/jwks.json", operation_id = "getKeySet", tag = KEYS,
    params(("If-None-Match" = Option<String>, Header, description = "Entity tags of earlier answers (RFC 9110 section 13.1.2)")),
    responses(
        (status = 200, description = "A JWK Set (RFC 7517) of public keys", body = serde_json::Value, content_type = "application/jwk-set+json",
            headers(("ETag" = String, description = "Changes with the content"), ("Cache-Control" = String, description = "How long it may be kept"))),
        (status = 304, description = "The caller has the current key set"),
    ))]
pub(crate) async fn published(
    State(state): State<ApiState>,
    _: Params<NoParams>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let Some(published) = state.published.borrow().clone() else {
        return Err(Cause::NotFound.because("this gateway publishes no key set"));
    };
    let age = format!(
        "public, max-age={}",
        state.live.borrow().jwks.managed.cache_age_secs
    );
    let cached = [(ETAG, published.etag.clone()), (CACHE_CONTROL, age)];
    if is_known(&headers, &published.etag) {
        return Ok((StatusCode::NOT_MODIFIED, cached).into_response());
    }
    Ok((cached, [(CONTENT_TYPE, MEDIA_TYPE)], published.body.clone()).into_response())
}

/// Returns whether the caller has this set already: `*`, or one of its tags by the weak comparison (RFC 9110 section 13.1.2).
fn is_known(headers: &HeaderMap, etag: &str) -> bool {
    let given = headers
        .get_all(IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    // The tags that this gateway makes contain no comma.
    given
        .map(str::trim)
        .any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}

//! The OpenAPI and AsyncAPI documents, and a page to browse them. Everyone may read them: they contain nothing that is not in the source.

use axum::response::{IntoResponse, Response};
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY};

use super::extract::{NoParams, Params};
use super::problem::Problem;
use super::{DOCUMENTS, asyncapi as async_api, openapi as open_api};

const SHORTLY: &str = "public, max-age=300";
/// The page may load only this gateway's own files and may not be framed.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'";

fn file(media_type: &'static str, content: impl IntoResponse) -> Response {
    let headers = [
        (CONTENT_TYPE, media_type),
        (CACHE_CONTROL, SHORTLY),
        (CONTENT_SECURITY_POLICY, POLICY),
        (REFERRER_POLICY, "no-referrer"),
    ];
    (headers, content).into_response()
}

/// Serves this document.
#[utoipa::path(get, path = "/openapi.json", operation_id = "getOpenApi", tag = DOCUMENTS,
    responses((status = 200, description = "OpenAPI 3.1", body = serde_json::Value, content_type = "application/json")))]
pub(crate) async fn openapi(_: Params<NoParams>) -> Result<Response, Problem> {
    Ok(file("application/json", open_api::TEXT.as_str()))
}

/// Serves the description of WebSocket events and the Kafka record.
#[utoipa::path(get, path = "/asyncapi.json", operation_id = "getAsyncApi", tag = DOCUMENTS,
    responses((status = 200, description = "AsyncAPI 3.0", body = serde_json::Value, content_type = "application/json")))]
pub(crate) async fn asyncapi(_: Params<NoParams>) -> Result<Response, Problem> {
    Ok(file("application/json", async_api::TEXT.as_str()))
}

/// Serves a page to browse the documents.
#[utoipa::path(get, path = "/docs", operation_id = "getDocs", tag = DOCUMENTS,
    responses((status = 200, description = "HTML", body = String, content_type = "text/html")))]
pub(crate) async fn page(_: Params<NoParams>) -> Result<Response, Problem> {
    Ok(file(
        "text/html; charset=utf-8",
        include_str!("docs/page.html"),
    ))
}

pub(super) async fn script() -> Response {
    file(
        "text/javascript; charset=utf-8",
        include_str!("docs/page.js"),
    )
}

pub(super) async fn style() -> Response {
    file("text/css; charset=utf-8", include_str!("docs/page.css"))
}

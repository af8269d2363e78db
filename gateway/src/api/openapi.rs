//! The OpenAPI 3.1 document, generated from the handlers and their types.
//!
//! Handlers describe what is special to them. What follows from a rule (permissions, possible problems) is added here for all of them, so that it
//! cannot be forgotten for one.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::LazyLock;

use utoipa::openapi::path::{HttpMethod, Operation};
use utoipa::openapi::response::{Response, ResponseBuilder};
use utoipa::openapi::schema::{AdditionalProperties, ObjectBuilder, OneOfBuilder, Schema, Type};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{Content, HeaderBuilder, Ref, RefOr};
use utoipa::{Modify, OpenApi, PartialSchema, ToSchema};

use super::extract::{Name, Permission, RoomName};
use super::problem::Cause;
use super::{
    CLIENTS, DOCUMENTS, KEYS, MESSAGES, NOTIFICATIONS, clients, documents, jwks, messages,
    notifications, revocations,
};
use crate::problem::{CODE_SCHEMA, MEDIA_TYPE, ProblemDocument};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Signal",
        description = "REST of the realtime edge: live connections, messages and the notification inbox.\n\n\
            Errors are `application/problem+json` (RFC 9457); programs compare `code`. Lists are cursor pages: give `next` back as `cursor` until it is null. \
            Ids are strings, times RFC 3339 in UTC. Unknown query parameters and members are refused. \
            Every answer carries `X-Request-Id`: the caller's own if it has 1 to 64 letters, digits, `-`, `_` or `.`.\n\n\
            WebSocket events and the Kafka record are described by `/asyncapi.json`.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    servers((url = "/", description = "The gateway that serves this document")),
    paths(
        clients::list,
        clients::describe,
        clients::disconnect,
        clients::join,
        clients::leave,
        clients::disconnect_user,
        messages::to_client,
        messages::to_user,
        messages::to_room,
        messages::broadcast,
        revocations::revoke,
        notifications::list,
        notifications::unread_count,
        notifications::mark_read,
        notifications::get,
        notifications::patch,
        notifications::delete,
        jwks::published,
        documents::openapi,
        documents::asyncapi,
        documents::page,
    ),
    components(schemas(ProblemDocument<'static>, Code, Name, RoomName)),
    tags(
        (name = CLIENTS, description = "Live connections of the whole cluster"),
        (name = MESSAGES, description = "Sending to live connections"),
        (name = NOTIFICATIONS, description = "The inbox of the token's subject"),
        (name = KEYS, description = "Public keys of the platform's tokens"),
        (name = DOCUMENTS, description = "These documents"),
    ),
    modifiers(&Rules)
)]
struct Api;

/// The document as it is served and committed.
pub(super) static TEXT: LazyLock<String> = LazyLock::new(|| {
    let mut text = Api::openapi()
        .to_pretty_json()
        .expect("the document serializes");
    text.push('\n');
    text
});

/// Returns the schema of an object with exactly one of `members`, of which the others may be null, and with the `optional` ones.
pub(super) fn one_of<const N: usize>(
    description: &str,
    members: [(&str, RefOr<Schema>); N],
    optional: &[(&str, RefOr<Schema>)],
    example: serde_json::Value,
) -> RefOr<Schema> {
    let mut all = OneOfBuilder::new()
        .description(Some(description))
        .examples([example]);
    for (name, schema) in &members {
        let mut object = ObjectBuilder::new()
            .schema_type(Type::Object)
            .property(*name, schema.clone())
            .required(*name)
            .additional_properties(Some(AdditionalProperties::FreeForm(false)));
        for (other, _) in members.iter().filter(|(other, _)| other != name) {
            object = object.property(*other, ObjectBuilder::new().schema_type(Type::Null));
        }
        for (name, schema) in optional {
            object = object.property(*name, schema.clone());
        }
        all = all.item(object);
    }
    all.into()
}

/// The stable codes of problems.
struct Code;

impl PartialSchema for Code {
    fn schema() -> RefOr<Schema> {
        let list: String = Cause::ALL
            .iter()
            .map(|c| {
                format!(
                    "\n- `{}` ({}): {}",
                    c.code(),
                    c.status().as_u16(),
                    c.title()
                )
            })
            .collect();
        ObjectBuilder::new()
            .schema_type(Type::String)
            .description(Some(format!(
                "What programs compare. More may be added:{list}"
            )))
            .examples(["not_found"])
            .into()
    }
}

impl ToSchema for Code {
    fn name() -> Cow<'static, str> {
        CODE_SCHEMA.into()
    }
}

const BEARER: &str = "bearer";
const BASIC: &str = "basic";

fn needs<P: Permission>() -> (&'static str, &'static str) {
    (P::CODE, P::ACTION)
}

/// The permission of each guarded operation.
fn permission(operation_id: &str) -> (&'static str, &'static str) {
    match operation_id {
        "listClients" => needs::<clients::Find>(),
        "describeClient" => needs::<clients::FindById>(),
        "disconnectClient" | "disconnectUser" | "revokeTokens" => needs::<clients::Disconnect>(),
        "joinRooms" => needs::<clients::Join>(),
        "leaveRooms" => needs::<clients::Leave>(),
        "sendToClient" | "sendToUser" | "sendToRoom" => needs::<clients::Send>(),
        "broadcast" => needs::<clients::Broadcast>(),
        other => unreachable!("{other} has no permission in this table"),
    }
}

/// Security, permissions and problems, by rule.
struct Rules;

impl Modify for Rules {
    fn modify(&self, api: &mut utoipa::openapi::OpenApi) {
        api.info.version = env!("CARGO_PKG_VERSION").into();
        let components = api.components.get_or_insert_default();
        let bearer = Http::builder()
            .scheme(HttpAuthScheme::Bearer)
            .bearer_format("JWT");
        let bearer = bearer
            .description(Some(
                "A token of a configured issuer, verified as on the socket.",
            ))
            .build();
        components
            .security_schemes
            .insert(BEARER.into(), SecurityScheme::Http(bearer).into());
        let basic = Http::builder().scheme(HttpAuthScheme::Basic);
        let basic = basic
            .description(Some(
                "A user of the mounted users file; such users have no inbox.",
            ))
            .build();
        components
            .security_schemes
            .insert(BASIC.into(), SecurityScheme::Http(basic).into());
        for (status, response) in problem_responses() {
            components
                .responses
                .insert(component_name(status), response.into());
        }
        for (path, item) in &mut api.paths.paths {
            let methods = [
                (HttpMethod::Get, &mut item.get),
                (HttpMethod::Post, &mut item.post),
                (HttpMethod::Patch, &mut item.patch),
                (HttpMethod::Delete, &mut item.delete),
            ];
            for (_, operation) in methods
                .into_iter()
                .filter_map(|(method, op)| op.as_mut().map(|op| (method, op)))
            {
                complete(path, operation);
            }
        }
    }
}

fn complete(path: &str, operation: &mut Operation) {
    let tag = operation
        .tags
        .as_ref()
        .and_then(|tags| tags.first())
        .cloned()
        .unwrap_or_default();
    let mut statuses = vec![400, 500];
    if tag == DOCUMENTS || tag == KEYS {
        operation.security = Some(Vec::new());
    } else {
        statuses.extend([401, 403, 503]);
        let bearer = SecurityRequirement::new(BEARER, Vec::<String>::new());
        operation.security = Some(if tag == NOTIFICATIONS {
            vec![bearer]
        } else {
            statuses.push(429);
            let (code, action) = permission(operation.operation_id.as_deref().unwrap_or_default());
            let text = operation
                .description
                .take()
                .map(|text| format!("{text}\n\n"))
                .unwrap_or_default();
            operation.description = Some(format!("{text}Needs `{code}` (`{action}`)."));
            vec![
                bearer,
                SecurityRequirement::new(BASIC, Vec::<String>::new()),
            ]
        });
    }
    if operation.request_body.is_some() {
        statuses.extend([408, 413, 415]);
    }
    if path.contains("/clients/{id}") || path.contains("/notifications/{id}") || tag == KEYS {
        statuses.push(404);
    }
    for status in statuses {
        operation.responses.responses.insert(
            status.to_string(),
            Ref::from_response_name(component_name(status)).into(),
        );
    }
}

fn component_name(status: u16) -> String {
    let name = http::StatusCode::from_u16(status)
        .ok()
        .and_then(|status| status.canonical_reason());
    name.unwrap_or("Problem").replace(' ', "")
}

/// One response per status, with an example per cause.
fn problem_responses() -> BTreeMap<u16, Response> {
    let mut causes: BTreeMap<u16, Vec<Cause>> = BTreeMap::new();
    for &cause in Cause::ALL.iter().filter(|cause| {
        !matches!(
            cause,
            Cause::AdminDisabled | Cause::Ending | Cause::NotReady
        )
    }) {
        causes
            .entry(cause.status().as_u16())
            .or_default()
            .push(cause);
    }
    causes
        .into_iter()
        .map(|(status, causes)| (status, problem_response(status, &causes)))
        .collect()
}

fn problem_response(status: u16, causes: &[Cause]) -> Response {
    let examples = causes.iter().map(|cause| {
        let document = serde_json::json!({
            "type": cause.type_uri(), "title": cause.title(), "status": status, "detail": "What was wrong this time.",
            "code": cause.code(), "instance": "5f2b0c7e4d8a41f09c3e6b7d12a94e58",
        });
        (cause.code(), utoipa::openapi::example::ExampleBuilder::new().summary(cause.title()).value(Some(document)).build())
    });
    let content = Content::builder()
        .schema(Some(Ref::from_schema_name("Problem")))
        .examples_from_iter(examples)
        .build();
    let titles: Vec<&str> = causes.iter().map(|cause| cause.title()).collect();
    let header = |description: &str, kind| {
        HeaderBuilder::new()
            .schema(Some(ObjectBuilder::new().schema_type(kind).build()))
            .description(Some(description))
            .build()
    };
    let response = ResponseBuilder::new()
        .description(titles.join("; "))
        .content(MEDIA_TYPE, content);
    match status {
        401 => response.header(
            "WWW-Authenticate",
            header("Challenges (RFC 6750, RFC 7617)", Type::String),
        ),
        405 => response.header("Allow", header("The methods of this route", Type::String)),
        429 | 503 => response.header("Retry-After", header("Seconds to wait", Type::Integer)),
        _ => response,
    }
    .build()
}

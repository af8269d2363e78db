//! Messages to a client, a user, a room or everyone.
//!
//! Input: `{event, data}` of callers with the permission. Output: a dispatch to [`crate::delivery`], and 202 with where it went.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use super::clients::{Broadcast, Send, counted, given_here, not_held};
use super::extract::{Json, May, Name, NoParams, Params, RoomName, Segment, is_short};
use super::problem::{Cause, Problem};
use super::{AUDIT, ApiState, MESSAGES};
use crate::bus::{Answers, Ask};
use crate::dispatch::{Destination, Dispatch};
use crate::id::AnyId;
use crate::protocol::event::{RESERVED, name};

/// Longest event name in characters.
pub(super) const MAX_EVENT: usize = 128;
/// How deep `data` may nest; common parsers accept that much.
const MAX_DEPTH: usize = 100;
/// Most clients that a broadcast may exclude.
pub(super) const MAX_EXCLUDED: usize = 1000;
/// Further event names that only the gateway sends (protocol.md 3.19).
const GATEWAY_ONLY: [&str; 8] = [
    name::REFRESHED,
    name::EXPIRING,
    name::RESYNC,
    name::NOTIFICATION_CREATED,
    name::NOTIFICATION_READ,
    name::NOTIFICATION_DELETED,
    name::NOTIFICATION_SYNCED,
    name::NOTIFICATION_SKIPPED,
];

/// An application's event name: 1 to 128 characters, none of them a control character; the gateway's own event names are refused.
#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
struct EventName(Arc<str>);

impl PartialSchema for EventName {
    fn schema() -> RefOr<Schema> {
        // A name that the gateway keeps for itself is not one of an application. The documents say so in the pattern, since the schemas that they are
        // made of have no `not`.
        let kept: Vec<&str> = RESERVED.into_iter().chain(GATEWAY_ONLY).collect();
        ObjectBuilder::new()
            .schema_type(Type::String)
            .min_length(Some(1))
            .max_length(Some(MAX_EVENT))
            .pattern(Some(format!(
                "^(?!(?:{})$)[^\\x00-\\x1f\\x7f-\\x9f]*$",
                kept.join("|")
            )))
            .description(Some(
                "The envelope's event; the gateway's own event names are refused.",
            ))
            .into()
    }
}

impl ToSchema for EventName {}

impl TryFrom<String> for EventName {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, &'static str> {
        if !is_short(&text, MAX_EVENT) {
            return Err("event must have 1 to 128 characters, none of them a control character");
        }
        Ok(Self(text.into()))
    }
}

impl EventName {
    fn checked(self) -> Result<Arc<str>, Problem> {
        if RESERVED.contains(&&*self.0) || GATEWAY_ONLY.contains(&&*self.0) {
            return Err(
                Cause::ReservedEvent.because(format!("{} is sent by the gateway only", self.0))
            );
        }
        Ok(self.0)
    }
}

/// JSON that does not nest too deep; `None` where it was left out.
#[derive(Debug, Default, Deserialize)]
#[serde(try_from = "Box<RawValue>")]
struct Payload(Option<Arc<RawValue>>);

impl TryFrom<Box<RawValue>> for Payload {
    type Error = &'static str;

    fn try_from(raw: Box<RawValue>) -> Result<Self, &'static str> {
        if depth(raw.get()) > MAX_DEPTH {
            Err("data nests deeper than 100")
        } else {
            Ok(Self(Some(raw.into())))
        }
    }
}

/// Returns how deep valid JSON nests.
fn depth(json: &str) -> usize {
    let (mut depth, mut deepest, mut in_text, mut escaped) = (0_usize, 0, false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            b'[' | b'{' if !in_text => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' if !in_text => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// A message.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"event": "order:updated", "data": {"orderId": "DH-1001", "status": "shipped"}}))]
pub(crate) struct Message {
    event: EventName,
    /// The envelope's data; where it is left out, the envelope has none.
    #[serde(default)]
    #[schema(value_type = Value, required = false)]
    data: Payload,
}

/// A message to everyone.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"event": "maintenance", "data": {"at": "2026-11-24T01:00:00Z"}, "exclude": ["1KbZ0dT9Xa4"]}))]
pub(crate) struct BroadcastMessage {
    event: EventName,
    /// The envelope's data; where it is left out, the envelope has none.
    #[serde(default)]
    #[schema(value_type = Value, required = false)]
    data: Payload,
    /// Client ids that do not receive it.
    #[serde(default)]
    #[schema(max_items = 1000)]
    exclude: Option<Vec<AnyId>>,
}

/// Where a message went. Delivery is best effort.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"local": 2, "published": true}))]
pub(crate) struct Accepted {
    /// How many connections of the answering instance it was given to.
    local: usize,
    /// Whether it was published to other instances; false for a client of this instance, and while Redis is not available.
    published: bool,
}

async fn send(state: &ApiState, dispatch: Dispatch) -> Result<Response, Problem> {
    if let Err(most) = state.delivery.check_length(&dispatch, "rest") {
        return Err(
            Cause::MessageTooLarge.because(format!("a message to clients may have {most} bytes"))
        );
    }
    let sent = state.delivery.send(&dispatch).await;
    if sent.local == 0 && !sent.published {
        return Err(Cause::BusUnavailable
            .because("nobody is connected here and other instances could not be told; try again")
            .retry_after(5));
    }
    Ok((
        StatusCode::ACCEPTED,
        Json(Accepted {
            local: sent.local,
            published: sent.published,
        }),
    )
        .into_response())
}

/// Sends to one connection, on whichever instance it is.
#[utoipa::path(post, path = "/socket/websocket/clients/{id}/messages", operation_id = "sendToClient", tag = MESSAGES, params(("id" = AnyId, Path, description = "Client id")),
    request_body = Message, responses((status = 202, description = "Accepted", body = Accepted)))]
pub(crate) async fn to_client(
    _: May<Send>,
    State(state): State<ApiState>,
    _: Params<NoParams>,
    Segment(id): Segment<AnyId>,
    Json(message): Json<Message>,
) -> Result<Response, Problem> {
    let event = message.event.checked()?;
    let id = given_here(&id)?;
    if !state.hub.holds(&Destination::Client(id)) {
        let Answers { replies, missing } = state.bus.ask(&Ask::Holds { client: id }).await?;
        if counted(&replies) == 0 {
            return Err(not_held(missing));
        }
    }
    send(
        &state,
        Dispatch::new(Destination::Client(id), event, message.data.0),
    )
    .await
}

/// Sends to every connection of a user.
#[utoipa::path(post, path = "/socket/websocket/users/{id}/messages", operation_id = "sendToUser", tag = MESSAGES, params(("id" = Name, Path, description = "User id")),
    request_body = Message, responses((status = 202, description = "Accepted", body = Accepted)))]
pub(crate) async fn to_user(
    _: May<Send>,
    State(state): State<ApiState>,
    _: Params<NoParams>,
    Segment(Name(user)): Segment<Name>,
    Json(message): Json<Message>,
) -> Result<Response, Problem> {
    send(
        &state,
        Dispatch::new(
            Destination::User(user.into()),
            message.event.checked()?,
            message.data.0,
        ),
    )
    .await
}

/// Sends to every member of a room.
#[utoipa::path(post, path = "/socket/websocket/rooms/{room}/messages", operation_id = "sendToRoom", tag = MESSAGES, params(("room" = RoomName, Path, description = "Room name")),
    request_body = Message, responses((status = 202, description = "Accepted", body = Accepted)))]
pub(crate) async fn to_room(
    _: May<Send>,
    State(state): State<ApiState>,
    _: Params<NoParams>,
    Segment(RoomName(room)): Segment<RoomName>,
    Json(message): Json<Message>,
) -> Result<Response, Problem> {
    send(
        &state,
        Dispatch::new(
            Destination::Room(room.into()),
            message.event.checked()?,
            message.data.0,
        ),
    )
    .await
}

/// Sends to every authenticated connection.
#[utoipa::path(post, path = "/socket/websocket/broadcast", operation_id = "broadcast", tag = MESSAGES, request_body = BroadcastMessage,
    responses((status = 202, description = "Accepted", body = Accepted)))]
pub(crate) async fn broadcast(
    by: May<Broadcast>,
    State(state): State<ApiState>,
    _: Params<NoParams>,
    Json(message): Json<BroadcastMessage>,
) -> Result<Response, Problem> {
    let exclude = message.exclude.unwrap_or_default();
    if exclude.len() > MAX_EXCLUDED {
        return Err(Cause::InvalidBody.because(format!("exclude must name at most {MAX_EXCLUDED}")));
    }
    let mut dispatch = Dispatch::new(
        Destination::Broadcast,
        message.event.checked()?,
        message.data.0,
    );
    dispatch.exclude = exclude.iter().filter_map(AnyId::ours).collect();
    let foreign = exclude.into_iter().filter(|id| id.ours().is_none());
    dispatch.exclude_foreign = foreign.collect();
    tracing::info!(target: AUDIT, by = %by.subject, event = %dispatch.event, "broadcast");
    send(&state, dispatch).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_counts_only_brackets_outside_strings() {
        for (json, deep) in [
            ("null", 0),
            ("[]", 1),
            (r#"{"a":[{}]}"#, 3),
            (r#"["[[[", "\"[[", "\\"]"#, 1),
            (r#"[[],[[]]]"#, 3),
        ] {
            assert_eq!(depth(json), deep, "{json}");
        }
    }
}

//! The AsyncAPI 3.0 document: WebSocket events (protocol.md 3) and the Kafka record.
//!
//! Names, bounds, close codes and the data that the gateway sends come from [`crate::protocol`]. Where the gateway reads data leniently, the document
//! describes what clients should send.

use std::sync::LazyLock;

use serde_json::{Map, Value, json};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use crate::dispatch::ResyncReason;
use crate::id::Id;
use crate::notification::{Epoch, Notification};
use crate::protocol::bounds::{MAX_ROOM_CHARS, MAX_ROOMS_PER_EVENT, MAX_SYNC};
use crate::protocol::close::Close;
use crate::protocol::event::{
    Connected, Created, Deleted, ErrorText, Expiring, ReadByUser, Refreshed, Resync, RoomsJoined,
    Skipped, Synced, name,
};
use crate::protocol::room::RESERVED_PREFIX;

/// The document as it is served and committed.
pub(super) static TEXT: LazyLock<String> = LazyLock::new(|| {
    let mut text = serde_json::to_string_pretty(&document()).expect("the document serializes");
    text.push('\n');
    text
});

/// Who sends an event.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sender {
    Client,
    Gateway,
    Both,
}

/// One WebSocket event: its name, who sends it, what it is for, the schema of its data and an example of the data.
struct Event {
    name: &'static str,
    sender: Sender,
    summary: &'static str,
    data: Option<Value>,
    example: Value,
}

fn event(
    name: &'static str,
    sender: Sender,
    summary: &'static str,
    data: Value,
    example: Value,
) -> Event {
    Event {
        name,
        sender,
        summary,
        data: Some(data),
        example,
    }
}

fn object(required: &[&str], properties: Value) -> Value {
    json!({"type": "object", "required": required, "properties": properties})
}

fn text() -> Value {
    json!({"type": "string"})
}

fn seq() -> Value {
    json!({"type": "integer", "format": "int64", "minimum": 0, "description": "`seq` of a notification"})
}

fn list_of(items: Value) -> Value {
    json!({"type": "array", "items": items})
}

/// A reference to the schema of a Rust type.
fn schema<T: ToSchema>() -> Value {
    reference(&T::name())
}

fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

/// Data of `join` and `leave`.
fn rooms() -> Value {
    let name = json!({"type": "string", "minLength": 1, "maxLength": MAX_ROOM_CHARS, "pattern": format!("^(?!{RESERVED_PREFIX})")});
    object(
        &["rooms"],
        json!({"rooms": {"type": "array", "items": name, "maxItems": MAX_ROOMS_PER_EVENT}}),
    )
}

/// Data of `authenticate` and `refresh`, with further properties.
fn credentials(more: &[(&str, Value)]) -> Value {
    let kind = json!({"type": ["string", "null"], "pattern": "^([Bb][Ee][Aa][Rr][Ee][Rr]|[Jj][Ww][Tt])$", "description": "`Bearer` or `JWT` in any case; may be absent"});
    let mut properties = json!({"type": kind, "token": text()});
    for (name, schema) in more {
        properties[*name] = schema.clone();
    }
    object(&["token"], properties)
}

fn authentication_events() -> Vec<Event> {
    let key = json!({"type": "string", "description": "Raw P-256 point, uncompressed or compressed, standard base64"});
    vec![
        event(
            name::AUTHENTICATE,
            Sender::Client,
            "The first event of a connection, due within 5 s. A client key asks for encryption (P-256 ECDH, HKDF-SHA-256, AES-256-GCM); \
             `publicKey` is another name of `clientPublicKey`.",
            credentials(&[("clientPublicKey", key)]),
            json!({"type": "Bearer", "token": "eyJhbGciOiJFUzI1NiJ9.e30.c2ln"}),
        ),
        event(
            name::CONNECTED,
            Sender::Gateway,
            "The connection is authenticated; never encrypted. `serverPublicKey` and `salt` are present on an encrypted connection.",
            schema::<Connected<'_>>(),
            json!({"id": "1KbZ0dT9Xa4", "userId": "17", "time": "2026-11-23T08:00:00.000Z"}),
        ),
        event(
            name::ENCRYPTED,
            Sender::Both,
            "An encrypted envelope: the plaintext is the JSON of the inner envelope.",
            object(
                &["iv", "ct"],
                json!({"iv": {"type": "string", "description": "12 bytes, standard base64"}, "ct": {"type": "string", "description": "Ciphertext and 16-byte tag, standard base64"}}),
            ),
            json!({"iv": "AAAAAAAAAAAAAAAA", "ct": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=="}),
        ),
        event(
            name::REFRESH,
            Sender::Client,
            "Replaces the token with a newer one of the same subject.",
            credentials(&[]),
            json!({"type": "Bearer", "token": "eyJhbGciOiJFUzI1NiJ9.e30.c2ln"}),
        ),
        event(
            name::REFRESHED,
            Sender::Gateway,
            "The newer token is in use; `expiresAt` is null for a token without an end.",
            schema::<Refreshed>(),
            json!({"expiresAt": "2026-11-23T09:00:00.000Z"}),
        ),
        event(
            name::EXPIRING,
            Sender::Gateway,
            "The token ends soon; without `refresh` the connection is closed with 4005.",
            schema::<Expiring>(),
            json!({"expiresAt": "2026-11-23T09:00:00.000Z", "seconds": 60}),
        ),
    ]
}

fn session_events() -> Vec<Event> {
    vec![
        event(
            name::JOIN,
            Sender::Client,
            "Asks for rooms. The client joins those that the rules allow; the others are left out. With an `id` it is answered with `joined`.",
            rooms(),
            json!({"rooms": ["merchant:42"]}),
        ),
        event(
            name::JOINED,
            Sender::Gateway,
            "Answers a `join` that had an `id`, and repeats it: the rooms that the client is in now, and those that it may not join.",
            schema::<RoomsJoined<'_>>(),
            json!({"rooms": ["merchant:42"], "refused": ["merchant:43"]}),
        ),
        event(
            name::LEAVE,
            Sender::Client,
            "Leaves rooms.",
            rooms(),
            json!({"rooms": ["merchant:42"]}),
        ),
        Event {
            name: name::HEARTBEAT,
            sender: Sender::Client,
            summary: "Shows that the client is alive; not answered. A Pong frame does the same.",
            data: None,
            example: Value::Null,
        },
        event(
            name::ERROR,
            Sender::Gateway,
            "The gateway did not accept what the client sent.",
            schema::<ErrorText<'_>>(),
            json!({"message": "Not authenticated"}),
        ),
        event(
            name::RESYNC,
            Sender::Gateway,
            "Pushes may have been missed: send `notification:sync`.",
            schema::<Resync>(),
            json!({"reason": ResyncReason::BusReconnected.as_str()}),
        ),
    ]
}

fn notification_events() -> Vec<Event> {
    let shown = example_of::<Notification>();
    vec![
        event(
            name::NOTIFICATION_CREATED,
            Sender::Gateway,
            "A notification was stored. It may come again with the same `id`, and it may be missed: then the `previousSeq` of the next one is higher than the last contiguous `seq` \
             of the client, and `notification:sync` closes the gap.",
            schema::<Created<'_>>(),
            json!({"notification": shown, "previousSeq": 811, "unreadCount": 4, "version": 40}),
        ),
        event(
            name::NOTIFICATION_READ,
            Sender::Client,
            "Marks notifications as read; ids of other users' notifications are ignored.",
            json!({"oneOf": [
                object(&["ids"], json!({"ids": list_of(schema::<Id>())})),
                object(&["upTo"], json!({"upTo": seq()})),
            ]}),
            json!({"upTo": 812}),
        ),
        event(
            name::NOTIFICATION_READ,
            Sender::Gateway,
            "Notifications became read; sent to every connection of the user. `ids` holds the newest 1000 of `total`.",
            schema::<ReadByUser<'_>>(),
            example_of::<ReadByUser<'_>>(),
        ),
        event(
            name::NOTIFICATION_DELETED,
            Sender::Gateway,
            "Notifications were deleted over REST; sent to every connection of the user.",
            schema::<Deleted<'_>>(),
            example_of::<Deleted<'_>>(),
        ),
        event(
            name::NOTIFICATION_SYNC,
            Sender::Client,
            "Asks for the notifications that were stored after `after`.",
            object(
                &["after"],
                json!({"after": seq(), "limit": {"type": "integer", "minimum": 1, "maximum": MAX_SYNC}}),
            ),
            json!({"after": 812}),
        ),
        event(
            name::NOTIFICATION_SYNCED,
            Sender::Gateway,
            "Ends a sync: the missed `notification:created` events came before it, in order. Another `epoch` than the client knows: it starts over.",
            schema::<Synced>(),
            json!({"count": 2, "cursor": 814, "epoch": "5c1e09d2a7b34f68", "unreadCount": 4, "version": 41, "more": false}),
        ),
        event(
            name::NOTIFICATION_SKIPPED,
            Sender::Gateway,
            "A notification is longer than a message may be (`limits.message_bytes`); it stands for its `notification:created`. REST has the notification.",
            schema::<Skipped>(),
            json!({"id": "1KbZ0dT9Xa4", "seq": 815, "previousSeq": 814, "unreadCount": 5, "version": 42}),
        ),
    ]
}

/// Returns the example of a type's schema.
fn example_of<T: PartialSchema>() -> Value {
    let schema = serde_json::to_value(T::schema()).expect("schemas serialize");
    find_example(&schema).unwrap_or(Value::Null)
}

fn find_example(schema: &Value) -> Option<Value> {
    schema.get("example").cloned().or_else(|| {
        schema
            .get("allOf")?
            .as_array()?
            .iter()
            .find_map(find_example)
    })
}

fn key(event: &Event) -> String {
    let words = event.name.split(':').map(|word| {
        let mut chars = word.chars();
        chars
            .next()
            .map(|first| first.to_uppercase().chain(chars).collect::<String>())
            .unwrap_or_default()
    });
    let suffix = if event.sender == Sender::Client {
        "FromClient"
    } else {
        ""
    };
    words.collect::<String>() + suffix
}

fn message(event: &Event) -> Value {
    let mut properties = Map::from_iter([("event".to_owned(), json!({"const": event.name}))]);
    let mut required = vec!["event"];
    let mut example = Map::from_iter([("event".to_owned(), json!(event.name))]);
    if let Some(data) = &event.data {
        properties.insert("data".into(), data.clone());
        example.insert("data".into(), event.example.clone());
        required.push("data");
    }
    properties.insert(
        "id".into(),
        json!({"type": "string", "description": "The sender's own mark"}),
    );
    json!({
        "name": event.name,
        "summary": event.summary,
        "contentType": "application/json",
        "payload": {"type": "object", "required": required, "properties": properties},
        "examples": [{"name": "typical", "payload": example}],
    })
}

fn application_message() -> Value {
    json!({
        "name": "application",
        "summary": "Any other event belongs to the application. Services send it to clients through REST or Redis. From a client the gateway accepts it, answers nothing and passes it to nobody.",
        "contentType": "application/json",
        "payload": {"type": "object", "required": ["event"], "properties": {"event": {"type": "string", "minLength": 1}, "data": {}, "id": text()}},
        "examples": [{"name": "typical", "payload": {"event": "order:updated", "data": {"orderId": "DH-1001"}}}],
    })
}

fn activity() -> Value {
    let id = || json!({"type": ["string", "number"]});
    json!({
        "type": "object",
        "required": ["type"],
        "properties": {
            "id": {"type": ["string", "number"], "description": "Identity of the event within its source: one (source, id) makes exactly one notification per recipient. Absent: topic, partition, offset and time of the record."},
            "type": {"type": "string", "minLength": 1, "description": "Selects the template."},
            "recipientType": {"enum": ["org", "merchant", "users"], "description": "Whom it concerns. Absent, or no recipient found: the actor."},
            "organizerId": id(),
            "merchantId": id(),
            "recipientIds": list_of(id()),
            "actorId": id(),
            "data": {"type": "object", "description": "Parameters of the template. Numbers keep every digit that is written."},
            "title": {"type": "string", "description": "Text that replaces the template."},
            "content": {"type": "string", "description": "Text that replaces the template."},
            "locale": {"type": "string", "description": "A locale of the catalogs; `vi` where it is left out."},
            "occurredAt": {"description": "When it occurred, best as RFC 3339; protocol.md 12.3 lists the other forms. A value that is none of them is passed over.", "examples": ["2026-11-23T08:00:00Z"]},
        },
    })
}

fn activity_message() -> Value {
    json!({
        "name": "activity",
        "summary": "An event that users should be notified of.",
        "description": "The key is free; events of one key stay in order. CloudEvents 1.0 is read too, structured (`application/cloudevents+json`) and binary (`ce_*` \
                        headers). A member that is null or an empty text is absent; an invalid one that nothing needs is passed over (protocol.md 12.2). A record that cannot be \
                        used goes to the dead-letter topic.",
        "contentType": "application/json",
        "headers": object(&[], json!({"traceparent": {"type": "string", "description": "W3C Trace Context: the trace continues to the write on the socket."}})),
        "payload": reference("Activity"),
        "examples": [{"name": "payment", "payload": {
            "id": "evt-81", "type": "PAYMENT_SUCCESS", "actorId": "17", "recipientType": "merchant", "merchantId": "42",
            "data": {"amount": 150_000, "currency": "VND", "orderId": "DH-1001"}, "occurredAt": "2026-11-23T08:00:00Z",
        }}],
    })
}

fn close_codes() -> String {
    let row = |close: &Close| format!("\n| {} | {} |", close.code(), close.reason());
    let rows: String = Close::ALL.iter().map(row).collect();
    format!("| close code | reason |\n|---|---|{rows}")
}

fn schemas() -> Value {
    let mut collected: Vec<(String, RefOr<Schema>)> = vec![
        named::<Id>(),
        named::<Epoch>(),
        named::<Notification>(),
        named::<Connected<'_>>(),
        named::<ErrorText<'_>>(),
        named::<RoomsJoined<'_>>(),
        named::<Refreshed>(),
        named::<Expiring>(),
        named::<Resync>(),
        named::<Created<'_>>(),
        named::<ReadByUser<'_>>(),
        named::<Deleted<'_>>(),
        named::<Synced>(),
        named::<Skipped>(),
    ];
    Notification::schemas(&mut collected);
    let json = |schema| serde_json::to_value(schema).expect("schemas serialize");
    let mut all: Map<String, Value> = collected
        .into_iter()
        .map(|(name, schema)| (name, json(schema)))
        .collect();
    all.insert("Activity".into(), activity());
    Value::Object(all)
}

fn named<T: ToSchema>() -> (String, RefOr<Schema>) {
    (T::name().into(), T::schema())
}

fn document() -> Value {
    let events: Vec<Event> = authentication_events()
        .into_iter()
        .chain(session_events())
        .chain(notification_events())
        .collect();
    let mut messages = Map::from_iter(events.iter().map(|event| (key(event), message(event))));
    messages.insert("Application".into(), application_message());
    let on_stream = Map::from_iter(messages.keys().map(|key| {
        (
            key.clone(),
            json!({"$ref": format!("#/components/messages/{key}")}),
        )
    }));
    messages.insert("Activity".into(), activity_message());
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "Signal events",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Events of the WebSocket `/stream`, and the records that producers write to Kafka. Every WebSocket text frame is one envelope `{event, data?, id?}`. \
                            REST is described by `/openapi.json`.",
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {
            "gateway": {"host": "{host}", "protocol": "wss", "description": "The gateway", "variables": {"host": {"default": "localhost:8080"}}},
            "kafka": {"host": "{broker}", "protocol": "kafka", "description": "The broker that the gateway consumes from", "variables": {"broker": {"default": "localhost:9092"}}},
        },
        "channels": channels(&on_stream),
        "operations": operations(&events),
        "components": {"messages": messages, "schemas": schemas()},
    })
}

fn channels(on_stream: &Map<String, Value>) -> Value {
    json!({
        "stream": {
            "address": "/stream",
            "title": "One client's connection",
            "description": format!("Closed with one of these codes.\n\n{}", close_codes()),
            "servers": [{"$ref": "#/servers/gateway"}],
            "messages": on_stream,
            "bindings": {"ws": {"method": "GET"}},
        },
        "activities": {
            "address": "activity-notification",
            "title": "Activities",
            "description": "The topic's name is a setting.",
            "servers": [{"$ref": "#/servers/kafka"}],
            "messages": {"Activity": {"$ref": "#/components/messages/Activity"}},
        },
    })
}

fn operations(events: &[Event]) -> Value {
    let sent_by = |senders: &[Sender]| -> Vec<Value> {
        let keys = events
            .iter()
            .filter(|event| senders.contains(&event.sender))
            .map(key)
            .chain(["Application".to_owned()]);
        keys.map(|key| json!({"$ref": format!("#/channels/stream/messages/{key}")}))
            .collect()
    };
    json!({
        "receiveFromClients": {
            "action": "receive", "channel": {"$ref": "#/channels/stream"}, "summary": "What clients send.",
            "messages": sent_by(&[Sender::Client, Sender::Both]),
        },
        "sendToClients": {
            "action": "send", "channel": {"$ref": "#/channels/stream"}, "summary": "What the gateway sends.",
            "messages": sent_by(&[Sender::Gateway, Sender::Both]),
        },
        "consumeActivities": {
            "action": "receive", "channel": {"$ref": "#/channels/activities"}, "summary": "What producers write.",
            "messages": [{"$ref": "#/channels/activities/messages/Activity"}],
        },
    })
}

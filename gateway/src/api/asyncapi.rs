//! The AsyncAPI 3.0 document: WebSocket events and the Kafka record, as `docs/protocol.md` specifies them.
//!
//! Shapes that are Rust types come from their schemas; a gateway that reads a shape leniently describes what clients should send.

use std::sync::LazyLock;

use serde_json::{Map, Value, json};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use crate::id::Id;
use crate::notification::Notification;
use crate::protocol::close::Close;
use crate::protocol::event::{Deleted, ReadByUser, name};

/// The document as it is served and committed.
pub(super) static TEXT: LazyLock<String> = LazyLock::new(|| {
    let mut text = serde_json::to_string_pretty(&document()).expect("the document serializes");
    text.push('\n');
    text
});

/// Who sends an event.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    Client,
    Gateway,
    Both,
}

/// One WebSocket event: its name, who sends it, what it is for, the schema of its data and an example of it.
struct Event {
    name: &'static str,
    by: By,
    summary: &'static str,
    data: Option<Value>,
    example: Value,
}

fn object(required: &[&str], properties: Value) -> Value {
    json!({"type": "object", "required": required, "properties": properties})
}

fn text() -> Value {
    json!({"type": "string"})
}

fn time() -> Value {
    json!({"type": "string", "format": "date-time"})
}

fn number() -> Value {
    json!({"type": "integer", "format": "int64"})
}

fn list_of(items: Value) -> Value {
    json!({"type": "array", "items": items})
}

fn schema(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

fn session_events() -> Vec<Event> {
    use By::{Both, Client, Gateway};
    let event = |event, by, summary, data, example| Event {
        name: event,
        by,
        summary,
        data,
        example,
    };
    let rooms = || {
        object(
            &["rooms"],
            json!({"rooms": list_of(json!({"type": "string", "minLength": 1, "maxLength": 256, "pattern": "^(?!ws:)"}))}),
        )
    };
    vec![
        event(
            name::AUTHENTICATE,
            Client,
            "First event of a connection, within 5 s. With a client key the connection is encrypted (P-256 ECDH, HKDF-SHA-256, AES-256-GCM); \
             `publicKey` is read as `clientPublicKey` too.",
            Some(object(
                &["type", "token"],
                json!({"type": {"const": "Bearer"}, "token": text(), "clientPublicKey": {"type": "string", "description": "Raw uncompressed P-256 point, standard base64"}}),
            )),
            json!({"type": "Bearer", "token": "eyJhbGciOiJFUzI1NiJ9.e30.c2ln"}),
        ),
        event(
            name::CONNECTED,
            Gateway,
            "The connection is authenticated; always in clear text. `serverPublicKey` and `salt` are there where it is encrypted.",
            Some(object(
                &["id", "userId", "time"],
                json!({"id": schema("Id"), "userId": text(), "time": time(), "serverPublicKey": text(), "salt": text()}),
            )),
            json!({"id": "1KbZ0dT9Xa4", "userId": "17", "time": "2026-11-23T08:00:00.000Z"}),
        ),
        event(
            name::ENCRYPTED,
            Both,
            "A sealed envelope: the plaintext is the JSON of the inner envelope.",
            Some(object(
                &["iv", "ct"],
                json!({"iv": {"type": "string", "description": "12 bytes, standard base64"}, "ct": {"type": "string", "description": "Ciphertext and 16-byte tag, standard base64"}}),
            )),
            json!({"iv": "AAAAAAAAAAAAAAAA", "ct": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=="}),
        ),
        event(
            name::JOIN,
            Client,
            "Asks for rooms; those that the rules allow are joined, the others are left out without a word.",
            Some(rooms()),
            json!({"rooms": ["merchant:42"]}),
        ),
        event(
            name::LEAVE,
            Client,
            "Leaves rooms.",
            Some(rooms()),
            json!({"rooms": ["merchant:42"]}),
        ),
        event(
            name::HEARTBEAT,
            Client,
            "Says that the client is there; not answered. A Pong does as well.",
            None,
            Value::Null,
        ),
        event(
            name::ERROR,
            Gateway,
            "What a client sent was not accepted.",
            Some(object(&["message"], json!({"message": text()}))),
            json!({"message": "Not authenticated"}),
        ),
        event(
            name::REFRESH,
            Client,
            "Puts a newer token of the same subject in place of the one that ends.",
            Some(object(
                &["type", "token"],
                json!({"type": {"const": "Bearer"}, "token": text()}),
            )),
            json!({"type": "Bearer", "token": "eyJhbGciOiJFUzI1NiJ9.e30.c2ln"}),
        ),
        event(
            name::REFRESHED,
            Gateway,
            "The newer token holds; `expiresAt` is null where it never ends.",
            Some(object(
                &["expiresAt"],
                json!({"expiresAt": {"type": ["string", "null"], "format": "date-time"}}),
            )),
            json!({"expiresAt": "2026-11-23T09:00:00.000Z"}),
        ),
        event(
            name::EXPIRING,
            Gateway,
            "The token ends soon; without `refresh` the connection is closed with 4005.",
            Some(object(
                &["expiresAt", "seconds"],
                json!({"expiresAt": time(), "seconds": number()}),
            )),
            json!({"expiresAt": "2026-11-23T09:00:00.000Z", "seconds": 60}),
        ),
        event(
            name::RESYNC,
            Gateway,
            "Pushes may have been missed: send `notification:sync`.",
            Some(object(&["reason"], json!({"reason": text()}))),
            json!({"reason": "bus"}),
        ),
    ]
}

fn notification_events() -> Vec<Event> {
    use By::{Client, Gateway};
    let event = |event, by, summary, data, example| Event {
        name: event,
        by,
        summary,
        data: Some(data),
        example,
    };
    let seq = || json!({"type": "integer", "format": "int64", "minimum": 0, "description": "`seq` of a notification"});
    let shown = example_of::<Notification>();
    vec![
        event(
            name::NOTIFICATION_CREATED,
            Gateway,
            "A notification was stored. It may come again with the same `id`, and it may be missed: `notification:sync` closes every gap.",
            object(
                &["notification", "unreadCount", "version"],
                json!({"notification": schema("Notification"), "unreadCount": number(), "version": number()}),
            ),
            json!({"notification": shown, "unreadCount": 4, "version": 40}),
        ),
        Event {
            name: name::NOTIFICATION_READ,
            by: Client,
            summary: "Marks notifications as read; ids that are not the caller's are ignored.",
            data: Some(
                json!({"oneOf": [object(&["ids"], json!({"ids": list_of(schema("Id"))})), object(&["upTo"], json!({"upTo": seq()}))]}),
            ),
            example: json!({"upTo": 812}),
        },
        event(
            name::NOTIFICATION_READ,
            Gateway,
            "What became read, to every connection of the user; the newest 1000 of `total`.",
            schema("NotificationsRead"),
            example_of::<ReadByUser<'_>>(),
        ),
        event(
            name::NOTIFICATION_DELETED,
            Gateway,
            "What was removed over REST, to every connection of the user.",
            schema("NotificationsDeleted"),
            example_of::<Deleted<'_>>(),
        ),
        event(
            name::NOTIFICATION_SYNC,
            Client,
            "Asks for what was stored after `after`.",
            object(
                &["after"],
                json!({"after": seq(), "limit": {"type": "integer", "minimum": 1, "maximum": 200}}),
            ),
            json!({"after": 812}),
        ),
        event(
            name::NOTIFICATION_SYNCED,
            Gateway,
            "Ends a sync: the missed `notification:created` events came before it, in order.",
            object(
                &["count", "cursor", "unreadCount", "version", "more"],
                json!({"count": number(), "cursor": seq(), "unreadCount": number(), "version": number(), "more": {"type": "boolean"}}),
            ),
            json!({"count": 2, "cursor": 814, "unreadCount": 4, "version": 41, "more": false}),
        ),
    ]
}

/// The example that a type's schema carries.
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
    let side = if event.by == By::Client {
        "FromClient"
    } else {
        ""
    };
    words.collect::<String>() + side
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
        "summary": "Any other event belongs to the application: services send it through REST or Redis, clients through the socket.",
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
            "recipientType": {"enum": ["org", "merchant", "users"], "description": "Whom it concerns; absent, or nobody found: the actor."},
            "organizerId": id(),
            "merchantId": id(),
            "recipientIds": list_of(id()),
            "actorId": id(),
            "data": {"type": "object", "description": "Parameters of the template."},
            "title": {"type": "string", "description": "Given text, used instead of the template."},
            "content": {"type": "string", "description": "Given text, used instead of the template."},
            "locale": {"type": "string", "description": "A locale of the catalogs; `vi` where it is left out."},
            "occurredAt": time(),
        },
    })
}

fn activity_message() -> Value {
    json!({
        "name": "activity",
        "summary": "Something happened that people should know.",
        "description": "The key is free; events of one key stay in order. CloudEvents 1.0 is read too, structured (`application/cloudevents+json`) and binary (`ce_*` \
                        headers). A record that cannot be used goes to the dead-letter topic.",
        "contentType": "application/json",
        "headers": object(&[], json!({"traceparent": {"type": "string", "description": "W3C Trace Context: the trace goes on to the socket write."}})),
        "payload": schema("Activity"),
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
        (Id::name().into(), Id::schema()),
        (Notification::name().into(), Notification::schema()),
        (ReadByUser::name().into(), ReadByUser::schema()),
        (Deleted::name().into(), Deleted::schema()),
    ];
    Notification::schemas(&mut collected);
    let named = collected.into_iter().map(|(name, schema)| {
        (
            name,
            serde_json::to_value(schema).expect("schemas serialize"),
        )
    });
    let mut all = Map::from_iter(named);
    all.insert("Activity".into(), activity());
    Value::Object(all)
}

fn document() -> Value {
    let events: Vec<Event> = session_events()
        .into_iter()
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

    let of = |wanted: &[By]| -> Vec<Value> {
        let keys = events
            .iter()
            .filter(|event| wanted.contains(&event.by))
            .map(key)
            .chain(["Application".to_owned()]);
        keys.map(|key| json!({"$ref": format!("#/channels/stream/messages/{key}")}))
            .collect()
    };
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "Signal events",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "What travels on the WebSocket `/stream` and what producers put into Kafka. Every WebSocket text frame is one envelope `{event, data?, id?}`. \
                            REST is described by `/openapi.json`.",
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {
            "gateway": {"host": "{host}", "protocol": "wss", "description": "The gateway", "variables": {"host": {"default": "localhost:8080"}}},
            "kafka": {"host": "{broker}", "protocol": "kafka", "description": "The broker that the gateway consumes", "variables": {"broker": {"default": "localhost:9092"}}},
        },
        "channels": {
            "stream": {
                "address": "/stream",
                "title": "One client's connection",
                "description": format!("Ends with one of these codes.\n\n{}", close_codes()),
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
        },
        "operations": {
            "hearClients": {"action": "receive", "channel": {"$ref": "#/channels/stream"}, "summary": "What clients send.", "messages": of(&[By::Client, By::Both])},
            "tellClients": {"action": "send", "channel": {"$ref": "#/channels/stream"}, "summary": "What the gateway sends.", "messages": of(&[By::Gateway, By::Both])},
            "consumeActivities": {
                "action": "receive", "channel": {"$ref": "#/channels/activities"}, "summary": "What producers write.",
                "messages": [{"$ref": "#/channels/activities/messages/Activity"}],
            },
        },
        "components": {"messages": messages, "schemas": schemas()},
    })
}

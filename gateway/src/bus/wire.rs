//! Channels and payloads of Redis (protocol.md 10.1 to 10.15), and the gateway's own channels and keys under `signal:`. No IO.
//!
//! Reading is lenient where foreign senders may differ: the channel alone decides whom a message is for. The payload's `type` and `target` are not read,
//! so a payload that contradicts its channel goes where it was published.

use std::borrow::Cow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use signal_contract::Object;

use super::Interest;
use crate::dispatch::{Destination, Dispatch};
use crate::id::Id;

const CLIENT: &str = "ws:client:";
const USER: &str = "ws:user:";
const ROOM: &str = "ws:room:";
const BROADCAST: &str = "ws:broadcast";

/// The names of channels and keys, all behind one prefix.
#[derive(Debug, Clone)]
pub(super) struct Names {
    prefix: String,
    /// Channel of this instance's own pings.
    pub(super) ping: String,
    /// Channel of questions to it.
    pub(super) ask: String,
    /// Channel of answers to it.
    pub(super) reply: String,
    /// Channel on which instances report that what they published was lost.
    pub(super) lost: String,
    /// Key: sorted set of live instances.
    pub(super) instances: String,
    /// Key: sorted set of revocations.
    pub(super) revocations: String,
}

impl Names {
    pub(super) fn new(prefix: &str, instance: &str) -> Self {
        Self {
            prefix: prefix.to_owned(),
            ping: format!("{prefix}signal:ping:{instance}"),
            ask: ask_channel(prefix, instance),
            reply: reply_channel(prefix, instance),
            lost: format!("{prefix}signal:lost"),
            instances: format!("{prefix}signal:instances"),
            revocations: format!("{prefix}signal:revocations"),
        }
    }

    /// Returns the channel of a destination.
    pub(super) fn channel(&self, destination: &Destination) -> String {
        let prefix = &self.prefix;
        match destination {
            Destination::Client(id) => format!("{prefix}{CLIENT}{id}"),
            Destination::User(user) => format!("{prefix}{USER}{user}"),
            Destination::Room(room) => format!("{prefix}{ROOM}{room}"),
            Destination::Broadcast => format!("{prefix}{BROADCAST}"),
        }
    }

    /// Returns the channels that are subscribed to for an interest.
    pub(super) fn subscribed_for(&self, interest: &Interest) -> impl Iterator<Item = String> {
        let room = match interest {
            Interest::Client(id) => Some(Destination::Room(id.as_str().into())),
            _ => None,
        };
        [
            Some(self.channel(interest)),
            room.map(|room| self.channel(&room)),
        ]
        .into_iter()
        .flatten()
    }

    /// Returns the destination of a channel; `None` for any other channel.
    pub(super) fn destination(&self, channel: &str) -> Option<Destination> {
        let name = channel.strip_prefix(self.prefix.as_str())?;
        if let Some(id) = name.strip_prefix(CLIENT) {
            id.parse().ok().map(Destination::Client)
        } else if let Some(user) = name.strip_prefix(USER) {
            Some(Destination::User(user.into()))
        } else if let Some(room) = name.strip_prefix(ROOM) {
            Some(Destination::Room(room.into()))
        } else {
            (name == BROADCAST).then_some(Destination::Broadcast)
        }
    }

    /// Returns the channel of questions to another instance.
    pub(super) fn ask_of(&self, instance: &str) -> String {
        ask_channel(&self.prefix, instance)
    }

    /// Returns the channel of answers to another instance.
    pub(super) fn reply_of(&self, instance: &str) -> String {
        reply_channel(&self.prefix, instance)
    }

    /// Returns the key of the lease of a worker number.
    pub(super) fn worker(&self, number: u16) -> String {
        format!("{}signal:worker:{number}", self.prefix)
    }
}

fn ask_channel(prefix: &str, instance: &str) -> String {
    format!("{prefix}signal:ask:{instance}")
}

fn reply_channel(prefix: &str, instance: &str) -> String {
    format!("{prefix}signal:reply:{instance}")
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OutPayload<'a> {
    server_id: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<&'a str>,
    event: &'a str,
    data: &'a RawValue,
    #[serde(skip_serializing_if = "<[Id]>::is_empty")]
    exclude: &'a [Id],
    #[serde(skip_serializing_if = "Option::is_none")]
    bridged: Option<(u64, u64, u8)>,
}

/// The numbers of a dispatch that is published to two servers: the payload's member `bridged`, which other readers ignore. It is a list of three
/// numbers, the last 0 or 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bridged {
    /// The same in both copies, and greater than that of every dispatch of the instance before.
    pub(super) number: u64,
    /// The number of the first dispatch that its instance published to this pair of servers.
    pub(super) since: u64,
    /// Whether this is the copy on the complete server: the one to which everything before `since` was published as well.
    pub(super) is_complete: bool,
}

/// Returns the payload of a dispatch.
pub(super) fn encode(server_id: &str, dispatch: &Dispatch, bridged: Option<Bridged>) -> Vec<u8> {
    let (kind, target) = match &dispatch.destination {
        Destination::Client(id) => ("client", Some(id.as_str())),
        Destination::User(user) => ("user", Some(&**user)),
        Destination::Room(room) => ("room", Some(&**room)),
        Destination::Broadcast => ("broadcast", None),
    };
    let out = OutPayload {
        server_id,
        kind,
        target,
        event: &dispatch.event,
        data: &dispatch.data,
        exclude: &dispatch.exclude,
        bridged: bridged.map(|b| (b.number, b.since, b.is_complete.into())),
    };
    serde_json::to_vec(&out).expect("strings and JSON are JSON")
}

/// Why a payload is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    #[error("it is not a JSON object of the expected members")]
    NotJson,
    #[error("it has no serverId")]
    NoServerId,
    #[error("it has no event")]
    NoEvent,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct InPayload<'a> {
    #[serde(borrow, default)]
    server_id: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    event: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
    #[serde(borrow, default)]
    exclude: Option<&'a RawValue>,
    #[serde(borrow, default)]
    bridged: Option<&'a RawValue>,
}

/// A dispatch, the `serverId` that published it, and its numbers where it was published to two servers.
pub(super) type Decoded<'a> = (Dispatch, Cow<'a, str>, Option<Bridged>);

/// Reads a payload that came for `destination`; `None` when this instance published it itself.
///
/// Absent `data` is null. Members of `exclude` that are no client ids are ignored, and so is a `bridged` that is not three numbers.
pub(super) fn decode<'a>(
    me: &str,
    destination: Destination,
    payload: &'a [u8],
) -> Result<Option<Decoded<'a>>, Malformed> {
    let Object(read): Object<InPayload<'_>> =
        serde_json::from_slice(payload).map_err(|_| Malformed::NotJson)?;
    let server_id = read
        .server_id
        .filter(|s| !s.is_empty())
        .ok_or(Malformed::NoServerId)?;
    let event = read
        .event
        .filter(|s| !s.is_empty())
        .ok_or(Malformed::NoEvent)?;
    if server_id == me {
        return Ok(None);
    }
    let data = read.data.unwrap_or(RawValue::NULL).to_owned();
    let bridged = read
        .bridged
        .and_then(|raw| serde_json::from_str::<(u64, u64, u8)>(raw.get()).ok());
    let bridged = bridged.map(|(number, since, complete)| Bridged {
        number,
        since,
        is_complete: complete == 1,
    });
    let mut dispatch = Dispatch::new(destination, event.as_ref(), Arc::from(data));
    if let Some(exclude) = read
        .exclude
        .and_then(|raw| serde_json::from_str::<Vec<serde_json::Value>>(raw.get()).ok())
    {
        dispatch.exclude = exclude
            .iter()
            .filter_map(|member| member.as_str()?.parse().ok())
            .collect();
    }
    Ok(Some((dispatch, server_id, bridged)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn raw(json: &str) -> Arc<RawValue> {
        Arc::from(RawValue::from_string(json.to_owned()).unwrap())
    }

    fn read(payload: &str) -> Result<Option<Dispatch>, Malformed> {
        Ok(
            decode("me", Destination::Broadcast, payload.as_bytes())?
                .map(|(dispatch, ..)| dispatch),
        )
    }

    /// protocol.md 10.1, 10.2, 10.3, 10.4 and 10.5.
    #[test]
    fn payloads_are_those_of_the_wire_protocol() {
        let id: Id = "4bC".parse().unwrap();
        for (destination, channel, kind, target) in [
            (
                Destination::Client(id),
                "p:ws:client:4bC",
                "client",
                Some("4bC"),
            ),
            (
                Destination::User("17".into()),
                "p:ws:user:17",
                "user",
                Some("17"),
            ),
            (
                Destination::Room("a:b".into()),
                "p:ws:room:a:b",
                "room",
                Some("a:b"),
            ),
            (Destination::Broadcast, "p:ws:broadcast", "broadcast", None),
        ] {
            let mut dispatch = Dispatch::new(destination.clone(), "hi", raw("{\"n\": 1.50}"));
            dispatch.exclude = Arc::from([id]);
            let payload: serde_json::Value =
                serde_json::from_slice(&encode("s1", &dispatch, None)).unwrap();
            let mut wanted = json!({"serverId": "s1", "type": kind, "event": "hi", "data": {"n": 1.5}, "exclude": ["4bC"]});
            if let Some(target) = target {
                wanted["target"] = json!(target);
            }
            assert_eq!(payload, wanted);
            let names = Names::new("p:", "s1");
            assert_eq!(names.channel(&destination), channel);
            assert_eq!(names.destination(channel), Some(destination));
        }
        let plain = encode(
            "s1",
            &Dispatch::new(Destination::Broadcast, "hi", raw("null")),
            None,
        );
        assert_eq!(
            plain,
            br#"{"serverId":"s1","type":"broadcast","event":"hi","data":null}"#
        );
    }

    /// protocol.md 2.11.
    #[test]
    fn data_travels_as_the_text_it_was() {
        let text = "{\"n\": 1.50, \"n\":9007199254740993,  \"s\":\"\\u00e9\"}";
        let payload = encode(
            "other",
            &Dispatch::new(Destination::Broadcast, "hi", raw(text)),
            None,
        );
        let (got, ..) = decode("me", Destination::Broadcast, &payload)
            .unwrap()
            .unwrap();
        assert_eq!(got.data.get(), text);
    }

    /// protocol.md 10.6.
    #[test]
    fn what_this_instance_published_is_ignored() {
        assert!(read(r#"{"serverId":"me","event":"e"}"#).unwrap().is_none());
    }

    /// protocol.md 10.8.
    #[test]
    fn malformed_json_and_missing_members_are_different_errors() {
        for (payload, wanted) in [
            ("", Malformed::NotJson),
            ("nope", Malformed::NotJson),
            ("[]", Malformed::NotJson),
            ("[\"emitter\",\"e\",1,[]]", Malformed::NotJson),
            ("null", Malformed::NotJson),
            (" {}", Malformed::NoServerId),
            ("{\"serverId\":1,\"event\":\"e\"}", Malformed::NotJson),
            ("{\"event\":\"e\"}", Malformed::NoServerId),
            ("{\"serverId\":\"\",\"event\":\"e\"}", Malformed::NoServerId),
            ("{\"serverId\":\"x\"}", Malformed::NoEvent),
            ("{\"serverId\":\"x\",\"event\":null}", Malformed::NoEvent),
            ("{\"serverId\":\"x\",\"event\":\"\"}", Malformed::NoEvent),
            (
                "{\"serverId\":\"x\",\"event\":\"e\",\"data\":{",
                Malformed::NotJson,
            ),
        ] {
            assert_eq!(read(payload).unwrap_err(), wanted, "{payload}");
        }
        assert_eq!(
            decode(
                "me",
                Destination::Broadcast,
                b"{\"serverId\":\"\xff\",\"event\":\"e\"}"
            )
            .unwrap_err(),
            Malformed::NotJson
        );
    }

    /// protocol.md 10.9 and 10.10.
    #[test]
    fn absent_data_is_null_and_odd_members_are_ignored() {
        let got = read(
            r#"{"serverId":"emitter","event":"e","type":7,"target":[],"more":{},"exclude":["4bC",5,"not an id",null]}"#,
        );
        let got = got.unwrap().unwrap();
        assert_eq!(got.data.get(), "null");
        assert_eq!(&*got.exclude, ["4bC".parse::<Id>().unwrap()]);
        assert!(
            read(r#"{"serverId":"emitter","event":"e","exclude":"4bC"}"#)
                .unwrap()
                .unwrap()
                .exclude
                .is_empty()
        );
    }

    /// protocol.md 10.14.
    #[test]
    fn bridged_numbers_are_one_more_member_and_malformed_ones_are_ignored() {
        let payload = encode(
            "other",
            &Dispatch::new(Destination::Broadcast, "hi", raw("1")),
            Some(Bridged {
                number: 3,
                since: 2,
                is_complete: true,
            }),
        );
        let value: serde_json::Value = serde_json::from_slice(&payload).unwrap();
        assert_eq!(
            value,
            json!({"serverId": "other", "type": "broadcast", "event": "hi", "data": 1, "bridged": [3, 2, 1]})
        );
        let (_, from, number) = decode("me", Destination::Broadcast, &payload)
            .unwrap()
            .unwrap();
        assert_eq!(
            (&*from, number),
            (
                "other",
                Some(Bridged {
                    number: 3,
                    since: 2,
                    is_complete: true
                })
            )
        );
        for odd in [
            "true",
            "7",
            "[1,2]",
            "[1,2,3,4]",
            "[-1,0,1]",
            "[1,2,\"1\"]",
            "[]",
            "{}",
            "null",
            "[18446744073709551616,0,0]",
        ] {
            let payload = format!("{{\"serverId\":\"x\",\"event\":\"e\",\"bridged\":{odd}}}");
            assert_eq!(
                decode("me", Destination::Broadcast, payload.as_bytes())
                    .unwrap()
                    .unwrap()
                    .2,
                None,
                "{odd}"
            );
        }
    }

    /// protocol.md 10.7 and 10.13.
    #[test]
    fn the_channel_decides_the_destination_whatever_the_payload_names() {
        let names = Names::new("", "i");
        let destination = names.destination("ws:room:lobby").unwrap();
        let payload = br#"{"serverId":"emitter","type":"user","target":"17","event":"e"}"#;
        assert_eq!(
            decode("i", destination, payload)
                .unwrap()
                .unwrap()
                .0
                .destination,
            Destination::Room("lobby".into())
        );
        for foreign in [
            "ws:broadcast:x",
            "ws:client:not an id",
            "signal:ask:i",
            "other",
        ] {
            assert_eq!(names.destination(foreign), None, "{foreign}");
        }
    }
}

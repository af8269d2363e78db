//! Channels and payloads of Redis (protocol.md 10.1 to 10.15), and the gateway's own channels and keys under `signal:`. No IO.
//!
//! The payload's `type` and `target` decide whom a message is for, as with the reference. The channel decides only which instances receive it, so who may
//! publish to any channel of `ws:` reaches everybody.

mod audience;
mod segments;

use std::borrow::Cow;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;
use signal_contract::Object;

use super::Interest;
use crate::config::MAX_MESSAGE_BYTES;
use crate::dispatch::{Destination, Dispatch};
use crate::id::{AnyId, Id};
use crate::principal::is_user_id;

pub use audience::EncodedAudience;
pub(super) use audience::{encode_audience, publisher_of_audience, users_of_audience};
pub(super) use segments::Segment;

const CLIENT: &str = "ws:client:";
const USER: &str = "ws:user:";
const ROOM: &str = "ws:room:";
const BROADCAST: &str = "ws:broadcast";

/// Channels of a segment, behind its front: of users, and of clients and rooms.
const SHARDED_USER: &str = "user:";
const NAME: &str = "name:";

/// Longest payload that is read: the longest message that the settings allow, and room for the members around it. What is longer would fill the queues that
/// all messages share.
pub(super) const MAX_PAYLOAD_BYTES: usize = MAX_MESSAGE_BYTES + (1 << 20);

/// The names of channels and keys, all behind one prefix.
#[derive(Debug, Clone)]
pub(super) struct Names {
    prefix: String,
    /// Front of the channels of a segment, where these are its names.
    segment: Option<String>,
    /// Channel of this instance's own pings.
    pub(super) ping: String,
    /// Channel of questions to it.
    pub(super) ask: String,
    /// Channel of answers to it.
    pub(super) reply: String,
    /// Channel on which instances report that what they published was lost.
    pub(super) lost: String,
    /// Channel of one event for many users.
    pub(super) audience: String,
    /// Key: sorted set of live instances.
    pub(super) instances: String,
    /// Key: sorted set of those of them that subscribe to `audience`.
    pub(super) audience_instances: String,
    /// Key: sorted set of those of them that receive what is published on segments.
    pub(super) sharded_instances: String,
    /// Key: sorted set of revocations.
    pub(super) revocations: String,
}

impl Names {
    pub(super) fn new(prefix: &str, instance: &str) -> Self {
        Self {
            prefix: prefix.to_owned(),
            segment: None,
            ping: format!("{prefix}signal:ping:{instance}"),
            ask: ask_channel(prefix, instance),
            reply: reply_channel(prefix, instance),
            lost: format!("{prefix}signal:lost"),
            audience: format!("{prefix}signal:audience"),
            instances: format!("{prefix}signal:instances"),
            audience_instances: format!("{prefix}signal:instances:audience"),
            sharded_instances: format!("{prefix}signal:instances:sharded"),
            revocations: format!("{prefix}signal:revocations"),
        }
    }

    /// Returns the names of a segment: its channels of messages, pings and audiences are sharded ones. In a segment a client and a room of its id are one
    /// channel.
    pub(super) fn of_segment(&self, instance: &str, segment: Segment) -> Self {
        let front = format!("{}signal:segment:{{{}}}:", self.prefix, segment.tag());
        Self {
            ping: format!("{front}ping:{instance}"),
            audience: format!("{front}audience"),
            segment: Some(front),
            ..self.clone()
        }
    }

    /// Returns the channel of a destination.
    pub(super) fn channel(&self, destination: &Destination) -> String {
        match (&self.segment, destination) {
            (None, _) | (_, Destination::Broadcast) => self.classic_channel(destination),
            (Some(front), Destination::Client(id)) => format!("{front}{NAME}{id}"),
            (Some(front), Destination::Room(room)) => format!("{front}{NAME}{room}"),
            (Some(front), Destination::User(user)) => format!("{front}{SHARDED_USER}{user}"),
        }
    }

    /// Returns the channel of a destination that emitters know.
    pub(super) fn classic_channel(&self, destination: &Destination) -> String {
        let prefix = &self.prefix;
        match destination {
            Destination::Client(id) => format!("{prefix}{CLIENT}{id}"),
            Destination::User(user) => format!("{prefix}{USER}{user}"),
            Destination::Room(room) => format!("{prefix}{ROOM}{room}"),
            Destination::Broadcast => format!("{prefix}{BROADCAST}"),
        }
    }

    /// Returns what a report calls a channel: that of emitters, which every instance knows.
    pub(super) fn reported(&self, channel: &str) -> String {
        match (&self.segment, self.destination(channel)) {
            (Some(_), Some(destination)) => self.classic_channel(&destination),
            _ => channel.to_owned(),
        }
    }

    /// Returns the channels that are subscribed to for an interest.
    pub(super) fn subscribed_for(&self, interest: &Interest) -> impl Iterator<Item = String> {
        let room = match interest {
            Interest::Client(id) if self.segment.is_none() => {
                Some(Destination::Room(id.as_str().into()))
            }
            _ => None,
        };
        [
            Some(self.channel(interest)),
            room.map(|room| self.channel(&room)),
        ]
        .into_iter()
        .flatten()
    }

    /// Returns the destination of a channel; `None` for any other channel. Of a segment's channel of a client it is the room of that name.
    pub(super) fn destination(&self, channel: &str) -> Option<Destination> {
        if let Some(front) = &self.segment {
            let name = channel.strip_prefix(front.as_str())?;
            let user = name.strip_prefix(SHARDED_USER);
            let room = name.strip_prefix(NAME);
            return user
                .map(|user| Destination::User(user.into()))
                .or_else(|| room.map(|room| Destination::Room(room.into())));
        }
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

    /// Returns whether messages to clients come on this channel.
    pub(super) fn is_of_messages(&self, channel: &str) -> bool {
        if self.segment.is_some() {
            return self.destination(channel).is_some();
        }
        let name = channel.strip_prefix(self.prefix.as_str());
        name.is_some_and(|name| {
            name == BROADCAST
                || [CLIENT, USER, ROOM]
                    .iter()
                    .any(|kind| name.starts_with(kind))
        })
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
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Excluded::is_empty")]
    exclude: Excluded<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bridged: Option<(u64, u64, u8)>,
}

/// The client ids of `exclude`: those of gateways, and those of other servers.
struct Excluded<'a>(&'a [Id], &'a [AnyId]);

impl Excluded<'_> {
    fn is_empty(&self) -> bool {
        self.0.is_empty() && self.1.is_empty()
    }
}

impl Serialize for Excluded<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let ours = self.0.iter().map(Id::as_str);
        serializer.collect_seq(ours.chain(self.1.iter().map(AnyId::as_str)))
    }
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
    let target = match &dispatch.destination {
        Destination::Client(id) => Some(id.as_str()),
        Destination::User(name) | Destination::Room(name) => Some(&**name),
        Destination::Broadcast => None,
    };
    let out = OutPayload {
        server_id,
        kind: dispatch.destination.kind(),
        target,
        event: &dispatch.event,
        data: dispatch.data.as_deref(),
        exclude: Excluded(&dispatch.exclude, &dispatch.exclude_foreign),
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
    #[error("its type is absent or unknown")]
    NoType,
    #[error("its target is absent, or no client or user can have that id")]
    NoTarget,
    #[error("it is longer than any message may be")]
    TooLong,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct InPayload<'a> {
    #[serde(borrow, default)]
    server_id: Option<Cow<'a, str>>,
    #[serde(borrow, default, rename = "type")]
    kind: Option<&'a RawValue>,
    #[serde(borrow, default)]
    target: Option<&'a RawValue>,
    #[serde(borrow, default)]
    event: Option<Cow<'a, str>>,
    /// `null` is data, too.
    #[serde(borrow, default, deserialize_with = "present")]
    data: Option<&'a RawValue>,
    #[serde(borrow, default)]
    exclude: Option<&'a RawValue>,
    #[serde(borrow, default)]
    bridged: Option<&'a RawValue>,
}

fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

impl InPayload<'_> {
    fn destination(&self) -> Result<Destination, Malformed> {
        let text = |raw: Option<&RawValue>| serde_json::from_str::<String>(raw?.get()).ok();
        let kind = text(self.kind).ok_or(Malformed::NoType)?;
        let target = || {
            let target = text(self.target).filter(|target| !target.is_empty());
            target.ok_or(Malformed::NoTarget)
        };
        match kind.as_str() {
            "client" => match target()?.parse() {
                Ok(id) => Ok(Destination::Client(id)),
                // The id of a client of another server, which no instance holds.
                Err(_) => Err(Malformed::NoTarget),
            },
            "user" => match target()? {
                user if is_user_id(&user) => Ok(Destination::User(user.into())),
                _ => Err(Malformed::NoTarget),
            },
            "room" => Ok(Destination::Room(target()?.into())),
            "broadcast" => Ok(Destination::Broadcast),
            _ => Err(Malformed::NoType),
        }
    }
}

/// A dispatch, the `serverId` that published it, and its numbers where it was published to two servers.
pub(super) type Decoded<'a> = (Dispatch, Cow<'a, str>, Option<Bridged>);

/// Reads a payload; `None` when this instance published it itself.
///
/// Members of `exclude` that are no client ids of a gateway are ignored, and so are all of them for a client or a user, and a `bridged` that is not three
/// numbers.
pub(super) fn decode<'a>(me: &str, payload: &'a [u8]) -> Result<Option<Decoded<'a>>, Malformed> {
    if payload.len() > MAX_PAYLOAD_BYTES {
        return Err(Malformed::TooLong);
    }
    let Object(read): Object<InPayload<'_>> =
        serde_json::from_slice(payload).map_err(|_| Malformed::NotJson)?;
    let destination = read.destination();
    let server_id = read
        .server_id
        .filter(|s| !s.is_empty())
        .ok_or(Malformed::NoServerId)?;
    let event = read.event.ok_or(Malformed::NoEvent)?;
    if server_id == me {
        return Ok(None);
    }
    let destination = destination?;
    let data = read.data.map(|data| Arc::from(data.to_owned()));
    let may_exclude = matches!(destination, Destination::Room(_) | Destination::Broadcast);
    let bridged = read
        .bridged
        .and_then(|raw| serde_json::from_str::<(u64, u64, u8)>(raw.get()).ok());
    let bridged = bridged.map(|(number, since, complete)| Bridged {
        number,
        since,
        is_complete: complete == 1,
    });
    let mut dispatch = Dispatch::new(destination, event.as_ref(), data);
    if let Some(exclude) = read
        .exclude
        .filter(|_| may_exclude)
        .and_then(|raw| serde_json::from_str::<Vec<&RawValue>>(raw.get()).ok())
    {
        let id = |member: &&RawValue| serde_json::from_str::<Cow<'_, str>>(member.get()).ok();
        dispatch.exclude = exclude
            .iter()
            .filter_map(|member| id(member)?.parse().ok())
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
        Ok(decode("me", payload.as_bytes())?.map(|(dispatch, ..)| dispatch))
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
            dispatch.exclude_foreign = Arc::from(["a-uuid".parse::<AnyId>().unwrap()]);
            let payload: serde_json::Value =
                serde_json::from_slice(&encode("s1", &dispatch, None)).unwrap();
            let mut wanted = json!({"serverId": "s1", "type": kind, "event": "hi", "data": {"n": 1.5}, "exclude": ["4bC", "a-uuid"]});
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

    #[test]
    fn a_segment_has_channels_of_its_own_and_reports_those_that_every_instance_knows() {
        let id: Id = "4bC".parse().unwrap();
        let names = Names::new("p:", "s1");
        let segment = Segment::of_name("4bC");
        let sharded = names.of_segment("s1", segment);
        let front = format!("p:signal:segment:{{{}}}:", segment.tag());
        for (destination, channel, reported) in [
            (Destination::Client(id), "name:4bC", "p:ws:room:4bC"),
            (Destination::Room("a:b".into()), "name:a:b", "p:ws:room:a:b"),
            (
                Destination::User("{x}:1".into()),
                "user:{x}:1",
                "p:ws:user:{x}:1",
            ),
        ] {
            let channel = format!("{front}{channel}");
            assert_eq!(sharded.channel(&destination), channel);
            let subscribed: Vec<String> = sharded.subscribed_for(&destination).collect();
            assert_eq!(subscribed, [&*channel]);
            assert!(sharded.is_of_messages(&channel) && !names.is_of_messages(&channel));
            assert_eq!(sharded.reported(&channel), reported);
        }
        assert_eq!(sharded.ping, format!("{front}ping:s1"));
        for foreign in [&sharded.ping, &sharded.audience, "p:ws:user:17"] {
            assert!(!sharded.is_of_messages(foreign), "{foreign}");
        }
        assert_eq!(names.reported("p:ws:user:17"), "p:ws:user:17");
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
        let (got, ..) = decode("me", &payload).unwrap().unwrap();
        assert_eq!(got.data_text(), Some(text));
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
            ("{\"serverId\":\"x\",\"event\":\"e\"}", Malformed::NoType),
            (
                "{\"serverId\":\"x\",\"event\":\"e\",\"type\":\"Room\",\"target\":\"a\"}",
                Malformed::NoType,
            ),
            (
                "{\"serverId\":\"x\",\"event\":\"e\",\"type\":\"room\"}",
                Malformed::NoTarget,
            ),
            (
                "{\"serverId\":\"x\",\"event\":\"e\",\"type\":\"client\",\"target\":\"a-uuid\"}",
                Malformed::NoTarget,
            ),
            (
                "{\"serverId\":\"x\",\"event\":\"e\",\"data\":{",
                Malformed::NotJson,
            ),
        ] {
            assert_eq!(read(payload).unwrap_err(), wanted, "{payload}");
        }
        assert_eq!(
            decode("me", b"{\"serverId\":\"\xff\",\"event\":\"e\"}").unwrap_err(),
            Malformed::NotJson
        );
    }

    /// protocol.md 10.9 and 10.10.
    #[test]
    fn absent_data_stays_absent_and_odd_members_are_ignored() {
        let got = read(
            r#"{"serverId":"emitter","event":"","type":"broadcast","target":[],"more":{},"exclude":["4bC",5,"not an id","\ud83d",1e400,null]}"#,
        );
        let got = got.unwrap().unwrap();
        assert_eq!((&*got.event, got.data_text()), ("", None));
        assert_eq!(&*got.exclude, ["4bC".parse::<Id>().unwrap()]);
        let again = encode("other", &got, None);
        assert!(!String::from_utf8(again).unwrap().contains("data"));
        let null =
            r#"{"serverId":"emitter","event":"e","type":"broadcast","data":null,"exclude":null}"#;
        assert_eq!(read(null).unwrap().unwrap().data_text(), Some("null"));
        for exclude in [r#""4bC""#, "null", "{}"] {
            let payload = format!(
                r#"{{"serverId":"emitter","event":"e","type":"broadcast","exclude":{exclude}}}"#
            );
            assert!(read(&payload).unwrap().unwrap().exclude.is_empty());
        }
    }

    /// protocol.md 10.10.
    #[test]
    fn a_client_and_a_user_exclude_nobody() {
        for (kind, excluded) in [("client", 0), ("user", 0), ("room", 1), ("broadcast", 1)] {
            let payload = format!(
                r#"{{"serverId":"emitter","event":"e","type":"{kind}","target":"17","exclude":["4bC"]}}"#
            );
            let got = read(&payload).unwrap().unwrap();
            assert_eq!(got.exclude.len(), excluded, "{kind}");
        }
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
        let (_, from, number) = decode("me", &payload).unwrap().unwrap();
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
            let payload = format!(
                "{{\"serverId\":\"x\",\"type\":\"broadcast\",\"event\":\"e\",\"bridged\":{odd}}}"
            );
            assert_eq!(
                decode("me", payload.as_bytes()).unwrap().unwrap().2,
                None,
                "{odd}"
            );
        }
    }

    /// protocol.md 10.7 and 10.13.
    #[test]
    fn type_and_target_decide_the_destination_whatever_the_channel_is() {
        for (kind, destination) in [
            ("client", Destination::Client("17".parse().unwrap())),
            ("user", Destination::User("17".into())),
            ("room", Destination::Room("17".into())),
            ("broadcast", Destination::Broadcast),
        ] {
            let payload =
                format!(r#"{{"serverId":"emitter","type":"{kind}","target":"17","event":"e"}}"#);
            assert_eq!(read(&payload).unwrap().unwrap().destination, destination);
        }
        let names = Names::new("", "i");
        for foreign in ["ws:broadcast:x", "signal:ask:i", "other"] {
            assert_eq!(names.destination(foreign), None, "{foreign}");
            assert!(!names.is_of_messages(foreign), "{foreign}");
        }
        for channel in ["ws:client:a-uuid", "ws:user:1", "ws:room:a", "ws:broadcast"] {
            assert!(names.is_of_messages(channel), "{channel}");
        }
    }
}

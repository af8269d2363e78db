//! One event for many users, as it travels between instances on `signal:audience`. No IO.
//!
//! Numbers are LEB128, and a text is its length and its bytes: the `serverId` in 32 bytes, the event, the pieces of its data, how many users, and for each of
//! them name, id, `seq`, unread count and version. Another format gets another channel: an instance that reads this one says so beside its entry among
//! the live instances.

use std::sync::Arc;

use tracing::Span;

use super::MAX_PAYLOAD_BYTES;
use crate::dispatch::{Addressee, Audience, GAPS, SharedText};
use crate::principal::is_user_id;

/// Bytes of a `serverId`.
const INSTANCE_BYTES: usize = 32;
/// Bytes of a user with a name of ten.
const USER_BYTES: usize = 30;

/// An audience that another instance published. It is read where it is handed on.
pub struct EncodedAudience(Box<[u8]>);

impl std::fmt::Debug for EncodedAudience {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "EncodedAudience({} bytes)", self.0.len())
    }
}

impl EncodedAudience {
    /// Keeps a payload.
    pub(in crate::bus) fn new(payload: &[u8]) -> Self {
        Self(payload.into())
    }

    /// Reads it; `None` where it is malformed.
    pub fn read(&self) -> Option<Audience<'_>> {
        let mut rest = Reader(self.0.get(INSTANCE_BYTES..)?);
        let event = Arc::from(rest.text()?);
        let pieces = [rest.text()?, rest.text()?, rest.text()?].map(Box::from);
        let addressees = rest.addressees()?;
        let audience = Audience {
            text: Arc::new(SharedText { event, pieces }),
            addressees,
            span: Span::none(),
        };
        // Where the first is JSON, so are the others, which differ in a name and a few numbers.
        let first = Audience {
            addressees: audience.addressees.first().copied().into_iter().collect(),
            ..audience.clone()
        };
        first.dispatches().next().map(|_| audience)
    }
}

/// Returns the payload of an audience.
pub(in crate::bus) fn encode_audience(instance: &str, audience: &Audience<'_>) -> Vec<u8> {
    let text = &audience.text;
    let room = 64 + text.bytes() + audience.addressees.len() * USER_BYTES;
    let mut out = Vec::with_capacity(room);
    out.extend_from_slice(instance.as_bytes());
    debug_assert_eq!(out.len(), INSTANCE_BYTES);
    put_text(&text.event, &mut out);
    text.pieces
        .iter()
        .for_each(|piece| put_text(piece, &mut out));
    put_number(audience.addressees.len() as u64, &mut out);
    for one in &audience.addressees {
        put_text(one.user, &mut out);
        put_text(one.id.as_str(), &mut out);
        for number in [one.seq, one.unread_count, one.version] {
            put_number(number as u64, &mut out);
        }
    }
    out
}

/// Returns the `serverId` that published a payload; `None` for one that no instance can have published.
pub(in crate::bus) fn publisher_of_audience(payload: &[u8]) -> Option<&str> {
    let instance = payload.get(..INSTANCE_BYTES)?;
    std::str::from_utf8(instance)
        .ok()
        .filter(|_| payload.len() <= MAX_PAYLOAD_BYTES)
}

/// Returns the name of each user of a payload.
pub(in crate::bus) fn users_of_audience(payload: &[u8]) -> impl Iterator<Item = &str> {
    let mut rest = Reader(payload.get(INSTANCE_BYTES..).unwrap_or_default());
    for _ in 0..=GAPS {
        rest.text();
    }
    let addressees = rest.addressees().into_iter().flatten();
    addressees.map(|addressee| addressee.user)
}

fn put_number(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn put_text(text: &str, out: &mut Vec<u8>) {
    put_number(text.len() as u64, out);
    out.extend_from_slice(text.as_bytes());
}

/// What has yet to be read.
struct Reader<'p>(&'p [u8]);

impl<'p> Reader<'p> {
    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            let bits = u64::from(byte & 0x7F);
            if bits << shift >> shift != bits {
                return None;
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    /// A number that is not negative.
    fn count(&mut self) -> Option<i64> {
        self.number()?.try_into().ok()
    }

    fn text(&mut self) -> Option<&'p str> {
        let length = usize::try_from(self.number()?).ok()?;
        let (text, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        std::str::from_utf8(text).ok()
    }

    fn addressees(&mut self) -> Option<Vec<Addressee<'p>>> {
        let count = usize::try_from(self.number()?).ok()?;
        // Each has seven bytes at least.
        if count > self.0.len() / 7 {
            return None;
        }
        let mut all = Vec::with_capacity(count);
        for _ in 0..count {
            all.push(Addressee {
                user: self.text().filter(|user| is_user_id(user))?,
                id: self.text()?.parse().ok()?,
                seq: self.count()?,
                unread_count: self.count()?,
                version: self.count()?,
            });
        }
        self.0.is_empty().then_some(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INSTANCE: &str = "0123456789abcdef0123456789abcdef";

    fn audience() -> Audience<'static> {
        let addressee = |user, seq| Addressee {
            user,
            id: "4bC".parse().unwrap(),
            seq,
            unread_count: 300,
            version: i64::MAX,
        };
        Audience {
            text: Arc::new(SharedText {
                event: "notification:created".into(),
                pieces: [
                    r#"{"notification":{"id":"#.into(),
                    r#","title":"Chào","recipientId":"#.into(),
                    r#","locale":"vi"},"previousSeq":"#.into(),
                ],
            }),
            addressees: vec![addressee("17", 1), addressee("a user \u{1F600}", 1 << 40)],
            span: Span::none(),
        }
    }

    /// protocol.md 10.16.
    #[test]
    fn what_was_written_is_read() {
        let (audience, payload) = (audience(), encode_audience(INSTANCE, &audience()));
        assert_eq!(publisher_of_audience(&payload), Some(INSTANCE));
        let encoded = EncodedAudience::new(&payload);
        let read = encoded.read().unwrap();
        assert_eq!(
            (&read.text, &read.addressees),
            (&audience.text, &audience.addressees)
        );
        let users: Vec<&str> = users_of_audience(&payload).collect();
        assert_eq!(users, ["17", "a user \u{1F600}"]);
    }

    #[test]
    fn the_text_is_there_once_and_a_user_adds_little() {
        let mut many = audience();
        let one = many.addressees[0];
        many.addressees = vec![one; 1000];
        let text = many.text.bytes();
        let length = encode_audience(INSTANCE, &many).len();
        assert!(length < text + 60 + 1000 * 20, "{length}");
    }

    #[test]
    fn what_is_cut_off_or_changed_is_refused_and_never_panics() {
        let payload = encode_audience(INSTANCE, &audience());
        for length in 0..payload.len() {
            let encoded = EncodedAudience::new(&payload[..length]);
            assert!(encoded.read().is_none(), "{length} bytes");
            users_of_audience(&payload[..length]).for_each(drop);
        }
        for at in INSTANCE_BYTES..payload.len() {
            for byte in [0, 0x22, 0x5C, 0x7F, 0xFF] {
                let mut changed = payload.clone();
                changed[at] = byte;
                let encoded = EncodedAudience::new(&changed);
                if let Some(read) = encoded.read() {
                    read.dispatches().for_each(drop);
                }
            }
        }
        let mut many = payload[..INSTANCE_BYTES].to_vec();
        (0..=GAPS).for_each(|_| put_text("", &mut many));
        put_number(u64::MAX, &mut many);
        assert!(EncodedAudience::new(&many).read().is_none());
        assert_eq!(publisher_of_audience(b"short"), None);
    }
}

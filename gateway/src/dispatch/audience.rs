//! One event for many users, of which most is the same for all of them.
//!
//! The JSON of its data is cut where something is the user's own: the identity and place of a notification, whose inbox it is in, and the counts there. The
//! pieces between are encoded once, by [`crate::protocol::shared::created_text`]; what is a user's own is written between them.

use std::sync::Arc;

use serde_json::value::RawValue;
use tracing::Span;

use super::{Destination, Dispatch};
use crate::id::Id;

/// How often the data is cut.
pub const GAPS: usize = 3;
/// More than an [`Addressee`] writes besides its name: an id, four numbers and the names of their members.
const OWN_BYTES: usize = 200;

/// What an event has in common for all whom it is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedText {
    /// The envelope's event.
    pub event: Arc<str>,
    /// The JSON of its data; behind each piece comes what is a user's own.
    pub pieces: [Box<str>; GAPS],
}

impl SharedText {
    /// Returns how many bytes it has.
    pub fn bytes(&self) -> usize {
        self.event.len() + self.pieces.iter().map(|piece| piece.len()).sum::<usize>()
    }
}

/// One of those whom an event is for, and what is its own: all that differs from one to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addressee<'a> {
    /// The user.
    pub user: &'a str,
    /// The notification's id.
    pub id: Id,
    /// Its place in the inbox.
    pub seq: i64,
    /// How many notifications are unread there.
    pub unread_count: i64,
    /// The version of the inbox.
    pub version: i64,
}

impl Addressee<'_> {
    /// Writes what comes behind the piece of this number.
    pub fn write(&self, gap: usize, out: &mut Vec<u8>) {
        match gap {
            0 => {
                out.push(b'"');
                out.extend_from_slice(self.id.as_str().as_bytes());
                out.extend_from_slice(b"\",\"seq\":");
                number(self.seq, out);
            }
            1 => serde_json::to_writer(out, self.user).expect("a Vec takes every write"),
            _ => {
                // Numbers of an inbox are given one after the other.
                number(self.seq - 1, out);
                out.extend_from_slice(b",\"unreadCount\":");
                number(self.unread_count, out);
                out.extend_from_slice(b",\"version\":");
                number(self.version, out);
                out.push(b'}');
            }
        }
    }
}

fn number(number: i64, out: &mut Vec<u8>) {
    serde_json::to_writer(out, &number).expect("a Vec takes every write");
}

/// One event on its way to many users, in their order. None of them is there twice.
#[derive(Debug, Clone)]
pub struct Audience<'a> {
    /// What all of them get.
    pub text: Arc<SharedText>,
    /// Who they are.
    pub addressees: Vec<Addressee<'a>>,
    /// As [`Dispatch::span`].
    pub span: Span,
}

impl Audience<'_> {
    /// Returns how many bytes its longest message has at most, counted as the JSON of the envelope.
    pub fn longest(&self) -> usize {
        let names = self.addressees.iter().map(|one| one.user.len());
        // Each byte of a name may need an escape of six.
        self.text.bytes() + OWN_BYTES + 6 * names.max().unwrap_or(0)
    }

    /// Returns it as messages to one user each, for whoever knows no others. One that is no JSON, which no gateway makes, is left out.
    pub fn dispatches(&self) -> impl Iterator<Item = Dispatch> {
        self.addressees.iter().filter_map(|addressee| {
            Some(Dispatch {
                span: self.span.clone(),
                ..Dispatch::new(
                    Destination::User(addressee.user.into()),
                    Arc::clone(&self.text.event),
                    self.data_of(addressee)?,
                )
            })
        })
    }

    fn data_of(&self, addressee: &Addressee<'_>) -> Option<Arc<RawValue>> {
        let mut data = Vec::with_capacity(self.text.bytes() + OWN_BYTES);
        for (gap, piece) in self.text.pieces.iter().enumerate() {
            data.extend_from_slice(piece.as_bytes());
            addressee.write(gap, &mut data);
        }
        let data = String::from_utf8(data).expect("pieces and names are text");
        RawValue::from_string(data).ok().map(Arc::from)
    }
}

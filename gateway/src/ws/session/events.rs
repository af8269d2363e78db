//! What a session does with the text messages of its client (protocol.md, sections 2 and 3).

use std::borrow::Cow;
use std::time::Instant;

use serde_json::value::RawValue;

use super::{Action, Actions, Rules, Session, State};
use crate::config::ClientFrames;
use crate::id::Id;
use crate::inbox::NotificationSelector;
use crate::protocol::Envelope;
use crate::protocol::bounds::{MAX_READ_IDS, MAX_SYNC};
use crate::protocol::close::Close;
use crate::protocol::envelope::NotAnEnvelope;
use crate::protocol::event::{self, message, name};
use crate::protocol::room::{Asked, Join, Rooms};
use crate::protocol::whole::Whole;

impl Session {
    pub(super) fn text(
        &mut self,
        id: Id,
        now: Instant,
        rules: &Rules,
        text: &str,
        actions: &mut Actions,
    ) {
        match Envelope::parse(text) {
            Ok(envelope) => self.envelope(id, now, rules, &envelope, actions),
            Err(NotAnEnvelope::NotJson) => {
                actions.push(Action::Send(event::error(message::INVALID_FORMAT)))
            }
            Err(NotAnEnvelope::NoEvent) => {
                tracing::debug!(client.id = %id, "message without an event dropped")
            }
        }
    }

    fn envelope(
        &mut self,
        id: Id,
        now: Instant,
        rules: &Rules,
        envelope: &Envelope<'_>,
        actions: &mut Actions,
    ) {
        let event = &*envelope.event;
        match &self.state {
            State::Encrypted(_, cipher) if event == name::ENCRYPTED => {
                let cipher = cipher.clone();
                let opened = envelope
                    .read()
                    .ok()
                    .and_then(|sealed| cipher.open(&sealed).ok());
                match opened.as_deref().map(Envelope::parse) {
                    Some(Ok(inner)) if inner.event != name::ENCRYPTED => {
                        Self::event(id, &inner, actions)
                    }
                    Some(Err(NotAnEnvelope::NotJson)) => {
                        actions.push(Action::Send(event::error(message::INVALID_FORMAT)))
                    }
                    Some(_) => {
                        tracing::debug!(client.id = %id, "encrypted message without an event dropped")
                    }
                    None => actions.push(Action::Send(event::error(message::DECRYPTION_FAILED))),
                }
            }
            State::Encrypted(..)
                if rules.encryption.client_frames == ClientFrames::Encrypted
                    && event != name::HEARTBEAT =>
            {
                actions.push(Action::Send(event::error(message::ENCRYPTION_REQUIRED)));
            }
            State::Authenticated(_) | State::Encrypted(..) => Self::event(id, envelope, actions),
            State::Connecting { .. } if event == name::AUTHENTICATE => {
                self.authenticate(now, rules, envelope, actions)
            }
            State::Verifying { .. } | State::Admitting(_) if event == name::AUTHENTICATE => {
                actions.push(Action::Send(event::error(message::ALREADY_AUTHENTICATED)));
            }
            _ if event == name::HEARTBEAT => {}
            _ => actions.push(Action::Send(event::error(message::NOT_AUTHENTICATED))),
        }
    }

    fn authenticate(
        &mut self,
        now: Instant,
        rules: &Rules,
        envelope: &Envelope<'_>,
        actions: &mut Actions,
    ) {
        let given = envelope.read::<event::Authenticate<'_>>().ok();
        match given.as_ref().and_then(|a| Some((a, a.bearer()?))) {
            Some((given, token)) => {
                self.state = State::Verifying {
                    until: (now + rules.finish_timeout).into(),
                };
                actions.push(Action::Verify {
                    token: token.to_owned(),
                    key: given.key(),
                });
            }
            None => self.refuse(
                message::AUTHENTICATION_FAILED,
                Close::AuthenticationFailed,
                actions,
            ),
        }
    }

    fn rooms(id: Id, envelope: &Envelope<'_>, actions: &mut Actions) {
        let joins = envelope.event == name::JOIN;
        let mark = envelope.mark().filter(|_| joins);
        let Some(Asked { names, more }) = Rooms::read(envelope) else {
            if mark.is_some() {
                let invalid = event::error_about(mark.as_deref(), message::INVALID_DATA);
                actions.push(Action::Send(invalid));
            }
            return tracing::debug!(client.id = %id, "join or leave without a list of rooms dropped");
        };
        if more {
            actions.push(Action::Send(event::error(message::TOO_MANY_ROOMS)));
        }
        if joins && (mark.is_some() || !names.is_empty()) {
            actions.push(Action::Join(Join { rooms: names, mark }));
        } else if !names.is_empty() {
            actions.push(Action::Leave(names));
        }
    }

    fn event(id: Id, envelope: &Envelope<'_>, actions: &mut Actions) {
        let invalid = || Action::Send(event::error(message::INVALID_DATA));
        match &*envelope.event {
            name::HEARTBEAT => {}
            name::AUTHENTICATE => {
                actions.push(Action::Send(event::error(message::ALREADY_AUTHENTICATED)))
            }
            name::JOIN | name::LEAVE => Self::rooms(id, envelope, actions),
            name::REFRESH => {
                let given = envelope.read::<event::Authenticate<'_>>().ok();
                match given.as_ref().and_then(event::Authenticate::bearer) {
                    Some(token) => actions.push(Action::Refresh(token.to_owned())),
                    None => actions.push(invalid()),
                }
            }
            name::NOTIFICATION_READ => match envelope.read::<event::MarkRead<'_>>() {
                Ok(event::MarkRead {
                    ids: Some(ids),
                    up_to: None,
                }) if ids.len() <= MAX_READ_IDS
                    && ids.iter().all(|id| id.get().starts_with('"')) =>
                {
                    // Text that is not an id is ignored, as every id that is not the caller's (protocol.md 9.6).
                    let id = |raw: &&RawValue| serde_json::from_str::<Cow<'_, str>>(raw.get()).ok();
                    actions.push(Action::MarkRead(NotificationSelector::Ids(
                        ids.iter().filter_map(|raw| id(raw)?.parse().ok()).collect(),
                    )));
                }
                Ok(event::MarkRead {
                    ids: None,
                    up_to: Some(Whole(seq @ 0..)),
                }) => actions.push(Action::MarkRead(NotificationSelector::UpTo(seq))),
                _ => actions.push(invalid()),
            },
            name::NOTIFICATION_SYNC => match envelope.read::<event::Sync>() {
                Ok(event::Sync {
                    after: Whole(after @ 0..),
                    limit,
                }) => {
                    let limit = limit.map_or(Ok(MAX_SYNC), |Whole(limit)| u32::try_from(limit));
                    match limit {
                        Ok(limit @ 1..=MAX_SYNC) => actions.push(Action::Sync { after, limit }),
                        _ => actions.push(invalid()),
                    }
                }
                _ => actions.push(invalid()),
            },
            // Every other name belongs to the application (protocol.md 2.8).
            other => {
                tracing::trace!(client.id = %id, event = other, "event of the application ignored")
            }
        }
    }
}

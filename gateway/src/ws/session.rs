//! The state machine of one connection, without IO: CONNECTING -> AUTHENTICATED -> ENCRYPTED -> CLOSED.
//!
//! Input: what the socket said, verdicts, the clock. Output: [`Action`]s, which [`super::connection`] performs in order. The cipher lives in the
//! state that may use it; leaving the state drops it, and with it the key.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use smallvec::SmallVec;

use crate::config::{ClientFrames, Encryption, EncryptionMode};
use crate::hub::Stage;
use crate::id::Id;
use crate::inbox::NotificationSelector;
use crate::principal::Principal;
use crate::protocol::bounds::{MAX_READ_IDS, MAX_SYNC};
use crate::protocol::cipher::{Cipher, Handshake, UnusableKey};
use crate::protocol::close::Close;
use crate::protocol::envelope::NotAnEnvelope;
use crate::protocol::event::{self, message, name};
use crate::protocol::room::Rooms;
use crate::protocol::{Envelope, Message};

/// What every session of the gateway goes by.
#[derive(Debug, Clone)]
pub struct Rules {
    /// From connecting to `authenticate`.
    pub authenticate_timeout: Duration,
    /// From `authenticate` to `connected`.
    pub verify_timeout: Duration,
    /// Silence that ends an authenticated connection.
    pub heartbeat_timeout: Duration,
    /// How often silence is looked for.
    pub sweep_interval: Duration,
    /// How often the server pings, if at all.
    pub ping_interval: Option<Duration>,
    /// How long before a token's end `expiring` is sent.
    pub expiring_lead: Duration,
    /// Whether and how frames are sealed.
    pub encryption: Encryption,
}

impl Rules {
    /// The first of the sweeps from `now` on that could find a connection silent for too long which is silent for `silent` now.
    fn sweep_after(&self, now: Instant, silent: Duration) -> Instant {
        let left = self.heartbeat_timeout.saturating_sub(silent);
        let sweeps = left
            .as_nanos()
            .div_ceil(self.sweep_interval.as_nanos().max(1))
            .max(1);
        now + self.sweep_interval * u32::try_from(sweeps).unwrap_or(u32::MAX)
    }
}

/// The client's key as `authenticate` gave it: absent, present but no text, or text.
pub type GivenKey = Option<Option<String>>;

/// What verification came to.
#[derive(Debug)]
pub enum Verdict {
    /// The token is good.
    Accepted {
        /// Who it speaks for.
        principal: Arc<Principal>,
        /// What came of the client's key; `None` without one, or where encryption is disabled.
        handshake: Option<Result<Handshake, UnusableKey>>,
        /// How far clocks may differ.
        leeway: Duration,
    },
    /// The token is refused.
    Refused,
    /// It could not be verified.
    Broken,
}

impl std::fmt::Debug for Handshake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Handshake")
    }
}

/// What happened.
#[derive(Debug)]
pub enum Input<'i> {
    /// A text message.
    Text(&'i str),
    /// Any sign of life that is no message: a pong, a ping.
    Alive,
    /// The answer to [`Action::Verify`].
    Verdict(Verdict),
    /// The answer to [`Action::Admit`]: the bus hears for this connection, or cannot.
    Heard,
    /// The answer to [`Action::Refresh`].
    Refreshed(Verdict),
    /// The source or the key that the token rests on is gone: it is announced to end, and another one may be given until then.
    Fallen,
    /// A deadline may have passed.
    Tick,
}

/// What is to be done, in order.
#[derive(Debug)]
pub enum Action {
    /// Send, sealed where the session is encrypted.
    Send(Message),
    /// Send in the clear.
    SendClear(Message),
    /// Send a ping.
    Ping,
    /// Verify a token and, if there is a key, agree on one.
    Verify {
        /// The JWT.
        token: String,
        /// The client's key.
        key: GivenKey,
    },
    /// Enter the connection into the hub and have the bus hear for it; hold back what is delivered until `connected` is sent.
    Admit,
    /// `connected` has been sent: let go what was held back.
    Release,
    /// Ask which of these rooms may be joined, and join them.
    Join(Vec<String>),
    /// Leave those of these rooms that were joined.
    Leave(Vec<String>),
    /// Verify another token of the same subject.
    Refresh(String),
    /// Mark notifications as read.
    MarkRead(NotificationSelector),
    /// Send what was missed.
    Sync {
        /// After this `seq`.
        after: i64,
        /// At most so many.
        limit: u32,
    },
    /// Close; nothing is delivered any more.
    Close(Close),
}

/// Actions of one input: nearly always two at most.
pub type Actions = SmallVec<[Action; 2]>;

/// An authenticated person's side of a session.
#[derive(Debug)]
pub struct Member {
    principal: Arc<Principal>,
    /// What `expiring` says: the token's end, or an earlier one.
    expires_at: Option<DateTime<Utc>>,
    /// When `expiring` is due; `None` once sent, or for a token that never ends.
    warn_at: Option<Instant>,
    /// When the connection ends with the token.
    ends_at: Option<Instant>,
}

#[derive(Debug)]
enum State {
    Connecting {
        until: Instant,
    },
    Verifying {
        until: Instant,
    },
    Admitting {
        until: Instant,
        member: Box<Member>,
        handshake: Option<Box<Handshake>>,
    },
    Authenticated(Box<Member>),
    Encrypted(Box<Member>, Rc<Cipher>),
    Closed,
}

/// One connection's state machine.
#[derive(Debug)]
pub struct Session {
    id: Id,
    state: State,
    last_frame: Instant,
    next_sweep: Instant,
    next_ping: Option<Instant>,
}

impl Session {
    /// A connection that was just accepted. `spread` between 0 and 1 moves its first ping, so that connections that came together do not ping together.
    pub fn new(id: Id, now: Instant, rules: &Rules, spread: f32) -> Self {
        Self {
            id,
            state: State::Connecting {
                until: now + rules.authenticate_timeout,
            },
            last_frame: now,
            next_sweep: rules.sweep_after(now, Duration::ZERO),
            next_ping: rules
                .ping_interval
                .map(|every| now + every.mul_f32(0.5 + spread.clamp(0.0, 1.0) / 2.0)),
        }
    }

    /// The client id.
    pub fn id(&self) -> Id {
        self.id
    }

    /// Who it speaks for, from [`Action::Admit`] on.
    pub fn principal(&self) -> Option<&Arc<Principal>> {
        self.member().map(|m| &m.principal)
    }

    fn member(&self) -> Option<&Member> {
        match &self.state {
            State::Admitting { member, .. }
            | State::Authenticated(member)
            | State::Encrypted(member, _) => Some(member),
            State::Connecting { .. } | State::Verifying { .. } | State::Closed => None,
        }
    }

    /// What seals this connection's frames, once it is encrypted.
    pub fn cipher(&self) -> Option<&Rc<Cipher>> {
        match &self.state {
            State::Encrypted(_, cipher) => Some(cipher),
            _ => None,
        }
    }

    /// Whether an admitted connection is, or will be, encrypted.
    pub fn will_encrypt(&self) -> bool {
        matches!(
            self.state,
            State::Encrypted(..)
                | State::Admitting {
                    handshake: Some(_),
                    ..
                }
        )
    }

    /// Whether `connected` has been sent and the session goes on.
    pub fn is_authenticated(&self) -> bool {
        matches!(self.state, State::Authenticated(_) | State::Encrypted(..))
    }

    /// Whether the session is over.
    pub fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    /// How far it is, as lists of connections show it.
    pub fn stage(&self) -> Stage {
        match self.state {
            State::Connecting { .. } => Stage::Connecting,
            State::Verifying { .. } | State::Admitting { .. } => Stage::Authenticating,
            State::Authenticated(_) => Stage::Authenticated,
            State::Encrypted(..) => Stage::Encrypted,
            State::Closed => Stage::Closed,
        }
    }

    /// When the last frame came.
    pub fn last_frame(&self) -> Instant {
        self.last_frame
    }

    /// Ends the session from outside: drain, administrator, revocation, a slow reader.
    pub fn end(&mut self) {
        self.state = State::Closed;
    }

    /// When [`Input::Tick`] is due next; never, once closed.
    pub fn next_deadline(&self) -> Option<Instant> {
        let own = match &self.state {
            State::Connecting { until }
            | State::Verifying { until }
            | State::Admitting { until, .. } => Some(*until),
            State::Authenticated(member) | State::Encrypted(member, _) => {
                [Some(self.next_sweep), member.warn_at, member.ends_at]
                    .into_iter()
                    .flatten()
                    .min()
            }
            State::Closed => return None,
        };
        [own, self.next_ping].into_iter().flatten().min()
    }

    /// Takes one step.
    pub fn on(
        &mut self,
        now: Instant,
        wall: DateTime<Utc>,
        rules: &Rules,
        input: Input<'_>,
    ) -> Actions {
        let mut actions = Actions::new();
        if self.is_closed() {
            return actions;
        }
        match input {
            Input::Text(text) => {
                self.last_frame = now;
                self.text(now, rules, text, &mut actions);
            }
            Input::Alive => self.last_frame = now,
            Input::Verdict(verdict) => self.verdict(now, wall, rules, verdict, &mut actions),
            Input::Heard => self.heard(wall, &mut actions),
            Input::Refreshed(verdict) => self.refreshed(now, wall, rules, verdict, &mut actions),
            Input::Fallen => self.fallen(now, wall, rules, &mut actions),
            Input::Tick => self.tick(now, wall, rules, &mut actions),
        }
        actions
    }

    fn close(&mut self, close: Close, actions: &mut Actions) {
        self.state = State::Closed;
        actions.push(Action::Close(close));
    }

    fn text(&mut self, now: Instant, rules: &Rules, text: &str, actions: &mut Actions) {
        match Envelope::parse(text) {
            Ok(envelope) => self.envelope(now, rules, &envelope, actions),
            Err(NotAnEnvelope::NotJson) => {
                actions.push(Action::Send(event::error(message::INVALID_FORMAT)))
            }
            Err(NotAnEnvelope::NoEvent) => {
                tracing::debug!(client.id = %self.id, "dropped a message without an event")
            }
        }
    }

    fn envelope(
        &mut self,
        now: Instant,
        rules: &Rules,
        envelope: &Envelope<'_>,
        actions: &mut Actions,
    ) {
        let event = &*envelope.event;
        match &self.state {
            State::Encrypted(_, cipher) if event == name::ENCRYPTED => {
                let cipher = Rc::clone(cipher);
                let opened = envelope
                    .read()
                    .ok()
                    .and_then(|sealed| cipher.open(&sealed).ok());
                match opened.as_deref().map(Envelope::parse) {
                    Some(Ok(inner)) if inner.event != name::ENCRYPTED => {
                        self.event(&inner, actions)
                    }
                    Some(Err(NotAnEnvelope::NotJson)) => {
                        actions.push(Action::Send(event::error(message::INVALID_FORMAT)))
                    }
                    Some(_) => {
                        tracing::debug!(client.id = %self.id, "dropped a sealed message without an event")
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
            State::Authenticated(_) | State::Encrypted(..) => self.event(envelope, actions),
            State::Connecting { .. } if event == name::AUTHENTICATE => {
                self.authenticate(now, rules, envelope, actions)
            }
            State::Verifying { .. } | State::Admitting { .. } if event == name::AUTHENTICATE => {
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
        let token = given.as_ref().and_then(|a| {
            (a.kind.as_deref() == Some("Bearer")).then(|| a.token.as_deref().unwrap_or_default())
        });
        match (given.as_ref(), token) {
            (Some(given), Some(token)) if !token.is_empty() => {
                self.state = State::Verifying {
                    until: now + rules.verify_timeout,
                };
                actions.push(Action::Verify {
                    token: token.to_owned(),
                    key: given.key(),
                });
            }
            _ => self.refuse(
                message::AUTHENTICATION_FAILED,
                Close::AuthenticationFailed,
                actions,
            ),
        }
    }

    /// The clear `error` that comes before the Close frame.
    fn refuse(&mut self, text: &str, close: Close, actions: &mut Actions) {
        actions.push(Action::SendClear(event::error(text)));
        self.close(close, actions);
    }

    fn verdict(
        &mut self,
        now: Instant,
        wall: DateTime<Utc>,
        rules: &Rules,
        verdict: Verdict,
        actions: &mut Actions,
    ) {
        let State::Verifying { until } = self.state else {
            return;
        };
        let (principal, handshake, leeway) = match verdict {
            Verdict::Accepted {
                principal,
                handshake,
                leeway,
            } => (principal, handshake, leeway),
            Verdict::Refused => {
                return self.refuse(
                    message::AUTHENTICATION_FAILED,
                    Close::AuthenticationFailed,
                    actions,
                );
            }
            Verdict::Broken => {
                return self.refuse(
                    message::AUTHENTICATION_ERROR,
                    Close::AuthenticationFailed,
                    actions,
                );
            }
        };
        let handshake = match (rules.encryption.mode, handshake) {
            (EncryptionMode::Disabled, _) | (EncryptionMode::Optional, None) => None,
            (EncryptionMode::Optional | EncryptionMode::Required, Some(Ok(handshake))) => {
                Some(Box::new(handshake))
            }
            (EncryptionMode::Optional, Some(Err(UnusableKey))) | (EncryptionMode::Required, _) => {
                return self.refuse(
                    message::HANDSHAKE_FAILED,
                    Close::EncryptionRequired,
                    actions,
                );
            }
        };
        let member = Box::new(Member::new(principal, now, wall, rules, leeway));
        self.state = State::Admitting {
            until,
            member,
            handshake,
        };
        actions.push(Action::Admit);
    }

    fn heard(&mut self, wall: DateTime<Utc>, actions: &mut Actions) {
        if !matches!(self.state, State::Admitting { .. }) {
            return;
        }
        let State::Admitting {
            member, handshake, ..
        } = std::mem::replace(&mut self.state, State::Closed)
        else {
            return;
        };
        let keys = handshake
            .as_ref()
            .map(|h| (h.public_key.as_str(), h.salt.as_str()));
        actions.push(Action::SendClear(event::connected(
            self.id,
            &member.principal.subject,
            wall,
            keys,
        )));
        self.state = match handshake {
            Some(handshake) => State::Encrypted(member, Rc::new(handshake.cipher)),
            None => State::Authenticated(member),
        };
        actions.push(Action::Release);
    }

    fn event(&self, envelope: &Envelope<'_>, actions: &mut Actions) {
        let invalid = || Action::Send(event::error(message::INVALID_DATA));
        match &*envelope.event {
            name::HEARTBEAT => {}
            name::AUTHENTICATE => {
                actions.push(Action::Send(event::error(message::ALREADY_AUTHENTICATED)))
            }
            name::JOIN | name::LEAVE => {
                let Ok(rooms) = envelope.read::<Rooms>() else {
                    return actions.push(invalid());
                };
                let names = rooms.names();
                if !names.is_empty() {
                    actions.push(if envelope.event == name::JOIN {
                        Action::Join(names)
                    } else {
                        Action::Leave(names)
                    });
                }
            }
            name::REFRESH => {
                let given = envelope.read::<event::Authenticate<'_>>().ok();
                match given.and_then(|g| {
                    if g.kind.as_deref() == Some("Bearer") {
                        g.token
                    } else {
                        None
                    }
                }) {
                    Some(token) if !token.is_empty() => {
                        actions.push(Action::Refresh(token.into_owned()))
                    }
                    _ => actions.push(invalid()),
                }
            }
            name::NOTIFICATION_READ => match envelope.read::<event::MarkRead>() {
                Ok(event::MarkRead {
                    ids: Some(ids),
                    up_to: None,
                }) if ids.len() <= MAX_READ_IDS => {
                    // What is no id is nobody's, and so ignored like every id that is not the caller's.
                    actions.push(Action::MarkRead(NotificationSelector::Ids(
                        ids.iter().filter_map(|id| id.parse().ok()).collect(),
                    )));
                }
                Ok(event::MarkRead {
                    ids: None,
                    up_to: Some(seq),
                }) => actions.push(Action::MarkRead(NotificationSelector::UpTo(seq))),
                _ => actions.push(invalid()),
            },
            name::NOTIFICATION_SYNC => match envelope.read::<event::Sync>() {
                Ok(event::Sync { after, limit })
                    if after >= 0 && limit.is_none_or(|limit| (1..=MAX_SYNC).contains(&limit)) =>
                {
                    actions.push(Action::Sync {
                        after,
                        limit: limit.unwrap_or(MAX_SYNC),
                    });
                }
                _ => actions.push(invalid()),
            },
            // Every other name belongs to the application, and none listens here.
            other => tracing::trace!(client.id = %self.id, event = other, "no listener"),
        }
    }

    fn refreshed(
        &mut self,
        now: Instant,
        wall: DateTime<Utc>,
        rules: &Rules,
        verdict: Verdict,
        actions: &mut Actions,
    ) {
        let (State::Authenticated(member) | State::Encrypted(member, _)) = &mut self.state else {
            return;
        };
        match verdict {
            Verdict::Accepted {
                principal, leeway, ..
            } if principal.subject == member.principal.subject => {
                let expires_at = principal.token().and_then(|t| t.expires_at);
                **member = Member::new(principal, now, wall, rules, leeway);
                actions.push(Action::Send(event::refreshed(expires_at)));
            }
            Verdict::Broken => {
                actions.push(Action::Send(event::error(message::AUTHENTICATION_ERROR)))
            }
            Verdict::Accepted { .. } | Verdict::Refused => {
                actions.push(Action::Send(event::error(message::REFRESH_REFUSED)));
            }
        }
    }

    fn fallen(&mut self, now: Instant, wall: DateTime<Utc>, rules: &Rules, actions: &mut Actions) {
        let (State::Admitting { member, .. }
        | State::Authenticated(member)
        | State::Encrypted(member, _)) = &mut self.state
        else {
            return;
        };
        let ends_at = now + rules.expiring_lead;
        if member.ends_at.is_none_or(|at| at > ends_at) {
            member.ends_at = Some(ends_at);
            member.warn_at = Some(now);
            member.expires_at = Some(wall + rules.expiring_lead);
            // Before `connected` it is not said yet: the next look at the deadlines says it.
            self.tick(now, wall, rules, actions);
        }
    }

    fn tick(&mut self, now: Instant, wall: DateTime<Utc>, rules: &Rules, actions: &mut Actions) {
        match &mut self.state {
            State::Connecting { until }
            | State::Verifying { until }
            | State::Admitting { until, .. } => {
                if now >= *until {
                    return self.close(Close::AuthenticationTimeout, actions);
                }
            }
            State::Authenticated(member) | State::Encrypted(member, _) => {
                if member.ends_at.is_some_and(|at| now >= at) {
                    return self.close(Close::TokenExpired, actions);
                }
                if now >= self.next_sweep {
                    let silent = now.duration_since(self.last_frame);
                    if silent >= rules.heartbeat_timeout {
                        return self.close(Close::HeartbeatTimeout, actions);
                    }
                    self.next_sweep = rules.sweep_after(now, silent);
                }
                if member.warn_at.is_some_and(|at| now >= at) {
                    member.warn_at = None;
                    if let Some(at) = member.expires_at {
                        let left = (at - wall).num_milliseconds().max(0);
                        actions.push(Action::Send(event::expiring(at, (left + 500) / 1000)));
                    }
                }
            }
            State::Closed => return,
        }
        if let (Some(at), Some(every)) = (self.next_ping, rules.ping_interval)
            && now >= at
        {
            self.next_ping = Some(now + every);
            actions.push(Action::Ping);
        }
    }
}

impl Member {
    fn new(
        principal: Arc<Principal>,
        now: Instant,
        wall: DateTime<Utc>,
        rules: &Rules,
        leeway: Duration,
    ) -> Self {
        let expires_at = principal.token().and_then(|t| t.expires_at);
        let left = expires_at.map(|at| (at - wall).to_std().unwrap_or_default());
        // A token that outlives every clock's range never ends here.
        let ends_at = left.and_then(|left| now.checked_add(left)?.checked_add(leeway));
        let warn_at =
            left.and_then(|left| now.checked_add(left.saturating_sub(rules.expiring_lead)));
        Self {
            principal,
            expires_at,
            warn_at,
            ends_at,
        }
    }
}

#[cfg(test)]
mod tests;

//! The state machine of one connection, without IO: CONNECTING -> AUTHENTICATED -> ENCRYPTED -> CLOSED.
//!
//! Input: messages of the client, outcomes of authentications, the clock. Output: [`Action`]s, which [`super::connection`] performs in order. Only the
//! encrypted state owns the cipher; leaving the state drops it, and wipes the key.

mod events;
mod input;

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};

use crate::clock::Moment;
use crate::config::EncryptionMode;
use crate::hub::Stage;
use crate::id::Id;
use crate::principal::Principal;
use crate::protocol::cipher::{Cipher, Handshake, UnusableKey};
use crate::protocol::close::Close;
use crate::protocol::event::{self, message};

pub use input::{Action, Actions, Authentication, GivenKey, Input, Rules};

/// Whom an authenticated session speaks for, and until when.
#[derive(Debug)]
pub struct Identity {
    principal: Arc<Principal>,
    /// When `expiring` is due; `None` once sent, or for a token that never ends.
    warn_at: Option<Moment>,
    /// When the connection ends with the token.
    ends_at: Option<Moment>,
    /// Trust was withdrawn: `ends_at` is earlier than the end of the token, and what `expiring` tells.
    is_cut_short: bool,
}

/// Who is being admitted.
#[derive(Debug)]
struct Admission {
    until: Moment,
    identity: Identity,
    handshake: Option<Handshake>,
}

/// Boxed is what lasts for a moment only: the others are all that most connections ever are.
#[derive(Debug)]
enum State {
    Connecting { until: Moment },
    Verifying { until: Moment },
    Admitting(Box<Admission>),
    Authenticated(Identity),
    Encrypted(Identity, Cipher),
    Closed,
}

/// One connection's state machine. It does not know its own id, which its connection knows.
#[derive(Debug)]
pub struct Session {
    state: State,
    last_frame: Moment,
    next_sweep: Moment,
    next_ping: Option<Moment>,
}

impl Session {
    /// Creates the session of a connection that was just accepted. `spread`, between 0 and 1, moves its first ping, so that connections that came
    /// together do not ping together.
    pub fn new(now: Instant, rules: &Rules, spread: f32) -> Self {
        Self {
            state: State::Connecting {
                until: (now + rules.authenticate_timeout).into(),
            },
            last_frame: now.into(),
            next_sweep: rules.sweep_after(now, Duration::ZERO).into(),
            next_ping: rules
                .ping_interval
                .map(|every| (now + every.mul_f32(0.5 + spread.clamp(0.0, 1.0) / 2.0)).into()),
        }
    }

    /// Returns whom it speaks for, from [`Action::Admit`] on.
    pub fn principal(&self) -> Option<&Arc<Principal>> {
        self.identity().map(|m| &m.principal)
    }

    fn identity(&self) -> Option<&Identity> {
        match &self.state {
            State::Admitting(admission) => Some(&admission.identity),
            State::Authenticated(identity) | State::Encrypted(identity, _) => Some(identity),
            State::Connecting { .. } | State::Verifying { .. } | State::Closed => None,
        }
    }

    /// Returns the cipher of an encrypted session.
    pub fn cipher(&self) -> Option<&Cipher> {
        match &self.state {
            State::Encrypted(_, cipher) => Some(cipher),
            _ => None,
        }
    }

    /// Returns whether an admitted connection is, or will be, encrypted.
    pub fn will_encrypt(&self) -> bool {
        match &self.state {
            State::Encrypted(..) => true,
            State::Admitting(admission) => admission.handshake.is_some(),
            _ => false,
        }
    }

    /// Returns whether `connected` is sent and the session is not over.
    pub fn is_authenticated(&self) -> bool {
        matches!(self.state, State::Authenticated(_) | State::Encrypted(..))
    }

    /// Returns whether the session is over.
    pub fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    /// Returns its stage, for lists of connections.
    pub fn stage(&self) -> Stage {
        match self.state {
            State::Connecting { .. } => Stage::Connecting,
            State::Verifying { .. } | State::Admitting(_) => Stage::Authenticating,
            State::Authenticated(_) => Stage::Authenticated,
            State::Encrypted(..) => Stage::Encrypted,
            State::Closed => Stage::Closed,
        }
    }

    /// Returns when the last frame came.
    pub fn last_frame(&self) -> Instant {
        self.last_frame.instant()
    }

    /// Ends the session from outside: drain, administrator, revocation, a slow reader.
    pub fn end(&mut self) {
        self.state = State::Closed;
    }

    /// Returns when [`Input::Tick`] is due next, or `None` once closed.
    pub fn next_deadline(&self) -> Option<Instant> {
        let own = match &self.state {
            State::Connecting { until } | State::Verifying { until } => Some(*until),
            State::Admitting(admission) => Some(admission.until),
            State::Authenticated(identity) | State::Encrypted(identity, _) => {
                [Some(self.next_sweep), identity.warn_at, identity.ends_at]
                    .into_iter()
                    .flatten()
                    .min()
            }
            State::Closed => return None,
        };
        let next = [own, self.next_ping].into_iter().flatten().min();
        next.map(Moment::instant)
    }

    /// Takes one step. `id` is the client id.
    pub fn on(
        &mut self,
        id: Id,
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
                self.last_frame = now.into();
                self.text(id, now, rules, text, &mut actions);
            }
            Input::Alive => self.last_frame = now.into(),
            Input::Authentication(outcome) => {
                self.verified(now, wall, rules, outcome, &mut actions)
            }
            Input::Subscribed => self.subscribed(id, wall, &mut actions),
            Input::Refreshed(outcome) => self.refreshed(now, wall, rules, outcome, &mut actions),
            Input::TrustWithdrawn => self.trust_withdrawn(now, wall, rules, &mut actions),
            Input::Tick => self.tick(now, wall, rules, &mut actions),
        }
        actions
    }

    fn close(&mut self, close: Close, actions: &mut Actions) {
        self.state = State::Closed;
        actions.push(Action::Close(close));
    }

    /// Sends an `error` without encryption, then closes.
    fn refuse(&mut self, text: &str, close: Close, actions: &mut Actions) {
        actions.push(Action::SendClear(event::error(text)));
        self.close(close, actions);
    }

    fn verified(
        &mut self,
        now: Instant,
        wall: DateTime<Utc>,
        rules: &Rules,
        outcome: Authentication,
        actions: &mut Actions,
    ) {
        let State::Verifying { until } = self.state else {
            return;
        };
        let (principal, handshake, leeway) = match outcome {
            Authentication::Accepted {
                principal,
                handshake,
                leeway,
            } => (principal, handshake, leeway),
            Authentication::Refused => {
                return self.refuse(
                    message::AUTHENTICATION_FAILED,
                    Close::AuthenticationFailed,
                    actions,
                );
            }
            Authentication::Failed => {
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
                Some(handshake)
            }
            (EncryptionMode::Optional, Some(Err(UnusableKey))) | (EncryptionMode::Required, _) => {
                return self.refuse(
                    message::HANDSHAKE_FAILED,
                    Close::EncryptionRequired,
                    actions,
                );
            }
        };
        let identity = Identity::new(principal, now, wall, rules, leeway);
        self.state = State::Admitting(Box::new(Admission {
            until,
            identity,
            handshake,
        }));
        actions.push(Action::Admit);
    }

    fn subscribed(&mut self, id: Id, wall: DateTime<Utc>, actions: &mut Actions) {
        if !matches!(self.state, State::Admitting(_)) {
            return;
        }
        let State::Admitting(admission) = std::mem::replace(&mut self.state, State::Closed) else {
            return;
        };
        let Admission {
            identity,
            handshake,
            ..
        } = *admission;
        let keys = handshake
            .as_ref()
            .map(|h| (h.public_key.as_str(), h.salt.as_str()));
        actions.push(Action::SendClear(event::connected(
            id,
            &identity.principal.subject,
            wall,
            keys,
        )));
        self.state = match handshake {
            Some(handshake) => State::Encrypted(identity, handshake.cipher),
            None => State::Authenticated(identity),
        };
        actions.push(Action::Release);
    }

    fn refreshed(
        &mut self,
        now: Instant,
        wall: DateTime<Utc>,
        rules: &Rules,
        outcome: Authentication,
        actions: &mut Actions,
    ) {
        let (State::Authenticated(identity) | State::Encrypted(identity, _)) = &mut self.state
        else {
            return;
        };
        match outcome {
            Authentication::Accepted {
                principal, leeway, ..
            } if principal.subject == identity.principal.subject => {
                let expires_at = principal.token().and_then(|t| t.expires_at);
                *identity = Identity::new(principal, now, wall, rules, leeway);
                actions.push(Action::Send(event::refreshed(expires_at)));
            }
            Authentication::Failed => {
                actions.push(Action::Send(event::error(message::AUTHENTICATION_ERROR)))
            }
            Authentication::Accepted { .. } | Authentication::Refused => {
                actions.push(Action::Send(event::error(message::REFRESH_REFUSED)));
            }
        }
    }

    fn trust_withdrawn(
        &mut self,
        now: Instant,
        wall: DateTime<Utc>,
        rules: &Rules,
        actions: &mut Actions,
    ) {
        let identity = match &mut self.state {
            State::Admitting(admission) => &mut admission.identity,
            State::Authenticated(identity) | State::Encrypted(identity, _) => identity,
            State::Connecting { .. } | State::Verifying { .. } | State::Closed => return,
        };
        let ends_at = Moment::from(now + rules.expiring_lead);
        if identity.ends_at.is_none_or(|at| at > ends_at) {
            identity.ends_at = Some(ends_at);
            identity.warn_at = Some(now.into());
            identity.is_cut_short = true;
            // Before `connected` nothing is sent; the next tick sends it.
            self.tick(now, wall, rules, actions);
        }
    }

    fn tick(&mut self, now: Instant, wall: DateTime<Utc>, rules: &Rules, actions: &mut Actions) {
        let at = Moment::from(now);
        let until = match &mut self.state {
            State::Connecting { until } | State::Verifying { until } => Some(*until),
            State::Admitting(admission) => Some(admission.until),
            State::Authenticated(identity) | State::Encrypted(identity, _) => {
                if identity.ends_at.is_some_and(|ends_at| at >= ends_at) {
                    return self.close(Close::TokenExpired, actions);
                }
                if at >= self.next_sweep {
                    let silent = now.duration_since(self.last_frame.instant());
                    if silent >= rules.heartbeat_timeout {
                        return self.close(Close::HeartbeatTimeout, actions);
                    }
                    self.next_sweep = rules.sweep_after(now, silent).into();
                }
                if identity.warn_at.is_some_and(|warn_at| at >= warn_at) {
                    identity.warn_at = None;
                    if let Some(end) = identity.expires_at(now, wall) {
                        let left = (end - wall).num_milliseconds().max(0);
                        actions.push(Action::Send(event::expiring(end, (left + 500) / 1000)));
                    }
                }
                None
            }
            State::Closed => return,
        };
        if until.is_some_and(|until| at >= until) {
            return self.close(Close::AuthenticationTimeout, actions);
        }
        if let (Some(ping_at), Some(every)) = (self.next_ping, rules.ping_interval)
            && at >= ping_at
        {
            self.next_ping = Some((now + every).into());
            actions.push(Action::Ping);
        }
    }
}

impl Identity {
    fn new(
        principal: Arc<Principal>,
        now: Instant,
        wall: DateTime<Utc>,
        rules: &Rules,
        leeway: Duration,
    ) -> Self {
        let expires_at = principal.token().and_then(|t| t.expires_at);
        let left = expires_at.map(|at| (at - wall).to_std().unwrap_or_default());
        // A token beyond the range of the clock never ends here.
        let ends_at = left.and_then(|left| now.checked_add(left)?.checked_add(leeway));
        let warn_at =
            left.and_then(|left| now.checked_add(left.saturating_sub(rules.expiring_lead)));
        Self {
            principal,
            warn_at: warn_at.map(Moment::from),
            ends_at: ends_at.map(Moment::from),
            is_cut_short: false,
        }
    }

    /// Returns the time in `expiring`: the end of the token, or an earlier one.
    fn expires_at(&self, now: Instant, wall: DateTime<Utc>) -> Option<DateTime<Utc>> {
        if !self.is_cut_short {
            return self.principal.token().and_then(|t| t.expires_at);
        }
        let left = self.ends_at?.instant().saturating_duration_since(now);
        wall.checked_add_signed(chrono::TimeDelta::from_std(left).ok()?)
    }
}

#[cfg(test)]
mod tests;

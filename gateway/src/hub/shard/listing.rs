//! Descriptions of a shard's connections, for administrators.

use std::rc::Rc;

use super::Shard;
use crate::client::{ClientInfo, ClientQuery, MAX_LISTED};
use crate::hub::link::{Link, Stage};

impl Shard {
    pub(super) fn list(&self, query: &ClientQuery) -> Vec<ClientInfo> {
        let links = self.links.borrow();
        let room = query
            .room
            .as_deref()
            .map(|name| self.by_room.borrow().get(name).copied());
        if room == Some(None)
            && query
                .room
                .as_deref()
                .and_then(|name| name.parse().ok())
                .and_then(|id| self.member(id))
                .is_none()
        {
            return Vec::new();
        }
        let mut matching: Vec<&Rc<Link>> = links
            .iter()
            .map(|(_, link)| link)
            .filter(|link| {
                query
                    .after
                    .is_none_or(|after| link.id.as_str() > after.as_str())
            })
            .filter(|link| {
                query.user_id.as_deref().is_none_or(|user| {
                    link.membership
                        .borrow()
                        .principal
                        .as_ref()
                        .is_some_and(|p| &*p.subject == user)
                })
            })
            .filter(|link| match room {
                None => true,
                Some(Some(room)) => link
                    .membership
                    .borrow()
                    .seats
                    .iter()
                    .any(|seat| seat.room == room),
                Some(None) => query.room.as_deref() == Some(link.id.as_str()),
            })
            .collect();
        let limit = query.limit.clamp(1, MAX_LISTED);
        if matching.len() > limit {
            matching.select_nth_unstable_by(limit - 1, |a, b| a.id.as_str().cmp(b.id.as_str()));
            matching.truncate(limit);
        }
        matching.sort_unstable_by(|a, b| a.id.as_str().cmp(b.id.as_str()));
        matching.into_iter().map(|link| self.info(link)).collect()
    }

    pub(super) fn info(&self, link: &Link) -> ClientInfo {
        let now = self.core.clock.now_ms();
        let stage = link.stage.get();
        let seen =
            now - i64::try_from(link.last_seen.get().instant().elapsed().as_millis()).unwrap_or(0);
        ClientInfo {
            id: link.id,
            user_id: link
                .membership
                .borrow()
                .principal
                .as_ref()
                .map(|p| p.subject.to_string()),
            state: stage.as_str().to_owned(),
            encrypted: stage == Stage::Encrypted,
            rooms: self.rooms_of(link),
            connected_at: rfc3339(link.connected_at_ms()),
            last_seen_at: rfc3339(seen),
            address: Some(link.peer),
        }
    }
}

fn rfc3339(ms: i64) -> String {
    chrono::DateTime::from_timestamp_millis(ms)
        .unwrap_or_default()
        .to_rfc3339_opts(chrono::SecondsFormat::Millis, true)
}

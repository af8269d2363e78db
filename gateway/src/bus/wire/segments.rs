//! The segments of our own messages in a Redis Cluster: sixteen, each one slot, so that its channels are on one node and in one order. No IO.
//!
//! A name (of a user, a client, a room) belongs to one segment, whatever the nodes are. The tags were chosen so that their slots lie evenly over all:
//! nodes that share the slots evenly share the segments.

use redis::cluster_routing::Slot;

use crate::dispatch::Destination;

/// The tag of each segment, and its slot.
const SEGMENTS: [(&str, u16); 16] = [
    ("1768", 512),
    ("1678", 1537),
    ("18360", 2560),
    ("18270", 3585),
    ("3453", 4608),
    ("11199", 5632),
    ("8481", 6657),
    ("8591", 7680),
    ("265", 8704),
    ("375", 9729),
    ("13409", 10752),
    ("17891", 11776),
    ("3725", 12801),
    ("3635", 13824),
    ("2912", 14848),
    ("2802", 15873),
];

/// One of the segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::bus) struct Segment(u8);

impl Segment {
    /// Returns all of them, in their order.
    pub(in crate::bus) fn all() -> impl Iterator<Item = Self> {
        (0..SEGMENTS.len() as u8).map(Self)
    }

    /// Returns the segment of a destination; `None` for a broadcast, which every instance receives: each node hands it to its own subscribers.
    pub(in crate::bus) fn of(destination: &Destination) -> Option<Self> {
        match destination {
            Destination::Client(id) => Some(Self::of_name(id.as_str())),
            Destination::User(name) | Destination::Room(name) => Some(Self::of_name(name)),
            Destination::Broadcast => None,
        }
    }

    /// Returns the segment of a name. All releases must agree on it.
    pub(in crate::bus) fn of_name(name: &str) -> Self {
        // FNV-1a; its low bits alone say little of the last letters.
        let hash = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
            (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
        });
        let folded = hash ^ (hash >> 16);
        Self(((folded ^ (folded >> 8)) % SEGMENTS.len() as u32) as u8)
    }

    /// Its number, from 0 on.
    pub(in crate::bus) fn number(self) -> usize {
        usize::from(self.0)
    }

    /// What stands between braces in its channels.
    pub(super) fn tag(self) -> &'static str {
        SEGMENTS[self.number()].0
    }

    /// The slot of all its channels.
    pub(in crate::bus) fn slot(self) -> u16 {
        SEGMENTS[self.number()].1
    }

    /// Whether channels with this prefix lie in the slots of their segments: braces in it would take the place of the tags.
    pub(in crate::bus) fn allows_prefix(prefix: &str) -> bool {
        Segment::all().all(|segment| {
            let channel = format!("{prefix}{{{}}}", segment.tag());
            Slot::new(segment.slot()) == Some(Slot::for_key(channel))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slots_of_segments_are_those_of_their_tags_and_spread_evenly() {
        assert!(Segment::allows_prefix("") && Segment::allows_prefix("tenant-7:"));
        assert!(!Segment::allows_prefix("{tenant}:"));
        for segment in Segment::all() {
            assert_eq!(usize::from(segment.slot()) / 1024, segment.number());
        }
    }

    #[test]
    fn names_spread_over_segments_and_keep_theirs() {
        // Instances of other releases publish to these.
        for (name, segment) in [("", 5), ("17", 8), ("user-17", 15), ("ws-default", 4)] {
            assert_eq!(Segment::of_name(name).number(), segment, "{name}");
        }
        for name in ["user-{}", "{}", "1KbZ0dT9X{}", "merchant:{}"] {
            let mut counts = [0; 16];
            for n in 0..16_000 {
                counts[Segment::of_name(&name.replace("{}", &n.to_string())).number()] += 1;
            }
            let least = counts.iter().min().unwrap();
            let most = counts.iter().max().unwrap();
            assert!(*least > 750 && *most < 1250, "{name}: {counts:?}");
        }
    }

    #[test]
    fn a_client_and_a_room_of_its_name_share_a_segment() {
        let id: crate::id::Id = "4bC".parse().unwrap();
        assert_eq!(
            Segment::of(&Destination::Client(id)),
            Segment::of(&Destination::Room("4bC".into()))
        );
        assert_eq!(Segment::of(&Destination::Broadcast), None);
    }
}

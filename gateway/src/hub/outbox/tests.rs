//! Every way in which a socket may take what waits.

use super::*;
use crate::dispatch::{Addressee, SharedText};
use crate::hub::batch::BatchBuilder;
use std::cell::Cell;
use std::sync::Arc;

const WIDE: Bounds = Bounds {
    bytes: 1 << 20,
    frames: 1000,
};

/// Takes `room` bytes, then blocks.
#[derive(Default)]
struct Pipe {
    room: Cell<usize>,
    got: RefCell<Vec<u8>>,
    calls: Cell<usize>,
}

impl Sink for Pipe {
    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.calls.set(self.calls.get() + 1);
        let n = bytes.len().min(self.room.get());
        if n == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.room.set(self.room.get() - n);
        self.got.borrow_mut().extend_from_slice(&bytes[..n]);
        Ok(n)
    }
}

fn message(n: usize) -> Rc<Message> {
    Rc::new(Message::text(format!("message {n}").as_bytes()))
}

fn frames(bytes: &[u8]) -> Vec<Vec<u8>> {
    let (mut at, mut frames) = (0, Vec::new());
    while at < bytes.len() {
        let (header, length) = match bytes[at + 1] {
            126 => (
                4,
                usize::from(u16::from_be_bytes([bytes[at + 2], bytes[at + 3]])),
            ),
            short => (2, usize::from(short)),
        };
        frames.push(bytes[at + header..at + header + length].to_vec());
        at += header + length;
    }
    frames
}

#[test]
fn a_burst_is_one_write() {
    let (mut outbox, pipe) = (Outbox::default(), Pipe::default());
    pipe.room.set(usize::MAX);
    for n in 0..10 {
        outbox.push(&message(n), WIDE).unwrap();
    }
    assert_eq!(outbox.flush(&pipe, Instant::now).unwrap().0, Flushed::All);
    assert_eq!(pipe.calls.get(), 1);
    assert_eq!(frames(&pipe.got.borrow()).len(), 10);
    assert_eq!(outbox.waiting_bytes(), 0);
    assert!(!outbox.entries.spilled(), "a burst leaves no memory behind");
}

/// Flushes to a socket that takes so many bytes at a time, until nothing waits.
fn drain(outbox: &mut Outbox, pipe: &Pipe, room: usize) {
    while !outbox.is_empty() {
        pipe.room.set(room);
        outbox.flush(pipe, Instant::now).unwrap();
    }
    assert_eq!(outbox.waiting_bytes(), 0);
}

#[test]
fn bytes_are_the_same_and_in_order_however_few_the_socket_takes_at_a_time() {
    for sealed in [false, true] {
        for room in [1, 3, 50, 1000] {
            let cipher = Cipher::new(&[1; 32]);
            let (mut outbox, pipe) = (Outbox::default(), Pipe::default());
            if sealed {
                outbox.seal_with(cipher.clone());
            }
            for n in 0..40 {
                outbox.push(&message(n), WIDE).unwrap();
                pipe.room.set(room);
                outbox.flush(&pipe, Instant::now).unwrap();
            }
            drain(&mut outbox, &pipe, room);
            for (n, frame) in frames(&pipe.got.borrow()).iter().enumerate() {
                let text = std::str::from_utf8(frame).unwrap();
                let clear = if sealed {
                    let envelope = crate::protocol::Envelope::parse(text).unwrap();
                    cipher.open(&envelope.read().unwrap()).unwrap()
                } else {
                    text.to_owned()
                };
                assert_eq!(clear, format!("message {n}"), "room {room}");
            }
        }
    }
}

#[test]
fn a_batch_is_written_at_once_and_what_the_socket_does_not_take_becomes_frames() {
    for sealed in [false, true] {
        for before in [0, 1] {
            for room in [0, 1, 11, 15, 22, 109, 110, 1000] {
                let (mut outbox, pipe) = (Outbox::default(), Pipe::default());
                if sealed {
                    outbox.seal_with(Cipher::new(&[1; 32]));
                }
                let batch = Rc::new(MessageBatch::new((before..10).map(message).collect()));
                (0..before).for_each(|n| outbox.push(&message(n), WIDE).unwrap());
                outbox.push_batch(&batch, WIDE).unwrap();
                pipe.room.set(room);
                outbox.flush(&pipe, Instant::now).unwrap();
                outbox
                    .push_batch(
                        &Rc::new(MessageBatch::new(vec![message(1), message(2)])),
                        WIDE,
                    )
                    .unwrap();
                outbox.push(&message(3), WIDE).unwrap();
                assert!(room < 1000 || outbox.entries.len() <= 3);
                let narrow = Bounds {
                    bytes: 1 << 20,
                    frames: 3,
                };
                assert_eq!(
                    outbox.push_batch(&batch, narrow),
                    Err(Overflow),
                    "frames are counted"
                );
                pipe.room.set(usize::MAX);
                outbox.flush(&pipe, Instant::now).unwrap();
                let got = frames(&pipe.got.borrow());
                if !sealed {
                    let texts: Vec<_> = got
                        .iter()
                        .map(|frame| String::from_utf8_lossy(frame).into_owned())
                        .collect();
                    let first: Vec<_> = (0..10)
                        .chain([1, 2, 3])
                        .map(|n| format!("message {n}"))
                        .collect();
                    assert_eq!(texts[..13], first, "room {room}");
                }
                assert!(got.len() >= 13 && outbox.waiting_bytes() == 0);
            }
        }
    }
}

fn open(cipher: &Cipher, frame: &[u8]) -> Vec<u8> {
    let text = std::str::from_utf8(frame).unwrap();
    let envelope = crate::protocol::Envelope::parse(text).unwrap();
    cipher.open(&envelope.read().unwrap()).unwrap().into_bytes()
}

/// A burst that comes in pieces, of these lengths.
fn pieces(lengths: &[usize]) -> Vec<Outgoing> {
    let mut next = 0;
    let pieces = lengths.iter().map(|length| {
        let mut builder = BatchBuilder::new(Message::text(format!("message {next}").as_bytes()));
        for n in next + 1..next + length {
            builder.push(Message::text(format!("message {n}").as_bytes()));
        }
        next += length;
        builder.build()
    });
    pieces.collect()
}

#[test]
fn a_burst_in_pieces_is_joined_once_for_all_who_have_the_same_waiting() {
    for sealed in [false, true] {
        for lengths in [&[1, 1, 1, 7][..], &[1, 9], &[4, 6], &[10]] {
            // The first two have nothing else waiting, the third has, the fourth is held back.
            let mut outboxes: [Outbox; 4] = Default::default();
            let cipher = Cipher::new(&[1; 32]);
            if sealed {
                outboxes
                    .iter_mut()
                    .for_each(|outbox| outbox.seal_with(cipher.clone()));
            }
            outboxes[2].push(&message(77), WIDE).unwrap();
            outboxes[3].hold();
            for piece in &pieces(lengths) {
                let mut joining = Joining::new(piece, 2);
                for outbox in &mut outboxes {
                    outbox.push_outgoing(&mut joining, WIDE).unwrap();
                }
            }
            let [one, other, ..] = &outboxes;
            match (one.entries.as_slice(), other.entries.as_slice()) {
                ([Entry::Batch(one)], [Entry::Batch(other)]) if !sealed => {
                    assert!(Rc::ptr_eq(one, other));
                }
                ([Entry::SealedBatch(one)], [Entry::SealedBatch(other)]) if sealed => {
                    assert!(Rc::ptr_eq(one, other));
                }
                entries => panic!("{entries:?}"),
            }
            outboxes[3].release(|_| true);
            for (n, mut outbox) in outboxes.into_iter().enumerate() {
                let pipe = Pipe::default();
                pipe.room.set(usize::MAX);
                outbox.flush(&pipe, Instant::now).unwrap();
                assert_eq!((pipe.calls.get(), outbox.waiting_bytes()), (1, 0));
                let got: Vec<_> = frames(&pipe.got.borrow())
                    .into_iter()
                    .map(|frame| if sealed { open(&cipher, &frame) } else { frame })
                    .collect();
                let first = (n == 2).then_some(77);
                let texts = first.into_iter().chain(0..10);
                let expected: Vec<_> = texts.map(|n| format!("message {n}").into_bytes()).collect();
                assert_eq!(got, expected, "sealed {sealed}, {lengths:?}, outbox {n}");
            }
        }
    }
}

#[test]
fn what_is_joined_is_taken_in_parts_like_everything_else() {
    for sealed in [false, true] {
        for room in [1, 7, 100, 1000] {
            let (mut outbox, pipe) = (Outbox::default(), Pipe::default());
            let cipher = Cipher::new(&[1; 32]);
            if sealed {
                outbox.seal_with(cipher.clone());
            }
            for (n, piece) in pieces(&[1, 2, 3, 4]).iter().enumerate() {
                outbox
                    .push_outgoing(&mut Joining::new(piece, 1), WIDE)
                    .unwrap();
                if n == 2 {
                    pipe.room.set(room);
                    outbox.flush(&pipe, Instant::now).unwrap();
                }
            }
            drain(&mut outbox, &pipe, room);
            for (n, frame) in frames(&pipe.got.borrow()).iter().enumerate() {
                let text = if sealed {
                    open(&cipher, frame)
                } else {
                    frame.clone()
                };
                assert_eq!(text, format!("message {n}").into_bytes(), "room {room}");
            }
        }
    }
}

#[test]
fn joining_obeys_the_bounds() {
    for (bounds, joins) in [
        (
            Bounds {
                bytes: 22,
                frames: 9,
            },
            true,
        ),
        // The longest one behind the first does not count, so a second one still fits.
        (
            Bounds {
                bytes: 21,
                frames: 9,
            },
            false,
        ),
        (
            Bounds {
                bytes: 22,
                frames: 2,
            },
            true,
        ),
    ] {
        let mut outbox = Outbox::default();
        let pieces = pieces(&[1, 1]);
        for piece in &pieces {
            outbox
                .push_outgoing(&mut Joining::new(piece, 1), bounds)
                .unwrap();
        }
        assert_eq!(outbox.entries.len() == 1, joins);
        assert_eq!(outbox.waiting_bytes(), 22);
    }
    let narrow = Bounds {
        bytes: 1 << 20,
        frames: 1,
    };
    let mut outbox = Outbox::default();
    let [first, second] = &pieces(&[1, 1])[..] else {
        panic!()
    };
    outbox
        .push_outgoing(&mut Joining::new(first, 1), narrow)
        .unwrap();
    let pushed = outbox.push_outgoing(&mut Joining::new(second, 1), narrow);
    assert_eq!(pushed, Err(Overflow));
}

/// Messages `0..count` that share their text, one for each user.
fn shared(count: usize) -> Rc<SharedMessages> {
    let text = SharedText {
        event: "e".into(),
        pieces: [r#"{"id":"#.into(), r#","to":"#.into(), r#","x":"#.into()],
    };
    let mut messages = SharedMessages::new(Arc::new(text));
    for n in 0..count {
        messages.push(&Addressee {
            user: &format!("user {n}"),
            id: "4bC".parse().unwrap(),
            seq: n as i64,
            unread_count: 1,
            version: 2,
        });
    }
    Rc::new(messages)
}

#[test]
fn messages_that_share_their_text_are_put_together_however_few_bytes_the_socket_takes() {
    for sealed in [false, true] {
        for room in [1, 7, 100, 1000] {
            let cipher = Cipher::new(&[1; 32]);
            let (mut outbox, pipe) = (Outbox::default(), Pipe::default());
            if sealed {
                outbox.seal_with(cipher.clone());
            }
            let messages = shared(9);
            let mut expected = Vec::new();
            for n in 0..9 {
                // Others come between them, and some find one that waits.
                outbox.push(&message(n), WIDE).unwrap();
                outbox.push_shared(&messages, n, WIDE).unwrap();
                let payload = messages.message(n).payload().to_vec();
                expected.extend([format!("message {n}").into_bytes(), payload]);
                if n % 3 == 2 {
                    pipe.room.set(room);
                    outbox.flush(&pipe, Instant::now).unwrap();
                }
            }
            drain(&mut outbox, &pipe, room);
            let got = frames(&pipe.got.borrow());
            let opened: Vec<Vec<u8>> = got
                .into_iter()
                .map(|frame| match sealed {
                    true => {
                        let text = String::from_utf8(frame).unwrap();
                        let envelope = crate::protocol::Envelope::parse(&text).unwrap();
                        cipher.open(&envelope.read().unwrap()).unwrap().into_bytes()
                    }
                    false => frame,
                })
                .collect();
            assert_eq!(opened, expected, "sealed {sealed}, room {room}");
        }
    }
}

#[test]
fn who_reads_slowly_keeps_only_the_message_of_its_own() {
    for sealed in [false, true] {
        for room in [0, 5] {
            let (mut outbox, pipe) = (Outbox::default(), Pipe::default());
            if sealed {
                outbox.seal_with(Cipher::new(&[1; 32]));
            }
            let messages = shared(1000);
            outbox.push_shared(&messages, 1, WIDE).unwrap();
            outbox.push_shared(&messages, 2, WIDE).unwrap();
            assert_eq!(
                Rc::strong_count(&messages),
                3,
                "no copies while it may be quick"
            );
            pipe.room.set(room);
            outbox.flush(&pipe, Instant::now).unwrap();
            outbox.push_shared(&messages, 3, WIDE).unwrap();
            assert_eq!(Rc::strong_count(&messages), 1);
            let lengths = [1, 2, 3].map(|n| match sealed {
                true => Cipher::sealed_length(messages.payload_length(n)),
                false => messages.frame_length(n),
            });
            let waiting = lengths.iter().sum::<usize>() - room;
            assert_eq!(outbox.waiting_bytes(), waiting);
        }
    }
    let mut outbox = Outbox::default();
    outbox.hold();
    let messages = shared(2);
    outbox.push_shared(&messages, 0, WIDE).unwrap();
    assert_eq!(
        Rc::strong_count(&messages),
        1,
        "so does who is not connected yet"
    );
    outbox.release(|_| true);
    assert_eq!(outbox.waiting_bytes(), messages.frame_length(0));
}

#[test]
fn too_many_frames_or_bytes_are_an_overflow() {
    let mut outbox = Outbox::default();
    let frames = Bounds {
        bytes: 1 << 20,
        frames: 3,
    };
    let pushed: Vec<_> = (0..4).map(|n| outbox.push(&message(n), frames)).collect();
    assert_eq!(pushed, [Ok(()), Ok(()), Ok(()), Err(Overflow)]);
    let mut outbox = Outbox::default();
    outbox.hold();
    let bytes = Bounds {
        bytes: 25,
        frames: 1000,
    };
    let pushed: Vec<_> = (0..4).map(|n| outbox.push(&message(n), bytes)).collect();
    assert_eq!(
        pushed,
        [Ok(()), Ok(()), Ok(()), Err(Overflow)],
        "held messages count as well, but for the longest"
    );
    outbox.release(|_| true);
    let pushed: Vec<_> = (4..6).map(|n| outbox.push(&message(n), bytes)).collect();
    assert_eq!(
        pushed,
        [Ok(()), Err(Overflow)],
        "and the message that is being written does not count either"
    );
}

/// protocol.md 8.2.
#[test]
fn one_message_of_any_length_is_no_overflow_wherever_it_waits() {
    let bounds = Bounds {
        bytes: 100,
        frames: 10,
    };
    let long = Rc::new(Message::text(&[b'x'; 5000]));
    for sealed in [false, true] {
        for (held, before, after) in [(false, 0, 9), (false, 1, 8), (true, 0, 9), (true, 3, 5)] {
            let mut outbox = Outbox::default();
            if sealed {
                outbox.seal_with(Cipher::new(&[1; 32]));
            }
            if held {
                outbox.hold();
            }
            let bounds = Bounds {
                bytes: if sealed { 1500 } else { bounds.bytes },
                ..bounds
            };
            (0..before).for_each(|n| outbox.push(&message(n), bounds).unwrap());
            outbox.push(&long, bounds).unwrap();
            (0..after).for_each(|n| outbox.push(&message(n), bounds).unwrap());
            outbox.release(|_| true);
            assert_eq!(outbox.entries.len(), before + after + 1);
        }
    }
}

#[test]
fn messages_longer_than_the_bound_do_not_add_up() {
    let bounds = Bounds {
        bytes: 100,
        frames: 10,
    };
    let (mut outbox, pipe) = (Outbox::default(), Pipe::default());
    let long = Rc::new(Message::text(&[b'x'; 5000]));
    let pushed: Vec<_> = (0..3).map(|_| outbox.push(&long, bounds)).collect();
    assert_eq!(pushed, [Ok(()), Ok(()), Err(Overflow)]);
    // A socket that takes bytes makes room.
    for _ in 0..20 {
        pipe.room.set(5200);
        outbox.flush(&pipe, Instant::now).unwrap();
        outbox.push(&long, bounds).unwrap();
    }
}

#[test]
fn finishing_keeps_only_the_rest_of_a_half_written_frame() {
    for sealed in [false, true] {
        for (room, whole) in [(0, 0), (4, 1), (15, 2)] {
            let (mut outbox, pipe) = (Outbox::default(), Pipe::default());
            if sealed {
                outbox.seal_with(Cipher::new(&[1; 32]));
            }
            for n in 0..3 {
                outbox.push(&message(n), WIDE).unwrap();
            }
            // In the clear a frame has 11 bytes.
            pipe.room.set(if sealed {
                room * Cipher::sealed_length(9) / 11
            } else {
                room
            });
            outbox.flush(&pipe, Instant::now).unwrap();
            assert!(outbox.blocked_since().is_some());
            outbox.finish(Message::close(4008, "Slow consumer"));
            outbox.push(&message(9), WIDE).unwrap();
            pipe.room.set(usize::MAX);
            outbox.flush(&pipe, Instant::now).unwrap();
            let got = frames(&pipe.got.borrow());
            assert_eq!(got.len(), whole + 1, "sealed {sealed}, room {room}");
            assert_eq!(got.last().unwrap()[..2], 4008u16.to_be_bytes());
            assert_eq!(outbox.waiting_bytes(), 0);
        }
    }
}

#[test]
fn held_messages_follow_those_that_are_pushed_ahead_of_them() {
    let (mut outbox, pipe) = (Outbox::default(), Pipe::default());
    pipe.room.set(usize::MAX);
    outbox.hold();
    outbox.push(&message(2), WIDE).unwrap();
    outbox.push(&message(3), WIDE).unwrap();
    outbox.push_now(&message(1), WIDE).unwrap();
    outbox.release(|m| m.payload() != b"message 3");
    outbox.push(&message(4), WIDE).unwrap();
    outbox.flush(&pipe, Instant::now).unwrap();
    assert_eq!(
        frames(&pipe.got.borrow()),
        [b"message 1", b"message 2", b"message 4"]
    );
}

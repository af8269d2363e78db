//! Makes an input out of others: copies, cuts, joins, and changes bytes, numbers and words of the formats that are read here.

use rand::Rng;

use crate::LONGEST;

/// Pieces of JSON, TOML, HTTP, WebSocket frames and tokens that random bytes would not hit on.
const WORDS: [&[u8]; 32] = [
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b"\\u0000",
    b"\\ud800",
    b"null",
    b"true",
    b"-0",
    b"1e999",
    b"18446744073709551616",
    b"\"event\":",
    b"\"data\":",
    b"\"id\":",
    b"\"exclude\":[",
    b"\"bridged\":[1,1,1]",
    b"\"keys\":[",
    b"\"kid\":",
    b"\"alg\":\"ES256\"",
    b"eyJhbGciOiJFUzI1NiJ9",
    b".",
    b"[[jwks.sources]]\n",
    b"= ",
    b"\r\n",
    b"\r\n\r\n",
    b"Upgrade: websocket\r\n",
    b"\x81\x7e",
    b"\x88\x82",
    b"\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\xc3\x28",
    b"\xed\xa0\x80",
];

/// A mutation of one of the inputs, at most [`LONGEST`] bytes long.
pub fn mutate(population: &[Vec<u8>], random: &mut impl Rng) -> Vec<u8> {
    let mut input = pick(population, random).to_vec();
    for _ in 0..random.random_range(1..=4) {
        change(&mut input, population, random);
    }
    input.truncate(LONGEST);
    input
}

fn pick<'p>(population: &'p [Vec<u8>], random: &mut impl Rng) -> &'p [u8] {
    match population.len() {
        0 => &[],
        count => &population[random.random_range(0..count)],
    }
}

fn change(input: &mut Vec<u8>, population: &[Vec<u8>], random: &mut impl Rng) {
    let at = random.random_range(0..=input.len());
    let end = random.random_range(at..=input.len().min(at + 32));
    match random.random_range(0..8) {
        0 => input.truncate(at),
        1 => drop(input.drain(at..end)),
        2 => {
            let copy = input[at..end].to_vec();
            let to = random.random_range(0..=input.len());
            input.splice(to..to, copy);
        }
        3 => {
            let word = WORDS[random.random_range(0..WORDS.len())];
            input.splice(at..at, word.iter().copied());
        }
        4 => {
            let word = WORDS[random.random_range(0..WORDS.len())];
            input.splice(at..end, word.iter().copied());
        }
        5 => {
            // The beginning of this one and the end of another.
            let other = pick(population, random);
            let from = random.random_range(0..=other.len());
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
        6 => {
            if let Some(byte) = input.get_mut(at) {
                *byte ^= 1 << random.random_range(0..8);
            }
        }
        _ => {
            if let Some(byte) = input.get_mut(at) {
                *byte = random.random();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;
    use rand::rngs::SmallRng;

    use super::*;

    #[test]
    fn mutations_differ_are_bounded_and_repeat_with_their_seed() {
        let population = vec![b"{\"event\":\"join\"}".to_vec(), vec![b'x'; LONGEST]];
        let make = |seed| {
            let mut random = SmallRng::seed_from_u64(seed);
            (0..500)
                .map(|_| mutate(&population, &mut random))
                .collect::<Vec<_>>()
        };
        let inputs = make(1);
        assert!(inputs.iter().all(|input| input.len() <= LONGEST));
        let distinct: std::collections::HashSet<_> = inputs.iter().collect();
        assert!(distinct.len() > 400, "{}", distinct.len());
        assert_eq!(inputs, make(1));
        assert_ne!(inputs, make(2));
    }

    #[test]
    fn nothing_is_needed_to_begin_with() {
        let mut random = SmallRng::seed_from_u64(1);
        for _ in 0..100 {
            mutate(&[], &mut random);
            mutate(&[Vec::new()], &mut random);
        }
    }
}

//! `ApiVersions` on its way through the forwarder. The mock cluster answers it up to version 2, and a newer one wrongly; clients in pure JavaScript ask
//! for version 3 alone, and others expect Kafka's answer to a version that a broker does not know.
//!
//! Input: the header of each request, and the mock's answer to version 0. Output: what goes on in their place. No IO.
//!
//! <https://kafka.apache.org/protocol>; KIP-511 for the answer to unknown versions.

/// `ApiVersions` among the kinds of requests.
const API_VERSIONS: i16 = 18;
/// The newest version that is answered here.
const NEWEST: i16 = 4;
/// From this version on, arrays are compact and end with tagged fields. The header of the answer stays as it was.
const FLEXIBLE: i16 = 3;
/// From this version on, the answer says how long the client is throttled.
const THROTTLED: i16 = 1;
/// UNSUPPORTED_VERSION
const UNSUPPORTED: i16 = 35;
/// Bytes of one entry: kind of request, oldest and newest version.
const ENTRY: usize = 6;

/// The part of a request that every version has: which request it is, and the number that its answer carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RequestHeader {
    pub(super) key: i16,
    pub(super) version: i16,
    pub(super) correlation: i32,
}

impl RequestHeader {
    /// Its size in bytes.
    pub(super) const SIZE: usize = 8;

    pub(super) fn read(bytes: [u8; Self::SIZE]) -> Self {
        let [k0, k1, v0, v1, c0, c1, c2, c3] = bytes;
        Self {
            key: i16::from_be_bytes([k0, k1]),
            version: i16::from_be_bytes([v0, v1]),
            correlation: i32::from_be_bytes([c0, c1, c2, c3]),
        }
    }

    pub(super) fn asks_for_versions(self) -> bool {
        self.key == API_VERSIONS
    }
}

/// Returns the whole request that the mock is asked in place of any `ApiVersions`: version 0, without a client id.
pub(super) fn question(correlation: i32) -> Vec<u8> {
    let mut request = Vec::with_capacity(14);
    request.extend(10_i32.to_be_bytes());
    request.extend(API_VERSIONS.to_be_bytes());
    request.extend(0_i16.to_be_bytes());
    request.extend(correlation.to_be_bytes());
    request.extend((-1_i16).to_be_bytes());
    request
}

/// Returns the whole answer in the version that the client asked for, made of the mock's answer to version 0 without its length and correlation
/// number; `None` where that is no such answer.
pub(super) fn answer(asked: RequestHeader, mocks: &[u8]) -> Option<Vec<u8>> {
    let (error, rest) = mocks.split_first_chunk::<2>()?;
    let (count, rest) = rest.split_first_chunk::<4>()?;
    let count = usize::try_from(i32::from_be_bytes(*count)).ok()?;
    if rest.len() != count.checked_mul(ENTRY)? {
        return None;
    }
    let is_known = (0..=NEWEST).contains(&asked.version);
    let entries: Vec<[i16; 3]> = rest
        .chunks_exact(ENTRY)
        .map(|e| [0, 2, 4].map(|at| i16::from_be_bytes([e[at], e[at + 1]])))
        .map(|[key, oldest, newest]| match key {
            API_VERSIONS => [key, 0, NEWEST],
            _ => [key, oldest, newest],
        })
        // A client that is told that its version is unknown reads from the answer which ones are.
        .filter(|[key, ..]| is_known || *key == API_VERSIONS)
        .collect();
    let error = if is_known {
        i16::from_be_bytes(*error)
    } else {
        UNSUPPORTED
    };
    let is_flexible = is_known && asked.version >= FLEXIBLE;

    let mut body = asked.correlation.to_be_bytes().to_vec();
    body.extend(error.to_be_bytes());
    if is_flexible {
        unsigned_varint(&mut body, entries.len() + 1);
    } else {
        body.extend(i32::try_from(entries.len()).ok()?.to_be_bytes());
    }
    for entry in entries {
        body.extend(entry.iter().flat_map(|number| number.to_be_bytes()));
        if is_flexible {
            unsigned_varint(&mut body, 0);
        }
    }
    if is_known && asked.version >= THROTTLED {
        body.extend(0_i32.to_be_bytes());
    }
    if is_flexible {
        unsigned_varint(&mut body, 0);
    }
    let mut answer = i32::try_from(body.len()).ok()?.to_be_bytes().to_vec();
    answer.append(&mut body);
    Some(answer)
}

fn unsigned_varint(to: &mut Vec<u8>, mut number: usize) {
    while number >= 0x80 {
        to.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    to.push(number as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No error; `Produce` 0 to 10, `ApiVersions` 0 to 2.
    const MOCKS: [u8; 18] = [0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 10, 0, 18, 0, 0, 0, 2];

    fn asked(version: i16) -> RequestHeader {
        RequestHeader {
            key: API_VERSIONS,
            version,
            correlation: 7,
        }
    }

    #[test]
    fn each_version_is_answered_in_its_own_form() {
        let entries = [0, 0, 0, 0, 0, 10, 0, 18, 0, 0, 0, 4];
        let old = [&[0, 0, 0, 22, 0, 0, 0, 7, 0, 0, 0, 0, 0, 2][4..], &entries].concat();
        let with_length = |body: Vec<u8>| {
            let mut whole = (body.len() as i32).to_be_bytes().to_vec();
            whole.extend(body);
            whole
        };
        assert_eq!(answer(asked(0), &MOCKS).unwrap(), with_length(old.clone()));
        for version in [1, 2] {
            let throttled = [&old[..], &[0, 0, 0, 0]].concat();
            assert_eq!(
                answer(asked(version), &MOCKS).unwrap(),
                with_length(throttled)
            );
        }
        for version in [3, 4] {
            let flexible = [
                &[0, 0, 0, 7, 0, 0, 3][..],
                &entries[..6],
                &[0],
                &entries[6..],
                &[0],
                &[0, 0, 0, 0],
                &[0],
            ]
            .concat();
            assert_eq!(
                answer(asked(version), &MOCKS).unwrap(),
                with_length(flexible)
            );
        }
    }

    #[test]
    fn a_version_that_is_not_known_is_answered_with_error_35_in_the_oldest_form() {
        for version in [5, i16::MAX, -1] {
            let want = [
                0, 0, 0, 16, 0, 0, 0, 7, 0, 35, 0, 0, 0, 1, 0, 18, 0, 0, 0, 4,
            ];
            assert_eq!(answer(asked(version), &MOCKS).unwrap(), want);
        }
    }

    #[test]
    fn what_is_no_answer_to_version_0_is_refused() {
        for end in 0..MOCKS.len() {
            assert_eq!(answer(asked(3), &MOCKS[..end]), None, "{end}");
        }
        assert_eq!(answer(asked(3), &[0, 0, 0xff, 0xff, 0xff, 0xff]), None);
    }

    #[test]
    fn the_question_is_version_0_under_the_number_of_the_clients_request() {
        let question = question(-2);
        assert_eq!(question[..4], 10_i32.to_be_bytes());
        let header = RequestHeader::read(question[4..12].try_into().unwrap());
        assert_eq!(
            header,
            RequestHeader {
                version: 0,
                correlation: -2,
                ..asked(0)
            }
        );
        assert!(header.asks_for_versions());
    }
}

//! Seeded mutations of a good assignment: each is refused with the field's name, or within every range that what is behind
//! the edge relies on.
#![allow(clippy::unwrap_used)]

mod offer_support;

use std::time::{Duration, Instant};

use hivemind_worker::node::spec::{SpecDefaults, TaskSpec};
use hivemind_worker::rpc::convert::decode_offer;
use offer_support::{FIELDS, MAX_REASON_BYTES, bytes_field, check_ranges, complaint, good, number_field};
use prost::Message;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(limit.max(1)).unwrap()).unwrap()
    }

    fn byte(&mut self) -> u8 {
        u8::try_from(self.next() & 0xff).unwrap()
    }
}

fn mutate(bytes: &mut Vec<u8>, random: &mut Random) {
    const NASTY: [u8; 12] = [0, 1, 0x7f, 0x80, 0xff, b'.', b'/', b'-', b'@', b':', b'*', b'\n'];
    let at = random.below(bytes.len());
    match random.below(7) {
        0 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
        1 if !bytes.is_empty() => bytes[at] = NASTY[random.below(NASTY.len())],
        2 => bytes.insert(at, random.byte()),
        3 if !bytes.is_empty() => drop(bytes.remove(at)),
        4 if random.below(8) == 0 => bytes.truncate(at),
        5 => {
            let end = (at + random.below(32)).min(bytes.len());
            let piece = bytes[at..end].to_vec();
            let to = random.below(bytes.len());
            bytes.splice(to..to, piece);
        }
        _ => {
            let (number, _, right) = FIELDS[random.below(FIELDS.len())];
            let value = random.next() >> random.below(64);
            bytes.extend(if right == 0 { number_field(number, value) } else { bytes_field(number, &[b'a'; 9]) });
        }
    }
}

/// As many as `HM_FAULT_MUTATIONS` says.
#[test]
fn mutations_are_refused_or_within_every_range() {
    let mutations = std::env::var("HM_FAULT_MUTATIONS").map_or(200_000, |text| text.parse::<usize>().unwrap());
    let began = Instant::now();
    let seed = good().encode_to_vec();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (mut taken, mut unread, mut refused) = (0, 0, 0);
    for round in 0..mutations {
        let mut bytes = seed.clone();
        for _ in 0..=random.below(3) {
            mutate(&mut bytes, &mut random);
        }
        let offer = decode_offer(&bytes);
        unread += usize::from(offer.is_err());
        match offer.and_then(|offer| TaskSpec::check(&offer, &SpecDefaults::default())) {
            Ok(spec) => {
                taken += 1;
                check_ranges(&spec);
            }
            Err(error) => {
                refused += 1;
                let reason = error.to_string();
                assert!(reason.len() <= MAX_REASON_BYTES && reason.starts_with(&error.field), "{round}: {reason}");
                if round % 64 == 0 {
                    assert_eq!(
                        complaint(&error.field, decode_offer(&bytes).map(Box::new)),
                        None,
                        "{round}: {bytes:x?}"
                    );
                }
            }
        }
    }
    println!("{taken} taken, {refused} refused, {unread} of them not read, in {:?}", began.elapsed());
    assert!(taken > 1_000 && unread > 1_000 && refused > unread + 1_000, "{taken} {unread} {refused}");
    assert!(began.elapsed() < Duration::from_secs(120), "took {:?}", began.elapsed());
}

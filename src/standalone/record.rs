//! The lines of an attempt's record on disk: one JSON object a line, each with its own number.

use serde::{Deserialize, Serialize};

use crate::node::record::Event;

/// A line of `record.jsonl`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordLine {
    /// When it arrived, milliseconds since 1970 by this master's clock.
    pub arrived_ms: u64,
    /// What arrived.
    pub event: Event,
}

/// A record as it was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct FoundRecord {
    /// Lines that can be read, in order.
    pub lines: Vec<RecordLine>,
    /// Length of the file up to the last of them: what is behind it was never promised and is cut off.
    pub sound_bytes: u64,
    /// Lines in between that can't be read.
    pub broken: u64,
}

/// The bytes of a line.
pub fn encode(line: &RecordLine) -> Vec<u8> {
    // The types have no map with odd keys and no failing serializer, so that only memory could fail here.
    let mut bytes = serde_json::to_vec(line).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

/// Reads a record. A torn end is left out; a broken line in the middle is counted and skipped, since the node has
/// already forgotten what was acknowledged.
pub fn parse(bytes: &[u8]) -> FoundRecord {
    let mut found = FoundRecord::default();
    let mut broken = 0;
    let mut at = 0u64;
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        at += line.len() as u64;
        let last = found.lines.last().map_or(0, |line: &RecordLine| line.event.number);
        let parsed = line.strip_suffix(b"\n").and_then(|text| serde_json::from_slice::<RecordLine>(text).ok());
        match parsed.filter(|line| line.event.number > last) {
            Some(line) => {
                found.lines.push(line);
                found.sound_bytes = at;
                found.broken += std::mem::take(&mut broken);
            }
            None => broken += 1,
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::record::EventKind;

    fn line(number: u64) -> RecordLine {
        RecordLine { arrived_ms: 7, event: Event { number, time_ms: 5, kind: EventKind::Note(format!("n\n{number}")) } }
    }

    #[test]
    fn reads_what_it_wrote_and_leaves_out_a_torn_end_at_every_byte() {
        let bytes: Vec<u8> = (1..4).flat_map(|number| encode(&line(number))).collect();
        let one = encode(&line(1)).len();
        for end in 0..=bytes.len() {
            let found = parse(&bytes[..end]);
            assert_eq!(found.lines.len(), end / one);
            assert_eq!(found.sound_bytes, (end / one * one) as u64);
            assert_eq!(found.broken, 0);
        }
    }

    #[test]
    fn skips_a_broken_line_in_the_middle_and_keeps_what_follows() {
        let bytes = [encode(&line(1)), b"garbage\n".to_vec(), encode(&line(3)), b"{}\n".to_vec()].concat();
        let found = parse(&bytes);
        assert_eq!(found.lines, [line(1), line(3)]);
        assert_eq!(found.broken, 1);
        assert_eq!(found.sound_bytes as usize, bytes.len() - 3);
    }
}

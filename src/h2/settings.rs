//! Settings: their identifiers, what the peer has set, what we set (RFC 9113 section 6.5.2).

use super::error::{ErrorCode, Fault};
use super::flow::{DEFAULT_WINDOW, MAX_WINDOW};

/// SETTINGS_HEADER_TABLE_SIZE.
pub const HEADER_TABLE_SIZE: u16 = 1;
/// SETTINGS_ENABLE_PUSH.
pub const ENABLE_PUSH: u16 = 2;
/// SETTINGS_MAX_CONCURRENT_STREAMS.
pub const MAX_CONCURRENT_STREAMS: u16 = 3;
/// SETTINGS_INITIAL_WINDOW_SIZE.
pub const INITIAL_WINDOW_SIZE: u16 = 4;
/// SETTINGS_MAX_FRAME_SIZE.
pub const MAX_FRAME_SIZE: u16 = 5;
/// SETTINGS_MAX_HEADER_LIST_SIZE.
pub const MAX_HEADER_LIST_SIZE: u16 = 6;

const LEAST_FRAME_SIZE: u32 = 16_384;
const GREATEST_FRAME_SIZE: u32 = 16_777_215;

/// What the peer has set, with the standard's defaults until it does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerSettings {
    /// Greatest size of the table that our encoder may use.
    pub header_table_size: u32,
    /// Streams that we may have open at once.
    pub max_concurrent_streams: u32,
    /// Send window of a new stream.
    pub initial_window_size: u32,
    /// Largest payload that the peer takes.
    pub max_frame_size: u32,
    /// Advice about the largest field list that the peer takes.
    pub max_header_list_size: u32,
}

impl Default for PeerSettings {
    fn default() -> Self {
        PeerSettings {
            header_table_size: 4096,
            max_concurrent_streams: u32::MAX,
            initial_window_size: DEFAULT_WINDOW,
            max_frame_size: LEAST_FRAME_SIZE,
            max_header_list_size: u32::MAX,
        }
    }
}

impl PeerSettings {
    /// Takes the entries of one SETTINGS frame in order; unknown ones are ignored. `from_server` says that the peer
    /// is a server, which must not enable push.
    pub fn apply(&mut self, entries: &[u8], from_server: bool) -> Result<(), Fault> {
        for entry in entries.chunks_exact(6) {
            let [i0, i1, v0, v1, v2, v3] = *entry else { continue };
            let value = u32::from_be_bytes([v0, v1, v2, v3]);
            match u16::from_be_bytes([i0, i1]) {
                HEADER_TABLE_SIZE => self.header_table_size = value,
                ENABLE_PUSH if value > 1 => return Err(protocol("ENABLE_PUSH is neither 0 nor 1")),
                ENABLE_PUSH if from_server && value == 1 => return Err(protocol("server enables push")),
                MAX_CONCURRENT_STREAMS => self.max_concurrent_streams = value,
                INITIAL_WINDOW_SIZE if value > MAX_WINDOW => {
                    return Err(Fault::connection(ErrorCode::FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE above 2^31-1"));
                }
                INITIAL_WINDOW_SIZE => self.initial_window_size = value,
                MAX_FRAME_SIZE if !(LEAST_FRAME_SIZE..=GREATEST_FRAME_SIZE).contains(&value) => {
                    return Err(protocol("MAX_FRAME_SIZE outside its range"));
                }
                MAX_FRAME_SIZE => self.max_frame_size = value,
                MAX_HEADER_LIST_SIZE => self.max_header_list_size = value,
                _ => {}
            }
        }
        Ok(())
    }
}

fn protocol(reason: &'static str) -> Fault {
    Fault::connection(ErrorCode::PROTOCOL_ERROR, reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: u16, value: u32) -> Vec<u8> {
        [id.to_be_bytes().as_slice(), &value.to_be_bytes()].concat()
    }

    #[test]
    fn last_value_wins_and_unknown_settings_are_ignored() {
        let mut peer = PeerSettings::default();
        let entries = [entry(4, 1), entry(0xabcd, 9), entry(4, 2), entry(3, 7)].concat();
        peer.apply(&entries, true).unwrap();
        assert_eq!((peer.initial_window_size, peer.max_concurrent_streams), (2, 7));
    }

    #[test]
    fn refuses_values_outside_their_range() {
        for (id, value, code) in [
            (ENABLE_PUSH, 2, ErrorCode::PROTOCOL_ERROR),
            (ENABLE_PUSH, 1, ErrorCode::PROTOCOL_ERROR),
            (INITIAL_WINDOW_SIZE, 0x8000_0000, ErrorCode::FLOW_CONTROL_ERROR),
            (MAX_FRAME_SIZE, 16_383, ErrorCode::PROTOCOL_ERROR),
            (MAX_FRAME_SIZE, 16_777_216, ErrorCode::PROTOCOL_ERROR),
        ] {
            let got = PeerSettings::default().apply(&entry(id, value), true);
            assert!(matches!(got, Err(Fault::Connection { code: c, .. }) if c == code), "{id} {value}");
        }
        assert_eq!(PeerSettings::default().apply(&entry(ENABLE_PUSH, 1), false), Ok(()));
    }
}

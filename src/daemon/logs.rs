//! Output of the attempts that this node holds, for the monitor and the command line.

use crate::monitor::{LogPart, Logs};
use crate::node::id::AttemptKey;
use crate::standalone::Desk;
use crate::store::Store;

/// Reads what the spool still has. In standalone mode the small master has all of it, so it is asked first.
pub struct NodeLogs {
    /// The spool.
    pub store: Store,
    /// The small master, where there is one.
    pub desk: Option<Desk>,
}

impl Logs for NodeLogs {
    fn read(&self, key: &AttemptKey, stream: u32, offset: u64, max: usize) -> Option<LogPart> {
        let at_master = self.desk.as_ref().and_then(|desk| desk.read_attempt(key, stream, offset, max));
        at_master.or_else(|| self.read_spool(key, stream, offset, max))
    }
}

impl NodeLogs {
    /// Epochs follow each other. What the master has taken is no longer here: reading goes on where the spool begins.
    fn read_spool(&self, key: &AttemptKey, stream: u32, offset: u64, max: usize) -> Option<LogPart> {
        let mut ends = self.store.stream_ends(key);
        ends.retain(|end| end.stream == stream);
        ends.sort_by_key(|end| end.epoch);
        let total = ends.iter().map(|end| end.bytes).sum();
        let mut start = 0;
        for end in &ends {
            if offset < start + end.bytes {
                let bytes = self.store.read_stream(key, stream, end.epoch, offset - start, max);
                return Some(match bytes {
                    Ok(bytes) => LogPart { bytes, offset, end: total, is_closed: false },
                    Err(_) => LogPart { bytes: Vec::new(), offset: start + end.bytes, end: total, is_closed: false },
                });
            }
            start += end.bytes;
        }
        (!ends.is_empty()).then(|| LogPart { bytes: Vec::new(), offset: total, end: total, is_closed: false })
    }
}

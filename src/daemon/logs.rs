//! What the node keeps of its attempts, for the monitor and the command line.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, Sender, TrySendError, bounded};

use crate::monitor::{LogPart, Logs, OutputContent};
use crate::node::id::{AttemptKey, Id};
use crate::node::leftover::{Collecting, LeftOver};
use crate::node::record::FinalReport;
use crate::node::snapshot::HistoryRow;
use crate::sandbox::Ask;
use crate::standalone::Desk;
use crate::store::{Bundles, Store};

/// What a collection may take while somebody waits; below the monitor's longest answer.
const COLLECTION: Duration = Duration::from_secs(40);

/// Reads what the spool still has. In standalone mode the small master has all of it, so it is asked first.
pub struct NodeLogs {
    /// The spool.
    pub store: Store,
    /// The small master, where there is one.
    pub desk: Option<Desk>,
    /// Of attempts that failed.
    pub bundles: Arc<Bundles>,
    /// To the collector, which the safe state has not.
    pub collector: Sender<Ask>,
}

impl Logs for NodeLogs {
    fn read(&self, key: &AttemptKey, stream: u32, offset: u64, max: usize) -> Option<LogPart> {
        let at_master = self.desk.as_ref().and_then(|desk| desk.read_attempt(key, stream, offset, max));
        at_master.or_else(|| self.read_spool(key, stream, offset, max))
    }

    fn latest(&self, task: &Id) -> Option<u32> {
        self.store.latest_attempt(task)
    }

    fn ended(&self, key: &AttemptKey) -> Option<HistoryRow> {
        self.store.history_row(key)
    }

    fn report(&self, key: &AttemptKey) -> Option<FinalReport> {
        self.store.final_report(key)
    }

    fn bundle(&self, key: &AttemptKey) -> Option<OutputContent> {
        let (file, size) = self.bundles.read(key).ok()?;
        Some(OutputContent { reader: Box::new(file), size })
    }

    fn collect(&self, how: Collecting) -> Result<Vec<LeftOver>, String> {
        let (reply, answer) = bounded(1);
        self.collector.try_send(Ask { how, reply }).map_err(|error| match error {
            TrySendError::Full(_) => "collections are under way; try again".to_owned(),
            TrySendError::Disconnected(_) => {
                "nothing is collected in the safe state, or while the worker ends".to_owned()
            }
        })?;
        answer.recv_timeout(COLLECTION).map_err(|error| match error {
            RecvTimeoutError::Timeout => "the engine takes long; the log will say what was removed".to_owned(),
            RecvTimeoutError::Disconnected => "the worker is ending".to_owned(),
        })?
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

//! Writes a byte stream into segment files, on the thread that has the bytes: they take no way through a channel.

use std::fs::File;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use super::files;
use super::outbox::Outbox;
use super::queue::StreamKey;
use super::spool::Segment;
use super::stamp::{self, Stamp, Sum};
use crate::node::id::AttemptKey;
use crate::node::record::StreamEnd;

/// A segment file is full at this size. Disk comes back in such steps while a stream is still written.
pub(super) const SEGMENT_BYTES: u64 = 4 << 20;
/// Bytes that a power loss may take, at the most ...
const SYNC_BYTES: u64 = 1 << 20;
/// ... and their age, while more bytes come.
const SYNC_AFTER: Duration = Duration::from_secs(1);

/// The one writer of a stream. Dropping it closes the stream too.
pub struct StreamWriter {
    outbox: Outbox,
    key: AttemptKey,
    name: StreamKey,
    /// Absent while there is no room to make it.
    file: Option<File>,
    /// Of the segment's first byte.
    segment: u64,
    written: u64,
    unsynced: u64,
    /// Of the unsynced bytes.
    sum: Sum,
    /// Whether the file has a stamp.
    is_stamped: bool,
    synced_at: Instant,
    is_folder_dirty: bool,
    /// Bytes of all logs of the attempt together.
    budget: Option<u64>,
    dropped: u64,
}

impl StreamWriter {
    pub(super) fn open(outbox: Outbox, key: AttemptKey, name: StreamKey, budget: Option<u64>) -> io::Result<Self> {
        let written = outbox.begin_stream(&key, name)?;
        let mut writer = Self {
            outbox,
            key,
            name,
            file: None,
            segment: written,
            written,
            unsynced: 0,
            sum: Sum::default(),
            is_stamped: false,
            synced_at: Instant::now(),
            is_folder_dirty: false,
            budget,
            dropped: 0,
        };
        // Even an empty stream is a file, so that a restart knows of it.
        match writer.begin_segment() {
            Err(error) if !files::is_full(&error) => Err(error),
            _ => Ok(writer),
        }
    }

    /// Appends what fits into the log budget and onto the disk, and counts the rest. Gives the bytes appended.
    ///
    /// # Errors
    /// The disk is at fault, or the attempt is over. Lack of space is no error: the task goes on without these bytes.
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<u64> {
        let room = match self.budget {
            Some(budget) => budget.saturating_sub(self.outbox.log_bytes(&self.key)),
            None => u64::MAX,
        };
        let within = usize::try_from(room).unwrap_or(usize::MAX).min(bytes.len());
        let before = self.written;
        let result = self.write_all(bytes.get(..within).unwrap_or(bytes));
        let appended = self.written - before;
        let wanted = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.dropped = self.dropped.saturating_add(wanted - appended);
        self.outbox.progress(&self.key, self.name, self.written)?;
        match result {
            Err(error) if !files::is_full(&error) => return Err(error),
            _ => {}
        }
        self.sync_if_due()?;
        Ok(appended)
    }

    /// Bytes that were not kept, for lack of budget or space.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Syncs if bytes have waited long enough. `append` does so too; call it when the source is silent.
    ///
    /// # Errors
    /// The disk is at fault.
    pub fn sync_if_due(&mut self) -> io::Result<()> {
        if self.unsynced >= SYNC_BYTES || (self.unsynced > 0 && self.synced_at.elapsed() >= SYNC_AFTER) {
            self.sync()
        } else {
            Ok(())
        }
    }

    /// Syncs the rest and ends the stream.
    pub fn close(mut self) -> StreamEnd {
        self.end();
        StreamEnd { stream: self.name.0, epoch: self.name.1, bytes: self.written }
    }

    fn end(&mut self) {
        if let Err(error) = self.sync_whole() {
            log::error!("cannot sync stream {} of {}: {error}", self.name.0, self.key);
        }
        self.outbox.end_stream(&self.key, self.name);
    }

    fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.file.is_none() || self.written - self.segment >= SEGMENT_BYTES {
                // What a new segment follows is synced: so a loss can only be at a stream's end.
                self.sync_whole()?;
                self.begin_segment()?;
            }
            let room = SEGMENT_BYTES - (self.written - self.segment);
            let part = usize::try_from(room).unwrap_or(usize::MAX).min(bytes.len());
            let Some(file) = self.file.as_mut() else { break };
            match file.write(bytes.get(..part).unwrap_or(bytes)) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    let grown = u64::try_from(count).unwrap_or(u64::MAX);
                    self.written += grown;
                    self.unsynced += grown;
                    self.sum.add(bytes.get(..count).unwrap_or_default());
                    bytes = bytes.get(count..).unwrap_or_default();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn begin_segment(&mut self) -> io::Result<()> {
        if self.budget.is_some() {
            self.outbox.make_room_for_logs();
        }
        self.file = None;
        self.segment = self.written;
        let segment = Segment { stream: self.name.0, epoch: self.name.1, offset: self.written };
        let path = self.outbox.spool().segment(&self.key, segment);
        let file = files::create_new(&path)?;
        // Without its stamp it must not get a byte; where there is no room for that, there may be later.
        match Stamp::new(self.outbox.spool().boot(), 0, 0, Sum::default()).and_then(|stamp| stamp.set(&file)) {
            Ok(()) => self.is_stamped = true,
            Err(error) if stamp::is_unknown(&error) => self.is_stamped = false,
            Err(error) => {
                files::remove_if_there(&path)?;
                return Err(error);
            }
        }
        self.file = Some(file);
        self.is_folder_dirty = true;
        self.outbox.begin_segment(&self.key, self.name, self.written);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        if let Some(file) = self.file.as_ref().filter(|_| self.unsynced > 0) {
            if self.is_stamped {
                let end = self.written - self.segment;
                let boot = self.outbox.spool().boot();
                Stamp::new(boot, end - self.unsynced, end, self.sum.clone())?.set(file)?;
                // An attribute is no data: it takes part in a whole sync only.
                file.sync_all()?;
            } else {
                file.sync_data()?;
            }
        }
        if self.is_folder_dirty {
            files::sync_folder(&self.outbox.spool().folder(&self.key))?;
        }
        self.is_folder_dirty = false;
        self.unsynced = 0;
        self.sum = Sum::default();
        self.synced_at = Instant::now();
        Ok(())
    }

    /// Syncs a segment that gets no more bytes.
    fn sync_whole(&mut self) -> io::Result<()> {
        self.sync()?;
        if let Some(file) = self.file.as_ref().filter(|_| self.is_stamped)
            && let Err(error) = stamp::remove(file)
        {
            log::warn!("stream {} of {} keeps its stamp: {error}", self.name.0, self.key);
        }
        self.is_stamped = false;
        Ok(())
    }
}

impl Drop for StreamWriter {
    fn drop(&mut self) {
        self.end();
    }
}

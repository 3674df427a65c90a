//! The output of a container: attached live, or read from the engine's log.

use std::time::Duration;

use super::Docker;
use super::call::{Call, Stream, operation};
use super::containers::{LogOptions, container};
use super::error::Error;
use super::frames::{Demultiplexer, FrameError, Piece};
use super::transport::Patience;

/// The piece in which output is read: twice what the engine writes at once, for one that has much to write.
const BUFFER: usize = 64 << 10;

/// A blocking reader of a container's output.
///
/// It is released by the `Stop` of the handle that made it. What the kernel had received by then is still given out.
pub struct OutputStream {
    stream: Stream,
    demultiplexer: Demultiplexer,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Docker {
    /// Attaches to the output of a container and returns as soon as the engine has done so. Attached before the start,
    /// the stream has every byte. It ends when the container ends, but never where the container had ended before or is
    /// removed before its start: bind a `Stop`.
    pub fn attach(&self, id: &str) -> Result<OutputStream, Error> {
        let target = container(id).word("attach").query("stream", "1").query("stdout", "1").query("stderr", "1");
        let patience = Patience::Idle(self.timeouts().quick, None);
        self.output(Call::post(target, operation("attach to container", id)).patience(patience).raw())
    }

    /// What the engine's log has of a container's output by now. `idle` bounds each gap.
    pub fn logs(&self, id: &str, options: &LogOptions, idle: Duration) -> Result<OutputStream, Error> {
        let flag = |on| if on { "1" } else { "0" };
        let mut target = container(id)
            .word("logs")
            .query("follow", "0")
            .query("stdout", flag(options.stdout))
            .query("stderr", flag(options.stderr))
            .query("timestamps", flag(options.timestamps));
        if let Some(since) = &options.since {
            target = target.query("since", since);
        }
        if let Some(tail) = options.tail {
            target = target.query("tail", &tail.to_string());
        }
        let patience = Patience::Idle(idle, Some(idle));
        self.output(Call::get(target, operation("read the log of container", id)).patience(patience))
    }

    fn output(&self, call: Call<'_>) -> Result<OutputStream, Error> {
        let stream = self.send(call)?.body;
        Ok(OutputStream { stream, demultiplexer: Demultiplexer::new(), buffer: vec![0; BUFFER], start: 0, end: 0 })
    }
}

impl OutputStream {
    /// Waits for the next piece of output; `None` at the end. Pieces are as they come: a line may be in several.
    pub fn next_piece(&mut self) -> Result<Option<Piece<'_>>, Error> {
        let (kind, from, to) = loop {
            if self.start == self.end {
                self.start = 0;
                self.end = self.stream.read_some(&mut self.buffer)?;
                if self.end == 0 {
                    self.demultiplexer.handle_end().map_err(|error| self.failed(&error))?;
                    return Ok(None);
                }
            }
            let input = &self.buffer[self.start..self.end];
            let (taken, piece) = self.demultiplexer.handle_input(input).map_err(|error| self.failed(&error))?;
            self.start += taken;
            if let Some((kind, piece)) = piece {
                // A piece is always the last of what was taken.
                break (kind, self.start - piece.len(), self.start);
            }
        };
        Ok(Some((kind, &self.buffer[from..to])))
    }

    fn failed(&self, error: &FrameError) -> Error {
        match error {
            FrameError::Engine(message) => self.stream.refused(message),
            error => self.stream.protocol(error.to_string()),
        }
    }
}

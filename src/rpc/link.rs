//! One connected transport with the gRPC client on it: what a lane has one of, and a second while a server drains it.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use super::poll::Interest;
use super::transport::{Buffer, Outgoing, Reading, Transport};
use crate::grpc::{CallError, CallId, Client, ClientEvent, Response};
use crate::h2::{ConnectionError, ErrorCode};

/// The end of a call.
pub(super) type Answer = (CallId, Result<Response, CallError>);

/// How a link ended.
#[derive(Debug)]
pub(super) struct End {
    /// For people.
    pub(super) reason: String,
    /// It was said beforehand, without an error.
    pub(super) is_orderly: bool,
}

impl From<String> for End {
    fn from(reason: String) -> End {
        End { reason, is_orderly: false }
    }
}

/// A connection and its calls.
#[derive(Debug)]
pub(super) struct Link {
    transport: Transport,
    pub(super) client: Client,
    out: Outgoing,
    buffer: Buffer,
    pub(super) peer: SocketAddr,
    /// The peer has shown that it speaks HTTP/2.
    pub(super) is_ready: bool,
    /// The socket did not take all that was written.
    is_blocked: bool,
}

impl Link {
    pub(super) fn new(transport: Transport, client: Client, peer: SocketAddr) -> Link {
        Link {
            transport,
            client,
            out: Outgoing::default(),
            buffer: Buffer::default(),
            peer,
            is_ready: false,
            is_blocked: false,
        }
    }

    pub(super) fn interest(&self) -> Interest<'_> {
        use std::os::fd::AsFd;
        Interest { fd: self.transport.as_fd(), read: true, write: self.is_blocked }
    }

    /// Waits for bytes alone; false when that can't be done, as there is something to write or the time is too short.
    pub(super) fn wait(&mut self, timeout: Duration) -> bool {
        !self.is_blocked && self.transport.wait(timeout)
    }

    /// Reads, does what is due and writes, none of it waiting. The answers of ended calls go to `answers`. An error is
    /// the end of the link, and says why; its calls are answered.
    pub(super) fn drive(&mut self, now: Duration, can_read: bool, answers: &mut VecDeque<Answer>) -> Result<(), End> {
        let read = if can_read { self.read(now) } else { Ok(Reading::Open) };
        self.client.handle_timeout(now);
        let mut end = self.take_events(answers);
        if end.is_none() {
            end = match read {
                Ok(Reading::Open) => self.write().err().map(|reason| {
                    // What the server said before it closed may lie in the socket: answers, and GOAWAY.
                    let _ = self.read(now);
                    self.take_events(answers).unwrap_or_else(|| End::from(reason))
                }),
                Ok(Reading::Ended) => Some(End::from("server closed the connection".to_owned())),
                Err(reason) => Some(End::from(reason)),
            };
        }
        let Some(end) = end else { return Ok(()) };
        self.close(now, answers);
        Err(end)
    }

    /// Ends the link; its calls are answered.
    pub(super) fn close(&mut self, now: Duration, answers: &mut VecDeque<Answer>) {
        self.client.poll_transmit(&mut self.out.bytes);
        self.transport.close(&mut self.out);
        self.client.handle_eof(now);
        self.take_events(answers);
    }

    fn read(&mut self, now: Duration) -> Result<Reading, String> {
        let client = &mut self.client;
        self.transport.read(&mut self.buffer, &mut |bytes| client.handle_bytes(bytes, now))
    }

    /// Writes until nothing is left or the socket is full. Only what one `poll_transmit` yields waits here.
    fn write(&mut self) -> Result<(), String> {
        loop {
            if self.out.is_empty() && self.transport.is_established() {
                self.client.poll_transmit(&mut self.out.bytes);
            }
            let is_idle = self.out.is_empty();
            self.is_blocked = !self.transport.write(&mut self.out)?;
            if is_idle || self.is_blocked || !self.transport.is_established() {
                return Ok(());
            }
        }
    }

    /// Returns why the connection ended, if it did.
    fn take_events(&mut self, answers: &mut VecDeque<Answer>) -> Option<End> {
        let mut end = None;
        while let Some(event) = self.client.poll_event() {
            match event {
                ClientEvent::Ready => self.is_ready = true,
                ClientEvent::Answer { id, result } => answers.push_back((id, result)),
                ClientEvent::GoAway => {}
                ClientEvent::Closed { error } => {
                    // Closed here: the server refused a stream.
                    let is_orderly = matches!(
                        error,
                        ConnectionError::GoneAway { code: ErrorCode::NO_ERROR, .. }
                            | ConnectionError::Local { code: ErrorCode::NO_ERROR }
                    );
                    let reason = match self.transport.is_established() {
                        true => error.to_string(),
                        false => "server did not finish the TLS handshake in time".to_owned(),
                    };
                    end = Some(End { reason, is_orderly });
                }
            }
        }
        end
    }
}

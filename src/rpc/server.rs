//! A gRPC server on one listener: one thread that blocks in [`Server::next`] only.
//!
//! Plain TCP for loopback, or TLS. Slow, silent and too many peers are cut off; what one peer does, a handshake that fails
//! or never ends included, reaches no other connection.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{Shutdown, shutdown};

use super::poll::{self, Interest};
use super::socket::Socket;
use super::tls;
use super::transport::{Buffer, Outgoing, Reading, Transport};
use super::wake::{Wake, Waker};
use crate::grpc::{self, Metadata, Reply, ServerConfig};
use crate::h2::{Instant, StreamId};
use crate::sys::clock::boottime;

/// Connections at once. A node has two lanes; more wait in the listener's backlog.
const MAX_CONNECTIONS: usize = 64;
/// A connection without calls is kept this long: it costs a slot only.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30 * 60);
/// A peer that reads nothing of what waits for it is cut off.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// A TLS handshake that takes longer has failed: two round trips, and time for a lost packet or two.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// After a failed accept, most likely for want of descriptors, others have time to close some.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Names a request until it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerCallId {
    connection: u64,
    stream: StreamId,
}

/// What happened.
#[derive(Debug)]
pub enum ServerEvent {
    /// A request to answer with [`Server::respond`], now or much later.
    Request {
        /// To answer with.
        call: ServerCallId,
        /// `/package.Service/Method`.
        path: String,
        /// Beside the message.
        metadata: Metadata,
        /// The message.
        body: Vec<u8>,
        /// When the caller gives up, if it said so.
        deadline: Option<Instant>,
    },
    /// A request needs no answer any more: its caller cancelled it, has gone, or its deadline has passed.
    Cancelled(ServerCallId),
    /// The [`Waker`] was used.
    Woken,
    /// The time that was given to [`Server::next`] has come.
    TimedOut,
}

#[derive(Debug)]
struct Connection {
    id: u64,
    peer: SocketAddr,
    transport: Transport,
    grpc: grpc::Server,
    out: Outgoing,
    can_read: bool,
    is_blocked: bool,
    accepted_at: Instant,
    /// When bytes last moved, either way.
    last_progress: Instant,
}

/// The server.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    config: ServerConfig,
    tls: Option<Arc<rustls::ServerConfig>>,
    wake: Wake,
    connections: Vec<Connection>,
    next_connection: u64,
    /// What the last poll found of the wake and the listener.
    is_woken: bool,
    can_accept: bool,
    accept_after: Instant,
    events: VecDeque<ServerEvent>,
    buffer: Buffer,
}

impl Server {
    /// Listens on this address, with the default limits.
    pub fn bind(address: SocketAddr) -> io::Result<Server> {
        Server::bind_with(address, ServerConfig::default())
    }

    /// Listens on this address.
    pub fn bind_with(address: SocketAddr, config: ServerConfig) -> io::Result<Server> {
        Server::listen(address, config, None)
    }

    /// Listens on this address and speaks TLS only, with a configuration from [`tls::server_config`].
    pub fn bind_tls(address: SocketAddr, config: ServerConfig, tls: Arc<rustls::ServerConfig>) -> io::Result<Server> {
        Server::listen(address, config, Some(tls))
    }

    fn listen(address: SocketAddr, config: ServerConfig, tls: Option<Arc<rustls::ServerConfig>>) -> io::Result<Server> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(Server {
            listener,
            config,
            tls,
            wake: Wake::new()?,
            connections: Vec::new(),
            next_connection: 0,
            is_woken: false,
            can_accept: false,
            accept_after: Duration::ZERO,
            events: VecDeque::new(),
            buffer: Buffer::default(),
        })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Wakes [`Server::next`] from another thread.
    pub fn waker(&self) -> Waker {
        self.wake.waker()
    }

    /// Answers a request; it is sent by [`Server::next`]. An answer to one that is cancelled is dropped.
    pub fn respond(&mut self, call: ServerCallId, reply: impl Into<Reply>) {
        let connection = self.connections.iter_mut().find(|c| c.id == call.connection);
        if let Some(connection) = connection {
            connection.grpc.respond(call.stream, reply, boottime());
        }
    }

    /// Takes no new requests; connections end when those under way are answered.
    pub fn close(&mut self) {
        let now = boottime();
        self.connections.iter_mut().for_each(|c| c.grpc.close(now));
    }

    /// Requests and answers under way.
    pub fn open_calls(&self) -> usize {
        self.connections.iter().map(|c| c.grpc.open_calls()).sum()
    }

    /// Waits for what happens next, at most until this time. With a time that has passed it looks once and returns.
    pub fn next(&mut self, until: Instant) -> ServerEvent {
        let mut has_looked = false;
        loop {
            let now = boottime();
            self.drive(now);
            if let Some(event) = self.events.pop_front() {
                return event;
            }
            if std::mem::take(&mut self.is_woken) && self.wake.take() {
                return ServerEvent::Woken;
            }
            if has_looked && now >= until {
                return ServerEvent::TimedOut;
            }
            self.wait(now, until);
            has_looked = true;
        }
    }

    fn drive(&mut self, now: Instant) {
        if std::mem::take(&mut self.can_accept) {
            self.accept(now);
        }
        let events = &mut self.events;
        let buffer = &mut self.buffer;
        self.connections.retain_mut(|connection| connection.drive(now, buffer, events));
    }

    fn accept(&mut self, now: Instant) {
        while self.connections.len() < MAX_CONNECTIONS {
            let (socket, peer) = match self.listener.accept() {
                Ok(accepted) => accepted,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => return self.accept_after = now + ACCEPT_PAUSE,
            };
            // Without it answers are slower, but right.
            let _ = socket.set_nodelay(true);
            let Ok(socket) = Socket::new(socket) else { continue };
            let Some(transport) = self.transport(socket, peer) else { continue };
            self.next_connection += 1;
            self.connections.push(Connection {
                id: self.next_connection,
                peer,
                transport,
                grpc: grpc::Server::new(self.config.clone(), now),
                out: Outgoing::default(),
                can_read: true,
                is_blocked: false,
                accepted_at: now,
                last_progress: now,
            });
        }
    }

    fn transport(&self, socket: Socket, peer: SocketAddr) -> Option<Transport> {
        let Some(config) = &self.tls else { return Some(Transport::Plain(socket)) };
        match tls::server_session(config) {
            Ok(session) => Some(Transport::tls(socket, session.into(), peer.to_string())),
            Err(error) => {
                log::warn!("no TLS with {peer}: {error}");
                None
            }
        }
    }

    /// The one blocking point.
    fn wait(&mut self, now: Instant, until: Instant) {
        let can_accept = self.connections.len() < MAX_CONNECTIONS && now >= self.accept_after;
        let pause = (now < self.accept_after).then_some(self.accept_after);
        let timeouts = self.connections.iter().map(Connection::poll_timeout);
        let due = timeouts.chain(pause).chain([until]).min().unwrap_or(until);
        let mut interests = vec![
            Interest::read(self.wake.as_fd()),
            Interest { fd: self.listener.as_fd(), read: can_accept, write: false },
        ];
        interests.extend(self.connections.iter().map(|c| Interest {
            fd: c.transport.as_fd(),
            read: true,
            write: c.is_blocked,
        }));
        let ready = poll::wait(&interests, due.saturating_sub(now));
        self.is_woken = ready.has(0);
        self.can_accept = can_accept && ready.has(1);
        for (i, connection) in self.connections.iter_mut().enumerate() {
            connection.can_read = ready.has(i + 2);
        }
    }
}

impl Drop for Server {
    /// Gives its port back at once: a child that another thread has forked holds the listening socket until it executes
    /// its program, and closing ours would leave it listening.
    fn drop(&mut self) {
        // It fails where the socket does not listen, and then there is nothing to give back.
        let _ = shutdown(&self.listener, Shutdown::Both);
    }
}

impl Connection {
    /// Reads, does what is due and writes, none of it waiting; false when the connection has ended.
    fn drive(&mut self, now: Instant, buffer: &mut Buffer, events: &mut VecDeque<ServerEvent>) -> bool {
        let read = self.read(now, buffer);
        self.grpc.handle_timeout(now);
        let is_open = self.take_events(events);
        // A peer that failed the handshake, or has no HTTP/2, gets nothing of it.
        let is_written = read.is_some() && self.write(now);
        if is_open && read == Some(Reading::Open) && is_written && now < self.give_up() {
            return true;
        }
        self.transport.close(&mut self.out);
        self.grpc.handle_eof(now);
        self.take_events(events);
        false
    }

    /// Nothing when the connection is broken.
    fn read(&mut self, now: Instant, buffer: &mut Buffer) -> Option<Reading> {
        if !std::mem::take(&mut self.can_read) {
            return Some(Reading::Open);
        }
        let (grpc, last_progress) = (&mut self.grpc, &mut self.last_progress);
        let read = self.transport.read(buffer, &mut |bytes| {
            *last_progress = now;
            grpc.handle_bytes(bytes, now);
        });
        read.inspect_err(|reason| log::debug!("connection {} from {} ends: {reason}", self.id, self.peer)).ok()
    }

    fn write(&mut self, now: Instant) -> bool {
        loop {
            if self.out.is_empty() && self.transport.is_established() {
                self.grpc.poll_transmit(&mut self.out.bytes);
            }
            let (is_idle, before) = (self.out.is_empty(), self.out.taken);
            let Ok(is_done) = self.transport.write(&mut self.out) else { return false };
            if self.out.taken > before {
                self.last_progress = now;
            }
            self.is_blocked = !is_done;
            if is_idle || self.is_blocked || !self.transport.is_established() {
                return true;
            }
        }
    }

    /// False when the connection has ended.
    fn take_events(&mut self, events: &mut VecDeque<ServerEvent>) -> bool {
        let mut is_open = true;
        while let Some(event) = self.grpc.poll_event() {
            let call = |stream| ServerCallId { connection: self.id, stream };
            match event {
                grpc::ServerEvent::Request(r) => events.push_back(ServerEvent::Request {
                    call: call(r.id),
                    path: r.path,
                    metadata: r.metadata,
                    body: r.body,
                    deadline: r.deadline,
                }),
                grpc::ServerEvent::Cancelled { id } => events.push_back(ServerEvent::Cancelled(call(id))),
                grpc::ServerEvent::Closed { .. } => is_open = false,
            }
        }
        is_open
    }

    /// When a silent peer is cut off, or one that is slow with its handshake, however busy it is. While calls run silence
    /// is allowed: long polls are silent.
    fn give_up(&self) -> Instant {
        if !self.transport.is_established() {
            return self.accepted_at + HANDSHAKE_TIMEOUT;
        }
        match (self.is_blocked, self.grpc.open_calls()) {
            (true, _) => self.last_progress + WRITE_TIMEOUT,
            (false, 0) => self.last_progress + IDLE_TIMEOUT,
            (false, _) => Duration::MAX,
        }
    }

    fn poll_timeout(&self) -> Instant {
        self.grpc.poll_timeout().map_or(self.give_up(), |at| at.min(self.give_up()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_port_is_free_when_it_is_gone_even_where_a_child_still_holds_the_socket() {
        let server = Server::bind((std::net::Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let address = server.local_addr().unwrap();
        // What a fork does.
        let _inherited = server.listener.try_clone().unwrap();
        drop(server);
        Server::bind(address).unwrap();
    }
}

//! tiny_http on its private socket, and the way from its requests to the routes.
//!
//! It ends its accept loop at the first error, so it is started anew then; a thread for each request keeps a long poll or
//! a large download from holding up others, and the gate bounds how many there are.

use std::fs::{self, Permissions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::control::remove_if_there;
use super::head::Method;
use super::relay::{DOOR_CONTROL, DOOR_FIELD};
use super::routes::{self, Ask, Body, Context, Reply};
use crate::sys::watch::Watch;

/// Name of the private socket in the state folder.
pub const PRIVATE_SOCKET: &str = "monitor.sock";
/// Wait before tiny_http is started anew.
const RESTART: Duration = Duration::from_millis(100);

type Current = Watch<Option<Arc<tiny_http::Server>>>;

/// The running server.
pub struct Server {
    thread: JoinHandle<()>,
    current: Current,
}

impl Server {
    /// Listens at `private`, which is replaced: the lock on the state folder says that nobody else uses it.
    pub fn start(private: &Path, context: Context) -> io::Result<Self> {
        let current = Watch::new(Some(Arc::new(listen(private)?)));
        let (path, cell) = (private.to_owned(), current.clone());
        let thread = thread::Builder::new()
            .name("monitor-http".to_owned())
            .stack_size(128 * 1024)
            .spawn(move || run(&path, &cell, &context))?;
        Ok(Self { thread, current })
    }

    /// Waits for the requests under way. The stop cell must be set before.
    pub fn stop(self) {
        if let Some(server) = self.current.latest().as_ref() {
            server.unblock();
        }
        if self.thread.join().is_err() {
            log::error!("the monitor's server had panicked");
        }
    }
}

fn listen(private: &Path) -> io::Result<tiny_http::Server> {
    remove_if_there(private)?;
    let listener = UnixListener::bind(private)?;
    fs::set_permissions(private, Permissions::from_mode(0o600))?;
    tiny_http::Server::from_listener(listener, None).map_err(io::Error::other)
}

/// Serves until the stop cell is set. A new server is shown before the cell is looked at, and `stop` sets the cell before
/// it looks for the server: so one of both sees the other.
fn run(private: &Path, current: &Current, context: &Context) {
    while !*context.stop.latest() {
        if let Some(server) = current.latest().as_ref() {
            thread::scope(|scope| serve(scope, server, context));
            current.set(None);
        } else {
            context.stop.wait_newer(0, RESTART);
            match listen(private) {
                Ok(server) => current.set(Some(Arc::new(server))),
                Err(error) => log::warn!("failed to start the monitor's server at {}: {error}", private.display()),
            }
        }
    }
    current.set(None);
}

fn serve<'scope>(scope: &'scope thread::Scope<'scope, '_>, server: &tiny_http::Server, context: &'scope Context) {
    loop {
        let request = match server.recv() {
            Ok(request) => request,
            Err(error) => {
                if !*context.stop.latest() {
                    log::warn!("the monitor's server starts anew: {error}");
                }
                return;
            }
        };
        let spawned = thread::Builder::new()
            .name("monitor-request".to_owned())
            .stack_size(512 * 1024)
            .spawn_scoped(scope, move || handle(request, context));
        // The request went with the closure, and dropping it has answered 500.
        if let Err(error) = spawned {
            log::warn!("failed to start a thread for a request to the monitor: {error}");
        }
    }
}

fn handle(mut request: tiny_http::Request, context: &Context) {
    let method = match request.method() {
        tiny_http::Method::Get => Method::Get,
        tiny_http::Method::Head => Method::Head,
        tiny_http::Method::Post => Method::Post,
        _ => Method::Other,
    };
    let is_control =
        request.headers().iter().any(|field| field.field.equiv(DOOR_FIELD) && field.value.as_str() == DOOR_CONTROL);
    let ask = Ask::new(method, request.url(), is_control);
    let left = request.body_length().unwrap_or_default();
    let mut body = Exactly { inner: request.as_reader(), left };
    let reply = match ask {
        Some(ask) => routes::answer(context, &ask, &mut body),
        None => Reply::error(404, "there is nothing here"),
    };
    // The gate sends the whole body before it reads the answer; what nobody wanted is taken here, in small pieces.
    let _ = io::copy(&mut body, &mut io::sink());
    if let Err(error) = request.respond(to_response(reply)) {
        log::debug!("an answer of the monitor was not taken: {error}");
    }
}

fn to_response(reply: Reply) -> tiny_http::Response<Box<dyn Read + Send>> {
    let (reader, len): (Box<dyn Read + Send>, u64) = match reply.body {
        Body::Bytes(bytes) => {
            let len = bytes.len() as u64;
            (Box::new(io::Cursor::new(bytes)), len)
        }
        Body::Stream(content) => (Box::new(content.reader.take(content.size)), content.size),
    };
    let fields = reply
        .fields
        .iter()
        .filter_map(|(name, value)| tiny_http::Header::from_bytes(name.as_bytes(), value.as_bytes()).ok())
        .collect();
    let len = usize::try_from(len).ok();
    // Always with a length, so that a client can tell a whole answer from a cut one.
    tiny_http::Response::new(reply.status.into(), fields, reader, len, None).with_chunked_threshold(usize::MAX)
}

/// A body of known length: an early end is an error, not the end.
struct Exactly<'a> {
    inner: &'a mut dyn Read,
    left: usize,
}

impl Read for Exactly<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(self.left);
        if most == 0 {
            return Ok(0);
        }
        let len = self.inner.read(&mut buffer[..most])?;
        if len == 0 {
            return Err(io::Error::new(ErrorKind::UnexpectedEof, "the body ended early"));
        }
        self.left -= len;
        Ok(len)
    }
}

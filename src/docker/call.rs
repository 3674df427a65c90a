//! One call: sends it under the negotiated version, tells success from refusal, reads bounded bodies.

use std::io::{self, Read};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::{Error, printable};
use super::stop::Stop;
use super::target::Target;
use super::transport::{BodyReader, Failure, Form, Outgoing, Patience, Payload, Route, exchange};
use super::{ApiVersion, Docker};

/// The largest JSON answer. An inspect has some 10 KiB; a list of a thousand containers 2 MiB.
pub(super) const MAX_JSON: u64 = 10 << 20;
/// The largest body of a refusal that is read.
const MAX_REFUSAL: u64 = 64 << 10;
/// How much of the engine's words is kept.
const MAX_MESSAGE: usize = 2048;
/// How much of an unexpected answer is shown.
const MAX_EXCERPT: usize = 80;
/// How much of a name is shown.
const MAX_NAME: usize = 128;

/// A call to be sent.
pub(super) struct Call<'a> {
    method: &'static str,
    target: Target,
    operation: String,
    registry_auth: Option<String>,
    payload: Payload<'a>,
    patience: Option<Patience>,
    form: Form,
}

impl<'a> Call<'a> {
    fn new(method: &'static str, target: Target, operation: String) -> Call<'a> {
        Call {
            method,
            target,
            operation,
            registry_auth: None,
            payload: Payload::None,
            patience: None,
            form: Form::Http,
        }
    }

    pub(super) fn get(target: Target, operation: String) -> Call<'a> {
        Call::new("GET", target, operation)
    }

    pub(super) fn post(target: Target, operation: String) -> Call<'a> {
        Call::new("POST", target, operation)
    }

    pub(super) fn put(target: Target, operation: String) -> Call<'a> {
        Call::new("PUT", target, operation)
    }

    pub(super) fn delete(target: Target, operation: String) -> Call<'a> {
        Call::new("DELETE", target, operation)
    }

    pub(super) fn json(mut self, body: &impl Serialize) -> Result<Call<'a>, Error> {
        let bytes = serde_json::to_vec(body)
            .map_err(|error| Error::Input { operation: self.operation.clone(), source: error.into() })?;
        self.payload = Payload::Json(bytes);
        Ok(self)
    }

    pub(super) fn archive(mut self, reader: &'a mut dyn Read) -> Call<'a> {
        self.payload = Payload::Archive(reader);
        self
    }

    pub(super) fn registry_auth(mut self, value: Option<String>) -> Call<'a> {
        self.registry_auth = value;
        self
    }

    /// Another deadline than that of a quick call.
    pub(super) fn within(mut self, limit: Duration) -> Call<'a> {
        self.patience = Some(Patience::Within(Some(limit)));
        self
    }

    /// The answer is a stream of bytes that only ends with its connection.
    pub(super) fn raw(mut self) -> Call<'a> {
        self.form = Form::Raw;
        self
    }

    pub(super) fn patience(mut self, patience: Patience) -> Call<'a> {
        self.patience = Some(patience);
        self
    }
}

/// "verb name", the name made harmless.
pub(super) fn operation(verb: &str, name: &str) -> String {
    format!("{verb} {}", printable(name, MAX_NAME))
}

/// A good answer, or a 304.
pub(super) struct Reply {
    pub(super) status: u16,
    content_type: String,
    pub(super) api_version: Option<String>,
    pub(super) body: Stream,
}

/// The body of an answer, read as it comes.
pub(super) struct Stream {
    reader: BodyReader,
    route: Route,
    operation: String,
}

impl Docker {
    /// Sends the call under the negotiated version.
    pub(super) fn send(&self, call: Call<'_>) -> Result<Reply, Error> {
        let version = self.api()?;
        self.send_as(Some(version), call)
    }

    /// Sends the call under a version, or without one (only the ping).
    pub(super) fn send_as(&self, version: Option<ApiVersion>, call: Call<'_>) -> Result<Reply, Error> {
        let route = self.route();
        let operation = call.operation;
        let path = call.target.finish().map_err(|source| Error::Input { operation: operation.clone(), source })?;
        let outgoing = Outgoing {
            method: call.method,
            path: version.map_or_else(|| path.clone(), |version| format!("/v{version}{path}")),
            registry_auth: call.registry_auth,
            payload: call.payload,
            patience: call.patience.unwrap_or(Patience::Within(Some(self.timeouts().quick))),
            form: call.form,
        };
        if route.stop.as_ref().is_some_and(Stop::is_stopped) {
            return Err(Error::Stopped);
        }
        let incoming = match exchange(&route, outgoing) {
            Ok(incoming) => incoming,
            Err(failure) => return Err(explain(failure, Moment::BeforeHead, &route, &operation)),
        };
        let reply = Reply {
            status: incoming.status,
            content_type: incoming.content_type,
            api_version: incoming.api_version,
            body: Stream { reader: incoming.body, route, operation },
        };
        match reply.status {
            101 | 200..=299 | 304 => Ok(reply),
            _ => Err(reply.refusal()),
        }
    }

    /// Sends the call and reads its answer.
    pub(super) fn fetch<T: DeserializeOwned>(&self, call: Call<'_>) -> Result<T, Error> {
        self.send(call)?.json()
    }
}

impl Reply {
    /// Reads the body as JSON.
    pub(super) fn json<T: DeserializeOwned>(mut self) -> Result<T, Error> {
        let bytes = self.body.read_bounded(MAX_JSON)?;
        serde_json::from_slice(&bytes).map_err(|error| {
            // A body without a length is cut by our own shutdown and still looks whole.
            if self.body.is_stopped() {
                return Error::Stopped;
            }
            let content_type = printable(&self.content_type, MAX_EXCERPT);
            let excerpt = printable(&String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_EXCERPT * 4)]), MAX_EXCERPT);
            self.body.protocol(format!("no valid JSON ({error}), but {content_type}: {excerpt}"))
        })
    }

    /// Turns an answer that is not a success into an error with the engine's words.
    fn refusal(mut self) -> Error {
        let mut status = self.status;
        let bytes = match self.body.read_bounded(MAX_REFUSAL) {
            Ok(bytes) => bytes,
            Err(error) => return error,
        };
        let text = String::from_utf8_lossy(&bytes);
        let message = serde_json::from_slice::<Message>(&bytes);
        let is_text = self.content_type.starts_with("text/plain") && !text.trim_start().starts_with('<');
        let message = match message {
            Ok(Message { message, cause }) => {
                if status == 500 && CONFLICTS.contains(&cause.as_str()) {
                    status = 409;
                }
                message
            }
            Err(_) if is_text && !text.trim().is_empty() => text.trim().to_owned(),
            Err(_) => {
                let content_type = printable(&self.content_type, MAX_EXCERPT);
                let excerpt = printable(text.trim(), MAX_EXCERPT);
                return self.body.protocol(format!("status {status} without a message, but {content_type}: {excerpt}"));
            }
        };
        // The engine's answer to a call that it doesn't have must not pass for a missing container.
        if status == 404 && (message.contains("page not found") || message == "Not Found") {
            return self.body.protocol("it doesn't know this call".to_owned());
        }
        let message = printable(message.trim(), MAX_MESSAGE);
        Error::Refused { operation: self.body.operation, status, message }
    }
}

#[derive(serde::Deserialize)]
struct Message {
    message: String,
    /// Podman's: the last of its errors in a chain.
    #[serde(default)]
    cause: String,
}

/// What Podman answers 500 to and Docker 409: a name that is taken, a state in which the call has no meaning.
const CONFLICTS: [&str; 3] = ["that name is already in use", "network already exists", "container state improper"];

impl Stream {
    /// Reads what is there; zero at the proper end.
    pub(super) fn read_some(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        match self.reader.read(buffer) {
            // A body that ends with its connection ends the same way when we shut it.
            Ok(0) if !buffer.is_empty() && self.is_stopped() => Err(Error::Stopped),
            Ok(count) => Ok(count),
            Err(error) => Err(explain(Failure::from(error), Moment::InBody, &self.route, &self.operation)),
        }
    }

    /// An answer to this call that is not what it should be.
    pub(super) fn protocol(&self, what: String) -> Error {
        Error::Protocol { operation: self.operation.clone(), what }
    }

    /// A refusal that came inside the stream.
    pub(super) fn refused(&self, message: &str) -> Error {
        let message = printable(message.trim(), MAX_MESSAGE);
        Error::Refused { operation: self.operation.clone(), status: 200, message }
    }

    fn read_bounded(&mut self, max: u64) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        match (&mut self.reader).take(max + 1).read_to_end(&mut bytes) {
            Ok(_) if bytes.len() as u64 > max => Err(self.protocol(format!("a body of more than {max} bytes"))),
            Ok(_) => Ok(bytes),
            Err(error) => Err(explain(Failure::from(error), Moment::InBody, &self.route, &self.operation)),
        }
    }

    fn is_stopped(&self) -> bool {
        self.route.stop.as_ref().is_some_and(Stop::is_stopped)
    }
}

#[derive(Clone, Copy)]
enum Moment {
    BeforeHead,
    InBody,
}

fn explain(failure: Failure, moment: Moment, route: &Route, operation: &str) -> Error {
    if route.stop.as_ref().is_some_and(Stop::is_stopped) {
        return Error::Stopped;
    }
    let operation = operation.to_owned();
    match (failure, moment) {
        (Failure::Timeout, _) => Error::Timeout { operation },
        (Failure::Source(source), _) => Error::Input { operation, source },
        (Failure::Garbage(what), _) => Error::Protocol { operation, what: printable(&what, MAX_MESSAGE) },
        (Failure::Closed(error), Moment::InBody) => {
            Error::Protocol { operation, what: format!("the body was cut ({error})") }
        }
        (Failure::Closed(error), Moment::BeforeHead) => Error::Unreachable {
            operation,
            path: route.path.clone(),
            source: io::Error::new(error.kind(), "the connection ended before an answer"),
        },
        (Failure::Connect(source), _) => Error::Unreachable { operation, path: route.path.clone(), source },
    }
}

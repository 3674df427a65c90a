//! The server: methods of /test.Peer/ that are named and behave as those of grpcio_peer.py, and two that count.

use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body_util::BodyExt;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, BufReader, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::body::Body;
use tonic::metadata::{KeyAndValueRef, MetadataMap, MetadataValue};
use tonic::server::Grpc;
use tonic::transport::server::{Connected, TlsConnectInfo};
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic::{Code, Request, Response, Status};

use crate::faults::{Fault, Faults, Socket};
use crate::raw::{MAX_MESSAGE, Raw};
use crate::{Failure, Words};

/// An accepted connection that knows its socket.
struct Accepted {
    stream: TcpStream,
    socket: Socket,
}

impl Accepted {
    fn new(stream: TcpStream) -> io::Result<Accepted> {
        stream.set_nodelay(true)?;
        let socket = Socket(Arc::new(stream.as_fd().try_clone_to_owned()?.into()));
        Ok(Accepted { stream, socket })
    }
}

impl Connected for Accepted {
    type ConnectInfo = Socket;

    fn connect_info(&self) -> Socket {
        self.socket.clone()
    }
}

impl AsyncRead for Accepted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, to)
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, from)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, from)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Serves until it is told to end.
pub async fn run(mut words: Words) -> Result<(), Failure> {
    let (mut port, mut identity, mut client_ca, mut permille, mut seed) = (0, None, None, 0, 1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--port" => port = words.number("--port")?,
            "--tls" => identity = Some(Identity::from_pem(words.file("--tls")?, words.file("--tls")?)),
            "--client-ca" => client_ca = Some(Certificate::from_pem(words.file("--client-ca")?)),
            "--faults" => permille = words.number("--faults")?,
            "--seed" => seed = words.number("--seed")?,
            _ => return Err(format!("{word}: not an option of server").into()),
        }
    }
    let faults = Faults::new(permille, seed);
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    println!("PORT {}", listener.local_addr()?.port());
    let incoming = TcpListenerStream::new(listener).map(|stream| stream.and_then(Accepted::new));
    let service = tower::service_fn(move |request| handle(faults.clone(), request));
    let mut server = Server::builder();
    if let Some(identity) = identity {
        let tls = ServerTlsConfig::new().identity(identity);
        server = server.tls_config(match client_ca {
            Some(ca) => tls.client_ca_root(ca),
            None => tls,
        })?;
    }
    let (drain, mut is_draining) = watch::channel(false);
    let drained = async move { drop(is_draining.wait_for(|drains| *drains).await) };
    tokio::select! {
        served = server.serve_with_incoming_shutdown(service, incoming, drained) => served?,
        ended = told_to_end(drain) => ended?,
    }
    Ok(())
}

/// Returns when standard input has ended.
async fn told_to_end(drain: watch::Sender<bool>) -> Result<(), Failure> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    loop {
        tokio::select! {
            _ = terminate.recv() => drop(drain.send(true)),
            line = lines.next_line() => match line?.as_deref().map(str::trim) {
                Some("drain") => drop(drain.send(true)),
                Some(_) => {}
                None => return Ok(()),
            },
        }
    }
}

/// One request of HTTP/2; an error resets its stream.
async fn handle(faults: Faults, request: http::Request<Body>) -> Result<http::Response<Body>, Failure> {
    let method = request.uri().path().strip_prefix("/test.Peer/").unwrap_or("").to_owned();
    if method == "Once"
        && let Some(fault) = faults.draw()
    {
        return meet(fault, faults, request).await;
    }
    let head = MetadataMap::from_headers(request.headers().clone());
    let trailers = match method.as_str() {
        "Echo" => picked(&head, "t-")?.into_headers(),
        "Status" => HeaderMap::from_iter([(http::HeaderName::from_static("t-why"), "asked".parse()?)]),
        _ => HeaderMap::new(),
    };
    let response = if method == "Status" {
        grpc().server_streaming(tower::service_fn(status), request).await
    } else {
        grpc().unary(tower::service_fn(|request| call(&method, &faults, request)), request).await
    };
    Ok(with_trailers(response, trailers))
}

fn grpc() -> Grpc<Raw> {
    Grpc::new(Raw).max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE)
}

fn with_trailers(response: http::Response<Body>, more: HeaderMap) -> http::Response<Body> {
    if more.is_empty() {
        return response;
    }
    response.map(|body| {
        Body::new(body.map_frame(move |frame| match frame.into_trailers() {
            Ok(mut trailers) => {
                trailers.extend(more.clone());
                http_body::Frame::trailers(trailers)
            }
            Err(frame) => frame,
        }))
    })
}

async fn call(method: &str, faults: &Faults, request: Request<Bytes>) -> Result<Response<Bytes>, Status> {
    let (head, _, body) = request.into_parts();
    match method {
        "Echo" => {
            let mut response = Response::new(body);
            *response.metadata_mut() = picked(&head, "x-")?;
            Ok(response)
        }
        "Size" => Ok(Response::new(vec![0x5a; number(&body)?].into())),
        "Length" => Ok(Response::new(body.len().to_string().into())),
        "Hang" => {
            let text = String::from_utf8_lossy(&body);
            println!("HANGING {text}");
            let _ended = Ended(text.into_owned());
            std::future::pending().await
        }
        "Remaining" => Ok(Response::new(remaining(&head).as_secs_f64().to_string().into())),
        "Once" => {
            faults.count(key(&body)?);
            Ok(Response::new(body))
        }
        "Counted" => Ok(Response::new(faults.counted().into())),
        _ => Err(Status::unimplemented("no such method")),
    }
}

/// Says at its end, however that comes, that a call hangs no more.
struct Ended(String);

impl Drop for Ended {
    fn drop(&mut self) {
        println!("ENDED {}", self.0);
    }
}

/// Ends as it is asked to, after a head of its own where that is wanted.
async fn status(
    request: Request<Bytes>,
) -> Result<Response<tokio_stream::Iter<std::vec::IntoIter<Result<Bytes, Status>>>>, Status> {
    let wanted: serde_json::Value =
        serde_json::from_slice(request.get_ref()).map_err(|error| Status::invalid_argument(error.to_string()))?;
    let code = Code::from_i32(wanted["code"].as_i64().and_then(|code| code.try_into().ok()).unwrap_or(2));
    let message = wanted["message"].as_str().unwrap_or_default();
    let answer = match code {
        Code::Ok => Ok(Bytes::from_static(b"fine")),
        _ => Err(Status::new(code, message)),
    };
    let has_head = wanted["head"] == true;
    if let (false, Err(status)) = (has_head, &answer) {
        // Trailers-Only: tonic's own way where a call fails before its answer. The trailers are those of the status.
        let mut status = status.clone();
        status.metadata_mut().insert("t-why", MetadataValue::from_static("asked"));
        return Err(status);
    }
    let mut response = Response::new(tokio_stream::iter(vec![answer]));
    if has_head {
        response.metadata_mut().insert("x-head", MetadataValue::from_static("sent"));
    }
    Ok(response)
}

/// The metadata whose keys begin so, decoded and encoded again.
fn picked(head: &MetadataMap, prefix: &str) -> Result<MetadataMap, Status> {
    let mut picked = MetadataMap::new();
    for pair in head.iter() {
        match pair {
            KeyAndValueRef::Ascii(key, value) if key.as_str().starts_with(prefix) => {
                picked.append(key.clone(), value.clone());
            }
            KeyAndValueRef::Binary(key, value) if key.as_str().starts_with(prefix) => {
                let bytes = value.to_bytes().map_err(|_| Status::invalid_argument("metadata is no base64"))?;
                picked.append_bin(key.clone(), MetadataValue::from_bytes(&bytes));
            }
            _ => {}
        }
    }
    Ok(picked)
}

fn number(body: &Bytes) -> Result<usize, Status> {
    let text = std::str::from_utf8(body).ok();
    text.and_then(|text| text.parse().ok()).ok_or_else(|| Status::invalid_argument("not a number"))
}

fn key(body: &Bytes) -> Result<u64, Status> {
    let bytes = body.get(..8).and_then(|bytes| bytes.try_into().ok());
    bytes.map(u64::from_be_bytes).ok_or_else(|| Status::invalid_argument("no key of 8 bytes"))
}

/// What the request's grpc-timeout says (tonic keeps to it, but does not tell it); zero without a good one.
fn remaining(head: &MetadataMap) -> Duration {
    let text = head.get("grpc-timeout").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (digits, unit) = text.split_at(text.len().saturating_sub(1));
    let n: u64 = digits.parse().unwrap_or(0);
    match unit {
        "H" => Duration::from_secs(n * 3600),
        "M" => Duration::from_secs(n * 60),
        "S" => Duration::from_secs(n),
        "m" => Duration::from_millis(n),
        "u" => Duration::from_micros(n),
        "n" => Duration::from_nanos(n),
        _ => Duration::ZERO,
    }
}

async fn meet(fault: Fault, faults: Faults, request: http::Request<Body>) -> Result<http::Response<Body>, Failure> {
    let extensions = request.extensions();
    let socket = extensions.get::<Socket>().or_else(|| Some(extensions.get::<TlsConnectInfo<Socket>>()?.get_ref()));
    let socket = socket.cloned().ok_or("a request without its socket")?;
    let is_done = matches!(fault, Fault::Reset { is_done: true, .. } | Fault::Close { is_done: true });
    if is_done || fault == Fault::Unavailable || fault == Fault::HalfAnswer {
        let mut grpc = grpc();
        let answer = grpc.unary(
            tower::service_fn(|request: Request<Bytes>| async {
                let body = request.into_inner();
                let key = key(&body)?;
                if fault == Fault::Unavailable {
                    return Err(Status::unavailable("fault"));
                }
                faults.count(key);
                Ok(Response::new(body))
            }),
            request,
        );
        let answer = answer.await;
        match fault {
            Fault::Unavailable => return Ok(answer),
            Fault::HalfAnswer => {
                let broken =
                    tokio_stream::once(Err::<http_body::Frame<Bytes>, _>(h2::Error::from(h2::Reason::INTERNAL_ERROR)));
                return Ok(answer.map(|_| Body::new(http_body_util::StreamBody::new(broken))));
            }
            _ => {}
        }
    }
    match fault {
        Fault::Reset { reason, .. } => Err(h2::Error::from(reason).into()),
        _ => {
            socket.close();
            Err(h2::Error::from(h2::Reason::INTERNAL_ERROR).into())
        }
    }
}

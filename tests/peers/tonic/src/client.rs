//! The client: the same commands and answers as grpcio_peer.py's.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use http::uri::PathAndQuery;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::task::JoinHandle;
use tonic::client::Grpc;
use tonic::metadata::{AsciiMetadataKey, BinaryMetadataKey, KeyAndValueRef, MetadataMap, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Response, Status};

use crate::raw::{MAX_MESSAGE, Raw, hex, sha256, unhex};
use crate::{Failure, Words};

/// Where to, and how to trust it.
pub fn endpoint(url: String, ca: Option<Vec<u8>>, identity: Option<Identity>) -> Result<Endpoint, Failure> {
    let endpoint = Endpoint::from_shared(url)?;
    let Some(ca) = ca else { return Ok(endpoint) };
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca));
    Ok(endpoint.tls_config(match identity {
        Some(identity) => tls.identity(identity),
        None => tls,
    })?)
}

/// One unary call.
pub async fn unary(channel: Channel, path: PathAndQuery, request: Request<Bytes>) -> Result<Response<Bytes>, Status> {
    grpc(channel).await?.unary(request, path, Raw).await
}

async fn grpc(channel: Channel) -> Result<Grpc<Channel>, Status> {
    let grpc = Grpc::new(channel).max_decoding_message_size(MAX_MESSAGE);
    let mut grpc = grpc.max_encoding_message_size(MAX_MESSAGE);
    grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    Ok(grpc)
}

/// Does what standard input says.
pub async fn run(mut words: Words) -> Result<(), Failure> {
    let mut url = words.value("client")?;
    let (mut ca, mut identity) = (None, None);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--ca" => ca = Some(words.file("--ca")?),
            "--cert" => identity = Some(Identity::from_pem(words.file("--cert")?, words.file("--cert")?)),
            _ => return Err(format!("{word}: not an option of client").into()),
        }
    }
    if !url.contains("://") {
        url.insert_str(0, "http://");
    }
    let channel = endpoint(url, ca, identity)?.connect_lazy();
    let mut calls: HashMap<u64, JoinHandle<Result<Value, Status>>> = HashMap::new();
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        let command: Value = serde_json::from_str(&line)?;
        let id = command["id"].as_u64().ok_or("a command without id")?;
        match command["do"].as_str() {
            Some("start") => {
                let (path, request) = request(&command)?;
                calls.insert(id, tokio::spawn(call(channel.clone(), path, request)));
                // It is on its way before the next command is read.
                tokio::task::yield_now().await;
            }
            Some("cancel") => calls.get(&id).ok_or("no such call")?.abort(),
            Some("result") => {
                let mut answer = match calls.remove(&id).ok_or("no such call")?.await {
                    Ok(Ok(answer)) => answer,
                    Ok(Err(status)) => {
                        json!({"code": status.code() as i32, "message": status.message(), "trailers": shown(status.metadata())})
                    }
                    Err(_) => json!({"code": 1, "message": "cancelled here"}),
                };
                if command["metadata"] != true
                    && let Some(fields) = answer.as_object_mut()
                {
                    fields.retain(|name, _| name != "head" && name != "trailers");
                }
                println!("{answer}");
            }
            _ => return Err("not a command".into()),
        }
    }
    Ok(())
}

/// A call whose answer shows head and trailers apart, which tonic's unary call puts together.
async fn call(channel: Channel, path: PathAndQuery, request: Request<Bytes>) -> Result<Value, Status> {
    let mut grpc = grpc(channel).await?;
    let (head, mut messages, _) = grpc.server_streaming(request, path, Raw).await?.into_parts();
    let body = messages.message().await?.ok_or_else(|| Status::unimplemented("no message"))?;
    let trailers = messages.trailers().await?.unwrap_or_default();
    let (head, trailers) = (shown(&head), shown(&trailers));
    Ok(json!({"code": 0, "len": body.len(), "sha256": sha256(&body), "head": head, "trailers": trailers}))
}

fn shown(metadata: &MetadataMap) -> Vec<[String; 2]> {
    let pairs = metadata.iter().map(|pair| match pair {
        KeyAndValueRef::Ascii(key, value) => [key.to_string(), value.to_str().unwrap_or("?").to_owned()],
        KeyAndValueRef::Binary(key, value) => [key.to_string(), value.to_bytes().map_or("?".to_owned(), |b| hex(&b))],
    });
    pairs.collect()
}

fn request(command: &Value) -> Result<(PathAndQuery, Request<Bytes>), Failure> {
    let mut body = unhex(command["hex"].as_str().unwrap_or_default()).ok_or("hex is none")?;
    if body.is_empty() {
        body = vec![0x5a; usize::try_from(command["size"].as_u64().unwrap_or(0))?];
    }
    let mut request = Request::new(Bytes::from(body));
    request.set_timeout(Duration::from_secs_f64(command["timeout"].as_f64().unwrap_or(30.0)));
    for pair in command["metadata"].as_array().into_iter().flatten() {
        let (key, value) = (pair[0].as_str().unwrap_or_default(), pair[1].as_str().unwrap_or_default());
        if key.ends_with("-bin") {
            let key: BinaryMetadataKey = key.parse()?;
            request.metadata_mut().append_bin(key, MetadataValue::from_bytes(&unhex(value).ok_or("value is no hex")?));
        } else {
            let key: AsciiMetadataKey = key.parse()?;
            request.metadata_mut().append(key, value.parse()?);
        }
    }
    Ok((command["method"].as_str().unwrap_or_default().parse()?, request))
}

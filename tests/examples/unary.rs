//! One unary gRPC call from the command line, with this crate's client.
//!
//! ```text
//! unary URL /package.Service/Method [--metadata K:V]... [--deadline-ms N] [--max-response BYTES] [--ca FILE]
//!       < body > answer
//! ```
//!
//! The message is read from standard input and the answer's is written to standard output. Standard error has the status
//! name, its words, and the metadata, a line each. The value of a name that ends in `-bin` is base64. The exit code is 0 for
//! OK, 1 for another status, 2 for a wrong command line.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hivemind_worker::grpc::{CallError, Code, Metadata, Request};
use hivemind_worker::rpc::client::{Client, ConnectError, Options};
use hivemind_worker::rpc::tls::Roots;

const USAGE: &str = "usage: unary URL /package.Service/Method [--metadata K:V]... [--deadline-ms N] \
                     [--max-response BYTES] [--ca FILE] < body > answer";

struct Wanted {
    url: String,
    request: Request,
    options: Options,
}

fn main() -> ExitCode {
    let wanted = match parse(std::env::args().skip(1)) {
        Ok(wanted) => wanted,
        Err(reason) => {
            eprintln!("unary: {reason}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    run(wanted).unwrap_or_else(|reason| {
        eprintln!("unary: {reason}");
        ExitCode::from(2)
    })
}

fn run(wanted: Wanted) -> Result<ExitCode, Box<dyn std::error::Error>> {
    let Wanted { url, mut request, options } = wanted;
    std::io::stdin().read_to_end(&mut request.body)?;
    let mut client = match Client::connect(&url, &options) {
        Ok(client) => client,
        Err(ConnectError::Unavailable(reason)) => {
            eprintln!("status: {}\nmessage: {reason}", Code::Unavailable);
            return Ok(ExitCode::from(1));
        }
        Err(error) => return Err(error.into()),
    };
    let (code, message, metadata, trailers) = match client.unary(request) {
        Ok(answer) => {
            std::io::stdout().write_all(&answer.body)?;
            (Code::Ok, String::new(), answer.metadata, answer.trailers)
        }
        Err(CallError { status, metadata, trailers, .. }) => (status.code, status.message, metadata, trailers),
    };
    eprintln!("status: {code}\nmessage: {}", message.escape_debug());
    show("metadata", &metadata);
    show("trailer", &trailers);
    Ok(ExitCode::from(u8::from(code != Code::Ok)))
}

fn show(kind: &str, metadata: &Metadata) {
    for (name, value) in metadata.iter() {
        match name.ends_with("-bin") {
            true => eprintln!("{kind}: {name}: {}", STANDARD.encode(value)),
            false => eprintln!("{kind}: {name}: {}", value.escape_ascii()),
        }
    }
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Wanted, String> {
    let url = words.next().ok_or("the URL is missing")?;
    let path =
        words.next().filter(|path| path.starts_with('/')).ok_or("the method is missing, like /a.Service/Call")?;
    let mut request = Request {
        path,
        metadata: Metadata::default(),
        body: Vec::new(),
        timeout: Duration::from_secs(30),
        max_response: 4 << 20,
    };
    let mut options = Options { user_agent: "unary".to_owned(), ..Options::default() };
    while let Some(word) = words.next() {
        let value = words.next().ok_or_else(|| format!("{word} needs a value"))?;
        let number = || value.parse().map_err(|_| format!("{word} {value}: not a number"));
        match word.as_str() {
            "--metadata" => add(&mut request.metadata, &value)?,
            "--deadline-ms" => request.timeout = Duration::from_millis(number()?),
            "--max-response" => request.max_response = usize::try_from(number()?).map_err(|e| e.to_string())?,
            "--ca" => options.roots = Roots::File(PathBuf::from(value)),
            _ => return Err(format!("{word}: no such option")),
        }
    }
    options.connect_timeout = options.connect_timeout.min(request.timeout);
    Ok(Wanted { url, request, options })
}

fn add(metadata: &mut Metadata, pair: &str) -> Result<(), String> {
    let (name, value) = pair.split_once(':').ok_or_else(|| format!("--metadata {pair}: not like name:value"))?;
    let value = match name.ends_with("-bin") {
        true => STANDARD.decode(value).map_err(|error| format!("--metadata {name}: {error}"))?,
        false => value.trim_start().as_bytes().to_vec(),
    };
    metadata.add(name, value).map_err(|error| error.to_string())
}

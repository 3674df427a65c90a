//! The independent gRPC implementation of the tests and benches: tonic on one thread, with raw bytes as messages. Its
//! modes and words are those of grpcio_peer.py, so that a test can run against either.
//!
//! ```text
//! tonic-peer server [--port N] [--tls CERT KEY [--client-ca FILE]] [--faults PERMILLE [--seed N]]
//!     Prints "PORT N" and serves until standard input ends. The line "drain" there, or SIGTERM, ends it in an orderly
//!     way: GOAWAY first, then time for the calls under way.
//! tonic-peer client URL [--ca FILE] [--cert CERT KEY]
//!     Reads one JSON command a line from standard input, prints one JSON answer a line.
//! tonic-peer bench URL --calls N (--body BYTES | --upload BYTES) [--interval-ms MS] [--ca FILE]
//!     One connection, one call after the other; prints one line of JSON.
//! ```

mod bench;
mod client;
mod faults;
mod raw;
mod server;

/// What went wrong, for people.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Words of the command line that have not been taken yet.
struct Words(std::vec::IntoIter<String>);

impl Words {
    fn next(&mut self) -> Option<String> {
        self.0.next()
    }

    fn value(&mut self, of: &str) -> Result<String, Failure> {
        self.0.next().ok_or_else(|| format!("{of} needs a value").into())
    }

    fn number<T: std::str::FromStr>(&mut self, of: &str) -> Result<T, Failure> {
        let word = self.value(of)?;
        word.parse().map_err(|_| format!("{of} {word}: not a number").into())
    }

    fn file(&mut self, of: &str) -> Result<Vec<u8>, Failure> {
        let path = self.value(of)?;
        std::fs::read(&path).map_err(|error| format!("{path}: {error}").into())
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let mut words = Words(std::env::args().skip(1).collect::<Vec<_>>().into_iter());
    match words.next().as_deref() {
        Some("server") => server::run(words).await,
        Some("client") => client::run(words).await,
        Some("bench") => bench::run(words).await,
        _ => Err("usage: tonic-peer server|client|bench ... (see the head of main.rs)".into()),
    }
}

//! Both ends against each other with seeded chance: sizes, pieces, delays, resets and late window updates. Whatever is
//! not reset must arrive whole, and no end may find a fault in the other.

use std::collections::BTreeMap;

use super::*;
use crate::h2::hpack::Header;

const NOW: Instant = Duration::from_secs(5);

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 20).unwrap() % n
    }
}

/// One end and what it has received.
struct End {
    connection: Connection,
    received: BTreeMap<StreamId, Vec<u8>>,
    ended: Vec<StreamId>,
    reset: Vec<StreamId>,
    unreleased: Vec<(StreamId, usize)>,
    /// Bytes on their way to this end.
    wire: Vec<u8>,
}

impl End {
    fn new(connection: Connection) -> End {
        let (received, ended, reset) = (BTreeMap::new(), Vec::new(), Vec::new());
        End { connection, received, ended, reset, unreleased: Vec::new(), wire: Vec::new() }
    }

    /// Takes part of what is on the wire and looks at what happened; a server begins to answer.
    fn step(&mut self, random: &mut Random) {
        let n = random.below(self.wire.len() + 1);
        let part: Vec<u8> = self.wire.drain(..n).collect();
        self.connection.handle_bytes(&part, NOW);
        while let Some(event) = self.connection.poll_event() {
            match event {
                Event::Headers { stream, end_stream, .. } if self.connection.role == Role::Server => {
                    assert!(!end_stream);
                    self.connection.send_headers(stream, &[Header::new(":status", "200")], false);
                    self.connection.send_data(stream, body(stream + 1), false);
                }
                Event::Data { stream, data, end_stream } => {
                    self.unreleased.push((stream, data.len()));
                    self.received.entry(stream).or_default().extend(data);
                    self.ended.extend(end_stream.then_some(stream));
                    if end_stream && self.connection.role == Role::Server {
                        // Earlier it would stop the request.
                        self.connection.send_trailers(stream, vec![Header::new("n", stream.to_string())]);
                    }
                }
                Event::Trailers { stream, .. } => self.ended.push(stream),
                Event::Reset { stream, .. } => self.reset.push(stream),
                Event::Closed { error } => panic!("{error}"),
                _ => {}
            }
        }
        if !self.unreleased.is_empty() && random.below(3) == 0 {
            let at = random.below(self.unreleased.len());
            let (stream, n) = self.unreleased.swap_remove(at);
            self.connection.release(stream, n);
        }
    }
}

/// What is sent on a stream: its size and content follow from the number.
fn body(n: u32) -> Vec<u8> {
    let mut random = Random(u64::from(n) * 0x9e37_79b9 + 1);
    let size = random.below(400_000);
    (0..size).map(|i| (i % 251) as u8 ^ (n & 0xff) as u8).collect()
}

fn run(seed: u64) {
    let mut random = Random(seed);
    let config = Config { stream_window: 70_000, connection_window: 150_000, ..Config::default() };
    let mut client = End::new(Connection::client(config.clone(), NOW));
    let mut server = End::new(Connection::server(config, NOW));
    let (mut opened, mut cancelled) = (Vec::new(), Vec::new());
    let mut idle = 0;
    while idle < 200 {
        if opened.len() < 12 && random.below(4) == 0 {
            let head = [Header::new(":method", "POST"), Header::new(":scheme", "http"), Header::new(":path", "/")];
            let id = client.connection.open(&head, false).unwrap();
            client.connection.send_data(id, body(id), true);
            opened.push(id);
        }
        if cancelled.len() < 2 && random.below(60) == 0 && !opened.is_empty() {
            let id = opened[random.below(opened.len())];
            if client.connection.is_open(id) {
                client.connection.reset(id, ErrorCode::CANCEL);
                cancelled.push(id);
            }
        }
        if random.below(2) == 0 {
            client.connection.poll_transmit(&mut server.wire);
        }
        if random.below(2) == 0 {
            server.connection.poll_transmit(&mut client.wire);
        }
        client.step(&mut random);
        server.step(&mut random);
        let is_resting = client.wire.is_empty() && server.wire.is_empty() && client.unreleased.is_empty();
        idle = if is_resting && server.unreleased.is_empty() { idle + 1 } else { 0 };
    }
    assert_eq!(opened.len(), 12);
    for id in opened.into_iter().filter(|id| !cancelled.contains(id)) {
        assert!(server.received.get(&id).is_none_or(Vec::is_empty) == body(id).is_empty());
        assert!(server.received.remove(&id).unwrap_or_default() == body(id), "request {id} of seed {seed}");
        assert!(client.received.remove(&id).unwrap_or_default() == body(id + 1), "answer {id} of seed {seed}");
        assert!(server.ended.contains(&id) && client.ended.contains(&id));
        assert!(!server.reset.contains(&id) && !client.reset.contains(&id));
    }
    assert_eq!((client.connection.open_streams(), server.connection.open_streams()), (0, 0));
}

#[test]
fn everything_arrives_whole_whatever_the_order() {
    for seed in 1..=20u64 {
        run(seed.wrapping_mul(0x1234_5678_9abc_def1));
    }
}

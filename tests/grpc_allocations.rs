//! The steady path of a call allocates per message, never per frame: shown by an allocator that counts.
#![allow(clippy::unwrap_used)]
// An allocator can't be counted without being one.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::Duration;

use hivemind_worker::grpc::{CallId, Client, ClientConfig, ClientEvent, Metadata, Request, Server, ServerConfig};
use hivemind_worker::grpc::{ServerEvent, Status};
use hivemind_worker::h2::{Config, Connection, Event, Header};

struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // At a thread's end there is nothing to count any more.
    let _ = COUNT.try_with(|count| count.set(count.get() + 1));
}

// SAFETY: each method hands its arguments on to the system's allocator, whose promises it keeps.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise about the layout is the one that is asked for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: it came from the system's allocator, with this layout.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count();
        // SAFETY: it came from the system's allocator, with this layout; the size is the caller's promise.
        unsafe { System.realloc(ptr, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of this thread while `work` runs.
fn allocations(work: impl FnOnce()) -> u64 {
    let before = COUNT.with(Cell::get);
    work();
    COUNT.with(Cell::get) - before
}

const NOW: Duration = Duration::from_secs(1);
const FRAME: usize = 16_384;
/// Of the body in each direction: 1,024 frames.
const BODY: usize = 1_024 * FRAME;

fn head() -> [Header; 3] {
    [Header::new(":method", "POST"), Header::new(":scheme", "http"), Header::new(":path", "/a/b")]
}

/// Two connections that know each other's settings, with one stream that is open both ways.
fn pair() -> (Connection, Connection, u32) {
    let mut ends = (Connection::client(Config::default(), NOW), Connection::server(Config::default(), NOW));
    let stream = ends.0.open(&head(), false).unwrap();
    let mut wire = Vec::new();
    for _ in 0..3 {
        ends.0.poll_transmit(&mut wire);
        ends.1.handle_bytes(&wire, NOW);
        wire.clear();
        ends.1.poll_transmit(&mut wire);
        ends.0.handle_bytes(&wire, NOW);
        wire.clear();
        while ends.0.poll_event().is_some() || ends.1.poll_event().is_some() {}
    }
    (ends.0, ends.1, stream)
}

#[test]
fn frames_of_a_body_are_written_and_read_without_an_allocation() {
    let (mut client, mut server, stream) = pair();
    let mut wire = Vec::with_capacity(1 << 20);
    let mut back = Vec::with_capacity(1 << 20);
    let mut received = 0;
    let mut round = |client: &mut Connection, server: &mut Connection| {
        client.poll_transmit(&mut wire);
        // In reads of an odd size, so that frames are torn.
        for part in wire.chunks(10_007) {
            server.handle_bytes(part, NOW);
            while let Some(event) = server.poll_event() {
                let Event::Data { stream, data, .. } = event else { panic!("{event:?}") };
                received += data.len();
                server.release(stream, data.len());
                server.recycle(data);
            }
        }
        wire.clear();
        server.poll_transmit(&mut back);
        client.handle_bytes(&back, NOW);
        back.clear();
        received
    };
    client.send_data(stream, vec![7; 2 * BODY], false);
    // The first rounds make the buffers.
    while round(&mut client, &mut server) < BODY {}
    let mut total = 0;
    let counted = allocations(|| {
        while total < 2 * BODY {
            total = round(&mut client, &mut server);
        }
    });
    assert_eq!((total, counted), (2 * BODY, 0), "allocations for 1,024 frames and their window updates");
}

#[test]
fn pings_and_settings_are_answered_without_an_allocation() {
    let (mut client, _, _) = pair();
    let ping = [&[0, 0, 8, 6, 0, 0, 0, 0, 0][..], &[1; 8]].concat();
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let mut wire = Vec::with_capacity(1 << 10);
    let mut exchange = |client: &mut Connection| {
        client.handle_bytes(&ping, NOW);
        client.handle_bytes(&settings, NOW);
        client.poll_transmit(&mut wire);
        assert_eq!(wire.len(), 17 + 9);
        wire.clear();
    };
    exchange(&mut client);
    let counted = allocations(|| {
        for _ in 0..1_000 {
            exchange(&mut client);
        }
    });
    assert_eq!(counted, 0);
}

/// Small calls allocate for what the caller gets and gives, and that does not grow.
#[test]
fn a_small_call_allocates_the_same_each_time() {
    let config = ClientConfig { scheme: "http", authority: "h".into(), user_agent: "test".into(), keepalive: None };
    let (mut client, mut server) = (Client::new(config, NOW), Server::new(ServerConfig::default(), NOW));
    let mut wire = Vec::with_capacity(1 << 16);
    let mut call = |id: u64| {
        let request = Request {
            path: "/a/b".into(),
            metadata: Metadata::default(),
            body: vec![1; 100],
            timeout: Duration::from_secs(9),
            max_response: 1_000,
        };
        client.call(CallId(id), request, NOW);
        loop {
            client.poll_transmit(&mut wire);
            server.handle_bytes(&wire, NOW);
            wire.clear();
            while let Some(event) = server.poll_event() {
                let ServerEvent::Request(request) = event else { panic!("{event:?}") };
                server.respond(request.id, Ok::<_, Status>(request.body), NOW);
            }
            server.poll_transmit(&mut wire);
            client.handle_bytes(&wire, NOW);
            wire.clear();
            while let Some(event) = client.poll_event() {
                if let ClientEvent::Answer { result, .. } = event {
                    assert_eq!(result.unwrap().body, [1; 100]);
                    return;
                }
            }
        }
    };
    (0..100).for_each(&mut call);
    let first = allocations(|| (100..1_100).for_each(&mut call));
    let second = allocations(|| (1_100..2_100).for_each(&mut call));
    println!("{} allocations a call, both ends together", first as f64 / 1e3);
    assert_eq!(first, second);
    assert!(first < 80_000, "{first} for 1,000 calls");
}

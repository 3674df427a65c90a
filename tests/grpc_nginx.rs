//! Our lane through nginx to tonic's server: what a proxy does to connections and calls.
#![allow(clippy::unwrap_used)]

mod grpc_support;

use std::time::Duration;

use grpc_support::ledger::Ledger;
use grpc_support::{PATIENCE, Served, Way, call, for_each_proxied_way, next_answer, request, turn};
use hivemind_worker::grpc::{Code, Processed, Request};
use hivemind_worker::sys::clock::boottime;

for_each_proxied_way![
    no_call_is_lost_or_doubled_over_many_goaways,
    long_poll_outlives_the_connections_after_its_own,
    reload_loses_no_call,
    upstream_that_is_away_is_unavailable,
    request_above_the_proxys_limit_is_refused,
];

/// Calls at a time, more than nginx lets through on one connection.
const AT_ONCE: usize = 12;

fn no_call_is_lost_or_doubled_over_many_goaways(way: Way) {
    let served = Served::start(way);
    let mut lane = served.lane();
    let mut ledger = Ledger::new(600);
    ledger.run(&mut lane, AT_ONCE, |_| {});
    let done = ledger.check(&mut lane);
    assert_eq!((done.doubled, done.maybe), (0, 0), "{:?}", ledger.failures);
}

fn long_poll_outlives_the_connections_after_its_own(way: Way) {
    let mut served = Served::start(way);
    let mut lane = served.lane();
    let poll = lane.call(request("Hang", "p"));
    while !lane.is_connected() {
        lane.next(boottime() + PATIENCE);
    }
    turn(&mut lane);
    assert_eq!(served.peer.line(), "HANGING p");
    // Each answer is that of its own call: the poll has none.
    for i in 0..40u8 {
        assert_eq!(call(&mut lane, request("Echo", [i])).unwrap().body, [i]);
    }
    lane.cancel(poll);
    turn(&mut lane);
    assert_eq!(served.peer.line(), "ENDED p");
}

fn reload_loses_no_call(way: Way) {
    let mut served = Served::start(way);
    let mut lane = served.lane();
    let mut nginx = served.nginx.take().unwrap();
    let mut ledger = Ledger::new(300);
    ledger.run(&mut lane, AT_ONCE, |answered| {
        if [100, 200].contains(&answered) {
            nginx.reload();
        }
    });
    let done = ledger.check(&mut lane);
    // Sometimes nginx closes a connection with calls in it that it has not read, and the reset overtakes answers.
    assert!(done.maybe <= 2 * AT_ONCE, "{done:?} {:?}", ledger.failures);
    eprintln!("{done:?} {:?}", ledger.failures);
}

fn upstream_that_is_away_is_unavailable(way: Way) {
    let mut served = Served::start(way);
    let mut lane = served.lane();
    assert!(call(&mut lane, request("Echo", "x")).is_ok());
    let hanging = lane.call(request("Hang", "h"));
    turn(&mut lane);
    assert_eq!(served.peer.line(), "HANGING h");
    served.peer.stop();
    let (id, result) = next_answer(&mut lane);
    let error = result.unwrap_err();
    assert_eq!((id, error.status.code, error.processed), (hanging, Code::Unavailable, Processed::Maybe));
    // nginx answers 502 with a page of HTML.
    for _ in 0..3 {
        let error = call(&mut lane, request("Echo", "x")).unwrap_err();
        assert_eq!(error.status.code, Code::Unavailable);
        assert!(error.status.message.contains("502"), "{error:?}");
    }
    served.start_again();
    assert_eq!(call(&mut lane, request("Echo", "again")).unwrap().body, b"again");
}

fn request_above_the_proxys_limit_is_refused(way: Way) {
    let served = Served::start(way);
    let mut lane = served.lane();
    let small =
        |n| Request { path: "/small.Peer/Echo".into(), timeout: Duration::from_secs(10), ..request("", vec![0; n]) };
    // tonic knows no such service, but answers.
    assert_eq!(call(&mut lane, small(100)).unwrap_err().status.code, Code::Unimplemented);
    for size in [2000, 300_000] {
        let error = call(&mut lane, small(size)).unwrap_err();
        // 413 is none of the HTTP statuses that have a code of their own.
        assert_eq!(error.status.code, Code::Unknown, "{error:?}");
        assert!(error.status.message.contains("413"), "{error:?}");
    }
    assert!(call(&mut lane, request("Echo", "x")).is_ok());
}

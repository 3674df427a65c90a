//! A thousand nodes lose their master at one moment and come back, in simulated time: never in step, whatever they do.
//!
//! What full jitter gives, by hand. The n-th wait of a node is uniform from 0 to its ceiling c(n) = min(1.6^(n-1), 120) s.
//! The n-th try comes after the sum of n such waits, and a sum is nowhere denser than its flattest part: of a thousand
//! nodes 100 / c(n) are expected in 100 ms at the most, which is 100 at the first try, 15 at the fifth and 1 from the
//! twelfth on; chance included, no window has more than 15.5 %, 4 % and 1.1 % of them.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use hivemind_worker::rpc::backoff::{Backoff, Urgency};

const NODES: u64 = 1_000;
const WINDOW_MS: u64 = 100;

/// Milliseconds after the loss at which each node makes its n-th try.
fn tries(first_seed: u64, n: usize, urgency: Urgency) -> Vec<u64> {
    let node = |seed| {
        let mut backoff = Backoff::new(seed);
        let mut now = Duration::from_secs(1_000);
        for _ in 0..n {
            now += backoff.failed(now, urgency);
        }
        u64::try_from(now.as_millis()).unwrap() - 1_000_000
    };
    let mut times: Vec<u64> = (first_seed..first_seed + NODES).map(node).collect();
    times.sort_unstable();
    times
}

/// The most tries in any window.
fn fullest_window(times: &[u64]) -> usize {
    let in_window =
        |(index, start): (usize, &u64)| times[index..].iter().take_while(|at| **at < start + WINDOW_MS).count();
    times.iter().enumerate().map(in_window).max().unwrap()
}

/// Expected tries in a window where `ceiling_s` bounds the density, and what chance adds at the most in the fullest of some
/// thousand windows: five standard deviations of a count, and five where counts are small.
fn bound(ceiling_s: f64) -> f64 {
    let expected = NODES as f64 * WINDOW_MS as f64 / 1_000.0 / ceiling_s;
    expected + 5.0 * expected.sqrt() + 5.0
}

#[test]
fn a_thousand_nodes_never_come_back_in_step() {
    for first_seed in [1, 1 << 40, u64::MAX - NODES] {
        for (n, ceiling_s) in [(1, 1.0), (2, 1.6), (3, 2.56), (5, 6.5536), (8, 26.8), (12, 120.0), (20, 120.0)] {
            let times = tries(first_seed, n, Urgency::Normal);
            let fullest = fullest_window(&times) as f64;
            assert!(fullest <= bound(ceiling_s), "try {n}: {fullest} in {WINDOW_MS} ms, at most {}", bound(ceiling_s));
        }
    }
}

/// A first wait is uniform: each tenth of the second gets its tenth of the nodes. Chi-square with 9 degrees of freedom
/// exceeds 27.9 once in a thousand.
#[test]
fn the_first_tries_are_even_over_the_first_second() {
    let times = tries(1, 1, Urgency::Normal);
    let mut histogram = [0_u32; 10];
    times.iter().for_each(|at| histogram[usize::try_from(at / 100).unwrap()] += 1);
    let expected = NODES as f64 / 10.0;
    let chi_square: f64 = histogram.iter().map(|count| (f64::from(*count) - expected).powi(2) / expected).sum();
    assert!(chi_square < 27.9, "{chi_square}: {histogram:?}");
}

/// A master that is away for an hour and comes back meets no crowd, and waits for nobody longer than the cap.
#[test]
fn after_an_hour_all_come_back_within_the_cap_and_none_together() {
    for (urgency, cap_s) in [(Urgency::Normal, 120), (Urgency::ResultsWait, 30)] {
        let back_at = Duration::from_secs(3_600);
        let node = |seed| {
            let mut backoff = Backoff::new(seed);
            let mut now = Duration::ZERO;
            while now < back_at {
                now += backoff.failed(now, urgency);
            }
            u64::try_from((now - back_at).as_millis()).unwrap()
        };
        let mut times: Vec<u64> = (1..=NODES).map(node).collect();
        times.sort_unstable();
        assert!(*times.last().unwrap() < cap_s * 1_000, "the last one after {} ms", times.last().unwrap());
        // What is left of a wait is twice as dense at its beginning as the whole wait: density 2 / cap.
        let bound = bound(cap_s as f64 / 2.0);
        assert!(
            (fullest_window(&times) as f64) <= bound,
            "{} in {WINDOW_MS} ms, at most {bound}",
            fullest_window(&times)
        );
    }
}

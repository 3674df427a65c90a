//! Input archives: whatever comes, nothing panics, and what is written for the engine is within the bounds and has only
//! files and folders below the work folder.
#![no_main]

use std::io::Cursor;
use std::path::Component;

use hivemind_worker::sandbox::{Starter, rewrite_inputs};
use libfuzzer_sys::fuzz_target;
use tar::EntryType;

const MAX_BYTES: u64 = 1 << 20;

fuzz_target!(|data: &[u8]| {
    let mut out = Vec::new();
    let result = rewrite_inputs(Cursor::new(data), &mut out, MAX_BYTES, Starter::Omit);
    if result.is_err() {
        return;
    }
    let mut total = 0;
    for entry in tar::Archive::new(out.as_slice()).entries().unwrap() {
        let entry = entry.unwrap();
        assert!(matches!(entry.header().entry_type(), EntryType::Regular | EntryType::Directory));
        assert!(entry.path().unwrap().components().all(|part| matches!(part, Component::Normal(_))));
        total += entry.size();
    }
    assert!(total <= MAX_BYTES);
});

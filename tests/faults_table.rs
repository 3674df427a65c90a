//! The table of the fault matrix names each row once, and tests that are there. `scripts/faults.sh` runs what it names.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Of the matrix, the rows that concern worker, master, store, disk, engine and clock.
fn wanted() -> Vec<u32> {
    (1..=48).chain([52]).chain(57..=60).chain([63, 64]).collect()
}

fn table() -> BTreeMap<u32, Vec<String>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("tests/faults.table")).unwrap();
    let mut rows: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    let mut last = 0;
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(head) = line.strip_prefix("row ") {
            let (number, words) = head.split_once(" | ").unwrap_or_else(|| panic!("no row: {line}"));
            last = number.parse().unwrap();
            assert!(!words.is_empty(), "{line}");
            assert!(rows.insert(last, Vec::new()).is_none(), "row {last} is there twice");
        } else {
            let entry = line.strip_prefix("  ").unwrap_or_else(|| panic!("neither row nor entry: {line}"));
            rows.get_mut(&last).unwrap().push(entry.to_owned());
        }
    }
    rows
}

#[test]
fn each_row_is_there_once_with_its_proof_or_with_what_is_missing() {
    let rows = table();
    assert_eq!(rows.keys().copied().collect::<Vec<_>>(), wanted());
    for (row, entries) in &rows {
        assert!(!entries.is_empty(), "row {row} has neither a test nor a word on what is missing");
        assert_eq!(entries.iter().collect::<BTreeSet<_>>().len(), entries.len(), "row {row} names something twice");
    }
}

#[test]
fn each_named_test_is_in_its_file() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut named = 0;
    for (row, entries) in table() {
        for entry in entries.iter().filter(|entry| !entry.starts_with("missing ")) {
            let words: Vec<&str> = entry.strip_prefix("full ").unwrap_or(entry).split(' ').collect();
            let [binary, test] = words[..] else { panic!("row {row}: no test: {entry}") };
            named += 1;
            let (files, name) = match binary {
                "lib" => {
                    let (module, name) = test.rsplit_once("::").unwrap();
                    let module = module.strip_suffix("::tests").unwrap_or(module).replace("::", "/");
                    let files = ["", "/mod", "/tests"].map(|place| format!("src/{module}{place}.rs"));
                    (files.to_vec(), name)
                }
                // One that a macro makes for several peers has its body in a function of that name.
                binary => (vec![format!("tests/{binary}.rs")], test.rsplit("::").next().unwrap()),
            };
            let heads = [
                format!("#[test]\nfn {name}()"),
                format!("#[test]\n    fn {name}()"),
                format!("\nfn {name}(way: Way)"),
                format!("\nfn {name}(master: MasterKind)"),
            ];
            let is_there = files.iter().any(|file| {
                let text = fs::read_to_string(root.join(file)).unwrap_or_default();
                heads.iter().any(|head| text.contains(head))
            });
            assert!(is_there, "row {row}: no test {name} in any of {files:?}");
        }
    }
    assert!(named > 50, "{named} tests");
}

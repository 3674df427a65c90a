//! The committed Rust types of the contract are what `proto/` says. Write them anew with
//! `UPDATE_SCHEMA=1 cargo test --test schema`.
#![allow(clippy::unwrap_used)]

use std::path::Path;

const PROTOS: [&str; 3] = ["hivemind/v1/common.proto", "hivemind/v1/node.proto", "hivemind/v1/task.proto"];
const COMMITTED: &str = "src/rpc/schema.rs";
const HEAD: &str =
    "//! Generated from proto/ by tests/schema.rs; don't edit.\n#![allow(missing_docs, clippy::all)]\n\n";

fn generate() -> String {
    let descriptors = protox::compile(PROTOS, ["proto"]).unwrap();
    let out = tempdir();
    prost_build::Config::new().btree_map(["."]).disable_comments(["."]).out_dir(&out).compile_fds(descriptors).unwrap();
    let text = std::fs::read_to_string(out.join("hivemind.v1.rs")).unwrap();
    std::fs::remove_dir_all(&out).unwrap();
    format!("{HEAD}{text}")
}

fn tempdir() -> std::path::PathBuf {
    let path = std::env::temp_dir().join(format!("hivemind-schema-{}", std::process::id()));
    std::fs::create_dir_all(&path).unwrap();
    path
}

/// Formatting is rustfmt's business, so it does not count as drift.
fn without_white_space(text: &str) -> String {
    text.chars().filter(|c| !c.is_whitespace() && *c != ',').collect()
}

#[test]
fn committed_types_are_those_of_proto() {
    let generated = generate();
    if std::env::var_os("UPDATE_SCHEMA").is_some() {
        std::fs::write(COMMITTED, &generated).unwrap();
    }
    let committed = std::fs::read_to_string(Path::new(COMMITTED)).unwrap_or_default();
    assert!(
        without_white_space(&committed) == without_white_space(&generated),
        "{COMMITTED} is not what proto/ says; run UPDATE_SCHEMA=1 cargo test --test schema && cargo fmt"
    );
}

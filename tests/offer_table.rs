//! Assignments with hostile or odd values, from their bytes through the decoder and a real coordinator: each is refused
//! as `invalid`, with the field's name, before anything is kept or started. Beside them stand values at the edge of what
//! is allowed, which must be taken.
#![allow(clippy::unwrap_used)]

mod offer_support;

use std::collections::HashSet;
use std::time::Duration;

use hivemind_worker::coordinator::{Effect, Event};
use hivemind_worker::node::offer::Offer;
use hivemind_worker::node::spec::{
    BASE_IMAGE, MAX_ATTEMPT, MAX_BYTES, MAX_CPU_MILLIS, MAX_INPUT_BYTES, MAX_PATTERN_BYTES, MAX_PATTERNS,
    MAX_WORD_BYTES, MAX_WORDS, MAX_WORDS_BYTES, MIN_CPU_MILLIS, MIN_MEMORY_BYTES, SpecDefaults, TaskSpec,
};
use hivemind_worker::rpc::convert::decode_offer;
use hivemind_worker::rpc::schema::{Assignment, AttemptKey};
use offer_support::{
    FIELDS, MIB, bytes_field, check_ranges, complaint, good, node, number_field, start_of, tag, varint, with,
};
use prost::Message;
use ring::digest::{SHA256, digest};

/// Distinct rows; two with the same bytes would count for one.
#[derive(Default)]
struct Table {
    rows: Vec<(String, &'static str, Vec<u8>)>,
    seen: HashSet<Vec<u8>>,
}

impl Table {
    fn row(&mut self, field: &'static str, what: impl Into<String>, bytes: Vec<u8>) {
        let what = what.into();
        assert!(self.seen.insert(digest(&SHA256, &bytes).as_ref().to_vec()), "{field}: {what}: is there already");
        self.rows.push((what, field, bytes));
    }

    fn change(&mut self, field: &'static str, what: impl Into<String>, change: impl FnOnce(&mut Assignment)) {
        self.row(field, what, with(change));
    }

    fn texts(&mut self, field: &'static str, texts: &[&str], set: fn(&mut Assignment, String)) {
        for text in texts {
            self.change(field, start_of(text), |a| set(a, (*text).to_owned()));
        }
    }

    fn numbers(&mut self, field: &'static str, numbers: &[i64], set: fn(&mut Assignment, i64)) {
        for number in numbers {
            self.change(field, number.to_string(), |a| set(a, *number));
        }
    }

    /// A good assignment with these bytes behind it.
    fn wire(&mut self, field: &'static str, what: impl Into<String>, tail: &[u8]) {
        self.row(field, what, [good().encode_to_vec().as_slice(), tail].concat());
    }
}

fn check_refused(table: &Table) {
    let bad = table.rows.iter().filter_map(|(what, field, bytes)| {
        complaint(field, decode_offer(bytes).map(Box::new)).map(|why| format!("{field}: {what}: {why}"))
    });
    let bad: Vec<_> = bad.collect();
    assert!(bad.is_empty(), "{} of {} rows:\n{}", bad.len(), table.rows.len(), bad.join("\n"));
}

// Values.

#[rustfmt::skip]
const ODD_IDS: &[&str] = &[
    ".", "..", "../x", "a/../b", "/etc/passwd", "a/b", "a\\b", "-v", "--privileged", ".hidden", "_a", "a b", " a",
    "a ", "a\0", "\0", "a\nb", "a\r", "a\tb", "a\u{1b}[2J", "a\u{7f}", "a\u{85}b", "a\u{202e}b", "a\u{200b}b",
    "a\u{feff}", "а", "аda", "ａ", "é", "e\u{301}", "🐝", "a?b", "a#b", "a%2f", "a&b=c", "a:b", "a@b", "a;rm", "$(id)",
    "a`id`", "a'b", "a\"b", "<b>", "{}", "*", "a,b", "~", "a\u{2028}b",
];

#[rustfmt::skip]
const ODD_IMAGES: &[&str] = &[
    ".", "..", "../../etc/passwd", "a/../b", "/a", "a/", "a//b", "./a", "a/./b", "-v", "--privileged",
    "a --privileged", "a:1 --privileged", "-a/b", "a/-b", "a-", "a_", "a.", "a..b", "a._b", "a-.b", "a___b", "A",
    "Python", "library/A", "a b", " a", "a ", "a\tb", "a\nb", "a\r\nHost: x", "a\0", "a\0b", "a\u{202e}b", "а",
    "pythоn", "ｐython", "é", "🐝", "a?b", "a?fromSrc=http://x", "a?tag=b", "a&b", "a&tag=b", "a#b", "a%2fb", "a%00",
    "a%2e%2e", "http://x/y", "https://x.org/y", "docker://a", "file:///etc/passwd", "unix:///var/run/docker.sock",
    "user:word@x.org/a", "x@y/a", "@", "a@", "a@b", "a@sha256", "a@sha256:", "a@sha256:00", "a@md5:00", "a@sha512:00",
    "a:", ":", ":a", "a::b", "a:b:c", "a:-x", "a:.x", "a: x", "a:x y", "a:ä", "a:x?y", "a:x/", "a:x\0", "a/b:",
    "x.org:/a", "x.org:0/a", "x.org:99999/a", "x.org:65536/a", "x.org:+80/a", "x.org:-1/a", "x.org:http/a",
    "x.org:8 0/a", "x.org:80:80/a", "x.org:000080/a", "-x.org/a", "x-.org/a", "x..org/a", ".x.org/a", "x.org./a",
    "x_y.org:1/a", "[::1]/a", "[::1]:5000/a", "::1/a", "[fe80::1%25eth0]:5000/a", "x.org/", "x.org//a", "x.org:80/",
    "localhost/", "a\\b", "$(id)", "a;b", "a|b", "a*", "a,b", "~", "a=b", "sha256:0f0f", "a/b@", "a\u{200b}",
];

#[rustfmt::skip]
const ODD_URLS: &[&str] = &[
    " ", "x", "/x", "data.example/x", "ftp://data.example/x", "file:///etc/passwd", "unix:///var/run/docker.sock",
    "https://", "https:///x", "https://user@data.example/", "https://user:word@data.example/", "https://h:0/",
    "https://h:65536/", "https://h h/", "https://h/\n", "https://h/\0", "https://h/\r\nHost: x", "https://h\\@x/",
    "https://2130706433/", "https://0x7f.1/", "https://0177.0.0.1/", "https://127.1/", "https://[::1", "https://::1/",
    "https://[fe80::1%25eth0]/", "https://[fe80::1%eth0]/", "https://h/\u{202e}", "https://\u{fc}.example/",
    "https://h./", "https://a..b/", "https://%31/", " https://data.example/", "https://data.example/ ",
];

fn long_texts() -> Vec<String> {
    let digest = |hex: &str| format!("a@sha256:{hex}");
    vec![
        "a".repeat(MIB),
        "a/".repeat(MIB / 2) + "a",
        "\u{202e}".repeat(1_000),
        "a".repeat(256),
        format!("a:{}", "t".repeat(129)),
        format!("{}/a", "x.".repeat(126) + "org"),
        digest(&"0".repeat(63)),
        digest(&"0".repeat(65)),
        digest(&"A".repeat(64)),
        digest(&"g".repeat(64)),
        digest(&format!("{}\0", "0".repeat(63))),
        format!("{}@sha256:{}", digest(&"0".repeat(64)), "0".repeat(64)),
        format!("sha256:{}", "0".repeat(64)),
    ]
}

#[rustfmt::skip]
const ODD_WORDS: &[&str] = &[
    "ALWAYS", "Always", "always ", " always", "always\0", "always\n", "if_missing", "if-missing,never", "nevеr",
    "true", "0", "-", "--pull=always", "default", "..", "\u{202e}", "host", "bridge", "container:x", "None", "NONE",
    "none ", "nоne", "Finish", "finish\0", "STOP", "stop,finish", "restart",
];

#[rustfmt::skip]
const ODD_ENV_NAMES: &[&str] = &[
    "", "=", "A=B", "A=", "=A", "A B", " A", "A ", "1A", "7", "A-B", "A.B", "-A", "A\0", "A\nB", "A\u{1b}[2J", "Ä",
    "А", "🐝", "A\u{202e}", "A;B", "$A", "A[0]", "()", "A%", "A/B", "..", "TASK_ID", "HIVEMIND_OUTPUT",
];

#[rustfmt::skip]
const ODD_PATTERNS: &[&str] = &[
    "", "/", "/etc/passwd", "//x", "..", "../x", "a/..", "a/../b", "a/../../b", ".", "./a", "a/.", "a/./b", "a/",
    "a//b", "a\0", "\0", "a\nb", "a\r", "a\tb", "a\u{1b}[2J", "a\u{7f}", "a\u{85}", "**x", "x**", "a/**b", "a**/b",
    "***", "[", "[a", "a/[b", "[]", "[!]", "a[!", "output/***",
];

fn limits(min: i64, max: i64) -> Vec<i64> {
    let mut numbers = vec![min - 1, max + 1, -1, -2, -1_000, -min, i64::MIN, i64::MIN + 1, i64::MAX, i64::MAX - 1];
    numbers.extend([i64::from(i32::MIN), -(1 << 32), 1 << 62]);
    numbers.sort_unstable();
    numbers.dedup();
    numbers.retain(|number| *number != 0);
    numbers
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap()
}

fn name_rows(table: &mut Table) {
    let set_task = |a: &mut Assignment, text| a.key.as_mut().unwrap().task_id = text;
    table.texts("task_id", ODD_IDS, set_task);
    table.texts("owner_id", ODD_IDS, |a, text| a.owner_id = text);
    for len in [64, 255, 4_096, MIB] {
        table.texts("task_id", &[&"x".repeat(len), &"..".repeat(len)], set_task);
        table.texts("owner_id", &[&"x".repeat(len), &"\u{1b}".repeat(len)], |a, text| a.owner_id = text);
    }
    table.texts("task_id", &[""], set_task);
    table.change("key", "no key", |a| a.key = None);
    table.change("task_id", "empty key", |a| a.key = Some(AttemptKey::default()));
    for attempt in [0, MAX_ATTEMPT + 1, u32::MAX - 1, u32::MAX] {
        table.change("attempt", attempt.to_string(), |a| a.key.as_mut().unwrap().attempt = attempt);
    }
    table.texts("image", ODD_IMAGES, |a, text| a.image = text);
    for text in long_texts() {
        table.texts("image", &[&text], |a, text| a.image = text);
    }
    let megabyte = "x".repeat(MIB);
    for words in [ODD_WORDS, &[megabyte.as_str()]] {
        table.texts("pull", words, |a, text| a.pull = text);
        table.texts("network", words, |a, text| a.network = text);
        table.texts("at_lease_end", words, |a, text| a.at_lease_end = text);
    }
    table.texts("network", &["egress"], |a, text| a.network = text);
    // Of these the last is a name, of a runtime that the owner has not listed.
    table.texts("runtime", ODD_IDS, |a, text| a.runtime = text);
    table.texts("runtime", &[&"x".repeat(64), &megabyte, "/usr/bin/runc", "--runtime", "runc"], |a, text| {
        a.runtime = text
    });
    // Of a node whose owner allows no egress there is nothing to list, be it right or wrong.
    table.texts("network_allow", &["203.0.113.0/24:443", "", "*"], |a, text| a.network_allow = vec![text]);
}

fn number_rows(table: &mut Table) {
    let bytes = signed(MAX_BYTES);
    table.numbers("cpu_millis", &limits(signed(MIN_CPU_MILLIS), signed(MAX_CPU_MILLIS)), |a, n| a.cpu_millis = n);
    table.numbers("memory_bytes", &limits(signed(MIN_MEMORY_BYTES), bytes), |a, n| a.memory_bytes = n);
    table.numbers("disk_bytes", &limits(1 << 20, bytes), |a, n| a.disk_bytes = n);
    table.numbers("timeout_ms", &limits(100, 86_400_000), |a, n| a.timeout_ms = n);
    table.numbers("max_output_bytes", &limits(1, bytes), |a, n| a.max_output_bytes = n);
    table.numbers("gpus", &limits(0, 0), |a, n| a.gpus = n);
    table.numbers("grace_ms", &limits(0, 60_000), |a, n| a.grace_ms = Some(n));
    table.numbers("priority", &limits(0, 100), |a, n| a.priority = Some(n));
    table.numbers("cpu_millis", &[1], |a, n| a.cpu_millis = n);
    table.numbers("memory_bytes", &[1, 1_024, 6 << 20], |a, n| a.memory_bytes = n);
    table.numbers("disk_bytes", &[1, 4_096], |a, n| a.disk_bytes = n);
    table.numbers("timeout_ms", &[1, 50], |a, n| a.timeout_ms = n);
}

fn list_rows(table: &mut Table) {
    let nul = ["\0", "a\0b", "\0a", "a\0"];
    for text in nul {
        table.change("command[0]", format!("{text:?}"), |a| a.command = vec![text.to_owned()]);
        table.change("command[1]", format!("{text:?}"), |a| a.command[1] = text.to_owned());
        table.change("env[0]", format!("{text:?}"), |a| a.env = [("A".to_owned(), text.to_owned())].into());
    }
    table.change("command[0]", "empty", |a| a.command = vec![String::new()]);
    table.change("command[0]", "empty, then more", |a| a.command = vec![String::new(), "x".to_owned()]);
    for len in [MAX_WORD_BYTES + 1, MIB] {
        table.change("command[1]", format!("{len} bytes"), |a| a.command[1] = "x".repeat(len));
        table.change("env[0]", format!("{len} bytes"), |a| a.env = [("A".to_owned(), "x".repeat(len))].into());
    }
    for len in [MAX_WORDS + 1, 100_000] {
        table.change("command", format!("{len} words"), |a| a.command = vec!["x".to_owned(); len]);
        table.change("command", format!("{len} empty words"), |a| a.command = vec![String::new(); len]);
        table.change("env", format!("{len} entries"), |a| {
            a.env = (0..len).map(|n| (format!("A{n}"), String::new())).collect();
        });
    }
    let words = MAX_WORDS_BYTES / MAX_WORD_BYTES;
    table.change("command", "too much in all", |a| a.command = vec!["x".repeat(MAX_WORD_BYTES); words + 1]);
    table.change("env", "one byte too much in all", |a| {
        a.command = vec!["x".repeat(MAX_WORD_BYTES); words];
        a.env = [("A".to_owned(), String::new())].into();
    });
    for name in ODD_ENV_NAMES {
        table.change("env[0]", format!("name {name:?}"), |a| a.env = [((*name).to_owned(), "x".to_owned())].into());
    }
    for len in [256, MIB] {
        table.change("env[0]", format!("name of {len}"), |a| a.env = [("A".repeat(len), String::new())].into());
        table.change("env[0]", format!("odd name of {len}"), |a| a.env = [("\n".repeat(len), String::new())].into());
    }
    table.change("env[1]", "the second is wrong", |a| {
        a.env.insert("é".to_owned(), String::new());
    });
    for pattern in ODD_PATTERNS {
        table.change("outputs[0]", format!("{pattern:?}"), |a| a.outputs = vec![(*pattern).to_owned()]);
    }
    for pattern in ["", "../x", "**x", "a\0"] {
        table.change("outputs[1]", format!("{pattern:?}"), |a| a.outputs.push(pattern.to_owned()));
    }
    for len in [MAX_PATTERN_BYTES + 1, MIB] {
        table.change("outputs[0]", format!("{len} bytes"), |a| a.outputs = vec!["x".repeat(len)]);
    }
    for len in [MAX_PATTERNS + 1, 10_000] {
        table.change("outputs", format!("{len} patterns"), |a| a.outputs = vec!["x".to_owned(); len]);
        table.change("outputs", format!("{len} empty patterns"), |a| a.outputs = vec![String::new(); len]);
    }
    table.change("inputs", "a byte too many", |a| a.inputs = vec![0; MAX_INPUT_BYTES + 1]);
    for len in [1, 16, 31, 33, 64, MIB] {
        table.change("inputs_sha256", format!("{len} bytes"), |a| a.inputs_sha256 = vec![7; len]);
    }
    table.change("inputs_sha256", "of something else", |a| a.inputs_sha256 = vec![0; 32]);
    table.change("inputs_sha256", "of other inputs", |a| {
        a.inputs = b"x".to_vec();
        a.inputs_sha256 = digest(&SHA256, b"y").as_ref().to_vec();
    });
    let sha256 = digest(&SHA256, b"x").as_ref().to_vec();
    for (url, what) in ODD_URLS.iter().map(|url| (*url, start_of(url))) {
        table.change("inputs_url", what, |a| {
            a.inputs_url = url.to_owned();
            a.inputs_sha256 = sha256.clone();
        });
    }
    table.change("inputs_url", "beside inputs", |a| {
        a.inputs = b"x".to_vec();
        a.inputs_url = "https://data.example/x.zip".to_owned();
        a.inputs_sha256 = sha256.clone();
    });
    table.change("inputs_sha256", "missing beside a URL", |a| a.inputs_url = "https://data.example/x.zip".to_owned());
    table.change("inputs_url_bytes", "without a URL", |a| a.inputs_url_bytes = 1);
    for bytes in [-1, i64::MIN, (1 << 30) + 1, i64::MAX] {
        table.change("inputs_url_bytes", bytes.to_string(), |a| {
            a.inputs_url = "https://data.example/x.zip".to_owned();
            a.inputs_url_bytes = bytes;
            a.inputs_sha256 = sha256.clone();
        });
    }
    let hex: String = digest(&SHA256, b"").as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    table.change("inputs_sha256", "in hex", |a| a.inputs_sha256 = hex.into_bytes());
}

// Wire bytes.

/// Lone continuation, overlong NUL, surrogate, broken sequence, beyond Unicode, cut off, and a wrong end.
const WRONG_UTF8: [&[u8]; 7] =
    [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xe2\x28\xa1", b"\xf4\x90\x80\x80", b"\xc3", b"ok\xfe"];

fn wire_rows(table: &mut Table) {
    for (number, field, right) in FIELDS {
        for wire_type in [0, 1, 2, 3, 4, 5].into_iter().filter(|wire_type| *wire_type != right) {
            let content = [tag(number, wire_type), vec![8, 8, 8, 8, 8, 8, 8, 8, 8]].concat();
            let name = if wire_type == 4 { "assignment" } else { field };
            table.wire(name, format!("wire type {wire_type} of {field}"), &content);
        }
        for wire_type in [6, 7] {
            table.wire("assignment", format!("wire type {wire_type} of {field}"), &tag(number, wire_type));
        }
        table.wire(field, "nothing behind its tag", &tag(number, right));
        if right == 0 {
            table.wire(field, "endless number", &[tag(number, 0), vec![0xff; 11]].concat());
            table.wire(field, "half a number", &[tag(number, 0), vec![0x80]].concat());
            continue;
        }
        table.wire(field, "cut off", &[tag(number, 2), vec![10, b'a', b'b', b'c']].concat());
        for len in [1 << 31, 1 << 32, 1 << 63, u64::MAX] {
            table.wire(field, format!("length {len}"), &[tag(number, 2), varint(len), b"a".to_vec()].concat());
        }
    }
    for text in WRONG_UTF8 {
        for (number, field) in [
            (2, "owner_id"),
            (3, "image"),
            (4, "pull"),
            (5, "command"),
            (14, "network"),
            (15, "at_lease_end"),
            (16, "outputs"),
            (20, "network_allow"),
            (30, "runtime"),
        ] {
            table.wire(field, format!("{text:x?}"), &bytes_field(number, text));
        }
        table.wire("task_id", format!("{text:x?}"), &bytes_field(1, &bytes_field(1, text)));
        table.wire("env", format!("name {text:x?}"), &bytes_field(6, &bytes_field(1, text)));
        let entry = [bytes_field(1, b"A"), bytes_field(2, text)].concat();
        table.wire("env", format!("value {text:x?}"), &bytes_field(6, &entry));
    }
    // The contract has 32 bits: a wider number is cut to them, as protobuf has it.
    for number in [1 << 32, 1 << 31, u64::MAX, 1 << 63] {
        table.wire("attempt", format!("{number} on the wire"), &bytes_field(1, &number_field(2, number)));
    }
    table.wire("attempt", "wrong wire type", &bytes_field(1, &bytes_field(2, b"1")));
    table.wire("task_id", "wrong wire type", &bytes_field(1, &number_field(1, 1)));
    table.wire("key", "longer than what is in it", &bytes_field(1, &[0x0a, 9, b'a']));
    table.wire("env", "longer than what is in it", &bytes_field(6, &[0x0a, 9, b'A']));
    table.wire("env", "an entry of groups", &bytes_field(6, &[0x0b; 300]));
    table.wire("key", "deep groups in it", &bytes_field(1, &[0x7b; 300]));
    table.wire("assignment", "deep groups", &tag(100, 3).repeat(1_000));
    table.wire("assignment", "open group", &tag(100, 3));
    table.wire("assignment", "closed group that was never open", &tag(100, 4));
    table.wire("assignment", "group closed by another", &[tag(100, 3), tag(101, 4)].concat());
    table.wire("assignment", "field 0", &[0, 0]);
    table.wire("assignment", "field 0 of bytes", &[2, 1, 0]);
    table.wire("assignment", "endless tag", &[0xff; 11]);
    table.wire("assignment", "unknown field, cut off", &[tag(100, 2), vec![10, 1]].concat());
    table.wire("assignment", "unknown field of all memory", &[tag(100, 2), varint(u64::MAX)].concat());
    table.row("assignment", "text", b"{\"image\": \"python\"}".to_vec());
    table.row("assignment", "one byte", vec![0x80]);
    table.row("assignment", "zeros", vec![0; MIB]);
    table.row("assignment", "ones", vec![0xff; MIB]);
    table.row("key", "no byte", Vec::new());
    // Of a field that is there twice the last counts, so that nothing hides behind a good first one.
    table.wire("image", "second is wrong", &bytes_field(3, b"--privileged"));
    table.wire("task_id", "second is wrong", &bytes_field(1, &bytes_field(1, b"..")));
    table.wire("memory_bytes", "second is wrong", &number_field(8, u64::MAX));
    table.wire("network", "second is wrong", &bytes_field(14, b"host"));
    table.wire(
        "env[0]",
        "second is wrong",
        &bytes_field(6, &[bytes_field(1, b"LANG"), bytes_field(2, b"\0")].concat()),
    );
    table.wire("env[0]", "an entry without a name", &bytes_field(6, &bytes_field(2, b"x")));
    table.wire("outputs[1]", "second is wrong", &bytes_field(16, b"/etc"));
    let inputs = [bytes_field(19, digest(&SHA256, b"x").as_ref()), bytes_field(18, b"x"), bytes_field(18, b"y")];
    table.wire("inputs_sha256", "second inputs behind the digest of the first", &inputs.concat());
}

#[test]
fn refuses_names_and_words_that_are_none() {
    let mut table = Table::default();
    name_rows(&mut table);
    check_refused(&table);
}

#[test]
fn refuses_numbers_out_of_range() {
    let mut table = Table::default();
    number_rows(&mut table);
    check_refused(&table);
}

#[test]
fn refuses_lists_and_inputs_that_are_wrong_or_too_large() {
    let mut table = Table::default();
    list_rows(&mut table);
    check_refused(&table);
}

#[test]
fn refuses_bytes_that_are_no_assignment() {
    let mut table = Table::default();
    wire_rows(&mut table);
    check_refused(&table);
}

#[test]
fn the_tables_have_hundreds_of_distinct_rows() {
    let mut table = Table::default();
    name_rows(&mut table);
    number_rows(&mut table);
    list_rows(&mut table);
    wire_rows(&mut table);
    assert!(table.rows.len() >= 400, "{}", table.rows.len());
    println!("{} hostile rows", table.rows.len());
}

#[test]
fn refuses_numbers_that_the_wire_has_no_room_for() {
    let offer = || Box::new(decode_offer(&good().encode_to_vec()).unwrap());
    for attempt in [0, -1, i64::MIN, i64::MAX, 1 << 31, 1 << 32, (1 << 32) + 1] {
        let offer = Box::new(Offer { attempt, ..*offer() });
        assert_eq!(complaint("attempt", Ok(offer)), None, "{attempt}");
    }
    let twice = || ("A".to_owned(), "x".to_owned());
    assert_eq!(complaint("env[1]", Ok(Box::new(Offer { env: vec![twice(), twice()], ..*offer() }))), None);
}

#[test]
fn each_prefix_of_an_assignment_is_refused_or_one_that_ends_with_a_field() {
    let bytes = with(|a| a.inputs = b"inputs".to_vec());
    let mut taken = 0;
    for len in 0..bytes.len() {
        match decode_offer(&bytes[..len]) {
            Err(error) => assert!(!error.to_string().is_empty()),
            Ok(offer) => taken += usize::from(TaskSpec::check(&offer, &SpecDefaults::default()).is_ok()),
        }
    }
    assert!(taken < 20, "{taken} prefixes are read as whole");
}

// What must be taken.

fn good_rows() -> Table {
    let mut table = Table::default();
    let bytes = signed(MAX_BYTES);
    let pinned = format!("a/b@sha256:{}", "0f".repeat(32));
    let set_task = |a: &mut Assignment, text| a.key.as_mut().unwrap().task_id = text;
    let ids = ["a", "7", "A", "a..b", "a.", "a-", "word-count_2.b", &"x".repeat(63)];
    table.texts("task_id", &ids, set_task);
    table.texts("owner_id", &["", "a", "anonymous", &"9".repeat(63)], |a, text| a.owner_id = text);
    let long_tag = format!("a:{}", "t".repeat(128));
    let images = [
        "",
        "python",
        "a",
        "7",
        "python:3.12-slim",
        BASE_IMAGE,
        "localhost:5000/a/b",
        "localhost/a",
        "x.org/a__b-c.d--e",
        "x.org:80",
        "x.org",
        "x.org:1/a",
        "x.org:65535/a:T_1.-",
        "X.org/a",
        "127.0.0.1:5000/a",
        "a/b/c/d/e",
        &pinned,
        &format!("python:3@sha256:{}", "0".repeat(64)),
        &long_tag,
        &"a".repeat(255),
        "a:0",
        "x.org/sha256:0f",
    ];
    table.texts("image", &images, |a, text| a.image = text);
    table.texts("pull", &["", "always", "never"], |a, text| a.pull = text);
    table.texts("network", &[""], |a, text| a.network = text);
    table.texts("at_lease_end", &["", "stop"], |a, text| a.at_lease_end = text);
    table.numbers("cpu_millis", &[0, 10, signed(MAX_CPU_MILLIS)], |a, n| a.cpu_millis = n);
    table.numbers("memory_bytes", &[0, signed(MIN_MEMORY_BYTES), bytes], |a, n| a.memory_bytes = n);
    table.numbers("disk_bytes", &[0, 1 << 20, bytes], |a, n| a.disk_bytes = n);
    table.numbers("timeout_ms", &[0, 100, 86_400_000], |a, n| a.timeout_ms = n);
    table.numbers("max_output_bytes", &[0, 1, bytes], |a, n| a.max_output_bytes = n);
    table.numbers("grace_ms", &[0, 1, 60_000], |a, n| a.grace_ms = Some(n));
    table.numbers("priority", &[0, 1, 100], |a, n| a.priority = Some(n));
    table.change("grace_ms", "absent", |a| a.grace_ms = None);
    table.change("priority", "absent", |a| a.priority = None);
    for attempt in [2, MAX_ATTEMPT] {
        table.change("attempt", attempt.to_string(), |a| a.key.as_mut().unwrap().attempt = attempt);
    }
    table.change("command", "none", |a| a.command = Vec::new());
    table.change("command", "empty and odd arguments", |a| {
        a.command = ["sh", "", "-c", "echo 'ä\n\t\u{1b}'; $(id)"].map(str::to_owned).to_vec();
    });
    table.change("command", "most words", |a| a.command = vec!["x".to_owned(); MAX_WORDS]);
    table.change("command", "most bytes", |a| {
        a.command = vec!["x".repeat(MAX_WORD_BYTES); MAX_WORDS_BYTES / MAX_WORD_BYTES];
        a.env.clear();
    });
    table.change("env", "none", |a| a.env.clear());
    table.change("env", "most entries", |a| a.env = (0..MAX_WORDS).map(|n| (format!("_{n}"), String::new())).collect());
    let long_name = "A".repeat(255);
    for (name, value) in [("_", "a=b\n\tä"), (&long_name, ""), ("task_id", "x"), ("PYTHONUNBUFFERED", "0")] {
        table.change("env", start_of(name), |a| a.env = [(name.to_owned(), value.to_owned())].into());
    }
    let long_pattern = "x".repeat(MAX_PATTERN_BYTES);
    for pattern in ["*", "**", "**/*.txt", "a?b", "[a-z]/[!x]", "-a", ".hidden", "...", "ä b/🐝", "a\\b", &long_pattern]
    {
        table.change("outputs", start_of(pattern), |a| a.outputs = vec![pattern.to_owned()]);
    }
    table.change("outputs", "none", |a| a.outputs = Vec::new());
    table.change("outputs", "most", |a| a.outputs = vec!["x".to_owned(); MAX_PATTERNS]);
    table.change("inputs", "with their digest", |a| {
        a.inputs = b"x".to_vec();
        a.inputs_sha256 = digest(&SHA256, b"x").as_ref().to_vec();
    });
    table.change("inputs", "most", |a| a.inputs = vec![0; MAX_INPUT_BYTES]);
    for (url, bytes) in [("https://data.example/x.zip?sig=%2F", 0), ("http://[::1]:8080", 1), ("HTTPS://A.B/", 1 << 30)]
    {
        table.change("inputs_url", start_of(url), |a| {
            a.inputs_url = url.to_owned();
            a.inputs_url_bytes = bytes;
            a.inputs_sha256 = digest(&SHA256, b"x").as_ref().to_vec();
        });
    }
    table.row("key", "a task id alone", Assignment { key: good().key, ..Assignment::default() }.encode_to_vec());
    // A newer master's words break nothing; of two values the last counts; the parts of a message are put together.
    table.wire("assignment", "unknown fields", &[bytes_field(100, b"\xff"), number_field(101, 1)].concat());
    table.wire("assignment", "unknown group", &[tag(100, 3), number_field(1, 1), tag(100, 4)].concat());
    table.row("image", "first is wrong", [bytes_field(3, b"--privileged"), good().encode_to_vec()].concat());
    table.wire("key", "in two parts", &bytes_field(1, &number_field(2, 3)));
    table.wire("env", "a name twice", &bytes_field(6, &[bytes_field(1, b"LANG"), bytes_field(2, b"C")].concat()));
    table
}

#[test]
fn takes_what_is_just_allowed() {
    let table = good_rows();
    assert!(table.rows.len() >= 60, "{}", table.rows.len());
    println!("{} good rows", table.rows.len());
    for (what, field, bytes) in &table.rows {
        let mut node = node();
        let offer = decode_offer(bytes).map(Box::new);
        node.handle(Event::Offers { poll: 1, offers: vec![(7, offer)] }, Duration::ZERO, 0);
        let effects = node.take_effects();
        let [Effect::Commit { ticket, .. }] = effects.as_slice() else {
            panic!("{field}: {what}: {}", start_of(&format!("{effects:?}")))
        };
        assert_eq!(node.snapshot().attempts.len(), 1, "{field}: {what}");
        node.handle(Event::Durable(*ticket), Duration::ZERO, 0);
        let mut effects = node.take_effects();
        let Some(Effect::Commit { ticket, .. }) = effects.last() else { panic!("{field}: {what}") };
        node.handle(Event::Durable(*ticket), Duration::ZERO, 0);
        effects.extend(node.take_effects());
        let is_taken =
            |e: &Effect| matches!(e, Effect::SettlePoll { taken, refused, .. } if taken == &[7] && refused.is_empty());
        assert!(effects.iter().any(is_taken), "{field}: {what}");
        let spec = effects.iter().find_map(|e| if let Effect::Start { spec, .. } = e { Some(spec) } else { None });
        check_ranges(spec.unwrap_or_else(|| panic!("{field}: {what}: does not start")));
    }
}

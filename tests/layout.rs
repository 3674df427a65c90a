//! The rules of how the code is laid out, checked by reading the sources: which module may use which, where `unsafe`,
//! platform differences and certain crates may stand, and what no file may have. The scanners are checked with small
//! snippets of their own, since a scanner that finds nothing looks like a clean tree.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Which top-level module may use which. `daemon` and `cli` put the parts together, so that nothing may use them but
/// those below. `sys` and `node` are words and small tools that know nobody.
const MAY_USE: &[(&str, &[&str])] = &[
    ("h2", &[]),
    ("grpc", &["h2"]),
    ("node", &[]),
    ("sys", &[]),
    ("rpc", &["grpc", "h2", "node", "sys"]),
    ("store", &["node", "sys"]),
    ("docker", &["sys"]),
    ("fetch", &["node", "sys"]),
    ("host", &["node", "sys"]),
    ("vpn", &["node", "sys"]),
    ("config", &["node", "sys"]),
    ("monitor", &["node", "sys"]),
    ("sandbox", &["docker", "fetch", "store", "node", "sys"]),
    ("coordinator", &["node", "sys"]),
    ("session", &["coordinator", "grpc", "node", "rpc", "sys"]),
    // It shares the session's registration, and reads pieces straight from the store.
    ("submit", &["grpc", "node", "rpc", "session", "store", "sys"]),
    // The small master is the other end of `rpc`, and answers the monitor's submissions.
    ("standalone", &["config", "grpc", "h2", "monitor", "node", "rpc", "sys"]),
    (
        "daemon",
        &[
            "config",
            "coordinator",
            "docker",
            "fetch",
            "grpc",
            "h2",
            "host",
            "monitor",
            "node",
            "rpc",
            "sandbox",
            "session",
            "standalone",
            "store",
            "submit",
            "sys",
            "vpn",
        ],
    ),
    ("cli", &["config", "daemon", "docker", "host", "monitor", "node", "sandbox", "sys"]),
    ("main", &["cli"]),
];

/// Crates that one part has to itself: the seam to what they do.
const OWNED_CRATES: &[(&str, &[&str])] = &[
    ("ureq", &["docker", "fetch", "cli"]),
    ("rusqlite", &["store"]),
    ("tiny_http", &["monitor"]),
    ("httparse", &["monitor", "rpc"]),
    ("minreq", &["cli"]),
    ("procfs", &["host"]),
    ("prost", &["rpc", "standalone"]),
    ("lexopt", &["config"]),
    ("simplelog", &["cli"]),
];

/// Files where a platform difference may stand, beside all of `sys`.
const PLATFORM_SEAMS: &[&str] = &["docker/pipe.rs", "host/mod.rs", "vpn/device.rs"];

/// `FILE: CODE` of calls that may end the process, where the sentence beside them proves that they can't.
const PROVEN: &[&str] = &[];

/// Crates that the design gives; each other one needs its reason beside it.
const GIVEN_CRATES: &[&str] = &[
    "ureq",
    "rustls",
    "ring",
    "prost",
    "minreq",
    "procfs",
    "nvml-wrapper",
    "wireguard-uapi",
    "serde",
    "serde_json",
    "tiny_http",
    "log",
    "simplelog",
    "crossbeam-channel",
];

const MAX_LINES: usize = 600;

// Reading sources.

/// `text` with comments and the insides of literals blanked, line for line.
fn code_of(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let end = end_of_blank(&chars, at);
        if end == at {
            out.push(chars[at]);
            at += 1;
        } else {
            out.extend(chars[at..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
            at = end;
        }
    }
    out
}

/// Where the comment or literal that begins at `at` ends; `at` when there is none.
fn end_of_blank(chars: &[char], at: usize) -> usize {
    let is_word = |c: &char| c.is_alphanumeric() || *c == '_';
    let find = |from: usize, wanted: &[char]| {
        let found = chars[from.min(chars.len())..].windows(wanted.len()).position(|window| window == wanted);
        found.map_or(chars.len(), |offset| from + offset + wanted.len())
    };
    match (chars[at], chars.get(at + 1)) {
        ('/', Some('/')) => find(at, &['\n']) - usize::from(find(at, &['\n']) < chars.len()),
        ('/', Some('*')) => {
            let (mut depth, mut to) = (1, at + 2);
            while depth > 0 && to < chars.len() {
                match (chars[to], chars.get(to + 1)) {
                    ('/', Some('*')) => (depth, to) = (depth + 1, to + 2),
                    ('*', Some('/')) => (depth, to) = (depth - 1, to + 2),
                    _ => to += 1,
                }
            }
            to
        }
        ('r', Some('"' | '#')) if at == 0 || !is_word(&chars[at - 1]) || chars[at - 1] == 'b' => {
            let hashes = chars[at + 1..].iter().take_while(|c| **c == '#').count();
            if chars.get(at + 1 + hashes) != Some(&'"') {
                return at;
            }
            let close: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
            find(at + hashes + 2, &close)
        }
        ('"', _) => end_of_quoted(chars, at, '"'),
        ('\'', Some('\\')) => end_of_quoted(chars, at, '\''),
        ('\'', Some(_)) if chars.get(at + 2) == Some(&'\'') => at + 3,
        _ => at,
    }
}

fn end_of_quoted(chars: &[char], at: usize, quote: char) -> usize {
    let mut to = at + 1;
    while to < chars.len() && chars[to] != quote {
        to += if chars[to] == '\\' { 2 } else { 1 };
    }
    (to + 1).min(chars.len())
}

/// `code` with the items under `#[cfg(test)]` blanked, and the names of modules that are files of their own there.
fn without_tests(code: &str) -> (String, Vec<String>) {
    const MARK: &str = "#[cfg(test)]";
    let (mut out, mut modules) = (code.to_owned(), Vec::new());
    while let Some(start) = out.find(MARK) {
        let end = start + MARK.len() + end_of_item(&out[start + MARK.len()..]);
        let item = &out[start + MARK.len()..end];
        if let Some((_, name)) = item.strip_suffix(';').and_then(|item| item.rsplit_once("mod ")) {
            modules.push(name.trim().to_owned());
        }
        let blank: String = out[start..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect();
        out.replace_range(start..end, &blank);
    }
    (out, modules)
}

/// Behind the first `;` or closed `{}` outside other brackets.
fn end_of_item(code: &str) -> usize {
    let mut depth = 0;
    for (at, c) in code.char_indices() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 && matches!(c, ';' | '}') {
            return at + 1;
        }
    }
    code.len()
}

/// A file below `src`.
struct Source {
    /// Relative to `src`, with slashes.
    path: String,
    text: String,
    /// Without comments, literals and tests; empty for a file of tests.
    code: String,
}

impl Source {
    /// Names of the modules down to this file.
    fn module(&self) -> Vec<&str> {
        let mut parts: Vec<_> = self.path.trim_end_matches(".rs").split('/').collect();
        if parts.last() == Some(&"mod") {
            parts.pop();
        }
        parts
    }

    fn top(&self) -> &str {
        self.module()[0]
    }
}

fn files_below(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if entry.file_type().unwrap().is_dir() && entry.file_name() != "target" {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources() -> Vec<Source> {
    let folder = root().join("src");
    let paths = files_below(&folder, "rs");
    let mut tests = BTreeSet::new();
    let mut sources = Vec::new();
    for path in &paths {
        let path = path.strip_prefix(&folder).unwrap().to_str().unwrap().replace('\\', "/");
        let text = fs::read_to_string(folder.join(&path)).unwrap();
        let (code, modules) = without_tests(&code_of(&text));
        let base = path.strip_suffix("mod.rs").map(str::to_owned);
        let base =
            base.unwrap_or_else(|| if path.contains("lib.rs") { String::new() } else { path.replace(".rs", "/") });
        tests.extend(modules.iter().map(|name| format!("{base}{name}")));
        sources.push(Source { path, text, code });
    }
    for source in &mut sources {
        let is_test =
            |name: &String| source.path == format!("{name}.rs") || source.path.starts_with(&format!("{name}/"));
        // The name tells where a `#[path]` leads to a file of tests.
        if tests.iter().any(is_test) || source.path.ends_with("_tests.rs") {
            source.code.clear();
        }
    }
    assert!(sources.len() > 100 && tests.len() > 5, "{} files, {tests:?}", sources.len());
    sources
}

// Scanners.

fn is_word_part(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Byte positions of `word` in `code` as a word of its own.
fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    code.match_indices(word)
        .map(|(at, _)| at)
        .filter(move |at| !code[..*at].ends_with(is_word_part) && !code[at + word.len()..].starts_with(is_word_part))
}

fn line_at(code: &str, at: usize) -> usize {
    code[..at].matches('\n').count() + 1
}

/// First names of what stands behind a path's `::`: one, or those of a `{}` group.
fn names_behind(code: &str) -> Vec<String> {
    let code = code.trim_start();
    let first = |text: &str| text.trim_start().chars().take_while(|c| is_word_part(*c)).collect::<String>();
    let Some(group) = code.strip_prefix('{') else { return vec![first(code)] };
    let (mut names, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                names.push(first(&group[start..at]));
                start = at + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

/// Top-level modules that the code of a file at `depth` names, with their lines: by `crate::`, the crate's own name, or
/// so many `super::` that they lead to the root.
fn used_modules(code: &str, depth: usize) -> Vec<(String, usize)> {
    let mut used = Vec::new();
    for start in ["crate", "hivemind_worker"] {
        for at in words(code, start) {
            if let Some(behind) = code[at + start.len()..].strip_prefix("::") {
                used.extend(names_behind(behind).into_iter().map(|name| (name, line_at(code, at))));
            }
        }
    }
    for at in words(code, "super").filter(|at| !code[..*at].ends_with("super::")) {
        let chain = code[at..].split("super::").take_while(|part| part.is_empty()).count();
        let behind = code[at..].trim_start_matches("super::");
        if chain > depth || (chain > 0 && chain == depth) {
            used.extend(names_behind(behind).into_iter().map(|name| (name, line_at(code, at))));
        }
    }
    used
}

/// Lines with a `cfg` that asks for the platform.
fn platform_lines(code: &str) -> Vec<usize> {
    let asks = ["target_os", "target_family", "target_env", "target_arch", "unix", "windows"];
    let cfgs = ["cfg", "cfg_attr"].into_iter().flat_map(|cfg| words(code, cfg));
    let cfgs = cfgs.filter(|at| {
        let inside = &code[*at..*at + end_of_parentheses(&code[*at..])];
        asks.iter().any(|ask| words(inside, ask).next().is_some())
    });
    cfgs.map(|at| line_at(code, at)).collect()
}

fn end_of_parentheses(code: &str) -> usize {
    let mut depth = 0;
    for (at, c) in code.char_indices() {
        match c {
            '(' => depth += 1,
            ')' if depth == 1 => return at + 1,
            ')' => depth -= 1,
            '\n' | ';' if depth == 0 => return at,
            _ => {}
        }
    }
    code.len()
}

/// Lines with what no file may have.
fn left_over_lines(code: &str) -> Vec<usize> {
    let marks = ["todo!", "unimplemented!", "dbg!", "#[ignore"];
    marks.iter().flat_map(|mark| code.match_indices(mark)).map(|(at, _)| line_at(code, at)).collect()
}

/// Lines with a call that ends the process where a value is missing.
fn unwrap_lines(code: &str) -> Vec<usize> {
    let calls = ["unwrap", "expect"].into_iter().flat_map(|name| words(code, name).map(move |at| (name, at)));
    let calls = calls.filter(|(name, at)| {
        code[..*at].trim_end().ends_with(['.', ':']) && code[at + name.len()..].trim_start().starts_with('(')
    });
    calls.map(|(_, at)| line_at(code, at)).collect()
}

/// Dependencies without a reason beside them. Those for tests may share one with the line above.
fn unexplained_crates(manifest: &str) -> Vec<String> {
    let (mut section, mut above, mut is_explained, mut found) = ("", "", false, Vec::new());
    for line in manifest.lines() {
        if line.starts_with('[') {
            section = line.trim_matches(['[', ']']);
        } else if section.ends_with("dependencies")
            && let Some((name, _)) = line.split_once(['=', '.'])
            && !line.starts_with('#')
        {
            is_explained =
                above.starts_with('#') || (section == "dev-dependencies" && is_explained && !above.is_empty());
            if !(is_explained || GIVEN_CRATES.contains(&name.trim())) {
                found.push(name.trim().to_owned());
            }
        }
        above = line;
    }
    found
}

/// Messages and enums that no field and no call names, and that no bytes field carries by its comment.
fn dead_messages(proto: &str) -> Vec<String> {
    let lines = proto.lines().map(|line| line.split("//").next().unwrap_or(""));
    let code = lines.collect::<Vec<_>>().join("\n");
    let mut definitions = BTreeMap::new();
    for kind in ["message ", "enum "] {
        for (at, _) in code.match_indices(kind) {
            *definitions.entry(names_behind(&code[at + kind.len()..]).remove(0)).or_insert(0) += 1;
        }
    }
    definitions
        .retain(|name, count| words(&code, name).count() <= *count && !proto.contains(&format!("An encoded {name}.")));
    definitions.into_keys().collect()
}

fn check(complaints: Vec<String>) {
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

fn each(scan: impl Fn(&Source) -> Vec<String>) {
    check(sources().iter().flat_map(scan).collect());
}

// Rules.

#[test]
fn modules_use_each_other_in_one_direction() {
    let table: BTreeMap<_, _> = MAY_USE.iter().copied().collect();
    each(|source| {
        let top = source.top();
        let Some(allowed) = table.get(top) else {
            return if top == "lib" { Vec::new() } else { vec![format!("{top}: has no line in MAY_USE")] };
        };
        let used = used_modules(&source.code, source.module().len());
        let wrong = used.into_iter().filter(|(name, _)| name != top && !allowed.contains(&name.as_str()));
        wrong.map(|(name, line)| format!("src/{}:{line}: {top} may not use {name}", source.path)).collect()
    });
}

#[test]
fn what_modules_may_use_has_no_circle() {
    let mut left: BTreeMap<_, _> = MAY_USE.iter().copied().collect();
    while !left.is_empty() {
        let free = left.iter().find(|(_, uses)| !uses.iter().any(|name| left.contains_key(name)));
        let free = *free.unwrap_or_else(|| panic!("a circle in {left:?}")).0;
        left.remove(free);
    }
}

#[test]
fn a_crate_with_a_seam_is_used_behind_it_only() {
    each(|source| {
        let wrong = OWNED_CRATES.iter().filter(|(_, owners)| !owners.contains(&source.top())).flat_map(|(name, _)| {
            let uses = words(&source.code, name).filter(|at| source.code[at + name.len()..].starts_with("::"));
            uses.map(move |at| format!("src/{}:{}: uses {name}", source.path, line_at(&source.code, at)))
        });
        wrong.collect()
    });
}

#[test]
fn messages_of_the_contract_stay_in_rpc_and_standalone() {
    each(|source| {
        let wrong = words(&source.code, "schema").filter(|_| !["rpc", "standalone"].contains(&source.top()));
        wrong.map(|at| format!("src/{}:{}: names the schema", source.path, line_at(&source.code, at))).collect()
    });
}

#[test]
fn unsafe_stands_in_sys_with_its_proof() {
    each(|source| {
        let code = code_of(&source.text);
        let wrong = words(&code, "unsafe").map(|at| line_at(&code, at)).filter(|line| {
            let above: Vec<_> = source.text.lines().take(*line).collect();
            source.top() != "sys" || !above.iter().rev().take(8).any(|line| line.contains("SAFETY:"))
        });
        wrong.map(|line| format!("src/{}:{line}: unsafe", source.path)).collect()
    });
}

#[test]
fn platform_differences_stand_in_their_seams() {
    each(|source| {
        if source.top() == "sys" || PLATFORM_SEAMS.contains(&source.path.as_str()) {
            return Vec::new();
        }
        let lines = platform_lines(&source.code).into_iter();
        lines.map(|line| format!("src/{}:{line}: asks for the platform", source.path)).collect()
    });
}

#[test]
fn files_are_short_and_say_what_they_are_for() {
    let mut complaints = Vec::new();
    for folder in ["src", "tests"] {
        for path in files_below(&root().join(folder), "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let is_generated = text.starts_with("//! Generated from ");
            if !text.starts_with("//! ") {
                complaints.push(format!("{}: does not open with //!", path.display()));
            }
            if folder == "src" && !is_generated && text.lines().count() > MAX_LINES {
                complaints.push(format!("{}: has more than {MAX_LINES} lines", path.display()));
            }
        }
    }
    check(complaints);
}

#[test]
fn nothing_is_left_over_or_skipped() {
    let mut complaints = Vec::new();
    for path in ["src", "tests"].iter().flat_map(|folder| files_below(&root().join(folder), "rs")) {
        let lines = left_over_lines(&code_of(&fs::read_to_string(&path).unwrap()));
        complaints.extend(lines.iter().map(|line| format!("{}:{line}: left over", path.display())));
    }
    check(complaints);
}

#[test]
fn nothing_outside_tests_unwraps() {
    each(|source| {
        let lines = unwrap_lines(&source.code).into_iter();
        let calls = lines.map(|line| (line, source.text.lines().nth(line - 1).unwrap_or("").trim()));
        let wrong = calls.filter(|(_, call)| !PROVEN.contains(&format!("{}: {call}", source.path).as_str()));
        wrong.map(|(line, call)| format!("src/{}:{line}: {call}", source.path)).collect()
    });
}

#[test]
fn each_further_crate_has_its_reason() {
    assert_eq!(unexplained_crates(&fs::read_to_string(root().join("Cargo.toml")).unwrap()), [""; 0]);
}

#[test]
fn the_contract_has_no_dead_message() {
    let files = files_below(&root().join("proto"), "proto");
    let all: Vec<_> = files.iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    assert!(all.len() >= 3);
    assert_eq!(dead_messages(&all.join("\n")), [""; 0]);
}

// The scanners themselves.

#[test]
fn comments_literals_and_tests_are_no_code() {
    let text = r##"a(); // unsafe "
/* unsafe /* unsafe */ unsafe */ b('"', '\'', b"unsafe \" unsafe", r#"unsafe " unsafe"#, &'static x, br"unsafe\");
c("//"); d();"##;
    let code = code_of(text);
    assert!(!code.contains("unsafe"), "{code}");
    assert!(["a();", "b(", "&'static x", "c(", "d();"].iter().all(|part| code.contains(part)), "{code}");
    assert_eq!(code.lines().count(), text.lines().count());

    let code =
        "fn a() {}\n#[cfg(test)]\nmod tests {\n fn b() { {} }\n}\nfn c() {}\n#[cfg(test)]\n#[x]\nmod d;\nfn e() {}";
    let (code, modules) = without_tests(code);
    assert_eq!(code.split_whitespace().collect::<String>(), "fna(){}fnc(){}fne(){}");
    assert_eq!((modules, code.lines().count()), (vec!["d".to_owned()], 10));
}

#[test]
fn uses_are_found_in_each_form() {
    let names = |code: &str, depth| used_modules(code, depth).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    assert_eq!(names("use crate::store::x;\nfn f() { crate::host::g(); }", 2), ["store", "host"]);
    assert_eq!(names("use crate::{a::{b, c}, d, e::f as g};", 2), ["a", "d", "e"]);
    assert_eq!(names("hivemind_worker::cli::main()", 1), ["cli"]);
    assert_eq!(names("use super::own::x; use super::super::other::y;", 2), ["other"]);
    assert_eq!(names("use super::{other::y, more};", 1), ["other", "more"]);
    assert_eq!(names("use super::x; my_crate::y(); pub(crate) fn z() {} pub(super) fn z() {}", 2), [""; 0]);
}

#[test]
fn wrong_code_is_found() {
    assert_eq!(platform_lines("a\n#[cfg(unix)]\n#[cfg(all(test, target_os = \"\"))]\nif cfg!(windows) {}"), [2, 3, 4]);
    assert_eq!(platform_lines("#[cfg(feature = \"\")]\nuse std::os::unix;\n#[cfg(test)]"), [0usize; 0]);
    assert_eq!(left_over_lines("todo!()\ndbg!(x)\nunimplemented!()\n#[ignore = \"\"]\nignore"), [1, 3, 2, 4]);
    assert_eq!(unwrap_lines("a.unwrap()\nb\n.expect(x)\nOption::unwrap(c)\nd.unwrap_or(e).expect_err(f)"), [1, 4, 3]);
    assert_eq!(words("unsafe_code unsafe{} not_unsafe", "unsafe").collect::<Vec<_>>(), [12]);
}

#[test]
fn crates_and_messages_without_a_purpose_are_found() {
    let manifest = "[package]\nname = \"x\"\n[dependencies]\n# Why.\ntar = \"1\"\nglob = \"1\"\nlog = \"1\"\n\
                    [dev-dependencies]\n# Both.\na = \"1\"\nb = \"1\"\n\nc = \"1\"\n[target.x.dependencies]\nd.version = \"1\"\n";
    assert_eq!(unexplained_crates(manifest), ["glob", "c", "d"]);
    let proto = "service S { rpc A(B) returns (C); }\nmessage B { D d = 1; }\n// E\nmessage C {}\nenum D {}\nmessage E {}\n// An encoded F.\nmessage F {}";
    assert_eq!(dead_messages(proto), ["E"]);
}

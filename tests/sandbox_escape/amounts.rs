//! Processes, memory, disk and files.

use hivemind_worker::node::offer::Offer;
use hivemind_worker::node::record::Outcome;

use crate::node_util::{how, python};
use crate::yard::{Yard, outside, probes, results};

const MIB: i64 = 1 << 20;

#[test]
fn processes_and_file_systems_end_at_their_limits() {
    let yard = Yard::open("escape-limits");
    // So much memory that the processes' own does not end it first.
    let forks = "forks=400";
    let (report, said) = yard.run(Offer { memory_bytes: 1 << 30, ..probes("forks", &[forks]) });
    assert_eq!(how(&report), (Outcome::Succeeded, Some(0)), "{report:?} {said}");
    // 256 in all, of which the small init and the probe itself are two.
    assert_eq!(results(&said)[forks], "EAGAIN 254");
    // Half of the memory each; of the disk what its limit leaves beside the inputs, and a terabyte that is not there.
    let (memory, disk) =
        (["fills=/tmp/x:100", "fills=/dev/shm/x:100"], ["fills=/workspace/x:100", "sparse=/workspace/y"]);
    let inside = yard.probe("fills-memory", &memory);
    assert_eq!(memory.map(|word| inside[word].as_str()), ["ENOSPC 32", "ENOSPC 32"]);
    let (report, said) = yard.run(Offer { disk_bytes: 16 * MIB, ..probes("fills-disk", &disk) });
    assert_eq!(how(&report), (Outcome::Succeeded, Some(0)), "{report:?} {said}");
    let inside = results(&said);
    assert_eq!(disk.map(|word| inside[word].as_str()), ["ENOSPC 15", "EFBIG"]);
    let options =
        ["--user=0", "--network=none", "--tmpfs=/tmp:size=200m", "--shm-size=200m", "--tmpfs=/workspace:size=200m"];
    let control = outside(&options, &[memory.as_slice(), &disk, &[forks]].concat());
    assert_eq!(memory.map(|word| control[word].as_str()), ["done 100", "done 100"]);
    assert_eq!(disk.map(|word| control[word].as_str()), ["done 100", "done"]);
    assert_eq!(control[forks], "done 400");
    yard.unharmed();
}

#[test]
fn memory_ends_at_its_limit_whoever_takes_it() {
    let yard = Yard::open("escape-memory");
    let grow = "b'x' * (300 << 20)";
    let child = format!("import subprocess, sys; subprocess.run([sys.executable, '-c', \"{grow}\"])");
    let fork = format!("import os\nif os.fork() == 0: {grow}\nos.wait()");
    let files = "for path in ['/tmp/x', '/dev/shm/x']: open(path, 'wb', buffering=0).write(bytes(30 << 20))\n\
        b'x' * (20 << 20)";
    // Its own program is killed with the code of a signal; one whose child was killed may say that all is well.
    let cases = [
        ("program", grow, Some(137)),
        ("child", &child, Some(0)),
        ("fork", &fork, Some(0)),
        ("files", files, Some(137)),
    ];
    for (name, program, code) in cases {
        let (report, _) = yard.run(Offer { memory_bytes: 64 * MIB, ..python(name, program) });
        assert_eq!(how(&report), (Outcome::OutOfMemory, code), "{name}: {report:?}");
    }
    yard.unharmed();
}

#[test]
fn each_of_many_tasks_without_memory_is_told_so() {
    // The engine hears of the end and of its reason on two ways, and on a busy machine the end may come first.
    let yard = Yard::open("escape-many-oom");
    let names: Vec<String> = (0..32).map(|i| format!("memory{i}")).collect();
    for name in &names {
        yard.scene.submit(Offer { memory_bytes: 64 * MIB, ..python(name, "b'x' * (300 << 20)") });
    }
    for name in &names {
        let report = yard.scene.until_complete(name);
        assert_eq!(how(&report), (Outcome::OutOfMemory, Some(137)), "{name}: {report:?}");
    }
    yard.unharmed();
}

#[test]
fn a_hundred_thousand_files_cost_the_worker_nothing() {
    let yard = Yard::open("escape-files");
    let program =
        "import os\nos.makedirs('output/many')\nfor i in range(100_000): open(f'output/many/{i}', 'w').close()";
    // A bounded volume has as many files as blocks, and at most 200,000: with less room they end at that.
    let offer = Offer { cpu_millis: 1_000, disk_bytes: 512 * MIB, ..python("files", program) };
    let (report, _) = yard.run(offer);
    assert_eq!(report.outcome, Outcome::Succeeded, "{:?} {}", report.outcome, report.reason);
    println!("{} files kept in {} ms; cut: {:?}", report.outputs.len(), report.duration_ms, report.cut.last());
    assert!((1..=10_000).contains(&report.outputs.len()), "{}", report.outputs.len());
    assert!(!report.cut.is_empty() && report.cut.len() <= 1_000, "{}", report.cut.len());
    yard.unharmed();
}

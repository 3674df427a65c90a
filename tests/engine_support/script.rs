//! What a task does at the scripted engine: it follows from a seed and the task's name alone, so that the test knows what
//! must arrive at the master.

use std::time::Duration;

use hivemind_worker::node::offer::Offer;
use hivemind_worker::node::spec::BASE_IMAGE;

use crate::dice::Dice;

/// Images that the engine has to pull, by their tags, and whose volumes get their owner from a helper. The engine has the
/// worker's own from the start, whose volumes get it by copying.
pub const OTHER_IMAGES: &str = "scripted.invalid/other";
/// How many of them there are.
const IMAGES: u64 = 300;
/// In the input archive.
pub const INPUT_NAME: &str = "data.bin";
/// Standard output and standard error, as frames number them.
pub const STDOUT: u8 = 1;
/// See [`STDOUT`].
pub const STDERR: u8 = 2;

/// A task's whole life.
#[derive(Clone, Debug, Default)]
pub struct Script {
    /// What it prints, in order: the stream, and the bytes.
    pub prints: Vec<(u8, Vec<u8>)>,
    /// Before each of them, and before the end.
    pub pause: Duration,
    /// It goes on until a signal ends it, which the master's cancellation brings.
    pub is_endless: bool,
    /// It does not hear SIGTERM.
    pub is_stubborn: bool,
    /// Its own exit code.
    pub exit_code: i64,
    /// What it leaves in the output folder.
    pub files: Vec<(String, Vec<u8>)>,
    /// Content of its one input file.
    pub input: Vec<u8>,
    /// Its image.
    pub image: String,
}

impl Script {
    /// The script of a task.
    pub fn of(seed: u64, task: &str) -> Self {
        let mixed = task.bytes().fold(seed, |sum, byte| sum.wrapping_mul(0x0100_0000_01b3) ^ u64::from(byte));
        let mut dice = Dice::new(mixed);
        let prints = (0..1 + dice.below(20)).map(|number| {
            let stream = if dice.one_in(4) { STDERR } else { STDOUT };
            // Some lines come in two pieces, and some pieces are long.
            let end = if dice.one_in(6) { "" } else { "\n" };
            let filler = if dice.one_in(12) { 3_000 } else { dice.below(60) };
            (stream, format!("{task} line {number} {}{end}", "x".repeat(usize::try_from(filler).unwrap())).into_bytes())
        });
        let prints: Vec<_> = prints.collect();
        let names = ["output/a", "output/b.bin", "output/deep/c"];
        let files = names.iter().take(usize::try_from(dice.below(4)).unwrap()).map(|name| {
            let len = if dice.one_in(16) { 150_000 } else { dice.below(6_000) };
            let first = dice.below(251);
            ((*name).to_owned(), (first..first + len).map(|place| (place % 251) as u8).collect())
        });
        let files = files.collect();
        let input = (0..dice.below(2_000)).map(|place| (place % 241) as u8).collect();
        Self {
            prints,
            files,
            input,
            pause: Duration::from_micros(200 + dice.below(3_000)),
            is_endless: dice.one_in(8),
            is_stubborn: dice.one_in(4),
            exit_code: [0, 0, 0, 1, 3, 77][usize::try_from(dice.below(6)).unwrap()],
            image: if dice.one_in(3) {
                format!("{OTHER_IMAGES}:{}", dice.below(IMAGES))
            } else {
                BASE_IMAGE.to_owned()
            },
        }
    }

    /// All that it prints on a stream.
    pub fn printed(&self, stream: u8) -> Vec<u8> {
        self.prints.iter().filter(|(on, _)| *on == stream).flat_map(|(_, bytes)| bytes.clone()).collect()
    }

    /// The assignment that asks for it.
    pub fn offer(&self, task: &str) -> Offer {
        Offer {
            task: task.to_owned(),
            attempt: 1,
            image: self.image.clone(),
            pull: if self.image == BASE_IMAGE { "never" } else { "if-missing" }.to_owned(),
            command: vec!["scripted".to_owned()],
            cpu_millis: 10,
            memory_bytes: 16 << 20,
            disk_bytes: 16 << 20,
            grace_ms: Some(20),
            inputs: self.inputs(),
            ..Offer::default()
        }
    }

    fn inputs(&self) -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        append(&mut archive, INPUT_NAME, &self.input);
        archive.into_inner().unwrap()
    }
}

/// Appends a plain file to an archive.
pub fn append(archive: &mut tar::Builder<Vec<u8>>, name: &str, content: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    archive.append_data(&mut header, name, content).unwrap();
}

//! Reads a byte stream whose parts are in several files, one behind the other.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Take};
use std::path::PathBuf;

/// A file and how much of it counts.
pub type Part = (PathBuf, u64);

/// All parts as one reader; each file is opened when its turn comes.
#[derive(Debug)]
pub struct Parts {
    waiting: VecDeque<Part>,
    current: Option<Take<File>>,
}

impl Parts {
    /// The bytes of these parts from `offset` on.
    ///
    /// # Errors
    /// The first file that is to be read can't be.
    pub fn open(parts: Vec<Part>, mut offset: u64) -> io::Result<Self> {
        let mut waiting = VecDeque::from(parts);
        while let Some((_, bytes)) = waiting.front().filter(|(_, bytes)| *bytes <= offset) {
            offset -= bytes;
            waiting.pop_front();
        }
        let current = match waiting.pop_front() {
            Some((path, bytes)) => {
                let mut file = File::open(path)?;
                file.seek(SeekFrom::Start(offset))?;
                Some(file.take(bytes - offset))
            }
            None => None,
        };
        Ok(Self { waiting, current })
    }
}

impl Read for Parts {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        while let Some(current) = &mut self.current {
            match current.read(buffer)? {
                0 if current.limit() > 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                0 => {
                    self.current = match self.waiting.pop_front() {
                        Some((path, bytes)) => Some(File::open(path)?.take(bytes)),
                        None => None,
                    };
                }
                read => return Ok(read),
            }
        }
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::standalone::testkit::TempDir;

    #[test]
    fn reads_from_every_offset_and_no_more_than_counts() {
        let dir = TempDir::new();
        let parts: Vec<Part> = [("a", "one", 3), ("b", "", 0), ("c", "two and more", 3)]
            .map(|(name, content, bytes)| {
                std::fs::write(dir.0.join(name), content).unwrap();
                (dir.0.join(name), bytes)
            })
            .to_vec();
        for offset in 0..9 {
            let mut text = String::new();
            Parts::open(parts.clone(), offset as u64).unwrap().read_to_string(&mut text).unwrap();
            assert_eq!(text, "onetwo".get(offset..).unwrap_or_default());
        }
    }

    #[test]
    fn a_file_that_is_too_short_is_an_error_not_a_short_answer() {
        let dir = TempDir::new();
        std::fs::write(dir.0.join("a"), "on").unwrap();
        let mut parts = Parts::open(vec![(dir.0.join("a"), 3)], 0).unwrap();
        assert!(parts.read_to_end(&mut Vec::new()).is_err());
    }
}

//! An answer that is a raw stream behind its head, as that of attach: read from the pipe itself. Through the HTTP library each
//! byte would be copied once more, and each short read cost as much again.
//!
//! The library is given the head and nothing behind it. What arrived together with the head waits in [`Behind`].

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::pipe::Pipe;

/// What ends a head.
const END: &[u8; 4] = b"\r\n\r\n";

/// What the two readers share: the connection, and what is behind the head.
#[derive(Clone, Debug, Default)]
pub(super) struct Behind(Arc<Mutex<Shared>>);

#[derive(Debug, Default)]
struct Shared {
    pipe: Option<Arc<Pipe>>,
    bytes: Vec<u8>,
}

impl Behind {
    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The reader that the library has while the head comes.
    pub(super) fn head_of(&self, pipe: &Arc<Pipe>) -> HeadReader {
        self.lock().pipe = Some(Arc::clone(pipe));
        HeadReader { behind: self.clone(), matched: 0 }
    }

    /// The reader for what is behind the head; what is to be kept comes back where there was no connection.
    pub(super) fn into_reader<K>(self, gap: Option<Duration>, keep: K) -> Result<RawReader<K>, K> {
        let mut shared = self.lock();
        let Some(pipe) = shared.pipe.take() else { return Err(keep) };
        Ok(RawReader { pipe, bytes: std::mem::take(&mut shared.bytes), taken: 0, gap, _keep: keep })
    }
}

/// Gives a head, and what is behind it only when it is asked again.
#[derive(Debug)]
pub(super) struct HeadReader {
    behind: Behind,
    /// So much of [`END`] was the last of what was given.
    matched: usize,
}

impl HeadReader {
    pub(super) fn read(&mut self, pipe: &Pipe, buffer: &mut [u8], patience: Option<Duration>) -> io::Result<usize> {
        let waiting = {
            let bytes = &mut self.behind.lock().bytes;
            let count = bytes.len().min(buffer.len());
            buffer[..count].copy_from_slice(&bytes[..count]);
            bytes.drain(..count);
            count
        };
        let count = if waiting > 0 { waiting } else { pipe.read(buffer, patience)? };
        let given = self.end_of_head(&buffer[..count]);
        self.behind.lock().bytes.splice(0..0, buffer[given..count].iter().copied());
        Ok(given)
    }

    /// How much of this is up to the end of a head; all of it where none ends in it.
    fn end_of_head(&mut self, bytes: &[u8]) -> usize {
        for (at, byte) in bytes.iter().enumerate() {
            self.matched = match self.matched {
                matched if *byte == END[matched] => matched + 1,
                _ => usize::from(*byte == END[0]),
            };
            if self.matched == END.len() {
                self.matched = 0;
                return at + 1;
            }
        }
        bytes.len()
    }
}

/// Reads what is behind the head. The pipe stays released by its stop handle as long as what is kept lives.
pub(super) struct RawReader<K> {
    pipe: Arc<Pipe>,
    bytes: Vec<u8>,
    taken: usize,
    /// The longest time without a byte.
    gap: Option<Duration>,
    _keep: K,
}

impl<K> RawReader<K> {
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let waiting = &self.bytes[self.taken..];
        if waiting.is_empty() {
            return self.pipe.read(buffer, self.gap);
        }
        let count = waiting.len().min(buffer.len());
        buffer[..count].copy_from_slice(&waiting[..count]);
        self.taken += count;
        if self.taken == self.bytes.len() {
            (self.bytes, self.taken) = (Vec::new(), 0);
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixListener;

    use super::*;

    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nA: \r\r\n\r\n\r\nbody \r\n\r\n more";

    /// What the two readers give of these pieces, each of which is there when the one before is read.
    fn run(name: &str, pieces: &[&[u8]], size: usize) -> (Vec<u8>, Vec<u8>) {
        let path = std::env::temp_dir().join(format!("hivemind-raw-{name}-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let pipe = Arc::new(Pipe::connect(&path, Duration::from_secs(5), &|| false).unwrap());
        let (mut other, _) = listener.accept().unwrap();
        let behind = Behind::default();
        let mut reader = behind.head_of(&pipe);
        let (mut head, mut pieces, mut buffer) = (Vec::new(), pieces.iter(), vec![0; size]);
        while !head.ends_with(END) {
            if behind.lock().bytes.is_empty()
                && let Some(piece) = pieces.next()
            {
                other.write_all(piece).unwrap();
            }
            let count = reader.read(&pipe, &mut buffer, None).unwrap();
            head.extend_from_slice(&buffer[..count]);
        }
        pieces.for_each(|piece| other.write_all(piece).unwrap());
        drop(other);
        let (mut raw, mut rest) = (behind.into_reader(None, ()).unwrap(), Vec::new());
        loop {
            match raw.read(&mut buffer).unwrap() {
                0 => break,
                count => rest.extend_from_slice(&buffer[..count]),
            }
        }
        std::fs::remove_file(path).unwrap();
        (head, rest)
    }

    #[test]
    fn nothing_behind_the_head_is_given_with_it_and_nothing_is_lost() {
        let end = ANSWER.windows(4).position(|four| four == END).unwrap() + 4;
        let whole = (ANSWER[..end].to_vec(), ANSWER[end..].to_vec());
        for split in 1..ANSWER.len() {
            assert_eq!(run("split", &[&ANSWER[..split], &ANSWER[split..]], 4_096), whole, "split at {split}");
        }
        // Where the buffer holds less than what came.
        for size in 1..20 {
            assert_eq!(run("short", &[ANSWER], size), whole, "buffer of {size}");
        }
    }

    #[test]
    fn who_reads_on_as_before_gets_all() {
        let mut reader = HeadReader { behind: Behind::default(), matched: 0 };
        reader.behind.lock().bytes = ANSWER.to_vec();
        let path = std::env::temp_dir().join(format!("hivemind-raw-on-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let pipe = Pipe::connect(&path, Duration::from_secs(5), &|| false).unwrap();
        drop(listener.accept().unwrap());
        let (mut got, mut buffer) = (Vec::new(), [0; 7]);
        while got.len() < ANSWER.len() {
            let count = reader.read(&pipe, &mut buffer, None).unwrap();
            assert!(count > 0);
            got.extend_from_slice(&buffer[..count]);
        }
        assert_eq!(got, ANSWER);
        assert_eq!(reader.read(&pipe, &mut buffer, None).unwrap(), 0);
        std::fs::remove_file(path).unwrap();
    }
}

//! Short-lived helper programs: an argument vector, a deadline, capped output and an empty environment; never a shell.

use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};

/// Of each output stream so much is kept; the rest is read and thrown away, so that the program does not hang.
const MAX_OUTPUT_BYTES: u64 = 4 << 20;
/// Between two looks at a program that has closed its output and not ended yet.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// A helper thread copies through a small buffer.
const STACK_BYTES: usize = 128 << 10;

/// What a program came to.
#[derive(Debug)]
pub struct Ended {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
}

/// Runs a program to its end. It is killed at the deadline.
///
/// # Errors
/// It can't be started, or it took too long.
pub fn run(program: &Path, args: &[&str], input: Vec<u8>, deadline: Duration) -> io::Result<Ended> {
    let end = Instant::now() + deadline;
    let mut child = Command::new(program)
        .args(args)
        .env_clear()
        .env("LC_ALL", "C")
        .current_dir("/")
        // One that gets nothing needs nobody to give it.
        .stdin(if input.is_empty() { Stdio::null() } else { Stdio::piped() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let ended = attend(&mut child, input, end);
    if ended.is_err() {
        // It may have ended by itself in the meantime.
        let _ = child.kill();
        let _ = child.wait();
    }
    ended
}

fn attend(child: &mut Child, input: Vec<u8>, end: Instant) -> io::Result<Ended> {
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends without reading all of it is told by its status.
        helper(move || stdin.write_all(&input))?;
    }
    let stdout = reader(child.stdout.take())?;
    let stderr = reader(child.stderr.take())?;
    let late = || io::Error::new(io::ErrorKind::TimedOut, "the program did not end in time");
    let stdout = stdout.recv_deadline(end).map_err(|_| late())?;
    let stderr = stderr.recv_deadline(end).map_err(|_| late())?;
    let pause = bounded::<()>(0);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Ended { status, stdout, stderr });
        }
        if Instant::now() >= end {
            return Err(late());
        }
        let _ = pause.1.recv_timeout(LOOK_EVERY);
    }
}

fn reader(stream: Option<impl Read + Send + 'static>) -> io::Result<Receiver<Vec<u8>>> {
    let (sender, received) = bounded(1);
    helper(move || {
        let mut bytes = Vec::new();
        if let Some(mut stream) = stream {
            stream.by_ref().take(MAX_OUTPUT_BYTES).read_to_end(&mut bytes)?;
            io::copy(&mut stream, &mut io::sink())?;
        }
        // Nobody waits any more after the deadline.
        let _ = sender.send(bytes);
        Ok(())
    })?;
    Ok(received)
}

/// Ends with the program, whose end closes the pipes.
fn helper(job: impl FnOnce() -> io::Result<()> + Send + 'static) -> io::Result<()> {
    let run = move || {
        let _ = job();
    };
    thread::Builder::new().name("program".to_owned()).stack_size(STACK_BYTES).spawn(run).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(program: &str, input: &[u8], deadline: Duration) -> io::Result<Ended> {
        run(Path::new("/bin/sh"), &["-c", program], input.to_vec(), deadline)
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn gives_input_and_takes_output_status_and_an_empty_environment() {
        let ended = sh("cat; echo oops >&2; env | cut -d= -f1 | sort | tr '\\n' ' '; exit 3", b"in ", LONG).unwrap();
        assert_eq!(ended.status.code(), Some(3));
        assert_eq!(String::from_utf8(ended.stdout).unwrap(), "in LC_ALL PWD ");
        assert_eq!(ended.stderr, b"oops\n");
    }

    #[test]
    fn a_program_that_hangs_is_killed_at_the_deadline() {
        let begin = Instant::now();
        let late = sh("exec sleep 600", b"", Duration::from_millis(100)).unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
        // One that has closed its output is waited for no longer.
        let late = sh("exec sleep 600 >/dev/null 2>&1", b"", Duration::from_millis(100)).unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
        assert!(begin.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn too_much_output_is_cut_and_does_not_hold_the_program_up() {
        let ended = sh("head -c 9000000 /dev/zero; echo done >&2", b"", LONG).unwrap();
        assert_eq!((ended.stdout.len() as u64, ended.stderr.as_slice()), (MAX_OUTPUT_BYTES, &b"done\n"[..]));
        // Input that nobody reads neither.
        assert!(sh("exit 0", &vec![b'x'; 1 << 20], LONG).unwrap().status.success());
        assert!(run(Path::new("/nowhere/program"), &[], Vec::new(), LONG).is_err());
    }
}

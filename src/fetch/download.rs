//! A file that is fetched: bounded, checked against its digest, and taken up again where a try broke off, if the server
//! knows how.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

use ring::digest::{Context, SHA256};

use super::exchange::{self, Answer, Rest};
use super::{FetchError, Fetcher, Stop};
use crate::node::url::Url;
use crate::sys::text::hex;

/// Redirects of one try.
const MAX_REDIRECTS: usize = 5;
/// In which a body is read and written.
const PIECE: usize = 64 << 10;
/// Free room that a fetch leaves on the disk: below it the machine itself is in danger.
const MIN_FREE_BYTES: u64 = 256 << 20;
/// Between two looks at the free room.
const LOOK_EVERY: u64 = 4 << 20;
/// Hex digits of a digest in a message: enough to tell two apart.
const SHOWN_DIGITS: usize = 16;

/// What is to be fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Where it is.
    pub url: Url,
    /// SHA-256 of all of it.
    pub sha256: [u8; 32],
    /// The most that is read of it.
    pub max_bytes: u64,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that are there.
    pub bytes: u64,
    /// Bytes of all, where the server says so.
    pub total: Option<u64>,
}

/// One file on its way here.
pub struct Download {
    wanted: Wanted,
    file: File,
    sum: Context,
    bytes: u64,
    validator: Option<String>,
    /// It is put together from several tries.
    is_resumed: bool,
    is_whole: bool,
}

impl Download {
    /// Into `file`, which may have all of it from an earlier time; anything else in it goes.
    ///
    /// # Errors
    /// The disk is at fault, or a stop came while the file was read.
    pub fn new(wanted: Wanted, mut file: File, stop: &Stop) -> io::Result<Self> {
        let mut sum = Context::new(&SHA256);
        let mut piece = vec![0; PIECE];
        file.seek(SeekFrom::Start(0))?;
        loop {
            match file.read(&mut piece)? {
                _ if stop.is_stopped() => return Err(io::Error::other(FetchError::Stopped)),
                0 => break,
                count => sum.update(&piece[..count]),
            }
        }
        let is_whole = sum.finish().as_ref() == wanted.sha256;
        let sum = Context::new(&SHA256);
        let mut download = Self { wanted, file, sum, bytes: 0, validator: None, is_resumed: false, is_whole };
        if !is_whole {
            download.begin_anew()?;
        }
        Ok(download)
    }

    /// Whether all of it is here, and is what it should be.
    pub fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// One try; nothing is lost of what came before a passing fault.
    ///
    /// # Errors
    /// Says whose fault it is, and whether another try makes sense.
    pub fn attempt(
        &mut self,
        fetcher: &Fetcher,
        stop: &Stop,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), FetchError> {
        if self.is_whole {
            return Ok(());
        }
        let answer = self.ask(fetcher, stop)?;
        let total = self.begin(&answer)?;
        let Answer { mut body, .. } = answer;
        let mut piece = vec![0; PIECE];
        let mut next_look = self.bytes;
        progress(Progress { bytes: self.bytes, total });
        loop {
            if self.bytes >= next_look {
                self.check_room()?;
                next_look = self.bytes.saturating_add(LOOK_EVERY);
            }
            let count = match body.read(&mut piece) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) if stop.is_stopped() => return Err(FetchError::Stopped),
                Err(error) => return Err(self.broke_off(&error)),
                Ok(count) => count,
            };
            if stop.is_stopped() {
                return Err(FetchError::Stopped);
            }
            if count == 0 {
                break;
            }
            self.take(&piece[..count])?;
            progress(Progress { bytes: self.bytes, total });
        }
        if total.is_some_and(|total| self.bytes < total) {
            return Err(self.broke_off(&io::ErrorKind::UnexpectedEof.into()));
        }
        self.finish()
    }

    /// The answer that has a body for us, behind all redirects.
    fn ask(&mut self, fetcher: &Fetcher, stop: &Stop) -> Result<Answer, FetchError> {
        let mut url = self.wanted.url.clone();
        let rest = self.validator.clone().map(|validator| Rest { from: self.bytes, validator });
        for _ in 0..=MAX_REDIRECTS {
            let answer = exchange::get(fetcher, &url, rest.as_ref().filter(|rest| rest.from > 0), stop)?;
            match answer.status {
                200 | 206 => return Ok(answer),
                301 | 302 | 303 | 307 | 308 => {
                    let location = answer.location.unwrap_or_default();
                    let next = url.join(&location);
                    url =
                        next.map_err(|reason| FetchError::Refused(format!("{url}: redirects to a URL that {reason}")))?;
                }
                416 => {
                    self.restart()?;
                    return Err(FetchError::Passing(format!("{url}: the server has no such rest of the file")));
                }
                408 | 425 | 429 | 500.. => {
                    return Err(FetchError::Passing(format!("{url}: HTTP status {}", answer.status)));
                }
                status => return Err(FetchError::Refused(format!("{url}: HTTP status {status}"))),
            }
        }
        Err(FetchError::Refused(format!("{}: redirects more than {MAX_REDIRECTS} times", self.wanted.url)))
    }

    /// Makes the file fit for what the answer brings; gives the bytes of all, where they are known.
    fn begin(&mut self, answer: &Answer) -> Result<Option<u64>, FetchError> {
        if answer.status == 206 {
            let expected = format!("bytes {}-", self.bytes);
            if !answer.range.as_ref().is_some_and(|range| range.starts_with(&expected)) {
                self.restart()?;
                let url = &self.wanted.url;
                return Err(FetchError::Passing(format!("{url}: the server sent another part than it was asked for")));
            }
            self.is_resumed = self.bytes > 0;
        } else if self.bytes > 0 {
            self.restart()?;
        }
        self.validator.clone_from(&answer.validator);
        let total = answer.length.map(|length| length.saturating_add(self.bytes));
        if let Some(total) = total {
            self.check_size(total)?;
        }
        Ok(total)
    }

    fn take(&mut self, piece: &[u8]) -> Result<(), FetchError> {
        self.check_size(self.bytes.saturating_add(piece.len() as u64))?;
        self.file.write_all(piece).map_err(|error| disk_fault(&error))?;
        self.sum.update(piece);
        self.bytes += piece.len() as u64;
        Ok(())
    }

    fn finish(&mut self) -> Result<(), FetchError> {
        let (url, sum) = (&self.wanted.url, hex(self.sum.clone().finish().as_ref()));
        let wanted = hex(&self.wanted.sha256);
        if sum != wanted && self.is_resumed {
            let reason = format!("{url}: is another file than when the fetch began");
            self.restart()?;
            return Err(FetchError::Passing(reason));
        }
        if sum != wanted {
            let (sum, wanted) = (&sum[..SHOWN_DIGITS], &wanted[..SHOWN_DIGITS]);
            return Err(FetchError::Refused(format!(
                "{url}: has the SHA-256 {sum}..., and the task says {wanted}... ({} bytes)",
                self.bytes
            )));
        }
        self.is_whole = true;
        Ok(())
    }

    fn check_size(&self, bytes: u64) -> Result<(), FetchError> {
        let max = self.wanted.max_bytes;
        if bytes <= max {
            return Ok(());
        }
        Err(FetchError::Refused(format!(
            "{}: is larger than the {max} bytes that are fetched at the most",
            self.wanted.url
        )))
    }

    fn check_room(&self) -> Result<(), FetchError> {
        let stat = rustix::fs::fstatvfs(&self.file).map_err(|error| disk_fault(&error.into()))?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        if free >= MIN_FREE_BYTES {
            return Ok(());
        }
        Err(FetchError::Node(format!(
            "{}: not fetched, since the node's disk has only {free} bytes left",
            self.wanted.url
        )))
    }

    fn restart(&mut self) -> Result<(), FetchError> {
        self.begin_anew().map_err(|error| disk_fault(&error))
    }

    fn begin_anew(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.sum = Context::new(&SHA256);
        self.bytes = 0;
        self.validator = None;
        self.is_resumed = false;
        Ok(())
    }

    fn broke_off(&self, error: &io::Error) -> FetchError {
        FetchError::Passing(format!("{}: broke off after {} bytes: {error}", self.wanted.url, self.bytes))
    }
}

fn disk_fault(error: &io::Error) -> FetchError {
    FetchError::Node(format!("can't keep what is fetched: {error}"))
}

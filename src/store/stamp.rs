//! What tells a start which bytes of a segment were synced, where a file system brings back a file's size before its
//! data: after a power loss the end of such a file is zeros, or what some other file left there.
//!
//! While a segment is written it carries a stamp, an attribute of the file. It is there before the first byte, is renewed
//! before each sync, and goes once all of the segment is synced. One sync makes bytes and stamp safe together, so that
//! it costs no sync of its own. That is why it is no file beside the segment: either such a file is synced too, twice
//! the syncs, or a power loss may take it and leave nothing that tells synced bytes from others.
//!
//! ```text
//! segment:   0 ........... base ........... end ........... length
//!            synced before        claimed         written since
//!            this stamp was        by this stamp
//! ```
//!
//! | at a start | is sound |
//! | --- | --- |
//! | no stamp: whole and synced, or of a version or file system without stamps | all of it |
//! | stamp of this boot: the worker was killed, but the system still has what was written | all of it, now synced |
//! | stamp of another boot, the claimed bytes have its checksum | up to `end` |
//! | stamp of another boot, they have another | up to `base` |
//!
//! The claim may be on disk before its bytes, so it is believed only with the checksum; `base` is believed as it is,
//! since the bytes before it were synced before the stamp was made. Only a stream's last segment is looked at, as those
//! before it were synced first. What isn't sound is cut off, and the stamp goes: then all versions see the same bytes.
//!
//! Of the file system it needs that what it notes of one file, size and attributes, comes back in the order in which it
//! happened: each journal and log does so. File systems that keep no attributes can't hold a state folder anyway (FAT:
//! no sockets, no modes), except old kernels' tmpfs, of which no power loss leaves anything.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use rustix::fs::{XattrFlags, fremovexattr, fsetxattr, getxattr};
use rustix::io::Errno;

use super::files;

/// Short, as name and value then fit into an inode of ext4 and need no block.
const NAME: &str = "user.hm.tail";
const STAMP_BYTES: usize = 32;
/// Pieces in which claimed bytes are read.
const PIECE: usize = 64 << 10;

/// Number of a boot: other boots have another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Boot(u64);

impl Boot {
    pub(super) fn new(id: &str) -> Self {
        let mut number = [0; 8];
        number.iter_mut().zip(files::checksum("boot", id.as_bytes()).as_ref()).for_each(|(to, from)| *to = *from);
        Self(u64::from_le_bytes(number))
    }
}

/// Fletcher's checksum over words of 64 bits: it tells lost and misplaced bytes from the right ones at the speed of
/// memory. Nobody can gain by forging it, as it is over the task's own bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Sum {
    simple: u64,
    weighted: u64,
    rest: [u8; 8],
    held: usize,
}

impl Sum {
    /// Adds what comes next.
    pub(super) fn add(&mut self, bytes: &[u8]) {
        let missing = if self.held == 0 { 0 } else { self.rest.len() - self.held };
        let (first, bytes) = bytes.split_at(missing.min(bytes.len()));
        self.hold(first);
        let (words, last) = bytes.as_chunks();
        words.iter().for_each(|word| self.word(*word));
        self.hold(last);
    }

    /// Bytes of a word that is not whole yet.
    fn hold(&mut self, bytes: &[u8]) {
        self.rest.iter_mut().skip(self.held).zip(bytes).for_each(|(to, from)| *to = *from);
        self.held += bytes.len();
        if self.held == self.rest.len() {
            self.word(self.rest);
            self.held = 0;
        }
    }

    fn word(&mut self, word: [u8; 8]) {
        self.simple = self.simple.wrapping_add(u64::from_le_bytes(word));
        self.weighted = self.weighted.wrapping_add(self.simple);
    }

    /// The checksum of all that came. How long that was isn't part of it.
    fn finish(mut self) -> [u64; 2] {
        self.hold(&[0; 8][..(8 - self.held) % 8]);
        [self.simple, self.weighted]
    }
}

/// See the head of this file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    boot: u64,
    base: u32,
    end: u32,
    sum: [u64; 2],
}

impl Stamp {
    /// Bytes up to `base` are synced; those up to `end` have this checksum. Without a known boot the stamp is of none.
    pub(super) fn new(boot: Option<Boot>, base: u64, end: u64, sum: Sum) -> io::Result<Self> {
        let narrow = |at| u32::try_from(at).map_err(io::Error::other);
        Ok(Self { boot: boot.map_or(0, |boot| boot.0), base: narrow(base)?, end: narrow(end)?, sum: sum.finish() })
    }

    /// Sets the file's stamp.
    pub(super) fn set(&self, file: &File) -> io::Result<()> {
        Ok(fsetxattr(file, NAME, &self.bytes(), XattrFlags::empty())?)
    }

    fn read(path: &Path) -> io::Result<Option<Self>> {
        let mut bytes = [0; STAMP_BYTES];
        match getxattr(path, NAME, &mut bytes) {
            Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(None),
            // A longer one, and below one that is shorter, is none of ours: it proves nothing.
            Err(Errno::RANGE) => Ok(Some(Self::parse([0; STAMP_BYTES]))),
            result => Ok(result.map(|_| Some(Self::parse(bytes)))?),
        }
    }

    fn bytes(&self) -> [u8; STAMP_BYTES] {
        let places = u64::from(self.base) | u64::from(self.end) << 32;
        let mut bytes = [0; STAMP_BYTES];
        let words = [self.boot, places, self.sum[0], self.sum[1]];
        bytes.as_chunks_mut().0.iter_mut().zip(words).for_each(|(to, word)| *to = word.to_le_bytes());
        bytes
    }

    fn parse(bytes: [u8; STAMP_BYTES]) -> Self {
        let mut words = bytes.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word));
        let mut next = || words.next().unwrap_or(0);
        let (boot, places) = (next(), next());
        let low = |word: u64| u32::try_from(word & u64::from(u32::MAX)).unwrap_or(0);
        Self { boot, base: low(places), end: low(places >> 32), sum: [next(), next()] }
    }

    /// How much of a file of this length is sound, in another boot.
    fn sound_len(&self, path: &Path, len: u64) -> io::Result<u64> {
        let (base, end) = (u64::from(self.base).min(len), u64::from(self.end));
        if end <= base || end > len {
            return Ok(base);
        }
        match sum_of(path, base, end) {
            Ok(sum) => Ok(if sum == self.sum { end } else { base }),
            Err(error) if files::is_lost(&error) => Ok(base),
            Err(error) => Err(error),
        }
    }
}

fn sum_of(path: &Path, base: u64, end: u64) -> io::Result<[u64; 2]> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(base))?;
    let mut left = file.take(end - base);
    let mut sum = Sum::default();
    let mut piece = vec![0; PIECE];
    loop {
        match left.read(&mut piece)? {
            0 if left.limit() > 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            0 => return Ok(sum.finish()),
            count => sum.add(piece.get(..count).unwrap_or_default()),
        }
    }
}

/// Whether the file system of this file keeps stamps.
pub(super) fn are_kept(file: &File) -> bool {
    let set = fsetxattr(file, NAME, &[0; STAMP_BYTES], XattrFlags::empty());
    !set.is_err_and(|error| is_unknown(&error.into()))
}

/// Whether a stamp could not be set because there are no attributes here.
pub(super) fn is_unknown(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied)
}

/// How much of a segment that has a stamp is sound, `None` without one.
pub(super) fn sound_len(path: &Path, len: u64, boot: Option<Boot>) -> io::Result<Option<u64>> {
    match Stamp::read(path)? {
        None => Ok(None),
        Some(stamp) if boot.is_some_and(|boot| boot.0 == stamp.boot) => Ok(Some(len)),
        Some(stamp) => stamp.sound_len(path, len).map(Some),
    }
}

/// Cuts a segment to what is sound, syncs it and takes its stamp: then it is as one that was closed.
pub(super) fn settle(path: &Path, sound: u64) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    if file.metadata()?.len() > sound {
        file.set_len(sound)?;
    }
    file.sync_all()?;
    remove(&file)
}

/// All of the file is synced. That this isn't is as good as if it were done: the start after a power loss looks at
/// the bytes once more.
pub(super) fn remove(file: &File) -> io::Result<()> {
    match fremovexattr(file, NAME) {
        Err(Errno::NODATA) => Ok(()),
        result => Ok(result?),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Folder;
    use super::*;

    fn sum(bytes: &[u8]) -> Sum {
        let mut sum = Sum::default();
        sum.add(bytes);
        sum
    }

    #[test]
    fn checksum_is_fletchers_over_words() {
        // By hand: words 1, 2 and 3 have the simple sums 1, 3, 6, which sum up to 10.
        let bytes: Vec<u8> = [1u64, 2, 3].iter().flat_map(|word| word.to_le_bytes()).collect();
        assert_eq!(sum(&bytes).finish(), [6, 10]);
        // A word that is not whole is filled with zeros.
        assert_eq!(sum(&[1, 1]).finish(), [0x0101, 0x0101]);
        assert_eq!(sum(b"").finish(), [0, 0]);
    }

    #[test]
    fn checksum_does_not_depend_on_the_pieces() {
        let bytes: Vec<u8> = (0..100u8).map(|at| at.wrapping_mul(37)).collect();
        for first in 0..40 {
            for second in first..60 {
                let mut pieces = sum(&bytes[..first]);
                pieces.add(&bytes[first..second]);
                pieces.add(&bytes[second..]);
                assert_eq!(pieces.finish(), sum(&bytes).finish(), "{first} {second}");
            }
        }
    }

    #[test]
    fn checksum_sees_what_is_lost_or_moved() {
        let bytes: Vec<u8> = (0..4096u32).flat_map(|at| at.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        let whole = sum(&bytes).finish();
        for at in (0..bytes.len()).step_by(512) {
            let mut harmed = bytes.clone();
            harmed[at..at + 512].fill(0);
            assert_ne!(sum(&harmed).finish(), whole, "zeros at {at}");
            harmed.copy_from_slice(&bytes);
            harmed.rotate_left(at + 8);
            assert_ne!(sum(&harmed).finish(), whole, "moved by {at}");
        }
    }

    #[test]
    fn stamp_is_written_as_documented() {
        let stamp = Stamp { boot: 0x0102, base: 3, end: 0x0405, sum: [6, 7] };
        let mut bytes = [0; STAMP_BYTES];
        bytes[..2].copy_from_slice(&[2, 1]);
        (bytes[8], bytes[12], bytes[13], bytes[16], bytes[24]) = (3, 5, 4, 6, 7);
        assert_eq!(stamp.bytes(), bytes);
        assert_eq!(Stamp::parse(bytes), stamp);
    }

    /// A segment of ten synced bytes, ten claimed ones and ten without a claim.
    fn stamped(path: &Path) -> Vec<u8> {
        let bytes: Vec<u8> = (1..31).collect();
        std::fs::write(path, &bytes).unwrap();
        let stamp = Stamp::new(Some(Boot::new("before")), 10, 20, sum(&bytes[10..20])).unwrap();
        stamp.set(&File::open(path).unwrap()).expect("this test needs a file system that keeps attributes");
        bytes
    }

    #[test]
    fn in_the_same_boot_all_of_it_is_sound() {
        let folder = Folder::new();
        let path = folder.path().join("segment");
        let mut bytes = stamped(&path);
        bytes[15] = 0;
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(sound_len(&path, 30, Some(Boot::new("before"))).unwrap(), Some(30));
    }

    #[test]
    fn in_another_boot_what_is_proven_is_sound() {
        let folder = Folder::new();
        let path = folder.path().join("segment");
        let after = Some(Boot::new("after"));
        let bytes = stamped(&path);
        assert_eq!(sound_len(&path, 30, after).unwrap(), Some(20));
        assert_eq!(sound_len(&path, 30, None).unwrap(), Some(20));
        for at in 0..30 {
            let mut harmed = bytes.clone();
            harmed[at] = 0;
            std::fs::write(&path, harmed).unwrap();
            let expected = if (10..20).contains(&at) { 10 } else { 20 };
            assert_eq!(sound_len(&path, 30, after).unwrap(), Some(expected), "{at}");
        }
        for len in 0..30 {
            std::fs::write(&path, &bytes[..usize::try_from(len).unwrap()]).unwrap();
            let expected = if len < 20 { len.min(10) } else { 20 };
            assert_eq!(sound_len(&path, len, after).unwrap(), Some(expected), "{len}");
        }
    }

    #[test]
    fn a_settled_segment_is_cut_and_has_no_stamp() {
        let folder = Folder::new();
        let path = folder.path().join("segment");
        let bytes = stamped(&path);
        settle(&path, 20).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), bytes[..20]);
        assert_eq!(sound_len(&path, 20, None).unwrap(), None);
        settle(&path, 20).unwrap();
    }

    #[test]
    fn a_stamp_of_another_form_proves_nothing() {
        let folder = Folder::new();
        let path = folder.path().join("segment");
        std::fs::write(&path, [1; 30]).unwrap();
        let file = File::open(&path).unwrap();
        for len in [0, 4, STAMP_BYTES + 1] {
            fsetxattr(&file, NAME, &vec![0; len], XattrFlags::empty()).unwrap();
            assert_eq!(sound_len(&path, 30, Some(Boot::new("after"))).unwrap(), Some(0), "{len}");
        }
    }
}

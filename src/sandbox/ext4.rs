//! The file system of a bounded volume: how large its file must be, what mkfs.ext4(8) is told, and what its superblock
//! says. Pure.
//!
//! A task's limit is the room for its files. What the file system needs for itself comes on top: tables of inodes, and
//! what the kernel holds back (2 %, at most 16 MiB). So that the room is the limit to the block, what is too much is
//! reserved for root, which no task is.

/// Blocks of the file system.
pub const BLOCK_BYTES: u64 = 4096;
/// The superblock is behind the boot sector.
pub const SUPERBLOCK_AT: u64 = 1024;
/// Its length.
pub const SUPERBLOCK_BYTES: usize = 1024;
/// Files and folders of one volume at the most: what the watch lets through, too.
pub const MAX_INODES: u64 = 200_000;
/// A task has a few files, however small its limit.
const MIN_INODES: u64 = 256;
/// Above this the 32-bit counts of blocks end.
const MAX_ROOM_BYTES: u64 = 8 << 40;
/// Inodes of 256 bytes: that many fit into a block.
const INODES_PER_BLOCK: u64 = BLOCK_BYTES / 256;
/// Blocks whose use one bitmap tells.
const BLOCKS_PER_GROUP: u64 = BLOCK_BYTES * 8;
/// What the kernel holds back for its own tables is a part of this size (`ext4_calculate_resv_clusters`) ...
const HELD_BACK_PART: u64 = 50;
/// ... and at most so many blocks.
const MAX_HELD_BACK: u64 = 4096;
/// Room that may be left where a write finds none: the kernel takes as much at a time as the program gives it, up to a
/// large page. Seen: 255 blocks behind a writer of 1 MiB.
const MAX_LEFT_BYTES: u64 = 2 << 20;
/// Of a small volume, at most this part.
const LEFT_PART: u64 = 16;

/// Without a journal: a volume does not outlive a crash of the machine, and each write is made once. No copies of the
/// superblock, no table that has to be filled with zeros.
const FEATURES: &str = "none,dir_index,ext_attr,extent,filetype,flex_bg,huge_file,large_file,sparse_super2,uninit_bg";

/// A file system to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Blocks for files.
    room: u64,
    inodes: u64,
    /// Blocks in all.
    blocks: u64,
}

impl Plan {
    /// With room for so many bytes of files; `None` where that is too much for this file system.
    pub fn new(room_bytes: u64) -> Option<Self> {
        if room_bytes > MAX_ROOM_BYTES {
            return None;
        }
        let room = room_bytes / BLOCK_BYTES;
        let inodes = room.clamp(MIN_INODES, MAX_INODES);
        let base = room + inodes / INODES_PER_BLOCK;
        let groups = base / BLOCKS_PER_GROUP + 2;
        // Two bitmaps, a rounded table of inodes and a descriptor for each group; superblock and root folder.
        let own = groups * 4 + groups / 64 + 32;
        let held_back = (base / (HELD_BACK_PART - 2) + 8).min(MAX_HELD_BACK);
        Some(Self { room, inodes, blocks: base + own + held_back })
    }

    /// The same with so many more blocks.
    pub fn larger(self, blocks: u64) -> Self {
        Self { blocks: self.blocks + blocks, ..self }
    }

    /// Bytes of the file that it is in.
    pub fn file_bytes(&self) -> u64 {
        self.blocks * BLOCK_BYTES
    }

    /// Arguments of mkfs.ext4(8) before the file.
    pub fn arguments(&self, owner: u32) -> Vec<String> {
        let options = format!("nodiscard,lazy_itable_init=1,num_backup_sb=0,root_owner={owner}:{owner}");
        let inodes = self.inodes.to_string();
        let words =
            ["-q", "-F", "-b", "4096", "-I", "256", "-m", "0", "-N", &inodes, "-O", FEATURES, "-E", options.as_str()];
        words.map(str::to_owned).to_vec()
    }

    /// Blocks that root must have so that no more than the room is left; `Err` with how many are missing.
    pub fn surplus(&self, made: &Superblock) -> Result<u32, u64> {
        let needed = self.room + made.held_back();
        match made.free_blocks.checked_sub(needed) {
            Some(surplus) => u32::try_from(surplus).map_err(|_| 0),
            None => Err(needed - made.free_blocks),
        }
    }
}

/// What of a superblock counts (Documentation/filesystems/ext4/super.rst).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// All of them.
    pub inodes: u64,
    blocks: u64,
    reserved: u64,
    free_blocks: u64,
    free_inodes: u64,
    /// It was unmounted, with everything written.
    pub is_clean: bool,
}

/// Where the count of root's blocks is.
pub const RESERVED_AT: u64 = SUPERBLOCK_AT + 8;

impl Superblock {
    /// Of these bytes; `None` where there is no file system.
    pub fn parse(bytes: &[u8; SUPERBLOCK_BYTES]) -> Option<Self> {
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let word = |at: usize| u64::from(half(at)) | u64::from(half(at + 2)) << 16;
        (half(56) == 0xEF53).then(|| Self {
            inodes: word(0),
            blocks: word(4),
            reserved: word(8),
            free_blocks: word(12),
            free_inodes: word(16),
            is_clean: half(58) & 1 == 1,
        })
    }

    fn held_back(&self) -> u64 {
        (self.blocks / HELD_BACK_PART).min(MAX_HELD_BACK)
    }

    /// What was found of it.
    pub fn filling(&self) -> Filling {
        let left = self.free_blocks.saturating_sub(self.reserved + self.held_back());
        Filling { free_bytes: left * BLOCK_BYTES, free_inodes: self.free_inodes }
    }
}

/// What is left of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filling {
    /// For a task.
    pub free_bytes: u64,
    /// Files and folders.
    pub free_inodes: u64,
}

impl Filling {
    /// Whether a volume with this room has none for the next write, or the next file.
    pub fn is_full(&self, room_bytes: u64) -> bool {
        self.free_inodes == 0 || self.free_bytes <= (room_bytes / LEFT_PART).min(MAX_LEFT_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The fields of a volume of 1 GiB as dumpe2fs(8) shows them, at the offsets of the kernel's documentation.
    #[test]
    fn reads_a_superblock() {
        let mut bytes = [0; SUPERBLOCK_BYTES];
        for (at, value) in [(0, 200_016_u32), (4, 273_437), (8, 100), (12, 260_915), (16, 200_006)] {
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        assert_eq!(Superblock::parse(&bytes), None);
        bytes[56..60].copy_from_slice(&[0x53, 0xEF, 1, 0]);
        let found = Superblock::parse(&bytes).unwrap();
        assert_eq!((found.inodes, found.is_clean), (200_016, true));
        let filling = found.filling();
        assert_eq!(filling, Filling { free_bytes: (260_915 - 100 - 4_096) * 4_096, free_inodes: 200_006 });
        assert!(!filling.is_full(1 << 30) && Filling { free_inodes: 0, ..filling }.is_full(1 << 30));
        let left = |bytes| Filling { free_bytes: bytes, ..filling };
        assert!(left(255 * 4_096).is_full(48 << 20) && !left((2 << 20) + 4_096).is_full(48 << 20));
        assert!(left(64 << 10).is_full(1 << 20) && !left(128 << 10).is_full(1 << 20));
        bytes[58] = 0;
        assert!(!Superblock::parse(&bytes).unwrap().is_clean);
    }
}

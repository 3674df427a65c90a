//! Amounts of what a machine lends: CPU, memory, disk and slots, and the ledger that never promises more than there is.

use serde::{Deserialize, Serialize};

/// How the disk limits of tasks are held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DiskWay {
    /// By volumes of that size where they can be made, else by the watch.
    #[default]
    Auto,
    /// By looking each second.
    Watch,
    /// By volumes of that size, or the task is refused.
    Volume,
}

/// An amount of each resource.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Thousandths of a CPU.
    pub cpu_millis: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Bytes of disk.
    pub disk_bytes: u64,
    /// Tasks at the same time.
    pub slots: u32,
}

impl Resources {
    /// Whether each amount is at most the other's.
    pub fn fits(&self, room: &Self) -> bool {
        self.shortage(room).is_none()
    }

    /// The first resource of which `room` has too little, in words for a reason.
    pub fn shortage(&self, room: &Self) -> Option<&'static str> {
        if self.slots > room.slots {
            Some("slots")
        } else if self.cpu_millis > room.cpu_millis {
            Some("cpu")
        } else if self.memory_bytes > room.memory_bytes {
            Some("memory")
        } else if self.disk_bytes > room.disk_bytes {
            Some("disk")
        } else {
            None
        }
    }

    /// `self - other`, each amount not below zero.
    pub fn less(&self, other: &Self) -> Self {
        Self {
            cpu_millis: self.cpu_millis.saturating_sub(other.cpu_millis),
            memory_bytes: self.memory_bytes.saturating_sub(other.memory_bytes),
            disk_bytes: self.disk_bytes.saturating_sub(other.disk_bytes),
            slots: self.slots.saturating_sub(other.slots),
        }
    }

    /// `self + other`, each amount capped at the type's range.
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            cpu_millis: self.cpu_millis.saturating_add(other.cpu_millis),
            memory_bytes: self.memory_bytes.saturating_add(other.memory_bytes),
            disk_bytes: self.disk_bytes.saturating_add(other.disk_bytes),
            slots: self.slots.saturating_add(other.slots),
        }
    }

    /// `percent` of each amount but the slots, rounded down; at least one slot stays.
    pub fn share(&self, percent: u32) -> Self {
        let part = |amount: u64| amount / 100 * u64::from(percent) + amount % 100 * u64::from(percent) / 100;
        let slots = u32::try_from(part(u64::from(self.slots))).unwrap_or(u32::MAX);
        Self {
            cpu_millis: part(self.cpu_millis),
            memory_bytes: part(self.memory_bytes),
            disk_bytes: part(self.disk_bytes),
            slots: slots.max(self.slots.min(1)),
        }
    }
}

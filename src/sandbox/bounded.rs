//! What a task has of its bounded volume: whether it gets one, whether its container has it, and how it is taken up again.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;

use super::body::{WORK_FOLDER, applied_limits};
use super::disk::DiskWatch;
use super::inside::PLAIN_RUNTIME;
use super::step::{Break, Step, fault};
use super::task::Task;
use super::volume::check_engine;
use crate::docker::{ContainerInspect, CreateBody, Docker};
use crate::node::account::AppliedLimits;
use crate::node::order::TaskNews;
use crate::node::record::Outcome;

/// The file system's name at the engine.
const KIND: &str = "ext4";
/// How it is mounted. Tables of inodes that were never written read as zeros: nobody has to write them. A file system that
/// is found broken takes no more.
const OPTIONS: &str = "nosuid,nodev,noinit_itable,errors=remount-ro";
/// What the engine says of a device that it can't mount.
const MOUNT_FAILED: &str = "failed to mount local volume";

/// What holds the limit of a work folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bounds {
    /// Its size.
    Volume,
    /// The watch.
    Watch,
}

impl Task {
    /// Makes the volume that bounds the work folder, where that is wanted and can be; the engine's options for it, none for
    /// one of the engine's own.
    pub fn bound(&self) -> Step<BTreeMap<String, String>> {
        let (volumes, key) = (&self.context.volumes, &self.spec.key);
        let made = self.wants_volume()?.and_then(|()| volumes.make(key, self.spec.disk_bytes));
        match made {
            Ok(()) => {
                let device = volumes.link(key).display().to_string();
                let options = [("type", KIND.to_owned()), ("device", device), ("o", OPTIONS.to_owned())];
                Ok(options.map(|(option, value)| (option.to_owned(), value)).into())
            }
            Err(reason) if volumes.is_must() => {
                let reason =
                    format!("this node holds disk limits by volumes (HIVEMIND_TASK_DISK), and can't: {reason}");
                Err(Break::End(Outcome::NodeFault, reason))
            }
            Err(reason) => {
                log::debug!("{}: its disk limit is held by the watch: {reason}", self.spec.key);
                // Of another choice, before a restart of the worker.
                let removed = volumes.remove(key);
                removed.map_err(|problem| Break::End(Outcome::NodeFault, problem))?;
                Ok(BTreeMap::new())
            }
        }
    }

    fn wants_volume(&self) -> Step<Result<(), String>> {
        let volumes = &self.context.volumes;
        if let Some(known) = volumes.known() {
            return Ok(known);
        }
        let facts = self.engine(Docker::facts)?.map_err(|error| fault(&error))?;
        Ok(volumes.keep(check_engine(&facts)))
    }

    /// Whether what failed is a mount that this node can do without from now on. What was made for it is removed.
    pub fn can_do_without_volume(&self, furnished: &Step<CreateBody>) -> Step<bool> {
        let volumes = &self.context.volumes;
        let Err(Break::End(Outcome::NodeFault, reason)) = furnished else { return Ok(false) };
        if volumes.is_must() || !reason.contains(MOUNT_FAILED) || volumes.find(&self.spec.key).is_none() {
            return Ok(false);
        }
        let reason = format!("the engine can't mount a volume of ours, so the watch holds disk limits: {reason}");
        self.tell(TaskNews::Note(reason.clone()));
        log::warn!("{reason}");
        let _ = volumes.keep(Err(reason));
        self.remove_furniture()?;
        Ok(true)
    }

    /// Container, helper and volume of a preparation that begins anew.
    pub fn remove_furniture(&self) -> Step<()> {
        for name in [self.name.clone(), format!("{}-owner", self.name)] {
            self.engine(move |docker| docker.remove_container(&name))?.map_err(|error| fault(&error))?;
        }
        let name = self.name.clone();
        self.engine(move |docker| docker.remove_volume(&name))?.map_err(|error| fault(&error)).map(drop)
    }

    /// After a restart of the machine the device is gone, and what the task had written is not.
    pub fn attach_volume_again(&self) {
        if let Err(problem) = self.context.volumes.attach_again(&self.spec.key) {
            self.tell(TaskNews::Note(format!("its work folder can't be read any more: {problem}")));
        }
    }

    /// The watch over the work folder, whatever bounds it.
    pub fn disk_watch(&self) -> Option<DiskWatch> {
        let image = self.context.volumes.find(&self.spec.key);
        DiskWatch::new(&self.context.quick_docker, &self.name, self.spec.disk_bytes, image)
    }

    /// What holds for the container.
    pub fn limits(&self, found: &ContainerInspect) -> AppliedLimits {
        let by = if self.context.volumes.find(&self.spec.key).is_some() { "volume" } else { "watch" };
        AppliedLimits { disk_held_by: by.to_owned(), ..applied_limits(&self.spec, &found.host_config) }
    }

    /// Whether the kernel says that the work folder is our device. A container that has ended has nothing mounted.
    ///
    /// # Errors
    /// What is there instead.
    pub fn check_volume(&self, found: &ContainerInspect) -> Result<(), String> {
        let volumes = &self.context.volumes;
        if volumes.find(&self.spec.key).is_none() {
            return Ok(());
        }
        let process = format!("/proc/{}", found.state.pid);
        let is_it = fs::read_to_string(format!("{process}/cgroup")).is_ok_and(|cgroups| cgroups.contains(&found.id));
        let Some(mounts) = fs::read_to_string(format!("{process}/mountinfo")).ok().filter(|_| is_it) else {
            return Ok(());
        };
        if found.host_config.runtime != PLAIN_RUNTIME && !mounts.lines().any(is_work_folder) {
            // A kernel of its own has it, of which nothing is seen from here: the look inside says so.
            return Ok(());
        }
        let link = volumes.link(&self.spec.key);
        let device = fs::metadata(&link).map_err(|error| format!("{}: {error}", link.display()))?.rdev();
        check_mount(&mounts, (rustix::fs::major(device), rustix::fs::minor(device)))
    }
}

fn is_work_folder(line: &str) -> bool {
    line.split(' ').nth(4) == Some(WORK_FOLDER)
}

/// Of `/proc/PID/mountinfo` (proc(5)): the third field is the device, the fifth the place, the sixth the options.
fn check_mount(mounts: &str, (major, minor): (u32, u32)) -> Result<(), String> {
    if mounts.is_empty() {
        // Of a process that has just ended.
        return Ok(());
    }
    let fields = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
    // The last one at a place is the one that is seen.
    let found = mounts.lines().rfind(|line| is_work_folder(line)).map(fields);
    let Some([_, _, device, _, _, options, ..]) = found.as_deref() else {
        return Err(format!("the container has nothing mounted at {WORK_FOLDER}"));
    };
    if *device != format!("{major}:{minor}") {
        return Err(format!("the container's work folder is device {device}, not {major}:{minor}"));
    }
    for option in ["nosuid", "nodev"] {
        if !options.split(',').any(|found| found == option) {
            return Err(format!("the container's work folder is mounted without {option}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_work_folder_that_is_another_device_is_told() {
        // As the kernel of this project's tests wrote it.
        let mounts = "154 113 0:40 / / ro,relatime - overlay overlay ro\n\
            155 113 7:0 / /workspace rw,nosuid,nodev,relatime master:8 - ext4 /dev/x rw,noinit_itable\n";
        assert_eq!(check_mount(mounts, (7, 0)), Ok(()));
        assert!(check_mount(mounts, (7, 1)).unwrap_err().contains("device 7:0, not 7:1"));
        assert!(check_mount(&mounts.replace("nosuid,", ""), (7, 0)).unwrap_err().contains("without nosuid"));
        assert!(check_mount(&mounts.replace("workspace", "other"), (7, 0)).unwrap_err().contains("nothing mounted"));
        assert_eq!(check_mount("", (7, 0)), Ok(()));
    }
}

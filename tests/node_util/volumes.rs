//! Bounded volumes of a scene.

use std::fs;

use hivemind_worker::node::leftover::Collecting;
use hivemind_worker::node::resources::DiskWay;
use hivemind_worker::sandbox::Volumes;

use super::Scene;

/// Whether no file of one is left.
pub fn are_gone(scene: &Scene) -> bool {
    fs::read_dir(scene.dir.join("state/volumes")).map_or(0, Iterator::count) == 0
}

/// Removes what a worker has left that was killed.
pub fn remove(scene: &Scene) {
    if let Ok(volumes) = Volumes::new(DiskWay::Auto, &scene.dir.join("state"), scene.identity.clone()) {
        volumes.reap(&|_| false, Collecting::Removes);
    }
}

//! What of an image has a say in the sandbox: its id, and where it declares volumes.
//!
//! A declared volume would be room on the disk that is writable and that no watch looks into, so each gets a file system in
//! memory instead, empty and bounded like `/tmp`: it counts against the task's memory.

use super::body::WORK_FOLDER;
use crate::docker::ImageInspect;

/// Volumes of one image. Each costs a mount.
const MAX_VOLUMES: usize = 16;
/// The engine's own places.
const RESERVED: [&str; 3] = ["/proc", "/sys", "/dev"];

/// An image that a task can run in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskImage {
    /// Its id.
    pub id: String,
    /// Where it declares volumes, beside the places that every task has.
    pub scratch: Vec<String>,
}

impl TaskImage {
    /// Looks at what the image declares.
    ///
    /// # Errors
    /// What of it does not fit into the sandbox.
    pub fn check(image: &ImageInspect) -> Result<Self, String> {
        let declared = image.config.volumes.keys().map(|path| normal(path));
        let mut scratch = declared.collect::<Result<Vec<String>, String>>()?;
        scratch.sort();
        scratch.dedup();
        scratch.retain(|path| path != WORK_FOLDER && path != "/tmp");
        if scratch.len() > MAX_VOLUMES {
            return Err(format!("the image declares {} volumes; {MAX_VOLUMES} is the most", scratch.len()));
        }
        Ok(Self { id: image.id.clone(), scratch })
    }
}

/// The path as the engine cleans it.
fn normal(path: &str) -> Result<String, String> {
    let refuse = |why: &str| Err(format!("the image declares a volume at {path:?}, {why}"));
    let words: Vec<&str> = path.split('/').filter(|word| !word.is_empty() && *word != ".").collect();
    if !path.starts_with('/') || words.contains(&"..") || path.contains(':') {
        return refuse("which is no plain absolute path");
    }
    let clean = format!("/{}", words.join("/"));
    let is_below = |folder: &str| clean.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'));
    if words.is_empty() || RESERVED.iter().any(|folder| clean == *folder || is_below(folder)) {
        return refuse("which is the engine's place");
    }
    if is_below(WORK_FOLDER) {
        return refuse("inside of the work folder");
    }
    Ok(clean)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn declares(paths: &[&str]) -> Result<Vec<String>, String> {
        let mut image = ImageInspect::default();
        image.config.volumes = paths.iter().map(|path| ((*path).to_owned(), serde_json::Value::Null)).collect();
        TaskImage::check(&image).map(|image| image.scratch)
    }

    #[test]
    fn volumes_are_cleaned_and_those_that_every_task_has_are_left_out() {
        assert_eq!(declares(&[]), Ok(Vec::new()));
        let cleaned = declares(&["/data/", "//data/.", "/b", "/workspace", "/tmp/", "/workspaces/x"]).unwrap();
        assert_eq!(cleaned, ["/b", "/data", "/workspaces/x"]);
    }

    #[test]
    fn volumes_in_the_engines_places_and_in_the_work_folder_are_refused() {
        for path in [
            "/",
            "/.",
            "/proc",
            "/proc/1",
            "/sys/fs/cgroup",
            "/dev",
            "/dev/shm",
            "/workspace/output",
            "data",
            "/a/../proc",
            "/a:ro",
            "",
        ] {
            assert!(declares(&[path]).is_err(), "{path}");
        }
        let many: Vec<String> = (0..17).map(|i| format!("/v{i}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(declares(&many[..16]).is_ok());
        assert!(declares(&many).unwrap_err().contains("17 volumes"));
    }
}

//! What of an image has a say in the sandbox: its id, where it declares volumes, and whether it is for this machine.
//!
//! A declared volume would be room on the disk that is writable and that no watch looks into, so each gets a file system in
//! memory instead, empty and bounded like `/tmp`: it counts against the task's memory.

use super::body::WORK_FOLDER;
use crate::docker::{ImageInspect, Platform};
use crate::node::image::ImageRef;

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

/// Why an image can't run here, where that is so. Names of the same architecture differ, and some processors run the
/// programs of their forerunners.
pub fn other_platform(asked: &ImageRef, image: &ImageInspect, node: &Platform) -> Option<String> {
    let (arch, here) = (common_name(&image.architecture), common_name(&node.arch));
    let is_unknown = [&image.os, &node.os].iter().any(|os| os.is_empty());
    let is_os = is_unknown || image.os == node.os;
    let is_arch = arch == here || arch.is_empty() || here.is_empty() || FORERUNNERS.contains(&(arch, here));
    if is_os && is_arch {
        return None;
    }
    let (theirs, ours) = if is_os {
        (arch.to_owned(), here.to_owned())
    } else {
        (format!("{}/{arch}", image.os), format!("{}/{here}", node.os))
    };
    let os = if node.os.is_empty() { "linux" } else { &node.os };
    Some(format!("image {asked} is for {theirs}, this node is {ours}; {}", advice(&format!("{os}/{here}"))))
}

/// The same from the engine's words, where it is the engine that finds nothing in the image for this machine.
pub fn no_platform(asked: &ImageRef, words: &str) -> Option<String> {
    // Since 20.10, `no matching manifest for linux/amd64 in the manifest list entries`.
    if let Some((_, rest)) = words.split_once("no matching manifest for ") {
        let here = rest.split_whitespace().next().unwrap_or_default();
        return Some(format!("image {asked} has nothing for {here}, which this node is; {}", advice(here)));
    }
    let is_podmans =
        words.contains("no image found in manifest list") || words.contains("no image found in image index");
    let is_other = ["does not match the specified platform", "cannot be used on this platform"];
    (is_podmans || is_other.iter().any(|known| words.contains(known)))
        .then(|| format!("image {asked} has nothing for this node; build a multi-platform image: {words}"))
}

fn advice(here: &str) -> String {
    format!("build for {here} or a multi-platform image")
}

/// Of an image, of a machine that runs it.
const FORERUNNERS: [(&str, &str); 2] = [("arm", "arm64"), ("386", "amd64")];

/// As Go has them, and so images.
fn common_name(arch: &str) -> &str {
    match arch {
        "x86_64" | "x86-64" => "amd64",
        "aarch64" => "arm64",
        "i386" | "i686" => "386",
        "armhf" | "armel" => "arm",
        other => other,
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

    fn platform_words(arch: &str, os: &str, here: &str) -> Option<String> {
        let image = ImageInspect { architecture: arch.to_owned(), os: os.to_owned(), ..ImageInspect::default() };
        let node = Platform { os: "linux".to_owned(), arch: here.to_owned() };
        other_platform(&ImageRef::parse("a/b:1").unwrap(), &image, &node)
    }

    #[test]
    fn an_image_for_another_machine_is_told_from_one_for_this() {
        for (arch, os, here) in [
            ("amd64", "linux", "amd64"),
            ("amd64", "linux", "x86_64"),
            ("arm", "linux", "arm64"),
            ("386", "linux", "amd64"),
            ("", "", "amd64"),
            ("arm64", "linux", ""),
        ] {
            assert_eq!(platform_words(arch, os, here), None, "{arch} {os} {here}");
        }
        let advice = |here: &str| format!("build for linux/{here} or a multi-platform image");
        assert_eq!(
            platform_words("arm64", "linux", "amd64"),
            Some(format!("image a/b:1 is for arm64, this node is amd64; {}", advice("amd64")))
        );
        assert!(platform_words("arm64", "linux", "arm").is_some());
        assert!(platform_words("amd64", "linux", "386").is_some());
        assert_eq!(
            platform_words("amd64", "windows", "amd64"),
            Some(format!("image a/b:1 is for windows/amd64, this node is linux/amd64; {}", advice("amd64")))
        );
    }

    #[test]
    fn the_engines_words_for_another_machine_are_known() {
        let words = |text: &str| no_platform(&ImageRef::parse("a/b:1").unwrap(), text);
        assert_eq!(
            words("pull image a/b:1: the engine refused with 200: no matching manifest for linux/arm/v7 in the manifest list entries"),
            Some(
                "image a/b:1 has nothing for linux/arm/v7, which this node is; build for linux/arm/v7 or a multi-platform image"
                    .to_owned()
            )
        );
        for known in [
            "image operating system \"windows\" cannot be used on this platform",
            "no image found in manifest list for architecture amd64, variant \"\", OS linux",
        ] {
            assert!(words(known).unwrap().contains(known), "{known}");
        }
        assert_eq!(words("manifest unknown"), None);
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

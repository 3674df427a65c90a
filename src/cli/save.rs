//! Saves the output files of a task. Their names come from a task, so they are checked again here: nothing is written
//! outside the folder that the caller named.

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use ring::digest::{Context, SHA256};

use crate::node::record::OutputFile;

use super::client::Client;
use super::tell;

/// As the kernel has it.
const MAX_PATH_BYTES: usize = 4_096;

/// Saves each file below `folder` under its own path; a file of the same name is replaced once the new one is whole.
/// One that fails doesn't keep the others from being saved.
pub(super) fn save(client: &Client, task: &str, outputs: &[OutputFile], folder: &Path) -> Result<(), String> {
    DirBuilder::new()
        .recursive(true)
        .create(folder)
        .map_err(|error| format!("failed to make {}: {error}", folder.display()))?;
    let mut failed = 0usize;
    for file in outputs {
        let saved = target(folder, &file.path).and_then(|target| {
            let mut reader = client.output(task, &file.path).map_err(|error| error.to_string())?;
            save_one(&mut reader, file, &target).map(|()| target)
        });
        match saved {
            Ok(target) => tell(&format!("saved {} ({} bytes)", target.display(), file.size)),
            Err(message) => {
                failed += 1;
                tell(&format!("failed to save {:?}: {message}", file.path));
            }
        }
    }
    match failed {
        0 => Ok(()),
        count => Err(format!("{count} of {} output files were not saved", outputs.len())),
    }
}

/// Where a file goes, with the folders above it made. Refuses a path or link that leads out of `folder`.
fn target(folder: &Path, path: &str) -> Result<PathBuf, String> {
    if path.is_empty() || path.len() > MAX_PATH_BYTES || path.contains('\0') {
        return Err("its path is empty, too long or has a NUL byte".to_owned());
    }
    if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err("its path leads out of the folder or is not plain".to_owned());
    }
    let parts: Vec<&str> = path.split('/').collect();
    let mut target = folder.to_owned();
    for (index, part) in parts.iter().enumerate() {
        target.push(part);
        let is_last = index + 1 == parts.len();
        match fs::symlink_metadata(&target) {
            Ok(meta) if is_last && meta.is_dir() => return Err(format!("{} is a folder", target.display())),
            Ok(meta) if !is_last && !meta.is_dir() => return Err(format!("{} is no folder", target.display())),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if !is_last {
                    fs::create_dir(&target).map_err(|error| format!("failed to make {}: {error}", target.display()))?;
                }
            }
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok(target)
}

/// Writes beside the target, checks size and digest, then renames. A link at the target is replaced, not followed.
fn save_one(reader: &mut dyn Read, file: &OutputFile, target: &Path) -> Result<(), String> {
    let mut name = target.file_name().unwrap_or_default().to_owned();
    // A name of 255 bytes has no room for more; the number alone is a name of its own then.
    let ending = format!(".{}.part", std::process::id());
    if name.len() + ending.len() > 255 {
        name.clear();
    }
    name.push(ending);
    let part = target.with_file_name(name);
    let result = write_checked(reader, file, &part).and_then(|()| {
        fs::rename(&part, target).map_err(|error| format!("failed to write {}: {error}", target.display()))
    });
    if result.is_err() {
        let _ = fs::remove_file(&part);
    }
    result
}

fn write_checked(reader: &mut dyn Read, file: &OutputFile, part: &Path) -> Result<(), String> {
    let _ = fs::remove_file(part);
    let failed = |error: io::Error| format!("failed to write {}: {error}", part.display());
    let mut out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(part).map_err(failed)?;
    let mut digest = Context::new(&SHA256);
    let mut buffer = vec![0; 64 << 10];
    let mut size = 0u64;
    loop {
        let count = reader.read(&mut buffer).map_err(|error| format!("it did not arrive whole: {error}"))?;
        if count == 0 {
            break;
        }
        size = size.saturating_add(count as u64);
        if size > file.size {
            return Err(format!("it is larger than its report says, {} bytes", file.size));
        }
        digest.update(&buffer[..count]);
        out.write_all(&buffer[..count]).map_err(failed)?;
    }
    if size != file.size {
        return Err(format!("{size} of {} bytes arrived", file.size));
    }
    let sha256: String = digest.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    if !sha256.eq_ignore_ascii_case(&file.sha256) {
        return Err("its content is not what its report says (SHA-256 differs)".to_owned());
    }
    let mode = 0o644 | if file.mode & 0o111 == 0 { 0 } else { 0o111 };
    out.set_permissions(Permissions::from_mode(mode)).map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("hivemind-save-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn refuses_paths_that_lead_out() {
        let dir = scratch("paths");
        symlink("/tmp", dir.join("link")).unwrap();
        fs::write(dir.join("file"), "").unwrap();
        fs::create_dir(dir.join("folder")).unwrap();
        for path in ["", "/etc/x", "..", "../x", "a/../../x", "a//b", "./a", "a/", "a\0b", "link/x", "file/x", "folder"]
        {
            assert!(target(&dir, path).is_err(), "{path:?}");
        }
        assert_eq!(target(&dir, "output/a/b").unwrap(), dir.join("output/a/b"));
        assert_eq!(target(&dir, "link").unwrap(), dir.join("link"));
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn keeps_the_old_file_unless_the_new_one_is_whole() {
        let dir = scratch("whole");
        let path = dir.join("a");
        fs::write(&path, "old").unwrap();
        let mut file = OutputFile {
            stream: 16,
            path: "a".to_owned(),
            size: 3,
            mode: 0o4755,
            sha256: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad".to_owned(),
        };
        for wrong in [&b"ab"[..], b"abcd", b"abd"] {
            assert!(save_one(&mut &wrong[..], &file, &path).is_err());
            assert_eq!(fs::read(&path).unwrap(), b"old");
        }
        save_one(&mut &b"abc"[..], &file, &path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"abc");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o755);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
        file.sha256.clear();
        assert!(save_one(&mut &b"abc"[..], &file, &path).is_err());
        fs::remove_dir_all(&dir).unwrap();
    }
}

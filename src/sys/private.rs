//! Files and folders that only this user may see.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::{fmt, process};

use rustix::fs::Mode;

/// From now on nothing that this process makes is open to others, unless it says so itself.
pub fn restrict_umask() {
    rustix::process::umask(Mode::from_raw_mode(0o077));
}

/// Why a folder or file can't be private.
#[derive(Debug)]
pub enum PrivateError {
    /// It is there and belongs to another user.
    Owner {
        /// What.
        path: PathBuf,
        /// Number of the user who owns it.
        owner: u32,
        /// Number of ours.
        us: u32,
    },
    /// It is there and others may look into it.
    Mode {
        /// What.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It is there and no folder.
    NoFolder(PathBuf),
    /// A file that others may read.
    Readable {
        /// What.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// No plain file, or one that is larger than it can be.
    NoFile(PathBuf),
    /// The system refused.
    Io {
        /// What.
        path: PathBuf,
        /// Which step.
        step: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl fmt::Display for PrivateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Owner { path, owner, us } => {
                let path = path.display();
                write!(
                    f,
                    "{path} belongs to user {owner}, and we are user {us}: chown {us} '{path}', or use another folder"
                )
            }
            Self::Mode { path, mode } => {
                let path = path.display();
                write!(f, "{path} has mode {mode:04o}, so others may look into it: chmod 700 '{path}'")
            }
            Self::NoFolder(path) => write!(f, "{} is no folder", path.display()),
            Self::Readable { path, mode } => {
                let path = path.display();
                write!(f, "{path} has mode {mode:04o}, so others may read it: chmod 600 '{path}'")
            }
            Self::NoFile(path) => write!(f, "{} is no file, or too large to be what it should be", path.display()),
            Self::Io { path, step, .. } => write!(f, "can't {step} {}", path.display()),
        }
    }
}

impl std::error::Error for PrivateError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// Makes sure that `path` is a folder of ours with mode 0700: makes it, or looks at what is there and changes nothing.
///
/// # Errors
/// Says what is wrong and the command that mends it.
pub fn private_dir(path: &Path) -> Result<(), PrivateError> {
    let fault = |step| move |source| PrivateError::Io { path: path.to_owned(), step, source };
    match make_dirs(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(PrivateError::NoFolder(path.to_owned()));
        }
        Err(error) => return Err(fault("make")(error)),
    }
    check_private_dir(path)
}

/// Makes a folder and what is missing above it, each of mode 0700 and in its own folder for good: a power loss must not
/// take a folder whose content is synced. One that is there already is as good.
///
/// # Errors
/// One of them can't be made or synced.
pub fn make_dirs(path: &Path) -> io::Result<()> {
    let is_missing = |above: &&Path| !above.as_os_str().is_empty() && !above.exists();
    let missing: Vec<&Path> = path.ancestors().take_while(is_missing).collect();
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    for made in missing {
        let above = made.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
        match File::open(above) {
            // One that may be written but not read can't be synced either.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            folder => folder?.sync_all()?,
        }
    }
    Ok(())
}

/// Whether a folder that is there is private; changes nothing.
///
/// # Errors
/// As [`private_dir`].
pub fn check_private_dir(path: &Path) -> Result<(), PrivateError> {
    let meta =
        fs::metadata(path).map_err(|source| PrivateError::Io { path: path.to_owned(), step: "look at", source })?;
    let us = rustix::process::geteuid().as_raw();
    if !meta.is_dir() {
        return Err(PrivateError::NoFolder(path.to_owned()));
    }
    if meta.uid() != us {
        return Err(PrivateError::Owner { path: path.to_owned(), owner: meta.uid(), us });
    }
    if meta.mode() & 0o077 != 0 {
        return Err(PrivateError::Mode { path: path.to_owned(), mode: meta.mode() & 0o7777 });
    }
    Ok(())
}

/// The content of a file that nobody but its owner may read, up to `max_bytes`.
///
/// # Errors
/// Says what is wrong and the command that mends it.
pub fn read_private(path: &Path, max_bytes: u64) -> Result<Vec<u8>, PrivateError> {
    let fault = |source| PrivateError::Io { path: path.to_owned(), step: "read", source };
    let file = File::open(path).map_err(fault)?;
    // Of what was opened, whatever the name means by now.
    let meta = file.metadata().map_err(fault)?;
    if !meta.is_file() || meta.len() > max_bytes {
        return Err(PrivateError::NoFile(path.to_owned()));
    }
    if meta.mode() & 0o077 != 0 {
        return Err(PrivateError::Readable { path: path.to_owned(), mode: meta.mode() & 0o7777 });
    }
    let mut bytes = Vec::new();
    file.take(max_bytes).read_to_end(&mut bytes).map_err(fault)?;
    Ok(bytes)
}

/// Puts a file of mode 0600 at `path`, whole or not at all: written beside it, synced, renamed, folder synced.
///
/// # Errors
/// What was at `path` before is still there then.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<(), PrivateError> {
    let fault = |step| move |source| PrivateError::Io { path: path.to_owned(), step, source };
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(fault("write")(io::ErrorKind::InvalidInput.into()));
    };
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let mut beside = name.to_owned();
    beside.push(format!(".{}.new", process::id()));
    let beside = folder.join(beside);
    // Left by a process of our number that ended in between; nobody else has a reason to hold it.
    let _ = fs::remove_file(&beside);
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&beside)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
    if let Err(source) = written.and_then(|()| fs::rename(&beside, path)) {
        let _ = fs::remove_file(&beside);
        return Err(fault("write")(source));
    }
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(fault("sync the folder of"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("hivemind-private-{name}-{}", process::id()));
        let _ = fs::remove_dir_all(&path);
        path
    }

    #[test]
    fn makes_a_private_folder_and_refuses_an_open_one() {
        let base = scratch("dir");
        let dir = base.join("a/b");
        private_dir(&dir).unwrap();
        private_dir(&dir).unwrap();
        assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o7777, 0o700);
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
        let error = private_dir(&dir).unwrap_err().to_string();
        assert!(error.contains("mode 0755") && error.contains(&format!("chmod 700 '{}'", dir.display())), "{error}");
        fs::write(base.join("file"), "").unwrap();
        assert!(matches!(private_dir(&base.join("file")), Err(PrivateError::NoFolder(_))));
        fs::remove_dir_all(&base).unwrap();
    }

    #[test]
    fn reads_only_what_nobody_else_may_read() {
        let dir = scratch("read");
        private_dir(&dir).unwrap();
        let path = dir.join("login");
        fs::write(&path, "text").unwrap();
        for mode in [0o644, 0o640, 0o604, 0o620] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = read_private(&path, 10).unwrap_err().to_string();
            assert!(error.contains(&format!("others may read it: chmod 600 '{}'", path.display())), "{error}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(read_private(&path, 10).unwrap(), b"text");
        assert!(matches!(read_private(&path, 3), Err(PrivateError::NoFile(_))));
        assert!(matches!(read_private(&dir, 3), Err(PrivateError::NoFile(_))));
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn replaces_a_file_whole_and_leaves_nothing_beside() {
        let dir = scratch("file");
        private_dir(&dir).unwrap();
        let path = dir.join("key");
        write_private(&path, b"one").unwrap();
        write_private(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
        assert!(write_private(&dir.join("none/key"), b"x").is_err());
        fs::remove_dir_all(&dir).unwrap();
    }
}

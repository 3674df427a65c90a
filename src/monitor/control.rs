//! The control socket's file: born with its mode under another name and renamed, so that it is never open to more than
//! it should be; taken over from a worker that is gone, never from one that answers.

use std::fs::{self, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use super::socket::Listener;

/// The owner and the group may connect, which is what the group is for.
const MODE: u32 = 0o660;

/// The file that [`bind`] made.
pub struct ControlSocket {
    path: PathBuf,
    identity: (u64, u64),
}

impl ControlSocket {
    /// Removes the file, unless it is another's by now.
    pub fn remove(&self) {
        let is_ours = fs::symlink_metadata(&self.path).is_ok_and(|about| (about.dev(), about.ino()) == self.identity);
        if is_ours && let Err(error) = fs::remove_file(&self.path) {
            log::warn!("failed to remove {}: {error}", self.path.display());
        }
    }
}

/// Listens at `path`.
///
/// # Errors
/// `AddrInUse` when somebody answers there, `AlreadyExists` when it is no socket.
pub fn bind(path: &Path) -> io::Result<(ControlSocket, Listener)> {
    check_free(path)?;
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    let fresh = PathBuf::from(fresh);
    remove_if_there(&fresh)?;
    let listener = UnixListener::bind(&fresh)?;
    fs::set_permissions(&fresh, Permissions::from_mode(MODE))?;
    let about = fs::symlink_metadata(&fresh)?;
    fs::rename(&fresh, path)?;
    let file = ControlSocket { path: path.to_owned(), identity: (about.dev(), about.ino()) };
    Ok((file, Listener::unix(listener)?))
}

/// Removes `path` when it exists.
pub fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn check_free(path: &Path) -> io::Result<()> {
    let about = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    if !about.file_type().is_socket() {
        return Err(io::Error::new(ErrorKind::AlreadyExists, "there is something that is no socket"));
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(io::Error::new(ErrorKind::AddrInUse, "another worker answers there")),
        Err(error) if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) => Ok(()),
        Err(error) => Err(error),
    }
}

//! What is said about a state folder that can't be used: most often it is another user's, whose worker may be running.

use std::error::Error;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::sys::private::PrivateError;

/// What is wrong and how to go on. Taking a folder from a user whose worker may be running is no advice.
pub(super) fn trouble(error: &PrivateError) -> String {
    match error {
        PrivateError::Owner { path, owner, us } => format!(
            "{} belongs to user {owner}, and we are user {us}: run as that user{}, or name another folder with --state DIR",
            path.display(),
            sudo(*owner)
        ),
        error => error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}")),
    }
}

/// What to do about a control socket in a state folder that we may not enter.
pub(super) fn no_entry(socket: &Path) -> String {
    let mut folders = socket.ancestors().skip(1);
    let owner = folders.find_map(|folder| fs::metadata(folder).ok()).map(|meta| meta.uid());
    match owner.filter(|owner| *owner != rustix::process::geteuid().as_raw()) {
        Some(owner) => format!(
            "its folder belongs to user {owner}: run as that user{}, or name another worker's folder with --state DIR",
            sudo(owner)
        ),
        None => "run as the worker's own user, or name another worker's folder with --state DIR".to_owned(),
    }
}

fn sudo(owner: u32) -> &'static str {
    if owner == 0 { " (sudo)" } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_advises_to_take_a_folder_from_its_user() {
        let error = PrivateError::Owner { path: "/var/lib/hivemind".into(), owner: 0, us: 1_000 };
        let expected = "/var/lib/hivemind belongs to user 0, and we are user 1000: run as that user (sudo), or name \
                        another folder with --state DIR";
        assert_eq!(trouble(&error), expected);
        let error = PrivateError::Mode { path: "/x".into(), mode: 0o755 };
        assert!(trouble(&error).contains("chmod 700 '/x'"));
    }
}

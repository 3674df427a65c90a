//! The owner's token: 128 random bits in a file that only the owner can read. It is kept over restarts, so that an open
//! page goes on working; deleting the file makes a new one at the next start.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};

/// Name of the file in the state folder.
pub const TOKEN_FILE: &str = "monitor.token";
/// Hex digits of 128 bits.
const DIGITS: usize = 32;

/// What a given token is compared with. Holds only a keyed digest, so there is nothing to print.
pub struct Token {
    key: hmac::Key,
    digest: hmac::Tag,
}

impl Token {
    /// Takes the token of the state folder, or makes one.
    pub fn load_or_make(state_dir: &Path) -> io::Result<Self> {
        let text = match read_token(state_dir) {
            Ok(text) => text,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidData) => make(state_dir)?,
            Err(error) => return Err(error),
        };
        Self::from_text(&text)
    }

    /// Takes a token as it stands in the file.
    pub fn from_text(text: &str) -> io::Result<Self> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()).map_err(|_| no_randomness())?;
        let digest = hmac::sign(&key, text.as_bytes());
        Ok(Self { key, digest })
    }

    /// Compares in a time that tells nothing about the token: both sides are hashed under a key of this process first.
    pub fn is_equal(&self, given: &str) -> bool {
        hmac::verify(&self.key, given.as_bytes(), self.digest.as_ref()).is_ok()
    }
}

/// Reads the token for the owner's own use, such as opening the page with it.
///
/// # Errors
/// `NotFound` without a file; `InvalidData` where the file holds no token or others can read it.
pub fn read_token(state_dir: &Path) -> io::Result<String> {
    let path = state_dir.join(TOKEN_FILE);
    let no_follow = rustix::fs::OFlags::NOFOLLOW.bits();
    let file = OpenOptions::new().read(true).custom_flags(i32::try_from(no_follow).unwrap_or_default()).open(&path)?;
    let about = file.metadata()?;
    let mut text = String::new();
    if about.is_file() && about.mode() & 0o077 == 0 {
        file.take(DIGITS as u64 + 1).read_to_string(&mut text)?;
    }
    let text = text.trim_end();
    if text.len() != DIGITS || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        let what = format!("{} holds no token that only its owner can read", path.display());
        return Err(io::Error::new(ErrorKind::InvalidData, what));
    }
    Ok(text.to_owned())
}

/// Writes a new token whole: born 0600 under another name, synced, renamed.
fn make(state_dir: &Path) -> io::Result<String> {
    let mut bits = [0; DIGITS / 2];
    SystemRandom::new().fill(&mut bits).map_err(|_| no_randomness())?;
    let text: String = bits.iter().map(|byte| format!("{byte:02x}")).collect();
    let fresh = state_dir.join(format!("{TOKEN_FILE}.new"));
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
    file.write_all(format!("{text}\n").as_bytes())?;
    file.sync_all()?;
    fs::rename(&fresh, state_dir.join(TOKEN_FILE))?;
    File::open(state_dir)?.sync_all()?;
    Ok(text)
}

fn no_randomness() -> io::Error {
    io::Error::other("the system gives no random bytes")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn folder(name: &str) -> std::path::PathBuf {
        let path = std::env::temp_dir().join(format!("hivemind-token-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        path
    }

    #[test]
    fn is_made_once_and_only_for_its_owner() {
        let folder = folder("once");
        let token = Token::load_or_make(&folder).unwrap();
        let text = read_token(&folder).unwrap();
        assert!(token.is_equal(&text));
        assert!(Token::load_or_make(&folder).unwrap().is_equal(&text));
        assert_eq!(fs::metadata(folder.join(TOKEN_FILE)).unwrap().mode() & 0o777, 0o600);
        for wrong in ["", "0", &text[1..], &text.to_uppercase().replace(|c: char| c.is_ascii_digit(), "0")] {
            assert!(!token.is_equal(wrong));
        }
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_token_that_others_could_read_is_replaced() {
        let folder = folder("replaced");
        let path = folder.join(TOKEN_FILE);
        Token::load_or_make(&folder).unwrap();
        let before = read_token(&folder).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        Token::load_or_make(&folder).unwrap();
        assert_ne!(read_token(&folder).unwrap(), before);
        fs::write(&path, "short").unwrap();
        Token::load_or_make(&folder).unwrap();
        assert_eq!(read_token(&folder).unwrap().len(), DIGITS);
        fs::remove_dir_all(folder).unwrap();
    }
}

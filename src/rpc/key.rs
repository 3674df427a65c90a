//! The node's own key: Ed25519, made at the first start, never leaves the state folder.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair};

use crate::sys::private::{PrivateError, write_private};

/// Name of the key's file in the state folder.
const KEY_FILE: &str = "node.key";
/// What is signed begins with this, so that the signature is good for nothing else.
const CONTEXT: &[u8] = b"hivemind-register-v1";

/// The key pair. Has no `Debug`.
pub struct NodeKey(Ed25519KeyPair);

/// Why there is no key.
#[derive(Debug)]
pub enum KeyError {
    /// The file can't be read.
    Read(PathBuf, io::Error),
    /// The file holds no Ed25519 key in PKCS #8.
    Content(PathBuf),
    /// A new key can't be written.
    Write(PrivateError),
    /// The system gives no random bytes.
    Random,
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(path, _) => write!(f, "can't read the node's key {}", path.display()),
            Self::Content(path) => write!(
                f,
                "{} is no Ed25519 key in PKCS #8; move it away to be given a new one, under which the master knows no node yet",
                path.display()
            ),
            Self::Write(_) => f.write_str("can't write the node's key"),
            Self::Random => f.write_str("the system gives no random bytes"),
        }
    }
}

impl std::error::Error for KeyError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Read(_, error) => Some(error),
            Self::Write(error) => Some(error),
            Self::Content(_) | Self::Random => None,
        }
    }
}

impl NodeKey {
    /// The key of the state folder; made, 0600 and synced, where there is none.
    ///
    /// # Errors
    /// The file is there and can't be used, or can't be made. A broken one is never replaced.
    pub fn load_or_make(state_dir: &Path) -> Result<Self, KeyError> {
        let path = state_dir.join(KEY_FILE);
        let document = match std::fs::read(&path) {
            Ok(document) => document,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let made = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| KeyError::Random)?;
                write_private(&path, made.as_ref()).map_err(KeyError::Write)?;
                made.as_ref().to_vec()
            }
            Err(error) => return Err(KeyError::Read(path, error)),
        };
        Ed25519KeyPair::from_pkcs8(&document).map(Self).map_err(|_| KeyError::Content(path))
    }

    /// 32 bytes.
    pub fn public(&self) -> &[u8] {
        self.0.public_key().as_ref()
    }

    /// The proof of registration: a signature over context, nonce, node id and public key, each behind a zero byte.
    pub fn prove(&self, nonce: &[u8], node_id: &str) -> Vec<u8> {
        let message = [CONTEXT, nonce, node_id.as_bytes(), self.public()].join(&0);
        self.0.sign(&message).as_ref().to_vec()
    }
}

#[cfg(test)]
mod tests {
    use ring::signature::{ED25519, UnparsedPublicKey};

    use super::*;

    #[test]
    fn a_key_is_made_once_kept_private_and_proves_itself() {
        let dir = std::env::temp_dir().join(format!("hivemind-key-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let key = NodeKey::load_or_make(&dir).unwrap();
        let mode =
            std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(dir.join(KEY_FILE)).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(NodeKey::load_or_make(&dir).unwrap().public(), key.public());
        let mut message = b"hivemind-register-v1\0nonce\0node\0".to_vec();
        message.extend_from_slice(key.public());
        let verifier = UnparsedPublicKey::new(&ED25519, key.public());
        assert!(verifier.verify(&message, &key.prove(b"nonce", "node")).is_ok());
        assert!(verifier.verify(&message, &key.prove(b"other", "node")).is_err());
        std::fs::write(dir.join(KEY_FILE), b"broken").unwrap();
        assert!(matches!(NodeKey::load_or_make(&dir), Err(KeyError::Content(_))));
        assert_eq!(std::fs::read(dir.join(KEY_FILE)).unwrap(), b"broken");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}

//! Private keys: Ed25519, made at the first start, never leave their folder. The node's own, and that of a master which
//! signs its assignments.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair};

use super::signing::{PublicKey, signed_text};
use crate::sys::private::{PrivateError, write_private};

/// Name of the key's file in the state folder.
const KEY_FILE: &str = "node.key";
/// Of a master's key, in the master's folder.
const SIGNING_KEY_FILE: &str = "signing.key";
/// What is signed begins with this, so that the signature is good for nothing else.
const CONTEXT: &[u8] = b"hivemind-register-v1";

/// The node's key pair. Has no `Debug`.
pub struct NodeKey(Ed25519KeyPair);

/// The key pair with which a master signs. Has no `Debug`.
pub struct SigningKey(Ed25519KeyPair);

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
            Self::Read(path, _) => write!(f, "can't read the key {}", path.display()),
            Self::Content(path) => write!(
                f,
                "{} is no Ed25519 key in PKCS #8; move it away to be given a new one, which nobody knows yet",
                path.display()
            ),
            Self::Write(_) => f.write_str("can't write the key"),
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
        load_or_make(state_dir.join(KEY_FILE)).map(Self)
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

impl SigningKey {
    /// The key of the master's folder; made, 0600 and synced, where there is none.
    ///
    /// # Errors
    /// As [`NodeKey::load_or_make`].
    pub fn load_or_make(dir: &Path) -> Result<Self, KeyError> {
        load_or_make(dir.join(SIGNING_KEY_FILE)).map(Self)
    }

    /// What nodes check with.
    pub fn public(&self) -> PublicKey {
        let mut key = PublicKey::default();
        key.copy_from_slice(self.0.public_key().as_ref());
        key
    }

    /// The signature that makes this encoded assignment good for this node.
    pub fn sign(&self, node_id: &str, assignment: &[u8]) -> Vec<u8> {
        self.0.sign(&signed_text(node_id, assignment)).as_ref().to_vec()
    }
}

fn load_or_make(path: PathBuf) -> Result<Ed25519KeyPair, KeyError> {
    let document = match std::fs::read(&path) {
        Ok(document) => document,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let made = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| KeyError::Random)?;
            write_private(&path, made.as_ref()).map_err(KeyError::Write)?;
            made.as_ref().to_vec()
        }
        Err(error) => return Err(KeyError::Read(path, error)),
    };
    Ed25519KeyPair::from_pkcs8(&document).map_err(|_| KeyError::Content(path))
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

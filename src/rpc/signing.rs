//! Signed assignments: which key the master signs with, and whether it has signed this one for this node.
//!
//! The owner may name the key. Else the first that the master tells is kept, with the master's address, and holds until
//! the owner takes the file away or goes to another master. Without a key assignments need no signature.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use log::info;
use ring::digest::{SHA256, digest};
use ring::signature::{ED25519, UnparsedPublicKey};

use crate::node::offer::SIGNATURE;
use crate::node::spec::FieldError;
use crate::sys::private::write_private;
use crate::sys::text::{from_hex, hex};

/// An Ed25519 public key.
pub type PublicKey = [u8; 32];

/// What is signed begins with this, so that the signature is good for nothing else.
const CONTEXT: &[u8] = b"hivemind-assignment-v1";
/// In the state folder: the master's address and its key.
const PIN_FILE: &str = "master.pin";

/// What a master signs: the context, the node's id and the digest of the assignment, with a zero byte between. The digest
/// spares a copy of up to 32 MiB.
pub fn signed_text(node_id: &str, assignment: &[u8]) -> Vec<u8> {
    [CONTEXT, node_id.as_bytes(), digest(&SHA256, assignment).as_ref()].join(&0)
}

/// Where the key comes from.
#[derive(Debug, PartialEq, Eq)]
enum Source {
    /// The owner named it.
    Owner,
    /// The master's first word.
    Pin,
}

/// What a node knows of its master's key.
#[derive(Debug)]
pub struct Signing {
    path: PathBuf,
    master: String,
    key: Option<(PublicKey, Source)>,
}

impl Signing {
    /// The key that the owner names, or that the master at this address has told before.
    ///
    /// # Errors
    /// The file is there and can't be read: going on without it would trust whoever speaks first now.
    pub fn load(state_dir: &Path, master: &str, named: Option<PublicKey>) -> Result<Self, String> {
        let path = state_dir.join(PIN_FILE);
        let pin = || match fs::read_to_string(&path) {
            Ok(text) => read_pin(&text, master).map_err(|problem| {
                format!("{} {problem}; move it away to trust the master's next word", path.display())
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(format!("can't read the master's signing key {}: {error}", path.display())),
        };
        let key = match named {
            Some(key) => Some((key, Source::Owner)),
            None => pin()?.map(|key| (key, Source::Pin)),
        };
        Ok(Self { path, master: master.to_owned(), key })
    }

    /// The master has told a key with a registration, or none.
    ///
    /// # Errors
    /// What the owner should know, in words. The key that was known stands.
    pub fn learn(&mut self, told: &[u8]) -> Result<(), String> {
        if told.is_empty() {
            return Ok(());
        }
        let told = PublicKey::try_from(told)
            .map_err(|_| format!("the master's signing_key has {} bytes, not 32: not used", told.len()))?;
        match &self.key {
            Some((known, _)) if *known == told => Ok(()),
            Some((known, source)) => Err(format!(
                "the master says that it signs with {} now; this node knows {} and refuses what is signed otherwise. If \
                 that is right, {}",
                hex(&told),
                hex(known),
                match source {
                    Source::Owner => "change MASTER_SIGNING_KEY and restart".to_owned(),
                    Source::Pin => format!("remove {} and restart", self.path.display()),
                }
            )),
            None => {
                info!("from now on only assignments that {} has signed are taken", hex(&told));
                self.key = Some((told, Source::Pin));
                let line = format!("{} {}\n", self.master, hex(&told));
                write_private(&self.path, line.as_bytes()).map_err(|error| {
                    let why =
                        std::error::Error::source(&error).map_or_else(String::new, |source| format!(": {source}"));
                    format!("can't keep the master's signing key beyond this run: {error}{why}")
                })
            }
        }
    }

    /// Whether the master has signed this assignment for this node.
    ///
    /// # Errors
    /// There is a key, and it did not.
    pub fn check(&self, node_id: &str, assignment: &[u8], signature: &[u8]) -> Result<(), FieldError> {
        let Some((key, _)) = &self.key else { return Ok(()) };
        let refuse = |reason: &str| FieldError { field: SIGNATURE.to_owned(), reason: reason.to_owned() };
        if signature.is_empty() {
            return Err(refuse("is missing, and this node takes only what its master has signed"));
        }
        UnparsedPublicKey::new(&ED25519, key)
            .verify(&signed_text(node_id, assignment), signature)
            .map_err(|_| refuse("is not the master's over this assignment for this node"))
    }
}

/// The key that is kept for this master; none where the file is another master's.
fn read_pin(text: &str, master: &str) -> Result<Option<PublicKey>, &'static str> {
    let (address, key) = text.trim_end().rsplit_once(' ').ok_or("has no address and key")?;
    let key = from_hex(key).ok_or("has no key of 64 hex digits")?;
    Ok((address == master).then_some(key))
}

#[cfg(test)]
mod tests {
    use super::super::key::SigningKey;
    use super::*;

    const MASTER: &str = "https://master.example:443";

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("hivemind-signing-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn a_signature_is_good_for_one_node_and_exactly_these_bytes() {
        let folder = folder("exact");
        let key = SigningKey::load_or_make(&folder).unwrap();
        let signing = Signing::load(&folder, MASTER, Some(key.public())).unwrap();
        let signature = key.sign("node", b"assignment");
        assert_eq!(signing.check("node", b"assignment", &signature), Ok(()));
        let mut flipped = signature.clone();
        flipped[63] ^= 1;
        for (node, assignment, signature) in [
            ("other", &b"assignment"[..], &signature[..]),
            ("node", b"assignment ", &signature),
            ("node", b"", &signature),
            ("node", b"assignment", &flipped),
            ("node", b"assignment", &signature[..63]),
            ("node", b"assignment", b""),
        ] {
            assert_eq!(signing.check(node, assignment, signature).unwrap_err().field, "signature");
        }
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn the_first_key_that_a_master_tells_is_kept_and_another_is_told_to_the_owner() {
        let folder = folder("pin");
        let mut signing = Signing::load(&folder, MASTER, None).unwrap();
        assert_eq!(signing.learn(b""), Ok(()));
        assert_eq!(signing.check("node", b"a", b""), Ok(()), "nobody signs");
        assert!(signing.learn(&[1; 31]).unwrap_err().contains("31 bytes"));
        let key = SigningKey::load_or_make(&folder).unwrap();
        signing.learn(&key.public()).unwrap();
        let mut again = Signing::load(&folder, MASTER, None).unwrap();
        for signing in [&mut signing, &mut again] {
            assert_eq!(signing.learn(&key.public()), Ok(()));
            let words = signing.learn(&[7; 32]).unwrap_err();
            assert!(words.contains(&"07".repeat(32)) && words.contains("master.pin"), "{words}");
            assert!(signing.check("node", b"a", b"").is_err());
            assert_eq!(signing.check("node", b"a", &key.sign("node", b"a")), Ok(()));
        }
        // Another master is met for the first time; the owner's word stands above all.
        let other = Signing::load(&folder, "https://other:443", None).unwrap();
        assert_eq!(other.check("node", b"a", b""), Ok(()));
        let mut named = Signing::load(&folder, MASTER, Some([7; 32])).unwrap();
        assert!(named.check("node", b"a", &key.sign("node", b"a")).is_err());
        assert!(named.learn(&key.public()).unwrap_err().contains("MASTER_SIGNING_KEY"));
        fs::write(folder.join(PIN_FILE), "https://master.example:443 00").unwrap();
        assert!(Signing::load(&folder, MASTER, None).unwrap_err().contains("64 hex digits"));
        fs::remove_dir_all(folder).unwrap();
    }
}

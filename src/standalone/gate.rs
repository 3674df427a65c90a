//! Who may speak: nonces, keys, join token and sessions. Pure but for randomness.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{ED25519, UnparsedPublicKey};

use super::fail::Fail;
use crate::grpc::Code;
use crate::node::id::Id;
use crate::rpc::schema::{NodeRegistrationRequest, RegistrationProof};
use crate::sys::text::hex;

/// How long a session lasts.
pub const SESSION_LIFE: Duration = Duration::from_secs(24 * 3_600);
/// How long a nonce waits for its proof: a slow node's two calls.
pub const NONCE_LIFE: Duration = Duration::from_secs(60);
/// Nonces under way at a time; the oldest gives way.
pub const MAX_NONCES: usize = 1_024;
/// Nodes that this master remembers: it is a small one.
pub const MAX_NODES: usize = 1_024;
/// Sessions of a node at a time: both lanes of a node that registers again may still use the one before.
pub const SESSIONS_PER_NODE: usize = 4;
/// Beginning of what a node signs.
pub const PROOF_CONTEXT: &[u8] = b"hivemind-register-v1";

const NONCE_BYTES: usize = 32;
const TOKEN_BYTES: usize = 16;
const KEY_BYTES: usize = 32;

/// Public key of a node.
pub type PublicKey = [u8; KEY_BYTES];
type Digest = [u8; 32];

struct Session {
    node: Id,
    ends: Duration,
}

/// See the module.
pub struct Gate {
    random: SystemRandom,
    join_token: Option<Digest>,
    keys: BTreeMap<Id, PublicKey>,
    nonces: VecDeque<(Vec<u8>, Duration)>,
    /// By the token's hash, so that a look-up tells nothing about a token by its time.
    sessions: HashMap<Digest, Session>,
}

/// What a checked request asks for.
pub enum Step {
    /// The first step: answer with this nonce.
    Nonce(Vec<u8>),
    /// The second step, with a right proof.
    Proved {
        /// The node.
        node: Id,
        /// Its key.
        key: PublicKey,
        /// Whether the node is new here and must be written down before it is let in.
        is_new: bool,
    },
}

impl Gate {
    /// A gate that knows these nodes.
    pub fn new(join_token: Option<&str>, keys: BTreeMap<Id, PublicKey>) -> Self {
        Self {
            random: SystemRandom::new(),
            join_token: join_token.map(|token| hash(token.as_bytes())),
            keys,
            nonces: VecDeque::new(),
            sessions: HashMap::new(),
        }
    }

    /// Nodes and their keys.
    pub fn keys(&self) -> &BTreeMap<Id, PublicKey> {
        &self.keys
    }

    /// Checks a registration; changes nothing but nonces.
    ///
    /// # Errors
    /// Names the wrong field, or says why this node may not come in.
    pub fn check(&mut self, request: &NodeRegistrationRequest, now: Duration) -> Result<Step, Fail> {
        if request.node_id.is_empty() {
            return Err(Fail::missing("node_id"));
        }
        let node = Id::parse(&request.node_id).map_err(|error| Fail::wrong("node_id", error))?;
        if request.public_key.is_empty() {
            return Err(Fail::missing("public_key"));
        }
        let key = PublicKey::try_from(request.public_key.as_slice()).map_err(|_| {
            let reason = format!("has {} bytes, must have {KEY_BYTES}", request.public_key.len());
            Fail::wrong("public_key", reason)
        })?;
        let is_welcome = self.join_token.is_none_or(|wanted| wanted == hash(request.join_token.as_bytes()));
        if !is_welcome {
            return Err(Fail::new(Code::PermissionDenied, "join_token is not the right one"));
        }
        let is_new = match self.keys.get(&node) {
            Some(known) if *known != key => {
                let message = format!("node {node} is known with another key");
                return Err(Fail::new(Code::PermissionDenied, message));
            }
            Some(_) => false,
            None if self.keys.len() >= MAX_NODES => {
                let message = format!("this master already knows {MAX_NODES} nodes");
                return Err(Fail::new(Code::ResourceExhausted, message));
            }
            None => true,
        };
        match &request.proof {
            None => Ok(Step::Nonce(self.make_nonce(now)?)),
            Some(proof) => {
                self.check_proof(proof, &node, &key, now)?;
                Ok(Step::Proved { node, key, is_new })
            }
        }
    }

    fn make_nonce(&mut self, now: Duration) -> Result<Vec<u8>, Fail> {
        let nonce = self.random_bytes::<NONCE_BYTES>()?.to_vec();
        self.nonces.retain(|(_, ends)| *ends > now);
        if self.nonces.len() >= MAX_NONCES {
            self.nonces.pop_front();
        }
        self.nonces.push_back((nonce.clone(), now.saturating_add(NONCE_LIFE)));
        Ok(nonce)
    }

    fn check_proof(
        &mut self,
        proof: &RegistrationProof,
        node: &Id,
        key: &PublicKey,
        now: Duration,
    ) -> Result<(), Fail> {
        if proof.nonce.is_empty() {
            return Err(Fail::missing("proof.nonce"));
        }
        if proof.signature.is_empty() {
            return Err(Fail::missing("proof.signature"));
        }
        let place = self.nonces.iter().position(|(nonce, _)| *nonce == proof.nonce);
        // A nonce is good for one proof, right or wrong.
        let nonce = place.and_then(|place| self.nonces.remove(place));
        let Some((nonce, _)) = nonce.filter(|(_, ends)| *ends > now) else {
            let message = "proof.nonce is not one that waits for a proof: ask for another";
            return Err(Fail::new(Code::Unauthenticated, message));
        };
        UnparsedPublicKey::new(&ED25519, key)
            .verify(&proof_text(&nonce, node.as_str(), key), &proof.signature)
            .map_err(|_| Fail::new(Code::Unauthenticated, "proof.signature does not fit nonce, id and key"))
    }

    /// Lets a proved node in and returns its token.
    ///
    /// # Errors
    /// No randomness.
    pub fn admit(&mut self, node: &Id, key: PublicKey, now: Duration) -> Result<String, Fail> {
        let token = hex(&self.random_bytes::<TOKEN_BYTES>()?);
        self.keys.insert(node.clone(), key);
        self.sessions.retain(|_, session| session.ends > now);
        let is_mine = |session: &Session| session.node == *node;
        if self.sessions.values().filter(|session| is_mine(session)).count() >= SESSIONS_PER_NODE {
            let mine = self.sessions.iter().filter(|(_, session)| is_mine(session));
            let oldest = mine.min_by_key(|(_, session)| session.ends).map(|(token, _)| *token);
            if let Some(oldest) = oldest {
                self.sessions.remove(&oldest);
            }
        }
        let session = Session { node: node.clone(), ends: now.saturating_add(SESSION_LIFE) };
        self.sessions.insert(hash(token.as_bytes()), session);
        Ok(token)
    }

    /// The node that a bearer token stands for.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` when there is no such session.
    pub fn session(&self, bearer: Option<&str>, now: Duration) -> Result<Id, Fail> {
        bearer
            .and_then(|token| self.sessions.get(&hash(token.as_bytes())))
            .filter(|session| session.ends > now)
            .map(|session| session.node.clone())
            .ok_or_else(|| Fail::new(Code::Unauthenticated, "no such session: register first"))
    }

    /// Random bytes.
    ///
    /// # Errors
    /// The system gives none.
    pub fn random_bytes<const N: usize>(&self) -> Result<[u8; N], Fail> {
        let mut bytes = [0; N];
        self.random.fill(&mut bytes).map_err(|_| Fail::new(Code::Internal, "the system gives no randomness"))?;
        Ok(bytes)
    }
}

/// What a node signs to prove that it has its key.
pub fn proof_text(nonce: &[u8], node_id: &str, public_key: &[u8]) -> Vec<u8> {
    [PROOF_CONTEXT, nonce, node_id.as_bytes(), public_key].join(&0)
}

fn hash(bytes: &[u8]) -> Digest {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, bytes).as_ref());
    hash
}

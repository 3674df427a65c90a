//! A disk that remembers which of its bytes are safe: it is told each call that changes it, as strace saw it, and shows what
//! may be left after a power loss. Of a file, what was written since its last sync may be there in any part, torn and out
//! of order; of a stream's segment only the end may be missing, as it is where a file system puts data before size; of a
//! folder, what was made, renamed and removed since its last sync is there in the order in which it happened.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File};
use std::io::Write as _;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::crash::Dice;

/// What becomes of bytes that were not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Lost,
    Kept,
    /// Each on its own, and some torn.
    Mixed,
    /// The first of them, and the last one torn.
    Cut,
}

#[derive(Clone)]
enum Change {
    Write { at: usize, bytes: Vec<u8> },
    SetLen(usize),
    Extend(usize),
}

type Names = BTreeMap<String, usize>;

/// A file or a folder.
#[derive(Clone, Default)]
struct Node {
    is_folder: bool,
    bytes: Vec<u8>,
    changes: Vec<Change>,
    names: Names,
    /// Names that come and go, each group at once.
    renamings: Vec<Vec<(String, Option<usize>)>>,
}

/// The files below a folder.
pub struct Disk {
    root: PathBuf,
    /// The first one is the root's.
    nodes: Vec<Node>,
    /// As the process sees it.
    now: BTreeMap<PathBuf, usize>,
    /// Of each descriptor: where the next write goes. `None`: at the end.
    offsets: BTreeMap<u32, Option<usize>>,
}

impl Node {
    fn apply(bytes: &mut Vec<u8>, change: &Change) {
        match change {
            Change::Write { at, bytes: new } => {
                let end = at + new.len();
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                bytes[*at..end].copy_from_slice(new);
            }
            Change::SetLen(len) => bytes.resize(*len, 0),
            Change::Extend(len) => bytes.resize((*len).max(bytes.len()), 0),
        }
    }

    fn rename(names: &mut Names, group: &[(String, Option<usize>)]) {
        for (name, node) in group {
            match node {
                Some(node) => drop(names.insert(name.clone(), *node)),
                None => drop(names.remove(name)),
            }
        }
    }

    fn sync(&mut self, changes: usize, renamings: usize) {
        for change in self.changes.drain(..changes) {
            Self::apply(&mut self.bytes, &change);
        }
        for group in self.renamings.drain(..renamings) {
            Self::rename(&mut self.names, &group);
        }
    }

    fn len_now(&self) -> usize {
        self.changes.iter().fold(self.bytes.len(), |len, change| match change {
            Change::Write { at, bytes } => len.max(at + bytes.len()),
            Change::SetLen(new) => *new,
            Change::Extend(new) => len.max(*new),
        })
    }
}

/// How much of a node a sync that begins now will make safe.
pub struct Barrier {
    node: usize,
    changes: usize,
    renamings: usize,
}

impl Disk {
    /// An empty folder, which is safe itself.
    pub fn new(root: &Path) -> Self {
        let node = Node { is_folder: true, ..Node::default() };
        let now = BTreeMap::from([(root.to_owned(), 0)]);
        Self { root: root.to_owned(), nodes: vec![node], now, offsets: BTreeMap::new() }
    }

    fn link(&mut self, path: &Path, node: Option<usize>) -> Option<(usize, (String, Option<usize>))> {
        let folder = *self.now.get(path.parent()?)?;
        match node {
            Some(node) => self.now.insert(path.to_owned(), node),
            None => self.now.remove(path),
        };
        Some((folder, (path.file_name()?.to_str()?.to_owned(), node)))
    }

    fn make(&mut self, path: &Path, is_folder: bool) {
        if self.now.contains_key(path) || !path.starts_with(&self.root) {
            return;
        }
        self.nodes.push(Node { is_folder, ..Node::default() });
        if let Some((folder, entry)) = self.link(path, Some(self.nodes.len() - 1)) {
            self.nodes[folder].renamings.push(vec![entry]);
        }
    }

    pub fn opened(&mut self, fd: u32, path: &Path, flags: &str) {
        if flags.contains("O_CREAT") {
            self.make(path, false);
        }
        if flags.contains("O_TRUNC") {
            self.set_len(path, 0);
        }
        self.offsets.insert(fd, (!flags.contains("O_APPEND")).then_some(0));
    }

    pub fn made_folder(&mut self, path: &Path) {
        self.make(path, true);
    }

    pub fn wrote(&mut self, fd: u32, path: &Path, at: Option<usize>, bytes: Vec<u8>) {
        let Some(node) = self.now.get(path).map(|node| &mut self.nodes[*node]) else { return };
        let offset = self.offsets.entry(fd).or_insert(Some(0));
        let at = at.unwrap_or_else(|| match offset {
            Some(offset) => {
                let at = *offset;
                *offset += bytes.len();
                at
            }
            None => node.len_now(),
        });
        node.changes.push(Change::Write { at, bytes });
    }

    pub fn set_len(&mut self, path: &Path, len: usize) {
        if let Some(node) = self.now.get(path) {
            self.nodes[*node].changes.push(Change::SetLen(len));
        }
    }

    pub fn allocated(&mut self, path: &Path, len: usize) {
        if let Some(node) = self.now.get(path) {
            self.nodes[*node].changes.push(Change::Extend(len));
        }
    }

    pub fn renamed(&mut self, from: &Path, to: &Path) {
        let Some(node) = self.now.get(from).copied() else { return };
        let below: Vec<_> = self.now.range(from.to_owned()..).filter(|(path, _)| path.starts_with(from)).collect();
        let below: Vec<_> = below.into_iter().map(|(path, node)| (path.clone(), *node)).collect();
        for (path, node) in below {
            self.now.remove(&path);
            self.now.insert(to.join(path.strip_prefix(from).unwrap()), node);
        }
        let gone = self.link(from, None).unwrap();
        let come = self.link(to, Some(node)).unwrap();
        if gone.0 == come.0 {
            self.nodes[gone.0].renamings.push(vec![gone.1, come.1]);
        } else {
            self.nodes[gone.0].renamings.push(vec![gone.1]);
            self.nodes[come.0].renamings.push(vec![come.1]);
        }
    }

    pub fn removed(&mut self, path: &Path) {
        if self.now.contains_key(path)
            && let Some((folder, entry)) = self.link(path, None)
        {
            self.nodes[folder].renamings.push(vec![entry]);
        }
    }

    pub fn sync_begins(&self, path: &Path) -> Option<Barrier> {
        let node = *self.now.get(path)?;
        let Node { changes, renamings, .. } = &self.nodes[node];
        Some(Barrier { node, changes: changes.len(), renamings: renamings.len() })
    }

    pub fn synced(&mut self, barrier: &Barrier) {
        let node = &mut self.nodes[barrier.node];
        node.sync(barrier.changes.min(node.changes.len()), barrier.renamings.min(node.renamings.len()));
    }

    /// What the process sees of a file; nothing where there is none.
    pub fn now(&self, path: &Path) -> Vec<u8> {
        let Some(node) = self.now.get(path) else { return Vec::new() };
        Self::content(&self.nodes[*node], Fate::Kept, &mut Dice(1))
    }

    /// Makes what is left after a power loss, at `to`.
    pub fn crash(&self, to: &Path, fate: Fate, dice: &mut Dice) {
        self.restore(0, to, fate, dice);
    }

    fn restore(&self, node: usize, to: &Path, fate: Fate, dice: &mut Dice) {
        let node = &self.nodes[node];
        if !node.is_folder {
            return File::create(to).unwrap().write_all(&Self::content(node, fate, dice)).unwrap();
        }
        DirBuilder::new().mode(0o700).create(to).unwrap();
        let kept = match fate {
            Fate::Lost => 0,
            Fate::Kept => node.renamings.len(),
            Fate::Mixed | Fate::Cut => usize::try_from(dice.roll(node.renamings.len() as u64 + 1)).unwrap(),
        };
        let mut names = node.names.clone();
        node.renamings[..kept].iter().for_each(|group| Node::rename(&mut names, group));
        for (name, node) in names {
            // What is in memory only, and made anew by the next start.
            if !name.ends_with("-shm") {
                let fate = if fate == Fate::Mixed && name.ends_with(".seg") { Fate::Cut } else { fate };
                self.restore(node, &to.join(name), fate, dice);
            }
        }
    }

    fn content(node: &Node, fate: Fate, dice: &mut Dice) -> Vec<u8> {
        let mut bytes = node.bytes.clone();
        let cut = if fate == Fate::Cut { dice.roll(node.changes.len() as u64 + 1) } else { 0 };
        for (number, change) in (0..).zip(&node.changes) {
            match (fate, change) {
                (Fate::Cut, change) if number < cut => Node::apply(&mut bytes, change),
                (Fate::Cut, Change::Write { at, bytes: new }) if number == cut => {
                    let len = usize::try_from(dice.roll(new.len() as u64 + 1)).unwrap();
                    Node::apply(&mut bytes, &Change::Write { at: *at, bytes: new[..len].to_vec() });
                }
                (Fate::Kept, change) => Node::apply(&mut bytes, change),
                (Fate::Mixed, Change::Write { at, bytes: new }) => {
                    let len = match dice.roll(4) {
                        0 => 0,
                        1 => usize::try_from(dice.roll(new.len() as u64 + 1)).unwrap(),
                        _ => new.len(),
                    };
                    Node::apply(&mut bytes, &Change::Write { at: *at, bytes: new[..len].to_vec() });
                }
                (Fate::Mixed, change) if dice.roll(2) == 0 => Node::apply(&mut bytes, change),
                (Fate::Lost | Fate::Mixed | Fate::Cut, _) => {}
            }
        }
        bytes
    }
}

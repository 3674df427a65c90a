//! A disk that remembers which of its bytes are safe: it is told each call that changes it, as strace saw it, and shows what
//! may be left after a power loss. Of a file, what was written since its last sync may be there in any part, torn and out
//! of order. Of a stream's segment either only the end is missing, as it is where a file system puts data before size; or
//! its size and its attributes come back, in the order in which they changed, up to some moment, and of its bytes any
//! part, the rest being zeros or what another file had there: size before data. Of a folder, what was made, renamed and
//! removed since its last sync is there in the order in which it happened.

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
    /// As [`Self::Mixed`], but the size of a segment comes before its data.
    Holes,
}

#[derive(Clone)]
enum Change {
    Write { at: usize, bytes: Vec<u8> },
    SetLen(usize),
    Extend(usize),
    Attribute(String, Option<Vec<u8>>),
}

/// What a file holds.
#[derive(Clone, Default)]
struct Content {
    bytes: Vec<u8>,
    attributes: BTreeMap<String, Vec<u8>>,
}

type Names = BTreeMap<String, usize>;

/// A file or a folder.
#[derive(Clone, Default)]
struct Node {
    is_folder: bool,
    content: Content,
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

impl Content {
    fn apply(&mut self, change: &Change) {
        let Self { bytes, attributes } = self;
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
            Change::Attribute(name, Some(value)) => drop(attributes.insert(name.clone(), value.clone())),
            Change::Attribute(name, None) => drop(attributes.remove(name)),
        }
    }

    fn write(self, to: &Path) {
        File::create(to).unwrap().write_all(&self.bytes).unwrap();
        for (name, value) in self.attributes {
            rustix::fs::setxattr(to, name, &value, rustix::fs::XattrFlags::empty()).unwrap();
        }
    }
}

impl Node {
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
            self.content.apply(&change);
        }
        for group in self.renamings.drain(..renamings) {
            Self::rename(&mut self.names, &group);
        }
    }

    fn len_now(&self) -> usize {
        self.changes.iter().fold(self.content.bytes.len(), |len, change| match change {
            Change::Write { at, bytes } => len.max(at + bytes.len()),
            Change::SetLen(new) => *new,
            Change::Extend(new) => len.max(*new),
            Change::Attribute(..) => len,
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

    pub fn set_attribute(&mut self, path: &Path, name: String, value: Option<Vec<u8>>) {
        if let Some(node) = self.now.get(path) {
            self.nodes[*node].changes.push(Change::Attribute(name, value));
        }
    }

    /// How much of a file is safe.
    pub fn synced_len(&self, path: &Path) -> usize {
        self.now.get(path).map_or(0, |node| self.nodes[*node].content.bytes.len())
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
        self.content(&self.nodes[*node], Fate::Kept, &mut Dice(1)).bytes
    }

    /// Makes what is left after a power loss, at `to`.
    pub fn crash(&self, to: &Path, fate: Fate, dice: &mut Dice) {
        self.restore(0, to, fate, dice);
    }

    fn restore(&self, node: usize, to: &Path, fate: Fate, dice: &mut Dice) {
        let node = &self.nodes[node];
        if !node.is_folder {
            return self.content(node, fate, dice).write(to);
        }
        DirBuilder::new().mode(0o700).create(to).unwrap();
        let kept = match fate {
            Fate::Lost => 0,
            Fate::Kept => node.renamings.len(),
            Fate::Mixed | Fate::Cut | Fate::Holes => {
                usize::try_from(dice.roll(node.renamings.len() as u64 + 1)).unwrap()
            }
        };
        let mut names = node.names.clone();
        node.renamings[..kept].iter().for_each(|group| Node::rename(&mut names, group));
        for (name, node) in names {
            // What is in memory only, and made anew by the next start.
            if !name.ends_with("-shm") {
                let is_segment = name.ends_with(".seg");
                let fate = match fate {
                    Fate::Mixed if is_segment => Fate::Cut,
                    Fate::Holes if !is_segment && !self.nodes[node].is_folder => Fate::Mixed,
                    fate => fate,
                };
                self.restore(node, &to.join(name), fate, dice);
            }
        }
    }

    fn content(&self, node: &Node, fate: Fate, dice: &mut Dice) -> Content {
        let mut content = node.content.clone();
        let is_cut = matches!(fate, Fate::Cut | Fate::Holes);
        let cut = if is_cut { dice.roll(node.changes.len() as u64 + 1) } else { 0 };
        for (number, change) in (0..).zip(&node.changes) {
            match (fate, change) {
                (Fate::Holes, Change::Write { at, bytes: new }) if number < cut => {
                    let part = self.after_size(new, dice);
                    content.apply(&Change::Write { at: *at, bytes: part });
                }
                (Fate::Cut | Fate::Holes, change) if number < cut => content.apply(change),
                (Fate::Cut, Change::Write { at, bytes: new }) if number == cut => {
                    let len = usize::try_from(dice.roll(new.len() as u64 + 1)).unwrap();
                    content.apply(&Change::Write { at: *at, bytes: new[..len].to_vec() });
                }
                (Fate::Kept, change) => content.apply(change),
                (Fate::Mixed, Change::Write { at, bytes: new }) => {
                    let len = match dice.roll(4) {
                        0 => 0,
                        1 => usize::try_from(dice.roll(new.len() as u64 + 1)).unwrap(),
                        _ => new.len(),
                    };
                    content.apply(&Change::Write { at: *at, bytes: new[..len].to_vec() });
                }
                (Fate::Mixed, change) if dice.roll(2) == 0 => content.apply(change),
                (Fate::Lost | Fate::Mixed | Fate::Cut | Fate::Holes, _) => {}
            }
        }
        content
    }

    /// What is in the place of bytes that the size covers already: they, zeros, or what another file had there.
    fn after_size(&self, new: &[u8], dice: &mut Dice) -> Vec<u8> {
        let other = &self.nodes[usize::try_from(dice.roll(self.nodes.len() as u64)).unwrap()].content.bytes;
        match dice.roll(4) {
            0 => vec![0; new.len()],
            1 => other.iter().copied().chain(std::iter::repeat(0)).take(new.len()).collect(),
            2 => {
                let len = usize::try_from(dice.roll(new.len() as u64 + 1)).unwrap();
                [&new[..len], &vec![0; new.len() - len]].concat()
            }
            _ => new.to_vec(),
        }
    }
}

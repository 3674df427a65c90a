//! A map from stream identifiers. They ascend and few are open at once, so a sorted array beats a tree: a new one goes to
//! the end, and the one that is asked for is mostly the last.

use super::connection::StreamId;

/// See the module.
#[derive(Debug)]
pub(crate) struct IdMap<T>(Vec<(StreamId, T)>);

impl<T> Default for IdMap<T> {
    fn default() -> IdMap<T> {
        IdMap(Vec::new())
    }
}

impl<T> IdMap<T> {
    fn place(&self, id: StreamId) -> Result<usize, usize> {
        match self.0.last() {
            Some((last, _)) if *last == id => Ok(self.0.len() - 1),
            Some((last, _)) if *last < id => Err(self.0.len()),
            _ => self.0.binary_search_by_key(&id, |(id, _)| *id),
        }
    }

    pub(crate) fn get(&self, id: StreamId) -> Option<&T> {
        self.0.get(self.place(id).ok()?).map(|(_, value)| value)
    }

    pub(crate) fn get_mut(&mut self, id: StreamId) -> Option<&mut T> {
        let place = self.place(id).ok()?;
        self.0.get_mut(place).map(|(_, value)| value)
    }

    pub(crate) fn contains(&self, id: StreamId) -> bool {
        self.place(id).is_ok()
    }

    /// Replaces what was there.
    pub(crate) fn insert(&mut self, id: StreamId, value: T) {
        match self.place(id) {
            Ok(place) => {
                if let Some(entry) = self.0.get_mut(place) {
                    entry.1 = value;
                }
            }
            Err(place) => self.0.insert(place, (id, value)),
        }
    }

    pub(crate) fn remove(&mut self, id: StreamId) -> Option<T> {
        let place = self.place(id).ok()?;
        Some(self.0.remove(place).1)
    }

    pub(crate) fn retain(&mut self, mut keep: impl FnMut(StreamId, &T) -> bool) {
        self.0.retain(|(id, value)| keep(*id, value));
    }

    /// Takes off those from `id` on.
    pub(crate) fn split_off(&mut self, id: StreamId) -> Vec<(StreamId, T)> {
        let place = self.place(id).unwrap_or_else(|place| place);
        self.0.split_off(place)
    }

    /// All, in a round that begins behind `id`.
    pub(crate) fn round(&self, id: StreamId) -> impl Iterator<Item = (StreamId, &T)> {
        let place = self.place(id).map_or_else(|place| place, |place| place + 1);
        let (before, after) = self.0.split_at_checked(place).unwrap_or_default();
        after.iter().chain(before).map(|(id, value)| (*id, value))
    }

    /// By ascending identifier.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (StreamId, &T)> {
        self.0.iter().map(|(id, value)| (*id, value))
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|(_, value)| value)
    }

    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.0.iter_mut().map(|(_, value)| value)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

impl<T> IntoIterator for IdMap<T> {
    type Item = (StreamId, T);
    type IntoIter = std::vec::IntoIter<(StreamId, T)>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Against the standard library's map, over many steps in a fixed disorder.
    #[test]
    fn behaves_as_a_sorted_map() {
        let (mut ours, mut theirs) = (IdMap::default(), BTreeMap::new());
        let mut seed = 7u32;
        for step in 0..20_000u32 {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let id = (seed >> 16) % 40;
            match seed >> 28 {
                0..=6 => {
                    ours.insert(id, step);
                    theirs.insert(id, step);
                }
                7..=12 => assert_eq!(ours.remove(id), theirs.remove(&id)),
                13 => assert!(ours.split_off(id).into_iter().eq(theirs.split_off(&id))),
                14 => {
                    ours.retain(|id, _| id % 3 != 0);
                    theirs.retain(|id, _| id % 3 != 0);
                }
                _ => {}
            }
            assert_eq!((ours.get(id), ours.contains(id)), (theirs.get(&id), theirs.contains_key(&id)));
            assert_eq!((ours.len(), ours.is_empty()), (theirs.len(), theirs.is_empty()));
            let round = theirs.range(id + 1..).chain(theirs.range(..=id)).map(|(id, value)| (*id, value));
            assert!(ours.round(id).eq(round));
        }
    }
}

//! The static and the dynamic table (RFC 7541 section 2.3 and appendix A).

use std::collections::VecDeque;

use super::octets::Octets;

/// What an entry costs beside its bytes (RFC 7541 section 4.1).
const ENTRY_OVERHEAD: usize = 32;

/// The size of an entry (RFC 7541 section 4.1).
pub fn entry_size(name: &[u8], value: &[u8]) -> usize {
    name.len() + value.len() + ENTRY_OVERHEAD
}

/// A match of a field in the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Match {
    /// Name and value.
    Field(usize),
    /// The name only.
    Name(usize),
}

/// Both tables in their one index space (RFC 7541 section 2.3.3). The newest dynamic entry is at the front.
#[derive(Debug)]
pub struct Table {
    /// Shared octets.
    entries: VecDeque<(Octets, Octets)>,
    size: usize,
    max_size: usize,
}

impl Table {
    /// Tables whose dynamic part holds at most `max_size`.
    pub fn new(max_size: usize) -> Table {
        Table { entries: VecDeque::new(), size: 0, max_size }
    }

    /// The present bound of the dynamic part.
    pub fn max_size(&self) -> usize {
        self.max_size
    }

    /// Changes the bound and evicts what no longer fits (RFC 7541 section 4.3).
    pub fn set_max_size(&mut self, max_size: usize) {
        self.max_size = max_size;
        self.evict_to(max_size);
    }

    /// The entry of an index, which starts at 1.
    pub fn entry(&self, index: usize) -> Option<(Octets, Octets)> {
        let index = index.checked_sub(1)?;
        if let Some((name, value)) = STATIC.get(index) {
            return Some((Octets::Static(name), Octets::Static(value)));
        }
        self.entries.get(index - STATIC.len()).cloned()
    }

    /// Adds a field; one that is larger than the table empties it (RFC 7541 section 4.4).
    pub fn insert(&mut self, name: Octets, value: Octets) {
        let size = entry_size(&name, &value);
        self.evict_to(self.max_size.saturating_sub(size));
        if size <= self.max_size {
            self.size += size;
            self.entries.push_front((name.into_shared(), value.into_shared()));
        }
    }

    /// Looks a field up for the encoder. The dynamic part comes first: it is short, and has most fields that repeat.
    pub fn find(&self, name: &[u8], value: &[u8]) -> Option<Match> {
        let mut by_name = None;
        for (i, (_, v)) in self.entries.iter().enumerate().filter(|(_, (n, _))| *n == *name) {
            let index = STATIC.len() + i + 1;
            if **v == *value {
                return Some(Match::Field(index));
            }
            by_name = by_name.or(Some(Match::Name(index)));
        }
        for (i, (_, v)) in STATIC.iter().enumerate().filter(|(_, (n, _))| *n == name) {
            if *v == value {
                return Some(Match::Field(i + 1));
            }
            // Its index is shorter.
            by_name = by_name.filter(|found| matches!(found, Match::Name(index) if *index <= STATIC.len()));
            by_name = by_name.or(Some(Match::Name(i + 1)));
        }
        by_name
    }

    fn evict_to(&mut self, limit: usize) {
        while self.size > limit {
            let Some((name, value)) = self.entries.pop_back() else {
                return;
            };
            self.size -= entry_size(&name, &value);
        }
    }
}

/// RFC 7541 appendix A, from index 1.
#[rustfmt::skip]
const STATIC: [(&[u8], &[u8]); 61] = [
    (b":authority", b""),
    (b":method", b"GET"),
    (b":method", b"POST"),
    (b":path", b"/"),
    (b":path", b"/index.html"),
    (b":scheme", b"http"),
    (b":scheme", b"https"),
    (b":status", b"200"),
    (b":status", b"204"),
    (b":status", b"206"),
    (b":status", b"304"),
    (b":status", b"400"),
    (b":status", b"404"),
    (b":status", b"500"),
    (b"accept-charset", b""),
    (b"accept-encoding", b"gzip, deflate"),
    (b"accept-language", b""),
    (b"accept-ranges", b""),
    (b"accept", b""),
    (b"access-control-allow-origin", b""),
    (b"age", b""),
    (b"allow", b""),
    (b"authorization", b""),
    (b"cache-control", b""),
    (b"content-disposition", b""),
    (b"content-encoding", b""),
    (b"content-language", b""),
    (b"content-length", b""),
    (b"content-location", b""),
    (b"content-range", b""),
    (b"content-type", b""),
    (b"cookie", b""),
    (b"date", b""),
    (b"etag", b""),
    (b"expect", b""),
    (b"expires", b""),
    (b"from", b""),
    (b"host", b""),
    (b"if-match", b""),
    (b"if-modified-since", b""),
    (b"if-none-match", b""),
    (b"if-range", b""),
    (b"if-unmodified-since", b""),
    (b"last-modified", b""),
    (b"link", b""),
    (b"location", b""),
    (b"max-forwards", b""),
    (b"proxy-authenticate", b""),
    (b"proxy-authorization", b""),
    (b"range", b""),
    (b"referer", b""),
    (b"refresh", b""),
    (b"retry-after", b""),
    (b"server", b""),
    (b"set-cookie", b""),
    (b"strict-transport-security", b""),
    (b"transfer-encoding", b""),
    (b"user-agent", b""),
    (b"vary", b""),
    (b"via", b""),
    (b"www-authenticate", b""),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_start_at_one_and_run_into_the_dynamic_part() {
        let mut table = Table::new(100);
        assert_eq!(table.entry(0), None);
        assert_eq!(table.entry(1), Some((b":authority".into(), b"".into())));
        assert_eq!(table.entry(61), Some((b"www-authenticate".into(), b"".into())));
        assert_eq!(table.entry(62), None);
        table.insert(b"a".into(), b"1".into());
        table.insert(b"b".into(), b"2".into());
        assert_eq!(table.entry(62), Some((b"b".into(), b"2".into())));
        table.insert(b"c".into(), b"3".into());
        assert_eq!(table.entry(64), None, "three entries of 34 do not fit into 100");
        assert_eq!(table.find(b"b", b"x"), Some(Match::Name(63)));
        table.insert(vec![b'n'; 100].into(), Vec::new().into());
        assert_eq!(table.entry(62), None, "a field larger than the table empties it");
    }
}

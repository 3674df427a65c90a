//! Finds the word that was probably meant.

/// Longest word that is compared; a longer one is a mistake of another kind.
const MAX_WORD: usize = 64;

/// The candidate with the fewest changed letters, when it is near enough to be a slip of the finger.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word: Vec<char> = word.to_lowercase().chars().collect();
    if word.len() > MAX_WORD {
        return None;
    }
    candidates
        .into_iter()
        .map(|candidate| {
            let letters: Vec<char> = candidate.to_lowercase().chars().collect();
            (distance(&word, &letters), letters.len(), candidate)
        })
        .filter(|(distance, len, _)| *distance <= (word.len().max(*len) / 2).max(1))
        .min_by_key(|(distance, _, _)| *distance)
        .map(|(_, _, candidate)| candidate)
}

/// Letters to add, drop or replace; rows of the usual table, one at a time.
fn distance(from: &[char], to: &[char]) -> usize {
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_word_that_was_meant() {
        let words = ["MASTER_NODE_URL", "MASTER_GRPC_URL", "NODE_ID", "LOG_LEVEL"];
        assert_eq!(nearest("MASTER_NOD_URL", words), Some("MASTER_NODE_URL"));
        assert_eq!(nearest("log_levle", words), Some("LOG_LEVEL"));
        assert_eq!(nearest("NODEID", words), Some("NODE_ID"));
        assert_eq!(nearest("zebra", words), None);
        assert_eq!(nearest(&"N".repeat(10_000), words), None);
    }
}

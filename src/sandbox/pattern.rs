//! Output patterns over paths, a component at a time: a task names its files, and must not be able to make the match of
//! one cost more than its length allows.
//!
//! `glob` matches a component; `**` over components is matched here, by a table. A pattern with many `*` in one component
//! is what makes a matcher that tries again and again slow, so their number is bounded (`node::spec` refuses more).

use glob::{MatchOptions, Pattern};

const OPTIONS: MatchOptions =
    MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: false };

/// A pattern such as `output/**` or `logs/*.txt`.
#[derive(Clone, Debug)]
pub struct PathPattern(Vec<Part>);

#[derive(Clone, Debug)]
enum Part {
    /// `**`: any number of components; at the end at least one.
    Any,
    One(Pattern),
}

impl PathPattern {
    /// `None` where a component is no pattern; `node::spec` has refused such a task.
    pub fn parse(text: &str) -> Option<Self> {
        let part = |part: &str| match part {
            "**" => Some(Part::Any),
            part => Pattern::new(part).ok().map(Part::One),
        };
        text.split('/').map(part).collect::<Option<Vec<Part>>>().map(Self)
    }

    /// Whether the path, with `/` between its components, is one of those meant.
    pub fn matches(&self, path: &str) -> bool {
        // reached[i]: the first i parts can have matched the components so far.
        let mut reached = vec![false; self.0.len() + 1];
        reached[0] = true;
        for component in path.split('/') {
            let mut next = vec![false; reached.len()];
            for (index, part) in self.0.iter().enumerate() {
                let can_stand_here = reached[index];
                match part {
                    Part::Any => {
                        // Takes this component and stays. One at the end is done only behind a component of its own.
                        let is_last = index + 1 == self.0.len();
                        next[index + 1] |= can_stand_here || (next[index] && !is_last);
                        next[index] |= can_stand_here;
                    }
                    Part::One(pattern) if can_stand_here || self.is_skipped_to(index, &reached) => {
                        next[index + 1] |= pattern.matches_with(component, OPTIONS);
                    }
                    Part::One(_) => {}
                }
            }
            reached = next;
        }
        reached.last().copied().unwrap_or(false)
    }

    /// Whether only `**` parts, which may stand for nothing, are between a reached place and this part.
    fn is_skipped_to(&self, index: usize, reached: &[bool]) -> bool {
        let before = self.0[..index].iter().rposition(|part| matches!(part, Part::One(_))).map_or(0, |at| at + 1);
        reached[before..index].contains(&true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, path: &str) -> bool {
        PathPattern::parse(pattern).unwrap().matches(path)
    }

    #[test]
    fn means_what_gitignore_and_the_shell_mean() {
        let table = [
            ("output/**", "output/a", true),
            ("output/**", "output/a/b/c", true),
            ("output/**", "output", false),
            ("output/**", "outputs/a", false),
            ("output/*", "output/a", true),
            ("output/*", "output/a/b", false),
            ("*.txt", "a.txt", true),
            ("*.txt", "d/a.txt", false),
            ("**/*.txt", "a.txt", true),
            ("**/*.txt", "d/e/a.txt", true),
            ("**/*.txt", "d/e/a.csv", false),
            ("a/**/z", "a/z", true),
            ("a/**/z", "a/b/c/z", true),
            ("a/**/z", "a/b/c", false),
            ("a/**/**/z", "a/z", true),
            ("a/**/m/**/z", "a/1/m/2/3/z", true),
            ("a/**/m/**/z", "a/1/2/3/z", false),
            ("**", "a", true),
            ("**", "a/b", true),
            ("run-?/[ab]", "run-1/b", true),
            ("run-?/[ab]", "run-10/b", false),
            (".hidden", ".hidden", true),
            ("*", ".hidden", true),
        ];
        for (pattern, path, expected) in table {
            assert_eq!(matches(pattern, path), expected, "{pattern} {path}");
        }
    }

    #[test]
    fn the_worst_pattern_and_name_that_are_taken_cost_little() {
        // At most four stars in a component are taken; a name has at most 255 bytes.
        let pattern = PathPattern::parse("**/*a*a*a*b/**/*a*a*a*b").unwrap();
        let path = vec!["a".repeat(255); 4].join("/");
        let start = std::time::Instant::now();
        assert!(!pattern.matches(&path));
        // Some hundred times what it takes here, and far from for ever.
        assert!(start.elapsed() < std::time::Duration::from_secs(20));
    }
}

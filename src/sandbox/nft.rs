//! The program `nft`, which speaks to the kernel's firewall for us. It gets the rules on its standard input.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::firewall::removal;
use crate::sys::process;

/// Where distributions put it. Not looked for in PATH: what stands there first may be anybody's.
const PLACES: [&str; 4] = ["/usr/sbin/nft", "/sbin/nft", "/usr/bin/nft", "/usr/local/sbin/nft"];
/// It takes milliseconds; a small board that swaps takes longer.
const DEADLINE: Duration = Duration::from_secs(10);
/// Of its complaint so much is repeated.
const MAX_WORDS: usize = 300;

/// The program, where it is installed.
pub fn find() -> Option<PathBuf> {
    PLACES.iter().map(PathBuf::from).find(|path| path.is_file())
}

/// One program at one place.
#[derive(Clone, Debug)]
pub struct Nft(pub PathBuf);

impl Nft {
    /// Carries out these commands, all of them or none.
    ///
    /// # Errors
    /// What the program complains about.
    pub fn apply(&self, commands: String) -> Result<(), String> {
        run(&self.0, &["-f", "-"], commands.into_bytes()).map(drop)
    }

    /// A table as JSON; `None` where there is none.
    ///
    /// # Errors
    /// What the program complains about.
    pub fn list(&self, table: &str) -> Result<Option<String>, String> {
        match run(&self.0, &["-j", "list", "table", "inet", table], Vec::new()) {
            Ok(listing) => Ok(Some(listing)),
            Err(problem) if problem.contains("No such file or directory") => Ok(None),
            Err(problem) => Err(problem),
        }
    }

    /// Removes a table, where it is.
    ///
    /// # Errors
    /// What the program complains about.
    pub fn remove(&self, table: &str) -> Result<(), String> {
        self.apply(removal(table))
    }
}

fn run(program: &Path, args: &[&str], input: Vec<u8>) -> Result<String, String> {
    let failed = |error: io::Error| format!("{} {}: {error}", program.display(), args.join(" "));
    let ended = process::run(program, args, input, DEADLINE).map_err(failed)?;
    if ended.status.success() {
        return String::from_utf8(ended.stdout).map_err(|error| failed(io::Error::other(error)));
    }
    let words = String::from_utf8_lossy(&ended.stderr);
    let words: String = words.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(MAX_WORDS).collect();
    Err(failed(io::Error::other(words)))
}

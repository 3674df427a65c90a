//! Runtimes: the programs by which an engine makes a container, each under the engine's own name for it, such as `runc`,
//! `runsc`, `kata` or `nvidia`.
//!
//! A task that names none has the engine's default. Which others a task may name is the owner's word, since a runtime
//! decides how far a container is from the machine. `runc` is no exception: where the default is another one, it was
//! chosen for a reason.

use super::id::Id;

/// What the owner lets tasks name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Runtimes {
    /// These.
    Only(Vec<Id>),
    /// For who leaves it to the node to judge.
    Any,
}

impl Default for Runtimes {
    fn default() -> Self {
        Self::Only(Vec::new())
    }
}

impl Runtimes {
    /// Whether a task may name this one.
    pub fn has(&self, name: &Id) -> bool {
        match self {
            Self::Only(list) => list.contains(name),
            Self::Any => true,
        }
    }
}

/// Whether the engine has what a task names.
///
/// # Errors
/// What it has in its place.
pub fn check_known(wanted: Option<&Id>, known: &[String]) -> Result<(), String> {
    match wanted {
        Some(name) if !known.iter().any(|one| one == name.as_str()) => {
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            Err(format!("runtime is {name}, which the engine of this node does not know; it knows {known}"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_owner_lists_may_be_named_and_only_what_the_engine_has_be_used() {
        let id = |name: &str| Id::parse(name).unwrap();
        let list = Runtimes::Only(vec![id("runsc"), id("nvidia")]);
        assert!(list.has(&id("runsc")) && list.has(&id("nvidia")));
        assert!(!list.has(&id("runc")) && !list.has(&id("RUNSC")) && !Runtimes::default().has(&id("runc")));
        let known = ["runc".to_owned(), "runsc".to_owned()];
        assert_eq!(check_known(None, &known), Ok(()));
        assert_eq!(check_known(Some(&id("runsc")), &known), Ok(()));
        let words = check_known(Some(&id("nvidia")), &known).unwrap_err();
        assert_eq!(words, "runtime is nvidia, which the engine of this node does not know; it knows runc, runsc");
    }
}

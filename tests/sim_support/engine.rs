//! The engine: one container an attempt, by its name. It survives the worker, may be away, and its own restart may end
//! what runs. A task named `endless-…` ends only when it is stopped.

use std::collections::BTreeMap;

use hivemind_worker::node::id::AttemptKey;

use super::dice::Dice;
use super::ledger::Ledger;
use super::store::Disk;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Container {
    Created,
    Running,
    Paused,
    Exited(i64),
}

/// The engine does not answer.
#[derive(Debug)]
pub struct Away;

#[derive(Default)]
pub struct Engine {
    pub is_away: bool,
    /// Its event streams end with each.
    pub lives: u64,
    pub containers: BTreeMap<AttemptKey, Container>,
}

impl Engine {
    fn answer(&self) -> Result<(), Away> {
        if self.is_away { Err(Away) } else { Ok(()) }
    }

    pub fn inspect(&self, key: &AttemptKey) -> Result<Option<Container>, Away> {
        self.answer().map(|()| self.containers.get(key).copied())
    }

    /// One of that name that is there already stays as it is.
    pub fn create(&mut self, key: &AttemptKey) -> Result<(), Away> {
        self.answer()?;
        self.containers.entry(key.clone()).or_insert(Container::Created);
        Ok(())
    }

    /// Of one that runs already the engine says so (304), which is done too. False: there is none.
    pub fn start(&mut self, key: &AttemptKey, ledger: &mut Ledger, disk: &Disk) -> Result<bool, Away> {
        self.answer()?;
        let Some(container) = self.containers.get_mut(key) else { return Ok(false) };
        if !matches!(container, Container::Running | Container::Paused) {
            ledger.note_start(key, disk);
            *container = Container::Running;
        }
        Ok(true)
    }

    pub fn set_paused(&mut self, key: &AttemptKey, is_paused: bool) -> Result<(), Away> {
        self.answer()?;
        match self.containers.get_mut(key) {
            Some(container @ Container::Running) if is_paused => *container = Container::Paused,
            Some(container @ Container::Paused) if !is_paused => *container = Container::Running,
            _ => {}
        }
        Ok(())
    }

    pub fn kill(&mut self, key: &AttemptKey) -> Result<(), Away> {
        self.answer()?;
        if let Some(container @ (Container::Running | Container::Paused)) = self.containers.get_mut(key) {
            *container = Container::Exited(137);
        }
        Ok(())
    }

    /// I3: the container is the only other place that knows the result, so the report must be durable before it goes.
    pub fn remove(&mut self, key: &AttemptKey, disk: &Disk) -> Result<(), Away> {
        self.answer()?;
        if self.containers.contains_key(key) {
            let is_owed = disk.duties.contains_key(key) && !disk.is_ended(key);
            assert!(!is_owed, "I3: the container of {key} is removed before its end is recorded");
        }
        self.containers.remove(key);
        Ok(())
    }

    /// A program comes to its end.
    pub fn work(&mut self, dice: &mut Dice) {
        let is_able = |(key, container): &(&AttemptKey, &Container)| {
            **container == Container::Running && !key.task.as_str().starts_with("endless")
        };
        let able: Vec<AttemptKey> = self.containers.iter().filter(is_able).map(|(key, _)| key.clone()).collect();
        if let Some(key) = dice.pick(&able) {
            let code = dice.pick(&[0, 0, 0, 1, 137]).unwrap();
            self.containers.insert(key, Container::Exited(code));
        }
    }

    /// The engine was killed without live-restore, or the machine went down.
    pub fn kill_all(&mut self) {
        self.lives += 1;
        for container in self.containers.values_mut() {
            if matches!(container, Container::Running | Container::Paused) {
                *container = Container::Exited(137);
            }
        }
    }
}

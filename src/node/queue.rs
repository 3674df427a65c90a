//! Who starts next. Pure: from what waits, what runs and what is lent, at one moment.
//!
//! - **Priority ages.** Each point of priority is worth [`POINT`] of waiting, so that the highest begins an hour ahead of
//!   the lowest, and whatever waits comes first in the end.
//! - **Owners share.** What an owner's tasks were given of late counts against the owner's next one: [`TURN`] for each
//!   start, half of it after each [`HALF_LIFE`]. An owner that waits is charged nothing, so this too starves nobody.
//! - **The first in line stays first** until it starts, once it has waited for [`SETTLED`]. Otherwise what it waits for
//!   would go to others whenever a charge has faded, and the machine would half empty itself for it again and again.
//! - **Gaps are filled, at nobody's cost.** Where the first in line does not fit yet, another may start that does: one that
//!   has ended when there is room for the first, by the time limits of all that run, or that leaves the first its room
//!   even then. Time for images and inputs is in no limit: whoever has been waiting for [`PATIENCE`] is overtaken no more.
//! - What is larger than all that is lent, since that has become less, holds up nobody.

use std::collections::BTreeMap;
use std::time::Duration;

use super::id::{AttemptKey, Id};
use super::resources::Resources;

/// Waiting that is worth a point of priority.
pub const POINT: Duration = Duration::from_secs(36);
/// Waiting that a start costs its owner's next task.
pub const TURN: Duration = Duration::from_secs(300);
/// After this time a start counts half.
pub const HALF_LIFE: Duration = Duration::from_secs(600);
/// Who has waited for so long and is first, stays first.
pub const SETTLED: Duration = Duration::from_secs(300);
/// Longest wait of one who may be overtaken.
pub const PATIENCE: Duration = Duration::from_secs(1_800);
/// A start that counts less than this is forgotten.
const FORGOTTEN: f64 = 0.01;

/// An attempt that waits.
#[derive(Clone, Copy, Debug)]
pub struct Waiting<'a> {
    /// Which.
    pub key: &'a AttemptKey,
    /// Whose.
    pub owner: &'a Id,
    /// 0 to 100.
    pub priority: u8,
    /// Since when it waits.
    pub since: Duration,
    /// Order of arrival.
    pub arrival: u64,
    /// What it needs.
    pub needs: Resources,
    /// Its longest running time.
    pub timeout: Duration,
}

/// An attempt to which something is promised.
#[derive(Clone, Copy, Debug)]
pub struct Holding {
    /// What.
    pub needs: Resources,
    /// When it has ended at the latest, where that can be told.
    pub until: Option<Duration>,
}

/// What comes of a look at the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next<'a> {
    /// Nobody waits, or nothing that waits fits into what is lent.
    Nobody,
    /// This one starts.
    Start(&'a AttemptKey),
    /// The first in line needs more of this resource than is free, and nobody may overtake it.
    Waits(&'a AttemptKey, &'static str),
}

/// The queue's memory. A restart forgives everybody, and lines them up anew.
#[derive(Debug, Default)]
pub struct Line {
    /// Starts of each owner's tasks that still count, and when that was so.
    owners: BTreeMap<Id, (f64, Duration)>,
    /// Who waits in first place.
    first: Option<AttemptKey>,
}

impl Line {
    /// Who starts next within `lent`. One that is told to start is taken to have done so.
    pub fn next<'a>(
        &mut self,
        waiting: impl Iterator<Item = Waiting<'a>> + Clone,
        holding: &[Holding],
        lent: &Resources,
        now: Duration,
    ) -> Next<'a> {
        let (next, decided) = self.look(waiting, holding, lent, now);
        match (next, decided) {
            (Next::Start(_), Some(starts)) => self.charge(starts.owner, now),
            (Next::Waits(key, _), Some(first)) if now.saturating_sub(first.since) >= SETTLED => {
                self.first = Some(key.clone());
            }
            _ => {}
        }
        next
    }

    fn look<'a>(
        &self,
        waiting: impl Iterator<Item = Waiting<'a>> + Clone,
        holding: &[Holding],
        lent: &Resources,
        now: Duration,
    ) -> (Next<'a>, Option<Waiting<'a>>) {
        let room = lent.less(&sum(holding));
        // What came first is first where the turns are the same.
        let turn = |waits: &Waiting<'_>| (self.turn(waits, now), waits.arrival);
        let waiting = waiting.filter(|waits| waits.needs.fits(lent));
        let is_first = |waits: &Waiting<'_>| self.first.as_ref() == Some(waits.key);
        let Some(first) = waiting.clone().min_by_key(|waits| (!is_first(waits), turn(waits))) else {
            return (Next::Nobody, None);
        };
        let Some(short) = first.needs.shortage(&room) else { return (Next::Start(first.key), Some(first)) };
        let gap = Gap::before(&first, holding, lent);
        let may_fill = now.saturating_sub(first.since) < PATIENCE;
        let fills = waiting.filter(|waits| may_fill && waits.needs.fits(&room) && gap.is_filled_by(waits, now));
        match fills.min_by_key(turn) {
            Some(filler) => (Next::Start(filler.key), Some(filler)),
            None => (Next::Waits(first.key, short), Some(first)),
        }
    }

    /// When a task's turn comes, in milliseconds: earlier with more priority, later with what its owner was given.
    fn turn(&self, waits: &Waiting<'_>, now: Duration) -> u64 {
        let points = u32::from(u8::MAX - waits.priority);
        let charged = TURN.mul_f64(self.starts(waits.owner, now));
        u64::try_from((waits.since + POINT * points + charged).as_millis()).unwrap_or(u64::MAX)
    }

    /// One of this owner's tasks starts.
    fn charge(&mut self, owner: &Id, now: Duration) {
        let before = self.starts(owner, now);
        self.owners.insert(owner.clone(), (before + 1.0, now));
        // Owners come and go: what is forgotten takes no room.
        self.owners.retain(|_, (starts, at)| faded(*starts, *at, now) >= FORGOTTEN);
    }

    fn starts(&self, owner: &Id, now: Duration) -> f64 {
        self.owners.get(owner).map_or(0.0, |(starts, at)| faded(*starts, *at, now))
    }
}

fn faded(starts: f64, at: Duration, now: Duration) -> f64 {
    starts * (-now.saturating_sub(at).as_secs_f64() / HALF_LIFE.as_secs_f64()).exp2()
}

fn sum(holding: &[Holding]) -> Resources {
    holding.iter().fold(Resources::default(), |sum, held| sum.plus(&held.needs))
}

/// The time until the first in line has room.
struct Gap {
    /// When, where that can be told.
    end: Option<Duration>,
    /// What is left over then.
    spare: Resources,
}

impl Gap {
    fn before(first: &Waiting<'_>, holding: &[Holding], lent: &Resources) -> Self {
        let mut ends: Vec<&Holding> = holding.iter().filter(|held| held.until.is_some()).collect();
        ends.sort_by_key(|held| held.until);
        let mut held = sum(holding);
        for ended in ends {
            held = held.less(&ended.needs);
            let room = lent.less(&held);
            if first.needs.fits(&room) {
                return Self { end: ended.until, spare: room.less(&first.needs) };
            }
        }
        // Nobody knows when: whatever starts now delays nothing that can be told.
        Self { end: None, spare: *lent }
    }

    fn is_filled_by(&self, waits: &Waiting<'_>, now: Duration) -> bool {
        let ends_before = self.end.is_some_and(|end| now + waits.timeout <= end);
        ends_before || waits.needs.fits(&self.spare)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);
    const NOW: Duration = Duration::from_secs(1_000_000);

    fn needs(cpus: u64) -> Resources {
        Resources { cpu_millis: cpus * 1_000, memory_bytes: 1, disk_bytes: 1, slots: 1 }
    }

    fn lent(cpus: u64) -> Resources {
        Resources { cpu_millis: cpus * 1_000, memory_bytes: 100, disk_bytes: 100, slots: 100 }
    }

    struct Task {
        key: AttemptKey,
        owner: Id,
        priority: u8,
        waited: Duration,
        cpus: u64,
        timeout: Duration,
    }

    fn task(name: &str) -> Task {
        let key = AttemptKey { task: Id::parse(name).unwrap(), attempt: 1 };
        Task { key, owner: Id::parse("anna").unwrap(), priority: 50, waited: Duration::ZERO, cpus: 1, timeout: HOUR }
    }

    fn look<'a>(tasks: &'a [Task], holding: &[Holding], cpus: u64, line: &mut Line) -> Next<'a> {
        let waiting = tasks.iter().enumerate().map(|(i, task)| Waiting {
            key: &task.key,
            owner: &task.owner,
            priority: task.priority,
            since: NOW - task.waited,
            arrival: i as u64,
            needs: needs(task.cpus),
            timeout: task.timeout,
        });
        line.next(waiting, holding, &lent(cpus), NOW)
    }

    /// The name of who starts.
    fn started(tasks: &[Task], holding: &[Holding], cpus: u64) -> Option<String> {
        match look(tasks, holding, cpus, &mut Line::default()) {
            Next::Start(key) => Some(key.task.as_str().to_owned()),
            _ => None,
        }
    }

    fn held(cpus: u64, left: Duration) -> Holding {
        Holding { needs: needs(cpus), until: Some(NOW + left) }
    }

    #[test]
    fn the_higher_priority_starts_first_and_of_equals_the_earlier() {
        let tasks = [task("low"), Task { priority: 51, ..task("high") }, Task { priority: 51, ..task("later") }];
        assert_eq!(started(&tasks, &[], 1).unwrap(), "high");
        assert_eq!(look(&[], &[], 1, &mut Line::default()), Next::Nobody);
    }

    #[test]
    fn a_point_of_priority_is_worth_36_seconds() {
        let waited = |secs| Task { priority: 40, waited: Duration::from_secs(secs), ..task("old") };
        assert_eq!(started(&[Task { priority: 50, ..task("new") }, waited(360)], &[], 1).unwrap(), "new");
        assert_eq!(started(&[Task { priority: 50, ..task("new") }, waited(361)], &[], 1).unwrap(), "old");
        // An hour makes up for everything.
        let oldest = Task { priority: 0, waited: HOUR + Duration::from_secs(1), ..task("oldest") };
        assert_eq!(started(&[Task { priority: 100, ..task("new") }, oldest], &[], 1).unwrap(), "oldest");
    }

    #[test]
    fn an_owner_that_was_served_waits_for_one_that_was_not() {
        let (anna, bert) = (Id::parse("anna").unwrap(), Id::parse("bert").unwrap());
        let tasks =
            [Task { waited: Duration::from_secs(60), ..task("annas") }, Task { owner: bert.clone(), ..task("berts") }];
        let name = |line: &Line, now: Duration| {
            let waiting = tasks.iter().enumerate().map(|(i, task)| Waiting {
                key: &task.key,
                owner: &task.owner,
                priority: 50,
                since: now - task.waited,
                arrival: i as u64,
                needs: needs(1),
                timeout: HOUR,
            });
            match line.look(waiting, &[], &lent(1), now).0 {
                Next::Start(key) => key.task.as_str().to_owned(),
                other => panic!("{other:?}"),
            }
        };
        let mut line = Line::default();
        assert_eq!(name(&line, NOW), "annas");
        line.charge(&anna, NOW);
        assert_eq!(name(&line, NOW), "berts");
        // 300 s, 150 s, 75 s, 37.5 s: the last is less than the minute that Anna's task was there before.
        assert_eq!(name(&line, NOW + HALF_LIFE * 2), "berts");
        assert_eq!(name(&line, NOW + HALF_LIFE * 3), "annas");
        line.charge(&bert, NOW + HOUR * 24);
        assert_eq!(line.owners.len(), 1, "what is forgotten takes no room");
    }

    #[test]
    fn a_gap_is_filled_by_what_is_over_before_the_first_has_room() {
        let first = Task { priority: 100, cpus: 4, ..task("first") };
        let holding = [held(3, HOUR)];
        let short = Task { timeout: HOUR, ..task("short") };
        assert_eq!(started(&[first, short], &holding, 4).unwrap(), "short");
        let first = Task { priority: 100, cpus: 4, ..task("first") };
        let long = Task { timeout: HOUR + Duration::from_secs(1), ..task("long") };
        let tasks = [first, long];
        let next = look(&tasks, &holding, 4, &mut Line::default());
        assert_eq!(next, Next::Waits(&tasks[0].key, "cpu"));
    }

    #[test]
    fn a_gap_is_filled_by_what_leaves_the_first_its_room() {
        let tasks = [
            Task { priority: 100, cpus: 2, ..task("first") },
            Task { cpus: 2, timeout: HOUR * 9, ..task("wide") },
            Task { cpus: 1, timeout: HOUR * 9, ..task("narrow") },
        ];
        // After an hour one CPU of the four, and the one that was free all the time, are the first's; one of the two that
        // end then with it is nobody's.
        let holding = [held(2, HOUR), held(1, HOUR * 9)];
        assert_eq!(started(&tasks[..2], &holding, 4), None);
        assert_eq!(started(&tasks, &holding, 4).unwrap(), "narrow");
        // Two small ends make the room of one large one: the second of them counts.
        let holding = [held(1, HOUR), held(1, HOUR * 2), held(2, HOUR * 9)];
        let tasks =
            [Task { priority: 100, cpus: 2, ..task("first") }, Task { cpus: 1, timeout: HOUR * 2, ..task("fits") }];
        assert_eq!(started(&tasks, &holding[..], 4), None, "nothing is free");
        assert_eq!(started(&tasks, &holding[1..], 4).unwrap(), "fits");
    }

    #[test]
    fn who_has_waited_long_is_overtaken_no_more() {
        let first = |waited| Task { priority: 100, cpus: 4, waited, ..task("first") };
        let short = || Task { timeout: Duration::from_secs(1), ..task("short") };
        let holding = [held(1, HOUR)];
        let almost = PATIENCE - Duration::from_millis(1);
        assert_eq!(started(&[first(almost), short()], &holding, 4).unwrap(), "short");
        assert_eq!(started(&[first(PATIENCE), short()], &holding, 4), None);
    }

    #[test]
    fn who_is_first_for_long_stays_first_until_it_starts() {
        let mut line = Line::default();
        let holding = [held(1, HOUR)];
        let new = [Task { cpus: 4, waited: SETTLED - Duration::from_millis(1), ..task("new") }];
        look(&new, &holding, 4, &mut line);
        assert_eq!(line.first, None);
        let later = Task { priority: 100, cpus: 2, timeout: HOUR * 9, ..task("later") };
        let tasks = [Task { cpus: 4, waited: SETTLED, ..task("large") }, later];
        assert_eq!(look(&tasks[..1], &holding, 4, &mut line), Next::Waits(&tasks[0].key, "cpu"));
        assert_eq!(look(&tasks, &holding, 4, &mut line), Next::Waits(&tasks[0].key, "cpu"));
        assert_eq!(look(&tasks, &[], 4, &mut line), Next::Start(&tasks[0].key));
        // One that has gone, or that no longer fits at all, is first no more.
        assert_eq!(look(&tasks[..1], &holding, 4, &mut line), Next::Waits(&tasks[0].key, "cpu"));
        assert_eq!(look(&tasks[1..], &holding, 4, &mut line), Next::Start(&tasks[1].key));
        assert_eq!(look(&tasks, &holding, 3, &mut line), Next::Start(&tasks[1].key));
    }

    #[test]
    fn what_nobody_can_tell_the_end_of_keeps_no_gap_empty() {
        let tasks = [Task { priority: 100, cpus: 4, ..task("first") }, Task { timeout: HOUR * 9, ..task("long") }];
        let undying = Holding { needs: needs(1), until: None };
        assert_eq!(started(&tasks, &[undying], 4).unwrap(), "long");
    }

    #[test]
    fn what_is_larger_than_all_that_is_lent_holds_up_nobody() {
        let tasks = [Task { priority: 100, cpus: 5, ..task("giant") }, task("small")];
        assert_eq!(started(&tasks, &[], 4).unwrap(), "small");
        assert_eq!(look(&tasks[..1], &[], 4, &mut Line::default()), Next::Nobody);
    }
}

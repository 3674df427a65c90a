//! One transaction: what a batch of writes and acknowledgements does to the rows. Memory changes only after the commit,
//! by the draft that this gives.

use std::collections::BTreeMap;

use rusqlite::Connection;

use super::Write;
use super::db;
use super::duty::Duty;
use super::queue::Acks;
use super::spool::stem;
use super::thread::Work;
use crate::node::id::AttemptKey;
use crate::node::record::Event;

/// What the store thread knows of each attempt.
pub(super) type Duties = BTreeMap<AttemptKey, Duty>;

/// What has changed, once it is committed.
#[derive(Default)]
pub(super) struct Draft {
    /// Attempts as they are now; absent ones are gone.
    pub(super) duties: BTreeMap<AttemptKey, Option<Duty>>,
    pub(super) taken: Vec<AttemptKey>,
    pub(super) recorded: BTreeMap<AttemptKey, Vec<Event>>,
    pub(super) forgotten: Vec<AttemptKey>,
    /// The master has all of these.
    pub(super) over: Vec<AttemptKey>,
}

/// Writes a batch. The caller commits.
pub(super) fn write(
    db: &Connection,
    duties: &Duties,
    work: &[Work],
    acks: &[Acks],
    swept: &[String],
) -> rusqlite::Result<Draft> {
    let mut draft = Draft::default();
    for stem in swept {
        db::end_sweep(db, stem)?;
    }
    for job in work {
        match job {
            Work::Put { key, value, .. } => db::put_value(db, key, value)?,
            Work::Writes { writes, .. } => {
                for write in writes {
                    draft.apply(db, duties, write)?;
                }
            }
        }
    }
    for ack in acks {
        draft.acknowledge(db, duties, ack)?;
    }
    for duty in draft.duties.values().flatten() {
        db::put_state(db, duty.id, &duty.state)?;
    }
    for ack in acks.iter().filter(|ack| ack.are_streams_done) {
        draft.finish(db, &ack.key)?;
    }
    Ok(draft)
}

impl Draft {
    fn apply(&mut self, db: &Connection, duties: &Duties, write: &Write) -> rusqlite::Result<()> {
        match write {
            Write::Take { spec, .. } => {
                if self.duty(duties, &spec.key).is_some() {
                    log::error!("{} is here already: taken once", spec.key);
                    return Ok(());
                }
                let id = db::insert_attempt(db, spec)?;
                db::end_sweep(db, &stem(&spec.key))?;
                self.duties.insert(spec.key.clone(), Some(Duty::new(id, spec)));
                self.taken.push(spec.key.clone());
            }
            Write::Event { key, time_ms, kind } => {
                let Some(duty) = self.duty(duties, key) else {
                    log::error!("an event of {key}, which is not here, is dropped");
                    return Ok(());
                };
                let Some(event) = duty.record(*time_ms, kind.clone()) else {
                    log::error!("{key} has its final report: a second one is dropped");
                    return Ok(());
                };
                db::put_event(db, duty.id, &event)?;
                self.recorded.entry(key.clone()).or_default().push(event);
            }
            Write::Marks { key, marks } => match self.duty(duties, key) {
                Some(duty) => duty.state.marks = marks.clone(),
                None => log::error!("marks of {key}, which is not here, are dropped"),
            },
            Write::Forget { key } => {
                let Some(id) = self.duty(duties, key).map(|duty| duty.id) else { return Ok(()) };
                self.delete(db, id, key)?;
                self.forgotten.push(key.clone());
            }
        }
        Ok(())
    }

    fn acknowledge(&mut self, db: &Connection, duties: &Duties, ack: &Acks) -> rusqlite::Result<()> {
        let Some(duty) = self.duty(duties, &ack.key) else { return Ok(()) };
        duty.state.acked_event = duty.state.acked_event.max(ack.event);
        for ((stream, epoch), noted) in &ack.streams {
            db::put_stream(db, duty.id, *stream, *epoch, *noted)?;
        }
        Ok(())
    }

    /// The attempt is over when the master has its whole record.
    fn finish(&mut self, db: &Connection, key: &AttemptKey) -> rusqlite::Result<()> {
        let Some(Some(duty)) = self.duties.get(key) else { return Ok(()) };
        let Some(end) = duty.state.end.as_ref().filter(|_| duty.is_told()) else { return Ok(()) };
        db::insert_history(db, &end.row, &duty.digest, db::report_of(db, duty.id)?)?;
        self.delete(db, duty.id, key)?;
        self.over.push(key.clone());
        Ok(())
    }

    fn delete(&mut self, db: &Connection, id: i64, key: &AttemptKey) -> rusqlite::Result<()> {
        db::delete_attempt(db, id)?;
        db::add_sweep(db, &stem(key))?;
        self.duties.insert(key.clone(), None);
        Ok(())
    }

    /// The attempt as the batch has left it so far.
    fn duty(&mut self, duties: &Duties, key: &AttemptKey) -> Option<&mut Duty> {
        if !self.duties.contains_key(key) {
            self.duties.insert(key.clone(), Some(duties.get(key)?.clone()));
        }
        self.duties.get_mut(key)?.as_mut()
    }
}

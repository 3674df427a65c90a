//! The master: what it wants of the node, and what it has heard of it. Honest after design section 2: what was neither
//! taken nor refused is offered again, a cancellation is repeated until it is answered, pieces may come twice. But it
//! changes its mind, repeats itself, asks for nonsense, and may lose all that it knows.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hivemind_worker::node::id::{AttemptKey, Id};
use hivemind_worker::node::offer::Offer;
use hivemind_worker::node::order::{CancelState, Directive, Refusal};
use hivemind_worker::node::record::{Event, EventKind};

use super::dice::Dice;
use super::ledger::Ledger;

/// Tasks in a history: small, so that all that can happen to an attempt happens to one of them.
const MAX_TASKS: u64 = 12;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// To be offered until it is taken or refused for good.
    Wanted,
    Placed,
    /// Its final report is here.
    Over,
    /// Refused for good, or withdrawn before it was taken.
    Dropped,
}

/// An attempt that the master knows.
struct Wish {
    offer: Offer,
    standing: Standing,
    /// A cancellation that is not answered yet; whether it is since the attempt was replaced.
    cancels: Option<bool>,
}

/// What an offer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intent {
    Honest,
    /// The content differs, or it can't be held: it must be refused.
    Nonsense,
}

pub struct Offered {
    pub id: u64,
    pub offer: Offer,
}

#[derive(Default)]
pub struct Answer {
    pub offers: Vec<Offered>,
    pub cancellations: Vec<(AttemptKey, bool)>,
    pub directives: Vec<Directive>,
}

pub struct Master {
    pub is_away: bool,
    /// False after it has lost its data, until the node registers.
    pub knows_node: bool,
    pub lease: Duration,
    pub trust_percent: u32,
    wishes: BTreeMap<AttemptKey, Wish>,
    /// Each offer ever made, for the checks too: ids are never used again.
    offered: BTreeMap<u64, (AttemptKey, [u8; 32], Intent)>,
    /// Offers before this one are from a life that it has forgotten.
    first_known_offer: u64,
    directives: Vec<Directive>,
    /// What its clients may ask for again after it has forgotten everything.
    archive: Vec<Offer>,
    tolerated: BTreeSet<AttemptKey>,
    last_task: u64,
    is_calm: bool,
}

impl Master {
    pub fn new() -> Self {
        Self {
            is_away: false,
            knows_node: true,
            lease: Duration::from_secs(60),
            trust_percent: 100,
            wishes: BTreeMap::new(),
            offered: BTreeMap::new(),
            first_known_offer: 0,
            directives: Vec::new(),
            archive: Vec::new(),
            tolerated: BTreeSet::new(),
            last_task: 0,
            is_calm: false,
        }
    }

    // ---- what it decides by itself ----------------------------------------------------------------------------

    /// One change of mind.
    pub fn whim(&mut self, dice: &mut Dice, forgets: bool) {
        let open: Vec<AttemptKey> = self.open().cloned().collect();
        match dice.below(12) {
            0..=4 if self.last_task < MAX_TASKS => self.want_new(dice),
            5 | 6 => {
                if let Some(key) = dice.pick(&open) {
                    self.cancel(&key, false);
                }
            }
            7 => {
                if let Some(key) = dice.pick(&open) {
                    self.cancel(&key, true);
                    let offer = Offer { attempt: i64::from(key.attempt) + 1, ..self.wishes[&key].offer.clone() };
                    self.want(Offer { digest: [dice.below(250) as u8; 32], ..offer });
                }
            }
            8 => self.directives.push(dice.pick(&[Directive::Drain, Directive::Resume, Directive::Resume]).unwrap()),
            9 => {
                self.trust_percent = dice.pick(&[100, 100, 80, 50, 30]).unwrap();
                self.lease = Duration::from_secs(20 + dice.below(100));
            }
            10 if forgets && dice.one_in(3) => self.forget(),
            11 if !self.archive.is_empty() => {
                let offer = dice.pick(&self.archive).unwrap();
                if !self.wishes.contains_key(&key_of(&offer)) {
                    self.want(offer);
                }
            }
            _ => {}
        }
    }

    pub fn want_new(&mut self, dice: &mut Dice) {
        self.last_task += 1;
        let kind = if dice.one_in(4) { "endless" } else { "short" };
        self.want(Offer {
            task: format!("{kind}-{}", self.last_task),
            attempt: 1 + i64::try_from(dice.below(2)).unwrap(),
            cpu_millis: 500,
            memory_bytes: (1 + i64::try_from(dice.below(4)).unwrap()) << 28,
            disk_bytes: 1 << 30,
            priority: Some(i64::try_from(dice.below(100)).unwrap()),
            at_lease_end: dice.pick(&["finish", "finish", "stop"]).unwrap().to_owned(),
            digest: [dice.below(250) as u8; 32],
            ..Offer::default()
        });
    }

    fn want(&mut self, offer: Offer) {
        self.archive.push(offer.clone());
        let wish = Wish { offer, standing: Standing::Wanted, cancels: None };
        self.wishes.entry(key_of(&wish.offer)).or_insert(wish);
    }

    fn cancel(&mut self, key: &AttemptKey, is_superseded: bool) {
        if let Some(wish) = self.wishes.get_mut(key) {
            wish.cancels = Some(is_superseded);
            if wish.standing == Standing::Wanted {
                wish.standing = Standing::Dropped;
            }
        }
    }

    /// Restarts with an empty database.
    fn forget(&mut self) {
        self.wishes.clear();
        self.directives.clear();
        self.first_known_offer = u64::try_from(self.offered.len()).unwrap();
        self.knows_node = false;
    }

    fn open(&self) -> impl Iterator<Item = &AttemptKey> {
        let is_open = |wish: &Wish| matches!(wish.standing, Standing::Wanted | Standing::Placed);
        self.wishes.iter().filter(move |(_, wish)| is_open(wish)).map(|(key, _)| key)
    }

    /// The faults are over: it wants nothing new, and no task for ever.
    pub fn calm_down(&mut self) {
        (self.is_away, self.is_calm) = (false, true);
        self.trust_percent = 100;
        self.directives = vec![Directive::Resume];
        let endless: Vec<AttemptKey> =
            self.open().filter(|key| key.task.as_str().starts_with("endless")).cloned().collect();
        endless.iter().for_each(|key| self.cancel(key, false));
    }

    pub fn want_one_more(&mut self) -> AttemptKey {
        let offer = Offer { task: "short-last".to_owned(), attempt: 1, digest: [251; 32], ..Offer::default() };
        let key = key_of(&offer);
        self.want(Offer { memory_bytes: 1 << 28, ..offer });
        key
    }

    // ---- what it answers --------------------------------------------------------------------------------------

    /// The held attempts that do not count, or no longer. What it knows nothing of, since it has forgotten, it lets go on or
    /// not; for ever it lets nothing go on.
    pub fn replaced(&mut self, held: &[AttemptKey], dice: &mut Dice) -> Vec<AttemptKey> {
        self.knows_node = true;
        let mut replaced = Vec::new();
        for key in held {
            let counts = match self.wishes.get(key) {
                Some(wish) => wish.cancels != Some(true) && wish.standing != Standing::Dropped,
                None if key.task.as_str().starts_with("endless") => false,
                None => self.tolerated.contains(key) || (dice.one_in(2) && self.tolerated.insert(key.clone())),
            };
            if !counts {
                replaced.push(key.clone());
            }
        }
        replaced
    }

    pub fn heartbeat(&mut self, held: &[AttemptKey], dice: &mut Dice) -> Answer {
        let replaced = self.replaced(held, dice).into_iter().map(|key| (key, true));
        let mut answer = self.orders();
        answer.cancellations.extend(replaced);
        answer
    }

    pub fn poll(&mut self, taken: &[u64], refused: &[Refusal], dice: &mut Dice, ledger: &mut Ledger) -> Answer {
        for id in taken.iter().filter(|id| **id >= self.first_known_offer) {
            let Some(wish) = self.wishes.get_mut(&self.offered[id].0) else { continue };
            ledger.confirmed.insert(self.offered[id].0.clone());
            match wish.standing {
                Standing::Wanted => wish.standing = Standing::Placed,
                // Withdrawn while it was on its way.
                Standing::Dropped => {
                    wish.standing = Standing::Placed;
                    wish.cancels = wish.cancels.or(Some(false));
                }
                Standing::Placed | Standing::Over => {}
            }
        }
        for refusal in refused.iter().filter(|refusal| refusal.offer_id >= self.first_known_offer) {
            let (key, _, intent) = &self.offered[&refusal.offer_id];
            let is_for_now = matches!(refusal.code, "draining" | "storage" | "capacity");
            if let Some(wish) = self.wishes.get_mut(key)
                && *intent == Intent::Honest
                && !is_for_now
                && wish.standing == Standing::Wanted
            {
                wish.standing = Standing::Dropped;
            }
        }
        Answer { offers: self.choose_offers(dice), ..self.orders() }
    }

    /// What each answer carries: cancellations until they are answered, directives once.
    fn orders(&mut self) -> Answer {
        let cancellations = self.wishes.iter().filter_map(|(key, wish)| Some((key.clone(), wish.cancels?)));
        Answer {
            cancellations: cancellations.collect(),
            directives: std::mem::take(&mut self.directives),
            offers: Vec::new(),
        }
    }

    fn choose_offers(&mut self, dice: &mut Dice) -> Vec<Offered> {
        let mut chosen = Vec::new();
        for wish in self.wishes.values() {
            match wish.standing {
                Standing::Wanted if !dice.one_in(4) => chosen.push((wish.offer.clone(), Intent::Honest)),
                Standing::Placed | Standing::Over if !self.is_calm && dice.one_in(6) => {
                    chosen.push(spoil(&wish.offer, dice))
                }
                _ => {}
            }
        }
        let offers = chosen.into_iter().map(|(offer, intent)| {
            let id = u64::try_from(self.offered.len()).unwrap();
            self.offered.insert(id, (key_of(&offer), offer.digest, intent));
            Offered { id, offer }
        });
        offers.collect()
    }

    pub fn note_cancel(&mut self, key: &AttemptKey, state: CancelState) {
        let Some(wish) = self.wishes.get_mut(key) else { return };
        // "Unknown" of what was taken can only be an answer from before: it asks on.
        if state != CancelState::Unknown || wish.standing == Standing::Dropped {
            wish.cancels = None;
        }
    }

    pub fn submit(&mut self, key: &AttemptKey, event: &Event) {
        if let (Some(wish), EventKind::Final(_)) = (self.wishes.get_mut(key), &event.kind) {
            wish.standing = Standing::Over;
            wish.cancels = None;
        }
    }

    // ---- for the checks ---------------------------------------------------------------------------------------

    pub fn offered(&self, id: u64) -> &(AttemptKey, [u8; 32], Intent) {
        &self.offered[&id]
    }

    /// Attempts that it waits for, but for those whose end it once had and has forgotten.
    pub fn waits_for(&self, ledger: &Ledger) -> BTreeSet<AttemptKey> {
        self.open().filter(|key| !ledger.is_delivered(key)).cloned().collect()
    }
}

fn key_of(offer: &Offer) -> AttemptKey {
    AttemptKey { task: Id::parse(&offer.task).unwrap(), attempt: u32::try_from(offer.attempt).unwrap() }
}

/// The offer of an attempt that was taken, once more: as it was, or in a way that must be refused.
fn spoil(offer: &Offer, dice: &mut Dice) -> (Offer, Intent) {
    let offer = offer.clone();
    match dice.below(5) {
        0 => (Offer { digest: [252; 32], ..offer }, Intent::Nonsense),
        1 => (Offer { memory_bytes: -1, ..offer }, Intent::Nonsense),
        2 => (Offer { task: "huge".to_owned(), memory_bytes: 1 << 49, ..offer }, Intent::Nonsense),
        3 if offer.attempt > 1 => (Offer { attempt: offer.attempt - 1, digest: [253; 32], ..offer }, Intent::Nonsense),
        _ => (offer, Intent::Honest),
    }
}

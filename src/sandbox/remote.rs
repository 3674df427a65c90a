//! An input archive that is elsewhere: fetched into the attempt's folder of the spool before anything is made, so that what
//! is put into the container has its digest already.

use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::step::{Break, Step};
use super::task::Task;
use crate::fetch::{Download, FetchError, Progress, Stop, Wanted};
use crate::node::order::TaskNews;
use crate::node::record::Outcome;

/// Tries at a fetch that failed for a reason that may pass.
const MAX_TRIES: u32 = 3;
/// Before the second try; four times as long before the third.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Progress is told this often at the most.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);

impl Task {
    /// Until the archive is here, whole and checked. One from before a crash is used if it is.
    pub fn fetch_inputs(&self) -> Step<()> {
        let Some(remote) = self.spec.remote_inputs.clone() else { return Ok(()) };
        let url = remote.url.to_string();
        let wanted = Wanted { url: remote.url, sha256: remote.sha256, max_bytes: remote.max_bytes };
        let node_fault =
            |error: std::io::Error| Break::End(Outcome::NodeFault, format!("can't keep the inputs of {url}: {error}"));
        let file = self.context.store.open_fetched(&self.spec.key).map_err(node_fault)?;
        match self.fetch(wanted, file)? {
            Ok(()) => Ok(()),
            Err(FetchError::Refused(reason)) => Err(Break::End(Outcome::Rejected, format!("inputs_url {reason}"))),
            Err(error) => Err(Break::End(Outcome::NodeFault, format!("inputs_url {error}"))),
        }
    }

    /// Until it is in `file`, whole and checked; else the last of all tries.
    pub fn fetch(&self, wanted: Wanted, file: File) -> Step<Result<(), FetchError>> {
        let url = wanted.url.to_string();
        let made = self.help(&Stop::new(), move |stop| Download::new(wanted, file, stop))?;
        let download = match made {
            Ok(download) => Arc::new(Mutex::new(download)),
            Err(error) => return Ok(Err(FetchError::Node(format!("can't keep what is fetched from {url}: {error}")))),
        };
        let mut pause = FIRST_PAUSE;
        for attempt in 1.. {
            match self.fetch_once(&url, &download)? {
                Err(FetchError::Passing(reason)) if attempt < MAX_TRIES => {
                    self.tell(TaskNews::Detail(format!("fetch failed, tries again: {reason}")));
                    self.wait(pause)?;
                    pause *= 4;
                }
                Err(FetchError::Passing(reason)) => {
                    let reason = format!("{reason}, at the last of {MAX_TRIES} tries");
                    return Ok(Err(FetchError::Passing(reason)));
                }
                result => return Ok(result),
            }
        }
        Ok(Ok(()))
    }

    fn fetch_once(&self, url: &str, download: &Arc<Mutex<Download>>) -> Step<Result<(), FetchError>> {
        self.tell(TaskNews::Detail(format!("fetches {url}")));
        let (name, teller, mut told) = (url.to_owned(), self.teller(), Instant::now());
        let mut progress = move |Progress { bytes, total }: Progress| {
            if told.elapsed() >= PROGRESS_EVERY {
                told = Instant::now();
                let of = total.map(|total| format!(" of {total}")).unwrap_or_default();
                teller(TaskNews::Detail(format!("fetches {name}: {bytes}{of} bytes")));
            }
        };
        let (download, fetcher) = (Arc::clone(download), self.context.fetcher.clone());
        self.help(&Stop::new(), move |stop| {
            let mut download = download.lock().unwrap_or_else(PoisonError::into_inner);
            download.attempt(&fetcher, stop, &mut progress)
        })
    }

    /// A job that `stop` makes come back, ended early by a wish of the coordinator.
    pub fn help<T: Send + 'static>(&self, stop: &Stop, job: impl FnOnce(&Stop) -> T + Send + 'static) -> Step<T> {
        let own = stop.clone();
        self.help_unless(&|| self.interruption(), &|| stop.stop(), move || job(&own))
    }

    /// The archive is in the container: its room is given back.
    pub fn forget_fetched(&self) {
        let Some(remote) = &self.spec.remote_inputs else { return };
        if let Err(error) = self.context.store.remove_fetched(&self.spec.key) {
            let note = format!("what was fetched from {} stays until the attempt is over: {error}", remote.url);
            self.tell(TaskNews::Note(note));
        }
    }
}

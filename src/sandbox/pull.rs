//! Pulling an image: which failures may pass, and when a pull stands still.
//!
//! A pull may take as long as its image is large: what counts is that it comes forward. A registry that sends nothing, or a
//! byte now and then, would else hold the attempt for ever.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::book::Book;
use super::image::no_platform;
use super::pulls::{PullEnd, Stage};
use super::registries::{hint, is_not_taken};
use super::step::{Break, Step, fault};
use super::task::Task;
use crate::docker::{Docker, Error, PullProgress, RegistryAuth};
use crate::node::image::ImageRef;
use crate::node::order::TaskNews;
use crate::node::record::Outcome;
use crate::node::spec::{PullPolicy, base_image_name};
use crate::sys::failpoint::{self, FailPoint};

/// Tries at a pull that failed for a reason that may pass.
const MAX_PULLS: u32 = 3;
/// Progress of a pull is told this often at the most.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);
/// By so much a pull comes forward, or by a step that is new. The engine tells each percent, or half of this.
const STEP_BYTES: u64 = 1 << 20;
/// Steps that are known apart: an image has at most 127 layers of some eight steps each.
const MAX_STEPS: usize = 4_096;

impl Task {
    /// Pulls the image; a failure that may pass is tried again. The digest that the engine has told.
    pub fn pull(&self, reference: &ImageRef) -> Step<Option<String>> {
        for attempt in 1.. {
            self.tell(TaskNews::Detail(format!("pulls {reference}")));
            let words = match self.try_pull(reference)? {
                PullEnd::Done(digest) => return Ok(digest),
                PullEnd::Refused(words) => {
                    return Err(match no_platform(reference, &words) {
                        Some(problem) => Break::End(Outcome::Rejected, problem),
                        None => self.no_image(Outcome::Rejected, &words),
                    });
                }
                PullEnd::Broken(words) => return Err(Break::End(Outcome::NodeFault, words)),
                PullEnd::Failed(words) => words,
            };
            if attempt >= MAX_PULLS {
                return Err(self.no_image(Outcome::NodeFault, &format!("{words}; tried {MAX_PULLS} times")));
            }
            log::warn!("{}: {words}; tries again", self.spec.key);
            self.tell(TaskNews::Detail(format!("pull failed, tries again: {words}")));
            self.wait(Duration::from_secs(1) * attempt)?;
            // A try counts only with an engine that is there.
            self.engine(|docker| docker.ping())?.map_err(|error| fault(&error))?;
        }
        Ok(None)
    }

    /// Joins the pull of it that is under way, or begins one.
    fn try_pull(&self, reference: &ImageRef) -> Step<PullEnd> {
        let node_fault = |reason: String| Break::End(Outcome::NodeFault, reason);
        let images = &self.context.images;
        let auth = images
            .registries
            .auth_for(reference)
            .map_err(|problem| node_fault(format!("pull image {reference}: HIVEMIND_REGISTRY_AUTH_FILE: {problem}")))?;
        let request = Request {
            docker: self.context.docker.clone(),
            image: reference.clone(),
            auth,
            limit: self.context.pull_limit,
            book: Arc::clone(&images.book),
        };
        let joined = images.pulls.join(&reference.full_text(), move |stage| request.run(stage));
        let (seat, leave) = joined.map_err(|error| node_fault(format!("can't start a thread: {error}")))?;
        let teller = self.teller();
        let hear = move || seat.hear(&|words| teller(TaskNews::Detail(words)));
        let end = self.help_unless(&|| self.interruption(), &|| leave.leave(), hear)?;
        Ok(end.unwrap_or_else(|| PullEnd::Failed(format!("pull image {reference}: it was given up"))))
    }

    fn no_image(&self, outcome: Outcome, words: &str) -> Break {
        let is_base = self.spec.image.name() == base_image_name();
        let mend = match self.spec.pull {
            _ if is_base => "; scripts/build-image.sh makes the base image on this machine",
            PullPolicy::Always => "; with the pull policy if-missing an image that the engine has is used as it is",
            _ => "",
        };
        Break::End(outcome, format!("{words}{mend}"))
    }
}

/// Near the end the engine says `Digest: sha256:...`, of what the registry has answered with.
fn digest_in(line: &PullProgress) -> Option<String> {
    line.status.strip_prefix("Digest: ").map(str::to_owned)
}

/// The one request at the engine for a pull.
struct Request {
    docker: Docker,
    image: ImageRef,
    auth: Option<RegistryAuth>,
    limit: Duration,
    book: Arc<Book>,
}

impl Request {
    fn run(self, stage: &Stage) -> PullEnd {
        let docker = self.docker.with_stop(stage.stop());
        self.book.make_room(&docker);
        // Where the engine's folder is not on this machine, nobody here can tell how much room it has.
        let folder = docker.facts().map(|facts| PathBuf::from(facts.root_dir)).ok();
        let has_room = folder.is_none_or(|folder| folder.as_os_str().is_empty() || stage.watch(folder));
        let name = self.image.to_string();
        let no_room = || stage.no_room().map(|words| PullEnd::Broken(format!("pull image {name}: {words}")));
        if let Some(end) = no_room().filter(|_| !has_room) {
            return end;
        }
        // Without this list nobody knows what the pull has brought: then it is left alone for ever.
        let before = docker.image_ids();
        let mut told = Instant::now();
        let mut pace = Pace::new(self.limit, told);
        let mut digest = None;
        let result = docker.pull_image(&name, self.auth.as_ref(), self.limit, &mut |line| {
            failpoint::pass(FailPoint::Pulling);
            digest = digest_in(line).or(digest.take());
            let now = Instant::now();
            pace.handle_line(line, now);
            if pace.is_stalled(now) {
                stage.stop().stop();
            }
            if now.duration_since(told) >= PROGRESS_EVERY {
                told = now;
                stage.tell(&format!("pulls {name}: {}", words_of(line)));
            }
        });
        match result {
            Ok(()) => {
                if let (Ok(before), Ok(image)) = (before, docker.inspect_image(&name)) {
                    self.book.note(&self.image, &image.id, &before);
                }
                PullEnd::Done(digest)
            }
            Err(error) => no_room().unwrap_or_else(|| self.judge(&error, pace.is_stalled(Instant::now()))),
        }
    }

    fn judge(&self, error: &Error, is_stalled: bool) -> PullEnd {
        let (image, words) = (&self.image, error.to_string());
        match error {
            // No line at all, or none of use.
            Error::Timeout { .. } | Error::Stopped if is_stalled => PullEnd::Failed(format!(
                "pull image {image}: it stood still for {} s (HIVEMIND_PULL_LIMIT)",
                self.limit.as_secs_f64()
            )),
            error if !is_permanent(error) => PullEnd::Failed(words),
            _ if self.auth.is_none() => PullEnd::Refused(format!("{words}{}", hint(&words, image))),
            _ if is_not_taken(&words) => PullEnd::Broken(format!(
                "{words}; {} does not take what HIVEMIND_REGISTRY_AUTH_FILE has for it",
                image.registry()
            )),
            _ => PullEnd::Refused(words),
        }
    }
}

fn words_of(line: &PullProgress) -> String {
    let PullProgress { id, status, detail } = line;
    match (detail.current, detail.total) {
        (Some(done), Some(all)) if done >= 0 && all > 0 => format!("{id} {status} {done} of {all} bytes"),
        _ => format!("{id} {status}"),
    }
}

/// The engine gives no status to tell by: a registry's refusal comes as 500 or in the middle of the stream.
fn is_permanent(error: &Error) -> bool {
    const WORDS: [&str; 10] = [
        "not found",
        "manifest unknown",
        "denied",
        "unauthorized",
        "no basic auth credentials",
        "no matching manifest",
        "no image found in",
        "cannot be used on this platform",
        "does not exist",
        // What came has not the digest that was asked for.
        "verification failed",
    ];
    match error {
        Error::Refused { status, message, .. } => {
            let message = message.to_lowercase();
            matches!(status, 400..500) || WORDS.iter().any(|word| message.contains(word))
        }
        _ => false,
    }
}

/// Whether a pull comes forward: by [`STEP_BYTES`], or by a step of a layer that is new, within the limit.
struct Pace {
    limit: Duration,
    moved_at: Instant,
    /// Since then.
    bytes: u64,
    /// By layer and the engine's word for the step: the most bytes of it so far.
    steps: HashMap<(String, String), u64>,
}

impl Pace {
    fn new(limit: Duration, now: Instant) -> Self {
        Self { limit, moved_at: now, bytes: 0, steps: HashMap::new() }
    }

    fn handle_line(&mut self, line: &PullProgress, now: Instant) {
        let done = line.detail.current.and_then(|current| u64::try_from(current).ok()).unwrap_or(0);
        let key = (line.id.clone(), line.status.clone());
        if let Some(before) = self.steps.get_mut(&key) {
            self.bytes = self.bytes.saturating_add(done.saturating_sub(*before));
            *before = done.max(*before);
            if self.bytes < STEP_BYTES {
                return;
            }
        } else if self.steps.len() < MAX_STEPS {
            self.steps.insert(key, done);
        } else {
            return;
        }
        (self.moved_at, self.bytes) = (now, 0);
    }

    fn is_stalled(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.moved_at) >= self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::docker::PullDetail;

    const LIMIT: Duration = Duration::from_secs(600);

    fn line(id: &str, status: &str, current: i64) -> PullProgress {
        let detail = PullDetail { current: Some(current), total: Some(100 << 20) };
        PullProgress { id: id.to_owned(), status: status.to_owned(), detail }
    }

    /// Lines one minute apart; the minutes after which it stood still for the first time.
    fn stalls_after(lines: impl Iterator<Item = PullProgress>) -> Option<u64> {
        let begin = Instant::now();
        let mut pace = Pace::new(LIMIT, begin);
        (1..).zip(lines).find_map(|(minute, line)| {
            let now = begin + Duration::from_secs(60 * minute);
            pace.handle_line(&line, now);
            pace.is_stalled(now).then_some(minute)
        })
    }

    #[test]
    fn a_pull_that_dribbles_stands_still_and_a_slow_one_does_not() {
        let each_minute = |bytes: i64| (1..1_000).map(move |minute| line("a", "Downloading", minute * bytes));
        assert_eq!(stalls_after(each_minute(1)), Some(11), "a byte a minute");
        assert_eq!(stalls_after(each_minute(104_000)), Some(11), "a little less than 1 MiB in ten minutes");
        assert_eq!(stalls_after(each_minute(120_000)), None);
        // Forth and back is not forward, whatever the step is called.
        assert_eq!(stalls_after((1..1_000).map(|minute| line("a", "Downloading", (minute % 2) << 30))), Some(11));
    }

    #[test]
    fn new_steps_come_forward_and_repeated_ones_do_not() {
        let steps = ["Pulling fs layer", "Waiting", "Downloading", "Verifying Checksum", "Pull complete"];
        let each = (0..100).map(move |n| line(&format!("layer {}", n / 5), steps[n % 5], 0));
        assert_eq!(stalls_after(each), None);
        let again = std::iter::repeat(steps).flatten().map(|step| line("a", step, 0));
        assert_eq!(stalls_after(again), Some(15));
    }

    #[test]
    fn steps_that_are_known_apart_are_bounded() {
        let lines = (0..).map(|n| line(&n.to_string(), "Downloading", 0));
        assert_eq!(stalls_after(lines), Some(MAX_STEPS as u64 + 10));
    }
}

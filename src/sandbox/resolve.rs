//! Which image an attempt runs in. A tag is looked up once: from then on the attempt knows the engine's id and the digest,
//! also after a restart of the worker, so that a tag which moves changes nothing for it.

use std::time::Duration;

use super::book::Hold;
use super::image::other_platform;
use super::step::{Break, Step, fault};
use super::task::Task;
use crate::docker::{Docker, Error, ImageInspect, Platform};
use crate::node::image::ImageRef;
use crate::node::record::Outcome;
use crate::node::spec::PullPolicy;

/// Between two looks at an image that is being removed.
const REMOVAL_PAUSE: Duration = Duration::from_millis(200);

impl Task {
    /// The image that the container is made from, by id. One for another machine is refused.
    pub fn image(&mut self) -> Step<ImageInspect> {
        let image = self.hold_image()?;
        match other_platform(&self.spec.image, &image, &self.platform()?) {
            None => Ok(image),
            Some(problem) => Err(Break::End(Outcome::Rejected, problem)),
        }
    }

    /// From here on the node does not remove it while the attempt is there.
    fn hold_image(&mut self) -> Step<ImageInspect> {
        loop {
            let image = self.resolve_image()?;
            match self.context.images.book.hold(&self.spec.key, &image.id) {
                Hold::Foreign => return Ok(image),
                // It may have gone between the look and the hold.
                Hold::Ours => {
                    let id = image.id.clone();
                    match self.engine(move |docker: &Docker| docker.inspect_image(&id))? {
                        Err(error) if error.is_not_found() => {}
                        image => return image.map_err(|error| fault(&error)),
                    }
                }
                Hold::Leaving => {}
            }
            self.wait(REMOVAL_PAUSE)?;
        }
    }

    /// An engine that is replaced by another at the same socket is still on this machine: it is asked once.
    fn platform(&self) -> Step<Platform> {
        let known = &self.context.images.platform;
        if let Some(platform) = known.get() {
            return Ok(platform.clone());
        }
        let platform = self.engine(|docker: &Docker| docker.platform())?.map_err(|error| fault(&error))?;
        Ok(known.get_or_init(|| platform).clone())
    }

    fn resolve_image(&mut self) -> Step<ImageInspect> {
        if let Some(id) = self.marks.image_id.clone() {
            return self.image_again(&id);
        }
        let (image, pulled) = self.look_up_image()?;
        let digest = digest_of(&self.spec.image, &image, pulled.as_deref())
            .map_err(|reason| Break::End(Outcome::Rejected, reason))?;
        let id = image.id.clone();
        self.mark(|marks| (marks.image_id, marks.image_digest) = (Some(id), Some(digest)));
        Ok(image)
    }

    /// What the reference means now, by the task's pull policy; and the digest that a pull has told.
    fn look_up_image(&self) -> Step<(ImageInspect, Option<String>)> {
        let reference = &self.spec.image;
        match (self.spec.pull, self.inspect_image(reference)?) {
            (PullPolicy::IfMissing | PullPolicy::Never, Ok(image)) => return Ok((image, None)),
            (PullPolicy::Never, Err(error)) => return Err(fault(&error)),
            (_, Err(error)) if !error.is_not_found() => return Err(fault(&error)),
            _ => {}
        }
        let pulled = self.pull(reference)?;
        // By the digest: another task's pull may have moved the tag since.
        let pinned = pulled.as_deref().and_then(|digest| reference.pinned_to(digest).ok());
        if let Some(pinned) = pinned {
            match self.inspect_image(&pinned)? {
                Err(error) if error.is_not_found() => {}
                image => return Ok((image.map_err(|error| fault(&error))?, pulled)),
            }
        }
        Ok((self.inspect_image(reference)?.map_err(|error| fault(&error))?, pulled))
    }

    /// The image that this attempt has begun with. What was removed since is pulled again by its digest.
    fn image_again(&self, id: &str) -> Step<ImageInspect> {
        let by_id = id.to_owned();
        match self.engine(move |docker: &Docker| docker.inspect_image(&by_id))? {
            Err(error) if error.is_not_found() => {}
            image => return image.map_err(|error| fault(&error)),
        }
        let gone = || {
            let reason =
                format!("image {}, which this attempt began with as {id}, is gone from the engine", self.spec.image);
            Break::End(Outcome::NodeFault, reason)
        };
        let digest = self.marks.image_digest.as_deref().and_then(|digest| digest.split_once('@'));
        let (_, digest) = digest.filter(|_| self.spec.pull != PullPolicy::Never).ok_or_else(gone)?;
        let pinned = self.spec.image.pinned_to(digest).map_err(|_| gone())?;
        self.pull(&pinned)?;
        let image = self.inspect_image(&pinned)?.map_err(|error| fault(&error))?;
        if image.id == id { Ok(image) } else { Err(gone()) }
    }

    fn inspect_image(&self, reference: &ImageRef) -> Step<Result<ImageInspect, Error>> {
        let reference = reference.to_string();
        self.engine(move |docker: &Docker| docker.inspect_image(&reference))
    }
}

/// `name@sha256:...` of an image, or its id where no registry has told a digest. Of several digests, which are names of
/// the same content, the one that was asked for or pulled counts.
///
/// # Errors
/// The reference is pinned, and the engine's image is not what it names.
fn digest_of(asked: &ImageRef, image: &ImageInspect, pulled: Option<&str>) -> Result<String, String> {
    let name = asked.full_name();
    let of_name: Vec<(&String, ImageRef)> = image
        .repo_digests
        .iter()
        .filter_map(|text| Some((text, ImageRef::parse(text).ok()?)))
        .filter(|(_, digest)| digest.full_name() == name)
        .collect();
    let find = |wanted: &str| of_name.iter().find(|(_, digest)| digest.digest() == Some(wanted));
    if let Some(pin) = asked.digest() {
        return match find(pin) {
            Some((text, _)) => Ok((*text).clone()),
            // Where the engine's ids are digests of manifests.
            None if image.id == pin => Ok(format!("{}@{pin}", asked.name())),
            None => Err(format!("image {asked} is refused: what the engine has by that name is {}", known_as(image))),
        };
    }
    let first = || of_name.first().map(|(text, _)| *text).or(image.repo_digests.first());
    let found = pulled.and_then(find).map(|(text, _)| *text).or_else(first);
    Ok(found.cloned().unwrap_or_else(|| image.id.clone()))
}

fn known_as(image: &ImageInspect) -> &str {
    image.repo_digests.first().unwrap_or(&image.id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(digit: &str) -> String {
        format!("sha256:{}", digit.repeat(64))
    }

    fn digest(asked: &str, known: &[String], pulled: Option<&str>) -> Result<String, String> {
        let image = ImageInspect { id: sum("f"), repo_digests: known.to_vec(), ..ImageInspect::default() };
        digest_of(&ImageRef::parse(asked).unwrap(), &image, pulled)
    }

    #[test]
    fn the_digest_is_of_the_name_that_was_asked_for() {
        let (one, two, three) = (sum("1"), sum("2"), sum("3"));
        let known = [format!("h.org/other@{three}"), format!("python@{one}"), format!("python@{two}")];
        assert_eq!(digest("docker.io/library/python:3", &known, None), Ok(known[1].clone()));
        assert_eq!(digest("python:3", &known, Some(&two)), Ok(known[2].clone()));
        assert_eq!(digest("python:3", &known, Some(&three)), Ok(known[1].clone()), "that one is another name's");
        assert_eq!(digest("built-here", &known, None), Ok(known[0].clone()));
        assert_eq!(digest("built-here", &[], None), Ok(sum("f")));
    }

    #[test]
    fn a_pinned_reference_is_that_image_or_none() {
        let (one, two) = (sum("1"), sum("2"));
        let known = [format!("python@{one}")];
        assert_eq!(digest(&format!("python:3@{one}"), &known, None), Ok(known[0].clone()));
        assert_eq!(digest(&format!("a@{}", sum("f")), &[], None), Ok(format!("a@{}", sum("f"))));
        let error = digest(&format!("python@{two}"), &known, None).unwrap_err();
        assert_eq!(error, format!("image python@{two} is refused: what the engine has by that name is python@{one}"));
        assert!(digest(&format!("other@{one}"), &known, None).is_err(), "the digest of another name");
        assert!(digest(&format!("python@{one}"), &[], None).is_err());
    }
}

//! From an assignment to a container that only has to be started: image, volume, container, inputs.

use std::io;
use std::thread;
use std::time::Duration;

use super::body::{VolumeOwner, WORK_FOLDER, add_packages, owner_body, task_body, volume_owner, without_copy};
use super::bounded::Bounds;
use super::image::TaskImage;
use super::inputs::{self, InputError, Starter};
use super::naming::LABEL_SPEC;
use super::step::{Break, Step, fault};
use super::task::Task;
use crate::docker::{CreateBody, Docker, Error, ImageInspect, VolumeCreate};
use crate::node::order::TaskNews;
use crate::node::record::Outcome;
use crate::node::runtime::check_known;
use crate::node::spec::TaskSpec;
use crate::sys::failpoint::{self, FailPoint};

/// Between two pieces of an archive.
const ARCHIVE_IDLE: Duration = Duration::from_secs(120);
impl Task {
    /// Makes everything that the container needs, and the container. Whatever was there from an earlier try is used.
    pub fn prepare(&mut self) -> Step<CreateBody> {
        self.check_runtime()?;
        self.fetch_inputs()?;
        let dependencies = self.dependencies()?;
        let image = self.image()?;
        let task_image = TaskImage::check(&image).map_err(|reason| Break::End(Outcome::Rejected, reason))?;
        for path in &task_image.scratch {
            self.tell(TaskNews::Note(format!("{path}, a volume of the image, is an empty file system in memory")));
        }
        let mut body = task_body(&self.spec, &self.context.identity, &task_image, &self.context.egress.dns);
        if let Some(volume) = self.packages(&task_image)? {
            add_packages(&mut body, &volume);
        }
        self.open_network()?;
        self.put_dependencies(&image.id, dependencies)?;
        let mut furnished = self.furnish(&image, &body);
        if self.can_do_without_volume(&furnished)? {
            furnished = self.furnish(&image, &body);
        }
        furnished
    }

    /// Volume, container, inputs.
    fn furnish(&mut self, image: &ImageInspect, body: &CreateBody) -> Step<CreateBody> {
        let body = match self.volume(image)? {
            Bounds::Volume => without_copy(body.clone()),
            Bounds::Watch => body.clone(),
        };
        let id = self.container(&body)?;
        self.mark(|marks| marks.container_id = Some(id));
        self.put_inputs().map(|()| body)
    }

    /// Again, since another engine may be there by now. It would refuse, too, with words in which nobody looks for a runtime.
    fn check_runtime(&self) -> Step<()> {
        if self.spec.runtime.is_none() {
            return Ok(());
        }
        let facts = self.engine(Docker::facts)?.map_err(|error| fault(&error))?;
        check_known(self.spec.runtime.as_ref(), &facts.runtimes)
            .map_err(|reason| Break::End(Outcome::NodeFault, format!("this attempt's {reason}")))
    }

    fn volume(&self, image: &ImageInspect) -> Step<Bounds> {
        let identity = &self.context.identity;
        let labels = identity.labels(&self.spec.key, "task");
        let driver_opts = self.bound()?;
        let bounds = if driver_opts.is_empty() { Bounds::Watch } else { Bounds::Volume };
        let volume = VolumeCreate { name: self.name.clone(), labels, driver_opts, ..VolumeCreate::default() };
        self.create_volume(volume)?;
        if bounds == Bounds::Volume || volume_owner(&self.spec) == VolumeOwner::CopyUp {
            return Ok(bounds);
        }
        let body = owner_body(&self.spec, identity, &image.id);
        let name = format!("{}-owner", self.name);
        let archive = inputs::owner_archive().map_err(|error| node_fault(&error))?;
        self.engine_whole(move |docker| {
            match docker.create_container(&name, &body) {
                Err(error) if !error.is_conflict() => return Err(error),
                _ => {}
            }
            docker.put_archive(&name, "/", &mut archive.as_slice(), ARCHIVE_IDLE)?;
            docker.remove_container(&name)
        })?
        .map_err(|error| fault(&error))?;
        Ok(bounds)
    }

    /// One of that name that is there already is answered with itself. One of ours that is of another kind goes, with the
    /// container that it is of.
    fn create_volume(&self, volume: VolumeCreate) -> Step<()> {
        for _ in 0..2 {
            let create = volume.clone();
            let made =
                self.engine_whole(move |docker| docker.create_volume(&create))?.map_err(|error| fault(&error))?;
            if !self.is_ours(&made.labels) {
                return Err(Break::End(Outcome::NodeFault, format!("the volume {} is not this node's", self.name)));
            }
            if made.options == volume.driver_opts {
                return Ok(());
            }
            self.remove_furniture()?;
        }
        Err(Break::End(Outcome::NodeFault, format!("the volume {} can't be replaced", self.name)))
    }

    /// Creates the container. One of the same name is ours from an earlier try if its labels and the digest of its body
    /// say so; else it is in the way, and what is ours is replaced.
    fn container(&self, body: &CreateBody) -> Step<String> {
        for _ in 0..2 {
            let (name, create) = (self.name.clone(), body.clone());
            match self.engine_whole(move |docker| docker.create_container(&name, &create))? {
                Ok(created) => {
                    failpoint::pass(FailPoint::CreateSent);
                    for warning in created.warnings {
                        self.tell(TaskNews::Note(format!("the engine warns: {}", warning.trim())));
                    }
                    return Ok(created.id);
                }
                Err(error) if error.is_conflict() => {
                    if let Some(id) = self.settle_conflict(body, &error)? {
                        return Ok(id);
                    }
                }
                Err(error) => return Err(fault(&error)),
            }
        }
        Err(Break::End(Outcome::NodeFault, format!("container {} can't be replaced", self.name)))
    }

    fn settle_conflict(&self, body: &CreateBody, conflict: &Error) -> Step<Option<String>> {
        let name = self.name.clone();
        let found = match self.engine(move |docker| docker.inspect_container(&name))? {
            Ok(found) => found,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(fault(&error)),
        };
        if !self.is_ours(&found.config.labels) {
            let reason = format!("{conflict}; the container of that name is not this node's");
            return Err(Break::End(Outcome::NodeFault, reason));
        }
        if found.config.labels.get(LABEL_SPEC) == body.labels.get(LABEL_SPEC) && found.state.status == "created" {
            return Ok(Some(found.id));
        }
        self.engine(move |docker| docker.remove_container(&found.id))?.map_err(|error| fault(&error))?;
        Ok(None)
    }

    fn put_inputs(&self) -> Step<()> {
        let starter = if self.spec.command.is_empty() { Starter::Include } else { Starter::Omit };
        let (name, spec, store) = (self.name.clone(), self.spec.clone(), self.context.store.clone());
        // Putting them again puts the same.
        let job = move |docker: &Docker| match stream_inputs(docker, &name, &spec, &store, starter) {
            Ok(()) => Ok(Ok(())),
            Err(PutError::Inputs(error)) => Ok(Err(error)),
            Err(PutError::Engine(error)) => Err(error),
        };
        match self.engine(job)? {
            Ok(Ok(())) => {
                self.forget_fetched();
                Ok(())
            }
            Ok(Err(error @ InputError::Refused(_))) => Err(Break::End(Outcome::Rejected, error.to_string())),
            Ok(Err(error)) => Err(Break::End(Outcome::NodeFault, error.to_string())),
            Err(error) => Err(fault(&error)),
        }
    }
}

enum PutError {
    Inputs(InputError),
    Engine(Error),
}

/// Rewrites the archive on one thread and puts it from another, through a pipe: nothing of it is held in memory.
fn stream_inputs(
    docker: &Docker,
    name: &str,
    spec: &TaskSpec,
    store: &crate::store::Store,
    starter: Starter,
) -> Result<(), PutError> {
    let io_error = |error| PutError::Inputs(InputError::Io(error));
    let inputs = match spec.remote_inputs {
        None => store.read_inputs(&spec.key),
        Some(_) => store.open_fetched(&spec.key),
    };
    let inputs = inputs.map_err(io_error)?;
    let (mut reader, writer) = io::pipe().map_err(io_error)?;
    let max_bytes = spec.disk_bytes;
    let rewriter = thread::Builder::new()
        .name("inputs".to_owned())
        .stack_size(256 << 10)
        .spawn(move || inputs::rewrite(inputs, io::BufWriter::new(writer), max_bytes, starter))
        .map_err(io_error)?;
    let put = docker.put_archive(name, WORK_FOLDER, &mut reader, ARCHIVE_IDLE);
    drop(reader);
    let rewritten = rewriter.join().unwrap_or_else(|_| Err(InputError::Io(io::Error::other("the rewriter broke off"))));
    match (rewritten, put) {
        (Err(error @ InputError::Refused(_)), _) => Err(PutError::Inputs(error)),
        (_, Err(error)) => Err(PutError::Engine(error)),
        (Err(error), Ok(())) => Err(PutError::Inputs(error)),
        (Ok(()), Ok(())) => Ok(()),
    }
}

fn node_fault(error: &io::Error) -> Break {
    Break::End(Outcome::NodeFault, error.to_string())
}

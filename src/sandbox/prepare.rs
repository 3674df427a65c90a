//! From an assignment to a container that only has to be started: image, volume, container, inputs.

use std::io;
use std::thread;
use std::time::Duration;

use super::body::{VolumeOwner, WORK_FOLDER, add_packages, owner_body, task_body, volume_owner};
use super::image::TaskImage;
use super::inputs::{self, InputError, Starter};
use super::naming::LABEL_SPEC;
use super::step::{Break, Step, fault};
use super::task::Task;
use crate::docker::{CreateBody, Docker, Error, ImageInspect, VolumeCreate};
use crate::node::order::TaskNews;
use crate::node::record::Outcome;
use crate::node::spec::{PullPolicy, TaskSpec};
use crate::sys::failpoint::{self, FailPoint};

/// Between two pieces of an archive.
const ARCHIVE_IDLE: Duration = Duration::from_secs(120);
impl Task {
    /// Makes everything that the container needs, and the container. Whatever was there from an earlier try is used.
    pub fn prepare(&mut self) -> Step<CreateBody> {
        self.fetch_inputs()?;
        let dependencies = self.dependencies()?;
        let image = self.image()?;
        let digest = image.repo_digests.first().cloned().unwrap_or_else(|| image.id.clone());
        self.mark(|marks| marks.image_digest = Some(digest));
        let task_image = TaskImage::check(&image).map_err(|reason| Break::End(Outcome::Rejected, reason))?;
        for path in &task_image.scratch {
            self.tell(TaskNews::Note(format!("{path}, a volume of the image, is an empty file system in memory")));
        }
        let mut body = task_body(&self.spec, &self.context.identity, &task_image, &self.context.egress.dns);
        if let Some(volume) = self.packages(&task_image)? {
            add_packages(&mut body, &volume);
        }
        self.open_network()?;
        self.volume(&image)?;
        self.put_dependencies(&image.id, dependencies)?;
        let id = self.container(&body)?;
        self.mark(|marks| marks.container_id = Some(id));
        self.put_inputs()?;
        Ok(body)
    }

    fn image(&self) -> Step<ImageInspect> {
        let reference = self.spec.image.to_string();
        let inspect = {
            let reference = reference.clone();
            move |docker: &Docker| docker.inspect_image(&reference)
        };
        match (self.spec.pull, self.engine(inspect.clone())?) {
            (PullPolicy::IfMissing | PullPolicy::Never, Ok(image)) => return Ok(image),
            (PullPolicy::Never, Err(error)) => return Err(fault(&error)),
            (_, Err(error)) if !error.is_not_found() => return Err(fault(&error)),
            _ => {}
        }
        self.pull(&reference)?;
        self.engine(inspect)?.map_err(|error| fault(&error))
    }

    fn volume(&self, image: &ImageInspect) -> Step<()> {
        let identity = &self.context.identity;
        let labels = identity.labels(&self.spec.key, "task");
        let volume = VolumeCreate { name: self.name.clone(), labels, ..VolumeCreate::default() };
        // One of that name that is there already is answered with itself.
        let made = self.engine_whole(move |docker| docker.create_volume(&volume))?.map_err(|error| fault(&error))?;
        if !self.is_ours(&made.labels) {
            return Err(Break::End(Outcome::NodeFault, format!("the volume {} is not this node's", self.name)));
        }
        if volume_owner(&self.spec) == VolumeOwner::CopyUp {
            return Ok(());
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
        Ok(())
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

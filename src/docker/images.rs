//! Images: inspect, pull, import, remove.

use std::collections::HashSet;
use std::io::Read;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE;
use serde::{Deserialize, Serialize};

use super::Docker;
use super::archive::uncompressed;
use super::call::{Call, Stream, operation};
use super::containers::Change;
use super::error::Error;
use super::lines::{Lines, MAX_LINE};
use super::model::{ImageInspect, or_default};
use super::target::Target;
use super::transport::Patience;

/// The piece in which progress is read.
const BUFFER: usize = 8 << 10;

/// Credentials for a registry. Has no `Debug`: it is never to be seen in a log.
#[derive(Clone, Default, Serialize)]
pub struct RegistryAuth {
    /// User.
    pub username: String,
    /// Password or token.
    pub password: String,
    /// In place of both: what a registry gave for a login, and takes for other tokens.
    #[serde(rename = "identitytoken", skip_serializing_if = "String::is_empty")]
    pub identity_token: String,
    /// In place of both: a token that is sent as it is.
    #[serde(rename = "registrytoken", skip_serializing_if = "String::is_empty")]
    pub registry_token: String,
    /// The registry, such as `registry.example.org:5000`.
    #[serde(rename = "serveraddress")]
    pub server_address: String,
}

/// One line of what the engine says while it pulls or imports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct PullProgress {
    /// The layer's short id or the tag; may be empty.
    #[serde(deserialize_with = "or_default")]
    pub id: String,
    /// What is done, in the engine's words.
    #[serde(deserialize_with = "or_default")]
    pub status: String,
    /// How far it is with this layer.
    #[serde(rename = "progressDetail", deserialize_with = "or_default")]
    pub detail: PullDetail,
}

/// How far the engine is with a layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct PullDetail {
    /// Bytes done; negative or absent where unknown.
    pub current: Option<i64>,
    /// Bytes in all; negative or absent where unknown.
    pub total: Option<i64>,
}

impl Docker {
    /// Reads everything about an image; the reference may be an id.
    pub fn inspect_image(&self, reference: &str) -> Result<ImageInspect, Error> {
        let target = Target::new("images").reference(reference).word("json");
        self.fetch(Call::get(target, operation("inspect image", reference)))
    }

    /// The ids of all images.
    pub fn image_ids(&self) -> Result<HashSet<String>, Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Listed {
            id: String,
        }
        let target = Target::new("images").word("json");
        let listed: Vec<Listed> = self.fetch(Call::get(target, "list the images".to_owned()))?;
        Ok(listed.into_iter().map(|image| image.id).collect())
    }

    /// Pulls one image; without a tag or digest it is `latest`, never all tags. `progress` gets each line of the engine;
    /// `idle` bounds the gap between two lines, so it must be above the time in which the largest layer is unpacked.
    pub fn pull_image(
        &self,
        reference: &str,
        auth: Option<&RegistryAuth>,
        idle: Duration,
        progress: &mut dyn FnMut(&PullProgress),
    ) -> Result<(), Error> {
        let (name, tag) = split_reference(reference);
        let target = Target::new("images").word("create").query("fromImage", name).query("tag", tag);
        let operation = operation("pull image", reference);
        let auth = match auth.map(serde_json::to_vec).transpose() {
            Ok(auth) => auth.map(|json| URL_SAFE.encode(&json)),
            Err(error) => return Err(Error::Input { operation, source: error.into() }),
        };
        let call = Call::post(target, operation).registry_auth(auth).patience(Patience::Idle(idle, Some(idle)));
        follow(self.send(call)?.body, progress)
    }

    /// Makes an image of one layer from an uncompressed tar of a root file system. `changes` are Dockerfile lines, such
    /// as `USER 1000`. `idle` bounds each gap.
    pub fn import_image(
        &self,
        name: &str,
        tag: &str,
        changes: &[&str],
        tar: &mut dyn Read,
        idle: Duration,
    ) -> Result<(), Error> {
        // Podman does not read a tag beside the name.
        let name = format!("{name}:{tag}");
        let mut target = Target::new("images").word("create").query("fromSrc", "-").query("repo", &name);
        for change in changes {
            target = target.query("changes", change);
        }
        let operation = operation("import image", &name);
        let mut body = uncompressed(tar).map_err(|source| Error::Input { operation: operation.clone(), source })?;
        let call = Call::post(target, operation).archive(&mut body).patience(Patience::Idle(idle, Some(idle)));
        follow(self.send(call)?.body, &mut |_| {})
    }

    /// Removes an image, or only the tag where it has others. One in use by a container is a conflict.
    pub fn remove_image(&self, reference: &str) -> Result<Change, Error> {
        let target = Target::new("images").reference(reference);
        let call = Call::delete(target, operation("remove image", reference));
        self.changed(call.within(self.timeouts().slow), 404)
    }
}

/// Reads progress to its end. The status was 200 before the work began, so a failure is a line.
fn follow(mut stream: Stream, progress: &mut dyn FnMut(&PullProgress)) -> Result<(), Error> {
    let mut lines = Lines::default();
    let mut buffer = vec![0; BUFFER];
    loop {
        let count = stream.read_some(&mut buffer)?;
        if count == 0 {
            return match lines.handle_end() {
                Some(line) => handle_line(&stream, &line, progress),
                None => Ok(()),
            };
        }
        lines.handle_input(&buffer[..count]);
        loop {
            match lines.poll_line() {
                Ok(Some(line)) => handle_line(&stream, line, progress)?,
                Ok(None) => break,
                Err(_) => return Err(stream.protocol(format!("a line of more than {MAX_LINE} bytes"))),
            }
        }
    }
}

fn handle_line(stream: &Stream, line: &[u8], progress: &mut dyn FnMut(&PullProgress)) -> Result<(), Error> {
    #[derive(Deserialize)]
    struct Line {
        #[serde(default)]
        error: Option<String>,
        #[serde(flatten)]
        progress: PullProgress,
    }
    match serde_json::from_slice(line) {
        Ok(Line { error: Some(message), .. }) => Err(stream.refused(&message)),
        Ok(Line { error: None, progress: line }) => {
            progress(&line);
            Ok(())
        }
        Err(error) => Err(stream.protocol(format!("a line of progress that is no valid JSON ({error})"))),
    }
}

/// Name, and tag or digest. A digest wins over a tag, as it does with the engine.
fn split_reference(reference: &str) -> (&str, &str) {
    let (rest, digest) = match reference.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (reference, None),
    };
    // A colon before the last slash is that of a registry's port.
    let colon = rest.rfind(':').filter(|colon| !rest[*colon..].contains('/'));
    let (name, tag) = colon.map_or((rest, None), |colon| (&rest[..colon], Some(&rest[colon + 1..])));
    (name, digest.or(tag).unwrap_or("latest"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_references_as_the_engine_does() {
        for (reference, name, tag) in [
            ("python", "python", "latest"),
            ("python:3.12", "python", "3.12"),
            ("host:5000/a/b", "host:5000/a/b", "latest"),
            ("host:5000/a/b:1", "host:5000/a/b", "1"),
            ("a@sha256:00", "a", "sha256:00"),
            ("host:5000/a:1@sha256:00", "host:5000/a", "sha256:00"),
        ] {
            assert_eq!(split_reference(reference), (name, tag), "{reference}");
        }
    }
}

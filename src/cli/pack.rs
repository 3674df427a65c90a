//! A task file or folder becomes the archive that the small master takes: `task.json`, then the inputs below
//! `workspace/`, or as one archive, `inputs`. Only plain files and folders travel; a link could name anything on this machine.

use std::collections::HashMap;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use tar::{Builder, EntryType, Header};

use crate::config::taskfile::{Files, MAX_TASK_FILE_BYTES, TaskFile};
use crate::node::id::Id;
use crate::node::spec::MAX_INPUT_BYTES;

/// Name of the task file in a folder and in the archive.
pub(super) const TASK_FILE: &str = "task.json";
/// Name in the archive of one that the task file names.
const ARCHIVE: &str = "inputs";
/// Folders in folders; a path of the kernel holds few more.
const MAX_DEPTH: usize = 64;
/// A tar archive consists of such blocks, and ends with two empty ones.
const BLOCK: usize = 512;

/// What is wrong with a task on its way out: the author's to mend.
pub(super) type PackError = String;

/// Reads `source` and packs it. `name` replaces the task file's.
pub(super) fn pack(source: &Path, name: Option<&Id>) -> Result<Vec<u8>, PackError> {
    let meta = fs::metadata(source).map_err(|error| format!("{} can't be read: {error}", source.display()))?;
    let mut packer = Packer::default();
    let mut task;
    if meta.is_dir() {
        task = folder_task(source)?;
        packer.add_folder(source, Path::new(""), &|path| path == Path::new(TASK_FILE), 0)?;
        if task.command.is_empty() && !packer.has_program() {
            return Err(format!(
                "{} has no main.py or other .py file to start, and no {TASK_FILE} with a command",
                source.display()
            ));
        }
    } else {
        task = read_task(source)?;
        let base = source.parent().filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new("."));
        match (&task.files, &task.archive) {
            (Some(_), Some(_)) => {
                return Err(format!(
                    "{}: \"files\" and \"archive\" are both there: a task has one of them",
                    source.display()
                ));
            }
            (None, Some(archive)) => packer.archive = Some(read_regular(&base.join(archive), MAX_INPUT_BYTES)?),
            (None, None) => {}
            (Some(Files::Folder(folder)), None) => packer.add_root(&base.join(folder))?,
            (Some(Files::List(list)), None) => {
                for path in list {
                    packer.add_listed(base, path)?;
                }
            }
        }
    }
    if let Some(name) = name {
        task.name = Some(name.to_string());
    }
    packer.finish(&task)
}

fn folder_task(folder: &Path) -> Result<TaskFile, PackError> {
    let path = folder.join(TASK_FILE);
    let task = match fs::symlink_metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(TaskFile::default()),
        _ => read_task(&path)?,
    };
    if task.files.is_some() || task.archive.is_some() {
        let key = if task.files.is_some() { "files" } else { "archive" };
        return Err(format!(
            "{}: \"{key}\" has no place in a folder's task file: all of the folder is put into the work folder",
            path.display()
        ));
    }
    Ok(task)
}

fn read_task(path: &Path) -> Result<TaskFile, PackError> {
    let bytes = read_regular(path, MAX_TASK_FILE_BYTES)?;
    let text = String::from_utf8(bytes).map_err(|_| format!("{} is not UTF-8 text", path.display()))?;
    TaskFile::parse(&text).map_err(|error| format!("{}: {error}", path.display()))
}

#[derive(Default)]
struct Packer {
    entries: Vec<(PathBuf, Entry)>,
    /// Goes as it is, in place of the entries.
    archive: Option<Vec<u8>>,
    /// Paths that are there, and whether each is a folder.
    known: HashMap<PathBuf, bool>,
    total: usize,
}

enum Entry {
    Folder,
    File { bytes: Vec<u8>, mode: u32, mtime: u64 },
}

impl Packer {
    /// The `files` text: a folder's content, or one file under its own name.
    fn add_root(&mut self, path: &Path) -> Result<(), PackError> {
        let meta = plain_metadata(path)?;
        if meta.is_dir() {
            return self.add_folder(path, Path::new(""), &|_| false, 0);
        }
        let name = path.file_name().ok_or_else(|| format!("{} has no name", path.display()))?;
        self.add_file(path, Path::new(name))
    }

    /// A path of the `files` list keeps its place relative to the task file.
    fn add_listed(&mut self, base: &Path, listed: &str) -> Result<(), PackError> {
        let inside = Path::new(listed);
        if listed.is_empty()
            || !inside.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
        {
            return Err(format!(
                "\"files\" has {listed:?}: it must be a path below the task file's folder, without '..'"
            ));
        }
        let inside: PathBuf = inside.components().filter(|part| matches!(part, Component::Normal(_))).collect();
        let mut parent = PathBuf::new();
        for part in inside.parent().into_iter().flat_map(Path::components) {
            parent.push(part);
            plain_metadata(&base.join(&parent))?;
            self.push(parent.clone(), Entry::Folder)?;
        }
        let path = base.join(&inside);
        if plain_metadata(&path)?.is_dir() {
            self.push(inside.clone(), Entry::Folder)?;
            self.add_folder(&path, &inside, &|_| false, 0)
        } else {
            self.add_file(&path, &inside)
        }
    }

    /// Everything in `folder`, by name, so that the same folder gives the same archive.
    fn add_folder(
        &mut self,
        folder: &Path,
        inside: &Path,
        skip: &dyn Fn(&Path) -> bool,
        depth: usize,
    ) -> Result<(), PackError> {
        let unreadable = |error: io::Error| format!("{} can't be read: {error}", folder.display());
        if depth > MAX_DEPTH {
            return Err(format!("{} lies more than {MAX_DEPTH} folders deep", folder.display()));
        }
        let mut names = Vec::new();
        for entry in fs::read_dir(folder).map_err(unreadable)? {
            names.push(entry.map_err(unreadable)?.file_name());
        }
        names.sort();
        for name in names {
            let (path, inside) = (folder.join(&name), inside.join(&name));
            if skip(&inside) {
                continue;
            }
            if plain_metadata(&path)?.is_dir() {
                self.push(inside.clone(), Entry::Folder)?;
                self.add_folder(&path, &inside, skip, depth + 1)?;
            } else {
                self.add_file(&path, &inside)?;
            }
        }
        Ok(())
    }

    fn add_file(&mut self, path: &Path, inside: &Path) -> Result<(), PackError> {
        let meta = plain_metadata(path)?;
        if meta.len() > MAX_INPUT_BYTES as u64 {
            return Err(too_large(path));
        }
        let bytes = read_regular(path, MAX_INPUT_BYTES)?;
        let entry = Entry::File {
            bytes,
            mode: if meta.mode() & 0o111 == 0 { 0o644 } else { 0o755 },
            mtime: u64::try_from(meta.mtime()).unwrap_or(0),
        };
        self.push(inside.to_owned(), entry)
    }

    fn push(&mut self, inside: PathBuf, entry: Entry) -> Result<(), PackError> {
        if inside.to_str().is_none() {
            return Err(format!("{} has a name that is not UTF-8", inside.display()));
        }
        let is_folder = matches!(entry, Entry::Folder);
        match self.known.insert(inside.clone(), is_folder) {
            None => {}
            Some(true) if is_folder => return Ok(()),
            Some(_) => return Err(format!("\"files\" names {} twice", inside.display())),
        }
        let size = match &entry {
            Entry::Folder => 0,
            Entry::File { bytes, .. } => bytes.len().next_multiple_of(BLOCK),
        };
        // A long name takes a header and a block or more of its own.
        let name =
            if inside.as_os_str().len() > 80 { BLOCK + inside.as_os_str().len().next_multiple_of(BLOCK) } else { 0 };
        self.total = self.total.saturating_add(size + name + BLOCK);
        if self.total + 2 * BLOCK > MAX_INPUT_BYTES {
            return Err(too_large(&inside));
        }
        self.entries.push((inside, entry));
        Ok(())
    }

    fn has_program(&self) -> bool {
        self.entries.iter().any(|(path, entry)| {
            let is_top = path.components().count() == 1;
            is_top && matches!(entry, Entry::File { .. }) && path.extension().is_some_and(|ending| ending == "py")
        })
    }

    fn finish(self, task: &TaskFile) -> Result<Vec<u8>, PackError> {
        let mut builder = Builder::new(Vec::with_capacity(self.total + 8 * BLOCK));
        let json = task.to_json();
        let head = Entry::File { bytes: json.into_bytes(), mode: 0o644, mtime: 0 };
        let archive = self.archive.map(|bytes| (PathBuf::from(ARCHIVE), Entry::File { bytes, mode: 0o644, mtime: 0 }));
        let rest = self.entries.into_iter().map(|(path, entry)| (Path::new("workspace").join(path), entry));
        for (path, entry) in std::iter::once((PathBuf::from(TASK_FILE), head)).chain(archive).chain(rest) {
            let mut header = Header::new_gnu();
            let bytes = match entry {
                Entry::Folder => {
                    header.set_entry_type(EntryType::Directory);
                    header.set_mode(0o755);
                    Vec::new()
                }
                Entry::File { bytes, mode, mtime } => {
                    header.set_entry_type(EntryType::Regular);
                    header.set_mode(mode);
                    header.set_mtime(mtime);
                    bytes
                }
            };
            header.set_size(bytes.len() as u64);
            builder
                .append_data(&mut header, &path, bytes.as_slice())
                .map_err(|error| format!("{} can't be packed: {error}", path.display()))?;
        }
        builder.into_inner().map_err(|error| format!("the archive can't be made: {error}"))
    }
}

fn too_large(path: &Path) -> PackError {
    format!(
        "the inputs are larger than {} MiB with {}: that is the most that a task can bring along",
        MAX_INPUT_BYTES >> 20,
        path.display()
    )
}

fn plain_metadata(path: &Path) -> Result<Metadata, PackError> {
    let meta = fs::symlink_metadata(path).map_err(|error| format!("{} can't be read: {error}", path.display()))?;
    if meta.is_dir() || meta.is_file() {
        return Ok(meta);
    }
    let what = if meta.is_symlink() { "a symbolic link" } else { "no regular file" };
    Err(format!("{} is {what}: only files and folders are taken", path.display()))
}

/// Reads a file that is one, even if somebody swaps it for a link or a pipe in between.
fn read_regular(path: &Path, limit: usize) -> Result<Vec<u8>, PackError> {
    let unreadable = |error: io::Error| format!("{} can't be read: {error}", path.display());
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let flags = i32::try_from(flags.bits()).map_err(|error| error.to_string())?;
    let file: File = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(unreadable)?;
    if !file.metadata().map_err(unreadable)?.is_file() {
        return Err(format!("{} is no regular file", path.display()));
    }
    let mut bytes = Vec::new();
    file.take(limit as u64 + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() > limit {
        return Err(format!("{} is larger than {limit} bytes", path.display()));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("hivemind-pack-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        path
    }

    fn names(archive: &[u8]) -> Vec<String> {
        let mut archive = tar::Archive::new(archive);
        let entries = archive.entries().unwrap();
        entries.map(|entry| entry.unwrap().path().unwrap().to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn packs_a_folder_without_its_task_file() {
        let dir = scratch("folder");
        fs::create_dir(dir.join("data")).unwrap();
        fs::write(dir.join("main.py"), "print(1)").unwrap();
        fs::write(dir.join("data/in.txt"), "x").unwrap();
        fs::write(dir.join("data/task.json"), "not ours").unwrap();
        fs::write(dir.join("task.json"), r#"{"name": "a", "cpu": 2}"#).unwrap();
        let id = Id::parse("b").unwrap();
        let archive = pack(&dir, Some(&id)).unwrap();
        let expected =
            ["task.json", "workspace/data", "workspace/data/in.txt", "workspace/data/task.json", "workspace/main.py"];
        assert_eq!(names(&archive), expected);
        let mut first = String::new();
        let mut reader = tar::Archive::new(archive.as_slice());
        reader.entries().unwrap().next().unwrap().unwrap().read_to_string(&mut first).unwrap();
        assert_eq!(TaskFile::parse(&first).unwrap().name.as_deref(), Some("b"));
        assert_eq!(pack(&dir, Some(&id)).unwrap(), archive);
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn packs_what_a_task_file_lists() {
        let dir = scratch("list");
        fs::create_dir_all(dir.join("a/b")).unwrap();
        fs::write(dir.join("a/b/one"), "1").unwrap();
        fs::write(dir.join("two"), "2").unwrap();
        let file = dir.join("t.json");
        fs::write(&file, r#"{"files": ["a/b/one", "./two", "a"]}"#).unwrap();
        let error = pack(&file, None).unwrap_err();
        assert!(error.contains("names a/b/one twice"), "{error}");
        fs::write(&file, r#"{"files": ["a/b", "./two"]}"#).unwrap();
        let expected = ["task.json", "workspace/a", "workspace/a/b", "workspace/a/b/one", "workspace/two"];
        assert_eq!(names(&pack(&file, None).unwrap()), expected);
        fs::write(&file, r#"{"files": "a"}"#).unwrap();
        assert_eq!(names(&pack(&file, None).unwrap()), ["task.json", "workspace/b", "workspace/b/one"]);
        for wrong in [r#"["../x"]"#, r#"["/etc/passwd"]"#, r#"[""]"#, r#"["none"]"#, r#""none""#] {
            fs::write(&file, format!("{{\"files\": {wrong}}}")).unwrap();
            assert!(pack(&file, None).is_err(), "{wrong}");
        }
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn an_archive_goes_as_it_is() {
        let dir = scratch("archive");
        fs::write(dir.join("in.zip"), "PK and so on").unwrap();
        let task = dir.join("task.json");
        fs::write(&task, r#"{"archive": "in.zip"}"#).unwrap();
        assert_eq!(names(&pack(&task, None).unwrap()), ["task.json", "inputs"]);
        fs::write(&task, r#"{"archive": "in.zip", "files": ["in.zip"]}"#).unwrap();
        assert!(pack(&task, None).unwrap_err().contains("a task has one of them"));
        fs::write(dir.join("main.py"), "").unwrap();
        fs::write(&task, r#"{"archive": "in.zip"}"#).unwrap();
        assert!(pack(&dir, None).unwrap_err().contains("\"archive\" has no place in a folder's task file"));
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn refuses_links_and_large_inputs_by_path() {
        let dir = scratch("links");
        fs::write(dir.join("main.py"), "").unwrap();
        symlink("/etc/passwd", dir.join("link")).unwrap();
        let error = pack(&dir, None).unwrap_err();
        assert!(error.contains("/link is a symbolic link"), "{error}");
        fs::remove_file(dir.join("link")).unwrap();
        File::create(dir.join("big")).unwrap().set_len(MAX_INPUT_BYTES as u64).unwrap();
        let error = pack(&dir, None).unwrap_err();
        assert!(error.contains("larger than 30 MiB with big"), "{error}");
        fs::remove_file(dir.join("big")).unwrap();
        fs::remove_file(dir.join("main.py")).unwrap();
        let error = pack(&dir, None).unwrap_err();
        assert!(error.contains("no main.py"), "{error}");
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn long_names_stay_within_the_promised_size() {
        let dir = scratch("long");
        let deep = dir.join("d".repeat(120)).join("e".repeat(200));
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("x.py"), "1").unwrap();
        fs::write(dir.join("main.py"), "1").unwrap();
        let mut packer = Packer::default();
        packer.add_folder(&dir, Path::new(""), &|_| false, 0).unwrap();
        let promised = packer.total;
        let head = 2 * BLOCK;
        let end = 2 * BLOCK;
        assert!(packer.finish(&TaskFile::default()).unwrap().len() <= promised + head + end);
        fs::remove_dir_all(&dir).unwrap();
    }
}

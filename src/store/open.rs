//! Opens the state folder: checks that it is ours and can be written, opens the database or sets it aside, and gives
//! the start its epoch. What is in it is put in order by `rebuild`.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, TransactionBehavior};

use super::batch::Duties;
use super::db;
use super::files;
use super::queue::Queue;
use super::rebuild::{self, RebuildError, Rebuilt};
use super::spool::Spool;
use super::stamp::{self, Boot};
use super::thread::Health;
use super::{RECOVERED_HISTORY, Recovered, StoreConfig};
use crate::sys::private::make_dirs;

const DATABASE: &str = "store.db";
/// Beside the database: its epoch must grow even when the database is lost, as (stream, epoch, offset) names bytes for
/// ever.
const EPOCH: &str = "epoch";
const RESERVE: &str = "reserve";
/// SQLite's companions, which belong to the file that they were written for.
const COMPANIONS: [&str; 2] = ["-wal", "-shm"];
/// The file as it is, a new one, and one more when space had to be made.
const MAX_TRIES: usize = 4;
/// Files set aside before the oldest name is used again.
const MAX_ASIDE: u32 = 1_000;

/// Why the state folder can't be used. Each says what to do.
#[derive(Debug)]
pub enum OpenError {
    /// The folder, or a file in it, can't be made, read or written.
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The folder belongs to another user.
    WrongOwner {
        /// Which.
        path: PathBuf,
    },
    /// The database can't be opened, though it is not damaged.
    Database {
        /// Which.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
    /// No thread could be started.
    Thread(io::Error),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder { path, source } if source.kind() == io::ErrorKind::ReadOnlyFilesystem => write!(
                f,
                "the state folder's {} is on a read-only file system: mount it writable or name another folder",
                path.display()
            ),
            Self::Folder { path, source } if files::is_full(source) => write!(
                f,
                "there is no space for {}: free some of that disk or name another state folder",
                path.display()
            ),
            Self::Folder { path, source } if source.kind() == io::ErrorKind::PermissionDenied => write!(
                f,
                "no permission for {}: give it to the user that the worker runs as, or name another state folder",
                path.display()
            ),
            Self::Folder { path, source } => {
                write!(f, "cannot use {}: {source}; check the state folder or name another one", path.display())
            }
            Self::WrongOwner { path } => write!(
                f,
                "{} belongs to another user: run the worker as that user, or change the owner of the folder",
                path.display()
            ),
            Self::Database { path, source } => write!(
                f,
                "cannot open {}: {source}; check that no other worker uses it and that the disk is sound",
                path.display()
            ),
            Self::Thread(source) => write!(f, "cannot start the store thread: {source}"),
        }
    }
}

impl std::error::Error for OpenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Folder { source, .. } | Self::Thread(source) => Some(source),
            Self::Database { source, .. } => Some(source),
            Self::WrongOwner { .. } => None,
        }
    }
}

/// A store that is ready for its thread.
pub(super) struct Opened {
    pub(super) connection: Connection,
    pub(super) readers: [Connection; 2],
    pub(super) spool: Spool,
    pub(super) queue: Queue,
    pub(super) duties: Duties,
    pub(super) health: Health,
    pub(super) reserve: PathBuf,
    pub(super) swept: Vec<String>,
    pub(super) recovered: Recovered,
}

/// What stands in the way of a usable database.
enum Obstacle {
    /// The file is to be set aside under a name with this word, for this reason.
    Aside(&'static str, String),
    Database(rusqlite::Error),
    Folder(PathBuf, io::Error),
}

impl From<rusqlite::Error> for Obstacle {
    fn from(error: rusqlite::Error) -> Self {
        if db::is_damage(&error) { Self::Aside("damaged", error.to_string()) } else { Self::Database(error) }
    }
}

impl From<RebuildError> for Obstacle {
    fn from(error: RebuildError) -> Self {
        match error {
            RebuildError::Database(error) => error.into(),
            RebuildError::Spool(path, error) => Self::Folder(path, error),
        }
    }
}

/// See [`super::Store::open`].
pub(super) fn open(dir: &Path, config: &StoreConfig) -> Result<Opened, OpenError> {
    let mut warnings = Vec::new();
    let at = |path: PathBuf| move |source| OpenError::Folder { path, source };
    prepare_folder(dir, &mut warnings)?;
    let boot = config.boot_id.as_deref().map(Boot::new);
    let spool = Spool::open(dir.join("spool"), boot).map_err(at(dir.join("spool")))?;
    let path = dir.join(DATABASE);
    let mut tries = 0;
    let (connection, rebuilt, epoch) = loop {
        tries += 1;
        match try_open(dir, &spool) {
            Ok(opened) => break opened,
            Err(Obstacle::Aside(word, reason)) if tries < MAX_TRIES => {
                let aside = set_aside(&path, word).map_err(at(path.clone()))?;
                warnings.push(format!(
                    "the task database was set aside as {}: {reason}; tasks are rebuilt from the spool, and the \
                     history begins anew",
                    aside.display()
                ));
            }
            Err(Obstacle::Database(error)) if tries < MAX_TRIES && db::is_full(&error) => {
                files::remove_if_there(&dir.join(RESERVE)).map_err(at(dir.join(RESERVE)))?;
            }
            Err(Obstacle::Folder(_, error)) if tries < MAX_TRIES && files::is_full(&error) => {
                files::remove_if_there(&dir.join(RESERVE)).map_err(at(dir.join(RESERVE)))?;
            }
            Err(Obstacle::Folder(path, source)) => return Err(OpenError::Folder { path, source }),
            Err(Obstacle::Database(source)) => return Err(OpenError::Database { path, source }),
            Err(Obstacle::Aside(_, reason)) => return Err(at(path)(io::Error::other(reason))),
        }
    };
    warnings.extend(rebuilt.warnings);
    let database = |source| OpenError::Database { path: path.clone(), source };
    let readers = [db::open_reader(&path).map_err(database)?, db::open_reader(&path).map_err(database)?];
    let swept = rebuild::sweep(&spool, &rebuilt.sweeps, &rebuilt.spent, &rebuilt.settled);
    let reserve = dir.join(RESERVE);
    let health = match files::make_reserve(&reserve, config.reserve_bytes) {
        Ok(()) => Health::Good,
        Err(error) => {
            let reason = format!("no space for the store's reserve: {error}");
            warnings.push(format!("{reason}; no task is taken until there is"));
            Health::Stalled(reason)
        }
    };
    let history = db::history(&connection, RECOVERED_HISTORY, None).map_err(database)?;
    Ok(Opened {
        connection,
        readers,
        spool,
        queue: rebuilt.queue,
        duties: rebuilt.duties,
        health,
        reserve,
        swept,
        recovered: Recovered { epoch, attempts: rebuilt.attempts, history, warnings },
    })
}

fn prepare_folder(dir: &Path, warnings: &mut Vec<String>) -> Result<(), OpenError> {
    let failed = |source| OpenError::Folder { path: dir.to_path_buf(), source };
    make_dirs(dir).map_err(failed)?;
    if !files::is_ours(dir).map_err(failed)? {
        return Err(OpenError::WrongOwner { path: dir.to_path_buf() });
    }
    if files::make_private(dir).map_err(failed)? {
        warnings.push(format!("{} was open to other users: it is private now", dir.display()));
    }
    let probe = dir.join("probe");
    files::remove_if_there(&probe).map_err(failed)?;
    let file = files::create_new(&probe).map_err(failed)?;
    if !stamp::are_kept(&file) {
        log::warn!(
            "the file system of {} keeps no attributes: after a power loss, the last second of an output may be others' bytes",
            dir.display()
        );
    }
    files::remove_if_there(&probe).map_err(failed)
}

/// Opens the database as it is, and brings rows and spool together in one transaction: after a crash in between, the
/// next start finds what this one found.
fn try_open(dir: &Path, spool: &Spool) -> Result<(Connection, Rebuilt, u64), Obstacle> {
    let path = dir.join(DATABASE);
    make_file(&path)?;
    let mut connection = db::open(&path)?;
    let version = db::version(&connection)?;
    if version > db::VERSION {
        let text = format!("a newer version of the worker wrote it (schema {version}, known is {})", db::VERSION);
        return Err(Obstacle::Aside("newer", text));
    }
    if let Some(damage) = db::quick_check(&connection)? {
        return Err(Obstacle::Aside("damaged", damage));
    }
    let is_new = version != db::VERSION;
    let (found, segment_epoch) = spool.scan().map_err(|error| Obstacle::Folder(dir.join("spool"), error))?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    if is_new {
        // Tables without a version are of no version that ever was: they fail here, and the file is set aside.
        db::create(&transaction)?;
    }
    let epoch_file = dir.join(EPOCH);
    let text = match files::read_patiently(|| files::read_bounded(&epoch_file, 64)) {
        Err(error) if !files::is_lost(&error) => return Err(Obstacle::Folder(epoch_file, error)),
        text => text.unwrap_or_default(),
    };
    let of_file = parse_epoch(&text);
    let of_row = parse_epoch(&db::value(&transaction, EPOCH)?.unwrap_or_default());
    let epoch = of_file.max(of_row).max(segment_epoch).saturating_add(1);
    db::put_value(&transaction, EPOCH, epoch.to_string().as_bytes())?;
    let rebuilt = rebuild::rebuild(&transaction, spool, found, is_new)?;
    transaction.commit()?;
    files::replace(&epoch_file, epoch.to_string().as_bytes()).map_err(|error| Obstacle::Folder(epoch_file, error))?;
    Ok((connection, rebuilt, epoch))
}

fn parse_epoch(text: &[u8]) -> u64 {
    let text = std::str::from_utf8(text).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

/// Makes the file private before SQLite sees it; its companions take the mode from it. A companion without its file,
/// or beside an empty one, must not be taken for a new file's.
fn make_file(path: &Path) -> Result<(), Obstacle> {
    let failed = |error| Obstacle::Folder(path.to_path_buf(), error);
    let len = std::fs::metadata(path).map(|metadata| metadata.len()).ok();
    let wal = companion(path, COMPANIONS[0]);
    let has_wal = std::fs::metadata(&wal).is_ok_and(|metadata| metadata.len() > 0);
    if len.unwrap_or(0) == 0 && has_wal {
        return Err(Obstacle::Aside("damaged", "the file is empty or gone, its log is not".to_owned()));
    }
    match len {
        Some(_) => files::make_private(path).map(drop).map_err(failed),
        None => {
            files::create_new(path).map_err(failed)?;
            files::sync_folder(path.parent().unwrap_or(Path::new("."))).map_err(failed)
        }
    }
}

fn companion(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Renames the database and its companions, these first: a new database must not find an old log.
fn set_aside(path: &Path, word: &str) -> io::Result<PathBuf> {
    let name = |number: u32| companion(path, &format!(".{word}-{number}"));
    let is_free = |aside: &PathBuf| !aside.exists() && !companion(aside, COMPANIONS[0]).exists();
    let aside = (1..MAX_ASIDE).map(name).find(is_free).unwrap_or_else(|| name(MAX_ASIDE));
    for suffix in COMPANIONS {
        rename_if_there(&companion(path, suffix), &companion(&aside, suffix))?;
    }
    rename_if_there(path, &aside)?;
    files::sync_folder(path.parent().unwrap_or(Path::new(".")))?;
    Ok(aside)
}

fn rename_if_there(from: &Path, to: &Path) -> io::Result<()> {
    match std::fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Folder;
    use super::*;

    #[test]
    fn each_start_has_a_larger_epoch_even_without_the_database() {
        let folder = Folder::new();
        let config = StoreConfig::default();
        let epochs: Vec<u64> = (0..3).map(|_| open(folder.path(), &config).unwrap().recovered.epoch).collect();
        assert_eq!(epochs, [1, 2, 3]);
        set_aside(&folder.path().join(DATABASE), "damaged").unwrap();
        assert_eq!(open(folder.path(), &config).unwrap().recovered.epoch, 4);
        std::fs::remove_file(folder.path().join(EPOCH)).unwrap();
        assert_eq!(open(folder.path(), &config).unwrap().recovered.epoch, 5);
    }

    #[test]
    fn says_what_to_do_when_the_folder_is_no_folder() {
        let folder = Folder::new();
        let path = folder.path().join("file");
        std::fs::write(&path, "").unwrap();
        let error = open(&path, &StoreConfig::default()).err().unwrap().to_string();
        assert!(error.contains("name another"), "{error}");
    }

    #[test]
    fn an_old_log_never_meets_a_new_database() {
        let folder = Folder::new();
        let config = StoreConfig::default();
        let path = folder.path().join(DATABASE);
        std::fs::write(companion(&path, "-wal"), "old").unwrap();
        let opened = open(folder.path(), &config).unwrap();
        let warnings = opened.recovered.warnings;
        assert!(warnings.iter().any(|text| text.contains("set aside")), "{warnings:?}");
        assert!(folder.path().join("store.db.damaged-1-wal").exists());
    }
}

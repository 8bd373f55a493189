//! What statements spill to disk: files in one folder, counted for their statement and for the server.
//!
//! Invariants: a file belongs to a running statement and goes with it; what an earlier process left is
//! removed at start, and nothing else: the folder may be a disk of its own. Bytes are charged before they are
//! written, and the disk keeps its free bytes.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use datafusion::common::{DataFusionError, Result as DataFusionResult};
use datafusion::execution::{SpillFile, SpillWriter, TempFileFactory};
use futures::{Stream, StreamExt, stream};
use parking_lot::Mutex;
use tokio::io::AsyncReadExt;

use super::control::StatementControl;
use super::memory::{Account, Charge, Level, Limit};
use crate::config::Config;
use crate::error::{Error, ErrorKind, Result, SqlState};
use crate::platform;
use crate::storage::DiskSpace;

/// Bytes of a file that are read at once.
const READ_BYTES: usize = 128 << 10;
/// How the names of folders begin that earlier versions spilled to.
const FORMER_FOLDERS: &str = "datafusion-";

/// The folder for what statements spill.
#[derive(Debug)]
pub struct Spill {
    folder: PathBuf,
    /// A database in memory has a folder of its own among the temporary files.
    is_temporary: bool,
    disk: DiskSpace,
    /// What all statements have spilled.
    all: Arc<Account>,
    /// The limit of each statement.
    of_statement: Limit,
    /// The number of the next file.
    next: AtomicU64,
}

impl Spill {
    /// Returns the folder in the data directory. Nothing is created before a statement spills.
    pub(crate) fn new(config: &Config) -> Arc<Self> {
        let of = |level, bytes: u64, setting| Limit {
            level,
            bytes_max: usize::try_from(bytes).unwrap_or(usize::MAX),
            noun: "spilled rows",
            setting,
        };
        let statement = match config.statement_spill_bytes_max {
            0 => config.spill_bytes_max / 4,
            bytes => bytes,
        };
        let (measured, folder) = match &config.data_dir {
            Some(dir) => (spill_folder(dir), spill_folder(dir)),
            None => {
                let parent = std::env::temp_dir();
                let folder = parent.join(format!("kalamdb-{}", uuid::Uuid::new_v4().simple()));
                (parent, folder)
            }
        };
        Arc::new(Self {
            is_temporary: config.data_dir.is_none(),
            disk: DiskSpace::new(&measured, config.disk_free_min_bytes),
            folder,
            all: Account::new(of(Level::Server, config.spill_bytes_max, "spill_bytes_max")),
            of_statement: of(Level::Statement, statement, "statement_spill_bytes_max"),
            next: AtomicU64::new(0),
        })
    }

    /// Returns what all statements have spilled.
    pub fn all(&self) -> &Arc<Account> {
        &self.all
    }

    /// Returns what creates the files of a statement.
    pub(crate) fn files(self: &Arc<Self>, control: &Arc<StatementControl>) -> Arc<dyn TempFileFactory> {
        let account = self.all.child(self.of_statement);
        Arc::new(StatementFiles { spill: Arc::clone(self), account, control: Arc::clone(control) })
    }
}

impl Drop for Spill {
    fn drop(&mut self) {
        if self.is_temporary {
            // Mostly the folder was never created. Files are gone, so a failure leaves an empty folder.
            let _ = fs::remove_dir(&self.folder);
        }
    }
}

/// Creates the files of one statement.
struct StatementFiles {
    spill: Arc<Spill>,
    account: Arc<Account>,
    control: Arc<StatementControl>,
}

impl StatementFiles {
    fn create(&self) -> Result<Spilled> {
        let Self { spill, account, control } = self;
        if spill.is_temporary {
            fs::create_dir_all(&spill.folder).map_err(failed)?;
        }
        let charge = Mutex::new(account.charge(0).map_err(refused)?);
        let path = loop {
            let path = spill.folder.join(spill.next.fetch_add(1, Ordering::Relaxed).to_string());
            match platform::create_private(&path) {
                Ok(_) => break path,
                // It could not be removed at start.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(failed(error)),
            }
        };
        Ok(Spilled { path, spill: Arc::clone(spill), control: Arc::clone(control), charge })
    }
}

impl TempFileFactory for StatementFiles {
    fn create_temp_file(&self, _: &str) -> DataFusionResult<Arc<dyn SpillFile>> {
        Ok(Arc::new(StatementFile(Arc::new(self.create()?))))
    }
}

/// A file on disk. It goes when nobody reads or writes it any more.
struct Spilled {
    path: PathBuf,
    spill: Arc<Spill>,
    control: Arc<StatementControl>,
    charge: Mutex<Charge>,
}

impl Spilled {
    /// Counts bytes that are about to be written, if they may be.
    fn reserve(&self, bytes: usize) -> Result<()> {
        self.charge.lock().grow(bytes).map_err(refused)?;
        self.spill.disk.check_room_for(bytes as u64)?;
        self.spill.disk.note_written(bytes);
        self.control.add_spill(bytes as u64);
        Ok(())
    }
}

impl Drop for Spilled {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(%error, "a file that a statement spilled cannot be removed");
        }
    }
}

struct StatementFile(Arc<Spilled>);

impl SpillFile for StatementFile {
    fn size(&self) -> Option<u64> {
        Some(self.0.charge.lock().bytes() as u64)
    }

    fn read_stream(&self) -> DataFusionResult<Pin<Box<dyn Stream<Item = DataFusionResult<Bytes>> + Send>>> {
        let chunks = stream::try_unfold((Arc::clone(&self.0), None), |(spilled, open)| async move {
            let mut file = match open {
                Some(file) => file,
                None => tokio::fs::File::open(&spilled.path).await.map_err(failed)?,
            };
            let mut chunk = BytesMut::with_capacity(READ_BYTES);
            let read = file.read_buf(&mut chunk).await.map_err(failed)?;
            Ok::<_, DataFusionError>((read > 0).then(|| (chunk.freeze(), (spilled, Some(file)))))
        });
        Ok(chunks.boxed())
    }

    fn open_writer(&self) -> DataFusionResult<Box<dyn SpillWriter>> {
        let file = fs::OpenOptions::new().append(true).open(&self.0.path).map_err(failed)?;
        Ok(Box::new(Writer { spilled: Arc::clone(&self.0), file }))
    }
}

struct Writer {
    spilled: Arc<Spilled>,
    file: fs::File,
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.spilled.reserve(bytes.len()).map_err(io::Error::other)?;
        self.file.write_all(bytes).map_err(|error| io::Error::other(failed(error)))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl SpillWriter for Writer {
    fn finish(&mut self) -> DataFusionResult<()> {
        Ok(())
    }
}

/// Returns the error of a statement that spills more than it may.
fn refused(limit: Limit) -> Error {
    Error::new(ErrorKind::ResourceExhausted, SqlState::LIMIT_EXCEEDED, limit.to_string())
        .hint("sort, group or join fewer rows at a time, or raise the limit")
}

fn failed(error: io::Error) -> Error {
    let (kind, sqlstate, message) = match error.kind() {
        io::ErrorKind::StorageFull => {
            (ErrorKind::ResourceExhausted, SqlState::DISK_FULL, "the disk is full, so nothing can be spilled")
        }
        _ => (ErrorKind::Unavailable, SqlState::IO_ERROR, "rows cannot be spilled to disk or read back"),
    };
    Error::new(kind, sqlstate, message).hint("check the disk of the data directory").source(error)
}

/// Returns the folder in a data directory.
fn spill_folder(data_dir: &Path) -> PathBuf {
    data_dir.join("spill")
}

/// Creates the folder, and removes what an earlier process has spilled. The caller holds the lock of the data
/// directory.
///
/// # Errors
/// 58030 when the folder cannot be created or read.
pub(crate) fn remove_spilled(data_dir: &Path) -> Result<()> {
    remove_files(&spill_folder(data_dir)).map_err(|error| {
        Error::new(
            ErrorKind::Unavailable,
            SqlState::IO_ERROR,
            "the spill folder in the data directory cannot be created or read",
        )
        .hint("check that the data directory is writable")
        .source(error)
    })
}

fn remove_files(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    for entry in fs::read_dir(folder)? {
        let (path, name) = entry.map(|entry| (entry.path(), entry.file_name()))?;
        let name = name.to_string_lossy();
        let removed = if name.bytes().all(|byte| byte.is_ascii_digit()) {
            fs::remove_file(path)
        } else if name.starts_with(FORMER_FOLDERS) {
            fs::remove_dir_all(path)
        } else {
            continue;
        };
        if let Err(error) = removed {
            tracing::warn!(%error, %name, "what an earlier process has spilled cannot be removed");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt;

    use super::*;

    /// Returns a spill folder in a data directory of its own.
    fn spill(settings: Config) -> (tempfile::TempDir, Arc<Spill>) {
        let data_dir = tempfile::tempdir().unwrap();
        remove_spilled(data_dir.path()).unwrap();
        let config = Config { data_dir: Some(data_dir.path().to_owned()), ..settings };
        (data_dir, Spill::new(&config))
    }

    /// Returns what creates the files of a new statement.
    fn statement(spill: &Arc<Spill>) -> Arc<dyn TempFileFactory> {
        spill.files(&StatementControl::new(&Config::in_memory()))
    }

    fn count(folder: &Path) -> usize {
        fs::read_dir(folder).unwrap().count()
    }

    #[tokio::test]
    async fn a_file_is_read_back_and_goes_with_its_last_user() {
        let (_data_dir, spill) = spill(Config { disk_free_min_bytes: 0, ..Config::default() });
        let control = StatementControl::new(&Config::in_memory());
        let file = spill.files(&control).create_temp_file("a sort").unwrap();
        let mut writer = file.open_writer().unwrap();
        let sent: Vec<u8> = (0..300_000_u32).map(|number| number.to_le_bytes()[0]).collect();
        for part in sent.chunks(70_000) {
            writer.write_all(part).unwrap();
        }
        writer.finish().unwrap();
        assert_eq!((file.size(), spill.all().used()), (Some(300_000), 300_000));
        let chunks: Vec<Bytes> = file.read_stream().unwrap().try_collect().await.unwrap();
        assert_eq!(chunks.concat(), sent);

        let reader = file.read_stream().unwrap();
        drop((file, writer));
        assert_eq!((count(&spill.folder), spill.all().used()), (1, 300_000));
        drop(reader);
        assert_eq!((count(&spill.folder), spill.all().used()), (0, 0));
        assert_eq!(control.spill_bytes(), 300_000);
    }

    #[cfg(unix)]
    #[test]
    fn only_the_owner_reads_what_is_spilled() {
        use std::os::unix::fs::PermissionsExt;

        let (_data_dir, spill) = spill(Config::default());
        let _file = statement(&spill).create_temp_file("a sort").unwrap();
        let entry = fs::read_dir(&spill.folder).unwrap().next().unwrap().unwrap();
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_statement_the_server_and_the_disk_have_limits() {
        type Written = (Arc<dyn SpillFile>, io::Result<()>);
        let write = |files: &Arc<dyn TempFileFactory>, bytes: usize| -> Written {
            let file = files.create_temp_file("a sort").unwrap();
            let written = file.open_writer().unwrap().write_all(&vec![0; bytes]);
            (file, written)
        };
        let refusal = |files: &Arc<dyn TempFileFactory>, bytes: usize| {
            let error = write(files, bytes).1.unwrap_err().downcast::<Error>().unwrap();
            (error.sqlstate(), error.message().to_owned())
        };
        let limits = Config { spill_bytes_max: 100, statement_spill_bytes_max: 60, ..Config::default() };
        let (_data_dir, limited) = spill(Config { disk_free_min_bytes: 0, ..limits });
        let (first, second) = (statement(&limited), statement(&limited));
        let (_kept, written) = write(&first, 60);
        written.unwrap();
        let (sqlstate, message) = refusal(&first, 1);
        assert_eq!(sqlstate, SqlState::LIMIT_EXCEEDED);
        assert!(message.contains("(statement_spill_bytes_max)"), "{message}");
        let (sqlstate, message) = refusal(&second, 41);
        assert_eq!(sqlstate, SqlState::LIMIT_EXCEEDED);
        assert!(message.contains("(spill_bytes_max)"), "{message}");
        assert_eq!((count(&limited.folder), limited.all().used()), (1, 60));

        let (_data_dir, full) = spill(Config { disk_free_min_bytes: u64::MAX, ..Config::default() });
        assert_eq!(refusal(&statement(&full), 1).0, SqlState::DISK_FULL);
    }

    #[test]
    fn a_database_in_memory_removes_its_folder() {
        let spill = Spill::new(&Config::in_memory());
        let folder = spill.folder.clone();
        assert!(!folder.exists());
        let file = statement(&spill).create_temp_file("a sort").unwrap();
        assert_eq!(count(&folder), 1);
        drop((spill, file));
        assert!(!folder.exists());
    }

    #[test]
    fn what_an_earlier_process_left_is_removed_and_nothing_else() {
        let (data_dir, spill) = spill(Config { disk_free_min_bytes: 0, ..Config::default() });
        for folder in ["datafusion-abc", "lost+found", "0"] {
            fs::create_dir(spill.folder.join(folder)).unwrap();
            fs::write(spill.folder.join(folder).join("file"), b"rows").unwrap();
        }
        for file in ["17", "notes.txt"] {
            fs::write(spill.folder.join(file), b"rows").unwrap();
        }
        remove_spilled(data_dir.path()).unwrap();
        let mut left: Vec<_> = fs::read_dir(&spill.folder).unwrap().map(|entry| entry.unwrap()).collect();
        left.sort_by_key(fs::DirEntry::file_name);
        let names: Vec<_> = left.iter().map(|entry| entry.file_name().into_string().unwrap()).collect();
        assert_eq!(names, ["0", "lost+found", "notes.txt"], "what cannot be removed stays");
        let _file = statement(&spill).create_temp_file("a sort").unwrap();
        assert!(spill.folder.join("1").is_file(), "a name that is taken is skipped");
    }
}

//! SQLite on a thread of its own: the only place that opens, begins and commits.
//!
//! A job is a closure over the connection, run inside a savepoint. All jobs that wait are run in
//! one transaction and committed together, so many small messages cost one flush of the disk. A
//! job's sequel runs after the commit, in the order of the jobs: what it sends is durable, and two
//! changes are told in the order in which they happened. If the commit fails, nothing of the batch
//! happened and every caller is told so.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};
use tokio::sync::{mpsc, oneshot};

use crate::error::Error;

/// Jobs that may wait; more make the callers wait.
const WAITING: usize = 1024;
/// Jobs in one transaction.
const BATCH: usize = 256;
/// The layout below. A store of another layout is refused, not guessed at.
const LAYOUT: i64 = 1;

const SCHEMA: &str = "
CREATE TABLE identity (
  device TEXT NOT NULL, module TEXT NOT NULL, generation TEXT NOT NULL, etag TEXT NOT NULL,
  status TEXT NOT NULL, reason TEXT, primary_key TEXT, secondary_key TEXT,
  edge INTEGER NOT NULL, scope TEXT, managed_by TEXT, status_at TEXT NOT NULL,
  active_at TEXT NOT NULL, twin_version INTEGER NOT NULL, twin_etag TEXT NOT NULL,
  configured INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (device, module)) STRICT, WITHOUT ROWID;
CREATE TABLE section (
  device TEXT NOT NULL, module TEXT NOT NULL, name TEXT NOT NULL,
  properties TEXT NOT NULL, version INTEGER NOT NULL, metadata TEXT NOT NULL,
  PRIMARY KEY (device, module, name),
  FOREIGN KEY (device, module) REFERENCES identity ON DELETE CASCADE) STRICT, WITHOUT ROWID;
CREATE TABLE session (
  device TEXT NOT NULL, module TEXT NOT NULL, filters INTEGER NOT NULL,
  PRIMARY KEY (device, module),
  FOREIGN KEY (device, module) REFERENCES identity ON DELETE CASCADE) STRICT, WITHOUT ROWID;
CREATE TABLE event (
  seq INTEGER PRIMARY KEY AUTOINCREMENT, device TEXT NOT NULL, module TEXT NOT NULL,
  properties TEXT NOT NULL, stamps TEXT NOT NULL, body BLOB NOT NULL) STRICT;
CREATE TABLE enrolment (
  kind TEXT NOT NULL, id TEXT NOT NULL, record TEXT NOT NULL, primary_key TEXT NOT NULL,
  secondary_key TEXT NOT NULL, enabled INTEGER NOT NULL, etag TEXT NOT NULL,
  created TEXT NOT NULL, updated TEXT NOT NULL,
  PRIMARY KEY (kind, id)) STRICT, WITHOUT ROWID;
CREATE TABLE registration (
  id TEXT PRIMARY KEY, shown TEXT NOT NULL, operation TEXT NOT NULL, device TEXT NOT NULL,
  enrolment_group TEXT, substatus TEXT NOT NULL, etag TEXT NOT NULL,
  created TEXT NOT NULL, updated TEXT NOT NULL) STRICT, WITHOUT ROWID;
";

/// Why the store cannot do its work. Always the operator's affair, never the caller's.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// SQLite says no.
    #[error("database: {0}")]
    Database(Arc<rusqlite::Error>),
    /// The file cannot be made.
    #[error("database file: {0}")]
    File(Arc<std::io::Error>),
    /// The file was written by another version.
    #[error("database has layout {0}, this program knows {LAYOUT}")]
    Layout(i64),
    /// A value in the database cannot be read back.
    #[error("database holds a value that cannot be read: {0}")]
    Value(&'static str),
    /// The store's thread is gone.
    #[error("the store has stopped")]
    Stopped,
}

impl From<rusqlite::Error> for StoreError {
    fn from(bad: rusqlite::Error) -> Self {
        Self::Database(Arc::new(bad))
    }
}

/// What is left of a job after it ran: told whether its batch was committed.
type Sequel = Box<dyn FnOnce(Result<(), StoreError>) + Send>;
type Job = Box<dyn FnOnce(Result<&Connection, StoreError>) -> Sequel + Send>;

/// A handle on the store's thread.
#[derive(Clone)]
pub struct Store {
    jobs: mpsc::Sender<Job>,
}

impl Store {
    /// Opens or creates the database and starts the thread. It ends when all handles are gone.
    ///
    /// # Errors
    /// [`StoreError`] when the file cannot be opened or has another layout.
    pub fn open(file: &Path) -> Result<Self, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX
            | OpenFlags::SQLITE_OPEN_NOFOLLOW;
        // SQLite would make it readable by all; its journal gets the mode of the file.
        private(file).map_err(|bad| StoreError::File(Arc::new(bad)))?;
        let connection = Connection::open_with_flags(file, flags)?;
        // A store has one owner: a second hub waits, and is then refused. The wait covers one that
        // is just ending.
        connection.busy_timeout(Duration::from_secs(2))?;
        connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "foreign_keys", true)?;
        connection.set_prepared_statement_cache_capacity(64);
        match connection.query_row("PRAGMA user_version", [], |row| row.get(0))? {
            LAYOUT => {}
            0 => connection.execute_batch(&format!(
                "BEGIN IMMEDIATE; {SCHEMA} PRAGMA user_version = {LAYOUT}; COMMIT;"
            ))?,
            other => return Err(StoreError::Layout(other)),
        }
        let (jobs, waiting) = mpsc::channel(WAITING);
        std::thread::Builder::new()
            .name("store".into())
            .spawn(move || serve(&connection, waiting))
            .map_err(|_| StoreError::Stopped)?;
        Ok(Self { jobs })
    }

    /// Waits until the thread has ended, which it does by itself only when it is broken.
    pub async fn stopped(&self) {
        self.jobs.closed().await;
    }

    /// Runs a job and waits until it is durable.
    ///
    /// # Errors
    /// Those of the job, or [`Error::Store`].
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (answer, result) = oneshot::channel();
        self.submit(work, move |result| {
            // The caller may have gone; the change stays.
            let _ = answer.send(result);
        })
        .await?;
        result.await.map_err(|_| StoreError::Stopped)?
    }

    /// Queues a job; `then` runs on the store's thread after the commit and must not block.
    ///
    /// # Errors
    /// [`StoreError::Stopped`]; then `then` is not called.
    pub async fn submit<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, Error> + Send + 'static,
        then: impl FnOnce(Result<T, Error>) + Send + 'static,
    ) -> Result<(), StoreError> {
        let job: Job = Box::new(move |connection| {
            let result = connection
                .map_err(Error::from)
                .and_then(|c| guarded(c, work));
            Box::new(move |committed| {
                let result =
                    result.and_then(|value| committed.map(|()| value).map_err(Error::from));
                if let Err(Error::Store(cause)) = &result {
                    // The caller is told only that it is our fault; the operator must know why.
                    let _ = writeln!(std::io::stderr(), "holdfast-hub: store: {cause}");
                }
                then(result);
            })
        });
        self.jobs.send(job).await.map_err(|_| StoreError::Stopped)
    }
}

fn private(file: &Path) -> std::io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(file)
        .map(drop)
}

/// Runs one job so that its failure undoes only what it did itself.
fn guarded<T>(
    connection: &Connection,
    work: impl FnOnce(&Connection) -> Result<T, Error>,
) -> Result<T, Error> {
    connection.execute_batch("SAVEPOINT job")?;
    let result = work(connection);
    if result.is_err() {
        connection.execute_batch("ROLLBACK TO job")?;
    }
    connection.execute_batch("RELEASE job")?;
    result
}

fn serve(connection: &Connection, mut waiting: mpsc::Receiver<Job>) {
    let mut sequels = Vec::with_capacity(BATCH);
    while let Some(first) = waiting.blocking_recv() {
        let begun = connection
            .execute_batch("BEGIN IMMEDIATE")
            .map_err(StoreError::from);
        let mut next = Some(first);
        while let Some(job) = next {
            sequels.push(job(begun.clone().map(|()| connection)));
            next = if sequels.len() < BATCH {
                waiting.try_recv().ok()
            } else {
                None
            };
        }
        let committed = begun.and_then(|()| Ok(connection.execute_batch("COMMIT")?));
        if committed.is_err() {
            // Nothing is left open for the next batch. If this fails too, so will its BEGIN.
            let _ = connection.execute_batch("ROLLBACK");
        }
        for sequel in sequels.drain(..) {
            sequel(committed.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Folder(std::path::PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let name = format!("hub-store-{name}-{}", std::process::id());
            let folder = std::env::temp_dir().join(name);
            std::fs::create_dir(&folder).unwrap();
            Self(folder)
        }

        fn file(&self) -> std::path::PathBuf {
            self.0.join("hub.sqlite")
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            #[expect(
                clippy::disallowed_methods,
                reason = "the test made this folder itself"
            )]
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn insert(connection: &Connection, body: &str) -> Result<(), Error> {
        connection.execute(
            "INSERT INTO event (device, module, properties, stamps, body)
             VALUES ('d', '', '{}', '{}', CAST(?1 AS BLOB))",
            [body],
        )?;
        Ok(())
    }

    fn bodies(connection: &Connection) -> Result<Vec<String>, Error> {
        let mut statement =
            connection.prepare("SELECT CAST(body AS TEXT) FROM event ORDER BY seq")?;
        let rows = statement.query_map([], |row| row.get(0))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    #[tokio::test]
    async fn a_failed_job_undoes_only_itself() {
        let folder = Folder::new("undo");
        let store = Store::open(&folder.file()).unwrap();
        let (release, held) = std::sync::mpsc::channel::<()>();
        // The first job waits, so that the next three are in one batch with it.
        let first = move |connection: &Connection| {
            insert(connection, "first")?;
            held.recv().map_err(|_| Error::Operation("released"))
        };
        let (told, order) = std::sync::mpsc::channel();
        let tell = |n: i32| {
            let told = told.clone();
            move |result: Result<(), Error>| told.send((n, result.is_ok())).unwrap()
        };
        store.submit(first, tell(1)).await.unwrap();
        store
            .submit(|c| insert(c, "second"), tell(2))
            .await
            .unwrap();
        let third = |c: &Connection| {
            insert(c, "third")?;
            Err(Error::Operation("no"))
        };
        store.submit(third, tell(3)).await.unwrap();
        store
            .submit(|c| insert(c, "fourth"), tell(4))
            .await
            .unwrap();
        release.send(()).unwrap();
        assert_eq!(
            store.run(bodies).await.unwrap(),
            ["first", "second", "fourth"]
        );
        let told: Vec<_> = order.try_iter().collect();
        assert_eq!(
            told,
            [(1, true), (2, true), (3, false), (4, true)],
            "in order"
        );
        // And it is there for the next owner.
        drop(store);
        let store = Store::open(&folder.file()).unwrap();
        assert_eq!(store.run(bodies).await.unwrap().len(), 3);
    }

    #[tokio::test]
    async fn a_store_of_another_layout_is_refused() {
        let folder = Folder::new("layout");
        let connection = Connection::open(folder.file()).unwrap();
        connection.pragma_update(None, "user_version", 99).unwrap();
        drop(connection);
        assert!(matches!(
            Store::open(&folder.file()),
            Err(StoreError::Layout(99))
        ));
    }
}

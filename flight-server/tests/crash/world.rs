//! Writers and chores at work on one database, and the comparison of its state with their knowledge.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use crate::chores::{Chores, texts};
use crate::model::{Tally, Writer};
use crate::server::{Client, Server};
use crate::tables;

/// Time limit for background work to remove what a crash left behind.
const TIDY_MAX: Duration = Duration::from_secs(30);

/// What ended the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Crash {
    /// The process ended: everything that it wrote exists.
    Kill,
    /// The machine lost power: only synced data exists.
    Power,
}

/// Everybody who works on the database under test.
pub(crate) struct World {
    pub(crate) writers: Vec<Writer>,
    chores: Vec<Chores>,
    pub(crate) token: String,
    pub(crate) tally: Tally,
}

/// Writers and chores at work.
pub(crate) struct Work {
    writers: Vec<JoinHandle<Writer>>,
    chores: Vec<JoinHandle<Chores>>,
}

impl World {
    /// Creates the tables and the workers.
    pub(crate) async fn create(server: &Server, writers: u64, seed: u64) -> Self {
        let token = server.log_in().await;
        tables::create(&mut server.client(&token).await).await;
        Self {
            writers: (0..writers).map(|id| Writer::new(id, seed)).collect(),
            chores: vec![Chores::default()],
            token,
            tally: Tally::default(),
        }
    }

    /// Starts all workers. A call may fail only once `may_fail` is true.
    pub(crate) async fn begin(&mut self, server: &Server, may_fail: &Arc<AtomicBool>) -> Work {
        let channel = server.channel().await;
        let client = || Client::on(channel.clone(), &self.token);
        let writers = std::mem::take(&mut self.writers).into_iter();
        let chores = std::mem::take(&mut self.chores).into_iter();
        Work {
            writers: writers.map(|writer| tokio::spawn(writer.run(client(), Arc::clone(may_fail)))).collect(),
            chores: chores.map(|chores| tokio::spawn(chores.run(client(), Arc::clone(may_fail)))).collect(),
        }
    }

    /// Waits until all workers have noticed that the server is gone.
    pub(crate) async fn end(&mut self, work: Work) {
        for task in work.writers {
            self.writers.push(task.await.expect("a writer"));
        }
        for task in work.chores {
            self.chores.push(task.await.expect("the chores"));
        }
    }

    pub(crate) fn acknowledged(&self) -> u64 {
        self.writers.iter().map(|writer| writer.acknowledged).sum()
    }

    /// Compares every table with what is known and adopts the found state; failures show `when`.
    pub(crate) async fn check(&mut self, server: &Server, crash: Crash, when: &str) {
        let mut client = server.client(&self.token).await;
        for table in tables::ALL {
            let mut found = tables::read(&mut client, table.name()).await;
            for writer in &mut self.writers {
                let state = found.remove(&writer.id).unwrap_or_default();
                if let Err(difference) = writer.settle(table, state, &mut self.tally) {
                    panic!("{when}, {}, writer {}: {difference}", table.name(), writer.id);
                }
            }
            assert!(found.is_empty(), "{when}, {}: rows of nobody: {found:?}", table.name());
        }
        for chores in &mut self.chores {
            if let Err(difference) = chores.check(&mut client, crash).await {
                panic!("{when}: {difference}");
            }
        }
        self.tally.interrupted(interrupted_jobs(&mut client).await);
    }
}

/// Counts compactions, whether they completed or not.
pub(crate) async fn compactions(client: &mut Client) -> usize {
    texts(client, "SELECT job_id FROM system.jobs WHERE job_type = 'compact'", 0).await.len()
}

/// Returns the jobs that a crash has interrupted so far: kinds by id.
async fn interrupted_jobs(client: &mut Client) -> HashMap<String, String> {
    let sql = "SELECT job_id, job_type FROM system.jobs WHERE error_message = 'server restarted'";
    let (ids, kinds) = (texts(client, sql, 0).await, texts(client, sql, 1).await);
    ids.into_iter().zip(kinds).collect()
}

/// Waits until the manifests, the published manifests and the files name exactly the same segments.
pub(crate) async fn check_segments(client: &mut Client, data_dir: &Path, when: &str) {
    let deadline = Instant::now() + TIDY_MAX;
    loop {
        let known = manifest_paths(client).await;
        let files = segment_files(&data_dir.join("segments"));
        let published = published_paths(&data_dir.join("segments"));
        if known == files && known == published {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "{when}: files of no segment {:?}, segments without file {:?}, published of no segment {:?}, not published {:?}",
            files.difference(&known).collect::<Vec<_>>(),
            known.difference(&files).collect::<Vec<_>>(),
            published.difference(&known).collect::<Vec<_>>(),
            known.difference(&published).collect::<Vec<_>>()
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn manifest_paths(client: &mut Client) -> BTreeSet<String> {
    let mut paths = BTreeSet::new();
    for schema in ["crash", "system"] {
        let sql = format!("SELECT table_name FROM information_schema.tables WHERE table_schema = '{schema}'");
        for table in texts(client, &sql, 0).await {
            paths.extend(texts(client, &format!("SHOW MANIFEST FOR {schema}.{table}"), 1).await);
        }
    }
    paths
}

/// Returns the segments that the newest published manifest of each table names.
fn published_paths(segments: &Path) -> BTreeSet<String> {
    let mut paths = BTreeSet::new();
    for folder in fs::read_dir(segments).expect("the folder of the segments") {
        let files = fs::read_dir(folder.expect("an entry").path()).into_iter().flatten();
        let names = files.map(|file| file.expect("an entry").path());
        let newest = names.filter(|path| path.extension().is_some_and(|extension| extension == "json")).max();
        // The manifest can be replaced in the meantime.
        let Some(text) = newest.and_then(|path| fs::read(path).ok()) else { continue };
        let manifest: serde_json::Value = serde_json::from_slice(&text).expect("a whole manifest");
        let named = manifest["segments"].as_array().expect("segments").iter();
        paths.extend(named.map(|segment| segment["path"].as_str().expect("a path").to_owned()));
    }
    paths
}

/// Returns the segments' files, finished or not; other files beside them do not count.
fn segment_files(segments: &Path) -> BTreeSet<String> {
    let mut files = BTreeSet::new();
    for folder in fs::read_dir(segments).expect("the folder of the segments") {
        let folder = folder.expect("an entry");
        for file in fs::read_dir(folder.path()).into_iter().flatten() {
            let name = file.expect("an entry").file_name().to_string_lossy().into_owned();
            if name.contains(".parquet") {
                files.insert(format!("{}/{name}", folder.file_name().to_string_lossy()));
            }
        }
    }
    files
}

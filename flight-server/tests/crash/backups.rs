//! A backup that ends or fails at any of its steps: the database keeps all rows, and the target has a
//! complete backup or none.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::chores::move_rows;
use crate::failpoints::{
    NEVER, Way, all_points, armed, failure_at, has_ended_at, wait_for, wait_for_row, way_to,
};
use crate::server::{Client, Server};
use crate::tables::{self, State};

const TABLE: &str = "crash.shared_rows";

/// Creates a table with some rows in a segment and some hot rows.
async fn database(data_dir: &Path) -> (String, BTreeMap<u64, State>) {
    let server = Server::start(data_dir).await;
    let token = server.log_in().await;
    let mut client = server.client(&token).await;
    tables::create(&mut client).await;
    insert(&mut client, 0).await;
    move_rows(&mut client, &format!("FLUSH TABLE {TABLE}")).await.expect("flush");
    insert(&mut client, 100).await;
    let rows = tables::read(&mut client, TABLE).await;
    server.kill();
    (token, rows)
}

/// The target of a point's backup, and the directory that it is restored into.
struct Places {
    name: String,
    backup: PathBuf,
    copy: PathBuf,
}

impl Places {
    fn of(folder: &Path, point: &str) -> Self {
        let name = point.replace("::", "-");
        Self { backup: folder.join(&name), copy: folder.join(format!("{name}-copy")), name }
    }
}

async fn insert(client: &mut Client, first: i64) {
    let rows: Vec<String> = (first..first + 10).map(|id| format!("(0, {id}, {id})")).collect();
    let sql = format!("INSERT INTO {TABLE} (writer, id, value) VALUES {}", rows.join(", "));
    client.run(&sql).await.expect("insert");
}

fn url(folder: &Path) -> String {
    format!("file://{}", folder.display())
}

fn restore(from: &Path, data_dir: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kalamdb"));
    command.args(["restore", "--from", &url(from), "--data-dir"]).arg(data_dir);
    command.env_remove("FAILPOINTS").output().expect("run the program")
}

/// Restores a backup and compares its rows. The copy accepts the original's password.
async fn assert_restores(from: &Path, data_dir: &Path, rows: &BTreeMap<u64, State>, when: &str) {
    let restored = restore(from, data_dir);
    assert!(restored.status.success(), "{when}: {}", String::from_utf8_lossy(&restored.stderr));
    let server = Server::start(data_dir).await;
    let token = server.log_in().await;
    let found = tables::read(&mut server.client(&token).await, TABLE).await;
    assert_eq!(found, *rows, "{when}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_that_ends_at_any_step_is_whole_or_none() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let data_dir = folder.path().join("data");
    let (token, rows) = database(&data_dir).await;
    for point in all_points().filter(|point| way_to(point) == Way::Backup) {
        let Places { name, backup, copy } = Places::of(folder.path(), point);
        let sql = format!("BACKUP DATABASE TO '{}'", url(&backup));
        let mut server =
            Server::spawn(armed(&data_dir, &format!("{point}=return(kill)"))).await.expect("start");
        // The server may end before it answers.
        let _ = server.client(&token).await.query(&sql).await;
        let said = server.ended(NEVER).await.expect("the backup comes by the point").join("\n");
        assert!(has_ended_at(&said, point), "{point}: {said}");

        if point == "backup::written" {
            assert_restores(&backup, &copy, &rows, point).await;
        } else {
            let refused = restore(&backup, &copy);
            assert!(!refused.status.success(), "{point}: a part of a backup was restored");
            assert!(!copy.exists(), "{point}: a refused restore left a data directory");
        }
        let server = Server::start(&data_dir).await;
        let mut client = server.client(&token).await;
        assert_eq!(tables::read(&mut client, TABLE).await, rows, "{point}");
        let told = format!(
            "SELECT job_id FROM system.jobs WHERE job_type = 'backup' AND status = 'failed' AND parameters LIKE '%{name}%'"
        );
        wait_for_row(&mut client, &told).await;
        move_rows(&mut client, &sql).await.expect("the job is taken");
        let refused = format!("SELECT job_id FROM system.jobs WHERE error_message LIKE '[42710]%{name}%'");
        wait_for_row(&mut client, &refused).await;
        server.kill();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_whose_step_fails_is_begun_again() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let data_dir = folder.path().join("data");
    let (token, rows) = database(&data_dir).await;
    for point in all_points().filter(|point| way_to(point) == Way::Backup) {
        let Places { name, backup, copy } = Places::of(folder.path(), point);
        let server =
            Server::spawn(armed(&data_dir, &format!("{point}=1*return(error)"))).await.expect("start");
        let mut client = server.client(&token).await;
        move_rows(&mut client, &format!("BACKUP DATABASE TO '{}'", url(&backup))).await.expect("backup");
        wait_for(&server, &failure_at(point)).await;
        let told = format!(
            "SELECT job_id FROM system.jobs WHERE status = 'completed' AND retry_count = 1 AND parameters LIKE '%{name}%'"
        );
        wait_for_row(&mut client, &told).await;
        server.kill();
        assert_restores(&backup, &copy, &rows, point).await;
    }
}

//! `kalamdb restore` and `kalamdb check`, used as an operator uses them.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use crate::server::Server;
use crate::{NOTES, run, stdout_of, text};

fn program(arguments: &[&str], data_dir: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kalamdb"));
    command.args(arguments).arg("--data-dir").arg(data_dir).output().expect("run kalamdb")
}

/// Checks a sound database and returns the output.
fn sound(data_dir: &Path) -> String {
    let output = program(&["check"], data_dir);
    assert!(output.status.success(), "{} {}", text(&output.stdout), text(&output.stderr));
    let said = text(&output.stdout);
    assert!(said.starts_with("database ") && said.ends_with("\nsound\n"), "{said}");
    said
}

/// Waits until every job of a server has completed.
fn wait_for_jobs(server: &Server) {
    let jobs = "SELECT count(*) AS n FROM system.jobs WHERE status IN ('queued', 'running', 'retrying')";
    let deadline = Instant::now() + Duration::from_secs(60);
    while stdout_of(server, &["sql", "-c", jobs]) != "n\n0\n" {
        assert!(Instant::now() < deadline, "the jobs end");
    }
    let failed = "SELECT job_type, error_message FROM system.jobs WHERE status <> 'completed'";
    assert_eq!(stdout_of(server, &["sql", "-c", failed]), "job_type,error_message\n");
}

/// Returns the files of the segments.
fn segments(data_dir: &Path) -> Vec<PathBuf> {
    let tables = std::fs::read_dir(data_dir.join("segments")).expect("segments");
    let files = tables.flat_map(|table| std::fs::read_dir(table.expect("a table").path()).expect("files"));
    let files = files.map(|file| file.expect("a file").path());
    files.filter(|file| file.extension().is_some_and(|end| end == "parquet")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_taken_while_serving_restored_checked_and_served() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let (data_dir, copy) = (folder.path().join("data"), folder.path().join("copy"));
    let url = format!("file://{}/backup", folder.path().display());
    let server = Server::start(&data_dir).await;
    stdout_of(&server, &["sql", "-c", NOTES]);
    stdout_of(&server, &["sql", "-c", "FLUSH TABLE app.notes"]);
    wait_for_jobs(&server);
    stdout_of(&server, &["sql", "-c", "INSERT INTO app.notes VALUES (3, 'hot')"]);
    let begun = stdout_of(&server, &["sql", "-c", &format!("BACKUP DATABASE TO '{url}'")]);
    assert!(begun.starts_with("job_id,url\nBK-") && begun.trim_end().ends_with(&url), "{begun}");
    wait_for_jobs(&server);
    stdout_of(&server, &["sql", "-c", "INSERT INTO app.notes VALUES (4, 'later')"]);
    let refused = program(&["restore", "--from", &url], &data_dir);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("is not empty"), "{}", text(&refused.stderr));
    let token = server.log_in().await;
    // Like a power loss: the data on disk must still be sound.
    server.kill();
    assert!(sound(&data_dir).contains("\ntable app.notes: 2 rows hot, 2 cold, 0 deleted, 1 segments of "));

    let restored = program(&["restore", "--from", &url], &copy);
    assert!(restored.status.success(), "{}", text(&restored.stderr));
    assert!(text(&restored.stdout).starts_with("restored database "), "{}", text(&restored.stdout));
    assert!(sound(&copy).contains("\ntable app.notes: 1 rows hot, 2 cold, 0 deleted, 1 segments of "));
    let server = Server::start(&copy).await;
    let ids = stdout_of(&server, &["sql", "-c", "SELECT id FROM app.notes ORDER BY id"]);
    assert_eq!(ids, "id\n1\n2\n3\n");
    let busy = program(&["check"], &copy);
    assert!(text(&busy.stderr).contains("in use by another process"), "{}", text(&busy.stderr));
    let refused = server.client(&token).await.query("SELECT 1").await.expect_err("an old token");
    assert!(refused.to_string().contains("[28000]"), "{refused}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn check_names_what_is_wrong_and_restore_what_it_cannot_take() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let data_dir = folder.path().join("data");
    let server = Server::start(&data_dir).await;
    stdout_of(&server, &["sql", "-c", NOTES]);
    stdout_of(&server, &["sql", "-c", "FLUSH TABLE app.notes"]);
    wait_for_jobs(&server);
    let denied = run(&server, &["sql", "-c", "BACKUP DATABASE TO 's3://key:secret@bucket/x'"]);
    let said = text(&denied.stderr);
    assert!(said.contains("[22023]") && !said.contains("secret"), "{said}");
    let log = server.log.clone();
    server.stop().await;
    assert!(!log.lines().iter().any(|line| line.contains("secret")), "{:?}", log.lines());

    let file = segments(&data_dir).remove(0);
    let mut bytes = std::fs::read(&file).expect("a segment");
    bytes[100] ^= 1;
    std::fs::write(&file, bytes).expect("damage it");
    let output = program(&["check"], &data_dir);
    assert_eq!(output.status.code(), Some(1));
    let name = file.strip_prefix(data_dir.join("segments")).expect("below").display().to_string();
    let problem = format!("\nproblem: segment \"{name}\" is damaged: a checksum differs\n");
    assert!(text(&output.stdout).contains(&problem), "{}", text(&output.stdout));
    assert_eq!(text(&output.stderr), "kalamdb: 1 problem was found\n");

    for (arguments, says) in [
        (["restore", "--from", "file:///nowhere/at/all"], "[58030] the folder of the backup"),
        (
            ["restore", "--from", "s3://key:secret@bucket/x"],
            "[22023] the URL of the backup may contain credentials",
        ),
    ] {
        let target = folder.path().join("target");
        let output = program(&arguments, &target);
        assert_eq!(output.status.code(), Some(1));
        let said = text(&output.stderr);
        assert!(said.contains(says) && !said.contains("secret"), "{said}");
        assert!(!target.exists());
    }
    let empty = program(&["check"], folder.path());
    assert!(text(&empty.stderr).contains("contains no database"), "{}", text(&empty.stderr));
}

//! Data directories that a server must not open, and its error messages.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::server::{Server, command, command_on};
use crate::tables;

async fn refusal(data_dir: &Path) -> String {
    match Server::try_start(data_dir).await {
        Ok(_) => panic!("the server opened {}", data_dir.display()),
        Err(said) => said,
    }
}

fn assert_says(said: &str, expected: &str) {
    assert!(said.contains(expected), "expected {expected:?} in {said:?}");
    assert!(!said.contains("panicked"), "{said}");
}

#[tokio::test]
async fn a_second_process_on_the_same_data_is_refused() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let first = Server::start(folder.path()).await;
    assert_says(&refusal(folder.path()).await, "in use by another process");
    let token = first.log_in().await;
    let rows = first.client(&token).await.query("SELECT 1").await.expect("the first goes on");
    assert_eq!(rows.iter().map(|batch| batch.num_rows()).sum::<usize>(), 1);
    first.stop().await;
    Server::start(folder.path()).await.stop().await;
}

#[tokio::test]
async fn a_newer_format_or_feature_is_refused() {
    let folder = tempfile::tempdir().expect("temporary folder");
    Server::start(folder.path()).await.stop().await;
    let format = folder.path().join("FORMAT");
    let text = fs::read_to_string(&format).expect("FORMAT");
    fs::write(&format, text.replace("format 1", "format 999")).expect("write FORMAT");
    assert_says(&refusal(folder.path()).await, "format 999");
    fs::write(&format, text.replace("features", "features made-up")).expect("write FORMAT");
    assert_says(&refusal(folder.path()).await, "\"made-up\"");
    fs::write(&format, text).expect("write FORMAT");
    Server::start(folder.path()).await.stop().await;
}

#[tokio::test]
async fn a_path_that_is_no_directory_is_refused() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let file = folder.path().join("file");
    fs::write(&file, "text").expect("write a file");
    assert_says(&refusal(&file).await, "data directory");
}

#[cfg(unix)]
#[tokio::test]
async fn a_directory_that_cannot_be_written_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().expect("temporary folder");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o555)).expect("permissions");
    if fs::write(folder.path().join("probe"), "").is_ok() {
        // The superuser can write everywhere, so there is nothing to refuse.
        return;
    }
    let said = refusal(folder.path()).await;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("permissions");
    assert_says(&said, "data directory");
}

#[tokio::test]
async fn a_log_that_was_cut_short_is_refused() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let server = Server::start(folder.path()).await;
    let token = server.log_in().await;
    let mut client = server.client(&token).await;
    tables::create(&mut client).await;
    for id in 0..20 {
        client
            .run(&format!("INSERT INTO crash.shared_rows (writer, id, value) VALUES (0, {id}, {id})"))
            .await
            .expect("insert");
    }
    server.kill();

    let log = newest_log(&folder.path().join("store"));
    let length = fs::metadata(&log).expect("log").len();
    let file = fs::OpenOptions::new().write(true).open(&log).expect("open the log");
    file.set_len(length / 2).expect("cut the log");
    drop(file);
    let said = refusal(folder.path()).await;
    assert_says(&said, "XX001");
}

#[test]
fn wrong_settings_are_refused_before_anything_is_opened() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let data_dir = folder.path().join("data");
    for (address, arguments, says) in [
        ("127.0.0.1:0", ["--node-id", "not a node"], "node id"),
        ("0.0.0.0:0", ["--log-format", "json"], "--insecure"),
        ("127.0.0.1:0", ["--set", "no_such=1"], "no_such"),
    ] {
        let output = command_on(&data_dir, address).args(arguments).output().expect("run the server");
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        let said = String::from_utf8(output.stderr).expect("text");
        assert_says(&said, says);
        assert!(!data_dir.exists(), "{arguments:?} made the data directory");
    }
    let config = folder.path().join("kalamdb.toml");
    fs::File::create(&config)
        .and_then(|mut file| file.write_all(b"lisen = \"x\"\n"))
        .expect("write the file");
    let output = command(&data_dir).arg("--config").arg(&config).output().expect("run the server");
    assert_says(&String::from_utf8(output.stderr).expect("text"), "lisen");
}

fn newest_log(store: &Path) -> PathBuf {
    fs::read_dir(store)
        .expect("store")
        .map(|entry| entry.expect("entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
        .max()
        .expect("a write-ahead log")
}

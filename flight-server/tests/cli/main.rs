//! The command line, run as a user runs it.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod maintenance;
mod serve;
#[path = "../crash/server.rs"]
#[expect(dead_code, reason = "shared with the crash test, which uses more of it")]
mod server;
mod watch;

use std::io::Write;
use std::process::{Command, Output, Stdio};

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use arrow::ipc::reader::StreamReader;

use self::server::{PASSWORD, Server};

/// Returns a `kalamdb` command with root's credentials for `server`.
fn kalamdb(server: &Server, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kalamdb"));
    command
        .args(arguments)
        .env("KALAMDB_URL", format!("grpc://{}", server.address))
        .env("KALAMDB_PASSWORD", PASSWORD)
        .env_remove("KALAMDB_USER")
        .stdin(Stdio::null());
    command
}

fn run(server: &Server, arguments: &[&str]) -> Output {
    kalamdb(server, arguments).output().expect("run kalamdb")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}

/// Returns what a successful run wrote to stdout.
fn stdout_of(server: &Server, arguments: &[&str]) -> String {
    let output = run(server, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

const NOTES: &str = "CREATE NAMESPACE app; \
    CREATE TABLE app.notes (id BIGINT NOT NULL PRIMARY KEY, body TEXT); \
    INSERT INTO app.notes VALUES (1, 'one'), (2, NULL)";

#[tokio::test(flavor = "multi_thread")]
async fn sql_prints_rows_in_every_format() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let server = Server::start(folder.path()).await;
    assert_eq!(stdout_of(&server, &["sql", "-c", NOTES]), "");

    let select = "SELECT id, body FROM app.notes ORDER BY id";
    let print = |format: &str| stdout_of(&server, &["sql", "-c", select, "--format", format]);
    assert_eq!(print("csv"), "id,body\n1,one\n2,\n");
    assert_eq!(print("json"), "{\"id\":1,\"body\":\"one\"}\n{\"id\":2,\"body\":null}\n");
    let table = print("table");
    assert!(table.contains("| id | body |") && table.contains("| 2  | NULL |"), "{table}");
    // Without a terminal, the default format is the one for programs.
    assert_eq!(stdout_of(&server, &["sql", "-c", select]), print("csv"));

    let output = run(&server, &["sql", "-c", select, "--format", "arrow"]);
    let batches: Vec<_> = StreamReader::try_new(output.stdout.as_slice(), None)
        .expect("an Arrow stream")
        .collect::<Result<_, _>>()
        .expect("batches");
    let ids: Vec<i64> = batches
        .iter()
        .flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values().to_vec())
        .collect();
    assert_eq!(ids, [1, 2]);
    assert!(text(&output.stderr).starts_with("(2 rows, "), "{}", text(&output.stderr));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sql_says_what_failed_and_stops_there() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let server = Server::start(folder.path()).await;
    let output =
        run(&server, &["sql", "-c", "SELECT 1 AS one; SELECT * FROM public.missing; SELECT 3 AS three"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stdout), "one\n1\n");
    let said = text(&output.stderr);
    assert!(said.contains("kalamdb: [42P01] table \"public.missing\" does not exist"), "{said}");

    let wrong =
        kalamdb(&server, &["sql", "-c", "SELECT 1"]).env("KALAMDB_PASSWORD", "wrong").output().expect("run");
    assert_eq!(wrong.status.code(), Some(1));
    assert!(text(&wrong.stderr).contains("28P01"), "{}", text(&wrong.stderr));

    let nobody =
        kalamdb(&server, &["sql", "-c", "SELECT 1"]).env("KALAMDB_URL", "grpc://127.0.0.1:1").output();
    let said = text(&nobody.expect("run").stderr);
    assert!(said.contains("cannot reach the server at \"grpc://127.0.0.1:1\""), "{said}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sql_runs_files_and_standard_input() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let server = Server::start(&folder.path().join("data")).await;
    let file = folder.path().join("notes.sql");
    std::fs::write(
        &file,
        format!("-- a comment; with a semicolon\n{NOTES};\nSELECT count(*) AS notes FROM app.notes;\n"),
    )
    .expect("write the file");
    assert_eq!(stdout_of(&server, &["sql", "-f", file.to_str().expect("path")]), "notes\n2\n");

    let mut child = kalamdb(&server, &["sql"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("run kalamdb");
    let mut stdin = child.stdin.take().expect("stdin");
    stdin.write_all(b"SELECT ';' AS semicolon;\nSELECT 2 AS two").expect("write");
    drop(stdin);
    let output = child.wait_with_output().expect("output");
    assert!(output.status.success());
    assert_eq!(text(&output.stdout), "semicolon\n;\ntwo\n2\n");
    server.stop().await;
}

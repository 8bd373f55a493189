//! `kalamdb serve`: passwords, log lines, health and metrics, and the shutdown.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kalamdb_proto::live::v1::SubscribeRequest;
use kalamdb_proto::live::v1::frame::Body;
use kalamdb_proto::live::v1::live_query_client::LiveQueryClient;
use tonic::{Code, Request};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::server::{PASSWORD, Server};
use crate::{NOTES, kalamdb, run, stdout_of, text};

/// The program with only a data directory and a free port.
fn plain(data_dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kalamdb"));
    command
        .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
        .arg(data_dir)
        .args(arguments)
        .env_remove("KALAMDB_ROOT_PASSWORD")
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn root_gets_a_password_that_only_the_owner_can_read() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let data_dir = folder.path().join("data");
    let path = data_dir.join("root-password");
    let server = Server::spawn(plain(&data_dir, &["--http-listen", "off"])).await.expect("start");
    let password = std::fs::read_to_string(&path).expect("the password");
    assert!(password.len() >= 24, "{password}");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(&path).expect("metadata").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    // The command line finds the password where the server left it.
    let mut select = kalamdb(&server, &["sql", "-c", "SELECT CURRENT_USER() AS me", "--data-dir"]);
    let output = select.arg(&data_dir).env_remove("KALAMDB_PASSWORD").output().expect("run");
    assert_eq!(text(&output.stdout), "me\nroot\n", "{}", text(&output.stderr));
    let said = |server: &Server| server.log.lines().iter().filter(|line| line.contains(&password)).count();
    assert_eq!(said(&server), 1);
    server.stop().await;

    let server = Server::spawn(plain(&data_dir, &["--http-listen", "off"])).await.expect("start again");
    assert_eq!(said(&server), 0, "the password is printed once");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_log_line_names_the_node() {
    for (format, mark) in [("text", " node_id=lab-7"), ("json", "{\"node_id\":\"lab-7\",")] {
        let folder = tempfile::tempdir().expect("temporary folder");
        let arguments =
            ["--http-listen", "off", "--node-id", "lab-7", "--log-level", "debug", "--log-format", format];
        for _ in 0..2 {
            let server = Server::spawn(plain(folder.path(), &arguments)).await.expect("start");
            let log = server.log.clone();
            server.stop().await;
            let lines = log.lines();
            let lines: Vec<_> = lines.iter().filter(|line| !line.starts_with("created user root")).collect();
            assert!(!lines.is_empty(), "a server says that it starts");
            for line in lines {
                assert!(line.contains(mark), "{format}: {line}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_statement_is_logged_without_its_text() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let mut command = plain(folder.path(), &["--http-listen", "off", "--set", "slow_statement_ms=1"]);
    command.env("KALAMDB_ROOT_PASSWORD", PASSWORD);
    let server = Server::spawn(command).await.expect("start");
    let sql = "SELECT count(*) AS confidential FROM generate_series(1, 3000000)";
    let output = run(&server, &["sql", "-c", sql]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let log = server.log.clone();
    server.stop().await;
    let lines = log.lines();
    let is_slow = |line: &&String| line.contains("slow statement") && line.contains("kind=\"SELECT\"");
    let slow: Vec<_> = lines.iter().filter(is_slow).collect();
    let [line] = slow.as_slice() else { panic!("{lines:?}") };
    for part in ["user=\"root\"", "rows=1 ", "elapsed_ms=", "end=\"completed\"", "fingerprint="] {
        assert!(line.contains(part), "{part}: {line}");
    }
    assert!(!lines.iter().any(|line| line.contains("confidential")), "{lines:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_metrics_are_served_over_http() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let server = Server::spawn(plain(folder.path(), &["--http-listen", "127.0.0.1:0"])).await.expect("start");
    let address = http_address(&server).await;
    let address = address.as_str();
    assert!(get(address, "/healthz").ends_with("\r\n\r\nok\n"));
    let metrics = get(address, "/metrics");
    assert!(metrics.contains("text/plain; version=0.0.4"), "{metrics}");
    assert!(metrics.contains("\nkalamdb_commit_seq "), "{metrics}");
    assert!(get(address, "/nothing").starts_with("HTTP/1.1 404"));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_health_checks_say_that_the_sequencer_has_ended() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let mut command = plain(folder.path(), &["--http-listen", "127.0.0.1:0"]);
    // The first commits are those of the start.
    command.env("KALAMDB_ROOT_PASSWORD", PASSWORD).env("FAILPOINTS", "commit::write=20*off->panic");
    let server = Server::spawn(command).await.expect("start");
    let http = http_address(&server).await;
    let tables: Vec<String> = (0..30).map(|number| format!("CREATE TABLE t{number} (id BIGINT)")).collect();
    let output = run(&server, &["sql", "-c", &tables.join("; ")]);
    assert!(text(&output.stderr).contains("[08007]"), "{}", text(&output.stderr));

    let died = Instant::now();
    let page = loop {
        let page = get(&http, "/healthz");
        if page.starts_with("HTTP/1.1 503") {
            break page;
        }
        assert!(died.elapsed() < Duration::from_secs(10), "{page}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(page.ends_with("writes are refused: the sequencer has ended; restart the server\n"), "{page}");
    let mut health = HealthClient::new(server.channel().await);
    loop {
        let request = HealthCheckRequest { service: String::new() };
        let status = health.check(request).await.expect("health is open").into_inner().status();
        if status == ServingStatus::NotServing {
            break;
        }
        assert!(died.elapsed() < Duration::from_secs(10), "{status:?}");
    }
    let output = run(&server, &["sql", "-c", "CREATE TABLE more (id BIGINT)"]);
    assert!(text(&output.stderr).contains("[58030]"), "{}", text(&output.stderr));
    assert_eq!(stdout_of(&server, &["sql", "-c", "SELECT 1 AS one"]), "one\n1\n", "reads go on");
    server.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_commit_is_named_and_does_not_make_the_server_look_dead() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let mut command = plain(folder.path(), &["--http-listen", "127.0.0.1:0"]);
    // The first commits are those of the start.
    command.env("KALAMDB_ROOT_PASSWORD", PASSWORD).env("FAILPOINTS", "commit::write=20*off->1*sleep(6000)");
    let server = Server::spawn(command).await.expect("start");
    let http = http_address(&server).await;
    let tables: Vec<String> = (0..30).map(|number| format!("CREATE TABLE t{number} (id BIGINT)")).collect();
    let mut writing = kalamdb(&server, &["sql", "-c", &tables.join("; ")]);
    let mut writing = writing.stdout(Stdio::null()).spawn().expect("run kalamdb");
    let (began, mut was_named) = (Instant::now(), false);
    let ended = loop {
        let page = get(&http, "/healthz");
        assert!(page.starts_with("HTTP/1.1 200"), "{page}");
        was_named |= page.contains("\r\n\r\nok\n") && page.contains("\nwrites are slow: ");
        if let Some(ended) = writing.try_wait().expect("the state of kalamdb") {
            break ended;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "{page}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(ended.success() && was_named, "{ended}");
    server.stop().await;
}

/// Returns the address of health and metrics from the server's log.
async fn http_address(server: &Server) -> String {
    let listening = |line: &String| {
        let (_, rest) = line.split_once("http_address=")?;
        rest.split_whitespace().next().map(str::to_owned)
    };
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(address) = server.log.lines().iter().find_map(listening) {
            return address;
        }
        assert!(Instant::now() < deadline, "the HTTP address is logged");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("connect");
    write!(stream, "GET {path} HTTP/1.1\r\nhost: kalamdb\r\nconnection: close\r\n\r\n").expect("send");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("receive");
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_ends_tells_its_subscribers() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let server = Server::start(folder.path()).await;
    stdout_of(&server, &["sql", "-c", NOTES]);
    let token = server.log_in().await;
    let mut request =
        Request::new(SubscribeRequest { sql: "SELECT id FROM app.notes".to_owned(), ..Default::default() });
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().expect("a header"));
    let mut client = LiveQueryClient::new(server.channel().await);
    let mut frames = client.subscribe(request).await.expect("subscribe").into_inner();
    loop {
        match frames.message().await.expect("a frame").expect("the stream goes on").body {
            Some(Body::SnapshotEnd(_)) => break,
            Some(Body::Started(_) | Body::Snapshot(_)) => {}
            other => panic!("{other:?}"),
        }
    }
    let stopping = tokio::spawn(server.stop());
    let closed = loop {
        match frames.message().await.expect("a frame").expect("the stream goes on").body {
            Some(Body::Closed(closed)) => break closed,
            Some(Body::Progress(_)) => {}
            other => panic!("{other:?}"),
        }
    };
    assert!(closed.retryable && closed.min_backoff.is_some(), "{closed:?}");
    assert_eq!(frames.message().await.expect_err("the status").code(), Code::Unavailable);
    stopping.await.expect("the server ends in order");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_that_cannot_start_is_a_status_alone() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let server = Server::start(folder.path()).await;
    let token = server.log_in().await;
    let channel = server.channel().await;
    let check = async |sql: &str, authorized: bool, code: Code, says: &str| {
        let mut request = Request::new(SubscribeRequest { sql: sql.to_owned(), ..Default::default() });
        if authorized {
            request
                .metadata_mut()
                .insert("authorization", format!("Bearer {token}").parse().expect("a header"));
        }
        let status = LiveQueryClient::new(channel.clone()).subscribe(request).await.expect_err(sql);
        assert_eq!(status.code(), code, "{sql}: {status:?}");
        assert!(status.message().contains(says), "{sql}: {status:?}");
    };
    check("SELECT * FROM app.missing", true, Code::NotFound, "3F000").await;
    check("SELECT * FROM public.missing", true, Code::NotFound, "public.missing").await;
    check("SELEC", true, Code::InvalidArgument, "42601").await;
    check("INSERT INTO app.missing VALUES (1)", true, Code::Unimplemented, "[0A000]").await;
    check("SELECT 1", false, Code::Unauthenticated, "").await;
    server.stop().await;
}

/// Runs for minutes and rarely yields its thread.
const BUSY: &str = "SELECT count(*) AS n FROM generate_series(1, 300000) x, generate_series(1, 300000) y \
    WHERE x.value + y.value < 0";
/// The manual's limit for a server's shutdown.
const END_MAX: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_query_does_not_keep_the_end_waiting() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let server = Server::spawn(plain(folder.path(), &["--http-listen", "127.0.0.1:0"])).await.expect("start");
    let http = http_address(&server).await;
    let query = |sql: &str| {
        let mut command = kalamdb(&server, &["sql", "-c", sql, "--data-dir"]);
        command
            .arg(folder.path())
            .env_remove("KALAMDB_PASSWORD")
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command.spawn().expect("run kalamdb")
    };
    let busy = query(BUSY);
    for _ in 0..5 {
        let asked = Instant::now();
        assert!(get(&http, "/healthz").ends_with("ok\n"));
        assert!(asked.elapsed() < END_MAX, "health waits for a query: {:?}", asked.elapsed());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let asked = Instant::now();
    server.stop().await;
    assert!(asked.elapsed() <= END_MAX, "the server took {:?} to end", asked.elapsed());
    let output = busy.wait_with_output().expect("the query's client ends");
    assert_eq!(output.status.code(), Some(1), "the query was cut off");
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_server_opens_as_many_files_as_it_may() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let program = plain(folder.path(), &["--http-listen", "off"]);
    let mut command = Command::new("sh");
    command
        .args(["-c", "ulimit -S -n 256 && exec \"$0\" \"$@\""])
        .arg(program.get_program())
        .args(program.get_args())
        .env_remove("KALAMDB_ROOT_PASSWORD")
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let server = Server::spawn(command).await.expect("start");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", server.id())).expect("limits");
    let open_files = limits.lines().find_map(|line| line.strip_prefix("Max open files")).expect("a line");
    let numbers: Vec<&str> = open_files.split_whitespace().collect();
    assert!(numbers[0] != "256" && numbers[0] == numbers[1], "{open_files}");
    server.stop().await;
}

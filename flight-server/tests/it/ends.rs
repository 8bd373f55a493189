//! Every way to end a statement, for every kind of statement: the client gets the reason, and the work ends.
//! Who may see and end whose.

use std::future::pending;
use std::time::{Duration, Instant};

use arrow_flight::sql::{ActionClosePreparedStatementRequest, CommandPreparedStatementUpdate};
use arrow_flight::{CancelFlightInfoRequest, FlightData, FlightInfo};
use futures::{StreamExt, stream};
use kalamdb_core::{Config, Database};
use prost::Message;
use tokio::task::JoinHandle;
use tonic::{Code, Status};

use crate::fixture::{Client, Fixture, ROOT_PASSWORD, any, descriptor, only_ticket, statement};
use crate::ingest::append_to;
use crate::metadata::{get, set};
use crate::prepared::{prepare, query};

/// How long the work of a statement may go on after its end, in a development build.
const END_MAX: Duration = Duration::from_secs(5);
/// How long a test waits for something that must happen.
const WAIT_MAX: Duration = Duration::from_secs(20);

const GUEST: &str = "guest";
const ROWS: &str =
    "SELECT a.value + b.value AS n FROM generate_series(1, 20000) a CROSS JOIN generate_series(1, 20000) b";
const GROUP: &str = "SELECT count(*) AS n FROM generate_series(1, 1000000000000)";
const UPDATE: &str =
    "UPDATE notes SET text = 'x' WHERE id IN (SELECT count(*) FROM generate_series(1, 1000000000000))";

/// A statement that does not end by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// More rows than all buffers hold, read slowly.
    Rows,
    /// One row, which is never ready.
    Group,
    Update,
    /// An upload that waits for more rows.
    Ingest,
    /// A live query.
    Live,
}

impl Kind {
    const ALL: [Self; 5] = [Self::Rows, Self::Group, Self::Update, Self::Ingest, Self::Live];

    /// Returns what SHOW QUERIES calls it; `None` for a live query, whose statement is over once it is open.
    fn shown(self) -> Option<&'static str> {
        match self {
            Self::Rows | Self::Group => Some("SELECT"),
            Self::Update => Some("UPDATE"),
            Self::Ingest => Some("APPEND"),
            Self::Live => None,
        }
    }
}

/// A way to end a statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Drop,
    Deadline,
    Cancel,
    CloseHandle,
    CloseSession,
    KillQuery,
    KillSession,
    Timeout,
    TimeoutOfCall,
    LogOut,
}

impl Way {
    const ALL: [Self; 10] = [
        Self::Drop,
        Self::Deadline,
        Self::Cancel,
        Self::CloseHandle,
        Self::CloseSession,
        Self::KillQuery,
        Self::KillSession,
        Self::Timeout,
        Self::TimeoutOfCall,
        Self::LogOut,
    ];

    fn ends(self, kind: Kind) -> bool {
        match self {
            Self::Drop | Self::CloseSession | Self::KillSession | Self::LogOut => true,
            Self::Deadline | Self::Cancel => matches!(kind, Kind::Rows | Kind::Group | Kind::Live),
            Self::CloseHandle => kind != Kind::Ingest,
            Self::KillQuery | Self::Timeout | Self::TimeoutOfCall => kind != Kind::Live,
        }
    }

    /// Returns the SQLSTATE that the client gets, if it gets one from the server.
    fn sqlstate(self, kind: Kind) -> Option<&'static str> {
        match (self, kind) {
            (Self::Drop | Self::Deadline, _) => None,
            // Its last frame has the reason.
            (Self::KillSession, Kind::Live) => Some("57014"),
            (Self::KillSession, _) => Some("57P01"),
            (Self::LogOut, _) => Some("28000"),
            _ => Some("57014"),
        }
    }
}

/// A statement that runs.
struct Running {
    client: Client,
    info: Option<FlightInfo>,
    handle: Option<bytes::Bytes>,
    reading: JoinHandle<Status>,
}

/// Starts a statement on a connection of its own.
async fn start(fixture: &Fixture, way: Way, kind: Kind) -> Running {
    let mut client = fixture.login(GUEST, "password-of-guest").await;
    let sql = match kind {
        Kind::Rows => ROWS,
        Kind::Group => GROUP,
        Kind::Update => UPDATE,
        Kind::Live => "SUBSCRIBE TO (SELECT id FROM notes)",
        Kind::Ingest => {
            limit(&mut client, way).await;
            let reading = tokio::spawn(upload(client.clone()));
            return Running { client, info: None, handle: None, reading };
        }
    };
    let handle = prepare(&mut client, sql).await.unwrap().prepared_statement_handle;
    if kind == Kind::Update {
        limit(&mut client, way).await;
        let command = CommandPreparedStatementUpdate { prepared_statement_handle: handle.clone() };
        let message = FlightData { flight_descriptor: Some(descriptor(&command)), ..FlightData::default() };
        let mut writer = client.clone();
        let reading = tokio::spawn(async move { writer.put(vec![message]).await.unwrap_err() });
        return Running { client, info: None, handle: Some(handle), reading };
    }
    let info = client.info(&query(&handle)).await.unwrap().into_inner();
    limit(&mut client, way).await;
    let (reader, ticket) = (client.clone(), only_ticket(&info));
    let reading = tokio::spawn(async move {
        let mut request = reader.request(ticket);
        if way == Way::Deadline {
            request.set_timeout(Duration::from_secs(2));
        }
        let mut messages = match reader.inner.clone().do_get(request).await {
            Ok(response) => response.into_inner(),
            Err(status) => return status,
        };
        loop {
            match messages.message().await {
                Ok(Some(_)) => tokio::time::sleep(Duration::from_millis(5)).await,
                Ok(None) => panic!("{way:?} {kind:?}: the stream ended as if complete"),
                Err(status) => return status,
            }
        }
    });
    Running { client, info: Some(info), handle: Some(handle), reading }
}

/// Sets the time limit of the ways that have one.
async fn limit(client: &mut Client, way: Way) {
    match way {
        Way::Timeout => {
            client.update("SET statement_timeout = '1500ms'").await.unwrap();
        }
        Way::TimeoutOfCall => client.send_always("kalamdb-statement-timeout", "1500ms"),
        _ => {}
    }
}

/// Sends the beginning of an upload, and nothing more.
async fn upload(mut client: Client) -> Status {
    let command = append_to("notes");
    let first = FlightData { flight_descriptor: Some(descriptor(&command)), ..FlightData::default() };
    let messages = stream::iter([first]).chain(stream::once(pending()));
    match client.inner.do_put(client.request(messages)).await {
        Err(status) => status,
        Ok(response) => response.into_inner().message().await.unwrap_err(),
    }
}

/// Returns the statements of a user that the client may see, as the columns of SHOW QUERIES.
async fn queries_of(client: &mut Client, username: &str) -> Vec<Vec<String>> {
    let rows = client.query("SHOW QUERIES").await.unwrap().lines();
    let rows = rows.iter().map(|line| line.split('|').map(str::to_owned).collect::<Vec<_>>());
    rows.filter(|row| row[3] == username).collect()
}

/// Waits until a statement is shown, and returns the numbers of the query and of its session.
async fn shown(root: &mut Client, kind: &str) -> (String, String) {
    let until = Instant::now() + WAIT_MAX;
    loop {
        if let Some(row) = queries_of(root, GUEST).await.into_iter().find(|row| row[6] == kind) {
            return (row[0].clone(), row[1].clone());
        }
        assert!(Instant::now() < until, "SHOW QUERIES shows a statement of kind {kind}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until the guest runs nothing and the engine works for nobody.
async fn until_idle(fixture: &Fixture, root: &mut Client, what: &str) -> Duration {
    let began = Instant::now();
    loop {
        let left = queries_of(root, GUEST).await;
        let live = root.query("SELECT count(*) FROM system.live_queries").await.unwrap().lines();
        if left.is_empty() && live == ["0"] && fixture.database.context().engine_threads.tasks() == 0 {
            return began.elapsed();
        }
        assert!(began.elapsed() < WAIT_MAX, "{what}: the work ends; left are {left:?}, {live:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn end(root: &mut Client, way: Way, kind: Kind, running: &mut Running) {
    let client = &mut running.client;
    let shown = match kind.shown() {
        Some(kind) => Some(shown(root, kind).await),
        None => {
            let until = Instant::now() + WAIT_MAX;
            while root.query("SELECT count(*) FROM system.live_queries").await.unwrap().lines() == ["0"] {
                assert!(Instant::now() < until, "the live query begins");
            }
            None
        }
    };
    match way {
        Way::Drop => running.reading.abort(),
        Way::Deadline | Way::Timeout | Way::TimeoutOfCall => {}
        Way::Cancel => {
            let request = CancelFlightInfoRequest { info: running.info.clone() };
            client.run_action("CancelFlightInfo", request.encode_to_vec()).await.unwrap();
        }
        Way::CloseHandle => {
            let prepared_statement_handle = running.handle.clone().unwrap();
            let request = ActionClosePreparedStatementRequest { prepared_statement_handle };
            client.run_action("ClosePreparedStatement", any(&request)).await.unwrap();
        }
        Way::CloseSession => {
            client.run_action("CloseSession", Vec::new()).await.unwrap();
        }
        Way::KillQuery => {
            root.update(&format!("KILL QUERY {}", shown.unwrap().0)).await.unwrap();
        }
        Way::KillSession => {
            let session = match shown {
                Some((_, session)) => session,
                None => {
                    let sql = "SELECT session_id FROM system.sessions WHERE username = 'guest' \
                               AND live_queries > 0";
                    root.query(sql).await.unwrap().lines().remove(0)
                }
            };
            root.update(&format!("KILL SESSION {session}")).await.unwrap();
        }
        Way::LogOut => {
            root.update("ALTER USER guest SET PASSWORD 'password-of-guest'").await.unwrap();
        }
    }
}

async fn guest_server(settings: &[(&str, &str)]) -> (Fixture, Client) {
    let fixture = Fixture::start_with(settings).await;
    let mut root = fixture.root().await;
    root.update("CREATE USER TABLE notes (id BIGINT PRIMARY KEY, text TEXT)").await.unwrap();
    let mut guest = fixture.user(GUEST).await;
    guest.update("INSERT INTO notes VALUES (1, 'one')").await.unwrap();
    (fixture, root)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_way_ends_every_kind_of_statement() {
    let (fixture, mut root) = guest_server(&[]).await;
    for way in Way::ALL {
        for kind in Kind::ALL.into_iter().filter(|kind| way.ends(*kind)) {
            let what = format!("{way:?} {kind:?}");
            let mut running = start(&fixture, way, kind).await;
            end(&mut root, way, kind, &mut running).await;
            let ended = tokio::time::timeout(WAIT_MAX, running.reading).await;
            let told = ended.unwrap_or_else(|_| panic!("{what}: the client learns of the end"));
            if let Some(sqlstate) = way.sqlstate(kind) {
                let status = told.unwrap_or_else(|error| panic!("{what}: {error}"));
                assert!(status.message().starts_with(&format!("[{sqlstate}] ")), "{what}: {status:?}");
            }
            let took = until_idle(&fixture, &mut root, &what).await;
            println!("{way:?}\t{kind:?}\twork ended {} ms after its client was told", took.as_millis());
            assert!(took <= END_MAX, "{what}: {took:?}");
        }
    }
    fixture.shut_down().await;
}

/// The server keeps the plan of a ticket for one reader; the query of the other is planned again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_closes_a_handle_ends_all_queries_of_its_ticket() {
    let (fixture, mut root) = guest_server(&[]).await;
    let mut guest = fixture.login(GUEST, "password-of-guest").await;
    let handle = prepare(&mut guest, GROUP).await.unwrap().prepared_statement_handle;
    let info = guest.info(&query(&handle)).await.unwrap().into_inner();
    let readings = [(); 2].map(|()| {
        let (mut reader, info) = (guest.clone(), info.clone());
        tokio::spawn(async move { reader.fetch(&info).await })
    });
    let until = Instant::now() + WAIT_MAX;
    while queries_of(&mut root, GUEST).await.iter().filter(|row| row[6] == "SELECT").count() < 2 {
        assert!(Instant::now() < until, "both queries run");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let request = ActionClosePreparedStatementRequest { prepared_statement_handle: handle };
    guest.run_action("ClosePreparedStatement", any(&request)).await.unwrap();
    for reading in readings {
        let told = tokio::time::timeout(WAIT_MAX, reading).await.expect("the client learns of the end");
        let status = told.unwrap().unwrap_err();
        assert!(status.message().starts_with("[57014] "), "{status:?}");
    }
    until_idle(&fixture, &mut root, "the queries of a closed handle").await;
    fixture.shut_down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_shutdown_a_statement_ends_with_a_status() {
    let (fixture, mut root) = guest_server(&[("drain_ms", "1000")]).await;
    let running = start(&fixture, Way::Drop, Kind::Group).await;
    shown(&mut root, "SELECT").await;
    drop(root);
    fixture.shut_down().await;
    let status = running.reading.await.unwrap();
    assert!(status.message().starts_with("[57P01] "), "{status:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_see_and_end_only_what_is_their_own() {
    const CANARY: &str = "canary-of-guest";
    let (fixture, mut root) = guest_server(&[]).await;
    let mut bob = fixture.user("bob").await;
    let mut guest = fixture.login(GUEST, "password-of-guest").await;
    let sql = format!("SELECT count(*), '{CANARY}' AS c FROM generate_series(1, 1000000000000)");
    let info = guest.info(&statement(&sql)).await.unwrap().into_inner();
    let mut messages = guest.open(only_ticket(&info)).await.unwrap().into_inner();
    let (number, session) = shown(&mut root, "SELECT").await;
    assert!(queries_of(&mut root, GUEST).await[0][9].contains(CANARY));
    assert!(queries_of(&mut guest, GUEST).await[0][9].contains(CANARY));

    for sql in
        ["SHOW QUERIES", "SHOW SESSIONS", "SELECT * FROM system.queries", "SELECT * FROM system.sessions"]
    {
        let lines = bob.query(sql).await.unwrap().lines();
        assert!(!lines.is_empty(), "{sql}: bob sees himself");
        let others = lines.iter().any(|line| line.contains(CANARY) || line.contains(GUEST));
        assert!(!others, "{sql}: {lines:?}");
    }
    for (kill, unknown) in [
        (format!("KILL QUERY {number}"), "KILL QUERY 999999999"),
        (format!("KILL SESSION {session}"), "KILL SESSION 999999999"),
    ] {
        let [other, none] = [bob.update(&kill).await, bob.update(unknown).await].map(Result::unwrap_err);
        assert_eq!((other.code(), none.code()), (Code::NotFound, Code::NotFound), "{other:?}");
        let said = |status: &Status| status.message().replace(|c: char| c.is_ascii_digit(), "");
        assert_eq!(said(&other), said(&none), "it does not exist for bob");
    }
    assert_eq!(queries_of(&mut root, GUEST).await.len(), 1, "it goes on");

    let mut same_user = fixture.login(GUEST, "password-of-guest").await;
    same_user.update(&format!("KILL QUERY {number}")).await.unwrap();
    let status = loop {
        match messages.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the stream ended as if complete"),
            Err(status) => break status,
        }
    };
    assert!(status.message().contains("KILL QUERY"), "{status:?}");
    let sql = "SELECT actor_username, action, target FROM system.audit_logs WHERE action LIKE 'KILL%' \
               ORDER BY created_at";
    let audited = root.query(sql).await.unwrap().lines();
    let expected = [
        format!("bob|KILL QUERY DENIED|{number}"),
        format!("bob|KILL SESSION DENIED|{session}"),
        format!("guest|KILL QUERY|{number}"),
    ];
    assert_eq!(audited, expected);
    fixture.shut_down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_must_end_a_flood_needs_no_turn() {
    let config = Config {
        root_password: Some(ROOT_PASSWORD.to_owned()),
        statements_running_max: 1,
        statements_running_per_user_max: 1,
        ..Config::in_memory()
    };
    let fixture = Fixture::over(Database::open(config).await.unwrap(), &[]).await;
    let mut guest = fixture.user(GUEST).await;
    let info = guest.info(&statement(GROUP)).await.unwrap().into_inner();
    let reading = tokio::spawn({
        let mut guest = guest.clone();
        async move { guest.fetch(&info).await }
    });
    let mut other = fixture.login(GUEST, "password-of-guest").await;
    let (number, _) = shown(&mut other, "SELECT").await;
    let waiting = tokio::spawn(async move { guest.query(GROUP).await });
    let until = Instant::now() + WAIT_MAX;
    while !queries_of(&mut other, GUEST).await.iter().any(|row| row[7] == "queued") {
        assert!(Instant::now() < until, "the second statement waits for its turn");
    }
    other.update("SET application_name = 'the one who ends it'").await.unwrap();
    other.query("SHOW SESSIONS").await.unwrap();
    other.update(&format!("KILL QUERY {number}")).await.unwrap();
    assert!(reading.await.unwrap().unwrap_err().message().contains("KILL QUERY"));
    waiting.abort();
    fixture.shut_down().await;
}

#[tokio::test]
async fn an_idle_session_ends_with_its_connection() {
    let (fixture, _root) = guest_server(&[]).await;
    let mut guest = fixture.login(GUEST, "password-of-guest").await;
    let handle = prepare(&mut guest, "SELECT 1").await.unwrap().prepared_statement_handle;
    guest.update("SET idle_session_timeout = '200ms'").await.unwrap();
    tokio::time::sleep(Duration::from_millis(400)).await;
    let status = guest.query("SELECT 1").await.unwrap_err();
    assert!(status.message().starts_with("[57P05] "), "{status:?}");
    // The client connects again by itself once its connection is closed.
    let until = Instant::now() + WAIT_MAX;
    while guest.query("SELECT 1").await.is_err() {
        assert!(Instant::now() < until, "a new session begins");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(get(&mut guest, "idle_session_timeout").await.as_deref(), Some("0"));
    assert!(guest.info(&query(&handle)).await.is_err(), "its handles are gone");
    fixture.shut_down().await;
}

#[tokio::test]
async fn limits_are_session_options_too() {
    let (fixture, _root) = guest_server(&[]).await;
    let mut guest = fixture.login(GUEST, "password-of-guest").await;
    assert_eq!(get(&mut guest, "statement_timeout").await.as_deref(), Some("0"));
    assert_eq!(set(&mut guest, "statement_timeout", "90s").await, None);
    assert_eq!(set(&mut guest, "application_name", "a test").await, None);
    assert_eq!(get(&mut guest, "statement_timeout").await.as_deref(), Some("90s"));
    assert_eq!(guest.query("SHOW application_name").await.unwrap().lines(), ["a test"]);
    assert_eq!(set(&mut guest, "statement_timeout", "soon").await, Some(2));
    assert_eq!(set(&mut guest, "work_mem", "1").await, Some(1));
    guest.send_always("kalamdb-statement-timeout", "soon");
    let status = guest.query("SELECT 1").await.unwrap_err();
    assert!(status.message().starts_with("[22023] "), "{status:?}");
    fixture.shut_down().await;
}

//! Connections without a login, and many logins at once.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use arrow_flight::FlightData;
use arrow_flight::flight_service_client::FlightServiceClient;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures::stream;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tonic::Request;
use tonic::transport::Channel;

use crate::bystander::{self, WAIT_MAX};
use crate::fixture::{self, Fixture};
use crate::guest::sqlstate;
use crate::process::{peak_during, resident};
use crate::promises::Promise;
use crate::report::Report;
use crate::{size, turn};

/// What some strangers may hold together.
const STRANGERS_MAX: u64 = 50 << 20;
/// Connections without a login that the server keeps.
const CONNECTIONS_MAX: usize = 1_000;
/// What each of them may hold: 48 KiB that were read, the buffers of HTTP/2, and a few calls.
const CONNECTION_MAX: u64 = 200 << 10;
/// Calls that a connection without a login may have.
const CALLS: usize = 8;
/// What the passwords of many users at once may need.
const LOGINS_MAX: u64 = 100 << 20;
/// A call without an answer is given up.
const GIVE_UP: Duration = Duration::from_secs(60);
const BODY_BYTES: usize = 8 << 20;
const MESSAGE_BYTES: usize = 64 << 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_without_a_login_are_not_buffered() {
    let _turn = turn().await;
    let mut report = Report::new("strangers");
    let fixture = Fixture::start(&[]).await;
    let pid = fixture.pid();
    let before = resident(pid);
    let connections = size(20, 60);
    let work = async {
        let mut uploads = JoinSet::new();
        for number in 0..connections {
            let address = fixture.server.address.clone();
            uploads.spawn(async move {
                match fixture::connect(&address).await {
                    Ok(channel) => {
                        let body = || upload(&channel, number, BODY_BYTES / MESSAGE_BYTES, MESSAGE_BYTES);
                        let (one, two) = tokio::join!(body(), body());
                        vec![one, two]
                    }
                    Err(said) => vec![said],
                }
            });
        }
        uploads.join_all().await
    };
    let (answers, peak) = peak_during(pid, work).await;
    let mut tally: BTreeMap<String, u64> = BTreeMap::new();
    for answer in answers.into_iter().flatten() {
        *tally.entry(answer).or_default() += 1;
    }
    report.note(format!(
        "2 uploads of {} MiB on each of {connections} connections: {tally:?}",
        BODY_BYTES >> 20
    ));
    report.bytes(Promise::Strangers, "resident memory", peak, before + STRANGERS_MAX);
    let refused = tally.keys().all(|answer| answer == "28P01");
    report.check(Promise::Logins, refused, "all are refused with 28P01");
    fixture.stop(&mut report).await;
    report.finish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn as_many_strangers_as_there_may_be_hold_little() {
    const WATCHED: Duration = Duration::from_secs(10);
    let _turn = turn().await;
    let mut report = Report::new("many strangers");
    raise_open_files();
    let fixture = Fixture::start(&[]).await;
    let pid = fixture.pid();
    let before = resident(pid);
    let mut strangers = JoinSet::new();
    for number in 0..CONNECTIONS_MAX {
        let address = fixture.server.address.clone();
        strangers.spawn(async move {
            let channel = fixture::connect(&address).await?;
            // Together they are more than the server reads of a connection.
            let calls = (0..CALLS).map(|_| upload(&channel, number as u64, 1, 8 << 10));
            Ok::<_, String>(futures::future::join_all(calls).await)
        });
    }
    // Most of them wait for their passwords, with as much as the server reads of them.
    let ((), peak) = peak_during(pid, tokio::time::sleep(WATCHED)).await;
    while strangers.try_join_next().is_some() {}
    let waiting = strangers.len();
    report.note(format!("{waiting} of {CONNECTIONS_MAX} connections, {CALLS} uploads on each"));
    report.check(Promise::Strangers, waiting > CONNECTIONS_MAX / 2, "most of them wait");
    // The futures of a dev build are larger.
    let factor = if cfg!(debug_assertions) { 2 } else { 1 };
    let most = before + CONNECTIONS_MAX as u64 * CONNECTION_MAX * factor;
    report.bytes(Promise::Strangers, "resident memory", peak, most);
    let began = Instant::now();
    let login = tokio::time::timeout(GIVE_UP, bystander::log_in(&fixture.server.address)).await;
    report.check(Promise::Strangers, matches!(login, Ok(Ok(()))), format!("a login beside them: {login:?}"));
    report.note(format!("it took {:.1?}", began.elapsed()));
    strangers.shutdown().await;
    fixture.stop(&mut report).await;
    report.finish();
}

/// Lets this process, and the server that it starts, open many connections.
fn raise_open_files() {
    let (_, files_max) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit of open files");
    setrlimit(Resource::RLIMIT_NOFILE, files_max, files_max).expect("raise the limit of open files");
}

/// Uploads rows with a wrong password; returns the SQLSTATE of the refusal, or what else happened.
async fn upload(channel: &Channel, number: u64, messages: usize, message_bytes: usize) -> String {
    let body = Bytes::from(vec![0; message_bytes]);
    let messages =
        (0..messages).map(move |_| FlightData { data_body: Bytes::clone(&body), ..FlightData::default() });
    let mut request = Request::new(stream::iter(messages));
    let basic = format!("Basic {}", BASE64_STANDARD.encode(format!("stranger{number}:wrong")));
    request.metadata_mut().insert("authorization", basic.parse().expect("a header"));
    let mut client = FlightServiceClient::new(channel.clone());
    match tokio::time::timeout(GIVE_UP, client.do_put(request)).await {
        Ok(Ok(_)) => "accepted".to_owned(),
        Ok(Err(status)) => match sqlstate(status.message()) {
            Some(state) => state.to_owned(),
            None => format!("{:?}", status.code()),
        },
        Err(_) => "no answer".to_owned(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_keep_nobody_out() {
    const CONNECTIONS: usize = 1_200;
    const LOGINS: usize = 20;
    let _turn = turn().await;
    let mut report = Report::new("idle connections");
    raise_open_files();
    let fixture = Fixture::start(&[]).await;
    let mut idle = Vec::with_capacity(CONNECTIONS);
    for _ in 0..CONNECTIONS {
        idle.push(TcpStream::connect(&fixture.server.address).await.expect("connect"));
    }
    let (mut slowest, mut failures) = (Duration::ZERO, Vec::new());
    for _ in 0..LOGINS {
        let began = Instant::now();
        let login = tokio::time::timeout(GIVE_UP, bystander::log_in(&fixture.server.address)).await;
        slowest = slowest.max(began.elapsed());
        match login {
            Ok(Ok(())) => {}
            Ok(Err(said)) => failures.push(said),
            Err(_) => failures.push("no answer".to_owned()),
        }
    }
    let said = format!("{} of {LOGINS} logins failed {:?}", failures.len(), failures.first());
    report.check(Promise::Strangers, failures.is_empty(), said);
    report.within(Promise::Strangers, format!("the slowest login beside {CONNECTIONS}"), slowest, WAIT_MAX);
    drop(idle);
    fixture.stop(&mut report).await;
    report.finish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_who_come_back_at_once_all_get_in() {
    let _turn = turn().await;
    let mut report = Report::new("logins");
    let mut fixture = Fixture::start(&[]).await;
    let users = size(300, 600);
    for number in 0..users {
        fixture.add_user(&format!("user{number}")).await;
    }
    let pid = fixture.pid();
    let before = resident(pid);
    let began = Instant::now();
    let work = async {
        let mut logins = JoinSet::new();
        for number in 0..users {
            let address = fixture.server.address.clone();
            logins.spawn(async move { fixture::log_in(&address, &format!("user{number}")).await });
        }
        logins.join_all().await
    };
    let (logins, peak) = peak_during(pid, work).await;
    let failures: Vec<String> = logins.into_iter().filter_map(Result::err).collect();
    report.note(format!("{users} users logged in within {:.1?}", began.elapsed()));
    let said = format!("{} were refused {:?}", failures.len(), failures.first());
    report.check(Promise::Logins, failures.is_empty(), said);
    report.bytes(Promise::Logins, "resident memory", peak, before + LOGINS_MAX);
    fixture.stop(&mut report).await;
    report.finish();
}

//! Clients without a login: they cannot keep others out, and the server holds little for them.

use std::time::{Duration, Instant};

use arrow_flight::FlightData;
use arrow_flight::sql::CommandStatementUpdate;
use futures::future::join_all;
use futures::stream;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpSocket, TcpStream};
use tonic::transport::Channel;
use tonic::{Code, Request};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::fixture::{Fixture, ROOT_PASSWORD, basic, descriptor};

/// More sockets than may be open without a login.
const FLOOD: usize = 1_200;

/// Lets this process open the sockets of a flood and those of the server.
#[cfg(unix)]
fn raise_open_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
}

/// Connects from an address of this machine, and says nothing.
async fn silent(fixture: &Fixture, from: [u8; 4]) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((from, 0).into()).unwrap();
    let address = fixture.url().strip_prefix("http://").unwrap().parse().unwrap();
    socket.connect(address).await.unwrap()
}

/// Whether the server has closed a connection.
async fn is_closed(stream: &mut TcpStream) -> bool {
    let mut buffer = [0; 64];
    loop {
        match tokio::time::timeout(Duration::from_millis(50), stream.read(&mut buffer)).await {
            Err(_) => return false,
            Ok(Ok(0) | Err(_)) => return true,
            // The settings of the server.
            Ok(Ok(_)) => {}
        }
    }
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_silent_sockets_keeps_nobody_out() {
    raise_open_files();
    let fixture = Fixture::start().await;
    let mut guest = silent(&fixture, [127, 0, 0, 1]).await;
    let mut flood = Vec::with_capacity(FLOOD);
    for _ in 0..FLOOD {
        flood.push(silent(&fixture, [127, 0, 0, 2]).await);
    }
    // The first login pays for the password; the others show how long it takes to get in.
    fixture.root().await;
    let began = Instant::now();
    let logins = join_all((0..20).map(|_| fixture.root())).await;
    assert!(began.elapsed() <= Duration::from_secs(5), "{:?}", began.elapsed());
    for mut root in logins {
        assert_eq!(root.query("SELECT 1").await.unwrap().lines(), ["1"]);
    }
    assert!(is_closed(&mut flood[0]).await, "the oldest of the flood made room");
    assert!(!is_closed(&mut guest).await, "an address with one connection keeps it");
    fixture.shut_down().await;
}

#[tokio::test]
async fn calls_without_a_login_are_few_on_a_connection() {
    let fixture = Fixture::start().await;
    let channel = Channel::from_shared(fixture.url().to_owned()).unwrap().connect().await.unwrap();
    let watch = || {
        let mut health = HealthClient::new(channel.clone());
        async move { health.watch(HealthCheckRequest { service: String::new() }).await }
    };
    let mut open = Vec::new();
    for _ in 0..8 {
        open.push(watch().await.unwrap());
    }
    let status = watch().await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert!(status.message().starts_with("[53300] "), "{status:?}");
    // An answer that the client no longer wants makes room for a login, after which there is no such limit.
    drop(open.pop());
    let mut client = fixture.stranger().await;
    client.inner = arrow_flight::flight_service_client::FlightServiceClient::new(channel.clone());
    let token = loop {
        match client.handshake("root", ROOT_PASSWORD).await {
            Ok(token) => break token,
            // The server hears of the end of a call a little later.
            Err(status) => assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}"),
        }
    };
    client.authorize(&token);
    for _ in 0..8 {
        open.push(watch().await.unwrap());
    }
    assert_eq!(client.query("SELECT 1").await.unwrap().rows(), 1);
    drop(open);
    fixture.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_calls_at_once_wait_for_the_first_login_of_their_connection() {
    let fixture = Fixture::start().await;
    let mut client = fixture.stranger().await;
    client.authorize(&basic("root", ROOT_PASSWORD));
    // More than the logins of one name that may wait.
    let queries = (0..100).map(|_| {
        let mut client = client.clone();
        async move { client.query("SELECT 1").await }
    });
    for answer in join_all(queries).await {
        assert_eq!(answer.unwrap().lines(), ["1"]);
    }
    fixture.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_refused_upload_the_connection_can_log_in() {
    let fixture = Fixture::start().await;
    let update = CommandStatementUpdate { query: "SELECT 1".to_owned(), transaction_id: None };
    let first = FlightData { flight_descriptor: Some(descriptor(&update)), ..FlightData::default() };
    for bytes in [64 << 10, 3 << 20] {
        let body = FlightData { data_body: vec![0; bytes].into(), ..FlightData::default() };
        let mut client = fixture.stranger().await;
        client.authorize(&basic("nobody", "a wrong guess"));
        let request = client.request(stream::iter([first.clone(), body]));
        let status = client.inner.do_put(request).await.unwrap_err();
        assert!(status.message().starts_with("[28P01] "), "{status:?}");
        // The server gives a connection without a login 10 s.
        let login = tokio::time::timeout(Duration::from_secs(5), client.handshake("root", ROOT_PASSWORD));
        let token = login.await.expect("the connection is read on").unwrap();
        client.authorize(&token);
        assert_eq!(client.query("SELECT 1").await.unwrap().rows(), 1);
    }
    fixture.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_sends_much_before_a_login_is_told_that_the_password_is_wrong() {
    let fixture = Fixture::start().await;
    let update = CommandStatementUpdate { query: "SELECT 1".to_owned(), transaction_id: None };
    let first = FlightData { flight_descriptor: Some(descriptor(&update)), ..FlightData::default() };
    let body = FlightData { data_body: vec![0; 1 << 20].into(), ..FlightData::default() };
    let guesses = (0..20).map(|number| {
        let (fixture, first, body) = (&fixture, first.clone(), body.clone());
        async move {
            let mut client = fixture.stranger().await;
            client.authorize(&basic(&format!("nobody{number}"), "a wrong guess"));
            let messages = std::iter::once(first).chain(std::iter::repeat_n(body, 8));
            let request = client.request(stream::iter(messages));
            client.inner.do_put(request).await.unwrap_err()
        }
    });
    for status in join_all(guesses).await {
        assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
        assert!(status.message().starts_with("[28P01] "), "{status:?}");
    }
    // With the right password the same request is read to its end.
    let mut root = fixture.stranger().await;
    root.authorize(&basic("root", ROOT_PASSWORD));
    let messages = std::iter::once(first).chain(std::iter::repeat_n(body, 8));
    assert_eq!(root.put(messages.collect()).await.unwrap().0, -1);
    fixture.shut_down().await;
}

#[tokio::test]
async fn a_user_has_a_limited_number_of_connections() {
    let fixture = Fixture::start_with(&[("connections_per_user_max", "2")]).await;
    let mut alice = fixture.user("alice").await;
    let second = fixture.login("alice", "password-of-alice").await;
    let mut third = fixture.stranger().await;
    third.authorize(&alice.authorization());
    let status = third.query("SELECT 1").await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert!(status.message().starts_with("[53300] the user has 2 open connections"), "{status:?}");
    assert_eq!(alice.query("SELECT 1").await.unwrap().rows(), 1);
    drop(second);
    let getting_in = async {
        while third.query("SELECT 1").await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), getting_in).await.expect("a closed connection makes room");
    fixture.shut_down().await;
}

#[tokio::test]
async fn an_address_can_have_a_limit() {
    let fixture = Fixture::start_with(&[("connections_per_address_max", "1")]).await;
    let mut root = fixture.root().await;
    let mut refused = silent(&fixture, [127, 0, 0, 1]).await;
    assert!(is_closed(&mut refused).await);
    let mut other = silent(&fixture, [127, 0, 0, 2]).await;
    assert!(!is_closed(&mut other).await);
    assert_eq!(root.query("SELECT 1").await.unwrap().rows(), 1);
    let mut health =
        HealthClient::new(Channel::from_shared(fixture.url().to_owned()).unwrap().connect_lazy());
    let request = Request::new(HealthCheckRequest { service: String::new() });
    assert!(health.check(request).await.is_err());
    fixture.shut_down().await;
}

//! Authentication, and ownership of tokens, tickets, handles and rows.

use arrow_flight::sql::{CommandPreparedStatementQuery, CommandStatementUpdate};
use arrow_flight::{BasicAuth, Criteria, Empty, FlightData, FlightDescriptor, HandshakeRequest, Ticket};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use futures::stream;
use hmac::{Hmac, KeyInit, Mac};
use kalamdb_core::UserId;
use kalamdb_core::clock::{Clock, SystemClock};
use prost::Message;
use sha2::Sha256;
use tonic::{Code, Request};

use crate::fixture::{Fixture, ROOT_PASSWORD, any, basic, descriptor, only_ticket, statement};
use crate::prepared::prepare;

const HOUR_US: i64 = 3_600 * 1_000_000;

#[tokio::test]
async fn nothing_is_answered_without_credentials() {
    let fixture = Fixture::start().await;
    let mut client = fixture.stranger().await;
    let select = descriptor(&statement("SELECT 1"));
    let update = CommandStatementUpdate { query: "SELECT 1".to_owned(), transaction_id: None };
    let put = FlightData { flight_descriptor: Some(descriptor(&update)), ..FlightData::default() };

    let inner = &mut client.inner;
    let statuses = [
        inner.get_flight_info(select.clone()).await.err(),
        inner.poll_flight_info(select.clone()).await.err(),
        inner.get_schema(select.clone()).await.err(),
        inner.do_get(Ticket { ticket: select.cmd.clone() }).await.err(),
        inner.do_put(stream::iter([put.clone()])).await.err(),
        inner.do_exchange(stream::iter([put])).await.err(),
        inner.list_flights(Criteria::default()).await.err(),
        inner.list_actions(Empty {}).await.err(),
        inner.do_action(arrow_flight::Action::new("CloseSession", "")).await.err(),
        inner.handshake(stream::iter([HandshakeRequest::default()])).await.err(),
    ];
    for (call, status) in statuses.into_iter().enumerate() {
        let status = status.unwrap_or_else(|| panic!("call {call} was answered"));
        assert_eq!(status.code(), Code::Unauthenticated, "call {call}: {status:?}");
        assert!(status.message().contains("[28000]"), "call {call}: {status:?}");
    }
    fixture.shut_down().await;
}

#[tokio::test]
async fn a_path_that_no_service_has_is_closed_too() {
    let fixture = Fixture::start().await;
    let channel =
        tonic::transport::Channel::from_shared(fixture.url().to_owned()).unwrap().connect().await.unwrap();
    let mut grpc = tonic::client::Grpc::new(channel);
    for path in ["/kalamdb.live.v1.LiveQuery/Subscribe", "/nobody.Knows/This"] {
        grpc.ready().await.unwrap();
        let path = http::uri::PathAndQuery::from_static(path);
        let codec: tonic_prost::ProstCodec<Empty, Empty> = tonic_prost::ProstCodec::default();
        let status = grpc.unary(Request::new(Empty {}), path, codec).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
    }
    fixture.shut_down().await;
}

#[tokio::test]
async fn health_is_open() {
    let fixture = Fixture::start().await;
    let channel =
        tonic::transport::Channel::from_shared(fixture.url().to_owned()).unwrap().connect().await.unwrap();
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel);
    let request = tonic_health::pb::HealthCheckRequest { service: String::new() };
    let answer = health.check(request).await.unwrap().into_inner();
    assert_eq!(answer.status(), tonic_health::pb::health_check_response::ServingStatus::Serving);
    fixture.shut_down().await;
}

#[tokio::test]
async fn who_watches_health_hears_of_the_end() {
    use tonic_health::pb::health_check_response::ServingStatus;
    let fixture = Fixture::start_with(&[("drain_ms", "500")]).await;
    let channel =
        tonic::transport::Channel::from_shared(fixture.url().to_owned()).unwrap().connect().await.unwrap();
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel);
    let mut watches = Vec::new();
    for service in ["", "arrow.flight.protocol.FlightService", "kalamdb.live.v1.LiveQuery"] {
        let request = tonic_health::pb::HealthCheckRequest { service: service.to_owned() };
        let mut watch = health.watch(request).await.unwrap().into_inner();
        assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving, "{service}");
        watches.push(watch);
    }
    let ending = tokio::spawn(fixture.shut_down());
    for mut watch in watches {
        assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    }
    ending.await.unwrap();
}

#[tokio::test]
async fn basic_and_bearer_are_good_on_every_call() {
    let fixture = Fixture::start().await;
    let mut client = fixture.stranger().await;
    client.authorize(&basic("root", ROOT_PASSWORD));
    assert_eq!(client.query("SELECT 1").await.unwrap().lines(), ["1"]);
    assert_eq!(client.query("SELECT 2").await.unwrap().lines(), ["2"]);

    fixture.shut_down().await;
}

#[tokio::test]
async fn connections_that_share_a_token_do_not_share_a_session() {
    let fixture = Fixture::start().await;
    let mut root = fixture.root().await;
    let given = root.authorization();
    let handle = prepare(&mut root, "SELECT 1").await.unwrap().prepared_statement_handle;
    // JDBC does this with a token that it was given.
    let mut others = Vec::new();
    for _ in 0..2 {
        let mut other = fixture.stranger().await;
        let mut request = Request::new(stream::iter([HandshakeRequest::default()]));
        request.metadata_mut().insert("authorization", given.parse().unwrap());
        let response = other.inner.handshake(request).await.unwrap();
        let own = response.metadata().get("authorization").unwrap().to_str().unwrap().to_owned();
        assert_ne!(own, given);
        other.authorize(&own);
        let handle = prepare(&mut other, "SELECT 2").await.unwrap().prepared_statement_handle;
        others.push((other, handle));
    }
    let query = |handle| CommandPreparedStatementQuery { prepared_statement_handle: handle };
    let (mut closed, closed_handle) = others.pop().unwrap();
    closed.run_action("CloseSession", Vec::new()).await.unwrap();
    assert_eq!(closed.info(&query(closed_handle)).await.unwrap_err().code(), Code::NotFound);
    let (mut open, open_handle) = others.pop().unwrap();
    assert!(open.info(&query(open_handle)).await.is_ok());
    assert!(root.info(&query(handle.clone())).await.is_ok());
    // Drivers that send the given token on every connection do this.
    let mut same = fixture.stranger().await;
    same.authorize(&given);
    let same_handle = prepare(&mut same, "SELECT 3").await.unwrap().prepared_statement_handle;
    same.run_action("CloseSession", Vec::new()).await.unwrap();
    assert_eq!(same.info(&query(same_handle)).await.unwrap_err().code(), Code::NotFound);
    assert!(root.info(&query(handle)).await.is_ok());
    fixture.shut_down().await;
}

/// Builds a token of root as the server would have issued it at `issued_at`.
fn token_of_root(fixture: &Fixture, issued_at: i64) -> String {
    let mac = |key: &[u8], bytes: &[u8]| {
        let mut hmac = Hmac::<Sha256>::new_from_slice(key).unwrap();
        hmac.update(bytes);
        hmac.finalize().into_bytes().to_vec()
    };
    let generation = fixture.database.auth_generation(UserId::ROOT).unwrap();
    let mut body = vec![1];
    body.extend(UserId::ROOT.0.to_le_bytes());
    body.extend(generation.to_le_bytes());
    body.extend(issued_at.to_le_bytes());
    body.extend((issued_at + 24 * HOUR_US).to_le_bytes());
    body.extend([7; 16]);
    let seal = mac(&mac(fixture.database.secret(), b"bearer token"), &body);
    body.extend(seal);
    format!("Bearer kalam1.{}", BASE64_URL_SAFE_NO_PAD.encode(body))
}

#[tokio::test]
async fn who_is_at_work_is_given_a_new_token_in_time() {
    let fixture = Fixture::start().await;
    let mut client = fixture.stranger().await;
    let now = SystemClock.now_us();
    for (age_hours, renewed) in [(0, false), (11, false), (13, true), (23, true)] {
        client.authorize(&token_of_root(&fixture, now - age_hours * HOUR_US));
        let handle = prepare(&mut client, "SELECT 1").await.unwrap().prepared_statement_handle;
        let answer = client.info(&statement("SELECT 1")).await.unwrap();
        let header = answer.metadata().get("authorization").map(|header| header.to_str().unwrap().to_owned());
        assert_eq!(header.is_some(), renewed, "after {age_hours} h: {header:?}");
        let Some(header) = header else { continue };
        // The session continues: closing it closes its statements.
        client.authorize(&header);
        assert!(client.info(&statement("SELECT 1")).await.unwrap().metadata().get("authorization").is_none());
        client.run_action("CloseSession", Vec::new()).await.unwrap();
        let closed = CommandPreparedStatementQuery { prepared_statement_handle: handle };
        assert_eq!(client.info(&closed).await.unwrap_err().code(), Code::NotFound);
    }
    client.authorize(&token_of_root(&fixture, now - 24 * HOUR_US));
    assert_eq!(client.query("SELECT 1").await.unwrap_err().code(), Code::Unauthenticated);
    fixture.shut_down().await;
}

#[tokio::test]
async fn a_handshake_takes_the_message_of_older_clients() {
    let fixture = Fixture::start().await;
    let mut client = fixture.stranger().await;
    let auth = BasicAuth { username: "root".to_owned(), password: ROOT_PASSWORD.to_owned() };
    let message = HandshakeRequest { protocol_version: 0, payload: auth.encode_to_vec().into() };
    let response = client.inner.handshake(stream::iter([message])).await.unwrap();
    let answer = response.into_inner().message().await.unwrap().unwrap();
    client.authorize(&format!("Bearer {}", std::str::from_utf8(&answer.payload).unwrap()));
    assert_eq!(client.query("SELECT 1").await.unwrap().rows(), 1);
    fixture.shut_down().await;
}

#[tokio::test]
async fn wrong_credentials_are_refused_in_the_same_words() {
    let fixture = Fixture::start().await;
    let mut client = fixture.stranger().await;
    let wrong_password = client.handshake("root", "wrong-password").await.unwrap_err();
    let unknown_user = client.handshake("nobody", "wrong-password").await.unwrap_err();
    assert_eq!(wrong_password.code(), Code::Unauthenticated);
    assert_eq!(wrong_password.message(), unknown_user.message());

    let good = fixture.root().await.authorization();
    let mut forged = good.clone();
    let last = if forged.pop() == Some('A') { 'B' } else { 'A' };
    forged.push(last);
    for authorization in ["Bearer x", "Bearer kalam1.AAAA", "Digest x", "Basic !", forged.as_str()] {
        client.authorize(authorization);
        let status = client.query("SELECT 1").await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated, "{authorization}: {status:?}");
    }
    fixture.shut_down().await;
}

#[tokio::test]
async fn a_token_survives_a_restart_and_not_a_new_password() {
    let fixture = Fixture::start().await;
    let alice = fixture.user("alice").await.authorization();
    let database = fixture.shut_down().await;

    let fixture = Fixture::over(database, &[]).await;
    let mut client = fixture.stranger().await;
    client.authorize(&alice);
    assert_eq!(client.query("SELECT 1").await.unwrap().lines(), ["1"]);

    let mut root = fixture.root().await;
    root.update("ALTER USER alice SET PASSWORD 'another-password'").await.unwrap();
    let status = client.query("SELECT 1").await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
    fixture.shut_down().await;
}

#[tokio::test]
async fn tickets_and_handles_of_others_are_as_unknown_as_none() {
    let fixture = Fixture::start().await;
    let mut alice = fixture.user("alice").await;
    let mut bob = fixture.user("bob").await;

    let info = alice.info(&statement("SELECT 1")).await.unwrap().into_inner();
    let theirs = bob.open(only_ticket(&info)).await.unwrap_err();
    let mut forged = only_ticket(&info);
    forged.ticket = forged.ticket.iter().rev().copied().collect();
    let unknown = bob.open(forged).await.unwrap_err();
    assert_eq!((theirs.code(), theirs.message()), (Code::NotFound, unknown.message()));
    assert_eq!(unknown.code(), Code::NotFound);
    // The owner can still use it.
    assert_eq!(alice.fetch(&info).await.unwrap().rows(), 1);

    let handle = prepare(&mut alice, "SELECT 1").await.unwrap().prepared_statement_handle;
    let query = |handle| CommandPreparedStatementQuery { prepared_statement_handle: handle };
    let theirs = bob.info(&query(handle.clone())).await.unwrap_err();
    let unknown = bob.info(&query(vec![7; 16].into())).await.unwrap_err();
    assert_eq!((theirs.code(), theirs.message()), (Code::NotFound, unknown.message()));
    assert_eq!(theirs.code(), unknown.code());
    // Another user cannot close it either.
    let close =
        arrow_flight::sql::ActionClosePreparedStatementRequest { prepared_statement_handle: handle.clone() };
    bob.run_action("ClosePreparedStatement", any(&close)).await.unwrap();
    assert!(alice.info(&query(handle)).await.is_ok());
    fixture.shut_down().await;
}

#[tokio::test]
async fn users_see_their_own_rows_of_a_user_table() {
    let fixture = Fixture::start().await;
    let mut root = fixture.root().await;
    root.update("CREATE NAMESPACE app").await.unwrap();
    root.update("CREATE USER TABLE app.notes (id BIGINT PRIMARY KEY, text TEXT)").await.unwrap();
    let mut alice = fixture.user("alice").await;
    let mut bob = fixture.user("bob").await;
    alice.update("INSERT INTO app.notes VALUES (1, 'from alice')").await.unwrap();
    bob.update("INSERT INTO app.notes VALUES (1, 'from bob')").await.unwrap();
    assert_eq!(alice.query("SELECT text FROM app.notes").await.unwrap().lines(), ["from alice"]);
    assert_eq!(bob.query("SELECT text FROM app.notes").await.unwrap().lines(), ["from bob"]);
    fixture.shut_down().await;
}

#[tokio::test]
async fn a_path_descriptor_names_a_table() {
    let fixture = Fixture::start().await;
    let mut root = fixture.root().await;
    root.update("CREATE TABLE t (id BIGINT PRIMARY KEY)").await.unwrap();
    root.update("INSERT INTO t VALUES (7)").await.unwrap();
    let path = FlightDescriptor::new_path(vec!["public".to_owned(), "t".to_owned()]);
    let info = root.inner.get_flight_info(root.request(path)).await.unwrap().into_inner();
    assert_eq!(root.fetch(&info).await.unwrap().lines(), ["7"]);
    fixture.shut_down().await;
}

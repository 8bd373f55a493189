//! What a session is: which calls see the same `USE` and the same handles.

use std::time::Duration;

use arrow_flight::HandshakeRequest;
use arrow_flight::sql::CommandPreparedStatementQuery;
use bytes::Bytes;
use futures::stream;
use kalamdb_proto::live::v1 as pb;
use kalamdb_proto::live::v1::live_query_client::LiveQueryClient;
use tonic::{Code, Request, Status};

use crate::fixture::{Client, Fixture, ROOT_PASSWORD, basic};
use crate::metadata::{get, set};
use crate::prepared::prepare;

const NAME: &str = "00112233445566778899aabbccddeeff";

async fn namespace(client: &mut Client) -> String {
    client.query("SELECT current_schema()").await.unwrap().lines().remove(0)
}

/// A server with the namespaces `a` and `b`.
async fn server() -> Fixture {
    let fixture = Fixture::start().await;
    let mut root = fixture.root().await;
    for name in ["a", "b"] {
        root.update(&format!("CREATE NAMESPACE {name}")).await.unwrap();
        root.update(&format!("CREATE TABLE {name}.t (of_{name} BIGINT PRIMARY KEY)")).await.unwrap();
    }
    fixture
}

/// Opens another connection with the same token.
async fn another(fixture: &Fixture, client: &Client) -> Client {
    let mut other = fixture.stranger().await;
    other.authorize(&client.authorization());
    other
}

#[tokio::test]
async fn two_connections_with_one_token_are_two_sessions() {
    let fixture = server().await;
    let mut one = fixture.root().await;
    let mut two = another(&fixture, &one).await;
    one.update("USE a").await.unwrap();
    two.update("USE b").await.unwrap();
    assert_eq!(namespace(&mut one).await, "a");
    assert_eq!(namespace(&mut two).await, "b");
    // Without a token too, and beside a token on the same connection.
    one.authorize(&basic("root", ROOT_PASSWORD));
    two.authorize(&basic("root", ROOT_PASSWORD));
    assert_eq!(namespace(&mut one).await, "public");
    one.update("USE b").await.unwrap();
    assert_eq!(namespace(&mut two).await, "public");
    fixture.shut_down().await;
}

#[tokio::test]
async fn connections_that_send_one_name_are_one_session_of_one_user() {
    let fixture = server().await;
    for (header, value) in [
        ("cookie", format!("theme=dark; arrow_flight_session_id={NAME}")),
        ("kalamdb-session", NAME.replace("00", "11")),
    ] {
        let mut one = fixture.root().await;
        let mut two = another(&fixture, &one).await;
        one.send_always(header, &value);
        two.send_always(header, &value);
        one.update("USE a").await.unwrap();
        assert_eq!(namespace(&mut two).await, "a", "{header}");
        let handle = prepare(&mut one, "SELECT 1").await.unwrap().prepared_statement_handle;
        run(&mut two, &handle).await.unwrap();

        let mut alice = fixture.user(&format!("alice_{}", value.len())).await;
        alice.send_always(header, &value);
        assert_eq!(namespace(&mut alice).await, "public", "{header}");
        assert_eq!(run(&mut alice, &handle).await.unwrap_err().code(), Code::NotFound);
    }
    let mut wrong = fixture.root().await;
    wrong.send_always("kalamdb-session", "mine");
    let status = wrong.query("SELECT 1").await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert!(status.message().starts_with("[22023] "), "{status:?}");
    fixture.shut_down().await;
}

/// Logs in; returns the cookie that the answer sets.
async fn offered_cookie(client: &mut Client, cookie: Option<&str>) -> Option<String> {
    let mut request = Request::new(stream::iter([HandshakeRequest::default()]));
    request.metadata_mut().insert("authorization", basic("root", ROOT_PASSWORD).parse().unwrap());
    if let Some(cookie) = cookie {
        request.metadata_mut().insert("cookie", cookie.parse().unwrap());
    }
    let response = client.inner.handshake(request).await.unwrap();
    let text = |name: &str| response.metadata().get(name).map(|value| value.to_str().unwrap().to_owned());
    client.authorize(&text("authorization").unwrap());
    text("set-cookie")
}

#[tokio::test]
async fn a_login_offers_a_cookie_to_who_sends_none() {
    let fixture = server().await;
    let mut client = fixture.stranger().await;
    let cookie = offered_cookie(&mut client, None).await.expect("a cookie");
    assert!(cookie.ends_with("; Path=/; HttpOnly; SameSite=Strict"), "{cookie}");
    let pair = cookie.split(';').next().unwrap();
    assert_eq!(offered_cookie(&mut client, Some(pair)).await, None);
    // Who takes no notice of it is in the session of the connection.
    client.update("USE a").await.unwrap();
    assert_eq!(namespace(&mut client).await, "a");
    client.send_always("cookie", pair);
    assert_eq!(namespace(&mut client).await, "public");
    fixture.shut_down().await;
}

#[tokio::test]
async fn options_stay_with_and_without_the_cookie_that_their_answer_sets() {
    let fixture = server().await;
    let mut client = fixture.root().await;
    let handle = prepare(&mut client, "SELECT 1").await.unwrap().prepared_statement_handle;
    let action = arrow_flight::Action { r#type: "SetSessionOptions".to_owned(), body: Bytes::new() };
    let answer = client.inner.do_action(client.request(action)).await.unwrap();
    let cookie = answer.metadata().get("set-cookie").expect("a cookie").to_str().unwrap().to_owned();
    let pair = cookie.split(';').next().unwrap();
    assert_eq!(set(&mut client, "schema", "a").await, None);

    let mut with_cookie = another(&fixture, &client).await;
    with_cookie.send_always("cookie", pair);
    assert_eq!(get(&mut with_cookie, "schema").await.as_deref(), Some("a"));
    assert_eq!(get(&mut client, "schema").await.as_deref(), Some("a"));
    assert_eq!(set(&mut with_cookie, "schema", "b").await, None);
    assert_eq!(namespace(&mut client).await, "b", "it is the same session");
    run(&mut with_cookie, &handle).await.unwrap();
    fixture.shut_down().await;
}

/// Runs a prepared query.
async fn run(client: &mut Client, handle: &Bytes) -> Result<usize, Status> {
    let command = CommandPreparedStatementQuery { prepared_statement_handle: handle.clone() };
    let info = client.info(&command).await?.into_inner();
    Ok(client.fetch(&info).await?.rows())
}

#[tokio::test]
async fn a_handle_is_its_sessions_until_the_connection_is_closed() {
    let fixture = server().await;
    let mut one = fixture.root().await;
    let mut two = another(&fixture, &one).await;
    let mut alice = fixture.user("alice").await;
    let handle = prepare(&mut one, "SELECT 1").await.unwrap().prepared_statement_handle;
    let status = run(&mut two, &handle).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound, "{status:?}");
    assert!(status.message().starts_with("[26000] "), "{status:?}");
    assert_eq!(run(&mut one, &handle).await.unwrap(), 1);

    // A client that reconnects goes on with its handles, but not with its settings.
    one.update("USE a").await.unwrap();
    drop(one);
    let reconnected = async {
        while run(&mut two, &handle).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), reconnected).await.expect("the connection ends");
    assert_eq!(namespace(&mut two).await, "public");
    assert_eq!(run(&mut alice, &handle).await.unwrap_err().code(), Code::NotFound);
    two.run_action("CloseSession", Vec::new()).await.unwrap();
    assert_eq!(run(&mut two, &handle).await.unwrap_err().code(), Code::NotFound);
    fixture.shut_down().await;
}

#[tokio::test]
async fn a_new_role_or_password_moves_nobody_to_another_namespace() {
    let fixture = server().await;
    let mut root = fixture.root().await;
    let mut with_token = fixture.user("alice").await;
    let mut with_password = fixture.stranger().await;
    with_password.authorize(&basic("alice", "password-of-alice"));
    let mut named = fixture.stranger().await;
    named.authorize(&with_token.authorization());
    named.send_always("kalamdb-session", NAME);
    for client in [&mut with_token, &mut with_password, &mut named] {
        client.update("USE a").await.unwrap();
    }
    let handle = prepare(&mut with_token, "SELECT 1").await.unwrap().prepared_statement_handle;

    let changes = [
        ("ALTER USER 'alice' SET ROLE service", "password-of-alice"),
        ("ALTER USER 'alice' SET PASSWORD 'another password'", "another password"),
    ];
    for (change, password) in changes {
        root.update(change).await.unwrap();
        // Who sends a token is told, and has to log in.
        for client in [&mut with_token, &mut named] {
            let status = client.update("INSERT INTO t VALUES (1)").await.unwrap_err();
            assert_eq!(status.code(), Code::Unauthenticated, "{change}: {status:?}");
            let token = client.handshake("alice", password).await.unwrap();
            client.authorize(&token);
        }
        with_password.authorize(&basic("alice", password));
        for client in [&mut with_password, &mut named] {
            assert_eq!(namespace(client).await, "a", "{change}");
        }
        // A login without the name of a session begins another one, which has the handles of the connection.
        assert_eq!(namespace(&mut with_token).await, "public", "{change}");
        assert_eq!(run(&mut with_token, &handle).await.unwrap(), 1, "{change}");
        assert_eq!(current_role(&mut with_password).await, "service", "{change}");
    }
    fixture.shut_down().await;
}

async fn current_role(client: &mut Client) -> String {
    client.query("SELECT current_role()").await.unwrap().lines().remove(0)
}

#[tokio::test]
async fn a_live_query_sees_what_use_has_set() {
    let fixture = server().await;
    let channel =
        tonic::transport::Channel::from_shared(fixture.url().to_owned()).unwrap().connect().await.unwrap();
    let mut client = fixture.stranger().await;
    client.inner = arrow_flight::flight_service_client::FlightServiceClient::new(channel.clone());
    client.authorize(&fixture.root().await.authorization());
    let mut live = LiveQueryClient::new(channel);
    let request = |client: &Client| {
        let sql = "SELECT of_b FROM t".to_owned();
        client.request(pb::SubscribeRequest { sql, ..Default::default() })
    };
    let status = live.subscribe(request(&client)).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound, "{status:?}");
    client.update("USE b").await.unwrap();
    let mut frames = live.subscribe(request(&client)).await.unwrap().into_inner();
    let first = frames.message().await.unwrap().expect("a frame");
    assert!(matches!(first.body, Some(pb::frame::Body::Started(_))), "{first:?}");
    fixture.shut_down().await;
}

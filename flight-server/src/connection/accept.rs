//! Accepts sockets.
//!
//! Invariant: an accepted socket is in the table of open connections before anybody reads it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;
use tracing::{debug, warn};

use super::ConnectionInfo;
use super::gate::Connection;
use super::limits::{ConnectionLimits, OpenConnections};
use super::state::State;

struct Acceptor {
    listener: TcpListener,
    open: Arc<OpenConnections>,
    last_number: u64,
}

/// Accepts sockets forever. Errors of a single accept are logged and skipped: a broken client, or a moment
/// without file descriptors, must not end the server.
pub(crate) fn accept(
    listener: TcpListener,
    limits: ConnectionLimits,
) -> impl Stream<Item = io::Result<Connection>> {
    let acceptor = Acceptor { listener, open: Arc::new(OpenConnections::new(limits)), last_number: 0 };
    futures::stream::unfold(acceptor, |mut acceptor| async move {
        let connection = acceptor.next().await;
        Some((Ok(connection), acceptor))
    })
}

impl Acceptor {
    async fn next(&mut self) -> Connection {
        loop {
            let (stream, peer) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    warn!(%error, "could not accept a connection");
                    // Without file descriptors, accept would fail again at once; wait for others to finish.
                    sleep(Duration::from_millis(10)).await;
                    continue;
                }
            };
            match self.enter(stream, peer) {
                Some(connection) => return connection,
                None => warn!(%peer, "refused a connection: too many are open"),
            }
        }
    }

    fn enter(&mut self, stream: TcpStream, peer: SocketAddr) -> Option<Connection> {
        self.last_number += 1;
        let state = Arc::new(State::new(self.last_number, peer));
        if !self.open.enter(&state) {
            return None;
        }
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%peer, %error, "could not set nodelay");
        }
        Some(Connection::new(stream, ConnectionInfo { state, open: Arc::clone(&self.open) }))
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;

    use futures::StreamExt;
    use kalamdb_core::UserId;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tonic::transport::server::Connected;

    use super::*;

    type Accepted = Pin<Box<dyn Stream<Item = io::Result<Connection>> + Send>>;

    async fn listening(limits: ConnectionLimits) -> (SocketAddr, Accepted) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (address, Box::pin(accept(listener, limits)))
    }

    async fn connect(address: SocketAddr, accepted: &mut Accepted) -> (TcpStream, Connection) {
        let client = TcpStream::connect(address).await.unwrap();
        (client, accepted.next().await.unwrap().unwrap())
    }

    #[tokio::test]
    async fn who_does_not_log_in_is_sent_away_however_much_they_say() {
        let login_time = Duration::from_millis(200);
        let limits = ConnectionLimits { login_time, ..ConnectionLimits::default() };
        let (address, mut accepted) = listening(limits).await;
        let (mut stranger, mut of_stranger) = connect(address, &mut accepted).await;
        let (mut guest, mut of_guest) = connect(address, &mut accepted).await;
        let (_waiting, mut of_waiting) = connect(address, &mut accepted).await;
        assert_ne!(of_stranger.connect_info().number(), of_guest.connect_info().number());
        of_guest.connect_info().mark_logged_in(UserId(1)).unwrap();
        let login = of_waiting.connect_info().begin_login();

        let talking = tokio::spawn(async move { while stranger.write_all(b"hello").await.is_ok() {} });
        let mut buffer = [0; 64];
        let error = loop {
            match of_stranger.read(&mut buffer).await {
                Ok(bytes) => assert!(bytes > 0, "the client went first"),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(!of_stranger.connect_info().is_closed());
        let info = of_stranger.connect_info();
        drop(of_stranger);
        assert!(info.is_closed());
        talking.await.unwrap();
        // A connection with a login stays, and so does one whose login is being checked.
        let still_open = tokio::time::timeout(2 * login_time, of_waiting.read(&mut buffer)).await;
        assert!(still_open.is_err(), "{still_open:?}");
        drop(login);
        assert_eq!(of_waiting.read(&mut buffer).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        guest.write_all(b"hello").await.unwrap();
        assert_eq!(of_guest.read(&mut buffer).await.unwrap(), 5);
    }

    #[tokio::test]
    async fn little_is_read_before_a_login_and_the_rest_after_it() {
        let limits = ConnectionLimits { anonymous_read_bytes_max: 10, ..ConnectionLimits::default() };
        let (address, mut accepted) = listening(limits).await;
        let (mut client, mut connection) = connect(address, &mut accepted).await;
        client.write_all(b"0123456789abcdef").await.unwrap();
        let mut first = [0; 10];
        connection.read_exact(&mut first).await.unwrap();
        let info = connection.connect_info();
        let rest = async move {
            let mut rest = [0; 6];
            connection.read_exact(&mut rest).await.unwrap();
            rest
        };
        let mut rest = Box::pin(rest);
        let waiting = tokio::time::timeout(Duration::from_millis(50), &mut rest).await;
        assert!(waiting.is_err(), "nothing more is read");
        // Bytes of a refused call that are gone do not count, until there were too many.
        assert!(info.state.give_back(4));
        let waiting = tokio::time::timeout(Duration::from_millis(50), &mut rest).await;
        assert!(waiting.is_err(), "four more are read, not six");
        assert!(!info.state.give_back(8 << 20));
        let logging_in = async { info.mark_logged_in(UserId(1)).unwrap() };
        let (rest, ()) = tokio::join!(rest, logging_in);
        assert_eq!(&rest, b"abcdef");
    }

    #[tokio::test]
    async fn calls_with_credentials_wait_for_the_first_login() {
        let limits = ConnectionLimits {
            anonymous_calls_per_connection_max: 1,
            shared_calls_max: 8,
            ..ConnectionLimits::default()
        };
        let (address, mut accepted) = listening(limits).await;
        let (_client, connection) = connect(address, &mut accepted).await;
        let info = connection.connect_info();
        let first = info.begin_waiting().unwrap();
        let others = [(); 2].map(|()| info.begin_waiting().unwrap());
        assert!(first.is_some() && others.iter().all(Option::is_some));
        assert_eq!(info.begin_call().unwrap_err().sqlstate().0, "53300", "one without credentials");
        assert_eq!(info.begin_waiting().unwrap_err().sqlstate().0, "53300", "a quarter of eight");
        let turn = info.login_turn().await;
        assert!(turn.is_some());
        let mut waits = [(); 2].map(|()| Box::pin(info.login_turn()));
        for wait in &mut waits {
            assert!(futures::poll!(wait).is_pending());
        }
        info.mark_logged_in(UserId(1)).unwrap();
        for wait in waits {
            assert!(wait.await.is_none(), "all of them go on");
        }
        assert!(info.begin_waiting().unwrap().is_none());
        drop((turn, first, others));
    }

    #[tokio::test]
    async fn a_newcomer_takes_the_place_of_the_oldest_that_does_nothing() {
        let limits = ConnectionLimits { anonymous_max: 2, ..ConnectionLimits::default() };
        let (address, mut accepted) = listening(limits).await;
        let (_guest, of_guest) = connect(address, &mut accepted).await;
        of_guest.connect_info().mark_logged_in(UserId(1)).unwrap();
        let (_busy, of_busy) = connect(address, &mut accepted).await;
        let _login = of_busy.connect_info().begin_login();
        let (_idle, mut of_idle) = connect(address, &mut accepted).await;
        let reading = tokio::spawn(async move { of_idle.read(&mut [0; 1]).await });
        let (_third, _of_third) = connect(address, &mut accepted).await;
        let error = reading.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
    }

    #[tokio::test]
    async fn calls_before_a_login_are_few() {
        let limits =
            ConnectionLimits { anonymous_calls_per_connection_max: 2, ..ConnectionLimits::default() };
        let (address, mut accepted) = listening(limits).await;
        let (_client, connection) = connect(address, &mut accepted).await;
        let info = connection.connect_info();
        let first = info.begin_call().unwrap();
        let second = info.begin_call().unwrap();
        assert!(first.is_some() && second.is_some());
        assert_eq!(info.begin_call().unwrap_err().sqlstate().0, "53300");
        drop(first);
        assert!(info.begin_call().unwrap().is_some());
        info.mark_logged_in(UserId(1)).unwrap();
        assert!(info.begin_call().unwrap().is_none());
        drop(second);
    }
}

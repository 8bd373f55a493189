//! Accepted sockets: each gets a unique number; connections beyond a limit are closed at once.
//!
//! The number, not the peer's address, names the connection's session: ports are reused, numbers are not.
//!
//! Clients that only connect must not use up the slots of those that log in. So connections without a login
//! have few slots, and each keeps its slot only for a short time, whatever it sends.
//!
//! Invariant: a connection slot is freed exactly when its socket is dropped, however the connection ended. A
//! login slot is freed at the first call with valid credentials, or with the connection.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep};
use tonic::transport::server::Connected;
use tracing::{debug, warn};

/// Tells a handler on which connection a request arrived.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionInfo {
    /// Never reused while the process lives.
    pub(crate) number: u64,
    pub(crate) peer: SocketAddr,
    login_slot: Arc<LoginSlot>,
}

impl ConnectionInfo {
    /// Records a login on the connection, which from now on may stay.
    pub(crate) fn mark_logged_in(&self) {
        if !self.login_slot.is_logged_in.swap(true, Ordering::Relaxed) {
            *self.login_slot.permit.lock() = None;
        }
    }
}

/// A connection's slot among those without a login.
#[derive(Debug)]
struct LoginSlot {
    is_logged_in: AtomicBool,
    permit: Mutex<Option<OwnedSemaphorePermit>>,
}

/// An accepted socket.
pub(crate) struct Connection {
    stream: TcpStream,
    info: ConnectionInfo,
    /// Closes the connection when it fires before a login.
    login_until: Option<Pin<Box<Sleep>>>,
    _slot: OwnedSemaphorePermit,
}

/// The maximum number of connections, and the time limit for a login.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConnectionLimits {
    /// All connections.
    pub(crate) connections_max: usize,
    /// Connections without a login.
    pub(crate) anonymous_max: usize,
    /// How long a connection may stay without a login.
    pub(crate) login_time: Duration,
}

struct Acceptor {
    listener: TcpListener,
    limits: ConnectionLimits,
    connection_slots: Arc<Semaphore>,
    login_slots: Arc<Semaphore>,
    last_number: u64,
}

/// Accepts sockets forever. Errors of a single accept are logged and skipped: a broken client, or a moment
/// without file descriptors, must not end the server.
pub(crate) fn accept(
    listener: TcpListener,
    limits: ConnectionLimits,
) -> impl Stream<Item = io::Result<Connection>> {
    let acceptor = Acceptor {
        listener,
        limits,
        connection_slots: Arc::new(Semaphore::new(limits.connections_max)),
        login_slots: Arc::new(Semaphore::new(limits.anonymous_max)),
        last_number: 0,
    };
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
            let Ok(slot) = Arc::clone(&self.connection_slots).try_acquire_owned() else {
                warn!(%peer, "refused a connection: too many are open");
                continue;
            };
            let Ok(permit) = Arc::clone(&self.login_slots).try_acquire_owned() else {
                warn!(%peer, "refused a connection: too many have not logged in");
                continue;
            };
            if let Err(error) = stream.set_nodelay(true) {
                debug!(%peer, %error, "could not set nodelay");
            }
            self.last_number += 1;
            let login_slot =
                LoginSlot { is_logged_in: AtomicBool::new(false), permit: Mutex::new(Some(permit)) };
            let info = ConnectionInfo { number: self.last_number, peer, login_slot: Arc::new(login_slot) };
            let login_until = Some(Box::pin(sleep(self.limits.login_time)));
            return Connection { stream, info, login_until, _slot: slot };
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = ConnectionInfo;

    fn connect_info(&self) -> ConnectionInfo {
        self.info.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.info.login_slot.is_logged_in.load(Ordering::Relaxed) {
            self.login_until = None;
        }
        // Check before reading: a client that sends without pause must not escape the time limit.
        if let Some(login_until) = &mut self.login_until
            && login_until.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn listening(
        limits: ConnectionLimits,
    ) -> (SocketAddr, Pin<Box<dyn Stream<Item = io::Result<Connection>> + Send>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (address, Box::pin(accept(listener, limits)))
    }

    #[tokio::test]
    async fn who_does_not_log_in_is_sent_away_however_much_they_say() {
        let login_time = Duration::from_millis(200);
        let limits = ConnectionLimits { connections_max: 10, anonymous_max: 10, login_time };
        let (address, mut accepted) = listening(limits).await;
        let mut stranger = TcpStream::connect(address).await.unwrap();
        let mut of_stranger = accepted.next().await.unwrap().unwrap();
        let mut guest = TcpStream::connect(address).await.unwrap();
        let mut of_guest = accepted.next().await.unwrap().unwrap();
        assert_ne!(of_stranger.info.number, of_guest.info.number);
        of_guest.info.mark_logged_in();

        let talking = tokio::spawn(async move { while stranger.write_all(b"hello").await.is_ok() {} });
        let mut buffer = [0; 64];
        let error = loop {
            match of_stranger.read(&mut buffer).await {
                Ok(bytes) => assert!(bytes > 0, "the client went first"),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(of_stranger);
        talking.await.unwrap();
        // A connection with a login stays.
        sleep(login_time).await;
        guest.write_all(b"hello").await.unwrap();
        assert_eq!(of_guest.read(&mut buffer).await.unwrap(), 5);
    }

    #[tokio::test]
    async fn login_slots_are_few_and_given_back() {
        let login_time = Duration::from_secs(60);
        let limits = ConnectionLimits { connections_max: 10, anonymous_max: 1, login_time };
        let (address, mut accepted) = listening(limits).await;
        let _first = TcpStream::connect(address).await.unwrap();
        let of_first = accepted.next().await.unwrap().unwrap();

        let mut refused = TcpStream::connect(address).await.unwrap();
        let mut next = accepted.next();
        let mut buffer = [0; 1];
        tokio::select! {
            biased;
            _ = &mut next => panic!("there is no slot"),
            read = refused.read(&mut buffer) => assert_eq!(read.unwrap_or(0), 0, "it is closed"),
        }
        // A login frees the slot, and so does a disconnect.
        of_first.info.mark_logged_in();
        of_first.info.mark_logged_in();
        for _ in 0..2 {
            let _client = TcpStream::connect(address).await.unwrap();
            drop(next.await.unwrap().unwrap());
            next = accepted.next();
        }
        drop(of_first);
    }
}

//! Accepted sockets: each gets a number of its own, they are counted, and beyond a limit they are closed at once.
//!
//! The number, not the peer's address, names the connection's session: ports are used again, numbers are not.
//!
//! Invariant: a slot is freed exactly when its socket is dropped, however the connection ended.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep};
use tonic::transport::server::Connected;
use tracing::{debug, warn};

/// Tells a handler which connection a request came on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConnectionInfo {
    /// Never used again while the process lives.
    pub(crate) number: u64,
    pub(crate) peer: SocketAddr,
}

/// An accepted socket.
pub(crate) struct Connection {
    stream: TcpStream,
    info: ConnectionInfo,
    opening: Option<Opening>,
    _slot: OwnedSemaphorePermit,
}

/// The time in which a client must begin to speak: sockets that say nothing would use up the slots of others.
const OPENING_TIME: Duration = Duration::from_secs(10);
/// What counts as having begun: the HTTP/2 preface or a TLS hello, and the start of what follows.
const OPENING_BYTES: usize = 64;

/// A client that has not yet begun to speak.
struct Opening {
    deadline: Pin<Box<Sleep>>,
    missing_bytes: usize,
}

/// Accepts sockets for ever. Errors of a single accept are logged and passed over: one broken client, or a moment without
/// file descriptors, must not end the server.
pub(crate) fn accept(
    listener: TcpListener,
    connections_max: usize,
) -> impl Stream<Item = io::Result<Connection>> {
    let slots = Arc::new(Semaphore::new(connections_max));
    let numbers = Arc::new(AtomicU64::new(1));
    futures::stream::unfold((listener, slots, numbers), |(listener, slots, numbers)| async move {
        loop {
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    warn!(%error, "could not accept a connection");
                    // Out of file descriptors, accept would fail again at once; let others finish first.
                    sleep(Duration::from_millis(10)).await;
                    continue;
                }
            };
            let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
                warn!(%peer, "refused a connection over the limit");
                continue;
            };
            if let Err(error) = stream.set_nodelay(true) {
                debug!(%peer, %error, "could not set nodelay");
            }
            let number = numbers.fetch_add(1, Ordering::Relaxed);
            let opening = Opening { deadline: Box::pin(sleep(OPENING_TIME)), missing_bytes: OPENING_BYTES };
            let info = ConnectionInfo { number, peer };
            let connection = Connection { stream, info, opening: Some(opening), _slot: slot };
            return Some((Ok(connection), (listener, slots, numbers)));
        }
    })
}

impl Connected for Connection {
    type ConnectInfo = ConnectionInfo;

    fn connect_info(&self) -> ConnectionInfo {
        self.info
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        let Some(opening) = &mut self.opening else { return read };
        if read.is_pending() {
            return opening.deadline.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()));
        }
        let bytes = buffer.filled().len() - before;
        if bytes >= opening.missing_bytes {
            self.opening = None;
        } else {
            opening.missing_bytes -= bytes;
        }
        read
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

//! The socket of a connection, which reads little before a login.
//!
//! The transport would read what a client sends into its buffers, however many clients there are. So the
//! socket itself stops reading after some bytes until a call had valid credentials. They are enough for an
//! encrypted handshake and a login. The windows of HTTP/2 are the same for all connections and no such limit.
//!
//! What a client has sent with a call that is refused stands before its next call. So the body of such a call
//! is read and thrown away, piece by piece, and the socket reads as many bytes again.
//!
//! Invariant: before a login no more than the limit is held, and the connection ends in time whatever the
//! client sends or leaves unread.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::Body as _;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};
use tonic::body::Body;
use tonic::transport::server::Connected;

use super::ConnectionInfo;
use super::state::State;

/// The bytes of HTTP/2 around each piece of a body.
const FRAME_HEADER_BYTES: usize = 9;

/// An accepted socket.
pub(crate) struct Connection {
    stream: TcpStream,
    info: ConnectionInfo,
    /// Bytes that may still be read before a login.
    anonymous_bytes_left: usize,
    /// Ends the connection when it fires before a login.
    login_until: Option<Pin<Box<Sleep>>>,
}

impl Connection {
    /// Takes over a socket whose connection is in the table.
    pub(super) fn new(stream: TcpStream, info: ConnectionInfo) -> Self {
        let limits = info.open.limits();
        Self {
            stream,
            anonymous_bytes_left: limits.anonymous_read_bytes_max,
            login_until: Some(Box::pin(sleep(limits.login_time))),
            info,
        }
    }

    /// Returns an error if the connection must end.
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let state = &self.info.state;
        // Before the checks, so that no change after them is missed.
        state.reader.register(cx.waker());
        if state.is_closing() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        if state.is_logged_in() {
            self.login_until = None;
            return Ok(());
        }
        let Some(login_until) = &mut self.login_until else { return Ok(()) };
        while login_until.as_mut().poll(cx).is_ready() {
            if !state.is_logging_in() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            // The client waits for us, so its time begins again.
            login_until.as_mut().reset(Instant::now() + self.info.open.limits().login_time);
        }
        Ok(())
    }

    /// Reads no more than is left of what may be read before a login.
    fn poll_read_anonymous(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.anonymous_bytes_left += self.info.state.take_back();
        if self.anonymous_bytes_left == 0 {
            // A login, bytes given back, the end of the time or the order to close wakes this task.
            return Poll::Pending;
        }
        let most = self.anonymous_bytes_left.min(buffer.remaining());
        let mut limited = ReadBuf::new(buffer.initialize_unfilled_to(most));
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut limited))?;
        let bytes = limited.filled().len();
        self.anonymous_bytes_left -= bytes;
        buffer.advance(bytes);
        Poll::Ready(Ok(()))
    }
}

/// Reads the body of a refused call to its end and throws it away, unless the connection has sent too many
/// such bytes. The end of the connection ends the body.
pub(super) async fn discard(state: Arc<State>, mut body: Body) {
    let Ok(_permit) = state.discards.try_acquire() else { return };
    while let Some(Ok(frame)) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let bytes = frame.data_ref().map_or(0, Bytes::len);
        drop(frame);
        if !state.give_back(bytes + FRAME_HEADER_BYTES) {
            return;
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.info.mark_closed();
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
        // Before reading: a client that sends without pause must not escape the time limit.
        self.check(cx)?;
        match self.info.state.is_logged_in() {
            true => Pin::new(&mut self.stream).poll_read(cx, buffer),
            false => self.poll_read_anonymous(cx, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        // A client that reads no answers must not escape either: the transport then waits here only.
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
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

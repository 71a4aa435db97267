//! The connections of clients that are allowed to connect.
//!
//! # Invariants
//! - No more than `CONNECTIONS_MAX` are open at once, whatever clients do; further ones are closed.
//! - When the host lacks the resources to accept a connection, accepting pauses; it neither ends
//!   nor spins.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{Sleep, sleep};
use tokio_stream::Stream;
use tonic::transport::server::{Connected, UdsConnectInfo};

/// The most connections at once; containerd and a few tools have one each.
const CONNECTIONS_MAX: usize = 256;
/// The pause of accepting after a failure.
const PAUSE: Duration = Duration::from_millis(100);

/// The stream of new connections.
pub(super) struct Incoming {
    listener: UnixListener,
    /// Shared with each open connection.
    open: Arc<()>,
    pause: Option<Pin<Box<Sleep>>>,
}

impl Incoming {
    pub(super) fn on(listener: UnixListener) -> Self {
        Self {
            listener,
            open: Arc::default(),
            pause: None,
        }
    }
}

impl Stream for Incoming {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(context));
                self.pause = None;
            }
            match ready!(self.listener.poll_accept(context)) {
                Ok((stream, _)) if !is_allowed(&stream) => {
                    tracing::warn!("refused a client of another user");
                }
                Ok(_) if Arc::strong_count(&self.open) > CONNECTIONS_MAX => {
                    let max = CONNECTIONS_MAX;
                    tracing::warn!(max, "refused a client: too many are connected");
                }
                Ok((stream, _)) => {
                    let open = Arc::clone(&self.open);
                    return Poll::Ready(Some(Ok(Connection {
                        stream,
                        _open: open,
                    })));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection of containerd yet");
                    self.pause = Some(Box::pin(sleep(PAUSE)));
                }
            }
        }
    }
}

fn is_allowed(stream: &UnixStream) -> bool {
    let own = nix::unistd::geteuid().as_raw();
    stream
        .peer_cred()
        .is_ok_and(|peer| peer.uid() == 0 || peer.uid() == own)
}

/// A connection, counted while it is open.
pub(super) struct Connection {
    stream: UnixStream,
    _open: Arc<()>,
}

impl Connected for Connection {
    type ConnectInfo = UdsConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream as Client;
    use tokio_stream::StreamExt;

    #[test]
    fn one_connection_too_many_is_closed_and_another_is_taken_when_one_has_ended() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut incoming = Incoming::on(UnixListener::bind(&path).unwrap());
            let mut open = Vec::new();
            for _ in 0..CONNECTIONS_MAX {
                let client = Client::connect(&path).unwrap();
                open.push((incoming.next().await.unwrap().unwrap(), client));
            }
            let mut late = Client::connect(&path).unwrap();
            let wait = Duration::from_millis(50);
            assert!(tokio::time::timeout(wait, incoming.next()).await.is_err());
            assert_eq!(late.read(&mut [0]).unwrap(), 0, "it is closed");
            open.pop();
            let _client = Client::connect(&path).unwrap();
            incoming.next().await.unwrap().unwrap();
        });
    }
}

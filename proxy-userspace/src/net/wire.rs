//! A connection, plain or within TLS, for as long as its peer talks with us and not through us.
//!
//! Both directions can be used at once, by two futures of one task. A tunnel takes it apart again ([`Wire::into_leg`]):
//! that is why there is no stream of `tokio-rustls` here, whose halves could not be had.

use std::{
    future::poll_fn,
    io::{self, Read as _, Write as _},
    net::Shutdown,
    pin::Pin,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use bytes::BytesMut;
use rustls::{Connection, pki_types::CertificateDer};
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
};

use crate::{
    relay::{Leg, reset_on_close},
    tls::Socket,
};

/// What is read at once.
pub const READ_BYTES: usize = 16 * 1024;

/// A connection.
#[derive(Debug)]
pub struct Wire {
    stream: TcpStream,
    tls: Option<Box<Mutex<Connection>>>,
    /// Bytes read from and written to it; inside of TLS, if there is some.
    consumed: AtomicU64,
    written: AtomicU64,
}

impl Wire {
    /// A connection without TLS.
    #[must_use]
    pub fn plain(stream: TcpStream) -> Self {
        Self {
            stream,
            tls: None,
            consumed: AtomicU64::new(0),
            written: AtomicU64::new(0),
        }
    }

    /// Notes that so many bytes were read and written before.
    #[must_use]
    pub fn with_moved(self, consumed: usize, written: usize) -> Self {
        self.consumed.fetch_add(consumed as u64, Relaxed);
        self.written.fetch_add(written as u64, Relaxed);
        self
    }

    /// Completes a TLS handshake, of which some may have been `received`.
    ///
    /// # Errors
    /// It fails; the peer has been told why, as TLS has it.
    pub async fn sealed(
        stream: TcpStream,
        received: &[u8],
        tls: impl Into<Connection>,
    ) -> io::Result<Self> {
        let mut tls = tls.into();
        let mut received = received;
        loop {
            while tls.wants_write() {
                poll_fn(|cx| poll_write(&stream, cx, || tls.write_tls(&mut Socket(&stream))))
                    .await?;
            }
            if !tls.is_handshaking() {
                break;
            }
            let bytes = if received.is_empty() {
                poll_fn(|cx| poll_read(&stream, cx, || tls.read_tls(&mut Socket(&stream)))).await?
            } else {
                tls.read_tls(&mut received)?
            };
            if bytes == 0 {
                let ended = "it ended the connection instead";
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, ended));
            }
            if let Err(error) = tls.process_new_packets() {
                // The alert; if it does not go out at once, the peer has to do without.
                let _ = tls.write_tls(&mut Socket(&stream));
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
        }
        Ok(Self {
            tls: Some(Box::new(Mutex::new(tls))),
            ..Self::plain(stream)
        })
    }

    /// The socket below.
    pub fn socket(&self) -> &TcpStream {
        &self.stream
    }

    /// The certificate that the peer has shown.
    pub fn certificate(&self) -> Option<CertificateDer<'static>> {
        let tls = lock(self.tls.as_deref()?);
        let certificates = tls.peer_certificates()?;
        certificates.first().map(|own| own.clone().into_owned())
    }

    /// Bytes that were written so far.
    pub fn written(&self) -> u64 {
        self.written.load(Relaxed)
    }

    /// Reads what there is, behind what is there: how much, and 0 at the end.
    ///
    /// # Errors
    /// The connection is broken; over TLS also by an end that the peer did not announce.
    pub async fn read(&self, into: &mut BytesMut) -> io::Result<usize> {
        into.reserve(READ_BYTES);
        let bytes = poll_fn(|cx| {
            poll_read(&self.stream, cx, || match &self.tls {
                None => self.stream.try_read_buf(into),
                Some(tls) => self.open(&mut lock(tls), |tls, len| {
                    let before = into.len();
                    into.resize(before + len, 0);
                    let rest = into.get_mut(before..).unwrap_or_default();
                    tls.reader().read_exact(rest)?;
                    Ok(len)
                }),
            })
        })
        .await?;
        self.consumed.fetch_add(bytes as u64, Relaxed);
        Ok(bytes)
    }

    /// Opens what has come, and lets `take` have of it; `WouldBlock` if there is nothing to have.
    fn open(
        &self,
        tls: &mut Connection,
        take: impl FnOnce(&mut Connection, usize) -> io::Result<usize>,
    ) -> io::Result<usize> {
        loop {
            let state = tls
                .process_new_packets()
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            let len = state.plaintext_bytes_to_read();
            if len > 0 {
                return take(tls, len);
            }
            if state.peer_has_closed() {
                return Ok(0);
            }
            if tls.read_tls(&mut Socket(&self.stream))? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Writes all of it.
    ///
    /// # Errors
    /// The connection is broken.
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let taken = poll_fn(|cx| self.poll_put(cx, bytes)).await?;
            bytes = bytes.get(taken..).unwrap_or_default();
        }
        poll_fn(|cx| self.poll_drain(cx)).await
    }

    /// Writes some of it, which may be within TLS then, and not sent yet.
    fn poll_put(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let taken = match &self.tls {
            None => ready!(poll_write(&self.stream, cx, || self
                .stream
                .try_write(bytes)))?,
            Some(tls) => {
                ready!(self.poll_drain(cx))?;
                lock(tls).writer().write(bytes)?
            }
        };
        self.written.fetch_add(taken as u64, Relaxed);
        Poll::Ready(Ok(taken))
    }

    /// Sends what is within TLS.
    fn poll_drain(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(tls) = &self.tls else {
            return Poll::Ready(Ok(()));
        };
        let mut tls = lock(tls);
        while tls.wants_write() {
            ready!(poll_write(&self.stream, cx, || tls
                .write_tls(&mut Socket(&self.stream))))?;
        }
        Poll::Ready(Ok(()))
    }

    /// Says that nothing more will be written.
    ///
    /// # Errors
    /// The connection is broken.
    pub async fn finish(&self) -> io::Result<()> {
        if let Some(tls) = &self.tls {
            lock(tls).send_close_notify();
        }
        poll_fn(|cx| self.poll_drain(cx)).await?;
        SockRef::from(&self.stream).shutdown(Shutdown::Write)
    }

    /// Returns once the peer has reset the connection.
    pub async fn broken(&self) {
        let _ = self.stream.ready(Interest::ERROR).await;
    }

    /// Ends it with a reset.
    pub fn reset(self) {
        reset_on_close(&self.stream);
    }

    /// A tunnel's side, with what its peer is owed, and what was opened of TLS and not read yet.
    #[must_use]
    pub fn into_leg(self, owed: Vec<u8>) -> (Leg, Vec<u8>) {
        let mut tls = self
            .tls
            .map(|tls| Box::new(tls.into_inner().unwrap_or_else(PoisonError::into_inner)));
        let mut opened = Vec::new();
        if let Some(tls) = &mut tls
            && let Ok(state) = tls.process_new_packets()
        {
            opened.resize(state.plaintext_bytes_to_read(), 0);
            if tls.reader().read_exact(&mut opened).is_err() {
                opened.clear();
            }
        }
        let leg = Leg {
            stream: self.stream,
            tls,
            owed,
            consumed: self.consumed.into_inner(),
            written: self.written.into_inner(),
        };
        (leg, opened)
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let wire = self.get_mut();
        let before = buffer.filled().len();
        match &wire.tls {
            None => ready!(Pin::new(&mut wire.stream).poll_read(cx, buffer))?,
            Some(tls) => {
                let bytes = ready!(poll_read(&wire.stream, cx, || {
                    wire.open(&mut lock(tls), |tls, _| {
                        tls.reader().read(buffer.initialize_unfilled())
                    })
                }))?;
                buffer.advance(bytes);
            }
        }
        let bytes = buffer.filled().len() - before;
        wire.consumed.fetch_add(bytes as u64, Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_put(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_drain(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(tls) = &self.tls {
            lock(tls).send_close_notify();
        }
        ready!(self.poll_drain(cx))?;
        Poll::Ready(SockRef::from(&self.stream).shutdown(Shutdown::Write))
    }
}

/// Reads what there is from a connection that is nobody's yet.
pub(super) async fn read_plain(stream: &TcpStream, into: &mut BytesMut) -> io::Result<usize> {
    into.reserve(READ_BYTES);
    poll_fn(|cx| poll_read(stream, cx, || stream.try_read_buf(into))).await
}

/// Writes all of it to one.
pub(super) async fn write_plain(stream: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = poll_fn(|cx| poll_write(stream, cx, || stream.try_write(bytes))).await?;
        bytes = bytes.get(written..).unwrap_or_default();
    }
    Ok(())
}

fn lock(tls: &Mutex<Connection>) -> MutexGuard<'_, Connection> {
    tls.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tries until something can be read. What TLS has within may come before what the socket has.
fn poll_read(
    stream: &TcpStream,
    cx: &mut Context<'_>,
    mut attempt: impl FnMut() -> io::Result<usize>,
) -> Poll<io::Result<usize>> {
    loop {
        match attempt() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                ready!(stream.poll_read_ready(cx))?;
            }
            result => return Poll::Ready(result),
        }
    }
}

/// Tries until something can be written.
fn poll_write(
    stream: &TcpStream,
    cx: &mut Context<'_>,
    mut attempt: impl FnMut() -> io::Result<usize>,
) -> Poll<io::Result<usize>> {
    loop {
        match attempt() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                ready!(stream.poll_write_ready(cx))?;
            }
            result => return Poll::Ready(result),
        }
    }
}

//! One request passed on, and its response passed back; both at once, since either may be long.

use std::{
    convert::Infallible,
    fmt,
    future::{Future, pending, poll_fn},
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::Poll,
    time::Duration,
};

use bytes::BytesMut;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Body as _, Frame, Incoming},
    ext::{ReasonPhrase, on_informational},
    header::{self, HeaderMap, HeaderName, HeaderValue},
    http::response::Parts,
};
use tokio::{
    select,
    sync::{Notify, mpsc},
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    config::values::{FieldName, Text},
    http::{BodyDecoder, BodyError, Framing, PlainRequest, Version, end_to_end},
    limits::LATE_BODY_TIMEOUT,
    net::wire::Wire,
    pool::{Line, Piece, Upload},
    relay::Traffic,
    shaping::{Shaper, pass},
};

/// What a client is waiting for that asked whether to send its body (RFC 9110 section 10.1.1).
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// One request and its response.
pub(super) struct Exchange<'a> {
    pub(super) wire: &'a Wire,
    pub(super) request: &'a PlainRequest,
    /// Whom the response has passed, for its `Via`: us, if that is told.
    pub(super) pseudonym: Option<&'a str>,
    /// Fields of it that the client does not get.
    pub(super) removed: &'a [Text<FieldName>],
    pub(super) shaper: Option<&'a Shaper>,
    /// Without a byte in either direction.
    pub(super) idle: Duration,
    /// As a whole.
    pub(super) lifetime: Option<Duration>,
    /// Its counters.
    pub(super) traffic: &'a Traffic,
    /// How it is told to end.
    pub(super) cancel: &'a CancellationToken,
}

/// What the client was told, and what was learnt of the connection by it.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// The status; 0 is nothing.
    pub(super) status: u16,
    pub(super) content_type: Option<String>,
    /// Somebody has authenticated the connection and not the request (RFC 4559, NTLM).
    pub(super) is_private: bool,
}

/// How it ended well.
#[derive(Debug)]
pub(super) enum End {
    /// The client has the whole response.
    Complete {
        /// It may ask for more.
        persists: bool,
    },
    /// The origin speaks something else now. The client does not know yet.
    Switched(Box<Response<Incoming>>),
}

/// Why it did not.
#[derive(Debug)]
pub(super) enum Broken {
    /// The connection to the origin.
    Upstream(hyper::Error),
    /// The origin, against HTTP.
    Protocol(&'static str),
    /// Nothing was heard for [`Exchange::idle`].
    Stalled,
    /// It took longer than [`Exchange::lifetime`].
    TooLong,
    /// The client sends something that is no body.
    Body(BodyError),
    /// The client does not wait for the response.
    ClientLeft,
    /// We have been told to end it.
    Cancelled,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Upstream(error) => error.fmt(f),
            Self::Protocol(what) => f.write_str(what),
            Self::Stalled => f.write_str("nothing was heard for too long"),
            Self::TooLong => f.write_str("it took too long"),
            Self::Body(error) => error.fmt(f),
            Self::ClientLeft => f.write_str("the client has gone"),
            Self::Cancelled => f.write_str("we are to end it"),
        }
    }
}

impl Exchange<'_> {
    /// Passes the request on, whose body begins with what was `received`; its `head` is as the origin is to get it.
    pub(super) async fn run(
        &self,
        received: &mut BytesMut,
        line: &mut Line,
        head: Request<()>,
    ) -> (Told, Result<End, Broken>) {
        let begin = |len| {
            let (pieces, body) = Upload::new(len);
            (Some(pieces), body)
        };
        let (pieces, body) = match self.request.framing {
            Framing::None | Framing::Length(0) => (None, Upload::empty()),
            Framing::Length(len) => begin(Some(len)),
            Framing::Chunked => begin(None),
        };
        let mut message = head.map(|()| body);
        let continued = Arc::new(Notify::new());
        if self.request.fields.contains_key(header::EXPECT) {
            let continued = Arc::clone(&continued);
            on_informational(&mut message, move |response| {
                if response.status() == StatusCode::CONTINUE {
                    continued.notify_one();
                }
            });
        }
        let authorizations = self.request.fields.get_all(header::AUTHORIZATION);
        let mut told = Told {
            is_private: authorizations.iter().any(is_about_connection),
            ..Told::default()
        };
        let progress = Progress::new(pieces.is_none());
        let result = {
            let upload = self.upload(received, pieces, &progress);
            let download = self.download(line.send(message), &continued, &progress, &mut told);
            self.drive(upload, download, &progress).await
        };
        (told, result)
    }

    /// Does both at once, until the response is complete, or nothing more will come of it.
    async fn drive(
        &self,
        upload: impl Future<Output = Result<Infallible, Broken>>,
        download: impl Future<Output = Result<End, Broken>>,
        progress: &Progress,
    ) -> Result<End, Broken> {
        let lifetime = async {
            match self.lifetime {
                Some(lifetime) => sleep(lifetime).await,
                None => pending().await,
            }
        };
        let (mut upload, mut download) = (pin!(upload), pin!(download));
        let mut lifetime = pin!(lifetime);
        let end = select! {
            result = &mut download => result?,
            Err(broken) = &mut upload => return Err(broken),
            () = progress.stalled(self.idle) => return Err(Broken::Stalled),
            () = lifetime.as_mut() => return Err(Broken::TooLong),
            () = self.wire.broken() => return Err(Broken::ClientLeft),
            () = self.cancel.cancelled() => return Err(Broken::Cancelled),
        };
        if !progress.is_uploaded() {
            // The origin may have answered before it had all, and want the rest of it.
            select! {
                _ = &mut upload => {}
                () = progress.uploaded.notified() => {}
                () = progress.stalled(LATE_BODY_TIMEOUT.min(self.idle)) => {}
                () = lifetime => {}
                () = self.wire.broken() => {}
                () = self.cancel.cancelled() => {}
            }
        }
        Ok(end)
    }

    /// Passes the body on, and stays.
    async fn upload(
        &self,
        received: &mut BytesMut,
        pieces: Option<mpsc::Sender<Piece>>,
        progress: &Progress,
    ) -> Result<Infallible, Broken> {
        let Some(pieces) = pieces else {
            return pending().await;
        };
        let buckets = self.shaper.map(Shaper::up).unwrap_or_default();
        let mut decoder = BodyDecoder::new(self.request.framing);
        while !decoder.is_ended() {
            if received.is_empty() {
                match self.wire.read(received).await {
                    Ok(0) | Err(_) => return Err(Broken::ClientLeft),
                    Ok(_) => progress.touch(),
                }
            }
            let found = decoder.feed(received).map_err(Broken::Body)?;
            let mut data = received.split_to(found.consumed);
            data.truncate(found.data.end);
            let data = data.split_off(found.data.start);
            if data.is_empty() {
                continue;
            }
            pass(buckets, data.len()).await;
            self.traffic.add_to_upstream(data.len() as u64);
            if pieces.send(Piece::Data(data.freeze())).await.is_err() {
                // It is not wanted; the response says why.
                return pending().await;
            }
            progress.touch();
        }
        let mut trailer = HeaderMap::new();
        if let Some(head) = decoder.into_trailer() {
            for (name, value) in head.fields() {
                if let (Ok(name), Ok(value)) = (
                    HeaderName::from_bytes(name.as_bytes()),
                    HeaderValue::from_bytes(value),
                ) {
                    trailer.append(name, value);
                }
            }
        }
        // Of a body of known length nobody waits for the end.
        let _ = pieces.send(Piece::End(trailer)).await;
        progress.note_uploaded();
        pending().await
    }

    /// Waits for the response, and passes it back.
    async fn download(
        &self,
        response: impl Future<Output = hyper::Result<Response<Incoming>>>,
        continued: &Notify,
        progress: &Progress,
        told: &mut Told,
    ) -> Result<End, Broken> {
        let mut response = pin!(response);
        let response = loop {
            select! {
                response = &mut response => break response.map_err(Broken::Upstream)?,
                () = continued.notified() => self.tell(CONTINUE, progress).await?,
            }
        };
        progress.touch();
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            if self.request.upgrade.is_none() {
                return Err(Broken::Protocol(
                    "it switches protocols without being asked to",
                ));
            }
            return Ok(End::Switched(Box::new(response)));
        }
        let (parts, mut body) = response.into_parts();
        check(&parts)?;
        let challenges = parts.headers.get_all(header::WWW_AUTHENTICATE);
        told.is_private |= challenges.iter().any(is_about_connection);
        told.content_type = content_type(&parts.headers);
        let is_bodyless = self.request.method == Method::HEAD
            || matches!(
                parts.status,
                StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
            );
        let coding = match body.size_hint().exact() {
            _ if is_bodyless => Coding::Absent,
            Some(len) => Coding::Length(len),
            None if self.request.version == Version::Http11 => Coding::Chunked,
            None => Coding::UntilClose,
        };
        let persists = self.request.persists
            && progress.is_uploaded()
            && coding != Coding::UntilClose
            && !self.cancel.is_cancelled();
        told.status = parts.status.as_u16();
        let mut out = self.head(parts, coding, persists);
        let buckets = self.shaper.map(Shaper::down).unwrap_or_default();
        loop {
            // The head and what is there of the body go out together.
            let ready = poll_fn(|cx| Poll::Ready(Pin::new(&mut body).poll_frame(cx))).await;
            let frame = match ready {
                Poll::Ready(frame) => frame,
                Poll::Pending => {
                    if !out.is_empty() {
                        self.tell(&out, progress).await?;
                        out.clear();
                    }
                    poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await
                }
            };
            progress.touch();
            let Some(frame) = frame.transpose().map_err(Broken::Upstream)? else {
                break;
            };
            match frame.into_data().map_err(Frame::into_trailers) {
                Ok(data) if data.is_empty() => continue,
                Ok(data) => {
                    pass(buckets, data.len()).await;
                    if coding == Coding::Chunked {
                        out.extend_from_slice(format!("{:x}\r\n", data.len()).as_bytes());
                        out.extend_from_slice(&data);
                        out.extend_from_slice(b"\r\n");
                    } else {
                        out.extend_from_slice(&data);
                    }
                }
                Err(Ok(trailer)) if coding == Coding::Chunked => {
                    out.extend_from_slice(b"0\r\n");
                    write_fields(&mut out, &end_to_end(&trailer));
                    out.extend_from_slice(b"\r\n");
                    self.tell(&out, progress).await?;
                    return Ok(End::Complete { persists });
                }
                Err(_) => continue,
            }
            self.tell(&out, progress).await?;
            out.clear();
        }
        if coding == Coding::Chunked {
            out.extend_from_slice(b"0\r\n\r\n");
        }
        self.tell(&out, progress).await?;
        Ok(End::Complete { persists })
    }

    /// The head of the response as the client gets it.
    fn head(&self, parts: Parts, coding: Coding, persists: bool) -> Vec<u8> {
        let Parts {
            status,
            version,
            headers,
            extensions,
            ..
        } = parts;
        // How long it would be (RFC 9110 section 8.6).
        let length = headers.get(header::CONTENT_LENGTH).cloned();
        let mut fields = end_to_end(&headers);
        let mut out = format!("HTTP/1.1 {} ", status.as_u16()).into_bytes();
        match extensions.get::<ReasonPhrase>() {
            Some(reason) => out.extend_from_slice(reason.as_bytes()),
            None => out.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes()),
        }
        out.extend_from_slice(b"\r\n");
        let version = if version == hyper::Version::HTTP_10 {
            Version::Http10
        } else {
            Version::Http11
        };
        let via = self.pseudonym.map(|name| format!("{version} {name}"));
        if let Some(Ok(via)) = via.map(HeaderValue::try_from) {
            fields.append(header::VIA, via);
        }
        for name in self.removed {
            fields.remove(&name.0.0);
        }
        match coding {
            Coding::Absent => {
                if let Some(length) = length.filter(|_| status != StatusCode::NO_CONTENT) {
                    fields.insert(header::CONTENT_LENGTH, length);
                }
            }
            Coding::Length(len) => {
                fields.insert(header::CONTENT_LENGTH, len.into());
            }
            Coding::Chunked => {
                let chunked = HeaderValue::from_static("chunked");
                fields.insert(header::TRANSFER_ENCODING, chunked);
            }
            Coding::UntilClose => {}
        }
        let connection = match (persists, self.request.version) {
            (false, _) => Some("close"),
            (true, Version::Http10) => Some("keep-alive"),
            (true, Version::Http11) => None,
        };
        if let Some(connection) = connection {
            fields.insert(header::CONNECTION, HeaderValue::from_static(connection));
        }
        write_fields(&mut out, &fields);
        out.extend_from_slice(b"\r\n");
        out
    }

    async fn tell(&self, bytes: &[u8], progress: &Progress) -> Result<(), Broken> {
        let told = self.wire.write_all(bytes).await;
        told.map_err(|_| Broken::ClientLeft)?;
        progress.touch();
        Ok(())
    }
}

/// The head of a response that switches protocols (RFC 9110 section 15.2.2).
pub(super) fn switching(response: &Response<Incoming>) -> Vec<u8> {
    let mut out = b"HTTP/1.1 101 Switching Protocols\r\n".to_vec();
    let upgrade = response.headers().get(header::UPGRADE).cloned();
    let mut fields = end_to_end(response.headers());
    fields.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    if let Some(upgrade) = upgrade {
        fields.insert(header::UPGRADE, upgrade);
    }
    write_fields(&mut out, &fields);
    out.extend_from_slice(b"\r\n");
    out
}

/// How the end of a response is told to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Coding {
    /// There is no body, whatever the head says.
    Absent,
    Length(u64),
    Chunked,
    UntilClose,
}

/// What would be read in another way by somebody else, or is between us and the next proxy.
fn check(parts: &Parts) -> Result<(), Broken> {
    let mut codings = parts.headers.get_all(header::TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next() {
        if parts.headers.contains_key(header::CONTENT_LENGTH) {
            return Err(Broken::Protocol("its response has two lengths"));
        }
        let is_chunked = coding.as_bytes().eq_ignore_ascii_case(b"chunked");
        if !is_chunked || codings.next().is_some() {
            return Err(Broken::Protocol(
                "its response has a transfer coding that we did not ask for",
            ));
        }
    }
    if parts.status == StatusCode::PROXY_AUTHENTICATION_REQUIRED {
        return Err(Broken::Protocol("it asks us for a login (407)"));
    }
    Ok(())
}

/// Whether a scheme of authentication is about the whole connection.
fn is_about_connection(value: &HeaderValue) -> bool {
    let text = value.as_bytes().to_ascii_lowercase();
    [&b"ntlm"[..], b"negotiate"]
        .iter()
        .any(|scheme| text.starts_with(scheme))
}

/// The type without its parameters, as Squid logs it.
fn content_type(fields: &HeaderMap) -> Option<String> {
    let text = fields.get(header::CONTENT_TYPE)?.to_str().ok()?;
    let end = text.find([';', ' ', '\t']).unwrap_or(text.len());
    let text = text.get(..end).filter(|text| !text.is_empty())?;
    Some(text.to_owned())
}

fn write_fields(out: &mut Vec<u8>, fields: &HeaderMap) {
    for (name, value) in fields {
        let mut begins = true;
        for letter in name.as_str().bytes() {
            out.push(if begins {
                letter.to_ascii_uppercase()
            } else {
                letter
            });
            begins = letter == b'-';
        }
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
}

/// How an exchange comes along.
struct Progress {
    began: Instant,
    /// Milliseconds from then to the last byte.
    last: AtomicU64,
    is_uploaded: AtomicBool,
    uploaded: Notify,
}

impl Progress {
    fn new(is_uploaded: bool) -> Self {
        Self {
            began: Instant::now(),
            last: AtomicU64::new(0),
            is_uploaded: is_uploaded.into(),
            uploaded: Notify::new(),
        }
    }

    fn touch(&self) {
        let millis = self.began.elapsed().as_millis();
        let millis = u64::try_from(millis).unwrap_or(u64::MAX);
        self.last.store(millis, Relaxed);
    }

    /// Returns when nothing has happened for so long.
    async fn stalled(&self, patience: Duration) {
        loop {
            let last = self.began + Duration::from_millis(self.last.load(Relaxed));
            if last.elapsed() >= patience {
                return;
            }
            sleep_until(last + patience).await;
        }
    }

    fn is_uploaded(&self) -> bool {
        self.is_uploaded.load(Relaxed)
    }

    fn note_uploaded(&self) {
        self.is_uploaded.store(true, Relaxed);
        self.uploaded.notify_one();
    }
}

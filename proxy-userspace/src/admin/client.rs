//! The commands that talk to a running proxy.

use anyhow::{Context as _, anyhow, bail};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::{Method, Request, Uri, client::conn::http1, header::HOST};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};

use super::{Place, default_socket};

/// A running proxy.
#[derive(Clone, Debug)]
pub struct Client {
    place: Place,
}

impl Client {
    /// The proxy whose endpoint is at this place, or at the usual one.
    ///
    /// # Errors
    /// There is no usual one for this user.
    pub fn new(place: Option<Place>) -> anyhow::Result<Self> {
        let place = match place {
            Some(place) => place,
            None => Place::Socket(default_socket().context(
                "where is the proxy? XDG_RUNTIME_DIR is not set; --admin takes its socket or address",
            )?),
        };
        Ok(Self { place })
    }

    /// What is at this path.
    ///
    /// # Errors
    /// There is no answer, or an error.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let body = self.ask(Method::GET, path).await?;
        serde_json::from_slice(&body)
            .context("the proxy answers something else than expected; is it of the same version?")
    }

    /// Has something done.
    ///
    /// # Errors
    /// As above.
    pub async fn post(&self, path: &str) -> anyhow::Result<Value> {
        let body = self.ask(Method::POST, path).await?;
        Ok(serde_json::from_slice(&body)?)
    }

    async fn ask(&self, method: Method, path: &str) -> anyhow::Result<Bytes> {
        let place = &self.place;
        let unreachable = || {
            format!(
                "no proxy answers at {place}; is it running, as the same user? --admin takes another place"
            )
        };
        match place {
            Place::Socket(path_of_socket) => {
                let stream = UnixStream::connect(path_of_socket).await;
                exchange(stream.with_context(unreachable)?, "localhost", method, path).await
            }
            Place::Tcp(address) => {
                let stream = TcpStream::connect(address).await;
                exchange(
                    stream.with_context(unreachable)?,
                    &address.to_string(),
                    method,
                    path,
                )
                .await
            }
        }
    }
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    host: &str,
    method: Method,
    path: &str,
) -> anyhow::Result<Bytes> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path.parse::<Uri>()?)
        .header(HOST, host)
        .body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    if status.is_success() {
        return Ok(body);
    }
    let error: Value = serde_json::from_slice(&body).unwrap_or_default();
    match error.get("error").and_then(Value::as_str) {
        Some(why) => bail!("{why}"),
        None => Err(anyhow!("the proxy answers {status}")),
    }
}

//! A client that does not know of us: it believes to be connected, and begins with what is for the server.

use std::sync::Arc;

use bytes::BytesMut;
use tokio::{
    net::TcpStream,
    select,
    time::{Instant, timeout_at},
};
use tracing::{debug, info};

use super::{Session, TunnelRequest, hello::Start};
use crate::{
    access::Claim,
    authority::Authority,
    capture::{Captured, opening},
    config::file::ConnectTo,
    net::wire::Wire,
};

impl Session {
    /// Hears whom a captured connection is for.
    pub(super) async fn overhear(
        &mut self,
        stream: TcpStream,
        captured: &Captured,
    ) -> Option<TunnelRequest> {
        let wire = Wire::plain(stream);
        let mut received = BytesMut::new();
        let settings = self.live().capture.clone().unwrap_or_default();
        let until = Instant::now() + settings.patience();
        let heard = select! {
            heard = timeout_at(until, listen(&wire, &mut received)) => heard,
            () = self.cancel.cancelled() => return None,
        };
        let name = match heard {
            Ok(Some(opening::Name::Is(name))) => Some(name),
            Ok(Some(opening::Name::Unclear(what))) => {
                let destination = captured.destination;
                info!(id = self.arrival.id, %destination, "reset: it begins with {what}");
                wire.reset();
                self.log_no_request();
                return None;
            }
            Ok(Some(opening::Name::None | opening::Name::Wait)) | Err(_) => None,
            Ok(None) => {
                debug!(id = self.arrival.id, "a captured client left");
                self.log_no_request();
                return None;
            }
        };
        let port = captured.destination.port();
        let named = name.filter(|_| settings.connect_to.unwrap_or_default() == ConnectTo::Name);
        let named =
            named.and_then(|name| Authority::parse(format!("{name}:{port}").as_bytes()).ok());
        let address = || Authority::parse(captured.destination.to_string().as_bytes()).ok();
        let target = named.or_else(address)?;
        Some(TunnelRequest {
            wire,
            start: Start::captured(received),
            target,
            claim: Claim::Nothing,
            via: String::new(),
        })
    }

    /// The process behind a captured connection.
    pub(super) fn process(&self) -> Option<&Arc<crate::policy::Process>> {
        Some(&self.arrival.captured.as_ref()?.process)
    }
}

/// Reads until it is clear whether there is a name; none if the client goes away.
async fn listen(wire: &Wire, received: &mut BytesMut) -> Option<opening::Name> {
    loop {
        match opening::name(received) {
            opening::Name::Wait => {}
            heard => return Some(heard),
        }
        match wire.read(received).await {
            // It may have said all that it has to say.
            Ok(0) if !received.is_empty() => return Some(opening::Name::None),
            Ok(0) | Err(_) => return None,
            Ok(_) => {}
        }
    }
}

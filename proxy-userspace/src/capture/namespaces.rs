//! Listeners in the network namespaces of others.

use std::{
    fs::{self, File},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    thread,
};

use anyhow::{Context as _, anyhow};
use proxy_common::capture::Listeners;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use socket2::{Domain, Socket, Type};

use crate::net::{listen::BACKLOG, sockopt::namespace_cookie};

/// What was opened in a network namespace.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) cookie: u64,
    pub(super) listeners: Vec<TcpListener>,
    pub(super) ports: Listeners,
}

/// The number of the inode of the network namespace that a process is in.
pub(super) fn of_process(process: u32) -> Option<u64> {
    let metadata = fs::metadata(format!("/proc/{process}/ns/net")).ok()?;
    Some(metadata.ino())
}

/// Listens on loopback where the process is.
pub(super) fn listen(process: u32) -> anyhow::Result<Opened> {
    let namespace = File::open(format!("/proc/{process}/ns/net"))
        .context("cannot open it; that takes CAP_SYS_PTRACE, or to be root")?;
    let own = fs::metadata("/proc/self/ns/net")?;
    if namespace.metadata()?.ino() == own.ino() {
        return Ok(here()?);
    }
    let there = || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(|error| anyhow!("cannot enter it ({error}); that takes CAP_SYS_ADMIN"))?;
        Ok(here()?)
    };
    // A thread of its own, which ends there.
    thread::scope(|scope| scope.spawn(there).join())
        .unwrap_or_else(|_panic| Err(anyhow!("the thread in it failed")))
}

/// Listens where this thread is. IPv6 may be switched off there.
fn here() -> io::Result<Opened> {
    let (v4, port4) = on(Ipv4Addr::LOCALHOST.into())?;
    let cookie = namespace_cookie(&v4)?;
    let mut listeners = vec![v4];
    let mut ports = Listeners { v4: port4, v6: 0 };
    if let Ok((v6, port6)) = on(Ipv6Addr::LOCALHOST.into()) {
        listeners.push(v6);
        ports.v6 = port6;
    }
    Ok(Opened {
        cookie,
        listeners,
        ports,
    })
}

fn on(address: IpAddr) -> io::Result<(TcpListener, u16)> {
    let address = SocketAddr::new(address, 0);
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking(),
        None,
    )?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    let listener = TcpListener::from(socket);
    let port = listener.local_addr()?.port();
    Ok((listener, port))
}

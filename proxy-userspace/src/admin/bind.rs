//! Where the admin endpoint listens.

use std::{
    fmt, fs, io,
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    str::FromStr,
};

use rustix::{
    fs::{Mode, fchmod},
    process::geteuid,
};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::{TcpListener, UnixListener};

/// Where the endpoint is, for those who want something of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A Unix socket.
    Socket(PathBuf),
    /// A TCP port.
    Tcp(SocketAddr),
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Tcp(address));
        }
        if text.is_empty() {
            return Err("write the path of a socket, or an address with a port".to_owned());
        }
        Ok(Self::Socket(text.into()))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => path.display().fmt(f),
            Self::Tcp(address) => address.fmt(f),
        }
    }
}

/// The socket of this user's proxy: below `/run` for root, else below `$XDG_RUNTIME_DIR`; none if that is not set.
#[must_use]
pub fn default_socket() -> Option<PathBuf> {
    let runtime = if geteuid().is_root() {
        PathBuf::from("/run")
    } else {
        std::env::var_os("XDG_RUNTIME_DIR")?.into()
    };
    Some(runtime.join("underpass/admin.sock"))
}

/// A listener of the endpoint.
#[derive(Debug)]
pub(super) enum Endpoint {
    /// On a Unix socket, whose file goes away with this.
    Socket {
        /// The socket.
        listener: UnixListener,
        /// Its file.
        _file: SocketFile,
    },
    /// On a TCP port.
    Tcp(TcpListener),
}

/// The file of a socket.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // It may be another process's by now.
        let is_ours = fs::symlink_metadata(&self.path).is_ok_and(|meta| meta.ino() == self.inode);
        if is_ours {
            // Whoever comes next takes a file that nobody listens at for gone.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Listens at a place. A socket's file is made for its owner only, and so is its directory if there is none; what an
/// ended process has left there is taken away.
///
/// # Errors
/// The place is taken, or may not be.
pub(super) fn bind(place: &Place) -> io::Result<Endpoint> {
    match place {
        Place::Tcp(address) => {
            let listener = std::net::TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            Ok(Endpoint::Tcp(TcpListener::from_std(listener)?))
        }
        Place::Socket(path) => {
            if let Some(directory) = path.parent()
                && !directory.exists()
            {
                fs::DirBuilder::new().mode(0o755).create(directory)?;
            }
            remove_stale(path)?;
            let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
            // Before there is a file: nobody else can connect, not even for a moment (unix_bind_bsd).
            fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
            socket.bind(&SockAddr::unix(path)?)?;
            socket.listen(16)?;
            socket.set_nonblocking(true)?;
            let listener = UnixListener::from_std(std::os::fd::OwnedFd::from(socket).into())?;
            let inode = fs::symlink_metadata(path)?.ino();
            let path = path.clone();
            Ok(Endpoint::Socket {
                listener,
                _file: SocketFile { path, inode },
            })
        }
    }
}

/// Takes away the socket of a process that has ended.
fn remove_stale(path: &Path) -> io::Result<()> {
    let Ok(meta) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !meta.file_type().is_socket() {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "there is a file that is no socket",
        ));
    }
    // Without waiting, which a process that hangs would let us do for ever.
    let probe = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    match probe.connect(&SockAddr::unix(path)?) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        _ => Err(io::ErrorKind::AddrInUse.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[tokio::test]
    async fn a_socket_is_its_owners_and_leaves_nothing() {
        let directory =
            std::env::temp_dir().join(format!("underpass-admin-{}", std::process::id()));
        let path = directory.join("a.sock");
        let place: Place = path.to_str().unwrap().parse().unwrap();
        let endpoint = bind(&place).unwrap();
        let mode = fs::symlink_metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let taken = bind(&place).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
        drop(endpoint);
        assert!(!path.exists());
        // One whose process was killed.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        drop(bind(&place).unwrap());
        fs::write(&path, "").unwrap();
        assert!(bind(&place).is_err(), "a file is not taken away");
        fs::remove_dir_all(directory).unwrap();
    }
}

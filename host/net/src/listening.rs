//! Listening sockets: TCP, or a Unix socket with its file.

use std::fs;
use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};
use tokio_util::either::Either;

use switchyard_config::Config;
use switchyard_config::listen::{ListenAddress, UNIX_PEER};

/// The backlog of a listening socket, the same as tokio's.
const BACKLOG: u32 = 1024;

/// The connection of a client: TCP or a Unix socket.
pub type Connection = Either<TcpStream, UnixStream>;

/// A listening socket.
pub enum ListeningSocket {
    /// TCP.
    Tcp(TcpListener),
    /// A Unix socket. The file is removed when the listening socket is dropped.
    Unix(UnixListener, SocketFile),
}

impl ListeningSocket {
    /// Opens the socket of a listener that has these addresses. `prepare` sets the options of a TCP
    /// socket.
    ///
    /// # Errors
    ///
    /// The address cannot be bound.
    pub fn open(
        address: &ListenAddress,
        all: &[ListenAddress],
        config: &Config,
        prepare: impl FnOnce(SockRef<'_>) -> io::Result<()>,
    ) -> io::Result<ListeningSocket> {
        match address {
            ListenAddress::Tcp(address) => open_tcp(*address, all, prepare).map(Self::Tcp),
            ListenAddress::Unix(path) => {
                let (listener, file) = open_unix(path, config.unix_socket_mode)?;
                Ok(Self::Unix(listener, file))
            }
        }
    }

    /// The next connection, with its address: `UNIX_PEER` for one on a Unix socket. An IPv4 address
    /// is never mapped into IPv6.
    ///
    /// # Errors
    ///
    /// It could not be accepted.
    pub async fn accept(&self) -> io::Result<(Connection, SocketAddr)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, remote) = listener.accept().await?;
                let remote = match remote.ip().to_canonical() {
                    ip if ip.is_ipv4() => SocketAddr::new(ip, remote.port()),
                    _ => remote,
                };
                Ok((Either::Left(stream), remote))
            }
            Self::Unix(listener, _) => {
                let (stream, _) = listener.accept().await?;
                Ok((Either::Right(stream), UNIX_PEER))
            }
        }
    }

    /// The address that it is bound to.
    ///
    /// # Errors
    ///
    /// The operating system does not report it.
    pub fn address(&self) -> io::Result<ListenAddress> {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(ListenAddress::Tcp),
            Self::Unix(_, file) => Ok(ListenAddress::Unix(file.path.clone())),
        }
    }

    /// As a URL with this scheme; that of a Unix socket has `+unix` appended.
    ///
    /// # Errors
    ///
    /// As `address`.
    pub fn url(&self, scheme: &str) -> io::Result<String> {
        Ok(match self.address()? {
            ListenAddress::Tcp(address) => format!("{scheme}://{address}"),
            ListenAddress::Unix(path) => format!("{scheme}+unix://{}", path.display()),
        })
    }
}

fn open_tcp(
    address: SocketAddr,
    all: &[ListenAddress],
    prepare: impl FnOnce(SockRef<'_>) -> io::Result<()>,
) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // As tokio's `TcpListener::bind` does, so that a server that was stopped can be started again.
    if cfg!(not(windows)) {
        socket.set_reuseaddr(true)?;
    }
    // `[::]` accepts IPv4 as well, unless 0.0.0.0 with the same port is in the list, too.
    let has_ipv4 = |other: &ListenAddress| match other {
        ListenAddress::Tcp(SocketAddr::V4(v4)) => {
            v4.ip().is_unspecified() && v4.port() == address.port()
        }
        ListenAddress::Tcp(SocketAddr::V6(_)) | ListenAddress::Unix(_) => false,
    };
    if address.ip() == Ipv6Addr::UNSPECIFIED && all.iter().any(has_ipv4) {
        SockRef::from(&socket).set_only_v6(true)?;
    }
    prepare(SockRef::from(&socket))?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// The file of a Unix socket. Dropping it removes the file, unless another file is there by then.
pub struct SocketFile {
    path: PathBuf,
    device_and_inode: (u64, u64),
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<SocketFile> {
        let device_and_inode = device_and_inode(path)?;
        Ok(SocketFile { path: path.to_owned(), device_and_inode })
    }
}

fn device_and_inode(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if device_and_inode(&self.path).is_ok_and(|found| found == self.device_and_inode) {
            let _it_is_stale_then = fs::remove_file(&self.path);
        }
    }
}

/// Opens a Unix socket. A file that a server left there is replaced. Its permissions are set before
/// the socket listens, so that none can connect without them.
fn open_unix(path: &Path, mode: u32) -> io::Result<(UnixListener, SocketFile)> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    let address = SockAddr::unix(path)?;
    match socket.bind(&address) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            remove_stale(path, &address)?;
            socket.bind(&address)?;
        }
        bound => bound?,
    }
    let file = SocketFile::of(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    socket.listen(BACKLOG as i32)?;
    Ok((UnixListener::from_std(StdUnixListener::from(socket))?, file))
}

/// Removes the file of a Unix socket, if no server listens on it.
fn remove_stale(path: &Path, address: &SockAddr) -> io::Result<()> {
    let in_use = |problem| Err(io::Error::new(io::ErrorKind::AddrInUse, problem));
    if !fs::symlink_metadata(path)?.file_type().is_socket() {
        return in_use("there is a file that is no socket");
    }
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // With a full backlog, connecting would wait.
    probe.set_nonblocking(true)?;
    match probe.connect(address) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
        Ok(()) | Err(_) => in_use("another server listens on this socket"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &Path, mode: u32) -> io::Result<ListeningSocket> {
        let config = Config { unix_socket_mode: mode, ..Config::default() };
        ListeningSocket::open(&ListenAddress::Unix(path.into()), &[], &config, |_| Ok(()))
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_one_in_use_is_not() -> io::Result<()> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("socket");
        // As a server leaves it that was killed.
        drop(StdUnixListener::bind(&path)?);
        let listener = open(&path, 0o600)?;
        assert_eq!(fs::metadata(&path)?.permissions().mode() & 0o7777, 0o600);
        let refused = open(&path, 0o600).map(|_| ()).expect_err("it is in use");
        assert_eq!(refused.to_string(), "another server listens on this socket");
        let (stream, accepted) = tokio::join!(UnixStream::connect(&path), listener.accept());
        stream?;
        assert_eq!(accepted?.1, UNIX_PEER);
        drop(listener);
        assert!(!path.exists(), "the file is removed");

        // The file of the next server stays.
        let listener = open(&path, 0o660)?;
        fs::remove_file(&path)?;
        let next = open(&path, 0o660)?;
        drop(listener);
        assert!(path.exists());
        drop(next);

        fs::write(&path, "text")?;
        let refused = open(&path, 0o600).map(|_| ()).expect_err("it is a file");
        assert_eq!(refused.to_string(), "there is a file that is no socket");
        assert_eq!(fs::read(&path)?, b"text");
        Ok(())
    }

    #[tokio::test]
    async fn both_wildcards_can_have_one_port() -> io::Result<()> {
        let open = |address: &str, all: &[ListenAddress]| {
            let address = ListenAddress::Tcp(address.parse().expect("an address"));
            ListeningSocket::open(&address, all, &Config::default(), |_| Ok(()))
        };
        let v4 = open("0.0.0.0:0", &[])?;
        let ListenAddress::Tcp(bound) = v4.address()? else { unreachable!("it is TCP") };
        let all = [v4.address()?];
        let v6 = open(&format!("[::]:{}", bound.port()), &all)?;
        assert_eq!(v6.url("http")?, format!("http://[::]:{}", bound.port()));
        Ok(())
    }
}

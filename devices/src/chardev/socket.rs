//! The backends `unix` and `tcp`: a stream socket, as the server of one client at a time or as a
//! client.

use std::fs;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use super::ChardevError;
use super::host::HostFd;
use super::source::{Fixed, Peer, Source};
use super::spec::SocketAddress;

/// A listening socket.
pub(super) struct Server {
    listener: Listener,
    /// `unix:PATH` or `tcp:HOST:PORT`.
    address: String,
}

enum Listener {
    Unix { listener: UnixListener, _file: SocketFile },
    Tcp { listener: TcpListener, nodelay: bool },
}

/// The file of a unix socket, which goes when the socket does.
struct SocketFile {
    path: PathBuf,
    /// Device and inode, lest another program's file be removed.
    identity: Option<(u64, u64)>,
}

impl SocketFile {
    fn new(path: &Path) -> Self {
        // The working directory may change until it is removed.
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        Self { identity: identity(&path), path }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.identity.is_some() && identity(&self.path) == self.identity {
            // Nobody is left to tell, and a stale file does not hinder the next server.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

impl Server {
    /// Listens on `address`.
    ///
    /// # Errors
    /// With the cause and what to do about it.
    pub(super) fn listen(address: &SocketAddress) -> Result<Self, ChardevError> {
        let failed = |source: io::Error| ChardevError::Listen {
            address: name(address),
            remedy: remedy(&source, address),
            source,
        };
        let listener = match address {
            SocketAddress::Unix(path) => {
                let listener = bind(path).map_err(failed)?;
                Listener::Unix { listener, _file: SocketFile::new(path) }
            }
            SocketAddress::Tcp { host, port, nodelay } => {
                let host = if host.is_empty() { "0.0.0.0" } else { host };
                let listener = TcpListener::bind((host, *port)).map_err(failed)?;
                Listener::Tcp { listener, nodelay: *nodelay }
            }
        };
        let address = match &listener {
            Listener::Unix { .. } => name(address),
            // The port may be the host's choice.
            Listener::Tcp { listener, .. } => {
                listener.local_addr().map_or_else(|_| name(address), |addr| format!("tcp:{addr}"))
            }
        };
        Ok(Self { listener, address })
    }

    /// Waits for the first client.
    ///
    /// # Errors
    /// What accept says.
    pub(super) fn wait(&mut self) -> io::Result<Peer> {
        self.set_nonblocking(false)?;
        self.accept()
    }

    /// Makes [`Source::accept`] not wait.
    ///
    /// # Errors
    /// What ioctl says.
    pub(super) fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        match &self.listener {
            Listener::Unix { listener, .. } => listener.set_nonblocking(nonblocking),
            Listener::Tcp { listener, .. } => listener.set_nonblocking(nonblocking),
        }
    }
}

impl Source for Server {
    fn arrivals(&self) -> Option<RawFd> {
        Some(match &self.listener {
            Listener::Unix { listener, .. } => listener.as_raw_fd(),
            Listener::Tcp { listener, .. } => listener.as_raw_fd(),
        })
    }

    fn accept(&mut self) -> io::Result<Peer> {
        match &self.listener {
            Listener::Unix { listener, .. } => {
                let (stream, _) = listener.accept()?;
                peer(stream.into(), format!("{},server=on", self.address))
            }
            Listener::Tcp { listener, nodelay } => {
                let (stream, _) = listener.accept()?;
                stream.set_nodelay(*nodelay)?;
                tcp_peer(stream, ",server=on")
            }
        }
    }

    fn filename(&self) -> String {
        format!("disconnected:{},server=on", self.address)
    }
}

/// Connects to the server at `address`.
///
/// # Errors
/// With the cause and what to do about it.
pub(super) fn connect(address: &SocketAddress) -> Result<(Fixed, Peer), ChardevError> {
    let peer = match address {
        SocketAddress::Unix(path) => {
            UnixStream::connect(path).and_then(|stream| peer(stream.into(), name(address)))
        }
        SocketAddress::Tcp { host, port, nodelay } => {
            let host = if host.is_empty() { "localhost" } else { host };
            TcpStream::connect((host, *port)).and_then(|stream| {
                stream.set_nodelay(*nodelay)?;
                tcp_peer(stream, "")
            })
        }
    };
    match peer {
        Ok(peer) => Ok((Fixed(format!("disconnected:{}", name(address))), peer)),
        Err(source) => Err(ChardevError::Connect { address: name(address), source }),
    }
}

fn tcp_peer(stream: TcpStream, role: &str) -> io::Result<Peer> {
    let (ours, theirs) = (stream.local_addr()?, stream.peer_addr()?);
    peer(stream.into(), format!("tcp:{ours}{role} <-> {theirs}"))
}

fn peer(stream: OwnedFd, filename: String) -> io::Result<Peer> {
    let fd = HostFd::socket(stream);
    Ok(Peer { input: Some(fd.try_clone()?), output: Some(fd), filename, hangs_up: true })
}

fn name(address: &SocketAddress) -> String {
    match address {
        SocketAddress::Unix(path) => format!("unix:{}", path.display()),
        SocketAddress::Tcp { host, port, .. } if host.contains(':') => {
            format!("tcp:[{host}]:{port}")
        }
        SocketAddress::Tcp { host, port, .. } => format!("tcp:{host}:{port}"),
    }
}

/// Binds to `path`, in place of a socket file that a dead process has left.
fn bind(path: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(e) if e.kind() == io::ErrorKind::AddrInUse && is_stale(path) => {
            fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        other => other,
    }
}

/// Whether `path` is a socket that no process has. A datagram socket asks, since the kernel refuses
/// it to a living stream socket (EPROTOTYPE) without that one's noticing.
fn is_stale(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket())
        && UnixDatagram::unbound()
            .and_then(|probe| probe.connect(path))
            .is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused)
}

fn remedy(error: &io::Error, address: &SocketAddress) -> &'static str {
    let unix = matches!(address, SocketAddress::Unix(_));
    match (error.kind(), unix) {
        (io::ErrorKind::AddrInUse, true) => {
            "another program listens there, or it is no socket; choose another path or remove it"
        }
        (io::ErrorKind::AddrInUse, false) => "another program listens there; choose another port",
        (io::ErrorKind::NotFound, true) => "create the directory that it is to lie in",
        (io::ErrorKind::InvalidInput, true) => "choose a shorter path",
        (_, true) => "choose a path that you may write to",
        (io::ErrorKind::PermissionDenied, false) => "choose a port above 1023",
        (_, false) => "give a name or address of this host, or none for all of them",
    }
}

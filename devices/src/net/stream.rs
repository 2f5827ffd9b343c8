//! Frames on a stream socket, each behind its length in four bytes, big-endian: what QEMU's `socket`
//! and `stream` backends and passt speak.

use std::io::{self, IoSlice};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Weak;
use std::time::Duration;

use board::device::Tag;
use board::event::{EventTarget, LoopHandle, Readiness, Timer, Watch};
use board::time::{ClockKind, VmTime};

use super::backend::{Backend, Sent, Sink};
use super::frame::{Gather, MAX_FRAME, NetHeader, Offloads, Pieces};
use super::tap::{inherit, piece};
use super::{NetError, StreamAddress, StreamRole};

const PEER: Tag = Tag(0);
const LISTENER: Tag = Tag(1);
const RECONNECT: Tag = Tag(2);

/// Bytes of the length in front of a frame.
const LENGTH: usize = 4;

/// Bytes that are read at once.
const READ_SIZE: usize = 128 << 10;

struct Peer {
    /// It goes before the fd.
    watch: Watch,
    fd: OwnedFd,
    readable: bool,
    /// The rest of a frame that the socket took in part only.
    unsent: Vec<u8>,
    /// A card waits for room.
    blocked: bool,
    /// What was read: `input[start..end]`.
    input: Vec<u8>,
    start: usize,
    end: usize,
}

struct Listener {
    /// It goes before the fd.
    watch: Watch,
    fd: OwnedFd,
    /// A socket file to remove in the end.
    path: Option<PathBuf>,
}

/// The other ends that there can be.
pub(super) struct Stream {
    name: &'static str,
    place: String,
    events: Option<(LoopHandle, Weak<dyn EventTarget>)>,
    listener: Option<Listener>,
    peer: Option<Peer>,
    /// To connect again: where to, when, and how long to wait.
    reconnect: Option<(StreamAddress, Timer, Duration)>,
    pieces: Pieces,
}

impl Stream {
    /// One that leads nowhere.
    pub(super) fn closed() -> Self {
        Self {
            name: "stream",
            place: String::new(),
            events: None,
            listener: None,
            peer: None,
            reconnect: None,
            pieces: Pieces::default(),
        }
    }

    pub(super) fn open(
        id: &str,
        name: &'static str,
        address: &StreamAddress,
        role: StreamRole,
        events: &LoopHandle,
        target: Weak<dyn EventTarget>,
    ) -> Result<Self, NetError> {
        let failed = |what: &str, remedy: &str| {
            let (id, what, remedy) =
                (id.to_owned(), format!("{what} {}", display(address)), remedy.to_owned());
            move |cause| NetError::Host { id, what, cause, remedy }
        };
        let watching = failed("watch", "raise the limit of open files (ulimit -n)");
        let mut this = Self::closed();
        this.name = name;
        this.place = display(address);
        this.events = Some((events.clone(), target.clone()));
        match (address, role) {
            (StreamAddress::Fd(raw), _) => {
                let fd = inherit(id, *raw)?;
                this.welcome(fd).map_err(watching)?;
            }
            (_, StreamRole::Client { reconnect }) => {
                match connect(address) {
                    Ok(fd) => this.welcome(fd).map_err(watching)?,
                    // It may come up later.
                    Err(_) if reconnect > 0 => {}
                    Err(cause) => {
                        return Err(failed(
                            "connect to",
                            "start the program that listens there first, or give reconnect=SECONDS",
                        )(cause));
                    }
                }
                if reconnect > 0 {
                    let timer = events.timer(ClockKind::Realtime, target, RECONNECT);
                    let pause = Duration::from_secs(reconnect.into());
                    this.reconnect = Some((address.clone(), timer, pause));
                    this.arm_reconnect();
                }
            }
            (_, StreamRole::Server) => {
                let (fd, path) = listen(address)
                    .map_err(failed("listen on", "give a place that no other program uses"))?;
                let watch = events
                    .watch(fd.as_raw_fd(), Readiness::READ, target, LISTENER)
                    .map_err(watching)?;
                this.listener = Some(Listener { watch, fd, path });
            }
        }
        Ok(this)
    }

    fn welcome(&mut self, fd: OwnedFd) -> io::Result<()> {
        let Some((events, target)) = &self.events else { return Ok(()) };
        rustix::io::ioctl_fionbio(&fd, true)?;
        // It is refused where it does not apply: on unix sockets.
        let _ = rustix::net::sockopt::set_tcp_nodelay(&fd, true);
        let watch = events.watch(fd.as_raw_fd(), Readiness::READ, target.clone(), PEER)?;
        self.peer = Some(Peer {
            watch,
            fd,
            readable: false,
            unsent: Vec::new(),
            blocked: false,
            input: Vec::new(),
            start: 0,
            end: 0,
        });
        self.listen_if_alone();
        Ok(())
    }

    /// One client at a time: the others wait in the listener's queue.
    fn listen_if_alone(&self) {
        if let Some(listener) = &self.listener {
            let alone = self.peer.is_none();
            let interest = if alone { Readiness::READ } else { Readiness::empty() };
            listener.watch.set_interest(interest);
        }
    }

    fn hang_up(&mut self) {
        self.peer = None;
        self.listen_if_alone();
        self.arm_reconnect();
    }

    fn arm_reconnect(&self) {
        if let (Some((_, timer, pause)), None) = (&self.reconnect, &self.peer) {
            timer.arm(timer.now() + *pause);
        }
    }

    fn accept(&mut self) {
        let Some(listener) = &self.listener else { return };
        let flags = rustix::net::SocketFlags::CLOEXEC | rustix::net::SocketFlags::NONBLOCK;
        match rustix::net::accept_with(&listener.fd, flags) {
            Ok(fd) => {
                // A client that cannot be watched is sent away.
                let _ = self.welcome(fd);
            }
            Err(_) => listener.watch.drained(Readiness::READ),
        }
    }

    fn try_again(&mut self) {
        let Some((address, ..)) = &self.reconnect else { return };
        if self.peer.is_none()
            && let Ok(fd) = connect(address)
        {
            let _ = self.welcome(fd);
        }
        self.arm_reconnect();
    }
}

fn display(address: &StreamAddress) -> String {
    match address {
        StreamAddress::Unix(path) => format!("unix:{}", path.display()),
        StreamAddress::Inet(host, port) => format!("tcp:{host}:{port}"),
        StreamAddress::Fd(fd) => format!("fd={fd}"),
    }
}

fn connect(address: &StreamAddress) -> io::Result<OwnedFd> {
    Ok(match address {
        StreamAddress::Unix(path) => UnixStream::connect(path)?.into(),
        StreamAddress::Inet(host, port) => {
            let host = if host.is_empty() { "127.0.0.1" } else { host };
            TcpStream::connect((host, *port))?.into()
        }
        StreamAddress::Fd(_) => return Err(io::Error::from_raw_os_error(libc::ENOTCONN)),
    })
}

fn listen(address: &StreamAddress) -> io::Result<(OwnedFd, Option<PathBuf>)> {
    match address {
        StreamAddress::Unix(path) => {
            remove_if_stale(path);
            let listener = UnixListener::bind(path)?;
            listener.set_nonblocking(true)?;
            Ok((listener.into(), Some(path.clone())))
        }
        StreamAddress::Inet(host, port) => {
            let host = if host.is_empty() { "0.0.0.0" } else { host };
            let places: Vec<_> = (host, *port).to_socket_addrs()?.collect();
            let listener = TcpListener::bind(&places[..])?;
            listener.set_nonblocking(true)?;
            Ok((listener.into(), None))
        }
        StreamAddress::Fd(_) => Err(io::Error::from_raw_os_error(libc::EINVAL)),
    }
}

/// Removes a socket that an earlier program has left behind: nobody listens there.
fn remove_if_stale(path: &Path) {
    let refused = |e: &io::Error| e.kind() == io::ErrorKind::ConnectionRefused;
    if UnixStream::connect(path).is_err_and(|e| refused(&e)) {
        // If that fails, bind says why.
        let _ = std::fs::remove_file(path);
    }
}

impl Peer {
    fn update_interest(&self) {
        let mut interest = Readiness::empty();
        interest.set(Readiness::READ, !self.readable);
        interest.set(Readiness::WRITE, !self.unsent.is_empty());
        self.watch.set_interest(interest);
    }

    /// Writes the rest of a frame; whether there is room now.
    fn flush(&mut self) -> io::Result<bool> {
        while !self.unsent.is_empty() {
            match rustix::net::send(&self.fd, &self.unsent, rustix::net::SendFlags::NOSIGNAL) {
                Ok(len) => drop(self.unsent.drain(..len)),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => {
                    self.watch.drained(Readiness::WRITE);
                    return Ok(false);
                }
                Err(e) => return Err(e.into()),
            }
        }
        Ok(true)
    }

    /// Reads more behind what is there; false: there is nothing now.
    fn fill(&mut self) -> io::Result<bool> {
        if self.start > 0 {
            self.input.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        self.input.resize(LENGTH + MAX_FRAME + READ_SIZE, 0);
        loop {
            match rustix::io::read(&self.fd, &mut self.input[self.end..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(len) => {
                    self.end += len;
                    return Ok(true);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Ok(false),
                Err(e) => return Err(e.into()),
            }
        }
    }
}

/// The length of the frame at the front of `input`, and whether it is there as a whole.
fn front(input: &[u8]) -> io::Result<Option<usize>> {
    let Some((length, rest)) = input.split_first_chunk::<LENGTH>() else { return Ok(None) };
    let length = u32::from_be_bytes(*length) as usize;
    if length > MAX_FRAME {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok((rest.len() >= length).then_some(length))
}

impl Backend for Stream {
    fn describe(&self) -> String {
        let role = match (&self.listener, &self.peer) {
            (Some(_), Some(_)) => "connection from a client on ",
            (Some(_), None) => "listening on ",
            (None, Some(_)) => "connected to ",
            (None, None) => "not connected to ",
        };
        format!("type={},{role}{}", self.name, self.place)
    }

    fn capabilities(&self) -> Offloads {
        Offloads::empty()
    }

    fn set_offloads(&mut self, _offloads: Offloads) {}

    fn send(&mut self, _queue: usize, _header: &NetHeader, frame: Gather<'_>) -> Sent {
        let Some(peer) = &mut self.peer else { return Sent::Done };
        if !peer.unsent.is_empty() {
            peer.blocked = true;
            return Sent::Busy;
        }
        if frame.len() > MAX_FRAME {
            return Sent::Done;
        }
        let length = (frame.len() as u32).to_be_bytes();
        self.pieces.0.clear();
        self.pieces.0.push(piece(&length));
        frame.cut(0, frame.len(), &mut self.pieces.0);
        // SAFETY: a msghdr of zeros is one without address, data and control message.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = self.pieces.0.as_mut_ptr();
        message.msg_iovlen = self.pieces.0.len().min(libc::UIO_MAXIOV as usize);
        // SAFETY: the pieces are the length, which lives until the end of this function, and parts
        // of a Gather, which are readable memory.
        let sent = unsafe { libc::sendmsg(peer.fd.as_raw_fd(), &message, libc::MSG_NOSIGNAL) };
        let whole = LENGTH + frame.len();
        let sent = match usize::try_from(sent) {
            Ok(sent) => sent,
            Err(_) if io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock => {
                peer.watch.drained(Readiness::WRITE);
                0
            }
            Err(_) => {
                self.hang_up();
                return Sent::Done;
            }
        };
        if sent < whole {
            peer.unsent.extend_from_slice(&length[sent.min(LENGTH)..]);
            frame.append_to(sent.saturating_sub(LENGTH), &mut peer.unsent);
            peer.update_interest();
        }
        Sent::Done
    }

    fn receive(&mut self, _queue: usize, sink: &mut Sink<'_>) -> bool {
        while let Some(peer) = &mut self.peer {
            match front(&peer.input[peer.start..peer.end]) {
                Ok(Some(length)) => {
                    let at = peer.start + LENGTH;
                    let frame = &peer.input[at..at + length];
                    if !sink(&NetHeader::default(), &[IoSlice::new(frame)]) {
                        return true;
                    }
                    peer.start = at + length;
                    continue;
                }
                Ok(None) => match peer.fill() {
                    Ok(true) => continue,
                    Ok(false) => {
                        peer.watch.drained(Readiness::READ);
                        peer.readable = false;
                        peer.update_interest();
                        return false;
                    }
                    Err(_) => {}
                },
                Err(_) => {}
            }
            self.hang_up();
        }
        false
    }

    fn has_frames(&self) -> bool {
        self.peer.as_ref().is_some_and(|peer| peer.readable)
    }

    fn event(&mut self, tag: Tag, _now: VmTime) -> bool {
        match tag {
            LISTENER => {
                self.accept();
                return self.peer.is_some();
            }
            RECONNECT => {
                self.try_again();
                return self.peer.is_some();
            }
            _ => {}
        }
        let Some(peer) = &mut self.peer else { return false };
        peer.readable |= peer.watch.readiness().contains(Readiness::READ);
        match peer.flush() {
            Ok(room) => {
                peer.update_interest();
                room && std::mem::take(&mut peer.blocked)
            }
            Err(_) => {
                self.hang_up();
                true
            }
        }
    }

    fn link(&self) -> bool {
        self.peer.is_some()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Some(path) = self.listener.as_ref().and_then(|listener| listener.path.as_ref()) {
            // It may have been removed by whoever asked for it.
            let _ = std::fs::remove_file(path);
        }
    }
}

//! UDP: a socket of the host for each of the guest's.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use board::event::{Readiness, Watch};
use board::time::VmTime;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::Hooks;
use super::icmp::{self, is_outside};
use super::info::Line;
use super::packet::{Datagram, Ipv4, protocol};
use super::wire::Wire;

/// Sockets at the same time; the one that was used longest ago makes room.
const MAX_FLOWS: usize = 256;
/// How long a socket stays after its last datagram, and one that asked the name server.
const LIFETIME: Duration = Duration::from_secs(240);
const DNS_LIFETIME: Duration = Duration::from_secs(10);
/// Datagrams that a socket may deliver before others have their turn.
const SHARE: usize = 64;
/// The name server's port.
pub(super) const DNS_PORT: u16 = 53;

struct Socket {
    /// The guest's end.
    guest: SocketAddrV4,
    /// It asks the name server, which is this one of the host's.
    resolver: Option<SocketAddr>,
    /// It is a forwarded port of the host, which stays.
    forward: Option<SocketAddrV4>,
    /// Where the last datagram went.
    remote: SocketAddrV4,
    expires: VmTime,
    /// It goes before the socket.
    watch: Watch,
    socket: OwnedFd,
    /// The host's end may have datagrams.
    readable: bool,
}

#[derive(Default)]
pub(super) struct Udp {
    sockets: BTreeMap<u32, Socket>,
    next: u32,
    buffer: Vec<u8>,
}

impl Udp {
    /// A guest's datagram that is for nobody within the network but perhaps the name server.
    pub(super) fn input(
        &mut self,
        wire: &mut Wire,
        hooks: &Hooks,
        ip: &Ipv4,
        bytes: &[u8],
        resolver: impl FnOnce() -> Option<IpAddr>,
    ) {
        let Some(datagram) = Datagram::parse(ip, bytes) else { return };
        let config = &wire.config;
        let refused = |wire: &mut Wire, code| icmp::unreachable_bytes(wire, ip, bytes, code);
        let forwarded = self
            .sockets
            .iter()
            .find(|(_, socket)| socket.forward.is_some() && socket.guest == datagram.from)
            .map(|(&id, _)| id);
        let asks = *datagram.to.ip() == config.dns && datagram.to.port() == DNS_PORT;
        let to: SocketAddr = if config.restrict && forwarded.is_none() {
            return;
        } else if *datagram.to.ip() == config.host {
            SocketAddr::from((Ipv4Addr::LOCALHOST, datagram.to.port()))
        } else if asks {
            match resolver() {
                Some(resolver) => SocketAddr::from((resolver, DNS_PORT)),
                None => return refused(wire, icmp::PORT_UNREACHABLE),
            }
        } else if is_outside(wire, *datagram.to.ip()) {
            datagram.to.into()
        } else if config.contains(*datagram.to.ip()) {
            return refused(wire, icmp::HOST_UNREACHABLE);
        } else {
            return;
        };
        let resolver = asks.then_some(to);
        let found = match forwarded.filter(|_| !asks) {
            Some(id) => Some(id),
            None => self
                .sockets
                .iter()
                .find(|(_, socket)| {
                    socket.guest == datagram.from
                        && socket.resolver == resolver
                        && socket.forward.is_none()
                })
                .map(|(&id, _)| id),
        };
        let id = match found {
            Some(id) => id,
            None => match self.open(hooks, datagram.from, resolver, to) {
                Ok(id) => id,
                Err(_) => return refused(wire, icmp::HOST_UNREACHABLE),
            },
        };
        let Some(socket) = self.sockets.get_mut(&id) else { return };
        socket.remote = datagram.to;
        socket.touch(hooks);
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        match rustix::net::sendto(&socket.socket, datagram.payload, flags, &to) {
            Err(Errno::NETUNREACH) => refused(wire, icmp::NET_UNREACHABLE),
            Err(Errno::HOSTUNREACH) => refused(wire, icmp::HOST_UNREACHABLE),
            Err(Errno::ACCESS | Errno::PERM) => refused(wire, icmp::PROHIBITED),
            // Sent, or lost, as datagrams are.
            _ => {}
        }
    }

    fn open(
        &mut self,
        hooks: &Hooks,
        guest: SocketAddrV4,
        resolver: Option<SocketAddr>,
        to: SocketAddr,
    ) -> std::io::Result<u32> {
        let sockets = self.sockets.iter().filter(|(_, socket)| socket.forward.is_none());
        if sockets.clone().count() >= MAX_FLOWS
            && let Some(&oldest) =
                sockets.min_by_key(|(_, socket)| socket.expires).map(|(id, _)| id)
        {
            self.sockets.remove(&oldest);
        }
        let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(family, SocketType::DGRAM, flags, None)?;
        // The guest may shout as loud as a program of this user.
        let _ = rustix::net::sockopt::set_socket_broadcast(&socket, true);
        let remote = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);
        self.add(hooks, socket, guest, resolver, None, remote)
    }

    fn add(
        &mut self,
        hooks: &Hooks,
        socket: OwnedFd,
        guest: SocketAddrV4,
        resolver: Option<SocketAddr>,
        forward: Option<SocketAddrV4>,
        remote: SocketAddrV4,
    ) -> std::io::Result<u32> {
        loop {
            self.next = (self.next + 1) & Hooks::MAX_ID;
            if !self.sockets.contains_key(&self.next) {
                break;
            }
        }
        let watch = hooks.watch(socket.as_raw_fd(), Readiness::READ, Hooks::UDP, self.next)?;
        let expires = hooks.now() + LIFETIME;
        let socket =
            Socket { guest, resolver, forward, remote, expires, watch, socket, readable: false };
        self.sockets.insert(self.next, socket);
        Ok(self.next)
    }

    /// A port of the host that leads to the guest's. `socket` is bound to it.
    pub(super) fn forward(
        &mut self,
        hooks: &Hooks,
        socket: OwnedFd,
        host: SocketAddrV4,
        guest: SocketAddrV4,
    ) -> std::io::Result<u32> {
        let remote = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);
        self.add(hooks, socket, guest, None, Some(host), remote)
    }

    /// Ends a forward.
    pub(super) fn end_forward(&mut self, id: u32) {
        self.sockets.remove(&id);
    }

    /// A socket has datagrams.
    pub(super) fn event(&mut self, id: u32) {
        if let Some(socket) = self.sockets.get_mut(&id) {
            socket.readable = true;
            socket.watch.set_interest(Readiness::empty());
        }
    }

    /// Whether a socket may have datagrams.
    pub(super) fn has_frames(&self) -> bool {
        self.sockets.values().any(|socket| socket.readable)
    }

    /// Queues datagrams from the host as long as there is room.
    pub(super) fn pull(&mut self, wire: &mut Wire, hooks: &Hooks) {
        let Self { sockets, buffer, .. } = self;
        for socket in sockets.values_mut().filter(|socket| socket.readable) {
            buffer.resize(65_536, 0);
            for _ in 0..SHARE {
                if !wire.has_room() {
                    return;
                }
                let got =
                    rustix::net::recvfrom(&socket.socket, &mut buffer[..], RecvFlags::DONTWAIT);
                let (len, from) = match got {
                    Ok((_, len, from)) => (len, from),
                    // Somebody has refused a datagram.
                    Err(Errno::CONNREFUSED | Errno::INTR) => continue,
                    Err(_) => {
                        socket.readable = false;
                        socket.watch.drained(Readiness::READ);
                        socket.watch.set_interest(Readiness::READ);
                        break;
                    }
                };
                let from = from.and_then(|from| SocketAddr::try_from(from).ok());
                let Some(from) = socket.seen_as(wire, from) else { continue };
                socket.touch(hooks);
                let datagram = Datagram { from, to: socket.guest, payload: &buffer[..len] };
                let bytes = datagram.to_bytes();
                wire.send_ip(*from.ip(), *socket.guest.ip(), protocol::UDP, &bytes);
            }
        }
    }

    /// Forgets what is too old; returns when the next one is.
    pub(super) fn tick(&mut self, now: VmTime) -> Option<VmTime> {
        self.sockets.retain(|_, socket| socket.forward.is_some() || socket.expires > now);
        let flows = self.sockets.values().filter(|socket| socket.forward.is_none());
        flows.map(|socket| socket.expires).min()
    }

    /// Lines of `info usernet`.
    pub(super) fn info(&self, now: VmTime, lines: &mut Vec<Line>) {
        for socket in self.sockets.values().rev() {
            let common = |state, from: Option<SocketAddrV4>, to: SocketAddrV4| Line {
                protocol: "UDP",
                state,
                fd: socket.socket.as_raw_fd(),
                from: from.map(|from| *from.ip()).filter(|ip| !ip.is_unspecified()),
                from_port: from.map_or(0, |from| from.port()),
                to: *to.ip(),
                to_port: to.port(),
                receive: 0,
                send: 0,
            };
            lines.push(match socket.forward {
                Some(host) => common("HOST_FORWARD".to_owned(), Some(host), socket.guest),
                None => {
                    let left = socket.expires.since(now).as_secs();
                    common(format!("{left} sec"), Some(socket.guest), socket.remote)
                }
            });
        }
    }
}

impl Socket {
    fn touch(&mut self, hooks: &Hooks) {
        let lifetime = if self.resolver.is_some() { DNS_LIFETIME } else { LIFETIME };
        self.expires = hooks.now() + lifetime;
        if self.forward.is_none() {
            hooks.wake_at(self.expires);
        }
    }

    /// The sender as the guest knows it.
    fn seen_as(&self, wire: &Wire, from: Option<SocketAddr>) -> Option<SocketAddrV4> {
        let from = from?;
        if let Some(resolver) = self.resolver {
            // Nobody else has an answer.
            return (from == resolver).then(|| SocketAddrV4::new(wire.config.dns, DNS_PORT));
        }
        let SocketAddr::V4(mut from) = from else { return None };
        if from.ip().is_loopback() || wire.config.contains(*from.ip()) {
            from.set_ip(wire.config.host);
        }
        Some(from)
    }
}

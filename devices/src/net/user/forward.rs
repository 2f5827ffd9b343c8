//! Ports of the host that lead to the guest (`hostfwd=`).

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, UdpSocket};
use std::os::fd::AsRawFd;

use board::event::{Readiness, Watch};
use rustix::net::SocketFlags;

use super::Hooks;
use super::info::Line;
use super::tcp::Tcp;
use super::udp::Udp;
use super::wire::Wire;
use crate::net::{Forward, Protocol};

/// Clients that are let in before others have their turn.
const SHARE: usize = 16;

enum Port {
    Tcp {
        /// It goes before the listener.
        watch: Watch,
        listener: TcpListener,
    },
    /// The number of its socket.
    Udp(u32),
}

struct Active {
    id: u32,
    forward: Forward,
    port: Port,
}

#[derive(Default)]
pub(super) struct Forwards {
    active: Vec<Active>,
    next: u32,
}

impl Forwards {
    pub(super) fn add(
        &mut self,
        hooks: &Hooks,
        udp: &mut Udp,
        forward: Forward,
    ) -> std::io::Result<()> {
        self.next += 1;
        let guest = SocketAddrV4::new(forward.guest, forward.guest_port);
        let port = match forward.protocol {
            Protocol::Tcp => {
                let listener = TcpListener::bind(forward.host)?;
                listener.set_nonblocking(true)?;
                let fd = listener.as_raw_fd();
                let watch = hooks.watch(fd, Readiness::READ, Hooks::LISTENER, self.next)?;
                Port::Tcp { watch, listener }
            }
            Protocol::Udp => {
                let socket = UdpSocket::bind(forward.host)?;
                socket.set_nonblocking(true)?;
                Port::Udp(udp.forward(hooks, socket.into(), as_v4(forward.host), guest)?)
            }
        };
        self.active.push(Active { id: self.next, forward, port });
        Ok(())
    }

    pub(super) fn remove(&mut self, udp: &mut Udp, protocol: Protocol, host: SocketAddr) -> bool {
        let same =
            |active: &Active| active.forward.protocol == protocol && active.forward.host == host;
        let Some(index) = self.active.iter().position(same) else { return false };
        if let Port::Udp(id) = self.active.remove(index).port {
            udp.end_forward(id);
        }
        true
    }

    /// Clients wait at a port.
    pub(super) fn accept(&mut self, wire: &Wire, hooks: &Hooks, tcp: &mut Tcp, id: u32) {
        let Some(active) = self.active.iter().find(|active| active.id == id) else { return };
        let Port::Tcp { watch, listener } = &active.port else { return };
        let guest = SocketAddrV4::new(active.forward.guest, active.forward.guest_port);
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        for _ in 0..SHARE {
            match rustix::net::acceptfrom_with(listener, flags) {
                Ok((socket, peer)) => {
                    let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
                    let unknown = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
                    // It is refused for nothing that could be done about.
                    let _ = rustix::net::sockopt::set_tcp_nodelay(&socket, true);
                    tcp.accept(wire, hooks, socket, as_v4(peer.unwrap_or(unknown)), guest);
                }
                Err(rustix::io::Errno::AGAIN) => return watch.drained(Readiness::READ),
                // The client has gone again. Without fds for it, it waits.
                Err(_) => return,
            }
        }
    }

    /// Lines of `info usernet`; those of UDP are with the other sockets.
    pub(super) fn info(&self, lines: &mut Vec<Line>) {
        for active in self.active.iter().rev() {
            let Port::Tcp { listener, .. } = &active.port else { continue };
            let host = as_v4(active.forward.host);
            lines.push(Line {
                protocol: "TCP",
                state: "HOST_FORWARD".to_owned(),
                fd: listener.as_raw_fd(),
                from: Some(*host.ip()).filter(|ip| !ip.is_unspecified()),
                from_port: host.port(),
                to: active.forward.guest,
                to_port: active.forward.guest_port,
                receive: 0,
                send: 0,
            });
        }
    }
}

/// Clients that come by IPv6 look as if they were the host to a guest that has IPv4 only.
fn as_v4(address: SocketAddr) -> SocketAddrV4 {
    match address {
        SocketAddr::V4(address) => address,
        SocketAddr::V6(address) => {
            let ip = address.ip().to_ipv4_mapped().unwrap_or(Ipv4Addr::UNSPECIFIED);
            SocketAddrV4::new(ip, address.port())
        }
    }
}

//! ICMP (RFC 792): answers to the guest's echo requests, its requests to others by the host's ping
//! sockets, and the errors that the guest is told.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use board::event::{Readiness, Watch};
use board::time::VmTime;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::Hooks;
use super::info::Line;
use super::packet::{ETHERNET, IPV4, Ipv4, be16, checksum, protocol};
use super::wire::Wire;
use crate::net::frame::Gather;

const ECHO_REPLY: u8 = 0;
const UNREACHABLE: u8 = 3;
const ECHO: u8 = 8;
/// Bytes of an ICMP header.
const HEADER: usize = 8;

/// Codes of destination unreachable.
pub(super) const NET_UNREACHABLE: u8 = 0;
pub(super) const HOST_UNREACHABLE: u8 = 1;
pub(super) const PORT_UNREACHABLE: u8 = 3;
pub(super) const PROHIBITED: u8 = 13;

/// Pings at the same time.
const MAX_FLOWS: usize = 32;
/// How long an answer may take.
const LIFETIME: Duration = Duration::from_secs(30);

struct Ping {
    guest: Ipv4Addr,
    /// The guest's number for it.
    ident: u16,
    remote: Ipv4Addr,
    expires: VmTime,
    watch: Watch,
    socket: OwnedFd,
}

#[derive(Default)]
pub(super) struct Icmp {
    pings: BTreeMap<u32, Ping>,
    next: u32,
}

impl Icmp {
    /// A guest's message, `bytes` behind the IP header.
    pub(super) fn input(&mut self, wire: &mut Wire, hooks: &Hooks, ip: &Ipv4, bytes: &[u8]) {
        if bytes.len() < HEADER || bytes[0] != ECHO || checksum(bytes) != 0 {
            return;
        }
        if wire.is_ours(ip.to) {
            return reply(wire, ip.to, ip.from, bytes);
        }
        if wire.config.restrict || !is_outside(wire, ip.to) {
            return;
        }
        if self.forward(hooks, ip, bytes).is_err() {
            // Without the right to ping sockets (net.ipv4.ping_group_range), or a way there.
            unreachable_bytes(wire, ip, bytes, PROHIBITED);
        }
    }

    fn forward(&mut self, hooks: &Hooks, ip: &Ipv4, bytes: &[u8]) -> std::io::Result<()> {
        let ident = be16(bytes, 4);
        let known = |ping: &Ping| (ping.guest, ping.ident, ping.remote) == (ip.from, ident, ip.to);
        let found = self.pings.iter().find(|(_, ping)| known(ping)).map(|(&id, _)| id);
        let id = match found {
            Some(id) => id,
            None => {
                if self.pings.len() >= MAX_FLOWS {
                    self.pings.pop_first();
                }
                let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
                let socket = rustix::net::socket_with(
                    AddressFamily::INET,
                    SocketType::DGRAM,
                    flags,
                    Some(rustix::net::ipproto::ICMP),
                )?;
                self.next = (self.next + 1) & Hooks::MAX_ID;
                let fd = socket.as_raw_fd();
                let watch = hooks.watch(fd, Readiness::READ, Hooks::ICMP, self.next)?;
                let expires = hooks.now() + LIFETIME;
                let ping = Ping { guest: ip.from, ident, remote: ip.to, expires, watch, socket };
                self.pings.insert(self.next, ping);
                self.next
            }
        };
        let Some(ping) = self.pings.get_mut(&id) else { return Ok(()) };
        ping.expires = hooks.now() + LIFETIME;
        hooks.wake_at(ping.expires);
        let to = SocketAddr::from((ip.to, 0));
        rustix::net::sendto(&ping.socket, bytes, SendFlags::NOSIGNAL, &to)?;
        Ok(())
    }

    /// An answer has come.
    pub(super) fn event(&mut self, wire: &mut Wire, id: u32) {
        let Some(ping) = self.pings.get_mut(&id) else { return };
        let mut bytes = vec![0; 65_535];
        for _ in 0..16 {
            match rustix::net::recv(&ping.socket, &mut bytes[..], RecvFlags::DONTWAIT) {
                Ok((_, len)) if len >= HEADER && bytes[0] == ECHO_REPLY => {
                    let bytes = &mut bytes[..len];
                    bytes[4..6].copy_from_slice(&ping.ident.to_be_bytes());
                    fill_in(bytes);
                    wire.send_ip(ping.remote, ping.guest, protocol::ICMP, bytes);
                }
                Ok(_) => {}
                Err(_) => return ping.watch.drained(Readiness::READ),
            }
        }
    }

    /// Forgets what is too old; returns when the next one is.
    pub(super) fn tick(&mut self, now: VmTime) -> Option<VmTime> {
        self.pings.retain(|_, ping| ping.expires > now);
        self.pings.values().map(|ping| ping.expires).min()
    }

    /// Lines of `info usernet`.
    pub(super) fn info(&self, now: VmTime, lines: &mut Vec<Line>) {
        for ping in self.pings.values().rev() {
            lines.push(Line {
                protocol: "ICMP",
                state: format!("{} sec", ping.expires.since(now).as_secs()),
                fd: ping.socket.as_raw_fd(),
                from: Some(ping.guest),
                from_port: ping.ident,
                to: ping.remote,
                to_port: 0,
                receive: 0,
                send: 0,
            });
        }
    }
}

/// Whether an address may be of a host out there.
pub(super) fn is_outside(wire: &Wire, to: Ipv4Addr) -> bool {
    let local = to.is_loopback()
        || to.is_unspecified()
        || to.is_multicast()
        || to.is_broadcast()
        || to.octets()[0] == 0;
    !local && !wire.config.contains(to)
}

fn fill_in(bytes: &mut [u8]) {
    bytes[2..4].fill(0);
    let sum = checksum(bytes);
    bytes[2..4].copy_from_slice(&sum.to_be_bytes());
}

fn reply(wire: &mut Wire, from: Ipv4Addr, to: Ipv4Addr, request: &[u8]) {
    let mut bytes = request.to_vec();
    bytes[0] = ECHO_REPLY;
    fill_in(&mut bytes);
    wire.send_ip(from, to, protocol::ICMP, &bytes);
}

/// Tells the guest that its packet `ip`, whose frame is `frame`, cannot be delivered.
pub(super) fn unreachable(wire: &mut Wire, ip: &Ipv4, frame: Gather<'_>, code: u8) {
    let mut bytes = [0; HEADER];
    let len = frame.read_at(ETHERNET + ip.header, &mut bytes).min(ip.payload());
    unreachable_bytes(wire, ip, &bytes[..len], code);
}

/// The same with the bytes behind the IP header, of which the first eight are quoted.
pub(super) fn unreachable_bytes(wire: &mut Wire, ip: &Ipv4, bytes: &[u8], code: u8) {
    // Not to what was for several (RFC 1122, 3.2.2).
    if ip.to.is_multicast() || ip.to.is_broadcast() || ip.to == wire.config.broadcast() {
        return;
    }
    let mut message = vec![0; HEADER + IPV4];
    message[0] = UNREACHABLE;
    message[1] = code;
    Ipv4 { header: IPV4, total: ip.total - ip.header + IPV4, ..*ip }.put(0, &mut message[HEADER..]);
    message.extend(&bytes[..bytes.len().min(8)]);
    fill_in(&mut message);
    let from = if wire.is_ours(ip.to) { ip.to } else { wire.config.host };
    wire.send_ip(from, ip.from, protocol::ICMP, &message);
}

/// The same for a TCP connection that the guest began with sequence number `seq`.
pub(super) fn unreachable_flow(
    wire: &mut Wire,
    guest: SocketAddrV4,
    remote: SocketAddrV4,
    seq: u32,
    code: u8,
) {
    let ip = Ipv4 {
        from: *guest.ip(),
        to: *remote.ip(),
        protocol: protocol::TCP,
        ttl: 64,
        id: 0,
        header: IPV4,
        total: IPV4 + 20,
        offset: 0,
        more_fragments: false,
    };
    let mut bytes = [0; 8];
    bytes[..2].copy_from_slice(&guest.port().to_be_bytes());
    bytes[2..4].copy_from_slice(&remote.port().to_be_bytes());
    bytes[4..].copy_from_slice(&seq.to_be_bytes());
    unreachable_bytes(wire, &ip, &bytes, code);
}

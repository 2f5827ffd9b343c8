//! A network of the host's user, without any privilege: a gateway that is the host, a name server,
//! DHCP, and connections that leave as this program's own.
//!
//! The guest's TCP ends here (`tcp`) and goes on in a socket of the host; UDP and pings have a socket
//! each. Frames to the guest are made when its card asks for them, so nothing piles up: what the
//! guest has no room for stays in the host's sockets.

mod dhcp;
mod forward;
mod fragment;
mod icmp;
mod info;
mod packet;
mod resolver;
mod ring;
mod tcp;
#[cfg(test)]
mod tests;
mod udp;
mod wire;

use std::cell::Cell;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::RawFd;
use std::sync::Weak;

use board::device::Tag;
use board::event::{EventTarget, LoopHandle, Readiness, Timer, Watch};
use board::time::{ClockKind, VmTime};

pub use info::Line;

use self::dhcp::Dhcp;
use self::forward::Forwards;
use self::fragment::Fragments;
use self::icmp::{Icmp, is_outside};
use self::packet::{
    ETHERNET, ETHERTYPE_ARP, ETHERTYPE_IPV4, IPV4, Ipv4, be16, protocol, sum_is_right,
};
use self::resolver::Resolver;
use self::tcp::{Route, Tcp};
use self::udp::{DNS_PORT, Udp};
use self::wire::Wire;
use super::backend::{Backend, Sent, Sink};
use super::frame::{Gather, MacAddress, NetHeader, Offloads};
use super::{Forward, NetError, Protocol, Target, UserConfig};

/// How the parts of the network reach the main loop.
pub(crate) struct Hooks {
    events: LoopHandle,
    target: Weak<dyn EventTarget>,
    timer: Timer,
    armed: Cell<Option<VmTime>>,
}

impl Hooks {
    /// What a tag is about is in its upper four bits; below are numbers of sockets.
    const TIMER: u32 = 0;
    const TCP: u32 = 1 << 28;
    const UDP: u32 = 2 << 28;
    const ICMP: u32 = 3 << 28;
    const LISTENER: u32 = 4 << 28;
    const MAX_ID: u32 = (1 << 28) - 1;

    fn new(events: &LoopHandle, target: Weak<dyn EventTarget>) -> Self {
        let timer = events.timer(ClockKind::Realtime, target.clone(), Tag(Self::TIMER));
        Self { events: events.clone(), target, timer, armed: Cell::new(None) }
    }

    fn watch(&self, fd: RawFd, interest: Readiness, kind: u32, id: u32) -> io::Result<Watch> {
        self.events.watch(fd, interest, self.target.clone(), Tag(kind | id))
    }

    fn now(&self) -> VmTime {
        self.timer.now()
    }

    /// Has the timer ring at `at` at the latest.
    fn wake_at(&self, at: VmTime) {
        if self.armed.get().is_none_or(|armed| at < armed) {
            self.armed.set(Some(at));
            self.timer.arm(at);
        }
    }
}

/// The network.
pub struct UserNet {
    hooks: Hooks,
    wire: Wire,
    dhcp: Dhcp,
    icmp: Icmp,
    udp: Udp,
    tcp: Tcp,
    forwards: Forwards,
    fragments: Fragments,
    resolver: Resolver,
}

impl UserNet {
    /// Opens the network with its forwards.
    pub(super) fn open(
        id: &str,
        config: &UserConfig,
        events: &LoopHandle,
        target: Weak<dyn EventTarget>,
    ) -> Result<Self, NetError> {
        check(id, config)?;
        let mut this = Self {
            hooks: Hooks::new(events, target),
            wire: Wire::new(config.clone()),
            dhcp: Dhcp::default(),
            icmp: Icmp::default(),
            udp: Udp::default(),
            tcp: Tcp::default(),
            forwards: Forwards::default(),
            fragments: Fragments::default(),
            resolver: Resolver::new(config.resolver),
        };
        for forward in &config.forwards {
            this.add_forward(*forward)?;
        }
        Ok(this)
    }

    /// Leads a port of the host to the guest.
    ///
    /// # Errors
    /// When the host's port cannot be had.
    pub fn add_forward(&mut self, forward: Forward) -> Result<(), NetError> {
        let guest = match forward.guest.is_unspecified() {
            true => self.wire.config.dhcp_start,
            false => forward.guest,
        };
        if !self.wire.config.contains(guest) {
            return Err(NetError::Forward(format!(
                "Could not set up host forwarding rule to {guest}: it is not in {}/{}",
                self.wire.config.net, self.wire.config.prefix
            )));
        }
        let forward = Forward { guest, ..forward };
        self.forwards.add(&self.hooks, &mut self.udp, forward).map_err(|cause| {
            NetError::Forward(format!(
                "Could not set up host forwarding rule for {}:{} ({cause}): give another port of the host",
                forward.protocol.name(),
                forward.host
            ))
        })
    }

    /// Ends a forward; connections that came by it go on. False: there is none.
    pub fn remove_forward(&mut self, protocol: Protocol, host: SocketAddr) -> bool {
        self.forwards.remove(&mut self.udp, protocol, host)
    }

    /// The connections and forwards.
    pub fn info(&self) -> Vec<Line> {
        let mut lines = Vec::new();
        self.tcp.info(&mut lines);
        self.forwards.info(&mut lines);
        self.udp.info(self.hooks.now(), &mut lines);
        self.icmp.info(self.hooks.now(), &mut lines);
        lines
    }

    /// How many TCP connections there are.
    pub fn connections(&self) -> usize {
        self.tcp.len()
    }

    fn ip(&mut self, mac: MacAddress, header: &NetHeader, frame: Gather<'_>, head: &[u8]) {
        let Some(ip) = Ipv4::parse(head, frame.len() - ETHERNET) else { return };
        let known = self.wire.neighbour(ip.from) == Some(mac);
        if !known {
            self.wire.learn(ip.from, mac);
            self.tcp.wake(ip.from);
        }
        if !ip.is_fragment() {
            return self.packet(&ip, header, frame);
        }
        let mut bytes = Vec::new();
        frame.append_to(ETHERNET + ip.header, &mut bytes);
        bytes.truncate(ip.payload());
        if let Some((ip, bytes)) = self.fragments.add(&ip, &bytes, self.hooks.now()) {
            let headers = [0; ETHERNET + IPV4];
            let pieces = [io::IoSlice::new(&headers), io::IoSlice::new(&bytes)];
            self.packet(&ip, &NetHeader::default(), Gather::new(&pieces));
        }
    }

    fn packet(&mut self, ip: &Ipv4, header: &NetHeader, frame: Gather<'_>) {
        let Self { hooks, wire, dhcp, icmp, udp, tcp, resolver, .. } = self;
        if ip.protocol == protocol::TCP {
            if wire.config.contains(ip.from) {
                tcp.input(wire, hooks, ip, header, frame, |wire, to| route(wire, resolver, to));
            }
            return;
        }
        let mut bytes = Vec::new();
        frame.append_to(ETHERNET + ip.header, &mut bytes);
        bytes.truncate(ip.payload());
        match ip.protocol {
            protocol::UDP => {
                // A datagram may be without checksum.
                if bytes.len() < packet::UDP
                    || be16(&bytes, 6) != 0 && !sum_is_right(ip, header, frame)
                {
                    return;
                }
                let everybody = ip.to.is_broadcast() || ip.to == wire.config.broadcast();
                if be16(&bytes, 2) == dhcp::SERVER_PORT && (everybody || ip.to == wire.config.host)
                {
                    dhcp.request(wire, &bytes[packet::UDP..]);
                } else if wire.config.contains(ip.from) {
                    udp.input(wire, hooks, ip, &bytes, || resolver.get());
                }
            }
            protocol::ICMP if wire.config.contains(ip.from) => {
                icmp.input(wire, hooks, ip, &bytes);
            }
            _ => {}
        }
    }
}

/// Where a connection that the guest begins leads.
fn route(wire: &Wire, resolver: &mut Resolver, to: SocketAddrV4) -> Route {
    let config = &wire.config;
    let address = *to.ip();
    let forward = config.guest_forwards.iter().find(|f| f.server == address && f.port == to.port());
    if let Some(forward) = forward {
        return Route::To(forward.target.clone());
    }
    let tcp = |address: SocketAddr| Route::To(Target::Tcp(address));
    if config.restrict {
        Route::Refuse
    } else if address == config.host {
        tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, to.port())))
    } else if address == config.dns && to.port() == DNS_PORT {
        resolver.get().map_or(Route::Refuse, |server| tcp(SocketAddr::from((server, DNS_PORT))))
    } else if wire.is_ours(address) {
        Route::Refuse
    } else if config.contains(address) {
        Route::Unreachable(icmp::HOST_UNREACHABLE)
    } else if is_outside(wire, address) {
        tcp(to.into())
    } else {
        Route::Ignore
    }
}

fn check(id: &str, config: &UserConfig) -> Result<(), NetError> {
    let hosts = [("host", config.host), ("dns", config.dns), ("dhcpstart", config.dhcp_start)];
    let forwards = config.guest_forwards.iter().map(|forward| ("guestfwd", forward.server));
    for (name, address) in hosts.into_iter().chain(forwards) {
        let inside =
            config.contains(address) && address != config.net && address != config.broadcast();
        if !inside {
            return Err(NetError::Conflict {
                id: id.to_owned(),
                problem: format!("{name}={address} is no host of {}/{}", config.net, config.prefix),
                remedy: "give an address in the network".to_owned(),
            });
        }
    }
    for (index, (name, address)) in hosts.iter().enumerate() {
        if let Some((other, _)) = hosts[..index].iter().find(|(_, taken)| taken == address) {
            return Err(NetError::Conflict {
                id: id.to_owned(),
                problem: format!("{name} and {other} are both {address}"),
                remedy: "give each an address of its own".to_owned(),
            });
        }
    }
    Ok(())
}

impl Backend for UserNet {
    fn describe(&self) -> String {
        let config = &self.wire.config;
        let restrict = if config.restrict { "on" } else { "off" };
        format!("type=user,net={},restrict={restrict}", config.net)
    }

    fn capabilities(&self) -> Offloads {
        Offloads::CSUM | Offloads::TSO4
    }

    fn set_offloads(&mut self, offloads: Offloads) {
        self.wire.offloads = offloads;
    }

    fn send(&mut self, _queue: usize, header: &NetHeader, frame: Gather<'_>) -> Sent {
        let mut head = [0; ETHERNET + 60];
        let len = frame.read_at(0, &mut head);
        let head = &head[..len];
        let Some((ethernet, rest)) = head.split_at_checked(ETHERNET) else { return Sent::Done };
        let mut mac = MacAddress::default();
        mac.0.copy_from_slice(&ethernet[6..12]);
        if mac.is_multicast() {
            return Sent::Done;
        }
        match be16(ethernet, 12) {
            ETHERTYPE_IPV4 => self.ip(mac, header, frame, rest),
            ETHERTYPE_ARP => {
                self.wire.arp(head);
                if head.len() >= 32 {
                    self.tcp.wake(packet::address(head, 28));
                }
            }
            _ => {}
        }
        Sent::Done
    }

    fn receive(&mut self, _queue: usize, sink: &mut Sink<'_>) -> bool {
        loop {
            self.udp.pull(&mut self.wire, &self.hooks);
            while let Some(frame) = self.wire.pop() {
                if !sink(&NetHeader::default(), &[io::IoSlice::new(&frame)]) {
                    self.wire.unpop(frame);
                    return true;
                }
            }
            if self.tcp.emit(&mut self.wire, &self.hooks, sink) {
                return true;
            }
            if !self.has_frames() {
                return false;
            }
        }
    }

    fn has_frames(&self) -> bool {
        !self.wire.is_empty() || self.tcp.has_frames() || self.udp.has_frames()
    }

    fn event(&mut self, tag: Tag, _now: VmTime) -> bool {
        let id = tag.0 & Hooks::MAX_ID;
        match tag.0 & !Hooks::MAX_ID {
            Hooks::TCP => self.tcp.event(&mut self.wire, &self.hooks, id),
            Hooks::UDP => self.udp.event(id),
            Hooks::ICMP => self.icmp.event(&mut self.wire, id),
            Hooks::LISTENER => self.forwards.accept(&self.wire, &self.hooks, &mut self.tcp, id),
            _ => {
                self.hooks.armed.set(None);
                let now = self.hooks.now();
                let next = self
                    .tcp
                    .tick(&mut self.wire, &self.hooks, now)
                    .into_iter()
                    .chain(self.udp.tick(now))
                    .chain(self.icmp.tick(now))
                    .min();
                if let Some(next) = next {
                    self.hooks.wake_at(next);
                }
            }
        }
        false
    }

    fn user(&mut self) -> Option<&mut UserNet> {
        Some(self)
    }
}

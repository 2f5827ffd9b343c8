//! TCP: the guest's connections, which end here and go on as the host's own.

mod connection;
mod segment;

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::BuildHasher;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use board::event::Readiness;
use board::time::VmTime;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use self::connection::{Connection, Emitted, State, Verdict};
use self::segment::{Segment, flag};
use super::Hooks;
use super::icmp;
use super::info::Line;
use super::packet::{Checksum, Ipv4, protocol, sum_is_right};
use super::wire::Wire;
use crate::net::Target;
use crate::net::backend::Sink;
use crate::net::frame::{Gather, NetHeader, Pieces};

/// Connections at the same time.
const MAX_CONNECTIONS: usize = 1024;

/// What tells connections apart.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Flow {
    guest: SocketAddrV4,
    remote: SocketAddrV4,
}

/// Where the guest's connection leads.
pub(super) enum Route {
    To(Target),
    /// RST.
    Refuse,
    /// ICMP destination unreachable, with this code.
    Unreachable(u8),
    Ignore,
}

#[derive(Default)]
pub(super) struct Tcp {
    flows: HashMap<Flow, u32>,
    connections: BTreeMap<u32, Connection>,
    /// Those that have something to emit.
    ready: VecDeque<u32>,
    next: u32,
    /// The key of initial sequence numbers (RFC 6528).
    secret: RandomState,
    pieces: Pieces,
}

impl Tcp {
    /// A guest's segment. `route` says where a new connection leads.
    pub(super) fn input(
        &mut self,
        wire: &mut Wire,
        hooks: &Hooks,
        ip: &Ipv4,
        header: &NetHeader,
        frame: Gather<'_>,
        route: impl FnOnce(&Wire, SocketAddrV4) -> Route,
    ) {
        let Some(segment) = Segment::parse(ip, frame) else { return };
        if !sum_is_right(ip, header, frame) {
            return;
        }
        let flow = Flow { guest: segment.from, remote: segment.to };
        if let Some(&id) = self.flows.get(&flow)
            && let Some(connection) = self.connections.get_mut(&id)
        {
            let verdict = connection.segment(&segment, frame, hooks.now(), &mut self.pieces.0);
            return self.settle(wire, hooks, id, verdict);
        }
        if segment.has(flag::RST) {
            return;
        }
        let fresh = segment.has(flag::SYN) && !segment.has(flag::ACK);
        let target = match route(wire, segment.to) {
            Route::Ignore => return,
            Route::To(target) if fresh => target,
            Route::Unreachable(code) if fresh => return icmp::unreachable(wire, ip, frame, code),
            _ => return refuse(wire, &segment),
        };
        self.make_room();
        if self.connections.len() >= MAX_CONNECTIONS {
            return refuse(wire, &segment);
        }
        let (socket, child) = match connect(&target) {
            Ok(parts) => parts,
            Err(Errno::NETUNREACH | Errno::HOSTUNREACH) => {
                return icmp::unreachable(wire, ip, frame, icmp::NET_UNREACHABLE);
            }
            Err(_) => return refuse(wire, &segment),
        };
        let id = self.new_id();
        let Ok(watch) = hooks.watch(socket.as_raw_fd(), Readiness::empty(), Hooks::TCP, id) else {
            return refuse(wire, &segment);
        };
        let isn = self.isn(flow, hooks.now());
        let mut connection = Connection::outbound(&segment, isn, socket, watch);
        if let Some(child) = child {
            connection.set_child(child);
        }
        self.flows.insert(flow, id);
        self.connections.insert(id, connection);
    }

    /// A client of the host comes to a forwarded port.
    pub(super) fn accept(
        &mut self,
        wire: &Wire,
        hooks: &Hooks,
        socket: OwnedFd,
        peer: SocketAddrV4,
        guest: SocketAddrV4,
    ) {
        self.make_room();
        if self.connections.len() >= MAX_CONNECTIONS {
            return;
        }
        // To the guest the host itself is the gateway.
        let mut remote = peer;
        if peer.ip().is_loopback() || peer.ip().is_unspecified() || wire.config.contains(*peer.ip())
        {
            remote.set_ip(wire.config.host);
        }
        let mut port = remote.port();
        while self.flows.contains_key(&Flow { guest, remote }) || remote.port() == 0 {
            port = if port < 1024 { u16::MAX } else { port - 1 };
            remote.set_port(port);
        }
        let flow = Flow { guest, remote };
        let id = self.new_id();
        // A client that cannot be watched is sent away.
        let Ok(watch) = hooks.watch(socket.as_raw_fd(), Readiness::empty(), Hooks::TCP, id) else {
            return;
        };
        let isn = self.isn(flow, hooks.now());
        let connection = Connection::inbound(guest, remote, isn, socket, watch);
        self.flows.insert(flow, id);
        self.connections.insert(id, connection);
        self.queue(id);
    }

    fn new_id(&mut self) -> u32 {
        loop {
            self.next = (self.next + 1) & Hooks::MAX_ID;
            if !self.connections.contains_key(&self.next) {
                return self.next;
            }
        }
    }

    /// RFC 6528, 3: a clock of 4 us and a keyed hash.
    fn isn(&self, flow: Flow, now: VmTime) -> u32 {
        (self.secret.hash_one(flow) as u32).wrapping_add((now.nanos() / 4000) as u32)
    }

    /// With all places taken, one goes whose host's end is long gone.
    fn make_room(&mut self) {
        if self.connections.len() >= MAX_CONNECTIONS
            && let Some(id) = self
                .connections
                .iter()
                .find(|(_, connection)| connection.is_leftover())
                .map(|(&id, _)| id)
        {
            self.remove(id);
        }
    }

    fn remove(&mut self, id: u32) -> Option<Connection> {
        let connection = self.connections.remove(&id)?;
        self.flows.remove(&Flow { guest: connection.guest, remote: connection.remote });
        Some(connection)
    }

    fn queue(&mut self, id: u32) {
        if let Some(connection) = self.connections.get_mut(&id)
            && !std::mem::replace(&mut connection.queued, true)
        {
            self.ready.push_back(id);
        }
    }

    /// After a step of a connection.
    fn settle(&mut self, wire: &mut Wire, hooks: &Hooks, id: u32, verdict: Verdict) {
        match verdict {
            Verdict::Keep => {
                let Some(connection) = self.connections.get(&id) else { return };
                if let Some(deadline) = connection.deadline {
                    hooks.wake_at(deadline);
                }
                if connection.wants_turn() {
                    self.queue(id);
                }
            }
            Verdict::Remove => {
                if let Some(connection) = self.remove(id)
                    && !connection.is_over()
                {
                    connection.abort();
                }
            }
            Verdict::Reset => {
                if let Some(connection) = self.remove(id) {
                    connection.abort();
                    let (seq, ack) = connection.reset_numbers();
                    let flags = flag::RST | flag::ACK;
                    reset(wire, connection.remote, connection.guest, seq, ack, flags);
                }
            }
            Verdict::Unreachable(code) => {
                if let Some(connection) = self.remove(id) {
                    icmp::unreachable_flow(
                        wire,
                        connection.guest,
                        connection.remote,
                        connection.reset_numbers().1.wrapping_sub(1),
                        code,
                    );
                }
            }
        }
    }

    /// A connection's socket is ready for something.
    pub(super) fn event(&mut self, wire: &mut Wire, hooks: &Hooks, id: u32) {
        if let Some(connection) = self.connections.get_mut(&id) {
            let verdict = connection.event();
            self.settle(wire, hooks, id, verdict);
        }
    }

    /// Deadlines that have passed; returns the next one.
    pub(super) fn tick(&mut self, wire: &mut Wire, hooks: &Hooks, now: VmTime) -> Option<VmTime> {
        let due: Vec<u32> = self
            .connections
            .iter()
            .filter(|(_, connection)| connection.deadline.is_some_and(|at| at <= now))
            .map(|(&id, _)| id)
            .collect();
        for id in due {
            if let Some(connection) = self.connections.get_mut(&id) {
                let verdict = connection.time_out();
                self.settle(wire, hooks, id, verdict);
            }
        }
        self.connections.values().filter_map(|connection| connection.deadline).min()
    }

    /// A guest's Ethernet address is known now.
    pub(super) fn wake(&mut self, guest: Ipv4Addr) {
        let waiting: Vec<u32> = self
            .connections
            .iter()
            .filter(|(_, c)| *c.guest.ip() == guest && c.state == State::SynSent && c.wants_turn())
            .map(|(&id, _)| id)
            .collect();
        waiting.into_iter().for_each(|id| self.queue(id));
    }

    /// Whether a connection waits for its turn.
    pub(super) fn has_frames(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Gives segments to the card until there is none or it has no room; whether it was that.
    pub(super) fn emit(&mut self, wire: &mut Wire, hooks: &Hooks, sink: &mut Sink<'_>) -> bool {
        let now = hooks.now();
        while let Some(id) = self.ready.pop_front() {
            let Some(connection) = self.connections.get_mut(&id) else { continue };
            connection.queued = false;
            match connection.emit(wire, sink, now) {
                Ok(Emitted::Refused) => {
                    connection.queued = true;
                    self.ready.push_front(id);
                    return true;
                }
                Ok(emitted) => {
                    if let Some(deadline) = connection.deadline {
                        hooks.wake_at(deadline);
                    }
                    if emitted == Emitted::Share {
                        self.queue(id);
                    }
                }
                Err(verdict) => self.settle(wire, hooks, id, verdict),
            }
        }
        false
    }

    /// Lines of `info usernet`.
    pub(super) fn info(&self, lines: &mut Vec<Line>) {
        for connection in self.connections.values().rev() {
            let (to_guest, to_host) = connection.waiting();
            // A client of the host is shown by the host's end that it came to.
            let (from, to) = match connection.host_end() {
                Some(host) => (host, connection.guest),
                None => (connection.guest, connection.remote),
            };
            lines.push(Line {
                protocol: "TCP",
                state: connection.state_name().to_owned(),
                fd: connection.fd(),
                from: Some(*from.ip()),
                from_port: from.port(),
                to: *to.ip(),
                to_port: to.port(),
                receive: to_host,
                send: to_guest,
            });
        }
    }

    /// How many connections there are.
    pub(super) fn len(&self) -> usize {
        self.connections.len()
    }
}

/// Answers a segment of no connection (RFC 9293, 3.10.7.1).
fn refuse(wire: &mut Wire, segment: &Segment) {
    let (seq, ack, flags) = match segment.has(flag::ACK) {
        true => (segment.ack, 0, flag::RST),
        false => (0, segment.seq.wrapping_add(segment.span()), flag::RST | flag::ACK),
    };
    reset(wire, segment.to, segment.from, seq, ack, flags);
}

fn reset(wire: &mut Wire, from: SocketAddrV4, to: SocketAddrV4, seq: u32, ack: u32, flags: u8) {
    let mut header = [0; 20];
    header[..2].copy_from_slice(&from.port().to_be_bytes());
    header[2..4].copy_from_slice(&to.port().to_be_bytes());
    header[4..8].copy_from_slice(&seq.to_be_bytes());
    header[8..12].copy_from_slice(&ack.to_be_bytes());
    header[12..14].copy_from_slice(&[5 << 4, flags]);
    let mut sum = Checksum::default();
    sum.add_pseudo(*from.ip(), *to.ip(), protocol::TCP, header.len());
    sum.add(&header);
    header[16..18].copy_from_slice(&sum.finish().to_be_bytes());
    wire.send_ip(*from.ip(), *to.ip(), protocol::TCP, &header);
}

/// Begins a connection of the host.
fn connect(target: &Target) -> Result<(OwnedFd, Option<Child>), Errno> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = |family| rustix::net::socket_with(family, SocketType::STREAM, flags, None);
    let (socket, outcome) = match target {
        Target::Tcp(address) => {
            let socket = socket(match address {
                SocketAddr::V4(_) => AddressFamily::INET,
                SocketAddr::V6(_) => AddressFamily::INET6,
            })?;
            rustix::net::sockopt::set_tcp_nodelay(&socket, true)?;
            let outcome = rustix::net::connect(&socket, address);
            (socket, outcome)
        }
        Target::Unix(path) => {
            let socket = socket(AddressFamily::UNIX)?;
            let outcome = rustix::net::connect(&socket, &SocketAddrUnix::new(path.as_path())?);
            (socket, outcome)
        }
        Target::Command(command) => {
            let (ours, theirs) =
                rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            rustix::io::ioctl_fionbio(&theirs, false)?;
            let input = theirs.try_clone().map_err(|_| Errno::MFILE)?;
            let child = Command::new("/bin/sh")
                .args(["-c", command])
                .stdin(Stdio::from(input))
                .stdout(Stdio::from(theirs))
                .process_group(0)
                .spawn()
                .map_err(|_| Errno::CONNREFUSED)?;
            return Ok((ours, Some(child)));
        }
    };
    match outcome {
        Ok(()) | Err(Errno::INPROGRESS) => Ok((socket, None)),
        Err(e) => Err(e),
    }
}

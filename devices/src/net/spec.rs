//! What the user asks of a network backend, understood.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::RawFd;
use std::path::PathBuf;

/// A backend to be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetdevSpec {
    /// Its name.
    pub id: String,
    /// What it is.
    pub kind: NetdevKind,
}

/// What a backend is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetdevKind {
    /// A network of the host's user: `user`.
    User(UserConfig),
    /// A network interface of the host: `tap`.
    Tap(TapConfig),
    /// Frames on a stream socket: `socket`, `stream`.
    Stream {
        /// `socket` or `stream`.
        name: &'static str,
        /// The other end.
        address: StreamAddress,
        /// Who waits for whom.
        role: StreamRole,
    },
}

/// The place of a stream socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamAddress {
    /// A unix socket's path.
    Unix(PathBuf),
    /// A host, or none for all of this host's addresses, and a port.
    Inet(String, u16),
    /// A connected socket that the program inherits.
    Fd(RawFd),
}

/// Who waits for whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamRole {
    /// Connects.
    Client {
        /// Seconds after which a lost connection is made again; 0: never.
        reconnect: u32,
    },
    /// Listens, and takes one client at a time.
    Server,
}

/// A tap interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TapConfig {
    /// The interface's name; one that the kernel chooses if there is none.
    pub ifname: Option<String>,
    /// The program that sets the interface up.
    pub script: Option<PathBuf>,
    /// The program that takes it down.
    pub downscript: Option<PathBuf>,
    /// Inherited fds of the interface, one a queue, in place of all of the above.
    pub fds: Vec<RawFd>,
    /// Queue pairs; 1 if it is 0.
    pub queues: u16,
    /// Bytes that may wait in the interface on their way to the host; 0: no limit.
    pub sndbuf: u32,
    /// Partial checksums and large frames are possible (IFF_VNET_HDR).
    pub vnet_hdr: bool,
    /// The kernel does the work.
    pub vhost: bool,
    /// Inherited fds of /dev/vhost-net.
    pub vhost_fds: Vec<RawFd>,
}

/// TCP or UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// In lower case, as it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// A port of the host that leads to one of the guest: `hostfwd=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Where the host listens.
    pub host: SocketAddr,
    /// Where it leads; the first address that DHCP gives out if it is unspecified.
    pub guest: Ipv4Addr,
    /// The guest's port.
    pub guest_port: u16,
}

/// An address and port of the guest's network that leads to the host: `guestfwd=`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestForward {
    /// The address in the guest's network.
    pub server: Ipv4Addr,
    /// Its TCP port.
    pub port: u16,
    /// Where it leads.
    pub target: Target,
}

/// Where the guest's connection leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A TCP port.
    Tcp(SocketAddr),
    /// A unix socket.
    Unix(PathBuf),
    /// A shell command, whose standard input and output it becomes, for each connection anew.
    Command(String),
}

/// A network of the host's user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserConfig {
    /// The network.
    pub net: Ipv4Addr,
    /// Bits of the network's part of an address, 8 to 29.
    pub prefix: u8,
    /// The gateway, which is the host.
    pub host: Ipv4Addr,
    /// The name server.
    pub dns: Ipv4Addr,
    /// The first of the addresses that DHCP gives out.
    pub dhcp_start: Ipv4Addr,
    /// The guest reaches the host's forwards only.
    pub restrict: bool,
    /// The name that DHCP gives the guest.
    pub hostname: Option<String>,
    /// The domain's name, by DHCP.
    pub domain: Option<String>,
    /// Where names are looked for, by DHCP.
    pub search: Vec<String>,
    /// The host's name server; that of /etc/resolv.conf if there is none.
    pub resolver: Option<IpAddr>,
    /// Ports of the host that lead to the guest.
    pub forwards: Vec<Forward>,
    /// Addresses that lead to the host.
    pub guest_forwards: Vec<GuestForward>,
}

impl Default for UserConfig {
    fn default() -> Self {
        Self::on(Ipv4Addr::new(10, 0, 2, 0), 24)
    }
}

impl UserConfig {
    /// The network `net/prefix` with the usual hosts: gateway 2, name server 3, guests from 15 on.
    pub fn on(net: Ipv4Addr, prefix: u8) -> Self {
        let net = net.to_bits() & Self::mask_of(prefix);
        let host = |number: u32| Ipv4Addr::from_bits(net | number);
        Self {
            net: host(0),
            prefix,
            host: host(2),
            dns: host(3),
            dhcp_start: host(if prefix <= 27 { 15 } else { 4 }),
            restrict: false,
            hostname: None,
            domain: None,
            search: Vec::new(),
            resolver: None,
            forwards: Vec::new(),
            guest_forwards: Vec::new(),
        }
    }

    fn mask_of(prefix: u8) -> u32 {
        u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0)
    }

    /// The network mask.
    pub fn mask(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(Self::mask_of(self.prefix))
    }

    /// Whether `address` belongs to the network.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        address.to_bits() & Self::mask_of(self.prefix) == self.net.to_bits()
    }

    /// The network's broadcast address.
    pub fn broadcast(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.net.to_bits() | !Self::mask_of(self.prefix))
    }
}

//! What `info usernet` shows.

use std::net::Ipv4Addr;

/// A connection or a forwarded port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// `TCP`, `UDP`, `ICMP`.
    pub protocol: &'static str,
    /// `ESTABLISHED`, `HOST_FORWARD`, `42 sec`.
    pub state: String,
    /// The host's socket.
    pub fd: i32,
    /// Who began; none for all addresses of the host.
    pub from: Option<Ipv4Addr>,
    /// Its port.
    pub from_port: u16,
    /// The other end.
    pub to: Ipv4Addr,
    /// Its port.
    pub to_port: u16,
    /// Bytes that wait for the host.
    pub receive: usize,
    /// Bytes that wait for the guest.
    pub send: usize,
}

//! The DHCP server (RFC 2131, options of RFC 2132): each guest has the same address for ever.

use std::net::{Ipv4Addr, SocketAddrV4};

use super::packet::{Datagram, protocol};
use super::wire::Wire;
use crate::net::frame::MacAddress;

pub(super) const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;

/// Guests that get an address.
const MAX_LEASES: usize = 16;
/// Seconds of a lease: a day.
const LEASE: u32 = 86_400;

const BOOTREQUEST: u8 = 1;
const BOOTREPLY: u8 = 2;
/// Bytes in front of the options, the cookie included.
const FIXED: usize = 240;
const COOKIE: [u8; 4] = [99, 130, 83, 99];

/// Message types (RFC 2132, 9.6).
mod message {
    pub(super) const DISCOVER: u8 = 1;
    pub(super) const OFFER: u8 = 2;
    pub(super) const REQUEST: u8 = 3;
    pub(super) const ACK: u8 = 5;
    pub(super) const NAK: u8 = 6;
    pub(super) const INFORM: u8 = 8;
}

/// Options (RFC 2132, RFC 3397).
mod option {
    pub(super) const PAD: u8 = 0;
    pub(super) const SUBNET_MASK: u8 = 1;
    pub(super) const ROUTER: u8 = 3;
    pub(super) const DNS: u8 = 6;
    pub(super) const HOST_NAME: u8 = 12;
    pub(super) const DOMAIN: u8 = 15;
    pub(super) const REQUESTED_ADDRESS: u8 = 50;
    pub(super) const LEASE_TIME: u8 = 51;
    pub(super) const MESSAGE_TYPE: u8 = 53;
    pub(super) const SERVER_ID: u8 = 54;
    pub(super) const MESSAGE: u8 = 56;
    pub(super) const DOMAIN_SEARCH: u8 = 119;
    pub(super) const END: u8 = 255;
}

/// Who has which address: the place is the address's number.
#[derive(Default)]
pub(super) struct Dhcp {
    leases: Vec<MacAddress>,
}

/// The options of a message that matter.
#[derive(Default)]
struct Options {
    kind: Option<u8>,
    requested: Option<Ipv4Addr>,
    server: Option<Ipv4Addr>,
}

impl Options {
    fn parse(mut bytes: &[u8]) -> Self {
        let mut options = Self::default();
        while let Some((&code, rest)) = bytes.split_first() {
            bytes = rest;
            match code {
                option::PAD => continue,
                option::END => break,
                _ => {}
            }
            let Some((&len, rest)) = bytes.split_first() else { break };
            let Some((value, rest)) = rest.split_at_checked(len.into()) else { break };
            bytes = rest;
            let address = <[u8; 4]>::try_from(value).ok().map(Ipv4Addr::from);
            match code {
                option::MESSAGE_TYPE => options.kind = value.first().copied(),
                option::REQUESTED_ADDRESS => options.requested = address,
                option::SERVER_ID => options.server = address,
                _ => {}
            }
        }
        options
    }
}

impl Dhcp {
    /// The address for a guest; the one who has none yet gets the next. `None`: all are taken.
    fn lease(&mut self, wire: &Wire, mac: MacAddress) -> Option<Ipv4Addr> {
        let index = match self.leases.iter().position(|&known| known == mac) {
            Some(index) => index,
            None if self.leases.len() < MAX_LEASES => {
                self.leases.push(mac);
                self.leases.len() - 1
            }
            None => return None,
        };
        let address = Ipv4Addr::from_bits(wire.config.dhcp_start.to_bits() + index as u32);
        let free = wire.config.contains(address) && address != wire.config.broadcast();
        (free && !wire.is_ours(address)).then_some(address)
    }

    /// A message of a guest to the server's port.
    pub(super) fn request(&mut self, wire: &mut Wire, message: &[u8]) {
        let sound = message.len() >= FIXED
            && message[0] == BOOTREQUEST
            && message[1..3] == [1, 6]
            && message[FIXED - 4..FIXED] == COOKIE;
        if !sound {
            return;
        }
        let options = Options::parse(&message[FIXED..]);
        let mut mac = MacAddress::default();
        mac.0.copy_from_slice(&message[28..34]);
        if mac.is_multicast() {
            return;
        }
        if options.server.is_some_and(|server| server != wire.config.host) {
            // It has chosen another server.
            return;
        }
        let Some(address) = self.lease(wire, mac) else { return };
        let client = Ipv4Addr::new(message[12], message[13], message[14], message[15]);
        let reply = match options.kind {
            Some(message::DISCOVER) => message::OFFER,
            Some(message::REQUEST) => {
                let wanted = options.requested.unwrap_or(client);
                if wanted == address { message::ACK } else { message::NAK }
            }
            Some(message::INFORM) => message::ACK,
            _ => return,
        };
        let inform = options.kind == Some(message::INFORM);
        let mut answer = vec![0; FIXED];
        answer[0] = BOOTREPLY;
        // Kinds of addresses, and the request's number, flags and Ethernet address.
        answer[1..3].copy_from_slice(&message[1..3]);
        answer[4..8].copy_from_slice(&message[4..8]);
        answer[10..12].copy_from_slice(&message[10..12]);
        answer[28..44].copy_from_slice(&message[28..44]);
        answer[FIXED - 4..].copy_from_slice(&COOKIE);
        if inform {
            answer[12..16].copy_from_slice(&client.octets());
        }
        let mut put = |code: u8, value: &[u8]| {
            if !value.is_empty() && value.len() < 256 {
                answer.extend([code, value.len() as u8]);
                answer.extend(value);
            }
        };
        let config = &wire.config;
        put(option::MESSAGE_TYPE, &[reply]);
        put(option::SERVER_ID, &config.host.octets());
        if reply == message::NAK {
            put(option::MESSAGE, b"requested address not available");
        } else {
            put(option::SUBNET_MASK, &config.mask().octets());
            if !config.restrict {
                put(option::ROUTER, &config.host.octets());
                put(option::DNS, &config.dns.octets());
            }
            if !inform {
                put(option::LEASE_TIME, &LEASE.to_be_bytes());
            }
            put(option::HOST_NAME, config.hostname.as_deref().unwrap_or_default().as_bytes());
            put(option::DOMAIN, config.domain.as_deref().unwrap_or_default().as_bytes());
            put(option::DOMAIN_SEARCH, &search_list(&config.search));
        }
        answer.push(option::END);
        if reply != message::NAK && !inform {
            answer[16..20].copy_from_slice(&address.octets());
        }
        // A BOOTP relay would expect 300 bytes at least (RFC 1542, 2.1).
        answer.resize(answer.len().max(300), 0);
        if reply == message::ACK {
            wire.learn(if inform { client } else { address }, mac);
        }
        let host = wire.config.host;
        let broadcast = message[10] & 0x80 != 0 || reply == message::NAK;
        let (mac, to) = match (broadcast, client.is_unspecified()) {
            (true, _) => (MacAddress::BROADCAST, Ipv4Addr::BROADCAST),
            (false, true) => (mac, address),
            (false, false) => (mac, client),
        };
        let datagram = Datagram {
            from: SocketAddrV4::new(host, SERVER_PORT),
            to: SocketAddrV4::new(to, CLIENT_PORT),
            payload: &answer,
        };
        wire.send_ip_to(mac, host, to, protocol::UDP, &datagram.to_bytes());
    }
}

/// Names as DNS writes them (RFC 3397, without compression), as many as fit into an option.
fn search_list(names: &[String]) -> Vec<u8> {
    let mut list = Vec::new();
    for name in names {
        let mut bytes = Vec::new();
        for label in name.split('.').filter(|label| !label.is_empty() && label.len() < 64) {
            bytes.push(label.len() as u8);
            bytes.extend(label.as_bytes());
        }
        bytes.push(0);
        if list.len() + bytes.len() > 255 {
            break;
        }
        list.extend(bytes);
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn search_lists_are_labels() {
        assert_eq!(search_list(&["a.bc".to_owned(), "d".to_owned()]), b"\x01a\x02bc\0\x01d\0");
        assert!(search_list(&[]).is_empty());
    }
}

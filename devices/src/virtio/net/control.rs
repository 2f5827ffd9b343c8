//! The control queue's commands (Virtio 1.2, 5.1.6.5).

use super::{Net, feature};
use crate::net::MacAddress;
use crate::virtio::Io;
use crate::virtio::chain::Chain;

/// The features for frames to the guest that it can switch.
pub(super) const GUEST_OFFLOADS: u64 =
    feature::GUEST_CSUM | feature::GUEST_TSO4 | feature::GUEST_TSO6 | feature::GUEST_ECN;

const OK: u8 = 0;
const ERR: u8 = 1;

/// The longest command that is looked at: two full tables of addresses, and more than a driver has.
const MAX_COMMAND: usize = 16 << 10;

/// Classes and their commands.
mod class {
    pub(super) const RX: u8 = 0;
    pub(super) const MAC: u8 = 1;
    pub(super) const VLAN: u8 = 2;
    pub(super) const ANNOUNCE: u8 = 3;
    pub(super) const MQ: u8 = 4;
    pub(super) const GUEST_OFFLOADS: u8 = 5;
}

impl Net {
    /// Serves the control queue.
    pub(super) fn control(&mut self, queue: usize, io: &mut Io<'_>) {
        io.serve(queue, |io, chain| {
            let answer = if self.command(&chain, io) { OK } else { ERR };
            let written = chain.write_at(io.ram(), 0, &[answer]);
            io.push(queue, chain, written as u32);
        });
    }

    /// Does what a command asks; false: it is none that the card knows.
    fn command(&mut self, chain: &Chain, io: &mut Io<'_>) -> bool {
        let mut bytes = vec![0; (chain.readable_len() as usize).min(MAX_COMMAND)];
        chain.read_at(io.ram(), 0, &mut bytes);
        let [class, command, data @ ..] = &bytes[..] else { return false };
        match (*class, *command) {
            (class::RX, mode) => self.set_mode(mode, data, io),
            (class::MAC, 0) => self.set_tables(data),
            (class::MAC, 1) => match data.first_chunk() {
                Some(mac) if io.has(feature::CTRL_MAC_ADDR) => {
                    self.filter.mac = MacAddress(*mac);
                    true
                }
                _ => false,
            },
            (class::VLAN, command @ 0..=1) => match data {
                [low, high, ..] if *high < 16 => {
                    self.filter.set_vlan(u16::from_le_bytes([*low, *high]), command == 0);
                    true
                }
                _ => false,
            },
            (class::ANNOUNCE, 0) => {
                self.announce = false;
                true
            }
            (class::MQ, 0) => match data {
                [low, high, ..] if io.has(feature::MQ) => {
                    let pairs = u16::from_le_bytes([*low, *high]);
                    let possible = (1..=self.pairs).contains(&pairs);
                    if possible {
                        self.pairs_used = pairs;
                        self.notifier.notify();
                    }
                    possible
                }
                _ => false,
            },
            (class::GUEST_OFFLOADS, 0) => match data.first_chunk() {
                Some(bits) if io.has(feature::CTRL_GUEST_OFFLOADS) => {
                    let wanted = u64::from_le_bytes(*bits);
                    let possible = wanted & !(io.features() & GUEST_OFFLOADS) == 0;
                    if possible {
                        self.guest_offloads = wanted;
                        self.apply_offloads();
                    }
                    possible
                }
                _ => false,
            },
            _ => false,
        }
    }

    fn set_mode(&mut self, mode: u8, data: &[u8], io: &Io<'_>) -> bool {
        let Some(on) = data.first().map(|&byte| byte != 0) else { return false };
        let modes = &mut self.filter.modes;
        let (flag, needs) = match mode {
            0 => (&mut modes.promiscuous, feature::CTRL_RX),
            1 => (&mut modes.all_multicast, feature::CTRL_RX),
            2 => (&mut modes.all_unicast, feature::CTRL_RX_EXTRA),
            3 => (&mut modes.no_multicast, feature::CTRL_RX_EXTRA),
            4 => (&mut modes.no_unicast, feature::CTRL_RX_EXTRA),
            5 => (&mut modes.no_broadcast, feature::CTRL_RX_EXTRA),
            _ => return false,
        };
        if !io.has(needs) {
            return false;
        }
        *flag = on;
        true
    }

    /// Two tables, each behind the number of its addresses.
    fn set_tables(&mut self, data: &[u8]) -> bool {
        fn table(data: &[u8]) -> Option<(Vec<MacAddress>, &[u8])> {
            let (count, rest) = data.split_first_chunk()?;
            let bytes = (u32::from_le_bytes(*count) as usize).checked_mul(6)?;
            let (table, rest) = rest.split_at_checked(bytes)?;
            let (macs, _) = table.as_chunks();
            Some((macs.iter().map(|mac| MacAddress(*mac)).collect(), rest))
        }
        let tables = table(data).and_then(|(unicast, rest)| Some((unicast, table(rest)?.0)));
        let Some((unicast, multicast)) = tables else { return false };
        self.filter.set_tables(&unicast, &multicast);
        true
    }
}

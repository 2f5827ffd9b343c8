//! Which frames the guest wants (Virtio 1.2, 5.1.6.5.1 to 5.1.6.5.3).

use std::io::IoSlice;

use serde::{Deserialize, Serialize};

use crate::net::MacAddress;

/// Addresses of each kind that are kept; with more the card takes all of that kind.
const MAX_ADDRESSES: usize = 64;
/// Words of a bit for each VLAN.
const VLAN_WORDS: usize = 4096 / 64;
/// The Ethernet type of a VLAN tag (IEEE 802.1Q).
const VLAN: [u8; 2] = [0x81, 0x00];
/// Bytes at a frame's front that matter here.
const FRONT: usize = 16;

/// The modes, as the driver sets them one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Modes {
    pub(super) promiscuous: bool,
    pub(super) all_multicast: bool,
    pub(super) all_unicast: bool,
    pub(super) no_multicast: bool,
    pub(super) no_unicast: bool,
    pub(super) no_broadcast: bool,
}

/// The filter. At first it lets everything through.
pub(super) struct Filter {
    pub(super) mac: MacAddress,
    pub(super) modes: Modes,
    unicast: Vec<MacAddress>,
    multicast: Vec<MacAddress>,
    unicast_overflow: bool,
    multicast_overflow: bool,
    vlans: Option<Box<[u64; VLAN_WORDS]>>,
}

/// The saved state.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct FilterV1 {
    modes: Modes,
    unicast: Vec<[u8; 6]>,
    multicast: Vec<[u8; 6]>,
    unicast_overflow: bool,
    multicast_overflow: bool,
    vlans: Option<Vec<u64>>,
}

impl Filter {
    pub(super) fn new(mac: MacAddress) -> Self {
        let modes = Modes {
            promiscuous: true,
            all_multicast: false,
            all_unicast: false,
            no_multicast: false,
            no_unicast: false,
            no_broadcast: false,
        };
        Self {
            mac,
            modes,
            unicast: Vec::new(),
            multicast: Vec::new(),
            unicast_overflow: false,
            multicast_overflow: false,
            vlans: None,
        }
    }

    /// Sets the addresses that pass besides the card's own.
    pub(super) fn set_tables(&mut self, unicast: &[MacAddress], multicast: &[MacAddress]) {
        let fit = |table: &[MacAddress]| match table.len() <= MAX_ADDRESSES {
            true => (table.to_vec(), false),
            false => (Vec::new(), true),
        };
        (self.unicast, self.unicast_overflow) = fit(unicast);
        (self.multicast, self.multicast_overflow) = fit(multicast);
    }

    /// Lets a VLAN through or not. Before the first such call all VLANs pass.
    pub(super) fn set_vlan(&mut self, vlan: u16, pass: bool) {
        let words = self.vlans.get_or_insert_with(|| Box::new([0; VLAN_WORDS]));
        let Some(word) = words.get_mut(usize::from(vlan / 64)) else { return };
        let bit = 1 << (vlan % 64);
        *word = if pass { *word | bit } else { *word & !bit };
    }

    /// Whether the guest wants a frame.
    pub(super) fn wants(&self, frame: &[IoSlice<'_>]) -> bool {
        let mut front = [0; FRONT];
        let mut len = 0;
        for piece in frame {
            let take = piece.len().min(FRONT - len);
            front[len..len + take].copy_from_slice(&piece[..take]);
            len += take;
            if len == FRONT {
                break;
            }
        }
        let modes = &self.modes;
        if modes.promiscuous {
            return true;
        }
        if let Some(vlans) = &self.vlans
            && front[12..14] == VLAN
        {
            let vlan = usize::from(u16::from_be_bytes([front[14], front[15]]) & 0xFFF);
            if vlans[vlan / 64] >> (vlan % 64) & 1 == 0 {
                return false;
            }
        }
        let mut to = MacAddress::default();
        to.0.copy_from_slice(&front[..6]);
        if to == MacAddress::BROADCAST {
            !modes.no_broadcast
        } else if to.is_multicast() {
            let listed = self.multicast_overflow || self.multicast.contains(&to);
            !modes.no_multicast && (modes.all_multicast || listed)
        } else {
            let listed = self.unicast_overflow || to == self.mac || self.unicast.contains(&to);
            !modes.no_unicast && (modes.all_unicast || listed)
        }
    }

    pub(super) fn save(&self) -> FilterV1 {
        let Self { mac: _, modes, unicast, multicast, unicast_overflow, multicast_overflow, vlans } =
            self;
        FilterV1 {
            modes: *modes,
            unicast: unicast.iter().map(|mac| mac.0).collect(),
            multicast: multicast.iter().map(|mac| mac.0).collect(),
            unicast_overflow: *unicast_overflow,
            multicast_overflow: *multicast_overflow,
            vlans: vlans.as_ref().map(|words| words.to_vec()),
        }
    }

    pub(super) fn restore(mac: MacAddress, state: FilterV1) -> Result<Self, String> {
        let FilterV1 { modes, unicast, multicast, unicast_overflow, multicast_overflow, vlans } =
            state;
        if unicast.len().max(multicast.len()) > MAX_ADDRESSES {
            return Err("too many addresses".to_owned());
        }
        let vlans = match vlans {
            None => None,
            Some(words) => match <[u64; VLAN_WORDS]>::try_from(words) {
                Ok(words) => Some(Box::new(words)),
                Err(words) => return Err(format!("{} words of VLANs", words.len())),
            },
        };
        Ok(Self {
            mac,
            modes,
            unicast: unicast.into_iter().map(MacAddress).collect(),
            multicast: multicast.into_iter().map(MacAddress).collect(),
            unicast_overflow,
            multicast_overflow,
            vlans,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CARD: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);
    const OTHER: MacAddress = MacAddress([2, 0, 0, 0, 0, 2]);
    const GROUP: MacAddress = MacAddress([1, 0, 0x5E, 0, 0, 1]);

    fn wants(filter: &Filter, to: MacAddress, tail: &[u8]) -> bool {
        let mut rest = vec![0; 6];
        rest.extend(tail);
        filter.wants(&[IoSlice::new(&to.0), IoSlice::new(&rest)])
    }

    #[test]
    fn modes_and_tables_decide() {
        let mut filter = Filter::new(CARD);
        assert!(wants(&filter, OTHER, &[8, 0, 0, 0]));
        filter.modes.promiscuous = false;
        let seen = |f: &Filter| {
            [CARD, OTHER, GROUP, MacAddress::BROADCAST].map(|to| wants(f, to, &[8, 0, 0, 0]))
        };
        assert_eq!(seen(&filter), [true, false, false, true]);
        filter.set_tables(&[OTHER], &[GROUP]);
        assert_eq!(seen(&filter), [true; 4]);
        filter.set_tables(&[], &[]);
        filter.modes.all_multicast = true;
        filter.modes.no_broadcast = true;
        assert_eq!(seen(&filter), [true, false, true, false]);
        filter.set_tables(&[OTHER; MAX_ADDRESSES + 1], &[]);
        assert_eq!(seen(&filter), [true, true, true, false]);
    }

    #[test]
    fn vlans_pass_until_the_driver_says_which() {
        let mut filter = Filter::new(CARD);
        filter.modes.promiscuous = false;
        let tagged = |vlan: u8| [0x81, 0, 0, vlan];
        assert!(wants(&filter, CARD, &tagged(5)));
        filter.set_vlan(7, true);
        assert!(!wants(&filter, CARD, &tagged(5)) && wants(&filter, CARD, &tagged(7)));
        assert!(wants(&filter, CARD, &[8, 0, 0, 0]));
        filter.set_vlan(7, false);
        assert!(!wants(&filter, CARD, &tagged(7)));
        let copy = Filter::restore(CARD, filter.save()).unwrap();
        assert!(!wants(&copy, CARD, &tagged(7)));
    }
}

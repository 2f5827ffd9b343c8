//! Lanes: threads that run cases side by side, each with linear addresses of its own. The native
//! side has memory at these addresses, the guest's page tables map them too.

/// First address of the first lane.
pub(crate) const BASE: u64 = 0x1000_0000;
/// From one lane to the next.
pub(crate) const STRIDE: u64 = 0x0400_0000;
/// Data pages: writable, then read-only.
pub(crate) const RW_PAGES: u64 = 2;
pub(crate) const RO_PAGES: u64 = 1;
/// Bytes before and behind the data pages where nothing is mapped on either side.
pub(crate) const HOLE: u64 = 0x10_0000;

/// A lane, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lane(pub(crate) u64);

impl Lane {
    /// As many as there are addresses below 2 GiB for.
    pub(crate) const MAX: u64 = 24;

    /// Two pages of code; only the second half of the first one and the second are the cases'.
    pub(crate) fn code(self) -> u64 {
        BASE + self.0 * STRIDE
    }

    /// Where instructions are put as a rule.
    pub(crate) fn slot(self) -> u64 {
        self.code() + 0x800
    }

    /// Where branches lead.
    pub(crate) fn target(self) -> u64 {
        self.code() + 0x840
    }

    /// The data pages.
    pub(crate) fn data(self) -> u64 {
        self.code() + 0x0100_0000
    }

    /// The end of the data pages.
    pub(crate) fn data_end(self) -> u64 {
        self.data() + 0x1000 * (RW_PAGES + RO_PAGES)
    }

    /// State of the native side, and its signal stack.
    pub(crate) fn context(self) -> u64 {
        self.code() + 0x0200_0000
    }

    /// Whether an access at `address` stays away from all memory that is not the lane's data.
    pub(crate) fn harmless(self, address: u64) -> bool {
        let canonical = (address as i64) << 16 >> 16 == address as i64;
        let room = self.data() - HOLE + 0x8000..self.data_end() + HOLE - 0x8000;
        room.contains(&address)
            || !canonical && (0x8000_0001_0000..0xFFFF_7FFF_FFFE_0000).contains(&address)
    }
}

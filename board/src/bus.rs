//! An address space of devices: the port space and the MMIO space are two of these.
//!
//! An access looks its address up, lets the map go, and only then locks the one device that it
//! hits. A handler that (by way of the machine) changes the map therefore never waits for itself,
//! and a slow device never keeps other vCPUs from the rest of the map.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::sync::{Arc, PoisonError, RwLock};

use crate::device::{Region, Slot};

/// The widest access that a region takes whole; wider ones arrive as several, lowest byte first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Width {
    /// One byte: the chips of the ISA bus.
    Byte = 1,
    /// Two bytes.
    Word = 2,
    /// Four bytes.
    Dword = 4,
    /// Eight bytes.
    Qword = 8,
}

/// A range behind which another bus lies, such as the configuration space of PCI. It is called with
/// no lock held, since it locks devices of its own choice.
pub trait Bridge: Send + Sync {
    /// The name that the monitor shows.
    fn name(&self) -> &str;
    /// As [`crate::Device::read`].
    fn read(&self, region: Region, offset: u64, data: &mut [u8]);
    /// As [`crate::Device::write`].
    fn write(&self, region: Region, offset: u64, data: &[u8]);
}

/// What answers at a mapped range.
#[derive(Clone)]
pub enum Target {
    /// A device.
    Device(Arc<Slot>),
    /// Another bus.
    Bridge(Arc<dyn Bridge>),
}

impl Target {
    /// The name that the monitor shows.
    pub fn name(&self) -> &str {
        match self {
            Self::Device(slot) => slot.name(),
            Self::Bridge(bridge) => bridge.name(),
        }
    }

    fn read(&self, region: Region, offset: u64, data: &mut [u8]) {
        match self {
            Self::Device(slot) => slot.lock().read(region, offset, data),
            Self::Bridge(bridge) => bridge.read(region, offset, data),
        }
    }

    fn write(&self, region: Region, offset: u64, data: &[u8]) {
        match self {
            Self::Device(slot) => slot.lock().write(region, offset, data),
            Self::Bridge(bridge) => bridge.write(region, offset, data),
        }
    }
}

/// One mapped range.
#[derive(Clone)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// Last address.
    pub end: u64,
    /// The device, or the bus behind it.
    pub target: Target,
    /// Which of its regions.
    pub region: Region,
    /// The widest access passed on whole.
    pub width: Width,
}

/// A range that cannot be mapped because another one is there.
#[derive(Debug, thiserror::Error)]
#[error(
    "{wanted} needs {start:#x}-{end:#x}, where {holder} already is: give one of them another address"
)]
pub struct Overlap {
    wanted: String,
    holder: String,
    start: u64,
    end: u64,
}

/// An access, or the part of one, that no device claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unclaimed<'a> {
    /// A read of so many bytes.
    Read(usize),
    /// A write of these bytes.
    Write(&'a [u8]),
}

type Witness = Box<dyn Fn(u64, Unclaimed) + Send + Sync>;

/// A map from addresses to devices.
#[derive(Default)]
pub struct Bus {
    /// Keyed by first address.
    map: RwLock<BTreeMap<u64, Mapping>>,
    /// Is told of accesses that no device claims.
    witness: Option<Witness>,
}

impl Bus {
    /// An empty address space: reads give all-ones, writes vanish.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same, with a witness of the accesses that no device claims. It is called with their
    /// first address, on the thread that makes the access, with no lock held.
    pub fn with_witness(witness: impl Fn(u64, Unclaimed) + Send + Sync + 'static) -> Self {
        Self { map: RwLock::default(), witness: Some(Box::new(witness)) }
    }

    /// Maps `range` to a region of a device.
    ///
    /// # Errors
    /// [`Overlap`] if any of its addresses is taken.
    pub fn map(
        &self,
        range: RangeInclusive<u64>,
        slot: &Arc<Slot>,
        region: Region,
        width: Width,
    ) -> Result<(), Overlap> {
        self.map_target(range, Target::Device(slot.clone()), region, width)
    }

    /// Maps `range` to another bus.
    ///
    /// # Errors
    /// [`Overlap`] if any of its addresses is taken.
    pub fn map_bridge(
        &self,
        range: RangeInclusive<u64>,
        bridge: Arc<dyn Bridge>,
        region: Region,
        width: Width,
    ) -> Result<(), Overlap> {
        self.map_target(range, Target::Bridge(bridge), region, width)
    }

    fn map_target(
        &self,
        range: RangeInclusive<u64>,
        target: Target,
        region: Region,
        width: Width,
    ) -> Result<(), Overlap> {
        let (start, end) = range.into_inner();
        let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, other)) = map.range(..=end).next_back()
            && other.end >= start
        {
            return Err(Overlap {
                wanted: target.name().to_owned(),
                holder: other.target.name().to_owned(),
                start,
                end,
            });
        }
        map.insert(start, Mapping { start, end, target, region, width });
        Ok(())
    }

    /// Removes the mapping that starts at `start` and returns it.
    pub fn unmap(&self, start: u64) -> Option<Mapping> {
        self.map.write().unwrap_or_else(PoisonError::into_inner).remove(&start)
    }

    /// All mappings in the order of their addresses, for `info mtree`.
    pub fn mappings(&self) -> Vec<Mapping> {
        self.map.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// The mapping at `address`, if any, and the last address of it or else of the gap.
    fn find(&self, address: u64) -> (Option<Mapping>, u64) {
        let map = self.map.read().unwrap_or_else(PoisonError::into_inner);
        match map.range(..=address).next_back() {
            Some((_, mapping)) if address <= mapping.end => (Some(mapping.clone()), mapping.end),
            _ => {
                let next = map.range(address..).next();
                (None, next.map_or(u64::MAX, |(start, _)| start - 1))
            }
        }
    }

    /// Reads `data.len()` bytes at `address`; bytes that no device claims are 0xFF.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        self.pieces(address, data.len(), |piece, mapping| {
            let data = &mut data[piece.from..piece.to];
            match mapping {
                Some(m) => m.target.read(m.region, piece.address - m.start, data),
                None => {
                    data.fill(0xFF);
                    self.tell(piece.address, Unclaimed::Read(data.len()));
                }
            }
        });
    }

    /// Writes `data` at `address`; bytes that no device claims vanish.
    pub fn write(&self, address: u64, data: &[u8]) {
        self.pieces(address, data.len(), |piece, mapping| {
            let data = &data[piece.from..piece.to];
            match mapping {
                Some(m) => m.target.write(m.region, piece.address - m.start, data),
                None => self.tell(piece.address, Unclaimed::Write(data)),
            }
        });
    }

    fn tell(&self, address: u64, access: Unclaimed) {
        if let Some(witness) = &self.witness {
            witness(address, access);
        }
    }

    /// Cuts an access at the ends of regions and at the width that each takes.
    fn pieces(&self, address: u64, len: usize, mut access: impl FnMut(Piece, Option<Mapping>)) {
        let mut from = 0;
        while from < len {
            let address = address.wrapping_add(from as u64);
            let (mapping, last) = self.find(address);
            let room = usize::try_from(last - address).unwrap_or(usize::MAX).saturating_add(1);
            let whole = room.min(len - from);
            let fits = match &mapping {
                None => whole,
                // Devices see 1, 2, 4 or 8 bytes.
                Some(m) => 1 << whole.min(m.width as usize).ilog2(),
            };
            access(Piece { address, from, to: from + fits }, mapping);
            from += fits;
        }
    }
}

/// A part of an access: bytes `from..to` of the data, which lie at `address`.
struct Piece {
    address: u64,
    from: usize,
    to: usize,
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.mappings().iter().map(|m| (m.start, m.end, m.target.name().to_owned())))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::device::Device;
    use crate::event::EventLoop;

    type Log = Arc<Mutex<Vec<(u16, u64, Vec<u8>)>>>;

    /// Reads give the low byte of the offset; writes are logged.
    struct Recorder(Log);

    impl Device for Recorder {
        fn read(&mut self, _region: Region, offset: u64, data: &mut [u8]) {
            for (i, byte) in data.iter_mut().enumerate() {
                *byte = offset as u8 + i as u8;
            }
        }
        fn write(&mut self, region: Region, offset: u64, data: &[u8]) {
            self.0.lock().unwrap().push((region.0, offset, data.to_vec()));
        }
        fn reset(&mut self) {}
    }

    fn recorder() -> (Arc<Slot>, Log) {
        let log = Log::default();
        let events = EventLoop::new(crate::Clock::stopped()).unwrap();
        (Slot::plug("recorder", &events.handle(), |_| Recorder(log.clone())), log)
    }

    #[test]
    fn wide_accesses_are_cut_to_the_width_of_the_region() {
        let bus = Bus::new();
        let (slot, log) = recorder();
        bus.map(0x10..=0x17, &slot, Region(3), Width::Byte).unwrap();
        bus.map(0x20..=0x27, &slot, Region(4), Width::Dword).unwrap();
        bus.write(0x11, &[1, 2]);
        bus.write(0x20, &[1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(
            *log.lock().unwrap(),
            [(3, 1, vec![1]), (3, 2, vec![2]), (4, 0, vec![1, 2, 3, 4]), (4, 4, vec![5, 6, 7, 8])]
        );
    }

    #[test]
    fn bytes_outside_every_region_read_as_ones() {
        let bus = Bus::new();
        let (slot, log) = recorder();
        bus.map(0x10..=0x12, &slot, Region(0), Width::Dword).unwrap();
        let mut data = [0; 8];
        bus.read(0x0F, &mut data);
        assert_eq!(data, [0xFF, 0, 1, 2, 0xFF, 0xFF, 0xFF, 0xFF]);
        bus.write(0x13, &[9]);
        assert!(log.lock().unwrap().is_empty());
        bus.read(u64::MAX, &mut data);
        assert_eq!(data[0], 0xFF);
    }

    #[test]
    fn a_witness_is_told_of_what_nobody_claims() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let log = told.clone();
        let bus = Bus::with_witness(move |address, access| {
            log.lock().unwrap().push(format!("{address:#x} {access:?}"));
        });
        let (slot, _) = recorder();
        bus.map(0x10..=0x11, &slot, Region(0), Width::Word).unwrap();
        bus.write(0x10, &[1, 2]);
        bus.read(0x0E, &mut [0; 8]);
        bus.write(0x11, &[3, 4]);
        bus.read(u64::MAX, &mut [0; 2]);
        assert_eq!(
            *told.lock().unwrap(),
            [
                "0xe Read(2)",
                "0x12 Read(4)",
                "0x12 Write([4])",
                "0xffffffffffffffff Read(1)",
                "0x0 Read(1)"
            ]
        );
    }

    #[test]
    fn an_overlap_is_refused_and_names_both() {
        let bus = Bus::new();
        let (slot, _) = recorder();
        bus.map(0x100..=0x1FF, &slot, Region(0), Width::Byte).unwrap();
        for range in [0x0..=0x100, 0x150..=0x160, 0x1FF..=0x300, 0x0..=0x1000] {
            let error = bus.map(range, &slot, Region(0), Width::Byte).unwrap_err();
            assert!(error.to_string().contains("recorder already is"));
        }
        bus.map(0x200..=0x2FF, &slot, Region(0), Width::Byte).unwrap();
        assert!(bus.unmap(0x100).is_some());
        bus.map(0x100..=0x1FF, &slot, Region(0), Width::Byte).unwrap();
    }
}

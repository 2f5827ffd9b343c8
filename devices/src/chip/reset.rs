//! The two other ways by which software resets a PC.
//!
//! Port 0x92 is the PS/2's system control port A (IBM PS/2 Hardware Interface Technical Reference):
//! bit 0 going high resets the CPU, bit 1 is the A20 gate. Port 0xCF9 is the reset control register
//! of Intel's chipsets (82371SB data sheet, 3.6; ICH9 data sheet, 13.7.5): bit 2 going high resets
//! the machine, softly or, with bit 1, hard; bit 3 asks for a power cycle. All of them are one
//! reset here.

use std::sync::Arc;

use board::device::Region;
use board::state::ErasedSnapshot;
use board::system::{A20Gate, SystemControl, SystemRequest};
use board::{Device, Snapshot, StateError};
use serde::{Deserialize, Serialize};

const FAST_RESET: u8 = 1 << 0;
const A20: u8 = 1 << 1;

/// Port 0x92, one byte.
pub struct Port92 {
    fast_reset: bool,
    a20: A20Gate,
    system: Arc<dyn SystemControl>,
}

impl Port92 {
    /// A port that drives `a20` and resets `system`.
    pub fn new(a20: A20Gate, system: Arc<dyn SystemControl>) -> Self {
        Self { fast_reset: false, a20, system }
    }
}

impl Device for Port92 {
    fn read(&mut self, _region: Region, _offset: u64, data: &mut [u8]) {
        let a20 = if self.a20.is_open() { A20 } else { 0 };
        data.fill(a20 | u8::from(self.fast_reset));
    }

    fn write(&mut self, _region: Region, _offset: u64, data: &[u8]) {
        for &value in data {
            self.a20.set(value & A20 != 0);
            let rises = value & FAST_RESET != 0 && !self.fast_reset;
            self.fast_reset = value & FAST_RESET != 0;
            if rises {
                self.system.request(SystemRequest::Reset);
            }
        }
    }

    fn reset(&mut self) {
        self.fast_reset = false;
        self.a20.set(true);
    }

    fn snapshot(&mut self) -> Option<&mut dyn ErasedSnapshot> {
        Some(self)
    }
}

/// The saved state of port 0x92.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port92V1 {
    fast_reset: bool,
    a20: bool,
}

impl Snapshot for Port92 {
    const KIND: &'static str = "port92";
    const VERSION: u32 = 1;
    type State = Port92V1;

    fn save(&self) -> Port92V1 {
        let Self { fast_reset, a20, system: _ } = self;
        Port92V1 { fast_reset: *fast_reset, a20: a20.is_open() }
    }

    fn restore(&mut self, state: Port92V1) -> Result<(), StateError> {
        let Port92V1 { fast_reset, a20 } = state;
        self.fast_reset = fast_reset;
        self.a20.set(a20);
        Ok(())
    }
}

const RESET_CPU: u8 = 1 << 2;
/// The kind of reset: what is read back.
const KINDS: u8 = 1 << 1 | 1 << 3;

/// The register at port 0xCF9, for whoever owns the ports round it.
///
/// A dword at 0xCF8 is the address register of PCI configuration; only a byte access at 0xCF9 is
/// this register. As long as no host bridge owns 0xCF8 to 0xCFF and hands such bytes on, the glue
/// ([`ResetPort`]) stands in for it there.
pub struct ResetControl {
    value: u8,
    system: Arc<dyn SystemControl>,
}

impl ResetControl {
    /// A register that resets `system`.
    pub fn new(system: Arc<dyn SystemControl>) -> Self {
        Self { value: 0, system }
    }

    /// Reads the register.
    pub fn read(&self) -> u8 {
        self.value
    }

    /// Writes the register.
    pub fn write(&mut self, value: u8) {
        self.value = value & KINDS;
        // A reset clears bit 2, so each write that sets it is a rise.
        if value & RESET_CPU != 0 {
            self.system.request(SystemRequest::Reset);
        }
    }

    /// The state after power-on.
    pub fn reset(&mut self) {
        self.value = 0;
    }
}

/// [`ResetControl`] as the only device at 0xCF8 to 0xCFB.
///
/// It is to be mapped over these four ports with dword width, so that a dword at 0xCF8 comes whole
/// and is seen to be none of its business.
pub struct ResetPort(ResetControl);

impl ResetPort {
    /// Where 0xCF9 lies in the region.
    const REGISTER: u64 = 1;

    /// A port that resets `system`.
    pub fn new(system: Arc<dyn SystemControl>) -> Self {
        Self(ResetControl::new(system))
    }
}

impl Device for ResetPort {
    fn read(&mut self, _region: Region, offset: u64, data: &mut [u8]) {
        match data {
            [byte] if offset == Self::REGISTER => *byte = self.0.read(),
            _ => data.fill(0xFF),
        }
    }

    fn write(&mut self, _region: Region, offset: u64, data: &[u8]) {
        if let [value] = *data
            && offset == Self::REGISTER
        {
            self.0.write(value);
        }
    }

    fn reset(&mut self) {
        self.0.reset();
    }

    fn snapshot(&mut self) -> Option<&mut dyn ErasedSnapshot> {
        Some(&mut self.0)
    }
}

/// The saved state of the reset control register.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResetControlV1 {
    value: u8,
}

impl Snapshot for ResetControl {
    const KIND: &'static str = "reset-control";
    const VERSION: u32 = 1;
    type State = ResetControlV1;

    fn save(&self) -> ResetControlV1 {
        let Self { value, system: _ } = self;
        ResetControlV1 { value: *value }
    }

    fn restore(&mut self, state: ResetControlV1) -> Result<(), StateError> {
        let ResetControlV1 { value } = state;
        self.value = value & KINDS;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use board::{Bus, Width};

    use super::super::testing::{Bench, Requests};
    use super::*;

    const R: Region = Region(0);

    #[test]
    fn port_92_resets_on_a_rise_and_gates_a20() {
        let (a20, requests) = (A20Gate::open(), Arc::new(Requests::default()));
        let bench = Bench::plug(|_| Port92::new(a20.clone(), requests.clone()));
        assert_eq!(bench.read(R, 0), 0x02);
        bench.write(R, 0, 0x00);
        assert_eq!((a20.is_open(), bench.read(R, 0)), (false, 0x00));
        bench.write(R, 0, 0xFE);
        assert_eq!((a20.is_open(), requests.take()), (true, vec![]));
        bench.write(R, 0, 0x01);
        bench.write(R, 0, 0x03);
        assert_eq!((bench.read(R, 0), requests.take()), (0x03, vec![SystemRequest::Reset]));
        let (other_a20, system) = (A20Gate::open(), Arc::new(Requests::default()));
        a20.set(false);
        let other = Bench::plug(|_| Port92::new(other_a20.clone(), system));
        bench.copy_to(&other);
        assert_eq!((other_a20.is_open(), other.read(R, 0)), (false, 0x01));
        bench.slot.lock().reset();
        assert_eq!((a20.is_open(), bench.read(R, 0)), (true, 0x02));
    }

    #[test]
    fn only_a_byte_at_cf9_is_the_reset_control_register() {
        let requests = Arc::new(Requests::default());
        let bench = Bench::plug(|_| ResetPort::new(requests.clone()));
        let bus = Bus::new();
        bus.map(0xCF8..=0xCFB, &bench.slot, R, Width::Dword).unwrap();
        bus.write(0xCF8, &[0x06, 0x06, 0x06, 0x80]);
        bus.write(0xCF8, &[0x06, 0x06]);
        bus.write(0xCF9, &[0x06, 0x06]);
        bus.write(0xCF8, &[0x06]);
        bus.write(0xCFA, &[0x06]);
        assert_eq!(requests.take(), []);
        let mut data = [0; 4];
        bus.read(0xCF8, &mut data);
        assert_eq!(data, [0xFF; 4]);

        // How Linux reboots by it: the kind first, then the reset.
        bus.write(0xCF9, &[0x02]);
        assert_eq!((requests.take(), bench.read(R, 1)), (vec![], 0x02));
        bus.write(0xCF9, &[0x06]);
        assert_eq!(requests.take(), [SystemRequest::Reset]);
        bus.write(0xCF9, &[0x0E]);
        assert_eq!((requests.take(), bench.read(R, 1)), (vec![SystemRequest::Reset], 0x0A));

        let other = Bench::plug(|_| ResetPort::new(requests.clone()));
        bench.copy_to(&other);
        assert_eq!((other.read(R, 1), requests.take()), (0x0A, vec![]));
        bench.slot.lock().reset();
        assert_eq!(bench.read(R, 1), 0);
    }
}

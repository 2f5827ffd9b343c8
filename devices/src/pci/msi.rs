//! The MSI capability with 64-bit addresses and per-vector masking (PCI 3.0, 6.8.1).
//!
//! | offset | register |
//! |---|---|
//! | 0x02 | Message Control |
//! | 0x04 | Message Address, 64 bits |
//! | 0x0C | Message Data |
//! | 0x10 | Mask Bits |
//! | 0x14 | Pending Bits |
//!
//! The registers stand behind a lock of their own, a leaf, so that whoever completes a request can
//! send its message from any thread.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use board::irq::{Msi as Message, MsiSink};
use board::state::StateError;
use serde::{Deserialize, Serialize};

/// The capability's ID.
pub const ID: u8 = 0x05;
/// Bytes of the capability after its ID and pointer.
pub(super) const BODY: usize = 22;

const ENABLE: u16 = 1 << 0;
const CAPABLE_SHIFT: u32 = 1;
const ENABLED_SHIFT: u32 = 4;
const ENABLED_MASK: u16 = 7 << ENABLED_SHIFT;
const WIDE: u16 = 1 << 7;
const MASKABLE: u16 = 1 << 8;

/// Offsets into the body.
const CONTROL: usize = 0;
const ADDRESS: usize = 2;
const DATA: usize = 10;
const MASK: usize = 14;
const PENDING: usize = 18;

/// The registers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsiV1 {
    control: u16,
    address: u64,
    data: u16,
    mask: u32,
    pending: u32,
}

struct State {
    registers: MsiV1,
    bus_master: bool,
}

/// MSI of one function.
pub struct Msi {
    state: Mutex<State>,
    /// Vectors: a power of two up to 32.
    vectors: u8,
    sink: Arc<dyn MsiSink>,
}

impl Msi {
    /// `vectors`, which is rounded up to a power of two of at most 32.
    pub fn new(vectors: u8, sink: Arc<dyn MsiSink>) -> Arc<Self> {
        let vectors = vectors.clamp(1, 32).next_power_of_two();
        let registers = MsiV1 { control: Self::fixed(vectors), ..MsiV1::default() };
        Arc::new(Self { state: Mutex::new(State { registers, bus_master: false }), vectors, sink })
    }

    /// The read-only bits of Message Control.
    fn fixed(vectors: u8) -> u16 {
        WIDE | MASKABLE | (vectors.ilog2() as u16) << CAPABLE_SHIFT
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the guest has turned MSI on.
    pub fn enabled(&self) -> bool {
        self.lock().registers.control & ENABLE != 0
    }

    /// Sends vector `vector`, or makes it pending while it is masked. Nothing happens while MSI is
    /// off. Vectors beyond those that the guest has enabled are folded onto them.
    pub fn notify(&self, vector: u8) {
        let mut state = self.lock();
        if state.registers.control & ENABLE != 0 {
            let vector = vector & (state.enabled_vectors(self.vectors) - 1);
            state.registers.pending |= 1 << vector;
            self.send(&mut state);
        }
    }

    /// Sends what is pending and not masked.
    fn send(&self, state: &mut State) {
        let vectors = state.enabled_vectors(self.vectors);
        let registers = &mut state.registers;
        if registers.control & ENABLE == 0 || !state.bus_master {
            return;
        }
        for vector in 0..vectors {
            let bit = 1 << vector;
            if registers.pending & !registers.mask & bit != 0 {
                registers.pending &= !bit;
                let data = registers.data & !u16::from(vectors - 1) | u16::from(vector);
                self.sink.send(Message { address: registers.address, data: data.into() });
            }
        }
    }

    /// The command register's Bus Master Enable: without it messages wait.
    pub(super) fn set_bus_master(&self, on: bool) {
        let mut state = self.lock();
        state.bus_master = on;
        self.send(&mut state);
    }

    /// The capability's bytes after its ID and pointer.
    pub(super) fn body(&self) -> [u8; BODY] {
        self.lock().registers.to_bytes()
    }

    /// Writes `data` at `offset` into the body.
    pub(super) fn write(&self, offset: usize, data: &[u8]) {
        let mut state = self.lock();
        let mut bytes = state.registers.to_bytes();
        for (at, &value) in (offset..BODY).zip(data) {
            bytes[at] = value;
        }
        let pending = state.registers.pending;
        let mut new = MsiV1::from_bytes(&bytes);
        // More than the function is capable of is taken for all that it is.
        let most = self.vectors.ilog2() as u16;
        let enabled = (new.control & ENABLED_MASK) >> ENABLED_SHIFT;
        new.control =
            Self::fixed(self.vectors) | new.control & ENABLE | enabled.min(most) << ENABLED_SHIFT;
        new.address &= !3;
        new.mask &= Self::all(self.vectors);
        new.pending = if new.control & ENABLE == 0 { 0 } else { pending };
        state.registers = new;
        self.send(&mut state);
    }

    fn all(vectors: u8) -> u32 {
        u32::MAX >> (32 - u32::from(vectors))
    }

    /// The state after reset.
    pub(super) fn reset(&self) {
        let mut state = self.lock();
        state.registers = MsiV1 { control: Self::fixed(self.vectors), ..MsiV1::default() };
        state.bus_master = false;
    }

    /// The registers, to be saved.
    pub(super) fn save(&self) -> MsiV1 {
        self.lock().registers.clone()
    }

    /// Whether `saved` can be the state of this chip.
    pub(super) fn check(&self, kind: &'static str, saved: &MsiV1) -> Result<(), StateError> {
        let MsiV1 { control, address, data: _, mask, pending } = saved;
        let all = Self::all(self.vectors);
        let fixed = control & !(ENABLE | ENABLED_MASK) == Self::fixed(self.vectors);
        let enabled = (control & ENABLED_MASK) >> ENABLED_SHIFT;
        if fixed
            && enabled <= self.vectors.ilog2() as u16
            && address & 3 == 0
            && (mask | pending) & !all == 0
        {
            return Ok(());
        }
        Err(StateError::Damaged { kind, cause: format!("MSI registers {saved:x?}") })
    }

    /// Takes on saved registers that [`Msi::check`] has found right. Nothing is sent.
    pub(super) fn restore(&self, saved: MsiV1, bus_master: bool) {
        *self.lock() = State { registers: saved, bus_master };
    }
}

impl State {
    fn enabled_vectors(&self, vectors: u8) -> u8 {
        let enabled = 1 << ((self.registers.control & ENABLED_MASK) >> ENABLED_SHIFT).min(5);
        vectors.min(enabled)
    }
}

impl MsiV1 {
    fn to_bytes(&self) -> [u8; BODY] {
        let mut bytes = [0; BODY];
        bytes[CONTROL..ADDRESS].copy_from_slice(&self.control.to_le_bytes());
        bytes[ADDRESS..DATA].copy_from_slice(&self.address.to_le_bytes());
        bytes[DATA..DATA + 2].copy_from_slice(&self.data.to_le_bytes());
        bytes[MASK..PENDING].copy_from_slice(&self.mask.to_le_bytes());
        bytes[PENDING..].copy_from_slice(&self.pending.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8; BODY]) -> Self {
        let number = |from: usize, to: usize| {
            bytes[from..to].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
        };
        Self {
            control: number(CONTROL, ADDRESS) as u16,
            address: number(ADDRESS, DATA),
            data: number(DATA, DATA + 2) as u16,
            mask: number(MASK, PENDING) as u32,
            pending: number(PENDING, BODY) as u32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::chip::testing::Random;
    use super::super::testing::Sink;
    use super::*;

    fn enabled(vectors: u8, control: u16) -> (Arc<Msi>, Arc<Sink>) {
        let sink = Arc::new(Sink::default());
        let chip = Msi::new(vectors, sink.clone());
        chip.write(ADDRESS, &0xFEE0_1000_u64.to_le_bytes());
        chip.write(DATA, &0x4567_u16.to_le_bytes());
        chip.write(CONTROL, &(control | ENABLE).to_le_bytes());
        chip.set_bus_master(true);
        (chip, sink)
    }

    #[test]
    fn the_vector_is_in_the_low_bits_of_the_data() {
        let (chip, sink) = enabled(8, 2 << ENABLED_SHIFT);
        chip.notify(0);
        chip.notify(3);
        chip.notify(6);
        assert_eq!(
            sink.take(),
            [(0xFEE0_1000, 0x4564), (0xFEE0_1000, 0x4567), (0xFEE0_1000, 0x4566)],
            "of eight vectors the guest has enabled four"
        );
    }

    #[test]
    fn a_masked_vector_is_pending_and_sent_once_when_the_mask_goes() {
        let (chip, sink) = enabled(4, 2 << ENABLED_SHIFT);
        chip.write(MASK, &[0b0110]);
        for vector in [1, 1, 2, 3] {
            chip.notify(vector);
        }
        assert_eq!((sink.take(), chip.body()[PENDING]), (vec![(0xFEE0_1000, 0x4567)], 0b0110));
        chip.write(PENDING, &[0]);
        chip.write(MASK, &[0b0100]);
        assert_eq!((sink.take(), chip.body()[PENDING]), (vec![(0xFEE0_1000, 0x4565)], 0b0100));
        chip.write(CONTROL, &[0]);
        chip.write(MASK, &[0]);
        assert_eq!((sink.take(), chip.body()[PENDING]), (vec![], 0), "off, it forgets");
    }

    #[test]
    fn without_bus_mastering_messages_wait() {
        let (chip, sink) = enabled(1, 0);
        chip.set_bus_master(false);
        chip.notify(0);
        assert_eq!(sink.take(), []);
        chip.set_bus_master(true);
        assert_eq!(sink.take(), [(0xFEE0_1000, 0x4567)]);
    }

    #[test]
    fn a_guest_cannot_enable_more_than_there_is() {
        let (chip, sink) = enabled(2, 7 << ENABLED_SHIFT);
        let control = u16::from_le_bytes([chip.body()[0], chip.body()[1]]);
        assert_eq!(control, 0x0193, "two capable, two enabled, 64 bits, maskable");
        chip.notify(31);
        assert_eq!(sink.take(), [(0xFEE0_1000, 0x4567)]);
        chip.reset();
        chip.notify(0);
        assert_eq!((sink.take(), chip.enabled()), (vec![], false));
    }

    #[test]
    fn any_accesses_leave_a_state_that_can_be_restored() {
        let mut random = Random::new(7);
        for vectors in [1, 4, 32] {
            let (chip, sink) = enabled(vectors, 0);
            for _ in 0..5_000 {
                match random.below(5) {
                    0 => chip.notify(random.byte()),
                    1 => chip.set_bus_master(random.below(2) == 0),
                    _ => {
                        let len = 1 << random.below(3);
                        let data = random.next().to_le_bytes();
                        chip.write(random.below(BODY as u64) as usize, &data[..len]);
                    }
                }
                let saved = chip.save();
                chip.check("test", &saved).unwrap();
                let copy = Msi::new(vectors, Arc::new(Sink::default()));
                copy.restore(saved.clone(), true);
                assert_eq!(copy.save(), saved);
            }
            sink.take();
            let mut saved = chip.save();
            saved.control ^= WIDE;
            assert!(chip.check("test", &saved).is_err());
        }
    }
}

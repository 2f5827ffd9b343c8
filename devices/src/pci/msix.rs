//! MSI-X: the capability's control word, the vector table and the pending bits (PCI 3.0, 6.8.2).
//!
//! An entry of the table has 16 bytes: message address (64 bits), message data (32 bits), vector
//! control (bit 0 masks). A vector that is masked, by its own bit or by Function Mask, becomes
//! pending instead of being sent, and is sent as soon as nothing masks it any more. Without Bus
//! Master Enable a function cannot send either, so that counts as masked.
//!
//! The registers stand behind a lock of their own, a leaf: a [`MsixVector`] can be used from any
//! thread and with any other lock held.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use board::irq::{Msi as Message, MsiSink};
use board::state::StateError;
use board::{Accel, AccelError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};

/// The capability's ID.
pub const ID: u8 = 0x11;
/// Bytes of a table entry.
pub const ENTRY_SIZE: u64 = 16;
/// The most vectors that there can be.
pub const MAX_VECTORS: u16 = 2048;

/// Bits of Message Control.
const ENABLE: u16 = 1 << 15;
const FUNCTION_MASK: u16 = 1 << 14;
/// Vector Control: masked.
const MASKED: u32 = 1 << 0;

/// Where the table and the pending bits lie.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// The BAR of both.
    pub bar: u8,
    /// Offset of the table into it, a multiple of 8.
    pub table: u64,
    /// Offset of the pending bits, a multiple of 8.
    pub pba: u64,
}

impl Layout {
    /// A BAR for nothing else: the table at its start, the pending bits behind it. Gives back the
    /// BAR's size as well.
    pub fn whole_bar(bar: u8, vectors: u16) -> (Self, u64) {
        let table = u64::from(vectors) * ENTRY_SIZE;
        let pba = table.next_multiple_of(2048);
        let size = (pba + u64::from(vectors.div_ceil(64)) * 8).next_power_of_two().max(4096);
        (Self { bar, table: 0, pba }, size)
    }
}

/// A table entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    address: u64,
    data: u32,
    control: u32,
}

impl Entry {
    /// After reset every vector is masked.
    const RESET: Self = Self { address: 0, data: 0, control: MASKED };

    fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.data.to_le_bytes());
        bytes[12..].copy_from_slice(&self.control.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: [u8; 16]) -> Self {
        let dword = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        Self {
            // The two low bits must be 0; reserved bits of the control word read 0.
            address: u64::from(dword(4)) << 32 | u64::from(dword(0) & !3),
            data: dword(8),
            control: dword(12) & MASKED,
        }
    }

    fn message(self) -> Message {
        Message { address: self.address, data: self.data }
    }
}

/// The saved registers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsixV1 {
    control: u16,
    entries: Vec<Entry>,
    pending: Vec<u64>,
}

/// An eventfd that sends a vector without a way through user space.
struct Route {
    eventfd: OwnedFd,
    accel: Arc<dyn Accel>,
    /// The accelerator's route and the message that it sends; none while the vector is masked.
    armed: Option<(u32, Message)>,
}

struct State {
    registers: MsixV1,
    bus_master: bool,
    /// By vector; empty as long as no eventfd was ever connected.
    routes: Vec<Option<Route>>,
}

/// MSI-X of one function.
pub struct Msix {
    state: Mutex<State>,
    layout: Layout,
    vectors: u16,
    sink: Arc<dyn MsiSink>,
}

impl Msix {
    /// `vectors`, 1 to 2048, whose messages go to `sink`.
    pub fn new(vectors: u16, layout: Layout, sink: Arc<dyn MsiSink>) -> Arc<Self> {
        let vectors = vectors.clamp(1, MAX_VECTORS);
        let registers = MsixV1::after_reset(vectors);
        let state = State { registers, bus_master: false, routes: Vec::new() };
        Arc::new(Self { state: Mutex::new(state), layout, vectors, sink })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many vectors there are.
    pub fn vectors(&self) -> u16 {
        self.vectors
    }

    /// Whether the guest has turned MSI-X on. INTx is not used then.
    pub fn enabled(&self) -> bool {
        self.lock().registers.control & ENABLE != 0
    }

    /// A handle to vector `index`. One that is not there does nothing.
    pub fn vector(self: &Arc<Self>, index: u16) -> MsixVector {
        MsixVector { chip: self.clone(), index }
    }

    /// The capability's bytes after its ID and pointer.
    pub(super) fn body(&self) -> [u8; 10] {
        let mut body = [0; 10];
        body[..2].copy_from_slice(&self.control().to_le_bytes());
        let bar = u32::from(self.layout.bar);
        body[2..6].copy_from_slice(&(self.layout.table as u32 | bar).to_le_bytes());
        body[6..].copy_from_slice(&(self.layout.pba as u32 | bar).to_le_bytes());
        body
    }

    /// Message Control: the size of the table is one less than its entries.
    pub(super) fn control(&self) -> u16 {
        self.lock().registers.control | (self.vectors - 1)
    }

    pub(super) fn set_control(&self, value: u16) {
        let mut state = self.lock();
        state.registers.control = value & (ENABLE | FUNCTION_MASK);
        if value & ENABLE == 0 {
            state.registers.pending.fill(0);
        }
        self.send_pending(&mut state);
    }

    pub(super) fn set_bus_master(&self, on: bool) {
        let mut state = self.lock();
        if state.bus_master != on {
            state.bus_master = on;
            self.send_pending(&mut state);
        }
    }

    /// Reads at `offset` into the BAR. False: neither table nor pending bits are there.
    pub fn read(&self, offset: u64, data: &mut [u8]) -> bool {
        let state = self.lock();
        if let Some(at) = self.in_table(offset) {
            data.fill(0);
            for (at, byte) in (at..).zip(data) {
                let entry = state.registers.entries.get((at / ENTRY_SIZE) as usize);
                *byte = entry.map_or(0, |entry| entry.to_bytes()[(at % ENTRY_SIZE) as usize]);
            }
            return true;
        }
        let Some(at) = self.in_pba(offset) else { return false };
        for (at, byte) in (at..).zip(data) {
            let word = state.pending_word((at / 8) as usize);
            *byte = word.to_le_bytes()[(at % 8) as usize];
        }
        true
    }

    /// Writes at `offset` into the BAR. False: neither table nor pending bits are there. The
    /// pending bits are read-only.
    pub fn write(&self, offset: u64, data: &[u8]) -> bool {
        let Some(at) = self.in_table(offset) else { return self.in_pba(offset).is_some() };
        let mut state = self.lock();
        for (at, &value) in (at..).zip(data) {
            let index = (at / ENTRY_SIZE) as usize;
            if let Some(entry) = state.registers.entries.get_mut(index) {
                let mut bytes = entry.to_bytes();
                bytes[(at % ENTRY_SIZE) as usize] = value;
                *entry = Entry::from_bytes(bytes);
            }
        }
        let last = (at + data.len() as u64 - 1) / ENTRY_SIZE;
        for index in at / ENTRY_SIZE..=last {
            self.update(&mut state, index as usize);
        }
        true
    }

    fn in_table(&self, offset: u64) -> Option<u64> {
        let at = offset.checked_sub(self.layout.table)?;
        (at < u64::from(self.vectors) * ENTRY_SIZE).then_some(at)
    }

    fn in_pba(&self, offset: u64) -> Option<u64> {
        let at = offset.checked_sub(self.layout.pba)?;
        (at < u64::from(self.vectors.div_ceil(64)) * 8).then_some(at)
    }

    fn send_pending(&self, state: &mut State) {
        for index in 0..usize::from(self.vectors) {
            self.update(state, index);
        }
    }

    /// Brings one vector into line with its mask: sends it if it is pending, and connects or
    /// disconnects its eventfd.
    fn update(&self, state: &mut State, index: usize) {
        let message = state.message(index);
        if let Some(message) = message
            && state.registers.take_pending(index)
        {
            self.sink.send(message);
        }
        if let Some(Some(route)) = state.routes.get_mut(index) {
            route.set(message);
        }
    }

    fn notify(&self, index: usize) {
        let mut state = self.lock();
        if state.registers.control & ENABLE == 0 || index >= usize::from(self.vectors) {
            return;
        }
        match state.message(index) {
            Some(message) => self.sink.send(message),
            None => state.registers.pending[index / 64] |= 1 << (index % 64),
        }
    }

    /// The state after reset. Eventfds stay connected, to masked vectors.
    pub(super) fn reset(&self) {
        let mut state = self.lock();
        state.registers = MsixV1::after_reset(self.vectors);
        state.bus_master = false;
        self.send_pending(&mut state);
    }

    /// The registers, to be saved. What an eventfd has signalled to a masked vector is among them.
    pub(super) fn save(&self) -> MsixV1 {
        let state = self.lock();
        let mut saved = state.registers.clone();
        for (word, pending) in saved.pending.iter_mut().enumerate() {
            *pending = state.pending_word(word);
        }
        saved
    }

    /// Whether `saved` can be the state of this chip.
    pub(super) fn check(&self, kind: &'static str, saved: &MsixV1) -> Result<(), StateError> {
        let vectors = usize::from(self.vectors);
        let MsixV1 { control, entries, pending } = saved;
        let right = control & !(ENABLE | FUNCTION_MASK) == 0
            && entries.len() == vectors
            && entries.iter().all(|entry| *entry == Entry::from_bytes(entry.to_bytes()))
            && pending.len() == vectors.div_ceil(64)
            && (vectors % 64 == 0 || pending[vectors / 64] >> (vectors % 64) == 0);
        if right {
            return Ok(());
        }
        let cause = format!("MSI-X table of {} entries for {vectors} vectors", entries.len());
        Err(StateError::Damaged { kind, cause })
    }

    /// Takes on saved registers that [`Msix::check`] has found right. Nothing is sent but by
    /// eventfds that are signalled now.
    pub(super) fn restore(&self, saved: MsixV1, bus_master: bool) {
        let mut state = self.lock();
        state.registers = saved;
        state.bus_master = bus_master;
        for index in 0..state.routes.len() {
            let message = state.message(index);
            if let Some(route) = &mut state.routes[index] {
                route.set(message);
            }
        }
    }
}

impl MsixV1 {
    fn after_reset(vectors: u16) -> Self {
        let (vectors, words) = (usize::from(vectors), usize::from(vectors.div_ceil(64)));
        Self { control: 0, entries: vec![Entry::RESET; vectors], pending: vec![0; words] }
    }

    fn take_pending(&mut self, index: usize) -> bool {
        let (word, bit) = (&mut self.pending[index / 64], 1 << (index % 64));
        let pending = *word & bit != 0;
        *word &= !bit;
        pending
    }
}

impl State {
    /// What vector `index` sends; none while anything masks it.
    fn message(&self, index: usize) -> Option<Message> {
        let on = self.registers.control & (ENABLE | FUNCTION_MASK) == ENABLE && self.bus_master;
        let entry = self.registers.entries.get(index)?;
        (on && entry.control & MASKED == 0).then(|| entry.message())
    }

    fn pending_word(&self, word: usize) -> u64 {
        let first = word * 64;
        let routes = self.routes.iter().enumerate().skip(first).take(64);
        let signalled = routes.filter(|(_, r)| r.as_ref().is_some_and(Route::is_waiting));
        let signalled = signalled.fold(0, |bits, (index, _)| bits | 1 << (index - first));
        self.registers.pending.get(word).copied().unwrap_or(0) | signalled
    }
}

impl Route {
    /// Whether the eventfd has been signalled while its vector was masked.
    fn is_waiting(&self) -> bool {
        let mut fds = [PollFd::new(&self.eventfd, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        self.armed.is_none() && poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
    }

    /// Lets the eventfd send `message`, or nothing. What it was signalled meanwhile the accelerator
    /// finds when it is given the eventfd.
    fn set(&mut self, message: Option<Message>) {
        let Some(irqfds) = self.accel.irqfds() else { return };
        if self.armed.map(|(_, message)| message) == message {
            return;
        }
        if let Some((gsi, _)) = self.armed.take() {
            // It fails only for a route that there is not.
            let _ = irqfds.remove(self.eventfd.as_fd(), gsi);
        }
        // An accelerator without a route left loses the vector, as hardware that is out of order
        // does; `connect` has seen to it that there is one per vector.
        self.armed = message.and_then(|m| Some((irqfds.add(self.eventfd.as_fd(), m).ok()?, m)));
    }
}

impl Drop for Route {
    fn drop(&mut self) {
        self.set(None);
    }
}

/// One vector of a function. Clones are the same vector.
#[derive(Clone)]
pub struct MsixVector {
    chip: Arc<Msix>,
    index: u16,
}

impl MsixVector {
    /// Sends the vector's message, or makes it pending while it is masked. Nothing happens while
    /// MSI-X is off.
    pub fn notify(&self) {
        self.chip.notify(self.index.into());
    }

    /// Its number.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Lets each signal of `eventfd` send this vector, also from another process or the kernel
    /// (vhost). False: the accelerator has no such thing, and the caller watches the eventfd and
    /// calls [`MsixVector::notify`].
    ///
    /// # Errors
    /// [`AccelError::Host`] when the accelerator has no route left.
    pub fn connect(&self, eventfd: OwnedFd, accel: &Arc<dyn Accel>) -> Result<bool, AccelError> {
        let Some(irqfds) = accel.irqfds() else { return Ok(false) };
        // A trial, so that a host without routes is found out now and not when a guest unmasks.
        let gsi = irqfds.add(eventfd.as_fd(), Message::default())?;
        irqfds.remove(eventfd.as_fd(), gsi)?;
        let mut state = self.chip.lock();
        let vectors = usize::from(self.chip.vectors);
        state.routes.resize_with(vectors, || None);
        let index = usize::from(self.index);
        if index < vectors {
            state.routes[index] = Some(Route { eventfd, accel: accel.clone(), armed: None });
            self.chip.update(&mut state, index);
        }
        Ok(true)
    }

    /// Undoes `connect`.
    pub fn disconnect(&self) {
        let mut state = self.chip.lock();
        if let Some(route) = state.routes.get_mut(usize::from(self.index)) {
            *route = None;
        }
    }
}

impl fmt::Debug for MsixVector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MsixVector({})", self.index)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use board::Vcpu;
    use board::accel::{ClockState, Irqchip, Irqfds};
    use board::memory::MemoryMap;
    use board::vcpu::Cpuid;
    use rustix::event::{EventfdFlags, eventfd};
    use std::os::fd::{AsRawFd, BorrowedFd};

    use super::super::super::chip::testing::Random;
    use super::super::testing::Sink;
    use super::*;

    const PBA: u64 = 0x800;

    fn chip(vectors: u16) -> (Arc<Msix>, Arc<Sink>) {
        let sink = Arc::new(Sink::default());
        let chip = Msix::new(vectors, Layout { bar: 1, table: 0, pba: PBA }, sink.clone());
        chip.set_bus_master(true);
        (chip, sink)
    }

    fn set(chip: &Msix, index: u64, address: u64, data: u32, masked: bool) {
        assert!(chip.write(index * 16, &address.to_le_bytes()));
        chip.write(index * 16 + 8, &data.to_le_bytes());
        chip.write(index * 16 + 12, &u32::from(masked).to_le_bytes());
    }

    fn pending(chip: &Msix) -> u64 {
        let mut word = [0; 8];
        assert!(chip.read(PBA, &mut word));
        u64::from_le_bytes(word)
    }

    #[test]
    fn vectors_are_masked_after_reset_and_pend() {
        let (chip, sink) = chip(3);
        chip.vector(0).notify();
        assert_eq!(pending(&chip), 0, "MSI-X is off");
        chip.set_control(ENABLE);
        chip.vector(0).notify();
        chip.vector(2).notify();
        chip.vector(3).notify();
        assert_eq!((pending(&chip), sink.take()), (0b101, vec![]));
        set(&chip, 2, 0xFEE0_2000, 0x33, false);
        assert_eq!((pending(&chip), sink.take()), (0b001, vec![(0xFEE0_2000, 0x33)]));
        chip.write(PBA, &[0xFF]);
        assert_eq!(pending(&chip), 0b001, "the pending bits are read-only");
        chip.vector(2).notify();
        assert_eq!(sink.take(), [(0xFEE0_2000, 0x33)]);
        chip.set_control(0);
        assert_eq!((pending(&chip), chip.enabled()), (0, false));
    }

    #[test]
    fn the_function_mask_holds_all_vectors_back() {
        let (chip, sink) = chip(2);
        set(&chip, 0, 0xFEE0_0000, 1, false);
        set(&chip, 1, 0xFEE0_0000, 2, true);
        chip.set_control(ENABLE | FUNCTION_MASK);
        for vector in [0, 0, 1] {
            chip.vector(vector).notify();
        }
        assert_eq!((pending(&chip), sink.take()), (0b11, vec![]));
        assert_eq!(chip.control(), ENABLE | FUNCTION_MASK | 1);
        chip.set_control(ENABLE);
        assert_eq!((pending(&chip), sink.take()), (0b10, vec![(0xFEE0_0000, 1)]));
        chip.set_bus_master(false);
        chip.vector(0).notify();
        assert_eq!(sink.take(), []);
        chip.set_bus_master(true);
        assert_eq!(sink.take(), [(0xFEE0_0000, 1)]);
    }

    #[test]
    fn the_table_reads_as_it_was_written_but_for_reserved_bits() {
        let (chip, _) = chip(2);
        chip.write(16, &[0xFF; 16]);
        let mut entry = [0; 16];
        chip.read(16, &mut entry);
        assert_eq!(
            entry,
            [0xFC, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 1, 0, 0, 0]
        );
        assert!(!chip.read(32, &mut entry), "behind the table");
        assert!(!chip.write(PBA + 8, &[0]));
        assert!(chip.write(24, &[0; 16]), "an access may end behind the table");
        chip.reset();
        chip.read(16, &mut entry);
        assert_eq!(entry, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
    }

    #[test]
    fn a_bar_of_its_own_has_room_for_all() {
        for vectors in [1, 8, 65, 128, 2048] {
            let (layout, size) = Layout::whole_bar(3, vectors);
            assert!(size.is_power_of_two() && layout.pba.is_multiple_of(8));
            assert!(layout.pba >= u64::from(vectors) * 16);
            assert!(layout.pba + u64::from(vectors.div_ceil(64)) * 8 <= size);
        }
        assert_eq!(Layout::whole_bar(0, 8).1, 4096);
    }

    #[test]
    fn any_accesses_leave_a_state_that_can_be_restored() {
        let mut random = Random::new(11);
        for vectors in [1, 64, 70] {
            let (chip, _) = chip(vectors);
            for _ in 0..3_000 {
                match random.below(6) {
                    0 => chip.vector(random.below(80) as u16).notify(),
                    1 => chip.set_control(random.next() as u16),
                    2 => chip.set_bus_master(random.below(4) > 0),
                    3 => drop(chip.read(random.below(0x900), &mut [0; 8])),
                    _ => {
                        let len = 1 << random.below(4);
                        let data = random.next().to_le_bytes();
                        let _ = chip.write(random.below(0x900), &data[..len]);
                    }
                }
            }
            let saved = chip.save();
            chip.check("test", &saved).unwrap();
            let (copy, sink) = self::chip(vectors);
            copy.restore(saved.clone(), false);
            assert_eq!((copy.save(), sink.take()), (saved, vec![]));
        }
        let (chip, _) = chip(3);
        let damages: [fn(&mut MsixV1); 4] = [
            |saved| saved.pending[0] = 8,
            |saved| saved.control = 1,
            |saved| saved.entries[1].control = 2,
            |saved| saved.entries.truncate(2),
        ];
        for damage in damages {
            let mut saved = chip.save();
            damage(&mut saved);
            assert!(chip.check("test", &saved).is_err());
        }
    }

    /// An accelerator that has nothing but irqfds, and writes down what they are told.
    #[derive(Default)]
    struct Routes {
        log: Mutex<Vec<String>>,
        next: AtomicU32,
    }

    impl Routes {
        fn take(&self) -> Vec<String> {
            std::mem::take(&mut self.log.lock().unwrap())
        }
    }

    impl Irqfds for Routes {
        fn add(&self, eventfd: BorrowedFd<'_>, msi: Message) -> Result<u32, AccelError> {
            assert!(eventfd.as_raw_fd() >= 0);
            let gsi = self.next.fetch_add(1, Ordering::SeqCst);
            self.log.lock().unwrap().push(format!("add {gsi} {:#x}", msi.data));
            Ok(gsi)
        }
        fn set(&self, _: u32, _: Option<Message>) -> Result<(), AccelError> {
            Ok(())
        }
        fn remove(&self, _: BorrowedFd<'_>, gsi: u32) -> Result<(), AccelError> {
            self.log.lock().unwrap().push(format!("remove {gsi}"));
            Ok(())
        }
    }

    impl Accel for Routes {
        fn name(&self) -> &'static str {
            "routes"
        }
        fn add_vcpu(&self, _: u32, _: &Cpuid) -> Result<Box<dyn Vcpu>, AccelError> {
            Err(AccelError::Unsupported("no vCPUs".into()))
        }
        fn irqchip(&self) -> Irqchip {
            Irqchip::Soft
        }
        fn set_memory(&self, _: &MemoryMap) -> Result<(), AccelError> {
            Ok(())
        }
        fn take_dirty(&self, _: usize) -> Result<Vec<u64>, AccelError> {
            Ok(Vec::new())
        }
        fn clock(&self) -> Result<ClockState, AccelError> {
            Ok(ClockState::default())
        }
        fn set_clock(&self, _: &ClockState) -> Result<(), AccelError> {
            Ok(())
        }
        fn supported_cpuid(&self) -> Cpuid {
            Cpuid::default()
        }
        fn irqfds(&self) -> Option<&dyn Irqfds> {
            Some(self)
        }
    }

    #[test]
    fn an_eventfd_has_a_route_while_its_vector_is_not_masked() {
        let (chip, _) = chip(2);
        let routes = Arc::new(Routes::default());
        let accel: Arc<dyn Accel> = routes.clone();
        let fd = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        let signal = fd.try_clone().unwrap();
        assert!(chip.vector(1).connect(fd, &accel).unwrap());
        assert_eq!(routes.take(), ["add 0 0x0", "remove 0"], "a trial");
        rustix::io::write(&signal, &1_u64.to_ne_bytes()).unwrap();
        chip.set_control(ENABLE);
        assert_eq!(pending(&chip), 0b10, "signalled while masked");
        assert_eq!(chip.save().pending, [0b10]);
        set(&chip, 1, 0xFEE0_0000, 0x41, false);
        assert_eq!(routes.take(), ["add 1 0x41"]);
        assert_eq!(pending(&chip), 0, "the accelerator has taken it over");
        chip.write(24, &0x42_u32.to_le_bytes());
        assert_eq!(routes.take(), ["remove 1", "add 2 0x42"]);
        chip.set_control(ENABLE | FUNCTION_MASK);
        assert_eq!(routes.take(), ["remove 2"]);
        chip.set_control(ENABLE);
        chip.vector(1).disconnect();
        assert_eq!(routes.take(), ["add 3 0x42", "remove 3"]);
    }
}

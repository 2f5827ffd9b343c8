//! Where interrupt pins lead: four PCI interrupts, shared by all functions.
//!
//! Pin INTA# of device `d` is PCI interrupt `d % 4`, INTB# the next one, and so on, so that devices
//! spread over all four. PCI interrupt `n` is GSI 16 + `n` at the I/O APIC. Besides, the PIIX3 can
//! lead it to an ISA interrupt (82371SB data sheet, 2.2.11, PIRQRCx), for systems that use the
//! 8259As.

use std::sync::{Arc, Mutex, PoisonError};

use board::IrqLine;
use board::irq::IrqSink;
use board::pci::{Devfn, Pin};
use serde::{Deserialize, Serialize};

/// PCI interrupts.
pub const PIRQS: usize = 4;
/// The GSI of PCI interrupt 0.
pub const FIRST_GSI: u32 = 16;

/// PIRQRC bit: not led to an ISA interrupt.
const DISABLED: u8 = 1 << 7;
/// ISA interrupts that PIRQRC may name; others are reserved.
const ALLOWED: u16 = 0b1101_1110_1111_1000;

/// The wires of the router's outputs.
pub struct Outputs {
    /// GSI 16 to 19.
    pub gsis: [IrqLine; PIRQS],
    /// ISA interrupts 0 to 15, each a share of its own.
    pub isa: Vec<IrqLine>,
}

/// The state of the router. Saved, it lies in the section of the bus.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouterV1 {
    /// Functions that assert each PCI interrupt, a bit a function.
    asserted: [[u64; 4]; PIRQS],
    /// PIRQRCA to PIRQRCD.
    routes: [u8; PIRQS],
}

struct State {
    saved: RouterV1,
    /// Levels of the outputs as they were last driven.
    gsis: [bool; PIRQS],
    isa: u16,
}

/// The router.
pub struct Router {
    state: Mutex<State>,
    outputs: Outputs,
}

/// The PCI interrupt of a pin.
pub fn pirq(device: u8, pin: Pin) -> usize {
    (usize::from(device) + pin as usize - 1) % PIRQS
}

impl Router {
    /// A router with no pin asserted and no ISA interrupt in use.
    pub fn new(outputs: Outputs) -> Arc<Self> {
        let saved = RouterV1 { routes: [DISABLED; PIRQS], ..RouterV1::default() };
        let state = State { saved, gsis: [false; PIRQS], isa: 0 };
        Arc::new(Self { state: Mutex::new(state), outputs })
    }

    /// The wire of a function's pin.
    pub fn line(self: &Arc<Self>, devfn: Devfn, pin: Pin) -> IrqLine {
        IrqLine::new(self.clone(), u32::from(devfn.byte()) << 2 | (pin as u32 - 1))
    }

    /// Takes back all that a function asserts: it has been pulled out.
    pub fn release(&self, devfn: Devfn) {
        self.change(|saved| {
            let (word, bit) = place(devfn);
            saved.asserted.iter_mut().for_each(|functions| functions[word] &= !bit);
        });
    }

    /// PIRQRC of PCI interrupt `index`.
    pub fn route(&self, index: usize) -> u8 {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).saved.routes[index]
    }

    /// Writes PIRQRC of PCI interrupt `index`.
    pub fn set_route(&self, index: usize, value: u8) {
        self.change(|saved| saved.routes[index] = value & (DISABLED | 0x0F));
    }

    /// PIRQRC as after reset.
    pub fn reset(&self) {
        self.change(|saved| saved.routes = [DISABLED; PIRQS]);
    }

    fn change(&self, change: impl FnOnce(&mut RouterV1)) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut state.saved);
        let (gsis, isa) = state.saved.levels();
        // Under the lock, so that the inputs see the levels in their order.
        for (index, level) in gsis.into_iter().enumerate() {
            if state.gsis[index] != level {
                self.outputs.gsis[index].set(level);
            }
        }
        for (irq, line) in self.outputs.isa.iter().enumerate() {
            if (state.isa ^ isa) >> irq & 1 != 0 {
                line.set(isa >> irq & 1 != 0);
            }
        }
        (state.gsis, state.isa) = (gsis, isa);
    }

    /// The state, to be saved.
    pub fn save(&self) -> RouterV1 {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).saved.clone()
    }

    /// Takes on a saved state. The controllers have the levels in theirs: no line is driven.
    pub fn restore(&self, saved: RouterV1) {
        let (gsis, isa) = saved.levels();
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = State { saved, gsis, isa };
    }
}

/// Where a function's bit is.
fn place(devfn: Devfn) -> (usize, u64) {
    (usize::from(devfn.byte() >> 6), 1 << (devfn.byte() & 63))
}

impl RouterV1 {
    fn levels(&self) -> ([bool; PIRQS], u16) {
        let gsis = self.asserted.map(|functions| functions != [0; 4]);
        let isa = gsis.iter().zip(self.routes).filter(|(level, route)| {
            **level && route & DISABLED == 0 && ALLOWED >> (route & 0x0F) & 1 != 0
        });
        (gsis, isa.fold(0, |levels, (_, route)| levels | 1 << (route & 0x0F)))
    }
}

impl IrqSink for Router {
    fn set_irq(&self, pin: u32, level: bool) {
        let devfn = Devfn::from_byte((pin >> 2) as u8);
        let index = (usize::from(devfn.device()) + (pin & 3) as usize) % PIRQS;
        self.change(|saved| {
            let (word, bit) = place(devfn);
            let functions = &mut saved.asserted[index][word];
            *functions = if level { *functions | bit } else { *functions & !bit };
        });
    }
}

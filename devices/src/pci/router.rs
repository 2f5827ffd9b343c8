//! Where interrupt pins lead: four PCI interrupts, shared by all functions.
//!
//! Pin INTA# of device `d` is PCI interrupt `(d - 1) % 4`, INTB# the next one, and so on, so that
//! devices spread over all four; firmware for this chipset counts on it. PCI interrupt `n` is GSI 16 + `n` at the I/O APIC. Besides, the PIIX3 can
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
    interrupt(device, pin as usize - 1)
}

/// The same with the pin counted from 0.
fn interrupt(device: u8, pin: usize) -> usize {
    (usize::from(device) + pin + PIRQS - 1) % PIRQS
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
        let index = interrupt(devfn.device(), (pin & 3) as usize);
        self.change(|saved| {
            let (word, bit) = place(devfn);
            let functions = &mut saved.asserted[index][word];
            *functions = if level { *functions | bit } else { *functions & !bit };
        });
    }
}

#[cfg(test)]
mod tests {
    use board::irq::IrqProbe;

    use super::super::super::chip::testing::Random;
    use super::*;

    fn router() -> (Arc<Router>, Vec<Arc<IrqProbe>>, Vec<Arc<IrqProbe>>) {
        let (mut gsis, mut isa) = (Vec::new(), Vec::new());
        let line = |probes: &mut Vec<_>| {
            let (line, probe) = IrqLine::probe();
            probes.push(probe);
            line
        };
        let outputs = Outputs {
            gsis: [0; PIRQS].map(|_| line(&mut gsis)),
            isa: (0..16).map(|_| line(&mut isa)).collect(),
        };
        (Router::new(outputs), gsis, isa)
    }

    fn high(probes: &[Arc<IrqProbe>]) -> Vec<usize> {
        let levels = probes.iter().enumerate();
        levels.filter(|(_, probe)| probe.level()).map(|(index, _)| index).collect()
    }

    #[test]
    fn pins_of_neighbours_are_different_interrupts() {
        assert_eq!([2, 3, 4, 5].map(|device| pirq(device, Pin::A)), [1, 2, 3, 0]);
        assert_eq!([Pin::A, Pin::B, Pin::C, Pin::D].map(|pin| pirq(3, pin)), [2, 3, 0, 1]);
    }

    #[test]
    fn an_interrupt_is_high_while_any_function_asserts_it() {
        let (router, gsis, isa) = router();
        let one = router.line(Devfn::new(3, 0), Pin::A);
        let other = router.line(Devfn::new(31, 7), Pin::A);
        one.set(true);
        other.set(true);
        assert_eq!((high(&gsis), high(&isa)), (vec![2], vec![]));
        one.set(false);
        assert_eq!(high(&gsis), [2]);
        router.release(Devfn::new(31, 7));
        assert_eq!(high(&gsis), [0; 0]);
    }

    #[test]
    fn pirqrc_leads_to_an_isa_interrupt() {
        let (router, gsis, isa) = router();
        router.line(Devfn::new(5, 0), Pin::A).set(true);
        router.line(Devfn::new(6, 0), Pin::A).set(true);
        assert_eq!((high(&gsis), router.route(0)), (vec![0, 1], 0x80));
        router.set_route(0, 0x7B);
        router.set_route(1, 11);
        assert_eq!((high(&isa), router.route(0)), (vec![11], 0x0B));
        router.line(Devfn::new(5, 0), Pin::A).set(false);
        assert_eq!(high(&isa), [11], "it is shared");
        router.set_route(1, 2);
        assert_eq!(high(&isa), [0; 0], "reserved");
        router.set_route(1, 5);
        assert_eq!(high(&isa), [5]);
        router.reset();
        assert_eq!((high(&isa), high(&gsis)), (vec![], vec![1]));
    }

    #[test]
    fn the_outputs_follow_from_the_state_and_a_restore_drives_nothing() {
        let (router, gsis, isa) = router();
        let mut random = Random::new(3);
        for _ in 0..5_000 {
            let pin = [Pin::A, Pin::B, Pin::C, Pin::D][random.below(4) as usize];
            match random.below(8) {
                0 => router.set_route(random.below(4) as usize, random.byte()),
                1 => router.release(Devfn::from_byte(random.byte())),
                _ => router.line(Devfn::from_byte(random.byte()), pin).set(random.below(2) == 0),
            }
            let (levels, isa_levels) = router.save().levels();
            assert_eq!(high(&gsis), (0..4).filter(|i| levels[*i]).collect::<Vec<_>>());
            assert!(high(&isa).iter().all(|irq| isa_levels >> irq & 1 != 0));
        }
        let (copy, gsis, _) = self::router();
        router.line(Devfn::new(2, 0), Pin::A).set(true);
        copy.restore(router.save());
        assert_eq!((high(&gsis), copy.save()), (vec![], router.save()));
    }
}

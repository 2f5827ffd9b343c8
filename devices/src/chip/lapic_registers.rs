//! A local APIC (Intel SDM vol. 3, chapter 11), as a pure register machine: xAPIC and x2APIC.
//!
//! Choices where the manual leaves one:
//! - The APIC id is fixed. Lowest-priority messages are accepted like fixed ones: the bus chooses.
//! - There is no window in which an interrupt could be withdrawn between its request and its
//!   acknowledge, so the spurious vector is never delivered.
//! - SMIs are ignored. LINT1, thermal, performance and CMCI entries can be programmed; nothing in
//!   the machine signals them. LINT0 carries INTR of the PICs in mode ExtINT.

use board::VmTime;
use board::vcpu::LapicState;

use super::apic_bus::{Address, Delivery, Destination, Message};
use super::lapic_timer::{Mode, Timer};

/// Register numbers: the offset in the page divided by 16, and the MSR less 0x800.
pub(super) mod reg {
    pub(crate) const ID: u32 = 0x02;
    pub(crate) const VERSION: u32 = 0x03;
    pub(crate) const TPR: u32 = 0x08;
    pub(crate) const APR: u32 = 0x09;
    pub(crate) const PPR: u32 = 0x0A;
    pub(crate) const EOI: u32 = 0x0B;
    pub(crate) const RRD: u32 = 0x0C;
    pub(crate) const LDR: u32 = 0x0D;
    pub(crate) const DFR: u32 = 0x0E;
    pub(crate) const SVR: u32 = 0x0F;
    pub(crate) const ISR: u32 = 0x10;
    pub(crate) const TMR: u32 = 0x18;
    pub(crate) const IRR: u32 = 0x20;
    pub(crate) const ESR: u32 = 0x28;
    /// Reserved; saved states hold errors there that the ESR does not show yet.
    pub(crate) const ERRORS: u32 = 0x29;
    pub(crate) const LVT_CMCI: u32 = 0x2F;
    pub(crate) const ICR: u32 = 0x30;
    pub(crate) const ICR2: u32 = 0x31;
    pub(crate) const LVT_TIMER: u32 = 0x32;
    pub(crate) const LVT_LINT0: u32 = 0x35;
    pub(crate) const LVT_LINT1: u32 = 0x36;
    pub(crate) const LVT_ERROR: u32 = 0x37;
    pub(crate) const INITIAL_COUNT: u32 = 0x38;
    pub(crate) const CURRENT_COUNT: u32 = 0x39;
    pub(crate) const DIVIDE: u32 = 0x3E;
    pub(crate) const SELF_IPI: u32 = 0x3F;
}

/// Version 0x14, seven LVT entries, suppression of EOI broadcasts.
const VERSION: u32 = 0x0106_0014;

const BASE_ENABLE: u64 = 1 << 11;
const BASE_X2APIC: u64 = 1 << 10;
/// Bits 0 to 7, 9, and those above the widest physical address.
const BASE_RESERVED: u64 = 0xFFF0_0000_0000_02FF;

const SVR_ENABLE: u32 = 1 << 8;
const SVR_NO_BROADCAST: u32 = 1 << 12;

const LVT_MASKED: u32 = 1 << 16;
const LVT_MODE: u32 = 7 << 8;
const LVT_EXTINT: u32 = 7 << 8;
/// Delivery status and remote IRR.
const LVT_READ_ONLY: u32 = 1 << 12 | 1 << 14;

const ICR_WRITABLE: u64 = 0xFFFF_FFFF_000C_CFFF;
const ICR_STATUS: u64 = 1 << 12;

const SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
const RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
const ILLEGAL_REGISTER: u32 = 1 << 7;

/// What a write asks of the world outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    None,
    /// An interprocessor interrupt goes out.
    Send(Message),
    /// The end of this level-triggered vector is broadcast.
    Eoi(u8),
}

/// One bit a vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Vectors([u32; 8]);

impl Vectors {
    fn set(&mut self, vector: u8, on: bool) {
        let (word, bit) = (usize::from(vector / 32), 1 << (vector % 32));
        if on { self.0[word] |= bit } else { self.0[word] &= !bit }
    }

    fn has(&self, vector: u8) -> bool {
        self.0[usize::from(vector / 32)] >> (vector % 32) & 1 != 0
    }

    fn highest(&self) -> Option<u8> {
        let word = self.0.iter().rposition(|word| *word != 0)?;
        Some((word * 32) as u8 + self.0[word].ilog2() as u8)
    }
}

/// The registers.
#[derive(Debug)]
pub(super) struct Registers {
    id: u32,
    base: u64,
    tpr: u8,
    /// As the register shows it: in xAPIC mode the logical id is in the top byte.
    ldr: u32,
    dfr: u32,
    svr: u32,
    isr: Vectors,
    tmr: Vectors,
    irr: Vectors,
    esr: u32,
    /// Errors since the ESR was last written.
    errors: u32,
    icr: u64,
    lvt_cmci: u32,
    /// Timer, thermal, performance, LINT0, LINT1, error.
    lvt: [u32; 6],
    timer: Timer,
}

impl Registers {
    /// The APIC with id `id` after reset; id 0 is the boot processor's.
    pub(super) fn new(id: u32) -> Self {
        let bsp = u64::from(id == 0) << 8;
        let mut this = Self {
            id,
            base: 0xFEE0_0000 | BASE_ENABLE | bsp,
            tpr: 0,
            ldr: 0,
            dfr: 0,
            svr: 0,
            isr: Vectors::default(),
            tmr: Vectors::default(),
            irr: Vectors::default(),
            esr: 0,
            errors: 0,
            icr: 0,
            lvt_cmci: 0,
            lvt: [0; 6],
            timer: Timer::new(),
        };
        this.reset();
        this
    }

    /// All registers but the id and the base (11.4.7.3). Firmware has LINT0 of the boot processor
    /// connect the PICs; without firmware, reset does.
    pub(super) fn reset(&mut self) {
        let Self { id, base, tpr, ldr, dfr, svr, isr, tmr, irr, esr, errors, icr, .. } = self;
        (*isr, *tmr, *irr) = Default::default();
        (*tpr, *esr, *errors, *icr) = (0, 0, 0, 0);
        (*dfr, *svr) = (u32::MAX, 0xFF);
        *ldr = if *base & BASE_X2APIC != 0 { x2apic_ldr(*id) } else { 0 };
        self.lvt_cmci = LVT_MASKED;
        self.lvt = [LVT_MASKED; 6];
        if self.id == 0 {
            *self.entry(reg::LVT_LINT0) = LVT_EXTINT;
        }
        self.timer = Timer::new();
    }

    /// IA32_APIC_BASE.
    pub(super) fn base(&self) -> u64 {
        self.base
    }

    /// Whether the APIC is globally enabled.
    pub(super) fn enabled(&self) -> bool {
        self.base & BASE_ENABLE != 0
    }

    pub(super) fn x2apic(&self) -> bool {
        self.base & (BASE_ENABLE | BASE_X2APIC) == BASE_ENABLE | BASE_X2APIC
    }

    /// Whether the APIC is enabled by software too, and with it accepts interrupts.
    fn accepts(&self) -> bool {
        self.enabled() && self.svr & SVR_ENABLE != 0
    }

    /// Sets IA32_APIC_BASE; false if the bits are illegal, or the transition (11.12.5).
    pub(super) fn set_base(&mut self, base: u64) -> bool {
        const DISABLED: u64 = 0;
        const XAPIC: u64 = BASE_ENABLE;
        const X2APIC: u64 = BASE_ENABLE | BASE_X2APIC;
        let legal = match (self.base & X2APIC, base & X2APIC) {
            (_, BASE_X2APIC) | (DISABLED, X2APIC) | (X2APIC, XAPIC) => false,
            _ => base & BASE_RESERVED == 0,
        };
        if !legal {
            return false;
        }
        let old = self.base & X2APIC;
        self.base = base;
        match base & X2APIC {
            DISABLED if old != DISABLED => self.reset(),
            X2APIC if old != X2APIC => {
                self.ldr = x2apic_ldr(self.id);
                self.icr &= 0xFFFF_FFFF;
            }
            _ => {}
        }
        true
    }

    /// How messages find this APIC.
    pub(super) fn address(&self) -> Address {
        Address {
            enabled: self.enabled(),
            accepts: self.accepts(),
            x2apic: self.x2apic(),
            flat: self.dfr >> 28 == 0xF,
            ldr: self.ldr,
        }
    }

    pub(super) fn tpr(&self) -> u8 {
        self.tpr
    }

    pub(super) fn set_tpr(&mut self, tpr: u8) {
        self.tpr = tpr;
    }

    /// Whether INTR of the PICs reaches the processor.
    pub(super) fn passes_intr(&self) -> bool {
        let lint0 = self.lvt[(reg::LVT_LINT0 - reg::LVT_TIMER) as usize];
        !self.enabled() || lint0 & (LVT_MASKED | LVT_MODE) == LVT_EXTINT
    }

    /// The vector to interrupt the processor with: the highest requested one whose class is above
    /// that of the processor priority (11.8.3).
    pub(super) fn pending(&self) -> Option<u8> {
        let vector = self.irr.highest().filter(|_| self.enabled())?;
        (vector >> 4 > self.ppr() >> 4).then_some(vector)
    }

    /// Moves the pending vector into service.
    pub(super) fn accept(&mut self) -> Option<u8> {
        let vector = self.pending()?;
        self.irr.set(vector, false);
        self.isr.set(vector, true);
        Some(vector)
    }

    /// A fixed or lowest-priority interrupt arrives over the bus.
    pub(super) fn receive(&mut self, vector: u8, level: bool) {
        if !self.accepts() {
            return;
        }
        if vector < 16 {
            self.error(RECEIVE_ILLEGAL_VECTOR);
            return;
        }
        self.irr.set(vector, true);
        self.tmr.set(vector, level);
    }

    /// Brings the timer up to `now`.
    pub(super) fn evaluate(&mut self, now: VmTime) {
        if self.timer.evaluate(now) {
            let entry = self.lvt[0];
            if entry & LVT_MASKED == 0 {
                self.receive(entry as u8, false);
            }
        }
    }

    /// When [`Registers::evaluate`] is to be called next.
    pub(super) fn next_event(&self) -> Option<VmTime> {
        self.timer.next().filter(|_| self.lvt[0] & LVT_MASKED == 0 && self.accepts())
    }

    pub(super) fn deadline(&self) -> Option<VmTime> {
        self.timer.deadline()
    }

    pub(super) fn set_deadline(&mut self, deadline: Option<VmTime>) {
        self.timer.set_deadline(deadline);
    }

    /// Reads register `number` in its page.
    pub(super) fn read(&mut self, number: u32, now: VmTime) -> u32 {
        match self.get(number, now) {
            Some(value) => value,
            None => {
                self.error(ILLEGAL_REGISTER);
                0
            }
        }
    }

    /// Writes register `number` in its page.
    pub(super) fn write(&mut self, number: u32, value: u32, now: VmTime) -> Effect {
        match number {
            reg::ICR2 => self.icr = self.icr & 0xFFFF_FFFF | u64::from(value & 0xFF00_0000) << 32,
            reg::ICR => {
                self.icr = self.icr & !0xFFFF_FFFF | u64::from(value) & ICR_WRITABLE;
                return self.send();
            }
            reg::LDR => self.ldr = value & 0xFF00_0000,
            reg::DFR => self.dfr = value | 0x0FFF_FFFF,
            reg::SELF_IPI => self.error(ILLEGAL_REGISTER),
            _ if writable(number).is_some() => return self.set(number, value, now),
            // What can be read only.
            _ if self.get(number, now).is_some() => {}
            _ => self.error(ILLEGAL_REGISTER),
        }
        Effect::None
    }

    /// Reads x2APIC MSR 0x800 + `number`; `None` means #GP.
    pub(super) fn read_msr(&mut self, number: u32, now: VmTime) -> Option<u64> {
        match number {
            reg::ICR => Some(self.icr),
            reg::APR | reg::RRD | reg::DFR | reg::ICR2 | reg::EOI => None,
            _ => self.get(number, now).map(u64::from),
        }
    }

    /// Writes x2APIC MSR 0x800 + `number`; `None` means #GP, with no effect.
    pub(super) fn write_msr(&mut self, number: u32, value: u64, now: VmTime) -> Option<Effect> {
        match number {
            reg::ICR => {
                if value & !(ICR_WRITABLE | ICR_STATUS) != 0 {
                    return None;
                }
                self.icr = value & ICR_WRITABLE;
                Some(self.send())
            }
            reg::SELF_IPI => {
                let vector = u8::try_from(value).ok()?;
                self.send_to_self(vector);
                Some(Effect::None)
            }
            _ => {
                let mask = match number {
                    reg::EOI | reg::ESR => 0,
                    reg::LVT_CMCI | reg::LVT_TIMER..=reg::LVT_ERROR => {
                        writable(number)? | LVT_READ_ONLY
                    }
                    _ => writable(number)?,
                };
                let value = u32::try_from(value).ok().filter(|value| value & !mask == 0)?;
                Some(self.set(number, value, now))
            }
        }
    }

    /// Registers that are the same in both modes, and those of the xAPIC.
    fn get(&self, number: u32, now: VmTime) -> Option<u32> {
        let word = (number % 8) as usize;
        Some(match number {
            reg::ID if self.x2apic() => self.id,
            reg::ID => self.id << 24,
            reg::VERSION => VERSION,
            reg::TPR => self.tpr.into(),
            reg::APR => self.apr().into(),
            reg::PPR => self.ppr().into(),
            reg::EOI | reg::RRD => 0,
            reg::LDR => self.ldr,
            reg::DFR => self.dfr,
            reg::SVR => self.svr,
            reg::ISR..reg::TMR => self.isr.0[word],
            reg::TMR..reg::IRR => self.tmr.0[word],
            reg::IRR..reg::ESR => self.irr.0[word],
            reg::ESR => self.esr,
            reg::LVT_CMCI => self.lvt_cmci,
            reg::ICR => self.icr as u32,
            reg::ICR2 => (self.icr >> 32) as u32,
            reg::LVT_TIMER..=reg::LVT_ERROR => self.lvt[(number - reg::LVT_TIMER) as usize],
            reg::INITIAL_COUNT => self.timer.initial(),
            reg::CURRENT_COUNT => self.timer.current(now),
            reg::DIVIDE => self.timer.divide(),
            _ => return None,
        })
    }

    /// Writes a register that both modes have.
    fn set(&mut self, number: u32, value: u32, now: VmTime) -> Effect {
        let value = value & writable(number).unwrap_or(0);
        match number {
            reg::TPR => self.tpr = value as u8,
            reg::EOI => return self.eoi(),
            reg::SVR => {
                self.svr = value;
                if value & SVR_ENABLE == 0 {
                    self.lvt_cmci |= LVT_MASKED;
                    self.lvt.iter_mut().for_each(|entry| *entry |= LVT_MASKED);
                }
            }
            reg::ESR => self.esr = std::mem::take(&mut self.errors),
            reg::INITIAL_COUNT => self.timer.set_initial(value, now),
            reg::DIVIDE => self.timer.set_divide(value, now),
            _ => {
                let masked = if self.accepts() { 0 } else { LVT_MASKED };
                *self.entry(number) = value | masked;
                if number == reg::LVT_TIMER {
                    self.timer.set_mode(Mode::of(value));
                }
            }
        }
        Effect::None
    }

    /// An entry of the local vector table.
    fn entry(&mut self, number: u32) -> &mut u32 {
        match number {
            reg::LVT_CMCI => &mut self.lvt_cmci,
            _ => &mut self.lvt[(number - reg::LVT_TIMER) as usize],
        }
    }

    /// Processor priority (11.8.3.1).
    fn ppr(&self) -> u8 {
        let in_service = self.isr.highest().unwrap_or(0) & 0xF0;
        if self.tpr >> 4 >= in_service >> 4 { self.tpr } else { in_service }
    }

    /// Arbitration priority (11.6.2.4).
    fn apr(&self) -> u8 {
        let class = |vectors: &Vectors| vectors.highest().unwrap_or(0) & 0xF0;
        let (in_service, requested) = (class(&self.isr), class(&self.irr));
        if self.tpr & 0xF0 >= requested && self.tpr & 0xF0 > in_service {
            self.tpr
        } else {
            (self.tpr & in_service & 0xF0).max(requested)
        }
    }

    fn eoi(&mut self) -> Effect {
        let Some(vector) = self.isr.highest() else { return Effect::None };
        self.isr.set(vector, false);
        if self.tmr.has(vector) && self.svr & SVR_NO_BROADCAST == 0 {
            Effect::Eoi(vector)
        } else {
            Effect::None
        }
    }

    /// What the interrupt command register says (11.6.1).
    fn send(&mut self) -> Effect {
        let icr = self.icr;
        let (vector, level, trigger) = (icr as u8, icr >> 14 & 1, icr >> 15 & 1);
        let Some(delivery) = Delivery::of(icr >> 8 & 7) else { return Effect::None };
        if delivery == Delivery::Init && level == 0 && trigger == 1 {
            // Level de-assert: for arbitration ids, which there are none of.
            return Effect::None;
        }
        if delivery.has_vector() && vector < 16 {
            self.error(SEND_ILLEGAL_VECTOR);
            return Effect::None;
        }
        let destination = match icr >> 18 & 3 {
            0 => self.destination(),
            1 if delivery == Delivery::Fixed => {
                self.send_to_self(vector);
                return Effect::None;
            }
            1 => Destination::Physical(self.id),
            2 => Destination::All,
            _ => Destination::Others(self.id),
        };
        Effect::Send(Message { destination, delivery, vector, level: false })
    }

    fn destination(&self) -> Destination {
        let (id, all) = if self.x2apic() {
            ((self.icr >> 32) as u32, u32::MAX)
        } else {
            ((self.icr >> 56) as u32, 0xFF)
        };
        match self.icr >> 11 & 1 {
            _ if id == all => Destination::All,
            0 => Destination::Physical(id),
            _ => Destination::Logical(id),
        }
    }

    fn send_to_self(&mut self, vector: u8) {
        if vector < 16 {
            self.error(SEND_ILLEGAL_VECTOR);
        } else {
            self.receive(vector, false);
        }
    }

    fn error(&mut self, error: u32) {
        self.errors |= error;
        let entry = self.lvt[(reg::LVT_ERROR - reg::LVT_TIMER) as usize];
        let vector = entry as u8;
        if entry & LVT_MASKED == 0 && vector >= 16 {
            self.receive(vector, false);
        }
    }

    /// The registers in the layout of their page, with the timer at `now`. The id is where an
    /// xAPIC has it in both modes, as KVM does it.
    pub(super) fn save(&self, now: VmTime) -> LapicState {
        let register = |number| self.get(number, now).unwrap_or(0);
        let mut registers: Vec<_> = (0..64).map(register).collect();
        registers[reg::ID as usize] = self.id << 24;
        registers[reg::ERRORS as usize] = self.errors;
        LapicState { registers }
    }

    /// Takes on what [`Registers::save`] gave, or another emulator. The id stays.
    pub(super) fn restore(&mut self, base: u64, state: &LapicState, now: VmTime) {
        let get = |number: u32| state.registers.get(number as usize).copied().unwrap_or(0);
        let vectors = |first| Vectors(std::array::from_fn(|i| get(first + i as u32)));
        let masked = |number| get(number) & writable(number).unwrap_or(0);
        self.base = base;
        self.reset();
        self.tpr = get(reg::TPR) as u8;
        if !self.x2apic() {
            self.ldr = get(reg::LDR) & 0xFF00_0000;
        }
        // An x2APIC has none; an xAPIC that it becomes has what it had before.
        self.dfr = get(reg::DFR) | 0x0FFF_FFFF;
        self.svr = masked(reg::SVR);
        self.isr = vectors(reg::ISR);
        self.tmr = vectors(reg::TMR);
        self.irr = vectors(reg::IRR);
        self.esr = get(reg::ESR);
        self.errors = get(reg::ERRORS);
        self.icr = (u64::from(get(reg::ICR2)) << 32 | u64::from(get(reg::ICR))) & ICR_WRITABLE;
        // Emulators with six entries have nothing there.
        self.lvt_cmci = match masked(reg::LVT_CMCI) {
            0 => LVT_MASKED,
            entry => entry,
        };
        self.lvt = std::array::from_fn(|i| masked(reg::LVT_TIMER + i as u32));
        self.timer.restore(
            Mode::of(self.lvt[0]),
            get(reg::INITIAL_COUNT),
            get(reg::CURRENT_COUNT),
            get(reg::DIVIDE),
            now,
        );
    }
}

/// The bits that a write can change, for registers that are written alike in both modes.
fn writable(number: u32) -> Option<u32> {
    Some(match number {
        reg::TPR => 0xFF,
        reg::EOI | reg::ESR | reg::INITIAL_COUNT => u32::MAX,
        reg::SVR => SVR_NO_BROADCAST | 0x3FF,
        reg::LVT_TIMER => LVT_MASKED | 3 << 17 | 0xFF,
        reg::LVT_ERROR => LVT_MASKED | 0xFF,
        reg::LVT_LINT0 | reg::LVT_LINT1 => LVT_MASKED | 1 << 15 | 1 << 13 | LVT_MODE | 0xFF,
        reg::LVT_CMCI | reg::LVT_TIMER..reg::LVT_LINT0 => LVT_MASKED | LVT_MODE | 0xFF,
        reg::DIVIDE => 0b1011,
        _ => return None,
    })
}

/// The logical id that an x2APIC derives from its id (11.12.10.2): cluster and a bit in it.
fn x2apic_ldr(id: u32) -> u32 {
    id >> 4 << 16 | 1 << (id & 0xF)
}

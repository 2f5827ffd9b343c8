//! The register machine of a 16550A UART (National Semiconductor PC16550D data sheet, 1995,
//! sections 8 "Registers" and 8.11 "FIFO interrupt mode operation").
//!
//! The serial line has no speed: a byte written is at once ready for the host, and bytes from the
//! host arrive as fast as there is room for them. Only the character time-out follows the baud rate
//! that is programmed. Word length and parity are kept and change no byte. A terminal is at the
//! other end, so CTS, DSR and DCD are asserted.

use std::collections::VecDeque;
use std::time::Duration;

use board::{StateError, VmTime};
use serde::{Deserialize, Serialize};

/// Bytes in each of the two FIFOs.
pub const FIFO_SIZE: usize = 16;

/// Baud rate for a divisor of one: a 1.8432 MHz crystal, divided by 16.
const BASE_BAUD: u64 = 115_200;

/// Interrupt Enable Register.
mod ier {
    pub(super) const ERBFI: u8 = 1 << 0;
    pub(super) const ETBEI: u8 = 1 << 1;
    pub(super) const ELSI: u8 = 1 << 2;
    pub(super) const EDSSI: u8 = 1 << 3;
    pub(super) const ALL: u8 = 0x0F;
}

/// Interrupt Identification Register: the sources from the highest priority to the lowest.
mod iir {
    pub(super) const LINE_STATUS: u8 = 0x06;
    pub(super) const DATA_AVAILABLE: u8 = 0x04;
    pub(super) const CHARACTER_TIMEOUT: u8 = 0x0C;
    pub(super) const THR_EMPTY: u8 = 0x02;
    pub(super) const MODEM_STATUS: u8 = 0x00;
    pub(super) const NONE: u8 = 0x01;
    pub(super) const FIFOS_ENABLED: u8 = 0xC0;
}

/// FIFO Control Register.
mod fcr {
    pub(super) const ENABLE: u8 = 1 << 0;
    pub(super) const RCVR_RESET: u8 = 1 << 1;
    pub(super) const XMIT_RESET: u8 = 1 << 2;
    pub(super) const DMA_MODE: u8 = 1 << 3;
    pub(super) const TRIGGER: u8 = 0xC0;
    /// What stays programmed; the reset bits clear themselves.
    pub(super) const KEPT: u8 = ENABLE | DMA_MODE | TRIGGER;
}

/// Line Control Register.
mod lcr {
    pub(super) const WORD_LENGTH: u8 = 0x03;
    pub(super) const STOP_BITS: u8 = 1 << 2;
    pub(super) const PARITY_ENABLE: u8 = 1 << 3;
    pub(super) const SET_BREAK: u8 = 1 << 6;
    pub(super) const DLAB: u8 = 1 << 7;
}

/// Modem Control Register.
mod mcr {
    pub(super) const DTR: u8 = 1 << 0;
    pub(super) const RTS: u8 = 1 << 1;
    pub(super) const OUT1: u8 = 1 << 2;
    pub(super) const OUT2: u8 = 1 << 3;
    pub(super) const LOOP: u8 = 1 << 4;
    pub(super) const ALL: u8 = 0x1F;
}

/// Line Status Register.
mod lsr {
    pub(super) const DR: u8 = 1 << 0;
    pub(super) const OE: u8 = 1 << 1;
    pub(super) const PE: u8 = 1 << 2;
    pub(super) const FE: u8 = 1 << 3;
    pub(super) const BI: u8 = 1 << 4;
    pub(super) const THRE: u8 = 1 << 5;
    pub(super) const TEMT: u8 = 1 << 6;
    pub(super) const FIFO_ERROR: u8 = 1 << 7;
    /// Errors that belong to one character and wait with it in the FIFO.
    pub(super) const OF_CHARACTER: u8 = PE | FE | BI;
}

/// Modem Status Register: four inputs, and in the low half what has changed in each.
mod msr {
    pub(super) const TERI: u8 = 1 << 2;
    pub(super) const CTS: u8 = 1 << 4;
    pub(super) const DSR: u8 = 1 << 5;
    pub(super) const RI: u8 = 1 << 6;
    pub(super) const DCD: u8 = 1 << 7;
    pub(super) const DELTAS: u8 = 0x0F;
    pub(super) const INPUTS: u8 = 0xF0;
    /// What a terminal that is switched on asserts.
    pub(super) const TERMINAL: u8 = CTS | DSR | DCD;
}

/// A received character and its bits of LSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Received {
    byte: u8,
    errors: u8,
}

/// The UART.
#[derive(Debug)]
pub struct Uart16550 {
    ier: u8,
    fcr: u8,
    lcr: u8,
    mcr: u8,
    msr: u8,
    scr: u8,
    divisor: u16,
    /// OE, and PE, FE and BI of a character since it came to the top of the FIFO.
    errors: u8,
    rcvr: VecDeque<Received>,
    xmit: Vec<u8>,
    thre_interrupt: bool,
    timed_out: bool,
    /// When a character was last received or read, which starts the time-out.
    rcvr_touched: VmTime,
}

impl Default for Uart16550 {
    fn default() -> Self {
        Self {
            ier: 0,
            fcr: 0,
            lcr: 0,
            mcr: 0,
            msr: msr::TERMINAL,
            scr: 0,
            divisor: 12,
            errors: 0,
            rcvr: VecDeque::with_capacity(FIFO_SIZE),
            xmit: Vec::with_capacity(FIFO_SIZE),
            thre_interrupt: false,
            timed_out: false,
            rcvr_touched: VmTime::ZERO,
        }
    }
}

impl Uart16550 {
    /// The state after power-on: polled 16450 mode at 9600 baud.
    pub fn new() -> Self {
        Self::default()
    }

    /// The MR pin. Bytes that the host has not taken yet stay: they have left the guest.
    pub fn reset(&mut self) {
        *self = Self { xmit: std::mem::take(&mut self.xmit), ..Self::default() };
    }

    /// The INTR pin through the gate that OUT2 opens on a PC.
    pub fn intr(&self) -> bool {
        self.mcr & mcr::OUT2 != 0 && self.source() != iir::NONE
    }

    /// When the character time-out interrupt is due; `None` if nobody would see it.
    pub fn deadline(&self) -> Option<VmTime> {
        let waits = self.fifos() && self.ier & ier::ERBFI != 0 && !self.data_available();
        (waits && !self.rcvr.is_empty() && !self.timed_out).then(|| self.timeout_at())
    }

    /// Brings the character time-out up to `now`.
    pub fn evaluate(&mut self, now: VmTime) {
        if self.fifos() && !self.rcvr.is_empty() && now >= self.timeout_at() {
            self.timed_out = true;
        }
    }

    /// Reads the register at `offset`, 0 to 7.
    pub fn read(&mut self, offset: u8, now: VmTime) -> u8 {
        self.evaluate(now);
        let dlab = self.lcr & lcr::DLAB != 0;
        match offset & 7 {
            0 if dlab => self.divisor as u8,
            0 => self.read_rbr(now),
            1 if dlab => (self.divisor >> 8) as u8,
            1 => self.ier,
            2 => self.read_iir(),
            3 => self.lcr,
            4 => self.mcr,
            5 => self.read_lsr(),
            6 => {
                let value = self.msr;
                self.msr &= !msr::DELTAS;
                value
            }
            _ => self.scr,
        }
    }

    /// Writes the register at `offset`, 0 to 7.
    pub fn write(&mut self, offset: u8, value: u8, now: VmTime) {
        self.evaluate(now);
        let dlab = self.lcr & lcr::DLAB != 0;
        match offset & 7 {
            0 if dlab => self.divisor = self.divisor & 0xFF00 | u16::from(value),
            0 => self.write_thr(value, now),
            1 if dlab => self.divisor = self.divisor & 0x00FF | u16::from(value) << 8,
            1 => {
                let set = value & !self.ier;
                self.ier = value & ier::ALL;
                if set & ier::ETBEI != 0 && self.xmit.is_empty() {
                    self.thre_interrupt = true;
                }
            }
            2 => self.write_fcr(value),
            3 => {
                let set = value & !self.lcr;
                self.lcr = value;
                if set & lcr::SET_BREAK != 0 && self.looped() {
                    self.push(Received { byte: 0, errors: lsr::BI }, now);
                }
            }
            4 => {
                self.mcr = value & mcr::ALL;
                self.update_modem_inputs();
            }
            // LSR is for factory tests only and MSR has no writable bit.
            5 | 6 => {}
            _ => self.scr = value,
        }
    }

    /// How many characters the receiver has room for. In loopback mode it is cut off from the line.
    pub fn room(&self) -> usize {
        if self.looped() { 0 } else { self.rcvr_capacity().saturating_sub(self.rcvr.len()) }
    }

    /// Whether the guest has read all that was received.
    pub fn rcvr_empty(&self) -> bool {
        self.rcvr.is_empty()
    }

    /// `bytes` arrive on the line. What exceeds [`Uart16550::room`] is an overrun.
    pub fn receive(&mut self, bytes: &[u8], now: VmTime) {
        for &byte in bytes {
            self.push(Received { byte, errors: 0 }, now);
        }
    }

    /// The line is held in the spacing state for longer than a character.
    pub fn receive_break(&mut self, now: VmTime) {
        if !self.looped() {
            self.push(Received { byte: 0, errors: lsr::BI }, now);
        }
    }

    /// Bytes for the line, in order.
    pub fn output(&self) -> &[u8] {
        &self.xmit
    }

    /// The first `count` bytes of [`Uart16550::output`] are on their way.
    pub fn sent(&mut self, count: usize) {
        if !self.xmit.is_empty() {
            self.xmit.drain(..count.min(self.xmit.len()));
            self.thre_interrupt |= self.xmit.is_empty();
        }
    }

    fn fifos(&self) -> bool {
        self.fcr & fcr::ENABLE != 0
    }

    fn looped(&self) -> bool {
        self.mcr & mcr::LOOP != 0
    }

    fn rcvr_capacity(&self) -> usize {
        if self.fifos() { FIFO_SIZE } else { 1 }
    }

    /// Four times the time that a character takes, after the last touch.
    fn timeout_at(&self) -> VmTime {
        let data = 5 + u64::from(self.lcr & lcr::WORD_LENGTH);
        let parity = u64::from(self.lcr & lcr::PARITY_ENABLE != 0);
        let stop = 1 + u64::from(self.lcr & lcr::STOP_BITS != 0);
        let bits = 1 + data + parity + stop;
        let divisor = u64::from(self.divisor.max(1));
        self.rcvr_touched + Duration::from_nanos(4 * bits * divisor * 1_000_000_000 / BASE_BAUD)
    }

    fn data_available(&self) -> bool {
        let trigger = match (self.fifos(), self.fcr & fcr::TRIGGER) {
            (false, _) | (true, 0x00) => 1,
            (true, 0x40) => 4,
            (true, 0x80) => 8,
            (true, _) => 14,
        };
        self.rcvr.len() >= trigger
    }

    /// The bits of IIR for the enabled source of the highest priority.
    fn source(&self) -> u8 {
        if self.ier & ier::ELSI != 0 && self.errors != 0 {
            iir::LINE_STATUS
        } else if self.ier & ier::ERBFI != 0 && self.data_available() {
            iir::DATA_AVAILABLE
        } else if self.ier & ier::ERBFI != 0 && self.timed_out {
            iir::CHARACTER_TIMEOUT
        } else if self.ier & ier::ETBEI != 0 && self.thre_interrupt {
            iir::THR_EMPTY
        } else if self.ier & ier::EDSSI != 0 && self.msr & msr::DELTAS != 0 {
            iir::MODEM_STATUS
        } else {
            iir::NONE
        }
    }

    fn read_iir(&mut self) -> u8 {
        let source = self.source();
        if source == iir::THR_EMPTY {
            self.thre_interrupt = false;
        }
        if self.fifos() { source | iir::FIFOS_ENABLED } else { source }
    }

    fn read_lsr(&mut self) -> u8 {
        let mut value = self.errors;
        if !self.rcvr.is_empty() {
            value |= lsr::DR;
            if self.fifos() && self.rcvr.iter().any(|c| c.errors != 0) {
                value |= lsr::FIFO_ERROR;
            }
        }
        if self.xmit.is_empty() {
            value |= lsr::THRE | lsr::TEMT;
        }
        self.errors = 0;
        if let Some(top) = self.rcvr.front_mut() {
            top.errors = 0;
        }
        value
    }

    fn read_rbr(&mut self, now: VmTime) -> u8 {
        let Some(character) = self.rcvr.pop_front() else {
            return 0;
        };
        self.timed_out = false;
        self.rcvr_touched = now;
        if let Some(top) = self.rcvr.front() {
            self.errors |= top.errors;
        }
        character.byte
    }

    fn write_thr(&mut self, value: u8, now: VmTime) {
        self.thre_interrupt = false;
        if self.looped() {
            self.push(Received { byte: value, errors: 0 }, now);
            self.thre_interrupt = self.xmit.is_empty();
        } else if !self.fifos() {
            self.xmit.clear();
            self.xmit.push(value);
        } else if self.xmit.len() < FIFO_SIZE {
            self.xmit.push(value);
        }
    }

    fn write_fcr(&mut self, value: u8) {
        let toggled = (value ^ self.fcr) & fcr::ENABLE != 0;
        // The other bits are programmed only while bit 0 is written as one.
        let programmed = if value & fcr::ENABLE != 0 { value } else { 0 };
        if toggled || programmed & fcr::RCVR_RESET != 0 {
            self.rcvr.clear();
            self.errors &= !lsr::OF_CHARACTER;
            self.timed_out = false;
        }
        if toggled || programmed & fcr::XMIT_RESET != 0 {
            self.sent(FIFO_SIZE);
        }
        self.fcr = programmed & fcr::KEPT;
    }

    /// A character leaves the receiver's shift register.
    fn push(&mut self, character: Received, now: VmTime) {
        if self.rcvr.len() >= self.rcvr_capacity() {
            self.errors |= lsr::OE;
            if self.fifos() {
                return;
            }
            self.rcvr.clear();
        }
        if self.rcvr.is_empty() {
            self.errors |= character.errors;
        }
        self.rcvr.push_back(character);
        self.rcvr_touched = now;
    }

    /// MSR after MCR was written: in loopback mode the inputs are connected to the outputs.
    fn update_modem_inputs(&mut self) {
        let inputs = if self.looped() {
            [
                (mcr::RTS, msr::CTS),
                (mcr::DTR, msr::DSR),
                (mcr::OUT1, msr::RI),
                (mcr::OUT2, msr::DCD),
            ]
            .into_iter()
            .filter(|&(output, _)| self.mcr & output != 0)
            .fold(0, |inputs, (_, input)| inputs | input)
        } else {
            msr::TERMINAL
        };
        let old = self.msr & msr::INPUTS;
        let mut deltas = (old ^ inputs) >> 4;
        if inputs & msr::RI != 0 {
            // TERI tells of the trailing edge only.
            deltas &= !msr::TERI;
        }
        self.msr = inputs | self.msr & msr::DELTAS | deltas;
    }
}

/// The saved state of a UART.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UartV1 {
    ier: u8,
    fcr: u8,
    lcr: u8,
    mcr: u8,
    msr: u8,
    scr: u8,
    divisor: u16,
    errors: u8,
    rcvr: Vec<Received>,
    xmit: Vec<u8>,
    thre_interrupt: bool,
    timed_out: bool,
    rcvr_touched: VmTime,
}

impl Uart16550 {
    /// The kind of the section that holds a [`UartV1`].
    pub const KIND: &'static str = "uart16550";

    /// The state now.
    pub fn save(&self) -> UartV1 {
        let Self {
            ier,
            fcr,
            lcr,
            mcr,
            msr,
            scr,
            divisor,
            errors,
            ref rcvr,
            ref xmit,
            thre_interrupt,
            timed_out,
            rcvr_touched,
        } = *self;
        UartV1 {
            ier,
            fcr,
            lcr,
            mcr,
            msr,
            scr,
            divisor,
            errors,
            rcvr: rcvr.iter().copied().collect(),
            xmit: xmit.clone(),
            thre_interrupt,
            timed_out,
            rcvr_touched,
        }
    }

    /// Takes on `state`.
    ///
    /// # Errors
    /// [`StateError::Damaged`] when a FIFO holds more than it can or a reserved bit is set.
    pub fn restore(&mut self, state: UartV1) -> Result<(), StateError> {
        let UartV1 {
            ier,
            fcr,
            lcr,
            mcr,
            msr,
            scr,
            divisor,
            errors,
            rcvr,
            xmit,
            thre_interrupt,
            timed_out,
            rcvr_touched,
        } = state;
        let damaged = |cause: &str| StateError::Damaged { kind: Self::KIND, cause: cause.into() };
        if ier & !ier::ALL != 0 || mcr & !mcr::ALL != 0 || fcr & !fcr::KEPT != 0 {
            return Err(damaged("a reserved bit of IER, MCR or FCR is set"));
        }
        if errors & !(lsr::OE | lsr::OF_CHARACTER) != 0
            || rcvr.iter().any(|c| c.errors & !lsr::OF_CHARACTER != 0)
        {
            return Err(damaged("an error bit is none of LSR's"));
        }
        let capacity = if fcr & fcr::ENABLE != 0 { FIFO_SIZE } else { 1 };
        // A reset leaves the transmitter's FIFO filled.
        if rcvr.len() > capacity || xmit.len() > FIFO_SIZE {
            return Err(damaged("a FIFO holds more than its size"));
        }
        *self = Self {
            ier,
            fcr,
            lcr,
            mcr,
            msr,
            scr,
            divisor,
            errors,
            rcvr: rcvr.into(),
            xmit,
            thre_interrupt,
            timed_out,
            rcvr_touched,
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T0: VmTime = VmTime(1_000);

    fn read(uart: &mut Uart16550, offset: u8) -> u8 {
        uart.read(offset, T0)
    }

    fn write(uart: &mut Uart16550, offset: u8, value: u8) {
        uart.write(offset, value, T0);
    }

    /// 115200 8N1, all interrupts enabled, FIFOs as `fcr` says.
    fn uart(fcr: u8) -> Uart16550 {
        let mut uart = Uart16550::new();
        for (offset, value) in [(3, 0x80), (0, 1), (1, 0), (3, 3), (2, fcr), (4, 0x0B), (1, 0x0F)] {
            write(&mut uart, offset, value);
        }
        read(&mut uart, 2);
        uart
    }

    fn send_all(uart: &mut Uart16550) -> Vec<u8> {
        let bytes = uart.output().to_vec();
        uart.sent(bytes.len());
        bytes
    }

    #[test]
    fn registers_after_reset() {
        let mut uart = uart(0xC7);
        write(&mut uart, 7, 0x5A);
        write(&mut uart, 0, b'x');
        uart.receive(b"abc", T0);
        uart.reset();
        assert_eq!(uart.output(), b"x", "output that has left the guest is not lost");
        uart.sent(1);
        uart.reset();
        let values: Vec<u8> = (1..7).map(|offset| read(&mut uart, offset)).collect();
        assert_eq!(values, [0, 0x01, 0, 0, 0x60, 0xB0]);
        assert!(!uart.intr());
    }

    #[test]
    fn dlab_selects_the_divisor() {
        let mut uart = Uart16550::new();
        write(&mut uart, 3, 0x80);
        write(&mut uart, 0, 0x34);
        write(&mut uart, 1, 0x12);
        assert_eq!((read(&mut uart, 0), read(&mut uart, 1)), (0x34, 0x12));
        write(&mut uart, 3, 0x03);
        assert_eq!((read(&mut uart, 0), read(&mut uart, 1)), (0, 0));
        assert!(uart.output().is_empty());
    }

    #[test]
    fn reserved_bits_read_as_zero() {
        let mut uart = Uart16550::new();
        write(&mut uart, 1, 0xFF);
        write(&mut uart, 4, 0xEF);
        write(&mut uart, 7, 0xA5);
        write(&mut uart, 5, 0xFF);
        write(&mut uart, 6, 0xFF);
        assert_eq!(
            (read(&mut uart, 1), read(&mut uart, 4), read(&mut uart, 7)),
            (0x0F, 0x0F, 0xA5)
        );
        assert_eq!((read(&mut uart, 5), read(&mut uart, 6)), (0x60, 0xB0));
    }

    #[test]
    fn sixteen_bytes_wait_in_the_transmitter_and_thre_stays_clear() {
        let mut uart = uart(0x01);
        for byte in 0..20 {
            write(&mut uart, 0, byte);
        }
        assert_eq!(uart.output(), (0..16).collect::<Vec<u8>>(), "the FIFO takes no 17th byte");
        assert_eq!(read(&mut uart, 5) & 0x60, 0);
        assert_eq!(read(&mut uart, 2), 0xC1);
        uart.sent(15);
        assert_eq!((read(&mut uart, 5) & 0x60, uart.output()), (0, &[15][..]));
        uart.sent(1);
        assert_eq!((read(&mut uart, 5) & 0x60, read(&mut uart, 2)), (0x60, 0xC2));
    }

    #[test]
    fn without_fifos_the_holding_register_is_overwritten() {
        let mut uart = uart(0);
        write(&mut uart, 0, 1);
        write(&mut uart, 0, 2);
        assert_eq!(send_all(&mut uart), [2]);
    }

    #[test]
    fn thre_interrupt_is_cleared_by_iir_or_thr_and_raised_by_ier() {
        let mut uart = uart(0x01);
        assert!(!uart.intr());
        write(&mut uart, 0, b'a');
        assert!(!uart.intr());
        send_all(&mut uart);
        assert!(uart.intr());
        assert_eq!((read(&mut uart, 2), uart.intr()), (0xC2, false));
        send_all(&mut uart);
        assert!(!uart.intr(), "only the passage to empty interrupts");
        write(&mut uart, 0, b'b');
        send_all(&mut uart);
        write(&mut uart, 0, b'c');
        assert!(!uart.intr(), "a write of THR clears it");
        send_all(&mut uart);
        // What Linux checks at start-up: enabling the interrupt anew raises it anew.
        for _ in 0..2 {
            write(&mut uart, 1, 0);
            write(&mut uart, 1, 0x02);
            assert_eq!(read(&mut uart, 2), 0xC2);
        }
        write(&mut uart, 1, 0x02);
        assert_eq!(read(&mut uart, 2), 0xC1, "no change of the bit, no interrupt");
    }

    #[test]
    fn an_iir_read_clears_thre_only_when_it_shows_thre() {
        let mut uart = uart(0x01);
        write(&mut uart, 0, b'a');
        send_all(&mut uart);
        uart.receive(b"x", T0);
        assert_eq!(read(&mut uart, 2), 0xC4);
        read(&mut uart, 0);
        assert_eq!(read(&mut uart, 2), 0xC2);
        assert_eq!(read(&mut uart, 2), 0xC1);
    }

    #[test]
    fn trigger_levels() {
        for (bits, level) in [(0x00, 1), (0x40, 4), (0x80, 8), (0xC0, 14)] {
            let mut uart = uart(0x01 | bits);
            for n in 1..=16 {
                uart.receive(&[n], T0);
                assert_eq!(uart.intr(), n >= level, "trigger {level}, {n} bytes");
            }
            assert_eq!(uart.room(), 0);
            for left in (0..16).rev() {
                read(&mut uart, 0);
                assert_eq!(uart.intr(), left >= level, "trigger {level}, {left} bytes left");
            }
        }
    }

    #[test]
    fn sources_in_the_order_of_their_priority() {
        let mut uart = uart(0x01);
        write(&mut uart, 4, 0x19); // loopback: CTS falls
        write(&mut uart, 0, b'a'); // data and THRE
        write(&mut uart, 3, 0x43); // break: an error behind `a`
        read(&mut uart, 0);
        assert_eq!(read(&mut uart, 2), 0xC6);
        assert_eq!(read(&mut uart, 5), 0x60 | 0x91);
        assert_eq!(read(&mut uart, 2), 0xC4);
        read(&mut uart, 0);
        assert_eq!(read(&mut uart, 2), 0xC2);
        assert_eq!(read(&mut uart, 2), 0xC0);
        read(&mut uart, 6);
        assert_eq!(read(&mut uart, 2), 0xC1);
    }

    #[test]
    fn disabled_sources_are_not_shown() {
        let mut uart = uart(0x01);
        uart.receive(b"a", T0);
        uart.receive_break(T0);
        write(&mut uart, 1, 0);
        assert_eq!((read(&mut uart, 2), uart.intr(), uart.deadline()), (0xC1, false, None));
    }

    #[test]
    fn out2_gates_the_interrupt_line_and_not_iir() {
        let mut uart = uart(0x01);
        uart.receive(b"a", T0);
        write(&mut uart, 4, 0x03);
        assert_eq!((uart.intr(), read(&mut uart, 2)), (false, 0xC4));
        write(&mut uart, 4, 0x0B);
        assert!(uart.intr());
    }

    #[test]
    fn the_character_timeout_comes_after_four_character_times() {
        let mut uart = uart(0x81); // trigger at 8
        let four_characters = Duration::from_nanos(4 * 10 * 1_000_000_000 / 115_200);
        assert_eq!(uart.deadline(), None);
        uart.receive(b"ab", T0);
        let due = T0 + four_characters;
        assert_eq!(uart.deadline(), Some(due));
        uart.evaluate(due - Duration::from_nanos(1));
        assert!(!uart.intr());
        uart.evaluate(due);
        assert_eq!((uart.intr(), uart.deadline()), (true, None));
        assert_eq!(uart.read(2, due), 0xCC);
        uart.receive(b"c", due);
        assert_eq!(uart.read(2, due), 0xCC, "a character that comes later does not clear it");
        assert_eq!(uart.read(0, due), b'a');
        assert_eq!((uart.intr(), uart.deadline()), (false, Some(due + four_characters)));
        uart.receive(b"12345678", due);
        assert_eq!((uart.read(2, due), uart.deadline()), (0xC4, None));
    }

    #[test]
    fn the_character_time_follows_the_line_parameters() {
        for (lcr, bits) in [(0x00, 7), (0x03, 10), (0x07, 11), (0x0B, 11), (0x0F, 12)] {
            let mut uart = uart(0xC1);
            for (offset, value) in [(3, 0x80), (0, 0x80), (1, 0x01), (3, lcr)] {
                write(&mut uart, offset, value);
            }
            uart.receive(b"a", T0);
            let four = 4 * bits * 384 * 1_000_000_000 / 115_200;
            assert_eq!(uart.deadline(), Some(T0 + Duration::from_nanos(four)));
        }
    }

    #[test]
    fn there_is_no_timeout_without_fifos() {
        let mut uart = uart(0);
        uart.receive(b"a", T0);
        assert_eq!((uart.read(2, VmTime(u64::MAX)), uart.deadline(), uart.room()), (0x04, None, 0));
    }

    #[test]
    fn overrun_keeps_the_fifo_and_replaces_the_buffer_register() {
        let mut fifo = uart(0x01);
        fifo.receive(&(0..17).collect::<Vec<u8>>(), T0);
        assert_eq!(read(&mut fifo, 2), 0xC6);
        assert_eq!(read(&mut fifo, 5), 0x63);
        assert_eq!(read(&mut fifo, 5), 0x61, "OE is cleared by the read");
        assert_eq!(
            (0..16).map(|_| read(&mut fifo, 0)).collect::<Vec<_>>(),
            (0..16).collect::<Vec<_>>()
        );
        assert_eq!(read(&mut fifo, 5), 0x60);

        let mut single = uart(0);
        single.receive(b"ab", T0);
        assert_eq!(read(&mut single, 5), 0x63);
        assert_eq!(read(&mut single, 0), b'b');
    }

    #[test]
    fn a_break_shows_when_its_character_is_at_the_top() {
        let mut uart = uart(0x01);
        uart.receive(b"a", T0);
        uart.receive_break(T0);
        uart.receive(b"b", T0);
        assert_eq!(read(&mut uart, 5), 0xE1, "an error waits in the FIFO");
        assert_eq!(read(&mut uart, 2), 0xC4);
        assert_eq!(read(&mut uart, 0), b'a');
        assert_eq!(read(&mut uart, 2), 0xC6);
        assert_eq!(read(&mut uart, 5), 0xF1);
        assert_eq!(read(&mut uart, 5), 0x61);
        assert_eq!((read(&mut uart, 0), read(&mut uart, 0)), (0, b'b'));
    }

    #[test]
    fn parity_and_framing_errors_are_reported_with_their_character() {
        for error in [lsr::PE, lsr::FE] {
            let mut uart = uart(0x01);
            uart.push(Received { byte: 1, errors: error }, T0);
            assert_eq!((read(&mut uart, 2), read(&mut uart, 5)), (0xC6, 0xE1 | error));
            assert_eq!((read(&mut uart, 2), read(&mut uart, 5)), (0xC4, 0x61));
        }
    }

    #[test]
    fn loopback_connects_data_break_and_modem_lines() {
        let mut uart = uart(0x01);
        write(&mut uart, 4, 0x10);
        assert_eq!(read(&mut uart, 6), 0x0B, "CTS, DSR and DCD fell");
        for (outputs, inputs) in [(0x01, 0x20), (0x02, 0x10), (0x04, 0x40), (0x08, 0x80)] {
            write(&mut uart, 4, 0x10 | outputs);
            assert_eq!(read(&mut uart, 6) & 0xF0, inputs);
        }
        // What Linux's driver looks for.
        write(&mut uart, 4, 0x1A);
        assert_eq!(read(&mut uart, 6) & 0xF0, 0x90);
        write(&mut uart, 0, b'L');
        assert!(uart.output().is_empty());
        assert_eq!((read(&mut uart, 5), read(&mut uart, 0)), (0x61, b'L'));
        assert_eq!(uart.room(), 0, "host input waits");
        uart.receive_break(T0);
        assert_eq!(read(&mut uart, 5), 0x60);
        write(&mut uart, 4, 0x0B);
        assert_eq!((read(&mut uart, 6) & 0xF0, uart.room()), (0xB0, 16));
    }

    #[test]
    fn teri_tells_of_the_trailing_edge_of_ring() {
        let mut uart = uart(0x01);
        write(&mut uart, 4, 0x10);
        read(&mut uart, 6);
        write(&mut uart, 4, 0x14);
        assert_eq!(read(&mut uart, 6), 0x40);
        write(&mut uart, 4, 0x1C);
        assert_eq!((read(&mut uart, 2), read(&mut uart, 6)), (0xC0, 0xC8));
        write(&mut uart, 4, 0x18);
        assert_eq!((read(&mut uart, 6), read(&mut uart, 6)), (0x84, 0x80));
    }

    #[test]
    fn fcr_clears_the_fifos_it_names() {
        let mut uart = uart(0x01);
        uart.receive_break(T0);
        write(&mut uart, 0, b'x');
        write(&mut uart, 2, 0x03);
        assert_eq!((read(&mut uart, 5) & 0x9F, uart.output()), (0, &b"x"[..]));
        uart.receive(b"y", T0);
        write(&mut uart, 2, 0x05);
        assert_eq!((read(&mut uart, 5), uart.output()), (0x61, &b""[..]));
        write(&mut uart, 2, 0x00);
        assert_eq!((read(&mut uart, 5), read(&mut uart, 2)), (0x60, 0x02), "FIFOs off clears them");
        write(&mut uart, 2, 0xC6);
        uart.receive(b"z", T0);
        assert_eq!(read(&mut uart, 2), 0x04, "without bit 0 nothing is programmed");
    }

    #[test]
    fn a_state_survives_and_a_damaged_one_is_refused() {
        let mut old = uart(0x81);
        old.receive(b"in", T0);
        old.receive_break(T0);
        write(&mut old, 0, b'o');
        let saved = old.save();
        let mut new = Uart16550::new();
        new.restore(saved.clone()).unwrap();
        assert_eq!(new.save(), saved);
        assert_eq!((new.deadline(), new.output()), (old.deadline(), old.output()));

        let refused = |change: fn(&mut UartV1)| {
            let mut state = saved.clone();
            change(&mut state);
            let mut uart = Uart16550::new();
            uart.restore(state).is_err() && uart.save() == Uart16550::new().save()
        };
        assert!(refused(|s| s.ier = 0x10));
        assert!(refused(|s| s.errors = 0x20));
        assert!(refused(|s| s.xmit = vec![0; 17]));
        assert!(refused(|s| s.fcr = 0));
    }

    /// The probes of Linux's 8250 driver (`autoconfig`), in their order.
    #[test]
    fn linux_takes_it_for_a_16550a_without_quirks() {
        let mut uart = Uart16550::new();
        for ier in [0x00, 0x0F] {
            write(&mut uart, 1, ier);
            assert_eq!(read(&mut uart, 1) & 0x0F, ier);
        }
        write(&mut uart, 1, 0);
        write(&mut uart, 4, 0x1A);
        assert_eq!(read(&mut uart, 6) & 0xF0, 0x90);
        // No EFR behind LCR 0xBF, and FIFOs that work.
        for (offset, value) in [(4, 0), (3, 0xBF), (2, 0), (3, 0), (2, 0x01)] {
            write(&mut uart, offset, value);
        }
        assert_eq!(read(&mut uart, 2) >> 6, 3);
        for lcr in [0x80, 0xBF] {
            write(&mut uart, 3, lcr);
            assert_ne!(read(&mut uart, 2), 0, "no 16650");
        }
        // A National Super I/O would show another bank behind LCR 0xE0.
        for loopback in [0x00, 0x10] {
            write(&mut uart, 3, 0);
            write(&mut uart, 4, loopback);
            write(&mut uart, 3, 0xE0);
            assert_eq!(read(&mut uart, 2) & 0x10, 0);
        }
        // No FIFO of 64 bytes, no UUE bit.
        for lcr in [0x00, 0x80] {
            write(&mut uart, 3, lcr);
            write(&mut uart, 2, 0x21);
            assert_eq!(read(&mut uart, 2) >> 5, 6);
        }
        write(&mut uart, 3, 0);
        write(&mut uart, 1, 0x40);
        assert_eq!(read(&mut uart, 1), 0);
    }

    #[test]
    fn random_accesses_keep_the_invariants() {
        let mut random = super::super::testing::Random::new(16550);
        let mut uart = Uart16550::new();
        let mut now = T0;
        for _ in 0..200_000 {
            now = now + Duration::from_nanos(random.below(1_000_000));
            match random.below(8) {
                0..=2 => uart.write(random.byte(), random.byte(), now),
                3..=5 => drop(uart.read(random.byte(), now)),
                6 => uart.receive(&[1, 2, 3][..random.below(4) as usize], now),
                _ => uart.sent(random.below(20) as usize),
            }
            uart.evaluate(now);
            assert!(uart.rcvr.len() <= uart.rcvr_capacity() && uart.xmit.len() <= FIFO_SIZE);
            assert!(uart.deadline().is_none_or(|at| at > now));
            assert!(!uart.intr() || uart.read(2, now) & 1 == 0);
            let saved = uart.save();
            uart.restore(saved.clone()).unwrap();
            assert_eq!(uart.save(), saved);
        }
    }
}

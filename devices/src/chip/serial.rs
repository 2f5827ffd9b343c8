//! A serial port of a PC: a 16550A with its interrupt line and a character port.

use board::device::{Paused, Region, Tag};
use board::{Attach, Device, IrqLine, Snapshot, StateError, VmTime};

use super::glue::{Deadline, Pin};
use super::uart16550::{FIFO_SIZE, Uart16550, UartV1};
use crate::chardev::CharPort;

const TAG_TIMEOUT: Tag = Tag(0);
const TAG_PORT: Tag = Tag(1);

/// A serial port: eight byte-wide registers, one region.
pub struct Serial {
    uart: Uart16550,
    intr: Pin,
    timeout: Deadline,
    port: Box<dyn CharPort>,
    /// The last read gave all that there was room for, so the port may have more.
    more_input: bool,
    paused: bool,
}

impl Serial {
    /// A port that interrupts on `irq` and is connected to `port`.
    pub fn new(irq: IrqLine, mut port: Box<dyn CharPort>, attach: &Attach) -> Self {
        port.set_notifier(attach.notifier(TAG_PORT));
        Self {
            uart: Uart16550::new(),
            intr: Pin::new(irq),
            timeout: Deadline::new(attach, TAG_TIMEOUT),
            port,
            more_input: true,
            paused: false,
        }
    }

    fn update(&mut self) {
        self.intr.set(self.uart.intr());
        self.timeout.set(self.uart.deadline());
    }

    /// Hands the port what the transmitter holds.
    fn transmit(&mut self) {
        if !self.uart.output().is_empty() && !self.paused {
            let taken = self.port.write(self.uart.output());
            self.uart.sent(taken);
        }
    }

    /// Takes from the port what the receiver has room for; a break comes behind it.
    fn receive(&mut self, now: VmTime) {
        let room = self.uart.room().min(FIFO_SIZE);
        self.more_input = true;
        if room == 0 || self.paused {
            return;
        }
        let mut buffer = [0; FIFO_SIZE];
        let count = self.port.read(&mut buffer[..room]);
        self.uart.receive(&buffer[..count], now);
        if count < room {
            self.more_input = false;
            if self.port.take_break() {
                self.uart.receive_break(now);
            }
        }
    }
}

impl Device for Serial {
    fn read(&mut self, _region: Region, offset: u64, data: &mut [u8]) {
        let now = self.timeout.now();
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = self.uart.read(offset as u8 + i as u8, now);
        }
        if self.more_input && self.uart.rcvr_empty() {
            self.receive(now);
        }
        self.update();
    }

    fn write(&mut self, _region: Region, offset: u64, data: &[u8]) {
        let now = self.timeout.now();
        for (i, &byte) in data.iter().enumerate() {
            self.uart.write(offset as u8 + i as u8, byte, now);
            // A write of THR ends the THR-empty interrupt; when the port takes the byte the next one
            // begins, and an edge-triggered controller must see that.
            self.intr.set(self.uart.intr());
            self.transmit();
        }
        if self.more_input && self.uart.rcvr_empty() {
            self.receive(now);
        }
        self.update();
    }

    fn event(&mut self, tag: Tag, now: VmTime) {
        if tag == TAG_PORT {
            self.transmit();
            self.receive(now);
        } else {
            self.timeout.fired();
        }
        self.uart.evaluate(now);
        self.update();
    }

    fn reset(&mut self) {
        self.uart.reset();
        self.update();
    }

    fn pause(&mut self) -> Paused {
        self.transmit();
        self.paused = true;
        self.update();
        Paused::Done
    }

    fn resume(&mut self) {
        self.paused = false;
        self.event(TAG_PORT, self.timeout.now());
    }

    fn snapshot(&mut self) -> Option<&mut dyn board::state::ErasedSnapshot> {
        Some(self)
    }
}

impl Snapshot for Serial {
    const KIND: &'static str = Uart16550::KIND;
    const VERSION: u32 = 1;
    type State = UartV1;

    fn save(&self) -> UartV1 {
        let Self { uart, intr: _, timeout: _, port: _, more_input: _, paused: _ } = self;
        uart.save()
    }

    fn restore(&mut self, state: UartV1) -> Result<(), StateError> {
        self.uart.restore(state)?;
        self.intr.restore(self.uart.intr());
        self.timeout.set(self.uart.deadline());
        self.more_input = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use board::device::Notifier;
    use board::irq::IrqProbe;

    use super::super::testing::Bench;
    use super::*;

    const R: Region = Region(0);

    /// A port whose other end the test holds. It takes `room` bytes more.
    #[derive(Default)]
    struct Wire {
        input: VecDeque<u8>,
        output: Vec<u8>,
        room: usize,
        has_break: bool,
        notifier: Option<Notifier>,
    }

    #[derive(Clone, Default)]
    struct WirePort(Arc<Mutex<Wire>>);

    impl WirePort {
        fn feed(&self, bytes: &[u8]) {
            let mut wire = self.0.lock().unwrap();
            wire.input.extend(bytes);
            wire.notifier.as_ref().unwrap().notify();
        }

        fn make_room(&self, room: usize) {
            let mut wire = self.0.lock().unwrap();
            wire.room = room;
            wire.notifier.as_ref().unwrap().notify();
        }

        fn waiting(&self) -> usize {
            self.0.lock().unwrap().input.len()
        }

        fn output(&self) -> Vec<u8> {
            self.0.lock().unwrap().output.clone()
        }
    }

    impl CharPort for WirePort {
        fn set_notifier(&mut self, notifier: Notifier) {
            self.0.lock().unwrap().notifier = Some(notifier);
        }

        fn write(&mut self, data: &[u8]) -> usize {
            let mut wire = self.0.lock().unwrap();
            let count = data.len().min(wire.room);
            wire.room -= count;
            wire.output.extend(&data[..count]);
            count
        }

        fn read(&mut self, data: &mut [u8]) -> usize {
            let mut wire = self.0.lock().unwrap();
            let count = data.len().min(wire.input.len());
            for byte in &mut data[..count] {
                *byte = wire.input.pop_front().unwrap();
            }
            count
        }

        fn take_break(&mut self) -> bool {
            std::mem::take(&mut self.0.lock().unwrap().has_break)
        }
    }

    /// A port with FIFOs on, trigger at 1, all interrupts enabled and room for `room` bytes.
    fn serial(room: usize) -> (Bench, WirePort, Arc<IrqProbe>) {
        let (line, probe) = IrqLine::probe();
        let wire = WirePort::default();
        let bench = Bench::plug(|attach| Serial::new(line, Box::new(wire.clone()), attach));
        wire.0.lock().unwrap().room = room;
        for (offset, value) in [(3, 0x80), (0, 1), (1, 0), (3, 3), (2, 1), (4, 0x0B), (1, 0x0F)] {
            bench.write(R, offset, value);
        }
        bench.read(R, 2);
        probe.take_edges();
        (bench, wire, probe)
    }

    #[test]
    fn output_goes_through_at_once_and_each_byte_raises_thre_anew() {
        let (bench, wire, probe) = serial(100);
        for &byte in b"hello" {
            bench.write(R, 0, byte);
            assert_eq!(bench.read(R, 5) & 0x60, 0x60);
        }
        assert_eq!(wire.output(), b"hello");
        assert_eq!(probe.take_edges(), 5);
        assert_eq!((bench.read(R, 2), probe.level()), (0xC2, false));
    }

    #[test]
    fn a_slow_reader_loses_nothing() {
        let (mut bench, wire, probe) = serial(3);
        for byte in 0..16 {
            bench.write(R, 0, byte);
        }
        bench.write(R, 1, 0x02);
        assert_eq!((bench.read(R, 5) & 0x60, wire.output().len()), (0, 3));
        wire.make_room(5);
        bench.deliver();
        assert_eq!((bench.read(R, 5) & 0x60, probe.level()), (0, false));
        wire.make_room(50);
        bench.deliver();
        assert_eq!(bench.read(R, 5) & 0x60, 0x60);
        assert!(probe.level());
        assert_eq!(wire.output(), (0..16).collect::<Vec<u8>>());
    }

    #[test]
    fn input_waits_in_the_port_while_the_fifo_is_full() {
        let (mut bench, wire, probe) = serial(0);
        let sent: Vec<u8> = (0..50).collect();
        wire.feed(&sent);
        bench.deliver();
        assert_eq!((wire.waiting(), probe.level()), (34, true));
        let mut read = Vec::new();
        while bench.read(R, 5) & 0x01 != 0 {
            read.push(bench.read(R, 0));
        }
        assert_eq!((read, bench.read(R, 5) & 0x02), (sent, 0));
        assert!(!probe.level());
    }

    #[test]
    fn input_waits_in_the_port_during_loopback() {
        let (mut bench, wire, _) = serial(10);
        bench.write(R, 4, 0x1B);
        wire.feed(b"host");
        bench.deliver();
        bench.write(R, 0, b'L');
        assert_eq!((bench.read(R, 0), wire.waiting()), (b'L', 4));
        bench.write(R, 4, 0x0B);
        assert_eq!((bench.read(R, 0), wire.output()), (b'h', vec![]));
    }

    #[test]
    fn a_break_comes_behind_the_input() {
        let (mut bench, wire, _) = serial(0);
        wire.0.lock().unwrap().has_break = true;
        wire.feed(&[7; 16]);
        bench.deliver();
        for _ in 0..16 {
            assert_eq!((bench.read(R, 5) & 0x11, bench.read(R, 0)), (0x01, 7));
        }
        assert_eq!((bench.read(R, 5) & 0x11, bench.read(R, 0)), (0x11, 0));
    }

    #[test]
    fn the_timeout_interrupts_by_itself() {
        let (mut bench, wire, probe) = serial(0);
        bench.write(R, 2, 0xC1);
        wire.feed(b"a");
        bench.deliver();
        bench.advance(Duration::from_secs(1));
        bench.deliver();
        assert!(probe.level());
        assert_eq!(bench.read(R, 2), 0xCC);
    }

    #[test]
    fn a_paused_port_takes_no_input() {
        let (mut bench, wire, _) = serial(0);
        assert_eq!(bench.slot.lock().pause(), Paused::Done);
        wire.feed(b"a");
        bench.deliver();
        assert_eq!(wire.waiting(), 1);
        bench.slot.lock().resume();
        assert_eq!(bench.read(R, 0), b'a');
    }

    #[test]
    fn a_restored_port_makes_no_edge_and_goes_on() {
        let (mut bench, wire, _) = serial(2);
        wire.feed(b"ab");
        bench.deliver();
        for &byte in b"xyz" {
            bench.write(R, 0, byte);
        }
        let (other, other_wire, other_probe) = serial(9);
        bench.copy_to(&other);
        assert_eq!(other_probe.take_edges(), 0);
        other.slot.lock().resume();
        assert_eq!(other_wire.output(), b"z");
        assert_eq!((other.read(R, 0), other.read(R, 0)), (b'a', b'b'));
    }
}

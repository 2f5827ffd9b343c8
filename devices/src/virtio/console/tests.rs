use std::sync::{Arc, Mutex};

use board::device::Notifier;

use super::super::driver::{Buffer, Rig, Ring, peek, poke};
use super::*;

/// The host's end of a port.
#[derive(Default)]
struct Wire {
    input: VecDeque<u8>,
    output: Vec<u8>,
    room: usize,
    focus: Option<bool>,
    notifier: Option<Notifier>,
}

#[derive(Clone, Default)]
struct WirePort(Arc<Mutex<Wire>>);

impl WirePort {
    fn with<R>(&self, act: impl FnOnce(&mut Wire) -> R) -> R {
        let mut wire = self.0.lock().unwrap();
        let result = act(&mut wire);
        wire.notifier.as_ref().unwrap().notify();
        result
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
        data[..count].iter_mut().zip(wire.input.drain(..count)).for_each(|(to, from)| *to = from);
        count
    }
    fn take_break(&mut self) -> bool {
        false
    }
    fn take_focus(&mut self) -> Option<bool> {
        self.0.lock().unwrap().focus.take()
    }
}

const IN_AT: u64 = Rig::BUFFERS;
const OUT_AT: u64 = Rig::BUFFERS + 0x1000;
const CONTROL_AT: u64 = Rig::BUFFERS + 0x2000;

/// A console at number 0 and a port "agent" at number 1, each with room for `room` bytes.
fn rig(room: usize) -> (Rig, WirePort, WirePort) {
    let (first, second) = (WirePort::default(), WirePort::default());
    first.0.lock().unwrap().room = room;
    second.0.lock().unwrap().room = room;
    let rig = Rig::new(4 << 20, |attach, _| {
        let spec = |number, console, name, port: &WirePort| PortSpec {
            number,
            console,
            name,
            port: Box::new(port.clone()),
        };
        let agent = Some("agent".to_owned());
        let ports = vec![spec(0, true, None, &first), spec(1, false, agent, &second)];
        Box::new(Console::new(ports, 2, attach))
    });
    (rig, first, second)
}

/// Sends a control message and returns the answers' id, event, value and rest.
fn control(
    rig: &mut Rig,
    rings: &mut [Ring],
    message: (u32, u16, u16),
) -> Vec<(u32, u16, u16, Vec<u8>)> {
    let (id, event, value) = message;
    let bytes = u64::from(id) | u64::from(event) << 32 | u64::from(value) << 48;
    poke(&rig.ram, CONTROL_AT, &bytes.to_le_bytes());
    rings[CONTROL_OUT].add(&[Buffer::out(CONTROL_AT, 8)]);
    for slot in 1..9 {
        rings[CONTROL_IN].add(&[Buffer::room(CONTROL_AT + 64 * slot, 64)]);
    }
    rig.kick(CONTROL_OUT as u32);
    rig.kick(CONTROL_IN as u32);
    assert!(rings[CONTROL_OUT].take().is_some());
    let mut answers = Vec::new();
    while let Some((head, len)) = rings[CONTROL_IN].take() {
        let at = u64::from_le_bytes(peek(
            &rig.ram,
            rings[CONTROL_IN].descriptors + 16 * u64::from(head),
        ));
        let data = peek::<64>(&rig.ram, at);
        let word = u64::from_le_bytes(data[..8].try_into().unwrap());
        answers.push((
            word as u32,
            (word >> 32) as u16,
            (word >> 48) as u16,
            data[8..len as usize].to_vec(),
        ));
    }
    answers
}

#[test]
fn a_driver_without_multiport_has_one_port_both_ways() {
    let (mut rig, wire, _) = rig(100);
    let mut rings = rig.start(0, 8);
    poke(&rig.ram, OUT_AT, b"hello");
    rings[1].add(&[Buffer::out(OUT_AT, 3), Buffer::out(OUT_AT + 3, 2)]);
    rig.kick(1);
    assert_eq!(
        (rings[1].take().is_some(), &wire.0.lock().unwrap().output[..]),
        (true, &b"hello"[..])
    );
    wire.with(|wire| wire.input.extend(b"abc"));
    rig.turn();
    rings[0].add(&[Buffer::room(IN_AT, 2)]);
    rings[0].add(&[Buffer::room(IN_AT + 2, 8)]);
    rig.kick(0);
    assert_eq!((rings[0].take(), rings[0].take()), (Some((0, 2)), Some((1, 1))));
    assert_eq!(&peek::<3>(&rig.ram, IN_AT), b"abc");
    rings[0].add(&[Buffer::room(IN_AT, 4)]);
    rig.kick(0);
    assert_eq!(rings[0].take(), None, "a buffer waits for input");
    wire.with(|wire| wire.input.extend(b"z"));
    rig.turn();
    assert!(rings[0].take().is_some_and(|(_, len)| len == 1));
}

#[test]
fn ports_are_announced_named_and_opened() {
    let (mut rig, _, agent) = rig(100);
    assert_eq!(rig.config::<4>(4), [2, 0, 0, 0]);
    let mut rings = rig.start(u64::MAX, 16);
    assert_eq!(rings.len(), 6);
    let added = control(&mut rig, &mut rings, (u32::MAX, event::DEVICE_READY, 1));
    assert_eq!(added, [(0, event::DEVICE_ADD, 1, vec![]), (1, event::DEVICE_ADD, 1, vec![])]);
    let first = control(&mut rig, &mut rings, (0, event::PORT_READY, 1));
    assert_eq!(first, [(0, event::CONSOLE_PORT, 1, vec![]), (0, event::PORT_OPEN, 1, vec![])]);
    let second = control(&mut rig, &mut rings, (1, event::PORT_READY, 1));
    assert_eq!(second, [(1, event::PORT_NAME, 1, b"agent".to_vec())]);
    agent.with(|wire| wire.focus = Some(true));
    rig.turn();
    assert_eq!(
        control(&mut rig, &mut rings, (7, event::PORT_READY, 1)),
        [(1, event::PORT_OPEN, 1, vec![])]
    );
}

#[test]
fn input_waits_until_the_guest_opens_the_port() {
    let (mut rig, _, agent) = rig(100);
    let mut rings = rig.start(u64::MAX, 16);
    rings[4].add(&[Buffer::room(IN_AT, 8)]);
    agent.with(|wire| wire.input.extend(b"data"));
    rig.kick(4);
    assert_eq!((rings[4].take(), agent.0.lock().unwrap().input.len()), (None, 4));
    control(&mut rig, &mut rings, (1, event::PORT_OPEN, 1));
    assert_eq!(rings[4].take(), Some((0, 4)));
    assert_eq!(&peek::<4>(&rig.ram, IN_AT), b"data");
}

#[test]
fn a_slow_reader_loses_nothing_also_across_a_restore() {
    let (mut rig, wire, _) = rig(3);
    let mut rings = rig.start(0, 8);
    poke(&rig.ram, OUT_AT, b"0123456789");
    rings[1].add(&[Buffer::out(OUT_AT, 5)]);
    rings[1].add(&[Buffer::out(OUT_AT + 5, 5)]);
    rig.kick(1);
    assert_eq!(rings[1].take(), None);
    let (other, other_wire, _) = self::rig(0);
    rig.copy_to(&other, 4 << 20);
    wire.with(|wire| wire.room = 3);
    rig.turn();
    assert!(rings[1].take().is_some());
    wire.with(|wire| wire.room = 30);
    rig.turn();
    assert_eq!(wire.0.lock().unwrap().output, b"0123456789");
    assert!(rings[1].take().is_some());
    other_wire.0.lock().unwrap().room = 100;
    other.slot.lock().resume();
    let mut other = other;
    other.turn();
    assert_eq!(other_wire.0.lock().unwrap().output, b"3456789");
    assert_eq!(peek::<2>(&other.ram, rings[1].used + 2), [2, 0]);
}

#[test]
fn a_driver_that_takes_no_answers_hears_no_more() {
    let (mut rig, _, _) = rig(1);
    let mut rings = rig.start(u64::MAX, 16);
    poke(&rig.ram, CONTROL_AT, &[0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 1, 0]);
    for _ in 0..2000 {
        rings[CONTROL_OUT].add(&[Buffer::out(CONTROL_AT, 8)]);
        rig.kick(CONTROL_OUT as u32);
        rings[CONTROL_OUT].take();
    }
    let queued = super::super::with_device(&rig.slot, |d: &mut Console, _| d.messages.len());
    assert_eq!(queued, Some(8 * MAX_PORTS as usize));
}

#[test]
fn an_early_kernel_writes_letters() {
    let (rig, wire, _) = rig(9);
    for letter in b"oops" {
        rig.write(0x108, u32::from(*letter));
    }
    assert_eq!(wire.0.lock().unwrap().output, b"oops");
}

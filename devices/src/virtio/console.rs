//! The console device (Virtio 1.2, 5.3): ports between guest and character devices, of which some
//! are terminals (`virtconsole`) and others plain byte streams with a name (`virtserialport`).

use std::collections::VecDeque;

use board::device::{Attach, Paused, Tag};
use board::state::{ErasedSnapshot, Snapshot, StateError};
use board::time::VmTime;
use serde::{Deserialize, Serialize};

use super::Io;
use super::chain::Chain;
use super::device::{CONSOLE, Kind, VirtioDevice, read_bytes};
use crate::chardev::CharPort;

/// Feature bits (5.3.3).
const F_MULTIPORT: u64 = 1 << 1;
const F_EMERG_WRITE: u64 = 1 << 2;

const FEATURE_NAMES: &[(u32, &str)] =
    &[(0, "CONSOLE_F_SIZE"), (1, "CONSOLE_F_MULTIPORT"), (2, "CONSOLE_F_EMERG_WRITE")];

/// Offset of the emergency write in the configuration, and the bytes of that.
const EMERG_WR: usize = 8;
const CONFIG_BYTES: usize = 12;

/// Queues of the control messages: to the driver, from the driver.
const CONTROL_IN: usize = 2;
const CONTROL_OUT: usize = 3;

/// Control messages (5.3.6.2).
mod event {
    pub(super) const DEVICE_READY: u16 = 0;
    pub(super) const DEVICE_ADD: u16 = 1;
    pub(super) const PORT_READY: u16 = 3;
    pub(super) const CONSOLE_PORT: u16 = 4;
    pub(super) const PORT_OPEN: u16 = 6;
    pub(super) const PORT_NAME: u16 = 7;
}

/// The most ports: QEMU's number.
pub const MAX_PORTS: u32 = 31;

/// Bytes that are moved at once.
const PIECE: usize = 4096;

/// A port to be.
pub struct PortSpec {
    /// Its number; 0 is the one that a driver without multiport has.
    pub number: u32,
    /// The guest makes a terminal of it.
    pub console: bool,
    /// The name that the guest shows.
    pub name: Option<String>,
    /// The other end.
    pub port: Box<dyn CharPort>,
}

/// A port.
struct Port {
    number: u32,
    console: bool,
    name: Option<String>,
    port: Box<dyn CharPort>,
    /// Somebody in the guest has it open.
    guest_open: bool,
    /// Somebody on the host is at the other end.
    host_open: bool,
    /// Output that the host has no room for yet: the chain and how much of it is done.
    output: Option<(Chain, u32)>,
    /// Head and progress of that output when the device was saved.
    restored: Option<(u16, u32)>,
}

impl Port {
    /// The queues of its input and its output.
    fn queues(&self) -> (usize, usize) {
        match self.number {
            0 => (0, 1),
            n => (2 + 2 * n as usize, 3 + 2 * n as usize),
        }
    }

    /// Moves input to the guest, as far as it has buffers.
    fn pump_in(&mut self, io: &mut Io<'_>) {
        let (queue, _) = self.queues();
        let mut buffer = [0; PIECE];
        while self.guest_open {
            let Some(chain) = io.pop(queue) else {
                if io.enable_bell(queue) {
                    continue;
                }
                break;
            };
            let room = PIECE.min(chain.writable_len() as usize);
            let count = self.port.read(&mut buffer[..room]);
            if count == 0 && room > 0 {
                io.unpop(queue, chain);
                break;
            }
            chain.write_at(io.ram(), 0, &buffer[..count]);
            io.push(queue, chain, count as u32);
        }
        io.signal(queue);
    }

    /// Moves output to the host, as far as that has room.
    fn pump_out(&mut self, io: &mut Io<'_>) {
        let (_, queue) = self.queues();
        let mut buffer = [0; PIECE];
        loop {
            let Some((chain, mut done)) = self.output.take().or_else(|| Some((io.pop(queue)?, 0)))
            else {
                if io.enable_bell(queue) {
                    continue;
                }
                break;
            };
            loop {
                let count = chain.read_at(io.ram(), done, &mut buffer);
                if count == 0 {
                    io.push(queue, chain, 0);
                    break;
                }
                let taken = self.port.write(&buffer[..count]);
                done += taken as u32;
                if taken < count {
                    self.output = Some((chain, done));
                    return io.signal(queue);
                }
            }
        }
        io.signal(queue);
    }
}

/// The device.
pub struct Console {
    max_ports: u32,
    ports: Vec<Port>,
    /// Control messages that the driver has no buffers for yet.
    messages: VecDeque<Vec<u8>>,
    paused: bool,
}

impl Console {
    /// A device with these ports and room for `max_ports` (at most [`MAX_PORTS`]). Ports beyond that
    /// are left out.
    pub fn new(ports: Vec<PortSpec>, max_ports: u32, attach: &Attach) -> Self {
        let max_ports = max_ports.clamp(1, MAX_PORTS);
        let ports = ports.into_iter().filter(|spec| spec.number < max_ports);
        let mut ports: Vec<Port> = ports
            .map(|PortSpec { number, console, name, port }| Port {
                number,
                console,
                name,
                port,
                guest_open: false,
                host_open: false,
                output: None,
                restored: None,
            })
            .collect();
        for port in &mut ports {
            port.port.set_notifier(attach.notifier(Tag(port.number)));
        }
        Self { max_ports, ports, messages: VecDeque::new(), paused: false }
    }

    fn port(&mut self, number: u32) -> Option<&mut Port> {
        self.ports.iter_mut().find(|port| port.number == number)
    }

    /// The number of the port that a queue belongs to.
    fn number(queue: usize) -> u32 {
        match queue {
            0 | 1 => 0,
            queue => (queue as u32 - 2) / 2,
        }
    }

    /// Queues a message to the driver.
    fn tell(&mut self, port: u32, event: u16, value: u16, more: &[u8]) {
        // A driver that asks and asks and takes no answer hears no more.
        if self.messages.len() < 8 * MAX_PORTS as usize {
            let mut message = port.to_le_bytes().to_vec();
            message.extend(event.to_le_bytes());
            message.extend(value.to_le_bytes());
            message.extend(more);
            self.messages.push_back(message);
        }
    }

    /// Sends queued messages, as far as the driver has buffers.
    fn pump_messages(&mut self, io: &mut Io<'_>) {
        while let Some(message) = self.messages.front() {
            let Some(chain) = io.pop(CONTROL_IN) else {
                if io.enable_bell(CONTROL_IN) {
                    continue;
                }
                break;
            };
            let count = chain.write_at(io.ram(), 0, message);
            io.push(CONTROL_IN, chain, count as u32);
            self.messages.pop_front();
        }
        io.signal(CONTROL_IN);
    }

    /// A message of the driver's.
    fn control(&mut self, message: [u8; 8]) {
        let [a, b, c, d, e0, e1, v0, v1] = message;
        let number = u32::from_le_bytes([a, b, c, d]);
        let value = u16::from_le_bytes([v0, v1]);
        match u16::from_le_bytes([e0, e1]) {
            event::DEVICE_READY if value == 1 => {
                let numbers: Vec<u32> = self.ports.iter().map(|port| port.number).collect();
                for number in numbers {
                    self.tell(number, event::DEVICE_ADD, 1, &[]);
                }
            }
            event::PORT_READY if value == 1 => {
                let Some(port) = self.port(number) else { return };
                let (console, host_open) = (port.console, port.host_open);
                let name = port.name.clone();
                if console {
                    self.tell(number, event::CONSOLE_PORT, 1, &[]);
                }
                if let Some(name) = name {
                    self.tell(number, event::PORT_NAME, 1, name.as_bytes());
                }
                // A terminal is open for the guest also where nobody looks at it.
                if console || host_open {
                    self.tell(number, event::PORT_OPEN, 1, &[]);
                }
            }
            event::PORT_OPEN => {
                if let Some(port) = self.port(number) {
                    port.guest_open = value == 1;
                }
            }
            _ => {}
        }
    }

    /// Looks what the host has for a port, or has room for.
    fn look(&mut self, number: u32, io: &mut Io<'_>) {
        let multiport = io.has(F_MULTIPORT);
        let Some(port) = self.port(number) else { return };
        if let Some(open) = port.port.take_focus()
            && port.host_open != open
        {
            port.host_open = open;
            if multiport && !port.console {
                self.tell(number, event::PORT_OPEN, open.into(), &[]);
            }
        }
        if self.paused || !io.is_active() {
            return;
        }
        if let Some(port) = self.port(number) {
            port.pump_in(io);
            port.pump_out(io);
        }
        self.pump_messages(io);
    }
}

impl VirtioDevice for Console {
    fn kind(&self) -> Kind {
        CONSOLE
    }

    fn features(&self) -> u64 {
        F_MULTIPORT | F_EMERG_WRITE
    }

    fn queue_sizes(&self) -> Vec<u16> {
        // Each port has two, and the control messages have two.
        let mut sizes = vec![128; 2 + 2 * self.max_ports as usize];
        (sizes[CONTROL_IN], sizes[CONTROL_OUT]) = (32, 32);
        sizes
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let mut config = [0; CONFIG_BYTES];
        config[4..8].copy_from_slice(&self.max_ports.to_le_bytes());
        read_bytes(&config, offset, data);
    }

    fn write_config(&mut self, offset: usize, data: &[u8], _io: &mut Io<'_>) {
        // A kernel that cannot do better yet writes letter by letter (5.3.6.1).
        if offset == EMERG_WR
            && let (Some(&letter), Some(port)) = (data.first(), self.port(0))
        {
            port.port.write(&[letter]);
        }
    }

    fn activate(&mut self, io: &mut Io<'_>) {
        // Without multiport nobody says that port 0 is open.
        if !io.has(F_MULTIPORT)
            && let Some(port) = self.port(0)
        {
            port.guest_open = true;
        }
    }

    fn notify(&mut self, queue: usize, io: &mut Io<'_>) {
        match queue {
            CONTROL_IN => self.pump_messages(io),
            CONTROL_OUT => {
                io.serve(CONTROL_OUT, |io, chain| {
                    if let Some(message) = chain.read_array(io.ram(), 0) {
                        self.control(message);
                    }
                    io.push(CONTROL_OUT, chain, 0);
                });
                self.pump_messages(io);
                for port in &mut self.ports {
                    port.pump_in(io);
                }
            }
            queue => {
                let Some(port) = self.port(Self::number(queue)) else { return };
                if queue == port.queues().0 { port.pump_in(io) } else { port.pump_out(io) }
            }
        }
    }

    fn event(&mut self, tag: Tag, _now: VmTime, io: &mut Io<'_>) {
        self.look(tag.0, io);
    }

    fn reset(&mut self) -> Paused {
        self.messages.clear();
        for port in &mut self.ports {
            port.guest_open = false;
            (port.output, port.restored) = (None, None);
        }
        Paused::Done
    }

    fn pause(&mut self, _io: &mut Io<'_>) -> Paused {
        self.paused = true;
        Paused::Done
    }

    fn resume(&mut self, io: &mut Io<'_>) {
        self.paused = false;
        for port in &mut self.ports {
            if let Some((head, done)) = port.restored.take() {
                port.output = io.take_up(port.queues().1, head).map(|chain| (chain, done));
            }
        }
        let numbers: Vec<u32> = self.ports.iter().map(|port| port.number).collect();
        for number in numbers {
            self.look(number, io);
        }
    }

    fn state(&self) -> Option<&dyn ErasedSnapshot> {
        Some(self)
    }

    fn state_mut(&mut self) -> Option<&mut dyn ErasedSnapshot> {
        Some(self)
    }

    fn feature_names(&self) -> &'static [(u32, &'static str)] {
        FEATURE_NAMES
    }
}

/// The saved state of a port.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct PortV1 {
    number: u32,
    guest_open: bool,
    host_open: bool,
    /// Head and progress of output that is not done.
    output: Option<(u16, u32)>,
}

/// The saved state.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ConsoleV1 {
    ports: Vec<PortV1>,
    messages: Vec<Vec<u8>>,
}

impl Snapshot for Console {
    const KIND: &'static str = "virtio-console";
    const VERSION: u32 = 1;
    type State = ConsoleV1;

    fn save(&self) -> ConsoleV1 {
        let Self { max_ports: _, ports, messages, paused: _ } = self;
        let port = |port: &Port| {
            let Port { number, console: _, name: _, port: _, guest_open, host_open, .. } = port;
            let output = port.output.as_ref().map(|(chain, done)| (chain.head(), *done));
            let (guest_open, host_open) = (*guest_open, *host_open);
            PortV1 { number: *number, guest_open, host_open, output: output.or(port.restored) }
        };
        ConsoleV1 {
            ports: self.ports.iter().map(port).take(ports.len()).collect(),
            messages: messages.iter().cloned().collect(),
        }
    }

    fn restore(&mut self, state: ConsoleV1) -> Result<(), StateError> {
        let ConsoleV1 { ports, messages } = state;
        let numbers = || self.ports.iter().map(|port| port.number);
        if !ports.iter().map(|port| port.number).eq(numbers()) {
            let cause = format!("{} ports", ports.len());
            return Err(StateError::Damaged { kind: Self::KIND, cause });
        }
        for (port, saved) in self.ports.iter_mut().zip(ports) {
            let PortV1 { number: _, guest_open, host_open, output } = saved;
            (port.guest_open, port.host_open) = (guest_open, host_open);
            (port.output, port.restored) = (None, output);
        }
        self.messages = messages.into();
        Ok(())
    }
}

#[cfg(test)]
mod tests;

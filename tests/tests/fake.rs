//! The door for other accelerators: a machine on one that is not KVM, whose vCPUs follow a script.

use std::sync::{Arc, Condvar, Mutex};

use board::accel::{ApicBus, ClockState, InternalError, Irqchip};
use board::memory::MemoryMap;
use board::vcpu::{Cpuid, CpuidLeaf, gpr};
use board::{Accel, AccelError, CpuIo, Exit, Kicker, Msi, MsiSink, Vcpu, VcpuState};
use monitor::state::RunState;
use tests::{Rig, guest};

/// An instruction, as it were.
#[derive(Clone, Debug)]
enum Step {
    Out(u16, u8),
    OutWord(u16, u16),
    In(u16),
    Store(u64, u32),
    Load(u64),
    /// Waits for an interrupt from the PICs and acknowledges it.
    Halt,
    /// Goes on for ever.
    Loop,
    TripleFault,
    Undecodable,
}

/// What the vCPUs and local APICs have seen.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    Read(u32),
    Vector(u8),
    Message(Msi),
    Level(u32, Option<Msi>),
}

#[derive(Default)]
struct World {
    seen: Mutex<Vec<Seen>>,
}

impl World {
    fn note(&self, seen: Seen) {
        self.seen.lock().unwrap().push(seen);
    }
}

impl MsiSink for World {
    fn send(&self, msi: Msi) {
        self.note(Seen::Message(msi));
    }
}

impl ApicBus for World {
    fn route_level(&self, pin: u32, level_msi: Option<Msi>) {
        self.note(Seen::Level(pin, level_msi));
    }
}

#[derive(Default)]
struct Bell {
    rung: Mutex<bool>,
    changed: Condvar,
}

struct FakeVcpu {
    /// RAX is the step that comes next.
    state: VcpuState,
    script: Vec<Step>,
    world: Arc<World>,
    bell: Arc<Bell>,
}

impl Vcpu for FakeVcpu {
    fn run(&mut self, io: &dyn CpuIo) -> Result<Exit, AccelError> {
        loop {
            if io.wants_exit() {
                return Ok(Exit::Kicked);
            }
            let step = &mut self.state.gpr[gpr::RAX];
            match self.script.get(*step as usize) {
                Some(Step::Out(port, value)) => io.pio_write(*port, &[*value]),
                Some(Step::OutWord(port, value)) => io.pio_write(*port, &value.to_le_bytes()),
                Some(Step::In(port)) => {
                    let mut data = [0];
                    io.pio_read(*port, &mut data);
                    self.world.note(Seen::Read(data[0].into()));
                }
                Some(Step::Store(address, value)) => {
                    io.mmio_write(*address, &value.to_le_bytes());
                }
                Some(Step::Load(address)) => {
                    let mut data = [0; 4];
                    io.mmio_read(*address, &mut data);
                    self.world.note(Seen::Read(u32::from_le_bytes(data)));
                }
                Some(Step::Halt) if io.intr() => self.world.note(Seen::Vector(io.intr_ack())),
                Some(Step::TripleFault) => return Ok(Exit::Shutdown),
                Some(Step::Undecodable) => {
                    return Ok(Exit::InternalError(InternalError {
                        what: "a script ends".to_owned(),
                        resumable: false,
                        instruction: vec![0x0F, 0x0B],
                    }));
                }
                Some(Step::Halt | Step::Loop) | None => {
                    let rung = self.bell.rung.lock().unwrap();
                    *self.bell.changed.wait_while(rung, |rung| !*rung).unwrap() = false;
                    continue;
                }
            }
            *step += 1;
        }
    }

    fn kicker(&self) -> Kicker {
        let bell = self.bell.clone();
        Kicker::new(move || {
            *bell.rung.lock().unwrap() = true;
            bell.changed.notify_all();
        })
    }

    fn save(&mut self) -> Result<VcpuState, AccelError> {
        Ok(self.state.clone())
    }

    fn restore(&mut self, state: &VcpuState) -> Result<(), AccelError> {
        self.state = state.clone();
        Ok(())
    }

    fn nmi(&mut self) -> Result<(), AccelError> {
        self.world.note(Seen::Vector(2));
        Ok(())
    }
}

struct Fake {
    script: Vec<Step>,
    world: Arc<World>,
}

impl Accel for Fake {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn add_vcpu(&self, id: u32, _cpuid: &Cpuid) -> Result<Box<dyn Vcpu>, AccelError> {
        // The others only wait.
        let script = if id == 0 { self.script.clone() } else { vec![Step::Loop] };
        let (world, bell) = (self.world.clone(), Arc::default());
        Ok(Box::new(FakeVcpu { state: VcpuState::default(), script, world, bell }))
    }

    fn irqchip(&self) -> Irqchip {
        Irqchip::Split(self.world.clone())
    }

    fn set_memory(&self, _map: &MemoryMap) -> Result<(), AccelError> {
        Ok(())
    }

    fn take_dirty(&self, _slot: usize) -> Result<Vec<u64>, AccelError> {
        Ok(Vec::new())
    }

    fn clock(&self) -> Result<ClockState, AccelError> {
        Ok(ClockState::default())
    }

    fn set_clock(&self, _clock: &ClockState) -> Result<(), AccelError> {
        Ok(())
    }

    fn supported_cpuid(&self) -> Cpuid {
        Cpuid { leaves: vec![CpuidLeaf { function: 1, ..CpuidLeaf::default() }] }
    }
}

/// A machine whose first vCPU follows `script`, and what it sees.
fn machine(script: &[Step], more: &[&str]) -> (Rig, Arc<World>) {
    let world = Arc::new(World::default());
    let accel = Arc::new(Fake { script: script.to_vec(), world: world.clone() });
    let kernel = guest("hello");
    let args = ["-m", "16M", "--kernel", kernel.to_str().unwrap()];
    (Rig::on(accel, 60, &[&args[..], more].concat()), world)
}

/// COM1 and its registers, the PICs, the I/O APIC, PM1a_CNT.
const COM1: u16 = 0x3F8;
const IER: u16 = COM1 + 1;
const MCR: u16 = COM1 + 4;
const LSR: u16 = COM1 + 5;
const IO_APIC: u64 = 0xFEC0_0000;
const POWER_OFF: Step = Step::OutWord(0x604, 0x2000);

#[test]
fn ports_memory_and_lines_reach_the_chips() {
    let script = [
        Step::In(LSR),
        Step::Out(COM1, b'h'),
        Step::Out(COM1, b'i'),
        Step::Store(IO_APIC, 1),
        Step::Load(IO_APIC + 0x10),
        // Both PICs from vector 0x20 on, all but IRQ 4 masked.
        Step::Out(0x20, 0x11),
        Step::Out(0x21, 0x20),
        Step::Out(0x21, 0x04),
        Step::Out(0x21, 0x01),
        Step::Out(0x21, 0xEF),
        // Pin 4 of the I/O APIC: vector 0x44 to local APIC 0.
        Step::Store(IO_APIC, 0x11 + 2 * 4),
        Step::Store(IO_APIC + 0x10, 0),
        Step::Store(IO_APIC, 0x10 + 2 * 4),
        Step::Store(IO_APIC + 0x10, 0x44),
        // The transmitter is empty, which interrupts.
        Step::Out(MCR, 0x0B),
        Step::Out(IER, 0x02),
        Step::Halt,
        POWER_OFF,
        Step::Undecodable,
    ];
    let (mut rig, world) = machine(&script, &[]);
    rig.boot();
    assert_eq!(rig.finish(), "hi");
    let message = Msi { address: 0xFEE0_0000, data: 0x44 };
    assert_eq!(
        *world.seen.lock().unwrap(),
        [Seen::Read(0x60), Seen::Read(0x0017_0020), Seen::Message(message), Seen::Vector(0x24)]
    );
}

#[test]
fn level_triggered_pins_are_announced() {
    let message = Msi { address: 0xFEE0_0000, data: 0x8000 | 0x35 };
    let script = [
        Step::Store(IO_APIC, 0x10 + 2 * 5),
        Step::Store(IO_APIC + 0x10, 0x8035),
        Step::Store(IO_APIC + 0x10, 0x1_0000),
        POWER_OFF,
    ];
    let (mut rig, world) = machine(&script, &[]);
    rig.boot();
    rig.finish();
    let seen = world.seen.lock().unwrap().clone();
    let [Seen::Level(5, Some(announced)), Seen::Level(5, None)] = seen[..] else {
        panic!("{seen:?}");
    };
    assert_eq!((announced.address, announced.data & 0x80FF), (message.address, message.data));
}

#[test]
fn vcpus_are_stopped_seen_changed_and_go_on() {
    let script = [Step::Out(COM1, b'1'), Step::Loop, Step::Out(COM1, b'2'), POWER_OFF];
    let (mut rig, _) = machine(&script, &["--smp", "2"]);
    rig.boot();
    rig.wait_for("1");
    rig.until("the loop", |rig| rig.machine.vcpu_state(0).unwrap().gpr[gpr::RAX] == 1);
    for _ in 0..10 {
        rig.machine.stop(RunState::Paused);
        rig.machine.cont();
    }
    rig.machine.stop(RunState::Paused);
    let mut state = rig.machine.vcpu_state(0).unwrap();
    // Over the loop.
    state.gpr[gpr::RAX] = 2;
    rig.machine.vcpus().with(0, move |vcpu| vcpu.restore(&state)).unwrap();
    assert_eq!(rig.output(), "1");
    rig.machine.cont();
    assert_eq!(rig.finish(), "12");
}

#[test]
fn a_triple_fault_and_the_reset_port_start_anew() {
    for reset in [Step::TripleFault, Step::Out(0xCF9, 6), Step::Out(0x64, 0xFE)] {
        let (mut rig, _) = machine(&[Step::Out(COM1, b'.'), reset.clone()], &[]);
        rig.boot();
        rig.wait_for("....");
        let (mut rig, _) = machine(&[Step::Out(COM1, b'.'), reset], &["--no-reboot"]);
        rig.boot();
        assert_eq!(rig.finish(), ".");
    }
}

#[test]
fn what_an_accelerator_cannot_do_stops_the_machine() {
    let (mut rig, world) = machine(&[Step::Undecodable], &[]);
    rig.boot();
    rig.until("the error", |rig| rig.machine.state() == RunState::InternalError);
    rig.machine.vcpus().with(0, |vcpu| vcpu.nmi()).unwrap();
    assert_eq!(*world.seen.lock().unwrap(), [Seen::Vector(2)]);
    rig.machine.cont();
    assert_eq!(rig.machine.state(), RunState::InternalError, "only a reset leads on");
}

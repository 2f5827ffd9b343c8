//! A machine inside the test's own process, to take hold of it where the program has no handle.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use board::accel::Irqchip;
use board::memory::MemoryMap;
use board::{Accel, Device, EventLoop, LoopHandle, Msi, Region, Slot, VcpuState};
use monitor::state::RunState;
use vmm::cli::Cli;
use vmm::config::Config;
use vmm::machine::{Machine, Requests};

use crate::TempDir;

/// A machine and its main loop, which turns while the test waits for something.
pub struct Rig {
    /// The machine.
    pub machine: Machine,
    events: EventLoop,
    requests: Arc<Requests>,
    dir: TempDir,
    deadline: Instant,
}

impl Rig {
    /// Builds what this command line asks for, without starting it. The serial port goes
    /// to a file. It is all to be over in `seconds`.
    pub fn new(seconds: u64, args: &[&str]) -> Self {
        Self::build(vmm::accel::open, seconds, args)
    }

    /// The same on an accelerator of the test's.
    pub fn on(accel: Arc<dyn Accel>, seconds: u64, args: &[&str]) -> Self {
        Self::build(|_, _, _| Ok(accel), seconds, args)
    }

    fn build(
        open: impl FnOnce(&Config, &MemoryMap, &LoopHandle) -> Result<Arc<dyn Accel>, vmm::Error>,
        seconds: u64,
        args: &[&str],
    ) -> Self {
        let dir = TempDir::new();
        let serial = format!("file:{}", dir.join("serial").display());
        let console = ["vmm", "--serial", &serial, "--monitor", "none"];
        let cli = Cli::read(console.iter().chain(args).map(OsString::from))
            .expect("the command line is right");
        let config = Config::new(cli).expect("the options are right");
        let events = EventLoop::new(config.clock()).expect("the host has fds left");
        let requests = Requests::new();
        let built = Machine::build_on(open, config, &events.handle(), requests.clone());
        let (machine, _) = built.unwrap_or_else(|e| panic!("{e}"));
        let deadline = Instant::now() + Duration::from_secs(seconds);
        Self { machine, events, requests, dir, deadline }
    }

    /// Lets it run.
    pub fn boot(&mut self) {
        self.machine.cont();
    }

    /// Lets the main loop turn once, for at most 5 ms, and sees to what the machine asks for.
    pub fn turn(&mut self) {
        self.events.turn(Some(Duration::from_millis(5))).expect("the host can wait");
        for request in self.requests.take() {
            self.machine.handle(request);
        }
    }

    /// Waits until `done` says so.
    ///
    /// # Panics
    /// With the guest's output, when time is up.
    pub fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        while !done(self) {
            assert!(Instant::now() < self.deadline, "{what} has not come:\n{}", self.output());
            self.turn();
        }
    }

    /// Waits until the guest has printed `text`.
    pub fn wait_for(&mut self, text: &str) {
        self.until(text, |rig| rig.output().contains(text));
    }

    /// Waits until the guest has powered off, and gives all that it printed.
    pub fn finish(mut self) -> String {
        self.until("the end", |rig| rig.machine.ending().is_some());
        self.output()
    }

    /// Plugs in a device that notes each access, to be mapped by the caller.
    pub fn recorder(&self) -> (Arc<Slot>, Record) {
        let record = Record::default();
        let device = Recorder(record.clone());
        (Slot::plug("recorder", &self.events.handle(), |_| device), record)
    }

    /// Drives an input of the interrupt controllers, whoever has them.
    pub fn set_irq(&self, gsi: u32, level: bool) {
        match (self.machine.irqchip(), self.machine.accel().irqchip()) {
            (Some(chips), _) => board::IrqSink::set_irq(chips, gsi, level),
            (None, Irqchip::Full { lines, .. }) => lines.set_irq(gsi, level),
            (None, _) => panic!("a machine without interrupt controllers"),
        }
    }

    /// Sends a message to the local APICs.
    pub fn send(&self, msi: Msi) {
        match self.machine.accel().irqchip() {
            Irqchip::Full { msi: bus, .. } => bus.send(msi),
            Irqchip::Split(bus) => bus.send(msi),
            Irqchip::Soft => panic!("a machine without local APICs"),
        }
    }

    /// Stops the machine and writes RAM and vCPUs to files in `dir`.
    pub fn save(&mut self, dir: &Path) -> Vec<VcpuState> {
        self.machine.stop(RunState::Paused);
        let ram = self.machine.memory().ram();
        let mut bytes = vec![0; ram.size() as usize];
        ram.read(0, &mut bytes).expect("RAM is RAM");
        fs::write(dir.join("ram"), bytes).expect("there is room in the directory");
        let count = self.machine.vcpus().count();
        let states = (0..count).map(|index| self.machine.vcpu_state(index));
        let states: Vec<_> = states.map(|state| state.unwrap_or_else(|e| panic!("{e}"))).collect();
        let text = serde_json::to_vec(&states).expect("a state can be written");
        fs::write(dir.join("vcpus"), text).expect("there is room in the directory");
        states
    }

    /// Takes on what [`Rig::save`] has written, in place of [`Rig::boot`], and lets it run.
    pub fn resume(&mut self, dir: &Path) {
        let bytes = fs::read(dir.join("ram")).expect("the file is there");
        self.machine.memory().ram().write(0, &bytes).expect("RAM is as large as it was");
        let text = fs::read(dir.join("vcpus")).expect("the file is there");
        let states: Vec<VcpuState> = serde_json::from_slice(&text).expect("they are states");
        for (index, state) in states.into_iter().enumerate() {
            let restored = self.machine.vcpus().with(index, move |vcpu| vcpu.restore(&state));
            restored.unwrap_or_else(|e| panic!("{e}"));
        }
        self.machine.cont();
    }

    /// What the guest has printed.
    pub fn output(&self) -> String {
        fs::read_to_string(self.dir.join("serial")).expect("it is a file of text").replace('\r', "")
    }
}

/// An access to a [`Rig::recorder`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// A read of this many bytes at this offset; it gives the offset of each byte.
    Read(u64, usize),
    /// A write of these bytes at this offset.
    Write(u64, Vec<u8>),
}

/// The accesses to a [`Rig::recorder`] so far.
#[derive(Clone, Default)]
pub struct Record(Arc<Mutex<Vec<Access>>>);

impl Record {
    /// Takes them.
    pub fn take(&self) -> Vec<Access> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn note(&self, access: Access) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(access);
    }
}

struct Recorder(Record);

impl Device for Recorder {
    fn read(&mut self, _region: Region, offset: u64, data: &mut [u8]) {
        self.0.note(Access::Read(offset, data.len()));
        data.iter_mut().zip(offset as u8..).for_each(|(byte, value)| *byte = value);
    }

    fn write(&mut self, _region: Region, offset: u64, data: &[u8]) {
        self.0.note(Access::Write(offset, data.to_vec()));
    }

    fn reset(&mut self) {}
}

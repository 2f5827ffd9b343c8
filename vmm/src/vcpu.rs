//! The vCPU threads, and how others stop them, start them and look inside.
//!
//! A vCPU belongs to its thread. Whoever wants something of it sends a job, which the thread runs
//! between two instructions, or parks all of them, which is what `stop` does. The thread never
//! waits for the main loop, so the main loop may wait for the thread.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{self, JoinHandle};

use board::accel::{InternalError, Space};
use board::{AccelError, Bus, CpuIo, Exit, Kicker, Trap, Vcpu};

use crate::doorbell::DoorbellTable;

/// What a vCPU thread cannot deal with itself. The vCPUs are held until the main loop has.
#[derive(Debug)]
pub enum VcpuEvent {
    /// Triple fault: the machine is to be reset.
    Shutdown,
    /// The accelerator cannot go on.
    InternalError(InternalError),
    /// A call into the host failed.
    Failed(AccelError),
    /// Something that the debugger asked for.
    Debug(Trap),
}

/// The PICs as the boot vCPU sees them.
pub trait IntrSource: Send + Sync {
    /// Whether INTR is asserted. Called before each entry into the guest.
    fn intr(&self) -> bool;
    /// Interrupt acknowledge: the vector.
    fn acknowledge(&self) -> u8;
}

/// The end of interrupts on its way from a local APIC to the I/O APIC.
pub trait EoiSink: Send + Sync {
    /// The interrupt of a level-triggered `vector` has ended.
    fn eoi(&self, vector: u8);
}

/// What vCPUs are connected to.
#[derive(Clone)]
pub struct Wiring {
    /// The port space.
    pub pio: Arc<Bus>,
    /// The MMIO space.
    pub mmio: Arc<Bus>,
    /// The PICs, where the accelerator does not have them.
    pub intr: Option<Arc<dyn IntrSource>>,
    /// The I/O APIC, where the accelerator does not have it.
    pub eoi: Option<Arc<dyn EoiSink>>,
    /// Doorbells, where the accelerator does not have them.
    pub doorbells: Arc<DoorbellTable>,
}

type Job = Box<dyn FnOnce(&mut dyn Vcpu) + Send>;

/// The side of a vCPU that other threads see.
struct Seat {
    id: u32,
    kicker: Kicker,
    /// Leave the guest and look at the gate and the jobs.
    attention: AtomicBool,
    /// The host's thread id, 0 before it runs.
    tid: AtomicU32,
}

impl Seat {
    fn call(&self) {
        self.attention.store(true, Ordering::SeqCst);
        self.kicker.kick();
    }
}

/// May the vCPUs run, and what are they to do first?
struct Gate {
    /// The machine runs, as far as the user is concerned.
    run: bool,
    /// Something has come up that the main loop has to see to before the guest goes on.
    held: bool,
    quit: bool,
    /// vCPUs that the debugger keeps where they are while others run.
    frozen: Vec<bool>,
    /// vCPUs that are in the guest, or about to be.
    running: usize,
    jobs: Vec<VecDeque<Job>>,
}

struct Shared {
    seats: Vec<Seat>,
    gate: Mutex<Gate>,
    changed: Condvar,
    on_event: Box<dyn Fn(u32, VcpuEvent) + Send + Sync>,
}

impl Shared {
    fn gate(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn call_all(&self) {
        self.seats.iter().for_each(Seat::call);
        self.changed.notify_all();
    }

    /// What vCPU `index` does next; waits while that is nothing.
    fn next(&self, index: usize) -> Next {
        let mut gate = self.gate();
        gate.running -= 1;
        self.changed.notify_all();
        loop {
            if let Some(job) = gate.jobs[index].pop_front() {
                gate.running += 1;
                return Next::Do(job);
            }
            if gate.quit {
                return Next::Quit;
            }
            if gate.run && !gate.held && !gate.frozen[index] {
                gate.running += 1;
                self.seats[index].attention.store(false, Ordering::SeqCst);
                return Next::Run;
            }
            gate = self.changed.wait(gate).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

enum Next {
    Run,
    Do(Job),
    Quit,
}

/// All vCPUs of a machine. Dropping it ends their threads.
pub struct Vcpus {
    shared: Arc<Shared>,
    /// All of them before [`Vcpus::start`], none after.
    unstarted: Mutex<Vec<Box<dyn Vcpu>>>,
    threads: Vec<JoinHandle<()>>,
}

/// A handle to the vCPUs for those who may only hold them: devices, by way of the machine.
#[derive(Clone)]
pub struct Holder(Arc<Shared>);

impl Holder {
    /// Keeps all vCPUs from executing another instruction until [`Vcpus::resume`]. Does not wait.
    pub fn hold(&self) {
        self.0.gate().held = true;
        self.0.call_all();
    }

    /// Makes vCPU `id` leave the guest and look at its interrupt lines.
    pub fn kick(&self, id: usize) {
        if let Some(seat) = self.0.seats.get(id) {
            seat.kicker.kick();
        }
    }
}

impl Vcpus {
    /// Takes over `vcpus`, whose index is their id, parked. `on_event` is called on their threads.
    pub fn new(
        vcpus: Vec<Box<dyn Vcpu>>,
        on_event: impl Fn(u32, VcpuEvent) + Send + Sync + 'static,
    ) -> Self {
        let seats = vcpus.iter().zip(0..).map(|(vcpu, id)| Seat {
            id,
            kicker: vcpu.kicker(),
            attention: AtomicBool::new(false),
            tid: AtomicU32::new(0),
        });
        let gate = Gate {
            run: false,
            held: false,
            quit: false,
            frozen: vec![false; vcpus.len()],
            running: 0,
            jobs: vcpus.iter().map(|_| VecDeque::new()).collect(),
        };
        let shared = Arc::new(Shared {
            seats: seats.collect(),
            gate: Mutex::new(gate),
            changed: Condvar::new(),
            on_event: Box::new(on_event),
        });
        Self { shared, unstarted: Mutex::new(vcpus), threads: Vec::new() }
    }

    /// Starts the threads. What is to be done with vCPUs before, when they are given their first
    /// state, is done by the caller's thread: to wait for theirs would take longer than the state.
    ///
    /// # Errors
    /// When the host has no thread left.
    pub fn start(&mut self, wiring: &Wiring) -> io::Result<()> {
        let vcpus = std::mem::take(&mut *self.unstarted());
        let _held = crate::signals::hold();
        for (index, vcpu) in vcpus.into_iter().enumerate() {
            let shared = self.shared.clone();
            let wiring = wiring.clone();
            self.shared.gate().running += 1;
            let thread = thread::Builder::new()
                .name(format!("vcpu{index}"))
                .spawn(move || live(vcpu, index, &shared, &wiring))?;
            self.threads.push(thread);
        }
        Ok(())
    }

    fn unstarted(&self) -> MutexGuard<'_, Vec<Box<dyn Vcpu>>> {
        self.unstarted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.shared.seats.len()
    }

    /// A handle that can hold them.
    pub fn holder(&self) -> Holder {
        Holder(self.shared.clone())
    }

    /// The host's thread id of vCPU `index`; 0 before it runs.
    pub fn thread_id(&self, index: usize) -> u32 {
        self.shared.seats.get(index).map_or(0, |seat| seat.tid.load(Ordering::Relaxed))
    }

    /// Lets the vCPUs run, and ends a hold.
    pub fn resume(&self) {
        let mut gate = self.shared.gate();
        gate.run = true;
        gate.held = false;
        drop(gate);
        self.shared.changed.notify_all();
    }

    /// Which vCPUs stay where they are while the others run. To be called while all are parked.
    pub fn freeze(&self, frozen: Vec<bool>) {
        self.shared.gate().frozen = frozen;
    }

    /// Parks the vCPUs and returns when all are. A hold ends too: nobody runs.
    pub fn pause(&self) {
        let mut gate = self.shared.gate();
        gate.run = false;
        gate.held = false;
        drop(gate);
        self.shared.call_all();
        let mut gate = self.shared.gate();
        while gate.running > 0 {
            gate = self.shared.changed.wait(gate).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Runs `job` with vCPU `index` between two of its instructions and returns what it returns.
    ///
    /// # Panics
    /// If there is no such vCPU, or its thread has died.
    pub fn with<R: Send + 'static>(
        &self,
        index: usize,
        job: impl FnOnce(&mut dyn Vcpu) -> R + Send + 'static,
    ) -> R {
        if let Some(vcpu) = self.unstarted().get_mut(index) {
            return job(&mut **vcpu);
        }
        let (sender, receiver) = mpsc::sync_channel(1);
        let job: Job = Box::new(move |vcpu| {
            // The receiver waits below; it cannot be gone.
            let _ = sender.send(job(vcpu));
        });
        self.shared.gate().jobs[index].push_back(job);
        self.shared.seats[index].call();
        self.shared.changed.notify_all();
        receiver.recv().expect("a vCPU thread lives as long as its machine")
    }
}

impl Drop for Vcpus {
    fn drop(&mut self) {
        self.shared.gate().quit = true;
        self.shared.gate().run = false;
        self.shared.call_all();
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so already.
            let _ = thread.join();
        }
    }
}

/// The life of a vCPU.
fn live(mut vcpu: Box<dyn Vcpu>, index: usize, shared: &Shared, wiring: &Wiring) {
    let seat = &shared.seats[index];
    seat.tid.store(rustix::thread::gettid().as_raw_nonzero().get() as u32, Ordering::Relaxed);
    let io = Io { seat, wiring, boot: index == 0 };
    loop {
        match shared.next(index) {
            Next::Quit => return,
            Next::Do(job) => job(&mut *vcpu),
            Next::Run => {
                let event = match vcpu.run(&io) {
                    // Halted: an accelerator with a local APIC of its own waits in `run`.
                    Ok(Exit::Kicked | Exit::Halted) => continue,
                    Ok(Exit::Debug(trap)) => VcpuEvent::Debug(trap),
                    Ok(Exit::Shutdown) => VcpuEvent::Shutdown,
                    Ok(Exit::InternalError(error)) => VcpuEvent::InternalError(error),
                    Err(error) => VcpuEvent::Failed(error),
                };
                shared.gate().held = true;
                shared.call_all();
                (shared.on_event)(seat.id, event);
            }
        }
    }
}

/// The machine as one vCPU sees it.
struct Io<'a> {
    seat: &'a Seat,
    wiring: &'a Wiring,
    /// The PICs' INTR is wired to the boot vCPU alone.
    boot: bool,
}

impl CpuIo for Io<'_> {
    fn pio_read(&self, port: u16, data: &mut [u8]) {
        self.wiring.pio.read(port.into(), data);
    }

    fn pio_write(&self, port: u16, data: &[u8]) {
        if !self.wiring.doorbells.ring(Space::Pio, port.into(), data) {
            self.wiring.pio.write(port.into(), data);
        }
    }

    fn mmio_read(&self, address: u64, data: &mut [u8]) {
        self.wiring.mmio.read(address, data);
    }

    fn mmio_write(&self, address: u64, data: &[u8]) {
        if !self.wiring.doorbells.ring(Space::Mmio, address, data) {
            self.wiring.mmio.write(address, data);
        }
    }

    fn intr(&self) -> bool {
        self.boot && self.wiring.intr.as_ref().is_some_and(|pics| pics.intr())
    }

    fn intr_ack(&self) -> u8 {
        self.wiring.intr.as_ref().map_or(0xFF, |pics| pics.acknowledge())
    }

    fn eoi(&self, vector: u8) {
        if let Some(ioapic) = &self.wiring.eoi {
            ioapic.eoi(vector);
        }
    }

    fn wants_exit(&self) -> bool {
        self.seat.attention.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::time::Duration;

    use board::VcpuState;

    use super::*;

    /// A vCPU that counts, and at a chosen count reports a triple fault.
    struct Fake {
        count: Arc<AtomicUsize>,
        fault_at: Option<usize>,
    }

    impl Vcpu for Fake {
        fn run(&mut self, io: &dyn CpuIo) -> Result<Exit, AccelError> {
            while !io.wants_exit() {
                let n = self.count.fetch_add(1, Ordering::SeqCst);
                if self.fault_at == Some(n) {
                    return Ok(Exit::Shutdown);
                }
                thread::sleep(Duration::from_micros(20));
            }
            Ok(Exit::Kicked)
        }
        fn kicker(&self) -> Kicker {
            Kicker::new(|| {})
        }
        fn save(&mut self) -> Result<VcpuState, AccelError> {
            Ok(VcpuState { rip: self.count.load(Ordering::SeqCst) as u64, ..Default::default() })
        }
        fn restore(&mut self, state: &VcpuState) -> Result<(), AccelError> {
            self.count.store(state.rip as usize, Ordering::SeqCst);
            Ok(())
        }
        fn nmi(&mut self) -> Result<(), AccelError> {
            Ok(())
        }
    }

    fn wiring() -> Wiring {
        Wiring {
            pio: Arc::new(Bus::new()),
            mmio: Arc::new(Bus::new()),
            intr: None,
            eoi: None,
            doorbells: Arc::default(),
        }
    }

    fn machine(
        n: usize,
        fault_at: Option<usize>,
    ) -> (Vcpus, Vec<Arc<AtomicUsize>>, mpsc::Receiver<u32>) {
        let counts: Vec<_> = (0..n).map(|_| Arc::new(AtomicUsize::new(0))).collect();
        let fakes: Vec<Box<dyn Vcpu>> = counts
            .iter()
            .map(|count| Box::new(Fake { count: count.clone(), fault_at }) as Box<dyn Vcpu>)
            .collect();
        let (sender, events) = mpsc::channel();
        let sender = Mutex::new(sender);
        let mut vcpus = Vcpus::new(fakes, move |id, _| {
            let _ = sender.lock().unwrap().send(id);
        });
        vcpus.pause();
        assert_eq!(vcpus.with(0, |vcpu| vcpu.save().unwrap().rip), 0, "jobs before the threads");
        vcpus.start(&wiring()).unwrap();
        (vcpus, counts, events)
    }

    fn advances(count: &AtomicUsize) -> bool {
        let before = count.load(Ordering::SeqCst);
        thread::sleep(Duration::from_millis(20));
        count.load(Ordering::SeqCst) != before
    }

    #[test]
    fn pause_parks_all_and_resume_lets_them_go_on() {
        let (vcpus, counts, _events) = machine(3, None);
        vcpus.pause();
        assert!(counts.iter().all(|c| !advances(c)), "they are born parked");
        for _ in 0..20 {
            vcpus.resume();
            vcpus.pause();
        }
        assert!(counts.iter().all(|c| !advances(c)));
        vcpus.resume();
        assert!(counts.iter().all(|c| advances(c)));
    }

    #[test]
    fn jobs_run_on_running_and_on_parked_vcpus() {
        let (vcpus, counts, _events) = machine(2, None);
        vcpus.with(1, |vcpu| {
            vcpu.restore(&VcpuState { rip: 1_000_000, ..Default::default() }).unwrap();
        });
        assert_eq!(counts[1].load(Ordering::SeqCst), 1_000_000);
        vcpus.resume();
        let rip = vcpus.with(1, |vcpu| vcpu.save().unwrap().rip);
        assert!(rip >= 1_000_000);
        assert!(advances(&counts[1]), "a job does not stop the vCPU");
    }

    #[test]
    fn a_hold_keeps_everybody_out_until_the_machine_resumes() {
        let (vcpus, counts, _events) = machine(2, None);
        vcpus.resume();
        vcpus.holder().hold();
        vcpus.with(0, |_| ());
        vcpus.with(1, |_| ());
        assert!(counts.iter().all(|c| !advances(c)));
        vcpus.resume();
        assert!(counts.iter().all(|c| advances(c)));
    }

    #[test]
    fn a_triple_fault_holds_the_machine_and_is_reported_once() {
        let (vcpus, counts, events) = machine(1, Some(5));
        vcpus.resume();
        assert_eq!(events.recv_timeout(Duration::from_secs(10)), Ok(0));
        assert!(!advances(&counts[0]));
        assert!(events.try_recv().is_err());
    }
}

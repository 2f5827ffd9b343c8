//! The program round a machine: the main loop, the monitors, signals, and the way out.

use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use board::device::{Notifier, Tag};
use board::event::{EventTarget, Readiness, Watch};
use board::time::ClockKind;
use board::{EventLoop, LoopHandle, VmTime};
use devices::chardev::terminal;
use monitor::Cause;

use crate::config::{AccelChoice, Config};
use crate::console::{Operator, Session};
use crate::gdb;
use crate::machine::{GdbWish, Machine, Requests};
use crate::pidfile::Pidfile;
use crate::signals::{Signal, Signals};
use crate::{Error, accel, report, sandbox};

const REQUEST: Tag = Tag(0);
const SIGNAL: Tag = Tag(1);
const PROBE: Tag = Tag(2);

/// How long the readers of the consoles have to take the last output.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long the machine runs before its accelerator is looked at closely. That takes milliseconds,
/// which a machine that is only starting, or ends at once, has better use for.
const PROBE_AFTER: Duration = Duration::from_millis(200);

/// A running program.
struct App {
    machine: Mutex<Machine>,
    requests: Arc<Requests>,
    sessions: Mutex<Vec<Arc<Session>>>,
    gdb: Mutex<Option<Arc<gdb::Session>>>,
    /// The program itself, for sessions to come.
    this: Weak<Self>,
    events: LoopHandle,
    /// The watch goes before the fd that it is on.
    signal_watch: OnceLock<Watch>,
    signals: Signals,
}

impl App {
    fn sessions(&self) -> Vec<Arc<Session>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn gdb(&self) -> MutexGuard<'_, Option<Arc<gdb::Session>>> {
        self.gdb.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what `--gdb` or `gdbserver` asks for.
    fn serve_gdb(&self, wish: GdbWish) {
        let old = self.gdb().take();
        if let Some(old) = old {
            old.end();
        }
        if let (GdbWish::Serve(port), Some(this)) = (wish, self.this.upgrade()) {
            let operator: Arc<dyn Operator> = this;
            *self.gdb() = Some(gdb::Session::new(port, &operator, &self.events));
        }
    }

    fn take_signals(&self) {
        while let Some(signal) = self.signals.take() {
            match signal {
                Signal::End => self.machine().quit(Cause::HostSignal),
                Signal::Resized => self.sessions().iter().for_each(|session| session.resized()),
            }
        }
        if let Some(watch) = self.signal_watch.get() {
            watch.drained(Readiness::READ);
        }
    }
}

impl Operator for App {
    fn machine(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the clients, and ends the loop if the machine has come to its end.
    fn after_command(&self) {
        let mut machine = self.machine();
        let news = machine.take_news();
        let (ending, wish) = (machine.ending(), machine.take_gdb_wish());
        drop(machine);
        if let Some(wish) = wish {
            self.serve_gdb(wish);
        }
        let sessions = self.sessions();
        for event in news {
            sessions.iter().for_each(|session| session.event(&event));
        }
        let gdb = self.gdb().clone();
        if let Some(gdb) = &gdb {
            gdb.sync();
        }
        if let Some(ending) = ending {
            if let Some(gdb) = &gdb {
                gdb.ended(ending.status);
            }
            self.events.exit();
        }
    }
}

impl EventTarget for App {
    fn event(&self, tag: Tag, _now: VmTime) {
        match tag {
            SIGNAL => self.take_signals(),
            PROBE => accel::warn_of_emulation(),
            _ => {
                for request in self.requests.take() {
                    self.machine().handle(request);
                }
            }
        }
        self.after_command();
    }
}

/// Makes the machine that `config` asks for and runs it to its end. `ready` is called once nothing
/// can go wrong any more that belongs to starting. Gives back the exit status.
///
/// # Errors
/// With the cause and the remedy, when the machine cannot be made.
pub fn run(config: Config, ready: impl FnOnce()) -> Result<u8, Error> {
    let mut events =
        EventLoop::new(config.clock()).map_err(Error::host("make the main loop's fds"))?;
    let handle = events.handle();
    let requests = Requests::new();
    let (pidfile, paused, sandboxed) = (config.pidfile.clone(), config.paused, config.sandbox);
    let insists_on_kvm = config.accel == AccelChoice::Kvm;
    let (machine, frontends) = Machine::build(config, &handle, requests.clone())?;
    let signals = Signals::new().map_err(Error::host("make a signalfd"))?;
    let _pidfile = pidfile.as_deref().map(Pidfile::write).transpose()?;

    let fd = signals.as_raw_fd();
    let app = Arc::new_cyclic(|this| App {
        this: this.clone(),
        gdb: Mutex::default(),
        machine: Mutex::new(machine),
        requests: requests.clone(),
        sessions: Mutex::default(),
        events: handle.clone(),
        signal_watch: OnceLock::new(),
        signals,
    });
    let target: Arc<dyn EventTarget> = app.clone();
    let weak = Arc::downgrade(&target);
    requests.set_notifier(Notifier::new(&handle, weak.clone(), REQUEST));
    let watch = handle
        .watch(fd, Readiness::READ, weak.clone(), SIGNAL)
        .map_err(Error::host("watch for signals"))?;
    app.signal_watch.get_or_init(|| watch);
    let probe = handle.timer(ClockKind::Realtime, weak, PROBE);
    if insists_on_kvm && !sandboxed {
        probe.arm(handle.realtime().now() + PROBE_AFTER);
    }
    let operator: Arc<dyn Operator> = app.clone();
    let hmp = frontends.hmp.into_iter().map(|port| Session::hmp(port, &operator, &handle));
    let qmp = frontends.qmp.into_iter().map(|port| Session::qmp(port, &operator, &handle));
    let sessions = hmp.chain(qmp).collect();
    *app.sessions.lock().unwrap_or_else(PoisonError::into_inner) = sessions;

    if sandboxed {
        sandbox::enter(&app.machine())?;
    }
    ready();
    if !paused {
        app.machine().cont();
    }
    app.after_command();
    events.run().map_err(Error::host("wait for events"))?;

    let machine = app.machine();
    machine.chardevs().finish(PATIENCE);
    terminal::restore_now();
    Ok(machine.ending().map_or(0, |ending| ending.status))
}

/// Says what a panic was about on a terminal that is whole again.
pub fn restore_terminal_on_panic() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        terminal::restore_now();
        report::note("this is a bug in vmm; please report it with the lines below");
        default(info);
        std::process::abort();
    }));
}

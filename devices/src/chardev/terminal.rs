//! The terminal in raw mode, and back, on every way out.
//!
//! A terminal belongs to the shell too: its modes are put back when the guard is dropped, at exit,
//! at a panic, when a signal ends the process, and while the process is stopped (SIGTSTP from
//! outside). While another job has the foreground the modes are left alone: they are that job's.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Once, OnceLock};

use rustix::termios::{
    ControlModes, InputModes, LocalModes, OptionalActions, OutputModes, SpecialCodeIndex, Termios,
    tcgetattr, tcgetpgrp, tcsetattr,
};

/// Whether the terminal's signal keys (Ctrl-C, Ctrl-\, Ctrl-Z) act on this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignalKeys {
    /// They send signals to this process.
    Act,
    /// They are input, for the guest.
    Pass,
}

/// A terminal in raw mode. Dropping it puts the modes back.
#[derive(Debug)]
pub struct Terminal(());

struct Modes {
    fd: OwnedFd,
    before: Termios,
    raw: Termios,
}

/// The modes of the one terminal that is raw. What it points to is never freed, since a signal
/// handler may be reading it; a process makes its terminal raw about once.
static ACTIVE: AtomicPtr<Modes> = AtomicPtr::new(ptr::null_mut());

/// Signals that end a process and may leave it no other chance to put the terminal back.
const FATAL: [i32; 9] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGABRT,
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGILL,
    libc::SIGFPE,
];

impl Terminal {
    /// Puts the terminal `fd` into raw mode; output processing stays on, so that a line feed still
    /// goes to the start of the line. `None` when `fd` is no terminal.
    ///
    /// Handlers for SIGTSTP, SIGCONT and, where nobody handles them yet, the signals that end a
    /// process are set; a later handler of the program's own replaces them.
    ///
    /// # Errors
    /// What duplicating the fd or setting the modes says.
    pub fn enter_raw(fd: BorrowedFd<'_>, keys: SignalKeys) -> io::Result<Option<Self>> {
        let Ok(mut before) = tcgetattr(fd) else {
            return Ok(None);
        };
        if in_background(fd) {
            // These are the modes of the shell's line editor; a program expects usual ones.
            before.local_modes |= LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG;
            before.input_modes |= InputModes::ICRNL;
        }
        let modes = Modes { fd: fd.try_clone_to_owned()?, raw: raw(&before, keys), before };
        install_handlers();
        let modes = Box::leak(Box::new(modes));
        ACTIVE.store(modes, Ordering::Release);
        apply(modes, &modes.raw).inspect_err(|_| restore_now())?;
        Ok(Some(Self(())))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        restore_now();
    }
}

/// Puts the terminal's modes back for good, if it is raw. Async-signal-safe.
pub fn restore_now() {
    let modes = ACTIVE.swap(ptr::null_mut(), Ordering::AcqRel);
    // SAFETY: ACTIVE is null or points to a leaked `Modes` that nobody writes to.
    if let Some(modes) = unsafe { modes.as_ref() } {
        // A terminal that has gone away needs no modes.
        let _ = apply(modes, &modes.before);
    }
}

/// What ends a line on `fd`: where a terminal does not turn a line feed into a new line itself, as
/// when its program has switched that off, a carriage return comes before it.
pub fn line_end(fd: BorrowedFd<'_>) -> &'static str {
    let new_line = OutputModes::OPOST | OutputModes::ONLCR;
    match tcgetattr(fd) {
        Ok(modes) if !modes.output_modes.contains(new_line) => "\r\n",
        _ => "\n",
    }
}

fn raw(before: &Termios, keys: SignalKeys) -> Termios {
    let mut raw = before.clone();
    raw.input_modes -= InputModes::IGNBRK
        | InputModes::BRKINT
        | InputModes::PARMRK
        | InputModes::ISTRIP
        | InputModes::INLCR
        | InputModes::IGNCR
        | InputModes::ICRNL
        | InputModes::IXON;
    raw.output_modes |= OutputModes::OPOST;
    raw.local_modes -=
        LocalModes::ECHO | LocalModes::ECHONL | LocalModes::ICANON | LocalModes::IEXTEN;
    if keys == SignalKeys::Pass {
        raw.local_modes -= LocalModes::ISIG;
    }
    raw.control_modes -= ControlModes::CSIZE | ControlModes::PARENB;
    raw.control_modes |= ControlModes::CS8;
    raw.special_codes[SpecialCodeIndex::VMIN] = 1;
    raw.special_codes[SpecialCodeIndex::VTIME] = 0;
    raw
}

/// Whether another job has the foreground of the terminal `fd`.
fn in_background(fd: BorrowedFd<'_>) -> bool {
    // It fails when the terminal is not the one that controls this process: no job control then.
    tcgetpgrp(fd).is_ok_and(|foreground| foreground != rustix::process::getpgrp())
}

/// Sets `modes` unless another job has the foreground. Async-signal-safe.
fn apply(modes: &Modes, to: &Termios) -> io::Result<()> {
    // SAFETY: the sets are plain data that the calls fill in; both calls are async-signal-safe.
    let old = unsafe {
        let mut ttou = std::mem::zeroed();
        let mut old = std::mem::zeroed();
        libc::sigemptyset(&mut ttou);
        libc::sigaddset(&mut ttou, libc::SIGTTOU);
        libc::pthread_sigmask(libc::SIG_BLOCK, &ttou, &mut old);
        old
    };
    let result = match in_background(modes.fd.as_fd()) {
        true => Ok(()),
        // With SIGTTOU blocked a job that has just lost the foreground is not stopped here.
        false => tcsetattr(&modes.fd, OptionalActions::Now, to),
    };
    // SAFETY: `old` is the mask that the call above filled in.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &old, ptr::null_mut()) };
    Ok(result?)
}

/// What the fatal signals did before, in the order of [`FATAL`].
static PREVIOUS: OnceLock<[libc::sigaction; FATAL.len()]> = OnceLock::new();

fn install_handlers() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let previous = FATAL.map(|signal| {
            // SAFETY: a zeroed sigaction is valid, and the call only fills it in.
            unsafe {
                let mut action = std::mem::zeroed();
                libc::sigaction(signal, ptr::null(), &mut action);
                action
            }
        });
        for (signal, previous) in FATAL.into_iter().zip(PREVIOUS.get_or_init(|| previous)) {
            // The runtime has its own handlers for faults; they run after ours.
            let fault = matches!(signal, libc::SIGSEGV | libc::SIGBUS);
            if previous.sa_sigaction == libc::SIG_DFL || fault {
                // A fault may be the stack's overflow.
                let flags = if fault { libc::SA_ONSTACK } else { 0 };
                install(signal, on_fatal as *const () as usize, flags);
            }
        }
        install(libc::SIGTSTP, on_stop as *const () as usize, libc::SA_RESTART);
        install(libc::SIGCONT, on_continue as *const () as usize, libc::SA_RESTART);
        // SAFETY: the function is `extern "C"` and does not unwind.
        unsafe { libc::atexit(at_exit) };
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore_now();
            report(info);
        }));
    });
}

fn install(signal: i32, handler: usize, flags: i32) {
    // SAFETY: a zeroed sigaction is valid; `handler` is one of the functions below, which have the
    // signature that SA_SIGINFO asks for and call async-signal-safe functions only.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler;
        action.sa_flags = libc::SA_SIGINFO | flags;
        // SIGCONT comes while SIGTSTP is being handled, and is to be handled after it.
        libc::sigaddset(&mut action.sa_mask, libc::SIGTSTP);
        libc::sigaddset(&mut action.sa_mask, libc::SIGCONT);
        libc::sigaction(signal, &action, ptr::null_mut());
    }
}

extern "C" fn at_exit() {
    restore_now();
}

/// The process is about to end: puts the terminal back and lets the signal do what it did before.
extern "C" fn on_fatal(signal: i32, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    restore_now();
    // The work of these handlers is done. The runtime's handler of a stack's overflow aborts, and
    // its small stack has no room for another of ours.
    for (signal, previous) in FATAL.into_iter().zip(PREVIOUS.get().into_iter().flatten()) {
        // SAFETY: `previous` came from sigaction, which is async-signal-safe.
        unsafe { libc::sigaction(signal, previous, ptr::null_mut()) };
    }
    // SAFETY: the kernel hands a valid siginfo to an SA_SIGINFO handler.
    let from_cpu = unsafe { (*info).si_code } > 0;
    let fault = matches!(signal, libc::SIGSEGV | libc::SIGBUS | libc::SIGILL | libc::SIGFPE);
    // A fault happens again on return, with its address; any other signal is sent again.
    if !(fault && from_cpu) {
        // SAFETY: raise is async-signal-safe.
        unsafe { libc::raise(signal) };
    }
}

/// SIGTSTP: the shell gets its terminal back before the process stops.
extern "C" fn on_stop(_signal: i32, _info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    keeping_errno(|| {
        if let Some(modes) = active() {
            let _ = apply(modes, &modes.before);
        }
        // SAFETY: raise is async-signal-safe.
        unsafe { libc::raise(libc::SIGSTOP) };
    });
}

/// SIGCONT: raw again, if this job is in the foreground.
extern "C" fn on_continue(_signal: i32, _info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    keeping_errno(|| {
        if let Some(modes) = active() {
            let _ = apply(modes, &modes.raw);
        }
    });
}

fn active() -> Option<&'static Modes> {
    // SAFETY: ACTIVE is null or points to a leaked `Modes` that nobody writes to.
    unsafe { ACTIVE.load(Ordering::Acquire).as_ref() }
}

/// Runs a signal handler that returns to code which may be about to look at errno.
fn keeping_errno(handler: impl FnOnce()) {
    // SAFETY: __errno_location gives this thread's errno, valid as long as the thread.
    let errno = unsafe { *libc::__errno_location() };
    handler();
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::unix::process::{CommandExt, ExitStatusExt};
    use std::process::{Child, Command, ExitStatus, Stdio};
    use std::sync::{Arc, Mutex};
    use std::time::{Duration, Instant};

    use board::device::{Notifier, Tag};
    use board::event::{EventLoop, EventTarget};
    use board::time::{Clock, VmTime};
    use rustix::fs::{Mode, OFlags};
    use rustix::process::{Pid, Signal, kill_process};
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

    use super::super::{BackendSpec, CharPort, Chardevs, Host, HotKey};
    use super::*;

    /// A console that answers in capitals, until Ctrl-A x.
    fn console() {
        let mut events = EventLoop::new(Clock::stopped()).unwrap();
        let exit = events.handle();
        let mut chardevs = Chardevs::new(Host {
            events: events.handle(),
            escape: 1,
            hot_key: Arc::new(move |key| {
                assert_eq!(key, HotKey::Quit);
                exit.exit();
            }),
            report: Arc::new(|text| eprintln!("{text}")),
        });
        let spec = BackendSpec::parse("mon:stdio").unwrap();
        let chardev = chardevs.open(&spec, "serial0").unwrap();
        eprintln!("{}", chardevs.open(&spec, "serial1").err().unwrap());
        struct Echo(Mutex<Box<dyn CharPort>>);
        impl EventTarget for Echo {
            fn event(&self, _tag: Tag, _now: VmTime) {
                let mut port = self.0.lock().unwrap();
                let mut text = [0; 100];
                let n = port.read(&mut text);
                text.make_ascii_uppercase();
                assert_eq!(port.write(&text[..n]), n);
            }
        }
        let echo = Arc::new(Echo(Mutex::new(chardev.attach().unwrap())));
        let target: Arc<dyn EventTarget> = echo.clone();
        let notifier = Notifier::new(&events.handle(), Arc::downgrade(&target), Tag(0));
        echo.0.lock().unwrap().set_notifier(notifier);
        println!("ready");
        events.run().unwrap();
        // The port still holds the backend: the end must not rely on its being dropped.
        chardevs.finish(Duration::from_secs(10));
        println!("finished");
        std::thread::sleep(Duration::from_secs(600));
    }

    /// What the tests below run in a process of its own, on a terminal of its own.
    #[test]
    #[ignore = "the other tests run it"]
    fn child() {
        let Ok(end) = std::env::var("TERMINAL_TEST") else { return };
        if end == "console" {
            return console();
        }
        let terminal = Terminal::enter_raw(rustix::stdio::stdin(), SignalKeys::Pass).unwrap();
        println!("ready");
        match end.as_str() {
            "drop" => return drop(terminal),
            // Nothing is to rely on the stack's being unwound.
            _ => std::mem::forget(terminal),
        }
        match end.as_str() {
            "exit" => std::process::exit(7),
            "panic" => panic!("on purpose"),
            "overflow" => {
                fn deep(n: u64) -> u64 {
                    if n == 0 { 0 } else { std::hint::black_box(n) + deep(n - 1) }
                }
                assert!(deep(u64::MAX) > 0);
            }
            "fault" => {
                let nowhere = ptr::without_provenance_mut::<u8>(16);
                // SAFETY: none; the fault that this makes is what is being tested.
                unsafe { nowhere.write_volatile(0) };
            }
            _ => {
                // Ended by the test, or by this if the test was.
                std::thread::sleep(Duration::from_secs(600));
            }
        }
    }

    /// A terminal and the child that it controls.
    struct Session {
        master: File,
        terminal: OwnedFd,
        before: Termios,
        child: Child,
        printed: String,
    }

    impl Session {
        /// `shell`: a shell command that runs the child as `"$@"`.
        fn new(end: &str, shell: &str) -> Self {
            let master =
                openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
            grantpt(&master).unwrap();
            unlockpt(&master).unwrap();
            let name = ptsname(&master, Vec::new()).unwrap();
            let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
            let terminal = rustix::fs::open(name, flags, Mode::empty()).unwrap();
            let before = tcgetattr(&terminal).unwrap();
            let stdio = || Stdio::from(terminal.try_clone().unwrap());
            let mut command = Command::new("/bin/sh");
            command
                .args(["-c", shell, "sh"])
                .arg(std::env::current_exe().unwrap())
                .args(["--ignored", "--exact", "--nocapture", "chardev::terminal::tests::child"])
                .env("TERMINAL_TEST", end)
                .env("RUST_BACKTRACE", "0")
                .stdin(stdio())
                .stdout(stdio())
                .stderr(stdio());
            // SAFETY: both are system calls that are fit for a forked child.
            unsafe {
                command.pre_exec(|| {
                    rustix::process::setsid()?;
                    Ok(rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?)
                });
            }
            let child = command.spawn().unwrap();
            drop(command);
            let mut session =
                Self { master: master.into(), terminal, before, child, printed: String::new() };
            session.read_until("ready\r\n");
            session
        }

        fn read_until(&mut self, text: &str) {
            let mut piece = [0; 1000];
            while !self.printed.contains(text) {
                let n = self.master.read(&mut piece).unwrap();
                assert!(n > 0);
                self.printed += &String::from_utf8_lossy(&piece[..n]);
            }
        }

        fn modes(&self) -> Termios {
            tcgetattr(&self.terminal).unwrap()
        }

        fn is_raw(&self) -> bool {
            !self
                .modes()
                .local_modes
                .intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
        }

        fn is_as_before(&self) -> bool {
            let now = self.modes();
            (now.local_modes, now.input_modes, now.output_modes, now.control_modes)
                == (
                    self.before.local_modes,
                    self.before.input_modes,
                    self.before.output_modes,
                    self.before.control_modes,
                )
        }

        fn send(&self, signal: Signal) {
            kill_process(Pid::from_child(&self.child), signal).unwrap();
        }

        fn wait(&mut self) -> ExitStatus {
            self.child.wait().unwrap()
        }
    }

    impl Drop for Session {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    #[test]
    fn signals_end_the_process_with_the_terminal_as_it_was() {
        for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT, Signal::ABORT] {
            let mut session = Session::new("sleep", r#"exec "$@""#);
            assert!(session.is_raw());
            assert!(session.modes().output_modes.contains(OutputModes::OPOST));
            session.send(signal);
            assert_eq!(session.wait().signal(), Some(signal.as_raw()));
            assert!(session.is_as_before(), "{signal:?}");
        }
    }

    #[test]
    fn every_other_way_out_puts_the_terminal_back() {
        for end in ["drop", "exit", "panic", "overflow", "fault"] {
            let mut session = Session::new(end, r#"exec "$@""#);
            let status = session.wait();
            match end {
                "drop" => assert!(status.success()),
                "exit" => assert_eq!(status.code(), Some(7)),
                "panic" => assert_eq!(status.code(), Some(101)),
                "overflow" => assert_eq!(status.signal(), Some(libc::SIGABRT)),
                _ => assert_eq!(status.signal(), Some(libc::SIGSEGV)),
            }
            assert!(session.is_as_before(), "{end}");
        }
    }

    #[test]
    fn a_stopped_process_gives_the_terminal_back_for_the_time() {
        let session = Session::new("sleep", r#"exec "$@""#);
        for _ in 0..2 {
            session.send(Signal::TSTP);
            let pid = Pid::from_child(&session.child);
            let status =
                rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::UNTRACED);
            assert!(status.unwrap().unwrap().1.stopped());
            assert!(session.is_as_before());
            session.send(Signal::CONT);
            let end = Instant::now() + Duration::from_secs(60);
            while !session.is_raw() {
                assert!(Instant::now() < end, "the terminal is not made raw again");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    #[test]
    fn a_background_job_leaves_the_terminal_alone() {
        let session = Session::new("sleep", r#"set -m; "$@" & wait"#);
        assert!(session.is_as_before());
    }

    #[test]
    fn a_console_on_the_terminal_answers_until_it_is_quit() {
        let mut session = Session::new("console", r#"exec "$@""#);
        assert!(session.printed.contains("stdio is already used by 'serial0'"));
        assert!(session.is_raw());
        session.master.write_all(b"hello\x03").unwrap();
        session.read_until("HELLO\x03");
        session.master.write_all(b"\x01x").unwrap();
        session.read_until("finished");
        assert!(session.printed.contains("terminated"));
        assert!(session.is_as_before());
    }

    #[test]
    fn lines_end_as_the_terminal_needs() {
        let session = Session::new("sleep", r#"exec "$@""#);
        assert!(session.is_raw());
        assert_eq!(line_end(session.terminal.as_fd()), "\n", "our raw mode keeps new lines");
        let mut modes = session.modes();
        modes.output_modes -= OutputModes::OPOST;
        tcsetattr(&session.terminal, OptionalActions::Now, &modes).unwrap();
        assert_eq!(line_end(session.terminal.as_fd()), "\r\n");
        assert_eq!(line_end(File::open("/dev/null").unwrap().as_fd()), "\n");
    }

    #[test]
    fn what_is_no_terminal_stays_as_it_is() {
        let null = File::open("/dev/null").unwrap();
        assert!(Terminal::enter_raw(null.as_fd(), SignalKeys::Act).unwrap().is_none());
    }
}

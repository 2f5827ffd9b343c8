//! A running `vmm`.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Write;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::files::{TempDir, guest, program};
use crate::{Accel, Hmp, Qmp, Terminal, Transcript};

/// How long a machine may live unless [`Vmm::within`] says otherwise.
const LIMIT: Duration = Duration::from_secs(60);

/// A command line to be.
pub struct Vmm {
    args: Vec<OsString>,
    dir: TempDir,
    serial: Option<String>,
    monitor: Option<String>,
    launcher: Vec<OsString>,
    program: PathBuf,
    limit: Duration,
}

impl Vmm {
    /// A machine on `accel`, with its serial port on stdin and stdout and without a monitor.
    pub fn new(accel: Accel) -> Self {
        Self::bare().args(["--accel", accel.name()])
    }

    /// The program, with nothing but a serial port on stdin and stdout and without a monitor.
    pub fn bare() -> Self {
        Self {
            args: Vec::new(),
            dir: TempDir::new(),
            serial: Some("stdio".to_owned()),
            monitor: Some("none".to_owned()),
            launcher: Vec::new(),
            program: program().to_owned(),
            limit: LIMIT,
        }
    }

    /// Boots a bare-metal guest, which ends the program with status 7 when it fails.
    pub fn guest(self, name: &str) -> Self {
        self.arg("--kernel").arg(guest(name)).debug_exit()
    }

    /// Gives the machine the device by which guests end the program.
    pub fn debug_exit(self) -> Self {
        self.args(["--device", "isa-debug-exit,iobase=0xf4,iosize=4"])
    }

    /// The guest's command line.
    pub fn append(self, words: &str) -> Self {
        self.args(["--append", words])
    }

    /// One more argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// More arguments.
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// The backend of the serial port instead of stdio; `None` says nothing about it.
    pub fn serial(mut self, backend: Option<&str>) -> Self {
        self.serial = backend.map(str::to_owned);
        self
    }

    /// The backend of the monitor instead of none; `None` says nothing about it.
    pub fn monitor(mut self, backend: Option<&str>) -> Self {
        self.monitor = backend.map(str::to_owned);
        self
    }

    /// Lets the test talk to the monitor, by [`Machine::hmp`].
    pub fn with_hmp(self) -> Self {
        let backend = format!("unix:{},server=on,wait=off", self.dir.join("hmp").display());
        self.monitor(Some(&backend))
    }

    /// Lets the test talk to the monitor in JSON, by [`Machine::qmp`].
    pub fn with_qmp(self) -> Self {
        let backend = format!("unix:{},server=on,wait=off", self.dir.join("qmp").display());
        self.arg("--qmp").arg(backend)
    }

    /// Starts the program by a launcher, which gets its command line as arguments of its own.
    pub fn under<S: AsRef<OsStr>>(mut self, launcher: impl IntoIterator<Item = S>) -> Self {
        self.launcher = launcher.into_iter().map(|word| word.as_ref().to_owned()).collect();
        self
    }

    /// Redirects the program's stdin or stdout as a shell does: `<&-`, `>/dev/full`.
    pub fn redirected(self, redirection: &str) -> Self {
        self.under(["sh", "-c", &format!("exec \"$@\" {redirection}"), "sh"])
    }

    /// Another copy of the program.
    pub fn program(mut self, path: PathBuf) -> Self {
        self.program = path;
        self
    }

    /// The test's time limit in seconds.
    pub fn within(mut self, seconds: u64) -> Self {
        self.limit = Duration::from_secs(seconds);
        self
    }

    /// The directory that goes with the machine, for sockets and files.
    pub fn dir(&self) -> &TempDir {
        &self.dir
    }

    /// The backends of the first serial port and the monitor come first.
    fn command(&self) -> Command {
        let mut command = match self.launcher.split_first() {
            None => Command::new(&self.program),
            Some((launcher, args)) => {
                let mut command = Command::new(launcher);
                command.args(args).arg(&self.program);
                command
            }
        };
        for (option, backend) in [("--serial", &self.serial), ("--monitor", &self.monitor)] {
            if let Some(backend) = backend {
                command.args([option, backend]);
            }
        }
        command.args(&self.args);
        command
    }

    /// Starts it with pipes as stdin, stdout and stderr.
    pub fn start(self) -> Machine {
        self.start_with(Stdio::piped(), Stdio::piped())
    }

    /// Starts it with something else as stdin and stdout. What is a pipe is the test's.
    pub fn start_with(self, stdin: impl Into<Stdio>, stdout: impl Into<Stdio>) -> Machine {
        let command = self.command();
        self.spawn(command, stdin.into(), stdout.into())
    }

    /// Starts it on `terminal`, of which it is the session's leader as under a terminal emulator.
    pub fn start_on(self, terminal: &Terminal) -> Machine {
        let mut command = self.command();
        // SAFETY: between fork and exec it makes two system calls, and allocates nothing.
        unsafe {
            command.pre_exec(|| {
                rustix::process::setsid()?;
                rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
                Ok(())
            });
        }
        self.spawn(command, terminal.line().into(), terminal.line().into())
    }

    fn spawn(self, mut command: Command, stdin: Stdio, stdout: Stdio) -> Machine {
        command.stdin(stdin).stdout(stdout).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program can be executed");
        let stdout = child.stdout.take().map(Transcript::of);
        let stderr = Transcript::of(child.stderr.take().expect("stderr is a pipe"));
        Machine {
            stdin: child.stdin.take(),
            child,
            stdout,
            stderr,
            dir: self.dir,
            deadline: Instant::now() + self.limit,
        }
    }
}

/// A running machine. It is killed when it is dropped.
pub struct Machine {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Option<Transcript>,
    stderr: Transcript,
    dir: TempDir,
    deadline: Instant,
}

impl Machine {
    /// When its time is up.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// The directory that goes with it.
    pub fn dir(&self) -> &TempDir {
        &self.dir
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for `text` on stdout, after what was waited for before, and gives what came up to it.
    ///
    /// # Panics
    /// With what came, if it does not come.
    pub fn wait_for(&self, text: &str) -> String {
        let stdout = self.stdout.as_ref().expect("stdout is a pipe");
        stdout.find(text, self.deadline).unwrap_or_else(|why| {
            panic!("{why}\nand on stderr:\n{}", self.stderr.text());
        })
    }

    /// Waits for `text` on stderr.
    pub fn wait_for_error(&self, text: &str) -> String {
        self.stderr.wait_for(text, self.deadline)
    }

    /// Writes to stdin.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let stdin = self.stdin.as_mut().expect("stdin is a pipe");
        stdin.write_all(bytes.as_ref()).expect("the program reads its input");
    }

    /// Takes stdin, to write to it from another thread, or to close it.
    pub fn take_stdin(&mut self) -> ChildStdin {
        self.stdin.take().expect("stdin is a pipe")
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).expect("the process is ours and has not been waited for");
    }

    /// A client of the monitor, see [`Vmm::with_hmp`].
    pub fn hmp(&self) -> Hmp {
        Hmp::connect(&self.dir.join("hmp"), self.deadline)
    }

    /// A client of the monitor in JSON, see [`Vmm::with_qmp`], past its greeting.
    pub fn qmp(&self) -> Qmp {
        Qmp::connect(&self.dir.join("qmp"), self.deadline)
    }

    /// The directories `/proc/PID/task/TID` of its threads.
    pub fn threads(&self) -> Vec<PathBuf> {
        let tasks = fs::read_dir(Path::new("/proc").join(self.pid().to_string()).join("task"));
        let tasks = tasks.expect("the process lives");
        tasks.map(|task| task.expect("it can be read").path()).collect()
    }

    /// Whether the program ends within `limit`.
    pub fn ends_within(&mut self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while self.child.try_wait().expect("it is our child").is_none() {
            if Instant::now() > deadline {
                return false;
            }
            thread::sleep(Duration::from_millis(5));
        }
        true
    }

    /// Waits for the program's end.
    ///
    /// # Panics
    /// With its output, if it does not end in time.
    pub fn finish(mut self) -> Finished {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if !self.ends_within(left) {
            panic!(
                "the program does not end; its output:\n{}\nand on stderr:\n{}",
                self.stdout.as_ref().map_or_else(String::new, Transcript::text),
                self.stderr.text()
            );
        }
        let status = self.child.wait().expect("it is our child");
        // What it has written is still to be read.
        let grace = self.deadline.max(Instant::now() + Duration::from_secs(10));
        for transcript in self.stdout.iter().chain([&self.stderr]) {
            assert!(transcript.wait_for_end(grace), "somebody else still holds its output open");
        }
        Finished {
            status,
            output: self.stdout.as_ref().map(Transcript::bytes).unwrap_or_default(),
            errors: self.stderr.text().replace('\r', ""),
            files: self.dir.names(),
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What is left of a machine.
#[derive(Debug)]
pub struct Finished {
    status: ExitStatus,
    /// What came on stdout, if that was a pipe.
    pub output: Vec<u8>,
    /// What came on stderr, without carriage returns.
    pub errors: String,
    /// What is left in the machine's directory.
    pub files: Vec<String>,
}

impl Finished {
    /// The exit status, or 128 and the number of the signal that killed it.
    pub fn status(&self) -> i32 {
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap_or_default())
    }

    /// Its output as lines of text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.output).replace('\r', "")
    }

    /// What came on stderr but for the line that says which accelerator there is, and why.
    pub fn complaints(&self) -> String {
        let note = |line: &&str| {
            !line.contains("KVM emulates ring 0") && !line.contains("executes the guest")
        };
        self.errors.lines().filter(note).map(|line| format!("{line}\n")).collect()
    }

    /// # Panics
    /// If the program did not end with status 0 and without complaints.
    pub fn succeeded(&self) -> &Self {
        self.ended_with(0);
        assert_eq!(self.complaints(), "", "complaints on stderr");
        self
    }

    /// # Panics
    /// If the program did not end with `status`.
    pub fn ended_with(&self, status: i32) -> &Self {
        let is = self.status();
        assert_eq!(is, status, "exit status; stderr:\n{}output:\n{}", self.errors, self.text());
        self
    }

    /// # Panics
    /// If its output does not have these texts in this order.
    pub fn says(&self, texts: &[&str]) -> &Self {
        let all = self.text();
        let mut rest = all.as_str();
        for text in texts {
            let Some((_, after)) = rest.split_once(text) else {
                panic!("no {text:?} where it is expected; the output:\n{all}");
            };
            rest = after;
        }
        self
    }
}

//! The real gdb, attached to a machine.

use std::io::Write;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::{Transcript, notice};

/// A gdb that reads commands from the test. It is killed when it is dropped.
pub struct Gdb {
    child: Child,
    stdin: ChildStdin,
    output: Transcript,
    deadline: Instant,
    sent: AtomicU32,
}

impl Gdb {
    /// Starts gdb with the symbols of `program`; nothing, with a notice, where there is none.
    pub fn start(program: &Path, deadline: Instant) -> Option<Self> {
        let mut command = Command::new("gdb");
        command.args(["-nx", "-q", "-ex", "set pagination off", "-ex", "set confirm off"]);
        command.args(["-ex", "set width 0", "-ex", "set debuginfod enabled off"]);
        // What the stub says goes to stderr.
        let (said, both) = std::io::pipe().expect("the host has an fd left");
        command.stdout(both.try_clone().expect("the host has an fd left")).stderr(both);
        let Ok(mut child) = command.arg(program).stdin(Stdio::piped()).spawn() else {
            notice("gdb is not installed (Debian: apt-get install gdb)");
            return None;
        };
        // It holds the pipe's other end, whose closing is to be seen.
        drop(command);
        let output = Transcript::of(said);
        let stdin = child.stdin.take().expect("stdin is a pipe");
        Some(Self { child, stdin, output, deadline, sent: AtomicU32::new(0) })
    }

    /// Attaches to a machine whose stub listens on `socket`.
    pub fn attach(&mut self, socket: &Path) {
        while !socket.exists() {
            assert!(Instant::now() < self.deadline, "{} did not come up", socket.display());
            thread::sleep(Duration::from_millis(5));
        }
        let said = self.command(&format!("target remote {}", socket.display()));
        assert!(!said.contains("onnection"), "{said}");
    }

    /// Sends a command that ends once the machine stops, without waiting for that.
    pub fn send(&mut self, command: &str) {
        let number = self.sent.fetch_add(1, Ordering::Relaxed) + 1;
        writeln!(self.stdin, "{command}\necho \\n<{number}>\\n").expect("gdb reads its commands");
    }

    /// Waits for the command that was sent last; gives what gdb said since.
    pub fn wait(&mut self) -> String {
        let number = self.sent.load(Ordering::Relaxed);
        self.output.wait_for(&format!("\n<{number}>\n"), self.deadline)
    }

    /// Runs a command; gives what gdb says.
    pub fn command(&mut self, command: &str) -> String {
        self.send(command);
        self.wait()
    }

    /// Runs a command and expects its answer to contain each of `texts`.
    pub fn expect(&mut self, command: &str, texts: &[&str]) -> String {
        let said = self.command(command);
        for text in texts {
            assert!(said.contains(text), "{command}: no {text:?} in {said:?}");
        }
        said
    }

    /// The value of an expression, as `print` shows it.
    pub fn print(&mut self, expression: &str) -> String {
        let said = self.command(&format!("output {expression}"));
        let value = said.rsplit_once("\n<").map_or(said.as_str(), |(value, _)| value);
        value.replace("(gdb) ", "").trim().to_owned()
    }

    /// Presses Ctrl-C.
    pub fn interrupt(&self) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::INT).expect("gdb is there");
    }
}

impl Drop for Gdb {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

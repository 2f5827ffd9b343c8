//! Clients of the monitor, by sockets.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Transcript;

/// Connects to a server that may not have come up yet.
fn connect(path: &Path, deadline: Instant) -> UnixStream {
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => return stream,
            Err(e) if Instant::now() > deadline => panic!("{}: {e}", path.display()),
            Err(_) => thread::sleep(Duration::from_millis(5)),
        }
    }
}

const PROMPT: &str = "(vmm) ";

/// The text form of the monitor.
pub struct Hmp {
    stream: UnixStream,
    output: Transcript,
    deadline: Instant,
}

impl Hmp {
    pub(crate) fn connect(path: &Path, deadline: Instant) -> Self {
        let stream = connect(path, deadline);
        let output = Transcript::of(stream.try_clone().expect("the host has an fd left"));
        output.wait_for(PROMPT, deadline);
        Self { stream, output, deadline }
    }

    /// Writes a line and does not wait.
    pub fn send(&self, line: &str) {
        (&self.stream).write_all(format!("{line}\n").as_bytes()).expect("the monitor reads on");
    }

    /// Gives a command, and returns the lines of the answer.
    pub fn command(&self, line: &str) -> String {
        self.send(line);
        let answer = self.output.wait_for(PROMPT, self.deadline).replace('\r', "");
        let (echo, answer) = answer.split_once('\n').expect("the line is echoed");
        assert!(echo.ends_with(line), "{echo:?} is no echo of {line:?}");
        answer.strip_suffix(PROMPT).expect("it ends in the prompt").to_owned()
    }

    /// Waits until the monitor closes the connection.
    pub fn wait_for_end(&self) {
        assert!(self.output.wait_for_end(self.deadline), "the monitor does not hang up");
    }
}

/// The JSON form of the monitor.
pub struct Qmp {
    stream: UnixStream,
    lines: BufReader<UnixStream>,
    deadline: Instant,
    greeting: Value,
    events: Vec<Value>,
}

impl Qmp {
    pub(crate) fn connect(path: &Path, deadline: Instant) -> Self {
        let stream = connect(path, deadline);
        let lines = BufReader::new(stream.try_clone().expect("the host has an fd left"));
        let mut qmp = Self { stream, lines, deadline, greeting: Value::Null, events: Vec::new() };
        qmp.greeting = qmp.receive();
        qmp
    }

    /// What it said first.
    pub fn greeting(&self) -> &Value {
        &self.greeting
    }

    /// Leaves negotiation.
    pub fn negotiate(&mut self) {
        self.execute("qmp_capabilities", json!({}));
    }

    /// Writes a line, whatever it is.
    pub fn send(&mut self, line: &str) {
        let line = format!("{line}\n");
        self.stream.write_all(line.as_bytes()).expect("the monitor reads on");
    }

    /// The next message of whatever kind.
    pub fn receive(&mut self) -> Value {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let left = left.max(Duration::from_millis(1));
        self.lines.get_ref().set_read_timeout(Some(left)).expect("it is a socket");
        let mut line = String::new();
        match self.lines.read_line(&mut line) {
            Ok(0) => panic!("the monitor has hung up"),
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => panic!("the monitor is silent"),
            Err(e) => panic!("{e}"),
        }
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line:?}"))
    }

    /// The next answer; events on the way are kept.
    pub fn answer(&mut self) -> Value {
        loop {
            let message = self.receive();
            if message.get("event").is_none() {
                return message;
            }
            self.events.push(message);
        }
    }

    /// Gives a command and returns what it returns.
    ///
    /// # Panics
    /// If it is refused.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Value {
        let request = json!({ "execute": command, "arguments": arguments });
        self.send(&request.to_string());
        let mut answer = self.answer();
        match answer.get_mut("return") {
            Some(value) => value.take(),
            None => panic!("{request}: {answer}"),
        }
    }

    /// Gives a command of the text form.
    pub fn hmp(&mut self, line: &str) -> String {
        let answer = self.execute("human-monitor-command", json!({ "command-line": line }));
        answer.as_str().expect("the answer is text").replace('\r', "")
    }

    /// Waits for an event, of which there may be others before, and returns its data.
    pub fn wait_for_event(&mut self, name: &str) -> Value {
        loop {
            let at = self.events.iter().position(|event| event["event"] == name);
            if let Some(at) = at {
                return self.events.remove(at)["data"].take();
            }
            let message = self.receive();
            assert!(message.get("event").is_some(), "an answer to nothing: {message}");
            self.events.push(message);
        }
    }

    /// The names of the events that have come and were not waited for.
    pub fn events(&self) -> Vec<&str> {
        self.events.iter().filter_map(|event| event["event"].as_str()).collect()
    }
}

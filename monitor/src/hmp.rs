//! The human monitor: lines of text in, text out.

use std::collections::VecDeque;

use crate::args::LineParser;
use crate::complete;
use crate::control::Control;
use crate::error::CommandError;
use crate::format::LastFormat;
use crate::keys::Decoder;
use crate::line::{Action, Editor};
use crate::reply::Reply;
use crate::table;
use crate::text;

/// One session of the human monitor, on a terminal or on anything else that carries bytes.
#[derive(Debug)]
pub struct Hmp {
    keys: Decoder,
    editor: Editor,
    state: Session,
    finished: bool,
}

/// What a session remembers from one command to the next.
#[derive(Debug, Default)]
struct Session {
    cpu: usize,
    format: LastFormat,
}

impl Hmp {
    /// A session with this prompt; "(vmm) " is ours.
    pub fn new(prompt: &str) -> Self {
        Self {
            keys: Decoder::default(),
            editor: Editor::new(prompt),
            state: Session::default(),
            finished: false,
        }
    }

    /// The columns of the terminal, if they are known; 80 else.
    pub fn set_width(&mut self, columns: usize) {
        self.editor.set_width(columns);
    }

    /// Somebody has connected: the greeting and the prompt, to be written out.
    pub fn open(&mut self, control: &dyn Control) -> Vec<u8> {
        let version = control.version();
        let (major, minor, micro) = (version.major, version.minor, version.micro);
        self.keys = Decoder::default();
        self.editor.restart();
        let mut out =
            format!("vmm {major}.{minor}.{micro} monitor - type 'help' for more information\r\n");
        self.editor.draw(&mut out);
        out.into_bytes()
    }

    /// Takes bytes that came in, runs the commands that they complete, and gives the bytes to be
    /// written out.
    pub fn feed(&mut self, control: &mut dyn Control, input: &[u8]) -> Vec<u8> {
        let mut out = String::new();
        for byte in input {
            if self.finished {
                return out.into_bytes();
            }
            let Some(key) = self.keys.feed(*byte) else { continue };
            match self.editor.key(key, &mut out) {
                Action::None => {}
                Action::Submit(line) => self.submit(control, &line, &mut out),
                Action::Complete => self.complete(control, &mut out),
            }
        }
        if !self.finished {
            self.editor.draw(&mut out);
        }
        out.into_bytes()
    }

    /// Whether `quit` was given; input is ignored from then on.
    pub fn finished(&self) -> bool {
        self.finished
    }

    fn submit(&mut self, control: &mut dyn Control, line: &str, out: &mut String) {
        let (text, finished) = self.state.run(control, line, self.editor.history());
        out.push_str(&text.replace('\n', "\r\n"));
        self.finished = finished;
    }

    fn complete(&mut self, control: &mut dyn Control, out: &mut String) {
        let candidates = complete::candidates(control, &self.editor.before_cursor());
        self.editor.insert(&candidates.insertion());
        if let Some(list) = candidates.list() {
            self.editor.draw(out);
            out.push_str("\r\n");
            out.push_str(&list);
            self.editor.new_row();
        }
    }
}

impl Session {
    /// Runs one line; gives what is to be printed, and whether the session is over.
    fn run(
        &mut self,
        control: &mut dyn Control,
        line: &str,
        history: &VecDeque<String>,
    ) -> (String, bool) {
        if line.trim().is_empty() {
            return (String::new(), false);
        }
        let (command, name, rest) = match table::find(line) {
            Ok(found) => found,
            Err(error) => return (complaint(&error, ""), false),
        };
        let last = &mut self.format;
        let reply = LineParser { command, rest, cpu: self.cpu, last, control: &mut *control }
            .parse()
            .and_then(|args| (command.run)(control, &args));
        match reply {
            Ok(reply) => {
                if let Reply::SelectCpu(cpu) = reply {
                    self.cpu = cpu;
                }
                let text = match reply {
                    Reply::History => numbered(history),
                    _ => text::render(&reply),
                };
                (text, matches!(reply, Reply::Quit {}))
            }
            Err(error) => (complaint(&error, name), false),
        }
    }
}

/// The lines of `info history`.
fn numbered(lines: &VecDeque<String>) -> String {
    lines.iter().enumerate().map(|(number, line)| format!("{number}: '{line}'\n")).collect()
}

/// An error in HMP's words; `name` is the command as it was typed.
fn complaint(error: &CommandError, name: &str) -> String {
    match error {
        CommandError::Syntax(_) => {
            format!("{error}\nTry \"help {name}\" for more information\n")
        }
        CommandError::UnknownCommand { .. } | CommandError::Remark(_) => format!("{error}\n"),
        _ => format!("Error: {error}\n"),
    }
}

/// Runs one line in a session of its own, whose vCPU is `cpu`; gives what it prints.
pub(crate) fn print_line(control: &mut dyn Control, cpu: usize, line: &str) -> String {
    Session { cpu, ..Session::default() }.run(control, line, &VecDeque::new()).0
}

/// As [`print_line`], for QMP.
pub(crate) fn run_line(control: &mut dyn Control, cpu: usize, line: &str) -> String {
    print_line(control, cpu, line).replace('\n', "\r\n")
}

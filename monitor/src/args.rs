//! The arguments of a command: one typed request, whichever front end it came by.

use crate::control::Control;
use crate::error::CommandError;
use crate::expr;
use crate::format::{Format, LastFormat};
use crate::table::{Arg, ArgKind, Command};

/// The arguments of one command, parsed, and the vCPU that it acts on.
#[derive(Clone, Debug, Default)]
pub struct Args {
    cpu: usize,
    values: Vec<(&'static str, Value)>,
}

/// An argument's value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A number.
    Int(i64),
    /// A string.
    Text(String),
    /// A flag that was given, or a boolean.
    Bool(bool),
    /// `/fmt`.
    Format(Format),
    /// A list of strings.
    List(Vec<String>),
}

impl Args {
    /// No arguments yet, for the session's vCPU `cpu`.
    pub fn new(cpu: usize) -> Self {
        Self { cpu, values: Vec::new() }
    }

    /// Adds an argument.
    pub fn push(&mut self, name: &'static str, value: Value) {
        self.values.push((name, value));
    }

    fn get(&self, name: &str) -> Option<&Value> {
        self.values.iter().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    /// A number, if it was given.
    pub fn opt_int(&self, name: &str) -> Option<i64> {
        match self.get(name) {
            Some(Value::Int(value)) => Some(*value),
            _ => None,
        }
    }

    /// A number.
    ///
    /// # Errors
    /// [`CommandError::Missing`].
    pub fn int(&self, name: &'static str) -> Result<i64, CommandError> {
        self.opt_int(name).ok_or(CommandError::Missing(name))
    }

    /// A number that is an address.
    ///
    /// # Errors
    /// [`CommandError::Missing`].
    pub fn addr(&self, name: &'static str) -> Result<u64, CommandError> {
        self.int(name).map(|value| value as u64)
    }

    /// A string, if it was given.
    pub fn opt_text(&self, name: &str) -> Option<&str> {
        match self.get(name) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// A string.
    ///
    /// # Errors
    /// [`CommandError::Missing`].
    pub fn text(&self, name: &'static str) -> Result<&str, CommandError> {
        self.opt_text(name).ok_or(CommandError::Missing(name))
    }

    /// Whether a flag was given.
    pub fn flag(&self, name: &str) -> bool {
        self.get(name) == Some(&Value::Bool(true))
    }

    /// `/fmt`; the default one if none was given.
    pub fn format(&self, name: &str) -> Format {
        match self.get(name) {
            Some(Value::Format(format)) => *format,
            _ => Format::default(),
        }
    }

    /// A list of strings; empty if none was given.
    pub fn list(&self, name: &str) -> &[String] {
        match self.get(name) {
            Some(Value::List(list)) => list,
            _ => &[],
        }
    }

    /// The vCPU to act on: the session's, checked to be there.
    ///
    /// # Errors
    /// [`CommandError::BadValue`] where the machine has no such vCPU.
    pub fn cpu(&self, control: &mut dyn Control) -> Result<usize, CommandError> {
        let cpu = self.opt_int("cpu-index").unwrap_or(self.cpu as i64);
        match usize::try_from(cpu) {
            Ok(cpu) if cpu < control.cpus().len() => Ok(cpu),
            _ => Err(CommandError::BadValue { name: "cpu-index", expected: "a CPU number" }),
        }
    }

    /// The session's vCPU, there or not.
    pub fn session_cpu(&self) -> usize {
        self.cpu
    }
}

/// Parses the arguments on an HMP line.
pub(crate) struct LineParser<'a> {
    /// The command that the line begins with.
    pub(crate) command: &'a Command,
    /// What is left of the line.
    pub(crate) rest: &'a str,
    /// The session's vCPU.
    pub(crate) cpu: usize,
    /// The session's last format.
    pub(crate) last: &'a mut LastFormat,
    /// For the registers that expressions name.
    pub(crate) control: &'a mut dyn Control,
}

impl LineParser<'_> {
    /// All arguments, to the end of the line.
    ///
    /// # Errors
    /// [`CommandError::Syntax`].
    pub(crate) fn parse(mut self) -> Result<Args, CommandError> {
        let mut args = Args::new(self.cpu);
        let mut following = self.command.args.iter();
        while let Some(arg) = following.next() {
            self.rest = self.rest.trim_start();
            if let Some(value) = self.argument(arg, following.as_slice().first())? {
                args.push(arg.name, value);
            }
        }
        if !self.rest.trim_start().is_empty() {
            return Err(self.complaint("extraneous characters at the end of line"));
        }
        Ok(args)
    }

    fn argument(&mut self, arg: &Arg, next: Option<&Arg>) -> Result<Option<Value>, CommandError> {
        match arg.kind {
            ArgKind::Format => {
                Format::parse(&mut self.rest, self.last).map(|format| Some(Value::Format(format)))
            }
            ArgKind::Flag(letter) => self.flag(letter),
            ArgKind::DotInt => match self.rest.strip_prefix('.') {
                None => Ok(None),
                Some(after) => {
                    self.rest = after;
                    self.expression(next).and_then(|value| self.fit_32(value)).map(Some)
                }
            },
            _ if arg.optional && self.rest.is_empty() => Ok(None),
            ArgKind::Int => self.expression(next).and_then(|value| self.fit_32(value)).map(Some),
            ArgKind::Long => self.expression(next).map(|value| Some(Value::Int(value))),
            ArgKind::Text => match take_word(&mut self.rest) {
                Ok(Some(word)) => Ok(Some(Value::Text(word))),
                Ok(None) => Err(self.complaint("string expected")),
                Err(why) => {
                    let name = self.command.last_word();
                    Err(CommandError::Syntax(format!("{why}\n{name}: string expected")))
                }
            },
            ArgKind::Rest => {
                let all = std::mem::take(&mut self.rest).trim_end().to_owned();
                Ok(Some(Value::Text(all)))
            }
        }
    }

    fn flag(&mut self, letter: char) -> Result<Option<Value>, CommandError> {
        let Some(after) = self.rest.strip_prefix('-') else {
            return Ok(None);
        };
        let Some(rest) = after.strip_prefix(letter) else {
            let other = after.chars().next().map(String::from).unwrap_or_default();
            return Err(self.complaint(&format!("unsupported option -{other}")));
        };
        self.rest = rest;
        Ok(Some(Value::Bool(true)))
    }

    fn expression(&mut self, next: Option<&Arg>) -> Result<i64, CommandError> {
        let mut parser = expr::Parser::new(self.rest, self.cpu, self.control);
        if next.is_some_and(|next| next.kind == ArgKind::Text) {
            parser = parser.before_text();
        }
        let (value, rest) = parser.parse()?;
        self.rest = rest;
        Ok(value)
    }

    fn fit_32(&self, value: i64) -> Result<Value, CommandError> {
        if u32::try_from(value).is_ok() {
            return Ok(Value::Int(value));
        }
        let name = self.command.last_word();
        Err(CommandError::Syntax(format!("'{name}' has failed: integer is for 32-bit values")))
    }

    fn complaint(&self, what: &str) -> CommandError {
        CommandError::Syntax(format!("{}: {what}", self.command.last_word()))
    }
}

/// Takes one word, or one string in double quotes with the escapes \n \r \\ \' \".
fn take_word(rest: &mut &str) -> Result<Option<String>, String> {
    let Some(quoted) = rest.strip_prefix('"') else {
        let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
        let word = rest[..end].to_owned();
        *rest = &rest[end..];
        return Ok((!word.is_empty()).then_some(word));
    };
    let mut word = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => {
                *rest = &quoted[at + 1..];
                return Ok(Some(word));
            }
            '\\' => match chars.next() {
                Some((_, 'n')) => word.push('\n'),
                Some((_, 'r')) => word.push('\r'),
                Some((_, c @ ('\\' | '\'' | '"'))) => word.push(c),
                Some((_, c)) => return Err(format!("unsupported escape code: '\\{c}'")),
                None => break,
            },
            c => word.push(c),
        }
    }
    Err("unterminated string".to_owned())
}

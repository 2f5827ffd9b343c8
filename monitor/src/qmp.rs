//! QMP: JSON commands in, JSON replies and events out (QEMU's docs/interop/qmp-spec, version 1).

use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::args::{self, Args};
use crate::control::Control;
use crate::error::CommandError;
use crate::event::Event;
use crate::json;
use crate::reply::{Reply, VersionReply};
use crate::schema::{Member, Type};
use crate::table::{Command, QmpForm, qmp_commands};

/// The command that ends the negotiation.
const CAPABILITIES: &str = "qmp_capabilities";

/// One session of QMP.
#[derive(Debug, Default)]
pub struct Qmp {
    reader: json::Reader,
    negotiated: bool,
    finished: bool,
}

#[derive(Serialize)]
struct Greeting {
    #[serde(rename = "QMP")]
    qmp: GreetingBody,
}

#[derive(Serialize)]
struct GreetingBody {
    version: VersionReply,
    capabilities: [&'static str; 0],
}

/// A reply or an error, with the command's id.
#[derive(Serialize)]
struct Answer {
    #[serde(flatten)]
    body: Body,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<Value>,
}

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Body {
    Return(Reply),
    Error { class: &'static str, desc: String },
}

impl Qmp {
    /// A session; nothing is written before [`open`](Self::open).
    pub fn new() -> Self {
        Self::default()
    }

    /// Somebody has connected: begins the negotiation, and gives the greeting.
    pub fn open(&mut self, control: &dyn Control) -> Vec<u8> {
        *self = Self::default();
        let version = VersionReply::from(control.version());
        json::line(&Greeting { qmp: GreetingBody { version, capabilities: [] } })
    }

    /// Takes bytes that came in. [`step`](Self::step) runs the commands in them.
    pub fn push(&mut self, input: &[u8]) {
        self.reader.push(input);
    }

    /// Runs the next command that has come in whole, and gives its answer; `None` when there is
    /// none. Events that `control` raised meanwhile go out before the answer.
    pub fn step(&mut self, control: &mut dyn Control) -> Option<Vec<u8>> {
        if self.finished {
            return None;
        }
        let answer = match self.reader.next()? {
            Ok(Value::Object(mut message)) => {
                let id = message.remove("id");
                Answer { body: self.run(control, message).into(), id }
            }
            Ok(_) => remark("QMP input must be a JSON object").into(),
            Err(why) => CommandError::Remark(why).into(),
        };
        Some(json::line(&answer))
    }

    /// [`push`](Self::push), and [`step`](Self::step) to the end.
    pub fn feed(&mut self, control: &mut dyn Control, input: &[u8]) -> Vec<u8> {
        self.push(input);
        let mut out = Vec::new();
        while let Some(answer) = self.step(control) {
            out.extend(answer);
        }
        out
    }

    /// An event at `time` since the Unix epoch, to be written out; `None` as long as the client has
    /// not ended the negotiation.
    pub fn event(&self, event: &Event, time: Duration) -> Option<Vec<u8>> {
        self.negotiated.then(|| json::line(&event.to_json(time)))
    }

    /// Whether `quit` was given; input is ignored from then on.
    pub fn finished(&self) -> bool {
        self.finished
    }

    fn run(
        &mut self,
        control: &mut dyn Control,
        mut message: Map<String, Value>,
    ) -> Result<Reply, CommandError> {
        let name = message.remove("execute");
        let arguments = message.remove("arguments");
        if let Some(other) = message.keys().next() {
            return Err(remark(&format!("QMP input member '{other}' is unexpected")));
        }
        let name = match name {
            Some(Value::String(name)) => name,
            Some(_) => return Err(remark("QMP input member 'execute' must be a string")),
            None => return Err(remark("QMP input lacks member 'execute'")),
        };
        let arguments = match arguments {
            None => Map::new(),
            Some(Value::Object(arguments)) => arguments,
            Some(_) => return Err(remark("QMP input member 'arguments' must be an object")),
        };
        self.check_negotiation(&name)?;
        let (command, form) = find(&name)?;
        let reply = (command.run)(control, &parse(form, arguments)?)?;
        self.negotiated = true;
        self.finished = matches!(reply, Reply::Quit {});
        Ok(reply)
    }

    fn check_negotiation(&self, name: &str) -> Result<(), CommandError> {
        match (self.negotiated, name == CAPABILITIES) {
            (false, false) => Err(CommandError::Negotiation(
                "Expecting capabilities negotiation with 'qmp_capabilities'",
            )),
            (true, true) => Err(CommandError::Negotiation(
                "Capabilities negotiation is already complete, command ignored",
            )),
            _ => Ok(()),
        }
    }
}

fn remark(text: &str) -> CommandError {
    CommandError::Remark(text.to_owned())
}

fn find(name: &str) -> Result<(&'static Command, &'static QmpForm), CommandError> {
    qmp_commands()
        .find(|(_, form)| form.name == name)
        .ok_or_else(|| CommandError::CommandNotFound(name.to_owned()))
}

/// Checks the arguments against the command's form.
fn parse(form: &'static QmpForm, mut given: Map<String, Value>) -> Result<Args, CommandError> {
    let mut args = Args::default();
    for member in form.args {
        if matches!(member.ty, Type::Open) {
            let mut words = Vec::new();
            for (name, value) in std::mem::take(&mut given) {
                flatten(&mut words, &name, value)?;
            }
            args.push(member.name, args::Value::List(words));
            continue;
        }
        match given.remove(member.name) {
            None if member.optional => {}
            None => return Err(CommandError::Missing(member.name)),
            Some(value) => args.push(member.name, typed(member, value)?),
        }
    }
    match given.keys().next() {
        Some(other) => Err(CommandError::Unexpected(other.clone())),
        None => Ok(args),
    }
}

/// Adds a property in the words of the command line: `name=value`, and `outer.inner=value` for what
/// is an object.
fn flatten(words: &mut Vec<String>, name: &str, value: Value) -> Result<(), CommandError> {
    let value = match value {
        // A string in a list is wrapped into an object.
        Value::Object(mut members) if members.len() == 1 && members.contains_key("str") => {
            return flatten(words, name, members.remove("str").unwrap_or_default());
        }
        Value::Object(members) => {
            return members
                .into_iter()
                .try_for_each(|(inner, value)| flatten(words, &format!("{name}.{inner}"), value));
        }
        Value::String(text) => text.replace(',', ",,"),
        Value::Number(number) => number.to_string(),
        Value::Bool(true) => "on".to_owned(),
        Value::Bool(false) => "off".to_owned(),
        // A list is the same word several times.
        Value::Array(values) => {
            return values.into_iter().try_for_each(|value| flatten(words, name, value));
        }
        Value::Null => {
            let expected = "a string, a number, a boolean or an object";
            return Err(remark(&format!(
                "Invalid parameter type for '{name}', expected: {expected}"
            )));
        }
    };
    words.push(format!("{name}={value}"));
    Ok(())
}

fn typed(member: &Member, value: Value) -> Result<args::Value, CommandError> {
    let wrong = |expected| CommandError::WrongType { name: member.name, expected };
    match (member.ty, value) {
        (Type::Int, Value::Number(number)) => {
            number.as_i64().map(args::Value::Int).ok_or(wrong("integer"))
        }
        (Type::Int, _) => Err(wrong("integer")),
        (Type::Str | Type::Enum(_), Value::String(text)) => Ok(args::Value::Text(text)),
        (Type::Bool, Value::Bool(value)) => Ok(args::Value::Bool(value)),
        (Type::Bool, _) => Err(wrong("boolean")),
        (Type::Array(_), Value::Array(values)) => values
            .into_iter()
            .map(|value| match value {
                Value::String(text) => Ok(text),
                _ => Err(wrong("array of strings")),
            })
            .collect::<Result<_, _>>()
            .map(args::Value::List),
        (Type::Array(_), _) => Err(wrong("array")),
        _ => Err(wrong("string")),
    }
}

impl From<Result<Reply, CommandError>> for Body {
    fn from(result: Result<Reply, CommandError>) -> Self {
        match result {
            Ok(reply) => Self::Return(reply),
            Err(error) => {
                let class = match error {
                    CommandError::CommandNotFound(_) | CommandError::Negotiation(_) => {
                        "CommandNotFound"
                    }
                    CommandError::DeviceNotFound(_) => "DeviceNotFound",
                    _ => "GenericError",
                };
                Self::Error { class, desc: error.to_string() }
            }
        }
    }
}

impl From<CommandError> for Answer {
    fn from(error: CommandError) -> Self {
        Self { body: Err(error).into(), id: None }
    }
}

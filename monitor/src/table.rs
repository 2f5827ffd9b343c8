//! The command table. One row describes a command once: how it is typed, what QMP calls it, what it
//! takes and gives, and what runs it. Help, completion, the QMP schema and `docs/monitor.md` all
//! come from here.

use crate::args::Args;
use crate::commands as topics;
use crate::control::Control;
use crate::error::CommandError;
use crate::reply::Reply;
use crate::schema::{Member, Type};

/// What a handler gives back.
pub type Outcome = Result<Reply, CommandError>;

/// One row.
#[derive(Debug)]
pub struct Command {
    /// HMP's name, with aliases after bars: "cont|c", "info status". `None`: QMP only.
    pub hmp: Option<&'static str>,
    /// HMP's arguments.
    pub args: &'static [Arg],
    /// The arguments as help shows them.
    pub usage: &'static str,
    /// One line of help.
    pub help: &'static str,
    /// QMP's form, where there is one.
    pub qmp: Option<QmpForm>,
    /// Does it. Neither prints nor parses.
    pub run: fn(&mut dyn Control, &Args) -> Outcome,
}

/// A command's QMP form.
#[derive(Debug)]
pub struct QmpForm {
    /// Its name.
    pub name: &'static str,
    /// Its arguments; those that HMP has too go by the same names.
    pub args: &'static [Member],
    /// What it returns.
    pub returns: Type,
}

/// One HMP argument.
#[derive(Clone, Copy, Debug)]
pub struct Arg {
    /// The name by which the handler asks for it.
    pub name: &'static str,
    /// How it is written.
    pub kind: ArgKind,
    /// Whether it may be left out.
    pub optional: bool,
    /// What Tab offers for it.
    pub complete: Complete,
}

/// How an argument is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArgKind {
    /// An expression whose value fits into 32 bits.
    Int,
    /// An expression of 64 bits.
    Long,
    /// A second expression behind a dot: `i 0x70.0xf`.
    DotInt,
    /// One word, or a string in double quotes.
    Text,
    /// The rest of the line.
    Rest,
    /// A letter behind a dash.
    Flag(char),
    /// `/` and count, format letter and size letter; [`Format`](crate::format::Format).
    Format,
}

/// What Tab offers for an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Complete {
    /// Nothing.
    Nothing,
    /// The names of commands.
    Command,
    /// Files of the host.
    File,
    /// Indices of vCPUs.
    Cpu,
    /// Registers, behind a `$`.
    Register,
}

impl Arg {
    const fn new(name: &'static str, kind: ArgKind, complete: Complete) -> Self {
        Self { name, kind, optional: false, complete }
    }

    /// A 32-bit expression.
    pub const fn int(name: &'static str) -> Self {
        Self::new(name, ArgKind::Int, Complete::Register)
    }

    /// A 64-bit expression.
    pub const fn long(name: &'static str) -> Self {
        Self::new(name, ArgKind::Long, Complete::Register)
    }

    /// A vCPU's index.
    pub const fn cpu(name: &'static str) -> Self {
        Self::new(name, ArgKind::Int, Complete::Cpu)
    }

    /// An optional expression behind a dot.
    pub const fn dot_int(name: &'static str) -> Self {
        Self::new(name, ArgKind::DotInt, Complete::Nothing).optional()
    }

    /// One word, or a string in double quotes.
    pub const fn text(name: &'static str) -> Self {
        Self::new(name, ArgKind::Text, Complete::Nothing)
    }

    /// A file's name.
    pub const fn file(name: &'static str) -> Self {
        Self::new(name, ArgKind::Text, Complete::File)
    }

    /// A command's name, which may have several words.
    pub const fn command(name: &'static str) -> Self {
        Self::new(name, ArgKind::Rest, Complete::Command)
    }

    /// The rest of the line.
    pub const fn rest(name: &'static str) -> Self {
        Self::new(name, ArgKind::Rest, Complete::Nothing)
    }

    /// An option of one letter.
    pub const fn flag(name: &'static str, letter: char) -> Self {
        Self::new(name, ArgKind::Flag(letter), Complete::Nothing).optional()
    }

    /// An optional `/fmt`.
    pub const fn format(name: &'static str) -> Self {
        Self::new(name, ArgKind::Format, Complete::Nothing).optional()
    }

    /// The same argument, which may be left out.
    pub const fn optional(self) -> Self {
        Self { optional: true, ..self }
    }
}

impl Command {
    /// HMP's names without the words before the last: "status" of "info status", ["cont", "c"].
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.last_word().split('|').filter(|name| !name.is_empty())
    }

    /// "status" of "info status", "cont|c" as it stands; error messages begin with this.
    pub fn last_word(&self) -> &'static str {
        self.hmp.and_then(|name| name.rsplit(' ').next()).unwrap_or_default()
    }

    /// The command of which this is a sub-command: "info" of "info status".
    pub fn parent(&self) -> Option<&'static str> {
        self.hmp.and_then(|name| name.rsplit_once(' ')).map(|(parent, _)| parent)
    }

    /// Whether `typed` (of one level) is one of this command's names.
    pub fn is_called(&self, typed: &str) -> bool {
        self.names().any(|name| name == typed)
    }
}

/// All rows; those with an HMP name in alphabetical order within each topic.
pub fn commands() -> impl Iterator<Item = &'static Command> {
    [
        topics::help::COMMANDS,
        topics::run::COMMANDS,
        topics::info::COMMANDS,
        topics::device::COMMANDS,
        topics::memory::COMMANDS,
        topics::log::COMMANDS,
        topics::paging::COMMANDS,
        topics::io::COMMANDS,
        topics::net::COMMANDS,
        topics::virtio::COMMANDS,
        topics::block::COMMANDS,
        topics::protocol::COMMANDS,
    ]
    .into_iter()
    .flatten()
}

/// The HMP commands of one level (`None`: top; `Some("info")`: its sub-commands), by name.
pub(crate) fn hmp_level(parent: Option<&str>) -> Vec<&'static Command> {
    let mut level: Vec<_> =
        commands().filter(|row| row.hmp.is_some() && row.parent() == parent).collect();
    level.sort_by_key(|row| row.hmp);
    level
}

/// The rows with a QMP form.
pub(crate) fn qmp_commands() -> impl Iterator<Item = (&'static Command, &'static QmpForm)> {
    commands().filter_map(|row| row.qmp.as_ref().map(|form| (row, form)))
}

/// Finds the HMP command that `line` begins with; gives the row, what of the line is its name, and
/// the rest.
///
/// # Errors
/// [`CommandError::UnknownCommand`], with the nearest command that there is.
pub(crate) fn find(line: &str) -> Result<(&'static Command, &str, &str), CommandError> {
    let line = line.trim_start();
    let mut found: Option<(&'static Command, usize)> = None;
    let mut at = 0;
    loop {
        let rest = line[at..].trim_start();
        let start = line.len() - rest.len();
        // A slash begins a format: `x/4xw`.
        let end = rest.find(|c: char| c.is_whitespace() || c == '/').unwrap_or(rest.len());
        let typed = &rest[..end];
        let level = hmp_level(found.and_then(|(row, _)| row.hmp));
        if let Some((row, at)) = found
            && (level.is_empty() || typed.is_empty())
        {
            return Ok((row, &line[..at], &line[at..]));
        }
        let end = start + end;
        match level.iter().copied().find(|row| row.is_called(typed)) {
            Some(row) => (found, at) = (Some((row, end)), end),
            None => {
                let prefix = found.map_or(String::new(), |(_, at)| format!("{} ", &line[..at]));
                return Err(CommandError::UnknownCommand {
                    name: format!("{prefix}{typed}"),
                    nearest: nearest(&level, typed).map(|near| format!("{prefix}{near}")),
                });
            }
        }
    }
}

/// The name at this level that `typed` was probably meant to be.
fn nearest(level: &[&'static Command], typed: &str) -> Option<&'static str> {
    level
        .iter()
        .flat_map(|row| row.names())
        .filter(|name| name.len() > 1)
        .map(|name| (strsim::jaro_winkler(typed, name), name))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(line: &str) -> (&'static str, String, String) {
        let (row, name, rest) = find(line).unwrap();
        (row.hmp.unwrap(), name.to_owned(), rest.to_owned())
    }

    #[test]
    fn names_aliases_and_sub_commands_are_found() {
        assert_eq!(found("c"), ("cont|c", "c".into(), "".into()));
        assert_eq!(found("x/4xw 1"), ("x", "x".into(), "/4xw 1".into()));
        assert_eq!(found(" info   status x"), ("info status", "info   status".into(), " x".into()));
        assert_eq!(found("info "), ("info", "info".into(), " ".into()));
    }

    #[test]
    fn an_unknown_command_names_the_nearest() {
        for (line, message) in [
            ("foo", "unknown command: 'foo'"),
            ("inof status", "unknown command: 'inof'; did you mean 'info'?"),
            ("info regs", "unknown command: 'info regs'; did you mean 'info registers'?"),
            ("info foo", "unknown command: 'info foo'"),
            ("system_rest", "unknown command: 'system_rest'; did you mean 'system_reset'?"),
        ] {
            assert_eq!(find(line).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn no_two_rows_share_a_name() {
        let mut hmp: Vec<_> =
            commands().flat_map(|row| row.names().map(move |n| (row.parent(), n))).collect();
        let mut qmp: Vec<_> = qmp_commands().map(|(_, form)| form.name).collect();
        let (all_hmp, all_qmp) = (hmp.len(), qmp.len());
        hmp.sort();
        hmp.dedup();
        qmp.sort();
        qmp.dedup();
        assert_eq!((hmp.len(), qmp.len()), (all_hmp, all_qmp));
    }
}

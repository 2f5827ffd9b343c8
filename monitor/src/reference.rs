//! The command reference, `docs/monitor.md`, out of the table.

use std::fmt::{self, Write};

use crate::schema::{Member, Type};
use crate::table::{Command, QmpForm, hmp_level, qmp_commands};

const INTRODUCTION: &str = "\
# Monitor reference

This page is made from the command table; `help` in the monitor shows the same.

The human monitor (HMP) takes a line a command; Tab completes, the arrow keys recall. QMP takes a
JSON object a command, after `{\"execute\": \"qmp_capabilities\"}`.

Numbers are expressions: decimal, `0x` hexadecimal or `0` octal, `'c'`, `$register`; `* / %` bind
most tightly, then `& | ^`, then `+ -`; `-`, `+`, `~` and parentheses as in C. `/fmt` is a count, a
format letter (`x` hexadecimal, `d` signed, `u` unsigned, `o` octal, `c` character, `i` instruction)
and a size letter (`b` 1, `h` 2, `w` 4, `g` 8 bytes), each optional: what is left out is as it was
last time.
";

/// The reference as Markdown.
pub fn reference() -> String {
    let mut out = INTRODUCTION.to_owned();
    write(&mut out).expect("a String takes all");
    out
}

fn write(out: &mut String) -> fmt::Result {
    writeln!(out, "\n## HMP commands\n\n| Command | What it does | QMP |\n| --- | --- | --- |")?;
    for command in hmp_level(None) {
        row(out, command)?;
        hmp_level(command.hmp).into_iter().try_for_each(|command| row(out, command))?;
    }
    writeln!(out, "\n## QMP commands\n\n| Command | Arguments | Returns | What it does |")?;
    writeln!(out, "| --- | --- | --- | --- |")?;
    let mut commands: Vec<_> = qmp_commands().collect();
    commands.sort_by_key(|(_, form)| form.name);
    for (command, form) in commands {
        let (name, args, returns) = (form.name, arguments(form), returned(form.returns));
        writeln!(out, "| `{name}` | {args} | {returns} | {} |", escape(command.help))?;
    }
    writeln!(out, "\n## QMP events\n\n| Event | Data |\n| --- | --- |")?;
    for (name, members) in crate::event::ALL {
        writeln!(out, "| `{name}` | {} |", list(members))?;
    }
    Ok(())
}

fn row(out: &mut String, command: &Command) -> fmt::Result {
    let name = format!("{} {}", command.hmp.unwrap_or_default(), command.usage);
    let qmp = command.qmp.as_ref().map_or(String::new(), |form| format!("`{}`", form.name));
    writeln!(out, "| `{}` | {} | {qmp} |", escape(name.trim_end()), escape(command.help))
}

/// A bar would end the table's cell.
fn escape(text: &str) -> String {
    text.replace('|', "\\|")
}

fn arguments(form: &QmpForm) -> String {
    list(form.args)
}

fn list(members: &[Member]) -> String {
    let members: Vec<_> = members
        .iter()
        .map(|member| {
            let optional = if member.optional { ", optional" } else { "" };
            format!("`{}` ({}{optional})", member.name, named(member.ty))
        })
        .collect();
    members.join(", ")
}

/// What a command returns: the members of an object, rather than its type's name.
fn returned(ty: Type) -> String {
    match ty {
        Type::Nothing => String::new(),
        Type::Object(object) => list(object.members),
        Type::Array(Type::Object(object)) => format!("array of {}", list(object.members)),
        other => named(other),
    }
}

fn named(ty: Type) -> String {
    match ty {
        Type::Nothing => "nothing".to_owned(),
        Type::Int => "integer".to_owned(),
        Type::Str => "string".to_owned(),
        Type::Bool => "boolean".to_owned(),
        Type::Enum(kind) => kind.name.to_owned(),
        Type::Object(object) => format!("{{{}}}", list(object.members)),
        Type::Open => "any members".to_owned(),
        Type::Array(element) => format!("array of {}", named(*element)),
    }
}

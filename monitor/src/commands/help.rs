//! `help`, and `info` without a sub-command.

use crate::args::Args;
use crate::control::Control;
use crate::reply::{HelpLine, Reply};
use crate::table::{Arg, Command, Outcome, find, hmp_level};

pub(crate) const COMMANDS: &[Command] = &[
    Command {
        hmp: Some("help|?"),
        args: &[Arg::command("name").optional()],
        usage: "[cmd]",
        help: "list the commands, or explain one",
        qmp: None,
        run: hmp_help,
    },
    Command {
        hmp: Some("info"),
        args: &[],
        usage: "[subcommand]",
        help: "show the state of a part of the machine",
        qmp: None,
        run: hmp_info,
    },
];

fn hmp_help(_: &mut dyn Control, args: &Args) -> Outcome {
    let level = match args.opt_text("name").map(str::trim) {
        None | Some("") => hmp_level(None),
        Some(name) => {
            let (command, ..) = find(name)?;
            let below = hmp_level(command.hmp);
            if below.is_empty() { vec![command] } else { below }
        }
    };
    Ok(Reply::Help(level.into_iter().map(help_line).collect()))
}

fn hmp_info(_: &mut dyn Control, _: &Args) -> Outcome {
    Ok(Reply::Help(hmp_level(Some("info")).into_iter().map(help_line).collect()))
}

fn help_line(command: &Command) -> HelpLine {
    let name = command.hmp.unwrap_or_default();
    HelpLine { name, usage: command.usage, help: command.help }
}

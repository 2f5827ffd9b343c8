//! Commands of QMP about itself.

use crate::args::Args;
use crate::control::Control;
use crate::error::CommandError;
use crate::hmp;
use crate::reply::{CommandName, Reply};
use crate::schema::{self, Member, Type, types};
use crate::table::{Command, Outcome, QmpForm, qmp_commands};

pub(crate) const COMMANDS: &[Command] = &[
    Command {
        hmp: None,
        args: &[],
        usage: "",
        help: "run an HMP command and return what it prints",
        qmp: Some(QmpForm {
            name: "human-monitor-command",
            args: &[
                Member::required("command-line", Type::Str),
                Member::optional("cpu-index", Type::Int),
            ],
            returns: Type::Str,
        }),
        run: qmp_human_monitor_command,
    },
    Command {
        hmp: None,
        args: &[],
        usage: "",
        help: "end the negotiation of capabilities; the first command of every session",
        qmp: Some(QmpForm {
            name: "qmp_capabilities",
            args: &[Member::optional("enable", Type::Array(&types::CAPABILITY))],
            returns: Type::Nothing,
        }),
        run: qmp_capabilities,
    },
    Command {
        hmp: None,
        args: &[],
        usage: "",
        help: "list the QMP commands",
        qmp: Some(QmpForm {
            name: "query-commands",
            args: &[],
            returns: Type::Array(&types::COMMAND_NAME),
        }),
        run: qmp_query_commands,
    },
    Command {
        hmp: None,
        args: &[],
        usage: "",
        help: "describe the QMP commands, events and types",
        qmp: Some(QmpForm {
            name: "query-qmp-schema",
            args: &[],
            returns: Type::Array(&types::SCHEMA_INFO),
        }),
        run: qmp_query_qmp_schema,
    },
];

fn qmp_human_monitor_command(control: &mut dyn Control, args: &Args) -> Outcome {
    let cpu = args.cpu(control)?;
    Ok(Reply::Text(hmp::run_line(control, cpu, args.text("command-line")?)))
}

/// The session lets this through once, when it begins.
fn qmp_capabilities(_: &mut dyn Control, args: &Args) -> Outcome {
    match args.list("enable").first() {
        None => Ok(Reply::Done {}),
        Some(name) => Err(CommandError::Remark(format!("Capability '{name}' is not available"))),
    }
}

fn qmp_query_commands(_: &mut dyn Control, _: &Args) -> Outcome {
    let mut names: Vec<_> =
        qmp_commands().map(|(_, form)| CommandName { name: form.name }).collect();
    names.sort_by_key(|command| command.name);
    Ok(Reply::Commands(names))
}

fn qmp_query_qmp_schema(_: &mut dyn Control, _: &Args) -> Outcome {
    Ok(Reply::Schema(schema::describe()))
}

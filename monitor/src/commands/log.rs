//! Commands about the log of `-d`.

use std::fmt::Write;

use crate::args::Args;
use crate::control::Control;
use crate::error::{CommandError, os_words};
use crate::reply::Reply;
use crate::table::{Arg, Command, Outcome};

pub(crate) const COMMANDS: &[Command] = &[
    Command {
        hmp: Some("log"),
        args: &[Arg::text("items")],
        usage: "item[,...]",
        help: "log these from now on, as -d does; none: nothing, all: everything, help: what there is",
        qmp: None,
        run: hmp_log,
    },
    Command {
        hmp: Some("logfile"),
        args: &[Arg::file("filename")],
        usage: "file",
        help: "the log goes into this file, as by -D",
        qmp: None,
        run: hmp_logfile,
    },
];

fn hmp_log(control: &mut dyn Control, args: &Args) -> Outcome {
    let known = control.log_items();
    let wanted: Vec<&str> = match args.text("items")? {
        "none" => Vec::new(),
        "all" => known.iter().map(|item| item.name).collect(),
        items => items.split(',').collect(),
    };
    if wanted.iter().any(|name| known.iter().all(|item| item.name != *name)) {
        let mut text = "Log items (comma separated):\n".to_owned();
        let none = ("none", "remove all logs");
        for (name, help) in [none].into_iter().chain(known.iter().map(|i| (i.name, i.help))) {
            writeln!(text, "{name:<15} {help}").expect("a String takes all");
        }
        return Ok(Reply::Text(text));
    }
    control.set_log_items(&wanted);
    Ok(Reply::Done {})
}

fn hmp_logfile(control: &mut dyn Control, args: &Args) -> Outcome {
    let path = args.text("filename")?;
    control.set_log_file(path).map_err(|cause| {
        CommandError::Remark(format!("Error opening logfile {path}: {}", os_words(&cause)))
    })?;
    Ok(Reply::Done {})
}

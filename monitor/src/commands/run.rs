//! Commands that change the state of the machine as a whole, and of the session.

use crate::args::Args;
use crate::control::Control;
use crate::error::CommandError;
use crate::reply::Reply;
use crate::schema::Type;
use crate::state::RunState;
use crate::table::{Arg, Command, Outcome, QmpForm};

const fn plain(name: &'static str) -> Option<QmpForm> {
    Some(QmpForm { name, args: &[], returns: Type::Nothing })
}

pub(crate) const COMMANDS: &[Command] = &[
    Command {
        hmp: Some("cont|c"),
        args: &[],
        usage: "",
        help: "let the guest run on",
        qmp: plain("cont"),
        run: hmp_cont,
    },
    Command {
        hmp: Some("cpu"),
        args: &[Arg::cpu("index")],
        usage: "index",
        help: "choose the vCPU that registers, x and $reg are about",
        qmp: None,
        run: hmp_cpu,
    },
    Command {
        hmp: Some("gdbserver"),
        args: &[Arg::text("device").optional()],
        usage: "[backend]",
        help: "let gdb attach: by tcp::1234, by another backend, or with none no longer",
        qmp: None,
        run: hmp_gdbserver,
    },
    Command {
        hmp: Some("nmi"),
        args: &[],
        usage: "",
        help: "send all vCPUs a non-maskable interrupt",
        qmp: plain("inject-nmi"),
        run: hmp_nmi,
    },
    Command {
        hmp: Some("quit|q"),
        args: &[],
        usage: "",
        help: "end vmm at once, whatever the guest is doing",
        qmp: plain("quit"),
        run: hmp_quit,
    },
    Command {
        hmp: Some("stop|s"),
        args: &[],
        usage: "",
        help: "freeze the guest; the monitor stays",
        qmp: plain("stop"),
        run: hmp_stop,
    },
    Command {
        hmp: Some("system_powerdown"),
        args: &[],
        usage: "",
        help: "press the power button: the guest may shut down",
        qmp: plain("system_powerdown"),
        run: hmp_system_powerdown,
    },
    Command {
        hmp: Some("system_reset"),
        args: &[],
        usage: "",
        help: "press the reset button",
        qmp: plain("system_reset"),
        run: hmp_system_reset,
    },
];

/// What `gdbserver` means without an argument.
const GDB_DEVICE: &str = "tcp::1234";

fn hmp_gdbserver(control: &mut dyn Control, args: &Args) -> Outcome {
    let device = args.opt_text("device").unwrap_or(GDB_DEVICE);
    if let Err(error) = control.gdbserver(device) {
        let text = format!("{error}\nCould not open gdbserver on device '{device}'");
        return Err(CommandError::Remark(text));
    }
    Ok(Reply::Text(match device {
        "none" => "Disabled gdbserver\n".to_owned(),
        _ => format!("Waiting for gdb connection on device '{device}'\n"),
    }))
}

fn hmp_cont(control: &mut dyn Control, _: &Args) -> Outcome {
    match control.status() {
        state if state.needs_reset() => Err(CommandError::NeedsReset),
        RunState::Running => Ok(Reply::Done {}),
        _ => control.cont().map(|()| Reply::Done {}),
    }
}

fn hmp_cpu(control: &mut dyn Control, args: &Args) -> Outcome {
    match usize::try_from(args.int("index")?) {
        Ok(cpu) if cpu < control.cpus().len() => Ok(Reply::SelectCpu(cpu)),
        _ => Err(CommandError::Remark("invalid CPU index".to_owned())),
    }
}

fn hmp_nmi(control: &mut dyn Control, _: &Args) -> Outcome {
    control.inject_nmi().map(|()| Reply::Done {})
}

fn hmp_quit(control: &mut dyn Control, _: &Args) -> Outcome {
    control.quit();
    Ok(Reply::Quit {})
}

fn hmp_stop(control: &mut dyn Control, _: &Args) -> Outcome {
    control.stop().map(|()| Reply::Done {})
}

fn hmp_system_powerdown(control: &mut dyn Control, _: &Args) -> Outcome {
    control.system_powerdown().map(|()| Reply::Done {})
}

fn hmp_system_reset(control: &mut dyn Control, _: &Args) -> Outcome {
    control.system_reset().map(|()| Reply::Done {})
}

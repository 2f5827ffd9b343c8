//! Devices: what is on the PCI bus, and what comes and goes while the machine runs.

use crate::args::Args;
use crate::control::Control;
use crate::error::CommandError;
use crate::reply::Reply;
use crate::schema::{Member, Type, types};
use crate::table::{Arg, Command, Outcome, QmpForm};

pub(crate) const COMMANDS: &[Command] = &[
    Command {
        hmp: Some("device_add"),
        args: &[Arg::rest("driver").optional()],
        usage: "driver[,prop=value][,...]",
        help: "plug in a device, described as for --device",
        qmp: Some(QmpForm {
            name: "device_add",
            args: &[
                Member::required("driver", Type::Str),
                Member::optional("properties", Type::Open),
            ],
            returns: Type::Nothing,
        }),
        run: hmp_device_add,
    },
    Command {
        hmp: Some("device_del"),
        args: &[Arg::text("id")],
        usage: "id",
        help: "ask the guest to give up a device, which is then removed",
        qmp: Some(QmpForm {
            name: "device_del",
            args: &[Member::required("id", Type::Str)],
            returns: Type::Nothing,
        }),
        run: hmp_device_del,
    },
    Command {
        hmp: Some("info pci"),
        args: &[],
        usage: "",
        help: "the functions on the PCI bus, and where their BARs are",
        qmp: Some(QmpForm { name: "query-pci", args: &[], returns: Type::Array(&types::PCI) }),
        run: hmp_info_pci,
    },
];

fn hmp_device_add(control: &mut dyn Control, args: &Args) -> Outcome {
    let driver = args.text("driver")?;
    if driver.is_empty() {
        return Err(CommandError::Missing("driver"));
    }
    let mut words = vec![driver];
    words.extend(args.list("properties").iter().map(String::as_str));
    control.device_add(&words.join(",")).map(|()| Reply::Done {})
}

fn hmp_device_del(control: &mut dyn Control, args: &Args) -> Outcome {
    control.device_del(args.text("id")?).map(|()| Reply::Done {})
}

fn hmp_info_pci(control: &mut dyn Control, _: &Args) -> Outcome {
    Ok(Reply::Pci(control.pci()))
}

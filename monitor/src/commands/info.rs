//! `info` and its QMP twins: what the machine is and does, and the state of its chips.

use std::fmt::Write;

use crate::args::Args;
use crate::control::Control;
use crate::error::CommandError;
use crate::reply::{CpuProps, CpuRegisters, CpuReply, Name, Reply, Status, Uuid};
use crate::schema::{Type, types};
use crate::state::{Icount, RunState};
use crate::table::{Arg, Command, Outcome, QmpForm};

const fn query(name: &'static str, returns: Type) -> Option<QmpForm> {
    Some(QmpForm { name, args: &[], returns })
}

pub(crate) const COMMANDS: &[Command] = &[
    Command {
        hmp: Some("info chardev"),
        args: &[],
        usage: "",
        help: "the character devices and where each leads",
        qmp: query("query-chardev", Type::Array(&types::CHARDEV)),
        run: hmp_info_chardev,
    },
    Command {
        hmp: Some("info cpus"),
        args: &[],
        usage: "",
        help: "the vCPUs and their host threads; * is the one that commands are about",
        qmp: query("query-cpus-fast", Type::Array(&types::CPU)),
        run: hmp_info_cpus,
    },
    Command {
        hmp: Some("info history"),
        args: &[],
        usage: "",
        help: "the lines that the arrow keys recall",
        qmp: None,
        run: hmp_info_history,
    },
    Command {
        hmp: Some("info icount"),
        args: &[],
        usage: "",
        help: "the instructions executed, and the machine's clock; with --icount they repeat",
        qmp: None,
        run: hmp_info_icount,
    },
    Command {
        hmp: Some("info irq"),
        args: &[],
        usage: "",
        help: "how often each interrupt was raised, by controller",
        qmp: None,
        run: hmp_info_irq,
    },
    Command {
        hmp: Some("info kvm"),
        args: &[],
        usage: "",
        help: "whether KVM runs the guest, and how often the software CPU stood in for it",
        qmp: query("query-kvm", types::KVM),
        run: hmp_info_kvm,
    },
    Command {
        hmp: Some("info lapic"),
        args: &[Arg::int("apic-id").optional()],
        usage: "[apic-id]",
        help: "a local APIC's registers: the current vCPU's, or the one with this id",
        qmp: None,
        run: hmp_info_lapic,
    },
    Command {
        hmp: Some("info mtree"),
        args: &[Arg::flag("flat", 'f')],
        usage: "[-f]",
        help: "which RAM, ROM and devices are at which addresses and ports; -f: what of it is seen",
        qmp: None,
        run: hmp_info_mtree,
    },
    Command {
        hmp: Some("info name"),
        args: &[],
        usage: "",
        help: "the name that --name gave the machine",
        qmp: query("query-name", types::NAME),
        run: hmp_info_name,
    },
    Command {
        hmp: Some("info pic"),
        args: &[],
        usage: "",
        help: "the registers of both PICs and of the I/O APIC",
        qmp: None,
        run: hmp_info_pic,
    },
    Command {
        hmp: Some("info registers"),
        args: &[Arg::flag("all", 'a'), Arg::cpu("vcpu").optional()],
        usage: "[-a|vcpu]",
        help: "a vCPU's registers: the current one's, those of the vCPU with this index, or with -a all",
        qmp: None,
        run: hmp_info_registers,
    },
    Command {
        hmp: Some("info roms"),
        args: &[],
        usage: "",
        help: "the ROMs and where they are",
        qmp: None,
        run: hmp_info_roms,
    },
    Command {
        hmp: Some("info status"),
        args: &[],
        usage: "",
        help: "whether the guest runs, and if not, why",
        qmp: query("query-status", types::STATUS),
        run: hmp_info_status,
    },
    Command {
        hmp: Some("info uuid"),
        args: &[],
        usage: "",
        help: "the UUID that --uuid gave the machine",
        qmp: query("query-uuid", types::UUID),
        run: hmp_info_uuid,
    },
    Command {
        hmp: Some("info version"),
        args: &[],
        usage: "",
        help: "the version of vmm",
        qmp: query("query-version", types::VERSION),
        run: hmp_info_version,
    },
];

fn hmp_info_chardev(control: &mut dyn Control, _: &Args) -> Outcome {
    Ok(Reply::Chardevs(control.chardevs()))
}

fn hmp_info_cpus(control: &mut dyn Control, args: &Args) -> Outcome {
    let reply = |(index, cpu): (usize, crate::state::Cpu)| CpuReply {
        cpu_index: index,
        qom_path: format!("/machine/unattached/device[{index}]"),
        thread_id: cpu.thread_id,
        props: CpuProps {
            socket_id: cpu.socket_id,
            core_id: cpu.core_id,
            thread_id: cpu.thread_in_core,
        },
        target: "x86_64",
        current: index == args.session_cpu(),
    };
    Ok(Reply::Cpus(control.cpus().into_iter().enumerate().map(reply).collect()))
}

fn hmp_info_icount(control: &mut dyn Control, _: &Args) -> Outcome {
    let refused = || CommandError::Refused("instructions are not counted by KVM".into());
    let Icount { instructions, nanos, step } = control.icount().ok_or_else(refused)?;
    let mut text = format!("instructions: {instructions}\n");
    let (seconds, nanos) = (nanos / 1_000_000_000, nanos % 1_000_000_000);
    let _ = writeln!(text, "clock: {seconds}.{nanos:09} s");
    let _ = match step {
        Some(step) => writeln!(text, "instruction: {step} ns"),
        None => writeln!(text, "instruction: by the host's clock"),
    };
    Ok(Reply::Text(text))
}

fn hmp_info_irq(control: &mut dyn Control, _: &Args) -> Outcome {
    Ok(Reply::IrqStats(control.irq_stats()))
}

fn hmp_info_kvm(control: &mut dyn Control, _: &Args) -> Outcome {
    Ok(Reply::Kvm(control.kvm()))
}

fn hmp_info_lapic(control: &mut dyn Control, args: &Args) -> Outcome {
    let cpu = match args.opt_int("apic-id") {
        None => Some(args.cpu(control)?),
        Some(id) => control.cpus().iter().position(|cpu| i64::from(cpu.apic_id) == id),
    };
    let Some(cpu) = cpu else {
        return Err(CommandError::Remark("No CPU available".to_owned()));
    };
    match control.local_apic(cpu) {
        Some(apic) => Ok(Reply::LocalApic(Box::new(apic))),
        None => Err(CommandError::Remark(format!("CPU#{cpu} has no local APIC"))),
    }
}

fn hmp_info_history(_: &mut dyn Control, _: &Args) -> Outcome {
    Ok(Reply::History)
}

fn hmp_info_roms(control: &mut dyn Control, _: &Args) -> Outcome {
    Ok(Reply::Roms(control.roms()))
}

fn hmp_info_mtree(control: &mut dyn Control, args: &Args) -> Outcome {
    let spaces = control.memory_tree().spaces;
    Ok(if args.flag("flat") { Reply::FlatViews(spaces) } else { Reply::MemoryTree(spaces) })
}

fn hmp_info_name(control: &mut dyn Control, _: &Args) -> Outcome {
    Ok(Reply::Name(Name { name: control.name() }))
}

fn hmp_info_pic(control: &mut dyn Control, _: &Args) -> Outcome {
    Ok(Reply::InterruptControllers { io_apics: control.io_apics(), pics: control.pics() })
}

fn hmp_info_registers(control: &mut dyn Control, args: &Args) -> Outcome {
    let count = control.cpus().len();
    let cpus = match args.opt_int("vcpu") {
        _ if args.flag("all") => 0..count,
        None => {
            let cpu = args.cpu(control)?;
            cpu..cpu + 1
        }
        Some(cpu) => match usize::try_from(cpu) {
            Ok(cpu) if cpu < count => cpu..cpu + 1,
            _ => return Err(CommandError::Remark(format!("CPU#{cpu} not available"))),
        },
    };
    let read = |cpu| {
        let registers = Box::new(control.registers(cpu)?);
        Ok(CpuRegisters { cpu, registers })
    };
    cpus.map(read).collect::<Result<_, _>>().map(Reply::Registers)
}

fn hmp_info_status(control: &mut dyn Control, _: &Args) -> Outcome {
    let status = control.status();
    let running = status == RunState::Running;
    Ok(Reply::Status(Status { running, singlestep: false, status }))
}

fn hmp_info_uuid(control: &mut dyn Control, _: &Args) -> Outcome {
    let mut uuid = String::new();
    for (at, byte) in control.uuid().into_iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            uuid.push('-');
        }
        write!(uuid, "{byte:02x}").expect("a String takes all");
    }
    Ok(Reply::Uuid(Uuid { uuid }))
}

fn hmp_info_version(control: &mut dyn Control, _: &Args) -> Outcome {
    Ok(Reply::Version(control.version().into()))
}

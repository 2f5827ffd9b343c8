//! Commands about address translation, and the dump of all memory.

use crate::args::Args;
use crate::control::Control;
use crate::error::CommandError;
use crate::reply::{DumpCapability, DumpStatus, Reply};
use crate::schema::{Member, Type, types};
use crate::state::{Dump, HostMemory, Range, Translation};
use crate::table::{Arg, Command, Outcome, QmpForm};

/// Most lines of `info tlb`. A guest can map more than anyone can read.
const MAX_PAGES: usize = 1 << 16;
/// Most ranges of `info mem`.
const MAX_RANGES: usize = 1 << 14;

pub(crate) const COMMANDS: &[Command] = &[
    Command {
        hmp: Some("dump-guest-memory"),
        args: &[
            Arg::flag("paging", 'p'),
            Arg::file("filename"),
            Arg::long("begin").optional(),
            Arg::long("length").optional(),
        ],
        usage: "[-p] file [begin length]",
        help: "write memory and registers as an ELF core for gdb and crash; -p: at virtual addresses",
        qmp: Some(QmpForm {
            name: "dump-guest-memory",
            args: &[
                Member::required("paging", Type::Bool),
                Member::required("protocol", Type::Str),
                Member::optional("detach", Type::Bool),
                Member::optional("begin", Type::Int),
                Member::optional("length", Type::Int),
                Member::optional("format", types::DUMP_FORMAT),
            ],
            returns: Type::Nothing,
        }),
        run: hmp_dump_guest_memory,
    },
    Command {
        hmp: Some("gpa2hpa"),
        args: &[Arg::long("addr")],
        usage: "addr",
        help: "the host-physical address behind a guest-physical one",
        qmp: None,
        run: hmp_gpa2hpa,
    },
    Command {
        hmp: Some("gpa2hva"),
        args: &[Arg::long("addr")],
        usage: "addr",
        help: "the address in this process behind a guest-physical one",
        qmp: None,
        run: hmp_gpa2hva,
    },
    Command {
        hmp: Some("gva2gpa"),
        args: &[Arg::long("addr")],
        usage: "addr",
        help: "the guest-physical address behind a virtual one",
        qmp: None,
        run: hmp_gva2gpa,
    },
    Command {
        hmp: Some("info dump"),
        args: &[],
        usage: "",
        help: "what has become of the last dump-guest-memory",
        qmp: Some(QmpForm { name: "query-dump", args: &[], returns: types::DUMP }),
        run: hmp_info_dump,
    },
    Command {
        hmp: Some("info mem"),
        args: &[],
        usage: "",
        help: "the mapped ranges of virtual memory with their rights",
        qmp: None,
        run: hmp_info_mem,
    },
    Command {
        hmp: Some("info tlb"),
        args: &[],
        usage: "",
        help: "the mapped pages of virtual memory with their flags",
        qmp: None,
        run: hmp_info_tlb,
    },
    Command {
        hmp: None,
        args: &[],
        usage: "",
        help: "the formats of dump-guest-memory",
        qmp: Some(QmpForm {
            name: "query-dump-guest-memory-capability",
            args: &[],
            returns: types::DUMP_CAPABILITY,
        }),
        run: query_dump_capability,
    },
];

fn hmp_dump_guest_memory(control: &mut dyn Control, args: &Args) -> Outcome {
    let path = match args.opt_text("protocol") {
        Some(protocol) => protocol.strip_prefix("file:").ok_or(CommandError::BadValue {
            name: "protocol",
            expected: "a protocol that starts with file:",
        })?,
        None => args.text("filename")?,
    };
    if args.opt_text("format").is_some_and(|format| format != "elf") {
        return Err(CommandError::BadValue { name: "format", expected: "elf" });
    }
    if args.flag("detach") {
        return Err(CommandError::Remark("the dump is always complete when it returns".into()));
    }
    let filter = match (args.opt_int("begin"), args.opt_int("length")) {
        (None, None) => None,
        (Some(begin), Some(length)) => Some((begin as u64, length as u64)),
        (Some(_), None) => return Err(CommandError::Missing("length")),
        (None, Some(_)) => return Err(CommandError::Missing("begin")),
    };
    control.dump_memory(&Dump { path: path.to_owned(), paging: args.flag("paging"), filter })?;
    Ok(Reply::Done {})
}

fn hmp_info_dump(control: &mut dyn Control, _: &Args) -> Outcome {
    let (status, bytes) = control.last_dump();
    Ok(Reply::Dump(DumpStatus { status, completed: bytes, total: bytes }))
}

fn query_dump_capability(_: &mut dyn Control, _: &Args) -> Outcome {
    Ok(Reply::DumpCapability(DumpCapability { formats: vec!["elf"] }))
}

fn hmp_gva2gpa(control: &mut dyn Control, args: &Args) -> Outcome {
    let cpu = args.cpu(control)?;
    Ok(Reply::Text(match control.translate(cpu, args.addr("addr")?)? {
        Some(addr) => format!("gpa: {}\n", hex(addr)),
        None => "Unmapped\n".to_owned(),
    }))
}

/// As C's `%#x` has it: zero has no prefix.
fn hex(value: u64) -> String {
    if value == 0 { "0".to_owned() } else { format!("{value:#x}") }
}

/// The name of the memory at an address, and where the host has it.
fn host_memory(control: &mut dyn Control, addr: u64) -> Result<(String, u64), CommandError> {
    let why = match control.host_memory(addr) {
        HostMemory::Ram { name, address } => return Ok((name, address)),
        HostMemory::NotRam => format!("Memory at address {addr:#x} is not RAM"),
        HostMemory::Nothing => format!("No memory is mapped at address {addr:#x}"),
    };
    Err(CommandError::Remark(why))
}

fn hmp_gpa2hva(control: &mut dyn Control, args: &Args) -> Outcome {
    let addr = args.addr("addr")?;
    let (name, host) = host_memory(control, addr)?;
    let text = format!("Host virtual address for {addr:#x} ({name}) is {host:#x}\n");
    Ok(Reply::Text(text))
}

fn hmp_gpa2hpa(control: &mut dyn Control, args: &Args) -> Outcome {
    let addr = args.addr("addr")?;
    let (name, host) = host_memory(control, addr)?;
    let physical = control.host_physical(host).map_err(|cause| {
        CommandError::Remark(format!("Cannot look at this process's page map: {cause}"))
    })?;
    let text = format!("Host physical address for {addr:#x} ({name}) is {physical:#x}\n");
    Ok(Reply::Text(text))
}

/// Whether the vCPU translates addresses at all.
fn paging(control: &mut dyn Control, cpu: usize) -> Result<(), CommandError> {
    const CR0_PG: u64 = 1 << 31;
    if control.registers(cpu)?.cr0 & CR0_PG == 0 {
        return Err(CommandError::Remark("PG disabled".to_owned()));
    }
    Ok(())
}

fn hmp_info_tlb(control: &mut dyn Control, args: &Args) -> Outcome {
    let cpu = args.cpu(control)?;
    paging(control, cpu)?;
    let mut pages = Vec::new();
    let whole = control.walk_pages(cpu, &mut |page| {
        pages.push(page);
        pages.len() < MAX_PAGES
    })?;
    Ok(Reply::Pages { pages, whole })
}

fn hmp_info_mem(control: &mut dyn Control, args: &Args) -> Outcome {
    let cpu = args.cpu(control)?;
    paging(control, cpu)?;
    let mut ranges: Vec<Range> = Vec::new();
    let whole = control.walk_pages(cpu, &mut |page| {
        let Translation { linear, size, user, write, .. } = page;
        match ranges.last_mut() {
            Some(last)
                if last.start.wrapping_add(last.size) == linear
                    && (last.user, last.write) == (user, write) =>
            {
                last.size += size;
            }
            _ => ranges.push(Range { start: linear, size, user, write }),
        }
        ranges.len() < MAX_RANGES
    })?;
    Ok(Reply::Ranges { ranges, whole })
}

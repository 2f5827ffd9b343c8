//! Commands that look at memory.

use crate::args::Args;
use crate::control::Control;
use crate::disas::{self, Read};
use crate::error::CommandError;
use crate::format::Style;
use crate::reply::{Disassembly, MemoryDump, Printed, Reply};
use crate::schema::{Member, Type};
use crate::table::{Arg, Command, Outcome, QmpForm};

/// Most bytes that one `x` shows: a typing error should not keep the main loop for minutes.
const MAX_DUMP: u64 = 1 << 20;
/// Most instructions that one `x/i` shows.
const MAX_INSTRUCTIONS: u64 = 1 << 14;
/// Bytes that `sum` and the `save` commands read at a time.
const CHUNK: u64 = 1 << 16;

const SAVE_ARGS: &[Arg] = &[Arg::long("val"), Arg::int("size"), Arg::file("filename")];

pub(crate) const COMMANDS: &[Command] = &[
    Command {
        hmp: Some("memsave"),
        args: SAVE_ARGS,
        usage: "addr size file",
        help: "write memory at a virtual address to a file of the host",
        qmp: Some(QmpForm {
            name: "memsave",
            args: &[
                Member::required("val", Type::Int),
                Member::required("size", Type::Int),
                Member::required("filename", Type::Str),
                Member::optional("cpu-index", Type::Int),
            ],
            returns: Type::Nothing,
        }),
        run: hmp_memsave,
    },
    Command {
        hmp: Some("pmemsave"),
        args: SAVE_ARGS,
        usage: "addr size file",
        help: "write memory at a physical address to a file of the host",
        qmp: Some(QmpForm {
            name: "pmemsave",
            args: &[
                Member::required("val", Type::Int),
                Member::required("size", Type::Int),
                Member::required("filename", Type::Str),
            ],
            returns: Type::Nothing,
        }),
        run: hmp_pmemsave,
    },
    Command {
        hmp: Some("print|p"),
        args: &[Arg::format("fmt"), Arg::long("val")],
        usage: "/fmt expr",
        help: "work out an expression; $rip and the like are registers",
        qmp: None,
        run: hmp_print,
    },
    Command {
        hmp: Some("sum"),
        args: &[Arg::long("start"), Arg::int("size")],
        usage: "addr size",
        help: "16-bit checksum of physical memory, as sum -r has it",
        qmp: None,
        run: hmp_sum,
    },
    Command {
        hmp: Some("x"),
        args: &[Arg::format("fmt"), Arg::long("addr")],
        usage: "/fmt addr",
        help: "show memory at a virtual address; /i disassembles",
        qmp: None,
        run: hmp_x,
    },
    Command {
        hmp: Some("xp"),
        args: &[Arg::format("fmt"), Arg::long("addr")],
        usage: "/fmt addr",
        help: "show memory at a physical address; /i disassembles",
        qmp: None,
        run: hmp_xp,
    },
];

fn hmp_x(control: &mut dyn Control, args: &Args) -> Outcome {
    let cpu = args.cpu(control)?;
    let bits = code_bits(control, cpu, args)?;
    examine(args, bits, &mut |addr, data| control.read_virtual(cpu, addr, data))
}

fn hmp_xp(control: &mut dyn Control, args: &Args) -> Outcome {
    let cpu = args.cpu(control)?;
    let bits = code_bits(control, cpu, args)?;
    examine(args, bits, &mut |addr, data| control.read_physical(addr, data))
}

/// The vCPU's operand size, where the format is one that needs it.
fn code_bits(control: &mut dyn Control, cpu: usize, args: &Args) -> Result<u32, CommandError> {
    match args.format("fmt").style {
        Style::Instruction => Ok(control.registers(cpu)?.code_bits()),
        _ => Ok(64),
    }
}

fn examine(args: &Args, bits: u32, read: &mut Read<'_>) -> Outcome {
    let format = args.format("fmt");
    let addr = args.addr("addr")?;
    if format.style == Style::Instruction {
        too_many(format.count, MAX_INSTRUCTIONS, "instructions")?;
        let (instructions, fault) = disas::from_memory(bits, addr, format.count as usize, read);
        return Ok(Reply::Disassembly(Disassembly { instructions, fault }));
    }
    let size = format.size.unwrap_or(4);
    let len = format.count.saturating_mul(size.into());
    too_many(len, MAX_DUMP, "bytes")?;
    let mut data = vec![0; len as usize];
    let fault = match read(addr, &mut data) {
        Ok(()) => None,
        Err(CommandError::Unmapped(_)) => {
            let good = whole_rows(addr, if size == 1 { 8 } else { 16 }, &mut data, read);
            data.truncate(good);
            Some(addr.wrapping_add(good as u64))
        }
        Err(other) => return Err(other),
    };
    Ok(Reply::Memory(MemoryDump { addr, style: format.style, size, data, fault }))
}

/// Reads row by row up to the first that is not all there; gives the bytes read.
fn whole_rows(addr: u64, row: usize, data: &mut [u8], read: &mut Read<'_>) -> usize {
    let mut good = 0;
    for chunk in data.chunks_mut(row) {
        if read(addr.wrapping_add(good as u64), chunk).is_err() {
            break;
        }
        good += chunk.len();
    }
    good
}

fn too_many(count: u64, most: u64, what: &str) -> Result<(), CommandError> {
    if count <= most {
        return Ok(());
    }
    let text =
        format!("{count} {what} are too many at once: ask for at most {most}, or use memsave");
    Err(CommandError::Remark(text))
}

fn hmp_print(_: &mut dyn Control, args: &Args) -> Outcome {
    let style = args.format("fmt").style;
    Ok(Reply::Value(Printed { value: args.int("val")?, style }))
}

/// The 16-bit checksum of `sum -r`: rotate right, add the next byte.
fn hmp_sum(control: &mut dyn Control, args: &Args) -> Outcome {
    let mut sum = 0u16;
    let mut add = |chunk: &[u8]| {
        for byte in chunk {
            sum = sum.rotate_right(1).wrapping_add((*byte).into());
        }
        Ok(())
    };
    let (start, size) = (args.addr("start")?, args.addr("size")?);
    for_chunks(start, size, &mut |addr, data| control.read_physical(addr, data), &mut add)?;
    Ok(Reply::Checksum(sum))
}

fn hmp_memsave(control: &mut dyn Control, args: &Args) -> Outcome {
    let cpu = args.cpu(control)?;
    save(control, args, &mut |control, addr, data| control.read_virtual(cpu, addr, data))
}

fn hmp_pmemsave(control: &mut dyn Control, args: &Args) -> Outcome {
    save(control, args, &mut |control, addr, data| control.read_physical(addr, data))
}

/// As [`Read`], by way of a `Control` that the caller keeps.
type ReadBy<'a> = dyn FnMut(&mut dyn Control, u64, &mut [u8]) -> Result<(), CommandError> + 'a;

fn save(control: &mut dyn Control, args: &Args, read: &mut ReadBy<'_>) -> Outcome {
    let (start, path) = (args.addr("val")?, args.text("filename")?);
    let size = u64::try_from(args.int("size")?)
        .map_err(|_| CommandError::BadValue { name: "size", expected: "a number of bytes" })?;
    let failed = |what| move |source| CommandError::File { what, path: path.to_owned(), source };
    let mut file = control.create_file(path).map_err(failed("open"))?;
    let mut read = |addr, data: &mut [u8]| {
        read(control, addr, data).map_err(|error| match error {
            CommandError::Unmapped(_) => CommandError::BadRange { addr, size },
            other => other,
        })
    };
    let mut write = |chunk: &[u8]| file.write_all(chunk).map_err(failed("write"));
    for_chunks(start, size, &mut read, &mut write)?;
    file.flush().map_err(failed("write"))?;
    Ok(Reply::Done {})
}

fn for_chunks(
    start: u64,
    size: u64,
    read: &mut Read<'_>,
    each: &mut dyn FnMut(&[u8]) -> Result<(), CommandError>,
) -> Result<(), CommandError> {
    let mut buffer = vec![0; size.min(CHUNK) as usize];
    let mut done = 0;
    while done < size {
        let chunk = &mut buffer[..(size - done).min(CHUNK) as usize];
        read(start.wrapping_add(done), chunk)?;
        each(chunk)?;
        done += chunk.len() as u64;
    }
    Ok(())
}

//! I/O ports.

use crate::args::Args;
use crate::control::Control;
use crate::reply::{PortRead, Reply};
use crate::table::{Arg, Command, Outcome};

pub(crate) const COMMANDS: &[Command] = &[
    Command {
        hmp: Some("i"),
        args: &[Arg::format("fmt"), Arg::int("addr"), Arg::dot_int("index")],
        usage: "/fmt addr",
        help: "read from an I/O port; /h and /w for 2 and 4 bytes",
        qmp: None,
        run: hmp_i,
    },
    Command {
        hmp: Some("o"),
        args: &[Arg::format("fmt"), Arg::int("addr"), Arg::int("val")],
        usage: "/fmt addr value",
        help: "write to an I/O port; /h and /w for 2 and 4 bytes",
        qmp: None,
        run: hmp_o,
    },
];

/// The port and how many bytes of it: the format's 2 and 4 count, all else is a byte.
fn port(args: &Args) -> Result<(u16, u8), crate::CommandError> {
    let size = args.format("fmt").size.filter(|size| matches!(size, 2 | 4)).unwrap_or(1);
    Ok((args.addr("addr")? as u16, size))
}

/// With an index (`i 0x70.0xf`) the port is an index register, and the one above it the data.
fn hmp_i(control: &mut dyn Control, args: &Args) -> Outcome {
    let (mut port, size) = port(args)?;
    if let Some(index) = args.opt_int("index") {
        control.port_write(port, 1, index as u32 & 0xff);
        port = port.wrapping_add(1);
    }
    let value = control.port_read(port, size);
    let digits = args.format("fmt").size.unwrap_or(1) * 2;
    Ok(Reply::Port(PortRead { port, size, digits, value }))
}

fn hmp_o(control: &mut dyn Control, args: &Args) -> Outcome {
    let (port, size) = port(args)?;
    let value = args.int("val")? as u32;
    control.port_write(port, size, value & (u32::MAX >> (32 - u32::from(size) * 8)));
    Ok(Reply::Done {})
}

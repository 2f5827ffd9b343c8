//! Drives: what they are, what they did, and changing them.

use crate::args::Args;
use crate::block::{BlockAction, IoLimits};
use crate::control::Control;
use crate::error::CommandError;
use crate::reply::Reply;
use crate::schema::{Enum, Member, Object, Type};
use crate::table::{Arg, Command, Outcome, QmpForm};

const fn member(name: &'static str, ty: Type) -> Member {
    Member::required(name, ty)
}

const fn optional(name: &'static str, ty: Type) -> Member {
    Member::optional(name, ty)
}

const IMAGE: Type = Type::Object(&Object {
    name: "ImageInfo",
    members: &[
        member("filename", Type::Str),
        member("format", Type::Str),
        member("virtual-size", Type::Int),
        member("actual-size", Type::Int),
        optional("cluster-size", Type::Int),
        optional("backing-filename", Type::Str),
    ],
});
const CACHE: Type = Type::Object(&Object {
    name: "BlockdevCacheInfo",
    members: &[
        member("writeback", Type::Bool),
        member("direct", Type::Bool),
        member("no-flush", Type::Bool),
    ],
});
const INSERTED: Type = Type::Object(&Object {
    name: "BlockDeviceInfo",
    members: &[
        member("file", Type::Str),
        member("node-name", Type::Str),
        member("ro", Type::Bool),
        member("drv", Type::Str),
        optional("backing_file", Type::Str),
        member("backing_file_depth", Type::Int),
        member("encrypted", Type::Bool),
        member("detect_zeroes", Type::Str),
        member("bps", Type::Int),
        member("bps_rd", Type::Int),
        member("bps_wr", Type::Int),
        member("iops", Type::Int),
        member("iops_rd", Type::Int),
        member("iops_wr", Type::Int),
        member("image", IMAGE),
        member("cache", CACHE),
        member("write_threshold", Type::Int),
    ],
});
const INFO: Type = Type::Object(&Object {
    name: "BlockInfo",
    members: &[
        member("device", Type::Str),
        optional("qdev", Type::Str),
        member("type", Type::Str),
        member("removable", Type::Bool),
        member("locked", Type::Bool),
        optional("inserted", INSERTED),
    ],
});
const COUNTERS: Type = Type::Object(&Object {
    name: "BlockDeviceStats",
    members: &[
        member("rd_bytes", Type::Int),
        member("wr_bytes", Type::Int),
        member("unmap_bytes", Type::Int),
        member("rd_operations", Type::Int),
        member("wr_operations", Type::Int),
        member("flush_operations", Type::Int),
        member("unmap_operations", Type::Int),
        member("rd_total_time_ns", Type::Int),
        member("wr_total_time_ns", Type::Int),
        member("flush_total_time_ns", Type::Int),
        member("unmap_total_time_ns", Type::Int),
        member("rd_merged", Type::Int),
        member("wr_merged", Type::Int),
        member("failed_rd_operations", Type::Int),
        member("failed_wr_operations", Type::Int),
        member("failed_flush_operations", Type::Int),
        member("failed_unmap_operations", Type::Int),
        member("invalid_rd_operations", Type::Int),
        member("invalid_wr_operations", Type::Int),
        member("invalid_flush_operations", Type::Int),
        member("invalid_unmap_operations", Type::Int),
        optional("idle_time_ns", Type::Int),
    ],
});
const STATS: Type = Type::Object(&Object {
    name: "BlockStats",
    members: &[member("device", Type::Str), optional("qdev", Type::Str), member("stats", COUNTERS)],
});

/// HMP writes a size with a suffix, QMP a number of bytes, so that these are two arguments.
const WRITTEN: &str = "written";
const BYTES: &str = "size";
const READONLY: Type = Type::Enum(&Enum {
    name: "BlockdevChangeReadOnlyMode",
    values: &["retain", "read-only", "read-write"],
});

const fn qmp(name: &'static str, args: &'static [Member], returns: Type) -> Option<QmpForm> {
    Some(QmpForm { name, args, returns })
}

pub(crate) const COMMANDS: &[Command] = &[
    Command {
        hmp: Some("block_resize"),
        args: &[Arg::text("device"), Arg::text(WRITTEN)],
        usage: "device size",
        help: "give a drive another size, in MiB or with a suffix B, K, M, G, T",
        qmp: qmp(
            "block_resize",
            &[
                optional("device", Type::Str),
                optional("node-name", Type::Str),
                member(BYTES, Type::Int),
            ],
            Type::Nothing,
        ),
        run: hmp_block_resize,
    },
    Command {
        hmp: Some("block_set_io_throttle"),
        args: &[
            Arg::text("device"),
            Arg::long("bps"),
            Arg::long("bps_rd"),
            Arg::long("bps_wr"),
            Arg::long("iops"),
            Arg::long("iops_rd"),
            Arg::long("iops_wr"),
        ],
        usage: "device bps bps_rd bps_wr iops iops_rd iops_wr",
        help: "limit a drive's bytes and requests a second; 0 for no limit",
        qmp: qmp(
            "block_set_io_throttle",
            &[
                optional("device", Type::Str),
                optional("id", Type::Str),
                member("bps", Type::Int),
                member("bps_rd", Type::Int),
                member("bps_wr", Type::Int),
                member("iops", Type::Int),
                member("iops_rd", Type::Int),
                member("iops_wr", Type::Int),
            ],
            Type::Nothing,
        ),
        run: hmp_block_set_io_throttle,
    },
    Command {
        hmp: Some("change"),
        args: &[
            Arg::text("device"),
            Arg::file("filename"),
            Arg::text("format").optional(),
            Arg::text("read-only-mode").optional(),
        ],
        usage: "device filename [format [read-only-mode]]",
        help: "put another image into a drive",
        qmp: qmp(
            "blockdev-change-medium",
            &[
                optional("device", Type::Str),
                optional("id", Type::Str),
                member("filename", Type::Str),
                optional("format", Type::Str),
                optional("read-only-mode", READONLY),
            ],
            Type::Nothing,
        ),
        run: hmp_change,
    },
    Command {
        hmp: Some("commit"),
        args: &[Arg::text("device")],
        usage: "device|all",
        help: "write what a drive's overlay holds into the image that it is based on",
        qmp: None,
        run: hmp_commit,
    },
    Command {
        hmp: Some("drive_add"),
        args: &[Arg::text("address"), Arg::text("options")],
        usage: "0 file=FILE,if=none,id=ID,...",
        help: "add a drive, as --drive does, for device_add",
        qmp: None,
        run: hmp_drive_add,
    },
    Command {
        hmp: Some("drive_del"),
        args: &[Arg::text("id")],
        usage: "id",
        help: "remove a drive that no device uses",
        qmp: qmp("blockdev-del", &[member("node-name", Type::Str)], Type::Nothing),
        run: hmp_drive_del,
    },
    Command {
        hmp: Some("eject"),
        args: &[Arg::flag("force", 'f'), Arg::text("device")],
        usage: "[-f] device",
        help: "take the image out of a drive",
        qmp: qmp(
            "eject",
            &[
                optional("device", Type::Str),
                optional("id", Type::Str),
                optional("force", Type::Bool),
            ],
            Type::Nothing,
        ),
        run: hmp_eject,
    },
    Command {
        hmp: Some("info block"),
        args: &[Arg::text("device").optional()],
        usage: "[device]",
        help: "the drives and their images",
        qmp: qmp("query-block", &[], Type::Array(&INFO)),
        run: hmp_info_block,
    },
    Command {
        hmp: Some("info blockstats"),
        args: &[],
        usage: "",
        help: "what the drives have done",
        qmp: qmp("query-blockstats", &[], Type::Array(&STATS)),
        run: hmp_info_blockstats,
    },
];

/// The drive, by whichever of QMP's names for the argument it is given.
fn device(args: &Args) -> Result<String, CommandError> {
    let given = ["device", "id", "node-name"].iter().find_map(|name| args.opt_text(name));
    given.map(str::to_owned).ok_or(CommandError::Missing("device"))
}

fn act(control: &mut dyn Control, action: BlockAction) -> Outcome {
    control.block_action(action).map(|()| Reply::Done {})
}

fn hmp_block_resize(control: &mut dyn Control, args: &Args) -> Outcome {
    let size = match args.opt_text(WRITTEN) {
        Some(text) => parse_size(text),
        None => u64::try_from(args.int(BYTES)?).ok(),
    };
    let size = size.ok_or(CommandError::BadValue { name: BYTES, expected: "a size" })?;
    act(control, BlockAction::Resize { device: device(args)?, size })
}

/// A size in MiB, or with a suffix.
fn parse_size(text: &str) -> Option<u64> {
    let (digits, shift) = match text.char_indices().next_back()? {
        (_, last) if last.is_ascii_digit() => (text, 20),
        (at, last) => {
            let shift = match last.to_ascii_uppercase() {
                'B' => 0,
                'K' => 10,
                'M' => 20,
                'G' => 30,
                'T' => 40,
                _ => return None,
            };
            (&text[..at], shift)
        }
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

fn hmp_block_set_io_throttle(control: &mut dyn Control, args: &Args) -> Outcome {
    let limit = |name| {
        let value = args.int(name)?;
        u64::try_from(value)
            .map_err(|_| CommandError::BadValue { name, expected: "a number of units a second" })
    };
    let limits = IoLimits {
        bps: limit("bps")?,
        bps_rd: limit("bps_rd")?,
        bps_wr: limit("bps_wr")?,
        iops: limit("iops")?,
        iops_rd: limit("iops_rd")?,
        iops_wr: limit("iops_wr")?,
    };
    act(control, BlockAction::Throttle { device: device(args)?, limits })
}

fn hmp_change(control: &mut dyn Control, args: &Args) -> Outcome {
    let readonly = match args.opt_text("read-only-mode") {
        None | Some("retain") => None,
        Some("read-only") => Some(true),
        Some("read-write") => Some(false),
        Some(_) => {
            return Err(CommandError::BadValue {
                name: "read-only-mode",
                expected: "retain, read-only or read-write",
            });
        }
    };
    act(
        control,
        BlockAction::Change {
            device: device(args)?,
            file: args.text("filename")?.to_owned(),
            format: args.opt_text("format").map(str::to_owned),
            readonly,
        },
    )
}

fn hmp_commit(control: &mut dyn Control, args: &Args) -> Outcome {
    act(control, BlockAction::Commit(device(args)?))
}

fn hmp_drive_add(control: &mut dyn Control, args: &Args) -> Outcome {
    control.block_action(BlockAction::Add(args.text("options")?.to_owned()))?;
    Ok(Reply::Text("OK\n".to_owned()))
}

fn hmp_drive_del(control: &mut dyn Control, args: &Args) -> Outcome {
    act(control, BlockAction::Delete(device(args)?))
}

fn hmp_eject(control: &mut dyn Control, args: &Args) -> Outcome {
    act(control, BlockAction::Eject(device(args)?))
}

fn hmp_info_block(control: &mut dyn Control, args: &Args) -> Outcome {
    let mut drives = control.block_devices();
    if let Some(wanted) = args.opt_text("device") {
        let node = |drive: &crate::block::BlockInfo| {
            drive.inserted.as_ref().is_some_and(|inserted| inserted.node_name == wanted)
        };
        drives.retain(|drive| drive.device == wanted || node(drive));
    }
    Ok(Reply::Block(drives))
}

fn hmp_info_blockstats(control: &mut dyn Control, _: &Args) -> Outcome {
    Ok(Reply::BlockStats(control.block_stats()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_in_mebibytes_unless_said_otherwise() {
        for (text, size) in [
            ("1", Some(1 << 20)),
            ("512B", Some(512)),
            ("2g", Some(2 << 30)),
            ("x", None),
            ("99999999999999T", None),
            ("", None),
        ] {
            assert_eq!(parse_size(text), size, "{text}");
        }
    }
}

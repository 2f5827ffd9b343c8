//! Virtio devices: what they are, their queues, and the memory balloon.

use crate::args::Args;
use crate::control::Control;
use crate::error::CommandError;
use crate::reply::Reply;
use crate::schema::{Enum, Member, Object, Type};
use crate::table::{Arg, Command, Outcome, QmpForm};

const fn member(name: &'static str, ty: Type) -> Member {
    Member::required(name, ty)
}

const INFO: Type = Type::Object(&Object {
    name: "VirtioInfo",
    members: &[member("path", Type::Str), member("name", Type::Str)],
});
const NAMES: Type = Type::Array(&Type::Str);
const FEATURES: Type = Type::Object(&Object {
    name: "VirtioDeviceFeatures",
    members: &[
        member("transports", NAMES),
        member("dev-features", NAMES),
        Member::optional("unknown-dev-features", Type::Int),
    ],
});
const STATUSES: Type =
    Type::Object(&Object { name: "VirtioDeviceStatus", members: &[member("statuses", NAMES)] });
const STATUS: Type = Type::Object(&Object {
    name: "VirtioStatus",
    members: &[
        member("name", Type::Str),
        member("device-id", Type::Int),
        member("vhost-started", Type::Bool),
        member("device-endian", Type::Enum(&Enum { name: "Endian", values: &["little"] })),
        member("guest-features", FEATURES),
        member("host-features", FEATURES),
        member("num-vqs", Type::Int),
        member("status", STATUSES),
        member("broken", Type::Bool),
        member("started", Type::Bool),
        member("vm-running", Type::Bool),
    ],
});
const QUEUE: Type = Type::Object(&Object {
    name: "VirtQueueStatus",
    members: &[
        member("name", Type::Str),
        member("queue-index", Type::Int),
        member("inuse", Type::Int),
        member("vring-num", Type::Int),
        member("vring-num-default", Type::Int),
        member("vring-desc", Type::Int),
        member("vring-avail", Type::Int),
        member("vring-used", Type::Int),
        member("last-avail-idx", Type::Int),
        member("shadow-avail-idx", Type::Int),
        member("used-idx", Type::Int),
        member("signalled-used", Type::Int),
    ],
});
const BALLOON: Type =
    Type::Object(&Object { name: "BalloonInfo", members: &[member("actual", Type::Int)] });

/// HMP counts in MiB, QMP in bytes, so that these are two arguments.
const MEBIBYTES: &str = "mebibytes";
const BYTES: &str = "value";

pub(crate) const COMMANDS: &[Command] = &[
    Command {
        hmp: Some("balloon"),
        args: &[Arg::long(MEBIBYTES)],
        usage: "target",
        help: "ask the guest to get along with so many MiB of RAM",
        qmp: Some(QmpForm {
            name: "balloon",
            args: &[member(BYTES, Type::Int)],
            returns: Type::Nothing,
        }),
        run: hmp_balloon,
    },
    Command {
        hmp: Some("info balloon"),
        args: &[],
        usage: "",
        help: "how much RAM the balloon leaves the guest, and what the guest says of it",
        qmp: Some(QmpForm { name: "query-balloon", args: &[], returns: BALLOON }),
        run: hmp_info_balloon,
    },
    Command {
        hmp: Some("info virtio"),
        args: &[],
        usage: "",
        help: "the virtio devices with their paths",
        qmp: Some(QmpForm { name: "x-query-virtio", args: &[], returns: Type::Array(&INFO) }),
        run: hmp_info_virtio,
    },
    Command {
        hmp: Some("info virtio-queue-status"),
        args: &[Arg::text("path"), Arg::int("queue")],
        usage: "path queue",
        help: "a virtio device's queue: its rings and how far they are",
        qmp: Some(QmpForm {
            name: "x-query-virtio-queue-status",
            args: &[member("path", Type::Str), member("queue", Type::Int)],
            returns: QUEUE,
        }),
        run: hmp_info_virtio_queue,
    },
    Command {
        hmp: Some("info virtio-status"),
        args: &[Arg::text("path")],
        usage: "path",
        help: "a virtio device's status and features",
        qmp: Some(QmpForm {
            name: "x-query-virtio-status",
            args: &[member("path", Type::Str)],
            returns: STATUS,
        }),
        run: hmp_info_virtio_status,
    },
];

fn hmp_balloon(control: &mut dyn Control, args: &Args) -> Outcome {
    let bytes = match args.opt_int(MEBIBYTES) {
        Some(mebibytes) => mebibytes.checked_mul(1 << 20).unwrap_or(-1),
        None => args.int(BYTES)?,
    };
    match u64::try_from(bytes) {
        Ok(bytes) if bytes > 0 => control.set_balloon(bytes).map(|()| Reply::Done {}),
        _ => Err(CommandError::BadValue { name: "target", expected: "a size" }),
    }
}

fn hmp_info_balloon(control: &mut dyn Control, _: &Args) -> Outcome {
    control.balloon().map(Reply::Balloon)
}

fn hmp_info_virtio(control: &mut dyn Control, _: &Args) -> Outcome {
    Ok(Reply::Virtio(control.virtio_devices()))
}

fn no_device(path: &str) -> CommandError {
    CommandError::Refused(format!("Path {path} is not a VirtIO device"))
}

fn hmp_info_virtio_status(control: &mut dyn Control, args: &Args) -> Outcome {
    let path = args.text("path")?;
    let status = control.virtio_status(path).ok_or_else(|| no_device(path))?;
    Ok(Reply::VirtioStatus(Box::new(status)))
}

fn hmp_info_virtio_queue(control: &mut dyn Control, args: &Args) -> Outcome {
    let (path, index) = (args.text("path")?, args.int("queue")?);
    let queues = control.virtio_status(path).ok_or_else(|| no_device(path))?.num_vqs;
    let queue = usize::try_from(index).ok().filter(|index| *index < queues);
    let queue = queue.and_then(|index| control.virtio_queue(path, index));
    let missing = || CommandError::Refused(format!("Invalid virtqueue number {index}"));
    Ok(Reply::VirtioQueue(Box::new(queue.ok_or_else(missing)?)))
}

//! The types of QMP's arguments and replies, and how `query-qmp-schema` describes them.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::event;
use crate::table::qmp_commands;

/// A type of QMP.
#[derive(Clone, Copy, Debug)]
pub enum Type {
    /// The empty object.
    Nothing,
    /// An integer.
    Int,
    /// A string.
    Str,
    /// A boolean.
    Bool,
    /// One string out of some.
    Enum(&'static Enum),
    /// An object.
    Object(&'static Object),
    /// An array.
    Array(&'static Type),
    /// Of arguments only, and the last of them: whatever members there are besides, which the
    /// command itself understands. It stands in the schema as one member of any type.
    Open,
}

/// An enumeration.
#[derive(Debug)]
pub struct Enum {
    /// Its name.
    pub name: &'static str,
    /// Its values.
    pub values: &'static [&'static str],
}

/// An object type.
#[derive(Debug)]
pub struct Object {
    /// Its name.
    pub name: &'static str,
    /// Its members.
    pub members: &'static [Member],
}

/// A member of an object, or an argument of a command.
#[derive(Clone, Copy, Debug)]
pub struct Member {
    /// Its name.
    pub name: &'static str,
    /// Its type.
    pub ty: Type,
    /// Whether it may be missing.
    pub optional: bool,
}

impl Member {
    /// One that is always there.
    pub const fn required(name: &'static str, ty: Type) -> Self {
        Self { name, ty, optional: false }
    }

    /// One that may be missing.
    pub const fn optional(name: &'static str, ty: Type) -> Self {
        Self { name, ty, optional: true }
    }
}

/// The types that the commands' tables name.
pub(crate) mod types {
    use super::{Enum, Member, Object, Type};

    const fn member(name: &'static str, ty: Type) -> Member {
        Member::required(name, ty)
    }

    const RUN_STATE: Type = Type::Enum(&Enum {
        name: "RunState",
        values: &[
            "prelaunch",
            "running",
            "paused",
            "debug",
            "shutdown",
            "suspended",
            "internal-error",
            "io-error",
            "guest-panicked",
            "watchdog",
            "save-vm",
            "restore-vm",
        ],
    });
    /// `query-status`
    pub(crate) const STATUS: Type = Type::Object(&Object {
        name: "StatusInfo",
        members: &[
            member("running", Type::Bool),
            member("singlestep", Type::Bool),
            member("status", RUN_STATE),
        ],
    });
    const VERSION_TRIPLE: Type = Type::Object(&Object {
        name: "VersionTriple",
        members: &[
            member("major", Type::Int),
            member("minor", Type::Int),
            member("micro", Type::Int),
        ],
    });
    /// `query-version`
    pub(crate) const VERSION: Type = Type::Object(&Object {
        name: "VersionInfo",
        members: &[member("qemu", VERSION_TRIPLE), member("package", Type::Str)],
    });
    /// `query-name`
    pub(crate) const NAME: Type =
        Type::Object(&Object { name: "NameInfo", members: &[Member::optional("name", Type::Str)] });
    /// `query-uuid`
    pub(crate) const UUID: Type =
        Type::Object(&Object { name: "UuidInfo", members: &[member("UUID", Type::Str)] });
    const PCI_ID: Type = Type::Object(&Object {
        name: "PciDeviceId",
        members: &[
            member("device", Type::Int),
            member("vendor", Type::Int),
            Member::optional("subsystem", Type::Int),
            Member::optional("subsystem-vendor", Type::Int),
        ],
    });
    const PCI_CLASS: Type = Type::Object(&Object {
        name: "PciDeviceClass",
        members: &[Member::optional("desc", Type::Str), member("class", Type::Int)],
    });
    const PCI_REGION: Type = Type::Object(&Object {
        name: "PciMemoryRegion",
        members: &[
            member("bar", Type::Int),
            member("type", Type::Str),
            member("address", Type::Int),
            member("size", Type::Int),
            Member::optional("prefetch", Type::Bool),
            Member::optional("mem_type_64", Type::Bool),
        ],
    });
    const PCI_DEVICE: Type = Type::Object(&Object {
        name: "PciDeviceInfo",
        members: &[
            member("bus", Type::Int),
            member("slot", Type::Int),
            member("function", Type::Int),
            member("class_info", PCI_CLASS),
            member("id", PCI_ID),
            Member::optional("irq", Type::Int),
            member("irq_pin", Type::Int),
            member("qdev_id", Type::Str),
            member("regions", Type::Array(&PCI_REGION)),
        ],
    });
    /// An element of `query-pci`
    pub(crate) const PCI: Type = Type::Object(&Object {
        name: "PciInfo",
        members: &[member("bus", Type::Int), member("devices", Type::Array(&PCI_DEVICE))],
    });
    /// `query-kvm`
    pub(crate) const KVM: Type = Type::Object(&Object {
        name: "KvmInfo",
        members: &[
            member("enabled", Type::Bool),
            member("present", Type::Bool),
            Member::optional("assists", ASSISTS),
        ],
    });
    const ASSISTS: Type = Type::Object(&Object {
        name: "KvmAssists",
        members: &[
            member("failures", Type::Int),
            member("system-calls", Type::Int),
            member("exceptions", Type::Int),
            member("instructions", Type::Int),
        ],
    });
    const CPU_PROPS: Type = Type::Object(&Object {
        name: "CpuInstanceProperties",
        members: &[
            Member::optional("socket-id", Type::Int),
            Member::optional("core-id", Type::Int),
            Member::optional("thread-id", Type::Int),
        ],
    });
    const TARGET: Type = Type::Enum(&Enum { name: "SysEmuTarget", values: &["x86_64"] });
    /// An element of `query-cpus-fast`
    pub(crate) const CPU: Type = Type::Object(&Object {
        name: "CpuInfoFast",
        members: &[
            member("cpu-index", Type::Int),
            member("qom-path", Type::Str),
            member("thread-id", Type::Int),
            Member::optional("props", CPU_PROPS),
            member("target", TARGET),
        ],
    });
    /// An element of `query-chardev`
    pub(crate) const CHARDEV: Type = Type::Object(&Object {
        name: "ChardevInfo",
        members: &[
            member("label", Type::Str),
            member("filename", Type::Str),
            member("frontend-open", Type::Bool),
        ],
    });
    /// A capability of the protocol; there is none yet.
    pub(crate) const CAPABILITY: Type = Type::Enum(&Enum { name: "QMPCapability", values: &[] });
    /// An element of `query-commands`
    pub(crate) const COMMAND_NAME: Type =
        Type::Object(&Object { name: "CommandInfo", members: &[member("name", Type::Str)] });
    /// `format` of `dump-guest-memory`
    pub(crate) const DUMP_FORMAT: Type =
        Type::Enum(&Enum { name: "DumpGuestMemoryFormat", values: &["elf"] });
    const DUMP_STATUS: Type = Type::Enum(&Enum {
        name: "DumpStatus",
        values: &["none", "active", "completed", "failed"],
    });
    /// `query-dump`
    pub(crate) const DUMP: Type = Type::Object(&Object {
        name: "DumpQueryResult",
        members: &[
            member("status", DUMP_STATUS),
            member("completed", Type::Int),
            member("total", Type::Int),
        ],
    });
    /// `query-dump-guest-memory-capability`
    pub(crate) const DUMP_CAPABILITY: Type = Type::Object(&Object {
        name: "DumpGuestMemoryCapability",
        members: &[member("formats", Type::Array(&DUMP_FORMAT))],
    });
    const META_TYPE: Type = Type::Enum(&Enum {
        name: "SchemaMetaType",
        values: &["builtin", "enum", "array", "object", "alternate", "command", "event"],
    });
    /// An element of `query-qmp-schema`; the further members depend on `meta-type`.
    pub(crate) const SCHEMA_INFO: Type = Type::Object(&Object {
        name: "SchemaInfo",
        members: &[member("name", Type::Str), member("meta-type", META_TYPE)],
    });
    const SHUTDOWN_CAUSE: Type = Type::Enum(&Enum {
        name: "ShutdownCause",
        values: &[
            "none",
            "host-error",
            "host-qmp-quit",
            "host-qmp-system-reset",
            "host-signal",
            "host-ui",
            "guest-shutdown",
            "guest-reset",
            "guest-panic",
            "subsystem-reset",
            "snapshot-load",
        ],
    });
    /// The data of RESET and SHUTDOWN
    pub(crate) const CAUSE: &[Member] =
        &[member("guest", Type::Bool), member("reason", SHUTDOWN_CAUSE)];
    /// The data of BALLOON_CHANGE
    pub(crate) const BALLOON_CHANGE: &[Member] = &[member("actual", Type::Int)];
    /// The data of BLOCK_IO_ERROR
    pub(crate) const BLOCK_IO_ERROR: &[Member] = &[
        member("device", Type::Str),
        member("operation", IO_OPERATION),
        member("action", BLOCK_ERROR_ACTION),
        member("nospace", Type::Bool),
        member("reason", Type::Str),
    ];
    const IO_OPERATION: Type =
        Type::Enum(&Enum { name: "IoOperationType", values: &["read", "write"] });
    const BLOCK_ERROR_ACTION: Type =
        Type::Enum(&Enum { name: "BlockErrorAction", values: &["ignore", "report", "stop"] });
    /// The data of DEVICE_DELETED
    pub(crate) const DEVICE_DELETED: &[Member] =
        &[Member::optional("device", Type::Str), member("path", Type::Str)];
    const PANIC_ACTION: Type =
        Type::Enum(&Enum { name: "GuestPanicAction", values: &["pause", "poweroff", "run"] });
    /// The data of GUEST_PANICKED
    pub(crate) const PANIC: &[Member] = &[member("action", PANIC_ACTION)];
}

/// The name under which a type stands in the schema.
fn type_name(ty: Type) -> String {
    match ty {
        Type::Nothing => "q_empty".to_owned(),
        Type::Int => "int".to_owned(),
        Type::Str => "str".to_owned(),
        Type::Bool => "bool".to_owned(),
        Type::Enum(kind) => kind.name.to_owned(),
        Type::Object(kind) => kind.name.to_owned(),
        Type::Open => "any".to_owned(),
        Type::Array(element) => format!("[{}]", type_name(*element)),
    }
}

/// Every command and event, then every type that they need: QMP's introspection format, with the
/// types' names in place of QEMU's numbers.
pub(crate) fn describe() -> Vec<Value> {
    let mut entries = Vec::new();
    let mut known = BTreeMap::new();
    for (_, form) in qmp_commands() {
        let args = arguments(&mut known, form.name, form.args);
        let returns = add(&mut known, form.returns);
        entries.push(json!({
            "meta-type": "command", "name": form.name, "arg-type": args, "ret-type": returns,
        }));
    }
    for (name, members) in event::ALL {
        let args = arguments(&mut known, name, members);
        entries.push(json!({ "meta-type": "event", "name": name, "arg-type": args }));
    }
    entries.extend(known.into_values());
    entries
}

/// Adds the nameless object type of a command's or event's arguments; gives its name.
fn arguments(known: &mut BTreeMap<String, Value>, of: &str, members: &'static [Member]) -> String {
    if members.is_empty() {
        return add(known, Type::Nothing);
    }
    let name = format!("q_obj_{of}-arg");
    object(known, &name, members);
    name
}

fn object(known: &mut BTreeMap<String, Value>, name: &str, members: &'static [Member]) {
    let members: Vec<_> = members
        .iter()
        .map(|member| {
            let mut entry = json!({ "name": member.name, "type": add(known, member.ty) });
            if member.optional {
                entry["default"] = Value::Null;
            }
            entry
        })
        .collect();
    let entry = json!({ "meta-type": "object", "name": name, "members": members });
    known.insert(name.to_owned(), entry);
}

/// Adds a type, and those that it is made of; gives its name.
fn add(known: &mut BTreeMap<String, Value>, ty: Type) -> String {
    let name = type_name(ty);
    if known.contains_key(&name) {
        return name;
    }
    let builtin =
        |json_type: &str| json!({ "meta-type": "builtin", "name": name, "json-type": json_type });
    let entry = match ty {
        Type::Int => builtin("int"),
        Type::Str => builtin("string"),
        Type::Bool => builtin("boolean"),
        Type::Nothing => json!({ "meta-type": "object", "name": name, "members": [] }),
        Type::Open => builtin("value"),
        Type::Enum(kind) => {
            let members: Vec<_> =
                kind.values.iter().map(|value| json!({ "name": value })).collect();
            json!({ "meta-type": "enum", "name": name, "members": members, "values": kind.values })
        }
        Type::Array(element) => {
            let element = add(known, *element);
            json!({ "meta-type": "array", "name": name, "element-type": element })
        }
        Type::Object(kind) => {
            object(known, &name, kind.members);
            return name;
        }
    };
    known.insert(name.clone(), entry);
    name
}

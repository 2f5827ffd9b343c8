//! What commands answer. HMP renders it as text (`text`), QMP serialises it; the member names are
//! QMP's.

use serde::Serialize;

use crate::block::{BlockInfo, BlockStatsReply};
use crate::disas::Instruction;
use crate::format::Style;
use crate::state::{
    AddressSpace, Chardev, IoApic, IrqStats, Kvm, LocalApic, PciBus, Pic, Range, Registers, Rom,
    RunState, Translation, Version,
};
use crate::virtio::{Balloon, VirtioInfo, VirtioQueue, VirtioStatus};

/// A command's answer.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Reply {
    /// Done, and nothing to say.
    Done {},
    /// `quit`: this session is over.
    Quit {},
    /// Text that is already as a person reads it.
    Text(String),
    /// `help`, `info` without a sub-command.
    Help(Vec<HelpLine>),
    /// `info status`
    Status(Status),
    /// `info version`
    Version(VersionReply),
    /// `info name`
    Name(Name),
    /// `info uuid`
    Uuid(Uuid),
    /// `info kvm`
    Kvm(Kvm),
    /// `info cpus`
    Cpus(Vec<CpuReply>),
    /// `cpu`: from now on this one is meant.
    SelectCpu(usize),
    /// `info chardev`
    Chardevs(Vec<Chardev>),
    /// `info registers`
    Registers(Vec<CpuRegisters>),
    /// `info lapic`
    LocalApic(Box<LocalApic>),
    /// `info pic`
    InterruptControllers {
        /// The I/O APICs.
        io_apics: Vec<IoApic>,
        /// The 8259As, master first.
        pics: Vec<Pic>,
    },
    /// `info irq`
    IrqStats(Vec<IrqStats>),
    /// `info pci`
    Pci(Vec<PciBus>),
    /// `info mtree`
    MemoryTree(Vec<AddressSpace>),
    /// `info mtree -f`
    FlatViews(Vec<AddressSpace>),
    /// `info roms`
    Roms(Vec<Rom>),
    /// `info history`: the session knows.
    History,
    /// `info tlb`
    Pages {
        /// The pages.
        pages: Vec<Translation>,
        /// There are no more.
        whole: bool,
    },
    /// `info mem`
    Ranges {
        /// The ranges.
        ranges: Vec<Range>,
        /// There are no more.
        whole: bool,
    },
    /// `info dump`
    Dump(DumpStatus),
    /// `query-dump-guest-memory-capability`
    DumpCapability(DumpCapability),
    /// `x`, `xp`
    Memory(MemoryDump),
    /// `x/i`, `xp/i`
    Disassembly(Disassembly),
    /// `print`
    Value(Printed),
    /// `i`
    Port(PortRead),
    /// `sum`
    Checksum(u16),
    /// `info block`
    Block(Vec<BlockInfo>),
    /// `info blockstats`
    BlockStats(Vec<BlockStatsReply>),
    /// `info virtio`
    Virtio(Vec<VirtioInfo>),
    /// `info virtio-status`
    VirtioStatus(Box<VirtioStatus>),
    /// `info virtio-queue-status`
    VirtioQueue(Box<VirtioQueue>),
    /// `info balloon`
    Balloon(Balloon),
    /// `query-commands`
    Commands(Vec<CommandName>),
    /// `query-qmp-schema`
    Schema(Vec<serde_json::Value>),
}

/// A command as help shows it.
#[derive(Clone, Debug, Serialize)]
pub struct HelpLine {
    /// "cont|c"
    pub name: &'static str,
    /// Its arguments.
    pub usage: &'static str,
    /// What it does.
    pub help: &'static str,
}

/// The machine's state.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Status {
    /// Whether the vCPUs run.
    pub running: bool,
    /// Of no meaning any more; clients of that age ask for it.
    pub singlestep: bool,
    /// The state.
    pub status: RunState,
}

/// The emulator's version.
#[derive(Clone, Debug, Serialize)]
pub struct VersionReply {
    /// The numbers, under the name by which clients look for them.
    pub qemu: VersionNumbers,
    /// What a packager added.
    pub package: String,
}

impl From<Version> for VersionReply {
    fn from(version: Version) -> Self {
        let Version { major, minor, micro, package } = version;
        Self { qemu: VersionNumbers { major, minor, micro }, package }
    }
}

/// Three numbers.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct VersionNumbers {
    /// First.
    pub major: u32,
    /// Second.
    pub minor: u32,
    /// Third.
    pub micro: u32,
}

/// The machine's name.
#[derive(Clone, Debug, Serialize)]
pub struct Name {
    /// If it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// The machine's UUID, in its canonical text form (RFC 4122, 3).
#[derive(Clone, Debug, Serialize)]
pub struct Uuid {
    /// 36 characters.
    #[serde(rename = "UUID")]
    pub uuid: String,
}

/// A vCPU.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct CpuReply {
    /// Its index.
    pub cpu_index: usize,
    /// Its place in the tree of the machine's objects.
    pub qom_path: String,
    /// Its host thread.
    pub thread_id: u32,
    /// Its place in the guest's topology.
    pub props: CpuProps,
    /// "x86_64"
    pub target: &'static str,
    /// Whether it is the session's.
    #[serde(skip)]
    pub current: bool,
}

/// A vCPU's place in the topology.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct CpuProps {
    /// Socket.
    pub socket_id: u32,
    /// Core within it.
    pub core_id: u32,
    /// Thread within that.
    pub thread_id: u32,
}

/// The registers of one vCPU.
#[derive(Clone, Debug, Serialize)]
pub struct CpuRegisters {
    /// Its index.
    pub cpu: usize,
    /// Its state.
    pub registers: Box<Registers>,
}

/// A stretch of memory.
#[derive(Clone, Debug, Serialize)]
pub struct MemoryDump {
    /// First address.
    pub addr: u64,
    /// How it is shown.
    pub style: Style,
    /// Bytes of a unit.
    pub size: u8,
    /// The bytes, as far as they could be read.
    pub data: Vec<u8>,
    /// Where reading failed.
    pub fault: Option<u64>,
}

/// A stretch of code.
#[derive(Clone, Debug, Serialize)]
pub struct Disassembly {
    /// The instructions.
    pub instructions: Vec<Instruction>,
    /// Where reading failed.
    pub fault: Option<u64>,
}

/// A value to print.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Printed {
    /// The value.
    pub value: i64,
    /// How.
    pub style: Style,
}

/// What a port gave.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct PortRead {
    /// The port.
    pub port: u16,
    /// Bytes read: 1, 2 or 4.
    pub size: u8,
    /// Hexadecimal digits to show at least.
    pub digits: u8,
    /// The value.
    pub value: u32,
}

/// What has become of a dump.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct DumpStatus {
    /// "none", "completed", "failed"
    pub status: &'static str,
    /// Bytes written.
    pub completed: u64,
    /// Bytes to be written.
    pub total: u64,
}

/// The formats of dumps.
#[derive(Clone, Debug, Serialize)]
pub struct DumpCapability {
    /// "elf"
    pub formats: Vec<&'static str>,
}

/// A QMP command's name.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct CommandName {
    /// The name.
    pub name: &'static str,
}

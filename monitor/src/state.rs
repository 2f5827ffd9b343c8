//! What [`Control`](crate::Control) tells about the machine: plain data.
//!
//! Where QMP has a member for a field, the serialised name is QMP's.

use serde::{Serialize, Serializer};

/// State of the machine as a whole; the names are QMP's `RunState`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunState {
    /// Not started yet (`-S`).
    Prelaunch,
    /// The vCPUs run.
    Running,
    /// Stopped by `stop`.
    Paused,
    /// Stopped by a debugger.
    Debug,
    /// The guest powered off, and `--no-shutdown` keeps the machine.
    Shutdown,
    /// Suspended to RAM by the guest.
    Suspended,
    /// Stopped by an error of the accelerator.
    InternalError,
    /// Stopped by an error of the host while serving a device.
    IoError,
    /// Stopped because the guest reported a panic.
    GuestPanicked,
    /// Stopped by a watchdog.
    Watchdog,
    /// Being saved.
    SaveVm,
    /// Being restored.
    RestoreVm,
}

impl RunState {
    /// All states, in the order of the declaration.
    pub const ALL: &[Self] = &[
        Self::Prelaunch,
        Self::Running,
        Self::Paused,
        Self::Debug,
        Self::Shutdown,
        Self::Suspended,
        Self::InternalError,
        Self::IoError,
        Self::GuestPanicked,
        Self::Watchdog,
        Self::SaveVm,
        Self::RestoreVm,
    ];

    /// QMP's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prelaunch => "prelaunch",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Debug => "debug",
            Self::Shutdown => "shutdown",
            Self::Suspended => "suspended",
            Self::InternalError => "internal-error",
            Self::IoError => "io-error",
            Self::GuestPanicked => "guest-panicked",
            Self::Watchdog => "watchdog",
            Self::SaveVm => "save-vm",
            Self::RestoreVm => "restore-vm",
        }
    }

    /// Whether only a reset leads out of this state.
    pub fn needs_reset(self) -> bool {
        matches!(self, Self::Shutdown | Self::InternalError)
    }
}

impl Serialize for RunState {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// This program's version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// First number.
    pub major: u32,
    /// Second number.
    pub minor: u32,
    /// Third number.
    pub micro: u32,
    /// What a packager adds; may be empty.
    pub package: String,
}

/// One vCPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// The host's thread id of the vCPU thread.
    pub thread_id: u32,
    /// Whether it waits in HLT (or for INIT or SIPI).
    pub halted: bool,
    /// Its local APIC id.
    pub apic_id: u32,
    /// Socket in the guest's topology.
    pub socket_id: u32,
    /// Core within the socket.
    pub core_id: u32,
    /// Thread within the core.
    pub thread_in_core: u32,
}

/// KVM on this host and in this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Kvm {
    /// The vCPUs run on KVM.
    pub enabled: bool,
    /// This program can use KVM.
    pub present: bool,
    /// What the software CPU did in KVM's place; `None` where KVM does not run the vCPUs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub assists: Option<Assists>,
}

/// How often the software CPU stood in for KVM, and why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Assists {
    /// Instructions that KVM could not emulate.
    pub failures: u64,
    /// System calls and undefined instructions that KVM may have got wrong.
    pub system_calls: u64,
    /// Other exceptions that were looked at for the sake of the former.
    pub exceptions: u64,
    /// Instructions executed on these occasions.
    pub instructions: u64,
}

/// How far a run is, by a count that is the same in each run with `--icount`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Icount {
    /// Instructions that the first vCPU has executed.
    pub instructions: u64,
    /// The VM clock, in nanoseconds.
    pub nanos: u64,
    /// Nanoseconds of the clock that an instruction takes; `None` without `--icount`.
    pub step: Option<u64>,
}

/// A character device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Chardev {
    /// Its label ("serial0").
    pub label: String,
    /// Its backend, in words ("stdio", "unix:/tmp/s,server=on").
    pub filename: String,
    /// Whether a device uses it.
    pub frontend_open: bool,
}

/// A segment register with its cache (Intel SDM vol. 3A, 3.4.3 and 3.4.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Segment {
    /// The visible part.
    pub selector: u16,
    /// Base address.
    pub base: u64,
    /// Limit in bytes, granularity applied.
    pub limit: u32,
    /// The attributes where the second doubleword of a descriptor has them: type in bits 8-11, S
    /// 12, DPL 13-14, P 15, AVL 20, L 21, D/B 22, G 23.
    pub attr: u32,
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TableRegister {
    /// Base address.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u32,
}

/// An x87 data register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FpReg {
    /// The 64-bit significand.
    pub mantissa: u64,
    /// Sign (bit 15) and exponent.
    pub exponent: u16,
}

/// The architectural state of an x86 vCPU, as far as the monitor shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Registers {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15: the order of instruction encoding.
    pub gpr: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// Flags.
    pub rflags: u64,
    /// ES.
    pub es: Segment,
    /// CS.
    pub cs: Segment,
    /// SS.
    pub ss: Segment,
    /// DS.
    pub ds: Segment,
    /// FS.
    pub fs: Segment,
    /// GS.
    pub gs: Segment,
    /// Local descriptor table register.
    pub ldt: Segment,
    /// Task register.
    pub tr: Segment,
    /// Global descriptor table register.
    pub gdt: TableRegister,
    /// Interrupt descriptor table register.
    pub idt: TableRegister,
    /// CR0.
    pub cr0: u64,
    /// CR2.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// CR8, the task priority.
    pub cr8: u64,
    /// Extended feature enable register.
    pub efer: u64,
    /// DR0 to DR7; DR4 and DR5 are not used.
    pub dr: [u64; 8],
    /// IA32_KERNEL_GS_BASE.
    pub kernel_gs_base: u64,
    /// x87 control word.
    pub fcw: u16,
    /// x87 status word, TOP included.
    pub fsw: u16,
    /// Abridged x87 tag word: bit n is set where physical register n is in use.
    pub ftw: u8,
    /// Last x87 opcode, instruction address and operand address.
    pub fop: u16,
    /// See `fop`.
    pub fip: u64,
    /// See `fop`.
    pub fdp: u64,
    /// SSE control and status.
    pub mxcsr: u32,
    /// x87 data registers by physical number (not by distance from TOP).
    pub fpr: [FpReg; 8],
    /// XMM0 to XMM15.
    pub xmm: [u128; 16],
    /// The upper halves of YMM0 to YMM15, where XCR0 enables AVX.
    pub ymm_high: Option<[u128; 16]>,
    /// Interrupts are held off for one instruction (after STI or MOV SS).
    pub interrupt_shadow: bool,
    /// The A20 line lets address bit 20 through.
    pub a20: bool,
    /// In system management mode.
    pub smm: bool,
    /// Waiting in HLT.
    pub halted: bool,
}

/// CR0.PE.
const CR0_PE: u64 = 1;
/// EFER.LMA.
const EFER_LMA: u64 = 1 << 10;
/// RFLAGS.VM.
const RFLAGS_VM: u64 = 1 << 17;
/// L and D/B in [`Segment::attr`].
const SEG_L: u32 = 1 << 21;
const SEG_DB: u32 = 1 << 22;

impl Registers {
    /// Protected mode (with or without paging, long mode included).
    pub fn protected(&self) -> bool {
        self.cr0 & CR0_PE != 0
    }

    /// Long mode is active (64-bit or compatibility).
    pub fn long_mode(&self) -> bool {
        self.efer & EFER_LMA != 0
    }

    /// The code segment is a 64-bit one, in long mode.
    pub fn code64(&self) -> bool {
        self.long_mode() && self.cs.attr & SEG_L != 0
    }

    /// Operand size of the code that runs: 16, 32 or 64 bits.
    pub fn code_bits(&self) -> u32 {
        if self.code64() {
            64
        } else if self.protected() && self.rflags & RFLAGS_VM == 0 && self.cs.attr & SEG_DB != 0 {
            32
        } else {
            16
        }
    }

    /// Current privilege level.
    pub fn cpl(&self) -> u8 {
        match (self.protected(), self.rflags & RFLAGS_VM != 0) {
            (false, _) => 0,
            (true, true) => 3,
            (true, false) => (self.cs.selector & 3) as u8,
        }
    }

    /// Linear address of the next instruction.
    pub fn pc(&self) -> u64 {
        if self.code64() { self.rip } else { self.rip.wrapping_add(self.cs.base) }
    }
}

/// The registers of a local APIC (Intel SDM vol. 3A, 11.4).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LocalApic {
    /// APIC id, as `info lapic` takes it.
    pub id: u32,
    /// Spurious-interrupt vector register.
    pub svr: u32,
    /// Task priority.
    pub tpr: u8,
    /// Arbitration priority.
    pub apr: u8,
    /// Processor priority.
    pub ppr: u8,
    /// Logical destination, bits 31-24 of the register.
    pub ldr: u8,
    /// Destination format, bits 31-28 of the register: 0xf flat, 0 cluster.
    pub dfr: u8,
    /// Error status.
    pub esr: u32,
    /// Interrupt command, low half.
    pub icr_low: u32,
    /// Interrupt command, high half.
    pub icr_high: u32,
    /// LVT LINT0.
    pub lvt_lint0: u32,
    /// LVT LINT1.
    pub lvt_lint1: u32,
    /// LVT performance counter.
    pub lvt_perf: u32,
    /// LVT error.
    pub lvt_error: u32,
    /// LVT thermal sensor.
    pub lvt_thermal: u32,
    /// LVT timer.
    pub lvt_timer: u32,
    /// Divide configuration.
    pub divide: u32,
    /// Initial count.
    pub initial_count: u32,
    /// Current count.
    pub current_count: u32,
    /// In service, 256 bits, vector 0 in bit 0 of the first word.
    pub isr: [u32; 8],
    /// Trigger mode, likewise.
    pub tmr: [u32; 8],
    /// Requested, likewise.
    pub irr: [u32; 8],
    /// x2APIC mode: destinations have 32 bits.
    pub x2apic: bool,
}

/// An 8259A (Intel 8259A datasheet).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Pic {
    /// Interrupt requests.
    pub irr: u8,
    /// Interrupt mask.
    pub imr: u8,
    /// In service.
    pub isr: u8,
    /// The line that has the highest priority, 0 unless priorities are rotated.
    pub highest_priority: u8,
    /// Vector of line 0 (ICW2).
    pub irq_base: u8,
    /// Port 0 reads the ISR rather than the IRR (OCW3).
    pub reads_isr: bool,
    /// Edge/level control: set bits are level-triggered.
    pub elcr: u8,
    /// Special fully nested mode (ICW4).
    pub special_fully_nested: bool,
}

/// An I/O APIC (Intel 82093AA datasheet).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct IoApic {
    /// Version register's low byte.
    pub version: u8,
    /// APIC id.
    pub id: u8,
    /// IOREGSEL.
    pub select: u8,
    /// Redirection entries.
    pub redirection: Vec<u64>,
    /// Pins with a request pending.
    pub irr: u32,
}

/// How often the lines of an interrupt controller were raised.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct IrqStats {
    /// The controller ("ioapic", "i8259").
    pub controller: String,
    /// Counts by line number.
    pub counts: Vec<u64>,
}

/// A page that is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Translation {
    /// Its first virtual address.
    pub linear: u64,
    /// The guest-physical address behind it.
    pub physical: u64,
    /// Bytes.
    pub size: u64,
    /// The entry that maps it (Intel SDM vol. 3, 4.5).
    pub entry: u64,
    /// User code may use it: so say all levels.
    pub user: bool,
    /// It may be written: so say all levels.
    pub write: bool,
}

/// A stretch of mapped pages with the same rights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Range {
    /// Its first virtual address.
    pub start: u64,
    /// Bytes.
    pub size: u64,
    /// User code may use it.
    pub user: bool,
    /// It may be written.
    pub write: bool,
}

/// Where the host has a byte of the guest's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostMemory {
    /// Here in this process; `name` is that of the region.
    Ram {
        /// "ram"
        name: String,
        /// The address.
        address: u64,
    },
    /// A device is there.
    NotRam,
    /// Nothing is there.
    Nothing,
}

/// What `dump-guest-memory` is to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dump {
    /// The file.
    pub path: String,
    /// Memory goes to its virtual addresses.
    pub paging: bool,
    /// Only guest-physical memory from the first number on, the second one's bytes of it.
    pub filter: Option<(u64, u64)>,
}

/// Something that can be logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LogItem {
    /// "unimp"
    pub name: &'static str,
    /// What it is.
    pub help: &'static str,
    /// It is logged.
    pub on: bool,
}

/// Memory of the machine that has contents from the beginning.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rom {
    /// Guest-physical address.
    pub start: u64,
    /// Bytes.
    pub size: u64,
    /// Its name.
    pub name: String,
}

/// What stands behind a region of an address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RegionKind {
    /// Memory.
    Ram,
    /// Memory that the guest cannot write.
    Rom,
    /// A device's registers, or a container.
    Io,
}

/// The address spaces.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MemoryTree {
    /// Each with its root region.
    pub spaces: Vec<AddressSpace>,
}

/// An address space.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AddressSpace {
    /// Its names ("memory", "cpu-memory-0"): all that share this root.
    pub names: Vec<String>,
    /// The region that covers all of it.
    pub root: MemoryRegion,
}

/// A region, with those inside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MemoryRegion {
    /// "pc.ram", "serial" ...
    pub name: String,
    /// First address, in the address space's numbering.
    pub start: u64,
    /// Last address, inclusive.
    pub end: u64,
    /// Of overlapping regions the one of higher priority is seen.
    pub priority: i32,
    /// What it is.
    pub kind: RegionKind,
    /// Where it shows part of another region: that one's name, and the offset into it.
    pub alias: Option<(String, u64)>,
    /// Regions inside, in the order of their addresses.
    pub children: Vec<MemoryRegion>,
}

/// A PCI bus.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PciBus {
    /// Its number.
    pub bus: u8,
    /// Its functions in the order of their places.
    pub devices: Vec<PciDevice>,
}

/// A PCI function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PciDevice {
    /// The number of its bus.
    pub bus: u8,
    /// Device number.
    pub slot: u8,
    /// Function number.
    pub function: u8,
    /// Class code.
    pub class_info: PciClass,
    /// Whose it is and what.
    pub id: PciId,
    /// The interrupt line that firmware gave it, if it has a pin.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub irq: Option<u8>,
    /// The interrupt pin, 1 for A; 0: none.
    pub irq_pin: u8,
    /// `id=`, or nothing.
    pub qdev_id: String,
    /// Its BARs.
    pub regions: Vec<PciRegion>,
}

/// The class of a PCI function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct PciClass {
    /// What it is called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub desc: Option<&'static str>,
    /// Base class and sub-class.
    pub class: u16,
}

impl PciClass {
    /// The class with this number, by the name that QEMU's monitor has for it.
    pub fn new(class: u16) -> Self {
        let desc = match class {
            0x0001 | 0x0300 => "VGA controller",
            0x0100 => "SCSI controller",
            0x0101 => "IDE controller",
            0x0106 => "SATA controller",
            0x0108 => "NVMe controller",
            0x0200 => "Ethernet controller",
            0x0280 => "Network controller",
            0x0380 => "Display controller",
            0x0400 => "Video controller",
            0x0401 | 0x0403 => "Audio controller",
            0x0500 => "RAM controller",
            0x0580 => "Memory controller",
            0x0600 => "Host bridge",
            0x0601 => "ISA bridge",
            0x0604 => "PCI bridge",
            0x0680 => "Bridge",
            0x0700 => "Serial port",
            0x0C03 => "USB controller",
            0x0C05 => "SMBus",
            _ => return Self { desc: None, class },
        };
        Self { desc: Some(desc), class }
    }
}

/// Who made a PCI function, and what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct PciId {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Subsystem vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem: u16,
}

/// A BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct PciRegion {
    /// Its number; 6 is the expansion ROM.
    pub bar: u8,
    /// "io" or "memory".
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Where it decodes; -1 if it does not.
    pub address: i64,
    /// Bytes.
    pub size: u64,
    /// Reads have no side effects; memory only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefetch: Option<bool>,
    /// It has 64 bits; memory only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mem_type_64: Option<bool>,
}

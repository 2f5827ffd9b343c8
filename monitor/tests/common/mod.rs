//! A machine that is only data: what the monitor sees, and a record of what it did.

#![allow(dead_code, reason = "not every test program uses all of it")]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::rc::Rc;

use monitor::block::{
    BlockAction, BlockCache, BlockCounters, BlockImage, BlockInfo, BlockInserted, BlockStatsReply,
    IoLimits,
};
use monitor::state::{
    AddressSpace, Chardev, Cpu, Dump, FpReg, HostMemory, Icount, IoApic, IrqStats, Kvm, LocalApic,
    LogItem, MemoryRegion, MemoryTree, PciBus, PciClass, PciDevice, PciId, PciRegion, Pic,
    RegionKind, Registers, Rom, RunState, Segment, TableRegister, Translation, Version,
};
use monitor::virtio::{Balloon, Features, Statuses, VirtioInfo, VirtioQueue, VirtioStatus};
use monitor::{CommandError, Control};

/// The one virtio device.
pub(crate) const VIRTIO: &str = "/machine/peripheral/disk/virtio-backend";

/// RAM: 128 MiB from 0.
const RAM: u64 = 128 << 20;
/// Virtual addresses below this one are mapped to themselves.
const MAPPED: u64 = 1 << 30;

/// `info mem` sees other page tables: so many large pages, each at its own address.
const PAGES: u64 = 2048;
const LARGE: u64 = 2 << 20;

/// Where [`Fake`]'s memory is not zero.
pub(crate) const DATA: u64 = 0x1_0000;
pub(crate) const CODE: u64 = 0x1_1000;

/// 64-bit code: an excerpt of what compilers and kernels write.
pub(crate) const CODE_64: &[u8] = &[
    0x55, 0x48, 0x89, 0xe5, 0x48, 0x83, 0xec, 0x20, 0x48, 0x83, 0xe4, 0xf0, 0x48, 0xc7, 0xc0, 0xff,
    0xff, 0xff, 0xff, 0xb9, 0xff, 0xff, 0xff, 0xff, 0x48, 0x3d, 0x00, 0xf0, 0xff, 0xff, 0x48, 0x8d,
    0x3d, 0x34, 0x12, 0x00, 0x00, 0x49, 0xba, 0xf0, 0xde, 0xbc, 0x9a, 0x78, 0x56, 0x34, 0x12, 0xe8,
    0x00, 0x00, 0x00, 0x00, 0x75, 0x3e, 0x0f, 0x94, 0xc0, 0x0f, 0xb6, 0xc0, 0x64, 0x48, 0x8b, 0x14,
    0x25, 0x28, 0x00, 0x00, 0x00, 0xc7, 0x44, 0x8d, 0xf8, 0x01, 0x00, 0x00, 0x00, 0xf3, 0xaa, 0xf0,
    0xff, 0x02, 0x2e, 0x66, 0x0f, 0x1f, 0x84, 0x00, 0x00, 0x02, 0x00, 0x00, 0x66, 0x90, 0xec, 0xe7,
    0x70, 0x0f, 0x20, 0xd8, 0x0f, 0x30, 0x48, 0xcf, 0x0f, 0x29, 0x0c, 0x24, 0x0f, 0x05, 0x0f, 0x01,
    0x18, 0xc9, 0xc3,
];

/// 16-bit code: what firmware begins with.
pub(crate) const CODE_16: &[u8] = &[
    0xea, 0x5b, 0xe0, 0x00, 0xf0, 0xfa, 0xb8, 0x10, 0x00, 0x00, 0x00, 0x0f, 0x20, 0xc0, 0x2e, 0x66,
    0x0f, 0x01, 0x16, 0x40, 0x00, 0x66, 0xea, 0x00, 0x00, 0x10, 0x00, 0x08, 0x00, 0xe6, 0x92, 0xcd,
    0x10, 0xff, 0x1f, 0xf4,
];

type Files = Rc<RefCell<BTreeMap<String, Vec<u8>>>>;

/// The machine.
pub(crate) struct Fake {
    pub status: RunState,
    pub cpus: Vec<Registers>,
    pub apics: Vec<LocalApic>,
    pub io_apics: Vec<IoApic>,
    pub pics: Vec<Pic>,
    pub irq_stats: Vec<IrqStats>,
    pub memory: Vec<(u64, Vec<u8>)>,
    pub ports: BTreeMap<u16, u8>,
    pub files: Files,
    /// What was done to the machine, in words.
    pub log: Vec<String>,
}

/// A 64-bit guest, running.
pub(crate) fn long_mode() -> Fake {
    let data = Segment { selector: 0x10, base: 0, limit: u32::MAX, attr: 0xcf_9300 };
    let mut r = Registers {
        es: data,
        ss: data,
        ds: data,
        cs: Segment { selector: 0x18, base: 0, limit: u32::MAX, attr: 0xaf_9b00 },
        tr: Segment { selector: 0x28, base: 0x4000, limit: 0x67, attr: 0x8900 },
        rip: 0xffff_00e7,
        rflags: 0x446,
        gdt: TableRegister { base: 0xffff_00f0, limit: 0x37 },
        idt: TableRegister { base: 0xffff_00f0, limit: 0x37 },
        cr0: 0x8000_0033,
        cr3: 0x1000,
        cr4: 0x6a0,
        efer: 0xd01,
        fsw: 0x3000,
        ftw: 0xc0,
        halted: true,
        ..reset_state()
    };
    r.gpr = [0; 16];
    r.gpr[0] = 0x1234_5678_9abc_def0;
    r.gpr[1] = 0xdead_beef_cafe_babe;
    r.gpr[4] = 0x8000;
    r.gpr[6] = 0x1234;
    r.gpr[7] = 0x5000;
    r.gpr[15] = 0x1234_5678_9abc_def0;
    r.dr[0] = 0x1234;
    r.fpr[6] = FpReg { mantissa: 0xc90f_daa2_2168_c235, exponent: 0x4000 };
    r.fpr[7] = FpReg { mantissa: 1 << 63, exponent: 0x3fff };
    r.xmm[1] = 0x1234_5678_9abc_def0;
    Fake { status: RunState::Running, ..machine(vec![r], CODE_64) }
}

/// A 32-bit guest that has set up the interrupt controllers, with two vCPUs.
pub(crate) fn protected_mode() -> Fake {
    let data = Segment { selector: 0x10, base: 0, limit: u32::MAX, attr: 0xcf_9300 };
    let mut r = Registers {
        es: data,
        ss: data,
        ds: data,
        cs: Segment { selector: 8, attr: 0xcf_9b00, ..data },
        fs: Segment { selector: 0x30, base: 0x10_000f, limit: 0xfff0, attr: 0x9700 },
        gs: Segment { selector: 0x38, base: 0x1234, limit: 0xffff, attr: 0x40_f300 },
        tr: Segment { selector: 0x28, base: 0x4000, limit: 0x67, attr: 0x8900 },
        rip: 0xffff_01c2,
        rflags: 6,
        gdt: TableRegister { base: 0xffff_01d0, limit: 0x47 },
        idt: TableRegister { base: 0x4000, limit: 0x7ff },
        cr0: 0x6000_0011,
        fsw: 0x3800,
        ftw: 0x80,
        halted: true,
        ..reset_state()
    };
    r.gpr[0] = 0x1234_5678;
    r.gpr[3] = 0xfec0_0000;
    r.gpr[4] = 0x8000;
    r.fpr[7] = FpReg { mantissa: 0xc90f_daa2_2168_c235, exponent: 0x4000 };
    let mut redirection = vec![0x1_0000; 24];
    redirection[1] = 0x0100_0000_0000_0031;
    redirection[4] = 0xff00_0000_0001_a932;
    redirection[5] = 0x0f00_0000_0000_8533;
    redirection[6] = 0x1_0734;
    redirection[7] = 0x1_0235;
    redirection[8] = 0x1_0436;
    redirection[9] = 0x1_0537;
    redirection[10] = 0x1_0138;
    redirection[11] = 0x1_0338;
    let master = Pic {
        irr: 1,
        imr: 0xf8,
        highest_priority: 4,
        irq_base: 0x20,
        reads_isr: true,
        special_fully_nested: true,
        ..Pic::default()
    };
    let first = LocalApic {
        svr: 0x1ff,
        tpr: 0x20,
        ppr: 0x20,
        ldr: 2,
        dfr: 0,
        icr_low: 0x931,
        icr_high: 0x0300_0000,
        lvt_lint0: 0x1_0700,
        lvt_lint1: 0x400,
        lvt_perf: 0xa2fe,
        lvt_error: 0xfe,
        lvt_timer: 0x3_00aa,
        divide: 0xb,
        initial_count: 0x1000_0000,
        current_count: 247_468_640,
        irr: [0, 1 << 17, 1 << 1 | 1 << 17, 0, 0, 0, 0, 0],
        ..reset_apic(0)
    };
    let second = LocalApic { irr: [0, 0, 0, 1 << 17, 0, 0, 0, 0], ..reset_apic(1) };
    let counts = vec![35];
    Fake {
        status: RunState::Running,
        apics: vec![first, second],
        io_apics: vec![IoApic { version: 0x20, id: 0, select: 0x1a, redirection, irr: 0 }],
        pics: vec![master, Pic::default()],
        irq_stats: ["ioapic", "isa-i8259"]
            .map(|name| IrqStats { controller: name.to_owned(), counts: counts.clone() })
            .into(),
        ..machine(vec![r, reset_state()], CODE_16)
    }
}

/// Two vCPUs at their reset vector, not started.
pub(crate) fn reset() -> Fake {
    let waiting = Registers { halted: true, ..reset_state() };
    machine(vec![reset_state(), waiting], CODE_16)
}

fn machine(cpus: Vec<Registers>, code: &[u8]) -> Fake {
    let pattern = (0..256u32).map(|n| (n * 37 + 11) as u8).collect();
    Fake {
        status: RunState::Prelaunch,
        apics: (0..cpus.len() as u32).map(reset_apic).collect(),
        cpus,
        io_apics: Vec::new(),
        pics: Vec::new(),
        irq_stats: Vec::new(),
        memory: vec![(DATA, pattern), (CODE, code.to_vec())],
        ports: BTreeMap::from([(0x71, 0)]),
        files: Rc::default(),
        log: Vec::new(),
    }
}

fn reset_state() -> Registers {
    let data = Segment { selector: 0, base: 0, limit: 0xffff, attr: 0x9300 };
    let mut r = Registers {
        rip: 0xfff0,
        rflags: 2,
        es: data,
        cs: Segment { selector: 0xf000, base: 0xffff_0000, limit: 0xffff, attr: 0x9b00 },
        ss: data,
        ds: data,
        fs: data,
        gs: data,
        ldt: Segment { attr: 0x8200, ..data },
        tr: Segment { attr: 0x8b00, ..data },
        gdt: TableRegister { base: 0, limit: 0xffff },
        idt: TableRegister { base: 0, limit: 0xffff },
        cr0: 0x6000_0010,
        fcw: 0x37f,
        mxcsr: 0x1f80,
        a20: true,
        ..Registers::default()
    };
    r.gpr[2] = 0x6_0fb1;
    r.dr[6] = 0xffff_0ff0;
    r.dr[7] = 0x400;
    r
}

fn reset_apic(id: u32) -> LocalApic {
    LocalApic {
        id,
        svr: 0xff,
        dfr: 0xf,
        lvt_lint0: 0x1_0000,
        lvt_lint1: 0x1_0000,
        lvt_perf: 0x1_0000,
        lvt_error: 0x1_0000,
        lvt_thermal: 0x1_0000,
        lvt_timer: 0x1_0000,
        ..LocalApic::default()
    }
}

fn region(name: &str, range: (u64, u64), priority: i32, kind: RegionKind) -> MemoryRegion {
    let (start, end) = range;
    let (name, children) = (name.to_owned(), Vec::new());
    MemoryRegion { name, start, end, priority, kind, alias: None, children }
}

/// A PC with two cards, before or after firmware has given them addresses.
fn pci(assigned: bool) -> Vec<PciBus> {
    let place = |address| if assigned { address } else { -1 };
    let line = |irq| Some(if assigned { irq } else { 0 });
    let io = |bar, size, address| PciRegion {
        bar,
        kind: "io",
        address: place(address),
        size,
        prefetch: None,
        mem_type_64: None,
    };
    let memory = |bar, size, address, wide| PciRegion {
        bar,
        kind: "memory",
        address: place(address),
        size,
        prefetch: Some(wide),
        mem_type_64: Some(wide),
    };
    let function = |place: (u8, u8), class, vendor, device| PciDevice {
        bus: 0,
        slot: place.0,
        function: place.1,
        class_info: PciClass::new(class),
        id: PciId { vendor, device, subsystem_vendor: 0x1af4, subsystem: 0x1100 },
        irq: None,
        irq_pin: 0,
        qdev_id: String::new(),
        regions: Vec::new(),
    };
    let pm = PciDevice { irq: line(9), irq_pin: 1, ..function((1, 3), 0x680, 0x8086, 0x7113) };
    let ide =
        PciDevice { regions: vec![io(4, 16, 0xc100)], ..function((1, 1), 0x101, 0x8086, 0x7010) };
    let testdev = PciDevice {
        regions: vec![
            memory(0, 4096, 0xfeb0_0000, false),
            io(1, 256, 0xc000),
            memory(2, 4096, 0xfebf_f000, true),
        ],
        ..function((3, 0), 0xff, 0x1b36, 0x0005)
    };
    let edu = PciDevice {
        irq: line(11),
        irq_pin: 1,
        qdev_id: "e".to_owned(),
        regions: vec![memory(0, 1 << 20, 0xfea0_0000, false)],
        ..function((4, 0), 0xff, 0x1234, 0x11e8)
    };
    let host = function((0, 0), 0x600, 0x8086, 0x1237);
    let isa = function((1, 0), 0x601, 0x8086, 0x7000);
    vec![PciBus { bus: 0, devices: vec![host, isa, ide, pm, testdev, edu] }]
}

struct File {
    path: String,
    files: Files,
}

impl Write for File {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.files.borrow_mut().entry(self.path.clone()).or_default().extend(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Fake {
    fn did(&mut self, what: &str) -> Result<(), CommandError> {
        self.log.push(what.to_owned());
        Ok(())
    }
}

impl Control for Fake {
    fn version(&self) -> Version {
        Version { major: 1, minor: 2, micro: 3, package: String::new() }
    }

    fn name(&self) -> Option<String> {
        Some("golden".to_owned())
    }

    fn uuid(&self) -> [u8; 16] {
        [0; 16]
    }

    fn kvm(&self) -> Kvm {
        Kvm { enabled: false, present: true, assists: None }
    }

    fn icount(&mut self) -> Option<Icount> {
        Some(Icount { instructions: 1_000_000, nanos: 5_000_000_004, step: Some(4) })
    }

    fn chardevs(&self) -> Vec<Chardev> {
        [("parallel0", "vc"), ("compat_monitor0", "stdio")]
            .map(|(label, filename)| Chardev {
                label: label.to_owned(),
                filename: filename.to_owned(),
                frontend_open: true,
            })
            .into()
    }

    fn status(&self) -> RunState {
        self.status
    }

    fn stop(&mut self) -> Result<(), CommandError> {
        self.status = RunState::Paused;
        self.did("stop")
    }

    fn cont(&mut self) -> Result<(), CommandError> {
        self.status = RunState::Running;
        self.did("cont")
    }

    fn system_reset(&mut self) -> Result<(), CommandError> {
        self.did("system_reset")
    }

    fn system_powerdown(&mut self) -> Result<(), CommandError> {
        self.did("system_powerdown")
    }

    fn quit(&mut self) {
        self.log.push("quit".to_owned());
    }

    fn inject_nmi(&mut self) -> Result<(), CommandError> {
        self.did("nmi")
    }

    fn cpus(&mut self) -> Vec<Cpu> {
        (0..self.cpus.len() as u32)
            .map(|index| Cpu {
                thread_id: 1000 + index,
                halted: self.cpus[index as usize].halted,
                apic_id: index,
                socket_id: 0,
                core_id: index,
                thread_in_core: 0,
            })
            .collect()
    }

    fn registers(&mut self, cpu: usize) -> Result<Registers, CommandError> {
        Ok(self.cpus[cpu].clone())
    }

    fn local_apic(&mut self, cpu: usize) -> Option<LocalApic> {
        self.apics.get(cpu).cloned()
    }

    fn read_virtual(&mut self, _: usize, addr: u64, data: &mut [u8]) -> Result<(), CommandError> {
        if addr.checked_add(data.len() as u64).is_none_or(|end| end > MAPPED) {
            return Err(CommandError::Unmapped(addr));
        }
        self.read_physical(addr, data)
    }

    fn read_physical(&mut self, addr: u64, data: &mut [u8]) -> Result<(), CommandError> {
        if addr.checked_add(data.len() as u64).is_none_or(|end| end > RAM) {
            return Err(CommandError::Unmapped(addr));
        }
        data.fill(0);
        for (start, bytes) in &self.memory {
            for (at, byte) in (*start..).zip(bytes) {
                if let Some(at) = at.checked_sub(addr).filter(|at| *at < data.len() as u64) {
                    data[at as usize] = *byte;
                }
            }
        }
        Ok(())
    }

    fn port_read(&mut self, port: u16, size: u8) -> u32 {
        let mut value = u32::MAX >> (32 - u32::from(size) * 8);
        if let Some(byte) = self.ports.get(&port) {
            value = value & !0xff | u32::from(*byte);
        }
        value
    }

    fn port_write(&mut self, port: u16, size: u8, value: u32) {
        self.log.push(format!("out {port:#x} {size} {value:#x}"));
    }

    fn gdbserver(&mut self, device: &str) -> Result<(), CommandError> {
        if device == "bogus" {
            let why = "'bogus' is not a valid char driver";
            return Err(CommandError::Refused(why.to_owned()));
        }
        self.did(&format!("gdbserver {device}"))
    }

    fn translate(&mut self, _: usize, addr: u64) -> Result<Option<u64>, CommandError> {
        Ok((addr < PAGES * LARGE).then_some(addr))
    }

    fn walk_pages(
        &mut self,
        _: usize,
        visit: &mut dyn FnMut(Translation) -> bool,
    ) -> Result<bool, CommandError> {
        Ok((0..PAGES).all(|page| {
            let linear = page * LARGE;
            let entry = linear | if page < 2 { 0xe3 } else { 0x83 };
            let (user, write) = (false, true);
            visit(Translation { linear, physical: linear, size: LARGE, entry, user, write })
        }))
    }

    fn host_memory(&mut self, addr: u64) -> HostMemory {
        match addr {
            0xfee0_0000..0xff00_0000 => HostMemory::NotRam,
            _ if addr < RAM => {
                HostMemory::Ram { name: "pc.ram".to_owned(), address: 0x7f8c_4fe0_0000 + addr }
            }
            _ => HostMemory::Nothing,
        }
    }

    fn host_physical(&mut self, addr: u64) -> io::Result<u64> {
        Ok(addr - 0x7f8c_4fe0_0000 + 0x3_a920_0000)
    }

    fn log_items(&self) -> Vec<LogItem> {
        let item = |name, help| LogItem { name, help, on: false };
        vec![
            item("cpu_reset", "show CPU state before CPU resets"),
            item("unimp", "log unimplemented functionality"),
        ]
    }

    fn set_log_items(&mut self, names: &[&str]) {
        self.log.push(format!("log {names:?}"));
    }

    fn set_log_file(&mut self, path: &str) -> io::Result<()> {
        if path.starts_with("/nonexistent/") {
            return Err(io::Error::from_raw_os_error(2));
        }
        self.log.push(format!("logfile {path}"));
        Ok(())
    }

    fn roms(&mut self) -> Vec<Rom> {
        vec![Rom { start: 0xfffe_0000, size: 0x2_0000, name: "bios.bin".to_owned() }]
    }

    fn dump_memory(&mut self, dump: &Dump) -> Result<(), CommandError> {
        if dump.path.starts_with("/nonexistent/") {
            let (path, source) = (dump.path.clone(), io::Error::from_raw_os_error(2));
            return Err(CommandError::File { what: "open", path, source });
        }
        self.did(&format!("dump {} paging={} {:x?}", dump.path, dump.paging, dump.filter))
    }

    fn last_dump(&mut self) -> (&'static str, u64) {
        if self.log.iter().any(|done| done.starts_with("dump")) {
            ("completed", 1000)
        } else {
            ("none", 0)
        }
    }

    fn memory_tree(&mut self) -> MemoryTree {
        let ram = MemoryRegion {
            alias: Some(("pc.ram".to_owned(), 0)),
            ..region("ram-below-4g", (0, RAM - 1), 0, RegionKind::Ram)
        };
        let rom = region("pc.rom", (0xc_0000, 0xd_ffff), 1, RegionKind::Rom);
        let msi = region("apic-msi", (0xfee0_0000, 0xfeef_ffff), 4096, RegionKind::Io);
        let mut system = region("system", (0, u64::MAX), 0, RegionKind::Io);
        system.children = vec![ram, rom, msi];
        let mut rtc = region("rtc", (0x70, 0x71), 0, RegionKind::Io);
        rtc.children = vec![region("rtc-index", (0x70, 0x70), 0, RegionKind::Io)];
        let mut io = region("io", (0, 0xffff), 0, RegionKind::Io);
        io.children = vec![rtc];
        let names = ["cpu-memory-0", "memory"].map(str::to_owned).into();
        MemoryTree {
            spaces: vec![
                AddressSpace { names, root: system },
                AddressSpace { names: vec!["I/O".to_owned()], root: io },
            ],
        }
    }

    fn irq_stats(&mut self) -> Vec<IrqStats> {
        self.irq_stats.clone()
    }

    fn pics(&mut self) -> Vec<Pic> {
        self.pics.clone()
    }

    fn io_apics(&mut self) -> Vec<IoApic> {
        self.io_apics.clone()
    }

    fn network(&mut self) -> String {
        "virtio-net-pci.0: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:12:34:56\n \
         \\ n0: index=0,type=user,net=10.0.2.0,restrict=off\n"
            .to_owned()
    }

    fn usernet(&mut self) -> String {
        "Hub -1 (n0):\n".to_owned()
    }

    fn set_link(&mut self, name: &str, up: bool) -> Result<(), CommandError> {
        if name == "nope" {
            return Err(CommandError::DeviceNotFound(name.to_owned()));
        }
        self.did(&format!("set_link {name} {up}"))
    }

    fn netdev_add(&mut self, text: &str) -> Result<(), CommandError> {
        self.did(&format!("netdev_add {text}"))
    }

    fn netdev_del(&mut self, id: &str) -> Result<(), CommandError> {
        self.did(&format!("netdev_del {id}"))
    }

    fn hostfwd_add(&mut self, netdev: Option<&str>, rule: &str) -> Result<(), CommandError> {
        self.did(&format!("hostfwd_add {netdev:?} {rule}"))
    }

    fn hostfwd_remove(&mut self, netdev: Option<&str>, rule: &str) -> Result<String, CommandError> {
        self.did(&format!("hostfwd_remove {netdev:?} {rule}"))?;
        Ok(format!("host forwarding rule for {rule} removed\n"))
    }

    fn block_devices(&mut self) -> Vec<BlockInfo> {
        vec![
            BlockInfo {
                device: "virtio0".to_owned(),
                qdev: Some(VIRTIO.to_owned()),
                kind: "unknown",
                removable: false,
                locked: false,
                inserted: Some(BlockInserted {
                    file: "disk.qcow2".to_owned(),
                    node_name: "#block100".to_owned(),
                    ro: false,
                    drv: "qcow2",
                    backing_file: Some("base.raw".to_owned()),
                    backing_file_depth: 1,
                    encrypted: false,
                    detect_zeroes: "off",
                    limits: IoLimits { iops: 100, ..IoLimits::default() },
                    image: BlockImage {
                        filename: "disk.qcow2".to_owned(),
                        format: "qcow2",
                        virtual_size: 1 << 30,
                        actual_size: 1 << 20,
                        cluster_size: Some(65536),
                        backing_filename: Some("base.raw".to_owned()),
                    },
                    cache: BlockCache { writeback: true, direct: true, no_flush: false },
                    write_threshold: 0,
                }),
            },
            BlockInfo {
                device: "none0".to_owned(),
                qdev: None,
                kind: "unknown",
                removable: false,
                locked: false,
                inserted: None,
            },
        ]
    }

    fn block_stats(&mut self) -> Vec<BlockStatsReply> {
        let stats = BlockCounters { rd_bytes: 512, rd_operations: 1, ..BlockCounters::default() };
        vec![BlockStatsReply { device: "virtio0".to_owned(), qdev: None, stats }]
    }

    fn block_action(&mut self, action: BlockAction) -> Result<(), CommandError> {
        self.log.push(format!("{action:?}"));
        Ok(())
    }

    fn virtio_devices(&mut self) -> Vec<VirtioInfo> {
        let status = self.virtio_status(VIRTIO).unwrap();
        vec![VirtioInfo { path: status.path, name: status.name }]
    }

    fn virtio_status(&mut self, path: &str) -> Option<VirtioStatus> {
        let features = |names: &[&str]| Features {
            transports: vec!["VIRTIO_F_VERSION_1".to_owned()],
            dev_features: names.iter().map(|name| (*name).to_owned()).collect(),
            unknown_dev_features: 0,
        };
        (path == VIRTIO).then(|| VirtioStatus {
            path: path.to_owned(),
            name: "virtio-blk".to_owned(),
            device_id: 2,
            vhost_started: false,
            device_endian: "little",
            guest_features: features(&[]),
            host_features: features(&["VIRTIO_BLK_F_FLUSH"]),
            num_vqs: 2,
            status: Statuses { statuses: vec!["ACKNOWLEDGE".to_owned(), "DRIVER".to_owned()] },
            broken: false,
            why_broken: None,
            started: false,
            vm_running: true,
        })
    }

    fn virtio_queue(&mut self, path: &str, index: usize) -> Option<VirtioQueue> {
        (path == VIRTIO).then(|| VirtioQueue {
            path: path.to_owned(),
            name: "virtio-blk".to_owned(),
            queue_index: index,
            inuse: 1,
            vring_num: 128,
            vring_num_default: 256,
            vring_desc: 0x1000,
            vring_avail: 0x1800,
            vring_used: 0x2000,
            last_avail_idx: 7,
            shadow_avail_idx: 8,
            used_idx: 6,
            signalled_used: 5,
        })
    }

    fn balloon(&mut self) -> Result<Balloon, CommandError> {
        Ok(Balloon { actual: 96 << 20, stats: vec![("free_mem", 1000)] })
    }

    fn set_balloon(&mut self, bytes: u64) -> Result<(), CommandError> {
        self.log.push(format!("balloon {bytes}"));
        Ok(())
    }

    fn pci(&mut self) -> Vec<PciBus> {
        pci(self.status != RunState::Prelaunch)
    }

    fn device_add(&mut self, text: &str) -> Result<(), CommandError> {
        self.did(&format!("device_add {text}"))
    }

    fn device_del(&mut self, id: &str) -> Result<(), CommandError> {
        if id == "nope" {
            return Err(CommandError::DeviceNotFound(id.to_owned()));
        }
        self.did(&format!("device_del {id}"))
    }

    fn create_file(&mut self, path: &str) -> io::Result<Box<dyn Write>> {
        if path.starts_with("/nonexist/") {
            return Err(io::Error::from_raw_os_error(2));
        }
        let (path, files) = (path.to_owned(), self.files.clone());
        files.borrow_mut().insert(path.clone(), Vec::new());
        Ok(Box::new(File { path, files }))
    }

    fn list_dir(&self, path: &str) -> Vec<String> {
        let names: &[&str] = match path {
            "" => &["dump.bin", "dumps/", "notes"],
            "dumps/" => &["first"],
            _ => &[],
        };
        names.iter().map(|name| (*name).to_owned()).collect()
    }
}

//! The machine as the monitor's commands see it.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use board::Bus;
use board::memory::MemoryMap;
use devices::chardev::BackendSpec;
use monitor::block::{BlockAction, BlockInfo, BlockStatsReply};
use monitor::state::{
    AddressSpace, Assists, Chardev, Cpu, Dump, HostMemory, Icount, IoApic, IrqStats, Kvm,
    LocalApic, LogItem, MemoryRegion, MemoryTree, PciBus, Pic, RegionKind, Registers, Rom,
    RunState, Translation, Version,
};
use monitor::virtio::{Balloon, VirtioInfo, VirtioQueue, VirtioStatus};
use monitor::{Cause, CommandError, Control};

use crate::config::{LOG_ITEMS, LogItems};
use crate::machine::Machine;
use crate::{block, inspect, paging};

impl Control for Machine {
    fn version(&self) -> Version {
        let part = |text: &str| text.parse().unwrap_or(0);
        Version {
            major: part(env!("CARGO_PKG_VERSION_MAJOR")),
            minor: part(env!("CARGO_PKG_VERSION_MINOR")),
            micro: part(env!("CARGO_PKG_VERSION_PATCH")),
            package: String::new(),
        }
    }

    fn name(&self) -> Option<String> {
        self.config().name.clone()
    }

    fn uuid(&self) -> [u8; 16] {
        self.config().uuid
    }

    fn kvm(&self) -> Kvm {
        let assists = self.accel().assists().map(|a| Assists {
            failures: a.failures,
            system_calls: a.system_calls,
            exceptions: a.exceptions,
            instructions: a.instructions,
        });
        let enabled = self.accel().name() == "kvm";
        Kvm { enabled, present: cfg!(feature = "kvm"), assists }
    }

    fn icount(&mut self) -> Option<Icount> {
        let repeat = self.vcpu_state(0).ok()?.repeat?;
        let step = self.config().icount.map(|icount| 1 << icount.shift);
        let nanos = self.clock().now().nanos();
        Some(Icount { instructions: repeat.instructions, nanos, step })
    }

    fn chardevs(&self) -> Vec<Chardev> {
        let info = Machine::chardevs(self).info();
        info.into_iter()
            .map(|c| Chardev {
                label: c.label,
                filename: c.filename,
                frontend_open: c.frontend_open,
            })
            .collect()
    }

    fn status(&self) -> RunState {
        self.state()
    }

    fn stop(&mut self) -> Result<(), CommandError> {
        if self.state() == RunState::Running {
            Machine::stop(self, RunState::Paused);
        }
        Ok(())
    }

    fn cont(&mut self) -> Result<(), CommandError> {
        Machine::cont(self);
        Ok(())
    }

    fn system_reset(&mut self) -> Result<(), CommandError> {
        self.reset(Cause::HostQmpSystemReset);
        Ok(())
    }

    fn system_powerdown(&mut self) -> Result<(), CommandError> {
        self.press_power_button();
        Ok(())
    }

    fn quit(&mut self) {
        Machine::quit(self, Cause::HostQmpQuit);
    }

    fn inject_nmi(&mut self) -> Result<(), CommandError> {
        for index in 0..self.vcpus().count() {
            self.vcpus().with(index, |vcpu| vcpu.nmi()).map_err(refused)?;
        }
        Ok(())
    }

    fn cpus(&mut self) -> Vec<Cpu> {
        let topology = self.config().topology;
        (0..self.vcpus().count())
            .map(|index| {
                let (socket_id, core_id, thread_in_core) = topology.place(index as u32);
                Cpu {
                    thread_id: self.vcpus().thread_id(index),
                    halted: self.is_halted(index),
                    apic_id: index as u32,
                    socket_id,
                    core_id,
                    thread_in_core,
                }
            })
            .collect()
    }

    fn registers(&mut self, cpu: usize) -> Result<Registers, CommandError> {
        Ok(inspect::registers(&self.vcpu_state(cpu).map_err(refused)?))
    }

    fn local_apic(&mut self, cpu: usize) -> Option<LocalApic> {
        let state = self.vcpu_state(cpu).ok()?;
        Some(inspect::local_apic(&state.lapic?.registers, state.apic_base))
    }

    fn read_virtual(&mut self, cpu: usize, addr: u64, data: &mut [u8]) -> Result<(), CommandError> {
        let state = self.vcpu_state(cpu).map_err(refused)?;
        paging::read_linear(&state, self.memory(), addr, data).map_err(CommandError::Unmapped)
    }

    fn read_physical(&mut self, addr: u64, data: &mut [u8]) -> Result<(), CommandError> {
        self.memory().read(addr, data).map_err(|_| CommandError::Unmapped(addr))
    }

    fn translate(&mut self, cpu: usize, addr: u64) -> Result<Option<u64>, CommandError> {
        let state = self.vcpu_state(cpu).map_err(refused)?;
        Ok(paging::translate(&state, self.memory(), addr))
    }

    fn walk_pages(
        &mut self,
        cpu: usize,
        visit: &mut dyn FnMut(Translation) -> bool,
    ) -> Result<bool, CommandError> {
        let state = self.vcpu_state(cpu).map_err(refused)?;
        Ok(paging::walk_pages(&state, self.memory(), visit))
    }

    fn host_memory(&mut self, addr: u64) -> HostMemory {
        let slots = self.memory().slots().iter();
        // ROM lies over RAM.
        let slot = slots.rev().find(|slot| addr.wrapping_sub(slot.start) < slot.size);
        if let Some(slot) = slot {
            let address = slot.host + (addr - slot.start);
            return HostMemory::Ram { name: slot.name.into(), address };
        }
        let mut devices = self.mmio().mappings().into_iter();
        match devices.any(|m| (m.start..=m.end).contains(&addr)) {
            true => HostMemory::NotRam,
            false => HostMemory::Nothing,
        }
    }

    fn host_physical(&mut self, addr: u64) -> io::Result<u64> {
        /// Of an entry: the page is in memory; the page's number (proc_pid_pagemap(5)).
        const PRESENT: u64 = 1 << 63;
        const NUMBER: u64 = (1 << 55) - 1;
        let mut entry = [0; 8];
        File::open("/proc/self/pagemap")?.read_exact_at(&mut entry, addr / 4096 * 8)?;
        let entry = u64::from_le_bytes(entry);
        if entry & PRESENT == 0 {
            return Err(io::Error::other("the page is not in memory"));
        }
        if entry & NUMBER == 0 {
            return Err(io::Error::other("the kernel tells page numbers to root only"));
        }
        Ok((entry & NUMBER) * 4096 + addr % 4096)
    }

    fn log_items(&self) -> Vec<LogItem> {
        let now = self.log().items();
        let on = |name| if name == "cpu_reset" { now.cpu_reset } else { now.unimp };
        LOG_ITEMS.map(|(name, help)| LogItem { name, help, on: on(name) }).into()
    }

    fn set_log_items(&mut self, names: &[&str]) {
        let has = |name| names.contains(&name);
        let unimp = has("unimp") || has("guest_errors");
        self.log().set_items(LogItems { unimp, cpu_reset: has("cpu_reset") });
    }

    fn set_log_file(&mut self, path: &str) -> io::Result<()> {
        if self.config().sandbox {
            return Err(io::Error::other("--sandbox on lets vmm write no files"));
        }
        self.log().set_file(path.as_ref())
    }

    fn roms(&mut self) -> Vec<Rom> {
        let slots = self.memory().slots().iter().filter(|slot| slot.readonly);
        slots
            .map(|slot| Rom { start: slot.start, size: slot.size, name: slot.name.into() })
            .collect()
    }

    fn dump_memory(&mut self, dump: &Dump) -> Result<(), CommandError> {
        self.dump_core(dump)
    }

    fn last_dump(&mut self) -> (&'static str, u64) {
        self.last_core()
    }

    fn port_read(&mut self, port: u16, size: u8) -> u32 {
        let mut data = [0; 4];
        self.pio().read(port.into(), &mut data[..usize::from(size.min(4))]);
        u32::from_le_bytes(data)
    }

    fn port_write(&mut self, port: u16, size: u8, value: u32) {
        self.pio().write(port.into(), &value.to_le_bytes()[..usize::from(size.min(4))]);
    }

    fn memory_tree(&mut self) -> MemoryTree {
        let memory = AddressSpace {
            names: vec!["memory".into()],
            root: MemoryRegion {
                name: "system".into(),
                start: 0,
                end: u64::MAX,
                priority: 0,
                kind: RegionKind::Io,
                alias: None,
                children: memory_regions(self.memory(), self.mmio()),
            },
        };
        let io = AddressSpace {
            names: vec!["I/O".into()],
            root: MemoryRegion {
                name: "io".into(),
                start: 0,
                end: 0xFFFF,
                priority: 0,
                kind: RegionKind::Io,
                alias: None,
                children: device_regions(self.pio()),
            },
        };
        MemoryTree { spaces: vec![memory, io] }
    }

    fn irq_stats(&mut self) -> Vec<IrqStats> {
        let counts = self.irqchip().map(|chip| chip.counts().to_vec());
        counts.map(|counts| IrqStats { controller: "ioapic".into(), counts }).into_iter().collect()
    }

    fn pics(&mut self) -> Vec<Pic> {
        let Some(chip) = self.irqchip() else { return Vec::new() };
        let pic = |view: devices::chip::pic::PicView| Pic {
            irr: view.irr,
            imr: view.imr,
            isr: view.isr,
            highest_priority: view.hprio,
            irq_base: view.irq_base,
            reads_isr: view.rr_sel,
            elcr: view.elcr,
            special_fully_nested: view.fnm,
        };
        chip.pics().map(pic).into()
    }

    fn io_apics(&mut self) -> Vec<IoApic> {
        let Some(chip) = self.irqchip() else { return Vec::new() };
        let view = chip.ioapic();
        vec![IoApic {
            version: devices::chip::ioapic::VERSION,
            id: view.id,
            select: view.select,
            redirection: view.entries.to_vec(),
            irr: view.irr,
        }]
    }

    fn network(&mut self) -> String {
        self.network_text()
    }

    fn usernet(&mut self) -> String {
        self.usernet_text()
    }

    fn set_link(&mut self, name: &str, up: bool) -> Result<(), CommandError> {
        Machine::set_link(self, name, up)
    }

    fn netdev_add(&mut self, text: &str) -> Result<(), CommandError> {
        Machine::netdev_add(self, text).map_err(refused)
    }

    fn netdev_del(&mut self, id: &str) -> Result<(), CommandError> {
        Machine::netdev_del(self, id)
    }

    fn hostfwd_add(&mut self, netdev: Option<&str>, rule: &str) -> Result<(), CommandError> {
        Machine::hostfwd_add(self, netdev, rule).map_err(remark)
    }

    fn hostfwd_remove(&mut self, netdev: Option<&str>, rule: &str) -> Result<String, CommandError> {
        Machine::hostfwd_remove(self, netdev, rule).map_err(remark)
    }

    fn block_devices(&mut self) -> Vec<BlockInfo> {
        block::devices(self.disks())
    }

    fn block_stats(&mut self) -> Vec<BlockStatsReply> {
        block::stats(self.disks())
    }

    fn block_action(&mut self, action: BlockAction) -> Result<(), CommandError> {
        if self.config().sandbox
            && matches!(
                action,
                BlockAction::Add(_) | BlockAction::Change { .. } | BlockAction::Commit(_)
            )
        {
            return Err(CommandError::Refused("--sandbox on lets vmm open no files".to_owned()));
        }
        block::act(self.disks(), action)
    }

    fn virtio_devices(&mut self) -> Vec<VirtioInfo> {
        Machine::virtio_devices(self)
    }

    fn virtio_status(&mut self, path: &str) -> Option<VirtioStatus> {
        Machine::virtio_status(self, path)
    }

    fn virtio_queue(&mut self, path: &str, index: usize) -> Option<VirtioQueue> {
        Machine::virtio_queue(self, path, index)
    }

    fn balloon(&mut self) -> Result<Balloon, CommandError> {
        Machine::balloon(self)
    }

    fn set_balloon(&mut self, bytes: u64) -> Result<(), CommandError> {
        Machine::set_balloon(self, bytes)
    }

    fn gdbserver(&mut self, device: &str) -> Result<(), CommandError> {
        if self.config().sandbox {
            let why = "--sandbox on lets vmm open no backends: start it with --gdb";
            return Err(CommandError::Refused(why.to_owned()));
        }
        let spec = BackendSpec::parse_gdb(device).map_err(refused)?;
        self.serve_gdb(&spec).map_err(refused)
    }

    fn pci(&mut self) -> Vec<PciBus> {
        self.pci_buses()
    }

    fn device_add(&mut self, text: &str) -> Result<(), CommandError> {
        Machine::device_add(self, text).map_err(refused)
    }

    fn device_del(&mut self, id: &str) -> Result<(), CommandError> {
        Machine::device_del(self, id)
    }

    fn create_file(&mut self, path: &str) -> io::Result<Box<dyn Write>> {
        if self.config().sandbox {
            return Err(io::Error::other("--sandbox on lets vmm write no files"));
        }
        Ok(Box::new(io::BufWriter::new(File::create(path)?)))
    }

    fn list_dir(&self, path: &str) -> Vec<String> {
        let path = if path.is_empty() { "." } else { path };
        let Ok(entries) = std::fs::read_dir(path) else { return Vec::new() };
        let name = |entry: std::fs::DirEntry| {
            let mut name = entry.file_name().into_string().ok()?;
            if entry.path().is_dir() {
                name.push('/');
            }
            Some(name)
        };
        entries.filter_map(|entry| name(entry.ok()?)).collect()
    }
}

fn remark(error: impl std::fmt::Display) -> CommandError {
    CommandError::Remark(error.to_string())
}

fn refused(error: impl std::fmt::Display) -> CommandError {
    CommandError::Refused(error.to_string())
}

fn memory_regions(memory: &MemoryMap, mmio: &Bus) -> Vec<MemoryRegion> {
    let slots = memory.slots().iter().map(|slot| MemoryRegion {
        name: slot.name.into(),
        start: slot.start,
        end: slot.start + slot.size - 1,
        priority: 0,
        kind: if slot.readonly { RegionKind::Rom } else { RegionKind::Ram },
        alias: None,
        children: Vec::new(),
    });
    let mut regions: Vec<_> = slots.chain(device_regions(mmio)).collect();
    regions.sort_by_key(|region| region.start);
    regions
}

fn device_regions(bus: &Bus) -> Vec<MemoryRegion> {
    let mappings = bus.mappings().into_iter();
    mappings
        .map(|mapping| MemoryRegion {
            name: mapping.target.name().to_owned(),
            start: mapping.start,
            end: mapping.end,
            priority: 0,
            kind: RegionKind::Io,
            alias: None,
            children: Vec::new(),
        })
        .collect()
}

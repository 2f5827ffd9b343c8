//! Replies as HMP prints them: line for line what QEMU's monitor prints, since scripts read it.

mod block;
mod chips;
mod cpu;
mod memory;
mod paging;
mod pci;
mod virtio;

use std::fmt::{self, Write};

use crate::reply::{CpuReply, HelpLine, PortRead, Reply, Status, VersionReply};
use crate::state::{Chardev, Registers, RunState};

/// The text of a reply, lines ended by `\n`.
pub(crate) fn render(reply: &Reply) -> String {
    let mut out = String::new();
    write_reply(&mut out, reply).expect("a String takes all");
    out
}

fn write_reply(out: &mut String, reply: &Reply) -> fmt::Result {
    match reply {
        Reply::Done {} | Reply::Quit {} | Reply::SelectCpu(_) | Reply::History => Ok(()),
        Reply::Text(text) => out.write_str(text),
        Reply::Help(lines) => lines.iter().try_for_each(|line| help(out, line)),
        Reply::Status(reply) => status(out, *reply),
        Reply::Version(reply) => version(out, reply),
        Reply::Name(reply) => reply.name.iter().try_for_each(|name| writeln!(out, "{name}")),
        Reply::Uuid(reply) => writeln!(out, "{}", reply.uuid),
        Reply::Kvm(kvm) => {
            let state = match (kvm.enabled, kvm.present) {
                (true, _) => "enabled",
                (false, true) => "disabled",
                (false, false) => "not compiled",
            };
            writeln!(out, "kvm support: {state}")?;
            kvm.assists.iter().try_for_each(|a| {
                writeln!(
                    out,
                    "executed by the software CPU: {} instructions, for {} emulation failures, {} \
                     system calls, {} exceptions",
                    a.instructions, a.failures, a.system_calls, a.exceptions
                )
            })
        }
        Reply::Cpus(cpus) => cpus.iter().try_for_each(|cpu| info_cpu(out, cpu)),
        Reply::Chardevs(all) => all.iter().try_for_each(|one| chardev(out, one)),
        Reply::Registers(cpus) => cpus.iter().try_for_each(|cpu| {
            writeln!(out, "\nCPU#{}", cpu.cpu)?;
            cpu::registers(out, &cpu.registers)
        }),
        Reply::LocalApic(apic) => chips::local_apic(out, apic),
        Reply::InterruptControllers { io_apics, pics } => {
            chips::interrupt_controllers(out, io_apics, pics)
        }
        Reply::IrqStats(all) => all.iter().try_for_each(|one| chips::irq_stats(out, one)),
        Reply::Pci(all) => pci::buses(out, all),
        Reply::MemoryTree(spaces) => memory::tree(out, spaces),
        Reply::FlatViews(spaces) => memory::flat_views(out, spaces),
        Reply::Roms(roms) => roms.iter().try_for_each(|rom| {
            writeln!(
                out,
                "addr={:016x} size={:#08x} mem=rom name=\"{}\"",
                rom.start, rom.size, rom.name
            )
        }),
        Reply::Pages { pages, whole } => paging::pages(out, pages, *whole),
        Reply::Ranges { ranges, whole } => paging::ranges(out, ranges, *whole),
        Reply::Dump(dump) => writeln!(out, "Status: {}", dump.status),
        Reply::DumpCapability(all) => all.formats.iter().try_for_each(|one| writeln!(out, "{one}")),
        Reply::Memory(dump) => memory::dump(out, dump),
        Reply::Disassembly(code) => memory::disassembly(out, code),
        Reply::Value(printed) => memory::printed(out, *printed),
        Reply::Port(read) => port(out, read),
        Reply::Checksum(sum) => writeln!(out, "{sum:05}"),
        Reply::Block(all) => block::info(out, all),
        Reply::BlockStats(all) => block::stats(out, all),
        Reply::Virtio(all) => virtio::devices(out, all),
        Reply::VirtioStatus(one) => virtio::status(out, one),
        Reply::VirtioQueue(one) => virtio::queue(out, one),
        Reply::Balloon(reply) => virtio::balloon(out, reply),
        Reply::Commands(names) => names.iter().try_for_each(|one| writeln!(out, "{}", one.name)),
        Reply::Schema(entries) => entries.iter().try_for_each(|one| writeln!(out, "{one}")),
    }
}

impl fmt::Display for Registers {
    /// As `info registers` shows them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        cpu::registers(&mut text, self)?;
        f.write_str(&text)
    }
}

fn help(out: &mut String, line: &HelpLine) -> fmt::Result {
    writeln!(out, "{} {} -- {}", line.name, line.usage, line.help)
}

fn status(out: &mut String, status: Status) -> fmt::Result {
    let running = if status.running { "running" } else { "paused" };
    match status.status {
        RunState::Running | RunState::Paused => writeln!(out, "VM status: {running}"),
        other => writeln!(out, "VM status: {running} ({})", other.name()),
    }
}

fn version(out: &mut String, version: &VersionReply) -> fmt::Result {
    let numbers = version.qemu;
    writeln!(out, "{}.{}.{}{}", numbers.major, numbers.minor, numbers.micro, version.package)
}

fn info_cpu(out: &mut String, cpu: &CpuReply) -> fmt::Result {
    let mark = if cpu.current { '*' } else { ' ' };
    writeln!(out, "{mark} CPU #{}: thread_id={}", cpu.cpu_index, cpu.thread_id)
}

fn chardev(out: &mut String, chardev: &Chardev) -> fmt::Result {
    writeln!(out, "{}: filename={}", chardev.label, chardev.filename)
}

fn port(out: &mut String, read: &PortRead) -> fmt::Result {
    let suffix = match read.size {
        2 => 'w',
        4 => 'l',
        _ => 'b',
    };
    let digits = read.digits.into();
    writeln!(out, "port{suffix}[{:#06x}] = 0x{:0digits$x}", read.port, read.value)
}

//! `dump-guest-memory`: an ELF core (ELF-64 Object File Format, version 1.5) that gdb and crash open.
//!
//! One PT_NOTE has for each vCPU an NT_PRSTATUS, as Linux makes for a thread (elf(5), signal.h), and
//! the note "QEMU" that QEMU adds with segments and control registers, which crash reads. A PT_LOAD
//! is a stretch of RAM; with paging there is one for each stretch of virtual memory as well.

use std::fs::File;
use std::io::{self, BufWriter, Write};

use board::VcpuState;
use board::memory::MemoryMap;
use board::vcpu::{Segment, TableRegister, gpr, msr};
use monitor::state::{Dump, RunState};
use monitor::{CommandError, Control};

use super::Machine;
use crate::paging;

const HEADER: u64 = 64;
const PROGRAM_HEADER: u64 = 56;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const NT_PRSTATUS: u32 = 1;
/// Most program headers: a 16-bit number, whose largest value means something else.
const MAX_HEADERS: usize = 0xFFFE;
/// Bytes that are copied at a time.
const CHUNK: usize = 1 << 20;

/// A stretch of memory: virtual and physical address, and bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Load {
    linear: u64,
    physical: u64,
    size: u64,
}

/// RAM, or what of it `filter` leaves.
fn ram(memory: &MemoryMap, filter: Option<(u64, u64)>) -> Vec<Load> {
    let (first, count) = filter.unwrap_or((0, u64::MAX));
    let end = first.saturating_add(count);
    let slots = memory.slots().iter().filter(|slot| !slot.readonly);
    slots
        .filter_map(|slot| {
            let (start, end) = (slot.start.max(first), (slot.start + slot.size).min(end));
            (start < end).then(|| Load { linear: start, physical: start, size: end - start })
        })
        .collect()
}

/// What of a mapping is in `ram`.
fn within(ram: &[Load], linear: u64, physical: u64, size: u64) -> Vec<Load> {
    ram.iter()
        .filter_map(|block| {
            let start = physical.max(block.physical);
            let end = (physical.saturating_add(size)).min(block.physical + block.size);
            let linear = linear.wrapping_add(start.wrapping_sub(physical));
            (start < end).then(|| Load { linear, physical: start, size: end - start })
        })
        .collect()
}

/// The virtual memory of all `cpus`, neighbours joined; then the RAM that nobody maps.
fn mapped(cpus: &[VcpuState], memory: &MemoryMap, ram: &[Load]) -> Vec<Load> {
    let mut loads: Vec<Load> = Vec::new();
    for (index, cpu) in cpus.iter().enumerate() {
        if cpus[..index].iter().any(|other| (other.cr3, other.cr4) == (cpu.cr3, cpu.cr4)) {
            continue;
        }
        paging::walk_pages(cpu, memory, &mut |page| {
            for piece in within(ram, page.linear, page.physical, page.size) {
                match loads.last_mut() {
                    Some(last)
                        if last.linear.wrapping_add(last.size) == piece.linear
                            && last.physical + last.size == piece.physical =>
                    {
                        last.size += piece.size;
                    }
                    _ => loads.push(piece),
                }
            }
            loads.len() < MAX_HEADERS / 2
        });
    }
    loads.sort_by_key(|load| (load.linear, load.physical));
    loads.dedup();
    // Without a virtual address of its own, memory is found at its physical one.
    let mut covered: Vec<_> = loads.iter().map(|load| (load.physical, load.size)).collect();
    covered.sort_unstable();
    for block in ram {
        let (mut at, end) = (block.physical, block.physical + block.size);
        for &(start, size) in &covered {
            if start > at && at < end {
                let size = start.min(end) - at;
                loads.push(Load { linear: at, physical: at, size });
            }
            at = at.max(start + size);
        }
        if at < end {
            loads.push(Load { linear: at, physical: at, size: end - at });
        }
    }
    loads.truncate(MAX_HEADERS - 1);
    loads
}

fn note(out: &mut Vec<u8>, name: &[u8], kind: u32, contents: &[u8]) {
    for number in [name.len() as u32 + 1, contents.len() as u32, kind] {
        out.extend(number.to_le_bytes());
    }
    out.extend(name);
    // A zero ends the name; then to a multiple of four.
    out.resize((out.len() + 1).next_multiple_of(4), 0);
    out.extend(contents);
    out.resize(out.len().next_multiple_of(4), 0);
}

/// `struct elf_prstatus` of x86-64 Linux.
fn prstatus(cpu: usize, state: &VcpuState) -> Vec<u8> {
    let s = &state.segments;
    let g = |number| state.gpr[number];
    let registers = [
        g(15),
        g(14),
        g(13),
        g(12),
        g(gpr::RBP),
        g(gpr::RBX),
        g(11),
        g(10),
        g(9),
        g(gpr::R8),
        g(gpr::RAX),
        g(gpr::RCX),
        g(gpr::RDX),
        g(gpr::RSI),
        g(gpr::RDI),
        u64::MAX,
        state.rip,
        s.cs.selector.into(),
        state.rflags,
        g(gpr::RSP),
        s.ss.selector.into(),
        s.fs.base,
        s.gs.base,
        s.ds.selector.into(),
        s.es.selector.into(),
        s.fs.selector.into(),
        s.gs.selector.into(),
    ];
    // Signals and times are zero; the process id is the vCPU's number from 1.
    let mut out = vec![0; 32];
    out.extend((cpu as u32 + 1).to_le_bytes());
    out.resize(112, 0);
    registers.iter().for_each(|value| out.extend(value.to_le_bytes()));
    // No x87 registers follow.
    out.resize(336, 0);
    out
}

/// QEMU's note: its version and size, general registers, segments and control registers.
fn qemu_note(state: &VcpuState) -> Vec<u8> {
    fn segment(out: &mut Vec<u8>, s: &Segment) {
        let flags = if s.unusable() { 0 } else { (s.attributes & 0xF0FF) << 8 };
        for number in [s.selector.into(), s.limit, flags, 0] {
            out.extend(number.to_le_bytes());
        }
        out.extend(s.base.to_le_bytes());
    }
    fn table(out: &mut Vec<u8>, t: &TableRegister) {
        segment(out, &Segment { limit: t.limit.into(), base: t.base, ..Segment::default() });
    }
    const SIZE: u32 = 440;
    let mut out = Vec::new();
    out.extend(1_u32.to_le_bytes());
    out.extend(SIZE.to_le_bytes());
    let order = [gpr::RAX, gpr::RBX, gpr::RCX, gpr::RDX, gpr::RSI, gpr::RDI, gpr::RSP, gpr::RBP];
    for number in order.into_iter().chain(8..16) {
        out.extend(state.gpr[number].to_le_bytes());
    }
    out.extend(state.rip.to_le_bytes());
    out.extend(state.rflags.to_le_bytes());
    let s = &state.segments;
    for one in [&s.cs, &s.ds, &s.es, &s.fs, &s.gs, &s.ss, &s.ldt, &s.tr] {
        segment(&mut out, one);
    }
    table(&mut out, &state.gdt);
    table(&mut out, &state.idt);
    let kernel_gs_base = state.msrs.get(&msr::KERNEL_GS_BASE).copied().unwrap_or(0);
    for value in [state.cr0, 0, state.cr2, state.cr3, state.cr4, kernel_gs_base] {
        out.extend(value.to_le_bytes());
    }
    debug_assert_eq!(out.len(), SIZE as usize);
    out
}

fn program_header(kind: u32, offset: u64, load: &Load) -> Vec<u8> {
    let mut out = kind.to_le_bytes().to_vec();
    out.extend(0_u32.to_le_bytes());
    for value in [offset, load.linear, load.physical, load.size, load.size, 0] {
        out.extend(value.to_le_bytes());
    }
    out
}

/// Where in the file the memory of `load` is: within that of `ram`, which begins at `data`.
fn offset_of(ram: &[Load], data: u64, load: &Load) -> u64 {
    let mut offset = data;
    for block in ram {
        if load.physical.wrapping_sub(block.physical) < block.size {
            return offset + (load.physical - block.physical);
        }
        offset += block.size;
    }
    offset
}

/// The core without its memory: headers and notes.
fn head(cpus: &[VcpuState], loads: &[Load], ram: &[Load]) -> Vec<u8> {
    let mut notes = Vec::new();
    for (cpu, state) in cpus.iter().enumerate() {
        note(&mut notes, b"CORE", NT_PRSTATUS, &prstatus(cpu, state));
    }
    for state in cpus {
        note(&mut notes, b"QEMU", 0, &qemu_note(state));
    }
    let count = loads.len() + 1;
    let at = HEADER + PROGRAM_HEADER * count as u64;
    // ELF64, little-endian, version 1.
    let mut out = b"\x7FELF\x02\x01\x01".to_vec();
    out.resize(16, 0);
    // ET_CORE, EM_X86_64.
    out.extend([4, 0, 62, 0, 1, 0, 0, 0]);
    for value in [0, HEADER, 0] {
        out.extend(value.to_le_bytes());
    }
    out.extend(0_u32.to_le_bytes());
    for value in [HEADER as u16, PROGRAM_HEADER as u16, count as u16, 64, 0, 0] {
        out.extend(value.to_le_bytes());
    }
    let all_notes = Load { linear: 0, physical: 0, size: notes.len() as u64 };
    out.extend(program_header(PT_NOTE, at, &all_notes));
    let data = at + notes.len() as u64;
    for load in loads {
        out.extend(program_header(PT_LOAD, offset_of(ram, data, load), load));
    }
    out.extend(notes);
    out
}

impl Machine {
    /// Writes memory and registers into the file that `dump` names; the machine stands still
    /// meanwhile.
    pub(crate) fn dump_core(&mut self, dump: &Dump) -> Result<(), CommandError> {
        let refused = |why: &str| CommandError::Refused(why.to_owned());
        if self.config.sandbox {
            return Err(refused("--sandbox on lets vmm write no files"));
        }
        let ram = ram(&self.map, dump.filter);
        if ram.is_empty() {
            return Err(refused("there is no RAM in that range: info mtree shows where RAM is"));
        }
        let path = &dump.path;
        let failed = |what| move |source| CommandError::File { what, path: path.clone(), source };
        let file = File::create(path).map_err(failed("open"))?;
        let runs = self.state == RunState::Running;
        if runs {
            Control::stop(self)?;
        }
        let result = self.write_core(dump, &ram, file);
        if runs {
            self.cont();
        }
        self.last_core = match result {
            Ok(bytes) => ("completed", bytes),
            Err(_) => ("failed", 0),
        };
        result.map(drop).map_err(failed("write"))
    }

    /// The bytes written.
    fn write_core(&self, dump: &Dump, ram: &[Load], file: File) -> io::Result<u64> {
        let states = (0..self.vcpus.count()).map(|index| self.vcpu_state(index));
        let cpus = states.collect::<Result<Vec<_>, _>>().map_err(io::Error::other)?;
        let loads = if dump.paging { mapped(&cpus, &self.map, ram) } else { ram.to_vec() };
        let mut file = BufWriter::new(file);
        let head = head(&cpus, &loads, ram);
        file.write_all(&head)?;
        let mut written = head.len() as u64;
        let mut buffer = vec![0; CHUNK];
        for block in ram {
            let mut done = 0;
            while done < block.size {
                let chunk = &mut buffer[..(block.size - done).min(CHUNK as u64) as usize];
                let address = block.physical + done;
                self.map.ram().read(address, chunk).map_err(io::Error::other)?;
                file.write_all(chunk)?;
                done += chunk.len() as u64;
            }
            written += block.size;
        }
        file.flush()?;
        Ok(written)
    }

    pub(crate) fn last_core(&self) -> (&'static str, u64) {
        self.last_core
    }
}

#[cfg(test)]
mod tests {
    use board::GuestRam;

    use super::*;

    fn load(linear: u64, physical: u64, size: u64) -> Load {
        Load { linear, physical, size }
    }

    #[test]
    fn a_filter_cuts_ram() {
        let map = MemoryMap::new(&GuestRam::new(4 << 20).unwrap());
        assert_eq!(ram(&map, None), [load(0, 0, 4 << 20)]);
        assert_eq!(ram(&map, Some((0x1000, 0x2000))), [load(0x1000, 0x1000, 0x2000)]);
        assert_eq!(ram(&map, Some((4 << 20, u64::MAX))), []);
    }

    #[test]
    fn virtual_memory_is_joined_and_the_rest_stays_physical() {
        let guest = GuestRam::new(4 << 20).unwrap();
        let map = MemoryMap::new(&guest);
        let mut state = VcpuState { cr0: 1 << 31 | 1, cr3: 0x1000, ..VcpuState::default() };
        let put = |at: u64, entry: u32| guest.write(at, &entry.to_le_bytes()).unwrap();
        put(0x1000 + 4 * 0x300, 0x2003);
        for page in 0..16 {
            put(0x2000 + 4 * page, 0x10_0003 + 0x1000 * page as u32);
        }
        // Beyond RAM.
        put(0x2000 + 4 * 20, 0xF000_0003);
        let all = ram(&map, None);
        let loads = mapped(std::slice::from_ref(&state), &map, &all);
        let (start, size) = (0x10_0000, 0x1_0000);
        let end = start + size;
        assert_eq!(
            loads,
            [load(0xC000_0000, start, size), load(0, 0, start), load(end, end, (4 << 20) - end)]
        );
        let head = head(std::slice::from_ref(&state), &loads, &all);
        let offset = |index: usize| {
            let at = 64 + 56 * (index + 1) + 8;
            u64::from_le_bytes(head[at..at + 8].try_into().unwrap())
        };
        assert_eq!([offset(0), offset(1)], [head.len() as u64 + start, head.len() as u64]);
        state.cr0 = 1;
        assert_eq!(mapped(&[state], &map, &all), all);
    }

    #[test]
    fn notes_have_the_sizes_that_readers_expect() {
        let state = VcpuState { rip: 0x1122_3344, ..VcpuState::default() };
        assert_eq!((prstatus(2, &state).len(), qemu_note(&state).len()), (336, 440));
        assert_eq!(prstatus(2, &state)[32], 3);
        assert_eq!(prstatus(2, &state)[112 + 16 * 8..][..4], 0x1122_3344_u32.to_le_bytes());
        let mut out = Vec::new();
        note(&mut out, b"CORE", 1, &[9; 3]);
        assert_eq!(out, b"\x05\0\0\0\x03\0\0\0\x01\0\0\0CORE\0\0\0\0\x09\x09\x09\0");
    }
}

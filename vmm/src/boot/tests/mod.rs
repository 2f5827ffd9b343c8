//! Loads small hand-made images of each format, whole, cut short and damaged.

mod bzimage;
mod elf;
mod files;
mod images;
mod multiboot;
mod mutation;

use board::vcpu::{Cpuid, gpr};
use board::{GuestRam, VcpuState};

use super::*;
use images::TestFile;

const MIB: u64 = 1 << 20;
const RSDP: u64 = 0xE_0000;

/// A loaded machine.
struct Guest {
    ram: GuestRam,
    loaded: Loaded,
    /// The boot vCPU as it starts.
    vcpu: VcpuState,
}

impl Guest {
    fn bytes(&self, address: u64, length: usize) -> Vec<u8> {
        let mut data = vec![0; length];
        self.ram.read(address, &mut data).unwrap();
        data
    }

    /// A little-endian number.
    fn number(&self, address: u64, length: usize) -> u64 {
        let bytes = self.bytes(address, length);
        bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    /// A string up to its NUL.
    fn string(&self, address: u64) -> String {
        let end = (address..).find(|&at| self.number(at, 1) == 0).unwrap();
        String::from_utf8(self.bytes(address, (end - address) as usize)).unwrap()
    }
}

fn load_with(
    kernel: &TestFile,
    initrd: Option<&str>,
    cmdline: &str,
    mib: u64,
) -> Result<Guest, BootError> {
    let ram = GuestRam::new(mib * MIB).unwrap();
    let path = kernel.path();
    let config =
        BootConfig { kernel: path.as_ref(), initrd, cmdline, rsdp: Some(RSDP), ecam: None };
    let loaded = load(&config, &ram)?;
    let mut vcpu = reset_state(0, &Cpuid::default());
    loaded.entry.apply(&mut vcpu);
    Ok(Guest { ram, loaded, vcpu })
}

/// Loads what must load.
fn boot(kernel: &[u8], initrd: Option<&TestFile>, cmdline: &str, mib: u64) -> Guest {
    let initrd = initrd.map(TestFile::path);
    load_with(&TestFile::new(kernel), initrd.as_deref(), cmdline, mib).unwrap()
}

/// What the user is told of a kernel that cannot be loaded: one or two lines.
fn refusal(kernel: &[u8], initrd: Option<&TestFile>, cmdline: &str, mib: u64) -> String {
    let initrd = initrd.map(TestFile::path);
    match load_with(&TestFile::new(kernel), initrd.as_deref(), cmdline, mib) {
        Ok(guest) => panic!("loaded: {:?}", guest.loaded),
        Err(error) => {
            let text = error.to_string();
            assert!((1..=2).contains(&text.lines().count()), "{text}");
            text
        }
    }
}

/// Asserts that `text` has each of `words`.
#[track_caller]
fn says(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "no {word:?} in: {text}");
    }
}

/// The state that PVH and multiboot prescribe.
#[track_caller]
fn assert_flat_protected_mode(vcpu: &VcpuState) {
    let s = &vcpu.segments;
    assert_eq!((s.cs.base, s.cs.limit, s.cs.kind(), s.cs.db()), (0, u32::MAX, 0xB, true));
    for data in [s.ds, s.es, s.ss] {
        assert_eq!((data.base, data.limit, data.kind(), data.db()), (0, u32::MAX, 3, true));
        assert!(data.present() && data.s() && data.granular());
    }
    assert_eq!((s.tr.base, s.tr.limit, s.tr.attributes), (0, 0x67, 0x8B));
    assert_eq!((vcpu.cr0 & 0x8000_0001, vcpu.cr4, vcpu.efer), (1, 0, 0));
    assert_eq!(vcpu.rflags, 2);
}

#[test]
fn reset_state_is_the_sdms() {
    let mut cpuid = Cpuid::default();
    cpuid.leaves.push(board::vcpu::CpuidLeaf {
        function: 1,
        eax: 0x00A1_0F11,
        ..Default::default()
    });
    let boot = reset_state(0, &cpuid);
    assert_eq!(boot.linear_rip(), 0xFFFF_FFF0);
    assert_eq!((boot.segments.cs.selector, boot.rip, boot.rflags), (0xF000, 0xFFF0, 2));
    assert_eq!((boot.cr0, boot.gpr[gpr::RDX]), (0x6000_0010, 0x00A1_0F11));
    assert_eq!((boot.apic_base, boot.mp_state), (0xFEE0_0900, board::vcpu::MpState::Runnable));
    assert_eq!((boot.fpu.fcw, boot.fpu.mxcsr, boot.debug.control), (0x40, 0x1F80, 0x400));
    let other = reset_state(3, &cpuid);
    assert_eq!((other.apic_base, other.mp_state), (0xFEE0_0800, board::vcpu::MpState::WaitForInit));
    assert_eq!(other.lapic.unwrap().registers[2], 3 << 24);
}

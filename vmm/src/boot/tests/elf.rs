use super::images::{Segment, elf, put, pvh_kernel};
use super::*;

#[test]
fn pvh_start_info_leads_to_everything() {
    let initrd = TestFile::new(b"initrd contents");
    let guest = boot(&pvh_kernel(), Some(&initrd), "root=/dev/vda", 4096);
    assert_eq!(guest.loaded.protocol, Protocol::Pvh);
    assert_flat_protected_mode(&guest.vcpu);
    assert_eq!(guest.vcpu.rip, 0x10_0010);
    assert_eq!(guest.bytes(0x10_0000, 15), b"pvh kernel text");

    let info = guest.vcpu.gpr[gpr::RBX];
    assert_eq!((guest.number(info, 4), guest.number(info + 4, 4)), (0x336E_C578, 1));
    assert_eq!((guest.number(info + 8, 4), guest.number(info + 12, 4)), (0, 1));
    let module = guest.number(info + 16, 8);
    assert_eq!(guest.string(guest.number(info + 24, 8)), "root=/dev/vda");
    assert_eq!(guest.number(info + 32, 8), RSDP);
    let map_at = guest.number(info + 40, 8);
    let map = e820::kernel_map(&guest.ram, None);
    assert_eq!(guest.number(info + 48, 4), map.len() as u64);
    for (index, entry) in (0..).zip(map) {
        assert_eq!(guest.bytes(map_at + 24 * index, 20), entry.to_bytes());
    }
    let (address, size) = (guest.number(module, 8), guest.number(module + 8, 8));
    assert_eq!(guest.bytes(address, size as usize), b"initrd contents");
    assert_eq!(address, 3072 * MIB - 4096);
}

#[test]
fn pvh_without_an_initrd_has_no_modules() {
    let guest = boot(&pvh_kernel(), None, "", 16);
    assert_eq!(guest.number(layout::START_INFO + 12, 4), 0);
    assert_eq!(guest.number(layout::START_INFO + 16, 8), 0);
}

#[test]
fn a_kernel_without_the_note_is_entered_in_long_mode() {
    let mut text = Segment::load(0x20_0000, b"text", 0x1000);
    let guest = boot(&elf(true, 0x20_0001, &[text.clone()]), None, "quiet", 16);
    assert_eq!((guest.loaded.protocol, guest.vcpu.rip), (Protocol::Linux64, 0x20_0001));
    let zero_page = guest.vcpu.gpr[gpr::RSI];
    assert_eq!(guest.string(guest.number(zero_page + 0x228, 4)), "quiet");
    assert_eq!(
        (guest.number(zero_page + 0x1FE, 2), guest.number(zero_page + 0x210, 1)),
        (0xAA55, 0xFF)
    );

    text.virtual_ = 0xFFFF_FFFF_8020_0000;
    let guest = boot(&elf(true, 0xFFFF_FFFF_8020_0100, &[text.clone()]), None, "", 16);
    assert_eq!(guest.vcpu.rip, 0x20_0100);
    says(&refusal(&elf(true, 0x123, &[text]), None, "", 16), &["entry point 0x123"]);
}

#[test]
fn loading_again_clears_what_the_guest_wrote_to_bss() {
    let kernel = TestFile::new(&elf(true, 0x10_0000, &[Segment::load(0x10_0000, b"x", 0x2_0000)]));
    let guest = load_with(&kernel, None, "", 2).unwrap();
    guest.ram.write(0x10_0000, &vec![0xAA; 0x2_0001]).unwrap();
    let path = kernel.path();
    let config =
        BootConfig { kernel: path.as_ref(), initrd: None, cmdline: "", rsdp: None, ecam: None };
    load(&config, &guest.ram).unwrap();
    assert_eq!(guest.bytes(0x10_0000, 2), b"x\0");
    assert!(guest.bytes(0x10_0001, 0x1_FFFF).iter().all(|byte| *byte == 0));
    assert_eq!(guest.number(0x12_0000, 1), 0xAA);
}

#[test]
fn segments_lie_in_ram_and_beside_the_boot_data() {
    let at = |address, size| elf(true, address, &[Segment::load(address, b"text", size)]);
    boot(&at(0x3_0000, 0x1000), None, "", 16);
    boot(&at(0xF_F000, 0x2000), None, "", 16);
    for (address, size) in [(0, 0x1000), (0x2_F000, 0x2000), (0x9_F000, 0x1000), (0xE_F000, 4)] {
        let text = refusal(&at(address, size), None, "", 16);
        says(&text, &[&format!("loaded at {address:#x}"), "1 MiB"]);
    }
    says(&refusal(&at(0x10_0000, 15 * MIB + 1), None, "", 16), &["has 16 MiB", "-m 17M"]);
    says(&refusal(&at(0x1_0000_0000, 4), None, "", 8192), &["needs RAM", "below 0xc0000000"]);
    says(&refusal(&at(0x10_0000, u64::MAX), None, "", 16), &["needs RAM"]);
    let shrinking = at(0x10_0000, 3);
    says(&refusal(&shrinking, None, "", 16), &["0x4 bytes in the file and 0x3 in memory"]);
}

#[test]
fn files_that_are_no_kernel_are_named_for_what_they_are() {
    let mut other = pvh_kernel();
    put(&mut other, 18, &[183, 0]);
    says(&refusal(&other, None, "", 16), &["AArch64", "x86"]);
    let mut big_endian = pvh_kernel();
    put(&mut big_endian, 5, &[2]);
    put(&mut big_endian, 18, &[0, 20]);
    says(&refusal(&big_endian, None, "", 16), &["PowerPC"]);
    let mut object = pvh_kernel();
    put(&mut object, 16, &[1]);
    says(&refusal(&object, None, "", 16), &["not a bzImage, ELF or multiboot", "object file"]);
    let mut program = pvh_kernel();
    put(&mut program, 64, &[3]);
    says(&refusal(&program, None, "", 16), &["program for an operating system"]);
    let kernel_32 = elf(false, 0x10_0000, &[Segment::load(0x10_0000, b"text", 4)]);
    says(&refusal(&kernel_32, None, "", 16), &["32-bit ELF", "multiboot header"]);
    says(&refusal(&elf(true, 0, &[]), None, "", 16), &["no segment to load"]);
    let mut stray = pvh_kernel();
    let address = stray.len() - 4;
    put(&mut stray, address, &0xDEAD_0000_u32.to_le_bytes());
    says(&refusal(&stray, None, "", 16), &["PVH entry point 0xdead0000"]);
}

#[test]
fn every_truncation_is_refused() {
    let whole = pvh_kernel();
    for length in 1..whole.len() {
        let text = refusal(&whole[..length], None, "", 16);
        says(&text, &[if length < 4 { "not a bzImage" } else { "is truncated" }]);
    }
}

#[test]
fn a_long_command_line_is_refused() {
    let text = refusal(&pvh_kernel(), None, &"x".repeat(65536), 16);
    says(&text, &["65536 bytes", "takes 65535"]);
}

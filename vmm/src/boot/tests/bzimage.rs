use board::vcpu::msr;

use super::images::{BZIMAGE_AT, BZIMAGE_INIT_SIZE, BZIMAGE_PAYLOAD, bzimage, put};
use super::*;

#[test]
fn the_zero_page_tells_the_kernel_all() {
    let mut kernel = bzimage();
    put(&mut kernel, 0x248, b"payload!"); // payload_offset and payload_length, kept as they are
    let initrd = TestFile::new(&[7; 5000]);
    let guest = boot(&kernel, Some(&initrd), "console=ttyS0", 64);
    let zero_page = guest.vcpu.gpr[gpr::RSI];
    let field = |offset, length| guest.number(zero_page + offset, length);

    assert_eq!(field(0x202, 4), u64::from(u32::from_le_bytes(*b"HdrS")));
    assert_eq!(guest.bytes(zero_page + 0x248, 8), b"payload!");
    assert_eq!((field(0x210, 1), field(0x1EF, 1)), (0xFF, 0));
    assert_eq!(field(0x214, 4), BZIMAGE_AT);
    assert_eq!(field(0x070, 8), RSDP);
    assert_eq!(guest.string(field(0x228, 4)), "console=ttyS0");

    // As high as initrd_addr_max allows, whole pages.
    let at = field(0x218, 4);
    assert_eq!((at, field(0x21C, 4)), (16 * MIB - 8192, 5000));
    assert_eq!((field(0x0C0, 4), field(0x0C4, 4)), (0, 0));
    assert_eq!(guest.bytes(at, 5000), [7; 5000]);
    assert_eq!(guest.loaded.initrd, Some(Extent { address: at, size: 5000 }));

    let map = e820::kernel_map(&guest.ram, None);
    assert_eq!(field(0x1E8, 1), map.len() as u64);
    for (index, entry) in (0..).zip(map) {
        assert_eq!(guest.bytes(zero_page + 0x2D0 + 20 * index, 20), entry.to_bytes());
    }
}

#[test]
fn the_entry_is_in_long_mode_with_four_gib_mapped_one_to_one() {
    let guest = boot(&bzimage(), None, "", 64);
    let vcpu = &guest.vcpu;
    assert_eq!(vcpu.rip, BZIMAGE_AT + 0x200);
    assert_eq!(guest.bytes(BZIMAGE_AT, 640), bzimage()[BZIMAGE_PAYLOAD..]);
    assert_eq!(vcpu.code_width(), board::vcpu::CodeWidth::Bits64);
    assert_eq!((vcpu.cr0 & 0xE000_0001, vcpu.cr4 & 0x20, vcpu.efer), (0x8000_0001, 0x20, 0x500));
    assert_eq!((vcpu.segments.cs.selector, vcpu.segments.ds.selector), (0x10, 0x18));
    assert_eq!((vcpu.rflags, vcpu.msrs[&msr::IA32_TSC]), (2, 0));
    // The descriptors in memory are those in the registers.
    assert_eq!(guest.number(vcpu.gdt.base + 0x10, 8), 0x00AF_9B00_0000_FFFF);
    assert_eq!(guest.number(vcpu.gdt.base + 0x18, 8), 0x00CF_9300_0000_FFFF);
    for address in [0, 0x1000, BZIMAGE_AT, 0x3FFF_FFFF, 0x4000_0000, 0xC012_3456, 0xFFFF_FFFF] {
        let mut table = vcpu.cr3;
        for shift in [39, 30] {
            let entry = guest.number(table + (address >> shift & 0x1FF) * 8, 8);
            assert_eq!(entry & 0x83, 3, "{address:#x}");
            table = entry & !0xFFF;
        }
        let entry = guest.number(table + (address >> 21 & 0x1FF) * 8, 8);
        assert_eq!(entry, (address & !0x1F_FFFF) | 0x83);
    }
    assert_eq!(guest.number(vcpu.cr3 + 8, 8), 0);
}

#[test]
fn a_kernel_that_takes_the_initrd_anywhere_gets_it_at_the_end_of_low_ram() {
    let mut kernel = bzimage();
    kernel[0x236] = 3; // XLF_KERNEL_64 | XLF_CAN_BE_LOADED_ABOVE_4G
    let guest = boot(&kernel, Some(&TestFile::new(&[1; 4096])), "", 64);
    assert_eq!(guest.loaded.initrd.unwrap().address, 64 * MIB - 4096);
    let guest = boot(&kernel, Some(&TestFile::new(&[1])), "", 4096);
    assert_eq!(guest.loaded.initrd.unwrap().address, 3072 * MIB - 4096);
}

#[test]
fn a_short_header_reads_as_zeros_behind_its_end() {
    let mut kernel = bzimage();
    kernel[0x201] = 0x62; // Ends at 0x264, before handover_offset.
    put(&mut kernel, 0x264, &[0xEE; 8]);
    let guest = boot(&kernel, None, "", 64);
    assert_eq!(guest.number(layout::ZERO_PAGE + 0x260, 4), BZIMAGE_INIT_SIZE);
    assert_eq!(guest.number(layout::ZERO_PAGE + 0x264, 8), 0);
}

#[test]
fn every_truncation_is_refused() {
    let whole = bzimage();
    for length in 1..whole.len() - 15 {
        let text = refusal(&whole[..length], None, "", 64);
        says(&text, &[if length < 0x208 { "not a bzImage" } else { "is truncated" }]);
    }
    // The last paragraph may be partial.
    boot(&whole[..whole.len() - 15], None, "", 64);
}

#[test]
fn kernels_without_a_64_bit_entry_are_named_as_such() {
    let mut kernel = bzimage();
    kernel[0x236] = 0;
    says(&refusal(&kernel, None, "", 64), &["no 64-bit entry", "2.15", "x86-64"]);
    let mut kernel = bzimage();
    put(&mut kernel, 0x206, &0x0204_u16.to_le_bytes());
    says(&refusal(&kernel, None, "", 64), &["no 64-bit entry", "2.04"]);
}

#[test]
fn a_kernel_that_does_not_fit_says_how_much_it_takes() {
    let end = BZIMAGE_AT + BZIMAGE_INIT_SIZE;
    says(&refusal(&bzimage(), None, "", 2), &[&format!("{end:#x}"), "has 2 MiB", "-m 3M"]);
    boot(&bzimage(), None, "", 3);
    let mut kernel = bzimage();
    put(&mut kernel, 0x258, &u64::MAX.to_le_bytes());
    says(&refusal(&kernel, None, "", 64), &["needs RAM", "below 0xc0000000"]);
    put(&mut kernel, 0x258, &0x9000_u64.to_le_bytes());
    says(&refusal(&kernel, None, "", 64), &["0x9000", "1 MiB"]);
}

#[test]
fn command_line_and_initrd_have_their_limits() {
    let longest = "x".repeat(255);
    assert_eq!(boot(&bzimage(), None, &longest, 64).loaded.cmdline.size, 256);
    let text = refusal(&bzimage(), None, &(longest + "y"), 64);
    says(&text, &["256 bytes", "takes 255", "--append"]);

    let floor = BZIMAGE_AT + BZIMAGE_INIT_SIZE;
    let fits = TestFile::new(&vec![1; (4 * MIB - floor) as usize]);
    assert_eq!(boot(&bzimage(), Some(&fits), "", 4).loaded.initrd.unwrap().address, floor);
    let large = TestFile::new(&vec![1; (4 * MIB - floor + 1) as usize]);
    says(&refusal(&bzimage(), Some(&large), "", 4), &["does not fit", "larger -m"]);
    let larger = TestFile::new(&vec![1; 15 * MIB as usize]);
    says(&refusal(&bzimage(), Some(&larger), "", 64), &["does not fit", "make the initrd smaller"]);
}

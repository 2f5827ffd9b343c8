use super::images::{Segment, elf, multiboot_header, multiboot_kludge, put};
use super::*;

/// The information structure of `guest`.
fn info(guest: &Guest) -> impl Fn(u64) -> u64 {
    assert_eq!(guest.loaded.protocol, Protocol::Multiboot);
    assert_flat_protected_mode(&guest.vcpu);
    assert_eq!(guest.vcpu.gpr[gpr::RAX], 0x2BAD_B002);
    let at = guest.vcpu.gpr[gpr::RBX];
    move |offset| guest.number(at + offset, 4)
}

#[test]
fn the_information_structure_describes_memory_and_command_line() {
    let kernel = TestFile::new(&multiboot_kludge());
    let guest = load_with(&kernel, None, "quiet x=1", 4096).unwrap();
    let info = info(&guest);
    assert_eq!(info(0), 1 << 0 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9);
    assert_eq!((info(4), info(8)), (639, 3071 * 1024));
    assert_eq!(guest.string(info(16)), kernel.path() + " quiet x=1");
    assert_eq!(guest.loaded.cmdline.address, info(16));
    assert_eq!(info(20), 0);
    assert!(guest.string(info(64)).starts_with("vmm "));
    let (mut at, end) = (info(48), info(48) + info(44));
    for entry in e820::kernel_map(&guest.ram, None) {
        assert_eq!((guest.number(at, 4), guest.bytes(at + 4, 20)), (20, entry.to_bytes().to_vec()));
        at += 24;
    }
    assert_eq!(at, end);
}

#[test]
fn the_headers_addresses_place_a_flat_kernel() {
    let image = multiboot_kludge();
    let guest = boot(&image, None, "", 16);
    assert_eq!(guest.vcpu.rip, 0x10_0060);
    assert_eq!(guest.bytes(0x10_0000, 0x80), image[..0x80]);
    assert_eq!(guest.number(0x10_0080, 8), 0); // load_end_addr, then BSS
    assert_eq!(guest.loaded.kernel, Extent { address: 0x10_0000, size: 0x1_0000 });
    assert_eq!(guest.vcpu.gpr[gpr::RBX], 0x11_0000);

    let mut to_the_end = image.clone();
    put(&mut to_the_end, 64 + 20, &[0; 8]); // load_end_addr and bss_end_addr
    assert_eq!(boot(&to_the_end, None, "", 16).loaded.kernel.size, 192);
    let mut skipping = image;
    put(&mut skipping, 64 + 16, &0x10_0020_u32.to_le_bytes()); // load_addr
    let guest = boot(&skipping, None, "", 16);
    assert_eq!(guest.bytes(0x10_0020, 0x60), skipping[0x20..0x80]);
}

#[test]
fn elf_of_both_widths_is_loaded_by_its_segments() {
    for is_64_bit in [false, true] {
        let mut text = multiboot_header(3, &[]);
        text.extend(b"code");
        // Low enough to lie where other protocols keep their boot data.
        for address in [0x10_0000, 0x7C00] {
            let kernel = elf(is_64_bit, address + 12, &[Segment::load(address, &text, 0x1000)]);
            let guest = boot(&kernel, None, "", 16);
            assert_eq!(info(&guest)(20), 0);
            assert_eq!(guest.vcpu.rip, address + 12);
            assert_eq!(guest.bytes(address, 16), text);
            assert!(guest.vcpu.gpr[gpr::RBX] >= MIB);
        }
    }
}

#[test]
fn modules_are_pages_with_their_names_and_arguments() {
    let (first, second) = (TestFile::new(&[1; 5000]), TestFile::new(b"second"));
    let list = format!("{} with args,{}", first.path(), second.path());
    let kernel = TestFile::new(&multiboot_kludge());
    let guest = load_with(&kernel, Some(&list), "", 16).unwrap();
    let info = info(&guest);
    assert_eq!((info(20), guest.string(info(16))), (2, kernel.path()));
    let list = info(24);
    let field = |module: u64, field: u64| guest.number(list + 16 * module + 4 * field, 4);
    assert_eq!((field(0, 0) % 4096, field(0, 1) - field(0, 0)), (0, 5000));
    assert_eq!(guest.bytes(field(0, 0), 5000), [1; 5000]);
    assert_eq!(guest.string(field(0, 2)), first.path() + " with args");
    assert_eq!((field(1, 0) % 4096, guest.bytes(field(1, 0), 6)), (0, b"second".to_vec()));
    assert_eq!(guest.string(field(1, 2)), second.path());
    assert!(field(1, 0) >= field(0, 1));
    assert!(guest.loaded.initrd.is_none());
}

#[test]
fn what_cannot_be_is_refused() {
    let refused = |offset: usize, value: u32| {
        let mut image = multiboot_kludge();
        put(&mut image, 64 + offset, &value.to_le_bytes());
        refusal(&image, None, "", 16)
    };
    says(&refused(12, 0x10_0041), &["header is at 0x100041"]);
    says(&refused(12, 0xF_FFFF), &["header is at 0xfffff"]);
    says(&refused(16, 0x100), &["header is at"]);
    says(&refused(20, 0xF_0000), &["ends at 0xf0000"]);
    says(&refused(20, 0x10_1000), &["is truncated", "multiboot load area"]);
    says(&refused(24, 0xFFFF_FFFF), &["needs RAM"]);
    says(&refused(28, 0x20_0000), &["entry point 0x200000"]);
    let mut unknown = vec![0; 64];
    unknown.extend(multiboot_header(1 << 7, &[]));
    says(&refusal(&unknown, None, "", 16), &["requires features 0x80"]);
    let mut nowhere = vec![0; 64];
    nowhere.extend(multiboot_header(0, &[]));
    says(&refusal(&nowhere, None, "", 16), &["no load address"]);
    let mut late = vec![0; 8192];
    late.extend(multiboot_header(0, &[]));
    says(&refusal(&late, None, "", 16), &["not a bzImage"]);
    let large = TestFile::new(&vec![0; 15 * MIB as usize]);
    says(&refusal(&multiboot_kludge(), Some(&large), "", 16), &["does not fit", "-m"]);
}

#[test]
fn every_truncation_is_refused() {
    let whole = multiboot_kludge();
    for length in 1..128 {
        let text = refusal(&whole[..length], None, "", 16);
        says(&text, &[if length < 64 + 12 { "not a bzImage" } else { "is truncated" }]);
    }
    boot(&whole[..128], None, "", 16);
}

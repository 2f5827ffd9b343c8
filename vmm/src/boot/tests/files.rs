use std::path::Path;

use board::memory::MemoryMap;

use super::images::{bzimage, pvh_kernel};
use super::*;

fn refused_path(path: &str, initrd: Option<&str>) -> String {
    let ram = GuestRam::new(MIB).unwrap();
    let config =
        BootConfig { kernel: Path::new(path), initrd, cmdline: "", rsdp: None, ecam: None };
    load(&config, &ram).unwrap_err().to_string()
}

#[test]
fn paths_that_are_no_files_are_refused() {
    says(&refused_path("/no/such/kernel", None), &["/no/such/kernel", "No such file", "--kernel"]);
    says(&refused_path("/", None), &["/ is a directory", "--kernel"]);
    says(&refused_path("/dev/null", None), &["is a device"]);
    says(&refused_path("/etc/passwd/x", None), &["Not a directory"]);
    let kernel = TestFile::new(&pvh_kernel());
    let path = kernel.path();
    says(&refused_path(&path, Some("/no/such/initrd")), &["/no/such/initrd", "--initrd"]);
    says(&refused_path(&path, Some("/dev")), &["/dev is a directory", "--initrd"]);
}

#[test]
fn empty_and_foreign_files_are_refused() {
    says(&refusal(b"", None, "", 16), &["is empty"]);
    says(&refusal(&pvh_kernel(), Some(&TestFile::new(b"")), "", 16), &["is empty", "--initrd"]);
    says(&refusal(b"hello", None, "", 16), &["starts with the bytes 68 65 6c 6c"]);
    says(&refusal(b"\x1F\x8B\x08", None, "", 16), &["compressed with gzip", "unpack"]);
    says(&refusal(b"070701", None, "", 16), &["cpio archive", "--initrd"]);
}

#[test]
fn less_than_a_mib_of_ram_is_refused() {
    let ram = GuestRam::new(MIB - 4096).unwrap();
    let kernel = TestFile::new(&bzimage());
    let path = kernel.path();
    let config =
        BootConfig { kernel: path.as_ref(), initrd: None, cmdline: "", rsdp: None, ecam: None };
    says(&load(&config, &ram).unwrap_err().to_string(), &["1020 KiB", "-m 1M"]);
    let firmware = Firmware::open(TestFile::new(&[0; 65536]).path().as_ref()).unwrap();
    assert!(firmware.shadow(&ram).is_err());
}

#[test]
fn firmware_ends_at_four_gib_and_its_tail_at_one_mib() {
    for (units, shadowed) in [(1_usize, 1_usize), (2, 2), (4, 2)] {
        let image: Vec<u8> = (0..units * 65536).map(|i| (i / 4096) as u8).collect();
        let firmware = Firmware::open(TestFile::new(&image).path().as_ref()).unwrap();
        let ram = GuestRam::new(2 * MIB).unwrap();
        let mut map = MemoryMap::new(&ram);
        firmware.map(&mut map);
        firmware.shadow(&ram).unwrap();
        let mut data = vec![0; image.len()];
        map.read(0x1_0000_0000 - image.len() as u64, &mut data).unwrap();
        assert_eq!(data, image);
        let tail = &image[image.len() - shadowed * 65536..];
        let mut data = vec![0xFF; tail.len()];
        ram.read(MIB - tail.len() as u64, &mut data).unwrap();
        assert_eq!(data, tail);
        let mut before = [0xFF];
        ram.read(MIB - tail.len() as u64 - 1, &mut before).unwrap();
        assert_eq!(before, [0]);
    }
}

#[test]
fn firmware_of_another_size_is_refused() {
    for size in [1, 65535, 65537, (16 << 20) + 65536] {
        let text = Firmware::open(TestFile::new(&vec![0; size]).path().as_ref()).unwrap_err();
        says(&text.to_string(), &[&size.to_string(), "multiple of 64 KiB", "--bios"]);
    }
    let error = Firmware::open(Path::new("/no/such/bios")).unwrap_err().to_string();
    says(&error, &["/no/such/bios", "--bios"]);
}
